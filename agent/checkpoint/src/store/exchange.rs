//! A checkpoint on its way from one store to another: only the pieces that the other one lacks.
//!
//! ```text
//!   the one that wants it                      the one that has it
//!     ── which? ──────────────────────────────▶
//!     ◀────────────────────────── manifest() ──
//!   missing()
//!     ── these ───────────────────────────────▶  lay_out(): a folder with these pieces, to be copied
//!     ◀═══════════════════════════ the folder ═
//!   import(): every piece compared, then the manifest
//! ```
//!
//! Pieces travel as they lie on the disk, compressed.

use std::fs;
use std::io;
use std::path::Path;

use super::manifest::Manifest;
use super::{Store, StoreError, at, make_folder, sync};

impl Store {
    /// The manifest of a checkpoint, as bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn manifest(&self, task: &str, number: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.task(task)?.join(number.to_string());
        let bytes = Manifest::bytes(&path)?;
        Manifest::parse(&bytes, &path).map(|_| bytes)
    }

    /// Which pieces of a manifest from another store are not here. With `compare`, those that are here are read, and what
    /// is damaged counts as missing.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn missing(&self, manifest: &[u8], compare: bool) -> Result<Vec<[u8; 32]>, StoreError> {
        let manifest = Manifest::parse(manifest, Path::new("a manifest"))?;
        let mut pieces: Vec<_> = manifest.pieces().copied().collect();
        pieces.sort_unstable_by_key(|piece| piece.id);
        pieces.dedup_by_key(|piece| piece.id);
        pieces.retain(|piece| match compare {
            true => self.piece(piece).is_err(),
            false => !self.chunk(&blake3::Hash::from_bytes(piece.id)).exists(),
        });
        Ok(pieces.iter().map(|piece| piece.id).collect())
    }

    /// Puts these pieces into a folder that is made, by names of their own for the same files. Only pieces of this
    /// checkpoint are given out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lay_out(&self, task: &str, number: u64, ids: &[[u8; 32]], into: &Path) -> Result<(), StoreError> {
        let manifest = Manifest::read(&self.task(task)?.join(number.to_string()))?;
        let own: std::collections::HashSet<[u8; 32]> = manifest.pieces().map(|piece| piece.id).collect();
        make_folder(into)?;
        for id in ids.iter().filter(|id| own.contains(*id)) {
            let id = blake3::Hash::from_bytes(*id);
            let (from, to) = (self.chunk(&id), into.join(id.to_hex().as_str()));
            fs::hard_link(&from, &to).map_err(at("cannot link", &from))?;
        }
        Ok(())
    }

    /// Takes a checkpoint of another store, with those of its pieces that were not here in this folder. Returns how many
    /// bytes were new.
    ///
    /// # Errors
    /// [`StoreError`]; there is no such checkpoint then. After [`StoreError::Missing`] another look at what is missing helps: a
    /// piece was here when it was looked for, and went with the checkpoint of another task.
    pub fn import(&self, task: &str, number: u64, manifest: &[u8], from: &Path) -> Result<u64, StoreError> {
        let tasks = self.task(task)?;
        let manifest = Manifest::parse(manifest, from)?;
        let _lock = self.lock()?;
        let mut new = 0;
        for piece in manifest.pieces() {
            let id = blake3::Hash::from_bytes(piece.id);
            let path = self.chunk(&id);
            if path.exists() {
                continue;
            }
            let came = from.join(id.to_hex().as_str());
            let size = match fs::symlink_metadata(&came) {
                Ok(meta) if meta.is_file() => meta.len(),
                Ok(_) => return Err(StoreError::Damaged { path: came, why: "it is no file" }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(StoreError::Missing { path: came });
                }
                Err(error) => return Err(at("cannot look at", &came)(error)),
            };
            Self::piece_at(piece, came.clone())?;
            path.parent().map_or(Ok(()), make_folder)?;
            fs::rename(&came, &path).map_err(at("cannot name", &path))?;
            new += size;
        }
        sync(&self.root.join("chunks"))?;
        make_folder(&tasks)?;
        manifest.write(&tasks.join(number.to_string()))?;
        Ok(new)
    }
}
