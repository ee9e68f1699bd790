//! Finding nodes: which tasks go where, and the reservations for them.
//!
//! The queue is first come, first served, with backfill: a job that does not fit now does not hold up smaller
//! ones behind it, of which [`BACKFILL`] are looked at. Tasks go to the node with the most free processors, this
//! one if equal, a few at a time, so that an array spreads over the grid. One that was lost goes first to the node that
//! has its checkpoint, and for some time to no other.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::node::Resources;
use libgrid::spec::Net;

use super::serials::Serials;
use super::{Action, Asked, Home, Job, Node, State, Task};
use crate::Now;
use crate::message::{LeaseId, Order, Placement, ToHost};
use crate::record::Change;

/// How many jobs in a row may not fit before the rest of the queue waits for the next time.
const BACKFILL: usize = 64;

/// How many tasks one reservation is for at most.
const BATCH: u32 = 1024;

/// How long a host has to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a node that refused or did not answer is left alone.
const PAUSE: Duration = Duration::from_millis(500);

/// How many tasks of a user may have ended somewhere with results that cannot be brought home, before no more are started: what
/// they left takes room on other nodes.
pub(super) const STUCK: usize = 64;

/// How long after a `Start` it is sent again, if the host does not tell of the run.
const RESTART: Duration = Duration::from_secs(2);

