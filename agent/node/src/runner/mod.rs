//! Carries out what the host decides: starts tasks through shims, stages their inputs, and tells the core what
//! the shims tell.
//!
//! A shim keeps the tasks of one job. One that has none left waits, with at most [`SPARE`] others, for the next
//! job, so that a task rarely waits for a process to be started; after [`LINGER`] all but a few of them end.

pub(crate) mod ahead;
mod environment;
pub(crate) mod inputs;
mod keyboard;
pub(crate) mod moving;
mod precopy;
mod ready;
mod recover;
mod resume;
mod shim;
mod slots;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_checkpoint::order::Then;
use grid_jobs::home;
use grid_jobs::host::{self, Action};
use grid_jobs::message::{End, Order, Placement};
use grid_migrate::order::Report;
use grid_run::protocol::{FromShim, Launch, ToShim, Typed};
use grid_run::slot;
use grid_run::spawn::Shims;
use grid_run::usage;
use libgrid::address::Address;
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::spec::{self, JobSpec, Net};
use libgrid::status::{Obstacle, Outcome, TaskCheckpoints, Usage};
use libgrid::sys::abi::Op;
use libgrid::units::{Bytes, Span};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::ahead::{Arrived, Leaving, Moves};
pub(crate) use self::ahead::{Outset, Taker};
pub(crate) use self::environment::end_of;
use self::environment::environment;
use self::inputs::Inputs;
pub(crate) use self::keyboard::Keyboard;
pub(crate) use self::moving::{Departing, Departure, Surveyed};
use self::precopy::Rounds;
pub(crate) use self::precopy::{Round, Rounding};
use self::ready::Ready;
use self::recover::remove;
pub(crate) use self::recover::{Found, find, shim_program};
use self::resume::Resuming;
pub(crate) use self::resume::finished;
use self::shim::{ShimId, ShimNews};
pub(crate) use self::slots::is_task;
use self::slots::{Slot, Slots};
use crate::calls::Called;
use crate::checkpoint::{self, CheckpointError, Checkpoints, Departed, News};
use crate::config::Config;
use crate::control::operations::Asked;
use crate::core::{Core, deadline, first_lease};
use crate::network::Network;
use crate::peers::Peers;
use crate::pipes::fifo::Fifos;
use crate::processes::{Place, Processes};
use crate::staging::Staging;

/// How many shims wait without tasks. To start one costs as much as all else of a short task, so a stream of short
/// jobs is served by the same ones.
const SPARE: usize = 32;

/// How many of them stay, and when the others end.
const STAY: usize = 2;
const LINGER: Duration = Duration::from_secs(10);

/// How many tasks are being started at once; others wait without taking a place. Enough to keep every shim busy.
const STARTING: usize = 64;

