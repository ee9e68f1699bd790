//! Inputs and results of jobs between nodes: by the same processes, tickets and protocol as a copy ([`crate::copy`]).
//!
//! ```text
//!   node that wants them                                   node that has them
//!     a ticket: where they go, and as whom
//!     ── Stage{what, ticket} ─────────────────────────────▶  may that node have them?
//!                                                            starts a mover as the user whose they are
//!     ◀──────────────────────────────── Receive{ticket} ───
//!     starts a mover           the two movers talk
//!     ◀── how far it is, then the end ─────────────────────
//! ```
//!
//! | what | from | read as | to | written as |
//! | --- | --- | --- | --- | --- |
//! | inputs | home: `spool/` | who submitted | host: `inputs/JOB/` | the task that needs them first |
//! | results | host: the task's folder, what matches | the task | home: the folder of the submission | who submitted |
//! | checkpoints | host, or home: the store | root | home, or the next host: `checkpoints/coming/` | root |
//!
//! Inputs are one archive, fetched once for all tasks of a job on a node; results are as many transfers as tasks, since
//! each is read as another user; of a checkpoint come the pieces that the other side lacks. All go on where they ended: nothing is given up because a connection broke, and only
//! a data connection that fails again and again, while the agents do reach each other, is told to the user. Within one
//! node nothing of this is needed.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use grid_transfer::mover::{self, Order, Report, Spread, Within};
use grid_transfer::session::Trouble;
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::copy::{Landed, Options};
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::user::User;
use libgrid::wire::{WireError, stream};
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::checkpoint::exports;
use crate::control::Stream;
use crate::copy::{self, Copies, Prepared, Ticket};
use crate::grid::Grid;
use crate::identity::failure;
use crate::peers::{Peers, Request};
use crate::runner::inputs::spooled;

/// How often a transfer may fail, one time after the other with nothing moved, while the other node answers.
const TRIES: u32 = 10;

/// The first pause before another try, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// How long the other node may say nothing. Movers that look through what an earlier try left say nothing meanwhile; a
/// node that is gone is noticed by the link.
const SILENCE: Duration = Duration::from_secs(120);

/// How long nothing may move: a file system may hang, and whoever a mover runs as may stop it.
const STALL: Duration = Duration::from_secs(300);

/// What is moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Staged {
    /// The archive of a job's inputs.
    Inputs(JobId),
    /// Of what a run that ended left, what matches.
    Results { run: Run, patterns: Vec<String> },
    /// Of a checkpoint, these pieces.
    Checkpoint { task: TaskId, number: u64, pieces: Pieces },
}

/// Names of pieces; there may be many.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Pieces(pub(crate) Vec<[u8; 32]>);

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pieces", self.0.len())
    }
}

/// It could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// The other node may come back.
    #[error("{0}")]
    Unreachable(String),
    /// Something broke; so many bytes were there by then.
    #[error("{why}")]
    Interrupted { why: String, bytes: u64 },
    /// Another try would end in the same way.
    #[error("{0}")]
    Lasting(String),
}

/// The asking side.
#[derive(Clone)]
pub(crate) struct Staging {
    pub(crate) copies: Arc<Copies>,
    pub(crate) peers: Peers,
    pub(crate) ports: Option<(u16, u16)>,
}

// === asking ===

impl Staging {
    /// Fetches inputs from the job's home into `folder`, which belongs to this user: the path of the archive.
    pub(crate) async fn inputs(&self, job: JobId, folder: &Path, user: User) -> Result<PathBuf, StageError> {
        let order = Order::Receive {
            within: Within::Folder(folder.to_owned()),
            target: ARCHIVE.into(),
            into: false,
            spread: None,
            ports: self.ports,
            options: Options::default(),
        };
        self.fetch(job.home, Staged::Inputs(job), user, order).await?;
        Ok(folder.join(ARCHIVE))
    }

    /// Brings what matches of a run's files from its node into a folder of this user: what of it does not come.
    pub(crate) async fn results(
        &self,
        run: Run,
        node: NodeId,
        patterns: Vec<String>,
        folder: &Path,
        user: User,
    ) -> Result<Option<String>, StageError> {
        let order = Order::Receive {
            within: Within::Everything,
            target: below_root(folder),
            into: true,
            spread: Some(spread(run, patterns.clone())),
            ports: self.ports,
            options: Options::default(),
        };
        self.fetch(node, Staged::Results { run, patterns }, user, order).await.map(|landed| landed.missed)
    }

