//! The folder that is served. Nothing outside of it can be reached.
//!
//! Every file is opened by `openat2` relative to the root's descriptor with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_MAGICLINKS`: the kernel refuses what leads out, whoever exchanges folders for links meanwhile. What has
//! no descriptor (rename, unlink, mkdir) goes through the descriptor of its parent, which was opened so, and a name
//! without a slash, whose last link is never followed.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libgrid::ftp::facts::{Entry, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::ftp::path::Place;

/// A file of the root could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {}", reason(*errno))]
pub(crate) struct FileError {
    /// As the client sees it.
    pub(crate) path: String,
    pub(crate) errno: Errno,
}

impl FileError {
    /// Whether trying again later may help: 450 instead of 550.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.errno, Errno::EBUSY | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ETXTBSY)
    }
}

/// What went wrong, for people who do not read errno.
pub(crate) fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "there is no such file or folder",
        Errno::EACCES | Errno::EPERM => "the server's user may not do that: ask its owner for the permission",
        Errno::EXDEV => "it leads out of the folder that is served, through a link",
        Errno::ELOOP => "too many links, or one that may not be followed",
        Errno::ENOTDIR => "a part of the path is not a folder",
        Errno::EISDIR => "it is a folder",
        Errno::EEXIST => "it is there already",
        Errno::ENOTEMPTY => "the folder is not empty",
        Errno::ENAMETOOLONG => "the name is too long for the file system",
        Errno::ENOSPC => "the file system is full: free some space on the server",
        Errno::EDQUOT => "the quota on the server is used up",
        Errno::EROFS => "the file system is read-only",
        Errno::EBUSY => "it is in use: another session uploads to it, try again later",
        Errno::ENODEV => "it is not a regular file",
        Errno::EFBIG => "it is longer than the file system allows",
        other => other.desc(),
    }
}

