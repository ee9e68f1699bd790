//! The connection to the agent, for programs without an async runtime.
//!
//! One [`Grid`] is one connection; requests are answered in order. Waiting, following and typing take a
//! connection of their own, which these methods open by themselves.

mod keyboard;

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::GridError;
use crate::control::{
    Chunk, DEFAULT_SOCKET, Kind, MAX_CHUNK, Reply, Request, Response, Stream, Streams, Submission, Submitted,
};
use crate::copy::{Copy, Landed, Moment};
use crate::ids::{JobId, NodeId, Selector, TaskId};
use crate::spec::JobSpec;
use crate::status::{JobStatus, JobSummary, MoveMode, MovePhase, Moved};
use crate::wire::{self, Hello, WireError};

pub use self::keyboard::Keyboard;

/// A connection to the agent of this machine.
///
/// ```no_run
/// use libgrid::{blocking::Grid, spec::JobSpec};
/// let mut grid = Grid::connect()?;
/// let job = grid.submit(JobSpec::command(["/bin/true"]))?;
/// println!("{job} ended with {:?}", grid.wait(job)?.exit_status);
/// # Ok::<(), libgrid::GridError>(())
/// ```
#[derive(Debug)]
pub struct Grid {
    stream: UnixStream,
    path: PathBuf,
    /// A second connection, that waiting took and left open.
    second: Mutex<Option<Box<Grid>>>,
}

/// How far a task is that moves.
///
/// ```no_run
/// # fn show(moving: &libgrid::blocking::Moving) {
/// println!("{}, {} bytes of its memory so far", moving.phase, moving.bytes);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    /// Where it is.
    pub from: NodeId,
    /// Whereto it moves.
    pub to: NodeId,
    /// How far it is.
    pub phase: MovePhase,
    /// Bytes of its memory that came while it runs.
    pub bytes: u64,
}

/// How long an agent may take to come back before whoever waits for something gives up.
const RESTART: Duration = Duration::from_secs(30);

/// How long an agent may take at least to say how a job is.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// How often it is tried.
const RETRY: Duration = Duration::from_millis(50);

/// How long a copy that is interrupted may bring nothing until it is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// The longest pause between two tries of a copy.
const LONGEST: Duration = Duration::from_secs(5);

/// Whether the connection ended, as it does when the agent is stopped or killed.
fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// The socket that the environment (`GRIDOS_SOCKET`) names, or else [`DEFAULT_SOCKET`].
///
/// ```
/// assert!(libgrid::blocking::socket_path().is_absolute());
/// ```
pub fn socket_path() -> PathBuf {
    let named = env::var_os("GRIDOS_SOCKET").filter(|path| !path.is_empty());
    named.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}