/// What others ask of the runner.
pub(crate) enum Query {
    /// To follow what a run prints.
    Follow { run: Run, reply: oneshot::Sender<Option<Following>> },
    /// To type into a run.
    Keyboard { run: Run, reply: oneshot::Sender<Option<Keyboard>> },
    /// What runs that are here have used so far, and what is not as it should be.
    Usage { runs: Vec<Run>, reply: oneshot::Sender<Vec<Used>> },
    /// Where the processes of runs are, of these or of all.
    Places { runs: Option<Vec<Run>>, reply: oneshot::Sender<Vec<Place>> },
    /// To write a checkpoint of a run now.
    Checkpoint { run: Run, reply: checkpoint::Reply },
    /// The checkpoints of a task that are here.
    Kept { task: TaskId, reply: oneshot::Sender<TaskCheckpoints> },
    /// Whether all of a checkpoint is as it was written.
    Verify { task: TaskId, number: u64, reply: oneshot::Sender<Result<(), String>> },
    /// What would stop a run from being moved.
    Survey { run: Run, reply: oneshot::Sender<Result<Surveyed, String>> },
    /// What would stop a run of another node from going on here.
    Fits { run: Run, there: Box<Surveyed>, reply: oneshot::Sender<Vec<Obstacle>> },
    /// That node asks for a run that is to move there.
    Depart { run: Run, to: NodeId, reply: oneshot::Sender<Departing> },
    /// What came of asking for a run that is to move here.
    Departed { run: Run, from: NodeId, departed: Result<(Departed, Option<Box<Arrived>>), String> },
    /// That node asks for the memory of a run that is to move there, while it runs.
    Pages { run: Run, to: Taker, reply: oneshot::Sender<Outset> },
    /// The memory of a run that is to move here is on its way, and so is its local user.
    Comes { run: Run, uid: u32 },
    /// That node asks for it in rounds, by a request of this key.
    Rounds { run: Run, to: NodeId, key: u64, reply: oneshot::Sender<Outset> },
    /// For the next of them.
    Round { run: Run, to: NodeId, round: u32, reply: oneshot::Sender<Rounding> },
    /// That request has ended.
    RoundsOver { run: Run, key: u64 },
    /// Who sends a run's memory ahead tells how far it is.
    Ahead { run: Run, report: Report },
    /// What comes of a system call of a run's process.
    Answer { run: Run, call: u64, errno: i32, output: Vec<u8> },
    /// What came of the work on the store of checkpoints.
    Checkpoints(News),
    /// To have a checkpoint of a task of this home brought here from its host, or to another node if that is this one.
    Export { task: TaskId, number: u64, from: NodeId, to: NodeId },
    /// To bring a checkpoint here that the task's home, which runs it, wants another node to have.
    Keep { task: TaskId, number: u64, reply: oneshot::Sender<Result<(), String>> },
    /// To drop the checkpoints of a task after this one.
    Cut { task: TaskId, number: u64 },
    /// Nothing will go on from the checkpoints of these tasks.
    Finished(Vec<TaskId>),

    /// A shim's news.
    Shim(ShimId, ShimNews),
    /// A slot can be used again.
    Cleaned(Slot),
    /// The place of this user cannot be used again.
    Unclean(u32),
    /// Inputs that nobody needs may be dropped.
    SweepInputs,
    /// Inputs are in place, or cannot be.
    Staged { run: Run, result: Result<Box<Launch>, String> },
}

/// What a run has used so far, and a sentence about it.
pub(crate) type Used = (Run, Usage, Option<String>);

/// What a follower needs.
pub(crate) struct Following {
    pub(crate) folder: PathBuf,
    pub(crate) uid: u32,
    pub(crate) progress: watch::Receiver<Progress>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) written: u64,
    pub(crate) ended: bool,
}

struct Shim {
    sender: mpsc::UnboundedSender<ToShim>,
    job: Option<JobId>,
    runs: HashSet<Run>,
}

struct Local {
    slot: Slot,
    shim: Option<ShimId>,
    staging: Option<tokio::task::AbortHandle>,
    limits: (Bytes, Option<Span>),
    /// When checkpoints are written, and the number of the newest, wherever that is.
    when: spec::Checkpoints,
    saved: u64,
    /// What is left of its time limit.
    left: Option<Duration>,
    /// All is ready for it, and it is still on its way.
    ready: Option<Ready>,
    /// While it is made from a checkpoint.
    resuming: Option<Box<Resuming>>,
    /// What its user is to be told of its start.
    note: Option<String>,
    progress: watch::Sender<Progress>,
    watched: bool,
    started: Option<SystemTime>,
    /// Whether there may be output in its folder.
    printed: bool,
    /// How far its input is.
    typed: watch::Sender<Typed>,
    fenced: bool,
    /// The node that may take it away.
    departs: Option<NodeId>,
    /// Its memory, on its way there.
    leaving: Option<Leaving>,
    /// Or in rounds.
    rounds: Option<Rounds>,
    /// Its own address.
    address: Option<Ipv4Addr>,
}

