//! Writing checkpoints: when each task's next one is due, what the shim tells of it, and what becomes of it then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grid_checkpoint::Description;
use grid_checkpoint::interval::Interval;
use grid_checkpoint::order::Done;
use libgrid::ids::Run;
use libgrid::spec;
use libgrid::status::Usage;
use libgrid::units::{Bytes, Span};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::keeper::{Work, remove};
use super::{
    About, Checkpoints, DepartReply, Departed, Luggage, Reply, Watched, about, group_of, number_in,
    prefix_of, size,
};
use crate::processes::Identity;

/// How many are written at a time: each reads a task's memory, and asks the disk for as much.
const AT_ONCE: usize = 2;

pub(super) struct Departing {
    pub(super) number: u64,
    pub(super) reply: Option<DepartReply>,
    /// Since when it stands still.
    pub(super) since: Instant,
}

pub(super) struct Writing {
    pub(super) number: u64,
    /// After so much work; by hand, if absent.
    pub(super) interval: Option<Duration>,
    pub(super) cost: Duration,
    pub(super) replies: Vec<Reply>,
    /// The ids of the processes that there were when it began.
    pub(super) processes: Vec<Identity>,
}

impl Checkpoints {
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

    /// Whether the dump that ended is one after which the task stood still, of which was heard before.
    pub(crate) fn let_go(&mut self, run: Run, folder: &Path) -> bool {
        self.departs_with(run, folder)
            && self.tasks.get_mut(&run).is_some_and(|watched| watched.departs.take().is_some())
    }

    pub(super) fn full(&self) -> String {
        format!(
            "the checkpoints on this node take {}, and it lends {} for them: have its owner raise the limit in \
             [checkpoints], or wait until other tasks end",
            Bytes(self.size),
            Bytes(self.limit)
        )
    }

    /// The shim tells what came of one; its task had used so much by then.
    pub(crate) fn dumped(&mut self, run: Run, folder: &Path, result: Result<Done, String>, used: Usage) {
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
                let about = about.with(processes, used);
                let (folder, output) = (folder.to_owned(), task.place.clone());
                let departs = departs.as_mut().filter(|departs| departs.number == number);
                if departs.is_some()
                    || Description::read(&folder).is_ok_and(|description| description.memory_apart)
                {
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

    pub(super) fn fail(&mut self, run: Run, number: u64, why: String) {
        let Some(watched) = self.tasks.get_mut(&run) else { return };
        if self.lists.get(&run.task).is_some_and(|list| list.contains_key(&number)) {
            // Stored when it was heard of the first time.
            return;
        }
        let departs = watched.departs.as_ref().filter(|departs| departs.number == number);
        if departs.is_some_and(|departs| departs.reply.is_none()) {
            // It stood still, as it was to, and has gone on elsewhere.
            debug!(%run, why, "held_no_more");
            return self.schedule(run);
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
    pub(super) fn schedule(&mut self, run: Run) {
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
}

/// Gets what follows of a task ready for the node that asked for it, if one did: without that, it is of no use.
fn pack(luggage: Luggage, number: u64, output: &Path, about: &About, asked: Option<(DepartReply, Instant)>) {
    let Some((reply, since)) = asked else { return };
    let packed = about::keep_output(output, &luggage.folder)
        .and_then(|()| about.write(&luggage.folder))
        .and_then(|()| size(&luggage.folder));
    let answer = match packed {
        Ok(bytes) => Ok((Departed { number, stood: since.elapsed(), bytes }, Some(luggage))),
        Err(error) => Err(format!("it cannot be packed: {error}")),
    };
    // Whoever asked may be gone.
    let _ = reply.send(answer);
}
