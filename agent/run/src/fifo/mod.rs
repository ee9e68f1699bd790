//! The FIFOs of a task that are pipes of the grid (`gridctl submit --pipe`). The agent carries bytes between them and the pipes;
//! the shim keeps what must not go when the agent is killed:
//!
//! | what | why |
//! | --- | --- |
//! | the other end of the FIFO, for reading or for writing | the program finds neither its reader nor its writer gone |
//! | the agent's [`Hand`], a FIFO that only root may open, beside the working folder | what is on its way stays |
//!
//! Bytes go from one pipe to the next by splice(2), within one system call, and so are in one of them or in the other.

mod hand;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use libgrid::pipe::{Direction, PipeUse};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

pub use self::hand::{END, Hand, SIZE, held};

/// Where the hands are in a task's folder.
const HANDS: &str = "pipes";

/// Opens one end of the FIFO that a task has at this path. A task may have put something else in its place, at any moment.
///
/// # Errors
/// What open(2) says; [`io::ErrorKind::NotFound`] if it is no FIFO of this user any more.
pub fn open_end(path: &Path, uid: u32, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let sound = |meta: &fs::Metadata| meta.file_type().is_fifo() && meta.uid() == uid && meta.nlink() == 1;
    // Looked at before, as opening alone may do something to what is no FIFO, and after.
    if sound(&fs::symlink_metadata(path)?) {
        let file = options.custom_flags(flags.bits()).open(path)?;
        if sound(&file.metadata()?) {
            return Ok(file);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "it is not the task's FIFO any more"))
}

/// Whether a task's folder has what is kept for FIFOs.
pub(crate) fn has_hands(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(HANDS)).is_ok()
}

/// Where the [`Hand`] for the FIFO of this name is, in a task's folder; made if it is not there.
///
/// # Errors
/// Where it cannot be made.
fn hand(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let hands = folder.join(HANDS);
    match DirBuilder::new().mode(0o700).create(&hands) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    let path = hands.join(name);
    match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => Ok(path),
        Err(error) => Err(error.into()),
    }
}

/// What the shim keeps of a task's FIFOs.
#[derive(Default)]
pub(crate) struct Ends {
    hands: Vec<File>,
    ends: BTreeMap<String, File>,
}

impl Ends {
    /// Opens them, of a task that takes no step meanwhile.
    ///
    /// # Errors
    /// Where a hand cannot be made: a sentence. A FIFO that is not there is left out: the task has removed it.
    pub(crate) fn open(folder: &Path, uid: u32, uses: &[PipeUse]) -> Result<Self, String> {
        let mut ends = Self::default();
        for PipeUse { pipe, direction } in uses {
            let made = hand(folder, &pipe.name)
                .and_then(|path| OpenOptions::new().read(true).write(true).open(path))
                .map_err(|error| format!("cannot keep the FIFO {}: {error}", pipe.name))?;
            ends.hands.push(made);
            if let Ok(end) = open_other(&folder.join("work").join(&pipe.name), uid, *direction) {
                ends.ends.insert(pipe.name.clone(), end);
            }
        }
        Ok(ends)
    }

    /// Empties the FIFOs that the program writes to: what was in them when it was written down has been taken from there, but
    /// comes with it if it has one open to read, too.
    pub(crate) fn empty(&self, uses: &[PipeUse]) {
        let mut bytes = [0; 4096];
        for one in uses.iter().filter(|one| one.direction == Direction::Write) {
            let Some(mut end) = self.ends.get(&one.pipe.name) else { continue };
            while matches!(end.read(&mut bytes), Ok(1..)) {}
        }
    }

    /// The program is to see that nobody is there any more.
    pub(crate) fn close(&mut self, name: &str) {
        self.ends.remove(name);
    }
}

/// The end that the program does not use.
fn open_other(path: &Path, uid: u32, direction: Direction) -> io::Result<File> {
    match direction {
        Direction::Write => open_end(path, uid, OpenOptions::new().read(true)),
        Direction::Read => {
            // There is no writing end as long as nobody reads.
            let both = open_end(path, uid, OpenOptions::new().read(true).write(true))?;
            let end = open_end(path, uid, OpenOptions::new().write(true));
            drop(both);
            end
        }
    }
}
