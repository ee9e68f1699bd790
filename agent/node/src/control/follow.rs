//! Requests that go on: waiting for a job, following its output.

use std::sync::Arc;
use std::time::Duration;

use libgrid::control::{Failure, Kind, Reply, Response, Streams};
use libgrid::ids::{NodeId, Run, Selector, TaskId};
use libgrid::wire::stream;
use tokio::time::{Instant, timeout};

use super::answer::missing;
use super::{Answer, Stream};
use crate::core::{Stopping, View};
use crate::grid::Grid;
use crate::output::STREAMS;
use crate::peers::{self, Piece};

/// A job that changes often is told of at most this often.
const PACE: Duration = Duration::from_millis(50);

/// How long to wait for a node that cannot be reached now.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a node may not answer for what a task printed there so far.
const PATIENCE: Duration = Duration::from_secs(3);

/// Tells of each change until the selected tasks are done; the client may then ask for something else.
pub(super) async fn wait<S: Stream>(grid: &Arc<Grid>, job: Selector, client: &mut S) -> Result<(), Answer> {
    let begin = move |view: &mut View| (view.watch(job.job()), view.home.status(job, 0));
    let (mut changes, mut status) = grid.core.look(begin).await?;
    loop {
        let now = status.ok_or_else(|| missing(job))?;
        let done = match job {
            Selector::Job(_) => now.summary.is_done(),
            Selector::Task(_) => now.tasks.iter().all(|task| task.outcome.is_some()),
        };
        stream::write(client, &Response::Ok(Reply::Job(Box::new(now)))).await?;
        if done {
            return Ok(());
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| Stopping)?,
            () = gone(client) => return Err(Answer::left()),
        }
        // One more change may follow at once; a task alone is told of without delay.
        if matches!(job, Selector::Job(_)) && grid.core.look(move |view| many(view, job)).await? {
            tokio::time::sleep(PACE).await;
        }
        status = grid.core.look(move |view| view.home.status(job, 0)).await?;
    }
}

fn many(view: &mut View, job: Selector) -> bool {
    view.home.record(job.job()).is_some_and(|record| record.spec.tasks() > 1)
}

/// Ends when the client closes its side or says something out of turn.
pub(crate) async fn gone<S: Stream>(client: &mut S) {
    let mut byte = [0];
    let _ = tokio::io::AsyncReadExt::read(client, &mut byte).await;
}

/// Where a task's output is now.
enum Place {
    /// It waits, or is being placed.
    Nowhere,
    /// With a run on this node, and whether that went on from a checkpoint.
    At(Run, NodeId, bool),
    /// Here, all of it.
    Home,
}

/// Sends a task's output from wherever it is; offsets lead over from the run's node to home.
pub(super) async fn logs<S: Stream>(
    grid: &Arc<Grid>,
    task: TaskId,
    streams: Streams,
    mut offsets: [u64; 2],
    follow: bool,
    client: &mut S,
) -> Result<(), Answer> {
    let mut changes = grid.core.watch(task.job).await?;
    let mut current: Option<Run> = None;
    let begun = Instant::now();
    loop {
        changes.mark_unchanged();
        let place = grid.core.look(move |view| match view.home.run_of(task) {
            _ if view.home.is_done(task) => Some(Place::Home),
            // Whether its output goes on or begins again is known when it runs.
            Some((run, Some(_)))
                if current.is_some_and(|before| before != run) && !view.home.is_running(task) =>
            {
                Some(Place::Nowhere)
            }
            Some((run, Some(node))) => Some(Place::At(run, node, view.home.resumed(task).is_some())),
            Some((_, None)) => Some(Place::Nowhere),
            None => None,
        });
        match place.await?.ok_or_else(|| missing(Selector::Task(task)))? {
            Place::Home => {
                let folder = grid.output.kept(task);
                for (stream, offset) in STREAMS.into_iter().zip(&mut offsets) {
                    send_kept(&folder, stream, offset, streams, client).await?;
                }
                return Ok(stream::write(client, &Response::Ok(Reply::Done)).await?);
            }
            Place::At(run, node, resumed) => {
                if current.replace(run).is_some_and(|before| before != run) && !resumed {
                    // The task began again: so does its output. One that goes on from a checkpoint prints what it printed
                    // after that once more, and that is not shown once more.
                    offsets = [0; 2];
                }
                let whole = from_run(grid, run, node, &mut offsets, streams, follow, client).await?;
                if !follow && whole {
                    return Ok(stream::write(client, &Response::Ok(Reply::Done)).await?);
                }
                // Until then, its agent may be on its way back.
                if !follow && begun.elapsed() > PATIENCE {
                    let why = format!(
                        "node {node}, where {task} runs, does not answer: ask again when it does, or when the task runs elsewhere"
                    );
                    return Err(Failure::new(Kind::Unavailable, why).into());
                }
                let pause = if whole { AGAIN * 20 } else { AGAIN };
                // It ended there, or its node is out of reach: whatever comes of it is a change.
                let _ = timeout(pause, changes.changed()).await;
            }
            Place::Nowhere if follow => tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                () = gone(client) => return Ok(()),
            },
            Place::Nowhere => return Ok(stream::write(client, &Response::Ok(Reply::Done)).await?),
        }
    }
}

