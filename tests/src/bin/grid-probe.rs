//! A program of a job that asks the grid about itself, through whichever door its machine has (`libgrid::sys`), and says
//! how that went: `name=value`, a line each. Where there is another node, it moves itself there.
#![expect(
    clippy::unwrap_used,
    reason = "a test's program that cannot go on ends here, with the place and the cause"
)]

use std::thread::sleep;
use std::time::{Duration, Instant};

use libgrid::ids::NodeId;
use libgrid::sys::{Sys, SysError, Target};

/// How long a move may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let grid = Sys::open().unwrap();
    println!("door={}", grid.door());
    let this = grid.this_process().unwrap();
    let (gpid, task) = (this.gpid.unwrap(), this.task.unwrap());
    println!("gpid={gpid}\ntask={task}\nnode={}", this.node);
    println!("own_pid={}", grid.gpid_of(std::process::id()).unwrap() == gpid);
    println!("own_gpid={}", grid.pid_of(gpid).unwrap() == std::process::id());
    println!("stranger={}", errno(grid.pid_of("4000.77".parse().unwrap())));

    // What the agent answers.
    let status = grid.status(Target::Process(gpid)).unwrap();
    println!("status={} {} {}", status.state, status.task == task.index, status.node == this.node.0);
    println!("signal={}", grid.signal(Target::Process(gpid), 28).is_ok());
    println!("bad_signal={}", errno(grid.signal(Target::Process(gpid), 65)));
    println!("nobody={}", errno(grid.signal(Target::Process("4000.77".parse().unwrap()), 10)));
    println!("other_job={}", errno(grid.signal(Target::Job("j1.1".parse().unwrap()), 10)));
    println!("own_move={}", errno(grid.migrate(Target::Process(gpid), None, true)));
    println!("submit={}", errno(grid.submit("command = ['true']")));
    println!("command={}", grid.command("self").unwrap().contains(&format!("gpid {gpid}")));
    println!("wrong={}", grid.command("nonsense").unwrap_err());

    let other = until(|| {
        let nodes = grid.nodes().unwrap();
        let known = nodes.iter().any(|node| node.number == this.node.0 && !node.name.text().is_empty());
        known.then(|| nodes.iter().find(|node| node.number != this.node.0).map(|node| NodeId(node.number)))
    });
    if let Some(other) = other {
        grid.migrate(Target::Task(task), Some(other), false).unwrap();
        until(|| {
            // Who asks the agent just when it is to be stopped cannot be moved, and has to ask for that again.
            sleep(Duration::from_secs(1));
            let moved = grid.this_process().unwrap().node == other;
            if !moved {
                let _ = grid.migrate(Target::Task(task), Some(other), false);
            }
            moved.then_some(())
        });
        println!("moved={}", grid.this_process().unwrap().gpid == Some(gpid));
    }
    println!("done=true");
}

fn errno<T>(result: Result<T, SysError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(SysError::Refused { errno, .. }) => errno,
        Err(error) => panic!("{error}"),
    }
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "what is waited for does not come");
        sleep(Duration::from_millis(20));
    }
}
