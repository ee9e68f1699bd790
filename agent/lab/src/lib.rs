//! A grid on one machine: for `gridctl lab`, and for the end-to-end tests.
//!
//! A **lab** is a Linux bridge and **machines** `node1` … `nodeN` on it. Each machine has its own network,
//! mount, uts, pid and ipc namespace; its pid 1 is `gridos-lab machine`, which keeps `gridosd` running the way
//! systemd does and reaps orphans. All share the host's kernel, cgroup tree and files, except `/proc`,
//! `/run/gridos` (empty after each boot), `/var/lib/gridos` (kept) and `/etc/hosts`.
//!
//! ```text
//!            host namespace                              machine node2
//!   ┌──────────────────────────────────┐       ┌────────────────────────────────┐
//!   │ gridlab7  10.100.7.254  (bridge) │       │ pid 1  gridos-lab machine      │
//!   │   ├─ gridlab7p1                  │ veth  │   └─ gridosd                   │
//!   │   ├─ gridlab7p2 ─────────────────┼───────┼─ eth0  10.100.7.2              │
//!   │   └─ gridlab7p3                  │       │ /run/gridos     = node2/run    │
//!   │                                  │       │ /var/lib/gridos = node2/state  │
//!   └──────────────────────────────────┘       └────────────────────────────────┘
//! ```
//!
//! What one can do to a machine, as to a real one: pull its power cord ([`Machine::kill`]: SIGKILL of pid 1
//! takes everything in the pid namespace along), power it on again ([`Machine::boot`]), pull its network
//! cable ([`Machine::cut`]), make its line slow ([`Machine::slow`]), and undo all that ([`Machine::heal`]).
//!
//! # State, and why a crash leaves nothing behind
//!
//! Everything is recorded below the lab's root directory before it is made: `lab.json` (name, slot, phase),
//! per machine `pid1.json`, `link.json` (which processes; a pid with its start time, so that a pid used again
//! is never mistaken for ours) and `wire.json` (cut, slow). A document is written to a temporary file, synced
//! and renamed. [`Lab::down`] works from the documents alone, so it cleans up after a half-finished `up` too.
//!
//! A lock file in the root serialises operations. Every program that an operation starts inherits the locked
//! descriptor: when the operating process is killed, the next operation waits until its last helper ended,
//! and so never misses what that helper was about to make.
//!
//! Labs do not clash: the bridge's name and the subnet come from a slot that is claimed by creating the
//! bridge (an atomic test-and-set in the kernel), and the bridge's MAC address says whose it is.

mod boot;
mod cgroups;
mod config;
mod detach;
mod document;
mod enter;
mod error;
mod lab;
mod lock;
mod machine;
mod mountpoint;
mod process;
mod relay;
mod slot;
mod slow;
mod supervisor;
mod tool;
mod wire;

pub use config::LabConfig;
pub use error::LabError;
pub use lab::{Lab, LabGuard, LabStatus};
pub use machine::{Machine, MachineStatus};
pub use slow::{ParseSlowError, Slow};
pub use wire::LinkEngine;

/// What the program `gridos-lab` does: the entrances that the library calls in its own namespaces.
///
/// Not for other callers: the arguments are between the library and the program of the same build.
#[doc(hidden)]
pub mod program {
    pub use crate::boot::machine;
    pub use crate::enter::enter;
    pub use crate::relay::link;
}
