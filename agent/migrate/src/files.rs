//! The files of a task, read and written by a process of its user beside who moves its memory; what they say to each other is
//! [`grid_checkpoint::files`].
//!
//! ```text
//!  source: reader ─ pieces ─▶ gridos-pages ═ with the pages ═▶ destination: gridos-pages ─▶ writer
//!           ▲ a round                                                                        ▲ whose, and where: from the agent
//! ```
//!
//! The folders are those on a disk: the working one and `/tmp`. The stream has a round of each in turn. Both processes are started
//! before any thread is, see fork(2), and end with who started them. They have the rights of the task's user alone: what that may
//! not read is not sent, and nothing is written but below the two folders that were opened for it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use grid_checkpoint::files::{Source, Target, Unsure};
use libgrid::user::User;
use libgrid::wire;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, chown, fork, getppid};
use serde::{Deserialize, Serialize};

use crate::kernel::tree;
use crate::order::Place;

/// The two folders, in a task's own.
const FOLDERS: [&str; 2] = ["work", "tmp"];

/// Bytes that are passed on at once.
pub(crate) const PIECE: usize = 256 << 10;

/// Bytes of the disk that a task on its way leaves to others.
const SPARE: u64 = 64 << 20;

/// A round of both folders.
#[derive(Serialize, Deserialize)]
struct Ask {
    unsure: Unsure,
    last: bool,
}

/// What the process says.
#[derive(Serialize, Deserialize)]
enum Told {
    /// Of the stream.
    Piece(#[serde(with = "serde_bytes")] Vec<u8>),
    /// All was done; of the round, so many bytes of files.
    Done(u64),
    /// A sentence.
    Failed(String),
}

fn given_up(_: wire::WireError) -> String {
    "the process that moves its files has ended".to_owned()
}

/// Starts a process that does this with its end of a socket, and ends with this one.
fn process(act: impl FnOnce(&UnixStream) -> io::Result<()>) -> Result<UnixStream, String> {
    let cannot = |error: &dyn std::fmt::Display| format!("no process can be started for its files: {error}");
    let (ours, its) = UnixStream::pair().map_err(|error| cannot(&error))?;
    // SAFETY: this program has one thread by now: the child finds no lock taken.
    match unsafe { fork() }.map_err(|error| cannot(&error))? {
        ForkResult::Parent { .. } => Ok(ours),
        ForkResult::Child => {
            drop(ours);
            let act = |its| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from).and_then(|()| act(its));
            if let Err(error) = act(&its) {
                // Whoever is gone hears nothing.
                let _ = wire::write(&mut &its, &Told::Failed(error.to_string()));
            }
            std::process::exit(0)
        }
    }
}

/// Takes the rights of the task's user, until the process that started this one ends.
fn become_user(uid: u32, parent: nix::unistd::Pid) -> io::Result<()> {
    User::of_task(uid).enter()?;
    // The first is forgotten with the rights of before.
    set_pdeathsig(Signal::SIGKILL)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(io::Error::other("the agent gave up")),
    }
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(folder);
    opened
        .map(OwnedFd::from)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", folder.display())))
}

// === the source ===

/// Reads the files of a task.
#[derive(Debug)]
pub(crate) struct Reader(UnixStream);

impl Reader {
    /// Of the task in this place.
    pub(crate) fn start(place: &Place) -> Result<Self, String> {
        let parent = nix::unistd::getpid();
        process(|asked| {
            let opened = FOLDERS.map(|name| open(&place.folder.join(name)));
            become_user(place.uid, parent)?;
            let mut sources = Vec::new();
            for folder in opened {
                sources.push(Source::new(folder?)?);
            }
            while let Ok(Ask { unsure, last }) = wire::read(&mut &*asked) {
                let mut to = BufWriter::with_capacity(PIECE, Pieces(asked));
                let mut bytes = 0;
                for source in &mut sources {
                    bytes += source.round(&unsure, last, &mut to)?;
                }
                to.flush()?;
                wire::write(&mut &*asked, &Told::Done(bytes)).map_err(io::Error::other)?;
            }
            Ok(())
        })
        .map(Self)
    }

