//! From `submit` to the first instruction of the program, on a quiet node.
//!
//! The program is a static one that writes the time at which it began; the clock is the same on both sides.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use libgrid::blocking;
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::{Report, percentile};
use crate::throughput::one_node;

/// Writes the time of its first instruction, in nanoseconds, to standard output.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    printf("%lld\n", now.tv_sec * 1000000000ll + now.tv_nsec);
    return 0;
}
"#;

const PACED: usize = 200;
const BACK_TO_BACK: usize = 300;
const PACE: Duration = Duration::from_millis(40);

pub(crate) fn run(report: &mut Report) {
    let folder = tempfile::Builder::new().prefix("gridos-bench").tempdir_in("/var/tmp").unwrap();
    let program = folder.path().join("stamp");
    compile(&program);
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), permissions).unwrap();
    let grid = one_node();
    let mut client = grid.client(1);
    for _ in 0..20 {
        once(&mut client, &program);
    }
    let mut next = Instant::now();
    let paced: Vec<f64> = (0..PACED)
        .map(|_| {
            next += PACE;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            once(&mut client, &program)
        })
        .collect();
    let hurried: Vec<f64> = (0..BACK_TO_BACK).map(|_| once(&mut client, &program)).collect();
    for (case, times) in [("paced at 25 a second", &paced), ("back to back", &hurried)] {
        for percent in [50, 99] {
            let metric = format!("p{percent} of {}", times.len());
            report.note(("latency", case), "gridos", (&metric, "ms"), &[percentile(times, percent)]);
        }
    }
}

fn compile(program: &Path) {
    let source = program.with_extension("c");
    fs::write(&source, PROGRAM).unwrap();
    let status =
        Command::new("cc").args(["-O2", "-static", "-o"]).arg(program).arg(&source).status().unwrap();
    assert!(status.success(), "cc cannot compile the program that is measured");
}

/// Milliseconds from before `submit` to the program's own stamp.
fn once(client: &mut blocking::Grid, program: &Path) -> f64 {
    let spec =
        JobSpec::command([program.to_str().unwrap()]).cpus(Cpus::from_milli(100)).memory(Bytes(16 << 20));
    let submitted = boottime();
    let job = client.submit(spec).unwrap();
    client.wait(job).unwrap();
    let mut text = Vec::new();
    let streams = libgrid::control::Streams::Stdout;
    client
        .logs(job.task(0), streams, false, |_, _, bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    let began: i128 = String::from_utf8(text).unwrap().trim().parse().unwrap();
    (began - submitted) as f64 / 1e6
}

fn boottime() -> i128 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec())
}
