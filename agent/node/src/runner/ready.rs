//! A place that is made ready for a task while that still runs elsewhere: its folder, its control groups, its init, and a CRIU that
//! waits. A task stands still for no more than what could not be done before.
//!
//! ```text
//!   its files are on their way ─▶ a place [─▶ launched ahead] ─▶ it stands still, and all of it is here ─▶ made there, and held
//!                                 │ its user's is not free         │ it does not come, or comes otherwise
//!                                 ▼                                ▼
//!                               as without                       ended, and cleaned
//! ```
//!
//! The files of a task that comes by hybrid mode or pre-copy are in its place before it is. So that place is removed as a whole when it is not
//! needed ([`Runner::leave`]), and the task does not move if it is lost. A place that was never to be had costs time, and
//! nothing else: the task goes the way of those for which nothing was ready.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use grid_run::protocol::{Ending, How, Launch, ToShim};
use libgrid::ids::Run;
use tracing::{debug, info};

use super::ahead::{Files, Folder};
use super::{Local, Runner};

/// A place that is ready.
#[derive(Default)]
pub(super) struct Ready {
    /// It is being ended, and why.
    unready: Option<Unready>,
}

/// Why a place that is ready is not needed.
pub(super) enum Unready {
    /// The task comes in another way.
    Otherwise,
    /// It does not come: a sentence.
    NotMoved(String),
}

impl Local {
    /// Whether it runs here no more: its place will be free.
    pub(super) fn is_over(&self) -> bool {
        self.fenced || self.progress.borrow().ended
    }

    /// Whether its place waits for it.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.unready.is_none()) && !self.fenced
    }
}

impl Runner {
    /// The files of a run that is to be are on their way, and maybe its memory. Where they go: to its place, if it can have one of
    /// its local user's.
    ///
    /// # Errors
    /// A sentence: it cannot be that user's.
    pub(super) fn comes(&mut self, run: Run, uid: u32, memory: bool) -> Result<(PathBuf, Files), String> {
        if !super::is_task(uid) {
            return Err(format!(
                "it is said to be local user {uid}'s, who is none of those that tasks run as"
            ));
        }
        let mut others = self.runs.iter().filter(|(other, _)| other.task != run.task);
        if let Some((other, _)) = others.find(|(_, local)| local.slot.uid() == uid && !local.is_over()) {
            return Err(format!("its local user, {uid}, is {}'s on this node", other.task));
        }
        let make = |folder: PathBuf, mode, files| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&folder);
            made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
            Ok((folder, files))
        };
        match self.make_ready(run, uid, memory) {
            Some(folder) => make(folder, 0o711, Files::InPlace),
            None => {
                let apart = self
                    .config
                    .tasks_dir()
                    .join(format!("{}-{}-{}", run.task.job, run.task.index, run.epoch));
                make(apart.clone(), 0o700, Files::Apart(Folder(apart)))
            }
        }
    }

    /// The folder of its place, if there is one.
    fn make_ready(&mut self, run: Run, uid: u32, memory: bool) -> Option<PathBuf> {
        let (order, placement) = self.resuming.get(&run).and_then(|resuming| resuming.order())?;
        // Who cannot have one is told when the task is here.
        let address = self.address_of(run, &order, &placement).ok()?;
        let spec = &order.spec;
        let limits = grid_qos::Limits { cpu: spec.cpus.milli(), memory: spec.memory.0, pids: spec.pids };
        let (slot, group_ready) = self.slots.take_user(uid, limits)?;
        debug!(%run, "place_ready");
        let folder = self.slots.folder(&slot);
        self.insert(run, &order, placement.saved, None, slot);
        let launch = self.launch_of(run, &order, (folder.clone(), uid), address);
        let (restore, memory) =
            (Some(self.checkpoints.unpacked(run)), memory.then(|| self.moves.arrives(run)));
        let launch = Launch { group_ready, restore, memory, files: true, ahead: true, hold: true, ..launch };
        if let Some(local) = self.runs.get_mut(&run) {
            local.ready = Some(Ready::default());
            // Or files: the folder is not as new, even if it looks so.
            local.printed = true;
        }
        let launch = self.with_address(launch);
        self.hand_over(launch);
        Some(folder)
    }

    /// Ends what is ready for this run, if anything is: then true, and the rest follows its end.
    pub(super) fn unready(&mut self, run: Run, why: Unready) -> bool {
        let Some(local) = self.runs.get_mut(&run).filter(|local| !local.fenced) else { return false };
        let Some(ready) = &mut local.ready else { return false };
        ready.unready = Some(why);
        self.tell(run, ToShim::Fence(run));
        true
    }

    /// Whether this is the end of what was ready for a run that is not here.
    pub(super) fn ready_ended(&mut self, run: Run, end: &Ending) -> bool {
        let Some(local) = self.runs.get_mut(&run).filter(|local| !local.fenced) else { return false };
        let Some(ready) = local.ready.take() else { return false };
        if let How::NotStarted { why, .. } = &end.how {
            info!(%run, why, "place_not_ready");
        }
        self.leave(run);
        match ready.unready {
            Some(Unready::NotMoved(why)) => self.not_moved(run, why),
            // What is unpacked meanwhile waits for the place to be clean.
            Some(Unready::Otherwise) | None => (),
        }
        true
    }

    /// Nothing of this run is in its place any more: it goes another way.
    pub(super) fn leave(&mut self, run: Run) {
        self.tell(run, ToShim::Forget(run));
        let Some(mut local) = self.runs.remove(&run) else { return };
        if let Some(shim) = local.shim.and_then(|id| self.live.get_mut(&id)) {
            shim.runs.remove(&run);
        }
        local.slot.forget_group();
        // Fails only when the agent stops; the next one sweeps.
        let _ = self.cleaner.send((local.slot, true));
    }
}
