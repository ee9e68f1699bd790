//! What an overlay is told, and what it wants done.

use std::net::SocketAddr;

use libgrid::ids::NodeId;
use libgrid::node::NodeInfo;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A datagram came in.
    Datagram {
        /// Who sent it, as the transport vouches.
        from: NodeId,
        /// What.
        bytes: Vec<u8>,
    },
    /// [`Overlay::next_wakeup`](crate::Overlay::next_wakeup) is now.
    Wakeup,
    /// This node is or may be a member: contact it, and again until it answers.
    Meet {
        /// Its number.
        node: NodeId,
        /// Where it listens.
        addrs: Vec<SocketAddr>,
    },
    /// What this node has changed.
    Info(NodeInfo),
    /// The VO evicted this node: it is down, and ignored from now on.
    Evict(NodeId),
    /// A node that was evicted may come back.
    Admit(NodeId),
    /// This agent stops: tell the others. Later events do nothing.
    Leave,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram; it may get lost.
    Send {
        /// To whom.
        to: NodeId,
        /// Where it listens, as far as is known; may be empty for one that called us.
        addrs: Vec<SocketAddr>,
        /// What; at most [`MAX_DATAGRAM`](crate::MAX_DATAGRAM) bytes.
        bytes: Vec<u8>,
    },
    /// A node came, or came back.
    Up(NodeInfo),
    /// A node that is there has told something new.
    Changed(NodeInfo),
    /// A node is gone.
    Down(NodeId),
}
