//! What an agent and the `gridos-pages` that it starts say to each other.
//!
//! ```text
//!   agent ── Order ──▶
//!        ◀── Report::Listens ─ at the destination: what the source has to know
//!   agent ── Place ──▶ at the destination: where its files go
//!        ◀── Report::Came ──── at the destination: how much has come
//!        ◀── Report::Files ─── at the destination: all of them are there
//!        ◀── Report::Round ─── at the source, as often as it has gone through the memory
//!        ◀── Report::Ready ─── at the source: the task can be dumped
//!        ◀── Report::Failed, or the end
//! ```
//!
//! One order a process, on its standard input, a Unix socket. Memory and files go from the one process to the other, over a data
//! connection of their own ([`grid_transfer::session::Line`]). While it is not at the destination as a whole, an agent that is
//! gone is one that gave up: the task runs on. Afterwards, the process at the destination outlives it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use grid_transfer::session::Invitation;
use serde::{Deserialize, Serialize};

/// What to do, in a folder that is made for it and removed at the end; see [`grid_checkpoint::memory`] for what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Send the files of a tree that runs, and its memory.
    Send {
        /// The folder.
        folder: PathBuf,
        /// Its root.
        root: i32,
        /// Whether its memory is sent, too.
        memory: bool,
        /// Where the destination is.
        addresses: Vec<IpAddr>,
        /// What it said.
        invitation: Invitation,
        /// An eBPF iterator over the mappings of a process, if there is one.
        mappings: Option<PathBuf>,
        /// Its files.
        files: Place,
    },
    /// Take them, and give the memory to the processes that CRIU makes.
    Receive {
        /// The folder.
        folder: PathBuf,
        /// Bytes of memory at most, if any comes.
        memory: Option<u64>,
        /// The TCP ports that it may listen on, the first and the last.
        ports: Option<(u16, u16)>,
    },
}

/// Where the files of a task are. At the destination it follows the order, when it is known there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The folder of the task's working folder, `work`, and its `/tmp`, `tmp`; at the destination it is there, and they need not be.
    pub folder: PathBuf,
    /// Whose they are.
    pub uid: u32,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It can be sent to.
    Listens(Invitation),
    /// So much has come over the line.
    Came {
        /// In all.
        bytes: u64,
    },
    /// It has gone through the memory and the files once more.
    Round {
        /// Bytes that were sent.
        bytes: u64,
    },
    /// The task may be stopped.
    Ready,
    /// All of its files have come, and it stands still over there.
    Files,
    /// It cannot be: a sentence. The task at the source runs on.
    Failed(String),
}

/// What starts the program, and the socket to it.
///
/// # Errors
/// There is no descriptor left.
pub fn command(program: &Path) -> io::Result<(Command, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::from(OwnedFd::from(its)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/");
    Ok((command, ours))
}
