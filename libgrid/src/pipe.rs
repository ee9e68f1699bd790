//! Named pipes of the grid: what some write, wherever they are, others read, wherever they are.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use libgrid::blocking::Grid;
//! use libgrid::pipe::{PipeSpec, Reader, Writer};
//!
//! Grid::connect()?.create_pipe(&PipeSpec::new("frames"))?;
//! let mut writer = Writer::open(&"frames".parse()?)?;
//! writer.write_all(b"hello")?;
//! writer.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A pipe is on the node where it was made, and is named `NODE:NAME`, or `NAME` where no other node has one of that name. It
//! behaves as a FIFO does: each byte goes to one reader; a write of up to [`ATOMIC`] bytes comes out in one piece; writers wait
//! while it is full; a reader waits for the first writer, and comes to the end once all writers have closed and all is read.
//!
//! | what happens | then |
//! | --- | --- |
//! | a reader goes before it said that it has what it got | the next reader gets that again |
//! | a writer goes before [`Writer::close`] returned | what came of it stays; it does not know how much that is |
//! | the agent of the pipe's node is killed | open ends fail; with `spill` all that was written stays, without it is lost |
//! | an agent is killed that carries between a pipe and a task's FIFO | it goes on there, with no byte lost and none twice |
//! | that machine stops | with `spill`, what the disk has stays |
//!
//! Its owner, root, and with `shared` every user of the VO may use it; a task's processes may what its job's owner may.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::GridError;
use crate::blocking::{Grid, socket_path};
use crate::control::{Chunk, Reply, Request, Response};
use crate::ids::{NodeId, Run};
use crate::units::Bytes;
use crate::wire::{self, Hello};

/// Bytes of a write that come out in one piece.
pub const ATOMIC: usize = 64 << 10;

/// What a pipe holds in memory at most.
pub const MOST_CAPACITY: Bytes = Bytes(64 << 20);

/// What it holds unless something else is asked for.
pub const CAPACITY: Bytes = Bytes(1 << 20);

/// Chunks that a writer sends before the first of them is answered.
const AHEAD: usize = 16;

/// The longest name.
const LONGEST: usize = 64;

/// Which pipe: `NAME`, or `NODE:NAME`.
///
/// ```
/// use libgrid::pipe::PipeName;
/// let name: PipeName = "node2:frames".parse().unwrap();
/// assert_eq!((name.node.as_deref(), &name.name[..]), (Some("node2"), "frames"));
/// assert!("a/b".parse::<PipeName>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeName {
    /// The name or number of its node; wherever it is, if absent.
    pub node: Option<String>,
    /// Its name there.
    pub name: String,
}

/// The text is no name of a pipe.
///
/// ```
/// let error = "".parse::<libgrid::pipe::PipeName>().unwrap_err();
/// assert!(error.to_string().contains("is no name of a pipe"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a pipe: write [NODE:]NAME, for a task with :r or :w behind it; a name has 1 to 64 letters, digits, \
     dashes, dots and underscores, and does not begin with a dot"
)]
pub struct ParsePipeError(String);

/// A pipe that a task has as a FIFO of its name in its working folder: `[NODE:]NAME:r` or `:w`.
///
/// ```
/// use libgrid::pipe::{Direction, PipeUse};
/// let one: PipeUse = "node2:frames:w".parse().unwrap();
/// assert_eq!((one.pipe.name.as_str(), one.direction), ("frames", Direction::Write));
/// assert_eq!(one.to_string(), "node2:frames:w");
/// assert!("frames".parse::<PipeUse>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeUse {
    /// Which.
    pub pipe: PipeName,
    /// What the program does with it.
    pub direction: Direction,
}

/// What a program does with a pipe.
///
/// ```
/// assert_ne!(libgrid::pipe::Direction::Read, libgrid::pipe::Direction::Write);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads from it.
    Read,
    /// It writes to it.
    Write,
}

/// A pipe to be made.
///
/// ```
/// use libgrid::pipe::{CAPACITY, PipeSpec};
/// assert_eq!(PipeSpec::new("frames").capacity, CAPACITY);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeSpec {
    /// Its name on its node.
    pub name: String,
    /// What it holds before writers wait: from [`ATOMIC`] to [`MOST_CAPACITY`].
    pub capacity: Bytes,
    /// How much more it holds, on the disk; then all of it is there, and outlives the agent.
    pub spill: Option<Bytes>,
    /// Whether every user of the VO may use it.
    pub shared: bool,
}

