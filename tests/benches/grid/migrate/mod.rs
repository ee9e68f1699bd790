//! Moves of a program that dirties its memory: how long it stands still by its own clock, how long the move takes, how many
//! bytes leave the node. `gridctl migrate` between two nodes of a lab; CRIU alone, on one machine and without a network.
//!
//! A word in sixteen of the program's memory is not zero: bytes that are sent say how well that compresses, too.

mod plain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use grid_tests::{Grid, GridConfig, until, until_some};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::{RUNS, Report, percentile};

/// What a program does.
#[derive(Clone, Copy)]
struct Case {
    /// Resident in each process.
    mib: u32,
    /// MB that each process dirties in a second.
    rate: u32,
    processes: u32,
    /// How often it is moved in hybrid mode. The other ways vary less, and take longer.
    runs: usize,
}

const fn alone(mib: u32, rate: u32, runs: usize) -> Case {
    Case { mib, rate, processes: 1, runs }
}

const CASES: [Case; 7] = [
    alone(64, 0, RUNS),
    alone(64, 50, RUNS),
    alone(256, 0, RUNS),
    alone(256, 50, RUNS),
    alone(1024, 0, RUNS),
    alone(1024, 50, 20),
    Case { mib: 50, rate: 0, processes: 20, runs: RUNS },
];

/// The modes of `gridctl migrate`.
const MODES: [&str; 2] = ["hybrid", "stop-and-copy"];

impl Case {
    /// What follows the log among the program's arguments.
    fn words(self) -> [String; 3] {
        [self.mib, self.rate, self.processes].map(|word| word.to_string())
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.processes > 1 {
            write!(f, "{} processes, each ", self.processes)?;
        }
        write!(f, "{} MiB, {} MB/s dirtied", self.mib, self.rate)
    }
}

/// What a move cost.
struct Cost {
    /// In milliseconds, as the program saw it.
    gap: f64,
    /// In seconds.
    total: f64,
    /// Bytes, where they can be counted.
    sent: Option<f64>,
}

/// Moves a program once.
type Move<'a> = Box<dyn Fn(&Path, Case) -> Result<Cost, String> + 'a>;

pub(crate) fn run(report: &mut Report) {
    let grid = GridConfig { cores: 8.0, memory: "16G", ..GridConfig::new("bench", 2) }.up();
    let mut subjects: Vec<(String, Move<'_>)> = Vec::new();
    for mode in MODES {
        let grid = &grid;
        subjects.push((
            format!("gridos {mode}"),
            Box::new(move |program, case| of_grid(grid, mode, program, case)),
        ));
    }
    subjects.push(("criu dump, cp, restore".into(), Box::new(plain::copy)));
    subjects.push(("criu lazy-pages".into(), Box::new(plain::lazy)));
    let mut serial = 0;
    for case in CASES {
        let name = case.to_string();
        let place = ("migrate", name.as_str());
        let mut costs: Vec<Vec<Cost>> = subjects.iter().map(|_| Vec::new()).collect();
        for run in 0..case.runs {
            // The first of them is the hybrid mode.
            let some = if run < RUNS { subjects.len() } else { 1 };
            for ((subject, once), costs) in subjects.iter().zip(&mut costs).take(some) {
                // What two runs have in memory must not be the same: a store would send it once.
                serial += 1;
                let program = compile(grid.dir(), "dirty", serial);
                match once(&program, case) {
                    Ok(cost) => costs.push(cost),
                    Err(why) => println!("  {name}: {subject} is left out once: {why}"),
                }
                fs::remove_file(program).unwrap();
            }
        }
        let mut gaps = Vec::new();
        for ((subject, _), costs) in subjects.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
            let of = |what: fn(&Cost) -> f64| costs.iter().map(what).collect::<Vec<_>>();
            let downtime = of(|cost| cost.gap);
            gaps.push((subject, report.note(place, subject, ("downtime", "ms"), &downtime)));
            report.note(place, subject, ("longest downtime", "ms"), &[percentile(&downtime, 100)]);
            report.note(place, subject, ("total", "s"), &of(|cost| cost.total));
            let sent: Vec<f64> = costs.iter().filter_map(|cost| cost.sent).map(|sent| sent / 1e6).collect();
            if !sent.is_empty() {
                report.note(place, subject, ("sent", "MB"), &sent);
            }
        }
        for (peer, theirs) in gaps.iter().filter(|(name, _)| name.starts_with("criu")) {
            for (ours, gap) in gaps.iter().filter(|(name, _)| name.starts_with("gridos")) {
                println!("  downtime of {peer} / {ours}: {:.2}", theirs / gap);
            }
        }
    }
}

