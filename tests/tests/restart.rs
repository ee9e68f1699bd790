//! Agent restart: agents are killed and stopped, and the tasks never notice.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use grid_tests::{Grid, GridConfig, Line, until, with};
use libgrid::spec::JobSpec;
use libgrid::status::{Outcome, TaskState};
use libgrid::units::{Bytes, Cpus};

/// The tests here load the machine: one after the other.
static TURN: Mutex<()> = Mutex::new(());

fn alone<G>(test: &str, make: impl FnOnce() -> G, body: impl FnOnce(&G)) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    with(test, make, body);
}

fn sh(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(10)).memory(Bytes(16 << 20))
}

#[test]
fn two_hundred_tasks_outlive_every_agent() {
    alone(
        "two_hundred_tasks_outlive_every_agent",
        || Grid::up("outlive", 3),
        |grid| {
            let witness = grid.witness("witness");
            // Blocks without a process of its own, and without work: the agents are to be the load.
            witness.gate("end");
            let body = format!("echo begun; {}; (exit $((GRIDOS_INDEX % 7)))", witness.blocked_on("end"));
            let job = grid.submit(1, sh(&witness.script(&body)).array(0, 149));
            let other = grid.submit(2, sh(&witness.script(&body)).array(200, 249));
            grid.until_running(1, job);
            grid.until_running(2, other);
            let indices = || (0..150).chain(200..250);
            until("every task has begun", || indices().all(|index| witness.count(index, "start") == 1));
            let nodes: std::collections::BTreeSet<_> = grid.places(1, job).into_iter().collect();
            assert_eq!(nodes.len(), 3, "{nodes:?}");
            let before: Vec<_> = (1..=3).map(|index| sorted(grid.task_processes(index))).collect();

            // One after the other, the next when the one before is back.
            for index in 1..=3 {
                let pid = grid.machine(index).kill_agent().unwrap();
                until("another agent runs", || {
                    grid.machine(index).agent_pid().unwrap().is_some_and(|p| p != pid)
                });
                grid.client(index);
            }
            // All at once, twice: the second time while they look for what was there.
            for _ in 0..2 {
                std::thread::scope(|scope| {
                    for index in 1..=3 {
                        scope.spawn(move || grid.kill_agent(index));
                    }
                });
            }
            (1..=3).for_each(|index| grid.until_up(index, 3));
            grid.until_running(1, job);
            grid.until_running(2, other);
            let after: Vec<_> = (1..=3).map(|index| sorted(grid.task_processes(index))).collect();
            assert_eq!(before, after, "a task died or was started");
            let (one, two) = (grid.job(1, job), grid.job(2, other));
            assert!(one.tasks.iter().chain(&two.tasks).all(|task| task.epoch == 1), "started again");
            until("every task has ended", || {
                witness.open_gate("end");
                indices().all(|index| witness.count(index, "end") == 1)
            });
            for (index, job) in [(1, job), (2, other)] {
                let status = grid.wait(index, job);
                for task in &status.tasks {
                    let expected = Outcome::Exited((task.index % 7) as i32);
                    assert_eq!(task.outcome.as_ref(), Some(&expected), "{task:?}");
                    witness.ran_once(task.index);
                }
            }
            assert_eq!(grid.logs(3, job, 77), "begun\n");
        },
    );
}

fn sorted(mut pids: Vec<i32>) -> Vec<i32> {
    pids.sort_unstable();
    pids
}

