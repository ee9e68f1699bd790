//! A lab as a whole: up, open, down.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::LabConfig;
use crate::document::{self, LAB, LabDoc, Phase};
use crate::error::{Doing, LabError};
use crate::lock::{self, Lock};
use crate::machine::{Machine, MachineStatus};
use crate::mountpoint::{self, POINTS};
use crate::slot::Slot;
use crate::tool::{self, Tool};

/// How long all machines together may take to end in order.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A grid on this machine.
///
/// ```no_run
/// use grid_lab::{Lab, LabConfig};
/// let lab = Lab::up(LabConfig::new("demo", "/usr/sbin/gridosd"))?;
/// lab.machine("node2")?.kill()?;
/// lab.down()?;
/// # Ok::<(), grid_lab::LabError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lab {
    root: PathBuf,
    doc: LabDoc,
}

/// Takes a lab down when it goes out of scope: for tests.
#[derive(Debug)]
pub struct LabGuard(Lab);

/// What a lab is doing.
#[derive(Clone, Debug, Serialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// Where it keeps its state.
    pub root: PathBuf,
    /// The bridge on the host.
    pub bridge: String,
    /// The network, as `10.100.7.0/24`.
    pub subnet: String,
    /// The host's own address on it.
    pub host_addr: Ipv4Addr,
    /// False after an interrupted `up` or `down`.
    pub complete: bool,
    /// Each machine, in order.
    pub machines: Vec<MachineStatus>,
}

// === impl Lab ===

impl Lab {
    /// Makes a lab and powers its machines on; returns when each agent has been started.
    ///
    /// If that fails, nothing of it stays.
    pub fn up(config: LabConfig) -> Result<Lab, LabError> {
        config.check()?;
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let agent = program("agent", &config.agent)?;
        let helper = program("helper", &config.helper)?;
        Tool::new("ip").args(["-Version"]).run_alone()?;
        let made_root = !config.root.exists();
        fs::create_dir_all(&config.root).doing("make", &config.root)?;
        let root = config.root.canonicalize().doing("find", &config.root)?;
        let lock = Lock::acquire(&root)?;
        if let Some(found) = document::read::<LabDoc>(&root.join(LAB))? {
            return Err(match found.phase {
                Phase::Up => LabError::Exists { name: found.name, root },
                Phase::ComingUp | Phase::GoingDown => LabError::HalfMade { name: found.name, root },
            });
        }
        if !is_unused(&root)? {
            drop(lock);
            document::remove(&root.join(lock::FILE))?;
            return Err(LabError::Occupied(root));
        }
        let up = |slot| LabDoc {
            name: config.name.clone(),
            phase: Phase::ComingUp,
            nodes: config.nodes,
            slot,
            agent: agent.clone(),
            helper: helper.clone(),
            made_root,
        };
        let mut lab = Lab { doc: up(Slot::candidates(&root).next().ok_or(LabError::NoSlot)?), root };
        match lab.come_up(&lock, &config) {
            Ok(()) => Ok(lab),
            Err(failure) => match lab.go_down(&lock) {
                Ok(()) => Err(failure),
                Err(cleanup) => {
                    Err(LabError::Leftovers { failure: Box::new(failure), cleanup: Box::new(cleanup) })
                }
            },
        }
    }

    /// The lab that is in `root`, also a half-made one.
    pub fn open(root: impl AsRef<Path>) -> Result<Lab, LabError> {
        let missing = || LabError::NotFound(root.as_ref().to_owned());
        let root = root.as_ref().canonicalize().map_err(|_| missing())?;
        let doc = document::read(&root.join(LAB))?.ok_or_else(missing)?;
        Ok(Lab { root, doc })
    }

    /// Ends everything in the lab and removes all that was made for it, the machines' state included.
    pub fn down(&self) -> Result<(), LabError> {
        match Lab::down_at(&self.root) {
            // Taken down by somebody else before.
            Err(LabError::NotFound(_)) => Ok(()),
            outcome => outcome,
        }
    }