/// A pipe that is there.
///
/// ```
/// # fn show(pipe: libgrid::pipe::PipeStatus) {
/// println!("{}: {} bytes wait", pipe.spec.name, pipe.buffered.0);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeStatus {
    /// What was asked for.
    pub spec: PipeSpec,
    /// Where it is.
    pub node: NodeId,
    /// `user@node`.
    pub owner: String,
    /// Bytes that were written and are not read.
    pub buffered: Bytes,
    /// How many read and write now.
    pub readers: u32,
    /// See `readers`.
    pub writers: u32,
}

/// What can be asked about pipes.
///
/// ```
/// use libgrid::pipe::PipeRequest;
/// assert_ne!(PipeRequest::List { everywhere: true }, PipeRequest::List { everywhere: false });
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipeRequest {
    /// Make one on this node: [`Reply::Done`].
    Create(PipeSpec),
    /// Those that the caller may use: [`PipeReply::Pipes`].
    List {
        /// On the other nodes, too.
        everywhere: bool,
    },
    /// Remove one, with what is in it: [`Reply::Done`].
    Remove(PipeName),
    /// Read: [`PipeReply::Bytes`], each of which the client answers by an empty [`Chunk`] once it has them, then
    /// [`Reply::Done`].
    Read(PipeName),
    /// Write: [`Reply::Done`]; then the client sends [`Chunk`]s, an empty one last, and gets [`Reply::Done`] for each that is
    /// taken.
    Write(PipeName),
    /// Read for a FIFO of a run, by an agent that may be killed and come again: [`Reply::Done`], and then what it asks for by
    /// [`FromReader`].
    ReadFor {
        /// Which.
        pipe: PipeName,
        /// Whose FIFO it is. One of a later epoch takes the place of the one before.
        run: Run,
        /// The part that the agent has for good, and may not have said so.
        has: Option<Part>,
        /// Whether this FIFO has had something of the pipe before.
        began: bool,
    },
    /// Write for a FIFO of a run, by an agent that may be killed and come again: [`PipeReply::Taken`], and then [`Reply::Done`]
    /// for each [`FromWriter`].
    WriteFor {
        /// Which.
        pipe: PipeName,
        /// Whose FIFO it is. One of a later epoch comes after the one before has brought what it has.
        run: Run,
        /// The number of the first chunk that it will send, from 1.
        next: u64,
    },
}

/// What an agent says that reads for a FIFO.
///
/// ```
/// use libgrid::pipe::FromReader;
/// assert_ne!(FromReader::Next, FromReader::Has);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromReader {
    /// The next part, please: [`PipeReply::Part`], or at the end [`PipeReply::End`].
    Next,
    /// It has that part for good: [`Reply::Done`].
    Has,
    /// It reads no more for now: the run after this one goes on.
    Leaves,
    /// It reads no more.
    Closes,
}

/// What an agent says that writes for a FIFO. Without [`FromWriter::Leaves`] or [`FromWriter::Closes`] at the end it counts as a
/// writer for a while.
///
/// ```
/// use libgrid::pipe::FromWriter;
/// assert_ne!(FromWriter::Chunk(vec![1]), FromWriter::Closes);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWriter {
    /// The next chunk, at most [`ATOMIC`].
    Chunk(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It writes no more: the run after this one goes on.
    Leaves,
    /// It writes no more.
    Closes,
}

/// Where a part of what went through a pipe was in it.
///
/// ```
/// use libgrid::pipe::Part;
/// assert_eq!(Part { at: 3, len: 4 }.end(), 7);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The bytes before it.
    pub at: u64,
    /// Its own.
    pub len: u64,
}

impl Part {
    /// The bytes up to its end.
    pub const fn end(self) -> u64 {
        self.at.saturating_add(self.len)
    }
}