#[test]
fn an_array_of_short_tasks_runs_once_each_while_agents_are_killed() {
    alone(
        "an_array_of_short_tasks_runs_once_each",
        || Grid::up("short", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = grid.submit(
                1,
                sh(&witness.script("sleep 0.1; (exit $((GRIDOS_INDEX % 5)))"))
                    .array(0, 299)
                    .cpus(Cpus::from_milli(800)),
            );
            let over = AtomicBool::new(false);
            let kills = std::thread::scope(|scope| {
                let killer = scope.spawn(|| {
                    // Never in step with anything: the moments are as good as random.
                    let mut kills = 0;
                    while !over.load(Ordering::Relaxed) && kills < 60 {
                        let ended = grid.try_job(1, job).map_or(0, |status| status.summary.counts.done());
                        grid.kill_agent(kills * 7 % 3 + 1);
                        kills += 1;
                        let begun = std::time::Instant::now();
                        until("some more ended, or some time passed", || {
                            over.load(Ordering::Relaxed)
                                || begun.elapsed() > Duration::from_millis(700)
                                || grid
                                    .try_job(1, job)
                                    .is_some_and(|status| status.summary.counts.done() > ended + 9)
                        });
                    }
                    kills
                });
                let status = grid.wait_within(1, job, Duration::from_secs(110));
                over.store(true, Ordering::Relaxed);
                for task in &status.tasks {
                    let expected = Outcome::Exited((task.index % 5) as i32);
                    assert_eq!(task.outcome.as_ref(), Some(&expected), "{task:?}");
                }
                killer.join().unwrap()
            });
            assert!(kills > 5, "only {kills} kills: the array was over too soon to prove anything");
            for index in 0..300 {
                witness.never_overlapped(index);
                let lines = witness.lines(index);
                let ends: Vec<&Line> = lines.iter().filter(|line| line.what == "end").collect();
                // A run that was placed, but never reached a shim, has no lines; one that ended is not run again.
                assert_eq!(ends.len(), 1, "task {index}: {lines:?}");
                assert_eq!(
                    lines.iter().filter(|line| line.what == "start").count(),
                    1,
                    "task {index}: {lines:?}"
                );
            }
        },
    );
}

