//! Descriptors of processes (pidfd_open(2)): a pid may be used again, a descriptor stays with its process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of a process; nothing if it is no more.
pub(crate) fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the call takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor, which nobody else has.
        Ok(fd) if fd >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => gone(io::Error::last_os_error()).map(|()| None),
    }
}

/// Sends a signal; false if the process is no more.
pub(crate) fn signal(process: &OwnedFd, signal: i32) -> io::Result<bool> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without information of ours, the kernel fills in who sends it.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    match sent {
        0 => Ok(true),
        _ => gone(io::Error::last_os_error()).map(|()| false),
    }
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}
