//! The processes of this node's tasks: which there are, and their global ids ([`grid_kernel`]).
//!
//! | who | asks for |
//! | --- | --- |
//! | a job's home | the processes of runs here, and to send one of them a signal |
//! | any node | which task a process here is part of |
//! | [`crate::checkpoint`] | the ids that a checkpoint has to keep |
//! | the runner | that restored processes get their ids back, before they run |

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use grid_kernel::{Ended, Folders, Health, Requests};
use grid_qos::{CgroupError, Cgroups};
use libgrid::control::{Failure, Kind};
use libgrid::ids::{Gpid, NodeId, Run, TaskId};
use libgrid::process::{Connection, MOST_ADDRESSES, MOST_CONNECTIONS, Process, Traffic};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::config::Config;
use crate::grid::blocking;
use crate::runner::Query;

/// How often the ends of processes are taken from the kernel's ring, which holds some thousands.
const PACE: Duration = Duration::from_millis(500);

/// How many ended processes are remembered, so that whoever asks for one is told what became of it.
const REMEMBERED: usize = 4096;

/// The most processes in one answer, and the most connections, and addresses, in them, so that it fits a frame.
pub(crate) const MOST: usize = 5_000;
const MOST_TOLD: usize = 10_000;

/// A process in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its pid in its task, which it keeps.
    pub(crate) pid: u32,
    pub(crate) gpid: Gpid,
    pub(crate) parent: Option<Gpid>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fate {
    /// How long ago: one that moved ended on the node that it left, too, but before.
    pub(crate) ago: Duration,
    pub(crate) sentence: String,
}

/// A run that is here, and the name of its control group.
pub(crate) type Place = (Run, String);

#[derive(Clone)]
pub(crate) struct Processes(Arc<Inner>);

struct Inner {
    me: NodeId,
    config: Arc<Config>,
    has_module: bool,
    kernel: Mutex<grid_kernel::Processes>,
    ended: Mutex<VecDeque<Ended>>,
}

impl Processes {
    /// Begins to follow what this agent starts.
    pub(crate) async fn start(config: &Arc<Config>, me: NodeId) -> Self {
        let folders = Folders {
            runtime: config.runtime_dir.clone(),
            state: config.state_dir.clone(),
            proc: "/proc".into(),
            group: Cgroups::open(&config.cgroup_root, &config.cgroup_parent)
                .ok()
                .and_then(|groups| groups.unified(&config.cgroup_root)),
        };
        let ebpf = config.ebpf.then_some(()).ok_or("its owner has switched it off (ebpf in gridosd.toml)");
        let kernel = blocking(move || grid_kernel::Processes::open(&folders, me, ebpf)).await;
        if let Some(why) = kernel.lacks() {
            info!(why, "no_ebpf");
        }
        if let Some(why) = kernel.lacks_traffic() {
            info!(why, "packets_not_counted");
        }
        match kernel.lacks_module() {
            Some(why) => info!(why, "no_module"),
            None => info!("module_attached"),
        }
        let inner = Inner {
            me,
            config: config.clone(),
            has_module: kernel.lacks_module().is_none(),
            kernel: Mutex::new(kernel),
            ended: Mutex::default(),
        };
        let processes = Self(Arc::new(inner));
        tokio::spawn(processes.clone().follow());
        processes
    }

    /// Why there is no eBPF; nothing if there is.
    pub(crate) fn lacks(&self) -> Option<String> {
        self.kernel().lacks().map(Into::into)
    }

    /// Why packets are not counted, where there is eBPF; nothing if they are.
    pub(crate) fn lacks_traffic(&self) -> Option<String> {
        self.kernel().lacks_traffic().map(Into::into)
    }

    /// Where the kernel tells the mappings of a process by eBPF, if it does.
    pub(crate) fn mappings(&self) -> Option<PathBuf> {
        self.kernel().mappings().map(Into::into)
    }

    /// Whether ids are the kernel module's.
    pub(crate) fn has_module(&self) -> bool {
        self.0.has_module
    }

    /// Why they are not.
    pub(crate) fn lacks_module(&self) -> Option<String> {
        self.kernel().lacks_module().map(Into::into)
    }

    /// What programs ask through the module, if it is there.
    pub(crate) fn requests(&self) -> Option<Requests> {
        self.kernel().requests()
    }

    pub(crate) fn health(&self) -> Health {
        self.kernel().health()
    }

    /// Follows what the shims of an earlier agent start.
    pub(crate) fn keep(&self, shims: &[u32]) {
        if let Err(error) = self.kernel().keep(shims) {
            warn!(%error, "the processes of tasks that were here before are not followed");
        }
    }

    /// The agent stops: without tasks here, nothing has to go on.
    pub(crate) fn stop(&self, tasks: usize) {
        if tasks == 0
            && let Err(error) = self.kernel().close()
        {
            warn!(%error, "the eBPF programs stay");
        }
    }

