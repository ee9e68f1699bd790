//! The folder that somebody may use, and no way out of it.
//!
//! Every name is opened below the descriptor of the root by `openat2` with `RESOLVE_BENEATH` (Linux 5.6,
//! openat2(2)): the kernel itself refuses `..`, absolute names and symbolic links that lead out, whoever changes the
//! tree meanwhile. Names are made, replaced and removed through the descriptor of their folder, opened the same way.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// A folder, and what may be reached from it.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    path: PathBuf,
    resolve: ResolveFlag,
}

impl Root {
    /// A folder that nothing leads out of.
    ///
    /// # Errors
    /// It is not there, or may not be opened.
    pub fn confined(path: &Path) -> io::Result<Self> {
        Self::open(path, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    }

    /// The whole tree of files, for a user who has a right to it by themselves: symbolic links lead where they lead.
    ///
    /// # Errors
    /// `/` may not be opened.
    pub fn everything() -> io::Result<Self> {
        Self::open(Path::new("/"), ResolveFlag::empty())
    }

    fn open(path: &Path, resolve: ResolveFlag) -> io::Result<Self> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        let folder = openat2(nix::fcntl::AT_FDCWD, path, how)?;
        Ok(Self { folder, path: path.to_owned(), resolve })
    }

    /// Opens something below the root; the last name may be a symbolic link that stays within.
    ///
    /// # Errors
    /// As open(2); `EXDEV` if it leads out of the root.
    pub fn file(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        // With O_PATH nothing is opened that could be a terminal, and openat2 refuses what makes no difference.
        let more = if flags.contains(OFlag::O_PATH) { OFlag::empty() } else { OFlag::O_NOCTTY };
        let mut how = OpenHow::new().flags(flags | more | OFlag::O_CLOEXEC).resolve(self.resolve);
        if flags.contains(OFlag::O_CREAT) {
            how = how.mode(Mode::from_bits_truncate(0o600));
        }
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(File::from(openat2(&self.folder, path, how)?))
    }

    /// Opens a folder below the root.
    ///
    /// # Errors
    /// As [`Root::file`].
    pub fn folder(&self, path: &Path) -> io::Result<Folder> {
        let file = self.file(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok(Folder { file: file.into(), path: self.path.join(path) })
    }

    /// The folder that holds something, and the name that it has there.
    ///
    /// # Errors
    /// As [`Root::file`]; the path has no last name.
    pub fn parent(&self, path: &Path) -> io::Result<(Folder, OsString)> {
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) => name.to_owned(),
            _ => return Err(Errno::EINVAL.into()),
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let folder = match self.folder(above) {
            // One that may not be listed may be passed through.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let file = self.file(above, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                Folder { file: file.into(), path: self.path.join(above) }
            }
            folder => folder?,
        };
        Ok((folder, name))
    }

    /// Where the root is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How a path below the root is told to its user.
    pub fn show(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.path.clone() } else { self.path.join(path) }
    }
}

/// An open folder: names are used in it, not paths.
#[derive(Debug)]
pub struct Folder {
    file: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens a file in it, and not through a symbolic link.
    ///
    /// # Errors
    /// As openat(2); `ELOOP` for a symbolic link.
    pub fn file(&self, name: &OsStr, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        Ok(File::from(nix::fcntl::openat(&self.file, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Opens a folder in it, and not through a symbolic link.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub fn folder(&self, name: &OsStr) -> io::Result<Self> {
        let file = self.file(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
        Ok(Self { file: file.into(), path: self.path.join(name) })
    }

    /// Opens a folder in it, which is made if it is not there.
    ///
    /// # Errors
    /// As [`Folder::file`]; something else has that name.
    pub fn make(&self, name: &OsStr) -> io::Result<Self> {
        match mkdirat(&self.file, name, Mode::from_bits_truncate(0o700)) {
            Err(Errno::EEXIST) | Ok(()) => self.folder(name),
            Err(error) => Err(error.into()),
        }
    }

    /// What a name in it stands for; a symbolic link for itself.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn stat(&self, name: &OsStr) -> io::Result<FileStat> {
        Ok(fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Gives something in it another name in the same folder, in place of what has that name.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.file, from, &self.file, to)?)
    }

    /// Moves something from it to another folder of the same file system, in place of what has that name there.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn move_to(&self, name: &OsStr, to: &Self) -> io::Result<()> {
        Ok(renameat(&self.file, name, &to.file, name)?)
    }

    /// Removes a name that is not a folder's.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes a name with all that is below it.
    ///
    /// # Errors
    /// As unlinkat(2), of the first that cannot be removed.
    pub fn remove_tree(&self, name: &OsStr) -> io::Result<()> {
        if self.remove(name).is_ok() {
            return Ok(());
        }
        let inner = self.folder(name)?;
        for (name, _) in inner.list()? {
            inner.remove_tree(&name)?;
        }
        Ok(unlinkat(&self.file, name, UnlinkatFlags::RemoveDir)?)
    }

    /// The names in it, with their types where the file system tells them; in no order.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn list(&self) -> io::Result<Vec<(OsString, Option<nix::dir::Type>)>> {
        let mut names = Vec::new();
        let mut dir = nix::dir::Dir::from_fd(self.file.try_clone()?)?;
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
            }
        }
        Ok(names)
    }

    /// Where it is, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leads_out_of_a_confined_root() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::write(inside.path().join("open"), "o").unwrap();
        symlink(outside.path(), inside.path().join("absolute")).unwrap();
        symlink("../".repeat(20) + "etc", inside.path().join("relative")).unwrap();
        symlink("open", inside.path().join("within")).unwrap();
        let root = Root::confined(inside.path()).unwrap();
        for path in ["absolute/secret", "relative/passwd", "../", "/etc/passwd", "a/../../etc/passwd"] {
            assert!(root.file(Path::new(path), OFlag::O_RDONLY).is_err(), "{path}");
        }
        assert!(root.file(Path::new("within"), OFlag::O_RDONLY).is_ok());
        assert!(root.parent(Path::new("absolute/new")).is_err());
        assert!(Root::everything().unwrap().file(Path::new("/etc/passwd"), OFlag::O_RDONLY).is_ok());
    }

    #[test]
    fn a_tree_is_removed_without_following_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "k").unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::create_dir_all(inside.path().join("a/b/c")).unwrap();
        fs::write(inside.path().join("a/b/file"), "f").unwrap();
        symlink(outside.path(), inside.path().join("a/b/link")).unwrap();
        let folder = Root::confined(inside.path()).unwrap().folder(Path::new("")).unwrap();
        folder.remove_tree(OsStr::new("a")).unwrap();
        assert!(outside.path().join("kept").exists());
        assert_eq!(folder.list().unwrap().len(), 0);
    }
}
