//! Tasks that move from machine to machine.

use std::time::Duration;

use grid_jobs::home;
use grid_jobs::host;
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::status::{MoveMode, MovePhase, Moved};

use crate::grid::*;

impl Grid {
    /// Each end of a move does its part: stops, copies, makes.
    pub(crate) fn move_tasks(&mut self) {
        let now = self.now;
        let (ready, coming) =
            std::mem::take(&mut self.coming).into_iter().partition(|c: &Coming| c.at <= now);
        self.coming = coming;
        for coming in ready {
            let Coming { to, run, arrival, copy, .. } = coming;
            // The agent that began with it is gone, or was told that it is over.
            if !self.machines[&to].agent.as_ref().is_some_and(|(_, host)| host.has(run)) {
                continue;
            }
            let reachable = !(self.machines[&to].cut || self.machines[&arrival.node].cut);
            if let Some(Copied { needs, left, saved }) = copy.filter(|_| reachable) {
                let process = Process { held: true, ..Process::new(needs, left, saved) };
                self.machines.get_mut(&to).unwrap().shims.insert(run, process);
                self.moved += 1;
                self.host(to, host::Event::Held(run));
                continue;
            }
            let old = Run { task: run.task, epoch: arrival.epoch };
            let there = self.machines.get_mut(&arrival.node).unwrap();
            let alive = there.agent.is_some() && reachable && copy.is_none();
            let process = there.shims.get_mut(&old).filter(|process| alive && !process.ended);
            let taker = Some((to, run.epoch));
            if process.as_ref().is_some_and(|process| process.departs != taker) && now < coming.until {
                self.coming.push(Coming { at: now + STEP, ..coming });
                continue;
            }
            match process.filter(|process| process.departs == taker) {
                Some(process) => {
                    process.held = true;
                    let copy =
                        Some(Copied { needs: process.needs, left: process.left, saved: process.saved });
                    self.host(arrival.node, host::Event::Held(old));
                    let at = self.soon();
                    self.coming.push(Coming { at, copy, ..coming });
                    for (phase, bytes) in self.ahead.clone() {
                        self.host(to, host::Event::Moving { run, phase, stood: None, bytes });
                    }
                    let (phase, stood) = (MovePhase::Copying, Some(Duration::ZERO));
                    self.host(to, host::Event::Moving { run, phase, stood, bytes: 0 });
                }
                None => self.host(to, host::Event::NotMoved { run, why: "it cannot be".into() }),
            }
        }
    }

    /// A user wants a task on another node.
    pub(crate) fn migrate(&mut self, task: TaskId, to: NodeId) {
        self.home(task.job.home, home::Event::Migrate { task, to, mode: MoveMode::Auto });
    }

    /// And waits until it is there, and known to be.
    pub(crate) fn moves(&mut self, task: TaskId, to: NodeId) -> Moved {
        self.migrate(task, to);
        let moved = loop {
            self.step();
            let (home, _) = self.machines[&task.job.home].agent.as_ref().unwrap();
            match home.last_move(task) {
                Some(home::Move::Moved(moved)) => break moved,
                Some(home::Move::Stayed(why)) => panic!("it stayed: {why}"),
                _ => (),
            }
        };
        (0..2 * 20).for_each(|_| self.step());
        moved
    }
}

#[test]
fn a_task_that_moves_is_not_started_again() {
    let mut grid = Grid::new(12, 3, 0.0);
    grid.step();
    grid.task_time = Duration::from_secs(30);
    let task = grid.submit(NodeId(1), 1).task(0);
    while grid.starts.is_empty() {
        grid.step();
    }
    let places = |grid: &Grid| {
        let there =
            grid.machines.iter().filter(|(_, machine)| machine.shims.keys().any(|run| run.task == task));
        there.map(|(id, _)| *id).collect::<Vec<_>>()
    };
    for to in [2, 3, 1, 2].map(NodeId) {
        if places(&grid) == [to] {
            continue;
        }
        // Its home is known to run it only after the next heartbeat.
        for _ in 0..2 * 20 {
            grid.step();
        }
        grid.migrate(task, to);
        let before = grid.now;
        while places(&grid) != [to] {
            grid.step();
            assert!(grid.now - before < Duration::from_secs(8), "it is on {:?}, not on {to}", places(&grid));
        }
        let (home, _) = grid.machines[&NodeId(1)].agent.as_ref().unwrap();
        assert!(matches!(home.last_move(task), Some(home::Move::Moved(moved)) if moved.to == to));
    }
    let took = grid.finish(60);
    assert_eq!((grid.starts[&task], grid.finished[&task]), (1, 1));
    assert!(took < 30, "{took}");
}

