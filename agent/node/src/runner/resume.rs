//! Tasks that go on from their checkpoints.
//!
//! ```text
//!   Launch ─ has its home a newer one? ─yes─▶ brought here
//!               │no ◀─────────────────────────────┘
//!            has one? ─no─▶ begins
//!               │yes
//!            unpacked ─▶ its user's place is free? ─no─▶ waits until it is clean
//!               │none whole        │yes
//!               ▼                  ▼                       runs on
//!            begins          restored by the shim ────────▶
//!                                  │cannot be
//!                                  ▼
//!                            the one before it
//! ```
//!
//! What goes wrong on this way does not end the task: at the worst it begins anew, and its user is told why.
//!
//! The checkpoints of tasks that are done are dropped: nodes that have some and do not run their tasks ask the tasks' homes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use grid_jobs::host;
use grid_jobs::message::{Arrival, Order, Placement};
use grid_run::protocol::{Ending, How, Launch, ToShim};
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::status::Usage;
use libgrid::wire::stream;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::ahead::{Arrived, Files, Pages};
use super::moving::Bringing;
use super::ready::Unready;
use super::{Local, Query, Runner};
use crate::checkpoint::{About, Checkpoints, News, Task, Unpacked};
use crate::core::View;
use crate::peers::Request;

/// When homes are asked after a start, after a task left, and again and again.
pub(super) const FIRST: Duration = Duration::from_secs(30);
pub(super) const SOON: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(30);

/// How long a home may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A run on its way back from a checkpoint.
#[derive(Default)]
pub(super) struct Resuming {
    /// What to run; absent if an earlier agent began with it.
    order: Option<(Order, Placement)>,
    /// The checkpoint that it is made from.
    pub(super) number: Option<u64>,
    /// What its home has was asked for.
    asked: bool,
    /// It is unpacked, and waits for the place of its user.
    unpacked: Option<Unpacked>,
    /// Who has its memory, if that came by itself.
    pages: Option<Pages>,
    /// Where its files are, if they did.
    files: Option<Files>,
    /// Its way here.
    pub(super) bringing: Option<Bringing>,
    /// What went wrong so far.
    trouble: Vec<String>,
    /// Its processes have their ids.
    pub(super) identified: bool,
}

impl Resuming {
    /// What to run.
    pub(super) fn order(&self) -> Option<(Order, Placement)> {
        self.order.clone()
    }

    /// Whether it runs elsewhere as long as it does not here.
    pub(super) fn arrives(&self) -> bool {
        self.order.as_ref().is_some_and(|(_, placement)| placement.arrives.is_some())
    }

    /// It came, and is unpacked, but for what moves by itself.
    pub(super) fn arrived(&mut self, arrived: Arrived) {
        let Arrived { unpacked, pages, files } = arrived;
        self.unpacked = Some(unpacked);
        (self.pages, self.files) = (pages, files);
    }

    /// Bytes of memory that it may have.
    pub(super) fn memory_limit(&self) -> u64 {
        self.order.as_ref().map_or(0, |(order, _)| order.spec.memory.0)
    }

    fn note(&self) -> Option<String> {
        (!self.trouble.is_empty()).then(|| self.trouble.join("; "))
    }
}

impl Runner {
    /// Starts a task, from its newest checkpoint if it has one here.
    pub(super) fn launch(&mut self, run: Run, order: Order, placement: Placement) {
        let most = placement.from.unwrap_or(u64::MAX);
        let here = self.checkpoints.up_to(run.task, most);
        let resuming = Box::new(Resuming { order: Some((order, placement)), ..Resuming::default() });
        if let Some(arrival) = placement.arrives {
            return self.arrive(run, resuming, arrival);
        }
        if let Some(resuming) = self.ask_home(run, resuming, |number| here.is_none_or(|here| here < number)) {
            self.resume(run, resuming, most);
        }
    }

    /// Brings what its home has, or another node has for this one if it is the home: once, if that is of use. Else gives the run
    /// back.
    fn ask_home(
        &mut self,
        run: Run,
        mut resuming: Box<Resuming>,
        useful: impl Fn(u64) -> bool,
    ) -> Option<Box<Resuming>> {
        let Some((_, placement)) = resuming.order.as_ref() else { return Some(resuming) };
        let most = placement.from.unwrap_or(u64::MAX);
        let there = placement.exported.filter(|(number, _)| *number <= most && useful(*number));
        // The home has what others have for it, too: it gives them to other hosts.
        let home = run.task.job.home;
        let there = there.map(|(number, node)| (number, if home == self.me { node } else { home }));
        match there.filter(|(_, node)| *node != self.me && !resuming.asked) {
            Some((number, node)) => {
                resuming.asked = true;
                self.resuming.insert(run, resuming);
                self.checkpoints.bring(run, number, node);
                None
            }
            None => Some(resuming),
        }
    }

