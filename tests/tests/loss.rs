//! Node loss: what ran on a node that is gone runs again elsewhere, and nothing ever runs twice.
//!
//! The tasks tick into the witness, so who ran when is seen without asking any agent.

use std::time::Duration;

use grid_tests::{Grid, Witness, until, until_some, until_within, with};
use libgrid::control::NodeState;
use libgrid::ids::{JobId, NodeId};
use libgrid::spec::JobSpec;
use libgrid::status::{Outcome, TaskState};
use libgrid::units::{Bytes, Cpus};

/// What the issue promises: the tasks of a node that is lost run elsewhere within this time.
const AGAIN: Duration = Duration::from_secs(10);

fn small(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(200)).memory(Bytes(16 << 20))
}

/// Ticks until it is told to end, and then ends with 0.
fn ticking(witness: &Witness) -> JobSpec {
    let end = witness.path("end");
    small(
        &witness.script(&format!(
            "echo begun; while ! test -e {end}; do tell tick; sleep 0.1; done; test -e {end}"
        )),
    )
}

/// Starts a job of six tasks that tick on all three nodes.
fn on_all_nodes(grid: &Grid, home: u32, witness: &Witness) -> JobId {
    let job = grid.submit(home, ticking(witness).array(0, 5));
    until("every task ticks", || (0..6).all(|index| witness.count(index, "tick") > 0));
    grid.until_running(home, job);
    for node in 1..=3 {
        assert!(grid.places(home, job).contains(&Some(NodeId(node))), "none on node {node}");
    }
    job
}

/// The indices of the tasks that are on this node.
fn on(grid: &Grid, home: u32, job: JobId, node: u32) -> Vec<u32> {
    let status = grid.job(home, job);
    status.tasks.iter().filter(|task| task.node == Some(NodeId(node))).map(|task| task.index).collect()
}

/// Waits until these tasks tick in a later epoch, on another node.
fn until_again(witness: &Witness, lost: &[u32], node: u32, limit: Duration) {
    until_within("the tasks run elsewhere", limit, || {
        lost.iter().all(|index| witness.lines(*index).iter().any(|line| line.epoch > 1 && line.node != node))
    });
}

/// Nothing of any task is left on the node.
fn until_clean(grid: &Grid, node: u32) {
    let begun = std::time::Instant::now();
    until(&format!("nothing is left on node{node}"), || {
        let (processes, files) = (grid.task_processes(node), grid.task_files(node));
        let late = begun.elapsed() > grid_tests::PATIENCE / 2;
        assert!(!late, "on node{node} there are still {processes:?} and {files:?}");
        processes.is_empty() && files.is_empty()
    });
}

/// Lets the job end; every task succeeds, and none overlapped with itself.
fn ends_well(grid: &Grid, home: u32, job: JobId, witness: &Witness) {
    witness.raise("end");
    let status = grid.wait(home, job);
    assert!(status.summary.succeeded(), "{status:#?}");
    for task in &status.tasks {
        witness.never_overlapped(task.index);
        assert_eq!(witness.count(task.index, "end"), 1, "{:?}", witness.lines(task.index));
        assert_eq!(grid.logs(home, job, task.index), "begun\n", "the logs are those of one run");
    }
}

#[test]
fn a_killed_nodes_tasks_run_elsewhere_within_ten_seconds() {
    with(
        "a_killed_nodes_tasks_run_elsewhere",
        || Grid::up("kill", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = on_all_nodes(grid, 1, &witness);
            let lost = on(grid, 1, job, 3);
            let stay: Vec<u32> = (0..6).filter(|index| !lost.contains(index)).collect();
            grid.machine(3).kill().unwrap();
            until_again(&witness, &lost, 3, AGAIN);
            until("it is seen to be down", || {
                grid.nodes_at(1).iter().any(|node| node.info.name == "node3" && node.state == NodeState::Down)
            });
            let status = grid.job(1, job);
            for index in stay {
                assert_eq!(
                    status.tasks[index as usize].epoch, 1,
                    "a task on a living node was started again"
                );
            }
            // It comes back by itself, with nothing of its old tasks, and takes new ones.
            grid.machine(3).boot().unwrap();
            (1..=3).for_each(|index| grid.until_up(index, 3));
            until_clean(grid, 3);
            let there =
                grid.submit(1, JobSpec { nodes: vec!["node3".into()], ..small("echo back on $GRIDOS_NODE") });
            assert!(grid.wait(1, there).summary.succeeded());
            assert_eq!(grid.logs(2, there, 0), "back on 3\n");
            ends_well(grid, 1, job, &witness);
        },
    );
}

