//! What a job waits for besides room: other jobs, its release, and its own array.

use std::time::Duration;

use grid_jobs::home::{Collected, Event, Home, Ungathered};
use grid_jobs::message::{Fate, ToHome};
use libgrid::ids::{JobId, NodeId, Run, Selector};
use libgrid::spec::JobSpec;
use libgrid::status::{JobStatus, Outcome, TaskState};

use crate::bench::{Bench, HOST, ME, array, home};

fn after(jobs: &[&str]) -> JobSpec {
    jobs.iter().fold(JobSpec::command(["x"]), |spec, job| spec.after(job.parse().unwrap()))
}

fn first(job: JobId) -> Run {
    Run { task: job.task(0), epoch: 1 }
}

fn status(bench: &Bench, job: JobId) -> JobStatus {
    bench.home.status(Selector::Job(job), 0).unwrap()
}

fn why(bench: &Bench, job: JobId) -> String {
    status(bench, job).summary.why.unwrap_or_default()
}

/// Why a job was never started.
fn never(bench: &Bench, job: JobId) -> String {
    match status(bench, job).tasks[0].outcome.clone() {
        Some(Outcome::NotStarted { why, status: 125 }) => why,
        other => format!("{other:?}"),
    }
}

#[test]
fn a_job_starts_when_those_before_it_have_ended_as_it_wants() {
    let mut bench = Bench::new(home());
    let one = bench.submit(array(2));
    let two = bench.submit(array(1));
    let both = bench.submit(after(&["j1.1", "j1.2:failed"]));
    assert_eq!(
        why(&bench, both),
        "starts when j1.1 has succeeded: 0 of its 2 tasks are done; there is one more job that has to end before"
    );
    bench.end(first(one));
    assert!(why(&bench, both).starts_with("starts when j1.1 has succeeded: 1 of its 2 tasks are done; "));
    bench.end(Run { task: one.task(1), epoch: 1 });
    assert_eq!(why(&bench, both), "starts when j1.2 has failed: 0 of its 1 task is done");
    assert!(!bench.started.contains_key(&first(both)));
    bench.end_with(first(two), 3);
    assert!(bench.started.contains_key(&first(both)));
    // One that comes after jobs that ended long ago need not wait.
    let late = bench.submit(after(&["j1.1", "j1.2:any"]));
    assert!(bench.started.contains_key(&first(late)));
}

#[test]
fn a_job_whose_condition_cannot_be_met_any_more_ends_and_so_do_those_after_it() {
    let mut bench = Bench::new(home());
    let one = bench.submit(array(1));
    // A chain as long as anybody's, each of which ends the next.
    let second = bench.submit(after(&["j1.1"]));
    let chain: Vec<JobId> = (2..5000).map(|serial| bench.submit(after(&[&format!("j1.{serial}")]))).collect();
    let otherwise = bench.submit(after(&["j1.2:failed"]));
    let only_if = bench.submit(after(&["j1.1:failed"]));
    bench.end_with(first(one), 1);
    assert_eq!(
        never(&bench, second),
        "it was to run after j1.1, and that did not succeed: see gridctl status j1.1"
    );
    let last = *chain.last().unwrap();
    assert!(never(&bench, last).starts_with("it was to run after j1.4999, and that did not"), "{last}");
    assert!([otherwise, only_if].iter().all(|job| bench.started.contains_key(&first(*job))));
    let unless = bench.submit(after(&[&format!("{otherwise}:failed")]));
    bench.end(first(otherwise));
    assert_eq!(
        never(&bench, unless),
        format!("it was to run only if {otherwise} failed, and that succeeded")
    );
    assert_eq!(bench.started.len(), 3);
}

