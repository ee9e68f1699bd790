//! What a shim and `gridos-criu` say to each other, over the Unix socket that is the latter's standard input.
//!
//! ```text
//!   shim ── Order, descriptors ──▶
//!        ── Go ──────────────────▶  of a restore that was ordered ahead: the checkpoint is there
//!        ◀── Report::Begins ──────  of a task with a network of its own: CRIU has started, and has done nothing yet
//!        closes its lo
//!        ── Go ──────────────────▶
//!                                  (a dump: the task is stopped)
//!        ◀── Report::Frozen ──────
//!        takes what waits in the task's pipes
//!        ── Streams, or why not ─▶ (writes the files)
//!        ◀── Report::Held ────────  of a dump that holds the task, of a restore that waits
//!        ── Go ──────────────────▶
//!        ◀── Report::Done, or Report::Failed at any time
//! ```
//!
//! A task that moves is held on both sides at once: stopped and written down where it was, made and not yet begun where it
//! will be. One of the two is then let go, and the other is ended, by its init.
//!
//! One order a process. All are frames of [`libgrid::wire`]; the descriptors come with the order's first byte.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use libgrid::wire;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Descriptors of one order at most: init, its mark, three streams, the entrances of control groups.
const MOST_DESCRIPTORS: usize = 32;

/// What to do. The first descriptor of each is a pidfd of the task's init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Write a checkpoint.
    Dump(Dump),
    /// Make a task from one.
    Restore(Restore),
    /// Write memory of a task that runs on.
    PreDump(PreDump),
}

/// Write a round of a task's memory: see [`crate::rounds`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreDump {
    /// The folder to write its images to; it is made.
    pub folder: PathBuf,
    /// The task's user.
    pub uid: u32,
    /// Where the task sees its working folder.
    pub workdir: PathBuf,
    /// The folder of the round before; all memory is written if absent.
    pub parent: Option<PathBuf>,
}

/// Write a checkpoint of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The folder to write it to; it is made.
    pub folder: PathBuf,
    /// The task's user.
    pub uid: u32,
    /// Where the task sees its working folder.
    pub workdir: PathBuf,
    /// As in [`crate::Description`].
    pub stdio: Vec<External>,
    /// What becomes of the task when it is written.
    pub then: Then,
    /// The folder of who moves its files on a disk, which then are in no archive, and its memory, unless that was written in
    /// rounds, which then is in no image: see [`crate::memory`].
    pub ahead: Option<PathBuf>,
    /// The folder of the last round of its memory, if there were some: what is in them is left out. See [`crate::rounds`].
    pub parent: Option<PathBuf>,
    /// Of its TCP connections: [`Connections::Refused`] or [`Connections::Kept`].
    pub connections: Connections,
}

/// What becomes of a task's TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connections {
    /// The task is on the network of its node: one that has any cannot be written down.
    #[default]
    Refused,
    /// The task has a network of its own, which is closed meanwhile: they are written down, and go on where it is made.
    Kept,
    /// As before, but their other ends have gone on since: they are made as connections that have ended.
    Ended,
}

/// What becomes of a task that was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It runs on.
    RunOn,
    /// It is ended.
    End,
    /// It stays stopped until it is let go ([`Go`]), or is ended by its init.
    Hold,
}

/// The answer to [`Report::Held`]: the task runs, from here on. As a result, also that to [`Report::Begins`]. Without being asked
/// for: what a restore waits for that was ordered ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go;

/// Make the processes of a checkpoint below a new init, that waits for them.
///
/// The descriptors after init's: one that init closes once its mounts are made; the streams; the entrances of the control
/// groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The folder of the checkpoint.
    pub folder: PathBuf,
    /// Whether the checkpoint will be there later: [`Go`] says when.
    pub ahead: bool,
    /// How many streams the task has, as its description says.
    pub streams: usize,
    /// The task's user, the same that it had.
    pub uid: u32,
    /// Where the task sees its working folder, the same as before.
    pub workdir: PathBuf,
    /// Whether its processes wait for [`Go`] before their first instruction.
    pub hold: bool,
    /// The folder of who has the task's memory, where it is in no image.
    pub memory: Option<PathBuf>,
    /// Whether its files on a disk are in their place already, and in no archive.
    pub files: bool,
    /// Of its TCP connections.
    pub connections: Connections,
}

/// A standard stream that comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum External {
    /// A pipe.
    Pipe {
        /// Its inode.
        inode: u64,
    },
    /// The task's side of a terminal.
    Terminal {
        /// `st_rdev`.
        device: u64,
        /// `st_dev`.
        filesystem: u64,
    },
}

