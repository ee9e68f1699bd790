//! Tasks that move while they run. Each program of the matrix looks by itself whether all is as it has to be
//! (`programs.rs`); whatever goes wrong on the way, a task is in one place, and goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

#[path = "../../agent/run/tests/shim/programs.rs"]
#[expect(dead_code, reason = "the terminal is for the tests of the shim")]
mod programs;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use grid_tests::{Grid, GridConfig, NOBODY, Shared, SmallDisk, until, until_some, with};
use libgrid::ids::{JobId, NodeId};
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};
use programs::{Program, THREADS};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// Whether tasks can be moved here; if not, the reason is printed.
fn moves(grid: &Grid) -> bool {
    let findings = grid.gridctl(1, ["doctor", "--json"]).json();
    let criu =
        findings.as_array().unwrap().iter().find(|finding| finding["subject"] == "checkpoints").unwrap();
    let works = criu["text"].as_str().unwrap().starts_with("CRIU 4");
    if !works {
        let _ = writeln!(io::stdout(), "SKIPPED: {}", criu["text"]);
    }
    works
}

fn spec(grid: &Grid, program: &Program) -> JobSpec {
    let script = program.script.replace("./threads", grid.dir().join("threads").to_str().unwrap());
    let mut spec = JobSpec::command(["sh", "-c", &script])
        .cpus(Cpus::from_milli(100))
        .memory(Bytes(program.memory << 20));
    spec.pids = 128;
    spec
}

/// Submits a job, and has it on that node when it is ready.
fn begin(grid: &Grid, node: u32, spec: JobSpec) -> JobId {
    let job = grid.submit(1, spec);
    until("it is ready", || grid.logs(1, job, 0).contains("ready"));
    if grid.places(1, job) != [Some(NodeId(node))] {
        hop(grid, 1, job, node);
    }
    job
}

/// Moves the only task of a job, as a user does.
fn hop(grid: &Grid, from: u32, job: JobId, to: u32) -> Value {
    let moved =
        grid.gridctl(from, ["migrate", &job.to_string(), "--to", &format!("node{to}"), "--json"]).json();
    assert_eq!(moved[0]["moved"]["to"], to, "{moved}");
    assert_eq!(grid.places(1, job), [Some(NodeId(to))]);
    moved[0]["moved"].clone()
}

/// The root of the only task on a node that has this name in its environment.
fn process(grid: &Grid, node: u32, job: JobId) -> Option<i32> {
    let mark = format!("GRIDOS_JOB={job}\0");
    grid.task_processes(node).into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.windows(mark.len()).any(|window| window == mark.as_bytes()))
    })
}

/// Lets it come to its end, wherever it is, and asserts what it says of itself.
fn verdict(grid: &Grid, job: JobId, name: &str) -> String {
    let node = grid.places(1, job)[0].unwrap().0;
    let root = until_some("its process is found", || process(grid, node, job));
    fs::write(format!("/proc/{root}/root/tmp/go"), "").unwrap();
    let status = grid.wait(1, job);
    let printed = grid.logs(1, job, 0);
    let tail = &printed[printed.len().saturating_sub(2000)..];
    assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(0)), "{name}: {tail}\n{status:#?}");
    assert!(printed.ends_with("OK\n"), "{name}: {tail}");
    printed
}

static GRID: Shared = Shared::new();

fn shared() -> Arc<Grid> {
    GRID.get(|| {
        let config = GridConfig { cores: 32.0, memory: "40G", ..GridConfig::new("migrate_matrix", 3) };
        let grid = config.up();
        let source = grid.dir().join("threads.c");
        fs::write(&source, THREADS).unwrap();
        let program = grid.dir().join("threads");
        let built = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(&source).status();
        assert!(built.unwrap().success(), "gcc");
        grid
    })
}