#[test]
fn what_a_job_waits_for_outlives_a_restart_of_its_home() {
    let mut bench = Bench::new(home());
    let one = bench.submit(array(1));
    let waits = bench.submit(after(&["j1.1"]));
    let held = bench.submit(array(3).hold());
    let mut bench = bench.restarted();
    assert!(why(&bench, waits).starts_with("starts when j1.1 has succeeded"));
    assert_eq!(why(&bench, held), "is held: gridctl release j1.3 lets it start");
    assert_eq!(bench.started.len(), 1);
    // It ends, and the agent ends before the other one hears of it.
    let before = bench.jobs[&waits].clone();
    bench.end(first(one));
    bench.jobs.insert(waits, before);
    bench.started.remove(&first(waits));
    bench.tasks.retain(|task, _| task.job == one);
    let mut bench = bench.restarted();
    bench.handle(Event::Tick);
    assert!(bench.started.contains_key(&first(waits)));
    assert!(bench.jobs[&waits].unmet.is_empty());
}

#[test]
fn a_job_that_ended_may_be_forgotten_before_the_one_after_it_finds_room() {
    let mut bench = Bench::new(Home::new(ME, 7, 1, Duration::from_secs(60)));
    let one = bench.submit(array(1));
    let waits = bench.submit(after(&["j1.1"]).hold());
    bench.end(first(one));
    bench.now.wall += Duration::from_secs(3600);
    bench.now.mono += Duration::from_secs(3600);
    bench.handle(Event::Tick);
    assert!(bench.home.status(Selector::Job(one), 0).is_none());
    bench.handle(Event::Hold { job: waits, held: false });
    assert!(bench.started.contains_key(&first(waits)));
}

#[test]
fn jobs_of_other_homes_are_asked_for_and_believed() {
    let mut bench = Bench::new(home());
    let theirs: JobId = "j2.9".parse().unwrap();
    let silent = bench.submit(after(&["j3.1"]));
    let good = bench.submit(after(&["j2.9"]));
    let bad = bench.submit(after(&["j2.9:failed"]));
    assert_eq!(why(&bench, good), "starts when j2.9 has succeeded: node 2 is asked");
    assert_eq!(why(&bench, silent), "starts when j3.1 has succeeded: node 3, which knows, does not answer");
    bench.handle(Event::Tick);
    assert_eq!(bench.fates, [theirs, "j3.1".parse().unwrap()]);
    bench.handle(Event::Tick);
    assert_eq!(bench.fates.len(), 2, "not more often than every two seconds");
    bench.handle(Event::Fate { job: theirs, fate: Fate::Unfinished });
    assert!(bench.started.is_empty());
    bench.handle(Event::Fate { job: theirs, fate: Fate::Ended { succeeded: true } });
    assert!(bench.started.contains_key(&first(good)));
    assert_eq!(never(&bench, bad), "it was to run only if j2.9 failed, and that succeeded");
    let home = NodeId(3);
    bench.handle(Event::Fate { job: JobId { home, serial: 1 }, fate: Fate::Unknown });
    let forgotten = "it was to run after j3.1, which node 3 does not know: see gridctl ps --all on that node";
    assert_eq!(never(&bench, silent), forgotten);
    bench.now.mono += Duration::from_secs(10);
    bench.handle(Event::Tick);
    assert_eq!(bench.fates.len(), 2, "nothing is left to ask");
}

#[test]
fn inputs_that_did_not_come_along_are_gathered_once_when_the_job_may_start() {
    let mut bench = Bench::new(home());
    let one = bench.submit(array(1));
    let waits = bench.submit(after(&["j1.1"]).stage_in(["out/"]).hold());
    bench.end(first(one));
    assert!(bench.gathers.is_empty(), "what it is held for may bring more");
    bench.handle(Event::Hold { job: waits, held: false });
    bench.handle(Event::Tick);
    assert_eq!(bench.gathers, [waits]);
    assert_eq!(why(&bench, waits), "its inputs are gathered from /");
    let mut bench = bench.restarted();
    assert_eq!(bench.gathers, [waits, waits], "what an earlier agent gathered may not be whole");
    bench.handle(Event::Gathered { job: waits, inputs: Ok(7) });
    assert!(bench.started.contains_key(&first(waits)));
    assert_eq!(bench.restarted().gathers.len(), 2);

    let mut bench = Bench::new(home());
    let [lacks, ended] = [(); 2].map(|()| bench.submit(array(1).stage_in(["in"])));
    bench.handle(Event::Gathered { job: lacks, inputs: Err(Ungathered::Absent("there is no in".into())) });
    assert_eq!(never(&bench, lacks), "there is no in");
    bench.handle(Event::Kill { job: Selector::Job(ended), signal: 9, grace: None });
    bench.handle(Event::Gathered { job: ended, inputs: Ok(8) });
    assert_eq!((bench.spent.as_slice(), bench.started.len()), ([8].as_slice(), 0));
}