pub(crate) struct Runner {
    config: Arc<Config>,
    me: NodeId,
    core: Core,
    shims: Shims,
    inputs: Inputs,
    network: Network,
    processes: Processes,
    fifos: Fifos,
    /// Takes the system calls of processes.
    calls: mpsc::UnboundedSender<Called>,
    checkpoints: Checkpoints,
    moves: Moves,
    /// Runs that wait for their checkpoints to be unpacked, or for the places of their users.
    resuming: HashMap<Run, Box<Resuming>>,
    queries: mpsc::UnboundedSender<Query>,
    live: BTreeMap<ShimId, Shim>,
    runs: HashMap<Run, Local>,
    slots: Slots,
    next_shim: u64,
    /// The deadline of each home's tasks.
    leases: HashMap<NodeId, u64>,
    /// Runs that have a place, and whose processes do not run yet.
    starting: HashSet<Run>,
    /// Runs that wait for their turn to be started.
    backlog: VecDeque<(Run, Order, Placement)>,
    /// When the shims that linger are looked at.
    thin: Option<Instant>,
    /// When homes are asked which checkpoints are of no more use.
    sweep: Option<Instant>,
    peers: Peers,
    /// Takes slots of forgotten runs, and whether there may be output in them.
    cleaner: std::sync::mpsc::Sender<(Slot, bool)>,
}

/// The runner's own channel, made before it.
pub(crate) type Queries = (mpsc::UnboundedSender<Query>, mpsc::UnboundedReceiver<Query>);

/// Starts the runner. `actions` come from the core.
pub(crate) fn start(
    config: Arc<Config>,
    me: NodeId,
    core: Core,
    (staging, network, processes, fifos, calls): (
        Staging,
        Network,
        Processes,
        Fifos,
        mpsc::UnboundedSender<Called>,
    ),
    (shims, found): (Shims, Found),
    (queries, queries_end): Queries,
    actions: mpsc::UnboundedReceiver<Action>,
) -> Result<(), CheckpointError> {
    let kept: Vec<Run> = found.kept.iter().map(|kept| kept.run).collect();
    let checkpoints = Checkpoints::open(
        &config,
        me,
        &kept,
        (core.clone(), staging.clone(), processes.clone()),
        queries.clone(),
    )?;
    let moves = Moves::open(&config.checkpoints_dir());
    let mut slots = Slots::new(config.tasks_dir(), me);
    slots.reserve(checkpoints.uids());
    let cleaner = start_cleaner(config.tasks_dir(), queries.clone());
    let peers = staging.peers.clone();
    let inputs = Inputs::new(config.clone(), me, core.clone(), staging, shims.clone(), queries.clone());
    let mut runner = Runner {
        config,
        me,
        core,
        shims,
        inputs,
        network,
        processes,
        fifos,
        calls,
        checkpoints,
        moves,
        resuming: HashMap::new(),
        queries,
        live: BTreeMap::new(),
        runs: HashMap::new(),
        slots,
        next_shim: 0,
        leases: HashMap::new(),
        starting: HashSet::new(),
        backlog: VecDeque::new(),
        thin: None,
        sweep: None,
        peers,
        cleaner,
    };
    found.shims.into_iter().for_each(|connected| runner.adopt(connected));
    runner.sweep_checkpoints_later(resume::FIRST);
    tokio::spawn(runner.run(actions, queries_end));
    Ok(())
}