#[test]
fn a_cut_nodes_tasks_freeze_before_they_run_elsewhere() {
    with(
        "a_cut_nodes_tasks_freeze_before_they_run_elsewhere",
        || Grid::up("cut", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = on_all_nodes(grid, 1, &witness);
            let lost = on(grid, 1, job, 3);
            grid.machine(3).cut().unwrap();
            until_again(&witness, &lost, 3, AGAIN);
            // The old copies are still there, and write no more.
            assert!(!grid.task_processes(3).is_empty(), "nothing is left to be frozen");
            until("the new copies tick on", || {
                lost.iter()
                    .all(|index| witness.lines(*index).iter().filter(|line| line.epoch > 1).count() > 20)
            });
            lost.iter().for_each(|index| witness.never_overlapped(*index));
            // Back again, the old copies are ended, not thawed.
            grid.machine(3).heal().unwrap();
            until_clean(grid, 3);
            grid.until_up(1, 3);
            lost.iter().for_each(|index| witness.never_overlapped(*index));
            let there = grid.submit(1, JobSpec { nodes: vec!["node3".into()], ..small("true") });
            assert!(grid.wait(1, there).summary.succeeded());
            ends_well(grid, 1, job, &witness);
        },
    );
}

#[test]
fn output_that_cannot_be_had_is_missed_and_not_taken_for_none() {
    with(
        "output_that_cannot_be_had_is_missed_and_not_taken_for_none",
        || Grid::up("unheard", 3),
        |grid| {
            let spec =
                JobSpec { nodes: vec!["node2".into(), "node3".into()], ..small("echo begun; sleep 1000") };
            let job = grid.submit(1, spec);
            until("it has begun", || grid.logs(1, job, 0) == "begun\n");
            let name = job.to_string();
            let follower = grid.start(1, ["logs", "-f", &name]);
            follower.until_printed("begun\n");
            let place = grid.places(1, job)[0].unwrap();
            grid.machine(place.0).cut().unwrap();
            let missed = grid.gridctl(1, ["logs", &name]);
            let says = format!("node {place}, where {name}/0 runs, does not answer");
            assert!(missed.status == 1 && missed.stderr.contains(&says), "{missed:?}");
            follower.until_printed("begun\nbegun\n");
            grid.gridctl(1, ["kill", &name]).ok();
            let followed = follower.wait();
            assert!(followed.stderr.contains("was lost, and runs again"), "{followed:?}");
        },
    );
}

#[test]
fn when_the_home_node_is_cut_off_nothing_runs_twice() {
    with(
        "when_the_home_node_is_cut_off_nothing_runs_twice",
        || Grid::up("home", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = on_all_nodes(grid, 1, &witness);
            let own = on(grid, 1, job, 1);
            let others: Vec<u32> = (0..6).filter(|index| !own.contains(index)).collect();
            grid.machine(1).cut().unwrap();
            // The home can reach itself alone.
            until_within("the tasks run at home", AGAIN, || {
                others.iter().all(|index| witness.lines(*index).last().is_some_and(|line| line.node == 1))
            });
            let status = grid.job(1, job);
            assert!(
                own.iter().all(|index| status.tasks[*index as usize].epoch == 1),
                "its own tasks were disturbed"
            );
            grid.machine(1).heal().unwrap();
            until_clean(grid, 2);
            until_clean(grid, 3);
            (1..=3).for_each(|index| grid.until_up(index, 3));
            ends_well(grid, 1, job, &witness);
        },
    );
}

