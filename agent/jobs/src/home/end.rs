//! How a run comes to its end at home: it ended over there and its results are brought here, or it is lost.
//!
//! What cannot be kept here, because a disk is full or a folder is gone, stays on the node of the run, which tells of its end
//! again and again. It is tried again until it is here, its user gives it up with the task, or it is as old as jobs that are
//! forgotten.

use std::time::Duration;

use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::spec::JobSpec;
use libgrid::status::{Outcome, Usage};

use super::state::{Pausing, Trouble};
use super::{Action, Collected, Home, State, shortened};
use crate::message::{End, ToHost};
use crate::record::{Back, Change, TaskRecord};
use crate::{LEASE, MARGIN, Now};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How many runs a node is asked about at once.
const ASKED: usize = 1024;

impl Home {
    pub(super) fn ended(&mut self, now: Now, from: NodeId, run: Run, end: End, actions: &mut Vec<Action>) {
        if self.place_of(run) != Some(from) {
            // Written down before, or its epoch is over: either way the host can forget it.
            actions.push(Action::Send { to: from, message: ToHost::Settled(vec![run]) });
            return;
        }
        let outcome = match end.outcome {
            Outcome::NotStarted { why, status } => Outcome::NotStarted { why: shortened(why), status },
            Outcome::ResultsLost { why } => Outcome::ResultsLost { why: shortened(why) },
            other => other,
        };
        let end = End { outcome, ..end };
        let Some(job) = self.jobs.get_mut(&run.task.job) else { return };
        let results = (!job.record.spec.stage_out.is_empty() && started(&end.outcome)).then(|| {
            let patterns = job.record.spec.stage_out.iter();
            patterns.map(|pattern| JobSpec::for_task(pattern, run.task.index)).collect::<Vec<_>>()
        });
        let origin = &job.record.origin;
        let collect = end.printed || results.is_some();
        let needs = job.record.spec.needs();
        let origin = origin.clone();
        let Some(task) = job.task_mut(run.task.index) else { return };
        let trouble = match &task.state {
            State::Ending { collecting: true, .. } => return,
            State::Ending { trouble: Some(trouble), .. } if now.mono < trouble.tried.again => return,
            State::Ending { trouble, .. } => trouble.clone(),
            _ => None,
        };
        self.stay(run.task, "it ended before".into(), actions);
        let Some(job) = self.jobs.get_mut(&run.task.job) else { return };
        let Some(task) = job.task_mut(run.task.index) else { return };
        // Told for the first time: the host has the room again, and the next heartbeat is a second away.
        if !matches!(task.state, State::Ending { .. })
            && let Some(node) = self.nodes.get_mut(&from)
        {
            node.free = node.free.plus(needs);
            self.stirred = true;
        }
        task.usage = end.usage;
        // It came to its end before it could be taken back.
        task.back = None;
        if collect {
            let again = trouble.is_some();
            task.state = State::Ending { node: from, end: Box::new(end), collecting: true, trouble };
            actions.push(Action::Collect { run, node: from, results, origin, again });
            actions.push(Action::Changed(run.task.job));
        } else {
            self.done(now, run, end.outcome, actions);
        }
    }

    pub(super) fn collected(&mut self, now: Now, run: Run, result: Collected, actions: &mut Vec<Action>) {
        let task = self.jobs.get_mut(&run.task.job).and_then(|job| job.task_mut(run.task.index));
        let Some(task) = task.filter(|task| task.epoch == run.epoch) else { return };
        let State::Ending { end, collecting, trouble, .. } = &mut task.state else { return };
        *collecting = false;
        match result {
            Collected::Whole => {
                let outcome = end.outcome.clone();
                self.done(now, run, outcome, actions);
            }
            Collected::Missed(why) => {
                let outcome = without_results(&end.outcome, why);
                self.done(now, run, outcome, actions);
            }
            Collected::Failed(why) => {
                let before = trouble.take();
                let since = before.as_ref().map_or(now.wall, |before| before.since);
                let met = before.as_ref().map_or(now.mono, |before| before.met);
                let tried = Pausing::new(now, shortened(why), before.as_ref().map(|before| &before.tried));
                let news = before.is_none_or(|before| before.tried.why != tried.why);
                *trouble = Some(Trouble { tried, since, met });
                if news {
                    actions.push(Action::Write(Change::Task(run.task, Box::new(task.record()))));
                    actions.push(Action::Changed(run.task.job));
                }
                if let Some(job) = self.jobs.get(&run.task.job) {
                    self.stuck.entry(job.record.origin.uid).or_default().insert(run.task);
                }
                // The next of its array may run.
                self.stirred = true;
                if self.task(run.task).is_some_and(|task| task.unwanted) {
                    self.give_up_results(now, run, actions);
                }
            }
            Collected::Unreachable => (),
        }
    }

