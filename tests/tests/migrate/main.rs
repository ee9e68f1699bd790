//! Tasks that move while they run. Each program of the matrix looks by itself whether all is as it has to be
//! (`programs.rs`); whatever goes wrong on the way, a task is in one place, and goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

#[path = "../../../agent/run/tests/shim/programs.rs"]
#[expect(dead_code, reason = "the terminal is for the tests of the shim")]
mod programs;

mod connections;
mod faults;
mod files;
mod matrix;
mod real;
mod typed;
mod users;

use std::borrow::Borrow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use grid_tests::{Grid, GridConfig, NOBODY, Shared, SmallDisk, until, until_some, until_within, with};
use libgrid::ids::{JobId, NodeId};
use libgrid::spec::JobSpec;
use libgrid::status::{MoveMode, Outcome};
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

/// A test of moves, where there can be some.
fn moving<G: Borrow<Grid>>(test: &str, make: impl FnOnce() -> G, body: impl FnOnce(&Grid)) {
    with(test, make, |grid: &G| {
        if moves(grid.borrow()) {
            body(grid.borrow());
        }
    });
}

/// Whether this machine's kernel notes which memory a program writes to: Debian's do.
fn has_soft_dirty(grid: &Grid) -> bool {
    let findings = grid.gridctl(1, ["doctor", "--json"]).json();
    !findings.as_array().unwrap().iter().any(|finding| {
        finding["subject"] == "checkpoints" && finding["text"].as_str().unwrap().contains("mem_dirty_track")
    })
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
    hop_by(grid, from, job, to, MoveMode::Auto)
}

/// In this way, and in no other.
fn hop_by(grid: &Grid, from: u32, job: JobId, to: u32, mode: MoveMode) -> Value {
    let (job_name, node, way) = (job.to_string(), format!("node{to}"), mode.to_string());
    let moved = grid.gridctl(from, ["migrate", &job_name, "--to", &node, "--mode", &way, "--json"]).json();
    assert_eq!(moved[0]["moved"]["to"], to, "{moved}");
    if mode != MoveMode::Auto {
        assert_eq!(moved[0]["moved"]["mode"], way, "{moved}");
    }
    assert_eq!(grid.places(1, job), [Some(NodeId(to))]);
    moved[0]["moved"].clone()
}

/// How long a task stood still for a move.
fn stood(moved: &Value) -> String {
    let stopped = &moved["stopped"];
    let (whole, rest) = (stopped["secs"].as_u64().unwrap(), stopped["nanos"].as_u64().unwrap());
    format!("{} ms", whole * 1000 + rest / 1_000_000)
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

/// Counts on its output and, under a name that it made itself, outside of the grid, until it is to end: who counts there twice
/// began anew, or runs twice.
const WITNESSED: &str = r#"
me = open(sys.argv[1], 'ab', buffering=0)
block = os.urandom(48 << 20); want = hashlib.sha256(block).hexdigest()
n = 0
while not gone():
    n += 1
    print(n, flush=True)
    me.write(b'%s %d\n' % (want[:8].encode(), n))
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
    let last = |line: &str| line.split(' ').next_back()?.parse().ok();
    let numbers = |text: &str| text.lines().filter_map(last).collect::<Vec<u64>>();
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