#[test]
fn when_the_home_node_dies_its_jobs_go_on_after_it_boots() {
    with(
        "when_the_home_node_dies_its_jobs_go_on_after_it_boots",
        || Grid::up("dies", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = on_all_nodes(grid, 1, &witness);
            let other = grid.submit(2, small("echo other").array(0, 3));
            assert!(grid.wait(2, other).summary.succeeded());
            let before = grid.submit(1, small("echo before"));
            assert!(grid.wait(1, before).summary.succeeded());
            let far: Vec<u32> = (0..6).filter(|index| !on(grid, 1, job, 1).contains(index)).collect();
            grid.machine(1).kill().unwrap();
            // Without their home, the tasks elsewhere freeze: each stops ticking for good.
            let counts = || far.iter().map(|index| witness.lines(*index).len()).collect::<Vec<_>>();
            let mut last = (counts(), std::time::Instant::now());
            until("the tasks are frozen", || {
                let now = counts();
                if now != last.0 {
                    last = (now, std::time::Instant::now());
                }
                last.1.elapsed() > Duration::from_secs(2)
            });
            let asked = grid.gridctl(2, ["status", &job.to_string()]);
            assert!(asked.refused(1).contains("home node"), "{asked:?}");
            grid.machine(1).boot().unwrap();
            (1..=3).for_each(|index| grid.until_up(index, 3));
            until("all tick again", || {
                let status = grid.try_job(1, job);
                status.is_some_and(|status| status.tasks.iter().all(|task| task.state == TaskState::Running))
            });
            // What had ended before is remembered.
            assert!(grid.job(1, before).summary.succeeded());
            assert_eq!(grid.logs(2, before, 0), "before\n");
            ends_well(grid, 1, job, &witness);
        },
    );
}

#[test]
fn a_cut_that_is_shorter_than_the_lease_loses_nothing() {
    with(
        "a_cut_that_is_shorter_than_the_lease_loses_nothing",
        || Grid::up("brief", 3),
        |grid| {
            let witness = grid.witness("witness");
            let job = on_all_nodes(grid, 1, &witness);
            let (own, cut) = (on(grid, 1, job, 1)[0], on(grid, 1, job, 2)[0]);
            let ticks = |index: u32, more: usize, since: usize| witness.count(index, "tick") >= since + more;
            for _ in 0..2 {
                let since = witness.count(own, "tick");
                grid.machine(2).cut().unwrap();
                // Some 2 s, told by a task that nobody cuts off.
                until("some ticks passed", || ticks(own, 18, since));
                grid.machine(2).heal().unwrap();
                (1..=3).for_each(|index| grid.until_up(index, 3));
            }
            // Longer than lease and margin together: nothing of it has an effect later either.
            let since = witness.count(cut, "tick");
            until("many ticks passed", || ticks(cut, 70, since));
            let status = grid.job(1, job);
            assert!(status.tasks.iter().all(|task| task.epoch == 1), "{status:#?}");
            ends_well(grid, 1, job, &witness);
            (0..6).for_each(|index| witness.ran_once(index));
        },
    );
}

#[test]
fn an_interactive_run_ends_with_a_sentence_when_its_node_dies() {
    with(
        "an_interactive_run_ends_with_a_sentence",
        || Grid::up("interactive", 2),
        |grid| {
            let run = grid.start(
                1,
                ["run", "--cpus", "0.1", "--node", "node2", "--", "sh", "-c", "echo begun; sleep 1000"],
            );
            run.until_printed("begun");
            let job = until_some("its job is listed", || {
                let jobs = grid.gridctl(1, ["ps", "--json"]).json();
                jobs["jobs"][0]["id"].as_str().map(str::to_owned)
            });
            grid.machine(2).kill().unwrap();
            let run = run.wait();
            assert_eq!((run.status, run.stdout.as_str()), (75, "begun\n"), "{run:?}");
            assert_eq!(run.stderr, format!("gridctl: {job} lost with node 2: submit it again\n"));
        },
    );
}

