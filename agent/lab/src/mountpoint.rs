//! The host's directories over which a machine mounts its own.
//!
//! `/run/gridos` and `/var/lib/gridos` must exist on the host for a machine to mount something there. Where
//! they do not, the lab makes them, with a mode ([`MARK`]) that nobody else would choose. Each machine's pid 1
//! holds a shared lock on them: removing a directory would take away the mounts on it in all namespaces, so
//! it is removed only by whoever gets the exclusive lock, that is, after the last machine of the last lab.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError};
use crate::lock::same_file;

/// What the agent's `runtime_dir` and `state_dir` are inside each machine, and the folder of the machine's
/// directory that is mounted there.
pub(crate) const POINTS: [(&str, &str); 2] = [("/run/gridos", "run"), ("/var/lib/gridos", "state")];

/// The mode of a directory that a lab made.
const MARK: u32 = 0o1700;

/// Makes sure that the directory is there, and stays while the result lives.
pub(crate) fn hold(path: &Path) -> Result<File, LabError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match DirBuilder::new().mode(MARK).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).doing("make", path);
            }
            _ => {}
        }
        match File::open(path) {
            Ok(dir) => match dir.try_lock_shared() {
                Ok(()) if same_file(&dir, path) => return Ok(dir),
                // Removed, or about to be, by the end of another lab.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).doing("lock", path),
            },
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing("open", path),
            Err(_) => {}
        }
        if Instant::now() > deadline {
            let error = io::Error::new(io::ErrorKind::TimedOut, "another program holds a lock on it");
            return Err(error).doing("use", path);
        }
        std::thread::yield_now();
    }
}

/// Removes the directory if a lab made it, nobody needs it any more, and it is empty.
pub(crate) fn release(path: &Path) -> Result<(), LabError> {
    let dir = match File::open(path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).doing("open", path),
    };
    let mode = dir.metadata().doing("look at", path)?.permissions().mode() & 0o7777;
    if mode != MARK || dir.try_lock().is_err() || !same_file(&dir, path) {
        return Ok(());
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error).doing("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_removes_what_a_lab_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("point");
        let first = hold(&path).unwrap();
        let second = hold(&path).unwrap();
        drop(first);
        release(&path).unwrap();
        assert!(path.exists());
        drop(second);
        release(&path).unwrap();
        assert!(!path.exists());
        release(&path).unwrap();
    }

    #[test]
    fn what_others_made_or_filled_stays() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        drop(hold(&theirs).unwrap());
        release(&theirs).unwrap();
        assert!(theirs.exists());

        let filled = dir.path().join("filled");
        drop(hold(&filled).unwrap());
        fs::write(filled.join("x"), "").unwrap();
        release(&filled).unwrap();
        assert!(filled.exists());
    }
}
