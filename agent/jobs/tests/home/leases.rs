//! When a run counts as lost, and when one that is held may go: what the simulation found out of many thousand seeds.

use std::time::Duration;

use grid_jobs::home::{Action, Event};
use grid_jobs::host::{self, Host};
use grid_jobs::message::{Alive, End, ToHome, ToHost};
use grid_jobs::{LEASE, MARGIN};
use libgrid::ids::{NodeId, Run};
use libgrid::node::Resources;
use libgrid::status::{Outcome, Usage};

use crate::bench::{Bench, HOST, ME, NOW, array, home};

/// A `Start` names a grant, and shows the host that its home heard of it: all tasks of that home go on for a lease from then.
#[test]
fn a_grant_that_is_used_lets_all_tasks_on_its_node_go_on() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(1));
    let run = Run { task: job.task(0), epoch: 1 };
    let begun = bench.now.mono;
    bench.now.mono = begun + LEASE;
    bench.submit(array(1));
    let lost = |bench: &Bench| bench.tasks[&run.task].node.is_none() || bench.started.len() > 2;
    bench.now.mono = begun + LEASE + MARGIN;
    bench.handle(Event::Tick);
    assert!(!lost(&bench), "it may still run there");
    // The node itself knows whether it is there at all.
    let asked = |bench: &mut Bench| {
        let actions = bench.home.handle(bench.now, Event::Tick);
        actions.into_iter().any(|action| match action {
            Action::Send { to: HOST, message: ToHost::Keeping(runs) } => runs == [run],
            _ => false,
        })
    };
    assert!(asked(&mut bench));
    bench.now.mono = begun + LEASE + LEASE + MARGIN;
    bench.handle(Event::Tick);
    assert!(lost(&bench));
}

#[test]
fn a_host_says_which_runs_it_does_not_have() {
    let mut host = Host::new(HOST, Resources { cpu: 4000, memory: 1 << 30 });
    let run = |index| Run { task: format!("j1.1/{index}").parse().unwrap(), epoch: 1 };
    host.handle(NOW, adopted(run(0), false));
    let message = ToHost::Keeping(vec![run(0), run(1)]);
    let actions = host.handle(NOW, host::Event::Message { from: ME, message: message.clone() });
    assert_eq!(actions, [host::Action::Send { to: ME, message: ToHome::Gone(vec![run(1)]) }]);
    // To nobody but their home.
    assert!(host.handle(NOW, host::Event::Message { from: NodeId(7), message }).is_empty());
}

/// A task that ended is kept for days; one that runs, for a day, but not because its machine slept for that long.
#[test]
fn a_home_that_stays_away_loses_what_runs_after_a_day_and_what_ended_after_eight() {
    const HOUR: Duration = Duration::from_secs(3600);
    let mut host = Host::new(HOST, Resources { cpu: 4000, memory: 1 << 30 });
    let run = |index| Run { task: format!("j1.1/{index}").parse().unwrap(), epoch: 1 };
    let (mut now, end) = (NOW, End { outcome: Outcome::Exited(0), usage: Usage::default(), printed: true });
    host.handle(now, adopted(run(0), false));
    host.handle(now, adopted(run(1), false));
    host.handle(now, host::Event::Ended { run: run(1), end });
    // It sleeps for a week; heartbeats are a minute apart from then on.
    now.mono += 7 * 24 * HOUR;
    let mut until = |hours: u32| {
        let mut over = Vec::new();
        for _ in 0..hours * 60 {
            for action in host.handle(now, host::Event::Tick) {
                match action {
                    host::Action::Fence(run) | host::Action::Forget(run) => over.push(run),
                    _ => (),
                }
            }
            now.mono += HOUR / 60;
        }
        over.dedup();
        over
    };
    assert_eq!(until(24), []);
    assert_eq!(until(1), [run(0)]);
    assert!(!until(24 * 6).contains(&run(1)));
    assert!(until(24).contains(&run(1)));
}

fn adopted(run: Run, held: bool) -> host::Event {
    host::Event::Adopted { run, needs: Resources::default(), started: NOW.wall, held, end: None }
}

/// Messages may overtake each other: the word that a task which has arrived may go, the one that it is to move on.
#[test]
fn a_run_that_moves_on_is_not_let_go_by_a_late_word_of_the_move_before() {
    let mut host = Host::new(HOST, Resources { cpu: 4000, memory: 1 << 30 });
    let run = Run { task: "j1.1/0".parse().unwrap(), epoch: 2 };
    host.handle(NOW, adopted(run, true));
    let mut say = |message| host.handle(NOW, host::Event::Message { from: ME, message });
    let departs = say(ToHost::Depart { run, to: NodeId(3), epoch: 3 });
    assert_eq!(departs, [host::Action::Depart { run, to: NodeId(3), epoch: 3 }]);
    assert!(say(ToHost::LetGo { run, past: 2 }).is_empty(), "node 3 may have it as it stands here");
    assert_eq!(say(ToHost::LetGo { run, past: 3 }), [host::Action::LetGo(run)]);
    assert!(say(ToHost::Depart { run, to: NodeId(3), epoch: 3 }).is_empty(), "that move is over");
    assert_eq!(say(ToHost::Depart { run, to: NodeId(4), epoch: 4 }).len(), 1);
}

#[test]
fn a_task_that_ends_before_it_is_taken_back_has_ended() {
    let mut bench = Bench::new(home());
    let job = bench.submit(array(1).stage_out(["x"]));
    let run = Run { task: job.task(0), epoch: 1 };
    bench.handle(Event::Restore { task: run.task, number: 1, node: HOST });
    bench.end(run);
    // Its node tells of it while its results are brought home.
    let alive = Alive { run, since: None, resumed: None, saved: None, held: false };
    let heartbeat = ToHome::Heartbeat { seq: 1, runs: vec![alive], free: Resources::default() };
    let actions = bench.home.handle(bench.now, Event::Message { from: HOST, message: heartbeat });
    assert_eq!(actions, [Action::Send { to: HOST, message: ToHost::Pulse { seq: 1, fence: Vec::new() } }]);
    let result = grid_jobs::home::Collected::Whole;
    bench.handle(Event::Collected { run, result });
    let ended = bench.tasks[&run.task].ended.clone();
    assert_eq!(ended.map(|(_, outcome, _)| outcome), Some(Outcome::Exited(0)));
}
