//! The life of jobs and tasks, and the resource controller. It does no I/O and reads no clock.
//!
//! Two state machines, both in every agent:
//!
//! - [`home::Home`] owns the jobs that were submitted on this node. It keeps the queue, finds nodes, and starts
//!   again what was lost.
//! - [`host::Host`] lends this node's resources to any home node. It grants reservations and knows what runs.
//!
//! Each takes events and returns actions. The daemon carries the actions out; the simulator in `tests/` drives
//! the same code through crashes, lost messages and partitions.
//!
//! ```text
//!        Home (node 2)                                Host (node 3)
//!   submit ─▶ waiting
//!             │  Reserve{lease, each, count} ────────▶ holds resources until the lease's end
//!             │ ◀──────────────────── Granted{count}
//!     placed  │  Start{lease, tasks with epochs} ────▶ launches through a shim
//!    running  │ ◀──────────────────── Started
//!             │ ◀──── Heartbeat{runs} every second ──
//!             │  Pulse ──────────────────────────────▶ renews the fence
//!             │ ◀────────────────────── Ended{how}     (repeated until settled)
//!  collecting │  logs and results are brought home
//!       done  ▼  Settled ────────────────────────────▶ forgets the run
//! ```
//!
//! # Why no task runs twice
//!
//! A run is a task with an **epoch**; each placement has the next epoch, written down before `Start` is sent.
//! `Start` consumes its lease, so a copy of it that arrives late starts nothing.
//!
//! A home node that hears nothing from a host for [`LEASE`] + [`MARGIN`] places the host's tasks elsewhere. The
//! host stops them before: it freezes a home's tasks when [`LEASE`] has passed since it *sent* the last message
//! that the home is known to have received (a heartbeat that was answered, or the grant of the lease that a
//! `Start` names). The home counts from the moment at which it *received* that message or a later one, so the
//! freeze comes first by at least the margin, whatever the network did, as long as both clocks run at nearly the same
//! rate. When they meet again, the home answers for each run: go on, or end, because its epoch is over.
//!
//! Messages may overtake each other. A word that ends a move names the last one that it is about, so that a run that is to
//! move on stays held when it comes late ([`message::ToHost::LetGo`]).
//!
//! A host without runs of a home sends it no heartbeats, and so does one that lost them. If it is there, the home asks
//! ([`message::ToHost::Keeping`]), before or instead of giving up a run: what a task left that has ended is not lost because
//! its node is silent, as long as there is no place for it at home.
//!
//! # Crashes
//!
//! The home's records are in its store before anything is sent that depends on them. The host keeps no records:
//! the shims know what runs, and keep an exit status until the home has written it down.
#![forbid(unsafe_code)]

pub mod home;
pub mod host;
pub mod message;
pub mod record;

use std::time::{Duration, SystemTime};

/// How long a task goes on after the last contact with its home node.
pub const LEASE: Duration = Duration::from_secs(5);

/// How much longer the home node waits before it starts the task elsewhere.
pub const MARGIN: Duration = Duration::from_secs(1);

/// How often a host tells the homes of its tasks that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a reservation is held without being used.
pub const RESERVATION: Duration = Duration::from_secs(5);

/// The moment at which an event happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since a fixed origin; goes on while the machine sleeps (`CLOCK_BOOTTIME`).
    pub mono: Duration,
    /// For people.
    pub wall: SystemTime,
}
