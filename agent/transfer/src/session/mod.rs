//! Transfers between nodes.
//!
//! ```text
//!             control: the agents' mutual TLS, passed on by both agents
//!   source ◀═══════════════════════════════════════════════════════════▶ destination
//!   (a process of the user)                                              (a process of the user)
//!          ════ data: TCP connections of their own, bound by a key ════▶
//! ```
//!
//! Each end is a process of the user on whose behalf it reads or writes, `gridos-mover`: the kernel decides about
//! files, and neither a defect nor the load of a transfer touches the agent. The agents only carry the control stream
//! between the two, which is authenticated and encrypted; the key for the data connections comes over it.
//!
//! **What makes it fast.** `sendfile` and `splice` ([`libgrid::io`]); as many connections as the path needs, found
//! by measuring ([`libgrid::io::Tuner`]); small files packed in one flow ([`record`]); no question that waits for an
//! answer between the first and the last message ([`message`]).
//!
//! **What makes it safe.** Each range and pack has a BLAKE3 checksum, compared with what is in the destination's page
//! cache (or, with `verify`, on its disk). Nothing has its final name before it is whole ([`landing`]). A journal
//! tells what has come ([`journal`]). A piece of work is outstanding until the destination has it, so connections
//! may break or stall, and are replaced ([`source`]).

mod conduit;
mod destination;
mod journal;
mod landing;
mod line;
mod message;
mod pace;
mod queue;
mod record;
mod small;
mod source;
mod spread;
mod walk;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libgrid::io::Fixed;

pub use destination::{ReceiveOrder, receive};
pub use line::{Invitation, Line, Listener, connect};
pub use message::Trouble;
pub use source::{SendOrder, send};
pub use spread::{Spread, discard};

/// What a source hears if there is no destination: a frame.
pub(crate) fn refusal(trouble: Trouble) -> Result<Vec<u8>, libgrid::wire::WireError> {
    libgrid::wire::frame(&message::FromDestination::Failed(trouble))
}

/// The name of the journal of what is to be spread: it is made first and removed last.
pub(crate) fn mark(name: &str, id: [u8; 8]) -> std::ffi::OsString {
    let [_, journal] = landing::hidden(name.as_ref(), &landing::hex(id));
    journal
}

/// How long a data connection on which something is under way may bring nothing until it is replaced.
const STALL: Duration = Duration::from_secs(10);

/// How to send.
#[derive(Clone, Debug)]
pub struct Options {
    /// Compare checksums at the destination.
    pub checksums: bool,
    /// Encrypt the data connections.
    pub encrypt: bool,
    /// The rate at most, in bytes a second.
    pub limit: Option<u64>,
    /// Data connections at most.
    pub most_streams: usize,
    /// What is not to be found by measuring.
    pub fixed: Fixed,
}

/// Listens for data connections: at all addresses, and at any port, if none are given.
fn listen(address: Option<IpAddr>, ports: Option<(u16, u16)>) -> Result<TcpListener, Trouble> {
    let (first, last) = ports.unwrap_or((0, 0));
    let mut why = None;
    for port in first..=last {
        let bound = match address {
            Some(address) => TcpListener::bind((address, port)),
            // A machine without IPv6 has the other.
            None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
        };
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => why = Some(error),
        }
    }
    let why = why.map_or_else(|| "there is none".to_owned(), |error| error.to_string());
    Err(Trouble::passing(format!("no port for data from {first} to {last} is free: {why}")))
}

/// A lock of which a thread that panicked makes no difference: what it guards is whole between two statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
