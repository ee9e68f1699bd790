//! Pipes for programs that know nothing of them: a FIFO in the task's working folder, and here who carries bytes between it and
//! the pipe (`gridctl submit --pipe NAME:r`).
//!
//! **While a task moves**, what is in a FIFO that it reads moves along in its image; what is in one that it writes does not, and
//! is taken from there once the task stands still. Before it is stopped, nothing may be in our hands: [`Fifos::may_leave`] has
//! those who bring bytes stop, and says whether nothing is; until then the task is not ready to leave. At the destination the
//! FIFO is opened before the program takes a step, so that it finds neither a reader nor a writer missing.
//!
//! | direction | in our hands is | until |
//! | --- | --- | --- |
//! | `w`, from the program | what was read from the FIFO | the pipe has it |
//! | `r`, to the program | what came from the pipe, which does not take it for had | the FIFO is empty, and takes all of it at once |
//!
//! An agent that ends takes its end of the FIFOs along, and the programs see that. One that is killed with something in its hands
//! loses it (`w`), or the pipe gives it out again (`r`). A task that goes on from an older checkpoint finds in the FIFO what was
//! there then.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libgrid::control::{Chunk, Reply, Response};
use libgrid::ids::Run;
use libgrid::pipe::{ATOMIC, Direction, PipeName, PipeReply, PipeRequest, PipeUse};
use libgrid::wire::{WireError, stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::caller::Caller;
use crate::grid::Grid;

/// How often a FIFO that has nothing to give or to take is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How often it is tried again to reach a pipe, or the home of a job.
const AGAIN: Duration = Duration::from_secs(1);

/// For how long carriers stop, unless the task is stopped by then.
const STOP: Duration = Duration::from_secs(30);

/// How long the end of a task that left stays a writer of its pipe: its next node is one by then.
const GRACE: Duration = Duration::from_secs(10);

/// What a FIFO holds: more than comes out of a pipe at once.
const SIZE: i32 = 1 << 20;

/// The FIFOs of runs, as the runner sees them.
pub(crate) struct Fifos {
    orders: mpsc::UnboundedSender<Order>,
    runs: HashMap<Run, Arc<Control>>,
}

/// Carriers that are to begin.
pub(crate) struct Order {
    run: Run,
    work: PathBuf,
    uid: u32,
    control: Arc<Control>,
    opened: BTreeMap<String, Opened>,
    /// Asked of the job's home if absent.
    uses: Option<Vec<PipeUse>>,
}

/// A FIFO, as it was found.
struct Opened {
    read: File,
    /// Of one that somebody reads.
    write: Option<File>,
}

/// What the carriers of a run may do.
#[derive(Default)]
struct Control(Mutex<State>);

#[derive(Default)]
struct State {
    stopped: Option<Instant>,
    left: bool,
    ended: bool,
    busy: u32,
}

/// Something is in a carrier's hands.
struct Busy<'c>(&'c Control);

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
        let names: Vec<&str> = uses.iter().map(|one| one.pipe.name.as_str()).collect();
        let opened =
            names.into_iter().filter_map(|name| Some((name.to_owned(), open(&work.join(name), uid)?)));
        self.begin(run, (work.clone(), uid), opened.collect(), Some(uses.to_vec()));
        Ok(())
    }

    /// Finds the FIFOs of a task that came from elsewhere, or was here before the agent.
    pub(crate) fn find(&mut self, run: Run, folder: &Path, uid: u32) {
        if self.runs.contains_key(&run) {
            return;
        }
        let work = folder.join("work");
        let names = fs::read_dir(&work).into_iter().flatten().flatten();
        let names = names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_fifo()));
        let opened: BTreeMap<String, Opened> = names
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, open(&entry.path(), uid)?)))
            .collect();
        if !opened.is_empty() {
            self.begin(run, (work, uid), opened, None);
        }
    }

    fn begin(
        &mut self,
        run: Run,
        (work, uid): (PathBuf, u32),
        opened: BTreeMap<String, Opened>,
        uses: Option<Vec<PipeUse>>,
    ) {
        let control = Arc::new(Control::default());
        self.runs.insert(run, control.clone());
        // Fails only when the agent stops.
        let _ = self.orders.send(Order { run, work, uid, control, opened, uses });
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

    /// It is not here any more.
    pub(crate) fn over(&mut self, run: Run) {
        if let Some(control) = self.runs.remove(&run) {
            control.lock().ended = true;
        }
    }
}