    /// Takes down the lab that is in `root`, however little of it an interrupted `up` has made.
    pub fn down_at(root: impl AsRef<Path>) -> Result<(), LabError> {
        let missing = || LabError::NotFound(root.as_ref().to_owned());
        let root = root.as_ref().canonicalize().map_err(|_| missing())?;
        if !root.join(LAB).exists() && !root.join(lock::FILE).exists() {
            return Err(missing());
        }
        let lock = Lock::acquire(&root)?;
        match document::read(&root.join(LAB))? {
            Some(doc) => Lab { root, doc }.go_down(&lock),
            // `up` ended before it recorded anything, so there is nothing else.
            None => {
                document::remove(&root.join(format!("{LAB}.new")))?;
                remove_root(&root, true)
            }
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.doc.name
    }

    /// Where the lab keeps its state.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The host's own address on the lab's network.
    pub fn host_addr(&self) -> Ipv4Addr {
        self.doc.slot.host(254)
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Result<Machine, LabError> {
        self.machines().into_iter().find(|machine| machine.name() == name).ok_or_else(|| {
            LabError::NoMachine {
                lab: self.doc.name.clone(),
                machine: name.to_owned(),
                nodes: self.doc.nodes,
            }
        })
    }

    /// All machines, `node1` first.
    pub fn machines(&self) -> Vec<Machine> {
        (1..=self.doc.nodes).map(|index| Machine::new(self.root.clone(), self.doc.clone(), index)).collect()
    }

    /// What the lab is doing.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        let doc: LabDoc =
            document::read(&self.root.join(LAB))?.ok_or_else(|| LabError::NotFound(self.root.clone()))?;
        Ok(LabStatus {
            name: doc.name.clone(),
            root: self.root.clone(),
            bridge: doc.slot.bridge(),
            subnet: format!("{}/24", doc.slot.host(0)),
            host_addr: self.host_addr(),
            complete: doc.phase == Phase::Up,
            machines: self.machines().iter().map(Machine::status).collect::<Result<_, _>>()?,
        })
    }

    fn come_up(&mut self, lock: &Lock, config: &LabConfig) -> Result<(), LabError> {
        self.claim_slot(lock)?;
        let bridge = self.doc.slot.bridge();
        Tool::ip_batch(&[
            format!("address add {}/24 broadcast + dev {bridge}", self.host_addr()),
            format!("link set dev {bridge} up"),
        ])
        .run(lock)?;
        for machine in self.machines() {
            self.furnish(&machine, config)?;
            machine.boot_locked(lock)?;
        }
        self.try_network()?;
        self.record(Phase::Up)
    }

    /// Looks whether packets pass between two machines: with br_netfilter, a firewall of the host (Docker's,
    /// say) sees frames on bridges, too.
    fn try_network(&self) -> Result<(), LabError> {
        let [one, two, ..] = &self.machines()[..] else { return Ok(()) };
        let limit = Duration::from_secs(5);
        // Nobody listens there; to be refused is an answer.
        let answer = two.with_network(|| TcpStream::connect_timeout(&(one.addr(), 1).into(), limit))?;
        match answer {
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                Err(LabError::NoPassage { bridge: self.doc.slot.bridge(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Takes the first slot whose bridge this lab gets to make.
    fn claim_slot(&mut self, lock: &Lock) -> Result<(), LabError> {
        for slot in Slot::candidates(&self.root) {
            self.doc.slot = slot;
            // Before the bridge is there: if this process dies in between, `down` finds it by its MAC.
            if !tool::link_exists(&slot.bridge()) {
                self.record(Phase::ComingUp)?;
                if slot.claim(lock)? {
                    return Ok(());
                }
            }
        }
        Err(LabError::NoSlot)
    }

    /// What a machine needs before its first boot.
    fn furnish(&self, machine: &Machine, config: &LabConfig) -> Result<(), LabError> {
        let dir = machine.dir();
        for folder in [dir.clone(), dir.join("run"), dir.join("state")] {
            fs::create_dir(&folder).doing("make", &folder)?;
            // Jobs of any uid pass through, whatever the caller's umask is.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).doing("open up", &folder)?;
        }
        let toml = dir.join("gridosd.toml");
        fs::write(&toml, config.agent_toml(&self.doc, machine.index())).doing("write", &toml)?;
        let mut names = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for other in self.machines() {
            names.push_str(&format!("{} {}\n", other.addr(), other.name()));
        }
        let hosts = dir.join("hosts");
        fs::write(&hosts, names).doing("write", &hosts)
    }

    fn record(&mut self, phase: Phase) -> Result<(), LabError> {
        self.doc.phase = phase;
        document::write(&self.root.join(LAB), &self.doc)
    }

    fn go_down(mut self, lock: &Lock) -> Result<(), LabError> {
        self.record(Phase::GoingDown)?;
        let machines = self.machines();
        for machine in &machines {
            machine.ask_to_end()?;
        }
        let deadline = Instant::now() + SHUTDOWN;
        for machine in &machines {
            machine.await_end(deadline.saturating_duration_since(Instant::now()))?;
            machine.kill_locked()?;
        }
        if self.doc.slot.is_ours(lock)? {
            for machine in &machines {
                machine.cable(lock).end_relay()?;
                machine.await_unplugged(lock)?;
            }
            Tool::new("ip").args(["link", "del", "dev", &self.doc.slot.bridge()]).run(lock)?;
        }
        for (path, _) in POINTS {
            mountpoint::release(Path::new(path))?;
        }
        for machine in &machines {
            let dir = machine.dir();
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).doing("remove", dir);
                }
                _ => {}
            }
        }
        // Last, so that an interrupted `down` can be repeated.
        for name in [format!("{LAB}.new"), LAB.to_owned()] {
            document::remove(&self.root.join(name))?;
        }
        remove_root(&self.root, self.doc.made_root)
    }
}

// === impl LabGuard ===

impl LabGuard {
    /// Makes a lab that does not outlive this value.
    pub fn up(config: LabConfig) -> Result<LabGuard, LabError> {
        Lab::up(config).map(LabGuard)
    }
}

impl From<Lab> for LabGuard {
    fn from(lab: Lab) -> LabGuard {
        LabGuard(lab)
    }
}

impl Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("the lab {} was not taken down: {error}", self.0.name());
        }
    }
}

