//! What has to be known of a checkpoint besides what CRIU writes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libgrid::wire;
use serde::{Deserialize, Serialize};

use crate::order::{External, Streams};
use crate::preflight::needs::Needs;

/// Changes with the meaning of a checkpoint's files.
const FORMAT: u32 = 4;

/// The name of its file.
const NAME: &str = "task";

/// The task of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    format: u32,
    /// The user and group of all its processes.
    pub uid: u32,
    /// Where it sees its working folder.
    pub workdir: PathBuf,
    /// Its standard streams that came from outside, in order: one for a terminal; else input, if it has any, output and
    /// errors.
    pub stdio: Vec<External>,
    /// What had passed through them.
    pub streams: Streams,
    /// How long the task stood still for its files and its output, after CRIU was done with it.
    pub held: Duration,
    /// What a machine must have to restore it.
    pub needs: Needs,
    /// Whether its memory is not all here, but moves by itself ([`crate::memory`]), or did before ([`crate::rounds`]): then this
    /// is no checkpoint, and good for nothing but that move.
    pub memory_apart: bool,
    /// The same of its files on a disk.
    pub files_apart: bool,
    /// Its threads that do not run on every processor that it may use.
    pub pinned: Vec<Pinned>,
}

/// A thread that chose where to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Its number in the task.
    pub thread: i32,
    /// The numbers of the processors.
    pub processors: Vec<u16>,
}

/// A folder holds no checkpoint, or none that this release can use.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was cut off, or altered, or written by something else.
    #[error("{} is no description of a checkpoint: {why}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another release wrote it.
    #[error("{} has format {found}, and this release reads {FORMAT}: restore it with the release that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that it names.
        found: u32,
    },
}

impl Description {
    /// Of a task, as it was when it was stopped.
    pub fn new(
        uid: u32,
        workdir: PathBuf,
        stdio: Vec<External>,
        streams: Streams,
        held: Duration,
        needs: Needs,
    ) -> Self {
        Self {
            format: FORMAT,
            uid,
            workdir,
            stdio,
            streams,
            held,
            needs,
            memory_apart: false,
            files_apart: false,
            pinned: Vec::new(),
        }
    }

    /// Reads that of the checkpoint in this folder.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn read(folder: &Path) -> Result<Self, DescriptionError> {
        let path = folder.join(NAME);
        let mut file =
            File::open(&path).map_err(|source| DescriptionError::File { path: path.clone(), source })?;
        let description: Self = wire::read(&mut file)
            .map_err(|error| DescriptionError::Garbled { path: path.clone(), why: error.to_string() })?;
        match description.format {
            FORMAT => Ok(description),
            found => Err(DescriptionError::Format { path, found }),
        }
    }

    /// Writes it; the folder is a checkpoint from then on. What is `lasting` outlasts a crash; a task that stands still to move needs
    /// not, for then it does not move.
    ///
    /// # Errors
    /// [`DescriptionError::File`].
    pub fn write(&self, folder: &Path, lasting: bool) -> Result<(), DescriptionError> {
        let path = folder.join(NAME);
        let part = folder.join(format!("{NAME}.part"));
        let write = || {
            let mut file = File::create(&part)?;
            let frame = wire::frame(self).map_err(io::Error::other)?;
            file.write_all(&frame)?;
            if !lasting {
                return fs::rename(&part, &path);
            }
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| DescriptionError::File { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_not_at_all_when_cut() {
        let folder = tempfile::tempdir().unwrap();
        let stdio = vec![External::Pipe { inode: 7 }, External::Terminal { device: 1, filesystem: 2 }];
        let streams =
            Streams { printed: [1, 2], typed: b"typed".to_vec(), typed_end: true, position: 9, line: None };
        let description = Description::new(
            1_900_000_000,
            "/w".into(),
            stdio,
            streams,
            Duration::from_millis(3),
            Needs::default(),
        );
        assert!(matches!(Description::read(folder.path()), Err(DescriptionError::File { .. })));
        description.write(folder.path(), true).unwrap();
        assert_eq!(Description::read(folder.path()).unwrap(), description);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let path = folder.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(Description::read(folder.path()), Err(DescriptionError::Garbled { .. })));
        let mut other = description;
        other.format = 9;
        other.write(folder.path(), false).unwrap();
        assert!(matches!(Description::read(folder.path()), Err(DescriptionError::Format { found: 9, .. })));
    }
}
