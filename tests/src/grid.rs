//! A grid in a lab.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::Duration;

use grid_lab::{Lab, LabConfig, LabGuard, Machine};
use libgrid::GridError;
use libgrid::blocking;
use libgrid::control::{AgentInfo, Kind, NodeState, NodeStatus, Reply, Request, Streams, Submission};
use libgrid::ids::{JobId, NodeId, Selector};
use libgrid::spec::JobSpec;
use libgrid::status::{JobStatus, TaskState};
use libgrid::units::Span;
use tempfile::TempDir;

use crate::programs::program;
use crate::run::{self, Run, Running};
use crate::traces::{self, Traces};
use crate::until::{PATIENCE, until, until_some, until_within};
use crate::witness::Witness;

/// Where grids lie: not in `/tmp`, as tasks have one of their own.
const PLACE: &str = "/var/tmp";

/// How the folder of a grid is called, before the number of the test process.
const PREFIX: &str = "gridtest-";

/// Nodes in a lab, and the folder in which all of it lies. It goes down with this value.
#[derive(Debug)]
pub struct Grid {
    // In the order of their ends.
    lab: LabGuard,
    dir: TempDir,
    name: String,
}

/// A grid to be made.
#[derive(Clone, Debug)]
pub struct GridConfig {
    /// For its name: the test's.
    pub test: &'static str,
    /// How many nodes.
    pub nodes: u32,
    /// Cores that each node lends.
    pub cores: f64,
    /// Memory that each node lends.
    pub memory: &'static str,
    /// More lines for each agent's configuration.
    pub extra: &'static str,
    /// How many of the nodes are in the VO, from the first on.
    pub members: u32,
}

/// A grid that the tests of a suite share while any of them runs.
#[derive(Debug)]
pub struct Shared(Mutex<Weak<Grid>>);

// === impl GridConfig ===

impl GridConfig {
    /// `nodes` of 8 cores and 8 GB each, whatever this machine has: what tests of limits need is set by them.
    pub fn new(test: &'static str, nodes: u32) -> GridConfig {
        GridConfig { test, nodes, cores: 8.0, memory: "8G", extra: "", members: nodes }
    }

    /// Makes it.
    pub fn up(self) -> Grid {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let short: String = self.test.chars().filter(char::is_ascii_lowercase).take(12).collect();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{short}-{}-{serial}", std::process::id());
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(PLACE).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let lab = LabGuard::up(LabConfig {
            nodes: self.nodes,
            root: dir.path().join("lab"),
            helper: program("gridos-lab"),
            cores: Some(self.cores),
            memory: Some(self.memory.to_owned()),
            extra_config: self.extra.to_owned(),
            ..LabConfig::new(name.as_str(), program("gridosd"))
        });
        let grid = Grid { lab: lab.unwrap(), dir, name };
        if self.members > 0 {
            grid.enter(self.members);
        }
        grid
    }
}

// === impl Shared ===

impl Shared {
    /// None yet.
    pub const fn new() -> Shared {
        Shared(Mutex::new(Weak::new()))
    }

    /// The grid that others use just now, or else a new one.
    pub fn get(&self, make: impl FnOnce() -> Grid) -> Arc<Grid> {
        // A grid that could not be made leaves nothing behind in here.
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(grid) = slot.upgrade() {
            return grid;
        }
        let grid = Arc::new(make());
        *slot = Arc::downgrade(&grid);
        grid
    }
}

impl Default for Shared {
    fn default() -> Shared {
        Shared::new()
    }
}

// === impl Grid ===

impl Grid {
    /// A grid of `nodes` nodes in one VO.
    pub fn up(test: &'static str, nodes: u32) -> Grid {
        GridConfig::new(test, nodes).up()
    }

    /// Founds a VO on node 1 and lets the nodes up to `members` join it.
    pub fn enter(&self, members: u32) {
        let name = "vo-of-test".to_owned();
        self.client(1).ask(&Request::CreateVo { name }).unwrap();
        for index in 2..=members {
            let token = self.token();
            self.client(index).ask(&Request::Join { token }).unwrap();
        }
        for index in 1..=members {
            self.until_up(index, members as usize);
        }
    }

