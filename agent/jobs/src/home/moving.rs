//! A task moves to another node while it runs.
//!
//! ```text
//!          Migrate            Granted, epoch + 1 written        the copy stands there
//!  Running ───────▶ Reserving ─────────▶ Departing ─▶ Copying ─▶ Restoring ───┐
//!     ▲                 │                    │           │           │        │ Arrived: written down
//!     └─────────────────┴────────────────────┴───────────┴───────────┘        ▼
//!          anything else happens: the old run is let go, the new one fenced   Running, over there
//! ```
//!
//! ```text
//!   home                     source                      destination
//!    ── Reserve ───────────────────────────────────────▶
//!    ◀─────────────────────────────────────── Granted ──
//!    ── Depart{to} ─────────▶
//!    ── Start{arrives} ────────────────────────────────▶
//!                            ◀─────── give me that run ──
//!                            stops it and writes it down
//!                            ═══════════════════════════▶ makes it, and does not let it begin
//!    ◀─────────────────────────────────────── Arrived ──
//!    writes down: epoch, node
//!    ── Pulse{fence} ───────▶ ends it
//!    ── LetGo ─────────────────────────────────────────▶ it runs on
//! ```
//!
//! **Never both, never neither.** The source lets the old run go, and the destination the new one, only when the home says so;
//! and the home's one transaction that makes the new epoch the task's current one is the point of no return. Before it, the
//! run at the source is the task, whatever becomes of the destination; after it, that at the destination is. Letters that
//! are lost are made good by heartbeats, which tell whether a run is held: a held run that is the task's current one, and not
//! on its way any more, is let go, one that is not current is fenced, and of one that is to leave the source is told again.
//! The home keeps what is under way in memory alone: if its agent is started again, the task is where the store says.
//!
//! The epoch of an attempt is written down before its `Start` is sent, and never used again.

use std::collections::BTreeMap;
use std::time::Duration;

use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::node::Resources;
use libgrid::status::{MoveMode, MovePhase, Moved};
use libgrid::units::Bytes;

use super::{Action, Asked, Home, State};
use crate::message::{Alive, Arrival, LeaseId, Placement, ToHost};
use crate::record::Change;
use crate::{LEASE, MARGIN, Now};

/// A task on its way.
#[derive(Debug)]
pub(super) struct Moving {
    from: NodeId,
    to: NodeId,
    /// Of the run that is to be; nothing before there is room for it.
    epoch: Option<u32>,
    phase: MovePhase,
    /// How it was asked to move.
    mode: MoveMode,
    /// How it moves, as far as the destination has told.
    way: MoveMode,
    /// How much of its memory came while it ran.
    ahead: u64,
    begun: Duration,
    /// Since when it stands still.
    stopped: Option<Duration>,
    /// When the destination was last heard of it.
    heard: Duration,
}

/// How it is with the last move of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// It is under way.
    Moving {
        /// From where.
        from: NodeId,
        /// Whereto.
        to: NodeId,
        /// How far it is.
        phase: MovePhase,
        /// How much of its memory came while it runs.
        bytes: u64,
    },
    /// It arrived.
    Moved(Moved),
    /// It stayed where it was: a sentence why.
    Stayed(String),
}

impl Move {
    /// For people, while it is under way.
    pub(super) fn told(&self) -> Option<String> {
        match self {
            Move::Moving { to, phase: phase @ (MovePhase::Ahead | MovePhase::Rounds), bytes, .. } => {
                Some(format!("it moves to node {to}: {phase}, {} so far", Bytes(*bytes)))
            }
            Move::Moving { to, phase, .. } => Some(format!("it moves to node {to}: {phase}")),
            _ => None,
        }
    }
}

impl Home {
    /// How it is with the last move of a task, if there was one.
    pub fn last_move(&self, task: TaskId) -> Option<Move> {
        match self.moving.get(&task) {
            Some(moving) => {
                let Moving { from, to, phase, ahead: bytes, .. } = *moving;
                Some(Move::Moving { from, to, phase, bytes })
            }
            None => self.task(task)?.moved.clone(),
        }
    }

    /// The node with the most free processors that would take a task which has to leave its own.
    pub fn best_for(&self, task: TaskId) -> Option<NodeId> {
        let job = self.jobs.get(&task.job)?;
        let (own, each) = (job.task(task.index)?.state.node(), job.record.spec.needs());
        let usable = |id: &NodeId| self.may_take(*id, own, each) && job.accepts(&self.nodes[id]);
        let free = |id: &NodeId| (self.nodes[id].free.cpu, std::cmp::Reverse(*id));
        self.nodes.keys().filter(|id| usable(id)).max_by_key(|id| free(id)).copied()
    }

    fn may_take(&self, node: NodeId, own: Option<NodeId>, each: Resources) -> bool {
        Some(node) != own && self.nodes.get(&node).is_some_and(|node| node.up && node.free.holds(each))
    }