    /// Whether the task has ended, and its results cannot be brought home.
    pub(super) fn is_stuck(&self, task: TaskId) -> bool {
        let state = self.task(task).map(|task| &task.state);
        matches!(state, Some(State::Ending { trouble: Some(_), .. }))
    }

    /// A task is done without what it left, if that cannot be brought home.
    pub(super) fn give_up_results(&mut self, now: Now, run: Run, actions: &mut Vec<Action>) {
        let Some(task) = self.task(run.task) else { return };
        let State::Ending { end, trouble: Some(trouble), .. } = &task.state else { return };
        let outcome = without_results(&end.outcome, trouble.tried.why.clone());
        if let Some(job) = self.jobs.get(&run.task.job)
            && !job.record.spec.stage_out.is_empty()
        {
            actions.push(Action::Abandon { run, origin: job.record.origin.clone() });
        }
        self.done(now, run, outcome, actions);
    }

    /// Of tasks that ended as long ago as jobs are remembered.
    pub(super) fn give_up_old_results(&mut self, now: Now, actions: &mut Vec<Action>) {
        let is_old = |task: &&TaskId| match self.task(**task).map(|task| &task.state) {
            Some(State::Ending { trouble: Some(trouble), .. }) => {
                // A clock that was set forward is no reason.
                now.wall.duration_since(trouble.since).is_ok_and(|age| age > self.retention)
                    && now.mono > trouble.met + self.retention.min(DAY)
            }
            _ => false,
        };
        let old: Vec<TaskId> = self.stuck.values().flatten().filter(is_old).copied().collect();
        for task in old {
            if let Some((run, _)) = self.run_of(task) {
                self.give_up_results(now, run, actions);
            }
        }
    }

    /// A node that lost all that it had of this home sends no heartbeats. If it is there, it is asked.
    pub(super) fn ask_who_has(&self, now: Now, actions: &mut Vec<Action>) {
        for (to, node) in self.nodes.iter().filter(|(id, node)| **id != self.me && node.up) {
            if now.mono < node.heard + LEASE + MARGIN {
                continue;
            }
            let old = |run: &&Run| now.mono >= self.placed_at(**run) + LEASE + MARGIN;
            let runs: Vec<Run> = node.runs.iter().filter(old).copied().take(ASKED).collect();
            if !runs.is_empty() {
                actions.push(Action::Send { to: *to, message: ToHost::Keeping(runs) });
            }
        }
    }

    /// The task is on its way to its end again, or to another beginning.
    fn comes_loose(&mut self, task: TaskId) {
        let Some(job) = self.jobs.get(&task.job) else { return };
        let uid = job.record.origin.uid;
        if let Some(stuck) = self.stuck.get_mut(&uid) {
            stuck.remove(&task);
            if stuck.is_empty() {
                self.stuck.remove(&uid);
            }
        }
    }

    /// Writes down how a task ended, and lets its host forget it.
    pub(super) fn done(&mut self, now: Now, run: Run, outcome: Outcome, actions: &mut Vec<Action>) {
        let id = run.task.job;
        self.comes_loose(run.task);
        let node = self.leave(run);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let index = run.task.index;
        job.waiting.remove(&index);
        job.active.remove(&index);
        job.failed |= !outcome.is_success();
        if job.is_done() {
            job.ended = Some(now.wall);
            if self.followers.contains_key(&id) {
                self.ended.push(id);
            }
            actions.extend(job.record.origin.inputs.map(Action::Spent));
        }
        let Some(task) = job.task_mut(index) else { return };
        task.state = State::Done { outcome: outcome.clone(), at: now.wall };
        task.serial.take().into_iter().for_each(|serial| self.serials.give_back(serial));
        let ended = Some((now.wall, outcome, task.usage));
        // Nothing goes on from its checkpoints any more: their nodes ask, and drop them.
        let record =
            TaskRecord { node: task.last, ended, saved: None, exported: None, back: None, ..task.record() };
        actions.push(Action::Write(Change::Task(run.task, Box::new(record))));
        if let Some(node) = node {
            actions.push(Action::Send { to: node, message: ToHost::Settled(vec![run]) });
        }
        if self.jobs.get(&id).is_some_and(|job| job.waiting.is_empty()) {
            self.queue.remove(&id);
        }
        actions.push(Action::Changed(id));
        self.stirred = true;
    }

