//! A task that runs: its output, its input, its end.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant, SystemTime};

use grid_checkpoint::order::{Done, Streams};
use libgrid::status::Usage;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice, tee};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::calls::Calls;
use super::launch::Launched;
use super::line;
use super::typing::Typing;
use super::worker::{Work, Worker};
use crate::fifo::Ends;
use crate::logs;
use crate::record::{RECORD, Record, Step};
use libgrid::ids::Run;

use crate::protocol::{Ending, How, Kept, Launch};

/// How much output is moved before others get their turn.
const TURN: u64 = 1 << 20;

pub(super) struct Task {
    pub(super) launch: Box<Launch>,
    pub(super) started: SystemTime,
    since: Instant,
    /// Gone once the task has ended.
    pub(super) live: Option<Launched>,
    pub(super) end: Option<Ending>,
    /// Whether the agent wants to hear of output.
    pub(super) watched: bool,
    pub(super) typing: Typing,
    /// Its system calls for the grid, if it makes any.
    pub(super) calls: Option<Calls>,
    /// What is kept of its FIFOs.
    pub(super) fifos: Ends,
    /// Why we ended it, if we did.
    reason: Option<How>,
    /// It is dying, and takes nothing more: what is typed now may be for where it runs next.
    killed: bool,
    /// Who writes a checkpoint of it, or makes it from one.
    pub(super) worker: Option<Worker>,
    /// It ended while somebody worked for it, who is heard first.
    pub(super) end_waits: bool,
    /// Nobody will ask what became of it.
    pub(super) forgotten: bool,
}

impl Task {
    pub(super) fn new(launch: Box<Launch>, live: Result<Launched, String>) -> Self {
        let (mut live, end) = match live {
            Ok(live) => (Some(live), None),
            Err(why) => (
                None,
                Some(Ending {
                    how: How::NotStarted { why, status: 126 },
                    usage: Usage::default(),
                    printed: 0,
                    group_kept: false,
                }),
            ),
        };
        let listener = live.as_mut().and_then(|live| live.listener.take());
        Self {
            launch,
            started: SystemTime::now(),
            since: Instant::now(),
            live,
            end,
            watched: false,
            typing: Typing::default(),
            calls: listener.map(Calls::new),
            fifos: Ends::default(),
            reason: None,
            killed: false,
            worker: None,
            end_waits: false,
            forgotten: false,
        }
    }

    pub(super) fn run(&self) -> Run {
        self.launch.run
    }

    pub(super) fn kept(&self) -> Kept {
        Kept {
            run: self.run(),
            folder: self.launch.folder.clone(),
            uid: self.launch.uid,
            limits: self.launch.limits,
            time: self.launch.time,
            before: self.launch.before,
            started: self.started,
            checkpoint: self.launch.checkpoint,
            restoring: self.worker.as_ref().is_some_and(|worker| worker.work == Work::Restore),
            held: self.worker.as_ref().is_some_and(|worker| worker.held.is_some()),
            typed: self.typing.typed(),
            address: self.launch.address,
            pipes: self.launch.pipes.clone(),
            end: self.end.clone(),
        }
    }

    /// Keeps what is to be kept of its FIFOs, before it takes a step from where it was written down.
    ///
    /// # Errors
    /// Where that cannot be: a sentence.
    pub(super) fn keep_fifos(&mut self) -> Result<(), String> {
        let Launch { folder, uid, pipes, .. } = &*self.launch;
        self.fifos = Ends::open(folder, *uid, pipes)?;
        self.fifos.empty(pipes);
        Ok(())
    }

    /// Bytes of standard output and standard error so far.
    pub(super) fn written(&self) -> (u64, u64) {
        let outputs = self.live.as_ref().map_or(&[][..], |live| &live.outputs);
        let len = |at: usize| outputs.get(at).map_or(0, |(_, writer)| writer.len());
        (len(0), len(1))
    }

