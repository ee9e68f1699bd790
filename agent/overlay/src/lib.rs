//! Membership of one sub-grid: which nodes are there, and what each has. Sans-IO.
//!
//! Nothing here does I/O or reads a clock: the daemon and the simulation drive the same [`Overlay`] through
//! [`Overlay::handle`], and do what the [`Action`]s say.
//!
//! ```text
//!            Meet, or a datagram                     probe without an answer
//! unknown ───────────────────────► Alive ◄──────────────────────────────────► Suspect
//!                                    ▲ │ ▲             heard of again             │
//!               announced to, answers│ │ └────────────── new incarnation ────┐    │ 2 s (to 10 nodes)
//!                                    │ │ Leave, Evict                        │    │ to 5.4 s (500)
//!                                    │ ▼                                     │    ▼
//!                                    └──────────────────────────────────── Down ──────► forgotten (24 h)
//! ```
//!
//! **Failure detection** is SWIM (Das, Gupta, Motivala 2002) by the crate foca: each second each node probes one
//! other, round robin in random order; one that does not answer within half a second is asked through three
//! others; then it is suspected, and has time to object. A dead node is down for all of five within about 5 s.
//!
//! **An identity** is the node's number, an incarnation and where it listens. The incarnation is the agent's start
//! time, so a restarted agent takes its own place at once; one that others took for dead raises it by one.
//! A node whose clock went back learns of its former incarnation from others, and goes above it.
//!
//! **What nodes have** ([`NodeInfo`](libgrid::node::NodeInfo)) rides on the same datagrams, each with a version, the
//! newest winning. Only the node itself makes versions: what others say about us is ignored.
//!
//! **Repair.** Gossip reaches all with high probability, not with certainty, and a newcomer knows nothing. So each
//! node sends a digest of what it knows (numbers and versions) to one other, at once when it joins and then every
//! ten seconds; the other pushes what is newer there, in as many datagrams as it takes.
//!
//! ```text
//! A ── Digest { first..=last, what A has there } ──► B
//!   ◄─────────────── Push { members, infos } ×n ────   only what A lacks
//! ```
//!
//! **A cut that heals** needs no help: every ten seconds one of those who are down is announced to. Of two sides that
//! took each other for dead, the first pair that meets tells each other, and the rest follows by probes.
//!
//! **A stopped agent** (SIGSTOP, a suspended machine) finds all its timers overdue when it goes on. They are put off by
//! the time that it was away, so that it does not take the others for dead before it has heard them.
//!
//! **Trust.** The transport vouches for who sent a datagram; one that claims another sender is dropped. Members
//! believe each other about third nodes, as SWIM must; an evicted node is ignored, whoever speaks for it.
//!
//! **Cost.** An idle grid sends two datagrams a second and node for probes, and a digest every ten seconds (one datagram for
//! each 50 nodes). Gossip stops when nothing is new.
//!
//! **Several sub-grids** come later: every datagram carries the [`SubGrid`] that it is meant for, and is ignored
//! elsewhere; a super-peer will hold one [`Overlay`] for each that it takes part in.
#![forbid(unsafe_code)]

mod config;
mod event;
mod identity;
mod info;
mod member;
mod message;
mod overlay;
mod sync;
mod timers;

pub use config::{OverlayConfig, SubGrid};
pub use event::{Action, Event};
pub use member::{Member, MemberState};
pub use message::{MAX_DATAGRAM, MAX_RECEIVED};
pub use overlay::Overlay;
