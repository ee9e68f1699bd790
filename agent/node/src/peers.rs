//! What agents ask of each other: one stream of the link for each request.
//!
//! A stream begins with a [`Request`] frame. What follows depends on it:
//!
//! | request | then, from the asked side unless noted |
//! | --- | --- |
//! | `Letters` | the asker sends [`Letter`] frames for as long as it likes; lost ones are made good by heartbeats |
//! | `Control` | the frames of [`libgrid::control`], both ways |
//! | `Logs` | [`Piece`] frames |
//! | `Output` | [`Piece`] frames |
//! | `Stage` | [`control::Response`] frames: how far it is, then the end |
//! | `Input` | the asker sends [`Keys`] frames; [`Heard`] frames, the first at once |
//! | `Usage` | one `Vec<Used>` frame |
//! | `Processes` | one `Vec<Process>` frame |
//! | `Find` | one `Result<TaskId, Option<Fate>>` frame |
//! | `Comm` | the asker sends `Routed` frames; `Bounce` frames for those that were not delivered |
//! | `Owner` | one `Option<Owner>` frame |
//! | `SameUser` | one `bool` frame |
//! | `Signal` | one `Result<(), Failure>` frame |
//! | `Checkpoint` | one `Result<Checkpoint, Failure>` frame, when it is stored |
//! | `Checkpoints` | one `Result<TaskCheckpoints, Failure>` frame |
//! | `Verify` | one `Result<(), Failure>` frame |
//! | `Manifest` | one `Result<Bytes, Failure>` frame |
//! | `Keep` | one `Result<(), Failure>` frame, when it is stored |
//! | `Survey` | one `Result<Surveyed, Failure>` frame |
//! | `Fits` | one `Result<Vec<Obstacle>, Failure>` frame |
//! | `Relocate` | one `Result<Moved, Failure>` frame, when it has moved |
//! | `Pages` | one `Outset` frame; the stream of [`grid_migrate::pages`] goes over a connection of its own |
//! | `Rounds` | one `Outset` frame, and nothing until the asker ends it |
//! | `Round` | one `Round` frame, when it is written; an archive of it |
//! | `Depart` | one `Departure` frame, when the task stands still; an archive, if its memory came before, or most of it |
//! | `Finished` | one `Vec<TaskId>` frame |
//! | `Fates` | one `Vec<Fate>` frame |
//! | `Join`, `Renew`, `Certify` | one `Result<Admission, String>` frame |
//! | `Revocations` | nothing |
//! | `Prepare` | one `Result<Ticket, Failure>` frame |
//! | `Send` | [`control::Response`] frames: how far it is, then the end |
//! | `Receive`, `Accept` | what two movers say to each other, see `grid_transfer::session` |
//! | `Exports` | one `Vec<ExportOf>` frame |
//!
//! The asked side knows the asker from the handshake. The bearer of a token gets no further than `Join`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use grid_link::{Duplex, Link};
use grid_run::protocol::Typed;
use grid_transfer::session::Invitation;
use grid_vo::{Admission, RevocationList};
use libgrid::control::{self, Stream};
use libgrid::ids::{Gpid, JobId, NodeId, Run, TaskId};
use libgrid::status::MoveMode;
use libgrid::wire::{WireError, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::debug;

use crate::caller::Caller;
use crate::copy::{Preparing, Sending, Ticket};
use crate::core::Letter;
use crate::runner::Surveyed;
use crate::staging::Staged;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Messages of `grid-jobs`.
    Letters,
    /// A request of a user of the asking node.
    Control { caller: Caller, request: Box<control::Request> },
    /// What a run printed, from these offsets on, until it ends.
    Logs { run: Run, from: [u64; 2], follow: bool },
    /// All that a run that ended printed.
    Output(Run),
    /// Inputs or results; the asked side sends them with this ticket.
    Stage { what: Staged, ticket: Ticket },
    /// Typing into a run.
    Input(Run),
    /// What runs have used so far.
    Usage(Vec<Run>),
    /// The processes of runs.
    Processes(Vec<Run>),
    /// Which task a process at the asked node is part of.
    Find(Gpid),
    /// Datagrams for processes at the asked node.
    Comm,
    /// Whose a job of the asked home is.
    Owner(JobId),
    /// What came of jobs of the asked home.
    Fates(Vec<JobId>),
    /// Whether two jobs of the asked home are one user's.
    SameUser(JobId, JobId),
    /// A process of a run is to get a signal.
    Signal { run: Run, process: Gpid, signal: i32 },
    /// A checkpoint of a run is wanted now.
    Checkpoint(Run),
    /// The checkpoints of a task.
    Checkpoints(TaskId),
    /// Whether a checkpoint is whole.
    Verify { task: TaskId, number: u64 },
    /// What a checkpoint is made of.
    Manifest { task: TaskId, number: u64 },
    /// A checkpoint of the asker, which runs a task of its own, is to be kept by the asked node, too.
    Keep { task: TaskId, number: u64 },
    /// What would stop a run from being moved.
    Survey(Run),
    /// What would stop it from going on at the asked node.
    Fits { run: Run, there: Box<Surveyed> },
    /// A run of the asked home is to leave the asker, which is drained.
    Relocate { run: Run, mode: MoveMode },
    /// The files of a run that the asker is to take over, and its memory unless that goes in rounds, are to be sent to who waits
    /// for them there, while it runs.
    Pages { run: Run, invitation: Invitation, memory: bool },
    /// The same in rounds, which last as long as this request does.
    Rounds(Run),
    /// The next of them; that with this number, from 1.
    Round { run: Run, round: u32 },
    /// The asker takes a run over, as its own of this epoch, as the home told both.
    Depart { run: Run, epoch: u32 },
    /// Which of these tasks are done, so that their checkpoints are of no more use.
    Finished(Vec<TaskId>),
    /// A token's bearer wants in.
    Join { public_key: [u8; 32], name: String },
    /// A node wants its certificate renewed.
    Renew { public_key: [u8; 32] },
    /// A user of the asking node wants a certificate; with addresses, also for a server there.
    Certify { user: String, addresses: Option<Vec<IpAddr>>, public_key: [u8; 32] },
    /// The newest list that the asker knows.
    Revocations(RevocationList),
    /// A user of the asking node wants to write here.
    Prepare { caller: Caller, preparing: Preparing },
    /// A user of the asking node wants files of this node sent.
    Send { caller: Caller, sending: Sending },
    /// The bearer of a ticket sends.
    Receive { ticket: Ticket },
    /// A user of the asking node, from which the files come, wants to write here.
    Accept { caller: Caller, preparing: Preparing },
    /// What this node lends.
    Exports,
}

