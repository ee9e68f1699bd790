//! A process inside the task's namespaces.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libgrid::wire;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Serialize, de::DeserializeOwned};

/// Why there is no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// One sentence.
    Said(String),
    /// The process inside was killed before it said anything: mostly with the task's init, whose end is that of the namespace.
    Cut,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Said(why)
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Said(why) => why,
            Failure::Cut => "the process beside the task ended early: the task ended, or was killed".into(),
        }
    }
}

/// Tells the process outside the result.
#[derive(Debug)]
pub(super) struct Teller(File);

impl Teller {
    /// Says it now; what is said later is not heard.
    pub(super) fn tell<T: Serialize>(&self, result: Result<T, String>) {
        // A process that is gone hears nothing.
        let _ = wire::write(&mut &self.0, &result);
    }

    /// Another one, to the same process.
    pub(super) fn another(&self) -> Result<Self, String> {
        self.0.try_clone().map(Self).map_err(|error| format!("no descriptor is left: {error}"))
    }
}

/// A process beside the task.
#[derive(Debug)]
pub(super) struct Inside {
    /// That which entered the namespaces.
    between: Option<Pid>,
    result: OwnedFd,
}

/// Runs `act` in a process of its own in the namespaces of `init`, as the first pid of that namespace that is free, or as
/// `pid`, and returns what it returned.
///
/// # Errors
/// [`Failure`].
pub(super) fn run<T: Serialize + DeserializeOwned>(
    init: BorrowedFd<'_>,
    pid: Option<i32>,
    act: impl FnOnce(&Teller) -> Result<T, String>,
) -> Result<T, Failure> {
    Inside::start(init, pid, act)?.finish(None)
}

impl Inside {
    /// Starts one, as [`run`] does. It ends with this value.
    ///
    /// A process between enters the namespaces and starts it, for whoever enters a pid namespace does so with its children
    /// alone, and this process stays outside.
    ///
    /// # Errors
    /// A sentence, where there is no process to be had; what fails after that comes with the result.
    pub(super) fn start<T: Serialize>(
        init: BorrowedFd<'_>,
        pid: Option<i32>,
        act: impl FnOnce(&Teller) -> Result<T, String>,
    ) -> Result<Self, String> {
        let (result, end) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
        let between = match fork(None).map_err(|error| format!("cannot start a process: {error}"))? {
            None => {
                drop(result);
                let end = Teller(File::from(end));
                // Who is to hear of it may be killed.
                let entered = set_pdeathsig(Signal::SIGKILL).map_err(|error| error.to_string());
                match entered.and_then(|()| enter(init, pid)) {
                    Ok(None) => {
                        let prepared = own_streams().and_then(|()| number_children());
                        end.tell(prepared.and_then(|()| act(&end)));
                    }
                    Ok(Some(inside)) => {
                        drop(end);
                        wait(inside);
                    }
                    Err(why) => end.tell::<T>(Err(why)),
                }
                std::process::exit(0)
            }
            Some(between) => between,
        };
        Ok(Self { between: Some(between), result })
    }

    /// Its result comes here: readable when it is there, or will never be.
    pub(super) fn result(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }

    /// Its result. With a time limit, it is killed when that is over.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn finish<T: DeserializeOwned>(mut self, limit: Option<Duration>) -> Result<T, Failure> {
        let said = listen(self.result(), limit)?;
        if let Some(between) = self.between.take() {
            wait(between);
        }
        // The first counts.
        match wire::read(&mut said.as_slice()) {
            Ok(result) => Result::map_err(result, Failure::Said),
            Err(_) => Err(Failure::Cut),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(between) = self.between {
            // The process inside dies with it.
            let _ = kill(between, Signal::SIGKILL);
            wait(between);
        }
    }
}

/// Enters the namespaces. `None` in the process inside, its number in the one between.
fn enter(init: BorrowedFd<'_>, pid: Option<i32>) -> Result<Option<Pid>, String> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET;
    setns(init, namespaces).map_err(|error| match error {
        nix::errno::Errno::ESRCH => "the task has ended".to_owned(),
        error => format!("cannot enter the task's namespaces: {error}"),
    })?;
    let wrong = |error: &dyn std::fmt::Display| format!("cannot start a process beside the task: {error}");
    let inside = fork(pid).map_err(|error| match error.raw_os_error() {
        // The kernel's words for a namespace whose init is gone.
        Some(libc::EINVAL | libc::ENOMEM) => "the task has ended".to_owned(),
        _ => wrong(&error),
    })?;
    if inside.is_none() {
        set_pdeathsig(Signal::SIGKILL).map_err(|error| wrong(&error))?;
    }
    Ok(inside)
}

/// As fork, with a chosen pid in the innermost namespace; in a program of one thread.
pub(super) fn fork(pid: Option<i32>) -> io::Result<Option<Pid>> {
    let pid = pid.unwrap_or(0);
    // SAFETY: zeros are a valid clone_args: no flags, nothing shared, no addresses.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if pid > 0 {
        args.set_tid = (&raw const pid) as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: this program has one thread, so that the child finds no lock taken; nothing is shared with it.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(Pid::from_raw(child as i32))),
    }
}

/// Standard streams of the task's mount namespace: CRIU looks at its own descriptors, too.
fn own_streams() -> Result<(), String> {
    let open = || {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        nix::unistd::chdir("/").map_err(io::Error::from)
    };
    open().map_err(|error: io::Error| format!("cannot open /dev/null as the task sees it: {error}"))
}

/// Lets the pids of what this process starts follow its own: a chosen pid does not move the kernel's counter.
fn number_children() -> Result<(), String> {
    let path = "/proc/sys/kernel/ns_last_pid";
    std::fs::write(path, std::process::id().to_string())
        .map_err(|error| format!("cannot write {path}: {error}"))
}

fn listen(result: BorrowedFd<'_>, limit: Option<Duration>) -> Result<Vec<u8>, String> {
    let timeout = match limit {
        Some(limit) => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    // All is said at once, or the end comes.
    let mut ready = [PollFd::new(result, PollFlags::POLLIN)];
    match poll(&mut ready, timeout) {
        Ok(0) => return Err(format!("it took longer than {} s", limit.unwrap_or_default().as_secs())),
        Ok(_) => (),
        Err(error) => return Err(format!("cannot wait: {error}")),
    }
    let mut said = Vec::new();
    let heard = result.try_clone_to_owned().map(File::from);
    heard
        .and_then(|result| result.take(wire::MAX_FRAME as u64).read_to_end(&mut said))
        .map_err(|error| format!("cannot hear of it: {error}"))?;
    Ok(said)
}

/// Waits for a child's end.
pub(super) fn wait(child: Pid) {
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
}
