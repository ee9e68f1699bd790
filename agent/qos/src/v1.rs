//! Version 1: a tree for each controller.
//!
//! `cpuacct` is used only where it shares the tree of `cpu` (as on every distribution with systemd): a group
//! more for each task costs more than it tells, as `wait4` counts processor time anyway.

use std::path::{Path, PathBuf};

use crate::file::{self, CgroupError};
use crate::{Limits, Used};

/// The controllers that every task is put under; the indices of [`Trees::folders`].
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "freezer"];
const CPU: usize = 0;
pub(crate) const MEMORY: usize = 1;
const PIDS: usize = 2;
const FREEZER: usize = 3;

/// A period of the processor limit, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

#[derive(Clone, Debug)]
pub(crate) struct Trees([PathBuf; 4]);

impl Trees {
    pub(crate) fn find(root: &Path) -> Result<Self, CgroupError> {
        let trees = CONTROLLERS.map(|name| root.join(name));
        if trees.iter().all(|tree| tree.join("tasks").exists()) {
            Ok(Self(trees))
        } else {
            Err(CgroupError::Missing { root: root.to_owned() })
        }
    }

    pub(crate) fn prepare(&self, parent: &str) -> Result<(), CgroupError> {
        for tree in &self.0 {
            file::make_folder(&tree.join(parent))?;
        }
        // What children use counts towards the parent; kernels from 5.11 always do.
        let _ = file::write(&self.0[MEMORY].join(parent).join("memory.use_hierarchy"), "1");
        Ok(())
    }

    pub(crate) fn folders(&self, parent: &str, name: &str) -> Vec<PathBuf> {
        self.0.iter().map(|tree| tree.join(parent).join(name)).collect()
    }
}

pub(crate) fn create(folders: &[PathBuf], limits: Limits) -> Result<(), CgroupError> {
    for folder in folders {
        file::make_folder(folder)?;
    }
    let shares = (u64::from(limits.cpu) * 1024 / 1000).clamp(2, 262_144);
    file::write(&folders[CPU].join("cpu.shares"), &shares.to_string())?;
    limit_cpu(folders, Some(limits.cpu))?;
    let memory = limits.memory.to_string();
    let with_swap = folders[MEMORY].join("memory.memsw.limit_in_bytes");
    // Absent where swap is not accounted. It must never be below the limit without swap, which may rise here.
    file::write_if_there(&with_swap, "-1")?;
    file::write(&folders[MEMORY].join("memory.limit_in_bytes"), &memory)?;
    file::write_if_there(&with_swap, &memory)?;
    reset(folders)?;
    file::write(&folders[PIDS].join("pids.max"), &limits.pids.to_string())
}

pub(crate) fn limit_cpu(folders: &[PathBuf], cpu: Option<u32>) -> Result<(), CgroupError> {
    let quota = cpu.map_or("-1".into(), |cpu| (u64::from(cpu).div_ceil(1000) * PERIOD).to_string());
    file::write_if_there(&folders[CPU].join("cpu.cfs_quota_us"), &quota)
}

/// What a task may leave in its group, in page cache, without the next one noticing; in bytes.
const NOTHING: u64 = 1 << 20;

/// A count of ended processes stays, and so does memory that was charged: a group with either is not used again.
pub(crate) fn is_as_new(used: &Used) -> bool {
    used.oom_kills == 0 && used.peak_memory <= NOTHING
}

pub(crate) fn reset(folders: &[PathBuf]) -> Result<(), CgroupError> {
    file::write(&folders[MEMORY].join("memory.max_usage_in_bytes"), "0")
}

pub(crate) fn freeze(folders: &[PathBuf], frozen: bool) -> Result<(), CgroupError> {
    let state = if frozen { "FROZEN" } else { "THAWED" };
    file::write(&folders[FREEZER].join("freezer.state"), state)
}

pub(crate) fn used(folders: &[PathBuf]) -> Used {
    let memory = &folders[MEMORY];
    let oom = file::read(&memory.join("memory.oom_control")).unwrap_or_default();
    Used {
        peak_memory: file::number(&memory.join("memory.max_usage_in_bytes")).unwrap_or(0),
        cpu_micros: file::number(&folders[CPU].join("cpuacct.usage")).map(|nanos| nanos / 1000),
        read: 0,
        written: 0,
        oom_kills: file::field(&oom, "oom_kill").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Cgroups;

    fn stand_in() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in CONTROLLERS {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("tasks"), "").unwrap();
        }
        root
    }

    #[test]
    fn limits_are_written_in_the_kernels_terms() {
        let root = stand_in();
        let groups = Cgroups::open(root.path(), "grid").unwrap();
        assert_eq!(groups.version(), 1);
        groups.create("t1", Limits { cpu: 1500, memory: 64 << 20, pids: 10 }).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("cpu/grid/t1/cpu.shares"), "1536");
        assert_eq!(read("cpu/grid/t1/cpu.cfs_quota_us"), "200000");
        groups.group("t1").limit_cpu(None).unwrap();
        assert_eq!(read("cpu/grid/t1/cpu.cfs_quota_us"), "-1");
        assert_eq!(read("memory/grid/t1/memory.limit_in_bytes"), "67108864");
        assert_eq!(read("pids/grid/t1/pids.max"), "10");
        assert_eq!(groups.names().unwrap(), ["t1"]);
    }

    #[test]
    fn use_is_read_from_the_kernels_files() {
        let root = stand_in();
        let group = Cgroups::open(root.path(), "grid").unwrap().group("t1");
        for folder in &group.folders {
            fs::create_dir(folder).unwrap();
        }
        fs::write(group.folders[MEMORY].join("memory.max_usage_in_bytes"), "4096\n").unwrap();
        let oom = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        fs::write(group.folders[MEMORY].join("memory.oom_control"), oom).unwrap();
        let used = group.used();
        assert_eq!((used.peak_memory, used.oom_kills, used.cpu_micros), (4096, 2, None));
    }

    #[test]
    fn a_machine_without_controllers_is_told_so() {
        let root = tempfile::tempdir().unwrap();
        let error = Cgroups::open(root.path(), "grid").unwrap_err();
        assert!(error.to_string().contains("cgroup_enable=memory"), "{error}");
    }
}
