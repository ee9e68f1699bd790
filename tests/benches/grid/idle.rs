//! What an agent takes that has nothing to do, in a grid of three.

use std::fs;
use std::time::Duration;

use grid_tests::Grid;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::report::Report;

const WINDOW: Duration = Duration::from_secs(30);

pub(crate) fn run(report: &mut Report) {
    let grid = Grid::up("bench-idle", 3);
    let agents: Vec<i32> = (1..=3).filter_map(|index| grid.machine(index).agent_pid().unwrap()).collect();
    // Joining and starting are over when this begins.
    std::thread::sleep(Duration::from_secs(5));
    let before: Vec<f64> = agents.iter().map(|pid| cpu_seconds(*pid)).collect();
    std::thread::sleep(WINDOW);
    let share = |(pid, before): (&i32, &f64)| (cpu_seconds(*pid) - before) / WINDOW.as_secs_f64() * 100.0;
    let shares: Vec<f64> = agents.iter().zip(&before).map(share).collect();
    let memory: Vec<f64> = agents.iter().map(|pid| resident_mib(*pid)).collect();
    report.note(("idle", "agent in a grid of three"), "gridos", ("processor time", "% core"), &shares);
    report.note(("idle", "agent in a grid of three"), "gridos", ("resident", "MiB"), &memory);
}

/// Of all its threads, those that have ended included, in nanoseconds, which a clock of 100 ticks a second would hide.
fn cpu_seconds(pid: i32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).unwrap();
    Duration::from(clock.now().unwrap()).as_secs_f64()
}

fn resident_mib(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
