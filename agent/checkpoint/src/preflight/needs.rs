//! What a machine must have to restore a checkpoint: noted where the task runs, compared where it shall run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Blocker, build_id};

/// Files that one task maps at most, in this list; a browser maps some hundreds.
const MOST_FILES: usize = 10_000;

/// Of the machine that the task ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// `x86_64`, `aarch64`.
    pub machine: String,
    /// What the processor can do, as `/proc/cpuinfo` names it. A program may have looked, and use any of it.
    pub processor: BTreeSet<String>,
    /// The kernel's release: `6.12.9-amd64`.
    pub kernel: String,
    /// The mapped files outside of the task's own folders.
    pub files: BTreeMap<PathBuf, Version>,
}

/// Which version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// By its build id.
    Build(Vec<u8>),
    /// By its size in bytes, where it has none.
    Size(u64),
}

impl Needs {
    /// Of these processes, whose own folders are `own`: what is below them moves along. `proc` is where `/proc` is, `root`
    /// where `/` is.
    ///
    /// # Errors
    /// Where there is no `/proc`; processes that ended are passed over.
    pub fn of(proc: &Path, root: &Path, pids: &[u32], own: &[&Path]) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for pid in pids {
            let maps = fs::read_to_string(proc.join(format!("{pid}/maps"))).unwrap_or_default();
            for line in maps.lines() {
                let Some(name) = line.splitn(6, ' ').nth(5).map(str::trim_start) else { continue };
                let path = Path::new(name);
                let is_moved =
                    own.iter().any(|folder| path.starts_with(folder)) || name.ends_with(" (deleted)");
                if !path.is_absolute() || is_moved || files.contains_key(path) || files.len() == MOST_FILES {
                    continue;
                }
                if let Some(version) = version(&below(root, path)) {
                    files.insert(path.to_owned(), version);
                }
            }
        }
        Ok(Self { files, ..Self::of_machine(proc)? })
    }

    /// Of this machine, without files.
    ///
    /// # Errors
    /// Where there is no `/proc`.
    pub fn of_machine(proc: &Path) -> io::Result<Self> {
        let cpuinfo = fs::read_to_string(proc.join("cpuinfo"))?;
        let processor = cpuinfo
            .lines()
            .find(|line| line.starts_with("flags") || line.starts_with("Features"))
            .and_then(|line| line.split_once(':'))
            .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        let kernel = fs::read_to_string(proc.join("sys/kernel/osrelease"))?.trim().to_owned();
        Ok(Self { machine: std::env::consts::ARCH.to_owned(), processor, kernel, files: BTreeMap::new() })
    }

    /// What this machine, of which `here` is told, lacks. `root` is where its `/` is.
    pub fn blockers(&self, here: &Needs, root: &Path) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        let mut add = |what, remedy| blockers.push(Blocker { what, remedy });
        if self.machine != here.machine {
            add(
                format!("the task runs on {}, and this machine is {}", self.machine, here.machine),
                "choose a node with the same kind of processor",
            );
            return blockers;
        }
        let missing: Vec<_> = self.processor.difference(&here.processor).map(String::as_str).collect();
        if !missing.is_empty() {
            let some = missing.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            add(
                format!("the processor here lacks {} features that the task may use: {some}", missing.len()),
                "choose a node with the same or a newer processor",
            );
        }
        if series(&here.kernel) < series(&self.kernel) {
            add(
                format!("the task runs on Linux {}, and this machine has {}", self.kernel, here.kernel),
                "choose a node whose kernel is at least as new",
            );
        }
        for (path, wanted) in &self.files {
            match version(&below(root, path)) {
                Some(found) if found == *wanted => (),
                Some(_) => add(
                    format!("{} is another version here", path.display()),
                    "install the same release of its package on both nodes",
                ),
                None => add(
                    format!("{} is mapped by the task, and is not here", path.display()),
                    "install its package on this node, or stage the file with the job",
                ),
            }
        }
        blockers
    }
}

/// Major and minor of a release.
fn series(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn version(path: &Path) -> Option<Version> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(build_id::read(path).map_or(Version::Size(meta.len()), Version::Build))
}

/// An absolute path as it is below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
    root.join(Path::new(std::ffi::OsStr::from_bytes(relative)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_restored_here() {
        let (proc, root) = (Path::new("/proc"), Path::new("/"));
        let needs = Needs::of(proc, root, &[std::process::id()], &[]).unwrap();
        assert!(
            needs.files.len() > 2 && needs.files.keys().any(|path| path.to_string_lossy().contains("libc"))
        );
        assert!(needs.files.values().any(|version| matches!(version, Version::Build(_))));
        assert_eq!(needs.blockers(&Needs::of_machine(proc).unwrap(), root), []);
        let own = std::env::current_exe().unwrap();
        let without = Needs::of(proc, root, &[std::process::id()], &[own.parent().unwrap()]).unwrap();
        assert_eq!(needs.files.len(), without.files.len() + 1);
    }

    #[test]
    fn every_difference_is_a_blocker() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("same"), "1234").unwrap();
        fs::write(root.path().join("other"), "12345").unwrap();
        let flags = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<BTreeSet<_>>();
        let files = ["/same", "/other", "/none"].map(|path| (path.into(), Version::Size(4)));
        let needs = Needs {
            machine: "x86_64".into(),
            processor: flags(&["sse2", "avx2"]),
            kernel: "6.12.9".into(),
            files: files.into(),
        };
        let here = Needs { processor: flags(&["sse2", "fma"]), kernel: "6.1.0-9".into(), ..needs.clone() };
        let found: Vec<_> =
            needs.blockers(&here, root.path()).iter().map(|blocker| blocker.what.clone()).collect();
        assert_eq!(
            found,
            [
                "the processor here lacks 1 features that the task may use: avx2",
                "the task runs on Linux 6.12.9, and this machine has 6.1.0-9",
                "/none is mapped by the task, and is not here",
                "/other is another version here",
            ]
        );
        let newer = Needs { kernel: "6.18.1".into(), ..needs.clone() };
        assert_eq!(needs.blockers(&newer, root.path()).len(), 2);
        let arm = Needs { machine: "aarch64".into(), ..needs.clone() };
        assert_eq!(needs.blockers(&arm, root.path()).len(), 1);
    }
}
