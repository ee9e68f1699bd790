//! What users are told of their jobs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use libgrid::address::Address;
use libgrid::ids::{JobId, NodeId, Run, Selector, TaskId};
use libgrid::status::{Counts, JobStatus, JobSummary, PAGE, TaskState, TaskStatus};

use super::state::Trouble;
use super::{Home, Job, State, Task};
use crate::record::JobRecord;

impl Home {
    /// The job as it was written down.
    pub fn record(&self, job: JobId) -> Option<Arc<JobRecord>> {
        self.jobs.get(&job).map(|job| job.record.clone())
    }

    /// All jobs in the order of their submission; those that are done only with `done`; with `at` those that have tasks there.
    pub fn summaries(&self, done: bool, at: Option<NodeId>) -> Vec<JobSummary> {
        let there = at.map(|at| {
            let runs = self.nodes.get(&at).into_iter().flat_map(|node| &node.runs);
            runs.map(|run| run.task.job).collect::<BTreeSet<JobId>>()
        });
        let there = |id: &JobId| there.as_ref().is_none_or(|jobs| jobs.contains(id));
        let wanted = self.jobs.iter().filter(|(id, job)| (done || !job.is_done()) && there(id));
        wanted.map(|(id, job)| self.summary(*id, job)).collect()
    }

    /// One job with a page of its tasks from index `from` on, or with the one task that is selected.
    pub fn status(&self, selector: Selector, from: u32) -> Option<JobStatus> {
        let id = selector.job();
        let job = self.jobs.get(&id)?;
        let mut indices = job.record.spec.indices().filter(|index| *index >= from && selector.covers(*index));
        let tasks: Vec<TaskStatus> = indices
            .by_ref()
            .take(PAGE)
            .filter_map(|index| Some(self.task_status(id.task(index), job, job.task(index)?)))
            .collect();
        if let (Selector::Task(_), true) = (selector, tasks.is_empty()) {
            return None;
        }
        let more = indices.next();
        Some(JobStatus { summary: self.summary(id, job), spec: (*job.record.spec).clone(), tasks, more })
    }

    /// The current run of a task, and where it is while it is somewhere.
    pub fn run_of(&self, task: TaskId) -> Option<(Run, Option<NodeId>)> {
        let known = self.task(task)?;
        Some((Run { task, epoch: known.epoch }, known.state.node()))
    }

    /// The runs of a job that have been started, and where each is.
    pub fn running(&self, job: JobId) -> Vec<(Run, NodeId)> {
        let Some(known) = self.jobs.get(&job) else { return Vec::new() };
        let place = |index: &u32| match known.task(*index)? {
            Task { state: State::Running { node }, epoch, .. } => {
                Some((Run { task: job.task(*index), epoch: *epoch }, *node))
            }
            _ => None,
        };
        known.active.iter().filter_map(place).collect()
    }

