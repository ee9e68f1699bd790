//! The home's part: owns the jobs that were submitted on this node.
//!
//! A task's life as the home sees it ([`libgrid::status::TaskState`] is what users see of it):
//!
//! ```text
//!              Granted               Started             Ended             collected
//!   Waiting ────────────▶ Placed ────────────▶ Running ─────────▶ Ending ───────────▶ Done
//!      ▲                     │                    │                  │
//!      └─────────────────────┴────────────────────┴──────────────────┘
//!              Gone, or nothing heard from the node for LEASE + MARGIN
//! ```
//!
//! A `Start` that may have been lost is sent again until the host tells of the run or says that it is gone.

mod end;
mod explain;
mod moving;
mod place;
mod report;
mod serials;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libgrid::ids::{JobId, NodeId, Run, Selector, TaskId};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::spec::JobSpec;
use libgrid::status::{MoveMode, Outcome, Usage};

use crate::message::{Alive, End, LeaseId, ToHome, ToHost};
use crate::record::{Back, Change, JobRecord, Origin, TaskRecord};
use crate::{LEASE, MARGIN, Now};

pub use self::moving::Move;
use self::moving::Moving;
use self::serials::Serials;

/// How long a task that was lost waits for the node that has its checkpoint, if that is there, before it begins anew on another
/// one. The host needs some seconds to free what the lost run took; a node that fills up meanwhile may take longer.
const FAITHFUL: Duration = Duration::from_secs(30);

/// What happens to a home.
#[derive(Clone, Debug)]
pub enum Event {
    /// A user submits a job that has been checked.
    Submit {
        /// Returned with [`Action::Accepted`].
        ticket: u64,
        /// What to run.
        spec: Arc<JobSpec>,
        /// For whom.
        origin: Origin,
    },
    /// A user sends a signal.
    Kill {
        /// To which tasks.
        job: Selector,
        /// From 1 to 64.
        signal: i32,
        /// SIGKILL after that.
        grace: Option<Duration>,
    },
    /// A user wants a task that is not done to go on from an earlier checkpoint.
    Restore {
        /// Which.
        task: TaskId,
        /// The number of the checkpoint.
        number: u64,
        /// Where that is.
        node: NodeId,
    },
    /// A user wants a task on another node, and it is known that it can be there: [`Home::last_move`] tells what comes of it.
    Migrate {
        /// Which.
        task: TaskId,
        /// Whereto.
        to: NodeId,
        /// How.
        mode: MoveMode,
    },
    /// What came of [`Action::Export`].
    Exported {
        /// Of which task.
        task: TaskId,
        /// The number of the checkpoint, and where it is now; nothing if it could not be brought.
        at: Option<(u64, NodeId)>,
        /// How long none is to be brought, so that they do not take too much of the network.
        rest: Duration,
    },
    /// A message from a host.
    Message {
        /// Who sent it, as its certificate says.
        from: NodeId,
        /// What it says.
        message: ToHome,
    },
    /// A node is there, or tells something new of itself.
    Node(NodeInfo),
    /// A node does not answer the overlay, or was put out of the VO.
    NodeDown(NodeId),
    /// Results and logs of a run have been brought home, or cannot be.
    Collected {
        /// Which.
        run: Run,
        /// What came of it.
        result: Collected,
    },
    /// After a restart: these are all the runs that this node's own shims kept.
    LocalRuns(BTreeSet<Run>),
    /// Time passes; at least every second.
    Tick,
}

/// What came of bringing results home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// All is here.
    Whole,
    /// It will never be: one sentence why.
    Failed(String),
    /// The node could not be reached; it will tell again.
    Unreachable,
}

