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

mod carrier;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grid_run::fifo::{Hand, open_end};
use libgrid::ids::Run;
use libgrid::pipe::{Direction, PipeUse};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use self::carrier::Carrier;
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
    /// The pipes that cannot be had now, and why.
    waits: BTreeMap<String, String>,
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

    /// Which pipe the task waits for, and why: a sentence.
    pub(crate) fn waits(&self, run: Run) -> Option<String> {
        let state = self.runs.get(&run)?.lock();
        state.waits.iter().next().map(|(pipe, why)| format!("its FIFO {pipe} waits: {why}"))
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
            control.waits_for(&name, None);
            control.lock().carriers -= 1;
            // Fails only when the agent stops.
            let _ = queries.send(Query::ClosePipe { run, name });
        });
    }
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

    /// Why a pipe cannot be had now; nothing once it is.
    fn waits_for(&self, pipe: &str, why: Option<String>) {
        let mut state = self.lock();
        match why {
            Some(why) => drop(state.waits.insert(pipe.to_owned(), why)),
            None => drop(state.waits.remove(pipe)),
        }
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
