//! The processors that threads chose for themselves (sched_setaffinity(2)), of which CRIU notes nothing.
//!
//! Those of init are the ones that a task has by default: they are another machine's own matter.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Pinned;

/// Init's pid.
const INIT: i32 = 1;

/// All threads of this pid namespace whose processors are not init's.
pub(super) fn read() -> Vec<Pinned> {
    let Ok(default) = sched_getaffinity(Pid::from_raw(INIT)) else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|entry| number(entry) > Some(INIT));
    let threads = processes.flat_map(|entry| fs::read_dir(entry.path().join("task"))).flatten().flatten();
    let pinned = threads.filter_map(|entry| {
        let thread = number(&entry)?;
        // One that has ended runs nowhere.
        let own = sched_getaffinity(Pid::from_raw(thread)).ok().filter(|own| *own != default)?;
        let has = |processor: &u16| own.is_set((*processor).into()).unwrap_or_default();
        Some(Pinned { thread, processors: (0..CpuSet::count() as u16).filter(has).collect() })
    });
    pinned.collect()
}

/// Has these threads run where they did. Where this machine, or what the task may use of it, has none of those, they run anywhere.
pub(super) fn set(pinned: &[Pinned]) {
    for Pinned { thread, processors } in pinned {
        let mut own = CpuSet::new();
        // A number that no machine has is none of this one's.
        let _ = processors.iter().try_for_each(|processor| own.set((*processor).into()));
        // As above.
        let _ = sched_setaffinity(Pid::from_raw(*thread), &own);
    }
}

fn number(entry: &fs::DirEntry) -> Option<i32> {
    entry.file_name().to_str()?.parse().ok()
}
