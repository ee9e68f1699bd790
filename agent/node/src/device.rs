//! The agent as the kernel module's daemon: answers what programs ask through `/dev/gridos` and `/proc/gridos/control`,
//! and keeps the module's tables as the grid is.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use grid_kernel::{Asked, Requests};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::control::operations;
use crate::grid::{Grid, blocking};

/// How often the tables are looked at.
const PACE: Duration = Duration::from_secs(1);

/// How long a process has to close its door after the answer, before it is moved all the same.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves the module, if this agent is its daemon.
pub(crate) fn serve(grid: &Arc<Grid>) -> io::Result<()> {
    let Some(requests) = grid.processes.requests() else { return Ok(()) };
    let (sender, mut asked) = mpsc::unbounded_channel();
    let reader = requests.clone();
    // The kernel bounds how many are under way.
    thread::Builder::new().name("device".into()).spawn(move || {
        loop {
            match reader.next() {
                Ok(one) => {
                    if sender.send(one).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return error!(%error, "programs are not answered through the kernel any more"),
            }
        }
    })?;
    tokio::spawn(publish(grid.clone(), requests.clone()));
    let grid = grid.clone();
    tokio::spawn(async move {
        while let Some(one) = asked.recv().await {
            tokio::spawn(answer(grid.clone(), requests.clone(), one));
        }
    });
    Ok(())
}

async fn answer(grid: Arc<Grid>, requests: Requests, asked: Asked) {
    let Asked { uid, gid, pid, op, again, .. } = asked;
    let question = operations::Asked { uid, gid, pid, op, input: asked.input.clone(), again };
    let (errno, output, then) = operations::answer(&grid, question).await;
    if let Err(error) = requests.answer(&asked, errno, &output) {
        warn!(%error, %op, "the kernel module took no answer");
    }
    if let Some(then) = then {
        closed(pid).await;
        then.await;
    }
}

/// Waits until a process has closed its door.
pub(crate) async fn closed(pid: u32) {
    let begun = Instant::now();
    while begun.elapsed() < CLOSING && blocking(move || is_open(pid)).await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_open(pid: u32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut places = files.filter_map(|file| fs::read_link(file.path()).ok());
    let doors = ["dev/gridos", "gridos/control", "proc/control"];
    places.any(|place| doors.iter().any(|door| place.ends_with(door)))
}

/// Keeps the module's tables as the grid is.
async fn publish(grid: Arc<Grid>, requests: Requests) {
    let (mut nodes, mut jobs) = (Vec::new(), Vec::new());
    loop {
        let now = operations::nodes(&grid);
        let mut done = Ok(());
        if now != nodes {
            done = requests.publish_nodes(&now);
            nodes = now;
        }
        // The agent stops.
        let Ok(now) = grid.jobs().await else { return };
        if now != jobs {
            done = done.and(requests.publish_jobs(&now));
            jobs = now;
        }
        if let Err(error) = done {
            warn!(%error, "the kernel module does not take the grid's nodes and jobs");
        }
        tokio::time::sleep(PACE).await;
    }
}