    /// From the newest checkpoint up to this number, or else anew.
    fn resume(&mut self, run: Run, resuming: Box<Resuming>, most: u64) {
        if resuming.arrives() {
            // It runs elsewhere, and nothing else is as far as it is.
            let why = resuming.note().unwrap_or_else(|| "it did not come whole".into());
            return self.not_moved(run, why);
        }
        if self.checkpoints.up_to(run.task, most).is_some() {
            self.resuming.insert(run, resuming);
            return self.checkpoints.unpack(run, most);
        }
        let note = resuming.note();
        let Some((order, placement)) = resuming.order else { return };
        let wanted = placement.from.map(|number| format!("checkpoint {number} is not on this node"));
        let note = note.or(wanted).map(|why| format!("began anew: {why}"));
        self.begin(run, &order, &placement, note);
    }

    pub(super) fn checkpointed(&mut self, news: News) {
        match news {
            News::Put { run, number, result } => {
                let stored = result.is_ok();
                self.checkpoints.put(run, number, result);
                if stored {
                    self.core.host(host::Event::Saved { run, number });
                }
            }
            News::List { task, list, size } => {
                self.checkpoints.listed(task, list, size);
                self.slots.reserve(self.checkpoints.uids());
                if !self.runs.keys().any(|run| run.task == task) {
                    // Stored after its task had ended.
                    self.sweep_checkpoints_later(SOON);
                }
            }
            News::Brought { run, result } => {
                // Ended or fenced meanwhile, if it is not there.
                let Some(mut resuming) = self.resuming.remove(&run) else { return };
                let from = resuming.order.as_ref().and_then(|(_, placement)| placement.from);
                if let Err(why) = result {
                    warn!(%run, why, "its checkpoint was not brought here");
                    let whose = match run.task.job.home == self.me {
                        true => "that another node keeps",
                        false => "of its home node",
                    };
                    resuming.trouble.push(format!("the checkpoint {whose} cannot be had: {why}"));
                }
                self.resume(run, resuming, from.unwrap_or(u64::MAX));
            }
            News::Unpacked { run, result } => {
                let Some(mut resuming) = self.resuming.remove(&run) else {
                    // Ended or fenced meanwhile.
                    return self.checkpoints.clear(run);
                };
                match result {
                    Ok(unpacked) => {
                        let passed = unpacked.passed.iter();
                        resuming
                            .trouble
                            .extend(passed.map(|(number, why)| format!("checkpoint {number}: {why}")));
                        resuming.unpacked = Some(*unpacked);
                        self.resuming.insert(run, resuming);
                        self.resume_parked();
                    }
                    Err(why) => {
                        warn!(%run, why, "no checkpoint can be used");
                        resuming.trouble.push(why);
                        if let Some(resuming) = self.ask_home(run, resuming, |_| true) {
                            self.resume(run, resuming, 0);
                        }
                    }
                }
            }
        }
    }

    /// Goes on with those whose places are free now.
    pub(super) fn resume_parked(&mut self) {
        let parked = self.resuming.iter().filter(|(_, resuming)| resuming.unpacked.is_some());
        for run in parked.map(|(run, _)| *run).collect::<Vec<_>>() {
            if let Some(resuming) = self.resuming.remove(&run) {
                self.resume_unpacked(run, resuming);
            }
        }
    }

    /// The place of this user will not be free: what waits for it begins anew.
    pub(super) fn resume_without(&mut self, uid: u32) {
        let waits = |resuming: &Resuming| {
            resuming.unpacked.as_ref().is_some_and(|unpacked| unpacked.about.uid == uid)
        };
        let runs: Vec<Run> =
            self.resuming.iter().filter(|(_, resuming)| waits(resuming)).map(|(run, _)| *run).collect();
        for run in runs {
            if let Some(mut resuming) = self.resuming.remove(&run) {
                resuming.trouble.push("the folder of its run before cannot be removed".into());
                self.resume(run, resuming, 0);
            }
        }
    }

