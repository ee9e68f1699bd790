//! Pipes for programs that know nothing of them: a FIFO in the task's working folder, and here who carries bytes between it and
//! the pipe (`gridctl submit --pipe NAME:r`).
//!
//! ```text
//!   w   program ─▶ FIFO ─splice─▶ hand ─chunk, numbered─▶ pipe, which says that it has it; then the hand is cleared
//!   r   program ◀─ FIFO ◀─splice─ hand ◀─part, with its place─ pipe, which is told that the hand has it, and says that it knows
//! ```
//!
//! **The agent may be killed at any moment.** The shim keeps the other end of each FIFO, and what is on its way is in the
//! [`Hand`], which the shim keeps, too. The next agent begins with what is in there: the pipe knows by its number or its place
//! whether it has been there before, and has kept the end for it meanwhile ([`super::pipe`]).
//!
//! **While a task moves**, what is in a FIFO that it reads moves along in its image; what is in one that it writes does not, and
//! is taken from there once the task stands still. Before it is stopped, every hand has to be empty: [`Fifos::may_leave`] has
//! those who bring bytes stop, and says whether they are; until then the task is not ready to leave. A FIFO gets something only
//! when it is empty, and all of it at once. At the destination the FIFO is opened before the program takes a step, so that it
//! finds neither a reader nor a writer missing.
//!
//! A task that goes on from an older checkpoint finds in the FIFO what was there then.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grid_run::fifo::{END, Hand, SIZE, held, open_end};
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::ids::Run;
use libgrid::pipe::{
    ATOMIC, Direction, FromReader, FromWriter, Part, PipeName, PipeReply, PipeRequest, PipeUse,
};
use libgrid::wire::{WireError, stream};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use serde::Serialize;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::caller::Caller;
use crate::grid::Grid;
use crate::runner::Query;

/// How often a FIFO that has nothing to give or to take is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How often it is tried again to reach a pipe, or the home of a job.
const AGAIN: Duration = Duration::from_secs(1);

/// For how long carriers stop, unless the task is stopped by then.
const STOP: Duration = Duration::from_secs(30);

/// For how long a pipe is looked for that is to take the last that a task wrote.
const LAST: Duration = Duration::from_secs(3600);

/// How long the home of a job, or the node of a pipe, may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The FIFOs of runs, as the runner sees them.
pub(crate) struct Fifos {
    orders: mpsc::UnboundedSender<Order>,
    runs: HashMap<Run, Arc<Control>>,
}

/// Carriers that are to begin.
pub(crate) struct Order {
    run: Run,
    uid: u32,
    control: Arc<Control>,
    fifos: Vec<Fifo>,
}

/// A FIFO, as it was found.
struct Fifo {
    path: PathBuf,
    to: PipeUse,
    hand: Hand,
    /// The end that the program does not use; of one that nobody reads there is none.
    end: Option<File>,
}

/// What the carriers of a run may do.
#[derive(Default)]
struct Control(Mutex<State>);

#[derive(Default)]
struct State {
    stopped: Option<Instant>,
    left: bool,
    ended: Option<Instant>,
    /// Carriers whose hands are not empty, or not looked at yet.
    busy: usize,
    /// Carriers that have not come to their end.
    carriers: usize,
}

/// Something is in a carrier's hand, or may be.
struct Busy(Option<Arc<Control>>);

