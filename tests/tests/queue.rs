//! What jobs wait for besides room: other jobs, their release, the rest of their array.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use grid_tests::{Grid, NOBODY, Shared, until, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::TaskState;
use libgrid::units::{Bytes, Cpus};

static GRID: Shared = Shared::new();

/// Three nodes of 8 cores, which the tests here share.
fn grid() -> Arc<Grid> {
    GRID.get(|| Grid::up("queue", 3))
}

/// Tells when it began and when it ended, in nanoseconds of the machine's clock.
const TIMED: &str = "date +%s%N; sleep 0.3; date +%s%N";

fn sh(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

/// When a task began and ended.
fn times(grid: &Grid, job: JobId, task: u32) -> [u64; 2] {
    let printed = grid.logs(1, job, task);
    let times: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
    times.try_into().unwrap()
}

#[test]
fn jobs_of_several_homes_run_in_the_order_that_is_wanted_though_agents_are_killed() {
    let name = "jobs_of_several_homes_run_in_the_order_that_is_wanted_though_agents_are_killed";
    // Agents are killed, so this grid is nobody else's.
    with(
        name,
        || Grid::up("order", 3),
        |grid| {
            let after = |home: u32, of: String, script: &str| {
                let args = ["submit", "--cpus", "0.1", "--after", &of, "--", "sh", "-c", script];
                grid.gridctl(home, args).ok().parse::<JobId>().unwrap()
            };
            let first = grid.submit(1, sh(TIMED).hold());
            let here = after(1, first.to_string(), TIMED);
            let there = after(2, first.to_string(), TIMED);
            let last = after(3, format!("{there}:any"), TIMED);
            let never = after(2, format!("{first}:failed"), TIMED);
            let neither = after(3, never.to_string(), TIMED);
            let cleaned = after(1, format!("{never}:failed"), TIMED);
            let why = |job: JobId| grid.job(1, job).summary.why.unwrap_or_default();
            assert_eq!(why(here), format!("starts when {first} has succeeded: 0 of its 1 task is done"));
            assert_eq!(why(there), format!("starts when {first} has succeeded: node 1 is asked"));
            assert_eq!(why(first), format!("is held: gridctl release {first} lets it start"));
            for node in 1..=3 {
                grid.kill_agent(node);
            }
            (1..=3).for_each(|node| grid.until_up(node, 3));
            grid.gridctl(2, ["release", &first.to_string()]).ok();
            for job in [first, here, there, last, cleaned] {
                assert!(grid.wait(1, job).summary.succeeded(), "{job}");
            }
            for (before, after) in [(first, here), (first, there), (there, last)] {
                assert!(times(grid, before, 0)[1] <= times(grid, after, 0)[0], "{before} and {after}");
            }
            for (job, says) in [
                (never, format!("it was to run only if {first} failed, and that succeeded")),
                (neither, format!("it was to run after {never}, and that did not succeed")),
            ] {
                let waited = grid.gridctl(1, ["wait", &job.to_string()]);
                assert_eq!(waited.status, 125, "{waited:?}");
                assert!(waited.stderr.contains(&format!("{job}/0 not started: {says}")), "{waited:?}");
            }
            assert_eq!(grid.logs(1, never, 0) + &grid.logs(1, neither, 0), "");
        },
    );
}

#[test]
fn a_job_takes_along_what_those_before_it_brought() {
    with("a_job_takes_along_what_those_before_it_brought", grid, |grid| {
        let folder = grid.folder("chain", NOBODY);
        let submit = |args: &[&str]| {
            let args = ["submit", "--cpus", "0.1"].iter().chain(args);
            grid.gridctl_as(1, NOBODY, &folder, args).ok().to_owned()
        };
        let script = "mkdir -p parts; echo part {index} > parts/{index}";
        let parts =
            submit(&["--array", "0-9%3", "--hold", "--stage-out", "parts/*", "--", "sh", "-c", script]);
        fs::write(folder.join("head"), "all:\n").unwrap();
        let whole = submit(&[
            "--after",
            &parts,
            "--node",
            "node2",
            "--stage-in",
            "parts",
            "--stage-out",
            "whole",
            "--",
            "sh",
            "-c",
            "cat head parts/* > whole",
            "head",
        ]);
        let absent = submit(&["--after", &parts, "--stage-in", "absent", "--", "true"]);
        // A file that others may not read is its user's to take along.
        fs::write(folder.join("secret"), "secret\n").unwrap();
        fs::set_permissions(folder.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let theirs = JobSpec { stage_in: vec!["secret".into()], ..sh("cat secret") };
        std::os::unix::fs::chown(folder.join("secret"), Some(NOBODY), Some(NOBODY)).unwrap();
        let own = submit(&["--after", &parts, "--stage-in", "secret", "--", "cat", "secret"]);
        grid.gridctl(1, ["release", &parts]).ok();
        assert_eq!(grid.gridctl(3, ["wait", &whole, &own]).status, 0);
        let expected: String = (0..10).map(|index| format!("part {index}\n")).collect();
        assert_eq!(fs::read_to_string(folder.join("whole")).unwrap(), format!("all:\n{expected}"));
        assert_eq!(grid.logs(1, own.parse().unwrap(), 0), "secret\n");
        let waited = grid.gridctl(1, ["wait", &absent]);
        assert_eq!(waited.status, 125, "{waited:?}");
        assert!(waited.stderr.contains("there is no absent: name files and folders below"), "{waited:?}");
        // A program that uses libgrid leaves that to the agent, too; a secret of root's is no other user's.
        let job = grid.submit_to(2, theirs.clone(), &folder);
        assert!(grid.wait(2, job).summary.succeeded());
        std::os::unix::fs::chown(folder.join("secret"), Some(0), Some(0)).unwrap();
        let denied = submit(&["--after", &parts, "--stage-in", "secret", "--", "cat", "secret"]);
        // Somebody may mend that.
        let why = || grid.job(1, denied.parse().unwrap()).summary.why.unwrap_or_default();
        until("it tells", || why().contains("Permission denied") && why().contains("is tried again until"));
        std::os::unix::fs::chown(folder.join("secret"), Some(NOBODY), Some(NOBODY)).unwrap();
        assert_eq!(grid.gridctl(1, ["wait", &denied]).status, 0);
    });
}

#[test]
fn what_can_never_start_is_refused_and_what_cannot_now_is_told() {
    with("what_can_never_start_is_refused_and_what_cannot_now_is_told", grid, |grid| {
        let done = grid.submit(1, sh("true")).to_string();
        assert!(grid.wait(2, done.parse().unwrap()).summary.succeeded());
        let failed = grid.submit(2, sh("false")).to_string();
        grid.wait(2, failed.parse().unwrap());
        let only_if = format!("{done}:failed");
        for (after, says) in [
            ("j1.99999", "it was to run after j1.99999, which node 1 does not know"),
            ("j2.99999:any", "it was to run after j2.99999, which node 2 does not know"),
            ("j9.1", "node 9 cannot be asked about it"),
            (&only_if, "and that succeeded"),
            (&failed, "and that did not succeed: see gridctl status"),
        ] {
            let refused = grid.gridctl(1, ["submit", "--after", after, "--", "true"]);
            refused.says(&["after: ", says]);
        }
        let job = grid.gridctl(1, ["submit", "--cpus", "0.1", "--after", &done, "--", "true"]);
        assert_eq!(grid.gridctl(3, ["wait", job.ok()]).status, 0);
        for (args, says) in [
            (["hold", &done], "is done: there is nothing to hold"),
            (["release", &done], "is done: there is nothing to hold"),
            (["hold", "j1.99999"], "there is no j1.99999"),
        ] {
            grid.gridctl(2, args).says(&[says]);
        }
        let endless = grid.submit(1, sh("sleep 1000"));
        grid.until_running(1, endless);
        grid.gridctl(1, ["hold", &endless.to_string()]).says(&["has no task that waits"]);
        grid.gridctl(1, ["release", &endless.to_string()]).says(&["is not held"]);
        let late = grid.gridctl(3, ["wait", "--timeout", "300ms", &endless.to_string()]);
        assert_eq!((late.status, late.stderr.contains("is not done after 0.3s")), (124, true), "{late:?}");
        // Whoever owns a node sees what is there, and whose it is.
        let other = grid.submit(3, JobSpec { nodes: vec!["node2".into()], ..sh("sleep 1000") });
        grid.until_running(3, other);
        let on_node = |name: &str| grid.gridctl(1, ["ps", "--node", name]).ok().to_owned();
        assert!(on_node("node2").contains(&other.to_string()) && on_node("2").contains("root@node3"));
        assert!(!on_node("node3").contains(&other.to_string()));
        grid.gridctl(1, ["ps", "--node", "node9"]).says(&["there is no node node9"]);
        grid.gridctl(1, ["kill", &endless.to_string(), &other.to_string()]).ok();

        let waits = grid.gridctl(1, ["submit", "--cpus", "1000", "--", "true"]);
        let job = waits.ok();
        assert!(
            waits.stderr.contains(&format!("{job} waits: needs 1000 cores; the largest of")),
            "{waits:?}"
        );
        grid.gridctl(1, ["kill", job]).ok();
    });
}

#[test]
fn an_array_runs_some_tasks_at_a_time_and_may_be_held_in_the_middle() {
    with("an_array_runs_some_tasks_at_a_time_and_may_be_held_in_the_middle", grid, |grid| {
        let file = format!(
            "command = ['sh', '-c', '{TIMED}']\ncpus = 0.1\nmemory = '64M'\narray = '0-8%2'\nhold = true\n"
        );
        let submitted = grid.gridctl_with(1, file.as_bytes(), ["submit", "-"]);
        let job: JobId = submitted.ok().parse().unwrap();
        let name = job.to_string();
        grid.gridctl(1, ["release", &name]).ok();
        until("some are done", || grid.job(1, job).summary.counts.succeeded >= 2);
        grid.gridctl(2, ["hold", &name]).ok();
        let busy = || grid.job(1, job).tasks.iter().any(|task| is_under_way(task.state));
        until("nothing of it runs", || !busy());
        let counts = grid.job(1, job).summary.counts;
        assert!(counts.waiting > 0 && counts.waiting + counts.succeeded == 9, "{counts:?}");
        grid.gridctl(3, ["release", &name]).ok();
        assert!(grid.wait(1, job).summary.succeeded());
        let all: Vec<[u64; 2]> = (0..9).map(|task| times(grid, job, task)).collect();
        for [begun, _] in &all {
            let beside = all.iter().filter(|[first, last]| first <= begun && begun < last).count();
            assert!(beside <= 2, "{beside} tasks ran at once: {all:?}");
        }
    });
}

fn is_under_way(state: TaskState) -> bool {
    matches!(state, TaskState::Placed | TaskState::Running)
}
