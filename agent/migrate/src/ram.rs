//! A folder in memory that no path leads to but by its descriptor: a tmpfs that is mounted nowhere (`fsmount(2)`). Nothing of it is
//! left when the last descriptor is closed, whatever becomes of this process.
//!
//! What CRIU writes of a task without its memory are some thirty small files. To make one on a disk takes longer than to fill it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// Of `linux/mount.h`, and not in libc.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOUNT_ATTR_NOSUID: libc::c_uint = 2;
const MOUNT_ATTR_NODEV: libc::c_uint = 4;

/// Such a folder.
#[derive(Debug)]
pub struct Ram(OwnedFd);

impl Ram {
    /// Makes one, for root alone. It holds half of the machine's memory at most.
    ///
    /// # Errors
    /// The kernel's: it is older than 5.2, or does not allow it here.
    pub fn new() -> io::Result<Self> {
        let made = |fd: libc::c_long| match fd {
            // SAFETY: the kernel opened it for us.
            0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: the name is a C string.
        let context = made(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
        let tell = |command: libc::c_uint, key: Option<(&CStr, &CStr)>| {
            let (key, value) =
                key.map_or((std::ptr::null(), std::ptr::null()), |(k, v)| (k.as_ptr(), v.as_ptr()));
            // SAFETY: C strings, or none for a command that takes none.
            match unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        tell(FSCONFIG_SET_STRING, Some((c"mode", c"0700")))?;
        tell(FSCONFIG_CMD_CREATE, None)?;
        let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        // SAFETY: numbers alone.
        let mount =
            unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) };
        made(mount).map(Self)
    }

    /// Its path, for root's processes of this pid namespace, as long as this process keeps it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_seen_by_other_processes_and_gone_with_its_descriptor() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!(
                "SKIPPED: it_is_seen_by_other_processes_and_gone_with_its_descriptor: needs root"
            );
        }
        let mounts = || fs::read_to_string("/proc/self/mounts").unwrap().lines().count();
        let before = mounts();
        let ram = Ram::new().unwrap();
        let file = ram.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(mounts(), before);
        assert_eq!(Command::new("cat").arg(&file).output().unwrap().stdout, b"text");
        drop(ram);
        assert!(!file.exists());
    }
}
