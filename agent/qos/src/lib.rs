//! Limits and accounting of a task by control groups.
//!
//! Every task has a group of its own, named after it, below one parent group of this agent. A group limits
//! processor time, memory and the number of processes, counts what is used, and can be frozen.
//!
//! Two kernels' interfaces stand behind [`Cgroups`]: version 2 (`v2`) where it has the controllers, else
//! version 1 (`v1`), where each controller is a tree of its own. See the kernel's
//! `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/`.
//!
//! Limits, the same under both:
//!
//! | what | how |
//! | --- | --- |
//! | share under contention | weight in proportion to the cores asked for |
//! | most processor time | the cores asked for, rounded up to whole ones |
//! | memory | hard limit; no swap beyond it |
//! | processes and threads | hard limit |
//!
//! **Joining.** A process joins by writing `0` to the files of [`Group::entrances`] itself, before it drops
//! its rights. With version 1 the kernel moves a single-threaded writer to `tasks` in well under a millisecond,
//! while moving a whole process through `cgroup.procs` waits for a grace period of 12 to 27 ms.
//!
//! **Where.** A parent group directly below the root, made here; or, where an init system owns the tree, one inside a
//! group that it has delegated (systemd's `Delegate=`, version 2 only):
//!
//! ```text
//!   system.slice/gridos-tasks.service    delegated: no process may stay in it
//!   ├─ shims                             those who look after tasks
//!   └─ tasks                             the parent group
//!      └─ s0, s1 ...
//! ```
//!
//! Every path is below a root given by the caller, so that a folder can stand in for the file system in tests.
#![forbid(unsafe_code)]

mod file;
mod v1;
mod v2;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use file::CgroupError;

/// Where control groups are mounted on every current distribution.
pub const ROOT: &str = "/sys/fs/cgroup";

/// What a task may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu: u32,
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// What a group used so far; zero where the kernel does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// The most memory at once, in bytes, page cache included.
    pub peak_memory: u64,
    /// Processor time in microseconds, if the group counts it.
    pub cpu_micros: Option<u64>,
    /// Bytes read from storage.
    pub read: u64,
    /// Bytes written to storage.
    pub written: u64,
    /// Processes that the kernel ended because the group was over its memory limit.
    pub oom_kills: u64,
}

/// The groups of this agent.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: Version,
    parent: String,
}

/// One task's group.
#[derive(Debug)]
pub struct Group {
    version: Version,
    /// The folders of the group: one a controller in version 1, one alone in version 2.
    folders: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
enum Version {
    V1(v1::Trees),
    V2(PathBuf),
}

// === impl Cgroups ===

impl Cgroups {
    /// Finds which version has the controllers below `root`, and makes the parent group.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] where neither version has cpu, memory and pids; [`CgroupError::Io`] where the
    /// parent group cannot be made.
    pub fn open(root: &Path, parent: &str) -> Result<Self, CgroupError> {
        let version = if v2::has_controllers(root) {
            v2::prepare(root, parent)?;
            Version::V2(root.to_owned())
        } else {
            let trees = v1::Trees::find(root)?;
            trees.prepare(parent)?;
            Version::V1(trees)
        };
        Ok(Self { version, parent: parent.to_owned() })
    }

    /// The parent group to open in a group that the init system has delegated to this agent, named by its path below
    /// `root`. None where it is not there, or where version 1 is in use.
    pub fn delegated(root: &Path, group: &str) -> Option<String> {
        v2::delegated(root, group)
    }

    /// Moves this process, which looks after tasks, out of the agent's group to where the tasks are: what is done to
    /// all processes of the agent's service is not meant for it. Does nothing where no group was delegated.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn leave_agent(&self) -> Result<(), CgroupError> {
        match &self.version {
            Version::V1(_) => Ok(()),
            Version::V2(root) => v2::leave_agent(root, &self.parent),
        }
    }

    /// A group of version 2 that all tasks are below, for what that version alone has: their parent, or, where version 1 has the
    /// controllers, the root of the tree that systemd mounts beside those, if it is there.
    pub fn unified(&self, root: &Path) -> Option<PathBuf> {
        let group = match &self.version {
            Version::V1(_) => root.join("unified"),
            Version::V2(root) => root.join(&self.parent),
        };
        group.join("cgroup.procs").exists().then_some(group)
    }