impl Fifos {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, end) = mpsc::unbounded_channel();
        (Self { orders, runs: HashMap::new() }, end)
    }

    /// Makes the FIFOs of a task that begins.
    pub(crate) fn make(&mut self, run: Run, folder: &Path, uid: u32, uses: &[PipeUse]) -> Result<(), String> {
        if uses.is_empty() {
            return Ok(());
        }
        let work = folder.join("work");
        let made = || {
            for (path, mode, owner) in [(folder, 0o711, None), (&work, 0o700, Some(uid))] {
                match fs::DirBuilder::new().mode(mode).create(path) {
                    Ok(()) => chown(path, owner, owner)?,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                    Err(error) => return Err(error),
                }
            }
            for one in uses {
                let path = work.join(&one.pipe.name);
                nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
                std::os::unix::fs::lchown(&path, Some(uid), Some(uid))?;
            }
            Ok(())
        };
        made().map_err(|error| format!("cannot make the FIFOs of its pipes: {error}"))?;
        self.find(run, folder, uid, uses);
        Ok(())
    }

    /// Serves the FIFOs of a task that begins, came from elsewhere, or was here before the agent.
    pub(crate) fn find(&mut self, run: Run, folder: &Path, uid: u32, uses: &[PipeUse]) {
        if uses.is_empty() || self.runs.contains_key(&run) {
            return;
        }
        let open = |to: &PipeUse| {
            let path = folder.join("work").join(&to.pipe.name);
            let hand = Hand::open(folder, &to.pipe.name)
                .inspect_err(|error| warn!(%run, pipe = %to.pipe, %error, "a FIFO cannot be served"))
                .ok()?;
            let mut options = OpenOptions::new();
            let end = match to.direction {
                Direction::Write => options.read(true),
                Direction::Read => options.write(true),
            };
            let end = open_end(&path, uid, end).ok();
            Some(Fifo { path, to: to.clone(), hand, end })
        };
        let fifos: Vec<Fifo> = uses.iter().filter_map(open).collect();
        let state = State { busy: fifos.len(), carriers: fifos.len(), ..State::default() };
        let control = Arc::new(Control(Mutex::new(state)));
        self.runs.insert(run, control.clone());
        // Fails only when the agent stops.
        let _ = self.orders.send(Order { run, uid, control, fifos });
    }

    /// Has the carriers stop; true if nothing is in their hands.
    pub(crate) fn may_leave(&self, run: Run) -> bool {
        let Some(control) = self.runs.get(&run) else { return true };
        let mut state = control.lock();
        state.stopped = Some(Instant::now() + STOP);
        state.busy == 0
    }

    /// It is being written down, to be held.
    pub(crate) fn leaves(&self, run: Run) {
        if let Some(control) = self.runs.get(&run) {
            control.lock().left = true;
        }
    }

    /// It stays.
    pub(crate) fn stays(&self, run: Run) {
        if let Some(control) = self.runs.get(&run) {
            let mut state = control.lock();
            (state.stopped, state.left) = (None, false);
        }
    }

    /// It has ended here.
    pub(crate) fn over(&self, run: Run) {
        if let Some(control) = self.runs.get(&run) {
            control.lock().ended.get_or_insert_with(Instant::now);
        }
    }

    /// Whether something that it wrote is still on its way. [`Query::ClosePipe`] tells of each FIFO that it has come to its end.
    pub(crate) fn is_draining(&self, run: Run) -> bool {
        self.runs.get(&run).is_some_and(|control| control.lock().carriers > 0)
    }

    /// It is forgotten.
    pub(crate) fn forget(&mut self, run: Run) {
        self.over(run);
        self.runs.remove(&run);
    }
}

/// Serves the runner.
pub(crate) async fn serve(grid: Arc<Grid>, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        tokio::spawn(begin(grid.clone(), order));
    }
}

async fn begin(grid: Arc<Grid>, order: Order) {
    let Order { run, uid, control, fifos } = order;
    let since = Instant::now();
    let caller = loop {
        match timeout(PATIENCE, Caller::of_job(&grid, run.task.job)).await {
            Ok(Ok(owner)) => break Some(owner),
            Ok(Err(failure)) => debug!(%run, %failure, "whose its pipes are is not known yet"),
            Err(_) => debug!(%run, "its home does not answer"),
        }
        if control.is_over(since) {
            break None;
        }
        tokio::time::sleep(AGAIN).await;
    };
    for Fifo { path, to: PipeUse { pipe, direction }, hand, end } in fifos {
        let busy = Busy(Some(control.clone()));
        let (grid, caller, control) = (grid.clone(), caller.clone(), control.clone());
        tokio::spawn(async move {
            let (queries, name) = (grid.queries.clone(), pipe.name.clone());
            if let Some(caller) = caller {
                let mut carrier =
                    Carrier { grid, caller, run, pipe, path, uid, control: control.clone(), hand };
                let carried = match direction {
                    Direction::Write => carrier.carry_out(end, busy).await,
                    Direction::Read => carrier.carry_in(end, busy).await,
                };
                if let Err(error) = carried {
                    warn!(%run, pipe = %carrier.pipe, %error, "a FIFO is not served any more");
                }
            }
            control.lock().carriers -= 1;
            // Fails only when the agent stops.
            let _ = queries.send(Query::ClosePipe { run, name });
        });
    }
}

