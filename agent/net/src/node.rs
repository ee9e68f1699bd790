//! The node's part of the grid's network: found, made, changed and removed.
//!
//! Nothing is remembered but in the kernel. An agent that starts again calls [`NodeNet::ensure`] and has what was there,
//! with all tasks' links untouched; what is not as it should be is brought to it.

use std::collections::HashSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use libgrid::ids::NodeId;

use crate::announce::Announcer;
use crate::netlink::link::{Link, Vxlan, Which};
use crate::netlink::route::LinkAddress;
use crate::netlink::{Netlink, Refused};
use crate::task::{self, is_port};
use libgrid::address::{Address, AddressError, PREFIX};

/// The bridge's name; one grid in a network namespace.
pub const BRIDGE: &str = "gridnet";

/// The VXLAN device's name.
pub const VXLAN: &str = "gridvx";

/// The grid's network, the same on every node but for `node` and `local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's number, at most [`LAST_NODE`](crate::LAST_NODE).
    pub node: NodeId,
    /// The address by which the other nodes reach this one; one of this machine's own.
    pub local: IpAddr,
    /// The network's number among the VXLANs of these machines: 24 bits.
    pub vni: u32,
    /// The UDP port of the frames between nodes.
    pub port: u16,
    /// The largest packet, in bytes, on every node the same: a connection keeps to it on all its ways.
    pub mtu: u32,
}

/// A node's place in the grid's network. It may be handed to another thread; dropping it changes nothing.
#[derive(Debug)]
pub struct NodeNet {
    pub(crate) netlink: Netlink,
    /// The node's own.
    pub(crate) namespace: OwnedFd,
    pub(crate) announcer: Announcer,
    pub(crate) bridge: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
    vxlan: u32,
    local: IpAddr,
}