/// What a home wants done. Changes are to be durable before anything else of the same batch is carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write this down.
    Write(Change),
    /// Send this message.
    Send {
        /// To which host.
        to: NodeId,
        /// What it says.
        message: ToHost,
    },
    /// The job has a name and is written down.
    Accepted {
        /// As in [`Event::Submit`].
        ticket: u64,
        /// Its name.
        job: JobId,
    },
    /// Bring results and logs of this run home: [`Event::Collected`] follows.
    Collect {
        /// Which.
        run: Run,
        /// Where it is.
        node: NodeId,
        /// Whether there are results as well as logs.
        results: Option<Vec<String>>,
        /// Whose folder they go to.
        origin: Origin,
    },
    /// This run is lost: drop what came of its results so far.
    Abandon {
        /// Which.
        run: Run,
        /// Whose folder it came to.
        origin: Origin,
    },
    /// Have this checkpoint brought here, or to another node if it is here: [`Event::Exported`] follows.
    Export {
        /// Of which task.
        task: TaskId,
        /// Which.
        number: u64,
        /// From which node.
        from: NodeId,
        /// Whereto.
        to: NodeId,
    },
    /// Drop the checkpoints of a task that are here with a higher number: they are of another past.
    Cut {
        /// Of which task.
        task: TaskId,
        /// The last one to keep.
        number: u64,
    },
    /// Something of this job changed; whoever waits for it wants to look.
    Changed(JobId),
    /// A job is done, so nobody fetches its inputs any more: remove them ([`Origin::inputs`]).
    Spent(u64),
    /// The job is forgotten: remove its logs.
    Forget(JobId),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Waiting,
    /// `start` says on which reservation, and when that was told last; nothing once the host has it.
    Placed {
        node: NodeId,
        start: Option<(LeaseId, Duration)>,
    },
    Running {
        node: NodeId,
    },
    /// It ended; logs and results are on their way.
    Ending {
        node: NodeId,
        end: Box<End>,
        collecting: bool,
    },
    Done {
        outcome: Outcome,
        at: SystemTime,
    },
}

#[derive(Clone, Debug)]
struct Task {
    state: State,
    epoch: u32,
    /// As in [`TaskRecord::used`].
    used: u32,
    /// The node of the last run, for people.
    last: Option<NodeId>,
    /// When it was placed, or taken back from the store.
    placed: Duration,
    started: Option<SystemTime>,
    usage: Usage,
    /// A signal that was meant to end it: it is not started again.
    doomed: Option<i32>,
    /// The number of its newest checkpoint, and where that is.
    saved: Option<(u64, NodeId)>,
    /// As in [`TaskRecord::back`].
    back: Option<Back>,
    /// As in [`TaskRecord::exported`].
    exported: Option<(u64, NodeId)>,
    /// Until when none is brought away; for ever while one is on its way.
    rests: Duration,
    /// The other node that one is on its way to, from here.
    exports_to: Option<NodeId>,
    /// The checkpoint that the present run went on from.
    resumed: Option<u64>,
    /// When its last run was lost.
    lost: Duration,
    /// What came of its last move.
    moved: Option<Move>,
    /// As in [`TaskRecord::serial`].
    serial: Option<u16>,
}

#[derive(Debug)]
struct Job {
    record: Arc<JobRecord>,
    first: u32,
    tasks: Vec<Task>,
    /// The indices that wait, for a node or for the answer to a reservation.
    waiting: BTreeSet<u32>,
    /// For how many of them reservations are under way.
    asked: u32,
    /// The indices that are neither waiting nor done.
    active: BTreeSet<u32>,
    ended: Option<SystemTime>,
}

/// What the home knows of a node.
#[derive(Clone, Debug)]
struct Node {
    info: NodeInfo,
    /// What is free there as far as we know, less what we asked for since.
    free: Resources,
    up: bool,
    /// No reservation is asked for before.
    not_before: Duration,
    /// Runs of ours that are there.
    runs: BTreeSet<Run>,
    /// When its last heartbeat came.
    heard: Duration,
}

#[derive(Debug)]
struct Asked {
    job: JobId,
    /// Of a task that runs, and is to move.
    moves: Option<TaskId>,
    node: NodeId,
    each: Resources,
    count: u32,
    at: Duration,
}

