//! What others ask of the runner, and its own parts tell it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use grid_migrate::order::Report;
use grid_run::protocol::{Launch, ToShim};
use grid_run::usage;
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::status::{Obstacle, TaskCheckpoints, Usage};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Runner;
use super::ahead::{Arrived, Files, Outset, Taker};
use super::keyboard::Keyboard;
use super::moving::{Departing, Surveyed};
use super::precopy::Rounding;
use super::recover::remove;
use super::shim::{ShimId, ShimNews};
use super::slots::Slot;
use crate::checkpoint::{self, News};
use crate::processes::Place;

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
    /// Whether it fits here; a place that is being given back is waited for till then.
    Fits { run: Run, there: Box<Surveyed>, until: Instant, reply: oneshot::Sender<Vec<Obstacle>> },
    /// That node asks for a run that is to move there.
    Depart { run: Run, to: (NodeId, u32), reply: oneshot::Sender<Departing> },
    /// What came of asking for a run that is to move here.
    Departed { run: Run, departed: Result<Box<Arrived>, String> },
    /// One that went on elsewhere is to be ended.
    EndHeld(Run),
    /// That node asks for the memory of a run that is to move there, while it runs.
    Pages { run: Run, to: Taker, reply: oneshot::Sender<Outset> },
    /// The memory of a run that is to move here is on its way, and so is its local user.
    Comes { run: Run, uid: u32, memory: bool, reply: oneshot::Sender<Result<(PathBuf, Files), String>> },
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
    /// The FIFO of a pipe has come to its end.
    ClosePipe { run: Run, name: String },
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

impl Runner {
    pub(super) fn answer(&mut self, query: Query) {
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
            Query::ClosePipe { run, name } => {
                self.tell(run, ToShim::ClosePipe { run, name });
                if !self.fifos.is_draining(run) && self.draining.remove(&run) {
                    self.forget(run);
                }
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
            Query::Fits { run, there, until, reply } => self.fits(run, there, until, reply),
            Query::Depart { run, to, reply } => self.depart(run, to, reply),
            Query::EndHeld(run) => self.tell(run, ToShim::Fence(run)),
            Query::Departed { run, departed } => self.departed(run, departed),
            Query::Pages { run, to, reply } => self.send_ahead(run, to, reply),
            Query::Comes { run, uid, memory, reply } => drop(reply.send(self.comes(run, uid, memory))),
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

    pub(super) fn usage(&self, runs: &[Run]) -> Vec<Used> {
        let used = |run: &Run| {
            let local = self.runs.get(run).filter(|local| !local.progress.borrow().ended)?;
            local.started?;
            Some((*run, self.used(*run), self.told_of(*run, local)))
        };
        // Each once, however often another node names it.
        runs.iter().collect::<BTreeSet<_>>().into_iter().filter_map(used).collect()
    }

    /// What a run has used so far, with what it used before it went on here.
    pub(super) fn used(&self, run: Run) -> Usage {
        let Some(local) = self.runs.get(&run) else { return Usage::default() };
        let groups = grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
        let here = local.started.zip(groups.ok()).map(|(started, groups)| {
            usage::so_far(&groups.group(&local.slot.name()), started, Path::new("/proc"))
        });
        here.unwrap_or_default().after(local.before)
    }

    /// Not of those that are being restored, as long as they have no ids.
    pub(super) fn places(&self, runs: Option<Vec<Run>>) -> Vec<Place> {
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
}
