//! The agent as the kernel module's daemon: answers what programs ask through `/dev/gridos` and `/proc/gridos/control`,
//! and keeps the module's tables as the grid is.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use grid_kernel::{Asked, Requests};
use libgrid::sys::abi::Op;
use nix::errno::Errno;
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::caller::Caller;
use crate::control::operations::{self, Asker, Refused};
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
    let caller = Caller::user_of(asked.uid, asked.gid, &grid.config);
    let asker = Asker::new(Some(&grid), caller, asked.pid).await;
    let answered = match asked.again && asked.op != Op::STATUS {
        false => operations::operate(Ok(grid), &asker, asked.op, &asked.input).await,
        true => {
            let why =
                "the agent was restarted while it did this, and may have done it: look before you ask again";
            Err(Refused { errno: Errno::EINTR, why: why.into() })
        }
    };
    let (errno, output, then) = match answered {
        Ok(answered) => (0, answered.output, answered.then),
        Err(Refused { errno, why }) => (errno as i32, (why + "\n").into_bytes(), None),
    };
    if let Err(error) = requests.answer(&asked, errno, &output) {
        warn!(%error, op = %asked.op, "the kernel module took no answer");
    }
    if let Some(then) = then {
        closed(asked.pid).await;
        then.await;
    }
}

/// Waits until a process has closed its door.
async fn closed(pid: u32) {
    let begun = Instant::now();
    while begun.elapsed() < CLOSING && blocking(move || is_open(pid)).await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_open(pid: u32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut places = files.filter_map(|file| fs::read_link(file.path()).ok());
    places.any(|place| place.ends_with("dev/gridos") || place.ends_with("gridos/control"))
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
