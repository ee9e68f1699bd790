//! Tasks that move while they run: this node's part, as the source or as the destination. Who decides what, and why a task is
//! never in two places at once, is in `grid_jobs::home` (`moving.rs`).
//!
//! ```text
//!   destination                                   source
//!     Launch{arrives} ── Request::Depart ─────▶     the home's Depart has come? the shim stops it, writes it down,
//!                                                   and holds it
//!                     ◀──────────── Departed ──
//!     unpacked as it comes              ◀══════     packed as it is sent
//!     made by the shim, and held
//!     ── Held ──▶ home
//! ```
//!
//! That is stop-and-copy. The copy goes past the store of checkpoints on both sides: what that has of the task is not sent again, but
//! to look for it, and to store the rest, takes longer than to send all, and the task stands still.

use std::path::{Path, PathBuf};
use std::time::Duration;

use grid_checkpoint::Installation;
use grid_checkpoint::order::Then;
use grid_checkpoint::preflight::needs::Needs;
use grid_checkpoint::preflight::{self, Survey};
use grid_jobs::host;
use grid_jobs::message::Arrival;
use grid_link::Duplex;
use grid_run::protocol::{FromShim, ToShim};
use libgrid::ids::{NodeId, Run};
use libgrid::status::{MoveMode, Obstacle};
use libgrid::wire::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::info;

use super::ahead::{self, Arrived, Coming};
use super::ready::Unready;
use super::{Query, Resuming, Runner};
use crate::checkpoint::{DepartReply, Departed, Luggage};
use crate::machine;
use crate::peers::{Peers, Request};

/// How long the place of a task that has ended, or gone on elsewhere, may take to be free.
pub(crate) const FREED: Duration = Duration::from_secs(10);

/// How long a source that is not ready yet is asked again, and how often: the home's letter to it may come later than ours, and
/// a checkpoint that is being written comes first.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const AGAIN: Duration = Duration::from_millis(20);

/// Why no task moves from a node by pre-copy.
pub(crate) fn no_soft_dirty(node: NodeId) -> String {
    format!(
        "the kernel of node {node} does not note which memory a program writes to (soft-dirty bits, CONFIG_MEM_SOFT_DIRTY), and \
         pre-copy needs that"
    )
}

/// A task that is looked at before it moves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Surveyed {
    pub(crate) survey: Survey,
    /// Its local user, who must be free where it goes on.
    pub(crate) uid: u32,
    /// Whether it has an address of its own.
    pub(crate) addressed: bool,
    /// Whether the kernel there notes which pages it writes to.
    pub(crate) soft_dirty: bool,
}

/// The source's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Departure {
    /// It stands still, and can be fetched.
    Ready(Departed),
    /// Not yet: ask again.
    NotYet(String),
    /// Its memory is on its way, and will be for as long as it takes.
    Ahead,
    /// Its memory cannot be sent while it runs: a sentence.
    NotAhead(String),
    /// It cannot be: a sentence.
    Failed(String),
}

/// The answer, and what follows it.
pub(crate) struct Departing {
    pub(crate) departure: Departure,
    pub(crate) luggage: Option<Luggage>,
}

impl From<Departure> for Departing {
    fn from(departure: Departure) -> Self {
        Self { departure, luggage: None }
    }
}

impl Runner {
    // === before ===