impl Home {
    /// Asks nodes for room for the tasks that wait, if anything has happened that may give them any.
    pub fn schedule(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if !std::mem::take(&mut self.stirred) || self.queue.is_empty() {
            return actions;
        }
        let mut misfits = 0;
        for id in self.queue.clone() {
            if misfits == BACKFILL {
                break;
            }
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if self.stuck.get(&job.record.origin.uid).is_some_and(|tasks| tasks.len() >= STUCK) {
                continue;
            }
            let stuck = job.stuck(id, &self.stuck).count();
            let wanted = job.can_be_placed(stuck, &self.serials).saturating_sub(job.asked);
            if wanted == 0 {
                continue;
            }
            let each = job.record.spec.needs();
            let shares = share(self.me, now, &self.nodes, job, each, wanted);
            if shares.is_empty() {
                misfits += 1;
            }
            for (node, count) in shares {
                self.next_lease = self.next_lease.wrapping_add(1);
                let lease = LeaseId(self.next_lease);
                job.asked += count;
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.free = node.free.minus(each.times(count));
                }
                self.asked.insert(lease, Asked { job: id, moves: None, node, each, count, at: now.mono });
                actions.push(Action::Send { to: node, message: ToHost::Reserve { lease, each, count } });
            }
        }
        actions
    }

    pub(super) fn granted(
        &mut self,
        now: Now,
        from: NodeId,
        lease: LeaseId,
        count: u32,
        free: Resources,
        actions: &mut Vec<Action>,
    ) {
        let asked = self.asked.remove(&lease).filter(|asked| asked.node == from);
        let node = self.node(from, now);
        node.free = free;
        let Some(asked) = asked else {
            // Too late: we gave up on it.
            actions.push(Action::Send { to: from, message: ToHost::Release(lease) });
            return;
        };
        match count {
            0 => node.not_before = now.mono + PAUSE,
            _ => node.granted = now.mono,
        }
        self.stirred = true;
        if let Some(task) = asked.moves {
            return self.move_granted(now, task, lease, count, actions);
        }
        let id = asked.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.asked -= asked.count;
        let stuck = job.stuck(id, &self.stuck).count();
        let most = count.min(job.can_be_placed(stuck, &self.serials)) as usize;
        let taken = job.choose(from, most, |node| is_up(&self.nodes, node), now);
        if taken.is_empty() {
            if count > 0 {
                actions.push(Action::Send { to: from, message: ToHost::Release(lease) });
            }
            return;
        }
        let mut tasks = Vec::with_capacity(taken.len());
        for index in taken {
            job.waiting.remove(&index);
            job.active.insert(index);
            let grid = job.record.spec.net == Net::Grid;
            let Some(task) = job.task_mut(index) else { continue };
            if grid && task.serial.is_none() {
                task.serial = self.serials.take();
            }
            task.used += 1;
            task.epoch = task.used;
            task.last = Some(from);
            task.placed = now.mono;
            task.state = State::Placed { node: from, start: Some((lease, now.mono)) };
            let run = Run { task: id.task(index), epoch: task.epoch };
            actions.push(Action::Write(Change::Task(run.task, Box::new(task.record()))));
            if let Some(node) = self.nodes.get_mut(&from) {
                node.runs.insert(run);
            }
            tasks.push(task.placement(index));
        }
        if job.waiting.is_empty() {
            self.queue.remove(&id);
        }
        actions
            .push(Action::Send { to: from, message: ToHost::Start { lease, order: job.order(id), tasks } });
        actions.push(Action::Changed(id));
    }

    /// Reservations that nobody answered.
    pub(super) fn give_up_asking(&mut self, now: Now, actions: &mut Vec<Action>) {
        let late: Vec<_> =
            self.asked.iter().filter(|(_, a)| now.mono >= a.at + PATIENCE).map(|(l, _)| *l).collect();
        for lease in late {
            let Some(asked) = self.asked.remove(&lease) else { continue };
            match asked.moves {
                Some(task) => self.stay(task, format!("node {} does not answer", asked.node), actions),
                None => {
                    if let Some(job) = self.jobs.get_mut(&asked.job) {
                        job.asked -= asked.count;
                    }
                }
            }
            if let Some(node) = self.nodes.get_mut(&asked.node) {
                node.not_before = now.mono + PATIENCE;
                node.free = node.free.plus(asked.each.times(asked.count));
            }
        }
        // A node's pause may be over.
        self.stirred = true;
    }

    /// A node without runs of ours sends no heartbeats: what it tells everybody is the newest word of its room.
    /// Too high an estimate costs a reservation that is refused, too low a one would leave tasks waiting for ever.
    pub(super) fn believe_overlay(&mut self) {
        let asked: BTreeSet<NodeId> = self.asked.values().map(|asked| asked.node).collect();
        for (id, node) in &mut self.nodes {
            if node.runs.is_empty() && !asked.contains(id) {
                let told = node.info.free;
                node.free.cpu = node.free.cpu.max(told.cpu);
                node.free.memory = node.free.memory.max(told.memory);
            }
        }
    }

    /// Sends each `Start` again that the host has not told of.
    pub(super) fn start_again(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut again: BTreeMap<(NodeId, LeaseId, JobId), Vec<Placement>> = BTreeMap::new();
        for node in self.nodes.values() {
            for run in &node.runs {
                let task = self.jobs.get_mut(&run.task.job).and_then(|job| job.task_mut(run.task.index));
                let Some(task) = task else { continue };
                if let State::Placed { node, start: Some((lease, told)) } = &mut task.state
                    && now.mono >= *told + RESTART
                {
                    *told = now.mono;
                    let key = (*node, *lease, run.task.job);
                    again.entry(key).or_default().push(task.placement(run.task.index));
                }
            }
        }
        for ((to, lease, id), tasks) in again {
            if let Some(job) = self.jobs.get(&id) {
                actions
                    .push(Action::Send { to, message: ToHost::Start { lease, order: job.order(id), tasks } });
            }
        }
    }
}

impl Task {
    pub(super) fn placement(&self, index: u32) -> Placement {
        Placement {
            index,
            epoch: self.epoch,
            saved: self.saved.map_or(0, |(number, _)| number),
            from: self.back.map(|back| back.to),
            exported: self.exported,
            arrives: None,
            serial: self.serial,
        }
    }
}

impl Job {
    /// How many of the waiting tasks could run if there were room: its array lets so many run at once, and each has an address,
    /// or gets one that is left, if it is to have any.
    fn can_be_placed(&self, stuck: usize, serials: &Serials) -> u32 {
        if self.is_blocked() {
            return 0;
        }
        let waiting = self.waiting.len().min(self.may_join(stuck));
        (match self.record.spec.net {
            Net::Host => waiting,
            Net::Grid => waiting.min(self.addressed() + serials.free()),
        }) as u32
    }

    /// How many of the waiting tasks have an address of an earlier run.
    fn addressed(&self) -> usize {
        let has = |index: &&u32| self.task(**index).is_some_and(|task| task.serial.is_some());
        self.waiting.iter().filter(has).count()
    }

    /// Whether all its waiting tasks wait for addresses.
    pub(super) fn lacks_addresses(&self, serials: &Serials) -> bool {
        self.record.spec.net == Net::Grid && self.addressed() + serials.free() == 0
    }

