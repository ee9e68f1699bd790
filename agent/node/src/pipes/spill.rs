//! What a pipe holds on the disk: a file that only grows at its end, whose beginning is given back to the file system, and a
//! mark of how far it was read. The mark never runs ahead of what readers said that they have.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

/// How much is read before the file system gets it back.
const HOLE: u64 = 1 << 20;

pub(super) struct Spill {
    file: File,
    mark: File,
    /// All before this was had by readers.
    released: u64,
    /// All before this was given back.
    freed: u64,
    /// The next byte to hand out, and the end.
    head: u64,
    tail: u64,
    /// What was handed out: where, and how much.
    lent: BTreeMap<u64, u64>,
}

/// Where a pipe's files are.
pub(super) fn paths(folder: &Path, name: &str) -> [PathBuf; 2] {
    ["data", "mark"].map(|kind| folder.join(format!("{name}.{kind}")))
}

impl Spill {
    /// Opens it, or makes it; what readers did not say that they have is there again.
    pub(super) fn open(folder: &Path, name: &str) -> io::Result<Self> {
        let open = |path: &PathBuf| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let [data, mark] = paths(folder, name);
        let (file, mark) = (open(&data)?, open(&mark)?);
        let tail = file.metadata()?.len();
        let mut bytes = [0; 8];
        let released = match mark.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes).min(tail),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { file, mark, released, freed: released, head: released, tail, lent: BTreeMap::new() })
    }

    /// What was written and not had.
    pub(super) fn held(&self) -> u64 {
        self.tail - self.released
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        // What a failed write left is written over by the next.
        self.file.write_all_at(bytes, self.tail)?;
        self.tail += bytes.len() as u64;
        Ok(())
    }

    /// The next bytes and their place; none if there are none.
    pub(super) fn take(&mut self, most: usize) -> io::Result<(u64, Vec<u8>)> {
        let count = (self.tail - self.head).min(most as u64);
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
