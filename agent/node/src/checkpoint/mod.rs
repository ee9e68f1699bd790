//! Checkpoints of the tasks that run here: when they are written, where they are kept, and what a lost task goes on from.
//!
//! ```text
//!   due, or asked for ──▶ shim: gridos-criu writes    fresh/RUN-NUMBER/
//!                         its output so far and About are put beside
//!                         keeper: Store::put, expire     store/          (grid_checkpoint::store)
//!                         the host tells the home at its next heartbeat
//!
//!   lost, placed again ─▶ keeper: the newest that is whole   unpacked/RUN/
//!                         its user's place, its output ──▶ shim: gridos-criu restores
//! ```
//!
//! The home brings them from the host, and the next host from the home: [`exports`].
//!
//! **Crashes.** A checkpoint counts when the store has its manifest. What lies in `fresh/` whole was dumped for an agent that
//! died before it heard of it: it is stored when the next one starts, if the task still runs. What is in `unpacked/` is
//! removed when its task runs, or is gone.
//!
//! **When.** Each task has its own interval (`grid_checkpoint::interval`), from what its checkpoints cost and how often this node
//! fails ([`failures`]). A checkpoint that cannot be written is told by `gridctl status`; the task runs on, and it is tried
//! again at the next time. At most [`AT_ONCE`] are written at a time.
//!
//! **Room.** The store has a limit. Above it, one checkpoint of each task stays; as long as that is too much, none is
//! written.
//!
//! **Users.** The processes of a checkpoint have the user of their place (`runner::slots`), and no other: that place is given to
//! nobody else as long as there is a checkpoint.

mod about;
mod away;
pub(crate) mod exports;
mod failures;
mod keeper;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use grid_checkpoint::Description;
use grid_checkpoint::interval::{Interval, Policy};
use grid_checkpoint::order::Done;
use grid_checkpoint::store::{Keep, StoreError};
use grid_jobs::home;
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::spec;
use libgrid::status::{Checkpoint, TaskCheckpoints};
use libgrid::units::{Bytes, Span};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use self::about::About;
use self::away::Away;
use self::exports::Importer;
use self::failures::Seen;
use self::keeper::{Keeper, Work};
pub(crate) use self::keeper::{News, Unpacked, remove};
use crate::config::Config;
use crate::core::Core;
use crate::processes::{Identity, Processes};
use crate::runner::Query;
use crate::staging::{StageError, Staging};

/// How many are written at a time: each reads a task's memory, and asks the disk for as much.
const AT_ONCE: usize = 2;

/// What a first checkpoint is expected to cost: some hundred megabytes.
const EXPECTED: Duration = Duration::from_secs(1);

/// How long to wait for a home node that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The share of the disk that checkpoints may take, unless the owner says otherwise.
const SHARE: u64 = 5;

/// The checkpoints of a task that are here, by number.
pub(crate) type List = BTreeMap<u64, About>;

/// A task that stands still, and is in the store.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Departed {
    /// Of the checkpoint.
    pub(crate) number: u64,
    /// How long it has been standing still.
    pub(crate) stood: Duration,
    /// Of one whose memory moves by itself: bytes of all else, which is not stored but follows.
    pub(crate) luggage: Option<u64>,
}

/// All of a task but its memory: a folder that goes with this.
pub(crate) struct Luggage {
    pub(crate) folder: PathBuf,
    /// Its images, where they are elsewhere: they go with who moves the memory.
    pub(crate) images: Option<PathBuf>,
}

impl Luggage {
    /// Adds images that are elsewhere; returns their bytes.
    pub(crate) fn add(&mut self, images: PathBuf) -> io::Result<u64> {
        let bytes = size(&images)?;
        self.images = Some(images);
        Ok(bytes)
    }
}