/// The home's state machine.
#[derive(Debug)]
pub struct Home {
    me: NodeId,
    jobs: BTreeMap<JobId, Job>,
    /// The jobs with tasks that wait for a node, oldest first.
    queue: BTreeSet<JobId>,
    nodes: BTreeMap<NodeId, Node>,
    asked: HashMap<LeaseId, Asked>,
    moving: BTreeMap<TaskId, Moving>,
    serials: Serials,
    next_serial: u32,
    next_lease: u64,
    /// Whether anything happened that may let a task be placed.
    stirred: bool,
    retention: Duration,
    purged: Duration,
}

impl Home {
    /// The home of node `me`. `seed` is a random number; jobs are forgotten `retention` after their end.
    /// `next_serial` is the first serial that was never used.
    pub fn new(me: NodeId, seed: u64, next_serial: u32, retention: Duration) -> Self {
        Self {
            me,
            jobs: BTreeMap::new(),
            queue: BTreeSet::new(),
            nodes: BTreeMap::new(),
            asked: HashMap::new(),
            moving: BTreeMap::new(),
            serials: Serials::new(seed),
            next_serial,
            next_lease: seed,
            stirred: false,
            retention,
            purged: Duration::ZERO,
        }
    }

    /// Takes back a job from the store after a restart, with those of its tasks that have records. A node with
    /// runs counts as heard from just now.
    pub fn restore(&mut self, now: Now, id: JobId, record: Arc<JobRecord>, tasks: Vec<(u32, TaskRecord)>) {
        self.next_serial = self.next_serial.max(id.serial + 1);
        let mut job = Job::new(record);
        for (index, record) in tasks {
            let Some(task) = job.task_mut(index) else { continue };
            task.epoch = record.epoch;
            task.used = record.used;
            task.started = record.started;
            task.last = record.node;
            task.placed = now.mono;
            task.lost = now.mono;
            task.saved = record.saved;
            task.back = record.back;
            task.exported = record.exported;
            task.serial = record.serial;
            record.serial.into_iter().for_each(|serial| self.serials.keep(serial));
            if let Some((at, outcome, usage)) = record.ended {
                task.usage = usage;
                task.state = State::Done { outcome, at };
                job.waiting.remove(&index);
                job.ended = job.ended.max(Some(at));
            } else if let Some(node) = record.node {
                task.state = State::Running { node };
                job.waiting.remove(&index);
                job.active.insert(index);
                let run = Run { task: id.task(index), epoch: record.epoch };
                self.node(node, now).runs.insert(run);
            }
        }
        if !job.is_done() {
            job.ended = None;
        }
        if !job.waiting.is_empty() {
            self.queue.insert(id);
        }
        self.stirred = true;
        self.jobs.insert(id, job);
    }

