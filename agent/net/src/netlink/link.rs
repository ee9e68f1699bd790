//! Links: bridges, VXLAN devices, and the cables between namespaces (`linux/if_link.h`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::Netlink;
use super::message::{Message, find, find_number, find_text, u32_at};
use libgrid::address::Mac;

/// The bytes before the attributes (`struct ifinfomsg`).
const FIXED: usize = 16;

const UP: u32 = libc::IFF_UP as u32;

// From linux/if_link.h and linux/veth.h.
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

/// The bridge hands frames through this port (`BR_STATE_FORWARDING` in `linux/if_bridge.h`).
const FORWARDING: u8 = 3;

/// The link is up, and so is what is behind it (`IF_OPER_UP` in `linux/if.h`).
const OPERATIONAL: u8 = 6;

/// A link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) mtu: u32,
    /// It is switched on, and what is behind it, too; so the kernel says, a little after it is so.
    pub(crate) runs: bool,
    pub(crate) master: Option<u32>,
    /// It is a port of a bridge that hands its frames on.
    pub(crate) forwarding: bool,
    /// What it is, if it is a VXLAN device.
    pub(crate) vxlan: Option<Vxlan>,
}

/// A VXLAN device's own properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: IpAddr,
}

/// A cable to be made, from the end that is in this conversation's namespace.
#[derive(Debug)]
pub(crate) struct Cable<'n> {
    pub(crate) name: &'n str,
    /// The kernel lets this end's number be chosen, and not the other's.
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) far_namespace: BorrowedFd<'n>,
    pub(crate) far_name: &'n str,
}

/// By what a link is named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'n> {
    Name(&'n str),
    Index(u32),
}

fn fixed(index: u32, flags: u32, changed: u32) -> Vec<u8> {
    let mut bytes = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for word in [index, flags, changed] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn about(kind: u16, which: Which<'_>, flags: u32, changed: u32) -> Message {
    match which {
        Which::Index(index) => Message::new(kind, 0, &fixed(index, flags, changed)),
        Which::Name(name) => Message::new(kind, 0, &fixed(0, flags, changed)).text(libc::IFLA_IFNAME, name),
    }
}

/// With 0 as its index, the kernel chooses one.
fn create(name: &str, index: u32, mtu: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &fixed(index, 0, 0))
        .text(libc::IFLA_IFNAME, name)
        .number(libc::IFLA_MTU, mtu)
}

/// A cable has no queue to wait in; else the kernel would make one for each processor, with a folder in /sys.
fn one_queue(message: Message) -> Message {
    message.number(libc::IFLA_NUM_TX_QUEUES, 1).number(libc::IFLA_NUM_RX_QUEUES, 1)
}

// === impl Link ===

impl Link {
    fn read(body: &[u8]) -> Option<Self> {
        let (index, attributes) = (u32_at(body, 4)?, body.get(FIXED..)?);
        let info = find(attributes, libc::IFLA_LINKINFO).unwrap_or_default();
        let kind = find_text(info, libc::IFLA_INFO_KIND).unwrap_or_default();
        let port = find(info, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
        Some(Self {
            index,
            name: find_text(attributes, libc::IFLA_IFNAME)?.to_owned(),
            kind: kind.to_owned(),
            mtu: find_number(attributes, libc::IFLA_MTU)?,
            runs: find(attributes, libc::IFLA_OPERSTATE) == Some(&[OPERATIONAL]),
            master: find_number(attributes, libc::IFLA_MASTER),
            forwarding: find(port, IFLA_BRPORT_STATE) == Some(&[FORWARDING]),
            vxlan: find(info, libc::IFLA_INFO_DATA).filter(|_| kind == "vxlan").and_then(Vxlan::read),
        })
    }
}

// === impl Vxlan ===

impl Vxlan {
    fn read(data: &[u8]) -> Option<Self> {
        let port = find(data, IFLA_VXLAN_PORT)?;
        let v4 = find(data, IFLA_VXLAN_LOCAL).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
        let v6 = find(data, IFLA_VXLAN_LOCAL6).and_then(|ip| <[u8; 16]>::try_from(ip).ok());
        Some(Self {
            vni: find_number(data, IFLA_VXLAN_ID)?,
            port: u16::from_be_bytes(port.try_into().ok()?),
            local: v4.map(IpAddr::from).or(v6.map(IpAddr::from))?,
        })
    }
}

// === impl Netlink ===

impl Netlink {
    /// The link, if there is one of this name.
    pub(crate) fn link(&self, which: Which<'_>) -> io::Result<Option<Link>> {
        match self.collect(|| about(libc::RTM_GETLINK, which, 0, 0), Link::read) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links of this namespace.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let make = || Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &fixed(0, 0, 0));
        self.collect(make, Link::read)
    }

