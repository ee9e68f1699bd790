//! One machine of a lab, as its users handle it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::cgroups;
use crate::document::{self, LabDoc, PID1, WIRE};
use crate::error::{Doing, LabError};
use crate::lock::Lock;
use crate::process::{self, ProcessId};
use crate::slow::Slow;
use crate::supervisor::{AGENT_OFF, AGENT_PID};
use crate::tool::{self, Tool};
use crate::wire::{Cable, LinkEngine, Wire};

/// How long a killed process may take to be gone. A dying machine waits for each of its processes.
const DEATH: Duration = Duration::from_secs(20);

/// How long the orderly end of a machine may take: the supervisor gives the agent less.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// How long the agent may take to start or stop.
const AGENT: Duration = Duration::from_secs(10);

/// A machine of a [`Lab`](crate::Lab). Its methods can be repeated: what is so already stays so.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    doc: LabDoc,
    index: u32,
}

/// What a machine is doing.
#[derive(Clone, Debug, Serialize)]
pub struct MachineStatus {
    /// `node1` to `nodeN`.
    pub name: String,
    /// Its address on the lab's network.
    pub addr: Ipv4Addr,
    /// Is the power on?
    pub on: bool,
    /// The agent's pid on the host; `None` while it does not run.
    pub agent: Option<i32>,
    /// Is the network cable pulled?
    pub cut: bool,
    /// How slow the line is, if it is.
    pub slow: Option<Slow>,
    /// What makes it slow.
    pub engine: Option<LinkEngine>,
}

// === impl Machine ===

impl Machine {
    pub(crate) fn new(root: PathBuf, doc: LabDoc, index: u32) -> Machine {
        Machine { root, doc, index }
    }

    /// `node1` to `nodeN`; the host name inside.
    pub fn name(&self) -> String {
        format!("node{}", self.index)
    }

    /// Its directory on the host: `gridosd.toml`, `agent.log`, `machine.log`, `run/`, `state/`.
    pub fn dir(&self) -> PathBuf {
        self.doc.machine_dir(&self.root, self.index)
    }

    /// Its address on the lab's network, which the host can reach, too.
    pub fn addr(&self) -> Ipv4Addr {
        self.doc.addr(self.index)
    }

    /// The agent's control socket, as seen from the host.
    pub fn control_socket(&self) -> PathBuf {
        self.dir().join("run/control.sock")
    }

    /// Is the power on?
    pub fn is_on(&self) -> Result<bool, LabError> {
        Ok(pid1(&self.dir())?.is_some())
    }

    /// The pid of the machine's first process, as the host sees it; `None` when the machine is off.
    pub fn pid(&self) -> Result<Option<i32>, LabError> {
        Ok(pid1(&self.dir())?.map(|process| process.pid))
    }

