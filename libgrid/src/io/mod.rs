//! Bulk data between files and sockets without copying it through the program (`gridos_io`).
//!
//! ```text
//!   file ──sendfile──▶ socket        the pages of the page cache are sent themselves
//!   socket ──splice──▶ pipe ──splice──▶ file       1 MiB at a time, by one copy into the page cache
//!   socket ──splice──▶ pipe ──splice──▶ socket     a relay: no copy at all
//! ```
//!
//! A [`Socket`] is a TCP connection with what bulk data needs: time limits that notice a stall, buffers that follow
//! the bandwidth-delay product, the kernel's own measurements ([`PathInfo`]). Its calls block, and are meant for
//! threads of their own. What may have to wait for a disk is read ahead by a pool of threads ([`ReadAhead`]), so that
//! a thread that feeds a socket finds the pages there. How many connections a transfer should have, and which
//! buffers and congestion control, is decided by [`Tuner`] from what was measured; it does no I/O.
//!
//! A call that fails tells how far it came and on which side it failed ([`Broken`]): whoever resumes goes on there.
//!
//! Why these calls: `sendfile` and `splice` move data at half the CPU time of `read` and `write`; `io_uring` with
//! `SEND_ZC` was measured too, and does not save the copy on loopback.

mod ahead;
mod info;
mod pipe;
mod socket;
mod tuner;

pub use ahead::{Pending, ReadAhead};
pub use info::PathInfo;
pub use pipe::{PIPE_SIZE, Pipe, relay};
pub use socket::{BufferOption, Socket};
pub use tuner::{Congestion, Fixed, Path, Plan, Tuner};

use std::fmt;
use std::io;

/// Which end of a movement failed.
///
/// ```
/// assert_eq!(libgrid::io::Side::Network.to_string(), "the connection");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The file or device on this machine.
    File,
    /// The connection.
    Network,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "the file",
            Self::Network => "the connection",
        })
    }
}

/// A movement of bytes that did not come to its end.
///
/// ```
/// use libgrid::io::{Broken, Side};
/// let broken = Broken { moved: 4096, side: Side::File, source: std::io::ErrorKind::StorageFull.into() };
/// assert!(broken.to_string().starts_with("the file failed after 4096 bytes"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{side} failed after {moved} bytes: {source}")]
pub struct Broken {
    /// Bytes that arrived where they were to go.
    pub moved: u64,
    /// Where it failed.
    pub side: Side,
    /// Why: [`io::ErrorKind::WouldBlock`] if a time limit passed without a byte, and
    /// [`io::ErrorKind::UnexpectedEof`] if the file or the connection ended early.
    #[source]
    pub source: io::Error,
}

impl Broken {
    fn new(moved: u64, side: Side, source: impl Into<io::Error>) -> Self {
        Self { moved, side, source: source.into() }
    }

    /// Whether nothing moved for as long as the socket's time limit says.
    ///
    /// ```
    /// use libgrid::io::{Broken, Side};
    /// let broken = Broken { moved: 0, side: Side::Network, source: std::io::ErrorKind::WouldBlock.into() };
    /// assert!(broken.stalled());
    /// ```
    pub fn stalled(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    }
}