/// Sends what a run printed, wherever it is. True if all of it came; of a run that is followed, to its end.
async fn from_run<S: Stream>(
    grid: &Arc<Grid>,
    run: Run,
    node: NodeId,
    offsets: &mut [u64; 2],
    streams: Streams,
    follow: bool,
    client: &mut S,
) -> Result<bool, Answer> {
    let (mut pieces, remote);
    if node == grid.me {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (output, from) = (grid.output.clone(), *offsets);
        remote = Some(tokio::spawn(async move {
            // Ends with the reader's side.
            let _ = output.send_logs(run, from, follow, &mut far).await;
        }));
        pieces = Box::new(near) as Box<dyn Stream>;
    } else {
        let request = peers::Request::Logs { run, from: *offsets, follow };
        let Ok(duplex) = grid.peers.ask(node, &request).await else { return Ok(false) };
        remote = None;
        pieces = Box::new(duplex);
    }
    let _remote = remote;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let leaving = async {
        let mut byte = [0];
        let _ = tokio::io::AsyncReadExt::read(&mut from_client, &mut byte).await;
    };
    tokio::pin!(leaving);
    loop {
        let piece = tokio::select! {
            piece = stream::read::<Piece, _>(&mut pieces) => piece,
            () = &mut leaving => return Err(Answer::left()),
        };
        match piece {
            Ok(Piece::Output { stream, offset, bytes }) => {
                let slot = STREAMS.iter().position(|s| *s == stream).unwrap_or(0);
                offsets[slot] = offset + bytes.len() as u64;
                if streams.has(stream) {
                    let reply = Reply::Output { stream, offset, bytes };
                    stream::write(&mut to_client, &Response::Ok(reply)).await?;
                }
            }
            Ok(Piece::End) => return Ok(true),
            Ok(_) | Err(_) => return Ok(false),
        }
    }
}

/// Sends what is kept of a stream.
async fn send_kept<S: Stream>(
    folder: &std::path::Path,
    stream: libgrid::control::Stream,
    offset: &mut u64,
    streams: Streams,
    client: &mut S,
) -> Result<(), Answer> {
    if !streams.has(stream) {
        return Ok(());
    }
    let mut reader = grid_run::logs::Reader::at(folder, stream, *offset);
    loop {
        let (at, bytes) = reader.read(libgrid::control::MAX_CHUNK).map_err(libgrid::wire::WireError::from)?;
        if bytes.is_empty() {
            return Ok(());
        }
        *offset = at + bytes.len() as u64;
        let reply = Reply::Output { stream, offset: at, bytes };
        stream::write(client, &Response::Ok(reply)).await?;
    }
}
