//! The source tree after its dump: frozen, in CRIU's hands, to be ended or let go.
//!
//! `criu dump --lazy-pages --address A --port P --status-fd F` writes one zero byte to F when the images are complete, and waits
//! with the frozen tree for somebody to ask for pages. Nobody does; the connection that comes is the decision.
//!
//! **An end of file would be taken for success**: a connection that is closed without a command kills the tree. So
//! both functions write before anything else, and a caller connects only to decide.
//!
//! Also here, because it costs each dump 10 ms: [`keep_perf_ready`].

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// CRIU's `PS_IOV_CLOSE`.
const CLOSE: u32 = 0x1023;

/// No command of CRIU's.
const NONE: u32 = 0x77;

/// Bytes of a command (`struct page_server_iov`) up to CRIU 4.1, where its count of pages has 32 bits.
const SHORT: usize = 24;

/// Bytes of it where the count has 64.
const LONG: usize = 32;

/// For the answer to a command that was long enough: CRIU corks its socket, and the kernel sends after 200 ms.
const ANSWER: Duration = Duration::from_secs(1);

/// Lets CRIU kill the frozen tree and end: the migration is done.
///
/// A byte too many would make CRIU fail, and let the tree go; so the longer form is sent only when the shorter was
/// not enough.
///
/// # Errors
/// Where CRIU does not answer; the tree may be dead or alive, and CRIU's exit status says which.
pub fn commit(mut server: TcpStream) -> io::Result<()> {
    let command = command(CLOSE);
    server.set_read_timeout(Some(ANSWER))?;
    server.write_all(&command[..SHORT])?;
    let mut answer = [0; 4];
    match server.read_exact(&mut answer) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            server.write_all(&command[SHORT..])?;
            server.read_exact(&mut answer)
        }
        answered => answered,
    }
}

/// Lets CRIU fail, whereupon it lets the tree run on.
///
/// # Errors
/// Where CRIU cannot be told; SIGKILL of CRIU lets the tree run on, too.
pub fn roll_back(mut server: TcpStream) -> io::Result<()> {
    server.write_all(&command(NONE))
}

/// The command, then nothing but zeros: padding, count, address, id.
fn command(command: u32) -> [u8; LONG] {
    let mut bytes = [0; LONG];
    bytes[..4].copy_from_slice(&command.to_ne_bytes());
    bytes
}

/// Something to be kept open by whoever migrates: while there is any event in the system, the breakpoints that CRIU sets need
/// not wait for a grace period of the kernel.
///
/// # Errors
/// Where the kernel gives none; that costs nothing but time.
pub fn keep_perf_ready() -> io::Result<OwnedFd> {
    /// `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_DUMMY`, `PERF_FLAG_FD_CLOEXEC`.
    const SOFTWARE: u32 = 1;
    const DUMMY: u64 = 9;
    const CLOEXEC: u64 = 8;
    /// The first version of `struct perf_event_attr`.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { kind: SOFTWARE, size, config: DUMMY, rest: [0; 6] };
    // SAFETY: the kernel reads the structure, whose size it is told; this process, any processor, no group.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, -1, -1, CLOEXEC) };
    match fd {
        0.. => {
            // SAFETY: the kernel has just given it to this process.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