    fn resume_unpacked(&mut self, run: Run, mut resuming: Box<Resuming>) {
        let Some((unpacked, (order, placement))) = resuming.unpacked.take().zip(resuming.order.clone())
        else {
            return;
        };
        let arrival = placement.arrives;
        let uid = unpacked.about.uid;
        let in_place = matches!(resuming.files, Some(Files::InPlace));
        let ready = self.runs.get(&run).filter(|local| in_place && local.is_ready()).map(|local| &local.slot);
        if let Some(slot) = ready.filter(|slot| slot.uid() == uid) {
            let folder = self.slots.folder(slot);
            let (time, before) = self.goes_on(run, resuming, unpacked, &folder);
            return self.tell(run, ToShim::Arrived { run, time, before });
        }
        if in_place {
            let why = "the place that was made ready for it is lost, and its files with it: try again";
            return self.not_moved(run, why.into());
        }
        if self.runs.contains_key(&run) {
            // It is another's, or being cleaned.
            self.unready(run, Unready::Otherwise);
            resuming.unpacked = Some(unpacked);
            return drop(self.resuming.insert(run, resuming));
        }
        let address = match self.address_of(run, &order, &placement) {
            Ok(address) => address,
            Err(why) if arrival.is_some() => return self.not_moved(run, why),
            Err(why) => return self.not_started(run, why),
        };
        let spec = &order.spec;
        let limits = grid_qos::Limits { cpu: spec.cpus.milli(), memory: spec.memory.0, pids: spec.pids };
        let Some((slot, group_ready)) = self.slots.take_user(uid, limits) else {
            let other =
                self.runs.iter().find(|(other, local)| local.slot.uid() == uid && other.task != run.task);
            if let Some((other, _)) = other {
                resuming.trouble.push(format!("the local user of its checkpoint is {}'s now", other.task));
                return self.resume(run, resuming, 0);
            }
            // An earlier run of its own: the place is being cleaned.
            resuming.unpacked = Some(unpacked);
            self.resuming.insert(run, resuming);
            return;
        };
        let folder = self.slots.folder(&slot);
        let apart = resuming.files.take();
        let files = apart.is_some();
        if let Err(error) = apart.map_or(Ok(()), |files| files.give(&folder)) {
            // Fails only when the agent stops; the next one sweeps.
            let _ = self.cleaner.send((slot, true));
            return self.not_moved(run, format!("its files cannot be put in their place: {error}"));
        }
        self.insert(run, &order, placement.saved, None, slot);
        let (restore, hold) = (Some(unpacked.folder.clone()), arrival.is_some());
        let memory = resuming.pages.as_ref().map(|pages| pages.folder.clone());
        let (time, before) = self.goes_on(run, resuming, unpacked, &folder);
        let launch = self.launch_of(run, &order, (folder, uid), address);
        let launch = Launch { group_ready, time, before, restore, hold, memory, files, ..launch };
        let launch = self.with_address(launch);
        self.hand_over(launch);
    }

    /// A run that has its place goes on from what was unpacked; what is left of its time, and what it used.
    fn goes_on(
        &mut self,
        run: Run,
        mut resuming: Box<Resuming>,
        unpacked: Unpacked,
        folder: &Path,
    ) -> (Option<Duration>, Usage) {
        if let Err(error) = Checkpoints::give_output(&unpacked, folder) {
            // The task counts for more than what it said.
            warn!(%run, %error, "the output before the checkpoint cannot be put back");
        }
        let number = unpacked.number;
        info!(%run, number, "task_resumed");
        let arrival = resuming.order.as_ref().and_then(|(_, placement)| placement.arrives);
        let note = match arrival {
            Some(Arrival { node, .. }) => format!("moved here from node {node}"),
            None => format!("went on from checkpoint {number}"),
        };
        let note = resuming.note().map_or_else(|| note.clone(), |why| format!("{note}: {why}"));
        let limit = resuming.order.as_ref().and_then(|(order, _)| order.spec.time);
        let time = unpacked.about.left.or(limit.map(|limit| limit.0));
        let before = unpacked.about.used;
        resuming.number = Some(number);
        if let Some(local) = self.runs.get_mut(&run) {
            local.note = Some(note);
            local.saved = local.saved.max(number);
            (local.left, local.before) = (time, before);
            local.printed = true;
            local.ready = None;
            local.resuming = Some(resuming);
        }
        (time, before)
    }

