//! Carries out what the host decides: starts tasks through shims, stages their inputs, and tells the core what
//! the shims tell.
//!
//! A shim keeps the tasks of one job. One that has none left waits, with some others, for the next job, so that a task
//! rarely waits for a process to be started; after a while all but a few of them end (`shims.rs`).

pub(crate) mod ahead;
mod environment;
pub(crate) mod inputs;
mod keyboard;
pub(crate) mod luggage;
pub(crate) mod moving;
mod precopy;
mod queries;
mod ready;
mod recover;
mod resume;
mod shim;
mod shims;
mod slots;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_checkpoint::order::Then;
use grid_jobs::home;
use grid_jobs::host::{self, Action};
use grid_jobs::message::{End, Order, Placement};
use grid_run::protocol::{Launch, ToShim, Typed};
use grid_run::slot;
use grid_run::spawn::Shims;
use libgrid::address::Address;
use libgrid::ids::{NodeId, Run};
use libgrid::pipe::PipeUse;
use libgrid::spec::{self, JobSpec, Net};
use libgrid::status::{Outcome, Usage};
use libgrid::units::{Bytes, Span};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use self::ahead::{Leaving, Moves};
pub(crate) use self::ahead::{Outset, Taker};
use self::environment::environment;
pub(crate) use self::environment::{end_of, is_fenced};
use self::inputs::Inputs;
pub(crate) use self::keyboard::Keyboard;
pub(crate) use self::moving::{Departing, Departure, Surveyed};
use self::precopy::Rounds;
pub(crate) use self::precopy::{Round, Rounding};
pub(crate) use self::queries::{Following, Progress, Query, Used};
use self::ready::Ready;
use self::recover::remove;
pub(crate) use self::recover::{Found, find, shim_program};
use self::resume::Resuming;
pub(crate) use self::resume::finished;
use self::shim::ShimId;
use self::shims::{STAY, Shim};
pub(crate) use self::slots::is_task;
use self::slots::{Slot, Slots};
use crate::calls::Called;
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::config::Config;
use crate::core::{Core, deadline};
use crate::network::Network;
use crate::peers::Peers;
use crate::pipes::fifo::Fifos;
use crate::processes::Processes;
use crate::staging::Staging;

/// How many tasks are being started at once; others wait without taking a place. Enough to keep every shim busy.
const STARTING: usize = 64;

/// How long a task that stood still to move lies here after its move.
const GIVE_WAY: Duration = Duration::from_millis(100);

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
    /// What it used before it went on here.
    before: Usage,
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
    departs: Option<(NodeId, u32)>,
    /// It stands still, to be taken away.
    held: bool,
    /// Its memory, on its way there.
    leaving: Option<Leaving>,
    /// Or in rounds.
    rounds: Option<Rounds>,
    /// Its own address.
    address: Option<Ipv4Addr>,
    /// What it has of named pipes.
    pipes: Vec<PipeUse>,
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
    /// Runs to be forgotten once what they wrote to pipes is there.
    draining: HashSet<Run>,
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
        draining: HashSet::new(),
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
                let (then, ahead, parent) = (Then::RunOn, None, None);
                self.tell(run, ToShim::Checkpoint { run, folder, then, ahead, parent });
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { run, order, placement } => self.backlog.push_back((run, order, placement)),
            Action::Signal { run, signal, grace } => self.signal(run, signal, grace),
            Action::Fence(run) => self.fence(run),
            Action::Depart { run, to, epoch } => self.may_depart(run, (to, epoch)),
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
        let staging =
            self.runs.get(&run).and_then(|local| local.staging.clone().filter(|_| local.shim.is_none()));
        if at.is_none() && !waits && staging.is_none() {
            return self.tell(run, ToShim::Signal { run, signal, grace });
        }
        // It has no processes: what would end a program that handles nothing ends it before it begins.
        if home::ENDING.contains(&signal) {
            staging.inspect(|staging| staging.abort());
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
        let pipes = spec.pipes.clone();
        self.runs.insert(run, Local { when, saved, left, note, pipes, ..local });
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
            files: false,
            checkpoint: when,
            address,
            enters: self.processes.has_module(),
            calls: spec.system_call,
            pipes: spec.pipes.clone(),
            before: Usage::default(),
        }
    }

    fn fence(&mut self, run: Run) {
        let Some(local) = self.runs.get_mut(&run) else {
            self.backlog.retain(|(waiting, ..)| *waiting != run);
            self.resuming.remove(&run);
            return self.core.host(host::Event::Gone(run));
        };
        local.fenced = true;
        self.fifos.leaves(run);
        self.resuming.remove(&run);
        if local.departs.is_some() {
            self.checkpoints.went(run.task, local.slot.uid());
            self.slots.reserve(self.checkpoints.uids());
        }
        if local.shim.is_some() {
            if !std::mem::take(&mut local.held) {
                return self.tell(run, ToShim::Fence(run));
            }
            // What goes on elsewhere shall not wait for a processor that is busy giving back all of its memory here.
            let queries = self.queries.clone();
            tokio::spawn(async move {
                tokio::time::sleep(GIVE_WAY).await;
                // The runner ends only with the agent.
                let _ = queries.send(Query::EndHeld(run));
            });
        } else {
            // Still staging: it never starts.
            if let Some(staging) = local.staging.take() {
                staging.abort();
            }
            self.core.host(host::Event::Gone(run));
        }
    }

    /// Serves the FIFOs of a run that was not begun here, or before this agent.
    fn find_fifos(&mut self, run: Run) {
        if let Some(local) = self.runs.get(&run) {
            self.fifos.find(run, &self.slots.folder(&local.slot), local.slot.uid(), &local.pipes);
        }
    }

    fn forget(&mut self, run: Run) {
        self.fifos.over(run);
        if self.fifos.is_draining(run) {
            // The shim keeps what is on its way.
            self.draining.insert(run);
            return;
        }
        self.fifos.forget(run);
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
            match recover::insist(|| slot::clean(&path, printed)) {
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
            before: Usage::default(),
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
            held: false,
            leaving: None,
            rounds: None,
            address: None,
            pipes: Vec::new(),
        }
    }
}
