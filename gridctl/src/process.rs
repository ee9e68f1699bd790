//! Processes: listing them, finding one by its global id, and signals to one.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request};
use libgrid::ids::{Gpid, NodeId, ParseIdError, Selector, TaskId};
use libgrid::process::Process;
use libgrid::status::signal_number;
use serde::Serialize;

use crate::{Done, show};

/// What a user names: a job, one of its tasks, or a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Job(Selector),
    Process(Gpid),
}

impl FromStr for Target {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text.starts_with(|first: char| first.is_ascii_digit()) {
            true => text.parse().map(Target::Process),
            false => text.parse().map(Target::Job),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Job(selector) => selector.fmt(f),
            Target::Process(gpid) => gpid.fmt(f),
        }
    }
}

/// What was listed, and what is missing there.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) processes: Vec<Process>,
    pub(crate) silent: Vec<NodeId>,
    pub(crate) more: bool,
}

pub(crate) fn list(grid: &mut Grid, of: Option<Selector>, everywhere: bool) -> anyhow::Result<Listed> {
    match grid.ask(&Request::Processes { of, everywhere })? {
        Reply::Processes { processes, silent, more } => Ok(Listed { processes, silent, more }),
        _ => Err(GridError::Unexpected.into()),
    }
}

pub(crate) fn ps(grid: &mut Grid, of: Option<Selector>, everywhere: bool, json: bool) -> Done {
    let listed = list(grid, of, everywhere)?;
    if json {
        return show::json(&listed);
    }
    show::text(show::processes(&listed.processes))?;
    for node in &listed.silent {
        eprintln!("gridctl: node {node} did not answer; its processes are missing here");
    }
    if listed.more {
        eprintln!("gridctl: there are more: name a job, such as gridctl ps --processes j2.1");
    }
    Ok(ExitCode::SUCCESS)
}

/// The task that a process is part of.
pub(crate) fn task_of(grid: &mut Grid, process: Gpid) -> anyhow::Result<TaskId> {
    match grid.ask(&Request::Find { process })? {
        Reply::Found(task) => Ok(task),
        _ => Err(GridError::Unexpected.into()),
    }
}

/// The job or task that is named, or that the process is part of.
pub(crate) fn selector(grid: &mut Grid, target: Target) -> anyhow::Result<Selector> {
    match target {
        Target::Job(selector) => Ok(selector),
        Target::Process(gpid) => task_of(grid, gpid).map(Selector::Task),
    }
}

pub(crate) fn status(grid: &mut Grid, gpid: Gpid, json: bool) -> Done {
    let task = task_of(grid, gpid)?;
    let listed = list(grid, Some(Selector::Task(task)), false)?;
    match listed.processes.iter().find(|process| process.gpid == gpid) {
        Some(process) if json => show::json(process),
        Some(process) => show::text(show::process(process)),
        // It ended, or moves, between the two questions.
        None => bail!("{gpid} of {task} has just ended, or is on its way to another node: try again"),
    }
}

#[derive(Serialize)]
struct Signalled {
    process: Gpid,
    task: TaskId,
    signal: i32,
}

/// A process is sent what is asked for: TERM if nothing is.
pub(crate) fn kill(grid: &mut Grid, process: Gpid, signal: Option<&str>, json: bool) -> Done {
    let text = signal.unwrap_or("TERM");
    let Some(signal) = signal_number(text) else {
        bail!("{text:?} is no signal: use a name such as INT, or a number from 1 to 64");
    };
    let task = task_of(grid, process)?;
    match grid.ask(&Request::Signal { task, process, signal })? {
        Reply::Done if json => show::json(&Signalled { process, task, signal }),
        Reply::Done => Ok(ExitCode::SUCCESS),
        _ => Err(GridError::Unexpected.into()),
    }
}