    /// Moves output number `at` to its file. `Ok(false)` when the stream has ended.
    pub(super) fn pump(&mut self, at: usize) -> bool {
        let terminal = self.is_terminal();
        let Some((from, writer)) = self.live.as_mut().and_then(|live| live.outputs.get_mut(at)) else {
            return false;
        };
        let mut moved = 0;
        while moved < TURN {
            match move_some(from, writer, terminal) {
                Ok(0) => return false,
                Ok(bytes) => moved += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                // A terminal that its last user closed.
                Err(error) if error.raw_os_error() == Some(libc::EIO) && terminal => return false,
                // No room on the disk: the task must not stop for that; its output is lost.
                Err(_) => match discard(from) {
                    Ok(0) => return false,
                    Ok(bytes) => moved += bytes,
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                },
            }
        }
        true
    }

    /// Takes what is new of what is typed; no bytes are the end of the input.
    pub(super) fn type_in(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            // What Ctrl-D types: the end of file, for a program in line mode.
            let key = self.is_terminal().then_some(4);
            self.typing.accept_end(at, key);
        } else {
            self.typing.accept(at, bytes);
        }
        self.pump_input();
    }

    /// Hands typed bytes on as far as the task takes them.
    pub(super) fn pump_input(&mut self) {
        if self.killed {
            return;
        }
        let Some(live) = self.live.as_mut() else { return self.typing.close() };
        let Some(input) = &live.input else { return self.typing.close() };
        while !self.typing.front().is_empty() {
            match nix::unistd::write(input, self.typing.front()) {
                Ok(bytes) => self.typing.handed(bytes),
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Err(_) => {
                    live.input = None;
                    return self.typing.close();
                }
            }
        }
        if self.typing.take_end() {
            live.input = None;
            self.typing.close();
        }
    }

    /// Nobody reads its input any more.
    pub(super) fn close_input(&mut self) {
        if !self.killed {
            self.typing.close();
        }
    }

    /// Whether typed bytes wait for room.
    pub(super) fn input_waits(&self) -> bool {
        !self.typing.front().is_empty() && self.live.as_ref().is_some_and(|live| live.input.is_some())
    }

    /// It is about to be stopped: nothing is typed into it until its checkpoint is written.
    pub(super) fn stop_typing(&mut self) {
        self.typing.stop();
        if let Some(terminal) = self.live.as_ref().and_then(|live| live.terminal.as_ref()) {
            line::settle(terminal);
        }
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.launch.stdin, Some(libgrid::control::Stdin::Terminal { .. }))
    }

    pub(super) fn resize(&self, rows: u16, cols: u16) {
        if let Some(terminal) = self.live.as_ref().and_then(|live| live.terminal.as_ref()) {
            let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the ioctl reads one winsize.
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        }
    }

    /// Sends a signal to every process of the task, and notes why; SIGKILL ends the task for certain.
    pub(super) fn signal(&mut self, signal: i32, reason: Option<How>) {
        let Some(live) = &self.live else { return };
        if let Some(reason) = reason {
            self.reason.get_or_insert(reason);
        }
        if signal == libc::SIGKILL {
            self.killed = true;
            if self.worker.is_some() {
                // CRIU may be among them, and what it has stopped must not run on when it dies before the others.
                let _ = live.group.freeze(true);
            }
            // Each of them, not init alone: what is thawed below would run on until init has died and taken it along.
            for pid in live.group.processes().unwrap_or_default() {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            // SAFETY: pidfd_send_signal with our own descriptor and no siginfo.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    live.init.as_raw_fd(),
                    signal,
                    std::ptr::null::<u8>(),
                    0,
                )
            };
            // The dead cannot die while they are frozen.
            let _ = live.group.freeze(false);
            return;
        }
        let Ok(signal) = Signal::try_from(signal) else {
            self.signal_number(signal);
            return;
        };
        for pid in live.group.processes().unwrap_or_default() {
            // One that ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }

    /// Real-time signals, which nix does not name.
    fn signal_number(&self, signal: i32) {
        let processes = self.live.as_ref().and_then(|live| live.group.processes().ok()).unwrap_or_default();
        for pid in processes {
            // SAFETY: sending a signal touches no memory.
            unsafe { libc::kill(pid as i32, signal) };
        }
    }

    pub(super) fn freeze(&self, frozen: bool) {
        if let Some(live) = self.live.as_ref().filter(|_| frozen || !self.is_held()) {
            // A group that is gone has nothing to freeze.
            let _ = live.group.freeze(frozen);
        }
    }

    /// It is written down or made, and stands still. It may run elsewhere, or be going to: it must not run here even if CRIU,
    /// which stopped it, is killed.
    pub(super) fn hold(&mut self, done: Done) {
        if let Some(worker) = &mut self.worker {
            worker.held = Some(done);
        }
        self.freeze(true);
    }

    /// Lets it go that is held; `frozen` as all are here now.
    pub(super) fn let_go(&mut self, frozen: bool) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.held.is_some()) else { return };
        if let Some(live) = &self.live {
            // Its weight holds in any case.
            let _ = live.group.limit_cpu(Some(self.launch.limits.cpu));
        }
        worker.let_go();
        self.freeze(frozen);
    }

    fn is_held(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.held.is_some())
    }

    /// Takes the end of init: the last output, the exit status, what was used. The control group goes.
    pub(super) fn finish(&mut self) {
        let mut usage = Usage { wall: self.since.elapsed(), ..Usage::default() };
        let Some(pid) = self.live.as_ref().map(|live| live.pid) else { return };
        reap(pid, &mut usage);
        self.drain();
        let (stdout, stderr) = self.written();
        let Some(live) = self.live.take() else { return };
        let used = live.group.used();
        usage.peak_memory = used.peak_memory;
        if used.read + used.written > 0 {
            (usage.read, usage.written) = (used.read, used.written);
        }
        let how = self.how(read_records(&live.status), used.oom_kills);
        // One that came by a move may be without its limit yet.
        let group_kept = !self.launch.hold && live.group.is_as_new(&used);
        if !group_kept {
            // Its processes are all reaped; a group that stays all the same is swept up by the agent's next start.
            let _ = live.group.remove();
        }
        let usage = usage.after(self.launch.before);
        self.end = Some(Ending { how, usage, printed: stdout + stderr, group_kept });
    }

    /// Takes what waits in its pipes or its terminal: all, of a task that prints nothing meanwhile.
    pub(super) fn drain(&mut self) {
        for at in 0..2 {
            while self.pump(at) && self.readable(at) {}
        }
    }

    /// What a checkpoint keeps of its streams. The task is stopped: what it printed is all here then.
    pub(super) fn streams(&mut self) -> Streams {
        let kept = self.typing.kept();
        let mut streams = Streams { position: kept.next, ..Streams::default() };
        if let Some(live) = &self.live {
            // What cannot be looked at is lost to a restore, as it would be without this.
            if let Some(pipe) = &live.unread {
                streams.typed = unread(pipe).unwrap_or_default();
                streams.typed_end = kept.end || live.input.is_none();
            } else if let Some(terminal) = &live.terminal {
                // Before its output is looked at, for that is where it shows what is typed.
                (streams.line, streams.typed) = line::copy(terminal).unwrap_or_default();
            }
        }
        streams.typed.extend(kept.queue);
        self.drain();
        let (stdout, stderr) = self.written();
        streams.printed = [stdout, stderr];
        streams
    }

    /// It was ended on purpose, with a checkpoint to go on from.
    pub(super) fn stopped(&mut self) {
        self.killed = true;
        self.reason.get_or_insert(How::Killed(libc::SIGKILL));
    }

    fn readable(&self, at: usize) -> bool {
        let Some((fd, _)) = self.live.as_ref().and_then(|live| live.outputs.get(at)) else { return false };
        let mut poll = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, 0u8).is_ok_and(|ready| ready > 0)
            && poll[0].revents().is_some_and(|events| events.contains(nix::poll::PollFlags::POLLIN))
    }

    fn how(&mut self, records: Vec<Record>, oom_kills: u64) -> How {
        if let Some(Record::Failed(step, errno)) = records.iter().find(|r| matches!(r, Record::Failed(..))) {
            return self.not_started(*step, *errno);
        }
        let status = match records.first() {
            Some(Record::Ended(status)) => *status,
            // Init itself was killed, and with it the task.
            _ => libc::SIGKILL,
        };
        let own = if libc::WIFSIGNALED(status) {
            How::Signaled(libc::WTERMSIG(status))
        } else {
            How::Exited(libc::WEXITSTATUS(status))
        };
        match (self.reason.take(), own) {
            (Some(How::Killed(_)), How::Exited(status)) => How::Exited(status),
            (Some(How::Killed(_)), How::Signaled(signal)) => How::Killed(signal),
            (Some(reason), _) => reason,
            (None, How::Exited(0)) => How::Exited(0),
            (None, _) if oom_kills > 0 => How::OutOfMemory,
            (None, own) => own,
        }
    }

    fn not_started(&self, step: Step, errno: i32) -> How {
        let program = self.launch.command.first().map_or("", String::as_str);
        let (why, status) = match (step, errno) {
            (Step::Execute, libc::ENOENT) => (
                format!(
                    "there is no program {program:?} (or the interpreter that its first line names): install it \
                     on the node, or name it by a path below the current folder to have it staged"
                ),
                127,
            ),
            (Step::Execute, libc::EACCES) => {
                (format!("{program:?} may not be executed: make it executable with chmod +x"), 126)
            }
            (Step::Execute, libc::ENOEXEC) => (
                format!(
                    "{program:?} is no program that this machine can execute: a script needs a first line such as #!/bin/sh"
                ),
                126,
            ),
            _ => (format!("{} failed: {}", step.what(), io::Error::from_raw_os_error(errno)), 126),
        };
        How::NotStarted { why, status }
    }

    /// How long the task runs at most.
    pub(super) fn time_limit(&self) -> Option<Duration> {
        self.launch.time
    }
}