/// One program: there; there and back; three hops.
fn matrix(test: &str, name: &str) {
    with(test, shared, |grid: &Arc<Grid>| {
        if !moves(grid) {
            return;
        }
        let program = programs::all().into_iter().find(|program| program.name == name).unwrap();
        for ways in [&[3][..], &[3, 2], &[3, 1, 2]] {
            let job = begin(grid, 2, spec(grid, &program));
            let mut stopped = Vec::new();
            for to in ways {
                // Asked on a node that need not have to do with it.
                let moved = hop(grid, 3, job, *to);
                stopped.push(format!("{} ms", moved["stopped"]["nanos"].as_u64().unwrap() / 1_000_000));
            }
            let printed = verdict(grid, job, name);
            if name == "counter" {
                let numbers: Vec<u64> = printed.lines().filter_map(|line| line.parse().ok()).collect();
                assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{printed}");
            }
            println!("FIGURE {name} over {ways:?}: stood still {}", stopped.join(", "));
        }
    });
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                matrix(stringify!($test), $name);
            }
        )*

        #[test]
        fn every_program_has_its_row() {
            let names: Vec<_> = programs::all().iter().map(|program| program.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

rows! {
    a_counter_moves: "counter",
    threads_with_locks_move: "threads",
    a_shell_pipeline_moves: "pipeline",
    a_tree_of_fifty_processes_moves: "tree",
    python_with_threads_moves: "python",
    appended_and_mapped_files_move: "files",
    deleted_files_move: "deleted",
    unix_sockets_move: "sockets",
    timers_and_signals_move: "timers",
    zombies_move: "zombies",
    a_quarter_of_a_gibibyte_moves: "memory",
}

/// Counts on its output and outside of the grid, until it is to end: who counts there twice began anew, or runs twice.
const WITNESSED: &str = r#"
me = open(sys.argv[1], 'ab', buffering=0)
block = os.urandom(48 << 20); want = hashlib.sha256(block).hexdigest()
n = 0
while not gone():
    n += 1
    print(n, flush=True)
    me.write(b'%d\n' % n)
    if n == 3: ready()
    time.sleep(0.01)
check(hashlib.sha256(block).hexdigest() == want)
print('OK')
"#;

/// Such a task, and the file outside in which it counts.
fn witnessed(grid: &Grid, name: &str) -> (JobSpec, PathBuf) {
    let file = grid.dir().join(name);
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let script = format!("{}{WITNESSED}", programs::PRELUDE);
    let spec = JobSpec::command(["/usr/bin/python3", "-c", &script, file.to_str().unwrap()])
        .cpus(Cpus::from_milli(500))
        .memory(Bytes(256 << 20));
    (spec, file)
}

/// It counted to the end without a gap, once: in its output and outside.
fn counted(printed: &str, file: &Path) -> u64 {
    let numbers = |text: &str| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u64>>();
    let (printed, outside) = (numbers(printed), numbers(&fs::read_to_string(file).unwrap()));
    assert!(printed.iter().copied().eq(1..=printed.len() as u64), "{printed:?}");
    let seam = printed.iter().zip(&outside).position(|(printed, outside)| printed != outside);
    let around = |numbers: &[u64]| {
        let at = seam.unwrap_or(printed.len().min(outside.len()));
        numbers[at.saturating_sub(5)..numbers.len().min(at + 15)].to_vec()
    };
    assert_eq!(around(&printed), around(&outside), "what it did outside is what it printed");
    assert_eq!(printed.len(), outside.len());
    printed.len() as u64
}

/// How many moves are disturbed.
const ROUNDS: u32 = 25;

#[test]
fn whatever_goes_wrong_a_task_is_in_one_place() {
    let config = GridConfig::new("whatever_goes_wrong", 4);
    with(
        "whatever_goes_wrong_a_task_is_in_one_place",
        || config.up(),
        |grid| {
            if !moves(grid) {
                return;
            }
            let mut rng = StdRng::seed_from_u64(11);
            let (mut arrived, mut stayed) = (0, 0);
            let (spec, file) = witnessed(grid, "faults");
            let job = begin(grid, 2, spec);
            // How long a move takes here, so that the faults fall into all of it.
            let begun = std::time::Instant::now();
            hop(grid, 1, job, 3);
            hop(grid, 1, job, 2);
            let whole = begun.elapsed() / 2;
            for round in 0..ROUNDS {
                let from = grid.places(1, job)[0].unwrap().0;
                let to = if from == 2 { 3 } else { 2 };
                let command = ["migrate".to_owned(), job.to_string(), "--to".into(), format!("node{to}")];
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

#[test]
fn a_destination_whose_disk_is_full_gets_nothing() {
    let make = || GridConfig { members: 0, ..GridConfig::new("migrate_full_disk", 2) }.up();
    with("a_destination_whose_disk_is_full_gets_nothing", make, |grid| {
        let disk = SmallDisk::below(grid, 2, "160M");
        grid.enter(2);
        if !moves(grid) {
            return;
        }
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
        for _ in 0..3 {
            let moving = grid.start(1, ["migrate", &job.to_string(), "--to", "node2"]);
            until("it is on its way", || grid.job(1, job).tasks[0].why.is_some());
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

#[test]
fn who_follows_a_task_sees_no_seam() {
    with("who_follows_a_task_sees_no_seam", shared, |grid: &Arc<Grid>| {
        if !moves(grid) {
            return;
        }
        let (spec, file) = witnessed(grid, "followed");
        let job = begin(grid, 2, spec);
        let follower = grid.start(3, ["logs", "-f", &job.to_string()]);
        for to in [1, 3, 2, 3] {
            hop(grid, 2, job, to);
        }
        counted(&verdict(grid, job, "followed"), &file);
        let followed = follower.wait();
        let followed = followed.ok();
        let numbers: Vec<u64> = followed.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        assert!(followed.ends_with("OK"), "{followed}");
    });
}

#[test]
fn a_drained_node_is_left_by_all_that_can_move_and_takes_no_more() {
    let config = GridConfig::new("a_drained_node", 3);
    with(
        "a_drained_node_is_left_by_all_that_can_move_and_takes_no_more",
        || config.up(),
        |grid| {
            if !moves(grid) {
                return;
            }
            // Of two homes, the drained node's own among them; and one that may be nowhere else.
            let (spec, file) = witnessed(grid, "drained");
            let job = begin(grid, 2, spec);
            let own = grid.submit(2, on(spec_of_sleep(), 2));
            let bound = grid.submit(1, on(spec_of_sleep(), 2));
            let both = JobSpec { nodes: vec!["node2".into(), "node3".into()], ..spec_of_sleep() };
            let many: Vec<JobId> = (0..4).map(|_| grid.submit(2, both.clone())).collect();
            for job in many.iter().chain([&own, &bound]) {
                grid.until_running(1, *job);
            }
            let drained = grid.gridctl(3, ["drain", "node2", "--json"]);
            assert_eq!(drained.status, 1, "{drained:?}");
            let results: Value = serde_json::from_str(&drained.stdout).unwrap();
            for result in results.as_array().unwrap() {
                let task = result["task"].as_str().unwrap();
                match [own, bound].iter().any(|job| task == format!("{job}/0")) {
                    true => assert!(result["stayed"].as_str().unwrap().contains("no other node"), "{result}"),
                    false => assert!(result["moved"]["to"] != 2, "{result}"),
                }
            }
            let on_two = |grid: &Grid, job: &JobId| grid.places(1, *job) == [Some(NodeId(2))];
            assert!(many.iter().chain([&job]).all(|job| !on_two(grid, job)));
            assert!(on_two(grid, &own) && on_two(grid, &bound));
            assert!(drained.stderr.contains("no other node that may run"), "{drained:?}");

            grid.gridctl_as(1, NOBODY, Path::new("/"), ["drain", "node2"]).says(&["only root"]);
            grid.gridctl(1, ["drain", "node9"]).says(&["there is no node node9"]);

            // Also after its agent was started again, nothing new comes; until that is undone.
            grid.kill_agent(2);
            grid.until_up(1, 3);
            let waits = grid.submit(1, on(spec_of_sleep(), 2));
            let why = until_some("it is told why it waits", || grid.job(1, waits).summary.why);
            assert!(why.contains("core") || why.contains("room"), "{why}");
            until("the node can be asked again", || {
                let undone = grid.gridctl(1, ["drain", "node2", "--undo"]);
                undone.status == 0 && undone.ok() == "node2 takes tasks again"
            });
            grid.until_running(1, waits);
            counted(&verdict(grid, job, "drained"), &file);
        },
    );
}

fn on(spec: JobSpec, node: u32) -> JobSpec {
    JobSpec { nodes: vec![format!("node{node}")], ..spec }
}

fn spec_of_sleep() -> JobSpec {
    JobSpec::command(["sleep", "1000"]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

#[test]
fn what_cannot_be_moved_is_told_and_left_alone() {
    with("what_cannot_be_moved_is_told_and_left_alone", shared, |grid: &Arc<Grid>| {
        if !moves(grid) {
            return;
        }
        let (spec, file) = witnessed(grid, "refused");
        let job = begin(grid, 2, spec);
        let name = job.to_string();
        let migrate = |more: &[&str]| {
            let mut words = vec!["migrate", &name];
            words.extend(more);
            grid.gridctl(3, words)
        };
        migrate(&["--to", "node2"]).says(&["is on node node2 already"]);
        migrate(&["--to", "nowhere"]).says(&["there is no node nowhere", "gridctl nodes"]);
        let stranger = grid.gridctl_as(1, NOBODY, Path::new("/"), ["migrate", &name, "--to", "node3"]);
        stranger.says(&["root@node1's, and you are"]);
        grid.gridctl(1, ["migrate", "j1.9999"]).says(&["there is no j1.9999"]);
        assert_eq!(
            migrate(&["--to", "node3", "--check"]).ok(),
            format!("{job}/0 can move from node 2 to node 3")
        );
        let check = migrate(&["--check", "--json"]).json();
        assert_eq!((&check[0]["from"], &check[0]["obstacles"]), (&2.into(), &Value::Array(Vec::new())));

        let mut bound = spec_of_sleep();
        bound.nodes = vec!["node2".into()];
        let bound = grid.submit(1, bound);
        grid.until_running(1, bound);
        let refused = grid.gridctl(1, ["migrate", &bound.to_string(), "--to", "node3"]);
        refused.says(&["may run on node2 alone", "--node"]);
        grid.gridctl(1, ["migrate", &bound.to_string()]).says(&["no other node"]);
        grid.gridctl(1, ["kill", &bound.to_string()]).ok();

        // One with a connection.
        let connected = r#"
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
ready(); wait()
c.send(b'x'); check(a.recv(1) == b'x')
print('OK')
"#;
        let script = format!("{}{connected}", programs::PRELUDE);
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &script]).memory(Bytes(64 << 20));
        let other = grid.submit(1, spec);
        until("it is ready", || grid.logs(1, other, 0).contains("ready"));
        let from = grid.places(1, other)[0].unwrap().0;
        let to = if from == 2 { 3 } else { 2 };
        let words = ["migrate", &other.to_string(), "--to", &format!("node{to}"), "--check"];
        let refused = grid.gridctl(1, &words[..4]);
        refused.says(&[&format!("cannot move to node {to}, and runs on"), "connection", "127.0.0.1"]);
        let checked = grid.gridctl(1, words);
        let told = format!("cannot move from node {from} to node {to}");
        assert!(checked.stdout.contains(&told) && checked.status == 1, "{checked:?}");
        verdict(grid, other, "connected");

        counted(&verdict(grid, job, "refused"), &file);
        grid.gridctl(1, ["migrate", &name]).says(&["no task of", "runs now"]);
    });
}
