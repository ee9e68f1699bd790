//! Moving tasks while they run.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{HumanBytes, ProgressBar};
use libgrid::GridError;
use libgrid::blocking::{Grid, Moving};
use libgrid::control::{Reply, Request};
use libgrid::ids::{NodeId, Selector, TaskId};
use libgrid::status::{MoveMode, MovePhase, Moved, Obstacle, TaskState};
use serde::Serialize;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::{Done, job, show};

/// How often what is under way shows that it is.
const PACE: Duration = Duration::from_millis(100);

/// What came of one task, for programs.
#[derive(Serialize)]
struct Result {
    task: TaskId,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stayed: Option<String>,
}

/// Whether a task could move, for programs.
#[derive(Serialize)]
struct Check {
    task: TaskId,
    from: NodeId,
    to: NodeId,
    obstacles: Vec<Obstacle>,
}

pub(crate) fn migrate(
    grid: &mut Grid,
    selector: Selector,
    to: Option<&str>,
    mode: MoveMode,
    look_only: bool,
    json: bool,
) -> Done {
    let tasks: Vec<TaskId> = job::tasks(grid, selector)?
        .iter()
        .filter(|task| task.state == TaskState::Running)
        .map(|task| selector.job().task(task.index))
        .collect();
    if tasks.is_empty() {
        bail!("no task of {selector} runs now: see gridctl status {selector}");
    }
    if look_only { check(grid, &tasks, to, mode, json) } else { carry_out(grid, &tasks, to, mode, json) }
}

fn check(grid: &mut Grid, tasks: &[TaskId], to: Option<&str>, mode: MoveMode, json: bool) -> Done {
    let mut checks = Vec::new();
    for task in tasks {
        let request = Request::Migrate { task: *task, to: to.map(Into::into), mode, check: true };
        match grid.ask(&request)? {
            Reply::Fits { from, to, obstacles } => checks.push(Check { task: *task, from, to, obstacles }),
            _ => return Err(GridError::Unexpected.into()),
        }
    }
    let fits = checks.iter().all(|check| check.obstacles.is_empty());
    if json {
        show::json(&checks)?;
    } else {
        for Check { task, from, to, obstacles } in &checks {
            match obstacles.is_empty() {
                true => show::text(format!("{task} can move from node {from} to node {to}"))?,
                false => show::text(format!("{task} cannot move from node {from} to node {to}:"))?,
            };
            for obstacle in obstacles {
                show::text(format!("  {obstacle}"))?;
            }
        }
    }
    Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whoever ends this by Ctrl-C does not end the move.
fn tell_on_interrupt() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("\ngridctl: the move that has begun goes on: gridctl status tells where the task is");
            std::process::exit(128 + SIGINT);
        }
    });
    Ok(())
}

/// One after the other: each stands still for as short as it can.
fn carry_out(grid: &Grid, tasks: &[TaskId], to: Option<&str>, mode: MoveMode, json: bool) -> Done {
    tell_on_interrupt()?;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(PACE);
    let mut results: Vec<Result> = Vec::new();
    for task in tasks {
        let begun = Instant::now();
        let moved = grid.migrate(*task, to, mode, |Moving { from, to, phase, bytes }| {
            let mut message = format!("{task} from node {from} to node {to}: {phase}");
            if matches!(phase, MovePhase::Ahead | MovePhase::Rounds) {
                let rate = (bytes as f64 / begun.elapsed().as_secs_f64()) as u64;
                message.push_str(&format!(" ({}, {}/s)", HumanBytes(bytes), HumanBytes(rate)));
            }
            bar.set_message(message);
        });
        let result = match moved {
            Ok(moved) => Result { task: *task, moved: Some(moved), stayed: None },
            Err(GridError::Refused(failure)) => {
                Result { task: *task, moved: None, stayed: Some(failure.message) }
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err(error.into());
            }
        };
        results.push(result);
    }
    bar.finish_and_clear();
    told(&results, json)
}

/// Moves all that runs on a node to others.
pub(crate) fn drain(grid: &Grid, node: &str, undo: bool, mode: MoveMode, json: bool) -> Done {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(PACE);
    bar.set_message(if undo { format!("letting tasks come to {node}") } else { format!("draining {node}") });
    let mut results = Vec::new();
    let drained = grid.drain(node, undo, mode, |task, outcome| {
        bar.set_message(format!("draining {node}: {task}"));
        let (moved, stayed) = match outcome {
            Ok(moved) => (Some(moved), None),
            Err(why) => (None, Some(why)),
        };
        results.push(Result { task, moved, stayed });
    });
    bar.finish_and_clear();
    drained?;
    let exit = told(&results, json)?;
    if !json {
        let stay = results.iter().filter(|result| result.stayed.is_some()).count();
        show::text(match (undo, stay) {
            (true, _) => format!("{node} takes tasks again"),
            (false, 0) => format!("{node} is drained: nothing runs on it, and it takes no more tasks"),
            (false, stay) => format!("{node} takes no more tasks; {stay} stay until they end"),
        })?;
    }
    Ok(exit)
}

/// Shows what came of each; a failure if any stayed.
fn told(results: &[Result], json: bool) -> Done {
    if json {
        show::json(&results)?;
    }
    for Result { task, moved, stayed } in results {
        match (moved, stayed) {
            (Some(moved), _) if !json => {
                let Moved { from, to, mode, took, stopped, .. } = moved;
                let (took, stopped) = (took.as_secs_f64(), stopped.as_secs_f64() * 1000.0);
                show::text(format!(
                    "{task} moved from node {from} to node {to} in {took:.2} s ({mode}), and stood still for {stopped:.0} ms"
                ))?;
            }
            (_, Some(why)) => eprintln!("gridctl: {why}"),
            _ => (),
        }
    }
    let all = results.iter().all(|result| result.moved.is_some());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
