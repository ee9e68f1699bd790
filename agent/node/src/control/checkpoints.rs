//! Requests about checkpoints: answered by the task's home, which asks the nodes that have them.

use std::sync::Arc;

use grid_jobs::home;
use libgrid::control::{Failure, Kind};
use libgrid::ids::{NodeId, Run, Selector, TaskId};
use libgrid::status::{Checkpoint, TaskCheckpoints};
use libgrid::wire::stream;
use serde::de::DeserializeOwned;

use super::Answer;
use super::answer::missing;
use crate::grid::Grid;
use crate::peers::Request;

/// What the home knows of a task.
struct Known {
    run: Run,
    /// Where it is, while it runs.
    node: Option<NodeId>,
    /// Where its newest checkpoint is.
    saved: Option<NodeId>,
    /// Where some are, from there.
    exported: Option<NodeId>,
    done: bool,
    /// Whether its user types into it.
    typed: bool,
}

async fn known(grid: &Arc<Grid>, task: TaskId) -> Result<Known, Answer> {
    let known = grid.core.look(move |view| {
        let typed = view.home.record(task.job)?.origin.stdin.is_some();
        let (run, node) = view.home.run_of(task)?;
        let node = node.filter(|_| view.home.is_running(task));
        let saved = view.home.saved(task).map(|(_, node)| node);
        let exported = view.home.exported(task).map(|(_, node)| node);
        Some(Known { run, node, saved, exported, done: view.home.is_done(task), typed })
    });
    let known = known.await?.ok_or_else(|| missing(Selector::Task(task)))?;
    if known.done {
        let why = format!("{task} is done, and its checkpoints are gone: submit it again");
        return Err(Failure::new(Kind::State, why).into());
    }
    if known.typed {
        let why = format!("{task} is typed into, and would go on without its user: use gridctl submit");
        return Err(Failure::new(Kind::State, why).into());
    }
    Ok(known)
}

/// Has a checkpoint written, and tells of it when it is stored.
pub(super) async fn write(grid: &Arc<Grid>, task: TaskId) -> Result<TaskCheckpoints, Answer> {
    let known = known(grid, task).await?;
    let Some(node) = known.node else {
        let why = format!("{task} does not run now: try again when it does (gridctl status {task})");
        return Err(Failure::new(Kind::State, why).into());
    };
    let checkpoint = match node == grid.me {
        true => grid.checkpoint(known.run).await,
        false => ask::<Checkpoint>(grid, node, &Request::Checkpoint(known.run)).await,
    };
    Ok(TaskCheckpoints { task, checkpoints: vec![checkpoint?], trouble: None })
}

/// Those that there are, as far as their nodes answer.
pub(super) async fn list(grid: &Arc<Grid>, task: TaskId) -> Result<TaskCheckpoints, Answer> {
    let known = known(grid, task).await?;
    // Of one that ran here, there may be some here as well.
    let here = known.exported.map(|_| grid.me);
    let mut nodes: Vec<NodeId> = Vec::new();
    for node in known.node.into_iter().chain(known.saved).chain(known.exported).chain(here) {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    let mut all = TaskCheckpoints { task, checkpoints: Vec::new(), trouble: None };
    for node in nodes {
        let there = match node == grid.me {
            true => grid.checkpoints(task).await,
            false => ask::<TaskCheckpoints>(grid, node, &Request::Checkpoints(task)).await,
        };
        match there {
            Ok(there) => {
                all.checkpoints.extend(there.checkpoints);
                all.trouble = all.trouble.or(there.trouble);
            }
            Err(failure) => {
                let why = format!("node {node} has some and cannot be asked: {}", failure.message);
                all.trouble = all.trouble.or(Some(why));
            }
        }
    }
    all.checkpoints.sort_by_key(|checkpoint| checkpoint.number);
    Ok(all)
}

/// Lets a task go on from one of them, after all of it was looked at; returns its number.
pub(super) async fn restore(grid: &Arc<Grid>, task: TaskId, from: Option<u64>) -> Result<u64, Answer> {
    let saved = known(grid, task).await?.saved;
    let there = list(grid, task).await?;
    let chosen = match from {
        Some(number) => there.checkpoints.iter().find(|checkpoint| checkpoint.number == number),
        None => there
            .checkpoints
            .iter()
            .max_by_key(|checkpoint| (checkpoint.number, Some(checkpoint.node) == saved)),
    };
    let Some(Checkpoint { number, node, .. }) = chosen.copied() else {
        let which = from.map(|number| format!(" {number}")).unwrap_or_default();
        let why = there.trouble.map(|why| format!(" ({why})")).unwrap_or_default();
        let todo = format!("see gridctl checkpoints {task}");
        let why = format!("there is no checkpoint{which} of {task}{why}: {todo}");
        return Err(Failure::new(Kind::Missing, why).into());
    };
    match node == grid.me {
        true => grid.verify(task, number).await?,
        false => ask::<()>(grid, node, &Request::Verify { task, number }).await?,
    }
    grid.core.home(home::Event::Restore { task, number, node });
    Ok(number)
}

/// Asks another node for one answer.
pub(super) async fn ask<T: DeserializeOwned>(
    grid: &Grid,
    node: NodeId,
    request: &Request,
) -> Result<T, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| Failure::new(Kind::Unavailable, error.to_string());
    let mut duplex = grid.peers.ask(node, request).await.map_err(|error| unreachable(&error))?;
    stream::read::<Result<T, Failure>, _>(&mut duplex).await.map_err(|error| unreachable(&error))?
}
