//! Serial numbers that are given out once.
//!
//! The kernel's side counts by itself, while the agent may be away or killed; so it gets them in blocks, and where the
//! next block begins is on the disk before one is used. What is left of a block after a crash or a start of the machine
//! is never used.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many a block has: a fork storm of some minutes.
pub(crate) const BLOCK: u32 = 1 << 18;

/// The blocks of one node.
#[derive(Debug)]
pub(crate) struct Serials {
    path: PathBuf,
}

impl Serials {
    /// Kept in the file `path`; its folder is there.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The first and the last but one of a new block; the first is 1 at least. After the last block of all it is empty.
    pub(crate) fn take(&self) -> io::Result<(u32, u32)> {
        let first: u32 = match fs::read_to_string(&self.path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let what = format!("{} holds no number: {:?}", self.path.display(), text.trim());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error),
        };
        let end = first.saturating_add(BLOCK);
        self.write(end)?;
        Ok((first, end))
    }

    fn write(&self, end: u32) -> io::Result<()> {
        let part = self.path.with_extension("part");
        let mut file = File::create(&part)?;
        writeln!(file, "{end}")?;
        file.sync_all()?;
        fs::rename(&part, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_serial_is_in_two_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let serials = Serials::new(folder.path().join("gpids"));
        assert_eq!(serials.take().unwrap(), (1, 1 + BLOCK));
        assert_eq!(Serials::new(folder.path().join("gpids")).take().unwrap(), (1 + BLOCK, 1 + 2 * BLOCK));
        serials.write(u32::MAX - 5).unwrap();
        assert_eq!(serials.take().unwrap(), (u32::MAX - 5, u32::MAX));
        assert_eq!(serials.take().unwrap(), (u32::MAX, u32::MAX), "there are no more");
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_a_new_node() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpids");
        fs::write(&path, "").unwrap();
        assert!(Serials::new(path).take().unwrap_err().to_string().contains("holds no number"));
    }
}
