//! One operation on a lab at a time.
//!
//! The lock is an `flock` on `ROOT/lock`. It belongs to the open file description, so programs that inherit
//! the descriptor hold it too: see the crate's documentation for why that matters.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError};

/// The lock file's name in the lab's root.
pub(crate) const FILE: &str = "lock";

/// How long a command waits for another one on the same lab.
const PATIENCE: Duration = Duration::from_secs(60);

/// The right to change a lab; given back on drop, unless a child still runs that inherited it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

// === impl Lock ===

impl Lock {
    /// Waits for the lock of the lab in `root`, which must exist.
    pub(crate) fn acquire(root: &Path) -> Result<Lock, LabError> {
        let path = root.join(FILE);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let file = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(LabError::NotFound(root.to_owned()));
                }
                Err(error) => return Err(error).doing("open", &path),
            };
            match file.try_lock() {
                // Whoever held it before may have removed the lab, and with it this file.
                Ok(()) if same_file(&file, &path) => return Ok(Lock { file }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::Error(error)) => return Err(error).doing("lock", &path),
            }
            if Instant::now() > deadline {
                return Err(LabError::Busy { root: PathBuf::from(root), seconds: PATIENCE.as_secs() });
            }
        }
    }

    /// The lock that the program which started this one holds and shares.
    ///
    /// # Safety
    ///
    /// `fd` is open, and nothing else in this program owns it.
    pub(crate) unsafe fn inherited(fd: RawFd) -> Lock {
        // SAFETY: the caller promises what this asks for.
        Lock { file: unsafe { File::from_raw_fd(fd) } }
    }

    /// The descriptor's number, for the arguments of programs with which the lock is shared.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Lets the program that `command` starts hold the lock, too.
    pub(crate) fn share(&self, command: &mut Command) {
        let fd = self.fd();
        // SAFETY: the closure runs between fork and exec and only calls fcntl, which is async-signal-safe;
        // the descriptor is open, because the callers run the command while they hold the lock.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    }
}

/// Is `file` what stands at `path` now?
pub(crate) fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}
