//! A task's link: closed, open, held, given up.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::announce::introduce;
use crate::namespace;
use crate::netlink::link::{Cable, Link, Which};
use crate::netlink::route::LinkAddress;
use crate::netlink::{Netlink, Refused};
use crate::node::{BRIDGE, NodeNet};
use crate::within::LO;
use libgrid::address::{Address, PREFIX};

/// The name of the task's link inside its namespace, on every node.
pub const OWN_NAME: &str = "eth0";

/// Its number there, on every node the same: a program may have asked for it. Beyond those that kernels give to links that
/// are in a namespace from its beginning.
pub(crate) const OWN_INDEX: u32 = 64;

/// What a port's name begins with: of a task that is here, and of one that was given up.
const PORT: &str = "gt";
const RETIRED: &str = "gx";

/// The first address of the grid's network, and the bits that are not its own.
const BASE: u32 = u32::from_be_bytes([100, 64, 0, 0]);
const HOST: u32 = u32::MAX >> PREFIX;

/// The kernel opens a link in well under a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// The task has no namespace here.
#[derive(Debug, thiserror::Error)]
pub enum ArriveError {
    /// Its link is here already, maybe held.
    #[error("the address {0} is in use on this node: release the task that has it first")]
    Taken(Address),
    /// It is the address of a node.
    #[error("{0} is the address of a node, not of a task")]
    NotATask(Address),
    /// There is no namespace.
    #[error("cannot make a network namespace for {address}: {source}")]
    Namespace {
        /// Whose.
        address: Address,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot make the network of {address}: {source}")]
    Refused {
        /// Whose.
        address: Address,
        /// Which step.
        #[source]
        source: Refused,
    },
}

/// The task's link may be open or closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It has no link here.
    #[error("the task with the address {0} is not on this node")]
    Absent(Address),
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace of {address}: {source}")]
    Namespace {
        /// Whose.
        address: Address,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The link has no other end.
    #[error(
        "the link of {0} does not come up: its other end, eth0 in the task's namespace, was switched off"
    )]
    Dead(Address),
    /// The kernel refused.
    #[error("cannot open the link of {address}: {source}")]
    Refused {
        /// Whose.
        address: Address,
        /// Which step.
        #[source]
        source: Refused,
    },
}

/// The task's link is as it was.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// It has no link here.
    #[error("the task with the address {0} is not on this node")]
    Absent(Address),
    /// The kernel refused.
    #[error("cannot hold the link of {address}: {source}")]
    Refused {
        /// Whose.
        address: Address,
        /// Which step.
        #[source]
        source: Refused,
    },
}

/// The task's link keeps its place.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up the link of {address}: {source}")]
pub struct ReleaseError {
    /// Whose.
    address: Address,
    /// Which step.
    #[source]
    source: Refused,
}

// === impl NodeNet ===

impl NodeNet {
    /// Makes the namespace of a task that starts here, or comes here: the same everywhere, but for its gateway. Its link is
    /// closed: nothing comes in or goes out before [`NodeNet::open`].
    ///
    /// It lasts as long as the descriptor or a process in it; with it goes its link. Dropping the descriptor is therefore
    /// all that there is to do for a task that does not come after all, beside [`NodeNet::release`].
    ///
    /// # Errors
    /// [`ArriveError`]; nothing is left then.
    pub fn arrive(&self, address: Address) -> Result<OwnedFd, ArriveError> {
        if address.serial() == 0 {
            return Err(ArriveError::NotATask(address));
        }
        let fresh = namespace::make().map_err(|source| ArriveError::Namespace { address, source })?;
        let port = port(address);
        let cable = Cable {
            name: OWN_NAME,
            index: OWN_INDEX,
            mac: address.mac(),
            mtu: self.mtu,
            far_namespace: self.namespace.as_fd(),
            far_name: &port,
        };
        let made = fresh.netlink.add_cable(&cable).map_err(Refused::because("make the link", port.as_str()));
        made.map_err(|source| match source.is(Errno::EEXIST) {
            true => ArriveError::Taken(address),
            false => ArriveError::Refused { address, source },
        })?;
        self.furnish(&fresh.netlink, address, &port)
            .map_err(|source| ArriveError::Refused { address, source })?;
        Ok(fresh.namespace)
    }

    fn furnish(&self, own: &Netlink, address: Address, port: &str) -> Result<(), Refused> {
        let near = self.netlink.link(Which::Name(port)).map_err(Refused::because("look at", port))?;
        let near = near.ok_or_else(|| Refused::because("find", port)(io::ErrorKind::NotFound.into()))?.index;
        self.netlink.without_ipv6(near).map_err(Refused::because("keep IPv6 off", port))?;
        self.netlink.set_master(near, self.bridge).map_err(Refused::because("plug into the bridge", port))?;
        own.without_ipv6(OWN_INDEX).map_err(Refused::because("keep IPv6 off", OWN_NAME))?;
        for (index, name) in [(LO, "lo"), (OWN_INDEX, OWN_NAME)] {
            own.set_up(Which::Index(index), true).map_err(Refused::because("switch on", name))?;
        }
        let first = LinkAddress { link: OWN_INDEX, ip: address.ip().into(), prefix: PREFIX };
        own.add_address(first).map_err(Refused::because("add the address", address.to_string()))?;
        let gateway = self.gateway;
        own.default_route(gateway, OWN_INDEX).map_err(Refused::because("add a route by", gateway.to_string()))
    }

