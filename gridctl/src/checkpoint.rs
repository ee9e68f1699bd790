//! Checkpoints of tasks: writing, listing, going back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use indicatif::ProgressBar;
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request};
use libgrid::ids::{Selector, TaskId};
use libgrid::status::{TaskCheckpoints, TaskState};
use serde::Serialize;

use crate::{Done, job, show};

/// How often what is under way shows that it is.
const PACE: Duration = Duration::from_millis(100);

pub(crate) fn write(grid: &mut Grid, selector: Selector, json: bool) -> Done {
    let tasks = job::tasks(grid, selector)?;
    let running: Vec<TaskId> = tasks
        .iter()
        .filter(|task| task.state == TaskState::Running)
        .map(|task| selector.job().task(task.index))
        .collect();
    if running.is_empty() {
        bail!("no task of {selector} runs now: see gridctl status {selector}");
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(PACE);
    let (mut written, mut failed) = (Vec::new(), false);
    for (at, task) in running.iter().enumerate() {
        bar.set_message(format!("writing a checkpoint of {task}, {} of {}", at + 1, running.len()));
        match ask(grid, &Request::Checkpoint { task: *task }) {
            Ok(checkpoint) => written.push(checkpoint),
            // Of several, one that fails is no reason to leave out the others.
            Err(error) if running.len() > 1 => {
                failed = true;
                bar.suspend(|| eprintln!("gridctl: {error}"));
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err(error);
            }
        }
    }
    bar.finish_and_clear();
    if json {
        show::json(&written)?;
    } else {
        show::text(show::checkpoints(&written))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(crate) fn list(grid: &mut Grid, selector: Selector, json: bool) -> Done {
    let tasks = job::tasks(grid, selector)?;
    // Those of tasks that are done are gone. Of one that is asked for by name, this is said.
    let by_name = tasks.len() == 1;
    let open = tasks.iter().filter(|task| by_name || task.state != TaskState::Done);
    let mut all = Vec::new();
    for task in open {
        all.push(ask(grid, &Request::Checkpoints { task: selector.job().task(task.index) })?);
    }
    if json {
        return show::json(&all);
    }
    show::text(show::checkpoints(&all))?;
    for TaskCheckpoints { task, trouble, .. } in &all {
        if let Some(trouble) = trouble {
            eprintln!("gridctl: {task}: {trouble}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Restoring {
    task: TaskId,
    from: u64,
}

pub(crate) fn restore(grid: &mut Grid, selector: Selector, from: Option<u64>, json: bool) -> Done {
    let task = match (selector, &job::tasks(grid, selector)?[..]) {
        (Selector::Task(task), _) => task,
        (Selector::Job(job), [only]) => job.task(only.index),
        (Selector::Job(job), _) => bail!("{job} has several tasks: name one, such as {job}/0"),
    };
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(PACE);
    bar.set_message("looking at the checkpoint");
    let reply = grid.ask(&Request::Restore { task, from });
    bar.finish_and_clear();
    match reply? {
        Reply::Restoring(from) if json => show::json(&Restoring { task, from }),
        Reply::Restoring(from) => show::text(format!("{task} goes on from checkpoint {from}")),
        _ => Err(GridError::Unexpected.into()),
    }
}

fn ask(grid: &mut Grid, request: &Request) -> anyhow::Result<TaskCheckpoints> {
    match grid.ask(request)? {
        Reply::Checkpoints(checkpoints) => Ok(*checkpoints),
        _ => Err(GridError::Unexpected.into()),
    }
}