/// A part of what a run printed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Piece {
    /// Output.
    Output {
        stream: Stream,
        offset: u64,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// All of it came.
    End,
    /// It will not come: one sentence why.
    Failed(String),
}

/// What is typed into a run, by its position.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Keys {
    /// So many bytes, at most [`control::MAX_CHUNK`].
    Bytes {
        at: u64,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The end, which counts for one byte.
    End { at: u64 },
    /// The terminal has this size.
    Resize { rows: u16, cols: u16 },
}

/// How far that is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Heard {
    /// The run has so much.
    Typed(Typed),
    /// The run is not here any more.
    Ended,
}

/// The answer to `Join` and `Renew`.
pub(crate) type Admitted = Result<Admission, String>;

/// The asking side.
#[derive(Clone)]
pub(crate) struct Peers {
    link: Link,
}

/// A node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Link(#[from] grid_link::LinkError),
    #[error("talking to node {node} failed: {source}")]
    Wire { node: NodeId, source: WireError },
}

impl Peers {
    pub(crate) fn new(link: Link) -> Self {
        Self { link }
    }

    /// Opens a stream that begins with this request.
    pub(crate) async fn ask(&self, node: NodeId, request: &Request) -> Result<Duplex, AskError> {
        let mut duplex = self.link.open(node).await?;
        stream::write(&mut duplex, request).await.map_err(|source| AskError::Wire { node, source })?;
        Ok(duplex)
    }

    /// Carries letters to their nodes, in order for each node, until the sender is dropped.
    pub(crate) async fn carry(self, mut letters: mpsc::UnboundedReceiver<(NodeId, Letter)>) {
        let mut boxes: HashMap<NodeId, mpsc::UnboundedSender<Letter>> = HashMap::new();
        while let Some((to, letter)) = letters.recv().await {
            let outbox = match boxes.entry(to) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let (sender, receiver) = mpsc::unbounded_channel();
                    tokio::spawn(self.clone().empty(to, receiver));
                    entry.insert(sender)
                }
            };
            // The other end lives as long as this one.
            let _ = outbox.send(letter);
        }
    }

    /// Writes one node's letters. Those that wait while it cannot be reached are dropped: they are old news.
    async fn empty(self, node: NodeId, mut letters: mpsc::UnboundedReceiver<Letter>) {
        let mut open: Option<Duplex> = None;
        while let Some(letter) = letters.recv().await {
            let fresh = open.is_none();
            if fresh {
                match self.ask(node, &Request::Letters).await {
                    Ok(duplex) => open = Some(duplex),
                    Err(error) => {
                        debug!(%node, %error, "letters dropped");
                        while letters.try_recv().is_ok() {}
                        continue;
                    }
                }
            }
            let Some(duplex) = &mut open else { continue };
            if stream::write(duplex, &letter).await.is_ok() {
                continue;
            }
            // The connection that stood was dead: once more on a new one.
            open = None;
            if !fresh
                && let Ok(mut duplex) = self.ask(node, &Request::Letters).await
                && stream::write(&mut duplex, &letter).await.is_ok()
            {
                open = Some(duplex);
            }
        }
    }
}