    /// Gives what changed to `send`, piece by piece; returns how many bytes of files that were.
    pub(crate) fn round(
        &self,
        unsure: Unsure,
        last: bool,
        mut send: impl FnMut(Vec<u8>) -> Result<(), String>,
    ) -> Result<u64, String> {
        wire::write(&mut &self.0, &Ask { unsure, last }).map_err(given_up)?;
        loop {
            match wire::read(&mut &self.0).map_err(given_up)? {
                Told::Piece(bytes) => send(bytes)?,
                Told::Done(bytes) => return Ok(bytes),
                Told::Failed(why) => return Err(why),
            }
        }
    }
}

/// A stream in pieces.
struct Pieces<'s>(&'s UnixStream);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        wire::write(&mut &*self.0, &Told::Piece(piece.to_vec())).map_err(io::Error::other)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What may change in a file of these processes without a trace, from now on.
pub(crate) fn unsure(proc: &Path, roots: &[i32]) -> io::Result<Unsure> {
    let mut unsure = Unsure::now();
    for pid in tree::below(proc, roots)? {
        let of = proc.join(pid.to_string());
        // One that has ended writes no more.
        let maps = fs::read_to_string(of.join("maps")).unwrap_or_default();
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
            if !rights.ends_with('s') {
                continue;
            }
            // As whoever opens it sees it; some file systems tell `maps` another number.
            let there = fs::metadata(of.join("map_files").join(range)).map(|meta| meta.ino());
            if let Some(inode) = there.ok().or_else(|| fields.nth(2)?.parse().ok()) {
                unsure.is_mapped(inode);
            }
        }
        for entry in fs::read_dir(of.join("fd")).into_iter().flatten().flatten() {
            let info = fs::read_to_string(of.join("fdinfo").join(entry.file_name())).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags =
                flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(libc::O_RDWR);
            if flags & libc::O_ACCMODE != libc::O_RDONLY {
                let _ = fs::metadata(entry.path()).map(|meta| unsure.is_open(meta.ino()));
            }
        }
    }
    Ok(unsure)
}

// === the destination ===

/// Writes the files of a task that comes.
#[derive(Debug)]
pub(crate) struct Writer {
    told: UnixStream,
    stream: UnixStream,
}

impl Writer {
    /// Starts it. Where they go comes from the agent, over `control`.
    pub(crate) fn start(control: &UnixStream) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("no process can be started for its files: {error}");
        let (stream, its) = UnixStream::pair().map_err(cannot)?;
        let parent = nix::unistd::getpid();
        let told = process(|told| {
            // Its end is that of the process that started this one. Nothing else uses the number here.
            nix::unistd::close(stream.as_raw_fd())?;
            let place: Place =
                wire::read(&mut &*control).map_err(|_| io::Error::other("the agent gave up"))?;
            let mut targets = make(&place)?.map(|folder| Target::new(folder).sparing(SPARE));
            become_user(place.uid, parent)?;
            let mut from = BufReader::with_capacity(PIECE, its);
            loop {
                let mut last = true;
                for target in &mut targets {
                    last &= target.round(&mut from)?;
                }
                if last {
                    return wire::write(&mut &*told, &Told::Done(0)).map_err(io::Error::other);
                }
            }
        })?;
        Ok(Self { told, stream })
    }

    /// What to write, and what came of it.
    pub(crate) fn into_parts(self) -> (impl Write + Send, Outcome) {
        (self.stream, Outcome(self.told))
    }
}

/// What comes of it.
pub(crate) struct Outcome(UnixStream);

impl Outcome {
    /// Waits until all files are there.
    pub(crate) fn wait(self) -> Result<(), String> {
        match wire::read(&mut &self.0).map_err(given_up)? {
            Told::Done(_) => Ok(()),
            Told::Failed(why) => Err(why),
            Told::Piece(_) => Err("the process that writes its files reads them".into()),
        }
    }
}

/// The two folders, made for the task's user if they are not there.
fn make(place: &Place) -> io::Result<[OwnedFd; 2]> {
    if place.uid == 0 {
        return Err(io::Error::other("jobs never run as root"));
    }
    let [work, tmp] = FOLDERS.map(|name| {
        let path = place.folder.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                let why = format!("cannot make {}: {error}", path.display());
                return Err(io::Error::new(error.kind(), why));
            }
            _ => (),
        }
        let folder = open(&path)?;
        chown(&path, Some(place.uid.into()), Some(place.uid.into()))?;
        Ok(folder)
    });
    Ok([work?, tmp?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_root_are_not_taken_whoever_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place { folder: folder.path().to_owned(), uid: 0 };
        assert!(make(&place).unwrap_err().to_string().contains("never run as root"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
