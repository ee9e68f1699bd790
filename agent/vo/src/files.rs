//! Files that are whole at every moment: written under a temporary name, synced, renamed, the folder synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// No file of ours comes near this; a longer one is not ours.
const MAX_FILE: u64 = 64 << 20;

/// Only the owner may read it: keys, and records that name tokens.
pub(crate) const SECRET: u32 = 0o600;

/// Anybody may read it: certificates.
pub(crate) const PUBLIC: u32 = 0o644;

/// A file of the VO's could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// Makes the folder and those above it, for the owner alone.
pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| FileError::new("create the folder", dir, source))
}

/// Replaces `dir/name` in one step: after a crash it holds the old bytes or the new ones.
pub(crate) fn replace(dir: &Path, name: &str, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        // One that a crash left may have another owner's mode: never write a secret into it.
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| FileError::new("write", &path, source))
}

/// The bytes of `dir/name`; `None` where there is no such file.
pub(crate) fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, FileError> {
    let path = dir.join(name);
    let read = || -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other("the file is longer than any that GridOS writes"));
        }
        Ok(Some(bytes))
    };
    read().map_err(|source| FileError::new("read", &path, source))
}

/// Removes `dir/name` where it exists.
pub(crate) fn remove(dir: &Path, name: &str) -> Result<(), FileError> {
    let path = dir.join(name);
    remove_if_there(&path).map_err(|source| FileError::new("remove", &path, source))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// DER as PEM (RFC 7468), so that `openssl` shows it.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
