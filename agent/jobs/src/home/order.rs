//! What a job waits for besides room: its release, the end of other jobs, and its inputs, if these did not come with it.
//!
//! ```text
//!             jobs of this home: told at their end                        Gathered
//!   blocked ────────────────────────────────────────────────▶ (gathering ────────▶) in the queue
//!      │      jobs of other homes: asked for their fate every ASK │
//!      │                                                          │ one is not there
//!      └── one of them ended in another way ──────────────────────┴───────────────▶ done: not started
//! ```
//!
//! Inputs that are there and cannot be read or kept now are tried again, for as long as the job is wanted.
//!
//! What is still to end is written down with the job ([`JobRecord::unmet`]), so that it does not matter whether a job that ended
//! is forgotten before the one that came after it has found a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::{JobId, NodeId, Run};
use libgrid::spec::Ending;
use libgrid::status::Outcome;

use super::state::{Gathering, Pausing};
use super::{Action, Home, Job, Ungathered, shortened};
use crate::Now;
use crate::message::Fate;
use crate::record::{Change, JobRecord};

/// How often other homes are asked.
const ASK: Duration = Duration::from_secs(2);

/// The status of a task that never starts: that of programs such as env(1) that fail before what they are to run begins.
const NEVER: u8 = 125;

impl Home {
    /// What came of a job.
    pub fn fate(&self, job: JobId) -> Fate {
        match self.jobs.get(&job) {
            None => Fate::Unknown,
            Some(job) if !job.is_done() => Fate::Unfinished,
            Some(job) => Fate::Ended { succeeded: !job.failed },
        }
    }

    /// Puts a job that is new, or back from the store, where it belongs.
    pub(super) fn line_up(&mut self, id: JobId, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.waiting.is_empty() {
            return;
        }
        for after in &job.record.unmet {
            self.followers.entry(after.job).or_default().insert(id);
            match after.job.home == self.me {
                true => self.ended.push(after.job),
                false => self.asked_fates = Duration::ZERO,
            }
        }
        self.enqueue(id, actions);
    }

