//! What it costs to move a job's inputs to another node and its results back.
//!
//! Small ones as an array of many tasks: what a task pays for its own. Large ones as one task each: how fast, and for
//! how much processor time of the whole machine, which is both nodes.

use std::fs;
use std::path::Path;
use std::time::Instant;

use grid_tests::{Grid, GridConfig};

use crate::report::{RUNS, Report};
use crate::transfer::{busy, fill};

/// Tasks of an array.
const ARRAY: u32 = 100;

/// Files in a small folder, and bytes of each.
const FILES: u32 = 4;
const BYTES: usize = 1024;

/// Bytes of a large file.
const LARGE: u64 = 1 << 30;

pub(crate) fn run(report: &mut Report) {
    let grid = GridConfig { cores: 50.0, memory: "64G", ..GridConfig::new("bench", 2) }.up();
    let folder = grid.folder("work", 0);
    let small = folder.join("small");
    fs::create_dir(&small).unwrap();
    for file in 0..FILES {
        fs::write(small.join(format!("f{file}")), vec![7; BYTES]).unwrap();
    }
    fill(&folder.join("large"), LARGE);
    let array = format!("0-{}", ARRAY - 1);
    let many = ["submit", "--array", &array, "--cpus", "0.1", "--mem", "16M", "--node", "node2"];
    for (case, rest) in [
        ("array of 100, nothing staged", vec!["--", "true"]),
        ("array of 100, small inputs", vec!["--stage-in", "small", "--", "true"]),
        (
            "array of 100, small results",
            vec!["--stage-out", "out/{index}", "--", "sh", "-c", "mkdir out; echo x > out/$GRIDOS_INDEX"],
        ),
    ] {
        let times: Vec<_> = (0..RUNS).map(|_| timed(&grid, &folder, &many, &rest)).collect();
        let rates: Vec<_> = times.iter().map(|(time, _)| f64::from(ARRAY) / time).collect();
        let costs: Vec<_> = times.iter().map(|(_, cpu)| 1000.0 * cpu / f64::from(ARRAY)).collect();
        report.note(("staging", case), "gridos", ("rate", "jobs/s"), &rates);
        report.note(("staging", case), "gridos", ("processor time", "ms/job"), &costs);
    }
    let one = ["submit", "--cpus", "0.1", "--mem", "16M", "--node", "node2"];
    for (case, rest) in [
        ("1 GiB of inputs", vec!["--stage-in", "large", "--", "true"]),
        (
            "1 GiB of results",
            vec!["--stage-out", "big", "--", "cp", folder.join("large").to_str().unwrap(), "big"],
        ),
    ] {
        let times: Vec<_> = (0..RUNS).map(|_| timed(&grid, &folder, &one, &rest)).collect();
        let gigabytes = LARGE as f64 / 1e9;
        let rates: Vec<_> = times.iter().map(|(time, _)| gigabytes / time).collect();
        let costs: Vec<_> = times.iter().map(|(_, cpu)| cpu / gigabytes).collect();
        report.note(("staging", case), "gridos", ("rate", "GB/s"), &rates);
        report.note(("staging", case), "gridos", ("processor time", "s/GB"), &costs);
    }
}

/// From the submission until the job is done: the time, and the processor time.
fn timed(grid: &Grid, folder: &Path, first: &[&str], rest: &[&str]) -> (f64, f64) {
    let (start, before) = (Instant::now(), busy());
    let job = grid.gridctl_as(1, 0, folder, first.iter().chain(rest)).ok().to_owned();
    grid.gridctl(1, ["wait", &job]).ok();
    (start.elapsed().as_secs_f64(), busy() - before)
}