    /// Looks for what would stop a task from being moved.
    pub(super) fn survey(&self, run: Run, reply: oneshot::Sender<Result<Surveyed, String>>) {
        if self.runs.get(&run).is_some_and(|local| local.resuming.is_some()) {
            // CRIU is not done with it yet, or its memory is not all there.
            let queries = self.queries.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                if !reply.is_closed() {
                    // The runner ends only with the agent.
                    let _ = queries.send(Query::Survey { run, reply });
                }
            });
            return;
        }
        let groups = grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
        let found = self.runs.get(&run).and_then(|local| {
            let pids = groups.ok()?.group(&local.slot.name()).processes().ok()?;
            Some((pids, local.slot.uid(), local.address.is_some()))
        });
        let Some((pids, uid, addressed)) = found else {
            return drop(reply.send(Err(format!("{} does not run here", run.task))));
        };
        let workdir = self.config.workdir();
        tokio::task::spawn_blocking(move || {
            let (proc, root) = (Path::new("/proc"), Path::new("/"));
            let survey = match preflight::init_of(proc, &pids) {
                Some(init) => {
                    let pids: Vec<u32> = pids.into_iter().filter(|pid| *pid != init).collect();
                    preflight::survey(proc, root, init, &pids, &preflight::own(&workdir))
                        .map_err(|error| format!("it cannot be looked at: {error}"))
                }
                None => Err(format!("{} has ended", run.task)),
            };
            // Whoever asked may be gone.
            let soft_dirty = machine::soft_dirty();
            let _ = reply.send(survey.map(|survey| Surveyed { survey, uid, addressed, soft_dirty }));
        });
    }

    /// Looks for what would stop a task that was looked at elsewhere from going on here.
    pub(super) fn fits(
        &self,
        run: Run,
        there: Box<Surveyed>,
        until: Instant,
        reply: oneshot::Sender<Vec<Obstacle>>,
    ) {
        let other =
            self.runs.iter().find(|(other, local)| local.slot.uid() == there.uid && other.task != run.task);
        if other.is_some_and(|(_, local)| local.is_over()) && Instant::now() < until {
            // Its place is free when its home has let go of it.
            let queries = self.queries.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                // The runner ends only with the agent.
                let _ = queries.send(Query::Fits { run, there, until, reply });
            });
            return;
        }
        let mut obstacles = Vec::new();
        if let Some((other, _)) = other {
            obstacles.push(Obstacle {
                what: format!(
                    "the local user of its processes, {}, is {}'s on this node",
                    there.uid, other.task
                ),
                remedy: "choose another node, or wait until that task has ended".into(),
            });
        }
        let holds = |run: &Run| self.runs.get(run).is_some_and(|local| local.slot.uid() == there.uid);
        if self.draining.iter().any(holds) {
            obstacles.push(Obstacle {
                what: "what it wrote to a pipe when it ran on this node is still on its way".into(),
                remedy: "choose another node, or try again when somebody has read from the pipe".into(),
            });
        }
        if let Some(why) = self.network.trouble().filter(|_| there.addressed) {
            let what = format!("it has an address of its own, and this node cannot give it one: {why}");
            obstacles.push(Obstacle { what, remedy: "choose another node".into() });
        }
        let (programs, disk) = (super::shim_program(), self.config.checkpoints_dir());
        tokio::task::spawn_blocking(move || {
            let folder = programs.parent().unwrap_or(Path::new("/"));
            if Installation::find(folder).is_none() {
                obstacles.push(Obstacle {
                    what: "CRIU is not installed on this node".into(),
                    remedy: "install criu 4.2 or newer (setup/install build does)".into(),
                });
            }
            match Needs::of_machine(Path::new("/proc")) {
                Ok(here) => obstacles.extend(
                    there.survey.needs.blockers(&here, Path::new("/")).into_iter().map(Obstacle::from),
                ),
                Err(error) => obstacles.push(Obstacle {
                    what: format!("this machine cannot be looked at: {error}"),
                    remedy: "mount /proc on it".into(),
                }),
            }
            // Unpacked; where it moves by itself, it needs none.
            if let Ok(Some(blocker)) = preflight::room(&disk, there.survey.memory) {
                obstacles.push(blocker.into());
            }
            let _ = reply.send(obstacles);
        });
    }

    // === from here ===

    /// The home says who may take it.
    pub(super) fn may_depart(&mut self, run: Run, to: (NodeId, u32)) {
        self.end_rounds(run);
        if let Some(local) = self.runs.get_mut(&run) {
            local.departs = Some(to);
        }
    }

    /// Another node asks for it.
    pub(super) fn depart(&mut self, run: Run, (to, epoch): (NodeId, u32), reply: oneshot::Sender<Departing>) {
        let wait = |why: &str| Departing::from(Departure::NotYet(why.to_owned()));
        let departs = self.runs.get(&run).and_then(|local| local.departs);
        // What an earlier move allowed may be over, and the word of it on its way.
        if departs != Some((to, epoch)) {
            return drop(reply.send(wait("its home has not said that it moves")));
        }
        if !self.fifos.may_leave(run) {
            return drop(reply.send(wait(
                "what it writes to a pipe, or reads from one, is on its way: is the pipe full?",
            )));
        }
        let (ready, answer): (DepartReply, _) = oneshot::channel();
        let leaving = self.runs.get_mut(&run).map(|local| &mut local.leaving);
        let ahead = match leaving.map(ahead::Leaving::ready).transpose() {
            Ok(ahead) => ahead.flatten(),
            Err(departure) => return drop(reply.send(departure.into())),
        };
        let images = ahead.as_deref().map(|folder| folder.join(grid_checkpoint::memory::IMAGES));
        let parent = self.runs.get(&run).and_then(|local| local.rounds.as_ref()?.last());
        match self.checkpoints.depart(run, ready) {
            Err(_) => drop(reply.send(wait("another checkpoint of it is being written"))),
            Ok(folder) => {
                info!(%run, %to, "task_departs");
                self.fifos.leaves(run);
                self.tell(run, ToShim::Checkpoint { run, folder, then: Then::Hold, ahead, parent });
                tokio::spawn(async move {
                    let departing = match answer.await {
                        Ok(Ok((departed, luggage))) => with_images(departed, luggage, images),
                        Ok(Err(why)) => Departure::Failed(why).into(),
                        Err(_) => Departure::Failed("the agent there is stopping".into()).into(),
                    };
                    // Whoever asked may be gone.
                    let _ = reply.send(departing);
                });
            }
        }
    }

    /// A task stands still, here or before its first instruction here.
    pub(super) fn held(&mut self, message: FromShim) {
        let FromShim::Held { run, folder, done } = message else { return };
        let Some(local) = self.runs.get_mut(&run) else { return };
        if local.resuming.is_some() {
            self.identify(run);
            return self.core.host(host::Event::Held(run));
        }
        if local.departs.is_none() || !self.checkpoints.departs_with(run, &folder) {
            // It was given up before it stood still, maybe by an agent before this one.
            self.fifos.stays(run);
            return self.tell(run, ToShim::LetGo(run));
        }
        local.held = true;
        self.core.host(host::Event::Held(run));
        self.checkpoints.dumped(run, &folder, Ok(done), self.used(run));
    }

    /// It does not move, or has arrived.
    pub(super) fn let_go(&mut self, run: Run) {
        if let Some(local) = self.runs.get_mut(&run) {
            (local.departs, local.held) = (None, false);
            local.leaving = None;
        }
        self.end_rounds(run);
        // Before its first step here.
        self.find_fifos(run);
        self.fifos.stays(run);
        self.tell(run, ToShim::LetGo(run));
    }

    // === to here ===

    /// Has a task stopped where it runs, and brings it here; it then goes the way of those that go on from a checkpoint.
    pub(super) fn arrive(&mut self, run: Run, resuming: Box<Resuming>, arrival: Arrival) {
        self.resuming.insert(run, resuming);
        let limit = self.resuming.get(&run).map_or(0, |resuming| resuming.memory_limit());
        let (peers, queries) = (self.peers.clone(), self.queries.clone());
        let old = Run { task: run.task, epoch: arrival.epoch };
        let coming = Coming {
            peers: peers.clone(),
            queries: queries.clone(),
            core: self.core.clone(),
            moves: self.moves.clone(),
            checkpoints: self.config.checkpoints_dir(),
            run,
            old,
            node: arrival.node,
            limit,
            ports: self.config.ports(),
        };
        let into = self.checkpoints.unpacked(run);
        let bringing = tokio::spawn(async move {
            let mut brought = match arrival.mode {
                MoveMode::Hybrid | MoveMode::Auto => coming.bring(&into).await,
                MoveMode::PreCopy => coming.bring_in_rounds(&into).await,
                MoveMode::StopAndCopy => coming.bring_stopped(&into).await,
            };
            if arrival.mode == MoveMode::Auto {
                if let Err(NotDeparted::NotAhead(why)) = brought {
                    info!(%run, why, "memory_not_ahead");
                    brought = coming.bring_in_rounds(&into).await;
                }
                if let Err(NotDeparted::NotAhead(why)) = brought {
                    info!(%run, why, "memory_not_in_rounds");
                    brought = coming.bring_stopped(&into).await;
                }
            }
            let departed = brought.map(Box::new).map_err(String::from);
            // The runner ends only with the agent.
            let _ = queries.send(Query::Departed { run, departed });
        });
        if let Some(resuming) = self.resuming.get_mut(&run) {
            resuming.bringing = Some(Bringing(bringing.abort_handle()));
        }
    }

    /// It stands still over there, or cannot move.
    pub(super) fn departed(&mut self, run: Run, departed: Result<Box<Arrived>, String>) {
        let Some(resuming) = self.resuming.get_mut(&run) else {
            // Given up meanwhile: what was unpacked for it goes.
            self.checkpoints.unpacked_by_others(run);
            return self.checkpoints.clear(run);
        };
        match departed {
            Ok(arrived) => {
                resuming.arrived(*arrived);
                self.checkpoints.unpacked_by_others(run);
                self.resume_parked();
            }
            Err(why) => self.not_moved(run, why),
        }
    }

    /// A task cannot move here. Whatever is here of it goes.
    pub(super) fn not_moved(&mut self, run: Run, why: String) {
        if self.unready(run, Unready::NotMoved(why.clone())) {
            return;
        }
        info!(%run, why, "task_not_moved");
        self.starting.remove(&run);
        self.resuming.remove(&run);
        self.core.host(host::Event::NotMoved { run, why });
    }
}

