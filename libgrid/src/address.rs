//! The addresses of jobs with `--net grid`: who has which is a calculation, nothing more.
//!
//! ```text
//!  100.64.0.0/10          0110 0100 01 │ nn nnnn nnnn │ ssss ssss ssss
//!                         the network  │ node, 10 bit │ serial, 12 bit: 0 is the node itself
//! ```
//!
//! The network is the one that RFC 6598 sets aside for use between a provider and its customers: it is nobody's on the
//! Internet, and seldom anybody's inside an organisation. A task's address names the node that gave it away, not the
//! one where the task is: it stays the same on all its ways.

use std::fmt;
use std::net::Ipv4Addr;

use crate::ids::NodeId;

/// The first address of the grid's network.
const BASE: u32 = u32::from_be_bytes([100, 64, 0, 0]);

/// How many bits of an address are the network's own.
///
/// ```
/// assert_eq!(libgrid::address::PREFIX, 10);
/// ```
pub const PREFIX: u8 = 10;

/// How many bits count a node's tasks.
const SERIAL_BITS: u32 = 12;

/// The highest node number that has addresses.
///
/// ```
/// assert_eq!(libgrid::address::LAST_NODE, 1023);
/// ```
pub const LAST_NODE: u32 = (1 << (32 - PREFIX as u32 - SERIAL_BITS)) - 1;

/// The highest serial number of a task's address: the next one ends the network with its broadcast address.
///
/// ```
/// assert_eq!(libgrid::address::LAST_SERIAL, 4094);
/// ```
pub const LAST_SERIAL: u16 = (1 << SERIAL_BITS) - 2;

/// An address in the grid's network: a task's for life, or a node's.
///
/// ```
/// use libgrid::{address::Address, ids::NodeId};
/// assert_eq!(Address::of_task(NodeId(1), 7).unwrap().to_string(), "100.64.16.7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u32);

/// There is no such address.
///
/// ```
/// use libgrid::{address::Address, ids::NodeId};
/// assert!(Address::of_node(NodeId(2000)).unwrap_err().to_string().starts_with("node 2000 has no address"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The network is full.
    #[error("node {0} has no address in the grid's network: it numbers nodes from 1 to {LAST_NODE}")]
    Node(NodeId),
    /// The node has given all away.
    #[error("a node has addresses for tasks from 1 to {LAST_SERIAL}, and none with the number {0}")]
    Serial(u16),
    /// Somebody else's address.
    #[error("{0} is no address of a node or task of the grid (100.64.0.0/10)")]
    Foreign(Ipv4Addr),
}

// === impl Address ===

impl Address {
    /// The address of a node itself.
    ///
    /// # Errors
    /// [`AddressError::Node`].
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert_eq!(Address::of_node(NodeId(2)).unwrap().to_string(), "100.64.32.0");
    /// ```
    pub fn of_node(node: NodeId) -> Result<Self, AddressError> {
        match node.0 {
            1..=LAST_NODE => Ok(Self(BASE | node.0 << SERIAL_BITS)),
            _ => Err(AddressError::Node(node)),
        }
    }

    /// The address number `serial` of those that `node` gives to tasks.
    ///
    /// # Errors
    /// [`AddressError::Node`], [`AddressError::Serial`].
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert!(Address::of_task(NodeId(2), 0).is_err());
    /// ```
    pub fn of_task(node: NodeId, serial: u16) -> Result<Self, AddressError> {
        let Self(node) = Self::of_node(node)?;
        match serial {
            1..=LAST_SERIAL => Ok(Self(node | u32::from(serial))),
            _ => Err(AddressError::Serial(serial)),
        }
    }

