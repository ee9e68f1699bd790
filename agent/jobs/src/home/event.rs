//! What happens to a home, and what it wants done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::{JobId, NodeId, Run, Selector, TaskId};
use libgrid::node::NodeInfo;
use libgrid::spec::JobSpec;
use libgrid::status::MoveMode;

use crate::message::{Fate, ToHome, ToHost};
use crate::record::{Change, Origin};

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
    /// A user wants nothing more of a job to start, or no longer wants that.
    Hold {
        /// Which.
        job: JobId,
        /// Whether it is held from now on.
        held: bool,
    },
    /// What came of [`Action::Gather`].
    Gathered {
        /// For which job.
        job: JobId,
        /// The number of the archive, or why there is none.
        inputs: Result<u64, Ungathered>,
    },
    /// What came of [`Action::AskFates`].
    Fate {
        /// Of which job.
        job: JobId,
        /// What its home says.
        fate: Fate,
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
    /// Results and logs of a run have been brought home, or not.
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
    /// All is here that can be; the rest will never be: one sentence which and why.
    Missed(String),
    /// It cannot be kept here: one sentence why. Somebody may mend that.
    Failed(String),
    /// The node could not be reached; it will tell again.
    Unreachable,
}

/// Why inputs were not gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ungathered {
    /// Something of them is not there: a sentence.
    Absent(String),
    /// They cannot be read or kept now: a sentence. Somebody may mend that.
    Failed(String),
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
        /// Why no node could run it as things are: a sentence.
        waits: Option<String>,
    },
    /// Bring results and logs of this run home: [`Event::Collected`] follows.
    Collect {
        /// Which.
        run: Run,
        /// Where it is.
        node: NodeId,
        /// Whether it failed before.
        again: bool,
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
    /// Pack the inputs of a job that may start now: [`Event::Gathered`] follows.
    Gather {
        /// Which.
        job: JobId,
        /// From which folder, and as whom.
        origin: Origin,
        /// Below that folder.
        paths: Vec<String>,
    },
    /// Ask another home what came of these jobs of it: [`Event::Fate`] follows for each, if it can be asked.
    AskFates {
        /// Which.
        home: NodeId,
        /// Its jobs.
        jobs: Vec<JobId>,
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