impl Runner {
    async fn run(
        mut self,
        mut actions: mpsc::UnboundedReceiver<Action>,
        mut queries: mpsc::UnboundedReceiver<Query>,
    ) {
        self.spare();
        loop {
            let (thin, sweep, due) = (self.thin, self.sweep, self.checkpoints.due());
            tokio::select! {
                action = actions.recv() => match action {
                    Some(action) => self.act(action),
                    // The agent stops; the shims stay.
                    None => return,
                },
                Some(query) = queries.recv() => self.answer(query),
                () = sleep_until(thin.unwrap_or_else(Instant::now)), if thin.is_some() => {
                    self.thin = None;
                    self.retire(STAY);
                }
                () = sleep_until(sweep.unwrap_or_else(Instant::now)), if sweep.is_some() => {
                    self.sweep = None;
                    self.sweep_checkpoints();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => (),
            }
            self.start_some();
            for (run, folder) in self.checkpoints.begin() {
                let (then, memory, parent) = (Then::RunOn, None, None);
                self.tell(run, ToShim::Checkpoint { run, folder, then, memory, parent });
            }
        }
    }

    fn adopt(&mut self, connected: shim::Connected) {
        let id = self.next_id();
        let kept = connected.kept.clone();
        let sender = connected.start(id, self.queries.clone());
        let mut shim = Shim { sender, job: None, runs: HashSet::new() };
        for kept in kept {
            let run = kept.run;
            shim.job = Some(run.task.job);
            shim.runs.insert(run);
            let Some(slot) = self.slots.adopt(kept.uid) else { continue };
            let limits = (Bytes(kept.limits.memory), kept.time.map(Span));
            let started = Some(kept.started);
            let ran = kept.started.elapsed().unwrap_or_default();
            let left = kept.time.map(|time| time.saturating_sub(ran));
            let resuming = kept.restoring.then(Box::default);
            let (when, alive) = (kept.checkpoint, kept.end.is_none());
            let local = Local::new(slot, limits);
            let address = kept.address;
            let local =
                Local { shim: Some(id), started, printed: true, when, left, resuming, address, ..local };
            if !alive {
                local.progress.send_modify(|progress| progress.ended = true);
            }
            local.typed.send_replace(kept.typed);
            let watched = alive && local.resuming.is_none();
            self.runs.insert(run, local);
            if watched {
                self.watch(run);
            }
            if alive {
                self.find_fifos(run);
            }
        }
        info!(shim = id.0, tasks = shim.runs.len(), "shim_adopted");
        self.live.insert(id, shim);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { run, order, placement } => self.backlog.push_back((run, order, placement)),
            Action::Signal { run, signal, grace } => self.signal(run, signal, grace),
            Action::Fence(run) => self.fence(run),
            Action::Depart { run, to } => self.may_depart(run, to),
            Action::LetGo(run) => self.let_go(run),
            Action::Lease { home, until } => {
                self.leases.insert(home, deadline(until));
                let until = Some(deadline(until));
                for shim in self.live.values().filter(|shim| shim.job.is_some_and(|job| job.home == home)) {
                    let _ = shim.sender.send(ToShim::Lease { until });
                }
            }
            Action::Forget(run) => self.forget(run),
            // Messages go out through the peers.
            Action::Send { .. } => (),
        }
    }

    fn tell(&self, run: Run, message: ToShim) {
        let shim = self.runs.get(&run).and_then(|local| self.live.get(&local.shim?));
        if let Some(shim) = shim {
            // A shim that is gone is told of by its reader.
            let _ = shim.sender.send(message);
        }
    }

    /// Starts those whose turn it is.
    fn start_some(&mut self) {
        while self.starting.len() < STARTING
            && let Some((run, order, placement)) = self.backlog.pop_front()
        {
            self.starting.insert(run);
            self.launch(run, order, placement);
        }
    }

    fn signal(&mut self, run: Run, signal: i32, grace: Option<Duration>) {
        let at = self.backlog.iter().position(|(waiting, ..)| *waiting == run);
        let waits = self.resuming.contains_key(&run) && !self.runs.contains_key(&run);
        if at.is_none() && !waits {
            return self.tell(run, ToShim::Signal { run, signal, grace });
        }
        // It has no processes: what would end a program that handles nothing ends it before it begins.
        if home::ENDING.contains(&signal) {
            at.map(|at| self.backlog.remove(at));
            self.resuming.remove(&run);
            self.end_unstarted(run, Outcome::Killed(signal));
        }
    }

    /// Starts a task from its beginning.
    fn begin(&mut self, run: Run, order: &Order, placement: &Placement, note: Option<String>) {
        let address = match self.address_of(run, order, placement) {
            Ok(address) => address,
            Err(why) => return self.not_started(run, why),
        };
        let spec = &order.spec;
        let limits = grid_qos::Limits { cpu: spec.cpus.milli(), memory: spec.memory.0, pids: spec.pids };
        let Some((slot, group_ready)) = self.slots.take(limits) else {
            return self
                .not_started(run, "every local user for tasks is in use: wait until some have ended".into());
        };
        let (folder, uid) = (self.slots.folder(&slot), slot.uid());
        self.insert(run, order, placement.saved, note, slot);
        if let Err(why) = self.fifos.make(run, &folder, uid, &spec.pipes) {
            return self.not_started(run, why);
        }
        let launch = Launch { group_ready, ..self.launch_of(run, order, (folder, uid), address) };
        let launch = self.with_address(launch);
        if order.inputs {
            let staging = self.inputs.stage(launch, self.queries.clone());
            if let Some(local) = self.runs.get_mut(&run) {
                local.staging = Some(staging);
            }
        } else {
            self.hand_over(launch);
        }
    }

