//! Checkpoints on their way between nodes.
//!
//! ```text
//!   host                               home                                   next host
//!     saved: 7 ──(heartbeat)──▶ Action::Export
//!     ◀────────────── Manifest ──
//!     ◀── Stage: what is missing
//!     ══════ pieces ═══════════▶ store; TaskRecord::exported = 7
//!     ✗                          lost, placed ── Start, exported: 7 ───────▶  is it newer than what is here?
//!                                ◀──────────────────────────── Manifest, Stage
//!                                ══════ pieces ════════════════════════════▶ store, and on as from its own
//! ```
//!
//! The home has the newest that it could bring. One at a time for each task, and then so long a rest that they take at most one
//! part in [`SHARE`] of the time: a task with little memory has each of its checkpoints there, one with much has fewer.
//!
//! Those of a task that runs on its home node are brought to a second node in the same way, which the home asks to (`Keep`):
//!
//! ```text
//!   home, host                                             second
//!     saved: 7, Action::Export ─────────────── Keep ───────▶
//!     ◀───────────────────────────────── Manifest, Stage ──
//!     ══════════════════════ pieces ═══════════════════════▶ store
//!     ◀───────────────────────────────────────────── Ok ────
//!     TaskRecord::exported = (7, second)
//! ```
//!
//! It is there for a home that lost its checkpoints, to damage or with a disk: a home that lost its records has no tasks. The
//! second node gives them to the home alone, which brings them back when it starts the task again and has none that is
//! whole, and drops them as any node does, when the home says that the task is done.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use grid_checkpoint::store::{Store, StoreError};
use grid_jobs::home;
use libgrid::control::{Failure, Kind};
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::wire::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::keeper::Work;
use super::{Checkpoints, name_of};
use crate::core::View;
use crate::grid::{Grid, blocking};
use crate::identity::failure;
use crate::peers::{Peers, Request};
use crate::staging::{StageError, Staging};

/// Exports take at most this part of the time, on the mean.
pub(crate) const SHARE: u32 = 10;

/// How often what is missing is looked for, while other tasks' checkpoints go, and pieces with them.
const TRIES: u32 = 5;

/// How long the home rests after one that failed.
pub(crate) const REST: Duration = Duration::from_secs(5);

/// How long to wait for a home node that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a node may take to send a manifest.
const PATIENCE: Duration = Duration::from_secs(30);

/// A manifest as it lies in a store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bytes(#[serde(with = "serde_bytes")] Vec<u8>);

/// Brings checkpoints here.
#[derive(Clone)]
pub(crate) struct Importer {
    pub(super) store: Store,
    pub(super) folder: PathBuf,
    pub(super) staging: Staging,
}

impl Checkpoints {
    /// Has a checkpoint of a task of this home brought from its host: here, or to another node if the host is this one.
    pub(crate) fn export(&self, task: TaskId, number: u64, from: NodeId, to: NodeId) {
        let (importer, core, work) = (self.importer.clone(), self.core.clone(), self.work.clone());
        let here = to == self.me;
        tokio::spawn(async move {
            let begun = Instant::now();
            let brought = match here {
                true => importer.bring(task, number, from, false).await.map(drop).map_err(|e| e.to_string()),
                false => hand_on(&importer.staging.peers, task, number, to).await,
            };
            let (at, rest) = match brought {
                Ok(()) => (Some((number, to)), begun.elapsed() * SHARE),
                Err(why) => {
                    info!(%task, number, %from, %to, why, "a checkpoint was not brought to where it is to be kept");
                    (None, REST)
                }
            };
            // The keeper and the core end only with the agent.
            if here {
                let _ = work.send(Work::Imported { task, then: None });
            }
            core.home(home::Event::Exported { task, at, rest });
        });
    }

    /// Brings a checkpoint here from the task's home, which runs it.
    pub(crate) fn keep(&self, task: TaskId, number: u64, reply: oneshot::Sender<Result<(), String>>) {
        if self.size > self.limit {
            return drop(reply.send(Err(self.full())));
        }
        let (importer, work) = (self.importer.clone(), self.work.clone());
        tokio::spawn(async move {
            let brought = importer.bring(task, number, task.job.home, false).await;
            let _ = work.send(Work::Imported { task, then: None });
            // Whoever asked may be gone.
            let _ = reply.send(brought.map(drop).map_err(|error| error.to_string()));
        });
    }

    /// Brings a checkpoint that a run shall go on from, from this node; [`News::Brought`] follows. One that does not
    /// answer is waited for: if it stays away, the run is taken from us.
    pub(crate) fn bring(&mut self, run: Run, number: u64, node: NodeId) {
        self.traces.insert(run);
        let (importer, work) = (self.importer.clone(), self.work.clone());
        tokio::spawn(async move {
            let result = loop {
                match importer.bring(run.task, number, node, true).await {
                    Ok(_) => break Ok(()),
                    Err(StageError::Unreachable(_)) => tokio::time::sleep(PAUSE).await,
                    Err(error) => break Err(error.to_string()),
                }
            };
            let _ = work.send(Work::Imported { task: run.task, then: Some((run, result)) });
        });
    }
}

