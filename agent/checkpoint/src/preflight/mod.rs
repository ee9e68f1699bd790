//! What would stop a dump or a restore, found before anything is stopped.
//!
//! | side | asked | module |
//! | --- | --- | --- |
//! | of the dump | what each process has: descriptors, mappings, namespaces, a debugger; room on the disk | [`process`], here |
//! | of the restore | processor, kernel, the files that are mapped, by build id or size; room | [`needs`] |
//!
//! Each finding is a [`Blocker`]: one sentence, and what to do. A list without entries is no promise: a process may open
//! something a moment later, and connections of Unix sockets that lead out of the task are seen by CRIU alone. CRIU then
//! says no, and the task runs on. All is read below a root that is given, so that a folder can stand in for `/proc`.

pub mod build_id;
pub mod needs;
pub mod process;

use std::fmt;
use std::io;
use std::path::Path;

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

/// The first blockers, with the number of the others.
pub fn sentence(blockers: &[Blocker]) -> String {
    const FIRST: usize = 3;
    let mut told = blockers.iter().take(FIRST).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if blockers.len() > FIRST {
        told += &format!("; and {} more", blockers.len() - FIRST);
    }
    told
}

/// Whether a folder's disk takes so many bytes more, with a tenth to spare.
///
/// # Errors
/// Where the file system does not say.
pub fn room(folder: &Path, bytes: u64) -> io::Result<Option<Blocker>> {
    let disk = nix::sys::statvfs::statvfs(folder)?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let wanted = bytes + bytes / 10;
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