    /// Notes a run that has a place.
    fn insert(&mut self, run: Run, order: &Order, saved: u64, note: Option<String>, slot: Slot) {
        let spec = &order.spec;
        // Nobody could type into it after its client is gone.
        let when = if order.stdin.is_some() { spec::Checkpoints::Off } else { spec.checkpoint };
        let left = spec.time.map(|limit| limit.0);
        let local = Local::new(slot, (spec.memory, spec.time));
        self.runs.insert(run, Local { when, saved, left, note, ..local });
    }

    /// The address that a task is to have, if any.
    fn address_of(&self, run: Run, order: &Order, placement: &Placement) -> Result<Option<Ipv4Addr>, String> {
        if order.spec.net == Net::Host {
            return Ok(None);
        }
        // Of its own home's, whatever that says.
        let serial = placement.serial.ok_or("its home node has given it no address: submit it again")?;
        let address = Address::of_task(run.task.job.home, serial).map_err(|error| error.to_string())?;
        match self.network.trouble() {
            None => Ok(Some(address.ip())),
            Some(why) => Err(format!(
                "node {} cannot give it an address of its own: {why}: choose others with --node, or submit without --net grid",
                self.me
            )),
        }
    }

    /// Notes the address of what is to be started.
    fn with_address(&mut self, launch: Launch) -> Box<Launch> {
        if let Some(local) = self.runs.get_mut(&launch.run) {
            local.address = launch.address;
        }
        Box::new(launch)
    }

    /// What the shim is to start.
    fn launch_of(
        &self,
        run: Run,
        order: &Order,
        (folder, uid): (PathBuf, u32),
        address: Option<Ipv4Addr>,
    ) -> Launch {
        let spec = &order.spec;
        let when = if order.stdin.is_some() { spec::Checkpoints::Off } else { spec.checkpoint };
        Launch {
            run,
            command: spec.command.iter().map(|word| JobSpec::for_task(word, run.task.index)).collect(),
            env: environment(&self.config, self.me, run, order, address),
            folder,
            workdir: self.config.workdir(),
            uid,
            limits: spec.needs(),
            pids: spec.pids,
            group_ready: false,
            time: spec.time.map(|limit| limit.0),
            log_limit: spec.log_limit.0,
            stdin: order.stdin,
            restore: None,
            ahead: false,
            hold: false,
            memory: None,
            checkpoint: when,
            address,
            enters: self.processes.has_module(),
            calls: spec.system_call,
        }
    }

    /// Gives a task to a shim.
    fn hand_over(&mut self, launch: Box<Launch>) {
        let run = launch.run;
        let job = run.task.job;
        let serving = self.live.iter().find(|(_, shim)| shim.job == Some(job)).map(|(id, _)| *id);
        let spare = || self.live.iter().find(|(_, shim)| shim.job.is_none()).map(|(id, _)| *id);
        let id = match serving.or_else(spare).map_or_else(|| self.start_shim(), Ok) {
            Ok(id) => id,
            Err(error) => return self.not_started(run, format!("cannot start a shim: {error}")),
        };
        let until = self.leases.get(&job.home).copied();
        let Some(shim) = self.live.get_mut(&id) else { return };
        if shim.job != Some(job) {
            shim.job = Some(job);
            let until = (job.home != self.me).then(|| until.unwrap_or_else(|| deadline(first_lease())));
            let _ = shim.sender.send(ToShim::Lease { until });
        }
        shim.runs.insert(run);
        let _ = shim.sender.send(ToShim::Launch(launch));
        if let Some(local) = self.runs.get_mut(&run) {
            local.shim = Some(id);
        }
    }

    fn start_shim(&mut self) -> io::Result<ShimId> {
        let id = self.next_id();
        let sender = shim::start(&self.shims, id, self.queries.clone())?;
        self.live.insert(id, Shim { sender, job: None, runs: HashSet::new() });
        Ok(id)
    }

    fn next_id(&mut self) -> ShimId {
        self.next_shim += 1;
        ShimId(self.next_shim)
    }

