//! Who a member is to foca.

use std::net::SocketAddr;

use libgrid::ids::NodeId;
use serde::{Deserialize, Serialize};

/// Addresses in an identity; the rest is in the node's information.
pub(crate) const MAX_ADDRS: usize = 2;

/// A node in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) node: NodeId,
    /// When the agent started, raised by one whenever others took it for dead.
    pub(crate) incarnation: u64,
    /// Where to reach it, best first; at most [`MAX_ADDRS`].
    pub(crate) addrs: Vec<SocketAddr>,
}

impl Id {
    pub(crate) fn new(node: NodeId, incarnation: u64, addrs: &[SocketAddr]) -> Self {
        Self { node, incarnation, addrs: addrs.iter().take(MAX_ADDRS).copied().collect() }
    }

    /// Whether a node can have said so.
    pub(crate) fn is_sound(&self) -> bool {
        self.node != NodeId(0) && self.addrs.len() <= MAX_ADDRS
    }
}

impl foca::Identity for Id {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { incarnation: self.incarnation.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.incarnation > other.incarnation
    }
}
