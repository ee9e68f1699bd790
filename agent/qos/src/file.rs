//! Reading and writing the small files of cgroupfs; every error names its file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A control group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel offers the controllers in neither version.
    #[error(
        "no control groups with the controllers cpu, memory and pids below {}: mount cgroup2 there, \
         or boot with cgroup_enable=memory", root.display()
    )]
    Missing {
        /// Where they were looked for.
        root: PathBuf,
    },
    /// A file of the group could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io { what, path: path.to_owned(), source }
}

pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

/// The first number in a file that holds one.
pub(crate) fn number(path: &Path) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key number` lines.
pub(crate) fn field(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

pub(crate) fn open_to_write(path: &Path) -> Result<File, CgroupError> {
    OpenOptions::new().write(true).open(path).map_err(failed("open", path))
}

/// Writes in one `write` call, as cgroupfs demands.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(cfg!(test))
        .truncate(cfg!(test))
        .open(path)
        .map_err(failed("open", path))?;
    file.write_all(text.as_bytes()).map_err(failed("write", path))
}

/// As [`write`]; a file that this kernel does not have is passed over.
pub(crate) fn write_if_there(path: &Path, text: &str) -> Result<(), CgroupError> {
    match write(path, text) {
        Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// True if it was not there before.
pub(crate) fn make_folder(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed("make", path)(error)),
        Ok(()) => Ok(true),
    }
}

pub(crate) fn remove_folder(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn folders_in(path: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = fs::read_dir(path).map_err(failed("list", path))?;
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
