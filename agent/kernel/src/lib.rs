//! The processes of tasks as the kernel sees them: which there are, their global ids, and what each used.
//!
//! Every process of a task has a [`Gpid`]: the number of the node where it was made, and a serial that this node gives
//! once. It keeps it through moves, restores and restarts of the agent.
//!
//! | | with eBPF (tier `ebpf`) | without (tier `stack`) |
//! | --- | --- | --- |
//! | a process gets its id | when it is forked, before its first instruction | when somebody looks |
//! | those too short to be seen | have ids, and their ends are told | have none |
//! | time, faults, switches | of all threads, ended ones too | time and faults so; switches and waiting of the main thread |
//! | TCP connections | those that are open, of whatever network namespace | none |
//! | bytes and packets by address | of all sockets, closed ones too, where there is a control group of version 2 | none |
//! | across a restart of the agent | the programs go on | a file of this boot's |
//!
//! Where the kernel module is loaded (tier `kernel`), ids are the module's, and every program finds them; all else is told
//! by eBPF as before, or from `/proc`, under ids of a series of their own that nobody sees. Who starts a process enters it
//! in the module, and its children are entered by themselves.
//!
//! [`Processes`] hides which it is, and [`Processes::lacks`] says why if it is the second. The programs' own story is
//! in `kmod/bpf/processes.bpf.c` and `traffic.bpf.c`, the module's in `kmod/README.md`.

mod ebpf;
mod module;
mod pidfd;
mod proc;
mod serials;
mod stack;
mod traffic;
pub mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libgrid::ids::{Gpid, NodeId, TaskId};
use libgrid::process::{Connection, Traffic};

pub use crate::ebpf::{Ended, Health};
use crate::ebpf::{Mark, PROCESS, Programs, Thread};
use crate::module::Module;
pub use crate::module::{Asked, Requests};
use crate::proc::{Stat, Status, TICKS};
use crate::serials::Serials;
use crate::stack::Table;
use crate::traffic::Meter;

/// Where things are kept.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Of this boot: the agent's runtime folder. A bpf file system is mounted below.
    pub runtime: PathBuf,
    /// For good: the agent's state folder.
    pub state: PathBuf,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// A control group of version 2 that all tasks are below, if there is one: packets are counted there.
    pub group: Option<PathBuf>,
}

/// A process of a task, all its threads together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its global id.
    pub gpid: Gpid,
    /// That of the process that made it, if that had one.
    pub parent: Option<Gpid>,
    /// Its pid as the agent sees it.
    pub pid: u32,
    /// Its pid in its task.
    pub inner: u32,
    /// Its name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// When it was made, on `CLOCK_BOOTTIME`.
    pub born: Duration,
    /// Time on processors.
    pub ran: Duration,
    /// Time in run queues, ready to run.
    pub waited: Duration,
    /// Page faults without and with a disk.
    pub faults: [u64; 2],
    /// Context switches by its own will and against it.
    pub switches: [u64; 2],
    /// How many threads it has.
    pub threads: u32,
    /// Resident memory in bytes.
    pub memory: u64,
    /// The TCP connections that it has open; without eBPF none is known.
    pub connections: Vec<Connection>,
    /// What it sent to others and received from them; where packets are not counted, nothing.
    pub traffic: Vec<Traffic>,
}

/// A process of a task, and its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its pid as the agent sees it.
    pub pid: u32,
    /// Its pid in its task.
    pub inner: u32,
    /// Its global id.
    pub gpid: Gpid,
    /// That of the process that made it, if that has one.
    pub parent: Option<Gpid>,
}

/// The processes of this node's tasks.
pub struct Processes {
    proc: PathBuf,
    /// Whose ids are those of processes, where it is there.
    module: Result<Module, String>,
    way: Way,
}

enum Way {
    Ebpf(Box<Ebpf>),
    Stack { table: Table, why: String },
}

struct Ebpf {
    programs: Programs,
    /// Or why packets are not counted.
    meter: Result<Meter, String>,
    /// Whether there may be sockets whose owner is not known.
    unowned: bool,
}

