//! The operations of `gridos.h` on whatever takes their arguments by a pointer: the module's device, or the system call.

use std::io;
use std::time::Duration;

use super::abi::{CALL_MAX, CALL_NOWAIT, Call, List, Op, Record, SYS_GRIDOS, sized};

/// Those whose arguments hold addresses.
const HOLD_ADDRESSES: [Op; 8] =
    [Op::NODES, Op::JOBS, Op::CALL, Op::PUBLISH, Op::IO_SEND, Op::IO_RECV, Op::IO_WRITE, Op::IO_READ];

/// What a call came back with: the error, 0 for none, and bytes.
pub type Outcome = (i32, Vec<u8>);

/// A way into the kernel, or to who answers in its place.
pub trait Enter {
    /// One operation on arguments, which begin with their size.
    ///
    /// # Errors
    /// As `gridos.h` says of the operation.
    ///
    /// # Safety
    /// The arguments are as long as they say, and what they point to is there, as long as they say, until this returns.
    #[expect(unsafe_code, reason = "arguments may hold addresses")]
    unsafe fn enter(&self, op: Op, arguments: &mut [u8]) -> io::Result<()>;

    /// One operation: what the kernel made of its arguments.
    ///
    /// # Errors
    /// As `gridos.h` says of the operation; `InvalidInput` for one whose arguments hold addresses, which have methods of
    /// their own.
    fn operate<R: Record>(&self, op: Op, arguments: R) -> io::Result<R> {
        // Numbers of any other struct would be taken for addresses.
        if HOLD_ADDRESSES.contains(&op) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        operate_on(self, op, arguments)
    }

    /// Asks the daemon, and waits `limit` at most; with `nowait`, no daemon is an error at once.
    ///
    /// # Errors
    /// Where there is no answer. An answer that is an error is none of these.
    fn call(&self, op: Op, input: &[u8], limit: Duration, nowait: bool) -> io::Result<Outcome> {
        let mut output = vec![0u8; CALL_MAX];
        let call = Call {
            size: 0,
            op: op.0,
            flags: if nowait { CALL_NOWAIT } else { 0 },
            timeout_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            input: input.as_ptr() as u64,
            output: output.as_mut_ptr() as u64,
            input_len: u32::try_from(input.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            output_len: CALL_MAX as u32,
        };
        let mut bytes = sized(&call);
        let error = enter(self, Op::CALL, &mut bytes).err();
        output.truncate(Call::from_bytes(&bytes).output_len as usize);
        match error {
            None => Ok((0, output)),
            // Nothing was asked for.
            Some(error) if output.len() == CALL_MAX => Err(error),
            Some(error) => Ok((error.raw_os_error().unwrap_or(libc::EIO), output)),
        }
    }

    /// A table, all of it.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn list<R: Record>(&self, op: Op, number: impl Fn(&R) -> u64) -> io::Result<Vec<R>> {
        const PAGE: usize = 256;
        let mut all: Vec<R> = Vec::new();
        let mut room = vec![0u8; PAGE * R::SIZE];
        loop {
            let list = List {
                size: 0,
                record_size: R::SIZE as u32,
                records: room.as_mut_ptr() as u64,
                from: all.last().map_or(0, |last| number(last) + 1),
                count: PAGE as u32,
                reserved: 0,
            };
            let got = operate_on(self, op, list)?.count as usize;
            all.extend(room.chunks_exact(R::SIZE).take(got).map(R::from_bytes));
            if got < PAGE {
                return Ok(all);
            }
        }
    }
}

/// An operation with arguments that may hold addresses: what they point to must be there until this returns.
pub(super) fn operate_on<R: Record>(entrance: &(impl Enter + ?Sized), op: Op, arguments: R) -> io::Result<R> {
    let mut bytes = sized(&arguments);
    enter(entrance, op, &mut bytes)?;
    Ok(R::from_bytes(&bytes))
}

#[expect(unsafe_code, reason = "arguments may hold addresses")]
fn enter(entrance: &(impl Enter + ?Sized), op: Op, arguments: &mut [u8]) -> io::Result<()> {
    // SAFETY: they begin with their size, by `sized`; those with addresses are made in this module's own functions, where
    // what they point to outlives the call.
    unsafe { entrance.enter(op, arguments) }
}

/// The grid's system call ([`SYS_GRIDOS`]), which processes of jobs have that asked for it.
///
/// ```no_run
/// use libgrid::sys::abi::{Op, SelfInfo};
/// use libgrid::sys::enter::{Enter, SystemCall};
/// let this: SelfInfo = SystemCall.operate(Op::SELF, SelfInfo::default())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SystemCall;

impl Enter for SystemCall {
    #[expect(unsafe_code, reason = "a system call that no library knows")]
    unsafe fn enter(&self, op: Op, arguments: &mut [u8]) -> io::Result<()> {
        // SAFETY: whoever answers uses no more of the arguments than they say; the rest is the caller's promise.
        let done = unsafe {
            libc::syscall(
                SYS_GRIDOS as libc::c_long,
                op.0 as libc::c_long,
                arguments.as_mut_ptr(),
                arguments.len(),
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