    /// Whether a run of the job is on a node, or is on its way there.
    pub fn has_run_at(&self, job: JobId, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.runs.iter().any(|run| run.task.job == job))
    }

    /// The checkpoint that the present run of a task went on from.
    pub fn resumed(&self, task: TaskId) -> Option<u64> {
        self.task(task)?.resumed
    }

    /// The number of a task's newest checkpoint, and where that is.
    pub fn saved(&self, task: TaskId) -> Option<(u64, NodeId)> {
        self.task(task)?.saved
    }

    /// As in [`crate::record::TaskRecord::exported`].
    pub fn exported(&self, task: TaskId) -> Option<(u64, NodeId)> {
        self.task(task)?.exported
    }

    /// Whether a checkpoint of this task is on its way from here to that node.
    pub fn exports_to(&self, task: TaskId, node: NodeId) -> bool {
        self.task(task).is_some_and(|task| task.exports_to == Some(node))
    }

    /// Whether the task has ended and its logs and results are home.
    pub fn is_done(&self, task: TaskId) -> bool {
        self.task(task).is_some_and(|task| matches!(task.state, State::Done { .. }))
    }

    /// Whether the task's processes have been started, and it has not ended.
    pub fn is_running(&self, task: TaskId) -> bool {
        self.task(task).is_some_and(|task| matches!(task.state, State::Running { .. }))
    }

    /// A task's own address.
    fn address(&self, task: &Task) -> Option<Ipv4Addr> {
        Address::of_task(self.me, task.serial?).ok().map(Address::ip)
    }

    fn summary(&self, id: JobId, job: &Job) -> JobSummary {
        let mut counts = Counts::default();
        let mut exit_status = 0;
        for task in &job.tasks {
            match &task.state {
                State::Waiting => counts.waiting += 1,
                State::Placed { .. } => counts.placed += 1,
                State::Running { .. } | State::Ending { .. } => counts.running += 1,
                State::Done { outcome, .. } => {
                    let slot = if outcome.is_success() { &mut counts.succeeded } else { &mut counts.failed };
                    *slot += 1;
                    exit_status = exit_status.max(outcome.exit_status());
                }
            }
        }
        let stuck = job.stuck(id, &self.stuck).count();
        let stuck = u32::try_from(stuck).unwrap_or(u32::MAX);
        let nodes: BTreeSet<NodeId> =
            job.active.iter().filter_map(|index| job.task(*index)?.state.node()).collect();
        JobSummary {
            id,
            name: job.record.spec.title().to_owned(),
            owner: job.record.origin.owner.clone(),
            submitted: job.record.submitted,
            ended: job.ended,
            counts,
            nodes: nodes.into_iter().collect(),
            exit_status: job.is_done().then_some(exit_status),
            why: self.stuck(id, job).or_else(|| self.explain(id, job)),
            stuck,
        }
    }

    /// Why tasks of a job that ended do not come to their end.
    fn stuck(&self, id: JobId, job: &Job) -> Option<String> {
        let task = job.stuck(id, &self.stuck).next()?;
        match &job.task(task.index)?.state {
            State::Ending { node, trouble: Some(trouble), .. } => {
                Some(format!("{task} ended, but {}", kept(task, trouble, *node)))
            }
            _ => None,
        }
    }

    fn task_status(&self, id: TaskId, job: &Job, task: &Task) -> TaskStatus {
        let (state, why) = match &task.state {
            State::Waiting => {
                (TaskState::Waiting, self.explain(id.job, job).map(|why| with_checkpoint(why, task)))
            }
            State::Placed { .. } => (TaskState::Placed, None),
            State::Running { .. } if self.moving.contains_key(&id) => {
                (TaskState::Running, self.last_move(id).and_then(|last| last.told()))
            }
            State::Running { node } => {
                let silent = self.nodes.get(node).is_some_and(|node| !node.up);
                let again = if job.record.spec.restart { "starts again elsewhere" } else { "counts as lost" };
                let why = format!("node {node} does not answer: the task {again} unless it comes back");
                (TaskState::Running, silent.then_some(why))
            }
            State::Ending { node, trouble: Some(trouble), .. } => {
                (TaskState::Running, Some(format!("ended, but {}", kept(id, trouble, *node))))
            }
            State::Ending { .. } => {
                (TaskState::Running, Some("ended; its output and results are brought home".into()))
            }
            State::Done { .. } => (TaskState::Done, None),
        };
        let outcome = match &task.state {
            State::Done { outcome, .. } => Some(outcome.clone()),
            _ => None,
        };
        TaskStatus {
            index: id.index,
            state,
            node: task.last,
            epoch: task.epoch,
            started: task.started,
            outcome,
            usage: task.usage,
            why,
            address: self.address(task),
        }
    }
}

/// Why something of a task that ended is not here.
fn kept(id: TaskId, trouble: &Trouble, node: NodeId) -> String {
    format!(
        "{}: node {node} keeps it, and it is tried again until gridctl kill {id} gives it up",
        trouble.tried.why
    )
}

/// Why it waits, with what it waits to go on from.
fn with_checkpoint(why: String, task: &Task) -> String {
    let Some((number, node)) = task.saved else { return why };
    let number = task.back.map_or(number, |back| back.to);
    format!("{why}; it is to go on from checkpoint {number} on node {node}")
}
