//! `gridctl`, the command line of GridOS.
//!
//! Every command asks the agent of this machine, through [`libgrid::blocking`]. Exit statuses:
//!
//! | status | means |
//! | --- | --- |
//! | 0 | done |
//! | 1 | the agent refused, or could not be reached |
//! | 2 | the command line is wrong |
//! | the job's own | of `wait` and `run`: see [`libgrid::status::Outcome::exit_status`] |
//! | 255 | `wait` and `run` themselves failed |
#![forbid(unsafe_code)]

mod agent;
mod args;
mod checkpoint;
mod command_line;
mod copy;
mod ftp;
mod inputs;
mod job;
mod lab;
mod moving;
mod pipe;
mod process;
mod run;
mod show;
mod sys;
mod terminal;
mod top;

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use libgrid::GridError;
use libgrid::blocking::Grid;

use crate::args::{Args, Command};
use crate::process::Target;

/// How `wait` and `run` tell their own failure from the job's.
const OWN_FAILURE: u8 = 255;

/// A command that was carried out, and the status to end with.
type Done = anyhow::Result<ExitCode>;

fn main() -> ExitCode {
    let args = Args::read();
    let failure = match args.command {
        Command::Wait { .. } | Command::Run { .. } => ExitCode::from(OWN_FAILURE),
        _ => ExitCode::FAILURE,
    };
    match dispatch(args) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridctl: {}", show::plain(libgrid::sentence(error.as_ref())));
            failure
        }
    }
}

/// Whoever reads our output, such as `head`, has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Not of the connection to the agent: that failed.
    let io = error.downcast_ref::<std::io::Error>().or_else(|| match error.downcast_ref::<GridError>() {
        Some(GridError::Output(io)) => Some(io),
        _ => None,
    });
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

fn dispatch(args: Args) -> Done {
    let json = args.json;
    let connect = || match &args.socket {
        Some(path) => Grid::connect_to(path),
        None => Grid::connect(),
    };
    match args.command {
        Command::Up { foreground, config } => agent::up(foreground, config.as_deref(), json),
        Command::Down => agent::down(json),
        Command::Vo { command } => agent::vo(&mut connect()?, command, json),
        Command::Token { command } => agent::token(&mut connect()?, command, json),
        Command::Join { token } => agent::join(&mut connect()?, token, json),
        Command::Nodes => agent::nodes(&mut connect()?, json),
        Command::Doctor => agent::doctor(&mut connect()?, json),
        Command::Submit(submit) => job::submit(&mut connect()?, &submit, json),
        Command::Run { options } => run::run(&mut connect()?, &options, json),
        Command::Ps { node: Some(node), .. } => job::ps_of_node(&mut connect()?, &node, json),
        Command::Ps { all, everywhere, processes: false, .. } => {
            job::ps(&mut connect()?, all, everywhere, json)
        }
        Command::Ps { everywhere, job, .. } => process::ps(&mut connect()?, job, everywhere, json),
        Command::Top { job, everywhere, sort, interval, once } => {
            top::top(&mut connect()?, job, everywhere, (sort, interval.0, once), json)
        }
        Command::Status { of: Target::Job(job), from, failed } => {
            job::status(&mut connect()?, job, (from, failed), json)
        }
        Command::Status { of: Target::Process(gpid), .. } => process::status(&mut connect()?, gpid, json),
        Command::Logs { job, follow, stream } => job::logs(&mut connect()?, job, follow, stream, json),
        Command::Wait { jobs, timeout } => job::wait(&connect()?, &jobs, timeout.map(|limit| limit.0), json),
        Command::Hold { jobs } => job::hold(&mut connect()?, &jobs, false),
        Command::Release { jobs } => job::hold(&mut connect()?, &jobs, true),
        Command::Kill { targets, signal } => job::kill(&mut connect()?, &targets, signal.as_deref(), json),
        Command::Checkpoint { job } => checkpoint::write(&mut connect()?, job, json),
        Command::Checkpoints { job } => checkpoint::list(&mut connect()?, job, json),
        Command::Restore { job, from } => checkpoint::restore(&mut connect()?, job, from, json),
        Command::Migrate { of, to, mode, check } => {
            let mut grid = connect()?;
            let job = process::selector(&mut grid, of)?;
            moving::migrate(&mut grid, job, to.as_deref(), mode, check, json)
        }
        Command::Drain { node, undo, mode } => moving::drain(&connect()?, &node, undo, mode, json),
        Command::Cp { paths, recursive, options } => copy::cp(&connect()?, &paths, recursive, &options, json),
        Command::Put { paths, options, .. } => copy::put(&connect()?, &paths, &options, json),
        Command::Get { sources, output, options, .. } => {
            copy::get(&connect()?, &sources, &output, &options, json)
        }
        Command::Ls { place, long } => copy::ls(&mut connect()?, &place, long, json),
        Command::Export(args) => copy::export(&mut connect()?, args, json),
        Command::Unexport { path } => copy::unexport(&mut connect()?, &path, json),
        Command::Exports { everywhere } => copy::exports(&mut connect()?, everywhere, json),
        Command::Sys { door, operation } => sys::sys(args.socket.as_deref(), door, &operation, json),
        Command::Pipe { command } => {
            let socket = args.socket.clone().unwrap_or_else(libgrid::blocking::socket_path);
            pipe::pipe(&mut connect()?, &socket, command, json)
        }
        Command::Lab { command } => lab::lab(command, json),
        Command::Ftp { command } => ftp::ftp(command, json),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "gridctl", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