/// Who carries between one FIFO and its pipe.
struct Carrier {
    grid: Arc<Grid>,
    caller: Caller,
    run: Run,
    pipe: PipeName,
    path: PathBuf,
    /// Whose it is.
    uid: u32,
    control: Arc<Control>,
    hand: Hand,
}

impl Carrier {
    /// One end of the pipe.
    fn end(&self, request: PipeRequest) -> DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(2 * ATOMIC);
        let (grid, caller) = (self.grid.clone(), self.caller.clone());
        tokio::spawn(async move {
            if let Err(crate::control::Answer::Failure(failure)) =
                super::answer(&grid, &caller, request, &mut theirs).await
            {
                let _ = stream::write(&mut theirs, &Response::Err(failure)).await;
            }
        });
        ours
    }

    /// The pipe, with the node where it was found first: there may be others of its name.
    async fn placed(&mut self) -> io::Result<Option<PipeName>> {
        let found = match self.hand.node() {
            Some(node) => node,
            None => match super::home(&self.grid, &self.caller, &self.pipe, true).await {
                Ok(node) => {
                    self.hand.note_node(Some(node.0))?;
                    node.0
                }
                Err(failure) => {
                    debug!(pipe = %self.pipe, %failure, "it is not to be found yet");
                    return Ok(None);
                }
            },
        };
        Ok(Some(PipeName { node: Some(found.to_string()), ..self.pipe.clone() }))
    }

    /// It could not be opened.
    fn failed(&mut self, failure: &Failure) -> io::Result<()> {
        debug!(pipe = %self.pipe, %failure, "it cannot be opened yet");
        // It was removed, and may be made again elsewhere.
        if failure.kind == Kind::Missing { self.hand.note_node(None) } else { Ok(()) }
    }

    /// Opens the pipe for writing chunks from this number on, as soon as it can be; with the number of the last that it has.
    /// Nothing if it cannot be had and the task is over.
    async fn writer(&mut self, next: u64) -> io::Result<Option<(DuplexStream, u64)>> {
        self.hand.note_begun(true)?;
        let since = Instant::now();
        loop {
            if let Some(pipe) = self.placed().await? {
                let mut end = self.end(PipeRequest::WriteFor { pipe, run: self.run, next });
                match answer(&mut end).await {
                    Ok(Reply::Pipe(PipeReply::Taken(taken))) => return Ok(Some((end, taken))),
                    Ok(_) => debug!(pipe = %self.pipe, "it gives another answer"),
                    Err(failure) => self.failed(&failure)?,
                }
            }
            if self.control.is_over(since) {
                warn!(run = %self.run, pipe = %self.pipe, "what it wrote last is dropped, as its pipe cannot be had");
                return Ok(None);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn carry_out(&mut self, fifo: Option<File>, mut busy: Busy) -> io::Result<()> {
        // A number that was noted for nothing is passed over.
        let mut next = self.hand.number() + u64::from(self.hand.held()? == 0);
        let mut writer = None;
        if self.hand.held()? == 0 {
            // Nothing holds the task up.
            drop(busy);
            busy = Busy::none();
        }
        // The program may have closed it meanwhile.
        if self.hand.begun()
            && let Some((end, taken)) = self.writer(next).await?
        {
            if taken >= next {
                self.hand.clear()?;
                next += 1;
            }
            writer = Some(end);
        }
        let mut fifo = fifo;
        loop {
            let stays = {
                let state = self.control.lock();
                state.is_stopped() && !state.left
            };
            // Also once the task stands still: its image has nothing of what it wrote.
            let taken = match self.hand.held()? {
                0 if stays => Err(io::ErrorKind::WouldBlock.into()),
                0 => {
                    self.hand.note(next)?;
                    // The task has removed it if there is none.
                    fifo.as_ref().map_or(Ok(0), |fifo| self.hand.take_from(fifo, ATOMIC))
                }
                held => Ok(held),
            };
            match taken {
                Ok(0) => {
                    drop(busy);
                    let (left, ended) = self.control.fate();
                    if left && ended {
                        if let Some(mut writer) = writer {
                            let _ = tell(&mut writer, &FromWriter::Leaves).await;
                        }
                        return Ok(());
                    }
                    if !left && let Some(writer) = writer.take() {
                        self.close(writer, next).await?;
                        self.hand.note_begun(false)?;
                        // One that was open meanwhile finds this one before it misses the other.
                        fifo = open_end(&self.path, self.uid, OpenOptions::new().read(true)).ok();
                    }
                    if ended || fifo.is_none() {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                    busy = self.control.take();
                }
                Ok(_) => {
                    let chunk = FromWriter::Chunk(self.hand.look()?);
                    loop {
                        if writer.is_none() {
                            let Some((end, taken)) = self.writer(next).await? else { return Ok(()) };
                            writer = Some(end);
                            if taken >= next {
                                break;
                            }
                        }
                        let Some(end) = &mut writer else { continue };
                        match tell(end, &chunk).await {
                            Ok(_) => break,
                            // Whether it was taken is known when it is open again.
                            Err(error) => debug!(pipe = %self.pipe, %error, "a chunk is sent again"),
                        }
                        writer = None;
                        tokio::time::sleep(LOOK).await;
                    }
                    self.hand.clear()?;
                    next += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(busy);
                    match &mut writer {
                        // It says nothing unless it breaks: then it is to be come for again before it is given up.
                        Some(end) => {
                            if timeout(LOOK, crate::control::gone(end)).await.is_ok() {
                                writer = None;
                            }
                        }
                        // The program has it open: readers of the pipe are to wait.
                        None if !stays => writer = self.writer(next).await?.map(|(end, _)| end),
                        None => tokio::time::sleep(LOOK).await,
                    }
                    busy = self.control.take();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that nothing more is written, until that is heard.
    async fn close(&mut self, mut writer: DuplexStream, next: u64) -> io::Result<()> {
        while tell(&mut writer, &FromWriter::Closes).await.is_err() {
            tokio::time::sleep(LOOK).await;
            match self.writer(next).await? {
                Some((again, _)) => writer = again,
                None => break,
            }
        }
        Ok(())
    }

    async fn carry_in(&mut self, fifo: Option<File>, busy: Busy) -> io::Result<()> {
        if self.hand.number() == END {
            return Ok(());
        }
        let mut reader = None;
        let carried = self.carry_from(&mut reader, fifo, busy).await;
        let (left, _) = self.control.fate();
        let last = match &carried {
            // It may go on elsewhere: its pipe keeps in mind how far it is.
            Ok(Over::Gone) if left => FromReader::Leaves,
            Ok(Over::End) => FromReader::Leaves,
            Ok(Over::Gone) | Err(_) => FromReader::Closes,
        };
        say(&mut reader, last).await;
        carried.map(drop)
    }

    async fn carry_from(
        &mut self,
        reader: &mut Option<DuplexStream>,
        mut fifo: Option<File>,
        busy: Busy,
    ) -> io::Result<Over> {
        // As long as there may be something in the hand.
        let mut filled = Some(busy);
        loop {
            if self.hand.held()? == 0 {
                filled = None;
            }
            if self.control.fate().1 {
                return Ok(Over::Gone);
            }
            if fifo.is_none() {
                // Once the program has it open.
                fifo = open_end(&self.path, self.uid, OpenOptions::new().write(true)).ok();
            }
            let Some(open) = fifo.as_ref().filter(|open| is_read(open)) else {
                if self.hand.begun() {
                    // The program has closed it; it may open it again, and reads on then.
                    self.hand.clear()?;
                    self.hand.note_begun(false)?;
                }
                say(reader, FromReader::Closes).await;
                fifo = None;
                tokio::time::sleep(LOOK).await;
                continue;
            };
            // What the pipe would give is the next node's now.
            let busy = if filled.is_some() { Some(self.control.take()) } else { self.control.enter() };
            let Some(_busy) = busy else {
                say(reader, FromReader::Leaves).await;
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let Some(end) = reader else {
                *reader = self.reader().await?;
                if reader.is_none() {
                    tokio::time::sleep(AGAIN).await;
                }
                continue;
            };
            if !is_empty(open)? {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            if self.hand.held()? > 0 {
                // The pipe knows that it is here.
                match self.hand.give_to(open) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                    given => given?,
                }
                continue;
            }
            let next = tokio::select! {
                next = tell(end, &FromReader::Next) => Some(next),
                () = self.control.stop() => None,
                () = unread(open) => None,
            };
            match next {
                None => {
                    let stops = self.control.lock().is_stopped();
                    say(reader, if stops { FromReader::Leaves } else { FromReader::Closes }).await;
                }
                Some(Ok(Reply::Pipe(PipeReply::Part { at, bytes }))) => {
                    self.hand.note_begun(true)?;
                    filled = Some(self.control.take());
                    self.hand.note(at)?;
                    self.hand.take(&bytes)?;
                    // Or else the pipe is told when it is open again.
                    if tell(end, &FromReader::Has).await.is_err() {
                        *reader = None;
                    }
                }
                // The end of the pipe is the FIFO's.
                Some(Ok(_)) => {
                    self.hand.note(END)?;
                    return Ok(Over::End);
                }
                Some(Err(error)) => {
                    debug!(pipe = %self.pipe, %error, "it cannot be read yet");
                    *reader = None;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Opens the pipe for reading, if it can be, and tells it what is in the hand.
    async fn reader(&mut self) -> io::Result<Option<DuplexStream>> {
        let Some(pipe) = self.placed().await? else { return Ok(None) };
        let has = match self.hand.held()? {
            0 => None,
            held => Some(Part { at: self.hand.number(), len: held as u64 }),
        };
        let (run, began) = (self.run, self.hand.begun());
        let mut end = self.end(PipeRequest::ReadFor { pipe, run, has, began });
        match timeout(PATIENCE, answer(&mut end)).await {
            Ok(Ok(_)) => return Ok(Some(end)),
            Ok(Err(failure)) => self.failed(&failure)?,
            Err(_) => debug!(pipe = %self.pipe, "it does not answer"),
        }
        Ok(None)
    }
}

/// Why nothing more is brought to a FIFO.
enum Over {
    /// The task is not here any more.
    Gone,
    /// All writers of the pipe have closed.
    End,
}

/// Whether a FIFO, of which this is the writing end, has nothing in it. It then holds more than a pipe gives at once.
fn is_empty(fifo: &File) -> io::Result<bool> {
    fcntl(fifo, FcntlArg::F_SETPIPE_SZ(SIZE))?;
    Ok(held(fifo)? == 0)
}

/// Whether somebody has it open to read.
fn is_read(fifo: &File) -> bool {
    let mut polled = [PollFd::new(fifo.as_fd(), PollFlags::POLLOUT)];
    let looked = poll(&mut polled, PollTimeout::ZERO).is_ok();
    let [polled] = polled;
    looked && !polled.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Ends when nobody has it open to read any more.
async fn unread(fifo: &File) {
    while is_read(fifo) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Says the last to a pipe, if it is open.
async fn say(reader: &mut Option<DuplexStream>, last: FromReader) {
    if let Some(mut reader) = reader.take() {
        let _ = stream::write(&mut reader, &last).await;
    }
}

async fn answer(end: &mut DuplexStream) -> Result<Reply, Failure> {
    stream::read::<Response, _>(end).await.map_err(broken)?
}

fn broken(error: WireError) -> Failure {
    Failure::new(Kind::Unavailable, error.to_string())
}

/// Says something, and waits for the answer.
async fn tell(end: &mut DuplexStream, what: &impl Serialize) -> Result<Reply, Failure> {
    stream::write(end, what).await.map_err(broken)?;
    answer(end).await
}

// === impl Control ===

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing if nothing may be taken now.
    fn enter(self: &Arc<Self>) -> Option<Busy> {
        let mut state = self.lock();
        if state.is_stopped() {
            return None;
        }
        state.busy += 1;
        drop(state);
        Some(Busy(Some(self.clone())))
    }

    /// What the program wrote is taken in any case.
    fn take(self: &Arc<Self>) -> Busy {
        self.lock().busy += 1;
        Busy(Some(self.clone()))
    }

    /// Whether the task left, and whether it is not here any more.
    fn fate(&self) -> (bool, bool) {
        let state = self.lock();
        (state.left, state.ended.is_some())
    }

    /// Whether the task has ended, and nobody should wait any more who has since then.
    fn is_over(&self, since: Instant) -> bool {
        self.lock().ended.is_some() && since.elapsed() > LAST
    }

    /// Ends when carriers are to stop, or the task is over.
    async fn stop(&self) {
        loop {
            {
                let state = self.lock();
                if state.is_stopped() || state.ended.is_some() {
                    return;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl State {
    fn is_stopped(&self) -> bool {
        self.left || self.stopped.is_some_and(|until| Instant::now() < until)
    }
}

impl Busy {
    const fn none() -> Self {
        Self(None)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(control) = &self.0 {
            control.lock().busy -= 1;
        }
    }
}