/// A program of the tests of moves, whose memory depends on a number.
fn compile(folder: &Path, name: &str, serial: u64) -> PathBuf {
    let verdict = include_str!("../../../../agent/migrate/tests/live/programs/verdict.h");
    let source = match name {
        "init" => include_str!("../../../../agent/migrate/tests/live/programs/init.c"),
        _ => include_str!("../../../../agent/migrate/tests/live/programs/dirty.c"),
    };
    let mixed = "0xff51afd7ed558ccdULL";
    assert!(verdict.contains(mixed));
    let other = format!("{:#x}ULL", 0xff51_afd7_ed55_8ccd_u64.wrapping_add(2 * serial));
    fs::write(folder.join("verdict.h"), verdict.replace(mixed, &other)).unwrap();
    let path = folder.join(format!("{name}.c"));
    fs::write(&path, source).unwrap();
    let program = folder.join(format!("{name}-{serial}"));
    let built = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(&path).status().unwrap();
    assert!(built.success());
    program
}

/// The longest gap that the program tells; it must have found its memory as it was.
fn gap(told: &str) -> f64 {
    assert!(told.contains("OK\n") && !told.contains("BAD"), "{told}");
    let gap = told.lines().find_map(|line| line.strip_prefix("gap ")?.strip_suffix(" ms"));
    gap.and_then(|gap| gap.parse().ok()).unwrap_or_else(|| panic!("{told}"))
}

fn of_grid(grid: &Grid, mode: &str, program: &Path, case: Case) -> Result<Cost, String> {
    let script = format!("{} log {}; cat log", program.display(), case.words().join(" "));
    let memory = u64::from(case.mib * case.processes + 128) << 20;
    let spec = JobSpec::command(["sh", "-c", &script]).cpus(Cpus::from_milli(1000)).memory(Bytes(memory));
    let job = grid.submit(1, spec);
    // The child of the shell; its folder is where the log is.
    let place = |node| process(grid, node, job);
    let (from, pid) =
        until_some("it runs", || [1, 2].into_iter().find_map(|node| Some((node, place(node)?))));
    until("it is ready", || {
        fs::read_to_string(format!("/proc/{pid}/cwd/log")).is_ok_and(|log| log.starts_with("ready"))
    });
    let to = 3 - from;
    // It stamps from then on.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (start, before) = (Instant::now(), sent(grid, from));
    let (name, to_name) = (job.to_string(), format!("node{to}"));
    let moved = grid.gridctl(1, ["migrate", &name, "--to", &to_name, "--mode", mode]);
    let (total, sent) = (start.elapsed().as_secs_f64(), sent(grid, from) - before);
    if moved.status != 0 {
        grid.gridctl(1, ["kill", &name]).ok();
        return Err(moved.stderr);
    }
    let pid = until_some("it is there", || place(to));
    fs::write(format!("/proc/{pid}/cwd/log.go"), "").unwrap();
    let status = grid.wait_within(1, job, std::time::Duration::from_secs(120));
    assert!(status.summary.succeeded(), "{status:#?}");
    Ok(Cost { gap: gap(&grid.logs(1, job, 0)), total, sent: Some(sent) })
}

/// A program of a job on a node.
fn process(grid: &Grid, node: u32, job: JobId) -> Option<i32> {
    let mark = format!("GRIDOS_JOB={job}\0");
    grid.task_processes(node).into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.windows(mark.len()).any(|window| window == mark.as_bytes()))
    })
}

/// Bytes that have left a node.
fn sent(grid: &Grid, node: u32) -> f64 {
    let output = grid.machine(node).exec("cat").arg("/proc/net/dev").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    let outward = lines.filter(|(name, _)| name.trim() != "lo");
    outward.filter_map(|(_, counts)| counts.split_whitespace().nth(8)?.parse::<f64>().ok()).sum()
}
