//! The folder that is read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use libgrid::wire;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{SFlag, fstatat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use xattr::FileExt as _;

use super::{About, BLOCK, MOST_ATTRIBUTES, MOST_NAMED, Name, Record, VERSION, told};

/// File systems that note a time whenever the first byte is written to a page: ext2 to ext4, XFS, Btrfs, F2FS
/// (`linux/magic.h`).
const NOTES_TIMES: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Longer than the kernel's clock for files lags behind.
const TICK: Duration = Duration::from_secs(1);

/// Longer than a `write` takes, which has 2 GiB at most.
const LONGEST_WRITE: Duration = Duration::from_secs(600);

/// What may change without a trace, when a round begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsure {
    begun: Duration,
    mapped: HashSet<u64>,
    written: HashSet<u64>,
}

impl Unsure {
    /// From now on: what may change is looked for after this.
    pub fn now() -> Self {
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { begun, mapped: HashSet::new(), written: HashSet::new() }
    }

    /// A program has the file of this inode mapped, and shares it.
    pub fn is_mapped(&mut self, inode: u64) {
        self.mapped.insert(inode);
    }

    /// A program has the file of this inode open for writing.
    pub fn is_open(&mut self, inode: u64) {
        self.written.insert(inode);
    }

    /// As if it had been then.
    #[cfg(test)]
    pub(super) fn begin_later(&mut self, by: Duration) {
        self.begun += by;
    }

    fn is(&self, inode: u64, changed: Duration) -> bool {
        changed + TICK >= self.begun
            || self.mapped.contains(&inode)
            || self.written.contains(&inode) && changed + LONGEST_WRITE >= self.begun
    }
}

/// Of a block, the first half of its BLAKE3.
type Digest = [u8; 16];

/// A device, and an inode of it: some file systems have the same numbers in each part of a tree.
type Inode = (u64, u64);

/// What the other side has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Folder,
    File(Inode),
    Symlink(Vec<u8>),
    Pipe(u32),
}

/// What the other side has of a file.
#[derive(Debug, Default)]
struct Sent {
    changed: Duration,
    len: u64,
    unsure: bool,
    /// Of each block in which there is something.
    blocks: BTreeMap<u64, Digest>,
}

/// A folder that is sent, in one round or in several.
#[derive(Debug)]
pub struct Source {
    folder: OwnedFd,
    /// Whether times tell of all changes.
    notes_times: bool,
    begun: bool,
    names: BTreeMap<PathBuf, Known>,
    files: HashMap<Inode, Sent>,
}

impl Source {
    /// Of this folder.
    ///
    /// # Errors
    /// Where its file system cannot be asked.
    pub fn new(folder: OwnedFd) -> io::Result<Self> {
        let kind = fstatfs(&folder)?.filesystem_type().0;
        let notes_times = NOTES_TIMES.contains(&kind);
        Ok(Self { folder, notes_times, begun: false, names: BTreeMap::new(), files: HashMap::new() })
    }

    /// Sends what the other side does not have; returns how many bytes of files that were. In the last round, programs stand still,
    /// and what cannot be read is an error; before, it is left for the next.
    ///
    /// # Errors
    /// What cannot be read, with its path; where the stream broke.
    pub fn round(&mut self, unsure: &Unsure, last: bool, to: &mut impl Write) -> io::Result<u64> {
        if !self.begun {
            say(to, &Record::Begin { version: VERSION })?;
            self.begun = true;
        }
        let now = self.walk(last)?;
        let is_kept = |name: &PathBuf, known: &Known| now.get(name) == Some(known);
        // What is in a folder before the folder itself.
        for (name, _) in self.names.iter().rev().filter(|(name, known)| !is_kept(name, known)) {
            say(to, &Record::Remove(name_of(name)))?;
        }
        self.names.retain(|name, known| is_kept(name, known));
        // A name for each file that is there.
        let mut here: HashMap<Inode, PathBuf> = HashMap::new();
        for (name, known) in &self.names {
            if let Known::File(inode) = known {
                here.entry(*inode).or_insert_with(|| name.clone());
            }
        }
        let (mut bytes, mut seen) = (0, HashSet::new());
        for (name, known) in now {
            let is_new = !self.names.contains_key(&name);
            match &known {
                Known::File(inode) => {
                    let first = here.get(inode).filter(|_| is_new);
                    if let Some(to_name) = first {
                        say(to, &Record::Link { name: name_of(&name), to: name_of(to_name) })?;
                    } else if is_new || seen.insert(*inode) {
                        match self.file(&name, *inode, is_new, unsure, to) {
                            Ok(sent) => bytes += sent,
                            // It went, or is another now, or will be readable.
                            Err(Trouble::Open(_)) if !last => continue,
                            Err(Trouble::Open(error)) => return Err(told("read", &name, &error)),
                            Err(Trouble::Other(error)) => return Err(error),
                        }
                        seen.insert(*inode);
                        here.insert(*inode, name.clone());
                    }
                }
                Known::Folder if is_new => say(to, &Record::Folder(name_of(&name)))?,
                Known::Symlink(target) if is_new => {
                    say(to, &Record::Symlink(name_of(&name), Name(target.clone())))?;
                }
                Known::Pipe(mode) if is_new => say(to, &Record::Pipe(name_of(&name), *mode))?,
                _ => (),
            }
            self.names.insert(name, known);
        }
        self.files.retain(|inode, _| here.contains_key(inode));
        if !last {
            say(to, &Record::Round)?;
            return Ok(bytes);
        }
        let folders =
            self.names.iter().filter(|(_, known)| **known == Known::Folder).map(|(name, _)| &**name);
        // The deepest first: a mode may forbid to go below.
        for name in folders.rev().chain([Path::new("")]) {
            let about = self.open(name, OFlag::O_DIRECTORY).and_then(|folder| about(&folder));
            let about = about.map_err(|error| told("read", name, &error))?;
            say(to, &Record::Folders(name_of(name), about))?;
        }
        say(to, &Record::End)?;
        Ok(bytes)
    }