impl External {
    /// As CRIU names it.
    pub fn key(&self) -> String {
        match self {
            External::Pipe { inode } => format!("pipe:[{inode}]"),
            External::Terminal { device, filesystem } => format!("tty[{device:x}:{filesystem:x}]"),
        }
    }
}

/// The answer to [`Report::Frozen`], as a result: what the shim knows of the task's streams, or a sentence why the task is to
/// go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Bytes that the task has printed, to standard output and to standard error.
    pub printed: [u64; 2],
    /// What was typed and the task has not read, to be typed again; of a terminal, what that has not taken in.
    #[serde(with = "serde_bytes")]
    pub typed: Vec<u8>,
    /// Whether that is the end of its input.
    pub typed_end: bool,
    /// How much was typed into it in all, that included; the end counts for one byte.
    pub position: u64,
    /// What its terminal has taken in.
    pub line: Option<Line>,
}

/// What a terminal has taken in, and shown, and nobody has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Whether it gives whole lines.
    pub canonical: bool,
    /// The characters that end a line there, besides the newline; 0 for none.
    pub ends: [u8; 2],
    /// The keys that bring it there, of a terminal that knows two keys, the end of file (4) and the one that takes the next key
    /// for what it is (22).
    #[serde(with = "serde_bytes")]
    pub keys: Vec<u8>,
}

/// What `gridos-criu` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// CRIU is about to look at a task, or at the sockets that it makes: nothing is to be typed into it any more, for a key that
    /// became a signal after its processes were written down would be lost; and of a task with a network of its own, nothing
    /// that its processes send to each other may arrive from now on.
    Begins,
    /// The task is stopped, and its processes are written down.
    Frozen,
    /// The task is written down, or made, and stands still until it is let go.
    Held(Done),
    /// It is done.
    Done(Done),
    /// It is not; one sentence. A task that was to be dumped runs on.
    Failed(String),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// How long it took in all.
    pub took: Duration,
    /// How long of that a task stood still for its files and its output, after CRIU was done with it.
    pub held: Duration,
    /// Bytes of the checkpoint.
    pub bytes: u64,
}

/// What starts `gridos-criu`, and the socket to it.
///
/// # Errors
/// There is no descriptor left.
pub fn command(program: &Path) -> io::Result<(Command, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::from(OwnedFd::from(its)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/");
    Ok((command, ours))
}

/// Gives an order, or another message with descriptors.
///
/// # Errors
/// Where the socket takes it not, or there are too many descriptors.
pub fn send(socket: &UnixStream, order: &impl Serialize, descriptors: &[RawFd]) -> io::Result<()> {
    if descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::other("too many descriptors for one order"));
    }
    let frame = wire::frame(order).map_err(io::Error::other)?;
    let control = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&frame[..1])], &control, MsgFlags::empty(), None)?;
    let mut socket = socket;
    socket.write_all(&frame[1..])
}

/// Takes what [`send`] gives.
///
/// # Errors
/// Where none comes.
pub(crate) fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut first = [0; 1];
    let mut space = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut descriptors = Vec::new();
    {
        let mut parts = [IoSliceMut::new(&mut first)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                // SAFETY: the kernel opened them for this process, and nobody else knows of them.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    let order = wire::read(&mut first.as_slice().chain(socket)).map_err(io::Error::other)?;
    Ok((order, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_arrives_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let order = Order::Restore(Restore {
            folder: "/x/y".into(),
            ahead: false,
            streams: 2,
            uid: 1_900_000_000,
            workdir: "/w".into(),
            hold: true,
            memory: Some("/m".into()),
            files: true,
            connections: Connections::Kept,
        });
        send(&ours, &order, &[near.as_raw_fd(), near.as_raw_fd()]).unwrap();
        drop(near);
        let (received, descriptors) = receive::<Order>(&theirs).unwrap();
        assert_eq!((received, descriptors.len()), (order.clone(), 2));
        let mut copy = UnixStream::from(descriptors.into_iter().next_back().unwrap());
        copy.write_all(b"x").unwrap();
        let mut byte = [0; 1];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(send(&ours, &order, &[0; MOST_DESCRIPTORS + 1]).is_err());
        drop(ours);
        assert!(receive::<Order>(&theirs).is_err());
    }

    #[test]
    fn streams_are_named_as_criu_names_them() {
        assert_eq!(External::Pipe { inode: 42 }.key(), "pipe:[42]");
        assert_eq!(External::Terminal { device: 0x8803, filesystem: 0x1d }.key(), "tty[8803:1d]");
    }
}
