//! What a pipe holds on the disk: a file that only grows at its end, whose beginning is given back to the file system, and a
//! mark of how far it was read. The mark never runs ahead of what readers said that they have.
//!
//! Of writers that may come again after the agent was killed there is a third file, of records of one size: which of their chunks
//! is written where, noted before it is. What is there only in part is cut off when the file is opened, so that a chunk is either
//! all there or not at all, and its writer is told which.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use libgrid::pipe::Part;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::pipe::Key;
use crate::machine;

/// How much is read before the file system gets it back.
const HOLE: u64 = 1 << 20;

/// What readers of before may have, in parts.
const MOST_PASSED: usize = 1000;

/// The size of a note in its file.
const NOTE: usize = 256;

/// A writer that may come again, and the last of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) key: Key,
    pub(super) epoch: u32,
    /// The number of the chunk.
    pub(super) number: u64,
    /// Where it is.
    pub(super) part: Part,
}

pub(super) struct Spill {
    folder: PathBuf,
    file: File,
    mark: File,
    notes: File,
    /// All before this was had by readers.
    released: u64,
    /// All before this was given back.
    freed: u64,
    /// The next byte to hand out, and the end.
    head: u64,
    tail: u64,
    /// What was handed out: where, and how much.
    lent: BTreeMap<u64, u64>,
    /// What is not to be handed out, as a reader has it: where, and how much.
    passed: BTreeMap<u64, u64>,
}

/// Where a pipe's files are.
pub(super) fn paths(folder: &Path, name: &str) -> [PathBuf; 3] {
    ["data", "mark", "writers"].map(|kind| folder.join(format!("{name}.{kind}")))
}

impl Spill {
    /// Opens it, or makes it; what readers did not say that they have is there again.
    pub(super) fn open(folder: &Path, name: &str) -> io::Result<Self> {
        let open = |path: &PathBuf| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let [data, mark, notes] = paths(folder, name);
        let (file, mark, notes) = (open(&data)?, open(&mark)?, open(&notes)?);
        let mut tail = file.metadata()?.len();
        let torn = |note: &Note| note.part.at < tail && tail < note.part.end();
        if let Some(note) = read_notes(&notes)?.into_iter().flatten().find(torn) {
            file.set_len(note.part.at)?;
            tail = note.part.at;
        }
        let mut bytes = [0; 8];
        let released = match mark.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes).min(tail),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        let (lent, passed) = (BTreeMap::new(), BTreeMap::new());
        let folder = folder.to_owned();
        Ok(Self { folder, file, mark, notes, released, freed: released, head: released, tail, lent, passed })
    }

    /// The writers that had not closed, with the places of their notes, and the numbers of the last chunks that are here.
    pub(super) fn writers(&self) -> io::Result<Vec<(usize, Note)>> {
        let noted = read_notes(&self.notes)?.into_iter().enumerate();
        let mut writers: Vec<(usize, Note)> = noted.filter_map(|(at, note)| Some((at, note?))).collect();
        for (_, note) in &mut writers {
            let here = note.part.end() <= self.tail;
            note.number = note.number.saturating_sub(u64::from(!here));
        }
        Ok(writers)
    }

    /// Notes what a writer is about to write, or that it will write nothing more.
    pub(super) fn note(&self, place: usize, note: Option<&Note>) -> io::Result<()> {
        let mut text = note.map_or(Ok(Vec::new()), serde_json::to_vec)?;
        text.resize(NOTE, b' ');
        self.notes.write_all_at(&text, (place * NOTE) as u64)
    }

    /// Where the next chunk of this length will be.
    pub(super) fn next(&self, len: usize) -> Part {
        Part { at: self.tail, len: len as u64 }
    }

    /// What was written and not had.
    pub(super) fn held(&self) -> u64 {
        self.tail - self.released
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        machine::leaves_room(&self.folder, bytes.len())?;
        if let Err(error) = self.file.write_all_at(bytes, self.tail) {
            // Whoever opens it next must not take what this left for whole.
            self.file.set_len(self.tail)?;
            return Err(error);
        }
        self.tail += bytes.len() as u64;
        Ok(())
    }

    /// The next bytes and their place; none if there are none.
    pub(super) fn take(&mut self, most: usize) -> io::Result<(u64, Vec<u8>)> {
        while let Some(first) = self.passed.first_entry().filter(|first| *first.key() <= self.head) {
            self.head = self.head.max(first.key() + first.get());
            first.remove();
        }
        let end = self.passed.keys().next().map_or(self.tail, |at| *at);
        let count = (end - self.head).min(most as u64);
        let mut bytes = vec![0; count as usize];
        self.file.read_exact_at(&mut bytes, self.head)?;
        let at = self.head;
        if count > 0 {
            self.lent.insert(at, count);
            self.head += count;
        }
        Ok((at, bytes))
    }

    /// A reader has what was at this place.
    pub(super) fn had(&mut self, at: u64) -> io::Result<()> {
        self.lent.remove(&at);
        self.release()
    }

    /// A reader has this from before the file was opened. What was handed out again meanwhile comes twice.
    pub(super) fn has(&mut self, part: Part) -> io::Result<()> {
        let sound = part.at >= self.head && part.end() <= self.tail && self.passed.len() < MOST_PASSED;
        if part.len > 0 && sound {
            self.passed.insert(part.at, part.len);
            self.take(0)?;
            self.release()?;
        }
        Ok(())
    }

    /// Gives back what nobody will ask for.
    fn release(&mut self) -> io::Result<()> {
        self.released = self.lent.keys().next().copied().unwrap_or(self.head);
        self.mark.write_all_at(&self.released.to_le_bytes(), 0)?;
        if self.released - self.freed >= HOLE {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // A file system that cannot keeps it until the pipe is removed.
            let _ = fallocate(&self.file, flags, self.freed as i64, (self.released - self.freed) as i64);
            self.freed = self.released;
        }
        Ok(())
    }
}

fn read_notes(file: &File) -> io::Result<Vec<Option<Note>>> {
    let mut text = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut text, 0)?;
    Ok(text.chunks(NOTE).map(|note| serde_json::from_slice(note).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_has_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(folder.path(), "x").unwrap();
        spill.push(b"one two three").unwrap();
        assert_eq!(spill.take(4).unwrap(), (0, b"one ".to_vec()));
        assert_eq!(spill.take(4).unwrap(), (4, b"two ".to_vec()));
        spill.had(4).unwrap();
        assert_eq!(spill.held(), 13, "the first part is not had yet");
        let mut again = Spill::open(folder.path(), "x").unwrap();
        assert_eq!(again.take(100).unwrap().1, b"one two three");
        spill.had(0).unwrap();
        assert_eq!(spill.held(), 5);
        let mut again = Spill::open(folder.path(), "x").unwrap();
        assert_eq!(again.take(100).unwrap(), (8, b"three".to_vec()));
    }

    #[test]
    fn the_disk_gets_back_what_was_read() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut spill = Spill::open(folder.path(), "x").unwrap();
        for _ in 0..64 {
            spill.push(&[7; 1 << 20]).unwrap();
            let (at, bytes) = spill.take(1 << 20).unwrap();
            assert_eq!(bytes.len(), 1 << 20);
            spill.had(at).unwrap();
        }
        let meta = std::fs::metadata(&paths(folder.path(), "x")[0]).unwrap();
        assert!(meta.len() == 64 << 20 && meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    }
}