    /// Which of the waiting tasks go to a node that takes so many: those whose checkpoints it has come first; those that
    /// wait for another node, which is up, are left to it.
    fn choose(&self, node: NodeId, count: usize, up: impl Fn(NodeId) -> bool, now: Now) -> Vec<u32> {
        let faithful = |index: &u32| self.task(*index).and_then(|task| task.waits_for(now));
        let own = self.waiting.iter().filter(|index| faithful(index) == Some(node));
        let free = self
            .waiting
            .iter()
            .filter(|index| faithful(index).is_none_or(|other| other != node && !up(other)));
        own.chain(free).copied().take(count).collect()
    }

    /// Which of its tasks are among those of each user that have ended, and whose results cannot be brought home.
    pub(super) fn stuck<'a>(
        &self,
        id: JobId,
        all: &'a BTreeMap<u32, BTreeSet<TaskId>>,
    ) -> impl Iterator<Item = TaskId> + use<'a> {
        let tasks = all.get(&self.record.origin.uid).into_iter();
        tasks.flat_map(move |tasks| tasks.range(id.task(0)..=id.task(u32::MAX)).copied())
    }

    pub(super) fn order(&self, id: JobId) -> Order {
        let origin = &self.record.origin;
        Order {
            job: id,
            spec: Arc::clone(&self.record.spec),
            inputs: origin.inputs.is_some(),
            stdin: origin.stdin,
        }
    }

    /// Whether the job may run on this node, and can.
    pub(super) fn accepts(&self, node: &Node) -> bool {
        self.names(node) && self.finds_address(node)
    }

    /// Whether its tasks can have there the addresses that they need.
    pub(super) fn finds_address(&self, node: &Node) -> bool {
        self.record.spec.net == Net::Host || node.info.addresses
    }

    /// Whether its user lets it run there.
    pub(super) fn names(&self, node: &Node) -> bool {
        let names = &self.record.spec.nodes;
        let number = node.info.node.to_string();
        names.is_empty() || names.iter().any(|name| *name == node.info.name || *name == number)
    }
}

fn is_up(nodes: &BTreeMap<NodeId, Node>, node: NodeId) -> bool {
    nodes.get(&node).is_some_and(|node| node.up)
}

/// How many of `wanted` tasks go to which node.
fn share(
    me: NodeId,
    now: Now,
    nodes: &BTreeMap<NodeId, Node>,
    job: &Job,
    each: Resources,
    wanted: u32,
) -> BTreeMap<NodeId, u32> {
    let usable = |node: &&Node| node.up && now.mono >= node.not_before && job.accepts(node);
    let ranked = |node: NodeId, free: Resources| (free.cpu, node == me, std::cmp::Reverse(node), free.memory);
    let mut heap: BinaryHeap<_> = nodes
        .values()
        .filter(usable)
        .filter(|node| node.free.holds(each))
        .map(|node| ranked(node.info.node, node.free))
        .collect();
    let mut shares = BTreeMap::new();
    let mut left = wanted;
    // Those that wait for one node are not for the others.
    for index in &job.waiting {
        let faithful =
            job.task(*index).and_then(|task| task.waits_for(now)).filter(|node| is_up(nodes, *node));
        let Some(node) = faithful.filter(|_| left > 0) else { continue };
        left -= 1;
        let share: &mut u32 = shares.entry(node).or_insert(0);
        let room = nodes.get(&node).filter(usable).map_or(0, |node| node.free.fits(each));
        *share += u32::from(*share < room.min(BATCH));
    }
    shares.retain(|_, share| *share > 0);
    heap.retain(|(_, _, std::cmp::Reverse(node), _)| !shares.contains_key(node));
    let piece = left.checked_div(4 * heap.len() as u32).unwrap_or(0).max(1);
    while left > 0
        && let Some((cpu, _, std::cmp::Reverse(node), memory)) = heap.pop()
    {
        let free = Resources { cpu, memory };
        let share: &mut u32 = shares.entry(node).or_insert(0);
        let count = piece.min(left).min(free.fits(each)).min(BATCH - *share);
        *share += count;
        left -= count;
        let rest = free.minus(each.times(count));
        if *share < BATCH && rest.holds(each) {
            heap.push(ranked(node, rest));
        }
    }
    shares
}