    /// Brings pieces of a checkpoint into a folder below this one, which is root's: its path.
    pub(crate) async fn checkpoint(
        &self,
        task: TaskId,
        number: u64,
        pieces: Vec<[u8; 32]>,
        node: NodeId,
        folder: &Path,
    ) -> Result<PathBuf, StageError> {
        let name = format!("{}-{}-{number}", task.job, task.index);
        let order = Order::Receive {
            within: Within::Folder(folder.to_owned()),
            target: name.clone().into(),
            into: false,
            spread: None,
            ports: self.ports,
            options: Options::default(),
        };
        let what = Staged::Checkpoint { task, number, pieces: Pieces(pieces) };
        self.fetch(node, what, User::of_machine(0, 0), order).await?;
        Ok(folder.join(name))
    }

    /// Drops what came of a run's results that will never be whole.
    pub(crate) async fn abandon(&self, run: Run, folder: &Path, user: User) {
        let spread = spread(run, Vec::new());
        // As root no more than a look whether there is anything.
        if !tokio::fs::try_exists(folder.join(spread.mark())).await.unwrap_or(false) {
            return;
        }
        let order = Order::Discard { within: Within::Everything, target: below_root(folder), spread };
        let mut pause = PAUSE[0];
        for _ in 0..TRIES {
            let dropped = tokio::time::timeout(SILENCE, self.carry_out(&user, &order)).await;
            match dropped.unwrap_or_else(|_| Err(Trouble::lasting("it does not end"))) {
                Ok(()) => return,
                // Its mover has not noticed yet.
                Err(trouble) if trouble.retry => tokio::time::sleep(pause).await,
                Err(trouble) => return debug!(%run, %trouble, "what came of results cannot be dropped"),
            }
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    async fn carry_out(&self, user: &User, order: &Order) -> Result<(), Trouble> {
        let started = self.copies.movers.start(user, order);
        let (mut mover, _control) = started.map_err(|failure| Trouble::lasting(failure.message))?;
        mover.end(&mut tokio::io::empty()).await.map(|_: Report| ())
    }

    async fn fetch(
        &self,
        from: NodeId,
        what: Staged,
        user: User,
        order: Order,
    ) -> Result<Landed, StageError> {
        let (mut tries, mut came, mut pause) = (0, 0, PAUSE[0]);
        loop {
            let prepared = Prepared { user: user.clone(), order: order.clone(), from };
            match self.try_once(from, what.clone(), prepared).await {
                Ok(landed) => {
                    debug!(%from, ?what, ?landed, "staged");
                    return Ok(landed);
                }
                Err(StageError::Interrupted { why, bytes }) => {
                    debug!(%from, ?what, why, bytes, "staging was interrupted");
                    if bytes > came {
                        (tries, came, pause) = (0, bytes, PAUSE[0]);
                    }
                    tries += 1;
                    if tries == TRIES {
                        return Err(StageError::Lasting(why));
                    }
                }
                Err(other) => return Err(other),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    async fn try_once(&self, from: NodeId, what: Staged, prepared: Prepared) -> Result<Landed, StageError> {
        let mut bytes = 0;
        let told = |failure: Failure, bytes| match failure.kind {
            Kind::Unavailable => StageError::Interrupted { why: failure.message, bytes },
            _ => StageError::Lasting(failure.message),
        };
        let ticket = self.copies.tickets.issue(prepared).map_err(|failure| told(failure, 0))?;
        let asked = self.peers.ask(from, &Request::Stage { what, ticket }).await;
        let mut duplex = asked.map_err(|error| StageError::Unreachable(error.to_string()))?;
        let (mut so_far, mut moved) = ((0, 0), Instant::now());
        loop {
            let broken = |why: String, bytes| StageError::Interrupted {
                why: format!("the connection to node {from} broke: {why}"),
                bytes,
            };
            let response = tokio::time::timeout(SILENCE, stream::read::<Response, _>(&mut duplex)).await;
            let response = response.map_err(|_| broken(format!("it said nothing for {SILENCE:?}"), bytes))?;
            match response.map_err(|error| broken(error.to_string(), bytes))? {
                Ok(Reply::Copying(progress)) => {
                    bytes = progress.bytes;
                    let now = (progress.bytes, progress.of_items);
                    if std::mem::replace(&mut so_far, now) != now {
                        moved = Instant::now();
                    } else if moved.elapsed() > STALL {
                        return Err(broken(format!("nothing moved for {STALL:?}"), bytes));
                    }
                }
                Ok(Reply::Copied(landed)) => return Ok(landed),
                Ok(_) => return Err(StageError::Lasting(format!("node {from} answers something else"))),
                Err(failure) => return Err(told(failure, bytes)),
            }
        }
    }
}

/// The name of an archive in its folder.
pub(crate) const ARCHIVE: &str = "archive";

fn below_root(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn spread(run: Run, patterns: Vec<String>) -> Spread {
    let name = format!("{}-{}", run.task.job, run.task.index);
    Spread { name, id: results_id(run), patterns }
}

/// The same for every try to bring the results of a run home, and for no other run's.
fn results_id(run: Run) -> [u8; 8] {
    mover::transfer_id(&format!("results\0{run}"))
}

// === answering ===

/// Sends what another node wants, if it may have it, to where it has a ticket for.
pub(crate) async fn send<S: Stream>(
    grid: &Grid,
    to: NodeId,
    what: Staged,
    ticket: Ticket,
    asker: &mut S,
) -> Result<(), WireError> {
    let sent = async {
        let (user, order, _leaving) = source(grid, to, what).await?;
        let request = Request::Receive { ticket };
        let landed = copy::pass(grid, (&user, &order), to, &request, asker).await?;
        landed.map_err(|trouble| {
            let kind = if trouble.retry { Kind::Unavailable } else { Kind::Invalid };
            Failure::new(kind, trouble.why)
        })
    };
    let response: Response = match sent.await {
        Ok(landed) => Ok(Reply::Copied(landed)),
        Err(failure) => Err(failure),
    };
    stream::write(asker, &response).await
}

/// What was laid out for one transfer; gone with it.
struct Leaving(PathBuf);

impl Drop for Leaving {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.0);
        drop(tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)));
    }
}

async fn source(grid: &Grid, to: NodeId, what: Staged) -> Result<(User, Order, Option<Leaving>), Failure> {
    let mut leaving = None;
    let (user, within, source, matching, id) = match what {
        Staged::Inputs(job) => {
            let look = move |view: &mut crate::core::View| {
                view.home.record(job).filter(|_| view.home.has_run_at(job, to))
            };
            let record = grid.core.look(look).await.map_err(|error| failure(Kind::Unavailable, error))?;
            // A node that was cut off asks on until it hears that its task was given up; one may come anew.
            let none = || Failure::new(Kind::Unavailable, format!("no task of {job} is on node {to} now"));
            let origin = record.ok_or_else(none)?.origin.clone();
            let spooled = spooled(&grid.config, &grid.core, job).await;
            let path = spooled.map_err(|why| Failure::new(Kind::Missing, why))?;
            // They are the user's own, but came as a stream to the agent.
            chown(&path, Some(origin.uid), Some(origin.gid))
                .map_err(|error| failure(Kind::Missing, format!("{}: {error}", path.display())))?;
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            let id = mover::transfer_id(&format!("inputs\0{job}"));
            let within = Within::Folder(grid.config.spool_dir());
            (User::of_machine(origin.uid, origin.gid), within, name, None, id)
        }
        Staged::Results { run, patterns } if run.task.job.home == to => {
            let gone = || Failure::new(Kind::Missing, format!("{run} is not on this node any more"));
            let following = grid.output.follow(run).await.ok_or_else(gone)?;
            let work = below_root(&following.folder.join("work"));
            (User::of_task(following.uid), Within::Everything, work, Some(patterns), results_id(run))
        }
        Staged::Checkpoint { task, number, pieces } => {
            exports::may_have(grid, to, task).await?;
            // A name for each try: one that broke may not have ended yet.
            let name = PathBuf::from(format!("{:016x}", rand::random::<u64>()));
            let within = grid.config.checkpoints_dir().join("leaving");
            let folder = within.join(&name);
            leaving = Some(Leaving(folder.clone()));
            exports::lay_out(grid, task, number, pieces.0, folder).await?;
            let id = mover::transfer_id(&format!("checkpoint\0{task}\0{number}\0{to}"));
            (User::of_machine(0, 0), Within::Folder(within), name, None, id)
        }
        Staged::Results { .. } => {
            return Err(Failure::new(Kind::Denied, "results are for the job's home node alone"));
        }
    };
    let order = Order::Send {
        within,
        sources: vec![source],
        recursive: true,
        matching,
        addresses: copy::addresses(grid, to),
        id,
        most_streams: grid.copies.movers.most_streams(),
        options: Options { encrypt: grid.config.encrypt_jobs, ..Options::default() },
    };
    Ok((user, order, leaving))
}
