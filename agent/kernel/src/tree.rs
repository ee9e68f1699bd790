//! The files of `/proc/gridos` by FUSE, where the kernel module is not loaded.
//!
//! A file is told as a whole when it is opened, and read from there: it may change while it is read. `control` takes a
//! command by a write, which comes back with the answer, and the answer is read from the same open file, as that of the
//! module (`kmod/control.c`). Whoever answers may take its time: no thread waits for it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use nix::mount::MntFlags;

/// The longest command, as the module has it.
const COMMAND_MAX: usize = 4096;

/// The file that takes commands.
const CONTROL: &str = "control";

/// How many files of it a user may have open: each holds what it told. Root has no limit.
const MOST_OPEN: usize = 64;

/// Names and attributes do not change.
const FOREVER: Duration = Duration::from_secs(3600);

/// Who opens a file, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its pid as the agent sees it; 0 if it does not.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What takes the answer: bytes, or an error's number, with bytes to read all the same.
pub type Reply = Box<dyn FnOnce(Result<Vec<u8>, (i32, Vec<u8>)>) + Send>;

/// What answers in the tree.
pub trait Answers: Send + Sync + 'static {
    /// What is in a file now.
    fn read(&self, file: &'static str, who: Opener, reply: Reply);

    /// A command's answer.
    fn command(&self, line: Vec<u8>, who: Opener, reply: Reply);
}

/// The mounted tree.
pub struct Tree {
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.folder.display())
    }
}

impl Tree {
    /// Mounts files of these names, and [`control`](CONTROL), on a folder, which is made.
    ///
    /// # Errors
    /// Where the kernel has no FUSE, or does not let it be mounted.
    pub fn mount(folder: &Path, files: &'static [&'static str], answers: impl Answers) -> io::Result<Self> {
        detach(folder);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.mount_options = vec![
            MountOption::FSName("gridos".into()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        let files =
            Files { names: files, answers: Box::new(answers), open: Arc::default(), last: AtomicU64::new(0) };
        let session = Session::new(files, folder, &config)?.spawn()?;
        Ok(Self { folder: folder.to_owned(), session: Some(session) })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Whoever is in it does not keep it.
        detach(&self.folder);
        // Its thread ends by itself.
        drop(self.session.take());
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Takes away what is mounted there, such as the tree of an agent that was killed.
fn detach(folder: &Path) {
    let _ = nix::mount::umount2(folder, MntFlags::MNT_DETACH);
}

/// An open file: what was told, and for `control` how much of it was read.
struct Open {
    uid: u32,
    text: Vec<u8>,
    read: usize,
}

struct Files {
    names: &'static [&'static str],
    answers: Box<dyn Answers>,
    open: Arc<Mutex<HashMap<u64, Open>>>,
    last: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn opener(request: &Request) -> Opener {
    Opener { pid: request.pid(), uid: request.uid(), gid: request.gid() }
}

fn attributes(inode: u64, kind: FileType, perm: u16) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Files {
    /// In the order of their inodes, which begin behind the folder's.
    fn all(&self) -> impl Iterator<Item = (u64, &'static str)> {
        (2..).zip(self.names.iter().copied().chain([CONTROL]))
    }

    fn name(&self, inode: INodeNo) -> Option<&'static str> {
        self.all().find(|(number, _)| *number == u64::from(inode)).map(|(_, name)| name)
    }

    fn of(&self, inode: INodeNo) -> Option<FileAttr> {
        if inode == INodeNo::ROOT {
            return Some(attributes(1, FileType::Directory, 0o555));
        }
        let perm = if self.name(inode)? == CONTROL { 0o666 } else { 0o444 };
        Some(attributes(inode.into(), FileType::RegularFile, perm))
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.all().find(|(_, known)| parent == INodeNo::ROOT && name == *known);
        match found.and_then(|(inode, _)| self.of(INodeNo(inode))) {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.of(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// A shell truncates what it writes to; nothing changes by that.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match (mode, uid, gid) {
            (None, None, None) => self.getattr(request, inode, handle, reply),
            _ => reply.error(Errno::EPERM),
        }
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let folders = [(1, FileType::Directory, "."), (1, FileType::Directory, "..")];
        let files = self.all().map(|(inode, name)| (inode, FileType::RegularFile, name));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (inode, kind, name)) in (1..).zip(folders.into_iter().chain(files)).skip(from) {
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, request: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(name) = self.name(inode) else { return reply.error(Errno::EISDIR) };
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let uid = request.uid();
        {
            let mut all = lock(&self.open);
            if uid != 0 && all.values().filter(|open| open.uid == uid).count() >= MOST_OPEN {
                return reply.error(Errno::EMFILE);
            }
            all.insert(handle, Open { uid, text: Vec::new(), read: 0 });
        }
        if name == CONTROL {
            return reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM);
        }
        let open = self.open.clone();
        let told = move |answer: Result<Vec<u8>, (i32, Vec<u8>)>| match answer {
            Ok(text) => {
                lock(&open).insert(handle, Open { uid, text, read: 0 });
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err((errno, _)) => {
                lock(&open).remove(&handle);
                reply.error(Errno::from_i32(errno));
            }
        };
        self.answers.read(name, opener(request), Box::new(told));
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut all = lock(&self.open);
        let Some(open) = all.get_mut(&handle.into()) else { return reply.error(Errno::EBADF) };
        let is_control = self.name(inode) == Some(CONTROL);
        let from = if is_control { open.read } else { usize::try_from(offset).unwrap_or(usize::MAX) };
        let from = from.min(open.text.len());
        let end = from.saturating_add(size as usize).min(open.text.len());
        open.read = end;
        reply.data(&open.text[from..end]);
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.name(inode) != Some(CONTROL) {
            return reply.error(Errno::EBADF);
        }
        if data.len() > COMMAND_MAX {
            return reply.error(Errno::EMSGSIZE);
        }
        let line = data.strip_suffix(b"\n").unwrap_or(data);
        if line.is_empty() || line.iter().any(|byte| matches!(byte, 0 | b'\n')) {
            return reply.error(Errno::EINVAL);
        }
        let (open, handle, written) = (self.open.clone(), handle.into(), data.len() as u32);
        let told = move |answer: Result<Vec<u8>, (i32, Vec<u8>)>| {
            let (errno, text) = match answer {
                Ok(text) => (0, text),
                Err(failed) => failed,
            };
            if let Some(open) = lock(&open).get_mut(&handle) {
                (open.text, open.read) = (text, 0);
            }
            match errno {
                0 => reply.written(written),
                errno => reply.error(Errno::from_i32(errno)),
            }
        };
        self.answers.command(line.to_vec(), opener(request), Box::new(told));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.open).remove(&handle.into());
        reply.ok();
    }
}
