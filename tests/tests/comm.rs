//! Messages between processes of jobs (`libgrid::comm`): in order and once, whatever becomes of nodes, agents and tasks.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use grid_tests::{Grid, GridConfig, NOBODY, until, until_some, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};

/// A job that talks, on this node.
fn talker(grid: &Grid, node: u32, words: &[&str]) -> JobSpec {
    let program = grid.lend("grid-talker").display().to_string();
    let words = std::iter::once(program.as_str()).chain(words.iter().copied());
    let spec = JobSpec::command(words).cpus(Cpus::from_milli(200)).memory(Bytes(128 << 20));
    JobSpec { nodes: vec![format!("node{node}")], ..spec }
}

/// The same, that may move between these two.
fn mover(grid: &Grid, nodes: [u32; 2], words: &[&str]) -> JobSpec {
    JobSpec { nodes: nodes.iter().map(|node| format!("node{node}")).collect(), ..talker(grid, 1, words) }
}

/// The id that a talker says it has.
fn gpid(grid: &Grid, job: JobId) -> String {
    until_some("it says who it is", || {
        let logs = grid.logs(1, job, 0);
        assert!(!logs.contains("cannot open"), "{logs}");
        logs.lines().find_map(|line| line.strip_prefix("gpid ").map(str::to_owned))
    })
}

/// How many answers came to it so far, about.
fn came(grid: &Grid, job: JobId) -> u64 {
    let logs = grid.logs(1, job, 0);
    assert!(!logs.contains("failed") && !logs.contains("panicked"), "{logs}");
    logs.lines().rev().find_map(|line| line.strip_prefix("came ")?.parse().ok()).unwrap_or(0)
}

fn ends_well(grid: &Grid, job: JobId) -> String {
    let status = grid.wait(1, job);
    let logs = grid.logs(1, job, 0);
    assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(0)), "{logs}");
    assert!(logs.ends_with("OK\n"), "{logs}");
    logs
}

fn touch(path: &Path) {
    fs::write(path, "").unwrap();
}

fn move_to(grid: &Grid, job: JobId, node: u32, mode: &str) {
    let to = format!("node{node}");
    let moved = grid.gridctl(1, ["migrate", &job.to_string(), "--to", &to, "--mode", mode, "--json"]);
    assert_eq!(moved.json()[0]["moved"]["to"], node, "{moved:?}");
}

#[test]
fn a_stream_goes_on_while_both_ends_move_and_agents_are_killed() {
    with(
        "a_stream_goes_on_while_both_ends_move_and_agents_are_killed",
        || Grid::up("commmoves", 3),
        |grid| {
            let go = grid.dir().join("go");
            let echo = grid.submit(1, mover(grid, [2, 3], &["echo"]));
            let peer = gpid(grid, echo);
            let go_text = go.display().to_string();
            let stream = grid.submit(1, mover(grid, [2, 3], &["stream", &peer, &go_text, "0", "500"]));
            let flows = |more: u64| {
                let before = came(grid, stream);
                until("it flows", || came(grid, stream) >= before + more);
            };
            flows(500);
            for (round, mode) in ["stop-and-copy", "hybrid", "stop-and-copy"].into_iter().enumerate() {
                let at = |job| grid.places(1, job)[0].unwrap().0;
                let other = |node: u32| if node == 2 { 3 } else { 2 };
                move_to(grid, echo, other(at(echo)), mode);
                flows(500);
                move_to(grid, stream, other(at(stream)), mode);
                flows(500);
                grid.kill_agent(2 + round as u32 % 2);
                grid.until_up(1, 3);
                until("it still flows", || came(grid, stream) > 0);
                flows(500);
            }
            // Both at once.
            let at = |job| grid.places(1, job)[0].unwrap().0;
            let goals = [(echo, 5 - at(echo)), (stream, 5 - at(stream))];
            std::thread::scope(|scope| {
                for (job, node) in goals {
                    scope.spawn(move || move_to(grid, job, node, "stop-and-copy"));
                }
            });
            flows(500);
            touch(&go);
            println!("{}", ends_well(grid, stream).lines().rev().nth(1).unwrap());
            ends_well(grid, echo);
        },
    );
}

#[test]
fn a_line_that_is_cut_delays_and_loses_nothing() {
    with(
        "a_line_that_is_cut_delays_and_loses_nothing",
        || Grid::up("commcut", 3),
        |grid| {
            let go = grid.dir().join("go");
            let echo = grid.submit(1, talker(grid, 2, &["echo"]));
            let peer = gpid(grid, echo);
            let stream =
                grid.submit(1, talker(grid, 1, &["stream", &peer, &go.display().to_string(), "0", "1000"]));
            until("it flows", || came(grid, stream) >= 500);
            grid.machine(2).cut().unwrap();
            // Far less than the five seconds after which a node that is cut off stops its tasks: it takes some to come back.
            std::thread::sleep(Duration::from_secs(1));
            grid.machine(2).heal().unwrap();
            let before = came(grid, stream);
            until("it flows again", || came(grid, stream) >= before + 1000);
            touch(&go);
            ends_well(grid, stream);
            ends_well(grid, echo);
        },
    );
}

