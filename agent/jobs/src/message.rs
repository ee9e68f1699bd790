//! What home and host say to each other. Messages are one-way; any of them can be lost, and a lost one is made
//! good by the next heartbeat.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libgrid::control::Stdin;
use libgrid::ids::{JobId, NodeId, Run};
use libgrid::node::Resources;
use libgrid::spec::{After, JobSpec};
use libgrid::status::{MoveMode, MovePhase, Outcome, Usage};
use serde::{Deserialize, Serialize};

/// Names a reservation; chosen by the home, used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// What a host needs to know of a job to run its tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Which job.
    pub job: JobId,
    /// What its user described.
    pub spec: Arc<JobSpec>,
    /// Whether inputs are to be fetched from the home node.
    pub inputs: bool,
    /// What the tasks' standard input is.
    pub stdin: Option<Stdin>,
}

/// A task that is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its index.
    pub index: u32,
    /// Its epoch.
    pub epoch: u32,
    /// The number of its newest checkpoint, wherever that is; the next has a higher one.
    pub saved: u64,
    /// The last checkpoint to go on from, if its user said so. Otherwise it is the newest that the host has.
    pub from: Option<u64>,
    /// The number of the newest that was brought away from its host, and who has that: its home, or another node.
    pub exported: Option<(u64, NodeId)>,
    /// It runs elsewhere now, and moves here.
    pub arrives: Option<Arrival>,
    /// The number of its address among its home's, if it has a network of its own.
    pub serial: Option<u16>,
}

/// Where a task that moves comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The node.
    pub node: NodeId,
    /// Of the run there.
    pub epoch: u32,
    /// How it is to move.
    pub mode: MoveMode,
}

/// A run, as its host tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Which.
    pub run: Run,
    /// Since when it runs, if it does.
    pub since: Option<SystemTime>,
    /// The checkpoint that it went on from, as far as this is known.
    pub resumed: Option<u64>,
    /// The number of its newest checkpoint there.
    pub saved: Option<u64>,
    /// Whether it stands still until it is let go, because it moves.
    pub held: bool,
}

/// What came of a job, for those that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It has not ended.
    Unfinished,
    /// It has.
    Ended {
        /// All its tasks.
        succeeded: bool,
    },
    /// Its home does not know it: it never was, or is forgotten.
    Unknown,
}

impl Fate {
    /// Why a job that came to this stops the one that was to come after it, in one sentence; nothing if it does not.
    pub fn stops(self, after: After) -> Option<String> {
        let (job, home) = (after.job, after.job.home);
        match self {
            Fate::Unfinished => None,
            Fate::Ended { succeeded } if after.ending.is_met(succeeded) => None,
            Fate::Ended { succeeded: true } => {
                Some(format!("it was to run only if {job} failed, and that succeeded"))
            }
            Fate::Ended { succeeded: false } => {
                Some(format!("it was to run after {job}, and that did not succeed: see gridctl status {job}"))
            }
            Fate::Unknown => Some(format!(
                "it was to run after {job}, which node {home} does not know: see gridctl ps --all on that node"
            )),
        }
    }
}

/// From a home node to a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToHost {
    /// Hold `count` times `each` for me.
    Reserve {
        /// To be named when it is used.
        lease: LeaseId,
        /// What a task takes.
        each: Resources,
        /// For how many tasks; fewer are fine.
        count: u32,
    },
    /// I do not need it any more.
    Release(LeaseId),
    /// Run these tasks on this reservation.
    Start {
        /// The reservation.
        lease: LeaseId,
        /// The job.
        order: Order,
        /// Which of its tasks.
        tasks: Vec<Placement>,
    },
    /// Send a signal to a task.
    Signal {
        /// Which.
        run: Run,
        /// From 1 to 64.
        signal: i32,
        /// SIGKILL after that.
        grace: Option<Duration>,
    },
    /// That node may take the run away; it stays the task's current one until this one is fenced.
    Depart {
        /// Which.
        run: Run,
        /// Whereto.
        to: NodeId,
        /// Of the run that is to be there.
        epoch: u32,
    },
    /// A run that is held may run: it has arrived, or does not move after all. If this comes late, and it is to move once more, it
    /// stays held.
    LetGo {
        /// Which.
        run: Run,
        /// Moves for runs up to this epoch are over.
        past: u32,
    },
    /// The answer to a heartbeat.
    Pulse {
        /// The heartbeat's number.
        seq: u64,
        /// Runs whose epochs are over: end them.
        fence: Vec<Run>,
    },
    /// The end of these runs is written down: forget them.
    Settled(Vec<Run>),
    /// These runs of mine are with you, as far as I know, and I have not heard of them: [`ToHome::Gone`] tells which are not.
    Keeping(Vec<Run>),
}

/// From a host to a home node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToHome {
    /// The answer to [`ToHost::Reserve`].
    Granted {
        /// The reservation.
        lease: LeaseId,
        /// For how many tasks; none if there is no room.
        count: u32,
        /// What is free now besides.
        free: Resources,
    },
    /// A task's processes run.
    Started {
        /// Which.
        run: Run,
        /// Since when.
        at: SystemTime,
        /// The checkpoint that it went on from.
        resumed: Option<u64>,
    },
    /// A task ended.
    Ended {
        /// Which.
        run: Run,
        /// How.
        end: End,
    },
    /// A task that moves here is so far.
    Moving {
        /// The run that is to be.
        run: Run,
        /// How far.
        phase: MovePhase,
        /// How long the task has been standing still, if that has just become known.
        stood: Option<Duration>,
        /// How much of its memory came so far.
        bytes: u64,
    },
    /// A task that moves here could go on at once: it is held.
    Arrived(Run),
    /// A task cannot move here; there is nothing of that run.
    NotMoved {
        /// The run that was to be.
        run: Run,
        /// Why: a sentence.
        why: String,
    },
    /// These runs are not here, and never will be.
    Gone(Vec<Run>),
    /// I am there, with these runs of yours.
    Heartbeat {
        /// Counts up.
        seq: u64,
        /// The runs.
        runs: Vec<Alive>,
        /// What is free.
        free: Resources,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// Whether there is output to bring home.
    pub printed: bool,
}