    async fn follow(self) {
        loop {
            tokio::time::sleep(PACE).await;
            match self.kernel().tick() {
                Ok(news) => {
                    let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.extend(news);
                    let surplus = ended.len().saturating_sub(REMEMBERED);
                    ended.drain(..surplus);
                }
                Err(error) => warn!(%error, "new processes get no ids: make room in the state folder"),
            }
        }
    }

    /// The processes of these runs.
    pub(crate) async fn list(&self, places: Vec<Place>) -> Vec<Process> {
        let this = self.clone();
        blocking(move || this.look(&places)).await
    }

    fn look(&self, places: &[Place]) -> Vec<Process> {
        let tasks = self.tasks(places);
        let pids: Vec<u32> = tasks.keys().copied().collect();
        let mut kernel = self.kernel();
        let listed = kernel.register(&tasks).and_then(|()| kernel.list(&pids));
        drop(kernel);
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                warn!(%error, "processes cannot be listed");
                return Vec::new();
            }
        };
        let now = (crate::core::now().mono, SystemTime::now());
        let mut all: Vec<Process> = listed
            .into_iter()
            .filter_map(|process| Some((*tasks.get(&process.pid)?, process)))
            .map(|(task, process)| self.shown(task, process, now))
            .collect();
        all.sort_by_key(|process| (process.task, process.gpid));
        bound(&mut all);
        all
    }

    fn shown(
        &self,
        task: TaskId,
        process: grid_kernel::Process,
        (boot, wall): (Duration, SystemTime),
    ) -> Process {
        let age = boot.saturating_sub(process.born);
        let mut connections = process.connections;
        let mut traffic = process.traffic;
        let sum = |of_connection: fn(&Connection) -> u64, of_traffic: fn(&Traffic) -> u64| match &traffic[..]
        {
            [] => connections.iter().map(of_connection).sum(),
            traffic => traffic.iter().map(of_traffic).sum(),
        };
        let (sent, received) =
            (sum(|one| one.sent, |one| one.sent), sum(|one| one.received, |one| one.received));
        connections.sort_by_key(|connection| Reverse(connection.sent + connection.received));
        connections.truncate(MOST_CONNECTIONS);
        traffic.sort_by_key(|traffic| Reverse(traffic.sent + traffic.received));
        traffic.truncate(MOST_ADDRESSES);
        Process {
            gpid: process.gpid,
            parent: process.parent,
            task,
            node: self.0.me,
            pid: process.inner,
            name: process.name,
            started: wall.checked_sub(age).unwrap_or(wall),
            cpu: process.ran,
            waited: process.waited,
            minor_faults: process.faults[0],
            major_faults: process.faults[1],
            voluntary_switches: process.switches[0],
            involuntary_switches: process.switches[1],
            threads: process.threads,
            memory: process.memory,
            sent,
            received,
            connections,
            traffic,
        }
    }

    /// Which of these runs a process is part of.
    pub(crate) async fn find(&self, gpid: Gpid, places: Vec<Place>) -> Option<Run> {
        self.locate(gpid, places).await.map(|(run, _)| run)
    }

    /// The same, and its pid.
    pub(crate) async fn locate(&self, gpid: Gpid, places: Vec<Place>) -> Option<(Run, u32)> {
        let this = self.clone();
        blocking(move || {
            let pid = this.kernel().find(gpid)?;
            Some((this.run_at(pid, places)?, pid))
        })
        .await
    }

    /// The run that a process is part of, by its pid.
    pub(crate) async fn run_of(&self, pid: u32, places: Vec<Place>) -> Option<Run> {
        let this = self.clone();
        blocking(move || this.run_at(pid, places)).await
    }

    /// The same, and its id.
    pub(crate) async fn of_pid(&self, pid: u32, places: Vec<Place>) -> Option<(Run, Gpid)> {
        let this = self.clone();
        blocking(move || {
            let run = this.run_at(pid, places)?;
            let mut kernel = this.kernel();
            kernel.register(&BTreeMap::from([(pid, run.task)])).ok()?;
            Some((run, kernel.ids(&[pid]).ok()?.pop()?.gpid))
        })
        .await
    }

    fn run_at(&self, pid: u32, places: Vec<Place>) -> Option<Run> {
        let groups = self.groups().ok()?;
        let holds = |name: &str| groups.group(name).processes().is_ok_and(|pids| pids.contains(&pid));
        places.into_iter().find(|(_, name)| holds(name)).map(|(run, _)| run)
    }

    /// The pids of the processes of these runs, their ids, and their tasks.
    pub(crate) async fn ids(&self, places: Vec<Place>) -> Vec<(u32, Gpid, TaskId)> {
        let this = self.clone();
        blocking(move || {
            let tasks = this.tasks(&places);
            let pids: Vec<u32> = tasks.keys().copied().collect();
            let mut kernel = this.kernel();
            let ids = kernel.register(&tasks).and_then(|()| kernel.ids(&pids)).unwrap_or_default();
            ids.into_iter().filter_map(|one| Some((one.pid, one.gpid, *tasks.get(&one.pid)?))).collect()
        })
        .await
    }

    /// The pid of a process in its task.
    pub(crate) fn inner(&self, pid: u32) -> Option<u32> {
        self.kernel().inner(pid)
    }

    /// The user that a process has.
    pub(crate) fn user(&self, pid: u32) -> Option<u32> {
        self.kernel().user(pid)
    }

    /// The tasks of the processes of these runs.
    fn tasks(&self, places: &[Place]) -> BTreeMap<u32, TaskId> {
        let Ok(groups) = self.groups() else { return BTreeMap::new() };
        let pids = |name: &str| groups.group(name).processes().unwrap_or_default();
        places.iter().flat_map(|(run, name)| pids(name).into_iter().map(|pid| (pid, run.task))).collect()
    }

    /// What became of a process that was here, as far as that is remembered.
    pub(crate) fn fate(&self, gpid: Gpid) -> Option<Fate> {
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let Ended { name, at, status, .. } = ended.iter().rev().find(|ended| ended.gpid == gpid)?;
        let ago = crate::core::now().mono.saturating_sub(Duration::from_nanos(*at));
        let how = match status & 0x7f {
            0 => format!("with status {}", status >> 8 & 0xff),
            signal => format!("by signal {signal}"),
        };
        let sentence = format!("{gpid}, {name}, ended {how} {} s ago", ago.as_secs());
        Some(Fate { ago, sentence })
    }

    /// Sends a signal to a process of a run.
    pub(crate) async fn signal(&self, gpid: Gpid, place: Place, signal: i32) -> Result<(), Failure> {
        let run = place.0;
        let missing = move || Failure::new(Kind::Missing, format!("{gpid} is not in {} any more", run.task));
        if self.find(gpid, vec![place]).await.is_none() {
            return Err(missing());
        }
        match self.kernel().signal(gpid, signal) {
            Ok(true) => Ok(()),
            Ok(false) => Err(missing()),
            Err(error) => {
                Err(Failure::new(Kind::Internal, format!("{gpid} cannot get signal {signal}: {error}")))
            }
        }
    }

    /// The ids of the processes in a control group, for a checkpoint.
    pub(crate) fn identities(&self, task: TaskId, group: &str) -> Vec<Identity> {
        let pids = self.groups().and_then(|groups| groups.group(group).processes()).unwrap_or_default();
        let tasks = pids.iter().map(|pid| (*pid, task)).collect();
        let mut kernel = self.kernel();
        let ids = kernel.register(&tasks).and_then(|()| kernel.ids(&pids)).unwrap_or_default();
        ids.into_iter().map(|one| Identity { pid: one.inner, gpid: one.gpid, parent: one.parent }).collect()
    }

    /// Gives restored processes their ids back.
    pub(crate) fn restore(&self, task: TaskId, group: &str, identities: &[Identity]) {
        let restored = self.groups().and_then(|groups| groups.group(group).processes());
        let given = restored.map_err(|error| error.to_string()).and_then(|pids| {
            let identities: BTreeMap<u32, &Identity> =
                identities.iter().map(|identity| (identity.pid, identity)).collect();
            self.kernel()
                .restored(task, &pids, |inner| {
                    identities.get(&inner).map(|identity| (identity.gpid, identity.parent))
                })
                .map_err(|error| error.to_string())
        });
        if let Err(error) = given {
            warn!(group, error, "restored processes get new ids");
        }
    }

    fn groups(&self) -> Result<Cgroups, CgroupError> {
        Cgroups::open(&self.0.config.cgroup_root, &self.0.config.cgroup_parent)
    }

    fn kernel(&self) -> MutexGuard<'_, grid_kernel::Processes> {
        self.0.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves out what would not fit a frame.
pub(crate) fn bound(processes: &mut Vec<Process>) {
    processes.truncate(MOST);
    let mut left = [MOST_TOLD; 2];
    for process in processes {
        process.connections.truncate(left[0]);
        process.traffic.truncate(left[1]);
        left[0] -= process.connections.len();
        left[1] -= process.traffic.len();
    }
}

/// The runs here whose processes can be told, of these or of all.
pub(crate) async fn places(queries: &mpsc::UnboundedSender<Query>, runs: Option<Vec<Run>>) -> Vec<Place> {
    let (reply, answer) = oneshot::channel();
    match queries.send(Query::Places { runs, reply }) {
        Ok(()) => answer.await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