    /// Takes an event. Call [`Home::schedule`] after one or several of them.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submit { ticket, spec, origin } => self.submit(now, ticket, spec, origin, &mut actions),
            Event::Kill { job, signal, grace } => self.kill(now, job, signal, grace, &mut actions),
            Event::Restore { task, number, node } => self.take_back(task, number, node, &mut actions),
            Event::Migrate { task, to, mode } => self.migrate(now, task, to, mode, &mut actions),
            Event::Exported { task, at, rest } => self.brought(now, task, at, rest, &mut actions),
            Event::Message { from, message } => self.hear(now, from, message, &mut actions),
            Event::Node(info) => {
                let free = info.free;
                let node = self.node(info.node, now);
                node.info = info;
                node.free = free;
                node.up = true;
                self.stirred = true;
            }
            Event::NodeDown(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.up = false;
                }
            }
            Event::Collected { run, result } => self.collected(now, run, result, &mut actions),
            Event::LocalRuns(kept) => {
                let me = self.me;
                let known = self.nodes.get(&me).map(|node| node.runs.clone()).unwrap_or_default();
                known.difference(&kept).for_each(|run| self.lost(now, *run, &mut actions));
            }
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn submit(
        &mut self,
        now: Now,
        ticket: u64,
        spec: Arc<JobSpec>,
        origin: Origin,
        actions: &mut Vec<Action>,
    ) {
        let id = JobId { home: self.me, serial: self.next_serial };
        self.next_serial += 1;
        let record = Arc::new(JobRecord { spec, origin, submitted: now.wall, cancelled: None });
        actions.push(Action::Write(Change::Job(id, record.clone())));
        actions.push(Action::Accepted { ticket, job: id });
        self.jobs.insert(id, Job::new(record));
        self.queue.insert(id);
        self.stirred = true;
    }

    fn kill(
        &mut self,
        now: Now,
        selector: Selector,
        signal: i32,
        grace: Option<Duration>,
        actions: &mut Vec<Action>,
    ) {
        let id = selector.job();
        let ends = grace.is_some() || ENDING.contains(&signal);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if ends && matches!(selector, Selector::Job(_)) && !job.is_done() {
            let record = JobRecord { cancelled: Some(signal), ..(*job.record).clone() };
            job.record = Arc::new(record);
            actions.push(Action::Write(Change::Job(id, job.record.clone())));
        }
        let meant: Vec<u32> =
            job.waiting.union(&job.active).copied().filter(|index| selector.covers(*index)).collect();
        for index in meant {
            let Some(task) = self.jobs.get_mut(&id).and_then(|job| job.task_mut(index)) else { continue };
            if ends {
                task.doomed = Some(signal);
                self.stay(id.task(index), "it is being ended".into(), actions);
            }
            let Some(task) = self.task(id.task(index)) else { continue };
            let run = Run { task: id.task(index), epoch: task.epoch };
            match task.state {
                State::Waiting if ends => self.done(now, run, Outcome::Killed(signal), actions),
                State::Placed { node, .. } | State::Running { node } => {
                    actions.push(Action::Send { to: node, message: ToHost::Signal { run, signal, grace } });
                }
                _ => (),
            }
        }
    }

    fn hear(&mut self, now: Now, from: NodeId, message: ToHome, actions: &mut Vec<Action>) {
        match message {
            ToHome::Granted { lease, count, free } => self.granted(now, from, lease, count, free, actions),
            ToHome::Started { run, at, resumed } => {
                let alive = Alive { run, since: Some(at), resumed, saved: None, held: false };
                self.confirm(now, alive, from, actions);
            }
            ToHome::Moving { run, phase, stood, bytes } => {
                self.move_goes_on(now, from, run, (phase, stood, bytes), actions);
            }
            ToHome::Arrived(run) => self.arrived(now, from, run, actions),
            ToHome::NotMoved { run, why } => self.not_moved(from, run, why, actions),
            ToHome::Ended { run, end } => self.ended(now, from, run, end, actions),
            ToHome::Gone(runs) => {
                for run in runs {
                    if self.place_of(run) == Some(from) {
                        self.lost(now, run, actions);
                    }
                    self.not_moved(from, run, format!("node {from} could not take it"), actions);
                }
            }
            ToHome::Heartbeat { seq, runs, free } => self.heartbeat(now, from, seq, runs, free, actions),
        }
    }

    fn heartbeat(
        &mut self,
        now: Now,
        from: NodeId,
        seq: u64,
        runs: Vec<Alive>,
        free: Resources,
        actions: &mut Vec<Action>,
    ) {
        let node = self.node(from, now);
        node.heard = now.mono;
        node.free = free;
        node.up = true;
        let mut missing = node.runs.clone();
        let mut fence = Vec::new();
        for alive in runs {
            let run = alive.run;
            missing.remove(&run);
            if self.place_of(run) == Some(from) {
                match self.is_to_go_back(run) {
                    true => fence.push(run),
                    false => self.confirm(now, alive, from, actions),
                }
                match alive.held {
                    true => self.may_go(run, from, actions),
                    false => self.still_departs(run, from, actions),
                }
            } else if run.task.job.home == self.me && !self.is_arriving(now, from, alive, actions) {
                // Its epoch is over, or its end is written down, be it that it was given up as lost.
                fence.push(run);
            }
        }
        actions.push(Action::Send { to: from, message: ToHost::Pulse { seq, fence } });
        // Long enough after it was placed, no Start can be under way any more: its lease is over.
        let lost: Vec<_> =
            missing.into_iter().filter(|run| now.mono >= self.placed_at(*run) + LEASE + MARGIN).collect();
        lost.into_iter().for_each(|run| self.lost(now, run, actions));
        self.stirred = true;
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.give_up_asking(now, actions);
        self.give_up_moves(now, actions);
        self.believe_overlay();
        self.start_again(now, actions);
        let silent: Vec<Run> = self
            .nodes
            .iter()
            .filter(|(id, node)| **id != self.me && now.mono >= node.heard + LEASE + MARGIN)
            .flat_map(|(_, node)| node.runs.iter().copied())
            .collect();
        for run in silent {
            if now.mono >= self.placed_at(run) + LEASE + MARGIN {
                self.lost(now, run, actions);
            }
        }
        if now.mono >= self.purged + Duration::from_secs(60) {
            self.purged = now.mono;
            let old = |job: &Job| {
                job.ended
                    .and_then(|at| now.wall.duration_since(at).ok())
                    .is_some_and(|age| age > self.retention)
            };
            let old: Vec<_> = self.jobs.iter().filter(|(_, job)| old(job)).map(|(id, _)| *id).collect();
            for id in old {
                self.jobs.remove(&id);
                actions.push(Action::Write(Change::Forget(id)));
                actions.push(Action::Forget(id));
            }
        }
    }

    // === looking up ===

    fn node(&mut self, id: NodeId, now: Now) -> &mut Node {
        self.nodes.entry(id).or_insert_with(|| Node::unknown(id, now.mono))
    }

    fn task(&self, task: TaskId) -> Option<&Task> {
        self.jobs.get(&task.job)?.task(task.index)
    }

    /// Where this run is, if it is the current one of its task and has not been written down as done.
    fn place_of(&self, run: Run) -> Option<NodeId> {
        let task = self.task(run.task).filter(|task| task.epoch == run.epoch)?;
        task.state.node()
    }

    fn placed_at(&self, run: Run) -> Duration {
        self.task(run.task).map_or(Duration::ZERO, |task| task.placed)
    }

    /// The host told of the run.
    fn confirm(&mut self, now: Now, alive: Alive, from: NodeId, actions: &mut Vec<Action>) {
        let Alive { run, since, resumed, saved, held: _ } = alive;
        if self.place_of(run) != Some(from) {
            return;
        }
        let to = match saved {
            Some(number) if from == self.me => self.second(run.task, number),
            _ => Some(self.me),
        };
        let Some(task) = self.jobs.get_mut(&run.task.job).and_then(|job| job.task_mut(run.task.index)) else {
            return;
        };
        task.resumed = resumed.or(task.resumed);
        let newer = saved.filter(|saved| task.saved.is_none_or(|known| known != (*saved, from)));
        task.saved = newer.map(|number| (number, from)).or(task.saved);
        let news = match (&mut task.state, since) {
            (State::Placed { node, .. }, Some(at)) => {
                task.started = Some(at);
                task.state = State::Running { node: *node };
                true
            }
            (State::Placed { start, .. }, None) => {
                *start = None;
                false
            }
            (State::Running { .. }, Some(at)) if task.started.is_none() => {
                task.started = Some(at);
                true
            }
            _ => false,
        };
        // It is where its user wanted it: from here on, its newest checkpoint counts again.
        let arrived = news && task.back.take_if(|back| run.epoch > back.after).is_some();
        if let Some(number) =
            saved.filter(|saved| task.exported.is_none_or(|(exported, _)| exported < *saved))
            && let Some(to) = to
            && !self.moving.contains_key(&run.task)
            && now.mono >= task.rests
        {
            task.rests = Duration::MAX;
            task.exports_to = (from == self.me).then_some(to);
            actions.push(Action::Export { task: run.task, number, from, to });
        }
        if newer.is_some() || arrived {
            actions.push(Action::Write(Change::Task(run.task, Box::new(task.record()))));
        }
        if news {
            actions.push(Action::Changed(run.task.job));
        }
    }

    /// Which other node keeps the checkpoints of a task that runs here: the one that does, while it is up; else one that the
    /// number chooses, so that after one that cannot another is asked.
    fn second(&self, task: TaskId, number: u64) -> Option<NodeId> {
        let is_second = |id: NodeId| id != self.me && self.nodes.get(&id).is_some_and(|node| node.up);
        let before = self.task(task)?.exported.map(|(_, node)| node).filter(|node| is_second(*node));
        before.or_else(|| {
            let all: Vec<NodeId> = self.nodes.keys().copied().filter(|node| is_second(*node)).collect();
            let turn = u64::from(task.job.serial) + u64::from(task.index) + number;
            all.get(turn.checked_rem(all.len() as u64)? as usize).copied()
        })
    }

    /// Whether the run is one that its user wants to end, for the task to go on from a checkpoint.
    fn is_to_go_back(&self, run: Run) -> bool {
        self.task(run.task).and_then(|task| task.back).is_some_and(|back| run.epoch <= back.after)
    }

    /// Takes the run off its node.
    fn leave(&mut self, run: Run) -> Option<NodeId> {
        let node = self.place_of(run)?;
        if let Some(node) = self.nodes.get_mut(&node) {
            node.runs.remove(&run);
        }
        Some(node)
    }
}