#[test]
fn a_job_that_must_not_be_restarted_is_told_to_be_lost() {
    with(
        "a_job_that_must_not_be_restarted_is_told_to_be_lost",
        || Grid::up("lost", 2),
        |grid| {
            let witness = grid.witness("witness");
            let script = witness.script("sleep 1000");
            let args =
                ["submit", "--no-restart", "--cpus", "0.1", "--node", "node2", "--", "sh", "-c", &script];
            let job = grid.gridctl(1, args).ok().to_owned();
            let id: JobId = job.parse().unwrap();
            let waiting = grid.submit(1, JobSpec { nodes: vec!["node2".into()], ..small("echo again") });
            grid.wait(1, waiting);
            grid.until_running(1, id);
            grid.machine(2).kill().unwrap();
            let status = grid.wait_within(1, id, AGAIN);
            assert_eq!(status.tasks[0].outcome, Some(Outcome::NodeLost { node: NodeId(2) }));
            let waited = grid.gridctl(1, ["wait", &job]);
            assert_eq!(waited.status, 75);
            assert!(waited.stderr.contains("lost with node 2: submit it again"), "{waited:?}");
            assert_eq!(witness.count(0, "start"), 1);
        },
    );
}

#[test]
fn a_job_that_was_killed_while_its_node_was_away_stays_dead() {
    with(
        "a_job_that_was_killed_while_its_node_was_away",
        || Grid::up("doomed", 2),
        |grid| {
            let witness = grid.witness("witness");
            let job = grid.submit(1, JobSpec { nodes: vec!["node2".into()], ..ticking(&witness) });
            until("it ticks", || witness.count(0, "tick") > 0);
            grid.until_running(1, job);
            grid.machine(2).cut().unwrap();
            grid.gridctl(1, ["kill", &job.to_string()]).ok();
            let status = grid.wait_within(1, job, AGAIN);
            assert_eq!(status.tasks[0].outcome, Some(Outcome::Killed(15)));
            grid.machine(2).heal().unwrap();
            until_clean(grid, 2);
            assert!(witness.lines(0).iter().all(|line| line.epoch == 1));
            assert_eq!(witness.count(0, "end"), 0);
        },
    );
}

#[test]
fn in_a_storm_every_task_ends_and_none_runs_twice() {
    with(
        "in_a_storm_every_task_ends_and_none_runs_twice",
        || Grid::up("storm", 3),
        |grid| {
            let witness = grid.witness("witness");
            let body = witness
                .script("i=0; while [ $i -lt 12 ]; do tell tick; sleep 0.1; i=$((i+1)); done; echo whole");
            let job = grid.submit(1, small(&body).cpus(Cpus::from_milli(1500)).array(0, 119));
            let done = |more: u32| {
                let begun = grid.job(1, job).summary.counts.done();
                let since = std::time::Instant::now();
                // In the worst case all is frozen, until the lease is over.
                until("it goes on", || {
                    let counts = grid.job(1, job).summary.counts;
                    counts.done() >= (begun + more).min(counts.total()) || since.elapsed() > AGAIN
                });
            };
            done(6);
            grid.machine(2).cut().unwrap();
            done(10);
            grid.machine(3).kill().unwrap();
            done(10);
            grid.machine(2).heal().unwrap();
            grid.kill_agent(1);
            grid.client(1);
            done(10);
            grid.machine(3).boot().unwrap();
            grid.machine(2).kill().unwrap();
            done(10);
            grid.machine(2).boot().unwrap();
            let status = grid.wait(1, job);
            assert!(status.summary.succeeded(), "{:?}", status.summary);
            for index in 0..120 {
                witness.never_overlapped(index);
                assert_eq!(grid.logs(1, job, index), "whole\n", "task {index}");
                let lines = witness.lines(index);
                let last = lines.last().unwrap();
                assert_eq!(last.what, "end", "task {index}: {lines:?}");
                // The run that ended is the one that counts.
                assert_eq!(status.tasks[index as usize].epoch, last.epoch, "task {index}: {lines:?}");
            }
            (1..=3).for_each(|index| until_clean(grid, index));
        },
    );
}
