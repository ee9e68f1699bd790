//! Requests to move tasks: of one, answered by its home, which looks at both ends first; of all on a node, answered by that
//! node, which asks their homes.

use std::sync::Arc;

use grid_jobs::home::{self, Move};
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::ids::{NodeId, Run, Selector, TaskId};
use libgrid::status::{MoveMode, MovePhase, Moved, Obstacle};
use libgrid::wire::stream;
use tokio::sync::watch;

use super::answer::missing;
use super::checkpoints::ask;
use super::{Answer, Stream};
use crate::core::Stopping;
use crate::grid::Grid;
use crate::peers::Request;
use crate::runner::Surveyed;
use crate::runner::moving::no_soft_dirty;

/// How many obstacles one sentence tells.
const TOLD: usize = 3;

/// Looks whether a task could go on at a node; with `check` that is all, otherwise it moves there, and each phase is told.
pub(super) async fn migrate<S: Stream>(
    grid: &Arc<Grid>,
    task: TaskId,
    to: Option<&str>,
    mode: MoveMode,
    check: bool,
    client: &mut S,
) -> Result<(), Answer> {
    let (run, from) = running(grid, task).await?;
    let to = destination(grid, task, from, to).await?;
    let obstacles = obstacles(grid, run, (from, to), mode).await?;
    if check {
        let reply = Reply::Fits { from, to, obstacles };
        return Ok(stream::write(client, &Response::Ok(reply)).await?);
    }
    if !obstacles.is_empty() {
        let mut told: Vec<String> = obstacles.iter().take(TOLD).map(Obstacle::to_string).collect();
        if obstacles.len() > TOLD {
            told.push(format!("and {} more, which gridctl migrate --check tells", obstacles.len() - TOLD));
        }
        let why = format!("{task} cannot move to node {to}, and runs on: {}", told.join("; "));
        return Err(Failure::new(Kind::State, why).into());
    }
    let mut changes = begin(grid, task, to, mode).await?;
    let mut told: Option<(MovePhase, u64)> = None;
    loop {
        match progress(grid, task, to).await? {
            Progress::Moving { from, phase, bytes }
                if told.replace((phase, bytes)) != Some((phase, bytes)) =>
            {
                let reply = Reply::Moving { from, to, phase, bytes };
                // It goes on, whether somebody looks or not.
                stream::write(client, &Response::Ok(reply)).await?;
            }
            Progress::Moving { .. } => (),
            Progress::Moved(moved) => {
                return Ok(stream::write(client, &Response::Ok(Reply::Moved(moved))).await?);
            }
        }
        changes.changed().await.map_err(|_| Stopping)?;
    }
}

/// Moves a run of this home away from its node, to the best that there is.
pub(crate) async fn relocate(grid: &Arc<Grid>, run: Run, mode: MoveMode) -> Result<Moved, Failure> {
    let moving = async {
        let task = run.task;
        let (current, from) = running(grid, task).await?;
        if current != run {
            let why = format!("{task} is not there any more");
            return Err(Failure::new(Kind::State, why).into());
        }
        let to = destination(grid, task, from, None).await?;
        if let Some(obstacle) = obstacles(grid, run, (from, to), mode).await?.first() {
            return Err(Failure::new(Kind::State, format!("{task} cannot move: {obstacle}")).into());
        }
        let mut changes = begin(grid, task, to, mode).await?;
        loop {
            if let Progress::Moved(moved) = progress(grid, task, to).await? {
                return Ok(moved);
            }
            changes.changed().await.map_err(|_| Stopping)?;
        }
    };
    moving.await.map_err(|answer| match answer {
        Answer::Failure(failure) => failure,
        Answer::Wire(error) => Failure::new(Kind::Unavailable, error.to_string()),
    })
}

/// Has each task on this node moved to another one, by its home; each is told of. No more come until that is undone.
pub(super) async fn drain<S: Stream>(
    grid: &Arc<Grid>,
    undo: bool,
    mode: MoveMode,
    client: &mut S,
) -> Result<(), Answer> {
    grid.drain(!undo).await?;
    let runs = match undo {
        true => Vec::new(),
        false => grid.core.look(|view| view.host.running().collect::<Vec<Run>>()).await?,
    };
    for run in runs {
        let home = run.task.job.home;
        let moved = match home == grid.me {
            true => relocate(grid, run, mode).await,
            false => ask(grid, home, &Request::Relocate { run, mode }).await,
        };
        let (moved, stayed) = match moved {
            Ok(moved) => (Some(moved), None),
            Err(failure) => (None, Some(failure.message)),
        };
        let reply = Reply::Relocated { task: run.task, moved, stayed };
        stream::write(client, &Response::Ok(reply)).await?;
    }
    let kept = match undo {
        true => Vec::new(),
        false => grid.core.look(|view| view.host.kept().collect::<Vec<Run>>()).await?,
    };
    for run in kept {
        let why =
            "it has ended, and its results are here until its home can take them: gridctl status tells why";
        let reply = Reply::Relocated { task: run.task, moved: None, stayed: Some(why.into()) };
        stream::write(client, &Response::Ok(reply)).await?;
    }
    Ok(stream::write(client, &Response::Ok(Reply::Done)).await?)
}

