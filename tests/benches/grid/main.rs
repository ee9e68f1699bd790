//! Benchmarks of the grid beside its peers, side by side in one run.
//!
//! `make bench`, or `make bench ONLY=throughput`. Prints medians of at least three runs, ours and the peers' in
//! turn, and writes `target/bench/results.json`: a list of
//! `{"bench", "case", "subject", "metric", "unit", "value", "runs"}`. A peer that is not installed is named and left
//! out.
//!
//! | bench | what is measured |
//! | --- | --- |
//! | `throughput` | jobs a second: an array of 1,000 `/bin/true`, 200 single submissions by one client; Slurm, Ray, Dask |
//! | `latency` | from `submit` to the program's first instruction, paced and back to back; `srun` |
//! | `transfer` | bulk data: rate and processor time; small files; long lines; iperf3, GridFTP, FTP, HTTP, rsync, scp |
//! | `staging` | jobs with inputs and results on another node: small ones of an array, large ones |
//! | `checkpoint` | what checkpoints take of the run time of a job of 256 MiB |
//! | `migrate` | moves of 64 MiB to 1 GiB: downtime as the program sees it, total time, bytes sent; CRIU alone |
//! | `processes` | processor time of jobs that fork, or send, all the time, with and without the eBPF programs that follow them |
//! | `comm` | messages between processes of jobs: round trips, and the rate one way; TCP socket, Unix pipe |
//! | `idle` | memory and processor time of an agent that has nothing to do |
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends here")]

mod checkpoint;
mod comm;
mod idle;
mod latency;
mod migrate;
mod processes;
mod python;
mod report;
mod slurm;
mod staging;
mod throughput;
mod transfer;

use report::Report;

type Bench = fn(&mut Report);

fn main() {
    // cargo passes --bench; a word of ours chooses.
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if only.first().is_some_and(|word| word == "bare") {
        // One end of the bare pair, started by the benchmark of transfers in a node's namespace.
        return transfer::bare(&only[1..]);
    }
    match only.first().map(String::as_str) {
        Some("comm-bare") => return comm::bare(&only[1..]),
        Some("comm-pipe") => return comm::bare_pipe(),
        _ => (),
    }
    if let Some(why) = grid_tests::obstacle() {
        println!("SKIPPED: benchmarks: {why}");
        return;
    }
    let mut report = Report::default();
    let benches = [
        ("throughput", throughput::run as Bench),
        ("latency", latency::run),
        ("idle", idle::run),
        ("staging", staging::run),
        ("transfer", transfer::run),
        ("checkpoint", checkpoint::run),
        ("migrate", migrate::run),
        ("processes", processes::run),
        ("comm", comm::run),
    ];
    for (name, run) in benches {
        if only.is_empty() || only.iter().any(|word| word == name) {
            println!("\n{name}");
            run(&mut report);
        }
    }
    report.write();
}
