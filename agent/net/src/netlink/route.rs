//! Addresses and routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Netlink;
use super::message::{Message, find, u32_at};

/// The bytes before the attributes of an address (`struct ifaddrmsg`).
const FIXED: usize = 8;

/// A default route, in the main table, as an administrator would write it (`struct rtmsg`).
const DEFAULT: [u8; 12] = [
    libc::AF_INET as u8,
    0,
    0,
    0,
    libc::RT_TABLE_MAIN,
    libc::RTPROT_STATIC,
    libc::RT_SCOPE_UNIVERSE,
    libc::RTN_UNICAST,
    0,
    0,
    0,
    0,
];

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkAddress {
    pub(crate) link: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

// === impl LinkAddress ===

impl LinkAddress {
    fn message(&self, kind: u16, flags: i32) -> Message {
        let family = if self.ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut fixed = vec![family as u8, self.prefix, 0, 0];
        fixed.extend(self.link.to_ne_bytes());
        let bytes = match self.ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Message::new(kind, flags, &fixed)
            .attribute(libc::IFA_LOCAL, &bytes)
            .attribute(libc::IFA_ADDRESS, &bytes)
    }

    fn read(body: &[u8]) -> Option<Self> {
        let (prefix, link, attributes) = (*body.get(1)?, u32_at(body, 4)?, body.get(FIXED..)?);
        let bytes = find(attributes, libc::IFA_LOCAL).or_else(|| find(attributes, libc::IFA_ADDRESS))?;
        let ip = match bytes.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
            _ => return None,
        };
        Some(Self { link, ip, prefix })
    }
}

// === impl Netlink ===

impl Netlink {
    /// All addresses of this namespace.
    pub(crate) fn addresses(&self) -> io::Result<Vec<LinkAddress>> {
        let make = || Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; FIXED]);
        self.collect(make, LinkAddress::read)
    }

    /// Gives a link an address; it may have it already.
    pub(crate) fn add_address(&self, address: LinkAddress) -> io::Result<()> {
        self.change(address.message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE))
    }

    /// Takes an address from a link.
    pub(crate) fn remove_address(&self, address: LinkAddress) -> io::Result<()> {
        self.change(address.message(libc::RTM_DELADDR, 0))
    }

    /// Routes all that no other route takes through `gateway`, by `link`.
    pub(crate) fn default_route(&self, gateway: Ipv4Addr, link: u32) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = Message::new(libc::RTM_NEWROUTE, flags, &DEFAULT)
            .attribute(libc::RTA_GATEWAY, &gateway.octets())
            .number(libc::RTA_OIF, link);
        self.change(message)
    }
}
