//! Removing the cgroups that a machine's jobs left: all machines share this kernel's cgroup tree.
//!
//! An agent that dies with its machine cannot clean up. Its jobs' groups all lie below one folder that only
//! this machine uses, in each hierarchy; its processes have died with the pid namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError};

/// How deep below a hierarchy's mount point a machine's folder may lie.
const DEPTH: usize = 8;

/// How long groups may stay busy: the kernel lets go of the last processes a little later than their parent
/// hears of their end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets frozen processes below the folders named `parent` run.
///
/// In v1 a frozen process does not even die of SIGKILL, and its pid 1 would wait for it for ever.
pub(crate) fn thaw(parent: &str) {
    for group in find(&hierarchies(), parent) {
        for group in subtree(&group) {
            // The file of the other version is not there.
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            let _ = fs::write(group.join("cgroup.freeze"), "0");
        }
    }
}

/// Removes every folder named `parent` in all hierarchies, with all groups below it.
pub(crate) fn remove(parent: &str) -> Result<(), LabError> {
    remove_in(&hierarchies(), parent)
}

fn remove_in(roots: &[PathBuf], parent: &str) -> Result<(), LabError> {
    let deadline = Instant::now() + PATIENCE;
    for group in find(roots, parent) {
        // Innermost first.
        for group in subtree(&group).iter().rev() {
            loop {
                match fs::remove_dir(group) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => return Err(error).doing("remove the cgroup", group),
                }
            }
        }
    }
    Ok(())
}

/// The mount points of all cgroup hierarchies of v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo").map(|text| parse_mounts(&text)).unwrap_or_default()
}

fn parse_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            (kind == "cgroup" || kind == "cgroup2").then_some(())?;
            Some(PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " ")))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn find(roots: &[PathBuf], name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level: Vec<PathBuf> = roots.to_vec();
    for _ in 0..DEPTH {
        let below: Vec<PathBuf> = level.iter().flat_map(|dir| folders(dir)).collect();
        let (wanted, other) = below.into_iter().partition(|dir| dir.file_name().is_some_and(|n| n == name));
        found.extend::<Vec<PathBuf>>(wanted);
        level = other;
    }
    found
}

/// The folder and all below it, outermost first.
fn subtree(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        all.extend(folders(&dir));
        next += 1;
    }
    all
}

/// The folders in `dir`; none when it has just been removed.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let text = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                    31 24 0:27 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            parse_mounts(text),
            [PathBuf::from("/sys/fs/cgroup/a b"), PathBuf::from("/sys/fs/cgroup/cpu")]
        );
    }

    #[test]
    fn only_the_machines_folder_goes() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for path in ["cpu/mine/j1/t0", "cpu/mine/j2", "v2/outer/mine/j1", "v2/outer/other"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        remove_in(&[at("cpu"), at("v2")], "mine").unwrap();
        assert!(!at("cpu/mine").exists() && !at("v2/outer/mine").exists());
        assert!(at("v2/outer/other").exists());
    }
}
