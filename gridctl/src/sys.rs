//! `gridctl sys`: one of the operations that the kernel module has, and which door answered it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use libgrid::sys::{Door, Sys, text};
use serde::Serialize;

use crate::{Done, show};

#[derive(Serialize)]
struct Said {
    door: String,
    answer: String,
}

pub(crate) fn sys(socket: Option<&Path>, door: Option<Door>, words: &[String], json: bool) -> Done {
    let grid = match (door, socket) {
        (Some(Door::Device), Some(_)) => bail!("the device is this machine's own: leave out --socket"),
        (_, Some(path)) => Sys::at_socket(path)?,
        (Some(door), None) => Sys::through(door)?,
        (None, None) => Sys::open()?,
    };
    let table = |head: &str, lines: Vec<String>| head.to_owned() + &lines.concat();
    let answer = match words {
        // What the kernel answers by itself, where it can.
        [word] if word == "version" => grid.version()?.to_string(),
        [word] if word == "self" => grid.this()?.to_string(),
        [word] if word == "nodes" => {
            table(text::NODES, grid.nodes()?.iter().map(ToString::to_string).collect())
        }
        [word] if word == "jobs" => table(text::JOBS, grid.jobs()?.iter().map(ToString::to_string).collect()),
        words => grid.command(&words.join(" "))?,
    };
    let door = grid.door().to_string();
    if json {
        return show::json(&Said { door, answer });
    }
    eprintln!("answered by the {door}");
    print!("{answer}");
    Ok(ExitCode::SUCCESS)
}
