//! `/dev/gridos`: `ioctl(2)` on the module's device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::abi::{CALL_MAX, CALL_NOWAIT, Call, List, Op, Publish, Record, sized};

/// `_IO(GRIDOS_IOC_MAGIC, op)`.
const fn command(op: Op) -> libc::Ioctl {
    0xe9 << 8 | op.0 as libc::Ioctl
}

/// Those whose arguments hold addresses.
const HOLD_ADDRESSES: [Op; 8] =
    [Op::NODES, Op::JOBS, Op::CALL, Op::PUBLISH, Op::IO_SEND, Op::IO_RECV, Op::IO_WRITE, Op::IO_READ];

/// The open device.
///
/// ```no_run
/// use libgrid::sys::abi::{Op, Version};
/// use libgrid::sys::device::Device;
/// let version: Version = Device::open()?.operate(Op::VERSION, Version::default())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Device(File);

/// What a call came back with: the error, 0 for none, and bytes.
pub type Outcome = (i32, Vec<u8>);

impl Device {
    /// Opens [`DEVICE`](super::abi::DEVICE).
    ///
    /// # Errors
    /// `NotFound` where the module is not loaded.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(super::abi::DEVICE))
    }

    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// The file, to read requests from and to write answers to, once it is attached.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// One operation: what the kernel made of its arguments.
    ///
    /// # Errors
    /// As `gridos.h` says of the operation; `InvalidInput` for one whose arguments hold addresses, which have methods of
    /// their own.
    pub fn operate<R: Record>(&self, op: Op, arguments: R) -> io::Result<R> {
        // Numbers of any other struct would be taken for addresses.
        if HOLD_ADDRESSES.contains(&op) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.operate_on(op, arguments)
    }

    /// The same with arguments that may hold addresses: what they point to must be there until this returns.
    pub(crate) fn operate_on<R: Record>(&self, op: Op, arguments: R) -> io::Result<R> {
        let mut bytes = sized(&arguments);
        self.ioctl(op, &mut bytes)?;
        Ok(R::from_bytes(&bytes))
    }

    /// Asks the daemon, and waits `limit` at most; with `nowait`, no daemon is an error at once.
    ///
    /// # Errors
    /// Where there is no answer. An answer that is an error is none of these.
    pub fn call(&self, op: Op, input: &[u8], limit: Duration, nowait: bool) -> io::Result<Outcome> {
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
        let error = self.ioctl(Op::CALL, &mut bytes).err();
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
    pub fn list<R: Record>(&self, op: Op, number: impl Fn(&R) -> u64) -> io::Result<Vec<R>> {
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
            let got = self.operate_on(op, list)?.count as usize;
            all.extend(room.chunks_exact(R::SIZE).take(got).map(R::from_bytes));
            if got < PAGE {
                return Ok(all);
            }
        }
    }

    /// Replaces a table; for the daemon.
    ///
    /// # Errors
    /// As `gridos.h` says.
    pub fn publish<R: Record>(&self, table: Op, records: &[R]) -> io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        let publish = Publish {
            size: 0,
            table: table.0,
            records: bytes.as_ptr() as u64,
            record_size: R::SIZE as u32,
            count: records.len() as u32,
        };
        self.operate_on(Op::PUBLISH, publish).map(drop)
    }

    #[expect(unsafe_code, reason = "ioctl(2) has no safe wrapper")]
    fn ioctl(&self, op: Op, arguments: &mut [u8]) -> io::Result<()> {
        // SAFETY: the arguments begin with their size, and the kernel uses no more bytes of them. What they point to, in
        // `call` and by `operate_on`, is there until they return, and as long as they say; `operate` has no addresses.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), command(op), arguments.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