impl Importer {
    /// Brings a checkpoint from another node into the store; with `compare`, what is here of it is looked at before it is
    /// relied on. Returns how long that took.
    pub(crate) async fn bring(
        &self,
        task: TaskId,
        number: u64,
        from: NodeId,
        compare: bool,
    ) -> Result<Duration, StageError> {
        let begun = Instant::now();
        let mut tries = TRIES;
        loop {
            match self.try_bring(task, number, from, compare).await {
                Err(BringError::Store(StoreError::Missing { .. })) if tries > 1 => tries -= 1,
                Err(BringError::Store(error)) => return Err(StageError::Lasting(error.to_string())),
                Err(BringError::Stage(error)) => return Err(error),
                Ok((pieces, bytes)) => {
                    let took = begun.elapsed();
                    let ms = took.as_millis() as u64;
                    info!(%task, number, %from, pieces, bytes, took = ms, "checkpoint_brought");
                    return Ok(took);
                }
            }
        }
    }

    /// How many pieces came, and how many bytes of them were new.
    async fn try_bring(
        &self,
        task: TaskId,
        number: u64,
        from: NodeId,
        compare: bool,
    ) -> Result<(usize, u64), BringError> {
        let manifest = manifest(&self.staging.peers, task, number, from).await?;
        let coming = self.folder.join("coming");
        let lasting = |error: &dyn std::fmt::Display| StageError::Lasting(error.to_string());
        let (store, bytes, made) = (self.store.clone(), manifest.clone(), coming.clone());
        let missing = blocking(move || {
            let folder = DirBuilder::new().recursive(true).mode(0o700).create(&made);
            folder.map_err(|error| lasting(&error))?;
            store.missing(&bytes, compare).map_err(|error| lasting(&error))
        });
        let missing = missing.await?;
        let pieces = missing.len();
        let came = match pieces {
            0 => coming.join(name_of(task)),
            _ => self.staging.checkpoint(task, number, missing, from, &coming).await?,
        };
        let store = self.store.clone();
        let imported = blocking(move || {
            let imported = store.import(&name_of(task), number, &manifest, &came);
            let _ = fs::remove_dir_all(&came);
            imported
        });
        Ok((pieces, imported.await?))
    }
}

/// One try to bring a checkpoint here failed.
#[derive(Debug, thiserror::Error)]
enum BringError {
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Has another node bring a checkpoint that is here to itself, and waits until it has.
pub(super) async fn hand_on(peers: &Peers, task: TaskId, number: u64, to: NodeId) -> Result<(), String> {
    let request = Request::Keep { task, number };
    let mut duplex = peers.ask(to, &request).await.map_err(|error| error.to_string())?;
    let kept = stream::read::<Result<(), Failure>, _>(&mut duplex).await;
    kept.map_err(|error| error.to_string())?.map_err(|failure| failure.message)
}

async fn manifest(peers: &Peers, task: TaskId, number: u64, from: NodeId) -> Result<Vec<u8>, StageError> {
    let unreachable = |error: &dyn std::fmt::Display| StageError::Unreachable(error.to_string());
    let request = Request::Manifest { task, number };
    let mut duplex = peers.ask(from, &request).await.map_err(|error| unreachable(&error))?;
    let answer = timeout(PATIENCE, stream::read::<Result<Bytes, Failure>, _>(&mut duplex)).await;
    let answer = answer.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
    answer.map(|bytes| bytes.0).map_err(|failure| StageError::Lasting(failure.message))
}

// === answering ===

/// Nothing if that node may have the checkpoints of this task: its home, one that is to run it, or one that this home wants to
/// have them.
pub(crate) async fn may_have(grid: &Grid, node: NodeId, task: TaskId) -> Result<(), Failure> {
    if task.job.home == node {
        return Ok(());
    }
    let may = move |view: &mut View| view.home.has_run_at(task.job, node) || view.home.exports_to(task, node);
    let look = grid.core.look(may).await;
    match look.map_err(|error| failure(Kind::Unavailable, error))? {
        true => Ok(()),
        false => Err(Failure::new(Kind::Denied, format!("checkpoints of {task} are not for node {node}"))),
    }
}

/// The manifest of a checkpoint that is here.
pub(crate) async fn answer(grid: &Grid, node: NodeId, task: TaskId, number: u64) -> Result<Bytes, Failure> {
    may_have(grid, node, task).await?;
    let store = store(grid);
    let manifest = blocking(move || store.and_then(|store| store.manifest(&name_of(task), number))).await;
    manifest.map(Bytes).map_err(|error| failure(Kind::Missing, error))
}

/// Puts pieces of a checkpoint into a folder, to be sent.
pub(crate) async fn lay_out(
    grid: &Grid,
    task: TaskId,
    number: u64,
    pieces: Vec<[u8; 32]>,
    folder: PathBuf,
) -> Result<(), Failure> {
    let store = store(grid);
    let laid = move || {
        let above = folder.parent().unwrap_or(&folder);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(above);
        let file = |source| StoreError::File { what: "cannot make", path: above.to_owned(), source };
        made.map_err(file)?;
        store?.lay_out(&name_of(task), number, &pieces, &folder)
    };
    blocking(laid).await.map_err(|error| failure(Kind::Missing, error))
}

fn store(grid: &Grid) -> Result<Store, StoreError> {
    Store::open(&grid.config.checkpoints_dir().join("store"))
}