    /// Gives the processes of a restored task their ids back, once.
    pub(super) fn identify(&mut self, run: Run) {
        let folder = self.checkpoints.unpacked(run);
        let Some(local) = self.runs.get_mut(&run) else { return };
        let Some(resuming) = local.resuming.as_mut().filter(|resuming| !resuming.identified) else { return };
        resuming.identified = true;
        match About::read_in(&folder) {
            Ok(about) => self.processes.restore(run.task, &local.slot.name(), &about.processes),
            Err(why) => warn!(%run, why, "its processes get new ids"),
        }
    }

    /// Whether this end is that of a restore that failed, so that the task goes another way.
    pub(super) fn resume_failed(&mut self, run: Run, end: &Ending) -> bool {
        let How::NotStarted { why, .. } = &end.how else { return false };
        let Some(local) = self.runs.get_mut(&run).filter(|local| !local.fenced) else { return false };
        let Some(mut resuming) = local.resuming.take() else { return false };
        warn!(%run, number = resuming.number, why, "a task could not be restored");
        let Some((number, true)) = resuming.number.map(|number| (number, resuming.order.is_some())) else {
            // Begun by an earlier agent: its home sends it again, with all that it takes.
            self.starting.remove(&run);
            self.core.host(host::Event::Gone(run));
            return true;
        };
        resuming.trouble.push(format!("checkpoint {number} cannot be restored: {why}"));
        self.leave(run);
        self.resume(run, resuming, number - 1);
        true
    }

    /// Looks after the checkpoints of a task that runs.
    pub(super) fn watch(&mut self, run: Run) {
        let Some(local) = self.runs.get(&run) else { return };
        let Local { when, left, saved, before, .. } = *local;
        let (place, uid) = (self.slots.folder(&local.slot), local.slot.uid());
        self.checkpoints.watch(run, Task { when, place, uid, left, before, saved });
        if let Some(number) = self.checkpoints.newest(run.task) {
            self.core.host(host::Event::Saved { run, number });
        }
    }

    /// What its user is to know of it.
    pub(super) fn told_of(&self, run: Run, local: &Local) -> Option<String> {
        self.checkpoints.trouble(run).or_else(|| self.fifos.waits(run)).or_else(|| local.note.clone())
    }

    // === what is not needed any more ===

    pub(super) fn sweep_checkpoints_later(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        self.sweep = Some(self.sweep.map_or(at, |before| before.min(at)));
    }

    /// Asks the homes of tasks that do not run here whether their checkpoints will be needed.
    pub(super) fn sweep_checkpoints(&mut self) {
        let mut tasks = self.checkpoints.idle();
        tasks.retain(|task| !self.resuming.keys().any(|run| run.task == *task));
        // As long as jobs are remembered: a home that does not come back will not ask for them.
        let old = tasks.extract_if(.., |task| self.checkpoints.age(*task) > self.config.retention.0);
        old.for_each(|task| drop(self.queries.send(Query::Finished(vec![task]))));
        if tasks.is_empty() {
            return;
        }
        self.sweep_checkpoints_later(AGAIN);
        let mut homes: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        tasks.into_iter().for_each(|task| homes.entry(task.job.home).or_default().push(task));
        for (home, tasks) in homes {
            let (me, core, peers, queries) =
                (self.me, self.core.clone(), self.peers.clone(), self.queries.clone());
            tokio::spawn(async move {
                let finished = if home == me {
                    core.look(move |view| finished(view, tasks)).await.ok()
                } else {
                    let asked = timeout(PATIENCE, async {
                        let mut duplex = peers.ask(home, &Request::Finished(tasks)).await.ok()?;
                        stream::read::<Vec<TaskId>, _>(&mut duplex).await.ok()
                    });
                    asked.await.ok().flatten()
                };
                // One that does not answer is asked again.
                finished.into_iter().for_each(|tasks| drop(queries.send(Query::Finished(tasks))));
            });
        }
    }
}

/// Of these tasks of this home, those that are done.
pub(crate) fn finished(view: &mut View, tasks: Vec<TaskId>) -> Vec<TaskId> {
    let is_over = |task: &TaskId| view.home.record(task.job).is_none() || view.home.is_done(*task);
    tasks.into_iter().filter(is_over).collect()
}
