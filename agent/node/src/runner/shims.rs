//! The shims of this node: which of them keeps which tasks, and what they tell.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use grid_jobs::host;
use grid_run::protocol::{FromShim, Launch, ToShim};
use libgrid::ids::{JobId, Run};
use libgrid::sys::abi::Op;
use libgrid::units::{Bytes, Span};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::shim::{self, ShimId};
use super::{Local, Runner, end_of, is_fenced};
use crate::calls::Called;
use crate::control::operations::Asked;
use crate::core::{deadline, first_lease};

/// How many shims wait without tasks. To start one costs as much as all else of a short task, so a stream of short
/// jobs is served by the same ones.
const SPARE: usize = 32;

/// How many of them stay, and when the others end.
pub(super) const STAY: usize = 2;
const LINGER: Duration = Duration::from_secs(10);

/// A shim that this agent talks to.
pub(super) struct Shim {
    pub(super) sender: mpsc::UnboundedSender<ToShim>,
    pub(super) job: Option<JobId>,
    pub(super) runs: HashSet<Run>,
}

impl Runner {
    pub(super) fn adopt(&mut self, connected: shim::Connected) {
        let id = self.next_id();
        let kept = connected.kept.clone();
        let sender = connected.start(id, self.queries.clone());
        let mut shim = Shim { sender, job: None, runs: HashSet::new() };
        for kept in kept {
            let run = kept.run;
            shim.job = Some(run.task.job);
            shim.runs.insert(run);
            let Some(slot) = self.slots.adopt(kept.uid) else { continue };
            let limits = (Bytes(kept.limits.memory), kept.time.map(Span));
            let started = Some(kept.started);
            let ran = kept.started.elapsed().unwrap_or_default();
            let left = kept.time.map(|time| time.saturating_sub(ran));
            let resuming = kept.restoring.then(Box::default);
            let (when, alive, before) = (kept.checkpoint, kept.end.is_none(), kept.before);
            let local = Local::new(slot, limits);
            let (address, pipes) = (kept.address, kept.pipes);
            let local = Local {
                shim: Some(id),
                started,
                printed: true,
                when,
                left,
                before,
                resuming,
                address,
                pipes,
                ..local
            };
            if !alive {
                local.progress.send_modify(|progress| progress.ended = true);
            }
            local.typed.send_replace(kept.typed);
            let watched = alive && local.resuming.is_none();
            self.runs.insert(run, local);
            if watched {
                self.watch(run);
            }
            if !kept.restoring {
                self.find_fifos(run);
            }
            let fenced = kept.end.as_ref().is_some_and(is_fenced);
            if fenced || (kept.held && !kept.restoring) {
                self.fifos.leaves(run);
            }
            if !alive {
                // What it wrote last is to come all the same.
                self.fifos.over(run);
            }
        }
        info!(shim = id.0, tasks = shim.runs.len(), "shim_adopted");
        self.live.insert(id, shim);
    }

    pub(super) fn tell(&self, run: Run, message: ToShim) {
        let shim = self.runs.get(&run).and_then(|local| self.live.get(&local.shim?));
        if let Some(shim) = shim {
            // A shim that is gone is told of by its reader.
            let _ = shim.sender.send(message);
        }
    }

    /// Gives a task to a shim.
    pub(super) fn hand_over(&mut self, launch: Box<Launch>) {
        let run = launch.run;
        let job = run.task.job;
        let serving = self.live.iter().find(|(_, shim)| shim.job == Some(job)).map(|(id, _)| *id);
        let spare = || self.live.iter().find(|(_, shim)| shim.job.is_none()).map(|(id, _)| *id);
        let id = match serving.or_else(spare).map_or_else(|| self.start_shim(), Ok) {
            Ok(id) => id,
            Err(error) => return self.not_started(run, format!("cannot start a shim: {error}")),
        };
        let until = self.leases.get(&job.home).copied();
        let Some(shim) = self.live.get_mut(&id) else { return };
        if shim.job != Some(job) {
            shim.job = Some(job);
            let until = (job.home != self.me).then(|| until.unwrap_or_else(|| deadline(first_lease())));
            let _ = shim.sender.send(ToShim::Lease { until });
        }
        shim.runs.insert(run);
        let _ = shim.sender.send(ToShim::Launch(launch));
        if let Some(local) = self.runs.get_mut(&run) {
            local.shim = Some(id);
        }
    }

    pub(super) fn start_shim(&mut self) -> io::Result<ShimId> {
        let id = self.next_id();
        let sender = shim::start(&self.shims, id, self.queries.clone())?;
        self.live.insert(id, Shim { sender, job: None, runs: HashSet::new() });
        Ok(id)
    }

