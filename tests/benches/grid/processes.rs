//! What it costs a job that its processes are followed by eBPF, and its packets counted: one that forks all the time, one that sends
//! small messages, and one that sends much; on a node with the programs and on one without, in turn.

use grid_tests::{Grid, GridConfig};
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::Report;

/// Short processes of one run.
const FORKS: u32 = 20_000;

/// Messages of one run, each with an answer.
const MESSAGES: u32 = 60_000;

/// Bytes of one run in pieces of 1 MiB, in MiB.
const MEBIBYTES: u32 = 6_000;

/// Runs of each.
const TURNS: usize = 7;

/// A job's work.
const FORK: &str = "for _ in range(FORKS):\n    \
                        pid = os.fork()\n    \
                        if pid == 0: os._exit(0)\n    \
                        os.waitpid(pid, 0)\n";

/// Over a connection on loopback: what costs most for what is sent.
const ANSWER: &str =
    "for _ in range(MESSAGES): near.send(b'x' * 64); far.send(far.recv(64)); near.recv(64)\n";

/// So, what costs least.
const SEND: &str = "piece = bytearray(1 << 20)\n\
                    if os.fork() == 0:\n    \
                        near.close()\n    \
                        while far.recv_into(piece): pass\n    \
                        os._exit(0)\n\
                    far.close()\n\
                    for _ in range(MEBIBYTES): near.sendall(piece)\n\
                    near.close(); os.wait()\n";

/// The connection.
const CONNECT: &str = "s = socket.create_server(('127.0.0.1', 0)); near = socket.create_connection(s.getsockname())\n\
                       far, _ = s.accept()\n";

/// The job tells the processor time of itself and of its children, in seconds.
const SCRIPT: &str = "import os, resource, socket\n\
                      WORK\
                      own, all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n\
                      print(own.ru_utime + own.ru_stime + all.ru_utime + all.ru_stime)\n";

pub(crate) fn run(report: &mut Report) {
    let make = |test, extra| GridConfig { extra, ..GridConfig::new(test, 1) }.up();
    let grids = [make("bench-followed", ""), make("bench-alone", "ebpf = false\n")];
    let tier = |grid: &Grid| grid.gridctl(1, ["doctor"]).ok().lines().next().unwrap().to_owned();
    if !tier(&grids[0]).contains("ebpf") {
        return println!("SKIPPED: {}", tier(&grids[0]));
    }
    let counts = |grid: &Grid| !tier(grid).contains("packets are not counted");
    if !counts(&grids[0]) {
        println!("  packets are not counted here: {}", tier(&grids[0]));
    }
    let sends = [CONNECT, &ANSWER.replace("MESSAGES", &MESSAGES.to_string())].concat();
    let sends_much = [CONNECT, &SEND.replace("MEBIBYTES", &MEBIBYTES.to_string())].concat();
    for (case, work) in [
        ("20,000 forks, one after the other", FORK.replace("FORKS", &FORKS.to_string())),
        ("60,000 messages and answers of 64 bytes over TCP", sends),
        ("6,000 MiB over TCP", sends_much),
    ] {
        let mut seconds = [Vec::new(), Vec::new()];
        for turn in 0..=TURNS {
            for (grid, seconds) in grids.iter().zip(&mut seconds) {
                let spent = spend(grid, &work);
                // The first turn warms up.
                if turn > 0 {
                    seconds.push(spent);
                }
            }
        }
        let case = ("processes", case);
        let [followed, alone] = seconds;
        let cost: Vec<f64> =
            followed.iter().zip(&alone).map(|(followed, alone)| 100.0 * (followed / alone - 1.0)).collect();
        report.note(case, "gridos", ("processor time", "s"), &followed);
        report.note(case, "gridos without eBPF", ("processor time", "s"), &alone);
        report.note(case, "gridos", ("more than without eBPF", "%"), &cost);
    }
}

/// The processor time of a job with this work.
fn spend(grid: &Grid, work: &str) -> f64 {
    let script = SCRIPT.replace("WORK", work);
    let spec = JobSpec::command(["python3", "-c", &script]).cpus(Cpus::cores(1)).memory(Bytes(256 << 20));
    let job = grid.submit(1, spec);
    let status = grid.wait(1, job);
    assert!(status.summary.succeeded(), "{status:#?}");
    grid.logs(1, job, 0).trim().parse().unwrap()
}