    /// Keeps some shims ready, and no more.
    fn spare(&mut self) {
        let idle = self.retire(SPARE);
        if idle > STAY {
            self.thin.get_or_insert_with(|| Instant::now() + LINGER);
        }
        if idle == 0
            && let Err(error) = self.start_shim()
        {
            warn!(%error, "cannot start a shim ahead");
        }
    }

    /// Ends the shims without tasks but so many, and returns how many there are.
    fn retire(&mut self, keep: usize) -> usize {
        let idle: Vec<_> =
            self.live.iter().filter(|(_, shim)| shim.job.is_none()).map(|(id, _)| *id).collect();
        for id in idle.iter().skip(keep) {
            if let Some(shim) = self.live.remove(id) {
                let _ = shim.sender.send(ToShim::Retire);
            }
        }
        idle.len().min(keep)
    }

    fn fence(&mut self, run: Run) {
        let Some(local) = self.runs.get_mut(&run) else {
            self.backlog.retain(|(waiting, ..)| *waiting != run);
            self.resuming.remove(&run);
            return self.core.host(host::Event::Gone(run));
        };
        local.fenced = true;
        self.resuming.remove(&run);
        if local.departs.is_some() {
            self.checkpoints.went(run.task, local.slot.uid());
            self.slots.reserve(self.checkpoints.uids());
        }
        if local.shim.is_some() {
            self.tell(run, ToShim::Fence(run));
        } else {
            // Still staging: it never starts.
            if let Some(staging) = local.staging.take() {
                staging.abort();
            }
            self.core.host(host::Event::Gone(run));
        }
    }

    /// Serves the FIFOs of a run that was not begun here.
    fn find_fifos(&mut self, run: Run) {
        if let Some(local) = self.runs.get(&run) {
            self.fifos.find(run, &self.slots.folder(&local.slot), local.slot.uid());
        }
    }

    fn forget(&mut self, run: Run) {
        self.fifos.over(run);
        self.starting.remove(&run);
        self.resuming.remove(&run);
        self.checkpoints.unwatch(run);
        self.checkpoints.clear(run);
        self.sweep_checkpoints_later(resume::SOON);
        let Some(local) = self.runs.remove(&run) else { return };
        // Fails only when the agent stops; the next one sweeps.
        let _ = self.cleaner.send((local.slot, local.printed));
        self.inputs.release(run.task.job, self.runs.keys().any(|other| other.task.job == run.task.job));
        let Some(shim) = local.shim.and_then(|id| self.live.get_mut(&id)) else { return };
        let _ = shim.sender.send(ToShim::Forget(run));
        shim.runs.remove(&run);
        if shim.runs.is_empty() {
            shim.job = None;
            self.spare();
        }
    }

