//! What a home node writes down, and reads again after a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use libgrid::control::Stdin;
use libgrid::ids::{JobId, NodeId, TaskId};
use libgrid::spec::{After, JobSpec};
use libgrid::status::{Outcome, Usage};
use serde::{Deserialize, Serialize};

use crate::message::End;

/// Who submitted a job, and where its results go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// For people and for rights: `user@node`.
    pub owner: String,
    /// The user on the home node, who writes the results.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
    /// The folder that results are brought back to.
    pub folder: PathBuf,
    /// The number of the inputs' archive in the spool, if there are inputs.
    pub inputs: Option<u64>,
    /// What the tasks' standard input is.
    pub stdin: Option<Stdin>,
}

/// A job, written down when it is accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// What its user described.
    pub spec: Arc<JobSpec>,
    /// Where it came from.
    pub origin: Origin,
    /// When.
    pub submitted: SystemTime,
    /// The signal with which all of it was cancelled.
    pub cancelled: Option<i32>,
    /// Whether nothing of it starts until somebody releases it.
    pub held: bool,
    /// The jobs that have not yet ended and have to before it starts.
    pub unmet: Vec<After>,
}

/// A task, written down whenever it is placed and when it ends. A task without record waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// That of its current or last run.
    pub epoch: u32,
    /// The last one that was used, be it for a run that never came to be: of a move that was given up.
    pub used: u32,
    /// Where that run is; `None` when it was lost and the task waits again.
    pub node: Option<NodeId>,
    /// When it started.
    pub started: Option<SystemTime>,
    /// When and how it ended.
    pub ended: Option<(SystemTime, Outcome, Usage)>,
    /// The number of its newest checkpoint, and where that is.
    pub saved: Option<(u64, NodeId)>,
    /// The number of the newest that was brought away from where it was written, and which node has that: this one, or
    /// another one for a task that runs here.
    pub exported: Option<(u64, NodeId)>,
    /// Where its user wants it back, until it is there.
    pub back: Option<Back>,
    /// It ended, and what it left cannot be brought home.
    pub kept: Option<Box<Kept>>,
    /// The number of its address among those that its home gives away, from its first placement to its end.
    pub serial: Option<u16>,
}

/// How a task ended whose results and output stay on its node, as there is no place for them at home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How it ended.
    pub end: End,
    /// Since when they stay there.
    pub since: SystemTime,
    /// Why: a sentence.
    pub why: String,
}

/// A task is to go back to a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// The number of the checkpoint.
    pub to: u64,
    /// The run with this epoch, and those before it, are to end.
    pub after: u32,
}

/// One change of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A job was accepted, cancelled, held or released, or a job ended that it was to come after.
    Job(JobId, Arc<JobRecord>),
    /// A task was placed, lost or ended.
    Task(TaskId, Box<TaskRecord>),
    /// A job is so old that it is forgotten, with its tasks.
    Forget(JobId),
}