    /// A command to run inside the machine, in all its namespaces.
    ///
    /// It runs as a child of the caller, with the caller's terminal, environment and, where the machine has
    /// it, working directory. Signals are handed on. The exit status is the command's own: when a signal ended
    /// it, the child ends by that signal as well. 125 says that the machine is off, 126 that the program
    /// cannot be executed, 127 that it is not there.
    pub fn exec(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.doc.helper);
        command.arg("enter").arg(self.dir()).arg("--").arg(program);
        command
    }

    /// Runs `f` in the machine's network namespace, on a thread of its own; sockets that it makes stay there.
    pub fn with_network<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let pid1 = self.powered()?;
        in_network(pid1, f).doing("enter the network of", self.name())
    }

    /// Pulls the power cord: everything in the machine ends at once, without a chance to say so.
    pub fn kill(&self) -> Result<(), LabError> {
        let _lock = Lock::acquire(&self.root)?;
        self.kill_locked()
    }

    /// Ends the machine in order: the agent is asked to end, then all the rest is killed.
    pub fn shutdown(&self) -> Result<(), LabError> {
        let _lock = Lock::acquire(&self.root)?;
        self.ask_to_end()?;
        self.await_end(SHUTDOWN)?;
        self.kill_locked()
    }

    /// Powers the machine on, with the state that it had; `/run/gridos` is empty, the line is as it was.
    pub fn boot(&self) -> Result<(), LabError> {
        let lock = Lock::acquire(&self.root)?;
        self.boot_locked(&lock)
    }

    /// Pulls the network cable: nothing passes, in neither direction, until [`Machine::heal`].
    pub fn cut(&self) -> Result<(), LabError> {
        let lock = Lock::acquire(&self.root)?;
        let wire = self.wire()?;
        self.cable(&lock).set(Wire { cut: true, ..wire })
    }

    /// Makes the line slow, instead of how slow it was before. Connections stay.
    pub fn slow(&self, line: Slow) -> Result<(), LabError> {
        let lock = Lock::acquire(&self.root)?;
        let before = self.wire()?;
        let cable = self.cable(&lock);
        let Err(failure) = cable.set(Wire { slow: Some(line), ..before }) else { return Ok(()) };
        // Half slow helps nobody.
        match cable.set(Wire { slow: None, ..before }) {
            Ok(()) => Err(failure),
            Err(cleanup) => {
                Err(LabError::Leftovers { failure: Box::new(failure), cleanup: Box::new(cleanup) })
            }
        }
    }

    /// Makes all well: the cable in, the line fast, the power on.
    pub fn heal(&self) -> Result<(), LabError> {
        let lock = Lock::acquire(&self.root)?;
        self.cable(&lock).set(Wire::default())?;
        self.boot_locked(&lock)
    }

    /// The agent's pid on the host; `None` while it does not run.
    pub fn agent_pid(&self) -> Result<Option<i32>, LabError> {
        Ok(self.agent()?.map(|process| process.pid))
    }

    /// Kills the agent alone (SIGKILL) and returns the pid that it had; the machine starts it again 100 ms
    /// later.
    pub fn kill_agent(&self) -> Result<i32, LabError> {
        let begun = Instant::now();
        loop {
            self.powered()?;
            if let Some(agent) = self.agent()? {
                end(agent, "the agent")?;
                return Ok(agent.pid);
            }
            // It is just being restarted; or it was stopped, and then there is nothing to kill.
            self.within(begun, AGENT, "no agent to kill was there", "start it first")?;
        }
    }

    /// Kills the agent (SIGKILL) and keeps it off, over boots, until [`Machine::start_agent`].
    pub fn stop_agent(&self) -> Result<(), LabError> {
        let off = self.dir().join(AGENT_OFF);
        File::create(&off).doing("make", &off)?;
        self.await_agent(false)
    }

    /// Starts the agent after [`Machine::stop_agent`].
    pub fn start_agent(&self) -> Result<(), LabError> {
        document::remove(&self.dir().join(AGENT_OFF))?;
        self.await_agent(true)
    }

    /// What the machine is doing.
    pub fn status(&self) -> Result<MachineStatus, LabError> {
        let Wire { cut, slow, engine } = self.wire()?;
        Ok(MachineStatus {
            name: self.name(),
            addr: self.addr(),
            on: self.is_on()?,
            agent: self.agent_pid()?,
            cut,
            slow,
            engine,
        })
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn ask_to_end(&self) -> Result<(), LabError> {
        match pid1(&self.dir())? {
            Some(pid1) => pid1.signal(libc::SIGTERM).doing("end", self.name()),
            None => Ok(()),
        }
    }

    /// Waits for the machine's end, at most for `limit`.
    pub(crate) fn await_end(&self, limit: Duration) -> Result<(), LabError> {
        match pid1(&self.dir())? {
            Some(pid1) => pid1.wait(limit).doing("wait for", self.name()).map(drop),
            None => Ok(()),
        }
    }

    pub(crate) fn kill_locked(&self) -> Result<(), LabError> {
        let parent = self.doc.cgroup_parent(self.index);
        if let Some(pid1) = pid1(&self.dir())? {
            pid1.signal(libc::SIGKILL).doing("kill", self.name())?;
            let begun = Instant::now();
            while !pid1.wait(Duration::from_millis(100)).doing("wait for", self.name())? {
                cgroups::thaw(&parent);
                self.within(
                    begun,
                    DEATH,
                    "the processes did not end",
                    "look for processes in state D with ps",
                )?;
            }
        }
        cgroups::remove(&parent)?;
        document::remove(&self.dir().join(AGENT_PID))?;
        document::remove(&self.dir().join(PID1))
    }

    pub(crate) fn boot_locked(&self, lock: &Lock) -> Result<(), LabError> {
        let dir = self.dir();
        if self.is_on()? {
            return Ok(());
        }
        // After an end that nobody here asked for (the host's OOM killer) this is still to do.
        self.kill_locked()?;
        self.await_unplugged(lock)?;
        empty(&dir.join("run"))?;
        let mut command = Command::new(&self.doc.helper);
        command.arg("machine").arg(&self.root).args([self.index.to_string(), lock.fd().to_string()]);
        run_helper(command, lock, self.name())
    }

    /// The kernel takes a dead machine's network apart a little after its processes.
    pub(crate) fn await_unplugged(&self, lock: &Lock) -> Result<(), LabError> {
        let port = self.doc.slot.port(self.index);
        let deadline = Instant::now() + Duration::from_secs(3);
        while tool::link_exists(&port) {
            if Instant::now() > deadline {
                // Somebody else keeps the namespace: a debugger, say. The port is ours all the same.
                Tool::new("ip").args(["link", "del", "dev", &port]).run(lock)?;
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub(crate) fn cable<'a>(&'a self, lock: &'a Lock) -> Cable<'a> {
        Cable { doc: &self.doc, root: self.root.clone(), index: self.index, lock }
    }

    fn wire(&self) -> Result<Wire, LabError> {
        Ok(document::read(&self.dir().join(WIRE))?.unwrap_or_default())
    }

    fn powered(&self) -> Result<ProcessId, LabError> {
        pid1(&self.dir())?.ok_or_else(|| LabError::Off { machine: self.name() })
    }

    fn agent(&self) -> Result<Option<ProcessId>, LabError> {
        let Some(pid1) = pid1(&self.dir())? else { return Ok(None) };
        let path = self.dir().join(AGENT_PID);
        let Some(inner) = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) else {
            return Ok(None);
        };
        match process::outer_pid(pid1, inner) {
            // The machine has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.doing("look for the agent of", self.name()),
        }
    }

    /// Has the supervisor look at the switch again, and waits until the agent runs, or does not.
    fn await_agent(&self, running: bool) -> Result<(), LabError> {
        let begun = Instant::now();
        let Some(pid1) = pid1(&self.dir())? else { return Ok(()) };
        pid1.signal(libc::SIGUSR1).doing("signal", self.name())?;
        let path = self.dir().join(AGENT_PID);
        while path.exists() != running {
            self.within(begun, AGENT, "the agent did not start or stop", "look into the machine's logs")?;
        }
        Ok(())
    }

    /// Between two looks at a condition: waits a little, or fails when the time is over.
    fn within(
        &self,
        begun: Instant,
        limit: Duration,
        what: &str,
        remedy: &'static str,
    ) -> Result<(), LabError> {
        if begun.elapsed() > limit {
            let what = format!("{}: {what}", self.name());
            return Err(LabError::Late { what, seconds: limit.as_secs(), remedy });
        }
        thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}

/// The first process of the machine in `dir`, if it runs.
pub(crate) fn pid1(dir: &Path) -> Result<Option<ProcessId>, LabError> {
    Ok(document::read::<ProcessId>(&dir.join(PID1))?.filter(|process| process.is_alive()))
}

/// Kills a process and waits for its end.
pub(crate) fn end(process: ProcessId, what: &str) -> Result<(), LabError> {
    process.signal(libc::SIGKILL).doing("kill", what)?;
    if process.wait(DEATH).doing("wait for", what)? {
        return Ok(());
    }
    let what = format!("{what} (pid {}) did not end", process.pid);
    Err(LabError::Late { what, seconds: DEATH.as_secs(), remedy: "look at its state with ps" })
}

/// Runs `f` on a thread in the network namespace of `process`.
pub(crate) fn in_network<T: Send>(process: ProcessId, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let space = File::open(format!("/proc/{}/ns/net", process.pid))?;
    if !process.is_alive() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the machine has just ended"));
    }
    thread::scope(|scope| {
        // The namespace is the thread's alone, and ends with it.
        let thread = scope.spawn(|| {
            setns(&space, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs the program `gridos-lab` until what it starts runs; its standard error is the message of a failure.
pub(crate) fn run_helper(mut command: Command, lock: &Lock, what: String) -> Result<(), LabError> {
    lock.share(&mut command);
    let path = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output().doing("run", path)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("gridos-lab: ");
    let message = if said.is_empty() { output.status.to_string() } else { said.to_owned() };
    // The program names what did not start by itself.
    let message = message.trim_start_matches(&format!("{what} did not start: ")).to_owned();
    Err(LabError::Start { what, message })
}

/// Removes what is in `dir`, and makes it if it is not there.
fn empty(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing("empty", dir),
        _ => {}
    }
    fs::create_dir(dir).doing("make", dir)
}