    /// As if a file's times were those of the last round.
    #[cfg(test)]
    pub(super) fn pretend_unchanged(&mut self, path: &Path) {
        let meta = std::fs::metadata(path).unwrap_or_else(|error| panic!("{error}"));
        if let Some(sent) = self.files.get_mut(&(meta.dev(), meta.ino())) {
            sent.changed = Duration::new(meta.ctime().max(0) as u64, meta.ctime_nsec() as u32);
        }
    }

    /// All that is there. What changes under way is left out before the last round: it comes with the next.
    fn walk(&self, last: bool) -> io::Result<BTreeMap<PathBuf, Known>> {
        let mut all = BTreeMap::new();
        let mut named = 0;
        let mut open = vec![PathBuf::new()];
        while let Some(at) = open.pop() {
            let listed =
                self.open(&at, OFlag::O_DIRECTORY).and_then(|folder| Ok(Dir::from_fd(folder.into())?));
            let mut folder = match listed {
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !at.as_os_str().is_empty() => {
                    continue;
                }
                listed => listed.map_err(|error| told("read", &at, &error))?,
            };
            let mut names = Vec::new();
            for entry in folder.iter() {
                let entry = entry.map_err(|error| told("read", &at, &error.into()))?;
                names.push(entry.file_name().to_owned());
            }
            for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
                let path = at.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
                let known = match known(&folder, name) {
                    Ok(Some(known)) => known,
                    Ok(None) => continue,
                    Err(_) if !last => continue,
                    Err(error) => return Err(told("read", &path, &error.into())),
                };
                if known == Known::Folder {
                    open.push(path.clone());
                }
                named += path.as_os_str().len();
                all.insert(path, known);
            }
            if named > MOST_NAMED {
                return Err(io::Error::other("it has too many files, or their names are too long"));
            }
        }
        Ok(all)
    }

    /// Opens something to read, and through no link.
    fn open(&self, name: &Path, flags: OFlag) -> io::Result<File> {
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        // A pipe in the place of a file must keep nobody waiting.
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags);
        let how = how.resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(File::from(openat2(&self.folder, name, how)?))
    }

    /// Sends what is new in a file.
    fn file(
        &mut self,
        name: &Path,
        inode: Inode,
        is_new: bool,
        unsure: &Unsure,
        to: &mut impl Write,
    ) -> Result<u64, Trouble> {
        let file = self.open(name, OFlag::empty()).map_err(Trouble::Open)?;
        let meta = file.metadata().map_err(Trouble::Open)?;
        if !meta.is_file() || (meta.dev(), meta.ino()) != inode {
            return Err(Trouble::Open(io::Error::other("it changes")));
        }
        let changed = Duration::new(meta.ctime().max(0) as u64, meta.ctime_nsec() as u32);
        let mut sent = self.files.remove(&inode).filter(|_| !is_new).unwrap_or_default();
        let same = !is_new && !sent.unsure && (sent.changed, sent.len) == (changed, meta.len());
        let mut bytes = 0;
        if !same {
            let about = about(&file).map_err(Trouble::Open)?;
            say(to, &Record::File { name: name_of(name), new: is_new, len: meta.len() })?;
            bytes = content(&file, meta.len(), &mut sent.blocks, to)
                .map_err(|error| told("read", name, &error))?;
            say(to, &Record::About(about))?;
            let unsure = !self.notes_times || unsure.is(inode.1, changed);
            sent = Sent { changed, len: meta.len(), unsure, blocks: sent.blocks };
        }
        self.files.insert(inode, sent);
        Ok(bytes)
    }
}