impl Grid {
    /// Connects to the agent on [`socket_path`].
    ///
    /// # Errors
    /// [`GridError::NoAgent`], or [`GridError::Wire`] where its version differs.
    ///
    /// ```no_run
    /// let grid = libgrid::blocking::Grid::connect()?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn connect() -> Result<Self, GridError> {
        Self::connect_to(socket_path())
    }

    /// Connects to the agent on this socket.
    ///
    /// # Errors
    /// As [`Grid::connect`].
    ///
    /// ```
    /// assert!(libgrid::blocking::Grid::connect_to("/nowhere").is_err());
    /// ```
    pub fn connect_to(path: impl AsRef<Path>) -> Result<Self, GridError> {
        let path = path.as_ref().to_owned();
        let mut stream =
            UnixStream::connect(&path).map_err(|source| GridError::NoAgent { path: path.clone(), source })?;
        Hello::ours().write(&mut stream)?;
        Hello::read(&mut stream)?.check()?;
        Ok(Self { stream, path, second: Mutex::default() })
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// [`GridError::Refused`] where the agent cannot, [`GridError::Wire`] where the connection broke.
    ///
    /// ```no_run
    /// use libgrid::control::Request;
    /// let reply = libgrid::blocking::Grid::connect()?.ask(&Request::Nodes)?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn ask(&mut self, request: &Request) -> Result<Reply, GridError> {
        self.send(request)?;
        self.receive()
    }

    /// Sends one request without waiting; [`Grid::receive`] takes the answers in order.
    ///
    /// # Errors
    /// [`GridError::Wire`]; [`GridError::Refused`] where the agent takes no more connections of this user.
    ///
    /// ```no_run
    /// # use libgrid::control::Request;
    /// let mut grid = libgrid::blocking::Grid::connect()?;
    /// grid.send(&Request::Nodes)?;
    /// grid.send(&Request::Agent)?;
    /// let (nodes, agent) = (grid.receive()?, grid.receive()?);
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn send(&mut self, request: &Request) -> Result<(), GridError> {
        let Err(broken) = wire::write(&mut self.stream, request) else { return Ok(()) };
        // Of one that is not let in, the agent reads nothing, and says why.
        match self.receive() {
            Err(refused @ GridError::Refused(_)) => Err(refused),
            _ => Err(broken.into()),
        }
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// As [`Grid::ask`].
    ///
    /// ```no_run
    /// # let mut grid = libgrid::blocking::Grid::connect()?;
    /// let reply = grid.receive()?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn receive(&mut self) -> Result<Reply, GridError> {
        Ok(wire::read::<Response>(&mut self.stream)??)
    }

    /// Submits a job from the current folder, which results come back to, and where the agent finds what is staged in.
    ///
    /// # Errors
    /// [`GridError::Refused`] where the job cannot be accepted.
    ///
    /// ```no_run
    /// # use libgrid::{blocking::Grid, spec::JobSpec};
    /// let job = Grid::connect()?.submit(JobSpec::command(["/bin/hostname"]))?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn submit(&mut self, spec: JobSpec) -> Result<JobId, GridError> {
        let folder = env::current_dir()?;
        let reply = self.ask(&Request::Submit(Box::new(Submission::new(spec, folder))))?;
        submitted(reply).map(|submitted| submitted.job)
    }

    /// Submits a job whose inputs are the tar archive that `inputs` writes, and tells of it what the agent does.
    ///
    /// # Errors
    /// As [`Grid::submit`]; [`GridError::Upload`] where `inputs` failed, and then nothing was submitted.
    ///
    /// ```no_run
    /// # use libgrid::{blocking::Grid, control::Submission, spec::JobSpec};
    /// let submission = Submission::new(JobSpec::command(["./sim"]), "/home/me");
    /// let job = Grid::connect()?.submit_with(submission, |mut to| {
    ///     std::io::copy(&mut std::fs::File::open("inputs.tar")?, &mut to).map(drop)
    /// })?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn submit_with(
        &mut self,
        submission: Submission,
        inputs: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Submitted, GridError> {
        self.send(&Request::Submit(Box::new(Submission { upload: true, ..submission })))?;
        let mut chunks =
            Chunks { to: &mut self.stream, buffer: Vec::with_capacity(MAX_CHUNK), broken: false };
        match inputs(&mut chunks).and_then(|()| chunks.finish()) {
            Ok(()) => submitted(self.receive()?),
            // The agent stopped reading because it refused: its answer says why.
            Err(_) if chunks.broken => submitted(self.receive()?),
            Err(error) => {
                // Without the empty chunk, the agent forgets the job when the connection ends.
                self.stream.shutdown(std::net::Shutdown::Both).ok();
                Err(GridError::Upload(error))
            }
        }
    }

    /// One job with a page of its tasks.
    ///
    /// # Errors
    /// [`GridError::Refused`] where there is no such job.
    ///
    /// ```no_run
    /// let status = libgrid::blocking::Grid::connect()?.job("j1.1".parse().unwrap())?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn job(&mut self, job: Selector) -> Result<JobStatus, GridError> {
        match self.ask(&Request::Job { job, from: 0 })? {
            Reply::Job(status) => Ok(*status),
            _ => Err(GridError::Unexpected),
        }
    }

    /// Waits until a job is done.
    ///
    /// # Errors
    /// As [`Grid::job`].
    ///
    /// ```no_run
    /// # let job = libgrid::ids::JobId::from_u64(0x1_0000_0001);
    /// let summary = libgrid::blocking::Grid::connect()?.wait(job)?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn wait(&self, job: JobId) -> Result<JobSummary, GridError> {
        self.watch(Selector::Job(job), |_| ()).map(|status| status.summary)
    }

    /// Waits until a job, or one task of it, is done, and shows every change to `seen`. Outlasts a restart of the
    /// agent.
    ///
    /// # Errors
    /// As [`Grid::job`].
    ///
    /// ```no_run
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// grid.watch("j1.1".parse().unwrap(), |now| println!("{} done", now.summary.counts.done()))?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn watch(&self, job: Selector, seen: impl FnMut(&JobStatus)) -> Result<JobStatus, GridError> {
        self.watch_until(job, None, seen)
    }

    /// As [`Grid::watch`], for so long at most: nothing if the job is not done by then. An agent that is restarted meanwhile
    /// may take longer.
    ///
    /// # Errors
    /// As [`Grid::job`].
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// match grid.watch_for("j1.1".parse().unwrap(), Duration::from_secs(60), |_| ())? {
    ///     Some(done) => println!("it ended with {:?}", done.summary.exit_status),
    ///     None => println!("it goes on"),
    /// }
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn watch_for(
        &self,
        job: Selector,
        limit: Duration,
        seen: impl FnMut(&JobStatus),
    ) -> Result<Option<JobStatus>, GridError> {
        match self.watch_until(job, Instant::now().checked_add(limit), seen) {
            Err(GridError::Wire(WireError::Io(error))) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn watch_until(
        &self,
        job: Selector,
        until: Option<Instant>,
        mut seen: impl FnMut(&JobStatus),
    ) -> Result<JobStatus, GridError> {
        self.outlast(|own| {
            own.send(&Request::Wait { job })?;
            // It may be done, however little time is left. Zero would mean none.
            let mut least = FIRST_WORD;
            loop {
                own.stream.set_read_timeout(until.map(|until| (until - Instant::now()).max(least)))?;
                least = Duration::from_millis(1);
                match own.receive()? {
                    Reply::Job(status) => {
                        seen(&status);
                        let done = match job {
                            Selector::Job(_) => status.summary.is_done(),
                            Selector::Task(_) => status.tasks.iter().all(|task| task.outcome.is_some()),
                        };
                        if done {
                            own.stream.set_read_timeout(None)?;
                            return Ok(*status);
                        }
                    }
                    _ => return Err(GridError::Unexpected),
                }
            }
        })
    }

    /// Does something that goes on over a connection of its own, and again over another when the agent is restarted
    /// meanwhile.
    fn outlast<T>(&self, mut work: impl FnMut(&mut Self) -> Result<T, GridError>) -> Result<T, GridError> {
        let second = || self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = second().take().filter(|kept| kept.is_quiet());
        let mut own = kept.map_or_else(|| Self::connect_to(&self.path).map(Box::new), Ok)?;
        loop {
            match work(&mut own) {
                Err(GridError::Wire(WireError::Io(error))) if is_broken(&error) => {
                    own = Box::new(self.again()?);
                }
                Ok(done) => {
                    *second() = Some(own);
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the connection is open, and nothing is left in it. The agent closes it after some requests that go on.
    fn is_quiet(&self) -> bool {
        let look = || {
            self.stream.set_nonblocking(true)?;
            let read = (&self.stream).read(&mut [0]);
            self.stream.set_nonblocking(false)?;
            read
        };
        matches!(look(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// A connection to the agent that takes the place of one that was restarted.
    fn again(&self) -> Result<Self, GridError> {
        let start = Instant::now();
        loop {
            let absent = match Self::connect_to(&self.path) {
                Err(absent @ GridError::NoAgent { .. }) => absent,
                // It died with us in the queue.
                Err(GridError::Wire(WireError::Io(error))) if is_broken(&error) => error.into(),
                other => return other,
            };
            if start.elapsed() > RESTART {
                return Err(absent);
            }
            thread::sleep(RETRY);
        }
    }

    /// Hands what a task writes to `sink`, with the stream and the offset of each piece; with `follow` until
    /// the task ends. An error of `sink` ends it, as [`GridError::Output`]. Outlasts a restart of the agent.
    ///
    /// # Errors
    /// As [`Grid::job`].
    ///
    /// ```no_run
    /// # use libgrid::control::Streams;
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// grid.logs("j1.1/0".parse().unwrap(), Streams::Both, true, |_, _, bytes| {
    ///     print!("{}", String::from_utf8_lossy(bytes));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn logs(
        &self,
        task: TaskId,
        streams: Streams,
        follow: bool,
        mut sink: impl FnMut(Stream, u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), GridError> {
        let mut from = [0; 2];
        self.outlast(|own| {
            own.send(&Request::Logs { task, streams, from, follow })?;
            loop {
                match own.receive()? {
                    Reply::Output { stream, offset, bytes } => {
                        // With what still comes, the connection is of no more use.
                        sink(stream, offset, &bytes).map_err(GridError::Output)?;
                        from[usize::from(stream == Stream::Stderr)] = offset + bytes.len() as u64;
                    }
                    Reply::Done => return Ok(()),
                    _ => return Err(GridError::Unexpected),
                }
            }
        })
    }

    /// Copies files between nodes. Whatever interrupts it, it is tried again, and goes on where it ended, for as long
    /// as something moves at least once in ten minutes.
    ///
    /// # Errors
    /// What trying again does not mend: a file that cannot be read or written, a right that the caller has not.
    ///
    /// ```no_run
    /// use libgrid::copy::{Copy, Moment};
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// let copy = Copy::new(["/tmp/big.h5".parse().unwrap()], "node3:/data/".parse().unwrap());
    /// let landed = grid.copy(&copy, |moment| match moment {
    ///     Moment::Progress(progress) => println!("{} of {}", progress.bytes, progress.of_bytes),
    ///     Moment::Interrupted(why) => println!("waiting: {why}"),
    /// })?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn copy(&self, copy: &Copy, mut seen: impl FnMut(Moment<'_>)) -> Result<Landed, GridError> {
        let mut moved = Instant::now();
        let mut most = 0;
        let mut pause = RETRY;
        loop {
            let tried = self.outlast(|own| {
                own.send(&Request::Copy(Box::new(copy.clone())))?;
                loop {
                    match own.receive()? {
                        Reply::Copying(progress) => {
                            if progress.bytes > most {
                                (most, moved, pause) = (progress.bytes, Instant::now(), RETRY);
                            }
                            seen(Moment::Progress(&progress));
                        }
                        Reply::Copied(landed) => return Ok(landed),
                        _ => return Err(GridError::Unexpected),
                    }
                }
            });
            let failure = match tried {
                Err(GridError::Refused(failure)) => failure,
                done => return done,
            };
            if failure.kind != Kind::Unavailable || moved.elapsed() > PATIENCE {
                return Err(failure.into());
            }
            seen(Moment::Interrupted(&failure.message));
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Moves a task that runs to another node, the best one if none is named, and tells each phase. The move goes on even if
    /// this connection ends.
    ///
    /// # Errors
    /// What stops the task from moving; it then runs on where it was.
    ///
    /// ```no_run
    /// use libgrid::status::MoveMode;
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// let moved = grid.migrate("j2.1/0".parse().unwrap(), Some("node3"), MoveMode::Auto, |moving| {
    ///     println!("from node {} to node {}: {}", moving.from, moving.to, moving.phase);
    /// })?;
    /// println!("it stood still for {:?}", moved.stopped);
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn migrate(
        &self,
        task: TaskId,
        to: Option<&str>,
        mode: MoveMode,
        mut seen: impl FnMut(Moving),
    ) -> Result<Moved, GridError> {
        let mut own = self.again()?;
        own.send(&Request::Migrate { task, to: to.map(Into::into), mode, check: false })?;
        loop {
            match own.receive()? {
                Reply::Moving { from, to, phase, bytes } => seen(Moving { from, to, phase, bytes }),
                Reply::Moved(moved) => return Ok(moved),
                _ => return Err(GridError::Unexpected),
            }
        }
    }

    /// Has all that runs on a node moved to others, and lets it take no more tasks; with `undo`, lets it take tasks again.
    /// What comes of each task is told: it moved, or why it stays.
    ///
    /// # Errors
    /// Where there is no such node, or the caller is not root.
    ///
    /// ```no_run
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// grid.drain("node2", false, Default::default(), |task, outcome| match outcome {
    ///     Ok(moved) => println!("{task} runs on node {}", moved.to),
    ///     Err(why) => println!("{task} stays: {why}"),
    /// })?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn drain(
        &self,
        node: &str,
        undo: bool,
        mode: MoveMode,
        mut seen: impl FnMut(TaskId, Result<Moved, String>),
    ) -> Result<(), GridError> {
        let mut own = self.again()?;
        own.send(&Request::Drain { node: node.into(), undo, mode })?;
        loop {
            match own.receive()? {
                Reply::Relocated { task, moved: Some(moved), .. } => seen(task, Ok(moved)),
                Reply::Relocated { task, stayed, .. } => seen(task, Err(stayed.unwrap_or_default())),
                Reply::Done => return Ok(()),
                _ => return Err(GridError::Unexpected),
            }
        }
    }

    /// Opens the typing half of a task that was submitted with input.
    ///
    /// # Errors
    /// As [`Grid::job`]; what the agent refuses shows at the first [`Keyboard::send`] or [`Keyboard::closed`].
    ///
    /// ```no_run
    /// # let grid = libgrid::blocking::Grid::connect()?;
    /// let keyboard = grid.type_into("j1.1/0".parse().unwrap())?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn type_into(&self, task: TaskId) -> Result<Keyboard, GridError> {
        let mut grid = Self::connect_to(&self.path)?;
        grid.send(&Request::Input { task })?;
        Ok(Keyboard { grid, task })
    }

    /// The agent's socket.
    ///
    /// ```no_run
    /// let grid = libgrid::blocking::Grid::connect()?;
    /// let another = libgrid::blocking::Grid::connect_to(grid.path())?;
    /// # Ok::<(), libgrid::GridError>(())
    /// ```
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Cuts what is written into [`Chunk`] frames.
struct Chunks<'a> {
    to: &'a mut UnixStream,
    buffer: Vec<u8>,
    /// Whether it was the agent's side that failed, not the reading of the inputs.
    broken: bool,
}

impl Chunks<'_> {
    fn send(&mut self) -> io::Result<()> {
        let chunk = Chunk(std::mem::replace(&mut self.buffer, Vec::with_capacity(MAX_CHUNK)));
        wire::write(self.to, &chunk).map_err(|error| {
            self.broken = true;
            io::Error::other(error)
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.send()
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_CHUNK - self.buffer.len();
        let taken = bytes.take(room as u64).read_to_end(&mut self.buffer)?;
        if self.buffer.len() == MAX_CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn submitted(reply: Reply) -> Result<Submitted, GridError> {
    match reply {
        Reply::Submitted(submitted) => Ok(submitted),
        _ => Err(GridError::Unexpected),
    }
}