    /// Lets nodes be found for the waiting tasks of a job, unless it waits for something else.
    pub(super) fn enqueue(&mut self, id: JobId, actions: &mut Vec<Action>) {
        self.stirred = true;
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.waiting.is_empty()) else { return };
        if job.is_blocked() {
            return;
        }
        if !job.lacks_inputs() {
            self.queue.insert(id);
        } else if job.gathering == Gathering::Not {
            actions.push(job.gather(id));
        }
    }

    /// Tries to gather again what could not be.
    pub(super) fn gather_again(&mut self, now: Now, actions: &mut Vec<Action>) {
        let jobs = &mut self.jobs;
        self.gathering.retain(|id| {
            let Some(job) = jobs.get_mut(id).filter(|job| !job.is_done()) else { return false };
            let Gathering::Failed(tried) = &job.gathering else { return false };
            if job.is_blocked() || now.mono < tried.again {
                return true;
            }
            actions.push(job.gather(*id));
            // The reason stays to be seen, and the pause to grow.
            true
        });
    }

    pub(super) fn gathered(
        &mut self,
        now: Now,
        id: JobId,
        inputs: Result<u64, Ungathered>,
        actions: &mut Vec<Action>,
    ) {
        let job = self.jobs.get_mut(&id).filter(|job| !job.is_done());
        match (job, inputs) {
            (Some(job), Ok(number)) => {
                self.gathering.remove(&id);
                job.write(id, |record| record.origin.inputs = Some(number), actions);
                self.enqueue(id, actions);
            }
            (Some(_), Err(Ungathered::Absent(why))) => self.never_start(now, id, shortened(why), actions),
            (Some(job), Err(Ungathered::Failed(why))) => {
                let before = match &job.gathering {
                    Gathering::Failed(before) => Some(before),
                    _ => None,
                };
                job.gathering = Gathering::Failed(Pausing::new(now, shortened(why), before));
                self.gathering.insert(id);
                actions.push(Action::Changed(id));
            }
            // It was ended meanwhile.
            (None, Ok(number)) => actions.push(Action::Spent(number)),
            (None, Err(_)) => (),
        }
    }

    /// Ends the waiting tasks of a job.
    fn never_start(&mut self, now: Now, id: JobId, why: String, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let outcome = Outcome::NotStarted { why, status: NEVER };
        for index in job.waiting.clone() {
            let epoch = self.task(id.task(index)).map_or(0, |task| task.epoch);
            self.done(now, Run { task: id.task(index), epoch }, outcome.clone(), actions);
        }
    }

    pub(super) fn hold(&mut self, id: JobId, held: bool, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.is_done() && job.record.held != held) else {
            return;
        };
        job.write(id, |record| record.held = held, actions);
        match held {
            true => drop(self.queue.remove(&id)),
            false => self.enqueue(id, actions),
        }
        actions.push(Action::Changed(id));
    }

    /// Lets those go on, or not, that come after jobs of this home that have ended. It may end them, and so on.
    pub(super) fn tell_followers(&mut self, now: Now, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.returned) {
            self.line_up(id, actions);
        }
        while let Some(job) = self.ended.pop() {
            self.learn(now, job, self.fate(job), actions);
        }
    }

    /// What came of a job that others come after.
    pub(super) fn learn(&mut self, now: Now, job: JobId, fate: Fate, actions: &mut Vec<Action>) {
        if fate == Fate::Unfinished {
            return;
        }
        for id in self.followers.remove(&job).unwrap_or_default() {
            let Some(follower) = self.jobs.get_mut(&id) else { continue };
            let Some(after) = follower.record.unmet.iter().find(|after| after.job == job).copied() else {
                continue;
            };
            match fate.stops(after) {
                Some(why) => self.never_start(now, id, why, actions),
                None => {
                    follower.write(id, |record| record.unmet.retain(|one| one.job != job), actions);
                    self.enqueue(id, actions);
                    actions.push(Action::Changed(id));
                }
            }
        }
    }

    /// Asks other homes for the fates that are waited for here.
    pub(super) fn ask_fates(&mut self, now: Now, actions: &mut Vec<Action>) {
        if now.mono < self.asked_fates + ASK {
            return;
        }
        self.asked_fates = now.mono;
        let jobs = &self.jobs;
        self.followers.retain(|_, followers| {
            followers.retain(|id| jobs.get(id).is_some_and(|job| !job.waiting.is_empty()));
            !followers.is_empty()
        });
        let mut foreign: BTreeMap<NodeId, Vec<JobId>> = BTreeMap::new();
        for job in self.followers.keys().filter(|job| job.home != self.me) {
            foreign.entry(job.home).or_default().push(*job);
        }
        actions.extend(foreign.into_iter().map(|(home, jobs)| Action::AskFates { home, jobs }));
    }

    /// Why a job is blocked: a sentence.
    pub(super) fn blocked(&self, id: JobId, job: &Job) -> Option<String> {
        if job.record.held {
            return Some(format!("is held: gridctl release {id} lets it start"));
        }
        let Some(after) = job.record.unmet.first() else {
            let folder = job.record.origin.folder.display();
            return job.lacks_inputs().then(|| match &job.gathering {
                Gathering::Failed(tried) => {
                    format!("{}: it is tried again until gridctl kill {id} ends it", tried.why)
                }
                _ => format!("its inputs are gathered from {folder}"),
            });
        };
        let (other, home) = (after.job, after.job.home);
        let ended = match after.ending {
            Ending::Ok => "has succeeded",
            Ending::Failed => "has failed",
            Ending::Any => "has ended",
        };
        let known = match self.jobs.get(&other) {
            Some(other) => {
                let (all, left) = (other.tasks.len(), other.waiting.len() + other.active.len());
                format!("{} of its {all} {} done", all - left, if all == 1 { "task is" } else { "tasks are" })
            }
            None if self.nodes.get(&home).is_some_and(|node| node.up) => format!("node {home} is asked"),
            None => format!("node {home}, which knows, does not answer"),
        };
        let more = match job.record.unmet.len() - 1 {
            0 => String::new(),
            1 => "; there is one more job that has to end before".into(),
            more => format!("; there are {more} more jobs that have to end before"),
        };
        Some(format!("starts when {other} {ended}: {known}{more}"))
    }
}

impl Job {
    /// Whether its waiting tasks wait for somebody's word, or for other jobs.
    pub(super) fn is_blocked(&self) -> bool {
        self.record.held || !self.record.unmet.is_empty()
    }

    /// Whether its inputs did not come with it, and are not gathered yet.
    fn lacks_inputs(&self) -> bool {
        !self.record.spec.stage_in.is_empty() && self.record.origin.inputs.is_none()
    }

    /// How many more of its tasks may run at the same time, beside those that have ended and are stuck.
    pub(super) fn may_join(&self, stuck: usize) -> usize {
        let at_once = self.record.spec.array.and_then(|array| array.at_once());
        let run = self.active.len() - stuck;
        at_once.map_or(usize::MAX, |at_once| (at_once as usize).saturating_sub(run))
    }

    fn gather(&mut self, id: JobId) -> Action {
        if let Gathering::Failed(tried) = &mut self.gathering {
            // Until it is known what comes of this.
            tried.again = Duration::MAX;
        } else {
            self.gathering = Gathering::Begun;
        }
        let (origin, paths) = (self.record.origin.clone(), self.record.spec.stage_in.clone());
        Action::Gather { job: id, origin, paths }
    }

    /// Changes its record.
    pub(super) fn write(
        &mut self,
        id: JobId,
        change: impl FnOnce(&mut JobRecord),
        actions: &mut Vec<Action>,
    ) {
        change(Arc::make_mut(&mut self.record));
        actions.push(Action::Write(Change::Job(id, self.record.clone())));
    }
}