/// What keeps the ids cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the processes of tasks cannot be told: {0}")]
pub struct ProcessesError(#[from] io::Error);

impl Processes {
    /// Begins to follow what this process starts in pid namespaces, by the kernel module and by eBPF, as far as they can be.
    /// With `ebpf`, a sentence why it is not to be used.
    ///
    /// What was used before and is not any more goes, and with it the ids that it gave: two who take blocks of serials
    /// would come to give the same ones.
    pub fn open(folders: &Folders, node: NodeId, ebpf: Result<(), &str>) -> Self {
        let Folders { runtime, state, proc, group } = folders;
        let series = |name: &str| Serials::new(state.join(name));
        let module = match Module::open(series("gpids"), runtime.join("gpids.module"), node) {
            Ok(Some(module)) => Ok(module),
            Ok(None) => Err("the kernel module is not loaded".to_owned()),
            Err(error) => Err(format!("the kernel module cannot be used: {error}")),
        };
        // Each is told by its ids, which are not those of processes where the module gives them.
        let (own, other) = if module.is_ok() { ("figures", "bpf") } else { ("bpf", "figures") };
        let ids = if module.is_ok() { "figures" } else { "gpids" };
        let left = ebpf::unmount(&runtime.join(other));
        let programs = ebpf.map_err(str::to_owned).and_then(|()| {
            let programs = Programs::open(&runtime.join(own), node, series(ids));
            let mut programs = programs.map_err(|error| error.to_string())?;
            let mark = (std::process::id(), Mark::keeper());
            programs.order(&[mark]).map_err(|error| error.to_string())?;
            let meter = Meter::open(&runtime.join(own), group.as_deref());
            let meter = meter.map_err(|error| error.to_string());
            Ok(Ebpf { programs, meter, unowned: true })
        });
        let way = match programs {
            Ok(ebpf) => Way::Ebpf(Box::new(ebpf)),
            Err(why) => {
                let why = match ebpf::unmount(&runtime.join(own)).and(left) {
                    Ok(()) => why,
                    Err(error) => format!("{why}, and programs that are there cannot be removed: {error}"),
                };
                let table = if module.is_ok() { "figures.stack" } else { "gpids" };
                Way::Stack { table: Table::open(runtime.join(table), node, series(ids)), why }
            }
        };
        Self { proc: proc.clone(), module, way }
    }

    /// Why ids are not the kernel module's; nothing if they are.
    pub fn lacks_module(&self) -> Option<&str> {
        self.module.as_ref().err().map(String::as_str)
    }

    /// What programs ask through the module, if it is there.
    pub fn requests(&self) -> Option<Requests> {
        self.module.as_ref().ok().map(Module::requests)
    }

    /// Gives ids to processes of tasks that were there before the module. Without it, [`Processes::list`] does so by itself.
    ///
    /// # Errors
    /// Where the module refuses.
    pub fn register(&self, tasks: &BTreeMap<u32, TaskId>) -> Result<(), ProcessesError> {
        let Ok(module) = &self.module else { return Ok(()) };
        // An init has none.
        let tasks = tasks.iter().map(|(pid, task)| (*pid, *task));
        let tasks = tasks
            .filter(|(pid, _)| module.gpid(*pid).is_none() && self.inner(*pid).is_some_and(|pid| pid != 1));
        Ok(module.register(&tasks.collect())?)
    }

    /// The pid that a process has in its innermost namespace.
    pub fn inner(&self, pid: u32) -> Option<u32> {
        Some(Status::of(pid, &self.proc)?.inner)
    }

    /// The user that a process has.
    pub fn user(&self, pid: u32) -> Option<u32> {
        Some(Status::of(pid, &self.proc)?.uid)
    }

    /// Why there is no eBPF; nothing if there is.
    pub fn lacks(&self) -> Option<&str> {
        match &self.way {
            Way::Ebpf(_) => None,
            Way::Stack { why, .. } => Some(why),
        }
    }

    /// Where an eBPF iterator is pinned that tells the mappings of one process (`iter/task_vma`, as `struct mapping` of
    /// `kmod/bpf/processes.bpf.c`), if there is eBPF.
    pub fn mappings(&self) -> Option<&Path> {
        match &self.way {
            Way::Ebpf(ebpf) => Some(ebpf.programs.mappings()),
            Way::Stack { .. } => None,
        }
    }

    /// Why packets are not counted by address, where there is eBPF; nothing if they are.
    pub fn lacks_traffic(&self) -> Option<&str> {
        match &self.way {
            Way::Ebpf(ebpf) => ebpf.meter.as_ref().err().map(String::as_str),
            Way::Stack { .. } => None,
        }
    }

    /// Follows what these shims start, which may have been there before the programs were.
    ///
    /// # Errors
    /// Where the kernel refuses to be asked.
    pub fn keep(&mut self, shims: &[u32]) -> Result<(), ProcessesError> {
        if let Way::Ebpf(ebpf) = &mut self.way {
            let marks: Vec<_> = shims.iter().map(|pid| (*pid, Mark::keeper())).collect();
            ebpf.programs.order(&marks)?;
        }
        Ok(())
    }

    /// Those of these processes that are there; each gets an id that has none. `pids` are of processes of tasks, or of
    /// their inits, which have none and are left out.
    ///
    /// # Errors
    /// Where the kernel refuses to be asked, or no serial can be written down.
    pub fn list(&mut self, pids: &[u32]) -> Result<Vec<Process>, ProcessesError> {
        let mut all = self.figures(pids)?;
        if let Ok(module) = &self.module {
            let id = |pid| module.gpid(pid);
            all.retain_mut(|process| match id(process.pid) {
                Some(gpid) => {
                    process.gpid = gpid;
                    process.parent = Stat::of(process.pid, &self.proc).and_then(|stat| id(stat.parent));
                    true
                }
                None => false,
            });
        }
        Ok(all)
    }

    fn figures(&mut self, pids: &[u32]) -> Result<Vec<Process>, ProcessesError> {
        match &mut self.way {
            Way::Ebpf(ebpf) => ebpf.list(pids, &self.proc),
            Way::Stack { table, .. } => {
                let known = |pid: &u32| Some((Stat::of(*pid, &self.proc)?, Status::of(*pid, &self.proc)?));
                let (stats, statuses): (Vec<Stat>, Vec<Status>) =
                    pids.iter().filter_map(known).filter(|(_, status)| status.inner != 1).unzip();
                let ids = table.give(&stats, &self.proc)?;
                Ok(stats
                    .iter()
                    .zip(statuses)
                    .zip(ids)
                    .map(|((stat, status), id)| seen(stat, &status, id))
                    .collect())
            }
        }
    }

    /// The ids of those of these processes that are there, as [`Processes::list`] has them, but told in less time.
    ///
    /// # Errors
    /// As of [`Processes::list`].
    pub fn ids(&mut self, pids: &[u32]) -> Result<Vec<Named>, ProcessesError> {
        if let Ok(module) = &self.module {
            let known = |pid: &u32| {
                let parent = Stat::of(*pid, &self.proc)?.parent;
                let (inner, gpid) = (self.inner(*pid)?, module.gpid(*pid)?);
                Some(Named { pid: *pid, inner, gpid, parent: module.gpid(parent) })
            };
            return Ok(pids.iter().filter_map(known).collect());
        }
        match &mut self.way {
            Way::Ebpf(ebpf) => {
                let all = ebpf.named(pids, &self.proc)?.into_values().flatten();
                let leaders = all.filter(|thread| thread.tid == thread.pid);
                let named = |leader: Thread| {
                    let Thread { pid, inner, gpid, parent, .. } = leader;
                    Some(Named { pid, inner, gpid: gpid?, parent })
                };
                Ok(leaders.filter_map(named).collect())
            }
            Way::Stack { .. } => {
                let all = self.list(pids)?.into_iter();
                let named =
                    |Process { pid, inner, gpid, parent, .. }: Process| Named { pid, inner, gpid, parent };
                Ok(all.map(named).collect())
            }
        }
    }

    /// Gives processes of a task that were restored the ids that they had before. `known` tells, for a pid in the task, the id and
    /// that of the parent; one that it does not know gets a new id when somebody looks.
    ///
    /// # Errors
    /// Where the kernel refuses to be asked.
    pub fn restored(
        &mut self,
        task: TaskId,
        pids: &[u32],
        known: impl Fn(u32) -> Option<(Gpid, Option<Gpid>)>,
    ) -> Result<(), ProcessesError> {
        let ids: Vec<(u32, Gpid, Option<Gpid>)> = pids
            .iter()
            .filter_map(|pid| known(self.inner(*pid)?).map(|(gpid, parent)| (*pid, gpid, parent)))
            .collect();
        match &self.module {
            Ok(module) => Ok(ids.into_iter().try_for_each(|(pid, gpid, _)| module.set(pid, gpid, task))?),
            Err(_) => self.give(&ids),
        }
    }

    fn give(&mut self, ids: &[(u32, Gpid, Option<Gpid>)]) -> Result<(), ProcessesError> {
        match &mut self.way {
            Way::Ebpf(ebpf) => {
                let marks: Vec<_> = ids
                    .iter()
                    .map(|(pid, gpid, parent)| (*pid, Mark::process(Some(*gpid), *parent)))
                    .collect();
                ebpf.programs.order(&marks)?;
                // Not now: they stand still, and wait for this.
                ebpf.unowned = true;
            }
            Way::Stack { table, .. } => {
                for (pid, gpid, parent) in ids {
                    if let Some(stat) = Stat::of(*pid, &self.proc) {
                        table.set(&stat, *gpid, *parent, &self.proc)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The pid of a process that is here.
    pub fn find(&self, gpid: Gpid) -> Option<u32> {
        if let Ok(module) = &self.module {
            return module.find(gpid);
        }
        match &self.way {
            Way::Ebpf(ebpf) => ebpf.programs.find(gpid),
            Way::Stack { table, .. } => table.find(gpid, &self.proc),
        }
    }

    /// Sends a signal to a process that is here; false if it is not.
    ///
    /// # Errors
    /// Where the kernel refuses the signal.
    pub fn signal(&self, gpid: Gpid, signal: i32) -> io::Result<bool> {
        let Some(pid) = self.find(gpid) else { return Ok(false) };
        let Some(process) = pidfd::open(pid)? else { return Ok(false) };
        // The pid may be another's by now; that of a descriptor is not.
        if self.find(gpid) != Some(pid) {
            return Ok(false);
        }
        pidfd::signal(&process, signal)
    }

    /// Detaches the programs, which otherwise go on without the agent, and unmounts their file system.
    ///
    /// # Errors
    /// Where it cannot be unmounted.
    pub fn close(&mut self) -> io::Result<()> {
        match &self.way {
            Way::Ebpf(ebpf) => ebpf.programs.close(),
            Way::Stack { .. } => Ok(()),
        }
    }

    /// How many ids are in use here; without eBPF nobody knows.
    pub fn count(&self) -> Option<usize> {
        match &self.way {
            Way::Ebpf(ebpf) => Some(ebpf.programs.count()),
            Way::Stack { .. } => None,
        }
    }

    /// The processes that ended since the last call, and whether serials are left; to be called at least once a second. Without eBPF
    /// nobody knows which ended.
    ///
    /// # Errors
    /// Where no serials can be written down.
    pub fn tick(&mut self) -> Result<Vec<Ended>, ProcessesError> {
        if let Ok(module) = &self.module {
            module.tick()?;
        }
        match &mut self.way {
            Way::Ebpf(ebpf) => {
                ebpf.own_sockets();
                ebpf.programs.refill()?;
                let ended = ebpf.programs.ended();
                // Those are told by ids that nobody sees.
                Ok(if self.module.is_ok() { Vec::new() } else { ended })
            }
            Way::Stack { .. } => Ok(Vec::new()),
        }
    }

    /// How well the programs keep up.
    pub fn health(&self) -> Health {
        match &self.way {
            Way::Ebpf(ebpf) => ebpf.programs.health(),
            Way::Stack { .. } => Health::default(),
        }
    }
}

impl Ebpf {
    /// The threads of these processes, each of which has an id from now on.
    fn named(&mut self, pids: &[u32], proc: &Path) -> Result<BTreeMap<u32, Vec<Thread>>, ProcessesError> {
        let wanted: BTreeSet<u32> = pids.iter().copied().collect();
        let mut threads = self.programs.threads()?;
        let named: BTreeSet<u32> =
            threads.iter().filter(|thread| thread.gpid.is_some()).map(|thread| thread.pid).collect();
        // Those that were there before the programs, or for which there was no serial or no memory.
        let unnamed: Vec<_> = wanted
            .difference(&named)
            .filter(|pid| Status::of(**pid, proc).is_some_and(|status| status.inner != 1))
            .map(|pid| (*pid, Mark::process(None, None)))
            .collect();
        if !unnamed.is_empty() {
            self.programs.refill()?;
            self.unowned = true;
            threads = self.programs.order(&unnamed)?;
        }
        let mut all: BTreeMap<u32, Vec<Thread>> = BTreeMap::new();
        for thread in threads {
            if thread.kind == PROCESS && wanted.contains(&thread.pid) {
                all.entry(thread.pid).or_default().push(thread);
            }
        }
        Ok(all)
    }

    fn list(&mut self, pids: &[u32], proc: &Path) -> Result<Vec<Process>, ProcessesError> {
        let all = self.named(pids, proc)?;
        let mut connections = self.programs.connections()?;
        let mut traffic = self.meter.as_ref().map(Meter::all).unwrap_or_default();
        let whole = |threads: Vec<Thread>| {
            let process = whole(&threads, proc)?;
            let connections = connections.remove(&process.gpid).unwrap_or_default();
            let traffic = traffic.remove(&process.gpid).unwrap_or_default();
            Some(Process { connections, traffic, ..process })
        };
        Ok(all.into_values().filter_map(whole).collect())
    }

    /// Finds whose the sockets are of processes that were there before, or were restored.
    fn own_sockets(&mut self) {
        if self.unowned
            && let Ok(meter) = &self.meter
        {
            self.unowned = meter.find().is_err();
        }
    }
}

/// A process from its threads.
fn whole(threads: &[Thread], proc: &Path) -> Option<Process> {
    let leader = threads.iter().find(|thread| thread.tid == thread.pid)?;
    let sum = |what: fn(&Thread) -> u64| threads.iter().map(what).sum::<u64>();
    Some(Process {
        gpid: leader.gpid?,
        parent: leader.parent,
        pid: leader.pid,
        inner: leader.inner,
        name: leader.name.clone(),
        born: Duration::from_nanos(leader.born),
        ran: Duration::from_nanos(sum(|thread| thread.ran)),
        waited: Duration::from_nanos(sum(|thread| thread.waited)),
        faults: [sum(|thread| thread.minor), sum(|thread| thread.major)],
        switches: [sum(|thread| thread.voluntary), sum(|thread| thread.involuntary)],
        threads: threads.len() as u32,
        memory: Stat::of(leader.pid, proc).map_or(0, |stat| bytes(stat.resident)),
        connections: Vec::new(),
        traffic: Vec::new(),
    })
}

fn seen(stat: &Stat, status: &Status, (gpid, parent): (Gpid, Option<Gpid>)) -> Process {
    Process {
        gpid,
        parent,
        pid: stat.pid,
        inner: status.inner,
        name: stat.name.clone(),
        born: Duration::from_millis(stat.started * 1000 / TICKS),
        ran: stat.ran,
        waited: status.waited,
        faults: [stat.minor, stat.major],
        switches: [status.voluntary, status.involuntary],
        threads: stat.threads,
        memory: bytes(stat.resident),
        connections: Vec::new(),
        traffic: Vec::new(),
    }
}

fn bytes(pages: u64) -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    pages * size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}