/// The node has no part in the grid's network.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// It has no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address of the other nodes' packets is not here.
    #[error("{0} is not an address of this machine: set the address by which other nodes reach it")]
    Local(IpAddr),
    /// Packets would be cut up on their way.
    #[error("packets of {mtu} bytes with {overhead} bytes around them do not fit into the {carries} that {link} \
             carries: lower the grid's packet size, on all nodes, to {} bytes or less", carries.saturating_sub(*overhead))]
    Mtu {
        /// What was asked for.
        mtu: u32,
        /// What VXLAN adds.
        overhead: u32,
        /// The link to the other nodes.
        link: String,
        /// What it carries.
        carries: u32,
    },
    /// A link that is not the grid's has the name.
    #[error(
        "there is a link named {name} that is no {kind}: rename it, or remove it with `ip link del {name}`"
    )]
    Foreign {
        /// The name.
        name: &'static str,
        /// What it should be.
        kind: &'static str,
    },
    /// The kernel was not built with it.
    #[error("this kernel has no {kind} devices, so that tasks cannot have addresses of their own: {source}")]
    Missing {
        /// `bridge` or `vxlan`.
        kind: &'static str,
        /// What it said.
        #[source]
        source: Refused,
    },
    /// The kernel refused a step.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// There is no such network here.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The agent has not made it, or somebody has removed a part.
    #[error(
        "this node has no part in the grid's network, as {0} is not as it should be: start its agent again"
    )]
    Absent(&'static str),
    /// The kernel refused a step.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// The list of members could not be brought up to date: some may be missing.
#[derive(Debug, thiserror::Error)]
#[error("the list of nodes in the grid's network is not up to date: {0}")]
pub struct MembersError(#[from] Refused);

/// Something of the grid's network is still there.
#[derive(Debug, thiserror::Error)]
#[error("the grid's network is not removed whole: {0}")]
pub struct RemoveError(#[from] Refused);

// === impl Config ===

impl Config {
    /// IANA's port for VXLAN.
    pub const PORT: u16 = 4789;

    /// Fits, with VXLAN over either IP, into the 1400 bytes that clouds and tunnels leave at the least.
    pub const MTU: u32 = 1330;

    /// The bytes around a packet: Ethernet (14), VXLAN (8), UDP (8), and IPv4 (20) or IPv6 (40); RFC 7348, section 5.
    pub fn overhead(&self) -> u32 {
        if self.local.is_ipv4() { 50 } else { 70 }
    }
}

// === impl NodeNet ===

impl NodeNet {
    /// Brings the node's part of the network, in the calling thread's network namespace, to what `config` says.
    ///
    /// Other nodes are not yet known: see [`NodeNet::set_members`]. A change of number, port or address replaces the VXLAN
    /// device; tasks' links stay.
    ///
    /// # Errors
    /// [`EnsureError`]. What was made by then stays, to be found by the next call or by [`NodeNet::remove`].
    pub fn ensure(config: &Config) -> Result<Self, EnsureError> {
        let own = Address::of_node(config.node)?;
        let path = "/proc/thread-self/ns/net";
        let namespace = File::open(path).map_err(Refused::because("open", path))?.into();
        let netlink =
            Netlink::open().map_err(Refused::because("open", "the kernel's network configuration"))?;
        check_underlay(&netlink, config)?;
        let bridge = ensure_bridge(&netlink, own, config.mtu)?;
        let vxlan = ensure_vxlan(&netlink, config, bridge)?;
        for link in [vxlan, bridge] {
            netlink
                .set_up(Which::Index(link), true)
                .map_err(Refused::because("switch on", format!("link {link} of the grid's network")))?;
        }
        ensure_address(&netlink, own, bridge)?;
        let announcer = Announcer::open().map_err(Refused::because("open", "a packet socket"))?;
        Ok(Self {
            netlink,
            namespace,
            announcer,
            bridge,
            gateway: own.ip(),
            mtu: config.mtu,
            vxlan,
            local: config.local,
        })
    }

    /// The node's part of the network as it is, in the calling thread's network namespace; nothing is changed.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find() -> Result<Self, FindError> {
        let path = "/proc/thread-self/ns/net";
        let namespace = File::open(path).map_err(Refused::because("open", path))?.into();
        let netlink =
            Netlink::open().map_err(Refused::because("open", "the kernel's network configuration"))?;
        let named = |name: &'static str| {
            let link = netlink.link(Which::Name(name)).map_err(Refused::because("look at", name))?;
            link.ok_or(FindError::Absent(name))
        };
        let (bridge, vxlan) = (named(BRIDGE)?, named(VXLAN)?);
        let local = vxlan.vxlan.ok_or(FindError::Absent(VXLAN))?.local;
        let addresses = netlink.addresses().map_err(Refused::because("list", "addresses"))?;
        let gateway = addresses.iter().find_map(|address| match address.ip {
            IpAddr::V4(ip) if address.link == bridge.index && Address::try_from(ip).is_ok() => Some(ip),
            _ => None,
        });
        let gateway = gateway.ok_or(FindError::Absent(BRIDGE))?;
        let announcer = Announcer::open().map_err(Refused::because("open", "a packet socket"))?;
        let (mtu, bridge, vxlan) = (bridge.mtu, bridge.index, vxlan.index);
        Ok(Self { netlink, namespace, announcer, bridge, gateway, mtu, vxlan, local })
    }

    /// The other nodes' addresses; this one's own among them is skipped. Only what has changed is told to the kernel.
    ///
    /// # Errors
    /// The rest is still tried when one entry is refused.
    pub fn set_members(&self, members: &[IpAddr]) -> Result<(), MembersError> {
        let wanted: HashSet<_> = members.iter().copied().filter(|member| *member != self.local).collect();
        let present: HashSet<_> = self
            .netlink
            .members(self.vxlan)
            .map_err(Refused::because("list the members of", VXLAN))?
            .into_iter()
            .collect();
        let mut result = Ok(());
        for gone in present.difference(&wanted) {
            let removed = self.netlink.remove_member(self.vxlan, *gone);
            result = result.and(removed.map_err(Refused::because("remove the member", gone.to_string())));
        }
        for new in wanted.difference(&present) {
            let added = self.netlink.add_member(self.vxlan, *new);
            result = result.and(added.map_err(Refused::because("add the member", new.to_string())));
        }
        Ok(result?)
    }

    /// The tasks whose links are on this node, held or not; for an agent that has started again.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn tasks(&self) -> Result<Vec<Address>, Refused> {
        let links = self.netlink.links().map_err(Refused::because("list", "links"))?;
        Ok(links.iter().filter_map(|link| task::address_of(&link.name)).collect())
    }

    /// Removes all of it: bridge, VXLAN device, and the links of tasks that are still there, which have no network then.
    ///
    /// # Errors
    /// The first thing that stayed; the rest is tried nevertheless.
    pub fn remove(self) -> Result<(), RemoveError> {
        let links = self.netlink.links().map_err(Refused::because("list", "links"))?;
        let ours = |link: &&Link| [self.bridge, self.vxlan].contains(&link.index) || is_port(link);
        let mut result = Ok(());
        for link in links.iter().filter(ours) {
            let removed = self.netlink.remove(link.index);
            result = result.and(removed.map_err(Refused::because("remove", link.name.as_str())));
        }
        Ok(result?)
    }
}