impl Drop for Luggage {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Where the answer to the node goes that a task moves to.
pub(crate) type DepartReply = oneshot::Sender<Result<(Departed, Option<Luggage>), String>>;

/// Where the answer to somebody goes who asked for a checkpoint.
pub(crate) type Reply = oneshot::Sender<Result<Checkpoint, String>>;

pub(crate) struct Checkpoints {
    me: NodeId,
    policy: Policy,
    folder: PathBuf,
    work: Sender<Work>,
    importer: Importer,
    core: Core,
    lists: BTreeMap<TaskId, List>,
    size: u64,
    limit: u64,
    tasks: HashMap<Run, Watched>,
    /// When the next of each is due.
    due: BTreeSet<(Instant, Run)>,
    /// The runs of which there may be something in `fresh/` or `unpacked/`.
    traces: HashSet<Run>,
    /// Those whose time has come.
    turn: VecDeque<Run>,
    seen: Seen,
    away: Away,
    processes: Processes,
}

/// What is known of a task that runs.
pub(crate) struct Task {
    pub(crate) when: spec::Checkpoints,
    /// Its folder.
    pub(crate) place: PathBuf,
    pub(crate) uid: u32,
    /// What is left of its time limit.
    pub(crate) left: Option<Duration>,
    /// The number of its newest checkpoint, wherever that is.
    pub(crate) saved: u64,
}

struct Watched {
    task: Task,
    began: Instant,
    interval: Option<Interval>,
    /// The number of the next one.
    next: u64,
    due: Option<Instant>,
    /// Since when it works without one.
    since: Instant,
    writing: Option<Writing>,
    asked: Vec<Reply>,
    /// The task is being written down to move, and stands still afterwards.
    departs: Option<Departing>,
    /// Its memory is on its way in rounds: none is written meanwhile.
    rests: bool,
    trouble: Option<String>,
}

struct Departing {
    number: u64,
    reply: Option<DepartReply>,
    /// Since when it stands still.
    since: Instant,
}

struct Writing {
    number: u64,
    /// After so much work; by hand, if absent.
    interval: Option<Duration>,
    cost: Duration,
    replies: Vec<Reply>,
    /// The ids of the processes that there were when it began.
    processes: Vec<Identity>,
}

/// They cannot be kept here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("the store of checkpoints cannot be used: {0}")]
    Store(#[from] StoreError),
    #[error("cannot use {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

impl Checkpoints {
    /// Opens the store. Of what earlier agents left, what belongs to these runs stays.
    pub(crate) fn open(
        config: &Config,
        me: NodeId,
        kept: &[Run],
        (core, staging, processes): (Core, Staging, Processes),
        news: mpsc::UnboundedSender<Query>,
    ) -> Result<Self, CheckpointError> {
        let folder = config.checkpoints_dir();
        for part in [folder.clone(), folder.join("fresh"), folder.join("unpacked")] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&part);
            made.map_err(|source| CheckpointError::Folder { path: part, source })?;
        }
        let limits = &config.checkpoints;
        let limit = limits.limit.map_or_else(|| share_of(&folder), |limit| limit.0);
        let keep = Keep { newest: limits.keep, younger: Duration::ZERO };
        // What an earlier agent was sending or receiving.
        remove(&folder.join("coming"));
        remove(&folder.join("leaving"));
        let keeper = Keeper::open(&folder.join("store"), keep, limit, news)?;
        let importer = Importer { store: keeper.store(), folder: folder.clone(), staging };
        let away = folder.join("away");
        let away = Away::open(&away).map_err(|source| CheckpointError::Folder { path: away, source })?;
        let mut checkpoints = Self {
            away,
            processes,
            importer,
            core,
            me,
            policy: limits.policy(),
            lists: keeper.lists().clone(),
            size: keeper.size(),
            limit,
            work: keeper.start(),
            tasks: HashMap::new(),
            due: BTreeSet::new(),
            traces: HashSet::new(),
            turn: VecDeque::new(),
            seen: Seen::load(&folder.join("failures"), limits.failures.0),
            folder,
        };
        checkpoints.sweep(kept);
        Ok(checkpoints)
    }

    /// Removes what no run that is here needs.
    fn sweep(&mut self, kept: &[Run]) {
        for part in ["fresh", "unpacked"] {
            for entry in fs::read_dir(self.folder.join(part)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                match kept.iter().find(|run| name.starts_with(&prefix_of(**run))) {
                    Some(run) => drop(self.traces.insert(*run)),
                    None => remove(&entry.path()),
                }
            }
        }
    }

