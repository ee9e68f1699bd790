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
//! again at the next time. Two are written at a time, at most (`writing.rs`).
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
mod writing;

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
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::spec;
use libgrid::status::{Checkpoint, TaskCheckpoints, Usage};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::about::About;
use self::away::Away;
use self::exports::Importer;
use self::failures::Seen;
use self::keeper::{Keeper, Work};
pub(crate) use self::keeper::{News, Unpacked, remove};
use self::writing::{Departing, Writing};
use crate::config::Config;
use crate::core::Core;
use crate::processes::Processes;
use crate::runner::Query;
use crate::staging::Staging;

/// What a first checkpoint is expected to cost: some hundred megabytes.
const EXPECTED: Duration = Duration::from_secs(1);

/// The share of the disk that checkpoints may take, unless the owner says otherwise.
const SHARE: u64 = 5;

/// The checkpoints of a task that are here, by number.
pub(crate) type List = BTreeMap<u64, About>;

/// A task that stands still. All of it follows, past the store, but for its memory where that moves by itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Departed {
    /// Of what was written of it.
    pub(crate) number: u64,
    /// How long it has been standing still.
    pub(crate) stood: Duration,
    /// What follows.
    pub(crate) bytes: u64,
}

/// What follows of a task: a folder that goes with this.
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
    /// What it used before it went on here.
    pub(crate) before: Usage,
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
        let before = task.before;
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
                let done = Done { held: description.held, ..Done::default() };
                self.dumped(run, &path, Ok(done), before);
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