    /// A bridge without a spanning tree. What is for a group goes to everybody: nobody here would ask who listens.
    pub(crate) fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
        let message = create(name, 0, mtu).attribute(libc::IFLA_ADDRESS, &mac.0);
        self.change(message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge")
                .nest(libc::IFLA_INFO_DATA, |data| data.attribute(IFLA_BR_MCAST_SNOOPING, &[0]))
        }))
    }

    /// A VXLAN device that learns where senders are, as a port of `bridge`.
    pub(crate) fn add_vxlan(&self, name: &str, vxlan: Vxlan, bridge: u32, mtu: u32) -> io::Result<()> {
        let message = create(name, 0, mtu).number(libc::IFLA_MASTER, bridge);
        self.change(message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "vxlan").nest(libc::IFLA_INFO_DATA, |data| {
                let data = data
                    .number(IFLA_VXLAN_ID, vxlan.vni)
                    .attribute(IFLA_VXLAN_LEARNING, &[1])
                    .attribute(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                match vxlan.local {
                    IpAddr::V4(ip) => data.attribute(IFLA_VXLAN_LOCAL, &ip.octets()),
                    IpAddr::V6(ip) => data.attribute(IFLA_VXLAN_LOCAL6, &ip.octets()),
                }
            })
        }))
    }

    /// A cable between two namespaces, with both ends down.
    pub(crate) fn add_cable(&self, cable: &Cable<'_>) -> io::Result<()> {
        let message = create(cable.name, cable.index, cable.mtu).attribute(libc::IFLA_ADDRESS, &cable.mac.0);
        self.change(one_queue(message).nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    one_queue(peer.raw(&fixed(0, 0, 0)))
                        .text(libc::IFLA_IFNAME, cable.far_name)
                        .number(libc::IFLA_MTU, cable.mtu)
                        .number(libc::IFLA_NET_NS_FD, cable.far_namespace.as_raw_fd().cast_unsigned())
                })
            })
        }))
    }

    pub(crate) fn set_up(&self, which: Which<'_>, up: bool) -> io::Result<()> {
        self.change(about(libc::RTM_NEWLINK, which, if up { UP } else { 0 }, UP))
    }

    pub(crate) fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.change(about(libc::RTM_NEWLINK, Which::Index(index), 0, 0).number(libc::IFLA_MTU, mtu))
    }

    pub(crate) fn set_mac(&self, index: u32, mac: Mac) -> io::Result<()> {
        self.change(about(libc::RTM_NEWLINK, Which::Index(index), 0, 0).attribute(libc::IFLA_ADDRESS, &mac.0))
    }

    pub(crate) fn set_master(&self, index: u32, master: u32) -> io::Result<()> {
        self.change(about(libc::RTM_NEWLINK, Which::Index(index), 0, 0).number(libc::IFLA_MASTER, master))
    }

    /// Unplugs a link that is down from its bridge, and gives it another name.
    pub(crate) fn retire(&self, index: u32, name: &str) -> io::Result<()> {
        let message = about(libc::RTM_NEWLINK, Which::Index(index), 0, 0);
        self.change(message.text(libc::IFLA_IFNAME, name).number(libc::IFLA_MASTER, 0))
    }

    /// Keeps the kernel from giving a link an IPv6 address by itself, and from speaking IPv6 on it.
    pub(crate) fn without_ipv6(&self, index: u32) -> io::Result<()> {
        let message =
            about(libc::RTM_NEWLINK, Which::Index(index), 0, 0).nest(libc::IFLA_AF_SPEC, |families| {
                families.nest(libc::AF_INET6 as u16, |family| {
                    family.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
                })
            });
        match self.change(message) {
            // A kernel, or a link, that has no IPv6 anyway.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
                ) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Removes a link, if it is there.
    pub(crate) fn remove(&self, index: u32) -> io::Result<()> {
        match self.change(about(libc::RTM_DELLINK, Which::Index(index), 0, 0)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }
}