#[test]
fn inputs_that_cannot_be_gathered_are_tried_again_and_the_reason_is_told() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(1).stage_in(["in"]));
    bench.handle(Event::Gathered { job, inputs: Err(Ungathered::Failed("no room".into())) });
    assert_eq!(why(&bench, job), "no room: it is tried again until gridctl kill j1.1 ends it");
    for (seconds, tries) in [(4, 1), (1, 2), (60, 2)] {
        bench.now.mono += Duration::from_secs(seconds);
        bench.handle(Event::Tick);
        assert_eq!(bench.gathers.len(), tries);
    }
    bench.handle(Event::Gathered { job, inputs: Err(Ungathered::Failed("no room".into())) });
    for (seconds, tries) in [(9, 2), (1, 3)] {
        bench.now.mono += Duration::from_secs(seconds);
        bench.handle(Event::Tick);
        assert_eq!(bench.gathers.len(), tries, "the pause grows");
    }
    bench.handle(Event::Gathered { job, inputs: Ok(7) });
    assert!(bench.started.contains_key(&first(job)));
    bench.now.mono += Duration::from_secs(1000);
    bench.handle(Event::Tick);
    assert_eq!(bench.gathers.len(), 3);
}

/// A run ends and there is no place for what it left.
fn stick(bench: &mut Bench, run: Run) {
    bench.end(run);
    bench.handle(Event::Collected { run, result: Collected::Failed("no room".into()) });
}

#[test]
fn results_without_a_place_outlast_the_silence_of_their_node_and_a_restart_of_their_home() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(3).at_once(2).stage_out(["x"]));
    stick(&mut bench, first(job));
    let told = "j1.1/0 ended, but no room: node 2 keeps it, and it is tried again until gridctl kill j1.1/0 gives it up";
    assert_eq!((why(&bench, job).as_str(), status(&bench, job).summary.stuck), (told, 1));
    assert_eq!(bench.started.len(), 3, "it takes no place of its array");
    let mut bench = bench.restarted();
    assert_eq!((why(&bench, job).as_str(), status(&bench, job).summary.stuck), (told, 1));
    bench.now.mono += Duration::from_secs(60);
    bench.handle(Event::Tick);
    let tasks = status(&bench, job).tasks;
    assert!(tasks[0].state == TaskState::Running && tasks[1].state != TaskState::Running, "{tasks:?}");
    assert!(
        !bench.started.contains_key(&Run { epoch: 2, ..first(job) }),
        "it has run, and runs no second time"
    );
    // Its node tells of its end again, and now there is room.
    bench.end(first(job));
    bench.handle(Event::Collected { run: first(job), result: Collected::Whole });
    let status = status(&bench, job);
    assert_eq!((status.summary.stuck, status.tasks[0].outcome.clone()), (0, Some(Outcome::Exited(0))));
}

#[test]
fn results_without_a_place_are_given_up_with_their_task_or_when_they_are_old() {
    let mut bench = Bench::new(Home::new(ME, 7, 1, Duration::from_secs(60)));
    let job = bench.submit(array(3).stage_out(["x"]));
    let run = |index| Run { task: job.task(index), epoch: 1 };
    // A signal that it got while it ran is no word about its results.
    bench.handle(Event::Kill { job: Selector::Task(job.task(2)), signal: 15, grace: None });
    (0..3).for_each(|index| stick(&mut bench, run(index)));
    assert_eq!(status(&bench, job).summary.stuck, 3);
    bench.handle(Event::Kill { job: Selector::Task(job.task(0)), signal: 15, grace: None });
    let outcome = |bench: &Bench, index: usize| status(bench, job).tasks[index].outcome.clone();
    assert_eq!(outcome(&bench, 0), Some(Outcome::ResultsLost { why: "no room".into() }));
    bench.now.wall += Duration::from_secs(61);
    bench.handle(Event::Tick);
    assert_eq!(outcome(&bench, 1), None, "it was the clock that was set");
    bench.now.mono += Duration::from_secs(61);
    bench.handle(Event::Tick);
    assert_eq!(outcome(&bench, 1), Some(Outcome::ResultsLost { why: "no room".into() }));
    assert!(status(&bench, job).summary.is_done());
}