    // === tasks that run ===

    /// A task runs here, and is looked after from now on.
    pub(crate) fn watch(&mut self, run: Run, task: Task) {
        let newest = self.lists.get(&run.task).and_then(|list| list.last_key_value());
        let next = newest.map_or(0, |(number, _)| *number).max(task.saved) + 1;
        let now = Instant::now();
        let failures = self.seen.estimate();
        let cost = newest.map_or(EXPECTED, |(_, about)| about.cost);
        // The policy was looked at with the configuration.
        let interval = Interval::new(self.policy, cost, &failures).ok();
        let watched = Watched {
            task,
            began: now,
            interval,
            next,
            due: None,
            since: now,
            writing: None,
            asked: Vec::new(),
            departs: None,
            rests: false,
            trouble: None,
        };
        self.tasks.insert(run, watched);
        self.away.forget(run.task);
        self.schedule(run);
        if !self.traces.contains(&run) {
            return;
        }
        // An agent before this one unpacked it, and did not hear that it runs.
        self.order(Work::Clear { unpacked: self.unpacked(run), dumps: Vec::new() });
        // Dumped for an agent that did not hear of it.
        for entry in fs::read_dir(self.folder.join("fresh")).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(number) = number_in(&path, run) else { continue };
            // It may still be under way: what we order is told apart from it by its number.
            if let Some(watched) = self.tasks.get_mut(&run) {
                watched.next = watched.next.max(number + 1);
            }
            if let Ok(description) = Description::read(&path) {
                self.dumped(run, &path, Ok(Done { held: description.held, ..Done::default() }));
            }
        }
    }

    /// It ended, or is lost: nobody is told of what was being written.
    pub(crate) fn unwatch(&mut self, run: Run) {
        let Some(watched) = self.tasks.remove(&run) else { return };
        watched.due.map(|due| self.due.remove(&(due, run)));
        if let Some(reply) = watched.departs.and_then(|departs| departs.reply) {
            let _ = reply.send(Err(format!("{} ended before", run.task)));
        }
        let replies = watched.writing.into_iter().flat_map(|writing| writing.replies).chain(watched.asked);
        for reply in replies {
            let _ = reply.send(Err(format!("{} ended before the checkpoint was written", run.task)));
        }
    }

    /// A task was lost by a failure of this node.
    pub(crate) fn failed(&mut self, run: Run) {
        self.seen.failed();
        let failures = self.seen.estimate();
        for interval in self.tasks.values_mut().filter_map(|watched| watched.interval.as_mut()) {
            interval.interrupted(&failures);
        }
        self.unwatch(run);
    }

    /// What is not as it should be.
    pub(crate) fn trouble(&self, run: Run) -> Option<String> {
        self.tasks.get(&run)?.trouble.clone()
    }

    // === writing ===

    /// When [`Checkpoints::begin`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Somebody wants one now.
    pub(crate) fn ask(&mut self, run: Run, reply: Reply) {
        match self.tasks.get_mut(&run) {
            Some(watched) => {
                watched.asked.push(reply);
                self.turn.retain(|other| *other != run);
                self.turn.push_front(run);
            }
            None => drop(reply.send(Err(format!("{} does not run here", run.task)))),
        }
    }

    /// Those to be dumped now, and where to.
    pub(crate) fn begin(&mut self) -> Vec<(Run, PathBuf)> {
        while let Some((due, run)) = self.due.first().copied().filter(|(due, _)| *due <= Instant::now()) {
            self.due.remove(&(due, run));
            self.tasks.get_mut(&run).and_then(|watched| watched.due.take());
            if !self.turn.contains(&run) {
                self.turn.push_back(run);
            }
        }
        if self.turn.is_empty() {
            return Vec::new();
        }
        let mut begun = Vec::new();
        let mut later = Vec::new();
        while self.tasks.values().filter(|watched| watched.writing.is_some()).count() < AT_ONCE
            && let Some(run) = self.turn.pop_front()
        {
            let Some(watched) = self.tasks.get_mut(&run) else { continue };
            if watched.writing.is_some() || watched.departs.is_some() || watched.rests {
                later.push(run);
                continue;
            }
            let by_hand = !watched.asked.is_empty();
            let interval = (!by_hand).then(|| watched.since.elapsed());
            let replies = std::mem::take(&mut watched.asked);
            let number = watched.next;
            let processes = self.processes.identities(run.task, &group_of(&watched.task.place));
            watched.writing = Some(Writing { number, interval, cost: Duration::ZERO, replies, processes });
            watched.next += 1;
            if self.size >= self.limit {
                self.fail(run, number, self.full());
                continue;
            }
            self.traces.insert(run);
            begun.push((run, self.folder.join("fresh").join(format!("{}{number}", prefix_of(run)))));
        }
        self.turn.extend(later);
        begun
    }

    /// A task is to be written down, and to stand still afterwards: where to. The answer goes to the node that asks for it.
    ///
    /// # Errors
    /// Where another one is being written: that one comes first.
    pub(crate) fn depart(&mut self, run: Run, reply: DepartReply) -> Result<PathBuf, DepartReply> {
        let Some(watched) = self.tasks.get_mut(&run).filter(|watched| watched.writing.is_none()) else {
            return Err(reply);
        };
        let number = watched.next;
        watched.departs = Some(Departing { number, reply: Some(reply), since: Instant::now() });
        watched.writing = Some(Writing {
            number,
            interval: Some(watched.since.elapsed()),
            cost: Duration::ZERO,
            replies: Vec::new(),
            // It will stand still when they are looked at.
            processes: Vec::new(),
        });
        watched.next += 1;
        self.traces.insert(run);
        Ok(self.folder.join("fresh").join(format!("{}{number}", prefix_of(run))))
    }

    /// Whether one of this run is being written.
    pub(crate) fn is_writing(&self, run: Run) -> bool {
        self.tasks.get(&run).is_none_or(|watched| watched.writing.is_some())
    }

    /// None of this run is written, until it may be again.
    pub(crate) fn rest(&mut self, run: Run, rests: bool) {
        if let Some(watched) = self.tasks.get_mut(&run) {
            watched.rests = rests;
        }
    }

    /// Whether this is the dump after which the task is to stand still now, and not one that an agent before this one ordered:
    /// the task may have gone on since.
    pub(crate) fn departs_with(&self, run: Run, folder: &Path) -> bool {
        let departs = self.tasks.get(&run).and_then(|watched| watched.departs.as_ref());
        departs.is_some_and(|departs| number_in(folder, run) == Some(departs.number))
    }

    /// Whether the dump that ended is one after which the task stood still, and which was stored before.
    pub(crate) fn let_go(&mut self, run: Run, folder: &Path) -> bool {
        self.departs_with(run, folder)
            && self.tasks.get_mut(&run).is_some_and(|watched| watched.departs.take().is_some())
    }

    fn full(&self) -> String {
        format!(
            "the checkpoints on this node take {}, and it lends {} for them: have its owner raise the limit in \
             [checkpoints], or wait until other tasks end",
            Bytes(self.size),
            Bytes(self.limit)
        )
    }

    /// The shim tells what came of one.
    pub(crate) fn dumped(&mut self, run: Run, folder: &Path, result: Result<Done, String>) {
        let number = number_in(folder, run);
        let (Some(watched), Some(number)) = (self.tasks.get_mut(&run), number) else {
            // Of a run that is gone. What is left is swept up at the next start, if not here.
            let folder = folder.to_owned();
            drop(tokio::task::spawn_blocking(move || remove(&folder)));
            return;
        };
        match result {
            // Stored by an agent before this one, which heard of it when the task stood still.
            Ok(_) if !folder.exists() => self.schedule(run),
            Ok(done) => {
                let Watched { task, began, writing, departs, .. } = watched;
                let left = task.left.map(|left| left.saturating_sub(began.elapsed()));
                if let Some(departs) = departs.as_mut().filter(|departs| departs.number == number) {
                    departs.since = Instant::now().checked_sub(done.took).unwrap_or(departs.since);
                }
                let writing = writing.as_mut().filter(|writing| writing.number == number);
                let interval = writing.as_ref().and_then(|writing| writing.interval);
                let mut processes = Vec::new();
                if let Some(writing) = writing {
                    writing.cost = done.took;
                    processes = std::mem::take(&mut writing.processes);
                }
                // Those that came while it was written, too: those that are not in it do no harm.
                let known: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
                let now = self.processes.identities(run.task, &group_of(&task.place));
                processes.extend(now.into_iter().filter(|process| !known.contains(&process.pid)));
                let about = About::new(done.took, interval, left, task.uid, done.bytes);
                let about = about.with(processes);
                let (folder, output) = (folder.to_owned(), task.place.clone());
                if Description::read(&folder).is_ok_and(|description| description.apart) {
                    let departs = departs.as_mut().filter(|departs| departs.number == number);
                    let asked = departs.and_then(|departs| Some((departs.reply.take()?, departs.since)));
                    watched.writing.take_if(|writing| writing.number == number);
                    let luggage = Luggage { folder, images: None };
                    drop(tokio::task::spawn_blocking(move || pack(luggage, number, &output, &about, asked)));
                    return self.schedule(run);
                }
                self.order(Work::Put { run, number, folder, output, about });
            }
            Err(why) => self.fail(run, number, why),
        }
    }

    fn fail(&mut self, run: Run, number: u64, why: String) {
        let Some(watched) = self.tasks.get_mut(&run) else { return };
        if self.lists.get(&run.task).is_some_and(|list| list.contains_key(&number)) {
            // Stored when it was heard of the first time.
            return;
        }
        warn!(%run, number, why, "no checkpoint was written");
        let writing = watched.writing.take_if(|writing| writing.number == number);
        for reply in writing.into_iter().flat_map(|writing| writing.replies) {
            let _ = reply.send(Err(why.clone()));
        }
        let departs = watched.departs.as_mut().filter(|departs| departs.number == number);
        if let Some(reply) = departs.and_then(|departs| departs.reply.take()) {
            let _ = reply.send(Err(why.clone()));
        }
        watched.trouble = Some(format!("its last checkpoint could not be written: {why}"));
        self.schedule(run);
    }

    /// The keeper tells what came of putting one away.
    pub(crate) fn put(&mut self, run: Run, number: u64, result: Result<(), String>) {
        if let Err(why) = result {
            return self.fail(run, number, why);
        }
        let shown = self.shown(run.task).into_iter().find(|checkpoint| checkpoint.number == number);
        let failures = self.seen.estimate();
        let Some(watched) = self.tasks.get_mut(&run) else { return };
        watched.trouble = None;
        watched.since = Instant::now();
        if let Some(departs) = watched.departs.as_mut().filter(|departs| departs.number == number)
            && let Some(reply) = departs.reply.take()
        {
            let _ =
                reply.send(Ok((Departed { number, stood: departs.since.elapsed(), luggage: None }, None)));
        }
        if let Some(writing) = watched.writing.take_if(|writing| writing.number == number) {
            if let Some(interval) = &mut watched.interval {
                interval.measured(writing.cost, &failures);
            }
            for reply in writing.replies {
                let _ = reply.send(shown.ok_or_else(|| "it was dropped at once, as there is no room".into()));
            }
        }
        self.schedule(run);
    }

    /// Sets the time of the next one.
    fn schedule(&mut self, run: Run) {
        let Some(watched) = self.tasks.get_mut(&run) else { return };
        let pause = match watched.task.when {
            spec::Checkpoints::Off => None,
            spec::Checkpoints::Adaptive => watched.interval.as_ref().map(Interval::next),
            spec::Checkpoints::Every(Span(interval)) => Some(interval),
        };
        if let Some(before) = watched.due.take() {
            self.due.remove(&(before, run));
        }
        watched.due = pause.map(|pause| Instant::now() + pause);
        self.due.extend(watched.due.map(|due| (due, run)));
    }

    /// What there is of a task, in place of what there was.
    pub(crate) fn listed(&mut self, task: TaskId, list: List, size: u64) {
        self.size = size;
        match list.is_empty() {
            true => drop(self.lists.remove(&task)),
            false => drop(self.lists.insert(task, list)),
        }
    }

    // === what is there ===

    fn shown(&self, task: TaskId) -> Vec<Checkpoint> {
        let list = self.lists.get(&task).into_iter().flatten();
        list.map(|(number, about)| about.shown(*number, self.me)).collect()
    }

    /// As users see it.
    pub(crate) fn status(&self, task: TaskId) -> TaskCheckpoints {
        let watched = self.tasks.iter().find(|(run, _)| run.task == task);
        let trouble = watched.and_then(|(_, watched)| watched.trouble.clone());
        TaskCheckpoints { task, checkpoints: self.shown(task), trouble }
    }

    /// The number of the newest.
    pub(crate) fn newest(&self, task: TaskId) -> Option<u64> {
        self.lists.get(&task)?.last_key_value().map(|(number, _)| *number)
    }

    /// The users who are to be free for tasks that go on.
    pub(crate) fn uids(&self) -> impl Iterator<Item = u32> {
        self.lists.values().flat_map(|list| list.values().map(|about| about.uid)).chain(self.away.users())
    }

    /// A task went to another node, and has this user there.
    pub(crate) fn went(&mut self, task: TaskId, uid: u32) {
        self.away.note(task, uid);
    }

    /// The tasks that have checkpoints here, or a user of this node's, and do not run here.
    pub(crate) fn idle(&self) -> Vec<TaskId> {
        let running: HashSet<TaskId> = self.tasks.keys().map(|run| run.task).collect();
        let kept: BTreeSet<TaskId> = self.lists.keys().copied().chain(self.away.tasks()).collect();
        kept.into_iter().filter(|task| !running.contains(task)).collect()
    }

    /// How old the newest is, or how long it has been away.
    pub(crate) fn age(&self, task: TaskId) -> Duration {
        let newest = self.lists.get(&task).and_then(|list| list.last_key_value());
        let age = newest.and_then(|(_, about)| about.made.elapsed().ok());
        age.or(self.away.age(task)).unwrap_or_default()
    }

    /// Looks whether all of one is as it was written.
    pub(crate) fn verify(&self, task: TaskId, number: u64, reply: oneshot::Sender<Result<(), String>>) {
        self.order(Work::Verify { task, number, reply });
    }

    // === other nodes ===

    /// Has a checkpoint of a task of this home brought from its host: here, or to another node if the host is this one.
    pub(crate) fn export(&self, task: TaskId, number: u64, from: NodeId, to: NodeId) {
        let (importer, core, work) = (self.importer.clone(), self.core.clone(), self.work.clone());
        let here = to == self.me;
        tokio::spawn(async move {
            let begun = Instant::now();
            let brought = match here {
                true => importer.bring(task, number, from, false).await.map(drop).map_err(|e| e.to_string()),
                false => exports::hand_on(&importer.staging.peers, task, number, to).await,
            };
            let (at, rest) = match brought {
                Ok(()) => (Some((number, to)), begun.elapsed() * exports::SHARE),
                Err(why) => {
                    info!(%task, number, %from, %to, why, "a checkpoint was not brought to where it is to be kept");
                    (None, exports::REST)
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

    /// Drops those of a task with a higher number.
    pub(crate) fn cut(&self, task: TaskId, number: u64) {
        self.order(Work::Cut { task, number });
    }

    // === going on ===

    /// The newest up to this number.
    pub(crate) fn up_to(&self, task: TaskId, most: u64) -> Option<u64> {
        self.lists.get(&task)?.range(..=most).next_back().map(|(number, _)| *number)
    }

    /// Unpacks the newest up to this number; [`News::Unpacked`] follows.
    pub(crate) fn unpack(&mut self, run: Run, most: u64) {
        self.traces.insert(run);
        self.order(Work::Unpack { run, most, into: self.unpacked(run) });
    }

    /// Puts the output of a task back into its new place.
    pub(crate) fn give_output(unpacked: &Unpacked, place: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(place)?;
        about::give_output(&unpacked.folder, place, unpacked.printed)
    }

    /// The run goes on from this one: later ones are of another past, or damaged.
    pub(crate) fn resumed(&mut self, run: Run, number: u64) {
        self.order(Work::Cut { task: run.task, number });
        self.clear(run);
    }

    /// What was unpacked for a run is not needed any more, nor what was not dumped to its end.
    pub(crate) fn clear(&mut self, run: Run) {
        if !self.traces.remove(&run) {
            return;
        }
        // Those that are there now: the next may begin before the keeper comes to it.
        let fresh = fs::read_dir(self.folder.join("fresh")).into_iter().flatten().flatten();
        let dumps = fresh.map(|entry| entry.path()).filter(|path| number_in(path, run).is_some()).collect();
        self.order(Work::Clear { unpacked: self.unpacked(run), dumps });
    }

    /// Nothing goes on from them any more.
    pub(crate) fn forget(&mut self, task: TaskId) {
        if !self.tasks.keys().any(|run| run.task == task) {
            self.away.forget(task);
            self.order(Work::Forget(task));
        }
    }

    /// Something else unpacks a task for this run.
    pub(crate) fn unpacked_by_others(&mut self, run: Run) {
        self.traces.insert(run);
    }

    /// Where what a run goes on from is unpacked.
    pub(crate) fn unpacked(&self, run: Run) -> PathBuf {
        self.folder.join("unpacked").join(prefix_of(run))
    }

    fn order(&self, work: Work) {
        // The keeper lives as long as this.
        let _ = self.work.send(work);
    }
}

/// Gets all of a task but its memory ready for the node that asked for it, if one did: without that, it is of no use.
fn pack(luggage: Luggage, number: u64, output: &Path, about: &About, asked: Option<(DepartReply, Instant)>) {
    let Some((reply, since)) = asked else { return };
    let packed = about::keep_output(output, &luggage.folder)
        .and_then(|()| about.write(&luggage.folder))
        .and_then(|()| size(&luggage.folder));
    let answer = match packed {
        Ok(bytes) => Ok((Departed { number, stood: since.elapsed(), luggage: Some(bytes) }, Some(luggage))),
        Err(error) => Err(format!("it cannot be packed: {error}")),
    };
    // Whoever asked may be gone.
    let _ = reply.send(answer);
}

/// The control group of the task in this folder: it has its name.
fn group_of(place: &Path) -> String {
    place.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |bytes, entry| {
        let entry = entry?;
        let meta = entry.metadata()?;
        Ok(bytes + if meta.is_dir() { size(&entry.path())? } else { meta.len() })
    })
}

/// A task's name in the store.
fn name_of(task: TaskId) -> String {
    format!("{}-{}", task.job, task.index)
}

fn task_of(name: &str) -> Option<TaskId> {
    let (job, index) = name.rsplit_once('-')?;
    Some(job.parse::<libgrid::ids::JobId>().ok()?.task(index.parse().ok()?))
}

/// What the names of a run's folders begin with.
fn prefix_of(run: Run) -> String {
    format!("{}-{}-", name_of(run.task), run.epoch)
}

/// The number of a run's checkpoint in `fresh/`.
fn number_in(folder: &Path, run: Run) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix(&prefix_of(run))?.parse().ok()
}

fn share_of(folder: &Path) -> u64 {
    let disk = nix::sys::statvfs::statvfs(folder);
    disk.map_or(u64::MAX, |disk| disk.blocks() * disk.fragment_size() / SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_tasks() {
        let task: TaskId = "j70000.3/12".parse().unwrap();
        let run = Run { task, epoch: 2 };
        assert_eq!(name_of(task), "j70000.3-12");
        assert_eq!(task_of(&name_of(task)), Some(task));
        assert_eq!(task_of("x"), None);
        let folder = PathBuf::from(format!("/x/{}7", prefix_of(run)));
        assert_eq!(number_in(&folder, run), Some(7));
        assert_eq!(number_in(&folder, Run { epoch: 1, ..run }), None);
    }
}
