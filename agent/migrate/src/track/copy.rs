//! Bytes of another process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::kernel::PAGE;

/// Bytes that are copied at once.
pub(super) const PIECE: u64 = 1 << 20;

/// Reads another process's memory, as it may itself; how many bytes were read, which may be fewer.
///
/// # Errors
/// Where not even the first can be read.
pub(super) fn read(pid: i32, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: one vector each; the local one is borrowed for the time of the call, the remote one is checked by the kernel.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// The memory of one process.
#[derive(Debug)]
pub(super) struct Memory {
    pid: i32,
    file: File,
}

impl Memory {
    /// # Errors
    /// Where it cannot be opened: the process is gone.
    pub(super) fn open(proc: &Path, pid: i32) -> io::Result<Self> {
        let path = proc.join(format!("{pid}/mem"));
        let file = File::open(&path);
        file.map(|file| Self { pid, file })
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Reads whole pages, those that the process may not read itself, too; how many bytes, at least a page.
    ///
    /// # Errors
    /// Where the first page is not there.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let whole = |read: usize| read - read % PAGE as usize;
        match read(self.pid, at, into).map(whole) {
            Ok(0) | Err(_) => {
                // Of several pages, some may be out of the process's own reach.
                let page = &mut into[..PAGE as usize];
                self.file.read_exact_at(page, at)?;
                Ok(page.len())
            }
            read => read,
        }
    }
}