/// Signals that are sent to end a program.
pub const ENDING: [i32; 5] = [1, 2, 3, 9, 15];

// === impl Job ===

impl Job {
    fn new(record: Arc<JobRecord>) -> Self {
        let indices: BTreeSet<u32> = record.spec.indices().collect();
        let first = indices.first().copied().unwrap_or(0);
        let tasks = vec![Task::new(record.cancelled); indices.len()];
        Self { record, first, tasks, waiting: indices, asked: 0, active: BTreeSet::new(), ended: None }
    }

    fn task(&self, index: u32) -> Option<&Task> {
        self.tasks.get(index.checked_sub(self.first)? as usize)
    }

    fn task_mut(&mut self, index: u32) -> Option<&mut Task> {
        self.tasks.get_mut(index.checked_sub(self.first)? as usize)
    }

    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }
}

impl Task {
    fn new(doomed: Option<i32>) -> Self {
        Self {
            state: State::Waiting,
            epoch: 0,
            used: 0,
            last: None,
            placed: Duration::ZERO,
            started: None,
            usage: Usage::default(),
            doomed,
            saved: None,
            back: None,
            exported: None,
            rests: Duration::ZERO,
            exports_to: None,
            resumed: None,
            lost: Duration::ZERO,
            moved: None,
            serial: None,
        }
    }

