//! Tasks that are written down, or made from what was written: `gridos-criu` does it, one process for each, and asks the shim
//! for what is its own, the task's streams, its terminal and its network.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grid_checkpoint::Description;
use grid_checkpoint::order::{Connections, Dump, Order, PreDump, Report, Restore, Then};
use libgrid::ids::Run;
use libgrid::status::Usage;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::calls::Calls;
use super::network::Network;
use super::task::Task;
use super::typing::Typing;
use super::worker::{Work, Worker};
use super::{Shim, Source, launch, line};
use crate::protocol::{FromShim, How};

impl Shim {
    /// The program `gridos-criu`.
    fn criu(&self) -> PathBuf {
        self.init.with_file_name("gridos-criu")
    }

    /// Starts what writes a checkpoint of a task, or a round of its memory.
    pub(super) fn begin_work(
        &mut self,
        run: Run,
        start: impl FnOnce(&mut Task, &Path) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.frozen {
            return Err("the task is frozen until its home node is heard of".into());
        }
        let criu = self.criu();
        let slot = self.slots.get(&run).copied().ok_or("the task does not run here")?;
        let task = self.tasks.get_mut(&slot).ok_or("the task does not run here")?;
        start(task, &criu)?;
        let Some(worker) = &task.worker else { return Ok(()) };
        if let Some(calls) = &mut task.calls {
            calls.interrupt();
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Worker(slot).to_u64());
        // Unheard, it waits for its answer with the task stopped: its socket must go.
        let watched = self.epoll.add(worker.socket(), event).map_err(|error| {
            task.worker = None;
            format!("cannot watch who writes it: {error}")
        });
        self.hear_calls(slot);
        watched
    }

    /// Starts what makes the task from its checkpoint; true if it is to begin so. What fails ends the task.
    pub(super) fn restore(&self, task: &mut Task, slot: u32) -> bool {
        let why = match task.restore(&self.criu()) {
            Ok(None) => return false,
            Ok(Some(worker)) => match self.listen(worker.socket(), Source::Worker(slot), EpollFlags::EPOLLIN)
            {
                Ok(()) => return true,
                Err(error) => format!("cannot watch the restore: {error}"),
            },
            Err(why) => why,
        };
        task.worker = None;
        task.signal(libc::SIGKILL, Some(How::NotStarted { why, status: 126 }));
        true
    }

    pub(super) fn work(&mut self, slot: u32) {
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        let Some(worker) = task.worker.as_mut() else { return };
        let result = match worker.hear() {
            None => return,
            Some(Report::Begins) => {
                let is_dump = matches!(worker.work, Work::Dump(_));
                let isolated = task.isolate();
                if is_dump {
                    task.stop_typing();
                }
                if let Some(worker) = task.worker.as_mut() {
                    worker.begin(isolated);
                }
                return;
            }
            Some(Report::Frozen) => {
                let streams = task.has_sent().map(|()| task.streams());
                if let Some(worker) = task.worker.as_mut() {
                    worker.go(&streams);
                }
                return;
            }
            Some(Report::Held(done)) => {
                let folder = worker.folder.clone();
                let restored = worker.work == Work::Restore;
                task.hold(done);
                if restored && let Err(why) = task.keep_fifos() {
                    return task.signal(libc::SIGKILL, Some(How::NotStarted { why, status: 126 }));
                }
                if restored && !task.launch.hold {
                    let frozen = self.frozen;
                    return task.let_go(frozen);
                }
                let run = task.run();
                return self.tell(&FromShim::Held { run, folder, done });
            }
            Some(Report::Done(done)) => Ok(done),
            Some(Report::Failed(why)) => Err(why),
        };
        let Some(worker) = task.worker.take() else { return };
        let (run, at, ended) = (task.run(), task.started, std::mem::take(&mut task.end_waits));
        // One that was held and never let go is to run elsewhere, if at all: nothing of its end may be heard.
        let runs = match worker.work {
            Work::Dump(Then::End) => result.is_err(),
            Work::Dump(_) | Work::PreDump => true,
            Work::Restore => result.is_ok(),
        };
        let goes_on = runs && worker.held.is_none() && !ended;
        let message = match (worker.work, result) {
            (Work::Dump(then), result) => {
                if then == Then::End && result.is_ok() {
                    task.stopped();
                }
                Some(FromShim::Checkpointed { run, folder: worker.folder.clone(), result })
            }
            (Work::PreDump, result) => {
                Some(FromShim::PreDumped { run, folder: worker.folder.clone(), result })
            }
            (Work::Restore, Ok(_)) => Some(FromShim::Started { run, at }),
            (Work::Restore, Err(why)) => {
                task.signal(libc::SIGKILL, Some(How::NotStarted { why, status: 126 }));
                None
            }
        };
        self.unlisten(worker.socket());
        if goes_on {
            self.close_or_open(slot);
        }
        self.hear_calls(slot);
        if let Some(message) = message {
            self.tell(&message);
        }
        self.input(slot, |task| {
            task.typing.go_on();
            task.pump_input();
        });
        if ended {
            self.end(slot);
        }
    }
}

