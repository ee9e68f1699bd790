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
mod event;
mod explain;
mod moving;
mod order;
mod place;
mod report;
mod serials;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::{JobId, NodeId, Run, Selector, TaskId};
use libgrid::node::Resources;
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;

use crate::message::{Alive, LeaseId, ToHome, ToHost};
use crate::record::{Change, JobRecord, Kept, Origin, TaskRecord};
use crate::{LEASE, MARGIN, Now};

pub use self::event::{Action, Collected, Event, Ungathered};
pub use self::moving::Move;
use self::moving::Moving;
use self::serials::Serials;
use self::state::{Asked, Job, Node, Pausing, State, Task, Trouble};

/// The home's state machine.
#[derive(Debug)]
pub struct Home {
    me: NodeId,
    jobs: BTreeMap<JobId, Job>,
    /// The jobs with tasks that wait for a node and for nothing else, oldest first.
    queue: BTreeSet<JobId>,
    /// Which jobs of this home wait for the end of each of these, of whichever home.
    followers: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Tasks that ended and whose results cannot be brought home, of each user.
    stuck: BTreeMap<u32, BTreeSet<TaskId>>,
    /// Jobs whose inputs could not be gathered.
    gathering: BTreeSet<JobId>,
    /// Jobs that came back from the store, and are to be lined up at the first event.
    returned: Vec<JobId>,
    /// Jobs of this home whose followers are to be told, if they have ended.
    ended: Vec<JobId>,
    /// When other homes were last asked.
    asked_fates: Duration,
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
            followers: BTreeMap::new(),
            stuck: BTreeMap::new(),
            gathering: BTreeSet::new(),
            returned: Vec::new(),
            ended: Vec::new(),
            asked_fates: Duration::ZERO,
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
        let uid = record.origin.uid;
        let mut stuck = Vec::new();
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
                let failed = !outcome.is_success();
                task.state = State::Done { outcome, at };
                job.failed |= failed;
                job.waiting.remove(&index);
                job.ended = job.ended.max(Some(at));
            } else if let Some(node) = record.node {
                task.state = match record.kept {
                    Some(kept) => {
                        stuck.push(id.task(index));
                        let Kept { end, since, why } = *kept;
                        let tried = Pausing { again: now.mono, ..Pausing::new(now, why, None) };
                        let trouble = Some(Trouble { tried, since, met: now.mono });
                        State::Ending { node, end: Box::new(end), collecting: false, trouble }
                    }
                    None => State::Running { node },
                };
                job.waiting.remove(&index);
                job.active.insert(index);
                let run = Run { task: id.task(index), epoch: record.epoch };
                self.node(node, now).runs.insert(run);
            }
        }
        if !job.is_done() {
            job.ended = None;
        }
        if !stuck.is_empty() {
            self.stuck.entry(uid).or_default().extend(stuck);
        }
        self.jobs.insert(id, job);
        self.returned.push(id);
    }

    /// Takes an event. Call [`Home::schedule`] after one or several of them.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submit { ticket, spec, origin } => self.submit(now, ticket, spec, origin, &mut actions),
            Event::Kill { job, signal, grace } => self.kill(now, job, signal, grace, &mut actions),
            Event::Hold { job, held } => self.hold(job, held, &mut actions),
            Event::Gathered { job, inputs } => self.gathered(now, job, inputs, &mut actions),
            Event::Fate { job, fate } => self.learn(now, job, fate, &mut actions),
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
        self.tell_followers(now, &mut actions);
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
        let (held, unmet) = (spec.hold, spec.after.clone());
        let record = Arc::new(JobRecord { spec, origin, submitted: now.wall, cancelled: None, held, unmet });
        actions.push(Action::Write(Change::Job(id, record.clone())));
        let job = Job::new(record);
        actions.push(Action::Accepted { ticket, job: id, waits: self.impossible(&job) });
        self.jobs.insert(id, job);
        self.line_up(id, actions);
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
            job.write(id, |record| record.cancelled = Some(signal), actions);
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
                State::Ending { .. } if ends => {
                    if let Some(task) = self.jobs.get_mut(&id).and_then(|job| job.task_mut(index)) {
                        task.unwanted = true;
                    }
                    self.give_up_results(now, run, actions);
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
            ToHome::NotMoved { run, why } => self.not_moved(from, run, shortened(why), actions),
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
        // Before anything is forgotten that others wait for.
        self.tell_followers(now, actions);
        self.ask_fates(now, actions);
        self.gather_again(now, actions);
        self.give_up_old_results(now, actions);
        self.give_up_asking(now, actions);
        self.give_up_moves(now, actions);
        self.believe_overlay();
        self.start_again(now, actions);
        let silent: Vec<Run> = self
            .nodes
            .iter()
            .filter(|(id, node)| **id != self.me && node.is_silent(now.mono))
            .flat_map(|(_, node)| node.runs.iter().copied())
            // What a run left stays there, however long its node is away.
            .filter(|run| !self.is_stuck(run.task))
            .collect();
        for run in silent {
            if now.mono >= self.placed_at(run) + LEASE + MARGIN {
                self.lost(now, run, actions);
            }
        }
        self.ask_who_has(now, actions);
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

/// Bytes in a sentence of another node at most: it is kept, and what is kept has to be readable again.
const SENTENCE: usize = 4096;

fn shortened(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(SENTENCE));
    why
}

/// Signals that are sent to end a program.
pub const ENDING: [i32; 5] = [1, 2, 3, 9, 15];