/// A task is on its way; who is given up meanwhile is brought no further.
pub(super) struct Bringing(AbortHandle);

impl Drop for Bringing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What stands still, with its images, should they be elsewhere.
fn with_images(mut departed: Departed, luggage: Option<Luggage>, images: Option<PathBuf>) -> Departing {
    let mut luggage = luggage;
    let images = images.filter(|images| images.is_dir());
    let bytes = luggage.as_mut().zip(images).map(|(luggage, images)| luggage.add(images)).transpose();
    match bytes {
        Ok(bytes) => {
            departed.bytes += bytes.unwrap_or(0);
            Departing { departure: Departure::Ready(departed), luggage }
        }
        Err(error) => Departure::Failed(format!("its images cannot be looked at: {error}")).into(),
    }
}

/// Why a task does not come.
pub(super) enum NotDeparted {
    /// Its memory cannot be sent while it runs. It was not stopped, and can be for all of it.
    NotAhead(String),
    /// It cannot move.
    Failed(String),
}

impl From<NotDeparted> for String {
    fn from(why: NotDeparted) -> Self {
        match why {
            NotDeparted::NotAhead(why) | NotDeparted::Failed(why) => why,
        }
    }
}

/// Asks the source until the task stands still. `epoch` is that of the run to be.
pub(super) async fn depart(
    peers: &Peers,
    run: Run,
    (node, epoch): (NodeId, u32),
) -> Result<(Departed, Duplex), NotDeparted> {
    let mut until = Instant::now() + PATIENCE;
    loop {
        let asked = async {
            let mut duplex =
                peers.ask(node, &Request::Depart { run, epoch }).await.map_err(|error| error.to_string())?;
            let departure = stream::read::<Departure, _>(&mut duplex).await;
            departure.map(|departure| (departure, duplex)).map_err(|error| error.to_string())
        };
        match asked.await {
            Ok((Departure::Ready(departed), duplex)) => return Ok((departed, duplex)),
            Ok((Departure::Failed(why), _)) => return Err(NotDeparted::Failed(why)),
            Ok((Departure::NotAhead(why), _)) => return Err(NotDeparted::NotAhead(why)),
            Ok((Departure::NotYet(why), _)) if Instant::now() >= until => {
                return Err(NotDeparted::Failed(why));
            }
            Err(why) => return Err(NotDeparted::Failed(format!("node {node} cannot be asked: {why}"))),
            Ok((Departure::NotYet(_), _)) => tokio::time::sleep(AGAIN).await,
            Ok((Departure::Ahead, _)) => {
                until = Instant::now() + PATIENCE;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Asks a runner through its channel.
pub(crate) async fn ask<T: Send + 'static>(
    queries: &tokio::sync::mpsc::UnboundedSender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    queries.send(query(reply)).ok()?;
    answer.await.ok()
}