    fn answer(&mut self, query: Query) {
        match query {
            Query::Follow { run, reply } => {
                let following = self.runs.get_mut(&run).map(|local| {
                    local.watched = true;
                    Following {
                        folder: self.slots.folder(&local.slot),
                        uid: local.slot.uid(),
                        progress: local.progress.subscribe(),
                    }
                });
                if following.is_some() {
                    self.tell(run, ToShim::Watch(run));
                }
                let _ = reply.send(following);
            }
            Query::Keyboard { run, reply } => {
                let keyboard = self.runs.get(&run).and_then(|local| {
                    let shim = self.live.get(&local.shim?)?.sender.clone();
                    Some(Keyboard::new(run, shim, local.typed.subscribe(), local.progress.subscribe()))
                });
                let _ = reply.send(keyboard);
            }
            Query::Usage { runs, reply } => {
                let _ = reply.send(self.usage(&runs));
            }
            Query::Cleaned(slot) => {
                if let Some(surplus) = self.slots.give_back(slot) {
                    let groups =
                        grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
                    let _ = groups.map(|groups| groups.group(&surplus.name()).remove());
                    let folder = self.slots.folder(&surplus);
                    tokio::task::spawn_blocking(move || remove(&folder));
                }
                self.resume_parked();
            }
            Query::Unclean(uid) => self.resume_without(uid),
            Query::Places { runs, reply } => drop(reply.send(self.places(runs))),
            Query::Checkpoint { run, reply } => self.checkpoints.ask(run, reply),
            Query::Kept { task, reply } => drop(reply.send(self.checkpoints.status(task))),
            Query::Verify { task, number, reply } => self.checkpoints.verify(task, number, reply),
            Query::Export { task, number, from, to } => self.checkpoints.export(task, number, from, to),
            Query::Keep { task, number, reply } => self.checkpoints.keep(task, number, reply),
            Query::Cut { task, number } => self.checkpoints.cut(task, number),
            Query::Survey { run, reply } => self.survey(run, reply),
            Query::Fits { run, there, reply } => self.fits(run, *there, reply),
            Query::Depart { run, to, reply } => self.depart(run, to, reply),
            Query::Departed { run, from, departed } => self.departed(run, from, departed),
            Query::Pages { run, to, reply } => self.send_ahead(run, to, reply),
            Query::Comes { run, uid } => self.comes(run, uid),
            Query::Answer { run, call, errno, output } => {
                self.tell(run, ToShim::Answer { run, call, errno, output });
            }
            Query::Ahead { run, report } => self.sent_ahead(run, report),
            Query::Rounds { run, to, key, reply } => self.begin_rounds(run, to, key, reply),
            Query::Round { run, to, round, reply } => self.write_round(run, to, round, reply),
            Query::RoundsOver { run, key } => self.rounds_over(run, key),
            Query::Checkpoints(news) => self.checkpointed(news),
            Query::Finished(tasks) => tasks.into_iter().for_each(|task| self.checkpoints.forget(task)),
            Query::Shim(id, ShimNews::Said(message)) => self.hear(id, message),
            Query::Shim(id, ShimNews::Gone) => self.lose(id),
            Query::SweepInputs => self.inputs.sweep(),
            Query::Staged { run, result } => match result {
                Ok(launch) if self.runs.get(&run).is_some_and(|local| !local.fenced) => {
                    self.hand_over(launch)
                }
                Ok(_) => (),
                Err(why) => self.not_started(run, why),
            },
        }
    }

    fn usage(&self, runs: &[Run]) -> Vec<Used> {
        let groups = grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
        let Ok(groups) = groups else { return Vec::new() };
        let used = |run: &Run| {
            let local = self.runs.get(run).filter(|local| !local.progress.borrow().ended)?;
            let group = groups.group(&local.slot.name());
            let used = usage::so_far(&group, local.started?, Path::new("/proc"));
            Some((*run, used, self.told_of(*run, local)))
        };
        runs.iter().filter_map(used).collect()
    }

    /// Not of those that are being restored, as long as they have no ids.
    fn places(&self, runs: Option<Vec<Run>>) -> Vec<Place> {
        let runs = runs.unwrap_or_else(|| self.runs.keys().copied().collect());
        let place = |run: Run| {
            let local = self.runs.get(&run)?;
            let named = match &local.resuming {
                Some(resuming) => resuming.identified,
                None => local.started.is_some(),
            };
            let there = named && !local.progress.borrow().ended;
            there.then(|| (run, local.slot.name()))
        };
        runs.into_iter().filter_map(place).collect()
    }

