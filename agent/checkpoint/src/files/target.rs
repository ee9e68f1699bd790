//! The folder that is made.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use libgrid::wire;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, OpenHow, ResolveFlag, fallocate, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, futimens, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, geteuid, linkat, mkfifoat, symlinkat, unlinkat};
use xattr::FileExt as _;

use super::{About, BLOCK, MOST_ATTRIBUTES, Name, Record, VERSION, told};

/// Bytes between two looks at how full the disk is.
const LOOK: u64 = 16 << 20;

/// A folder that takes what a [`Source`](super::Source) sends.
#[derive(Debug)]
pub struct Target {
    folder: OwnedFd,
    /// Bytes of the disk that are to stay free.
    spare: u64,
    /// Bytes that were written since that was looked at.
    written: u64,
    begun: bool,
    /// The folder of the last name.
    parent: Option<(PathBuf, OwnedFd)>,
    /// What is being said of a file.
    file: Option<(PathBuf, File)>,
}

impl Target {
    /// In this folder, which is empty.
    pub fn new(folder: OwnedFd) -> Self {
        Self { folder, spare: 0, written: LOOK, begun: false, parent: None, file: None }
    }

    /// So many bytes of the disk stay free.
    #[must_use]
    pub fn sparing(self, spare: u64) -> Self {
        Self { spare, ..self }
    }

    /// Takes one round. True if it was the last.
    ///
    /// # Errors
    /// What cannot be made, with its path; a stream that makes no sense, or ends early.
    pub fn round(&mut self, from: &mut impl Read) -> io::Result<bool> {
        self.records(from).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the files of the task end early"),
            _ => error,
        })
    }

    fn records(&mut self, from: &mut impl Read) -> io::Result<bool> {
        loop {
            let record: Record = wire::read(from).map_err(|error| match error {
                wire::WireError::Io(error) => error,
                error => io::Error::other(format!("the files of the task cannot be read: {error}")),
            })?;
            if !self.begun {
                match record {
                    Record::Begin { version: VERSION } => self.begun = true,
                    Record::Begin { version } => {
                        return Err(io::Error::other(format!(
                            "the files of the task come in version {version}, and this node takes {VERSION}: update the \
                             older one"
                        )));
                    }
                    _ => return Err(malformed("no beginning")),
                }
                continue;
            }
            match record {
                Record::Round => return Ok(false),
                Record::End => return Ok(true),
                record => self.take(record, from)?,
            }
        }
    }

    fn take(&mut self, record: Record, from: &mut impl Read) -> io::Result<()> {
        match record {
            Record::Begin { .. } | Record::Round | Record::End => Err(malformed("a beginning in the middle")),
            Record::Remove(name) => self.named(&name, "remove", |parent, last| {
                let stat = fstatat(parent, last, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                let is_folder = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
                let how = if is_folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
                unlinkat(parent, last, how)
            }),
            Record::Folder(name) => {
                self.named(&name, "make", |parent, last| mkdirat(parent, last, Mode::S_IRWXU))
            }
            Record::Symlink(name, target) => self
                .named(&name, "make", |parent, last| symlinkat(OsStr::from_bytes(&target.0), parent, last)),
            Record::Pipe(name, mode) => self.named(&name, "make", |parent, last| {
                mkfifoat(parent, last, Mode::from_bits_truncate(mode))?;
                // Whatever the process's mask is.
                fchmodat(parent, last, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
            }),
            Record::Link { name, to } => {
                let to = plain(&to)?;
                let (above, first) = parts(&to)?;
                let above = self.open(above, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                self.named(&name, "link", |parent, last| {
                    linkat(&above, first, parent, last, AtFlags::empty())
                })
            }
            Record::File { name, new, len } => {
                let path = plain(&name)?;
                self.file = None;
                let file = self.file(&path, new).map_err(|error| told("write", &path, &error))?;
                file.set_len(len).map_err(|error| told("write", &path, &error))?;
                self.file = Some((path, file));
                Ok(())
            }
            Record::Data { at, len } => {
                if u64::from(len) > BLOCK {
                    return Err(malformed("a block that is too large"));
                }
                let mut bytes = vec![0; len as usize];
                from.read_exact(&mut bytes)?;
                self.look(u64::from(len))?;
                self.current("write", |file| file.write_all_at(&bytes, at))
            }
            Record::Hole { at, len } => {
                if len > BLOCK {
                    return Err(malformed("a hole that is too large"));
                }
                self.current("write", |file| empty(file, at, len))
            }
            Record::About(about) => {
                check(&about)?;
                self.current("change", |file| become_as(file, &about))?;
                self.file = None;
                Ok(())
            }
            Record::Folders(name, about) => {
                check(&about)?;
                let path = if name.0.is_empty() { PathBuf::new() } else { plain(&name)? };
                let folder = self.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
                let changed = folder.and_then(|folder| {
                    // `/dev/shm` is root's, and as it has to be.
                    match folder.metadata()?.uid() == geteuid().as_raw() {
                        true => become_as(&folder, &about),
                        false => Ok(()),
                    }
                });
                changed.map_err(|error| told("change", &path, &error))
            }
        }
    }

    fn file(&mut self, path: &Path, new: bool) -> io::Result<File> {
        if new {
            let (parent, last) = self.parent(path)?;
            let how = OpenHow::new().flags(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC);
            let how = how.mode(Mode::S_IRUSR | Mode::S_IWUSR).resolve(BELOW);
            return Ok(File::from(openat2(parent, last, how)?));
        }
        match self.open(path, OFlag::O_RDWR) {
            // Its mode is that of the last round.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let (parent, last) = self.parent(path)?;
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                fchmodat(parent, last, mode, FchmodatFlags::FollowSymlink)?;
                self.open(path, OFlag::O_RDWR)
            }
            opened => opened,
        }
    }

    /// Does something with a name, in its folder.
    fn named(
        &mut self,
        name: &Name,
        what: &str,
        act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> nix::Result<()>,
    ) -> io::Result<()> {
        let path = plain(name)?;
        self.file = None;
        let done = self.parent(&path).and_then(|(parent, last)| Ok(act(parent, last)?));
        done.map_err(|error| told(what, &path, &error))?;
        // A folder that is gone, or another.
        self.parent.take_if(|(above, _)| above.starts_with(&path));
        Ok(())
    }

    fn parent<'p>(&mut self, path: &'p Path) -> io::Result<(BorrowedFd<'_>, &'p OsStr)> {
        let (above, last) = parts(path)?;
        let opened = match self.parent.take() {
            Some((at, opened)) if at == above => opened,
            _ => self.open(above, OFlag::O_PATH | OFlag::O_DIRECTORY)?.into(),
        };
        let (_, opened) = &*self.parent.insert((above.to_owned(), opened));
        Ok((opened.as_fd(), last))
    }

    fn open(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(BELOW);
        Ok(File::from(openat2(&self.folder, path, how)?))
    }

    fn current(&self, what: &str, act: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let (path, file) = self.file.as_ref().ok_or_else(|| malformed("bytes of no file"))?;
        act(file).map_err(|error| told(what, path, &error))
    }

    /// Leaves some of the disk to others.
    fn look(&mut self, bytes: u64) -> io::Result<()> {
        self.written += bytes;
        if self.spare == 0 || self.written < LOOK {
            return Ok(());
        }
        self.written = 0;
        let disk = fstatvfs(&self.folder)?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        if free < self.spare + LOOK {
            return Err(io::Error::other(format!(
                "the files of the task do not fit: {} MiB of the disk are free, and {} stay so; make room, or choose another \
                 node",
                free >> 20,
                self.spare >> 20
            )));
        }
        Ok(())
    }
}

