//! Named pipes: making, listing and removing them, and both ends.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request};
use libgrid::pipe::{CAPACITY, PipeName, PipeReply, PipeRequest, PipeSpec, Reader, Writer};
use libgrid::units::Bytes;

use crate::{Done, show};

#[derive(Debug, Subcommand)]
pub(crate) enum PipeCommand {
    /// Make a pipe on this node. Example: gridctl pipe create numbers --spill 1G
    Create {
        /// Its name on this node
        name: String,
        /// What it holds in memory before writers wait, from 64K to 64M
        #[arg(long, value_name = "SIZE", default_value_t = CAPACITY)]
        capacity: Bytes,
        /// Keep what is in it on the disk, and so much more
        #[arg(long, value_name = "SIZE")]
        spill: Option<Bytes>,
        /// Let every user of the VO read and write
        #[arg(long)]
        shared: bool,
    },
    /// List pipes. Example: gridctl pipe ls --everywhere
    Ls {
        /// Those of the other nodes, too
        #[arg(long, short)]
        everywhere: bool,
    },
    /// Remove a pipe, with what is in it. Example: gridctl pipe rm numbers
    Rm {
        /// NAME or NODE:NAME
        pipe: PipeName,
    },
    /// Print what comes out of a pipe, until its writers have closed. Example: gridctl pipe cat node2:numbers
    Cat {
        /// NAME or NODE:NAME
        pipe: PipeName,
    },
    /// Write standard input into a pipe. Example: seq 9 | gridctl pipe write node2:numbers
    Write {
        /// NAME or NODE:NAME
        pipe: PipeName,
    },
}

pub(crate) fn pipe(grid: &mut Grid, socket: &Path, command: PipeCommand, json: bool) -> Done {
    let mut out = io::stdout().lock();
    match command {
        PipeCommand::Create { name, capacity, spill, shared } => {
            grid.create_pipe(&PipeSpec { name, capacity, spill, shared })?;
            done(json)
        }
        PipeCommand::Ls { everywhere } => {
            match grid.ask(&Request::Pipe(PipeRequest::List { everywhere }))? {
                Reply::Pipe(PipeReply::Pipes { pipes, .. }) if json => show::json(&pipes),
                Reply::Pipe(PipeReply::Pipes { pipes, silent }) => {
                    show::text(show::pipes(&pipes))?;
                    for node in silent {
                        eprintln!("gridctl: node {node} did not answer; its pipes are missing here");
                    }
                    Ok(ExitCode::SUCCESS)
                }
                _ => Err(GridError::Unexpected.into()),
            }
        }
        PipeCommand::Rm { pipe } => match grid.ask(&Request::Pipe(PipeRequest::Remove(pipe)))? {
            Reply::Done => done(json),
            _ => Err(GridError::Unexpected.into()),
        },
        PipeCommand::Cat { pipe } => {
            io::copy(&mut Reader::open_at(socket, &pipe)?, &mut out)?;
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        PipeCommand::Write { pipe } => {
            let mut writer = Writer::open_at(socket, &pipe)?;
            io::copy(&mut io::stdin().lock(), &mut writer)?;
            writer.close()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn done(json: bool) -> Done {
    match json {
        true => show::json(&"done"),
        false => Ok(ExitCode::SUCCESS),
    }
}
