//! Requests to move a task: answered by its home, which looks at both ends first.

use std::sync::Arc;

use grid_jobs::home::{self, Move};
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::ids::{NodeId, Run, Selector, TaskId};
use libgrid::status::{MovePhase, Obstacle};
use libgrid::wire::stream;

use super::answer::missing;
use super::checkpoints::ask;
use super::{Answer, Stream};
use crate::core::Stopping;
use crate::grid::Grid;
use crate::peers::Request;
use crate::runner::Surveyed;

/// How many obstacles one sentence tells.
const TOLD: usize = 3;

/// Looks whether a task could go on at a node; with `check` that is all, otherwise it moves there, and each phase is told.
pub(super) async fn migrate<S: Stream>(
    grid: &Arc<Grid>,
    task: TaskId,
    to: Option<&str>,
    check: bool,
    client: &mut S,
) -> Result<(), Answer> {
    let (run, from) = running(grid, task).await?;
    let to = destination(grid, task, from, to).await?;
    let obstacles = obstacles(grid, run, from, to).await?;
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
    let mut changes = grid.core.watch(task.job).await?;
    grid.core.home(home::Event::Migrate { task, to });
    let mut told: Option<MovePhase> = None;
    loop {
        let state = grid.core.look(move |view| view.home.last_move(task)).await?;
        match state.ok_or_else(|| missing(Selector::Task(task)))? {
            Move::Moving { from, to, phase } => {
                if told.replace(phase) != Some(phase) {
                    let reply = Reply::Moving { from, to, phase };
                    // It goes on, whether somebody looks or not.
                    stream::write(client, &Response::Ok(reply)).await?;
                }
            }
            Move::Moved(moved) => {
                return Ok(stream::write(client, &Response::Ok(Reply::Moved(moved))).await?);
            }
            Move::Stayed(why) => {
                let why = format!("{task} did not move to node {to}, and goes on where it was: {why}");
                return Err(Failure::new(Kind::State, why).into());
            }
        }
        changes.changed().await.map_err(|_| Stopping)?;
    }
}

/// The current run, and where it is.
async fn running(grid: &Arc<Grid>, task: TaskId) -> Result<(Run, NodeId), Answer> {
    let known = grid.core.look(move |view| {
        let typed = view.home.record(task.job)?.origin.stdin.is_some();
        let (run, node) = view.home.run_of(task)?;
        Some((run, node.filter(|_| view.home.is_running(task)), typed))
    });
    let (run, node, typed) = known.await?.ok_or_else(|| missing(Selector::Task(task)))?;
    let state = |why: String| Answer::from(Failure::new(Kind::State, why));
    if typed {
        return Err(state(format!("{task} is typed into, and cannot be moved: use gridctl submit")));
    }
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
        return best.ok_or_else(|| {
            let why = format!(
                "no other node has room for {task}: wait until tasks end (gridctl nodes shows what is free)"
            );
            Failure::new(Kind::State, why).into()
        });
    };
    let node = grid
        .members
        .find(name)
        .ok_or_else(|| Failure::new(Kind::Missing, format!("there is no node {name}: see gridctl nodes")))?;
    match node == from {
        true => Err(Failure::new(Kind::State, format!("{task} is on node {name} already")).into()),
        false => Ok(node),
    }
}

async fn obstacles(grid: &Arc<Grid>, run: Run, from: NodeId, to: NodeId) -> Result<Vec<Obstacle>, Answer> {
    let surveyed: Surveyed = match from == grid.me {
        true => grid.survey(run).await?,
        false => ask(grid, from, &Request::Survey(run)).await?,
    };
    let mut obstacles = surveyed.survey.obstacles.clone();
    let there = Box::new(surveyed);
    obstacles.extend(match to == grid.me {
        true => grid.fits(run, there).await,
        false => ask(grid, to, &Request::Fits { run, there }).await?,
    });
    Ok(obstacles)
}
