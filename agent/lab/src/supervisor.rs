//! Pid 1 of a machine: keeps the agent running the way systemd does, and reaps orphans.
//!
//! ```text
//!            start            ends by itself
//!   waiting ───────▶ running ───────────────▶ waiting (100 ms)
//!      ▲                │ the switch is off, SIGUSR1: SIGKILL
//!      │ switch on,     ▼
//!      └─ SIGUSR1 ──── off
//! ```
//!
//! The switch is the file `agent-off` in the machine's directory. `agent.pid` is there exactly while the agent
//! runs, and holds its pid inside the machine.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::document;
use crate::error::{Doing, LabError};

/// While this file is in the machine's directory, the agent does not run.
pub(crate) const AGENT_OFF: &str = "agent-off";

/// The agent's pid inside the machine.
pub(crate) const AGENT_PID: &str = "agent.pid";

/// From the agent's end to its next start; systemd's default for `RestartSec`.
const RESTART: Duration = Duration::from_millis(100);

/// How long the agent may take to end when the machine is shut down.
const GRACE: Duration = Duration::from_secs(3);

/// The machine's first process.
pub(crate) struct Supervisor {
    dir: PathBuf,
    agent: PathBuf,
    running: Option<Pid>,
    start_at: Instant,
    signals: SigSet,
}

// === impl Supervisor ===

impl Supervisor {
    /// Takes the signals that the loop waits for; from now on none of them is lost.
    pub(crate) fn new(dir: &Path, agent: &Path) -> Result<Supervisor, LabError> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().doing("block signals in", dir)?;
        Ok(Supervisor {
            dir: dir.to_owned(),
            agent: agent.to_owned(),
            running: None,
            start_at: Instant::now(),
            signals,
        })
    }

    /// Starts the agent, unless it runs or is switched off.
    pub(crate) fn start_agent(&mut self) -> Result<(), LabError> {
        if self.running.is_some() || self.is_off() {
            return Ok(());
        }
        // If this fails, there is another try later.
        self.start_at = Instant::now() + RESTART;
        let log = self.dir.join("agent.log");
        let output = OpenOptions::new().create(true).append(true).open(&log).doing("open", &log)?;
        let errors = output.try_clone().doing("open", &log)?;
        let mut command = Command::new(&self.agent);
        command.arg("--config").arg(self.dir.join("gridosd.toml"));
        command.stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/");
        // As a service manager does it: not the environment of whoever happened to boot the machine.
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| name.starts_with("RUST_") || name.starts_with("GRIDOS_"))
        }));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root");
        let signals = self.signals;
        // SAFETY: the closure runs between fork and exec and only sets the signal mask, which is a plain
        // system call; without it the agent would never hear of SIGTERM.
        unsafe {
            command.pre_exec(move || Ok(signals.thread_unblock()?));
        }
        let child = command.spawn().doing("start the agent", &self.agent)?;
        // Pids are below 2²².
        let pid = Pid::from_raw(child.id().cast_signed());
        self.running = Some(pid);
        let path = self.dir.join(AGENT_PID);
        document::replace(&path, format!("{pid}\n").as_bytes(), false).doing("write", &path)
    }

    /// Supervises until the machine ends.
    pub(crate) fn run(mut self) -> Result<(), LabError> {
        loop {
            self.reap();
            let now = Instant::now();
            let idle = self.running.is_none() && !self.is_off();
            if idle && now >= self.start_at {
                if let Err(error) = self.start_agent() {
                    eprintln!("machine: {error}");
                    if !self.dir.exists() {
                        // Somebody removed the lab by hand. Nobody could take this machine down any more.
                        return Err(error);
                    }
                }
                continue;
            }
            let left = idle.then(|| self.start_at.saturating_duration_since(now));
            match self.wait(left) {
                Some(Signal::SIGUSR1) => self.look_at_switch(),
                Some(Signal::SIGTERM | Signal::SIGINT) => {
                    return self.shut_down().map(|never| match never {});
                }
                _ => {}
            }
        }
    }

    fn look_at_switch(&mut self) {
        match self.running {
            Some(agent) if self.is_off() => {
                // It may have ended in this moment: then there is nothing to kill.
                let _ = kill(agent, Signal::SIGKILL);
            }
            Some(_) => {}
            None => self.start_at = Instant::now(),
        }
    }

    /// Collects every child that has ended: the agent, and orphans of the whole machine.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let pid = match status {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => pid,
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            if self.running == Some(pid) {
                eprintln!("machine: the agent ended: {status:?}");
                self.running = None;
                self.start_at = Instant::now() + RESTART;
                if let Err(error) = document::remove(&self.dir.join(AGENT_PID)) {
                    eprintln!("machine: {error}");
                }
            }
        }
    }

    /// Ends the agent in order, then everything else in the machine, then itself.
    fn shut_down(&mut self) -> Result<Infallible, LabError> {
        let deadline = Instant::now() + GRACE;
        if let Some(agent) = self.running {
            let _ = kill(agent, Signal::SIGTERM);
        }
        while self.running.is_some() && Instant::now() < deadline {
            self.wait(Some(deadline.saturating_duration_since(Instant::now())));
            self.reap();
        }
        // -1: all but this one. What is left after it, the kernel kills when this process ends.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        while waitpid(None, None).is_ok() {}
        document::remove(&self.dir.join(AGENT_PID))?;
        std::process::exit(0)
    }

    fn is_off(&self) -> bool {
        self.dir.join(AGENT_OFF).exists()
    }

    /// Waits for one of the signals, at most for `limit`.
    fn wait(&self, limit: Option<Duration>) -> Option<Signal> {
        let time = limit.map(|limit| libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let timeout = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is valid and its signals are blocked; no information is asked for; the timeout is
        // null or lives over the call.
        let signal = unsafe { libc::sigtimedwait(self.signals.as_ref(), std::ptr::null_mut(), timeout) };
        match signal {
            // The time is over, or the process was stopped and continued.
            -1 => None,
            signal => Signal::try_from(signal).ok(),
        }
    }
}