#[test]
fn a_second_kill_while_results_are_brought_home_gives_them_up_if_there_is_no_place() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(2).stage_out(["x"]));
    let run = |index| Run { task: job.task(index), epoch: 1 };
    bench.end(run(0));
    bench.handle(Event::Kill { job: Selector::Task(job.task(0)), signal: 15, grace: None });
    bench.handle(Event::Collected { run: run(0), result: Collected::Failed("no room".into()) });
    let outcome = |bench: &Bench, index: usize| status(bench, job).tasks[index].outcome.clone();
    assert_eq!(outcome(&bench, 0), Some(Outcome::ResultsLost { why: "no room".into() }));
    // If there is, they come.
    bench.end(run(1));
    bench.handle(Event::Kill { job: Selector::Task(job.task(1)), signal: 15, grace: None });
    bench.handle(Event::Collected { run: run(1), result: Collected::Whole });
    assert_eq!(outcome(&bench, 1), Some(Outcome::Exited(0)));
}

#[test]
fn of_a_run_that_is_lost_with_what_it_left_the_end_is_known() {
    let mut bench = Bench::new(home());
    let [again, once] = [true, false].map(|restart| bench.submit(array(1).stage_out(["x"]).restart(restart)));
    [again, once].into_iter().for_each(|job| stick(&mut bench, first(job)));
    let gone = ToHome::Gone(vec![first(again), first(once)]);
    bench.handle(Event::Message { from: HOST, message: gone });
    assert!(bench.started.contains_key(&Run { epoch: 2, ..first(again) }));
    let outcome = status(&bench, once).tasks[0].outcome.clone();
    assert_eq!(outcome, Some(Outcome::ResultsLost { why: "node 2 has lost what it left".into() }));
    assert_eq!(status(&bench, again).summary.stuck, 0);
}

#[test]
fn a_user_whose_results_find_no_place_starts_no_more_until_some_do() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(64).stage_out(["x"]));
    (0..64).for_each(|index| stick(&mut bench, Run { task: job.task(index), epoch: 1 }));
    let next = bench.submit(array(1));
    assert_eq!(
        why(&bench, next),
        "results of 64 tasks of its owner cannot be brought home: see gridctl status j1.1/0"
    );
    assert!(!bench.started.contains_key(&first(next)));
    bench.handle(Event::Kill { job: Selector::Task(job.task(5)), signal: 9, grace: None });
    assert!(bench.started.contains_key(&first(next)));
}

#[test]
fn a_held_job_starts_nothing_until_it_is_released() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(4).at_once(2).hold());
    assert!(bench.started.is_empty());
    bench.handle(Event::Hold { job, held: false });
    assert_eq!(bench.started.len(), 2);
    bench.handle(Event::Hold { job, held: true });
    bench.end(first(job));
    assert_eq!((bench.started.len(), bench.jobs[&job].held), (2, true));
    // One can end what is held.
    bench.handle(Event::Kill { job: Selector::Job(job), signal: 15, grace: None });
    bench.end(Run { task: job.task(1), epoch: 1 });
    assert!(status(&bench, job).summary.is_done());
}

#[test]
fn an_array_runs_no_more_tasks_at_once_than_it_lets() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(7).at_once(3));
    let other = bench.submit(array(1));
    assert!(bench.started.contains_key(&first(other)), "it holds nobody else up");
    assert_eq!(
        why(&bench, job),
        "3 of its tasks run, as many as its array lets run at once: starts when one of them ends"
    );
    let mut ended = 0;
    while !status(&bench, job).summary.is_done() {
        let counts = status(&bench, job).summary.counts;
        assert_eq!(counts.placed + counts.running, 3.min(7 - ended));
        bench.end(Run { task: job.task(ended), epoch: 1 });
        ended += 1;
    }
    assert_eq!((ended, bench.started.len()), (7, 8));
}