    /// Opens the task's link and tells all nodes that the task is here: after its start, after its restore, and after a
    /// [`NodeNet::hold`] whose move was called off. It may be open already.
    ///
    /// One lost packet can keep another node from learning it until the task itself sends something there: call
    /// [`NodeNet::announce`] again a second later.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, address: Address, namespace: BorrowedFd<'_>) -> Result<(), OpenError> {
        let own = namespace::inside(namespace, Netlink::open);
        let own = own.map_err(|source| OpenError::Namespace { address, source })?;
        let port = port(address);
        let refused = |source| OpenError::Refused { address, source };
        self.netlink.set_up(Which::Name(&port), true).map_err(|error| {
            let source = Refused::because("switch on", port.as_str())(error);
            if source.is(Errno::ENODEV) {
                OpenError::Absent(address)
            } else {
                OpenError::Refused { address, source }
            }
        })?;
        // What is sent before both ends know that there is a cable is dropped.
        await_link(address, &self.netlink, Which::Name(&port), |link| link.forwarding)?;
        await_link(address, &own, Which::Index(OWN_INDEX), |link| link.runs)?;
        own.pass(LO).map_err(Refused::because("open", "lo")).map_err(refused)?;
        self.announce(address)?;
        let introduced =
            introduce(&own, OWN_INDEX).map_err(Refused::because("tell the neighbours to", OWN_NAME));
        introduced.map_err(refused)
    }

    /// Tells all nodes once more that the task is here. Its link must be open.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn announce(&self, address: Address) -> Result<(), OpenError> {
        let port = port(address);
        let refused = |source| OpenError::Refused { address, source };
        let link = self.netlink.link(Which::Name(&port)).map_err(Refused::because("look at", port.as_str()));
        let index = link.map_err(refused)?.ok_or(OpenError::Absent(address))?.index;
        let learned = self.netlink.learn(index, address.mac());
        learned.map_err(Refused::because("tell the bridge of", port.as_str())).map_err(refused)?;
        let announced = self.announcer.announce(address, self.bridge);
        announced.map_err(Refused::because("announce", address.to_string())).map_err(refused)?;
        // What the node sends itself, it does not hear.
        let introduced = introduce(&self.netlink, self.bridge);
        introduced.map_err(Refused::because("tell the neighbours to", BRIDGE)).map_err(refused)
    }

    /// Closes the task's link, just before it is dumped: what anybody sends from now on, in either direction, is dropped,
    /// and sent again by TCP when the link opens, here or elsewhere. Routes and addresses stay. It may be closed already.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold(&self, address: Address) -> Result<(), HoldError> {
        let port = port(address);
        self.netlink.set_up(Which::Name(&port), false).map_err(|error| {
            let source = Refused::because("switch off", port.as_str())(error);
            if source.is(Errno::ENODEV) {
                HoldError::Absent(address)
            } else {
                HoldError::Refused { address, source }
            }
        })
    }

    /// Gives up the task's link: the task has gone elsewhere, has ended, or does not come. Its address is free here at once;
    /// the link itself goes with the namespace, later. Of a task that is not here there is nothing to give up.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn release(&self, address: Address) -> Result<(), ReleaseError> {
        let port = port(address);
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ENODEV);
        let step = |doing, result: io::Result<()>| match result {
            // The namespace has just ended, and has taken it along.
            Err(error) if gone(&error) => Ok(()),
            result => result.map_err(Refused::because(doing, port.as_str())),
        };
        let looked =
            self.netlink.link(Which::Name(&port)).map_err(Refused::because("look at", port.as_str()));
        let closed = looked.and_then(|link| {
            let Some(Link { index, .. }) = link else { return Ok(()) };
            step("switch off", self.netlink.set_up(Which::Index(index), false))?;
            step("put aside", self.netlink.retire(index, &format!("{RETIRED}{index:x}")))
        });
        closed.map_err(|source| ReleaseError { address, source })
    }
}

/// The kernel tells both ends from another thread that there is a cable, mostly at once.
fn await_link(
    address: Address,
    netlink: &Netlink,
    which: Which<'_>,
    ready: impl Fn(&Link) -> bool,
) -> Result<(), OpenError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let link = netlink.link(which).map_err(Refused::because("look at the link of", address.to_string()));
        match link.map_err(|source| OpenError::Refused { address, source })? {
            None => return Err(OpenError::Absent(address)),
            Some(link) if ready(&link) => return Ok(()),
            Some(_) if Instant::now() > deadline => return Err(OpenError::Dead(address)),
            Some(_) => thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// The name of a task's port on the bridge: what distinguishes its address, in six hexadecimal digits.
fn port(address: Address) -> String {
    format!("{PORT}{:06x}", address.ip().to_bits() & HOST)
}

/// Whose port has this name.
pub(crate) fn address_of(name: &str) -> Option<Address> {
    let number = u32::from_str_radix(name.strip_prefix(PORT)?, 16).ok()?;
    let address = Address::try_from(Ipv4Addr::from_bits(BASE | number)).ok()?;
    // One way to write it, and not the others that are read as well.
    (port(address) == name).then_some(address)
}

/// Whether it is the link of a task that is or was here.
pub(crate) fn is_port(link: &Link) -> bool {
    let retired = format!("{RETIRED}{:x}", link.index);
    link.kind == "veth" && (address_of(&link.name).is_some() || link.name == retired)
}

#[cfg(test)]
mod tests {
    use libgrid::ids::NodeId;

    use super::*;

    #[test]
    fn names_of_ports_lead_back_to_their_tasks() {
        for (node, serial) in [(1, 1), (1023, 4094), (7, 300)] {
            let address = Address::of_task(NodeId(node), serial).unwrap();
            assert_eq!(address_of(&port(address)), Some(address));
        }
        assert_eq!(port(Address::of_task(NodeId(1), 1).unwrap()), "gt001001");
        for name in ["gt", "gt1", "gt00001g", "gt0000001", "gt+01001", "gx001001"] {
            assert_eq!(address_of(name), None, "{name}");
        }
    }
}
