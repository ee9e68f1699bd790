//! What a stored checkpoint is made of.
//!
//! ```text
//!   8 bytes   "GRIDCKP1"          the format's number is in it
//!   4 bytes   length of the body, little end first
//!   body      Manifest, by libgrid::wire, at most 4 MiB: some 20 GiB of files
//!   32 bytes  BLAKE3 of all before
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use libgrid::wire;
use serde::{Deserialize, Serialize};

use super::cut::MOST;
use super::{StoreError, at};

const MAGIC: &[u8; 8] = b"GRIDCKP1";
const DIGEST: usize = 32;

/// The files of a checkpoint, by paths below its folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Each after the one that it is in.
    pub(super) folders: Vec<PathBuf>,
    pub(super) files: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: PathBuf,
    pub(super) pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// BLAKE3 of the content.
    pub(super) id: [u8; 32],
    /// Bytes of it.
    pub(super) len: u32,
}

impl Manifest {
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.files.iter().flat_map(|entry| &entry.pieces)
    }

    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        Self::parse(&Self::bytes(path)?, path)
    }

    /// What is in the file, as it is.
    pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, StoreError> {
        let file = File::open(path).map_err(at("cannot open", path))?;
        let mut bytes = Vec::new();
        let most = wire::MAX_FRAME + MAGIC.len() + 4 + DIGEST;
        file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(at("cannot read", path))?;
        Ok(bytes)
    }

    /// Reads what was in a file, here or in another store; `path` is for the error.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self, StoreError> {
        let damaged = |why| StoreError::Damaged { path: path.to_owned(), why };
        let (content, digest) = bytes.split_last_chunk::<DIGEST>().ok_or(damaged("it was cut off"))?;
        // Compared before anything of it is believed; blake3 compares in constant time, which does no harm.
        if blake3::hash(content) != blake3::Hash::from_bytes(*digest) {
            return Err(damaged("its digest does not fit"));
        }
        let body = content.strip_prefix(MAGIC).ok_or(damaged("it has another format"))?;
        let body = body
            .split_first_chunk::<4>()
            .filter(|(len, body)| u32::from_le_bytes(**len) as usize == body.len());
        let (_, body) = body.ok_or(damaged("its length does not fit"))?;
        let manifest: Self = wire::decode(body).map_err(|_| damaged("it cannot be decoded"))?;
        // Another node may have written it.
        if manifest.pieces().any(|piece| piece.len as usize > MOST) {
            return Err(damaged("a piece of it is larger than any is cut"));
        }
        let names = manifest.folders.iter().chain(manifest.files.iter().map(|entry| &entry.name));
        for name in names {
            let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
            if !plain || name.as_os_str().is_empty() {
                return Err(damaged("a name in it leads out of the folder"));
            }
        }
        Ok(manifest)
    }

    /// Writes it whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let part = path.with_extension("part");
        let write = || {
            let body = wire::encode(self).map_err(std::io::Error::other)?;
            let mut bytes = MAGIC.to_vec();
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
            bytes.extend(blake3::hash(&bytes).as_bytes());
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&part, path)?;
            path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        write().map_err(at("cannot write", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_is_larger_than_any_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1");
        for (len, sound) in [(MOST, true), (MOST + 1, false), (u32::MAX as usize, false)] {
            let piece = Piece { id: [7; 32], len: u32::try_from(len).unwrap() };
            let entry = Entry { name: "about".into(), pieces: vec![piece] };
            Manifest { folders: Vec::new(), files: vec![entry] }.write(&path).unwrap();
            assert_eq!(Manifest::read(&path).is_ok(), sound, "{len}");
        }
    }
}