const BELOW: ResolveFlag = ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS);

fn malformed(what: &str) -> io::Error {
    io::Error::other(format!("the files of the task come with {what}"))
}

/// A name as a path, if it leads nowhere else.
fn plain(name: &Name) -> io::Result<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(&name.0));
    match path.components().all(|part| matches!(part, Component::Normal(_))) && !name.0.is_empty() {
        true => Ok(path),
        false => {
            Err(malformed(&format!("a name that leads out of the folder, {:?}", path.display().to_string())))
        }
    }
}

fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or_else(|| malformed("a name that is none"))
}

fn check(about: &About) -> io::Result<()> {
    let bytes: usize = about.attributes.iter().map(|(name, value)| name.0.len() + value.0.len()).sum();
    let named = about.attributes.iter().all(|(name, _)| name.0.starts_with(b"user."));
    match named && bytes <= MOST_ATTRIBUTES {
        true => Ok(()),
        false => Err(malformed("attributes that no file of a user has")),
    }
}

fn become_as(file: &File, about: &About) -> io::Result<()> {
    // A file system that has none says so.
    for name in file.list_xattr().into_iter().flatten().filter(|name| name.as_bytes().starts_with(b"user.")) {
        if !about.attributes.iter().any(|(kept, _)| kept.0 == name.as_bytes()) {
            file.remove_xattr(&name)?;
        }
    }
    for (name, value) in &about.attributes {
        file.set_xattr(OsStr::from_bytes(&name.0), &value.0)?;
    }
    fchmod(file, Mode::from_bits_truncate(about.mode & 0o7777))?;
    Ok(futimens(file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(about.seconds, about.nanos))?)
}

fn empty(file: &File, at: u64, len: u64) -> io::Result<()> {
    let begin = i64::try_from(at).map_err(io::Error::other)?;
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, how, begin, len as i64) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP) => file.write_all_at(&vec![0; len as usize], at),
        Err(error) => Err(error.into()),
    }
}
