//! The lab's state on disk: small JSON documents, each replaced as a whole.
//!
//! A document is written to a temporary file in the same directory, synced and renamed over the old one, so
//! that a reader, or the next command after a crash, finds either the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError};
use crate::slot::Slot;

/// The name of the lab's own document in its root.
pub(crate) const LAB: &str = "lab.json";
/// Of a machine: its pid 1.
pub(crate) const PID1: &str = "pid1.json";
/// Of a machine: the process that relays its frames, while it is slow without netem.
pub(crate) const LINK: &str = "link.json";
/// Of a machine: the state of its network cable.
pub(crate) const WIRE: &str = "wire.json";

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    ComingUp,
    Up,
    GoingDown,
}

/// The lab: written before anything of it exists, removed after everything else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LabDoc {
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) nodes: u32,
    pub(crate) slot: Slot,
    pub(crate) agent: PathBuf,
    pub(crate) helper: PathBuf,
    pub(crate) made_root: bool,
}

// === impl LabDoc ===

impl LabDoc {
    /// The directory of machine `index`.
    pub(crate) fn machine_dir(&self, root: &Path, index: u32) -> PathBuf {
        root.join(format!("node{index}"))
    }

    /// The address of machine `index`.
    pub(crate) fn addr(&self, index: u32) -> Ipv4Addr {
        self.slot.host(u8::try_from(index).unwrap_or(u8::MAX))
    }

    /// The folder in each cgroup hierarchy below which the jobs of machine `index` live.
    pub(crate) fn cgroup_parent(&self, index: u32) -> String {
        format!("gridos-{}-node{index}", self.name)
    }
}

/// Replaces the document `path` by `value`.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| LabError::Document { path: path.to_owned(), source })?;
    replace(path, &text, true).doing("write", path)
}

/// Replaces the file `path` by `text` as a whole; `durable` also survives a power failure.
pub(crate) fn replace(path: &Path, text: &[u8], durable: bool) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if let (true, Some(dir)) = (durable, path.parent()) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Reads the document `path`; `None` when there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LabError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing("read", path),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| LabError::Document { path: path.to_owned(), source })
}

/// Removes the file `path`, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), LabError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_replaced_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        write(&path, &7).unwrap();
        write(&path, &8).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn a_damaged_document_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "{").unwrap();
        let message = read::<u32>(&path).unwrap_err().to_string();
        assert!(message.contains("x.json is damaged"), "{message}");
    }
}