enum Progress {
    Moving { from: NodeId, phase: MovePhase, bytes: u64 },
    Moved(Moved),
}

/// Begins a move; what comes of it is a change of the job.
async fn begin(
    grid: &Arc<Grid>,
    task: TaskId,
    to: NodeId,
    mode: MoveMode,
) -> Result<watch::Receiver<()>, Answer> {
    let changes = grid.core.watch(task.job).await?;
    grid.core.home(home::Event::Migrate { task, to, mode });
    Ok(changes)
}

/// How far it is.
async fn progress(grid: &Arc<Grid>, task: TaskId, to: NodeId) -> Result<Progress, Answer> {
    let state = grid.core.look(move |view| view.home.last_move(task)).await?;
    match state.ok_or_else(|| missing(Selector::Task(task)))? {
        Move::Moving { from, phase, bytes, .. } => Ok(Progress::Moving { from, phase, bytes }),
        Move::Moved(moved) => Ok(Progress::Moved(moved)),
        Move::Stayed(why) => {
            let why = format!("{task} did not move to node {to}, and goes on where it was: {why}");
            Err(Failure::new(Kind::State, why).into())
        }
    }
}

/// The current run, and where it is.
async fn running(grid: &Arc<Grid>, task: TaskId) -> Result<(Run, NodeId), Answer> {
    let known = grid.core.look(move |view| {
        let (run, node) = view.home.run_of(task)?;
        Some((run, node.filter(|_| view.home.is_running(task))))
    });
    let (run, node) = known.await?.ok_or_else(|| missing(Selector::Task(task)))?;
    let state = |why: String| Answer::from(Failure::new(Kind::State, why));
    let node = node.ok_or_else(|| state(format!("{task} does not run now: see gridctl status {task}")))?;
    Ok((run, node))
}

/// The node that the user named, or the best.
async fn destination(
    grid: &Arc<Grid>,
    task: TaskId,
    from: NodeId,
    to: Option<&str>,
) -> Result<NodeId, Answer> {
    let Some(name) = to else {
        let best = grid.core.look(move |view| view.home.best_for(task)).await?;
        if let Some(best) = best {
            return Ok(best);
        }
        let nodes = grid.core.look(move |view| Some(view.home.record(task.job)?.spec.nodes.clone())).await?;
        let nodes = nodes.unwrap_or_default();
        let elsewhere = nodes.iter().any(|name| grid.members.find(name).is_some_and(|node| node != from));
        let why = if nodes.is_empty() || elsewhere {
            format!(
                "no other node that may run {task} has room for it: wait until tasks end (gridctl nodes shows what is free)"
            )
        } else {
            format!("{task} may run on {} alone, as it was submitted with --node", nodes.join(" and "))
        };
        return Err(Failure::new(Kind::State, why).into());
    };
    let node = grid
        .members
        .find(name)
        .ok_or_else(|| Failure::new(Kind::Missing, format!("there is no node {name}: see gridctl nodes")))?;
    match node == from {
        true => {
            // A number alone would say little.
            let node =
                name.parse().map_or_else(|_| name.to_owned(), |number: NodeId| format!("node {number}"));
            Err(Failure::new(Kind::State, format!("{task} is on {node} already")).into())
        }
        false => Ok(node),
    }
}

async fn obstacles(
    grid: &Arc<Grid>,
    run: Run,
    (from, to): (NodeId, NodeId),
    mode: MoveMode,
) -> Result<Vec<Obstacle>, Answer> {
    let surveyed: Surveyed = match from == grid.me {
        true => grid.survey(run).await?,
        false => ask(grid, from, &Request::Survey(run)).await?,
    };
    let mut obstacles = surveyed.survey.obstacles.clone();
    if mode == MoveMode::PreCopy && !surveyed.soft_dirty {
        let remedy =
            "use --mode hybrid or --mode stop-and-copy, or leave it to gridctl with --mode auto".into();
        obstacles.push(Obstacle { what: no_soft_dirty(from), remedy });
    }
    let there = Box::new(surveyed);
    obstacles.extend(match to == grid.me {
        true => grid.fits(run, there).await,
        false => ask(grid, to, &Request::Fits { run, there }).await?,
    });
    Ok(obstacles)
}
