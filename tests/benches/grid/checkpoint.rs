//! What checkpoints cost a job that computes in 256 MiB: the same work with `--checkpoint off` and `adaptive`, in turn, by its
//! own clock.
//!
//! With what is expected of a node by default, a failure a week, an interval is some twenty minutes, and a minute of work would
//! have no checkpoint at all. So the nodes here are said to fail every quarter of an hour: the interval is then half a minute,
//! and the share that is printed more than any real node has to pay.

use std::fs;
use std::path::Path;
use std::process::Command;

use grid_tests::{Grid, GridConfig, until_within};

use crate::report::{RUNS, Report};

/// How long a run is to take.
const SECONDS: f64 = 180.0;

/// The most that checkpoints shall take of the run time.
const TARGET: f64 = 3.0;

/// Passes over 256 MiB, each of which changes all of it.
const WORK: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
int main(int argc, char **argv) {
    size_t words = (size_t)256 << 17, passes = atol(argv[1]);
    uint64_t *p = malloc(words * 8), x = 88172645463325252ULL;
    for (size_t i = 0; i < words; i++) p[i] = i;
    double begin = now();
    for (size_t pass = 0; pass < passes; pass++)
        for (size_t i = 0; i < words; i++) {
            x ^= x << 13; x ^= x >> 7; x ^= x << 17;
            p[i] = p[i] * 6364136223846793005ULL + x;
        }
    printf("%.4f %llu\n", now() - begin, (unsigned long long)p[x % words]);
}
"#;

pub(crate) fn run(report: &mut Report) {
    let extra = "[checkpoints]\nfailures = \"15m\"";
    let grid = GridConfig { extra, ..GridConfig::new("bench", 1) }.up();
    let source = grid.dir().join("work.c");
    fs::write(&source, WORK).unwrap();
    let program = grid.dir().join("work");
    let built = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(built.success());
    let few = 4;
    let (passes_took, _) = work(&grid, &program, "off", few);
    let passes = ((f64::from(few) * SECONDS / passes_took) as u32).max(1);
    let ways = ["off", "adaptive"];
    let mut times = ways.map(|_| Vec::new());
    let mut written = Vec::new();
    for _ in 0..RUNS {
        for (way, times) in ways.into_iter().zip(&mut times) {
            let (time, checkpoints) = work(&grid, &program, way, passes);
            times.push(time);
            if way == "adaptive" {
                written.push(checkpoints);
            }
        }
    }
    let place = ("checkpoint", "256 MiB of work");
    let medians = [0, 1].map(|at| {
        let subject = format!("--checkpoint {}", ways[at]);
        report.note(place, &subject, ("run time", "s"), &times[at])
    });
    report.note(place, "--checkpoint adaptive", ("checkpoints written", "a run"), &written);
    let share = (medians[1] / medians[0] - 1.0) * 100.0;
    report.note(place, "adaptive over off", ("of the run time", "%"), &[share]);
    println!(
        "  ratio adaptive to off: {:.4} (target: below {:.2})",
        medians[1] / medians[0],
        1.0 + TARGET / 100.0
    );
}

/// Its run time in seconds, as it says, and the number of its newest checkpoint.
fn work(grid: &Grid, program: &Path, way: &str, passes: u32) -> (f64, f64) {
    let passes = passes.to_string();
    let words = [
        "submit",
        "--cpus",
        "1",
        "--mem",
        "400M",
        "--checkpoint",
        way,
        "--",
        program.to_str().unwrap(),
        &passes,
    ];
    let job = grid.gridctl(1, words).ok().to_owned();
    let mut newest = 0.0_f64;
    until_within("it is done", std::time::Duration::from_secs(1200), || {
        // Both ways are asked as often.
        std::thread::sleep(std::time::Duration::from_secs(1));
        let listed = grid.gridctl(1, ["checkpoints", &job, "--json"]);
        let numbers = listed.stdout.split("\"number\":").skip(1);
        let numbers =
            numbers.filter_map(|rest| rest.split([',', '}', '\n']).next()?.trim().parse::<f64>().ok());
        newest = numbers.fold(newest, f64::max);
        grid.job(1, job.parse().unwrap()).summary.is_done()
    });
    let printed = grid.logs(1, job.parse().unwrap(), 0);
    let time = printed.split(' ').next().and_then(|time| time.parse().ok());
    (time.unwrap_or_else(|| panic!("{printed:?}")), newest)
}
