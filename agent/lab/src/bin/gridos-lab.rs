//! The program that a lab runs: a machine's pid 1, the relay of a slow line, the way into a machine.
//!
//! `grid-lab` starts it; people use `gridctl lab`. The commands `up` and `down` are for tests and scripts that
//! need a lab made by a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use grid_lab::{Lab, LabConfig, LabError, program};

const USAGE: &str = "usage:\n  \
    gridos-lab up NAME NODES ROOT AGENT\n  \
    gridos-lab down ROOT\n  \
    gridos-lab enter MACHINE_DIR -- PROGRAM [ARGUMENT...]\n  \
    gridos-lab machine|link ROOT INDEX LOCK_FD    (started by the library)";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let texts: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    let outcome = match (texts.as_slice(), args.as_slice()) {
        (["enter", _, "--", _, ..], [_, dir, _, program, rest @ ..]) => {
            return program::enter(Path::new(dir), program, rest);
        }
        (["machine", _, index, fd], [_, root, ..]) => start(program::machine, root, index, fd),
        (["link", _, index, fd], [_, root, ..]) => start(program::link, root, index, fd),
        (["up", name, nodes, _, _], [_, _, _, root, agent]) => nodes.parse().ok().map(|nodes| {
            let root = PathBuf::from(root);
            let helper = std::env::current_exe().unwrap_or_else(|_| LabConfig::find_helper());
            Lab::up(LabConfig { nodes, root, helper, ..LabConfig::new(*name, agent) }).map(drop)
        }),
        (["down", _], [_, root]) => Some(Lab::down_at(root)),
        _ => None,
    };
    match outcome {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("gridos-lab: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

type Starter = fn(&Path, u32, i32) -> Result<(), LabError>;

/// `None` when a number is not one.
fn start(program: Starter, root: &OsString, index: &str, fd: &str) -> Option<Result<(), LabError>> {
    // The three standard descriptors are no locks.
    let fd = fd.parse().ok().filter(|fd| *fd > 2)?;
    Some(program(Path::new(root), index.parse().ok()?, fd))
}
