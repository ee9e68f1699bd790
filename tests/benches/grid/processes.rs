//! What it costs a job that its processes are followed by eBPF: one that forks all the time, on a node with the programs and on
//! one without, in turn.

use grid_tests::{Grid, GridConfig};
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::Report;

/// Short processes of one run.
const FORKS: u32 = 20_000;

/// Runs of each.
const TURNS: usize = 7;

/// The job tells the processor time of itself and of its children, in seconds.
const SCRIPT: &str = "import os, resource\n\
                      for _ in range(FORKS):\n    \
                          pid = os.fork()\n    \
                          if pid == 0: os._exit(0)\n    \
                          os.waitpid(pid, 0)\n\
                      own, all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n\
                      print(own.ru_utime + own.ru_stime + all.ru_utime + all.ru_stime)\n";

pub(crate) fn run(report: &mut Report) {
    let make = |test, extra| GridConfig { extra, ..GridConfig::new(test, 1) }.up();
    let grids = [make("bench-followed", ""), make("bench-alone", "ebpf = false\n")];
    let tier = |grid: &Grid| grid.gridctl(1, ["doctor"]).ok().lines().next().unwrap().to_owned();
    if !tier(&grids[0]).contains("ebpf") {
        return println!("SKIPPED: {}", tier(&grids[0]));
    }
    let mut seconds = [Vec::new(), Vec::new()];
    for turn in 0..=TURNS {
        for (grid, seconds) in grids.iter().zip(&mut seconds) {
            let spent = fork(grid);
            // The first turn warms up.
            if turn > 0 {
                seconds.push(spent);
            }
        }
    }
    let case = ("processes", "20,000 forks, one after the other");
    let [followed, alone] = seconds;
    let cost: Vec<f64> =
        followed.iter().zip(&alone).map(|(followed, alone)| 100.0 * (followed / alone - 1.0)).collect();
    report.note(case, "gridos", ("processor time", "s"), &followed);
    report.note(case, "gridos without eBPF", ("processor time", "s"), &alone);
    report.note(case, "gridos", ("more than without eBPF", "%"), &cost);
}

fn fork(grid: &Grid) -> f64 {
    let script = SCRIPT.replace("FORKS", &FORKS.to_string());
    let spec = JobSpec::command(["python3", "-c", &script]).cpus(Cpus::cores(1)).memory(Bytes(256 << 20));
    let job = grid.submit(1, spec);
    let status = grid.wait(1, job);
    assert!(status.summary.succeeded(), "{status:#?}");
    grid.logs(1, job, 0).trim().parse().unwrap()
}