    /// As everybody writes it.
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert_eq!(Address::of_task(NodeId(1), 1).unwrap().ip().octets(), [100, 64, 16, 1]);
    /// ```
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0)
    }

    /// The node that gave it away, or whose own it is.
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert_eq!(Address::of_task(NodeId(3), 1).unwrap().node(), NodeId(3));
    /// ```
    pub fn node(self) -> NodeId {
        NodeId((self.0 & !BASE) >> SERIAL_BITS)
    }

    /// Its number among those of the node; 0 for the node's own.
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert_eq!(Address::of_task(NodeId(3), 9).unwrap().serial(), 9);
    /// ```
    pub fn serial(self) -> u16 {
        (self.0 & ((1 << SERIAL_BITS) - 1)) as u16
    }

    /// The hardware address that goes with it: locally administered (IEEE 802, second bit), a letter, the address.
    ///
    /// ```
    /// # use libgrid::{address::Address, ids::NodeId};
    /// assert_eq!(Address::of_task(NodeId(1), 1).unwrap().mac().to_string(), "02:67:64:40:10:01");
    /// ```
    pub fn mac(self) -> Mac {
        let [a, b, c, d] = self.0.to_be_bytes();
        Mac([0x02, b'g', a, b, c, d])
    }
}

impl TryFrom<Ipv4Addr> for Address {
    type Error = AddressError;

    fn try_from(ip: Ipv4Addr) -> Result<Self, AddressError> {
        let address = Self(ip.to_bits());
        let ours = ip.to_bits() >> (32 - u32::from(PREFIX)) == BASE >> (32 - u32::from(PREFIX));
        if ours && address.node().0 >= 1 && address.serial() <= LAST_SERIAL {
            Ok(address)
        } else {
            Err(AddressError::Foreign(ip))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// A hardware address.
///
/// ```
/// assert_eq!(libgrid::address::Mac([2, 0, 0, 0, 0, 9]).to_string(), "02:00:00:00:00:09");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_are_as_drawn() {
        let task = Address::of_task(NodeId(1), 1).unwrap();
        assert_eq!(task.ip(), Ipv4Addr::new(100, 64, 16, 1));
        assert_eq!(task.mac().to_string(), "02:67:64:40:10:01");
        assert_eq!(Address::of_node(NodeId(1)).unwrap().to_string(), "100.64.16.0");
        let last = Address::of_task(NodeId(LAST_NODE), LAST_SERIAL).unwrap();
        assert_eq!((LAST_NODE, LAST_SERIAL), (1023, 4094));
        assert_eq!(last.ip(), Ipv4Addr::new(100, 127, 255, 254));
    }

    #[test]
    fn numbers_out_of_range_have_none() {
        assert_eq!(Address::of_node(NodeId(0)), Err(AddressError::Node(NodeId(0))));
        assert_eq!(Address::of_task(NodeId(1024), 1), Err(AddressError::Node(NodeId(1024))));
        assert_eq!(Address::of_task(NodeId(7), 0), Err(AddressError::Serial(0)));
        assert_eq!(Address::of_task(NodeId(7), 4095), Err(AddressError::Serial(4095)));
    }

    #[test]
    fn every_address_tells_whose_it_is() {
        let mut seen = HashSet::new();
        for node in (1..=LAST_NODE).step_by(73) {
            for serial in (1..=LAST_SERIAL).step_by(97) {
                let address = Address::of_task(NodeId(node), serial).unwrap();
                assert_eq!((address.node(), address.serial()), (NodeId(node), serial));
                assert_eq!(Address::try_from(address.ip()), Ok(address));
                assert!(seen.insert(address.mac().0), "{address} shares its hardware address");
            }
        }
    }

    #[test]
    fn what_is_not_of_the_grid_is_refused() {
        for foreign in
            ["100.63.255.255", "100.128.0.1", "100.64.0.0", "100.64.0.9", "100.127.255.255", "10.0.0.1"]
        {
            let ip: Ipv4Addr = foreign.parse().unwrap();
            assert_eq!(Address::try_from(ip), Err(AddressError::Foreign(ip)));
        }
    }
}