/// Moves what is there, at most one segment's room. 0 at the end of the stream.
fn move_some(from: &OwnedFd, writer: &mut logs::Writer, terminal: bool) -> io::Result<u64> {
    if terminal {
        let mut buffer = [0; 16 << 10];
        let read = nix::unistd::read(from, &mut buffer)?;
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let (to, room) = writer.room()?;
            let piece = rest.len().min(room as usize);
            let wrote = nix::unistd::write(to, &rest[..piece])?;
            writer.wrote(wrote as u64);
            rest = &rest[wrote..];
        }
        return Ok(read as u64);
    }
    // Asking first: a task that prints nothing shall have no file.
    let mut poll = [nix::poll::PollFd::new(from.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut poll, 0u8)?;
    let events = poll[0].revents().unwrap_or(nix::poll::PollFlags::empty());
    if !events.contains(nix::poll::PollFlags::POLLIN) {
        return if events.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(0) };
    }
    let (to, room) = writer.room()?;
    let most = usize::try_from(room.min(TURN)).unwrap_or(usize::MAX);
    let moved =
        splice(from, None, to, None, most, SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK)?;
    writer.wrote(moved as u64);
    Ok(moved as u64)
}

/// What is in a pipe, left there: by an end of its own, as this one is open for nothing but its name.
fn unread(pipe: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let from = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))?;
    let size = fcntl(&from, FcntlArg::F_GETPIPE_SZ)?;
    let (mut copy, to) = io::pipe()?;
    fcntl(&to, FcntlArg::F_SETPIPE_SZ(size))?;
    match tee(&from, &to, size as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Err(Errno::EAGAIN) => return Ok(all),
        other => other?,
    };
    drop(to);
    copy.read_to_end(&mut all)?;
    Ok(all)
}

