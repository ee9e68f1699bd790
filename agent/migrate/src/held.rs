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
use std::os::fd::{FromRawFd, OwnedFd};

/// CRIU's `PS_IOV_CLOSE`, of version 1 of its page server's protocol.
const CLOSE: u32 = 0x1023;

/// No command of CRIU's.
const NONE: u32 = 0x77;

/// Lets CRIU kill the frozen tree and end: the migration is done.
///
/// # Errors
/// Where CRIU does not answer; the tree may be dead or alive.
pub fn commit(server: &mut (impl Read + Write)) -> io::Result<()> {
    server.write_all(&command(CLOSE))?;
    let mut answer = [0; 4];
    server.read_exact(&mut answer)
}

/// Lets CRIU fail, whereupon it lets the tree run on.
///
/// # Errors
/// Where CRIU cannot be told; SIGKILL of CRIU lets the tree run on, too.
pub fn roll_back(server: &mut impl Write) -> io::Result<()> {
    server.write_all(&command(NONE))
}

/// `struct page_server_iov`: the command, 4 bytes of padding, three numbers.
fn command(command: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
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
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, 0, -1, -1, CLOEXEC)
    };
    match fd {
        0.. => {
            // SAFETY: the kernel has just given it to this process.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