    /// What is written down of it while it has not ended.
    fn record(&self) -> TaskRecord {
        let Self { epoch, used, started, saved, exported, back, serial, .. } = *self;
        let node = self.state.node();
        TaskRecord { epoch, used, node, started, ended: None, saved, exported, back, serial }
    }

    /// The only node to wait for, if there is one and it is up: where its checkpoint is, for [`FAITHFUL`] after it was lost;
    /// where its user wants it to go on from there, without end.
    fn waits_for(&self, now: Now) -> Option<NodeId> {
        let wanted = self.back.is_some() || now.mono < self.lost + FAITHFUL;
        self.saved.filter(|_| wanted).map(|(_, node)| node)
    }
}

impl State {
    fn node(&self) -> Option<NodeId> {
        match self {
            State::Placed { node, .. } | State::Running { node } | State::Ending { node, .. } => Some(*node),
            State::Waiting | State::Done { .. } => None,
        }
    }
}

impl Node {
    fn unknown(id: NodeId, now: Duration) -> Self {
        let info = NodeInfo {
            node: id,
            name: String::new(),
            addrs: Vec::new(),
            tier: Tier::Stack,
            total: Resources::default(),
            free: Resources::default(),
            load: 0,
            tasks: 0,
            version: String::new(),
            addresses: false,
            drained: false,
        };
        Self {
            info,
            free: Resources::default(),
            up: false,
            not_before: Duration::ZERO,
            runs: BTreeSet::new(),
            heard: now,
        }
    }
}
