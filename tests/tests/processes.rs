//! Processes of tasks: their global ids, who may see and end them, and what stays of all that.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};

use grid_tests::{Grid, GridConfig, NOBODY, until, until_some, with};
use libgrid::ids::{JobId, NodeId};
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Forks a child at SIGUSR1, and has one with a child of its own from the start on. Its lines end with commands, so that no
/// shell is replaced by the last one.
const TREE: &str = "trap 'sh -c \"sleep 3000; :\" & echo forked' USR1; sh -c 'sleep 1000; :' & echo ready; \
                    while :; do wait; done";

fn sh(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

/// What `doctor` says of a subject.
fn doctor(grid: &Grid, node: u32, subject: &str) -> String {
    let findings = grid.gridctl(node, ["doctor", "--json"]).json();
    let all = findings.as_array().unwrap().iter().filter(|finding| finding["subject"] == subject);
    all.map(|finding| finding["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
}

/// Whether it says so; if not, the reason is printed.
fn has(grid: &Grid, subject: &str, begin: &str) -> bool {
    let text = doctor(grid, 1, subject);
    let has = text.starts_with(begin);
    if !has {
        let _ = writeln!(io::stdout(), "SKIPPED: {text}");
    }
    has
}

/// The processes of a job, by their pids in it.
fn processes(grid: &Grid, node: u32, job: JobId) -> BTreeMap<u64, Value> {
    let listed = until_some("every node answers", || {
        let listed = grid.gridctl(node, ["ps", "--processes", &job.to_string(), "--json"]).json();
        (listed["silent"] == Value::Array(Vec::new())).then_some(listed)
    });
    let all = listed["processes"].as_array().unwrap();
    all.iter().map(|process| (process["pid"].as_u64().unwrap(), process.clone())).collect()
}

/// The ids and the parents' ids, by pid.
fn ids(processes: &BTreeMap<u64, Value>) -> BTreeMap<u64, (String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    processes.iter().map(|(pid, all)| (*pid, (text(&all["gpid"]).unwrap(), text(&all["parent"])))).collect()
}

/// Starts the tree, and returns its ids when all of it runs.
fn plant(grid: &Grid, spec: JobSpec) -> (JobId, BTreeMap<u64, (String, Option<String>)>) {
    let job = grid.submit(1, spec);
    until("it is ready", || grid.logs(1, job, 0).contains("ready"));
    let all = until_some("all of its processes run", || {
        let all = processes(grid, 1, job);
        (all.values().any(|process| process["name"] == "sleep")).then_some(all)
    });
    (job, ids(&all))
}

fn a_process_keeps_its_id(test: &'static str, extra: &'static str, tier: &str) {
    with(
        test,
        || GridConfig { extra, ..GridConfig::new(test, 3) }.up(),
        |grid| {
            if !has(grid, "checkpoints", "CRIU 4") || !has(grid, "tier", tier) {
                return;
            }
            let spec = JobSpec { nodes: vec!["node2".into(), "node3".into()], ..sh(TREE) };
            let (job, first) = plant(grid, spec);
            assert_eq!(first.len(), 3, "{first:?}");
            // The root, its child, and the child of that: each names who made it.
            let chain: Vec<_> = first.values().collect();
            assert_eq!(chain[0].1, None);
            assert_eq!((&chain[1].1, &chain[2].1), (&Some(chain[0].0.clone()), &Some(chain[1].0.clone())));
            let root = chain[0].0.clone();
            let place = || grid.places(1, job)[0].unwrap().0;
            let born = place();
            assert!(first.values().all(|(gpid, _)| gpid.starts_with(&format!("{born}."))), "{first:?}");
            let same = |when: &str| assert_eq!(ids(&processes(grid, 1, job)), first, "{when}");
            grid.kill_agent(born);
            grid.until_up(1, 3);
            grid.until_running(1, job);
            same("after a restart of the agent");
            // Named by a process, from a node that has no part in it.
            for mode in ["hybrid", "stop-and-copy"] {
                let to = if place() == 2 { 3 } else { 2 };
                let moved = grid.gridctl(
                    to,
                    ["migrate", &chain[2].0, "--to", &format!("node{to}"), "--mode", mode, "--json"],
                );
                assert_eq!(moved.json()[0]["moved"]["to"], to, "{moved:?}");
                same(mode);
                let all = processes(grid, 3, job);
                assert!(all.values().all(|process| process["node"] == to), "{all:?}");
            }
            // A signal to one of them alone; what it makes is of the node where it is now.
            let other = if born == 2 { 3 } else { 2 };
            grid.gridctl(1, ["migrate", &root, "--to", &format!("node{other}")]).ok();
            grid.gridctl(1, ["kill", "-s", "USR1", &root]).ok();
            until("it forked", || grid.logs(1, job, 0).contains("forked"));
            let now = until_some("its children are seen", || {
                let now = processes(grid, 1, job);
                (now.len() == 5).then_some(now)
            });
            let news: Vec<_> = ids(&now).into_iter().filter(|(pid, _)| !first.contains_key(pid)).collect();
            assert!(news.iter().all(|(_, (gpid, _))| gpid.starts_with(&format!("{other}."))), "{news:?}");
            assert_eq!(news[0].1.1.as_ref(), Some(&root), "{news:?}");
            // What a checkpoint has comes back with it, when its node is lost.
            let written = grid.gridctl(1, ["checkpoint", &job.to_string(), "--json"]).json();
            let number = written[0]["checkpoints"][0]["number"].as_u64().unwrap();
            let saved = ids(&now);
            until("the home has it", || {
                let shown = grid.gridctl(1, ["checkpoints", &job.to_string(), "--json"]).json();
                let all = shown[0]["checkpoints"].as_array().unwrap();
                all.iter().any(|one| one["node"] == 1 && one["number"].as_u64().unwrap() >= number)
            });
            grid.machine(other).kill().unwrap();
            until("it goes on elsewhere", || {
                let status = grid.job(1, job);
                let task = &status.tasks[0];
                task.node == Some(NodeId(born)) && task.state == libgrid::status::TaskState::Running
            });
            assert_eq!(ids(&processes(grid, 1, job)), saved, "after a restore");
            grid.gridctl(1, ["kill", "-s", "KILL", &root]).ok();
            assert_eq!(grid.wait(1, job).tasks[0].outcome, Some(Outcome::Signaled(9)));
            grid.gridctl(1, ["status", &root]).says(&[&root]);
        },
    );
}

#[test]
fn a_process_keeps_its_id_through_moves_restarts_and_losses() {
    a_process_keeps_its_id("a_process_keeps_its_id_through_moves_restarts_and_losses", "", "ebpf");
}

#[test]
fn a_process_keeps_its_id_without_ebpf_too() {
    a_process_keeps_its_id("a_process_keeps_its_id_without_ebpf_too", "ebpf = false\n", "stack");
}

#[test]
fn processes_are_their_owners_and_roots_to_see_and_to_end() {
    with(
        "processes_are_their_owners_and_roots_to_see_and_to_end",
        || Grid::up("owners", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            let submit = ["submit", "--node", "node2", "--mem", "64M", "--", "sleep", "1000"];
            let theirs: JobId = grid.gridctl_as(1, NOBODY, &folder, submit).ok().parse().unwrap();
            let ours: JobId = grid.gridctl(1, submit).ok().parse().unwrap();
            let gpid = |job: JobId| {
                until_some("it runs", || {
                    Some(ids(&processes(grid, 1, job)).into_values().next()?.0)
                        .filter(|gpid| !gpid.is_empty())
                })
            };
            let (their, our) = (gpid(theirs), gpid(ours));
            let listed = |run: grid_tests::Run| -> Vec<String> {
                let all = run.json();
                let all = all["processes"].as_array().unwrap();
                all.iter().map(|process| process["gpid"].as_str().unwrap().to_owned()).collect()
            };
            let as_them = |args: &[&str]| grid.gridctl_as(1, NOBODY, &folder, args);
            assert_eq!(listed(as_them(&["ps", "--processes", "--json"])), std::slice::from_ref(&their));
            let mut both = vec![their.clone(), our.clone()];
            both.sort();
            let mut seen = listed(grid.gridctl(1, ["ps", "--processes", "--json"]));
            seen.sort();
            assert_eq!(seen, both);
            let mut seen = listed(grid.gridctl(2, ["ps", "--processes", "--everywhere", "--json"]));
            seen.sort();
            assert_eq!(seen, both, "root of another node");
            // The same number on another node is another user.
            let elsewhere = grid.gridctl_as(2, NOBODY, &folder, ["ps", "--processes", "-e", "--json"]);
            assert!(listed(elsewhere).is_empty());
            for refused in [
                as_them(&["ps", "--processes", &ours.to_string()]),
                as_them(&["status", &our]),
                as_them(&["kill", "-s", "KILL", &our]),
                as_them(&["migrate", &our, "--to", "node1"]),
            ] {
                assert_eq!(refused.status, 1, "{refused:?}");
                refused.says(&["is root@node1's"]);
            }
            as_them(&["kill", "-s", "KILL", &their]).ok();
            assert_eq!(grid.wait(1, theirs).tasks[0].outcome, Some(Outcome::Signaled(9)));
            assert_eq!(ids(&processes(grid, 1, ours)).len(), 1, "it goes on");
        },
    );
}

#[test]
fn whoever_asks_for_a_process_that_is_not_there_is_told_so() {
    with(
        "whoever_asks_for_a_process_that_is_not_there_is_told_so",
        || Grid::up("fate", 2),
        |grid| {
            for (args, status, says) in [
                (&["status", "1.4000000"][..], 1, "no process 1.4000000 runs in this VO"),
                (&["kill", "9.1"], 1, "no process 9.1 runs in this VO"),
                (&["status", "1.01"], 2, "is not a process: write it as gridctl printed it, such as 2.5031"),
                (&["status", "1"], 2, "is not a process"),
                (&["ps", "j1.1"], 2, "--processes"),
                (&["top", "--sort", "size"], 2, "cpu"),
            ] {
                let run = grid.gridctl(1, args);
                assert!(run.status == status && run.stderr.contains(says), "{run:?}");
            }
            let spec =
                JobSpec { nodes: vec!["node2".into()], ..sh("sleep 1000 & echo ready; wait $!; exit 5") };
            let job = grid.submit(1, spec);
            until("it is ready", || grid.logs(1, job, 0).contains("ready"));
            let all = until_some("both are seen", || {
                let all = processes(grid, 1, job);
                all.values().any(|process| process["name"] == "sleep").then_some(all)
            });
            let gpid = |name: &str| {
                let process = all.values().find(|process| process["name"] == name).unwrap();
                process["gpid"].as_str().unwrap().to_owned()
            };
            let bad = grid.gridctl(1, ["kill", "-s", "99", &gpid("sleep")]);
            assert_eq!(bad.status, 1);
            bad.says(&["99", "is no signal"]);
            // In full, and as it changes.
            let status = grid.gridctl(1, ["status", &gpid("sleep")]);
            for part in ["sleep", &format!("of {job}/0 on node 2"), "made by", "faults", "switches"] {
                assert!(status.ok().contains(part), "{part}: {status:?}");
            }
            let top = grid.gridctl(1, ["top", "--once", "--interval", "100ms", &job.to_string()]);
            assert!(top.ok().contains("%CPU") && top.stdout.contains(&gpid("sleep")), "{top:?}");
            grid.gridctl(1, ["kill", "-s", "KILL", &gpid("sleep")]).ok();
            assert_eq!(grid.wait(1, job).tasks[0].outcome, Some(Outcome::Exited(5)));
            if !has(grid, "tier", "ebpf") {
                return;
            }
            let told = |gpid: &str, how: &str| {
                until(&format!("it is told how {gpid} ended"), || {
                    grid.gridctl(1, ["status", gpid]).stderr.contains(how)
                });
            };
            told(&gpid("sleep"), "sleep, ended by signal 9");
            told(&gpid("sh"), "sh, ended with status 5");
        },
    );
}

#[test]
fn connections_are_told_with_their_ends_and_what_went_over_them() {
    with(
        "connections_are_told_with_their_ends_and_what_went_over_them",
        || Grid::up("connections", 2),
        |grid| {
            if !has(grid, "tier", "ebpf") {
                return;
            }
            // Two tasks on two nodes: one sends a million bytes to the other, which answers with a few; both wait then.
            let python = |node: &str, script: String| {
                let spec = JobSpec::command(["python3", "-u", "-c", script.as_str()]).memory(Bytes(64 << 20));
                grid.submit(1, JobSpec { nodes: vec![node.into()], ..spec })
            };
            let server = python(
                "node1",
                "import socket, time\ns = socket.create_server(('', 7070)); print('ready'); c, _ = s.accept()\n\
                 left = 1000000\nwhile left: left -= len(c.recv(left))\n\
                 c.send(b'thanks'); print('all'); time.sleep(1000)"
                    .into(),
            );
            until("it listens", || grid.logs(1, server, 0).contains("ready"));
            let script = format!(
                "import socket, time\nc = socket.create_connection(('{}', 7070)); c.sendall(bytes(1000000))\n\
                 print(c.getsockname()[1], len(c.recv(6))); time.sleep(1000)",
                grid.machine(1).addr()
            );
            let client = python("node2", script);
            until("all came", || grid.logs(1, client, 0).contains(" 6"));
            let port = grid.logs(1, client, 0).split(' ').next().unwrap().to_owned();
            let ends =
                [format!("{}:7070", grid.machine(1).addr()), format!("{}:{port}", grid.machine(2).addr())];
            for (job, sent, received, local, remote) in
                [(server, 6, 1_000_000, 0_u64, 1), (client, 1_000_000, 6, 1, 0)]
            {
                let all = processes(grid, 1, job);
                let process = all.values().next().unwrap();
                // The end that opened it counts one more each way.
                let counted = |what: &str, bytes: u64| {
                    let more = process["connections"][0][what].as_u64().unwrap().checked_sub(bytes);
                    assert!(more.is_some_and(|more| more <= local), "{what}: {process}");
                };
                counted("sent", sent);
                counted("received", received);
                // The socket that only listens is none.
                assert_eq!(process["connections"].as_array().unwrap().len(), 1, "{process}");
                let connection = &process["connections"][0];
                if let [traffic] = &process["traffic"].as_array().unwrap()[..] {
                    assert_eq!(traffic["remote"].as_str(), ends[remote].rsplit_once(':').map(|(ip, _)| ip));
                    assert_eq!(traffic["node"].as_u64(), Some(remote as u64 + 1), "{process}");
                    for (what, bytes) in [("sent", sent), ("received", received)] {
                        // With headers.
                        let all = traffic[what].as_u64().unwrap();
                        assert!(all > bytes && all < bytes + bytes / 10 + 20_000, "{what}: {process}");
                        assert_eq!(process[what], traffic[what]);
                    }
                } else {
                    // Where packets are not counted.
                    assert!(has(grid, "tier", "packets are not counted"), "{process}");
                    assert_eq!(process["sent"], connection["sent"]);
                }
                let told = (connection["local"].as_str().unwrap(), connection["remote"].as_str().unwrap());
                assert_eq!(told, (ends[local as usize].as_str(), ends[remote].as_str()));
                assert!(connection["segments_sent"].as_u64().unwrap() > 0, "{connection}");
                let shown = grid.gridctl(2, ["status", process["gpid"].as_str().unwrap()]);
                assert!(shown.ok().contains(&format!("tcp        {} to {}", told.0, told.1)), "{shown:?}");
                grid.gridctl(1, ["kill", "-s", "KILL", &job.to_string()]).ok();
            }
        },
    );
}

/// Of the map of all marks: another number is another map.
fn inode(grid: &Grid, node: u32) -> String {
    let stat = grid.machine(node).exec("stat").args(["-c", "%i", "/run/gridos/bpf/marks"]).output().unwrap();
    assert!(stat.status.success(), "{stat:?}");
    String::from_utf8(stat.stdout).unwrap()
}

/// Ends the agent as a service manager does, and waits for the next.
fn end_agent(grid: &Grid, node: u32) {
    let pid = grid.agents()[node as usize - 1].unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    until("another agent runs", || grid.agents()[node as usize - 1].is_some_and(|now| now != pid));
    grid.until_up(node, 1);
}

#[test]
fn programs_go_on_as_long_as_there_are_tasks() {
    with(
        "programs_go_on_as_long_as_there_are_tasks",
        || Grid::up("programs", 1),
        |grid| {
            if !has(grid, "tier", "ebpf") {
                return;
            }
            let (job, first) = plant(grid, sh(TREE));
            let before = inode(grid, 1);
            end_agent(grid, 1);
            assert_eq!(inode(grid, 1), before, "a task is there");
            grid.machine(1).stop_agent().unwrap();
            // Forked while no agent was there, and known to the next.
            let is_root = |pid: &i32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).starts_with("sh\0-c\0trap")
            };
            let root = grid.task_processes(1).into_iter().find(is_root).unwrap();
            let many = grid.task_processes(1).len();
            kill(Pid::from_raw(root), Signal::SIGUSR1).unwrap();
            until("it forked", || grid.task_processes(1).len() == many + 2);
            grid.machine(1).start_agent().unwrap();
            grid.until_up(1, 1);
            let now = until_some("all are told", || {
                let now = ids(&processes(grid, 1, job));
                (now.len() == 5).then_some(now)
            });
            assert!(first.iter().all(|(pid, id)| now.get(pid) == Some(id)), "{first:?} {now:?}");
            // One that is found later cannot tell who made it.
            assert_eq!(now.values().filter(|(_, parent)| parent.is_none()).count(), 1, "{now:?}");
            grid.gridctl(1, ["kill", "-s", "KILL", &job.to_string()]).ok();
            grid.wait(1, job);
            until("no task is left, and nothing of the programs", || {
                end_agent(grid, 1);
                inode(grid, 1) != before
            });
            assert!(has(grid, "tier", "ebpf"), "loaded anew");
        },
    );
}
