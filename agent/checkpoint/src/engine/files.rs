//! The files of a task: packed and unpacked by a process of the task's user, which sees what the task sees.
//!
//! Kept are files (with their holes), folders, symbolic and hard links and named pipes, with their mode, and files
//! with their time in seconds. A socket's
//! file is made again by CRIU when it binds the socket.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use libgrid::user::User;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Bytes of a sentence.
const MOST_SAID: u64 = 4096;

/// Runs this as the task's user, in a process of its own.
///
/// # Errors
/// Its sentence.
pub(super) fn as_user(uid: u32, act: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    in_process(|| User::of_task(uid).enter().and_then(|()| act()))
}

/// Runs this in a process of its own.
///
/// # Errors
/// Its sentence.
pub(super) fn in_process(act: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    let (said, end) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    // SAFETY: this program has one thread: the child finds no lock taken.
    match unsafe { fork() } {
        Err(error) => Err(format!("cannot start a process: {error}")),
        Ok(ForkResult::Child) => {
            let result = act();
            if let Err(error) = &result {
                let _ = File::from(end).write_all(error.to_string().as_bytes());
            }
            std::process::exit(i32::from(result.is_err()))
        }
        Ok(ForkResult::Parent { child }) => {
            drop(end);
            let mut why = String::new();
            let _ = File::from(said).take(MOST_SAID).read_to_string(&mut why);
            loop {
                return match waitpid(child, None) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    Ok(WaitStatus::Exited(_, 0)) => Ok(()),
                    _ if why.is_empty() => Err("the process for it ended early".into()),
                    _ => Err(why),
                };
            }
        }
    }
}

/// Packs all below `base`.
///
/// # Errors
/// With the path.
pub(super) fn pack(base: &Path, to: &File) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, to));
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Complete);
    let mut links = HashMap::new();
    // Its own mode, too.
    archive.append_dir(".", base).map_err(|error| told("read", base, &error))?;
    pack_folder(&mut archive, base, Path::new(""), &mut links)?;
    archive.into_inner()?.flush()
}

fn pack_folder(
    archive: &mut tar::Builder<impl Write>,
    base: &Path,
    at: &Path,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let folder = base.join(at);
    for entry in fs::read_dir(&folder).map_err(|error| told("read", &folder, &error))? {
        let name = at.join(entry.map_err(|error| told("read", &folder, &error))?.file_name());
        let path = base.join(&name);
        pack_one(archive, base, &name, links).map_err(|error| told("read", &path, &error))?;
    }
    Ok(())
}

fn pack_one(
    archive: &mut tar::Builder<impl Write>,
    base: &Path,
    name: &Path,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let path = base.join(name);
    let meta = fs::symlink_metadata(&path)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        archive.append_dir(name, &path)?;
        return pack_folder(archive, base, name, links);
    }
    if kind.is_socket() {
        return Ok(());
    }
    if kind.is_fifo() {
        // The crate's own way takes the path on the disk for the name.
        let mut header = header_of(&meta, tar::EntryType::Fifo);
        return archive.append_data(&mut header, name, io::empty());
    }
    if kind.is_file() && meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            let mut header = header_of(&meta, tar::EntryType::Link);
            return archive.append_link(&mut header, name, first);
        }
        links.insert((meta.dev(), meta.ino()), name.to_owned());
    }
    archive.append_path_with_name(&path, name)
}

/// Of an entry without content.
fn header_of(meta: &fs::Metadata, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(meta);
    header.set_entry_type(kind);
    header.set_size(0);
    header
}

/// Unpacks an archive of [`pack`] into `base`. Nothing lands outside of it.
///
/// # Errors
/// With the path.
pub(super) fn unpack(base: &Path, from: &File) -> io::Result<()> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(256 << 10, from));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    // A folder's mode may forbid to write into it.
    let mut folders = Vec::new();
    let mut own = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if name == Path::new(".") {
            own = Some(fs::Permissions::from_mode(entry.header().mode()? & 0o7777));
            continue;
        }
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(io::Error::other(format!("{} leads out of the folder", name.display())));
        }
        let path = base.join(&name);
        match entry.header().entry_type() {
            tar::EntryType::Directory => folders.push(entry),
            tar::EntryType::Fifo => {
                make_parents(base, &path)?;
                let mode = Mode::from_bits_truncate(entry.header().mode()?);
                nix::unistd::mkfifo(&path, mode).map_err(|error| told("make", &path, &error.into()))?;
            }
            _ => {
                make_parents(base, &path)?;
                entry.unpack_in(base).map_err(|error| told("write", &path, &error))?;
            }
        }
    }
    // The deepest first.
    for mut folder in folders.into_iter().rev() {
        let path = base.join(folder.path()?);
        folder.unpack_in(base).map_err(|error| told("make", &path, &error))?;
    }
    match own {
        // `/dev/shm` is root's, and as it has to be.
        Some(own) if fs::metadata(base)?.mode() & 0o7777 != own.mode() => {
            fs::set_permissions(base, own).map_err(|error| told("change", base, &error))
        }
        _ => Ok(()),
    }
}

fn make_parents(base: &Path, path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.starts_with(base) && parent != base => fs::create_dir_all(parent),
        _ => Ok(()),
    }
}

fn told(what: &str, path: &Path, error: &io::Error) -> io::Error {
    // One that was told deeper down stays as it is.
    if error.get_ref().is_some() {
        return io::Error::new(error.kind(), error.to_string());
    }
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// Writes all of a file system's files to the disk.
pub(super) fn sync(folder: impl AsFd) -> Result<(), String> {
    nix::unistd::syncfs(folder).map_err(|error| format!("cannot write the checkpoint to the disk: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at("deep/er")).unwrap();
        fs::write(at("deep/er/file"), "text").unwrap();
        fs::hard_link(at("deep/er/file"), at("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("outside")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
        fs::set_permissions(at("deep/er/file"), fs::Permissions::from_mode(0o751)).unwrap();
        let holes = File::create(at("holes")).unwrap();
        holes.set_len(64 << 20).unwrap();
        drop(holes);
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::open(at("holes")).unwrap().set_modified(then).unwrap();
        let archive = tempfile::tempfile().unwrap();
        pack(from.path(), &archive).unwrap();
        assert!(archive.metadata().unwrap().len() < 1 << 20, "holes are not written");
        io::Seek::rewind(&mut &archive).unwrap();
        unpack(to.path(), &archive).unwrap();
        let back = |name: &str| to.path().join(name);
        assert_eq!(fs::read(back("deep/er/file")).unwrap(), b"text");
        let mode = |folder: &tempfile::TempDir| fs::metadata(folder.path()).unwrap().mode() & 0o7777;
        assert_eq!((mode(&from), mode(&to)), (0o750, 0o750));
        let inode = |name| fs::metadata(back(name)).unwrap().ino();
        assert_eq!(inode("link"), inode("deep/er/file"));
        assert_eq!(fs::metadata(back("link")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(back("outside")).unwrap(), Path::new("/etc/passwd"));
        assert!(fs::metadata(back("pipe")).unwrap().file_type().is_fifo());
        assert_eq!(fs::metadata(back("holes")).unwrap().len(), 64 << 20);
        assert_eq!(fs::metadata(back("holes")).unwrap().modified().unwrap(), then);
    }
}
