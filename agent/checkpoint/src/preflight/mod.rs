//! What would stop a dump or a restore, found before anything is stopped.
//!
//! | side | asked | module |
//! | --- | --- | --- |
//! | of the dump | what each process has: descriptors, mappings, namespaces, a debugger; room on the disk | [`process`], here |
//! | of the dump | what belongs to none of them: System V objects | [`ipc`] |
//! | of the restore | processor, kernel, the files that are mapped, by build id or size; room | [`needs`] |
//!
//! Each finding is a [`Blocker`]: one sentence, and what to do. A list without entries is no promise: a process may open
//! something a moment later, and connections of Unix sockets that lead out of the task are seen by CRIU alone. CRIU then
//! says no, and the task runs on. All is read below a root that is given, so that a folder can stand in for `/proc`.

pub mod build_id;
pub mod ipc;
pub mod needs;
pub mod process;

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use libgrid::status::Obstacle;
use serde::{Deserialize, Serialize};

use self::needs::Needs;

/// Something that stops a dump or a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// What is in the way: no full stop.
    pub what: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl fmt::Display for Blocker {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {}", self.what, self.remedy)
    }
}

impl From<Blocker> for Obstacle {
    fn from(blocker: Blocker) -> Self {
        Self { what: blocker.what, remedy: blocker.remedy.into() }
    }
}

/// What a task is, and what is in the way of stopping it and writing it down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Whatever stops a dump.
    pub obstacles: Vec<Obstacle>,
    /// What a machine must have to restore it.
    pub needs: Needs,
    /// Bytes of memory that would have to be written.
    pub memory: u64,
}

/// Looks at these processes of a task, whose init is another one, and whose own folders are `own`. `proc` is where `/proc` is,
/// `root` where `/` is.
///
/// # Errors
/// Where there is no `/proc`; processes that ended are passed over.
pub fn survey(proc: &Path, root: &Path, init: u32, pids: &[u32], own: &[&Path]) -> io::Result<Survey> {
    let of_all = ipc::examine(proc, init).unwrap_or_default();
    let mut obstacles: Vec<Obstacle> = of_all.into_iter().map(Obstacle::from).collect();
    let mut memory = 0;
    for pid in pids {
        // One that ended meanwhile is in nobody's way.
        obstacles
            .extend(process::examine(proc, init, *pid).unwrap_or_default().into_iter().map(Obstacle::from));
        memory += process::resident(proc, *pid).unwrap_or(0);
    }
    Ok(Survey { obstacles, needs: Needs::of(proc, root, pids, own)?, memory })
}

/// The init of a task, seen from outside, by any of its processes: pid 1 of their namespace, or the parent of pid 2.
pub fn init_of(proc: &Path, pids: &[u32]) -> Option<u32> {
    pids.iter().find_map(|pid| {
        let status = fs::read_to_string(proc.join(format!("{pid}/status"))).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        match field("NSpid:")?.split_whitespace().next_back()? {
            "1" => Some(*pid),
            "2" => field("PPid:")?.trim().parse().ok(),
            _ => None,
        }
    })
}

/// The first blockers, with the number of the others.
pub fn sentence(blockers: &[impl fmt::Display]) -> String {
    const FIRST: usize = 3;
    let mut told = blockers.iter().take(FIRST).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if blockers.len() > FIRST {
        told += &format!("; and {} more", blockers.len() - FIRST);
    }
    told
}

/// The folders of a task whose files move along, as it sees them, where that is its working one.
pub fn own(workdir: &Path) -> [&Path; 3] {
    crate::engine::folders(workdir).map(|(folder, _)| folder)
}

/// Whether a folder's disk takes so many bytes more, with a tenth to spare.
///
/// # Errors
/// Where the file system does not say.
pub fn room(folder: &Path, bytes: u64) -> io::Result<Option<Blocker>> {
    let disk = nix::sys::statvfs::statvfs(folder)?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let wanted = bytes.saturating_add(bytes / 10);
    Ok((free < wanted).then(|| Blocker {
        what: format!(
            "the checkpoint takes about {} MiB, and {} has {} MiB free",
            wanted >> 20,
            folder.display(),
            free >> 20
        ),
        remedy: "make room, or keep fewer checkpoints",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_blockers_are_told_shortly() {
        let blocker = Blocker { what: "it is".into(), remedy: "end it" };
        assert_eq!(sentence(std::slice::from_ref(&blocker)), "it is: end it");
        assert!(sentence(&vec![blocker; 9]).ends_with("it is: end it; and 6 more"));
    }

    #[test]
    fn a_disk_has_room_for_a_little_and_not_for_everything() {
        assert_eq!(room("/".as_ref(), 1).unwrap(), None);
        let blocker = room("/".as_ref(), 1 << 60).unwrap().unwrap();
        assert!(blocker.to_string().starts_with("the checkpoint takes about"), "{blocker}");
        assert!(room("/nowhere".as_ref(), 1).is_err());
    }
}