    /// A token from the founder.
    pub fn token(&self) -> String {
        let lifetime = Span(Duration::from_secs(3600));
        match self.client(1).ask(&Request::CreateToken { lifetime }).unwrap() {
            Reply::Token(token) => token,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until node `index` sees `count` nodes up.
    pub fn until_up(&self, index: u32, count: usize) {
        let begun = std::time::Instant::now();
        until(&format!("node{index} sees {count} nodes"), || {
            let nodes = self.nodes_at(index);
            let states: Vec<_> = nodes.iter().map(|node| (&node.info.name, node.state)).collect();
            assert!(begun.elapsed() < PATIENCE, "node{index} sees {states:?}, not {count} nodes up");
            nodes.iter().filter(|node| node.state == NodeState::Up).count() == count
        });
    }

    /// The nodes as node `index` sees them; none while it does not answer.
    pub fn nodes_at(&self, index: u32) -> Vec<NodeStatus> {
        let Ok(mut grid) = blocking::Grid::connect_to(self.machine(index).control_socket()) else {
            return Vec::new();
        };
        match grid.ask(&Request::Nodes) {
            Ok(Reply::Nodes(nodes)) => nodes,
            _ => Vec::new(),
        }
    }

    /// How many machines there are.
    pub fn nodes(&self) -> u32 {
        self.lab.machines().len() as u32
    }

    /// The machine `node1`, `node2` and so on.
    pub fn machine(&self, index: u32) -> Machine {
        self.lab.machine(&format!("node{index}")).unwrap()
    }

    /// The folder of this grid: on the host, outside `/tmp`, the same seen from every node.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program `name` of this workspace where tasks may execute it: nobody but root enters a checkout in `/root`.
    pub fn lend(&self, name: &str) -> PathBuf {
        let lent = self.dir().join(name);
        if !lent.exists() {
            let program = program(name);
            if fs::hard_link(&program, &lent).is_err() {
                // Of another disk. Under a name of its own: a program that is being written cannot be executed.
                let part = self.dir().join(format!("{name}.part"));
                fs::copy(program, &part).unwrap();
                fs::rename(part, &lent).unwrap();
            }
        }
        lent
    }

    /// A new folder in it that belongs to `uid`.
    pub fn folder(&self, name: &str, uid: u32) -> PathBuf {
        let folder = self.dir().join(name);
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(uid), Some(uid)).unwrap();
        folder
    }

    /// A new witness.
    pub fn witness(&self, name: &str) -> Witness {
        Witness::new(self.dir(), name)
    }

    /// What this grid leaves on the host.
    pub fn traces(&self) -> Traces {
        Traces::new(&self.name, self.lab.root(), self.lab.status().unwrap().bridge)
    }

    /// A connection to the agent of a node, as soon as it answers.
    pub fn client(&self, index: u32) -> blocking::Grid {
        let socket = self.machine(index).control_socket();
        until_some(&format!("the agent of node{index} answers"), || blocking::Grid::connect_to(&socket).ok())
    }

    /// What the agent of a node says of itself.
    pub fn agent(&self, index: u32) -> AgentInfo {
        match self.client(index).ask(&Request::Agent).unwrap() {
            Reply::Agent(info) => info,
            other => panic!("{other:?}"),
        }
    }

    /// Submits from a node, as root, with results to a folder.
    pub fn submit_to(&self, index: u32, spec: JobSpec, folder: &Path) -> JobId {
        match self.client(index).ask(&Request::Submit(Box::new(Submission::new(spec, folder)))).unwrap() {
            Reply::Submitted(submitted) => submitted.job,
            other => panic!("{other:?}"),
        }
    }

    /// Submits from a node, as root.
    pub fn submit(&self, index: u32, spec: JobSpec) -> JobId {
        self.submit_to(index, spec, self.dir())
    }

    /// A job's state, all tasks of its first page.
    pub fn job(&self, index: u32, job: JobId) -> JobStatus {
        self.client(index).job(Selector::Job(job)).unwrap()
    }

    /// A job's state; `None` while the agent cannot be asked, as it is just being killed.
    pub fn try_job(&self, index: u32, job: JobId) -> Option<JobStatus> {
        let mut grid = blocking::Grid::connect_to(self.machine(index).control_socket()).ok()?;
        grid.job(Selector::Job(job)).ok()
    }

    /// Waits until a job is done. Agents may come and go meanwhile.
    pub fn wait(&self, index: u32, job: JobId) -> JobStatus {
        self.wait_within(index, job, PATIENCE)
    }

    /// Waits until a job is done, for at most `limit`.
    pub fn wait_within(&self, index: u32, job: JobId, limit: Duration) -> JobStatus {
        let mut last = None;
        let begun = std::time::Instant::now();
        until_within(&format!("{job} is done"), limit + Duration::from_secs(1), || {
            last = self.try_job(index, job).or(last.take());
            assert!(begun.elapsed() < limit, "{job} is not done within {limit:?}: {}", unfinished(&last));
            last.as_ref().is_some_and(|status| status.summary.is_done())
        });
        last.unwrap()
    }

    /// Waits until every task of a job runs.
    pub fn until_running(&self, index: u32, job: JobId) {
        let mut last = None;
        let begun = std::time::Instant::now();
        until(&format!("all of {job} runs"), || {
            last = self.try_job(index, job).or(last.take());
            let ended = last.as_ref().and_then(|s| s.tasks.iter().find(|task| task.outcome.is_some()));
            assert!(ended.is_none(), "{job} was to run on: {ended:?}");
            assert!(begun.elapsed() < PATIENCE, "not all of {job} runs: {}", unfinished(&last));
            last.as_ref().is_some_and(|s| s.tasks.iter().all(|task| task.state == TaskState::Running))
        });
    }

    /// Where the tasks of a job are or were.
    pub fn places(&self, index: u32, job: JobId) -> Vec<Option<NodeId>> {
        self.job(index, job).tasks.iter().map(|task| task.node).collect()
    }

    /// What one task printed, both streams, as text; of one whose node does not answer, nothing.
    pub fn logs(&self, index: u32, job: JobId, task: u32) -> String {
        let mut text = Vec::new();
        let sink = |_, _, bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        match self.client(index).logs(job.task(task), Streams::Both, false, sink) {
            Err(GridError::Refused(failure)) if failure.kind == Kind::Unavailable => (),
            told => told.unwrap(),
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs `gridctl` on a node as root, in the grid's folder.
    pub fn gridctl<S: AsRef<OsStr>>(&self, index: u32, args: impl IntoIterator<Item = S>) -> Run {
        self.gridctl_as(index, 0, self.dir(), args)
    }

    /// Runs `gridctl` on a node as this user in this folder.
    pub fn gridctl_as<S: AsRef<OsStr>>(
        &self,
        index: u32,
        uid: u32,
        folder: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Run {
        run::run(&mut self.command(index, uid, folder, args), b"")
    }

    /// Runs `gridctl` on a node as root with this input.
    pub fn gridctl_with<S: AsRef<OsStr>>(
        &self,
        index: u32,
        input: &[u8],
        args: impl IntoIterator<Item = S>,
    ) -> Run {
        run::run(&mut self.command(index, 0, self.dir(), args), input)
    }

    /// Runs another program on a node as this user.
    pub fn run_as(&self, index: u32, uid: u32, program: &Path, args: &[&str]) -> Run {
        run::run(run::command(&self.machine(index), uid, program).args(args), b"")
    }

    /// Starts `gridctl` on a node as root.
    pub fn start<S: AsRef<OsStr>>(&self, index: u32, args: impl IntoIterator<Item = S>) -> Running {
        Running::start(&mut self.command(index, 0, self.dir(), args))
    }

    /// A command that runs `gridctl` on a node.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        index: u32,
        uid: u32,
        folder: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let gridctl = if uid == 0 { program("gridctl") } else { self.lend("gridctl") };
        let mut command = run::command(&self.machine(index), uid, &gridctl);
        command.args(args).current_dir(folder);
        command
    }

    /// The pids on the host of the agents that run.
    pub fn agents(&self) -> Vec<Option<i32>> {
        self.lab.machines().iter().map(|machine| machine.agent_pid().unwrap()).collect()
    }

    /// Kills (SIGKILL) the agent of a node; its machine starts it again.
    pub fn kill_agent(&self, index: u32) {
        self.machine(index).kill_agent().unwrap();
    }

    /// The processes of tasks on a node, as the host numbers them: all in control groups of its tasks.
    pub fn task_processes(&self, index: u32) -> Vec<i32> {
        let group = format!("/gridos-{}-node{index}/", self.name);
        let inside = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group))
        };
        traces::processes().filter(inside).collect()
    }