#[test]
fn inputs_and_results_arrive_whole_while_agents_are_killed() {
    alone(
        "inputs_and_results_arrive_whole",
        || Grid::up("staging", 3),
        |grid| {
            let folder = grid.folder("work", 0);
            fs::create_dir(folder.join("in")).unwrap();
            let bytes: Vec<u8> =
                (0..8_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            fs::write(folder.join("in/data"), &bytes).unwrap();
            let script = "mkdir out && cp in/data out/{index} && echo done-{index}";
            let args = ["submit", "--array", "0-5", "--cpus", "0.5", "--mem", "64M", "--stage-in", "in"];
            let rest = ["--stage-out", "out/{index}", "--", "sh", "-c", script];
            let job = grid.gridctl_as(1, 0, &folder, args.iter().chain(&rest)).ok().parse().unwrap();
            // Agents die while inputs are sent and unpacked, and again while results come back.
            let mut round = 0;
            until("the job is done", || {
                if round < 12 {
                    grid.kill_agent(round % 3 + 1);
                    round += 1;
                }
                grid.try_job(1, job).is_some_and(|status| status.summary.is_done())
            });
            let status = grid.job(1, job);
            assert!(
                status.summary.succeeded(),
                "{:#?}",
                status.tasks.iter().map(|task| &task.outcome).collect::<Vec<_>>()
            );
            for index in 0..6 {
                assert!(
                    fs::read(folder.join(format!("out/{index}"))).unwrap() == bytes,
                    "out/{index} is damaged"
                );
                assert_eq!(grid.logs(2, job, index), format!("done-{index}\n"));
            }
            let names: Vec<_> =
                fs::read_dir(folder.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names.len(), 6, "half-written files stay: {names:?}");
        },
    );
}

#[test]
fn an_agent_that_is_stopped_and_started_finds_its_tasks_and_jobs() {
    alone(
        "an_agent_that_is_stopped_and_started",
        || Grid::up("stop", 2),
        |grid| {
            let witness = grid.witness("witness");
            let on = |node: &str, index: u32, status: u32| {
                witness.gate(&format!("end{index}"));
                let wait = witness.blocked_on(&format!("end{index}"));
                let body = witness.script(&format!("echo begun; {wait}; (exit {status})"));
                JobSpec { nodes: vec![node.into()], ..sh(&body) }.array(index, index)
            };
            let here = grid.submit(1, on("node1", 0, 3));
            let there = grid.submit(1, on("node2", 1, 4));
            grid.until_running(1, here);
            grid.until_running(1, there);
            until("both have begun", || witness.count(0, "start") == 1 && witness.count(1, "start") == 1);
            let processes = (sorted(grid.task_processes(1)), sorted(grid.task_processes(2)));
            // In order, as systemd does; the machine starts it again.
            let pid = grid.agents()[0].unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
                .unwrap();
            until("another agent runs", || grid.agents()[0].is_some_and(|now| now != pid));
            grid.until_running(1, here);
            assert_eq!(processes, (sorted(grid.task_processes(1)), sorted(grid.task_processes(2))));
            // Off, while the tasks end: their statuses wait for the next agent.
            grid.machine(1).stop_agent().unwrap();
            let off = grid.gridctl(1, ["status", &here.to_string()]);
            off.says(&["no agent answers", "gridctl up"]);
            until("both ended", || {
                witness.open_gate("end0");
                witness.open_gate("end1");
                witness.count(0, "end") == 1 && witness.count(1, "end") == 1
            });
            grid.machine(1).start_agent().unwrap();
            assert_eq!(grid.wait(1, here).tasks[0].outcome, Some(Outcome::Exited(3)));
            assert_eq!(grid.wait(1, there).tasks[0].outcome, Some(Outcome::Exited(4)));
            for (index, job) in [(0, here), (1, there)] {
                witness.ran_once(index);
                assert_eq!(grid.logs(2, job, index), "begun\n");
            }
            // The limits of an adopted task hold as before.
            let spec = sh("sleep 100").time(Duration::from_secs(4));
            let limited = grid.submit(1, JobSpec { nodes: vec!["node1".into()], ..spec });
            grid.until_running(1, limited);
            grid.kill_agent(1);
            let status = grid.wait(1, limited);
            let limit = libgrid::units::Span(Duration::from_secs(4));
            assert_eq!(status.tasks[0].outcome, Some(Outcome::TimeLimit { limit }));
            assert_eq!(status.tasks[0].state, TaskState::Done);
        },
    );
}

#[test]
fn an_agent_that_starts_alone_still_knows_the_other_nodes() {
    alone(
        "an_agent_that_starts_alone_still_knows_the_other_nodes",
        || Grid::up("alone", 2),
        |grid| {
            grid.machine(2).kill().unwrap();
            // Twice, as what the first one found must not be less for the second.
            for _ in 0..2 {
                grid.kill_agent(1);
                until("the agent answers again", || grid.gridctl(1, ["nodes"]).status == 0);
            }
            let nodes = grid.gridctl(1, ["nodes", "--json"]).json();
            let other = nodes.as_array().unwrap().iter().find(|node| node["info"]["name"] == "node2");
            assert_eq!(other.unwrap()["state"], "down", "{nodes}");
            grid.gridctl(1, ["ls", "node2:/tmp/"])
                .says(&["node 2 cannot be reached", "check that its agent runs"]);
        },
    );
}

#[test]
fn whoever_waits_or_follows_outlasts_the_agent() {
    let make = || GridConfig::new("told", 2).up();
    alone("whoever_waits_or_follows_outlasts_the_agent", make, |grid| {
        let witness = grid.witness("witness");
        let body = format!("echo begun; {}; echo ended; (exit 6)", witness.awaiting("end"));
        let job = grid.submit(1, sh(&witness.script(&body)));
        grid.until_running(1, job);
        let waiting = grid.start(1, ["wait", &job.to_string()]);
        let following = grid.start(1, ["logs", "-f", &job.to_string()]);
        // They are served once they are connected: the follower has what was printed before, too.
        following.until_printed("begun\n");
        until("both are connected", || sockets_of(grid) >= 2);
        grid.kill_agent(1);
        grid.until_running(1, job);
        witness.raise("end");
        let run = waiting.wait();
        assert_eq!(run.status, 6, "{run:?}");
        let run = following.wait();
        assert_eq!((run.status, run.stdout.as_str()), (0, "begun\nended\n"), "{run:?}");
        witness.ran_once(0);
    });
}

/// How many clients are connected to the agent of node 1.
fn sockets_of(grid: &Grid) -> usize {
    let output = grid.machine(1).exec("cat").arg("/proc/net/unix").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Flags 00010000 listens; state 03 is connected.
    text.lines().filter(|line| line.ends_with("/run/gridos/control.sock") && line.contains(" 03 ")).count()
}
