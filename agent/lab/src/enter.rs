//! Running a command inside a machine: what `gridos-lab enter DIR -- PROGRAM ARGUMENT...` does.
//!
//! The program is a child of this process, in all namespaces of the machine; this process stands in for it
//! outside: it hands signals on and ends as the program ends.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::chdir;

use crate::error::{Doing, LabError};
use crate::machine;

/// Exit statuses of env(1), docker-run(1) and the shell.
const NOT_ENTERED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The signals that are handed on. Those of job control act on the whole group of processes anyway.
const FORWARDED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Runs `program` in the machine whose directory is `dir`, and says with which status to end.
pub fn enter(dir: &Path, program: &OsString, args: &[OsString]) -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    for signal in FORWARDED {
        signals.add(signal);
    }
    // Blocked before the child is there, so that no signal is lost.
    let blocked = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).doing("block signals in", dir);
    let before = match blocked.and_then(|before| join(dir).map(|()| before)) {
        Ok(before) => before,
        Err(error) => {
            eprintln!("gridos-lab: {error}");
            return ExitCode::from(NOT_ENTERED);
        }
    };
    // Open at this end as long as this process lives.
    let (here, there) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => {
            eprintln!("gridos-lab: cannot connect to {}: {error}", program.display());
            return ExitCode::from(NOT_ENTERED);
        }
    };
    let (parents, own) = (here.as_raw_fd(), there.as_raw_fd());
    let mut command = Command::new(program);
    command.args(args);
    // SAFETY: the closure runs between fork and exec and only makes plain system calls.
    unsafe {
        command.pre_exec(move || {
            before.thread_set_mask()?;
            end_with_parent(parents, own)
        });
    }
    let terminal = Terminal::ours();
    let child = command.spawn();
    drop(there);
    match child {
        Ok(mut child) => match follow(&mut child, &signals, &terminal) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("gridos-lab: cannot wait for {}: {error}", program.display());
                ExitCode::from(NOT_ENTERED)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("gridos-lab: {} is not there: check its name and PATH", program.display());
            ExitCode::from(NOT_FOUND)
        }
        Err(error) => {
            eprintln!("gridos-lab: {} cannot be executed: {error}", program.display());
            ExitCode::from(NOT_EXECUTABLE)
        }
    }
}

/// In the child: has the kernel kill it when its parent ends, and ends it if that has happened already.
///
/// The parent's pid, with which one would usually find out, is 0 in another pid namespace anyway.
fn end_with_parent(parents: RawFd, own: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: own, events: 0, revents: 0 };
    // SAFETY: plain system calls on descriptors that are open; the first is this process' copy of one that
    // nothing here uses. One valid pollfd lives over the call.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 || libc::close(parents) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::poll(&raw mut poll, 1, 0);
        if poll.revents & libc::POLLHUP != 0 {
            // Nobody is left to return an error to.
            libc::_exit(NOT_ENTERED.into());
        }
    }
    Ok(())
}

/// Joins the machine's namespaces; that of pids takes effect for children.
fn join(dir: &Path) -> Result<(), LabError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let pid1 = machine::pid1(dir)?.ok_or(LabError::Off { machine: name.clone() })?;
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened before the first is joined: afterwards /proc is another.
    let spaces = kinds.map(|(kind, flag)| {
        let path = format!("/proc/{}/ns/{kind}", pid1.pid);
        File::open(&path).doing("open", path).map(|file| (file, flag))
    });
    if !pid1.is_alive() {
        return Err(LabError::Off { machine: name });
    }
    let folder = std::env::current_dir();
    for space in spaces {
        let (file, flag) = space?;
        setns(file, flag).doing("enter", dir)?;
    }
    // setns moved to the root; back to the same path, if the machine has it.
    if !folder.is_ok_and(|folder| chdir(&folder).is_ok()) {
        chdir("/").doing("enter", "/")?;
    }
    Ok(())
}

/// Hands signals on until the child ends, then ends in the same way.
fn follow(child: &mut std::process::Child, signals: &SigSet, terminal: &Terminal) -> io::Result<ExitCode> {
    loop {
        if let Some(status) = child.try_wait()? {
            terminal.take_back();
            if let Some(signal) = status.signal() {
                end_by(signal);
            }
            // A status that was not a signal is 0 to 255.
            return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        // SAFETY: all bytes zero is a valid siginfo_t, which is made of integers and pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set and the information are valid and live over the call; the signals are blocked.
        let signal = unsafe { libc::sigwaitinfo(signals.as_ref(), &raw mut info) };
        // What the terminal sends (by the kernel), it sends to the child, too.
        let from_a_process = info.si_code <= 0;
        if signal > 0 && signal != libc::SIGCHLD && from_a_process {
            // SAFETY: the child has not been waited for, so its pid is still its own.
            unsafe { libc::kill(child.id().cast_signed(), signal) };
        }
    }
}

/// The terminal on standard input, if this process is in its foreground.
///
/// A shell in the machine takes the terminal for groups of its own. It cannot give it back, because the group
/// to give it to has no number in its pid namespace.
struct Terminal {
    foreground: Option<i32>,
}

impl Terminal {
    fn ours() -> Terminal {
        // SAFETY: plain system calls; without a terminal the first fails with -1, which is no group.
        let (foreground, own) = unsafe { (libc::tcgetpgrp(0), libc::getpgrp()) };
        Terminal { foreground: (foreground == own).then_some(own) }
    }

    fn take_back(&self) {
        let Some(group) = self.foreground else { return };
        // SAFETY: plain system calls. From the background the kernel would stop a process that takes the
        // terminal, unless it ignores this signal.
        unsafe {
            let before = libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::tcsetpgrp(0, group);
            libc::signal(libc::SIGTTOU, before);
        }
    }
}

/// Ends this process by `signal`, without a second core file.
fn end_by(signal: i32) {
    // SAFETY: plain system calls; the set is valid. SIGKILL cannot be unblocked, and need not be. If the
    // signal does not end the process, the caller goes on.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
}