    fn hear(&mut self, id: ShimId, message: FromShim) {
        match message {
            FromShim::Started { run, at } => {
                self.starting.remove(&run);
                self.identify(run);
                let resuming = self.runs.get_mut(&run).and_then(|local| local.resuming.take());
                let resumed = resuming.and_then(|resuming| resuming.number);
                self.core.host(host::Event::Started { run, at, resumed });
                resumed.into_iter().for_each(|number| self.checkpoints.resumed(run, number));
                let Some(local) = self.runs.get_mut(&run) else { return };
                local.started = Some(at);
                let watched = local.watched;
                self.find_fifos(run);
                if watched {
                    self.tell(run, ToShim::Watch(run));
                }
                self.watch(run);
            }
            FromShim::Ended { run, end } => {
                self.fifos.over(run);
                self.checkpoints.unwatch(run);
                if self.ready_ended(run, &end) || self.resume_failed(run, &end) {
                    return;
                }
                self.starting.remove(&run);
                let Some(local) = self.runs.get_mut(&run) else { return };
                local.progress.send_modify(|progress| progress.ended = true);
                local.printed = end.printed > 0;
                if !end.group_kept {
                    local.slot.forget_group();
                }
                let event = if local.fenced {
                    host::Event::Gone(run)
                } else {
                    host::Event::Ended { run, end: end_of(end, local.limits) }
                };
                self.core.host(event);
            }
            FromShim::Output { run, stdout, stderr } => {
                if let Some(local) = self.runs.get(&run) {
                    local.progress.send_modify(|progress| progress.written = stdout + stderr);
                }
            }
            FromShim::Typed { run, typed } => {
                if let Some(local) = self.runs.get(&run) {
                    local.typed.send_replace(typed);
                }
            }
            FromShim::Called { run, call, again, pid, op, input } => {
                let Some(local) = self.runs.get(&run) else { return };
                let (uid, op) = (local.slot.uid(), Op(op));
                let asked = Asked { uid, gid: uid, pid, op, input, again };
                // Who serves them ends with this agent.
                let _ = self.calls.send(Called { run, call, asked });
            }
            FromShim::Held { .. } => self.held(message),
            FromShim::PreDumped { run, folder, result } => self.round_written(run, folder, result),
            FromShim::Checkpointed { run, folder, result } => {
                let failed = result.is_err();
                // One after which the task stood still was told of then.
                if failed || !self.checkpoints.let_go(run, &folder) {
                    self.checkpoints.dumped(run, &folder, result);
                    self.checkpoints.let_go(run, &folder);
                }
            }
            // The greeting of a shim that was just started: it has none.
            FromShim::Tasks(kept) => {
                if !kept.is_empty() {
                    warn!(shim = id.0, "a new shim has tasks");
                }
            }
        }
    }

    /// A shim ended, and its tasks with it.
    fn lose(&mut self, id: ShimId) {
        let Some(shim) = self.live.remove(&id) else { return };
        for run in shim.runs {
            self.resuming.remove(&run);
            if let Some(local) = self.runs.get_mut(&run) {
                local.shim = None;
                let ended = local.progress.borrow().ended;
                if !ended {
                    warn!(%run, "shim_lost");
                    self.checkpoints.failed(run);
                    self.starting.remove(&run);
                    local.progress.send_modify(|progress| progress.ended = true);
                    let groups =
                        grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
                    // What stays is swept up at the next start.
                    let _ = groups.map(|groups| groups.group(&local.slot.name()).remove());
                    local.slot.forget_group();
                    local.printed = true;
                    self.core.host(host::Event::Gone(run));
                }
            }
        }
        self.spare();
    }

    fn not_started(&mut self, run: Run, why: String) {
        self.end_unstarted(run, Outcome::NotStarted { why, status: 126 });
    }

    fn end_unstarted(&mut self, run: Run, outcome: Outcome) {
        self.starting.remove(&run);
        if let Some(local) = self.runs.get(&run) {
            local.progress.send_modify(|progress| progress.ended = true);
        }
        let end = End { outcome, usage: Usage::default(), printed: false };
        self.core.host(host::Event::Ended { run, end });
    }
}

/// Cleans slots on a thread of its own, as removing a task's files may take long.
fn start_cleaner(
    folder: PathBuf,
    queries: mpsc::UnboundedSender<Query>,
) -> std::sync::mpsc::Sender<(Slot, bool)> {
    let (sender, receiver) = std::sync::mpsc::channel::<(Slot, bool)>();
    std::thread::spawn(move || {
        for (slot, printed) in receiver {
            let path = folder.join(slot.name());
            match slot::clean(&path, printed) {
                Ok(_) => drop(queries.send(Query::Cleaned(slot))),
                // Never given to another task.
                Err(error) => {
                    warn!(path = %path.display(), %error, "cannot be removed");
                    let _ = queries.send(Query::Unclean(slot.uid()));
                }
            }
        }
    });
    sender
}

impl Local {
    fn new(slot: Slot, limits: (Bytes, Option<Span>)) -> Self {
        Self {
            slot,
            shim: None,
            staging: None,
            limits,
            when: spec::Checkpoints::Off,
            saved: 0,
            left: None,
            ready: None,
            resuming: None,
            note: None,
            progress: watch::Sender::new(Progress::default()),
            watched: false,
            started: None,
            printed: false,
            typed: watch::Sender::new(Typed::default()),
            fenced: false,
            departs: None,
            leaving: None,
            rounds: None,
            address: None,
        }
    }
}
