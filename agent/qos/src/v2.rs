//! Version 2: one tree for all controllers.

use std::path::{Path, PathBuf};

use crate::file::{self, CgroupError};
use crate::{Limits, Used};

/// A period of the processor limit, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

/// There is no such process (errno(3)); the same on every architecture.
const ESRCH: i32 = 3;

pub(crate) fn has_controllers(root: &Path) -> bool {
    let there = file::read(&root.join("cgroup.controllers")).unwrap_or_default();
    ["cpu", "memory", "pids"].iter().all(|name| there.split_whitespace().any(|word| word == *name))
}

/// The group beside the tasks' parent in which the processes are that look after tasks.
const SHIMS: &str = "shims";

/// The tasks' parent in a group that was delegated, where that is there.
pub(crate) fn delegated(root: &Path, group: &str) -> Option<String> {
    (has_controllers(root) && root.join(group).is_dir()).then(|| format!("{group}/tasks"))
}

/// The group that was delegated and has the tasks' parent in it; none where the parent lies below the root itself.
fn holder(root: &Path, parent: &str) -> Option<PathBuf> {
    let above = Path::new(parent).parent().filter(|above| *above != Path::new(""))?;
    Some(root.join(above))
}

/// Hands the controllers down to the parent group and to the tasks' groups below it. What is above a delegated group is
/// not ours to write.
pub(crate) fn prepare(root: &Path, parent: &str) -> Result<(), CgroupError> {
    let folder = root.join(parent);
    let holder = holder(root, parent);
    if let Some(holder) = &holder {
        empty(holder)?;
    }
    file::make_folder(&folder)?;
    for level in [holder.as_deref().unwrap_or(root), &folder] {
        let control = level.join("cgroup.subtree_control");
        file::write(&control, "+cpu +memory +pids")?;
        // Counts input and output where the kernel was built with it.
        let _ = file::write(&control, "+io");
    }
    Ok(())
}

/// Moves the processes of a group to the shims' group: one that has processes cannot hand controllers down.
fn empty(holder: &Path) -> Result<(), CgroupError> {
    let shims = holder.join(SHIMS);
    file::make_folder(&shims)?;
    for pid in file::read(&holder.join("cgroup.procs"))?.lines() {
        match file::write(&shims.join("cgroup.procs"), pid) {
            // It has ended meanwhile.
            Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(ESRCH) => (),
            other => other?,
        }
    }
    Ok(())
}

/// Moves this process to the shims' group, if there is one.
pub(crate) fn leave_agent(root: &Path, parent: &str) -> Result<(), CgroupError> {
    match holder(root, parent) {
        Some(holder) => file::write(&holder.join(SHIMS).join("cgroup.procs"), "0"),
        None => Ok(()),
    }
}

pub(crate) fn create(folder: &Path, limits: Limits) -> Result<(), CgroupError> {
    file::make_folder(folder)?;
    // A core weighs 100, the kernel's default for a group.
    let weight = (limits.cpu / 10).clamp(1, 10_000);
    file::write(&folder.join("cpu.weight"), &weight.to_string())?;
    limit_cpu(folder, Some(limits.cpu))?;
    file::write(&folder.join("memory.max"), &limits.memory.to_string())?;
    file::write_if_there(&folder.join("memory.swap.max"), "0")?;
    // A task without one of its processes is no task any more.
    file::write_if_there(&folder.join("memory.oom.group"), "1")?;
    file::write(&folder.join("pids.max"), &limits.pids.to_string())
}

pub(crate) fn limit_cpu(folder: &Path, cpu: Option<u32>) -> Result<(), CgroupError> {
    let quota = cpu.map_or("max".into(), |cpu| (u64::from(cpu).div_ceil(1000) * PERIOD).to_string());
    file::write(&folder.join("cpu.max"), &format!("{quota} {PERIOD}"))
}

pub(crate) fn freeze(folder: &Path, frozen: bool) -> Result<(), CgroupError> {
    file::write(&folder.join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

pub(crate) fn used(folder: &Path) -> Used {
    let read = |name: &str| file::read(&folder.join(name)).unwrap_or_default();
    let io = read("io.stat");
    let sum = |key: &str| {
        let words = io.split_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
    };
    Used {
        // From Linux 5.19.
        peak_memory: file::number(&folder.join("memory.peak")).unwrap_or(0),
        cpu_micros: file::field(&read("cpu.stat"), "usage_usec"),
        read: sum("rbytes"),
        written: sum("wbytes"),
        oom_kills: file::field(&read("memory.events"), "oom_kill").unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Cgroups;

    #[test]
    fn limits_and_use_in_the_kernels_terms() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let groups = Cgroups::open(root.path(), "grid").unwrap();
        assert_eq!(groups.version(), 2);
        let group = groups.create("t1", Limits { cpu: 500, memory: 1 << 20, pids: 3 }).unwrap();
        let folder = root.path().join("grid/t1");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("50".into(), "100000 100000".into()));
        group.limit_cpu(None).unwrap();
        assert_eq!(read("cpu.max"), "max 100000");
        group.limit_cpu(Some(2500)).unwrap();
        assert_eq!(read("cpu.max"), "300000 100000");
        assert_eq!((read("memory.max"), read("pids.max")), ("1048576".into(), "3".into()));

        fs::write(folder.join("io.stat"), "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=5 wbytes=0\n")
            .unwrap();
        fs::write(folder.join("cpu.stat"), "usage_usec 77\nuser_usec 70\n").unwrap();
        fs::write(folder.join("memory.events"), "low 0\noom 1\noom_kill 1\n").unwrap();
        let used = group.used();
        assert_eq!((used.read, used.written, used.cpu_micros, used.oom_kills), (15, 20, Some(77), 1));
    }

    #[test]
    fn a_delegated_group_is_emptied_and_nothing_above_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert_eq!(Cgroups::delegated(root.path(), "a.slice/b"), None);
        let holder = root.path().join("a.slice/b");
        fs::create_dir_all(&holder).unwrap();
        fs::write(holder.join("cgroup.procs"), "77\n").unwrap();
        let parent = Cgroups::delegated(root.path(), "a.slice/b").unwrap();
        let groups = Cgroups::open(root.path(), &parent).unwrap();
        let read = |name: &str| fs::read_to_string(holder.join(name)).unwrap();
        assert_eq!(read("shims/cgroup.procs"), "77");
        groups.leave_agent().unwrap();
        assert_eq!(read("shims/cgroup.procs"), "0");
        groups.create("t1", Limits { cpu: 500, memory: 1 << 20, pids: 3 }).unwrap();
        assert_eq!(read("tasks/t1/pids.max"), "3");
        assert_eq!(groups.names().unwrap(), ["t1"]);
        assert!(holder.join("cgroup.subtree_control").exists());
        for above in ["", "a.slice"] {
            assert!(!root.path().join(above).join("cgroup.subtree_control").exists(), "{above}");
        }
    }
}
