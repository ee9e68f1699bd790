//! Inputs and results that are interrupted on their way between two nodes: they go on where they ended, and what will
//! never be whole is dropped.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use grid_lab::Slow;
use grid_tests::{Grid, until, with};
use libgrid::ids::{JobId, NodeId};
use libgrid::status::Outcome;

/// Bytes of what is moved.
const LENGTH: u64 = 192 << 20;

/// Bytes that cross the network at most, however often it is interrupted: only ranges that were under way are sent
/// twice.
const MOST: u64 = LENGTH / 2 * 3;

/// A line on which that takes long enough for something to happen meanwhile, in bits a second.
const RATE: u64 = 200_000_000;

/// A user of every node, who is not root.
const NOBODY: u32 = 65534;

/// Makes what a shell prints that runs this, and its checksum.
const NOISE: &str = "head -c 201326592 /dev/urandom";

fn slow(grid: &Grid) {
    let line = Slow { rate: Some(RATE), queue: Some(200), ..Slow::default() };
    grid.machine(2).slow(line).unwrap();
}

/// Bytes that a node has sent over the network since it was switched on.
fn sent_by(grid: &Grid, node: u32) -> u64 {
    let text = grid.machine(node).with_network(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let text = text.unwrap();
    let devices =
        text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    devices.map(|(_, counts)| counts.split_whitespace().nth(8).unwrap().parse::<u64>().unwrap()).sum()
}

/// Bytes that the journals below a folder tell of: entries of 52 bytes with their length from the ninth on.
fn came(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes += came(&path);
        } else if path.to_string_lossy().ends_with("-journal") {
            let journal = fs::read(&path).unwrap_or_default();
            let entries = journal.get(64..).unwrap_or_default().chunks_exact(52);
            bytes += entries.map(|entry| u64::from_le_bytes(entry[8..16].try_into().unwrap())).sum::<u64>();
        }
    }
    bytes
}

/// Waits until so many bytes are there.
fn until_came(folder: &Path, bytes: u64) {
    until(&format!("{bytes} bytes are in {}", folder.display()), || came(folder) >= bytes);
}