/// The folder that is served.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> nix::Result<Root> {
        let dir = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        // A kernel without openat2 must be found now, not at the first file.
        let root = Root { dir };
        root.raw(&Place::default(), OFlag::O_PATH, 0)?;
        Ok(root)
    }

    fn raw(&self, place: &Place, flags: OFlag, mode: u32) -> nix::Result<OwnedFd> {
        // The kernel refuses flags that mean nothing together.
        let more = if flags.contains(OFlag::O_PATH) { OFlag::empty() } else { OFlag::O_NOCTTY };
        let how = OpenHow::new()
            .flags(flags | more | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = place.relative();
        loop {
            // EAGAIN: a rename raced with the look-up, and the kernel could not be sure.
            match openat2(&self.dir, path.as_slice(), how) {
                Err(Errno::EAGAIN | Errno::EINTR) => (),
                result => return result,
            }
        }
    }

    fn at(&self, place: &Place, flags: OFlag, mode: u32) -> Result<OwnedFd, FileError> {
        self.raw(place, flags, mode).map_err(|errno| fail(place, errno))
    }

    /// Opens a regular file. Never waits for the other end of a FIFO, and refuses it then.
    pub(crate) fn file(&self, place: &Place, flags: OFlag) -> Result<(File, FileStat), FileError> {
        let fd = self.at(
            place,
            flags | OFlag::O_NONBLOCK,
            if flags.contains(OFlag::O_CREAT) { 0o666 } else { 0 },
        )?;
        let stat = fstat(&fd).map_err(|errno| fail(place, errno))?;
        match kind(&stat) {
            SFlag::S_IFREG => Ok((File::from(fd), stat)),
            SFlag::S_IFCHR if is_null(&stat) => Ok((File::from(fd), stat)),
            SFlag::S_IFDIR => Err(fail(place, Errno::EISDIR)),
            _ => Err(fail(place, Errno::ENODEV)),
        }
    }

    /// Opens a folder, to list it.
    pub(crate) fn folder(&self, place: &Place) -> Result<OwnedFd, FileError> {
        self.at(place, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK, 0)
    }

    /// The folder that holds the name.
    pub(crate) fn parent<'a>(&self, place: &'a Place) -> Result<(OwnedFd, &'a [u8]), FileError> {
        let (folder, name) = place.split().ok_or_else(|| fail(place, Errno::EBUSY))?;
        let fd =
            self.raw(&folder, OFlag::O_PATH | OFlag::O_DIRECTORY, 0).map_err(|errno| fail(place, errno))?;
        Ok((fd, name))
    }

    /// What the path leads to, links followed.
    pub(crate) fn stat(&self, place: &Place) -> Result<FileStat, FileError> {
        let fd = self.at(place, OFlag::O_PATH, 0)?;
        fstat(fd).map_err(|errno| fail(place, errno))
    }

    pub(crate) fn make_folder(&self, place: &Place) -> Result<(), FileError> {
        let (parent, name) = self.parent(place)?;
        mkdirat(parent, name, Mode::from_bits_truncate(0o777)).map_err(|errno| fail(place, errno))
    }

    pub(crate) fn remove_folder(&self, place: &Place) -> Result<(), FileError> {
        let (parent, name) = self.parent(place)?;
        unlinkat(parent, name, UnlinkatFlags::RemoveDir).map_err(|errno| fail(place, errno))
    }

    pub(crate) fn remove_file(&self, place: &Place) -> Result<(), FileError> {
        let (parent, name) = self.parent(place)?;
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(|errno| fail(place, errno))
    }

    pub(crate) fn rename(&self, from: &Place, to: &Place) -> Result<(), FileError> {
        let (old, old_name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        renameat(old, old_name, new, new_name).map_err(|errno| fail(to, errno))
    }

    /// Sets permission bits. Bits that give a file its owner's rights are left out: nobody serves those.
    pub(crate) fn set_mode(&self, place: &Place, mode: u32) -> Result<(), FileError> {
        let fd = self.at(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        nix::sys::stat::fchmod(fd, Mode::from_bits_truncate(mode & 0o1777))
            .map_err(|errno| fail(place, errno))
    }

    /// Sets the time of the last change; that of the last read stays.
    pub(crate) fn set_time(&self, place: &Place, time: SystemTime) -> Result<(), FileError> {
        let fd = self.at(place, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        futimens(fd, &TimeSpec::UTIME_OMIT, &TimeSpec::from_duration(since))
            .map_err(|errno| fail(place, errno))
    }
}

fn fail(place: &Place, errno: Errno) -> FileError {
    FileError { path: place.shown(), errno }
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The null device, which an administrator may put below the root to measure what the network alone can do.
pub(crate) fn is_null(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == nix::sys::stat::makedev(1, 3)
}

pub(crate) fn size(stat: &FileStat) -> u64 {
    stat.st_size.max(0).cast_unsigned()
}

pub(crate) fn modified(stat: &FileStat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, u32::try_from(stat.st_mtime_nsec).unwrap_or(0).min(999_999_999))
}

/// One name of a folder, as it is itself: a link is not followed.
pub(crate) fn entry_at(folder: &impl AsFd, name: &[u8], may_write: bool) -> nix::Result<Entry> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mut entry = entry(&stat, name.to_vec(), may_write);
    if kind(&stat) == SFlag::S_IFLNK {
        use std::os::unix::ffi::OsStringExt;
        let target = readlinkat(folder, name).map(OsStringExt::into_vec).unwrap_or_default();
        entry.kind = Some(Type::Slink(target));
    }
    Ok(entry)
}

/// The facts of a file.
pub(crate) fn entry(stat: &FileStat, name: Vec<u8>, may_write: bool) -> Entry {
    let (kind, perm) = match kind(stat) {
        SFlag::S_IFDIR => (Type::Dir, if may_write { "cdeflmp" } else { "el" }),
        SFlag::S_IFREG => (Type::File, if may_write { "adfrw" } else { "r" }),
        SFlag::S_IFLNK => (Type::Slink(Vec::new()), if may_write { "adfrw" } else { "r" }),
        _ => (Type::Other("OS.unix=special".to_owned()), ""),
    };
    Entry {
        kind: Some(kind),
        size: Some(size(stat)),
        modify: Some(modified(stat)),
        perm: Some(perm.to_owned()),
        mode: Some(stat.st_mode & 0o7777),
        uid: Some(stat.st_uid),
        gid: Some(stat.st_gid),
        unique: Some(format!("{:x}-{:x}", stat.st_dev, stat.st_ino)),
        name,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_out_of_the_root_is_refused_and_one_inside_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir_all(path.join("root/inside")).unwrap();
        std::fs::write(path.join("secret"), "s").unwrap();
        std::fs::write(path.join("root/inside/file"), "f").unwrap();
        symlink("../secret", path.join("root/out")).unwrap();
        symlink("/etc", path.join("root/etc")).unwrap();
        symlink("inside", path.join("root/in")).unwrap();
        let root = Root::open(&path.join("root")).unwrap();
        let at = |text: &str| Place::default().join(text.as_bytes());
        assert_eq!(root.file(&at("out"), OFlag::O_RDONLY).unwrap_err().errno, Errno::EXDEV);
        assert_eq!(root.file(&at("etc/passwd"), OFlag::O_RDONLY).unwrap_err().errno, Errno::EXDEV);
        assert_eq!(root.make_folder(&at("etc/x")).unwrap_err().errno, Errno::EXDEV);
        assert_eq!(size(&root.file(&at("in/file"), OFlag::O_RDONLY).unwrap().1), 1);
        // A link as last name is itself removed, never what it leads to.
        root.remove_file(&at("out")).unwrap();
        assert!(path.join("secret").exists());
    }

    #[test]
    fn a_fifo_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let error = root.file(&Place::default().join(b"fifo"), OFlag::O_RDONLY).unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV);
    }
}
