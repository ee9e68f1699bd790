//! The public Rust API of GridOS, and all that crosses a process boundary.
//!
//! GridOS makes many Linux machines behave like one computer: a program is submitted anywhere, and the grid
//! finds it a machine. A program of yours talks to the agent of its own machine, `gridosd`, over a socket:
//!
//! ```no_run
//! use libgrid::blocking::Grid;
//! use libgrid::spec::JobSpec;
//!
//! let mut grid = Grid::connect()?;
//! let job = grid.submit(JobSpec::command(["/bin/echo", "hello"]))?;
//! let status = grid.wait(job)?;
//! assert!(status.succeeded());
//! # Ok::<(), libgrid::GridError>(())
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`ids`] | the names of nodes, jobs and tasks |
//! | [`address`] | the addresses of jobs with `--net grid` |
//! | [`units`] | cores, bytes and time as people write them |
//! | [`spec`] | what a user submits: [`spec::JobSpec`] |
//! | [`status`] | what became of it |
//! | [`node`] | what a node has |
//! | [`process`] | what runs in tasks |
//! | [`control`] | requests to the agent and its replies |
//! | [`copy`] | files between nodes |
//! | [`comm`] | messages between processes of jobs |
//! | [`pipe`] | named pipes between nodes |
//! | [`client`] | the connection to the agent, async |
//! | [`blocking`] | the same without a runtime |
//! | [`wire`] | framing, codec, version |
//! | `sys` | the grid's operations through the kernel or the agent; with the feature of that name |
//! | `io` | bulk data between files and sockets; with the feature of that name |
//! | `user` | whose rights a process has; with the feature of that name |
//! | `archive` | inputs and results as archives; with the feature of that name |
//! | `ftp` | FTP and GridFTP as written on the wire; with the feature of that name |
// Two calls of the kernel have no safe wrapper: io/info.rs, sys/device.rs.
#![deny(unsafe_code)]

pub mod address;
#[cfg(feature = "archive")]
pub mod archive;
pub mod blocking;
#[cfg(feature = "async")]
pub mod client;
pub mod comm;
pub mod control;
pub mod copy;
mod error;
#[cfg(feature = "ftp")]
pub mod ftp;
pub mod ids;
#[cfg(feature = "io")]
pub mod io;
pub mod node;
pub mod pipe;
pub mod process;
pub mod spec;
pub mod status;
#[cfg(feature = "sys")]
pub mod sys;
pub mod units;
#[cfg(feature = "user")]
pub mod user;
pub mod wire;

pub use error::{GridError, sentence};