/// A grid with a task of so many seconds that its home knows to run: the task, where it is, and a node where it could be.
fn one_task(seed: u64, seconds: u64) -> (Grid, TaskId, NodeId, NodeId) {
    let mut grid = Grid::new(seed, 3, 0.0);
    grid.step();
    grid.task_time = Duration::from_secs(seconds);
    let task = grid.submit(NodeId(1), 1).task(0);
    while grid.starts.is_empty() {
        grid.step();
    }
    for _ in 0..2 * 20 {
        grid.step();
    }
    let (home, _) = grid.machines[&NodeId(1)].agent.as_ref().unwrap();
    let from = home.run_of(task).unwrap().1.unwrap();
    let to = [2, 3].map(NodeId).into_iter().find(|id| *id != from).unwrap();
    (grid, task, from, to)
}

#[test]
fn a_move_is_told_as_the_way_that_it_took_at_last() {
    use libgrid::status::MovePhase::{Ahead, Departing, Rounds};
    let ways = [
        (vec![], MoveMode::StopAndCopy, 0),
        (vec![(Ahead, 5), (Ahead, 7)], MoveMode::Hybrid, 7),
        (vec![(Ahead, 7), (Rounds, 0), (Rounds, 3)], MoveMode::PreCopy, 3),
        (vec![(Ahead, 7), (Rounds, 3), (Departing, 0)], MoveMode::StopAndCopy, 0),
    ];
    for (ahead, mode, bytes) in ways {
        let (mut grid, task, from, to) = one_task(15, 30);
        assert_eq!(from, NodeId(1));
        // Back to its home, where nothing overtakes.
        grid.moves(task, to);
        grid.ahead.clone_from(&ahead);
        let moved = grid.moves(task, from);
        assert_eq!((moved.mode, moved.ahead), (mode, bytes), "{ahead:?}");
    }
}

#[test]
fn a_task_that_moves_goes_back_to_a_checkpoint_all_the_same() {
    for after in 0..60 {
        let (mut grid, task, from, to) = one_task(14, 30);
        grid.save(from);
        for _ in 0..3 * 20 {
            grid.step();
        }
        grid.migrate(task, to);
        for _ in 0..after {
            grid.step();
        }
        grid.home(NodeId(1), home::Event::Restore { task, number: 1, node: from });
        grid.finish(60);
        let resumed: Vec<_> = grid.resumed.values().copied().collect();
        assert_eq!((grid.starts[&task], resumed), (2, vec![(from, 1)]), "after {after} steps");
    }
}

#[test]
fn a_source_that_is_started_again_is_told_again_what_leaves() {
    let mut moved = 0;
    for after in 0..40 {
        let (mut grid, task, from, to) = one_task(16, 60);
        // Home of the task and of the move is another node, whose letters are on their way.
        if from == NodeId(1) {
            grid.moves(task, to);
        }
        let (from, to) = if from == NodeId(1) { (to, NodeId(1)) } else { (from, to) };
        grid.migrate(task, to);
        for _ in 0..after {
            grid.step();
        }
        grid.crash_agent(from, Duration::from_millis(300));
        let begun = grid.now;
        let moves = |grid: &Grid| {
            let (home, _) = grid.machines[&NodeId(1)].agent.as_ref().unwrap();
            home.last_move(task).unwrap()
        };
        while matches!(moves(&grid), home::Move::Moving { .. }) {
            grid.step();
            assert!(grid.now - begun < Duration::from_secs(10), "after {after} steps");
        }
        moved += u32::from(matches!(moves(&grid), home::Move::Moved(_)));
        grid.finish(120);
        assert_eq!(grid.starts[&task], 1, "after {after} steps");
    }
    assert!(moved > 20, "{moved} moved");
}

#[test]
fn a_move_whose_destination_dies_leaves_the_task_where_it_was() {
    for after in 0..60 {
        let (mut grid, task, _, to) = one_task(13, 40);
        grid.migrate(task, to);
        for _ in 0..after {
            grid.step();
        }
        grid.crash_machine(to, Duration::from_secs(1 << 20));
        grid.finish(120);
        let (home, _) = grid.machines[&NodeId(1)].agent.as_ref().unwrap();
        let was_there = matches!(home.last_move(task), Some(home::Move::Moved(_)));
        // What had moved is lost with its node, and begins anew; what had not goes on.
        assert_eq!(grid.starts[&task], 1 + u32::from(was_there), "after {after} steps");
    }
}
