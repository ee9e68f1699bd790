//! What the suites of the lab share: a lab with a stand-in for the agent, and looking for what it left.

#![expect(dead_code, reason = "each suite uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use grid_lab::{Lab, LabConfig, LabGuard, Machine};
use tempfile::TempDir;

/// How long a condition may take to become true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_gridos-lab");

/// Waits on a pipe that nobody writes to, as quiet as an agent without work.
const AGENT: &str = r#"#!/bin/bash
echo "agent $$ runs as $0 $*"
pipe=/run/gridos/pipe.$$
mkfifo "$pipe"
exec 3<>"$pipe"
rm "$pipe"
read -r -u 3 _
"#;

/// A lab, and the directory in which all of it lies.
pub(crate) struct Grid {
    pub(crate) lab: LabGuard,
    pub(crate) dir: TempDir,
}

/// Says why a test cannot run here: a line of its own, past the test harness, which would swallow it.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stdout(), "\nSKIPPED: {test}: {why}");
}

/// Why there can be no lab on this machine; `None` when there can.
pub(crate) fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("a lab needs root: run the tests with sudo".to_owned());
    }
    let output = match Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).output()
    {
        Ok(output) => output,
        Err(error) => return Some(format!("cannot run unshare: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("this machine allows no namespaces: {}", said.trim()))
}

/// Does the test's job if there can be a lab here.
pub(crate) fn with_grid(test: &str, nodes: u32, run: impl FnOnce(&Grid)) {
    match obstacle() {
        Some(why) => skipped(test, &why),
        None => run(&grid(test, nodes)),
    }
}

/// A lab of `nodes` machines whose name is made from the test's.
pub(crate) fn grid(test: &str, nodes: u32) -> Grid {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabGuard::up(config(test, nodes, dir.path())).unwrap();
    Grid { lab, dir }
}

pub(crate) fn config(test: &str, nodes: u32, dir: &Path) -> LabConfig {
    let agent = dir.join("agent");
    fs::write(&agent, AGENT).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    LabConfig { nodes, root: dir.join("lab"), helper: HELPER.into(), ..LabConfig::new(name(test), agent) }
}

/// A lab's name that no other run of any test has.
pub(crate) fn name(test: &str) -> String {
    let test: String = test.chars().filter(char::is_ascii_alphabetic).take(20).collect();
    format!("{test}-{}", std::process::id())
}

impl Grid {
    pub(crate) fn machine(&self, index: u32) -> Machine {
        self.lab.machine(&format!("node{index}")).unwrap()
    }
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `value` is there.
pub(crate) fn until_some<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = value();
        found.is_some()
    });
    found.unwrap()
}

/// What the command prints; it must succeed.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// What `script` prints, run by bash in the machine.
pub(crate) fn shell(machine: &Machine, script: &str) -> String {
    output(machine.exec("bash").args(["-c", script]))
}

/// The pids of all processes in the pid namespace `space`, but for those that have ended.
pub(crate) fn processes_in(space: &Path) -> Vec<i32> {
    processes().filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|s| s == space)).collect()
}

/// Those of them that run the program `name`.
pub(crate) fn running(space: &Path, name: &str) -> Vec<i32> {
    let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    processes_in(space).into_iter().filter(|pid| comm(pid).trim_end() == name).collect()
}

/// The pid namespace of a machine that is on.
pub(crate) fn pid_space(machine: &Machine) -> PathBuf {
    fs::read_link(format!("/proc/{}/ns/pid", machine.pid().unwrap().unwrap())).unwrap()
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

/// What tells one lab from all others, also after its end.
pub(crate) struct Identity {
    name: String,
    root: PathBuf,
    /// The bridge and its MAC address; `None` if the lab has not got that far.
    bridge: Option<(String, String)>,
}

impl Identity {
    /// Of a lab that is to be, or of one whose root holds a document.
    pub(crate) fn of(name: &str, root: &Path) -> Identity {
        let text = fs::read_to_string(root.join("lab.json")).unwrap_or_default();
        let owner = serde_json::from_str(&text).ok().map(|doc: serde_json::Value| {
            let bytes = doc["slot"]["owner"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap());
            let mac: Vec<String> = bytes.map(|byte| format!("{byte:02x}")).collect();
            (format!("gridlab{}", doc["slot"]["number"]), mac.join(":"))
        });
        Identity { name: name.to_owned(), root: root.to_owned(), bridge: owner }
    }

    /// Everything on this machine that tells of the lab. Other labs come and go meanwhile.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.root.exists() {
            found.push(format!("file {}", self.root.display()));
        }
        let path = self.root.to_str().unwrap();
        for pid in processes() {
            let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args = String::from_utf8_lossy(&args).replace('\0', " ");
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            if args.contains(path) || mounts.contains(path) {
                found.push(format!("process {pid}: {args}"));
            }
        }
        found.extend(self.links());
        let spaces = output(Command::new("ip").arg("netns"));
        found.extend(spaces.lines().filter(|line| line.contains(&self.name)).map(str::to_owned));
        found.extend(cgroups(&self.name));
        found
    }

    /// The links of the lab, as long as the bridge of that name is this lab's.
    fn links(&self) -> Vec<String> {
        let Some((bridge, mac)) = &self.bridge else { return Vec::new() };
        let all = output(Command::new("ip").args(["-o", "link"]));
        let name = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        if all.lines().any(|line| name(line) == *bridge && !line.contains(mac.as_str())) {
            return Vec::new();
        }
        all.lines()
            .filter(|line| {
                let name = name(line);
                let rest = name.strip_prefix(bridge.as_str());
                rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            })
            .map(str::to_owned)
            .collect()
    }
}

/// The cgroups of the lab's machines.
pub(crate) fn cgroups(name: &str) -> Vec<String> {
    let pattern = format!("gridos-{name}-node*");
    output(Command::new("find").args(["/sys/fs/cgroup", "-ignore_readdir_race", "-name", &pattern]))
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The bridge that a lab made, by the lab's own word.
pub(crate) fn bridge(lab: &Lab) -> String {
    lab.status().unwrap().bridge
}
