//! What a source has to send: patterns expanded, folders walked, files divided.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use libgrid::archive::Patterns;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::{AccessFlags, Whence, faccessat, lseek};
use xattr::FileExt as _;

use super::message::{Attribute, Item, MAX_ATTRIBUTES, RelPath, Time, Trouble, What};
use crate::root::{Folder, Root};

/// Files below this size, in bytes, are packed together.
pub(super) const SMALL: u64 = 256 << 10;

/// A thing to send, in its folder.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) folder: Arc<Folder>,
    pub(super) name: OsString,
    pub(super) item: Item,
    /// Whether the file has holes.
    pub(super) sparse: bool,
}

impl Found {
    pub(super) fn size(&self) -> u64 {
        match self.item.what {
            What::File { size } => size,
            _ => 0,
        }
    }

    /// Opens the file, and reads its extended attributes.
    pub(super) fn open(&mut self) -> io::Result<File> {
        // A FIFO that took the file's place must not hold anybody up.
        let file = self.folder.file(&self.name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)?;
        self.item.attributes = attributes(&file);
        Ok(file)
    }

    /// Whether we may read it, as far as its permissions tell.
    pub(super) fn readable(self) -> Result<Self, Unreadable> {
        let mode = match self.item.what {
            What::File { .. } => AccessFlags::R_OK,
            What::Folder => AccessFlags::R_OK | AccessFlags::X_OK,
            What::Link(_) => return Ok(self),
        };
        match faccessat(self.folder.as_fd(), self.name.as_os_str(), mode, AtFlags::AT_EACCESS) {
            Ok(()) => Ok(self),
            Err(error) => Err(self.unreadable(error.into())),
        }
    }

    fn unreadable(&self, error: io::Error) -> Unreadable {
        Unreadable { path: self.item.path.as_path().to_owned(), shown: self.shown(), error }
    }

    /// Where it is, for people.
    pub(super) fn shown(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }
}

/// The file a path leads to, or the paths that a pattern stands for.
pub(super) fn expand(root: &Root, pattern: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let special = |name: &OsStr| name.as_bytes().iter().any(|byte| b"*?[".contains(byte));
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let Component::Normal(name) = part else {
            return Err(Trouble::lasting(format!("{} is not a plain path: leave out ..", pattern.display())));
        };
        if !special(name) {
            found.iter_mut().for_each(|path| path.push(name));
            continue;
        }
        let matcher = glob(name)?;
        let mut next = Vec::new();
        for path in &found {
            // What is no folder has nothing that could match.
            let Ok(folder) = root.folder(path) else { continue };
            let names = folder.list().map_err(|error| unreadable(&root.show(path), &error))?;
            let hidden = name.as_bytes().starts_with(b".");
            next.extend(
                names
                    .into_iter()
                    .map(|(name, _)| name)
                    .filter(|name| hidden || !name.as_bytes().starts_with(b"."))
                    .filter(|name| matcher.is_match(Path::new(name)))
                    .map(|name| path.join(name)),
            );
        }
        next.sort();
        found = next;
    }
    if found.is_empty() {
        return Err(Trouble::lasting(format!("nothing matches {}", root.show(pattern).display())));
    }
    Ok(found)
}

fn glob(name: &OsStr) -> Result<GlobMatcher, Trouble> {
    let text = name.to_string_lossy();
    let glob = GlobBuilder::new(&text).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| Trouble::lasting(error.to_string()))
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Trouble {
    Trouble::lasting(format!("{} cannot be read: {error}", path.display()))
}

/// Something below a folder that is sent, which cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Its path from there.
    pub(super) path: PathBuf,
    shown: PathBuf,
    pub(super) error: io::Error,
}

impl From<Unreadable> for Trouble {
    fn from(Unreadable { shown, error, .. }: Unreadable) -> Self {
        unreadable(&shown, &error)
    }
}