    /// A user wants a task elsewhere.
    pub(super) fn migrate(
        &mut self,
        now: Now,
        id: TaskId,
        to: NodeId,
        mode: MoveMode,
        actions: &mut Vec<Action>,
    ) {
        if self.moving.contains_key(&id) {
            // The answer is that of the move that is under way.
            return;
        }
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let each = job.record.spec.needs();
        let only = job.record.spec.nodes.join(", ");
        let accepted = self.nodes.get(&to).is_some_and(|node| job.names(node));
        let addressed = self.nodes.get(&to).is_some_and(|node| job.finds_address(node));
        let Some(task) = job.task_mut(id.index) else { return };
        let why = match (&task.state, task.doomed, task.back) {
            (State::Running { node }, None, None) if *node == to => Some(format!("it is on node {to}")),
            (State::Running { .. }, None, None) if !accepted => {
                Some(format!("it may run on {only} alone, as it was submitted with --node"))
            }
            (State::Running { .. }, None, None) if !addressed => {
                Some(format!("node {to} cannot give a task an address of its own: see gridctl doctor there"))
            }
            (State::Running { .. }, None, None) => None,
            (_, Some(_), _) => Some("it is being ended".to_owned()),
            (_, _, Some(_)) => Some("it is on its way back to a checkpoint".to_owned()),
            _ => Some("it does not run now".to_owned()),
        };
        let (State::Running { node: from }, None) = (&task.state, &why) else {
            task.moved = why.map(Move::Stayed);
            return;
        };
        let from = *from;
        self.next_lease = self.next_lease.wrapping_add(1);
        let lease = LeaseId(self.next_lease);
        let asked = Asked { job: id.job, moves: Some(id), node: to, each, count: 1, at: now.mono };
        self.asked.insert(lease, asked);
        if let Some(node) = self.nodes.get_mut(&to) {
            node.free = node.free.minus(each);
        }
        let phase = MovePhase::Reserving;
        let (begun, heard, way) = (now.mono, now.mono, MoveMode::StopAndCopy);
        self.moving.insert(
            id,
            Moving { from, to, epoch: None, phase, mode, way, ahead: 0, begun, stopped: None, heard },
        );
        actions.push(Action::Send { to, message: ToHost::Reserve { lease, each, count: 1 } });
        actions.push(Action::Changed(id.job));
    }

    /// The destination answered.
    pub(super) fn move_granted(
        &mut self,
        now: Now,
        id: TaskId,
        lease: LeaseId,
        count: u32,
        actions: &mut Vec<Action>,
    ) {
        let Some(moving) = self.moving.get_mut(&id) else {
            return;
        };
        let to = moving.to;
        if count == 0 {
            let drained = self.nodes.get(&to).is_some_and(|node| node.info.drained);
            let why = match drained {
                true => format!("node {to} is drained, and takes no tasks: gridctl drain {to} --undo"),
                false => format!("node {to} has no room for it now"),
            };
            return self.stay(id, why, actions);
        }
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.task_mut(id.index) else { return };
        task.used += 1;
        let (epoch, old) = (task.used, task.epoch);
        moving.epoch = Some(epoch);
        moving.phase = MovePhase::Departing;
        moving.heard = now.mono;
        let from = moving.from;
        actions.push(Action::Write(Change::Task(id, Box::new(task.record()))));
        let arrives = Some(Arrival { node: from, epoch: old, mode: moving.mode });
        let placement = Placement { epoch, arrives, ..task.placement(id.index) };
        let run = Run { task: id, epoch: old };
        actions.push(Action::Send { to: from, message: ToHost::Depart { run, to, epoch } });
        let start = ToHost::Start { lease, order: job.order(id.job), tasks: vec![placement] };
        actions.push(Action::Send { to, message: start });
        actions.push(Action::Changed(id.job));
    }

    /// The destination tells how far it is.
    pub(super) fn move_goes_on(
        &mut self,
        now: Now,
        from: NodeId,
        run: Run,
        (phase, stood, bytes): (MovePhase, Option<Duration>, u64),
        actions: &mut Vec<Action>,
    ) {
        let Some(moving) = self.arrival_of(run, from) else { return };
        moving.heard = now.mono;
        moving.phase = phase;
        (moving.way, moving.ahead) = match phase {
            MovePhase::Ahead => (MoveMode::Hybrid, bytes),
            MovePhase::Rounds => (MoveMode::PreCopy, bytes),
            // All of it is yet to come, whatever was tried before.
            MovePhase::Departing => (MoveMode::StopAndCopy, 0),
            _ => (moving.way, moving.ahead.max(bytes)),
        };
        if let Some(stood) = stood {
            moving.stopped = Some(now.mono.saturating_sub(stood));
        }
        actions.push(Action::Changed(run.task.job));
    }