    /// What a node keeps of tasks: fetched and spooled inputs, and everything in the folders of tasks. Places that
    /// wait for the next task (a folder `sN` with empty `work` and `tmp`, and its control group) are not counted.
    pub fn task_files(&self, index: u32) -> Vec<PathBuf> {
        let state = self.machine(index).dir().join("state");
        let mut found: Vec<_> =
            ["inputs", "spool"].iter().flat_map(|folder| entries(&state.join(folder))).collect();
        for place in entries(&state.join("tasks")) {
            for part in entries(&place) {
                let is_frame = part.ends_with("work") || part.ends_with("tmp");
                found.extend(if is_frame { entries(&part) } else { vec![part] });
            }
        }
        found
    }

    /// The control groups of tasks on a node, those that wait for the next task included.
    pub fn task_cgroups(&self, index: u32) -> Vec<PathBuf> {
        let parents = traces::cgroups_named(&format!("gridos-{}-node{index}", self.name));
        let children = parents.iter().flat_map(|parent| entries(Path::new(parent)));
        children.filter(|path| path.is_dir()).collect()
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Drop for Grid {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // Gone in a moment: what the agents had to say may tell why the test failed.
        for machine in self.lab.machines() {
            let log = fs::read_to_string(machine.dir().join("agent.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            eprintln!("=== the agent of {} said last:\n{}", machine.name(), last.join("\n"));
        }
    }
}

/// Takes down what test processes left that were killed.
fn sweep() {
    for entry in fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // What cannot be taken down stays for people to look at.
            if Lab::down_at(entry.path().join("lab")).is_ok() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The tasks of a job that are not done, for a message.
fn unfinished(status: &Option<JobStatus>) -> String {
    let Some(status) = status else { return "its home does not answer".to_owned() };
    let unfinished: Vec<_> = status.tasks.iter().filter(|task| task.outcome.is_none()).take(5).collect();
    format!("{:?}, why {:?}, such as {unfinished:#?}", status.summary.counts, status.summary.why)
}
