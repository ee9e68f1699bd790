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

use crate::report::{RUNS, Report};

/// Resident MiB, and MB dirtied in each second.
const CASES: [(u32, u32); 6] = [(64, 0), (64, 50), (256, 0), (256, 50), (1024, 0), (1024, 50)];

/// The modes of `gridctl migrate`, and what each is called with.
const MODES: [(&str, &[&str]); 1] = [("stop-and-copy", &[])];

/// What a move cost.
struct Cost {
    /// In milliseconds, as the program saw it.
    gap: f64,
    /// In seconds.
    total: f64,
    /// Bytes, where they can be counted.
    sent: Option<f64>,
}

/// Moves a program of so many MiB and MB/s once; the number makes its memory another one than before.
type Move<'a> = Box<dyn Fn(&Path, (u32, u32)) -> Result<Cost, String> + 'a>;

pub(crate) fn run(report: &mut Report) {
    let grid = GridConfig { cores: 8.0, memory: "16G", ..GridConfig::new("bench", 2) }.up();
    let mut subjects: Vec<(String, Move<'_>)> = Vec::new();
    for (name, words) in MODES {
        let grid = &grid;
        subjects.push((
            format!("gridos {name}"),
            Box::new(move |program, case| of_grid(grid, words, program, case)),
        ));
    }
    subjects.push(("criu dump, cp, restore".into(), Box::new(plain::copy)));
    subjects.push(("criu lazy-pages".into(), Box::new(plain::lazy)));
    let mut serial = 0;
    for case in CASES {
        let (mib, rate) = case;
        let name = format!("{mib} MiB, {rate} MB/s dirtied");
        let place = ("migrate", name.as_str());
        let mut costs: Vec<Vec<Cost>> = subjects.iter().map(|_| Vec::new()).collect();
        for _ in 0..RUNS {
            for ((subject, once), costs) in subjects.iter().zip(&mut costs) {
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
            gaps.push((subject, report.note(place, subject, ("downtime", "ms"), &of(|cost| cost.gap))));
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

/// A program of the tests of moves. What two runs have in memory must not be the same: a store would send it once.
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

fn of_grid(grid: &Grid, words: &[&str], program: &Path, (mib, rate): (u32, u32)) -> Result<Cost, String> {
    let script = format!("{} log {mib} {rate}; cat log", program.display());
    let spec = JobSpec::command(["sh", "-c", &script])
        .cpus(Cpus::from_milli(1000))
        .memory(Bytes(u64::from(mib + 128) << 20));
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
    let moved = grid.gridctl(1, ["migrate", &name, "--to", &to_name].iter().chain(words));
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
