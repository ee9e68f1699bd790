//! Node-to-node transport: QUIC with mutual TLS 1.3, one connection for each pair of nodes in use.
//!
//! ```text
//!            dial: Initial at 0, again at about 90, 270, 630 ms;       TLS: each side asks its Trust about
//!            a new attempt each second; 3 s in all                     the other's certificate, or no connection
//! no connection ──────────────────────────────► handshake ──────────────────────────► greeting
//!      ▲  ▲                                         │ refused                             │ Hello, then
//!      │  └─────────────────────────────────────────┘                                     │ instance, serial
//!      │ evicted · reset by a restarted peer · silent for 4 s in use · unused for 60 s    ▼
//!      └────────────────────────────────────────────────────────────────────────────── ready ──► superseded:
//!                                                                     another one is preferred   ends unused
//! ```
//!
//! **Who gets in.** This crate knows no VO: the daemon answers for each certificate through [`Trust`]. Both
//! sides must show one, and prove in the handshake that they hold its key. Nothing of a peer that is refused
//! ever reaches [`Incoming`]. Sessions are never resumed, so that a revoked peer meets its judge each time.
//!
//! **One connection.** Either side's requests and datagrams use whichever connection there is. When both sides
//! dial at once, both keep the one that the lower [`NodeId`](libgrid::ids::NodeId) opened (of two from the
//! same side, the later); the other takes no new streams and ends when those it carries have.
//!
//! **A restarted peer is noticed at once.** The key for QUIC's stateless resets and the connection ids come from
//! the node's private key, so a restarted agent answers packets of its former life with a reset that their
//! sender believes. QUIC gives the side that was dialled no such token: that side learns it from the
//! greeting, which holds a random *instance*, when the peer calls again; and while it has use for the
//! connection, it dials by itself after a second of silence. The old connection's streams then fail.
//!
//! **What keeps a connection alive.** Use does: while streams are open, or a datagram is not acknowledged, each
//! side that heard nothing for half a second sends an empty datagram (about 30 bytes, acknowledged with as
//! much; a few dozen microseconds of CPU), and gives the peer up after four seconds of silence. Unused, a
//! connection costs memory (some 30 KiB) and nothing else; it ends after a minute. A new handshake costs each
//! side about a millisecond, so this is what keeps a quiet grid quiet.
//!
//! **Delivery.** [`Link::open`] alone repeats itself, while it is certain that nothing was sent. After that a
//! broken connection is the caller's error, who knows whether asking twice does harm.
#![forbid(unsafe_code)]

mod accept;
mod config;
mod connection;
mod dial;
mod error;
mod greeting;
pub mod join;
mod link;
mod stream;
mod table;
mod tls;
mod trust;

pub use config::LinkConfig;
pub use error::{BindError, LinkError};
pub use link::{Incoming, Link};
pub use stream::{Duplex, RecvHalf, SendHalf};
pub use trust::{Identity, Peer, Trust};