/// Finds one thing by its path; a symbolic link that is named itself is followed.
pub(super) fn find(root: &Root, path: &Path, as_path: RelPath) -> Result<Found, Trouble> {
    let cannot = |error: io::Error| unreadable(&root.show(path), &error);
    let mut at = path.to_owned();
    for _ in 0..40 {
        let (folder, name) = if at.as_os_str().is_empty() {
            (root.folder(Path::new("")).map_err(cannot)?, OsString::from("."))
        } else {
            root.parent(&at).map_err(cannot)?
        };
        let stat = folder.stat(&name).map_err(cannot)?;
        if kind(&stat) != SFlag::S_IFLNK {
            let folder = Arc::new(folder);
            return found(folder, name, &stat, as_path).map_err(cannot)?.ok_or_else(|| {
                Trouble::lasting(format!("{} is neither a file nor a folder", root.show(path).display()))
            });
        }
        let target =
            PathBuf::from(readlinkat(folder.as_fd(), name.as_os_str()).map_err(|e| cannot(e.into()))?);
        at = plain(&at.parent().unwrap_or(Path::new("")).join(target), root.path());
    }
    Err(cannot(Errno::ELOOP.into()))
}

/// Gives what matches the patterns below a folder to `each`, under its path from there. What matches is meant as what it
/// leads to, if it is a link and leads to something; what is neither file nor folder is left out.
pub(super) fn matching(
    root: &Root,
    base: &Path,
    patterns: &Patterns,
    each: &mut impl FnMut(Result<Found, Unreadable>) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut open = vec![PathBuf::new()];
    while let Some(at) = open.pop() {
        let within = base.join(&at);
        let listed = root.folder(&within).and_then(|folder| Ok((folder.list()?, Arc::new(folder))));
        let (names, folder) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                each(Err(Unreadable { path: at, shown: root.show(&within), error }))?;
                continue;
            }
        };
        for (name, _) in names {
            let (path, full) = (at.join(&name), within.join(&name));
            let stat = folder.stat(&name);
            if !patterns.matches(&path) {
                if stat.is_ok_and(|stat| kind(&stat) == SFlag::S_IFDIR) {
                    open.push(path);
                }
                continue;
            }
            let below = RelPath::new(path.clone()).map_err(Trouble::lasting)?;
            let leads = root.file(&full, OFlag::O_PATH).and_then(|file| file.metadata());
            let there = match (leads, stat) {
                (Ok(meta), _) if meta.is_file() || meta.is_dir() => Ok(Some(find(root, &full, below)?)),
                (Ok(_), _) => Ok(None),
                (Err(_), Ok(stat)) if kind(&stat) == SFlag::S_IFLNK => {
                    found(folder.clone(), name, &stat, below)
                }
                (Err(error), _) => Err(error),
            };
            if let Some(there) = there.transpose() {
                each(there.map_err(|error| Unreadable { path, shown: root.show(&full), error }))?;
            }
        }
    }
    Ok(())
}

/// Whether nothing has this path.
pub(super) fn is_absent(root: &Root, path: &Path) -> bool {
    let stat = root.parent(path).and_then(|(folder, name)| folder.stat(&name));
    stat.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A path below the root without `.` and `..`; the kernel has the last word on where it leads.
fn plain(path: &Path, root: &Path) -> PathBuf {
    let below = path.strip_prefix(root).unwrap_or(path);
    let mut plain = PathBuf::new();
    for part in below.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => _ = plain.pop(),
            _ => (),
        }
    }
    plain
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Describes a name in a folder; `None` for what is not sent: sockets, devices, FIFOs.
fn found(folder: Arc<Folder>, name: OsString, stat: &FileStat, path: RelPath) -> io::Result<Option<Found>> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let what = match kind(stat) {
        SFlag::S_IFREG => What::File { size },
        SFlag::S_IFDIR => What::Folder,
        SFlag::S_IFLNK => What::Link(readlinkat(folder.as_fd(), name.as_os_str())?.into_vec()),
        _ => return Ok(None),
    };
    let modified = Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    let item = Item { path, what, mode: stat.st_mode & 0o777, modified, attributes: Vec::new() };
    let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
    Ok(Some(Found { folder, name, item, sparse }))
}

/// The extended attributes of users; where the file system has none, none.
fn attributes(file: &File) -> Vec<Attribute> {
    let Ok(names) = file.list_xattr() else { return Vec::new() };
    let mut found = Vec::new();
    let mut bytes = 0;
    for name in names.filter(|name| name.as_bytes().starts_with(b"user.")) {
        if let Ok(Some(value)) = file.get_xattr(&name) {
            bytes += name.len() + value.len();
            if bytes <= MAX_ATTRIBUTES {
                found.push(Attribute { name: name.into_vec(), value });
            }
        }
    }
    found
}