fn hidden(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

fn sum(path: &Path) -> String {
    let output = Command::new("sha256sum").stdin(fs::File::open(path).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn kill_agent(grid: &Grid, node: u32) {
    grid.kill_agent(node);
    until("the agent is back", || grid.machine(node).agent_pid().unwrap().is_some());
}

#[test]
fn inputs_go_on_where_they_ended_whatever_was_interrupted() {
    with(
        "inputs_go_on_where_they_ended_whatever_was_interrupted",
        || Grid::up("inputs", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            let big = folder.join("big");
            let script = format!("{NOISE} > {}", big.display());
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
            slow(grid);
            let args = ["submit", "--cpus", "0.1", "--node", "node2", "--stage-in", "big", "--"];
            let job =
                grid.gridctl_as(1, NOBODY, &folder, args.iter().chain(&["sh", "-c", "sha256sum < big"]));
            let job: JobId = job.ok().parse().unwrap();
            let inputs = grid.machine(2).dir().join("state/inputs").join(job.to_string());
            let before = sent_by(grid, 1);
            until_came(&inputs, LENGTH / 8);
            // The host's agent, the home's agent, and the cable, for longer than a lease lasts.
            for (interruption, at) in [("host", 2), ("home", 4), ("cable", 6)] {
                let had = came(&inputs);
                match interruption {
                    "host" => kill_agent(grid, 2),
                    "home" => kill_agent(grid, 1),
                    _ => {
                        grid.machine(2).cut().unwrap();
                        std::thread::sleep(Duration::from_secs(8));
                        grid.machine(2).heal().unwrap();
                        slow(grid);
                    }
                }
                assert!(came(&inputs) >= had, "what came was dropped with the {interruption}");
                until(&format!("it goes on after the {interruption}"), || {
                    came(&inputs) >= LENGTH / 8 * at || inputs.join("archive").exists()
                });
            }
            let status = grid.wait_within(1, job, Duration::from_secs(60));
            assert!(status.summary.succeeded(), "{:?}", status.tasks[0].outcome);
            assert_eq!(grid.logs(1, job, 0), sum(&big));
            let sent = sent_by(grid, 1) - before;
            assert!(sent < MOST, "{sent} bytes were sent for {LENGTH}");
            until("nothing is left of it", || grid.task_files(2).is_empty());
        },
    );
}

#[test]
fn results_go_on_where_they_ended_whatever_was_interrupted() {
    with(
        "results_go_on_where_they_ended_whatever_was_interrupted",
        || Grid::up("results", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            slow(grid);
            let script = format!("mkdir out; {NOISE} > out/big; echo x > out/small; sha256sum < out/big");
            let args = ["submit", "--cpus", "0.1", "--node", "node2", "--stage-out", "out", "--", "sh", "-c"];
            let job = grid.gridctl_as(1, NOBODY, &folder, args.iter().chain(&[script.as_str()]));
            let job: JobId = job.ok().parse().unwrap();
            let before = sent_by(grid, 2);
            until_came(&folder, LENGTH / 8);
            for (node, at) in [(1, 2), (2, 4)] {
                kill_agent(grid, node);
                until("it goes on", || came(&folder) >= LENGTH / 8 * at || folder.join("out/big").exists());
            }
            assert!(!folder.join("out").exists(), "something is in place before all of it is there");
            let status = grid.wait_within(1, job, Duration::from_secs(60));
            assert!(status.summary.succeeded(), "{:?}", status.tasks[0].outcome);
            assert_eq!(grid.logs(1, job, 0), sum(&folder.join("out/big")));
            assert_eq!(fs::read(folder.join("out/small")).unwrap(), b"x\n");
            let sent = sent_by(grid, 2) - before;
            assert!(sent < MOST, "{sent} bytes were sent for {LENGTH}");
            assert_eq!(hidden(&folder), Vec::<PathBuf>::new());
        },
    );
}

#[test]
fn what_came_of_a_lost_run_is_dropped() {
    with(
        "what_came_of_a_lost_run_is_dropped",
        || Grid::up("dropped", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            slow(grid);
            let args = ["submit", "--no-restart", "--cpus", "0.1", "--node", "node2", "--stage-out", "big"];
            let script = format!("{NOISE} > big");
            let job = grid.gridctl_as(1, NOBODY, &folder, args.iter().chain(&["--", "sh", "-c", &script]));
            let job: JobId = job.ok().parse().unwrap();
            until_came(&folder, LENGTH / 8);
            grid.machine(2).kill().unwrap();
            let status = grid.wait_within(1, job, Duration::from_secs(30));
            assert_eq!(status.tasks[0].outcome, Some(Outcome::NodeLost { node: NodeId(2) }));
            let begun = Instant::now();
            until("the user's folder is as it was", || {
                assert!(begun.elapsed() < Duration::from_secs(20), "{:?} stays", hidden(&folder));
                fs::read_dir(&folder).unwrap().next().is_none()
            });
        },
    );
}

#[test]
fn a_result_that_cannot_be_had_is_told_and_costs_no_other() {
    with(
        "a_result_that_cannot_be_had_is_told_and_costs_no_other",
        || Grid::up("missed", 2),
        |grid| {
            // Little is sent at once, and much over connections of its own; on one node it is an archive.
            for (node, size) in [(1, "1K"), (2, "1K"), (2, "2M")] {
                let folder = grid.folder(&format!("to{node}-{size}"), NOBODY);
                let script = format!(
                    "mkdir out out/shut; head -c {size} /dev/zero > out/good; echo s > out/secret; echo d > out/shut/deep; \
                     ln -s nowhere out/lost; ln -s good out/link; mkfifo out/fifo; chmod 0 out/secret out/shut; echo t > top"
                );
                let to = format!("node{node}");
                let args =
                    ["submit", "--cpus", "0.1", "--node", &to, "--stage-out", "out", "--stage-out", "top"];
                let rest = ["--stage-out", "absent", "--stage-out", "*.none", "--", "sh", "-c", &script];
                let job = grid.gridctl_as(1, NOBODY, &folder, args.iter().chain(&rest)).ok().to_owned();
                let waited = grid.gridctl_as(1, NOBODY, &folder, ["wait", &job]);
                assert_eq!(waited.status, 74, "{waited:?}");
                let told = waited.stderr.contains("cannot be read: Permission denied")
                    || waited.stderr.contains("there is no absent");
                assert!(told && waited.stderr.contains("(and 2 others)"), "{waited:?}");
                assert!(!waited.stderr.contains("tasks"), "{waited:?}");
                let out = folder.join("out");
                assert!(fs::read(out.join("good")).unwrap().len() >= 1024);
                assert_eq!(fs::read_link(out.join("lost")).unwrap(), Path::new("nowhere"));
                assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("good"));
                assert_eq!(fs::read(folder.join("top")).unwrap(), b"t\n");
                assert!(!out.join("secret").exists() && !out.join("fifo").exists());
                assert_eq!(hidden(&folder), Vec::<PathBuf>::new());
            }
        },
    );
}