/// What the agent answers about pipes.
///
/// ```
/// use libgrid::pipe::PipeReply;
/// assert_ne!(PipeReply::Bytes(vec![1]), PipeReply::Bytes(vec![2]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipeReply {
    /// Pipes, in the order of nodes and names, and the nodes that did not answer.
    Pipes {
        /// The pipes.
        pipes: Vec<PipeStatus>,
        /// Nodes whose pipes are missing.
        silent: Vec<NodeId>,
    },
    /// What was read, at most [`crate::control::MAX_CHUNK`].
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The same for [`PipeRequest::ReadFor`].
    Part {
        /// The bytes that were given out before it.
        at: u64,
        /// What was read.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// All writers have closed, and all is read.
    End,
    /// The number of the last chunk that this run wrote.
    Taken(u64),
}

/// The reading end of a pipe.
///
/// ```no_run
/// use std::io::Read;
/// let mut text = String::new();
/// libgrid::pipe::Reader::open(&"node2:frames".parse()?)?.read_to_string(&mut text)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reader {
    stream: UnixStream,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
}

/// The writing end of a pipe.
///
/// ```no_run
/// use std::io::Write;
/// let mut writer = libgrid::pipe::Writer::open(&"frames".parse()?)?;
/// writer.write_all(b"hello")?;
/// writer.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    stream: UnixStream,
    /// Chunks that were not answered.
    pending: usize,
}

// === impl PipeName ===

impl FromStr for PipeName {
    type Err = ParsePipeError;

    fn from_str(text: &str) -> Result<Self, ParsePipeError> {
        let (node, name) = match text.split_once(':') {
            Some((node, name)) => (Some(node), name),
            None => (None, text),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let sound = |part: &str| {
            (1..=LONGEST).contains(&part.len()) && part.chars().all(plain) && !part.starts_with('.')
        };
        if !sound(name) || !node.is_none_or(sound) {
            return Err(ParsePipeError(text.to_owned()));
        }
        Ok(Self { node: node.map(str::to_owned), name: name.to_owned() })
    }
}

impl fmt::Display for PipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node}:{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

// === impl PipeUse ===

impl FromStr for PipeUse {
    type Err = ParsePipeError;

    fn from_str(text: &str) -> Result<Self, ParsePipeError> {
        let bad = || ParsePipeError(text.to_owned());
        let (pipe, direction) = text.rsplit_once(':').ok_or_else(bad)?;
        let direction = match direction {
            "r" => Direction::Read,
            "w" => Direction::Write,
            _ => return Err(bad()),
        };
        Ok(Self { pipe: pipe.parse().map_err(|_| bad())?, direction })
    }
}

impl fmt::Display for PipeUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Read => "r",
            Direction::Write => "w",
        };
        write!(f, "{}:{direction}", self.pipe)
    }
}

impl Serialize for PipeUse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PipeUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl PipeSpec ===

impl PipeSpec {
    /// A pipe of this name, for its owner, in memory.
    ///
    /// ```
    /// assert!(libgrid::pipe::PipeSpec::new("x").spill.is_none());
    /// ```
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), capacity: CAPACITY, spill: None, shared: false }
    }
}

// === impl Grid ===

impl Grid {
    /// Makes a pipe on this node.
    ///
    /// # Errors
    /// Where there is one of this name, or its size cannot be.
    ///
    /// ```no_run
    /// # use libgrid::{blocking::Grid, pipe::PipeSpec};
    /// Grid::connect()?.create_pipe(&PipeSpec::new("frames"))?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn create_pipe(&mut self, spec: &PipeSpec) -> Result<(), GridError> {
        match self.ask(&Request::Pipe(PipeRequest::Create(spec.clone())))? {
            Reply::Done => Ok(()),
            _ => Err(GridError::Unexpected),
        }
    }
}

/// Connects, and asks for one end of a pipe.
fn begin(path: &std::path::Path, request: PipeRequest) -> Result<UnixStream, GridError> {
    let connected = UnixStream::connect(path);
    let mut stream = connected.map_err(|source| GridError::NoAgent { path: path.to_owned(), source })?;
    Hello::ours().write(&mut stream)?;
    Hello::read(&mut stream)?.check()?;
    wire::write(&mut stream, &Request::Pipe(request))?;
    Ok(stream)
}

