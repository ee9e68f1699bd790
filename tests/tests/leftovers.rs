//! What stays behind: nothing, after jobs of every sort, and after the grid itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;

use grid_tests::{Grid, until, with};
use libgrid::control::{Stdin, Submission};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};

fn small(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(32 << 20))
}

fn on(node: u32, spec: JobSpec) -> JobSpec {
    JobSpec { nodes: vec![format!("node{node}")], ..spec }
}

/// Jobs that end in every way, on every node, submitted from node 1 and from node 2.
fn mixed_jobs(grid: &Grid) -> Vec<(u32, JobId)> {
    let folder = grid.folder("work", 0);
    fs::create_dir(folder.join("in")).unwrap();
    fs::write(folder.join("in/data"), vec![1; 300_000]).unwrap();
    let mut jobs = Vec::new();
    for home in 1..=2 {
        for node in 1..=3 {
            let mut submit = |spec: JobSpec| jobs.push((home, grid.submit(home, on(node, spec))));
            submit(small("echo fine; mkdir -p a/b; echo x > a/b/c; chmod 0 a/b; (sleep 1000 &)").array(0, 5));
            submit(small("exit 3"));
            submit(small("tail /dev/zero"));
            submit(small("sleep 1000").time(std::time::Duration::from_millis(200)));
            submit(JobSpec::command(["no-such-program"]).cpus(Cpus::from_milli(10)));
            // Results that cannot come home: a file is where their folder was.
            let lost = on(node, small("echo x > x").stage_out(["x"]));
            jobs.push((home, grid.submit_to(home, lost, &folder.join("in/data"))));
            // Inputs that are no archive.
            let broken = Submission::new(on(node, small("true").stage_in(["x"])), &folder);
            let job = grid.client(home).submit_with(broken, |to| to.write_all(&[9; 2000])).unwrap().job;
            jobs.push((home, job));
            // Typed into by nobody: its client is gone before it began.
            let typed =
                Submission { input: Some(Stdin::Pipe), ..Submission::new(on(node, small("cat")), &folder) };
            let job = grid.client(home).submit_with(typed, |_| Ok(())).unwrap().job;
            jobs.push((home, job));
            let node = format!("node{node}");
            let args = ["submit", "--cpus", "0.1", "--stage-in", "in", "--stage-out", "out", "--node", &node];
            let rest = ["--", "sh", "-c", "cp -r in out"];
            let job = grid.gridctl_as(home, 0, &folder, args.iter().chain(&rest));
            jobs.push((home, job.ok().parse().unwrap()));
            let run =
                grid.gridctl_with(home, b"typed\n", ["run", "--cpus", "0.1", "--node", &node, "--", "cat"]);
            assert_eq!(run.ok(), "typed");
        }
    }
    jobs
}

#[test]
fn jobs_of_every_sort_leave_nothing_on_their_nodes() {
    with(
        "jobs_of_every_sort_leave_nothing_on_their_nodes",
        || Grid::up("mixed", 3),
        |grid| {
            let jobs = mixed_jobs(grid);
            let endless = grid.submit(1, small("trap '' TERM; while :; do sleep 0.1; done").array(0, 5));
            grid.until_running(1, endless);
            grid.gridctl(1, ["kill", "-s", "KILL", &endless.to_string()]).ok();
            for (home, job) in &jobs {
                let spec = grid.job(*home, *job).spec;
                // What was to come into a file that is no folder is given up.
                if spec.stage_out == ["x"] {
                    let why = || grid.job(*home, *job).summary.why.unwrap_or_default();
                    until("results that cannot be kept", || why().contains("cannot be brought to"));
                }
                // `cat` waits for input that nobody will type.
                if spec.stage_out == ["x"] || spec.command.last().is_some_and(|word| word == "cat") {
                    grid.gridctl(*home, ["kill", &job.to_string()]);
                }
            }
            let mut ends = std::collections::BTreeSet::new();
            for (home, job) in jobs.iter().copied().chain([(1, endless)]) {
                for task in grid.wait(home, job).tasks {
                    ends.insert(match task.outcome.unwrap() {
                        Outcome::Exited(status) => format!("exited {status}"),
                        Outcome::NotStarted { status, .. } => format!("not started {status}"),
                        Outcome::ResultsLost { .. } => "results lost".to_owned(),
                        Outcome::TimeLimit { .. } => "time limit".to_owned(),
                        Outcome::OutOfMemory { .. } => "out of memory".to_owned(),
                        Outcome::Killed(signal) => format!("killed {signal}"),
                        other => panic!("{job}: {other:?}"),
                    });
                }
            }
            let all = [
                "exited 0",
                "exited 3",
                "killed 15",
                "killed 9",
                "not started 126",
                "not started 127",
                "out of memory",
                "results lost",
                "time limit",
            ];
            assert_eq!(ends.iter().map(String::as_str).collect::<Vec<_>>(), all);
            for index in 1..=3 {
                let begun = std::time::Instant::now();
                let in_time = |what: &dyn std::fmt::Debug| {
                    assert!(begun.elapsed() < grid_tests::PATIENCE / 2, "node{index} keeps {what:?}");
                };
                until(&format!("nothing runs on node{index}"), || {
                    let processes = grid.task_processes(index);
                    in_time(&processes);
                    processes.is_empty()
                });
                // Groups are kept for the next tasks, with nobody in them, under names of places.
                for group in grid.task_cgroups(index) {
                    let name = group.file_name().unwrap().to_string_lossy().into_owned();
                    let place = name.strip_prefix('s').and_then(|number| number.parse::<u32>().ok());
                    assert!(place.is_some_and(|number| number < 65_536), "{name} is no group of a place");
                    assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), "", "{name}");
                }
                until(&format!("node{index} keeps no files of tasks"), || {
                    let files = grid.task_files(index);
                    in_time(&files);
                    files.is_empty()
                });
            }
            // No more shims than are kept ready.
            for index in 1..=3 {
                until("only spare shims stay", || shims(grid, index) <= 2);
            }
        },
    );
}

/// How many shims run on a node.
fn shims(grid: &Grid, index: u32) -> usize {
    let output = grid
        .machine(index)
        .exec("sh")
        .args(["-c", "cat /proc/[0-9]*/comm | grep -c '^gridos-shim$'"])
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn after_down_nothing_of_a_busy_grid_is_left() {
    with(
        "after_down_nothing_of_a_busy_grid_is_left",
        || (),
        |()| {
            let grid = Grid::up("down", 3);
            let traces = grid.traces();
            mixed_jobs(&grid);
            let endless = grid.submit(
                1,
                small("trap '' TERM INT HUP; setsid sleep 1000 & while :; do sleep 1; done").array(0, 8),
            );
            grid.until_running(1, endless);
            grid.machine(2).cut().unwrap();
            grid.machine(3).kill().unwrap();
            assert!(
                traces.all().len() > 10,
                "the search finds nothing of a grid that is up: {:?}",
                traces.all()
            );
            let dir = grid.dir().to_owned();
            drop(grid);
            assert!(!dir.exists());
            assert_eq!(traces.all(), Vec::<String>::new());
        },
    );
}
