//! The nodes that are known, as the rest of the agent sees them.

use std::time::Duration;

use libgrid::node::NodeInfo;

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer a probe, and has not objected yet. It counts as there.
    Suspect,
    /// It is gone, or cut off.
    Down,
}

/// A node that is or was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it said last about itself.
    pub info: NodeInfo,
    /// Whether it is there.
    pub state: MemberState,
    /// When we last had a datagram from it, or news of its coming or going; by the clock of
    /// [`Overlay::handle`](crate::Overlay::handle).
    pub seen: Duration,
}