fn answer(stream: &mut UnixStream) -> Result<Reply, GridError> {
    Ok(wire::read::<Response>(stream)??)
}

// === impl Reader ===

impl Reader {
    /// Opens a pipe for reading, by the agent on [`socket_path`].
    ///
    /// # Errors
    /// Where there is no agent. That there is no such pipe is told by the first read.
    pub fn open(pipe: &PipeName) -> Result<Self, GridError> {
        Self::open_at(&socket_path(), pipe)
    }

    /// The same by the agent on this socket.
    ///
    /// # Errors
    /// As of [`Reader::open`].
    ///
    /// ```no_run
    /// # use libgrid::{GridError, pipe::{PipeName, Reader}};
    /// # fn f(pipe: &PipeName) -> Result<(), GridError> {
    /// let reader = Reader::open_at("/run/gridos/control.sock".as_ref(), pipe)?;
    /// # Ok(()) }
    /// ```
    pub fn open_at(agent: &std::path::Path, pipe: &PipeName) -> Result<Self, GridError> {
        let stream = begin(agent, PipeRequest::Read(pipe.clone()))?;
        Ok(Self { stream, bytes: Vec::new(), at: 0, ended: false })
    }
}

/// What was returned is taken for had when the next is asked for.
impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended {
            return Ok(0);
        }
        if self.at == self.bytes.len() {
            if !self.bytes.is_empty() {
                wire::write(&mut self.stream, &Chunk(Vec::new())).map_err(io::Error::other)?;
            }
            match answer(&mut self.stream).map_err(io::Error::other)? {
                Reply::Pipe(PipeReply::Bytes(bytes)) => (self.bytes, self.at) = (bytes, 0),
                Reply::Done => self.ended = true,
                _ => return Err(io::Error::other(GridError::Unexpected)),
            }
            if self.ended {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

// === impl Writer ===

impl Writer {
    /// Opens a pipe for writing, by the agent on [`socket_path`].
    ///
    /// # Errors
    /// Where there is no agent, or no such pipe, or the caller may not use it.
    pub fn open(pipe: &PipeName) -> Result<Self, GridError> {
        Self::open_at(&socket_path(), pipe)
    }

    /// The same by the agent on this socket.
    ///
    /// # Errors
    /// As of [`Writer::open`].
    ///
    /// ```no_run
    /// # use libgrid::{GridError, pipe::{PipeName, Writer}};
    /// # fn f(pipe: &PipeName) -> Result<(), GridError> {
    /// let writer = Writer::open_at("/run/gridos/control.sock".as_ref(), pipe)?;
    /// # Ok(()) }
    /// ```
    pub fn open_at(agent: &std::path::Path, pipe: &PipeName) -> Result<Self, GridError> {
        let mut stream = begin(agent, PipeRequest::Write(pipe.clone()))?;
        match answer(&mut stream)? {
            Reply::Done => Ok(Self { stream, pending: 0 }),
            _ => Err(GridError::Unexpected),
        }
    }

    /// Sends a chunk, and waits until no more than so many are not answered.
    fn chunk(&mut self, bytes: &[u8], most: usize) -> Result<(), GridError> {
        if let Err(broken) = wire::write(&mut self.stream, &Chunk(bytes.to_vec())) {
            // Why one before it was not taken may have been said.
            return Err(self
                .answers(0)
                .err()
                .filter(|why| matches!(why, GridError::Refused(_)))
                .unwrap_or(broken.into()));
        }
        self.pending += 1;
        self.answers(most)
    }

    /// Takes answers, until no more than so many are missing.
    fn answers(&mut self, most: usize) -> Result<(), GridError> {
        while self.pending > most {
            match answer(&mut self.stream)? {
                Reply::Done => self.pending -= 1,
                _ => return Err(GridError::Unexpected),
            }
        }
        Ok(())
    }

    /// Closes it, once all that was written has been taken.
    ///
    /// # Errors
    /// Where that is not known: the pipe was removed, or its agent ended.
    pub fn close(mut self) -> Result<(), GridError> {
        self.chunk(&[], 0)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(ATOMIC)];
        if !bytes.is_empty() {
            self.chunk(bytes, AHEAD).map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