impl Task {
    /// What writes a checkpoint of it.
    ///
    /// # Errors
    /// Where it cannot be written now: a sentence.
    pub(super) fn checkpoint(
        &mut self,
        program: &Path,
        folder: PathBuf,
        then: Then,
        (ahead, parent): (Option<PathBuf>, Option<PathBuf>),
    ) -> Result<(), String> {
        self.is_free()?;
        let live = self.live.as_mut().ok_or("the task has ended")?;
        let connections = live.network.as_ref().map_or(Connections::Refused, |_| Connections::Kept);
        live.network.as_mut().map_or(Ok(()), |network| network.hold_for(then == Then::Hold))?;
        let order = Order::Dump(Dump {
            folder,
            uid: self.launch.uid,
            workdir: self.launch.workdir.clone(),
            stdio: live.external.clone(),
            then,
            ahead,
            parent,
            connections,
        });
        let worker = Worker::start(program, &order, &[live.init.as_raw_fd()], None).inspect_err(|_| {
            if let Some(network) = live.network.as_mut() {
                network.open();
            }
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    /// What writes a round of its memory.
    ///
    /// # Errors
    /// Where it cannot be written now: a sentence.
    pub(super) fn pre_dump(
        &mut self,
        program: &Path,
        folder: PathBuf,
        parent: Option<PathBuf>,
    ) -> Result<(), String> {
        self.is_free()?;
        let live = self.live.as_ref().ok_or("the task has ended")?;
        let (uid, workdir) = (self.launch.uid, self.launch.workdir.clone());
        let order = Order::PreDump(PreDump { folder, uid, workdir, parent });
        self.worker = Some(Worker::start(program, &order, &[live.init.as_raw_fd()], None)?);
        Ok(())
    }

    /// Whether CRIU may look at it: one at a time.
    fn is_free(&self) -> Result<(), String> {
        match self.worker.as_ref().map(|worker| worker.work) {
            Some(Work::Restore) => Err("the task is being restored: try again when it runs".into()),
            Some(Work::Dump(_)) => Err("another checkpoint of the task is being written".into()),
            Some(Work::PreDump) => Err("memory of the task is being written, as it moves".into()),
            None => Ok(()),
        }
    }

    /// What makes its processes from a checkpoint, if it is to begin so.
    ///
    /// # Errors
    /// Where it cannot be started: a sentence.
    pub(super) fn restore(&mut self, program: &Path) -> Result<Option<&Worker>, String> {
        let Some(folder) = self.launch.restore.clone() else { return Ok(None) };
        let Some(live) = self.live.as_mut() else { return Ok(None) };
        let Some(restoring) = live.restoring.take() else { return Ok(None) };
        let (ahead, streams) = (self.launch.ahead, restoring.streams.len());
        let (uid, workdir) = (self.launch.uid, self.launch.workdir.clone());
        // One with FIFOs is let go when those are kept.
        let hold = self.launch.hold || !self.launch.pipes.is_empty();
        // Of one that moves, the other ends wait; those of an earlier moment have gone on.
        let own = if self.launch.hold { Connections::Kept } else { Connections::Ended };
        let connections = live.network.as_ref().map_or(Connections::Refused, |_| own);
        let (memory, files) = (self.launch.memory.clone(), self.launch.files);
        let order = Restore { folder, ahead, streams, uid, workdir, hold, memory, files, connections };
        let order = Order::Restore(order);
        let mut descriptors = vec![live.init.as_raw_fd(), restoring.mark.as_raw_fd()];
        descriptors.extend(restoring.streams.iter().map(AsRawFd::as_raw_fd));
        descriptors.extend(restoring.entrances.iter().map(AsRawFd::as_raw_fd));
        let mut worker = Worker::start(program, &order, &descriptors, launch::filter(&self.launch)?)?;
        self.calls = worker.listener.take().map(Calls::new);
        if ahead {
            live.restoring = Some(restoring);
        } else if let Ok(Description { streams, .. }) = Description::read(&worker.folder) {
            // One that cannot be read is told by the worker.
            self.typing = Typing::resumed(streams.typed, streams.typed_end, streams.position);
        }
        if self.is_terminal() {
            // It has its modes when it is made.
            self.typing.stop();
        }
        Ok(Some(self.worker.insert(worker)))
    }

    /// The checkpoint that it waits for is there.
    ///
    /// # Errors
    /// Where its streams cannot go on as they were: a sentence.
    pub(super) fn arrived(&mut self, time: Option<Duration>, before: Usage) -> Result<(), String> {
        self.launch.ahead = false;
        (self.launch.time, self.launch.before) = (time, before);
        let terminal = self.is_terminal();
        let Some((live, worker)) = self.live.as_mut().zip(self.worker.as_mut()) else { return Ok(()) };
        let Some(restoring) = live.restoring.take() else { return Ok(()) };
        // One that cannot be read is told by the worker.
        if let Ok(Description { streams, .. }) = Description::read(&worker.folder) {
            let mut go_on = || -> io::Result<()> {
                let writers = launch::writers(&self.launch, streams.printed)?;
                for ((_, writer), resumed) in live.outputs.iter_mut().zip(writers) {
                    *writer = resumed;
                }
                match streams.line.as_ref().zip(restoring.streams.first()) {
                    Some((line, terminal)) if live.terminal.is_some() => line::put_back(terminal, line),
                    _ => Ok(()),
                }
            };
            go_on().map_err(|error| format!("cannot make the task's streams: {error}"))?;
            self.typing = Typing::resumed(streams.typed, streams.typed_end, streams.position);
            if terminal {
                self.typing.stop();
            }
        }
        worker.arrived();
        Ok(())
    }

    /// Its own network, if it has one and has not ended.
    pub(super) fn network(&mut self) -> Option<&mut Network> {
        self.live.as_mut()?.network.as_mut()
    }

    /// CRIU is about to look at its connections, or to make them.
    ///
    /// # Errors
    /// Where they would not stand still: a sentence.
    pub(super) fn isolate(&mut self) -> Result<(), String> {
        self.network().map_or(Ok(()), |network| network.isolate())
    }

    /// It stands still, with all that it has said to others on its way, or theirs: a sentence if not.
    pub(super) fn has_sent(&mut self) -> Result<(), String> {
        let moves = self.worker.as_ref().is_some_and(|worker| worker.work == Work::Dump(Then::Hold));
        self.network().filter(|_| moves).map_or(Ok(()), |network| network.is_sent())
    }
}