#[test]
fn whoever_does_not_take_messages_makes_the_sender_wait() {
    with(
        "whoever_does_not_take_messages_makes_the_sender_wait",
        || Grid::up("commslow", 2),
        |grid| {
            let go = grid.dir().join("go");
            let slow = grid.submit(1, talker(grid, 2, &["slow", &go.display().to_string()]));
            let peer = gpid(grid, slow);
            let fill = grid.submit(1, talker(grid, 1, &["fill", &peer]));
            let full = until_some("it is full", || {
                let logs = grid.logs(1, fill, 0);
                logs.lines().find_map(|line| line.strip_prefix("full after ").map(str::to_owned))
            });
            let count: u64 = full.split(':').next().unwrap().parse().unwrap();
            // Two windows of 2 MiB, of messages of 10 KB.
            assert!((200..450).contains(&count), "{full}");
            assert!(full.contains("takes nothing"), "{full}");
            touch(&go);
            let sent = ends_well(grid, fill);
            let took = ends_well(grid, slow);
            assert!(sent.contains(&format!("sent {}", count + 1000)), "{sent}");
            assert!(took.contains(&format!("took {}", count + 1000)), "{took}");
        },
    );
}

#[test]
fn who_is_not_there_or_is_somebody_elses_is_told_with_a_reason() {
    with(
        "who_is_not_there_or_is_somebody_elses_is_told_with_a_reason",
        || Grid::up("commrights", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            let fails = |job: JobId, words: &[&str]| {
                let status = grid.wait(1, job);
                let logs = grid.logs(1, job, 0);
                assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(4)), "{logs}");
                assert!(words.iter().all(|word| logs.contains(word)), "{logs}");
            };
            fails(
                grid.submit(1, talker(grid, 1, &["try", "1.4000000"])),
                &["1.4000000 cannot be reached", "no such process"],
            );
            // A process that has no endpoint.
            let deaf = grid
                .submit(1, JobSpec { nodes: vec!["node2".into()], ..JobSpec::command(["sleep", "1000"]) });
            let id = until_some("it runs", || {
                let listed = grid.gridctl(1, ["ps", "--processes", &deaf.to_string(), "--json"]).json();
                listed["processes"][0]["gpid"].as_str().map(str::to_owned)
            });
            fails(
                grid.submit(1, talker(grid, 1, &["try", &id])),
                &["has no endpoint yet", "no answer within"],
            );
            grid.gridctl(1, ["kill", "-s", "KILL", &deaf.to_string()]).ok();
            // Somebody else's, on either node.
            let ours = grid.submit(1, talker(grid, 2, &["echo"]));
            let peer = gpid(grid, ours);
            let program = grid.lend("grid-talker").display().to_string();
            for node in ["node1", "node2"] {
                let args = ["submit", "--mem", "64M", "--node", node, "--", &program, "try", &peer];
                let theirs: JobId = grid.gridctl_as(1, NOBODY, &folder, args).ok().parse().unwrap();
                fails(theirs, &["may not be talked to", &format!("part of {ours}"), "another user's"]);
            }
            // The same user's may, from the same node and from the other.
            for node in [1, 2] {
                ends_well(grid, grid.submit(1, talker(grid, node, &["try", &peer])));
            }
            // A user of the machine, but no task.
            let run = grid.run_as(1, NOBODY, Path::new(&program), &["echo"]);
            assert!(run.status == 3 && run.stdout.contains("no process of a job"), "{run:?}");
        },
    );
}

#[test]
fn a_vo_that_says_so_lets_all_its_jobs_talk() {
    with(
        "a_vo_that_says_so_lets_all_its_jobs_talk",
        || GridConfig { extra: "comm = \"vo\"\n", ..GridConfig::new("commvo", 2) }.up(),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            let peer = gpid(grid, grid.submit(1, talker(grid, 2, &["echo"])));
            let program = grid.lend("grid-talker").display().to_string();
            let args = ["submit", "--mem", "64M", "--node", "node1", "--", &program, "try", &peer];
            let theirs: JobId = grid.gridctl_as(1, NOBODY, &folder, args).ok().parse().unwrap();
            ends_well(grid, theirs);
        },
    );
}

#[test]
fn an_end_that_goes_back_to_a_checkpoint_is_told_to_both() {
    with(
        "an_end_that_goes_back_to_a_checkpoint_is_told_to_both",
        || Grid::up("commback", 2),
        |grid| {
            let go = grid.dir().join("go");
            let echo = grid.submit(1, talker(grid, 2, &["echo"]));
            let peer = gpid(grid, echo);
            let stream =
                grid.submit(1, talker(grid, 1, &["stream", &peer, &go.display().to_string(), "100", "1000"]));
            until("it flows", || came(grid, stream) >= 500);
            let written = grid.gridctl(1, ["checkpoint", &echo.to_string(), "--json"]).json();
            let number = written[0]["checkpoints"][0]["number"].as_u64().unwrap();
            let before = came(grid, stream);
            until("it flows on", || came(grid, stream) >= before + 500);
            grid.gridctl(1, ["restore", &echo.to_string(), "--from", &number.to_string()]).ok();
            for job in [stream, echo] {
                let status = grid.wait(1, job);
                let logs = grid.logs(1, job, 0);
                assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(4)), "{logs}");
                assert!(logs.contains("broke"), "{logs}");
            }
        },
    );
}
