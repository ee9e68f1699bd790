//! System V objects of a task: they belong to none of its processes, and CRIU writes down those of processes alone.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::Blocker;

/// The files of `/proc/sysvipc`, what they list, and what a program could use instead.
const KINDS: [(&str, &str, &str); 3] = [
    (
        "sem",
        "System V semaphores",
        "have the program use POSIX semaphores or a lock on a file, which can be written down",
    ),
    ("msg", "System V message queues", "have the program use a pipe or a socket, which can be written down"),
    (
        "shm",
        "System V shared memory that no process has mapped",
        "have the program use POSIX shared memory (shm_open), which can be written down",
    ),
];

/// The column of `/proc/sysvipc/shm` that counts the mappings of a segment.
const ATTACHED: usize = 6;

/// What of a task with this init no dump would have. One in the IPC namespace of whoever asks is taken to have nothing.
///
/// # Errors
/// Where it cannot be looked at: it has ended.
pub fn examine(proc: &Path, init: u32) -> io::Result<Vec<Blocker>> {
    let theirs = proc.join(format!("{init}/ns/ipc"));
    if fs::read_link(&theirs)? == fs::read_link(proc.join("self/ns/ipc"))? {
        return Ok(Vec::new());
    }
    let namespace = File::open(theirs)?;
    // The files tell of the namespace of the thread that opens them.
    let looked = thread::scope(|scope| {
        let look = || -> io::Result<Vec<String>> {
            setns(&namespace, CloneFlags::CLONE_NEWIPC)?;
            KINDS.iter().map(|kind| fs::read_to_string(proc.join("sysvipc").join(kind.0))).collect()
        };
        scope.spawn(look).join()
    });
    let texts = looked.map_err(|_| io::Error::other("the look at it failed"))??;
    let found = KINDS.into_iter().zip(&texts).filter(|((name, ..), text)| lists(name, text));
    Ok(found.map(|((_, what, remedy), _)| Blocker { what: format!("the task has {what}"), remedy }).collect())
}

/// Whether there is something behind the line of headings that no process tells of.
fn lists(name: &str, text: &str) -> bool {
    let unmapped = |line: &str| line.split_whitespace().nth(ATTACHED).is_none_or(|count| count == "0");
    text.lines().skip(1).any(|line| name != "shm" || unmapped(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_are_mapped_are_left_to_their_processes() {
        let head =
            "       key      shmid perms       size  cpid  lpid nattch   uid   gid  cuid  cgid      atime\n";
        assert!(!lists("shm", head) && !lists("sem", head));
        assert!(!lists("shm", &format!("{head} 119 0 600 4096 2 2 1 65534 65534 65534 65534 0\n")));
        assert!(lists("shm", &format!("{head} 119 0 600 4096 2 2 0 65534 65534 65534 65534 0\n")));
        assert!(lists("msg", "key msqid\n 120 0 600 0 0 0 0\n"));
    }

    #[test]
    fn ones_own_are_nobodys() {
        assert_eq!(examine(Path::new("/proc"), std::process::id()).unwrap(), []);
        assert!(examine(Path::new("/proc"), u32::MAX).is_err());
    }
}
