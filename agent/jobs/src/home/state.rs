//! What a home knows of its jobs and tasks, and of the nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::status::{Outcome, Usage};

use super::moving::Move;
use crate::message::{End, LeaseId};
use crate::record::{Back, JobRecord, Kept, TaskRecord};
use crate::{LEASE, MARGIN, Now};

/// How long a task that was lost waits for the node that has its checkpoint, if that is there, before it begins anew on another
/// one. The host needs some seconds to free what the lost run took; a node that fills up meanwhile may take longer.
const FAITHFUL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
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
        trouble: Option<Trouble>,
    },
    Done {
        outcome: Outcome,
        at: SystemTime,
    },
}

/// What a task left cannot be brought home, and stays where it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trouble {
    pub(super) tried: Pausing,
    /// Since when, for people and over restarts; and since when for this agent, as clocks may be set.
    pub(super) since: SystemTime,
    pub(super) met: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) state: State,
    pub(super) epoch: u32,
    /// As in [`TaskRecord::used`].
    pub(super) used: u32,
    /// The node of the last run, for people.
    pub(super) last: Option<NodeId>,
    /// When it was placed, or taken back from the store.
    pub(super) placed: Duration,
    pub(super) started: Option<SystemTime>,
    pub(super) usage: Usage,
    /// A signal that was meant to end it: it is not started again.
    pub(super) doomed: Option<i32>,
    /// The number of its newest checkpoint, and where that is.
    pub(super) saved: Option<(u64, NodeId)>,
    /// As in [`TaskRecord::back`].
    pub(super) back: Option<Back>,
    /// As in [`TaskRecord::exported`].
    pub(super) exported: Option<(u64, NodeId)>,
    /// Until when none is brought away; for ever while one is on its way.
    pub(super) rests: Duration,
    /// The other node that one is on its way to, from here.
    pub(super) exports_to: Option<NodeId>,
    /// The checkpoint that the present run went on from.
    pub(super) resumed: Option<u64>,
    /// When its last run was lost.
    pub(super) lost: Duration,
    /// Its user ended it once more after its end: what it left need not be brought home.
    pub(super) unwanted: bool,
    /// What came of its last move.
    pub(super) moved: Option<Move>,
    /// As in [`TaskRecord::serial`].
    pub(super) serial: Option<u16>,
}

/// How far the gathering of inputs is that did not come along.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Gathering {
    /// It has not begun.
    #[default]
    Not,
    Begun,
    /// It failed, and is tried again.
    Failed(Pausing),
}

/// Something is tried again after a pause.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pausing {
    /// Why: a sentence.
    pub(super) why: String,
    /// How long, and until when.
    pub(super) pause: Duration,
    pub(super) again: Duration,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: Arc<JobRecord>,
    pub(super) first: u32,
    pub(super) tasks: Vec<Task>,
    /// The indices that wait, for a node or for the answer to a reservation.
    pub(super) waiting: BTreeSet<u32>,
    /// For how many of them reservations are under way.
    pub(super) asked: u32,
    /// The indices that are neither waiting nor done.
    pub(super) active: BTreeSet<u32>,
    pub(super) ended: Option<SystemTime>,
    /// Whether one of its tasks did not succeed.
    pub(super) failed: bool,
    /// Its inputs, if they are to be gathered.
    pub(super) gathering: Gathering,
}

/// What the home knows of a node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) info: NodeInfo,
    /// What is free there as far as we know, less what we asked for since.
    pub(super) free: Resources,
    pub(super) up: bool,
    /// No reservation is asked for before.
    pub(super) not_before: Duration,
    /// Runs of ours that are there.
    pub(super) runs: BTreeSet<Run>,
    /// When its last heartbeat came.
    pub(super) heard: Duration,
    /// When the last reservation was granted there: the `Start` that uses it lets all our tasks there go on.
    pub(super) granted: Duration,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) job: JobId,
    /// Of a task that runs, and is to move.
    pub(super) moves: Option<TaskId>,
    pub(super) node: NodeId,
    pub(super) each: Resources,
    pub(super) count: u32,
    pub(super) at: Duration,
}

/// The first pause before something is tried again, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];

impl Pausing {
    /// It failed now, and may have before.
    pub(super) fn new(now: Now, why: String, before: Option<&Self>) -> Self {
        let pause = before.map_or(PAUSE[0], |before| (2 * before.pause).min(PAUSE[1]));
        Self { why, pause, again: now.mono + pause }
    }
}

impl Job {
    pub(super) fn new(record: Arc<JobRecord>) -> Self {
        let indices: BTreeSet<u32> = record.spec.indices().collect();
        let first = indices.first().copied().unwrap_or(0);
        let tasks = vec![Task::new(record.cancelled); indices.len()];
        let active = BTreeSet::new();
        Self {
            record,
            first,
            tasks,
            waiting: indices,
            asked: 0,
            active,
            ended: None,
            failed: false,
            gathering: Gathering::default(),
        }
    }

    pub(super) fn task(&self, index: u32) -> Option<&Task> {
        self.tasks.get(index.checked_sub(self.first)? as usize)
    }

    pub(super) fn task_mut(&mut self, index: u32) -> Option<&mut Task> {
        self.tasks.get_mut(index.checked_sub(self.first)? as usize)
    }

    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }
}

impl Task {
    pub(super) fn new(doomed: Option<i32>) -> Self {
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
            unwanted: false,
            moved: None,
            serial: None,
        }
    }

    /// What is written down of it while it has not ended.
    pub(super) fn record(&self) -> TaskRecord {
        let Self { epoch, used, started, saved, exported, back, serial, .. } = *self;
        let node = self.state.node();
        let kept = match &self.state {
            State::Ending { end, trouble: Some(trouble), .. } => {
                let (end, since, why) = ((**end).clone(), trouble.since, trouble.tried.why.clone());
                Some(Box::new(Kept { end, since, why }))
            }
            _ => None,
        };
        TaskRecord { epoch, used, node, started, ended: None, saved, exported, back, kept, serial }
    }

    /// The only node to wait for, if there is one and it is up: where its checkpoint is, for [`FAITHFUL`] after it was lost;
    /// where its user wants it to go on from there, without end.
    pub(super) fn waits_for(&self, now: Now) -> Option<NodeId> {
        let wanted = self.back.is_some() || now.mono < self.lost + FAITHFUL;
        self.saved.filter(|_| wanted).map(|(_, node)| node)
    }
}

impl State {
    pub(super) fn node(&self) -> Option<NodeId> {
        match self {
            State::Placed { node, .. } | State::Running { node } | State::Ending { node, .. } => Some(*node),
            State::Waiting | State::Done { .. } => None,
        }
    }
}

impl Node {
    pub(super) fn unknown(id: NodeId, now: Duration) -> Self {
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
            granted: now,
        }
    }

    /// Whether its tasks of ours have stopped by now, wherever they are, as nothing of it came for so long.
    pub(super) fn is_silent(&self, now: Duration) -> bool {
        now >= self.heard.max(self.granted) + LEASE + MARGIN
    }
}
