//! Messages between any two processes of jobs, wherever they run and move to: each arrives once, in order, or an error says
//! that it did not.
//!
//! ```no_run
//! use std::time::Duration;
//! use libgrid::comm::Endpoint;
//!
//! // In one process of a task:
//! let endpoint = Endpoint::open()?;
//! endpoint.send("2.5031".parse()?, 7, b"hello", Some(Duration::from_secs(10)))?;
//! // In the process 2.5031:
//! let message = endpoint.recv(None)?;
//! assert_eq!((message.tag, &message.bytes[..]), (7, &b"hello"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it works
//!
//! ```text
//!   program ─▶ Endpoint ══ datagrams ══▶ agent ── QUIC ──▶ agent ══ datagrams ══▶ Endpoint ─▶ program
//!              stream.rs                 finds the process                       stream.rs
//! ```
//!
//! All that a stream is — numbers, what waits for an acknowledgement, what came and was not taken — is in the memory of the two
//! processes, so that it moves with them; agents route datagrams ([`ToAgent`], [`FromAgent`]) and keep nothing, so that one may
//! be killed at any time. What gets lost meanwhile, the ends send again.
//!
//! A process that is to be moved must not have a connection that leads out of its task. So an endpoint is a datagram socket
//! that is connected to nothing, bound in the task's own `/tmp`, where the agent finds it by the process's pid: whoever moves
//! need not tell anybody.
//!
//! # Bounds
//!
//! An end has room for 2 MiB from each other process; when that is full, the sender's [`Endpoint::send`] waits. That counts for
//! messages with other tags than those that are asked for, too: whoever leaves them there stops the stream.
//!
//! # Who may
//!
//! Processes of one user's jobs, as it is with all else of jobs. An agent whose configuration says `comm = "vo"` delivers to its
//! tasks from any job of the VO; answers need that on the other node, too.
//!
//! # What is promised
//!
//! | what happens | then |
//! | --- | --- |
//! | an end moves, an agent is killed, a line is cut for some time | it goes on |
//! | a process goes on from an older checkpoint, but nothing was exchanged since | it goes on |
//! | the same, and something was | [`CommError::Reset`] at both ends, and the next message begins anew |
//! | a process ends, or is not found for 15 s | [`CommError::Missing`]; what was not acknowledged may have arrived or not |
//! | an endpoint is dropped | it waits up to 5 s for acknowledgements, then the other end gets [`CommError::Closed`] |
//!
//! A process that ends without dropping its endpoint, as with [`std::process::exit`], says nothing: the other end finds out.
//!
//! On one host a message goes through the agent, too, as it is the agent that knows who may. A redirect in the kernel
//! (`sk_msg`) is not used: it is for what a connected TCP socket sends, and these sockets are neither.

mod endpoint;
mod packet;
mod state;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

pub use self::endpoint::Endpoint;
pub use self::packet::{FromAgent, MAX_DATAGRAM, Refusal, ToAgent, decode};
#[doc(hidden)]
pub use self::packet::{is_packet, sample_packet};
use crate::ids::Gpid;

/// Where agents take datagrams, unless they are told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/gridos/comm.sock";

/// Bytes in one message at most.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Where the endpoint of the process with this pid in its task is bound, as the task sees it.
///
/// ```
/// assert_eq!(libgrid::comm::place(2), "/tmp/.gridos-comm-2");
/// ```
pub fn place(pid: u32) -> String {
    format!("/tmp/.gridos-comm-{pid}")
}

/// A message that came.
///
/// ```no_run
/// # let endpoint = libgrid::comm::Endpoint::open()?;
/// let message = endpoint.recv(None)?;
/// println!("{} bytes from {}", message.bytes.len(), message.from);
/// # Ok::<(), libgrid::comm::CommError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The process that sent it.
    pub from: Gpid,
    /// What the sender gave with it.
    pub tag: u32,
    /// What it says.
    pub bytes: Vec<u8>,
    cost: usize,
}

/// A message was not sent, or none came.
///
/// ```
/// use libgrid::comm::CommError;
/// let error = CommError::TooLarge { len: 2 << 20 };
/// assert_eq!(error.to_string(), "a message of 2097152 bytes is over the limit of 1048576: send it in parts");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// The agent does not answer.
    #[error("the agent does not answer at {path}: is gridosd running on this node?")]
    NoAgent {
        /// Its socket.
        path: String,
    },
    /// This process is no process of a task.
    #[error("this is no process of a job: start it with gridctl submit or run")]
    Stranger,
    /// This process has an endpoint already.
    #[error("this process has an endpoint already: use that one, from any thread")]
    Taken,
    /// The socket cannot be used.
    #[error("cannot use the socket {path}: {source}")]
    Socket {
        /// Where it is bound.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The other process is not there, or not any more.
    #[error("{peer} cannot be reached: {why}")]
    Missing {
        /// Which.
        peer: Gpid,
        /// What is known of it.
        why: String,
    },
    /// The other process belongs to somebody else.
    #[error("{peer} may not be talked to: {why}")]
    Denied {
        /// Which.
        peer: Gpid,
        /// Whose it is.
        why: String,
    },
    /// It took too long. What was to be sent was not, and will not be.
    #[error("no answer within {} ms: {why}", after.as_millis())]
    Timeout {
        /// How long it was waited for.
        after: Duration,
        /// What was waited for.
        why: String,
    },
    /// The message is over [`MAX_MESSAGE`].
    #[error("a message of {len} bytes is over the limit of {MAX_MESSAGE}: send it in parts")]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The two ends have different histories, as one went on from an older checkpoint or began anew. What was not acknowledged
    /// may have arrived or not; the next message begins a new stream.
    #[error(
        "the stream with {0} broke, as one end began anew or went on from a checkpoint: agree on where to go on"
    )]
    Reset(Gpid),
    /// The other end has dropped its endpoint, and all of what it sent has been taken.
    #[error("{0} has closed its endpoint")]
    Closed(Gpid),
}