/// Why a file is not sent.
enum Trouble {
    /// It cannot be had.
    Open(io::Error),
    Other(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Other(error)
    }
}

/// What is under a name; `None` for what is not kept.
fn known(folder: &Dir, name: &std::ffi::CStr) -> nix::Result<Option<Known>> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Some(Known::Folder),
        SFlag::S_IFREG => Some(Known::File((stat.st_dev, stat.st_ino))),
        SFlag::S_IFLNK => Some(Known::Symlink(readlinkat(folder.as_fd(), name)?.into_vec())),
        SFlag::S_IFIFO => Some(Known::Pipe(stat.st_mode & 0o7777)),
        _ => None,
    })
}

/// Sends the blocks that are not as they were, and keeps what they are now.
fn content(
    file: &File,
    len: u64,
    blocks: &mut BTreeMap<u64, Digest>,
    to: &mut impl Write,
) -> io::Result<u64> {
    // The other side cuts it there.
    blocks.split_off(&len.div_ceil(BLOCK));
    let (mut at, mut bytes) = (0, 0);
    let mut buffer = vec![0; BLOCK as usize];
    while at < len {
        let begin = seek(file, at, Whence::SeekData)?.unwrap_or(len).min(len) / BLOCK * BLOCK;
        let begin = if begin < len { begin.max(at) } else { len };
        let holes: Vec<u64> =
            blocks.range(at / BLOCK..begin.div_ceil(BLOCK)).map(|(block, _)| *block).collect();
        for block in holes {
            say(to, &Record::Hole { at: block * BLOCK, len: BLOCK.min(len - block * BLOCK) })?;
            blocks.remove(&block);
        }
        if begin >= len {
            break;
        }
        let end = seek(file, begin, Whence::SeekHole)?.unwrap_or(len).clamp(begin + 1, len);
        at = begin;
        while at < end {
            let (block, piece) = (at / BLOCK, &mut buffer[..BLOCK.min(len - at) as usize]);
            read(file, at, piece)?;
            let is_empty = piece.iter().all(|byte| *byte == 0);
            let mut digest = Digest::default();
            digest.copy_from_slice(&blake3::hash(piece).as_bytes()[..16]);
            match (is_empty, blocks.get(&block)) {
                (true, None) => (),
                (true, Some(_)) => {
                    say(to, &Record::Hole { at, len: piece.len() as u64 })?;
                    blocks.remove(&block);
                }
                (false, Some(before)) if *before == digest => (),
                (false, _) => {
                    say(to, &Record::Data { at, len: piece.len() as u32 })?;
                    to.write_all(piece)?;
                    blocks.insert(block, digest);
                    bytes += piece.len() as u64;
                }
            }
            at += BLOCK;
        }
    }
    Ok(bytes)
}

/// The next place of that kind; none where there is none.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(io::Error::other)?;
    match lseek(file, at, whence) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Fills the buffer; with zeros, where the file has become shorter.
fn read(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}

fn about(file: &File) -> io::Result<About> {
    let meta = file.metadata()?;
    let mut attributes = Vec::new();
    let mut bytes = 0;
    // A file system that has none says so.
    for name in file.list_xattr().into_iter().flatten().filter(|name| name.as_bytes().starts_with(b"user.")) {
        let Some(value) = file.get_xattr(&name)? else { continue };
        bytes += name.len() + value.len();
        if bytes > MOST_ATTRIBUTES {
            return Err(io::Error::other("it has more extended attributes than can be carried"));
        }
        attributes.push((Name(name.into_vec()), Name(value)));
    }
    Ok(About { mode: meta.mode() & 0o7777, seconds: meta.mtime(), nanos: meta.mtime_nsec(), attributes })
}

fn name_of(path: &Path) -> Name {
    Name(path.as_os_str().as_bytes().to_vec())
}

fn say(to: &mut impl Write, record: &Record) -> io::Result<()> {
    wire::write(to, record).map_err(io::Error::other)
}
