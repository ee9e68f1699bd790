//! What goes wrong on the way.

use std::path::{Path, PathBuf};

use super::*;

/// How many moves are disturbed, half of them of each mode.
const ROUNDS: u32 = 30;

#[test]
fn whatever_goes_wrong_a_task_is_in_one_place() {
    let config = GridConfig::new("whatever_goes_wrong", 4);
    moving(
        "whatever_goes_wrong_a_task_is_in_one_place",
        || config.up(),
        |grid| {
            let mut rng = StdRng::seed_from_u64(11);
            let (mut arrived, mut stayed) = (0, 0);
            let (spec, file) = witnessed(grid, "faults");
            let job = begin(grid, 2, spec);
            // How long a move takes here, so that the faults fall into all of it.
            let begun = std::time::Instant::now();
            hop_by(grid, 1, job, 3, MoveMode::Hybrid);
            hop_by(grid, 1, job, 2, MoveMode::StopAndCopy);
            let whole = begun.elapsed() / 2;
            for round in 0..ROUNDS {
                let from = grid.places(1, job)[0].unwrap().0;
                let to = if from == 2 { 3 } else { 2 };
                let mode = if round / 5 % 2 == 0 { "hybrid" } else { "stop-and-copy" };
                let mut command = vec!["migrate".to_owned(), job.to_string(), "--to".into()];
                command.extend([format!("node{to}"), "--mode".into(), mode.into()]);
                let moving = grid.start(4, command);
                std::thread::sleep(whole.mul_f64(rng.random_range(0.0..1.1)));
                let what = round % 5;
                match what {
                    0 => grid.kill_agent(from),
                    1 => grid.kill_agent(to),
                    2 => grid.kill_agent(1),
                    _ => {
                        let cut = grid.machine(if what == 3 { from } else { to });
                        cut.cut().unwrap();
                        // Less than a lease, after which the task would be given to another node.
                        std::thread::sleep(Duration::from_millis(rng.random_range(100..2500)));
                        cut.heal().unwrap();
                    }
                }
                moving.wait();
                let before = fs::read_to_string(&file).unwrap().lines().count();
                until("it counts on, wherever it is", || {
                    fs::read_to_string(&file).unwrap().lines().count() > before + 20
                });
                let place = until_some("its home knows where it is", || {
                    let status = grid.try_job(1, job)?;
                    let task = status.tasks.first()?;
                    assert_eq!(task.outcome, None, "round {round}: {task:#?}");
                    let place = task.node.filter(|_| task.state == libgrid::status::TaskState::Running)?.0;
                    process(grid, place, job).map(|_| place)
                });
                match place == to {
                    true => arrived += 1,
                    false => stayed += 1,
                }
                let other = if place == 2 { 3 } else { 2 };
                until("nothing is left of it on the other node", || grid.task_processes(other).is_empty());
                nothing_is_left_of_moves(grid);
            }
            let printed = verdict(grid, job, "faults");
            let numbers = counted(&printed, &file);
            println!(
                "FIGURE of {ROUNDS} disturbed moves {arrived} arrived, {stayed} stayed; counted to {numbers}"
            );
            assert!(arrived > 0 && stayed > 0, "{arrived} arrived, {stayed} stayed");
            for node in [2, 3] {
                until("no process is left", || grid.task_processes(node).is_empty());
                until("no file is left", || grid.task_files(node).is_empty());
            }
        },
    );
}

/// Each counted without a gap, and the one before takes no more step when the next has begun. Returns how many there were.
fn one_after_the_other(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap();
    let mut names: Vec<(&str, u64)> = Vec::new();
    for line in text.lines() {
        let (name, number) = line.split_once(' ').unwrap();
        match names.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => {
                assert!(
                    names.iter().all(|(other, _)| *other != name),
                    "{name} ran beside another: {names:?}"
                );
                names.push((name, 1));
            }
        }
        assert_eq!(names.last(), Some(&(name, number.parse().unwrap())), "{names:?}");
    }
    names.len()
}

#[test]
fn a_cut_that_outlasts_the_lease_leaves_one_of_it() {
    let config = GridConfig::new("outlasts_the_lease", 4);
    moving(
        "a_cut_that_outlasts_the_lease_leaves_one_of_it",
        || config.up(),
        |grid| {
            let mut rng = StdRng::seed_from_u64(17);
            let (spec, file) = witnessed(grid, "lease");
            let job = begin(grid, 2, spec);
            let begun = std::time::Instant::now();
            hop_by(grid, 1, job, 3, MoveMode::Hybrid);
            hop_by(grid, 1, job, 2, MoveMode::StopAndCopy);
            let whole = begun.elapsed() / 2;
            for round in 0..6 {
                let from = grid.places(1, job)[0].unwrap().0;
                let to = if from == 2 { 3 } else { 2 };
                let mode = if round / 3 == 0 { "hybrid" } else { "stop-and-copy" };
                let job_name = job.to_string();
                let moving =
                    grid.start(4, ["migrate", &job_name, "--to", &format!("node{to}"), "--mode", mode]);
                std::thread::sleep(whole.mul_f64(rng.random_range(0.2..1.0)));
                let cut = grid.machine([from, to, 1][round % 3]);
                cut.cut().unwrap();
                // A lease is five seconds, and one more is waited.
                std::thread::sleep(Duration::from_secs(9));
                cut.heal().unwrap();
                moving.wait();
                let lines = || fs::read_to_string(&file).unwrap().lines().count();
                let before = lines();
                until_within("it counts on, wherever it is", Duration::from_secs(60), || {
                    lines() > before + 20
                });
                let place = until_some("its home knows where it is", || grid.places(1, job)[0]).0;
                until("it is there", || process(grid, place, job).is_some());
                for other in [1, 2, 3, 4].into_iter().filter(|node| *node != place) {
                    until("nothing is left of it elsewhere", || grid.task_processes(other).is_empty());
                }
                nothing_is_left_of_moves(grid);
                // The next move is of these two.
                if ![2, 3].contains(&place) {
                    hop(grid, 1, job, 2);
                }
            }
            verdict(grid, job, "lease");
            println!("FIGURE after six cuts it had begun {} times", one_after_the_other(&file));
        },
    );
}