/// Whether other nodes' packets come here, and whole.
fn check_underlay(netlink: &Netlink, config: &Config) -> Result<(), EnsureError> {
    let addresses = netlink.addresses().map_err(Refused::because("list", "addresses"))?;
    let local = addresses.iter().find(|address| address.ip == config.local);
    let index = local.ok_or(EnsureError::Local(config.local))?.link;
    let link = netlink
        .link(Which::Index(index))
        .map_err(Refused::because("look at", format!("link {index}")))?
        .ok_or(EnsureError::Local(config.local))?;
    if config.mtu + config.overhead() > link.mtu {
        let overhead = config.overhead();
        return Err(EnsureError::Mtu { mtu: config.mtu, overhead, link: link.name, carries: link.mtu });
    }
    Ok(())
}

fn ensure_bridge(netlink: &Netlink, own: Address, mtu: u32) -> Result<u32, EnsureError> {
    if find(netlink, BRIDGE, "bridge")?.is_none() {
        netlink.add_bridge(BRIDGE, own.mac(), mtu).map_err(|error| unmade("bridge", BRIDGE, error))?;
    }
    let index = find(netlink, BRIDGE, "bridge")?.ok_or_else(|| vanished(BRIDGE))?.index;
    // Set even if it is so: a bridge whose address was never set takes another with each port.
    netlink.set_mac(index, own.mac()).map_err(Refused::because("set the hardware address of", BRIDGE))?;
    netlink.set_mtu(index, mtu).map_err(Refused::because("set the packet size of", BRIDGE))?;
    netlink.without_ipv6(index).map_err(Refused::because("keep IPv6 off", BRIDGE))?;
    Ok(index)
}

fn ensure_vxlan(netlink: &Netlink, config: &Config, bridge: u32) -> Result<u32, EnsureError> {
    let wanted = Vxlan { vni: config.vni, port: config.port, local: config.local };
    if let Some(present) = find(netlink, VXLAN, "vxlan")?.filter(|link| link.vxlan != Some(wanted)) {
        netlink.remove(present.index).map_err(Refused::because("replace", VXLAN))?;
    }
    if find(netlink, VXLAN, "vxlan")?.is_none() {
        let made = netlink.add_vxlan(VXLAN, wanted, bridge, config.mtu);
        made.map_err(|error| unmade("vxlan", VXLAN, error))?;
    }
    let link = find(netlink, VXLAN, "vxlan")?.ok_or_else(|| vanished(VXLAN))?;
    if link.master != Some(bridge) {
        netlink.set_master(link.index, bridge).map_err(Refused::because("plug into the bridge", VXLAN))?;
    }
    netlink.set_mtu(link.index, config.mtu).map_err(Refused::because("set the packet size of", VXLAN))?;
    netlink.without_ipv6(link.index).map_err(Refused::because("keep IPv6 off", VXLAN))?;
    Ok(link.index)
}

/// The bridge has this address and no other of the grid's.
fn ensure_address(netlink: &Netlink, own: Address, bridge: u32) -> Result<(), EnsureError> {
    let wanted = LinkAddress { link: bridge, ip: own.ip().into(), prefix: PREFIX };
    let addresses = netlink.addresses().map_err(Refused::because("list", "addresses"))?;
    let old = |address: &&LinkAddress| address.link == bridge && address.ip.is_ipv4() && **address != wanted;
    for address in addresses.iter().filter(old) {
        netlink
            .remove_address(*address)
            .map_err(Refused::because("remove the address", address.ip.to_string()))?;
    }
    netlink.add_address(wanted).map_err(Refused::because("add the address", own.to_string()))?;
    Ok(())
}

fn find(netlink: &Netlink, name: &'static str, kind: &'static str) -> Result<Option<Link>, EnsureError> {
    match netlink.link(Which::Name(name)).map_err(Refused::because("look at", name))? {
        Some(link) if link.kind != kind => Err(EnsureError::Foreign { name, kind }),
        found => Ok(found),
    }
}

/// Why a device was not made: the kernel has no such kind, or something else.
fn unmade(kind: &'static str, name: &str, error: std::io::Error) -> EnsureError {
    let unknown = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENODEV));
    let source = Refused::because("make", name)(error);
    if unknown { EnsureError::Missing { kind, source } } else { source.into() }
}

fn vanished(name: &str) -> Refused {
    Refused::because("find", name)(std::io::ErrorKind::NotFound.into())
}