/// Walks a folder, itself first, and gives everything below it to `each`, or why that cannot be read, until that says
/// `false`.
pub(super) fn walk(
    top: Found,
    each: &mut impl FnMut(Result<Found, Unreadable>) -> Result<bool, Trouble>,
) -> Result<bool, Trouble> {
    let mut open = vec![top];
    while let Some(mut next) = open.pop() {
        let path = next.item.path.as_path().to_owned();
        let listed = next.folder.folder(&next.name).and_then(|inner| Ok((inner.list()?, Arc::new(inner))));
        let (names, inner) = match listed {
            Ok(listed) => listed,
            Err(error) => match each(Err(next.unreadable(error)))? {
                true => continue,
                false => return Ok(false),
            },
        };
        if let Ok(file) = inner.as_fd().try_clone_to_owned() {
            next.item.attributes = attributes(&file.into());
        }
        if !each(Ok(next))? {
            return Ok(false);
        }
        for (name, _) in names {
            let below = RelPath::new(path.join(&name)).map_err(Trouble::lasting)?;
            let shown = inner.path().join(&name);
            let there = match inner.stat(&name) {
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                stat => stat.and_then(|stat| found(inner.clone(), name, &stat, below.clone())),
            };
            let on = match there {
                Ok(Some(folder)) if folder.item.what == What::Folder => {
                    open.push(folder);
                    true
                }
                Ok(Some(other)) => each(Ok(other))?,
                Ok(None) => true,
                Err(error) => each(Err(Unreadable { path: below.as_path().to_owned(), shown, error }))?,
            };
            if !on {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The parts of a file that hold data.
pub(super) fn extents(file: &File, size: u64, sparse: bool) -> Vec<(u64, u64)> {
    if !sparse {
        return vec![(0, size)];
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let seek = |from: u64, whence| {
            i64::try_from(from).map_err(|_| Errno::EOVERFLOW).and_then(|from| lseek(file, from, whence))
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start.unsigned_abs(),
            Err(Errno::ENXIO) => break,
            // A file system that cannot tell.
            Err(_) => return vec![(0, size)],
        };
        let end = seek(start, Whence::SeekHole).map_or(size, i64::unsigned_abs).min(size);
        if end <= start {
            break;
        }
        parts.push((start, end));
        at = end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;

    #[test]
    fn patterns_match_names_in_each_folder_and_not_hidden_ones() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["run1/a.h5", "run1/b.h5", "run2/c.h5", "run2/d.txt", "run2/.e.h5"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let root = Root::confined(folder.path()).unwrap();
        let found = expand(&root, Path::new("run*/*.h5")).unwrap();
        assert_eq!(found, ["run1/a.h5", "run1/b.h5", "run2/c.h5"].map(PathBuf::from));
        assert_eq!(expand(&root, Path::new("no such")).unwrap(), [PathBuf::from("no such")]);
        let trouble = expand(&root, Path::new("*.none")).unwrap_err();
        assert!(trouble.why.starts_with("nothing matches"), "{trouble}");
        assert!(expand(&root, Path::new("../x")).is_err());
    }

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        assert_eq!(extents(&file, 10 << 20, true), [(4 << 20, (4 << 20) + 4096)]);
        assert_eq!(extents(&file, 10 << 20, false), [(0, 10 << 20)]);
    }

    #[test]
    fn a_walk_meets_everything_once_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("top/a/b")).unwrap();
        fs::write(folder.path().join("top/a/b/file"), "12").unwrap();
        symlink("a", folder.path().join("top/link")).unwrap();
        let root = Root::confined(folder.path()).unwrap();
        let top = find(&root, Path::new("top"), RelPath::new("".into()).unwrap()).unwrap();
        let mut seen = Vec::new();
        walk(top, &mut |found| {
            seen.push(found?.item.path.as_path().to_owned());
            Ok(true)
        })
        .unwrap();
        seen.sort();
        assert_eq!(seen, ["", "a", "a/b", "a/b/file", "link"].map(PathBuf::from));
        let linked = find(&root, Path::new("top/link"), RelPath::new("x".into()).unwrap()).unwrap();
        assert_eq!(linked.item.what, What::Folder);
    }
}