/// The absolute path of a program that can be executed.
fn program(what: &'static str, path: &Path) -> Result<PathBuf, LabError> {
    let refused = || LabError::Program { what, path: path.to_owned() };
    // A bare name is looked up as a shell does.
    let found = if path.components().count() == 1 && !path.is_absolute() {
        std::env::var_os("PATH")
            .and_then(|dirs| {
                std::env::split_paths(&dirs).map(|dir| dir.join(path)).find(|path| path.is_file())
            })
            .ok_or_else(refused)?
    } else {
        path.to_owned()
    };
    let found = found.canonicalize().map_err(|_| refused())?;
    let runs = found.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    if runs { Ok(found) } else { Err(refused()) }
}

/// Does the directory hold nothing but the lock?
fn is_unused(root: &Path) -> Result<bool, LabError> {
    let mut entries = fs::read_dir(root).doing("read", root)?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == lock::FILE)))
}

/// Removes the lock and, if the lab made it, the directory, and the folder of all labs after the last.
fn remove_root(root: &Path, made_root: bool) -> Result<(), LabError> {
    document::remove(&root.join(lock::FILE))?;
    if made_root {
        match fs::remove_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing("remove", root),
            Ok(()) => {
                if let Some(labs) = root.parent().filter(|dir| dir.ends_with("gridos-lab")) {
                    // Other labs may be in it.
                    let _ = fs::remove_dir(labs);
                }
            }
        }
    }
    Ok(())
}
