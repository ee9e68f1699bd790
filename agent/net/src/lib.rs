//! The network of tasks that have asked for one (`--net grid`): an address that is theirs for life, reached from every node,
//! with connections that live through a move.
//!
//! ```text
//!        node 1: 100.64.16.0                          node 2: 100.64.32.0
//!   ┌──────────────────────────────┐            ┌──────────────────────────────┐
//!   │  task                        │            │                        task  │
//!   │ ┌────────────────┐           │            │           ┌────────────────┐ │
//!   │ │ eth0           │           │            │           │           eth0 │ │
//!   │ │ 100.64.16.1    │           │            │           │    100.64.32.1 │ │
//!   │ └──────┬─────────┘           │            │           └─────────┬──────┘ │
//!   │        │ veth, the port gt001001          │                     │        │
//!   │ ┌──────┴────────────────┐    │            │    ┌────────────────┴──────┐ │
//!   │ │ gridnet, a bridge     │    │            │    │ gridnet               │ │
//!   │ │ 100.64.16.0/10        │    │            │    │ 100.64.32.0/10        │ │
//!   │ └──────┬────────────────┘    │            │    └────────────────┬──────┘ │
//!   │      gridvx ── VXLAN ────────┼──── UDP ───┼──────────────────gridvx      │
//!   └──────────────────────────────┘            └──────────────────────────────┘
//! ```
//!
//! All nodes and tasks of a grid are on one Ethernet. What is for everybody, or for an address not yet seen, the VXLAN
//! device copies to each member (head-end replication, RFC 7348), and it learns from what arrives where each sender is.
//! So there is no route for each task, no daemon of routes, and nothing to agree on: a task that moves says so once
//! (`announce.rs`), with the address and hardware address that it has always had ([`Address`]).
//!
//! # The move
//!
//! ```text
//!   source                                         destination
//!
//!                                                   (nothing) ◀───────────────┐
//!   ┌────────┐                                          │ arrive              │ drop the descriptor,
//!   │  open  │                                          ▼                     │ release
//!   └──┬──▲──┘                                      ┌────────┐                │
//! hold │  │ open: called off                         │ closed ├────────────────┘
//!      ▼  │                                         └───┬────┘
//!   ┌─────┴──┐      CRIU's images                       │ CRIU restores; the processes run
//!   │  held  ├─────────────────────────▶                │
//!   └───┬────┘                                          ▼ open
//!       │ committed: release                        ┌────────┐
//!       ▼                                           │  open  │
//!   (nothing)                                       └────────┘
//! ```
//!
//! While a link is held or closed, its port on the bridge is switched off. The namespace's own end has no carrier then, but
//! keeps its address and its routes, without which CRIU could not bind and connect what it restores. Nothing that arrives
//! finds a host without its connection and is answered by a reset; nothing that CRIU's sockets do on their way leaves the
//! namespace. That is all that CRIU's lock of the network is for: it needs no rule of a firewall, so it is told to set none
//! (`--network-lock skip`). TCP sends again what was dropped.
//!
//! Connections within a task are not behind its link: those need [`isolate`], at CRIU's stage `pre-restore`.
//!
//! What CRIU has to be told, where it has entered the task's network namespace itself: `tcp_established`, and the network
//! lock `skip`. Namespace and link are then nothing that it dumps. **CRIU before 4.2 dumps no socket at all on Linux 6.16
//! and newer**: it asks every socket for options that these kernels have for local sockets only.
//!
//! How long a connection is silent: from `hold` to `open`, and then until TCP tries again. The other end has waited ever longer
//! between its trials, so that this may take as long once more; a restored end that has something to send again begins with
//! a second, as a new connection does.
//!
//! A connection that is established and that the program has not yet accepted makes CRIU refuse the dump; so the move is
//! called off, and tried again later.
//!
//! Restoring the same images once more, later, has the connections' other ends far ahead: that is for `tcp_close`, which
//! ends them.
//!
//! # What a task reaches
//!
//! Every task and node of the grid, at its address. What is sent elsewhere goes to the node where the task is, as its gateway:
//! its own addresses answer; whether it forwards to others, and translates addresses for it, is a matter of the node's owner,
//! and nothing here switches it on. The gateway is another one after each move. There is no IPv6, but on `lo`.
//!
//! Not separated are the tasks from each other, and from services of nodes that listen on all addresses; frames between nodes
//! are neither encrypted nor authenticated, as VXLAN is not: whoever can send UDP to a node's port can speak to its tasks.
//! Nodes that do not trust the network between them need a tunnel below (IPsec, WireGuard), with `local` in it.
//!
//! # What stays behind
//!
//! Nothing that outlives its owner. A namespace has no name: it is held by its processes, and takes its link along. Removing a
//! link by hand makes the caller wait for the kernel (35 ms); [`NodeNet::release`] switches it off and renames it instead.
//! What a restarted agent needs it finds in the kernel: [`NodeNet::ensure`], [`NodeNet::tasks`]. Tasks' own links are in the
//! hands of their shims, which do not end before them, and find the rest by [`NodeNet::find`].

mod announce;
mod namespace;
mod netlink;
mod node;
mod task;
mod unsent;
mod within;

pub use libgrid::address::{Address, AddressError, LAST_NODE, LAST_SERIAL, Mac, PREFIX};
pub use netlink::Refused;
pub use node::{BRIDGE, Config, EnsureError, FindError, MembersError, NodeNet, RemoveError, VXLAN};
pub use task::{ArriveError, HoldError, OWN_NAME, OpenError, ReleaseError};
pub use unsent::unsent;
pub use within::{IsolateError, isolate};