    /// It stands at the destination: the point of no return.
    pub(super) fn arrived(&mut self, now: Now, from: NodeId, run: Run, actions: &mut Vec<Action>) {
        if self.arrival_of(run, from).is_none() {
            return;
        }
        let Some(moving) = self.moving.remove(&run.task) else { return };
        let Some(task) = self.jobs.get_mut(&run.task.job).and_then(|job| job.task_mut(run.task.index)) else {
            return;
        };
        let old = Run { epoch: task.epoch, ..run };
        task.epoch = run.epoch;
        task.last = Some(from);
        task.placed = now.mono;
        task.state = State::Running { node: from };
        // Its output goes on where it was.
        task.resumed = task.resumed.or(Some(0));
        let stopped = moving.stopped.map_or(Duration::ZERO, |since| now.mono.saturating_sub(since));
        let took = now.mono.saturating_sub(moving.begun);
        let Moving { way: mode, ahead, .. } = moving;
        task.moved = Some(Move::Moved(Moved { from: moving.from, to: from, mode, ahead, took, stopped }));
        actions.push(Action::Write(Change::Task(run.task, Box::new(task.record()))));
        if let Some(node) = self.nodes.get_mut(&moving.from) {
            node.runs.remove(&old);
        }
        self.node(from, now).runs.insert(run);
        actions.push(Action::Send { to: from, message: ToHost::LetGo { run, past: run.epoch } });
        actions.push(fence(moving.from, old));
        actions.push(Action::Changed(run.task.job));
        self.stirred = true;
    }

    /// The move is given up: the task is where it was. A run that has ended there meanwhile hears nothing of it.
    pub(super) fn stay(&mut self, id: TaskId, why: String, actions: &mut Vec<Action>) {
        let Some(moving) = self.moving.remove(&id) else { return };
        if let Some(task) = self.jobs.get_mut(&id.job).and_then(|job| job.task_mut(id.index)) {
            task.moved = Some(Move::Stayed(why));
            let (run, past) = (Run { task: id, epoch: task.epoch }, task.used);
            actions.push(Action::Send { to: moving.from, message: ToHost::LetGo { run, past } });
        }
        if let Some(epoch) = moving.epoch {
            actions.push(fence(moving.to, Run { task: id, epoch }));
        }
        actions.push(Action::Changed(id.job));
    }

    /// The destination says that it cannot be.
    pub(super) fn not_moved(&mut self, from: NodeId, run: Run, why: String, actions: &mut Vec<Action>) {
        if self.arrival_of(run, from).is_some() {
            self.stay(run.task, why, actions);
        }
    }

    /// A heartbeat tells of a run that is not the task's current one. True if it is on its way here, and so has its right.
    pub(super) fn is_arriving(
        &mut self,
        now: Now,
        from: NodeId,
        alive: Alive,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(moving) = self.arrival_of(alive.run, from) else { return false };
        moving.heard = now.mono;
        if alive.held {
            // What told of it was lost.
            self.arrived(now, from, alive.run, actions);
        }
        true
    }

    /// A heartbeat tells that a task's current run is held.
    pub(super) fn may_go(&self, run: Run, from: NodeId, actions: &mut Vec<Action>) {
        if !self.moving.contains_key(&run.task)
            && let Some(past) = self.task(run.task).map(|task| task.used)
        {
            actions.push(Action::Send { to: from, message: ToHost::LetGo { run, past } });
        }
    }

    /// A heartbeat tells of a current run that does not stand still. If it is to leave, its agent may not know, be it that the
    /// letter was lost, or that it was started again since.
    pub(super) fn still_departs(&self, run: Run, from: NodeId, actions: &mut Vec<Action>) {
        let moving = self.moving.get(&run.task).filter(|moving| moving.from == from);
        if let Some(Moving { to, epoch: Some(epoch), stopped: None, .. }) = moving {
            let message = ToHost::Depart { run, to: *to, epoch: *epoch };
            actions.push(Action::Send { to: from, message });
        }
    }

    /// Gives up moves of which nothing is heard.
    pub(super) fn give_up_moves(&mut self, now: Now, actions: &mut Vec<Action>) {
        let silent = |moving: &Moving| moving.epoch.is_some() && now.mono >= moving.heard + LEASE + MARGIN;
        let silent: BTreeMap<TaskId, NodeId> = self
            .moving
            .iter()
            .filter(|(_, moving)| silent(moving))
            .map(|(task, moving)| (*task, moving.to))
            .collect();
        for (task, to) in silent {
            self.stay(task, format!("node {to} does not answer"), actions);
        }
    }

    /// The move of which this is the new run, on its way to that node.
    fn arrival_of(&mut self, run: Run, to: NodeId) -> Option<&mut Moving> {
        self.moving.get_mut(&run.task).filter(|moving| moving.to == to && moving.epoch == Some(run.epoch))
    }
}

/// Fences without waiting for a heartbeat: as the answer to one that was never sent, it renews nothing.
fn fence(to: NodeId, run: Run) -> Action {
    Action::Send { to, message: ToHost::Pulse { seq: 0, fence: vec![run] } }
}