fn discard(from: &OwnedFd) -> io::Result<u64> {
    let mut buffer = [0; 16 << 10];
    Ok(nix::unistd::read(from, &mut buffer)? as u64)
}

fn reap(pid: libc::pid_t, usage: &mut Usage) {
    let mut status = 0;
    // SAFETY: zeros are a valid rusage; wait4 fills it.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right type.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut used) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    usage.user = time(used.ru_utime);
    usage.system = time(used.ru_stime);
    // In blocks of 512 bytes (getrusage(2)).
    usage.read = used.ru_inblock as u64 * 512;
    usage.written = used.ru_oublock as u64 * 512;
}

fn read_records(status: &OwnedFd) -> Vec<Record> {
    let mut bytes = Vec::new();
    if let Ok(copy) = status.try_clone() {
        // Ends with WouldBlock at the latest; what came before is in `bytes`.
        let _ = File::from(copy).take(256).read_to_end(&mut bytes);
    }
    bytes
        .chunks_exact(RECORD)
        .filter_map(|record| record.try_into().ok().and_then(Record::from_bytes))
        .collect()
}

/// Something to flush, so that both pipes and sockets look alike.
pub(super) fn write_some(to: &mut impl Write, queue: &mut VecDeque<u8>) -> io::Result<()> {
    while !queue.is_empty() {
        let (front, _) = queue.as_slices();
        match to.write(front) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => drop(queue.drain(..bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