/// Opens a FIFO that belongs to a task's user. Whatever else is there by that name is left alone.
fn open(path: &Path, uid: u32) -> Option<Opened> {
    // In this order: our own reading end would pass for a reader.
    let write = open_end(path, uid, OpenOptions::new().write(true)).ok();
    let read = open_end(path, uid, OpenOptions::new().read(true)).ok()?;
    Some(Opened { read, write })
}

/// One end. A task may have put something else in the FIFO's place, at any moment.
fn open_end(path: &Path, uid: u32, options: &mut OpenOptions) -> io::Result<File> {
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

/// Serves the runner.
pub(crate) async fn serve(grid: Arc<Grid>, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        tokio::spawn(begin(grid.clone(), order));
    }
}

async fn begin(grid: Arc<Grid>, order: Order) {
    let Order { run, work, uid, control, mut opened, uses } = order;
    let (caller, told) = loop {
        match Caller::of_job(&grid, run.task.job).await {
            Ok(owner) => break owner,
            Err(failure) => debug!(%run, %failure, "whose its pipes are is not known yet"),
        }
        if control.lock().ended {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    };
    for one in uses.unwrap_or(told) {
        let Some(fifo) = opened.remove(&one.pipe.name) else { continue };
        let carrier = Carrier {
            grid: grid.clone(),
            caller: caller.clone(),
            pipe: one.pipe.clone(),
            path: work.join(&one.pipe.name),
            uid,
            control: control.clone(),
        };
        tokio::spawn(async move {
            let carried = match one.direction {
                Direction::Write => carrier.carry_out(fifo.read).await,
                Direction::Read => {
                    drop(fifo.read);
                    carrier.carry_in(fifo.write).await
                }
            };
            if let Err(error) = carried {
                warn!(%run, pipe = %one.pipe, %error, "a FIFO is not served any more");
            }
        });
    }
}

/// Who carries between one FIFO and its pipe.
struct Carrier {
    grid: Arc<Grid>,
    caller: Caller,
    pipe: PipeName,
    path: PathBuf,
    /// Whose it is.
    uid: u32,
    control: Arc<Control>,
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

    /// Opens the pipe for writing, as soon as it can be.
    async fn writer(&self) -> Option<DuplexStream> {
        loop {
            let mut end = self.end(PipeRequest::Write(self.pipe.clone()));
            match answer(&mut end).await {
                Ok(_) => return Some(end),
                Err(error) => debug!(pipe = %self.pipe, %error, "it cannot be written to yet"),
            }
            if self.control.lock().ended {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn carry_out(self, mut fifo: File) -> io::Result<()> {
        let mut writer = None;
        let mut buffer = vec![0; ATOMIC];
        loop {
            // Also once the task is to leave, and stands still: its image has nothing of what it wrote.
            let busy = self.control.take();
            match fifo.read(&mut buffer) {
                Ok(0) => {
                    drop(busy);
                    let (left, ended) = self.control.fate();
                    if left && ended {
                        tokio::time::sleep(GRACE).await;
                        return Ok(());
                    }
                    if left {
                        tokio::time::sleep(LOOK).await;
                        continue;
                    }
                    if let Some(mut writer) = writer.take() {
                        let _ = send(&mut writer, &[]).await;
                        // One that was open meanwhile finds this one before it misses the other.
                        // With its task's folder it is gone.
                        match open_end(&self.path, self.uid, OpenOptions::new().read(true)) {
                            Ok(again) => fifo = again,
                            Err(_) => return Ok(()),
                        }
                    }
                    if self.control.fate().1 {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Ok(count) => {
                    let mut bytes = &buffer[..count];
                    while !bytes.is_empty() {
                        if writer.is_none() {
                            writer = self.writer().await;
                        }
                        let Some(end) = &mut writer else { return Ok(()) };
                        match send(end, bytes).await {
                            Ok(()) => bytes = &[],
                            // Whether it was taken is not known; what is not sent again may be missing.
                            Err(error) => {
                                debug!(pipe = %self.pipe, %error, "a chunk is sent again");
                                writer = None;
                            }
                        }
                    }
                    drop(busy);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(busy);
                    // The program has it open: readers of the pipe are to wait.
                    if writer.is_none() {
                        writer = self.writer().await;
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn carry_in(self, mut fifo: Option<File>) -> io::Result<()> {
        let mut reader: Option<DuplexStream> = None;
        loop {
            let (_, ended) = self.control.fate();
            if ended {
                return Ok(());
            }
            let Some(mut open) = fifo.take().or_else(|| self.writing_end()) else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let Some(busy) = self.control.enter() else {
                // What it would give is the next node's.
                reader = None;
                fifo = Some(open);
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let end = reader.get_or_insert_with(|| self.end(PipeRequest::Read(self.pipe.clone())));
            let next = tokio::select! {
                next = answer(end) => Some(next),
                () = self.control.stop() => None,
            };
            match next {
                None => {
                    reader = None;
                    fifo = Some(open);
                }
                Some(Ok(Reply::Pipe(PipeReply::Bytes(bytes)))) => {
                    let taken = loop {
                        if self.control.is_stopped() {
                            break false;
                        }
                        if self.is_empty()? {
                            break true;
                        }
                        tokio::time::sleep(LOOK).await;
                    };
                    if !taken {
                        reader = None;
                        fifo = Some(open);
                        continue;
                    }
                    // All of it fits: the FIFO is empty, and holds more.
                    match open.write_all(&bytes) {
                        Ok(()) => (),
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                        Err(error) => return Err(error),
                    }
                    if stream::write(end, &Chunk(Vec::new())).await.is_err() {
                        reader = None;
                    }
                    fifo = Some(open);
                }
                // The end of the pipe is the FIFO's.
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => {
                    debug!(pipe = %self.pipe, %error, "it cannot be read yet");
                    reader = None;
                    fifo = Some(open);
                    drop(busy);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// The writing end, once the program has the FIFO open.
    fn writing_end(&self) -> Option<File> {
        open_end(&self.path, self.uid, OpenOptions::new().write(true)).ok()
    }

    fn is_empty(&self) -> io::Result<bool> {
        let look = open_end(&self.path, self.uid, OpenOptions::new().read(true))?;
        fcntl(&look, FcntlArg::F_SETPIPE_SZ(SIZE))?;
        let mut polled = [PollFd::new(look.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, PollTimeout::ZERO)? == 0)
    }
}

async fn answer(end: &mut DuplexStream) -> Result<Reply, String> {
    let response = stream::read::<Response, _>(end).await.map_err(|error| error.to_string())?;
    response.map_err(|failure| failure.message)
}

/// Writes a chunk, and waits until it is taken.
async fn send(end: &mut DuplexStream, bytes: &[u8]) -> Result<(), String> {
    let written: Result<(), WireError> = stream::write(end, &Chunk(bytes.to_vec())).await;
    written.map_err(|error| error.to_string())?;
    answer(end).await.map(drop)
}

// === impl Control ===

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing if nothing may be taken now.
    fn enter(&self) -> Option<Busy<'_>> {
        let mut state = self.lock();
        if state.is_stopped() {
            return None;
        }
        state.busy += 1;
        Some(Busy(self))
    }

    /// What the program wrote is taken in any case.
    fn take(&self) -> Busy<'_> {
        self.lock().busy += 1;
        Busy(self)
    }

    fn is_stopped(&self) -> bool {
        self.lock().is_stopped()
    }

    /// Whether the task left, and whether it is not here any more.
    fn fate(&self) -> (bool, bool) {
        let state = self.lock();
        (state.left, state.ended)
    }

    /// Ends when carriers are to stop, or the task is over.
    async fn stop(&self) {
        loop {
            {
                let state = self.lock();
                if state.is_stopped() || state.ended {
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

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().busy -= 1;
    }
}
