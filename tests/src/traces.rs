//! What of a grid is on this machine: processes, mounts, links, control groups, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What tells one grid from all others, also after its end.
#[derive(Debug)]
pub struct Traces {
    name: String,
    root: PathBuf,
    bridge: String,
}

impl Traces {
    pub(crate) fn new(name: &str, root: &Path, bridge: String) -> Traces {
        Traces { name: name.to_owned(), root: root.to_owned(), bridge }
    }

    /// Everything on this machine that tells of the grid.
    pub fn all(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.root.exists() {
            found.push(format!("file {}", self.root.display()));
        }
        let path = self.root.display().to_string();
        for pid in processes() {
            let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args = String::from_utf8_lossy(&args).replace('\0', " ");
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if args.contains(&path) || mounts.contains(&path) || cgroup.contains(&self.cgroup()) {
                found.push(format!("process {pid}: {args}"));
            }
        }
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        let ours = |line: &&str| {
            let rest = line.split(": ").nth(1).and_then(|name| name.strip_prefix(&self.bridge));
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        found.extend(String::from_utf8_lossy(&links).lines().filter(ours).map(str::to_owned));
        found.extend(cgroups_named(&format!("{}*", self.cgroup())));
        found
    }

    fn cgroup(&self) -> String {
        format!("gridos-{}-node", self.name)
    }
}

/// The control groups whose names match.
pub(crate) fn cgroups_named(pattern: &str) -> Vec<String> {
    let mut find = Command::new("find");
    let output = find.args(["/sys/fs/cgroup", "-ignore_readdir_race", "-name", pattern]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// All pids, those of the dead that nobody has waited for left out.
pub(crate) fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        (state != 'Z' && state != 'X').then_some(pid)
    })
}