    /// A run is gone for good: the task waits again, unless it was to end anyway.
    pub(super) fn lost(&mut self, now: Now, run: Run, actions: &mut Vec<Action>) {
        self.stay(run.task, "it was lost where it ran".into(), actions);
        let Some(node) = self.leave(run) else { return };
        self.comes_loose(run.task);
        let id = run.task.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let again = job.record.spec.restart && job.record.origin.stdin.is_none();
        if !job.record.spec.stage_out.is_empty() {
            actions.push(Action::Abandon { run, origin: job.record.origin.clone() });
        }
        let Some(task) = job.task_mut(run.task.index) else { return };
        // How it ended is known of one that left what could not be brought home.
        let ended = match std::mem::replace(&mut task.state, State::Waiting) {
            State::Ending { end, trouble: Some(_), .. } => Some(end.outcome),
            _ => None,
        };
        task.started = None;
        task.resumed = None;
        task.lost = now.mono;
        task.usage = Usage::default();
        if let Some(signal) = task.doomed {
            return self.done(now, run, Outcome::Killed(signal), actions);
        }
        // One that is to go on from a checkpoint was not lost, but taken away.
        if !again && task.back.is_none() {
            let outcome = match ended {
                Some(outcome) => without_results(&outcome, format!("node {node} has lost what it left")),
                None => Outcome::NodeLost { node },
            };
            return self.done(now, run, outcome, actions);
        }
        let record = task.record();
        job.active.remove(&run.task.index);
        job.waiting.insert(run.task.index);
        self.enqueue(id, actions);
        actions.push(Action::Write(Change::Task(run.task, Box::new(record))));
        actions.push(Action::Changed(id));
    }
}

impl Home {
    /// A checkpoint was brought away from its host, or not.
    pub(super) fn brought(
        &mut self,
        now: Now,
        id: TaskId,
        at: Option<(u64, NodeId)>,
        rest: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(task) = self.jobs.get_mut(&id.job).and_then(|job| job.task_mut(id.index)) else { return };
        task.rests = now.mono.saturating_add(rest);
        task.exports_to = None;
        let undone = task.back.is_some_and(|back| at.is_some_and(|(number, _)| number > back.to));
        if matches!(task.state, State::Done { .. }) || undone || at.is_none() {
            return;
        }
        task.exported = task.exported.max(at);
        if !matches!(task.state, State::Ending { .. }) {
            actions.push(Action::Write(Change::Task(id, Box::new(task.record()))));
        }
    }

    /// Lets a task go on from a checkpoint. Its run is fenced when its node next tells of it; it then counts as lost, and the
    /// task waits for the node that has the checkpoint. It must not wait before: two runs could be there at once.
    pub(super) fn take_back(&mut self, id: TaskId, number: u64, node: NodeId, actions: &mut Vec<Action>) {
        self.stay(id, format!("it goes back to checkpoint {number}"), actions);
        let Some(task) = self.jobs.get_mut(&id.job).and_then(|job| job.task_mut(id.index)) else { return };
        if matches!(task.state, State::Ending { .. } | State::Done { .. }) {
            // It has ended by itself meanwhile.
            return;
        }
        task.back = Some(Back { to: number, after: task.epoch });
        task.exported = task.exported.filter(|(exported, _)| *exported <= number);
        actions.push(Action::Cut { task: id, number });
        // The number goes on from the highest that was ever told.
        task.saved = Some((task.saved.map_or(number, |(newest, _)| newest.max(number)), node));
        actions.push(Action::Write(Change::Task(id, Box::new(task.record()))));
    }
}

/// How a task ended some of whose results are not here.
fn without_results(outcome: &Outcome, why: String) -> Outcome {
    match outcome.is_success() {
        true => Outcome::ResultsLost { why: shortened(why) },
        false => outcome.clone(),
    }
}

fn started(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::NotStarted { .. })
}
