//! What an agent and the `gridos-pages` that it starts say to each other.
//!
//! ```text
//!   agent ── Order ──▶
//!        ◀── Report::Round ─ at the source, as often as it has gone through the memory
//!        ◀── Report::Ready ─ the task can be dumped; the destination can be sent to
//!        ◀── Report::Failed, or the end
//! ```
//!
//! One order a process, on its standard input, a Unix socket; its standard output is the stream of pages, another one. While
//! the memory is not at the destination as a whole, an agent that is gone is one that gave up: the task runs on.
//! Afterwards, the process at the destination outlives it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// What to do, in a folder that is made for it and removed at the end; see [`grid_checkpoint::memory`] for what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Send the memory of a tree that runs.
    Send {
        /// The folder.
        folder: PathBuf,
        /// Its root.
        root: i32,
    },
    /// Take it, and give it to the processes that CRIU makes.
    Receive {
        /// The folder.
        folder: PathBuf,
        /// Bytes at most.
        limit: u64,
    },
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It has gone through the memory once more.
    Round {
        /// Bytes that were sent.
        bytes: u64,
    },
    /// It may go on.
    Ready,
    /// It cannot be: a sentence. The task at the source runs on.
    Failed(String),
}

/// What starts the program, the socket to it, and the stream of pages.
///
/// # Errors
/// There is no descriptor left.
pub fn command(program: &Path) -> io::Result<(Command, UnixStream, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let (pages, its_pages) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::from(OwnedFd::from(its)))
        .stdout(Stdio::from(OwnedFd::from(its_pages)))
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/");
    Ok((command, ours, pages))
}