    /// `1` or `2`.
    pub fn version(&self) -> u8 {
        match self.version {
            Version::V1(_) => 1,
            Version::V2(_) => 2,
        }
    }

    /// Makes a group with these limits. One left over under this name is used again.
    ///
    /// # Errors
    /// [`CgroupError::Io`]; nothing is left behind then.
    pub fn create(&self, name: &str, limits: Limits) -> Result<Group, CgroupError> {
        let group = self.group(name);
        let made = match &self.version {
            Version::V1(_) => v1::create(&group.folders, limits),
            Version::V2(_) => v2::create(&group.folders[0], limits),
        };
        if let Err(error) = made {
            // The first error is the one to tell.
            let _ = group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// A group that [`Group::is_as_new`] said can be used again, with the limits that it has.
    ///
    /// # Errors
    /// [`CgroupError::Io`] where it is not there.
    pub fn reuse(&self, name: &str) -> Result<Group, CgroupError> {
        let group = self.group(name);
        if let Version::V1(_) = self.version {
            v1::reset(&group.folders)?;
        }
        Ok(group)
    }

    /// The group of this name, whether it is there or not.
    pub fn group(&self, name: &str) -> Group {
        let folders = match &self.version {
            Version::V1(trees) => trees.folders(&self.parent, name),
            Version::V2(root) => vec![root.join(&self.parent).join(name)],
        };
        Group { version: self.version.clone(), folders }
    }

    /// The names of the groups that are there.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn names(&self) -> Result<Vec<String>, CgroupError> {
        let parent = match &self.version {
            Version::V1(trees) => trees.folders(&self.parent, "").swap_remove(v1::MEMORY),
            Version::V2(root) => root.join(&self.parent),
        };
        file::folders_in(&parent)
    }
}

// === impl Group ===

impl Group {
    /// The files to which a process writes `0` to join, opened for writing.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn entrances(&self) -> Result<Vec<File>, CgroupError> {
        let name = match self.version {
            Version::V1(_) => "tasks",
            Version::V2(_) => "cgroup.procs",
        };
        self.folders.iter().map(|folder| file::open_to_write(&folder.join(name))).collect()
    }

    /// The processes in the group, as this process's pid namespace numbers them.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let path = self.folders[self.memory_folder()].join("cgroup.procs");
        let text = file::read(&path)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
    }

    /// Stops every process in the group, or lets them go on. The kernel carries it out soon after.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        match self.version {
            Version::V1(_) => v1::freeze(&self.folders, frozen),
            Version::V2(_) => v2::freeze(&self.folders[0], frozen),
        }
    }

    /// Changes the most processor time, in thousandths of a core; none at all is no limit.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn limit_cpu(&self, cpu: Option<u32>) -> Result<(), CgroupError> {
        match self.version {
            Version::V1(_) => v1::limit_cpu(&self.folders, cpu),
            Version::V2(_) => v2::limit_cpu(&self.folders[0], cpu),
        }
    }

    /// What the group used so far. What cannot be read counts as not counted.
    pub fn used(&self) -> Used {
        match self.version {
            Version::V1(_) => v1::used(&self.folders),
            Version::V2(_) => v2::used(&self.folders[0]),
        }
    }

    /// Whether the group, once it is empty, counts for another task as if it were new: making one costs more than
    /// most of a short task's start. Version 2 cannot set its counters back, and makes one folder instead of four.
    pub fn is_as_new(&self, used: &Used) -> bool {
        matches!(self.version, Version::V1(_)) && v1::is_as_new(used)
    }

    /// Removes the group; one that is not there is fine.
    ///
    /// # Errors
    /// [`CgroupError::Io`], mostly because processes are still in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        // That by which `Cgroups::names` finds it goes last.
        let last = self.memory_folder();
        let others = self.folders.iter().enumerate().filter(|(at, _)| *at != last).map(|(_, folder)| folder);
        others.chain([&self.folders[last]]).try_for_each(|folder| file::remove_folder(folder))
    }

    fn memory_folder(&self) -> usize {
        match self.version {
            Version::V1(_) => v1::MEMORY,
            Version::V2(_) => 0,
        }
    }
}
