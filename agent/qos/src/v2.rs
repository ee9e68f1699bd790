//! Version 2: one tree for all controllers.

use std::path::Path;

use crate::file::{self, CgroupError};
use crate::{Limits, Used};

/// A period of the processor limit, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

pub(crate) fn has_controllers(root: &Path) -> bool {
    let there = file::read(&root.join("cgroup.controllers")).unwrap_or_default();
    ["cpu", "memory", "pids"].iter().all(|name| there.split_whitespace().any(|word| word == *name))
}

/// Hands the controllers down to the parent group and to the tasks' groups below it.
pub(crate) fn prepare(root: &Path, parent: &str) -> Result<(), CgroupError> {
    let folder = root.join(parent);
    file::make_folder(&folder)?;
    for level in [root, &folder] {
        let control = level.join("cgroup.subtree_control");
        file::write(&control, "+cpu +memory +pids")?;
        // Counts input and output where the kernel was built with it.
        let _ = file::write(&control, "+io");
    }
    Ok(())
}

pub(crate) fn create(folder: &Path, limits: Limits) -> Result<(), CgroupError> {
    file::make_folder(folder)?;
    // A core weighs 100, the kernel's default for a group.
    let weight = (limits.cpu / 10).clamp(1, 10_000);
    let quota = u64::from(limits.cpu).div_ceil(1000) * PERIOD;
    file::write(&folder.join("cpu.weight"), &weight.to_string())?;
    file::write(&folder.join("cpu.max"), &format!("{quota} {PERIOD}"))?;
    file::write(&folder.join("memory.max"), &limits.memory.to_string())?;
    file::write_if_there(&folder.join("memory.swap.max"), "0")?;
    // A task without one of its processes is no task any more.
    file::write_if_there(&folder.join("memory.oom.group"), "1")?;
    file::write(&folder.join("pids.max"), &limits.pids.to_string())
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
        assert_eq!((read("memory.max"), read("pids.max")), ("1048576".into(), "3".into()));

        fs::write(folder.join("io.stat"), "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=5 wbytes=0\n")
            .unwrap();
        fs::write(folder.join("cpu.stat"), "usage_usec 77\nuser_usec 70\n").unwrap();
        fs::write(folder.join("memory.events"), "low 0\noom 1\noom_kill 1\n").unwrap();
        let used = group.used();
        assert_eq!((used.read, used.written, used.cpu_micros, used.oom_kills), (15, 20, Some(77), 1));
    }
}