    pub(super) fn next_id(&mut self) -> ShimId {
        self.next_shim += 1;
        ShimId(self.next_shim)
    }

    /// Keeps some shims ready, and no more.
    pub(super) fn spare(&mut self) {
        let idle = self.retire(SPARE);
        if idle > STAY {
            self.thin.get_or_insert_with(|| Instant::now() + LINGER);
        }
        if idle == 0
            && let Err(error) = self.start_shim()
        {
            warn!(%error, "cannot start a shim ahead");
        }
    }

    /// Ends the shims without tasks but so many, and returns how many there are.
    pub(super) fn retire(&mut self, keep: usize) -> usize {
        let idle: Vec<_> =
            self.live.iter().filter(|(_, shim)| shim.job.is_none()).map(|(id, _)| *id).collect();
        for id in idle.iter().skip(keep) {
            if let Some(shim) = self.live.remove(id) {
                let _ = shim.sender.send(ToShim::Retire);
            }
        }
        idle.len().min(keep)
    }

    pub(super) fn hear(&mut self, id: ShimId, message: FromShim) {
        match message {
            FromShim::Started { run, at } => {
                self.starting.remove(&run);
                self.identify(run);
                let resuming = self.runs.get_mut(&run).and_then(|local| local.resuming.take());
                let resumed = resuming.and_then(|resuming| resuming.number);
                self.core.host(host::Event::Started { run, at, resumed });
                resumed.into_iter().for_each(|number| self.checkpoints.resumed(run, number));
                let Some(local) = self.runs.get_mut(&run) else { return };
                local.started = Some(at);
                let watched = local.watched;
                self.find_fifos(run);
                if watched {
                    self.tell(run, ToShim::Watch(run));
                }
                self.watch(run);
            }
            FromShim::Ended { run, end } => {
                self.fifos.over(run);
                self.checkpoints.unwatch(run);
                if self.ready_ended(run, &end) || self.resume_failed(run, &end) {
                    return;
                }
                self.starting.remove(&run);
                let Some(local) = self.runs.get_mut(&run) else { return };
                local.progress.send_modify(|progress| progress.ended = true);
                local.printed |= end.printed > 0;
                if !end.group_kept {
                    local.slot.forget_group();
                }
                let event = if local.fenced || is_fenced(&end) {
                    host::Event::Gone(run)
                } else {
                    host::Event::Ended { run, end: end_of(end, local.limits) }
                };
                self.core.host(event);
            }
            FromShim::Output { run, stdout, stderr } => {
                if let Some(local) = self.runs.get(&run) {
                    local.progress.send_modify(|progress| progress.written = stdout + stderr);
                }
            }
            FromShim::Typed { run, typed } => {
                if let Some(local) = self.runs.get(&run) {
                    local.typed.send_replace(typed);
                }
            }
            FromShim::Called { run, call, again, pid, op, input } => {
                let Some(local) = self.runs.get(&run) else { return };
                let (uid, op) = (local.slot.uid(), Op(op));
                let asked = Asked { uid, gid: uid, pid, op, input, again };
                // Who serves them ends with this agent.
                let _ = self.calls.send(Called { run, call, asked });
            }
            FromShim::Held { .. } => self.held(message),
            FromShim::PreDumped { run, folder, result } => self.round_written(run, folder, result),
            FromShim::Checkpointed { run, folder, result } => {
                let failed = result.is_err();
                // One after which the task stood still was told of then.
                if failed || !self.checkpoints.let_go(run, &folder) {
                    self.checkpoints.dumped(run, &folder, result, self.used(run));
                    self.checkpoints.let_go(run, &folder);
                }
            }
            // The greeting of a shim that was just started: it has none.
            FromShim::Tasks(kept) => {
                if !kept.is_empty() {
                    warn!(shim = id.0, "a new shim has tasks");
                }
            }
        }
    }

    /// A shim ended, and its tasks with it.
    pub(super) fn lose(&mut self, id: ShimId) {
        let Some(shim) = self.live.remove(&id) else { return };
        for run in shim.runs {
            self.resuming.remove(&run);
            if let Some(local) = self.runs.get_mut(&run) {
                local.shim = None;
                let ended = local.progress.borrow().ended;
                if !ended {
                    warn!(%run, "shim_lost");
                    self.checkpoints.failed(run);
                    self.starting.remove(&run);
                    local.progress.send_modify(|progress| progress.ended = true);
                    let groups =
                        grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
                    // What stays is swept up at the next start.
                    let _ = groups.map(|groups| groups.group(&local.slot.name()).remove());
                    local.slot.forget_group();
                    local.printed = true;
                    self.core.host(host::Event::Gone(run));
                }
            }
        }
        self.spare();
    }
}
