//! What can go wrong with a lab.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a lab failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The lab's name cannot be part of names of links and cgroups.
    #[error(
        "`{0}` cannot be a lab's name: use 1 to 32 lower-case letters, digits and dashes, a letter first"
    )]
    Name(String),
    /// Too few or too many machines.
    #[error("a lab has 1 to {max} machines, not {nodes}: choose a number in between")]
    Nodes {
        /// What was asked for.
        nodes: u32,
        /// What the addresses of one subnet allow.
        max: u32,
    },
    /// The caller is not root.
    #[error("a lab needs root for its namespaces and links: run the command with sudo")]
    NotRoot,
    /// A lab of this name runs.
    #[error("the lab `{name}` is up already in {}: use it, take it down first, or choose another name", root.display())]
    Exists {
        /// The lab's name.
        name: String,
        /// Where it is.
        root: PathBuf,
    },
    /// An `up` or `down` was interrupted.
    #[error("the lab `{name}` in {} was left half made by an interrupted command: take it down, then up again", root.display())]
    HalfMade {
        /// The lab's name.
        name: String,
        /// Where it is.
        root: PathBuf,
    },
    /// The root directory holds something else.
    #[error("{} is not empty and holds no lab: choose another directory", .0.display())]
    Occupied(PathBuf),
    /// There is no lab.
    #[error("there is no lab in {}: make one with `gridctl lab up`, with the same --lab", .0.display())]
    NotFound(PathBuf),
    /// Another operation on the lab takes long.
    #[error("another command has been working on the lab in {} for over {seconds} s: wait for it, or end it", root.display())]
    Busy {
        /// Where the lab is.
        root: PathBuf,
        /// How long this command waited.
        seconds: u64,
    },
    /// No such machine.
    #[error("the lab `{lab}` has no machine `{machine}`: it has node1 to node{nodes}")]
    NoMachine {
        /// The lab's name.
        lab: String,
        /// What was asked for.
        machine: String,
        /// How many there are.
        nodes: u32,
    },
    /// The machine does not run.
    #[error("{machine} is off: boot or heal it first")]
    Off {
        /// The machine's name.
        machine: String,
    },
    /// A program that the lab starts cannot be executed.
    #[error("{} cannot be executed as the lab's {what}: build it, or give another path", path.display())]
    Program {
        /// `agent` or `helper`.
        what: &'static str,
        /// The path that was given.
        path: PathBuf,
    },
    /// A system program is not there.
    #[error("the program `{0}` is missing: install Debian's package iproute2 (apt-get install iproute2)")]
    NoTool(&'static str),
    /// A system program failed.
    #[error("`{command}` failed: {message}")]
    Tool {
        /// The command line, or its batch.
        command: String,
        /// What it printed.
        message: String,
    },
    /// All slots are taken.
    #[error("no free subnet is left for a lab between 10.100.0.0 and 10.103.255.0: take another lab down")]
    NoSlot,
    /// The machines do not reach each other.
    #[error(
        "node2 does not reach node1 ({source}): the host's firewall seems to filter bridges; allow forwarding on \
         {bridge}, or set the sysctl net.bridge.bridge-nf-call-iptables to 0"
    )]
    NoPassage {
        /// The lab's bridge.
        bridge: String,
        /// What came instead of an answer.
        source: io::Error,
    },
    /// A process of the lab did not start.
    #[error("{what} did not start: {message}")]
    Start {
        /// Which.
        what: String,
        /// Why, as it said itself.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} within {seconds} s: {remedy}")]
    Late {
        /// What did not happen.
        what: String,
        /// How long it was waited for.
        seconds: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// A state document cannot be understood.
    #[error("the state file {} is damaged ({source}): remove it and take the lab down", path.display())]
    Document {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A command failed, and so did the removal of what it had made.
    #[error("{failure}; cleaning up failed too ({cleanup}): take the lab down once that is mended")]
    Leftovers {
        /// The first failure.
        failure: Box<LabError>,
        /// What failed afterwards.
        cleanup: Box<LabError>,
    },
}

/// Adds what was tried, and on what, to an error of the operating system.
pub(crate) trait Doing<T> {
    /// Wraps the error: "cannot DOING PATH".
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, LabError> {
        self.map_err(|error| LabError::Io { doing, path: path.as_ref().to_owned(), source: error.into() })
    }
}