/// Each move's folder goes with the process that moved the memory.
fn nothing_is_left_of_moves(grid: &Grid) {
    for node in [2, 3] {
        let store = grid.machine(node).dir().join("state/checkpoints");
        for folder in ["moving", "fresh", "unpacked"].map(|part| store.join(part)) {
            until("nothing is left of a move", || is_empty(&folder));
        }
        until("nothing is left of a move in memory", || {
            in_memory(grid, node).is_none_or(|folder| is_empty(&folder))
        });
    }
}

/// Whether the folder is there and empty: an agent that starts makes its folders anew.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// The folder of moves that an agent has in memory, and that no other path leads to.
fn in_memory(grid: &Grid, node: u32) -> Option<PathBuf> {
    let agent = grid.machine(node).agent_pid().unwrap().unwrap();
    let opened = fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten().map(|entry| entry.path());
    let mut folders = opened.filter(|fd| fs::read_link(fd).is_ok_and(|path| path == Path::new("/")));
    folders.find(|fd| fs::metadata(fd).is_ok_and(|meta| meta.is_dir()))
}

#[test]
fn a_move_that_is_begun_again_takes_what_is_written_then() {
    let config = GridConfig::new("begun_again", 3);
    moving(
        "a_move_that_is_begun_again_takes_what_is_written_then",
        || config.up(),
        |grid| {
            let (spec, file) = witnessed(grid, "again");
            let job = begin(grid, 2, spec);
            let mut from = 2;
            for _ in 0..6 {
                let to = if from == 2 { 3 } else { 2 };
                let command = ["migrate".to_owned(), job.to_string(), "--to".into(), format!("node{to}")];
                let moving = grid.start(1, command.clone());
                let folder = grid.machine(from).dir().join("state/checkpoints/fresh");
                until("it is being written down", || fs::read_dir(&folder).unwrap().next().is_some());
                grid.kill_agent(from);
                moving.wait();
                // What was being written then may be stored meanwhile, and the task has gone on.
                until("it moves", || grid.gridctl(1, command.clone()).status == 0);
                from = to;
            }
            counted(&verdict(grid, job, "again"), &file);
        },
    );
}

#[test]
fn a_destination_whose_disk_is_full_gets_nothing() {
    let make = || GridConfig { members: 0, ..GridConfig::new("migrate_full_disk", 2) }.up();
    moving("a_destination_whose_disk_is_full_gets_nothing", make, |grid| {
        // With room for the second copy of a checkpoint, which what did not move leaves: it is as good as any other.
        let disk = SmallDisk::below(grid, 2, "400M");
        grid.enter(2);
        let (spec, file) = witnessed(grid, "full");
        let job = grid.submit(1, JobSpec { nodes: vec!["node1".into(), "node2".into()], ..spec });
        until("it is ready", || grid.logs(1, job, 0).contains("ready"));
        if grid.places(1, job) == [Some(NodeId(2))] {
            hop(grid, 1, job, 1);
        }
        let migrate = || grid.gridctl(2, ["migrate", &job.to_string(), "--to", "node2"]);
        // Seen before anything is stopped.
        disk.fill(32 << 20);
        let refused = migrate();
        refused.says(&["cannot move to node 2, and runs on", "MiB free", "make room"]);
        disk.empty();
        // Full in the middle.
        for mode in ["stop-and-copy", "hybrid", "stop-and-copy", "hybrid"] {
            let moving = grid.start(1, ["migrate", &job.to_string(), "--to", "node2", "--mode", mode]);
            // Its status tells of the last move as well: where it came from.
            let on_its_way = |why: &String| why.starts_with("it moves to");
            until("it is on its way", || {
                moving.ended() || grid.job(1, job).tasks[0].why.as_ref().is_some_and(on_its_way)
            });
            disk.fill(1 << 20);
            let run = moving.wait();
            disk.empty();
            let place = grid.places(1, job)[0].unwrap().0;
            if run.status == 0 {
                // It was there already.
                assert_eq!(place, 2);
                hop(grid, 1, job, 1);
            } else {
                assert_eq!((run.status, place), (1, 1), "{run:?}");
                assert!(run.stderr.contains("goes on where it was"), "{run:?}");
            }
            let before = fs::read_to_string(&file).unwrap().lines().count();
            until("it counts on", || fs::read_to_string(&file).unwrap().lines().count() > before + 10);
        }
        hop(grid, 2, job, 2);
        counted(&verdict(grid, job, "full"), &file);
        until("no process is left", || grid.task_processes(2).is_empty());
    });
}
