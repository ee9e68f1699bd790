//! Neighbours (`linux/neighbour.h`): where a VXLAN device sends frames, and which hardware addresses are behind IP addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Netlink;
use super::message::{Message, find, u32_at};
use libgrid::address::Mac;

/// The bytes before the attributes (`struct ndmsg`).
const FIXED: usize = 12;

/// The hardware address that stands for all that are not known.
const EVERYBODY: [u8; 6] = [0; 6];

/// The device's own entries, not its bridge's (`NTF_SELF`).
const SELF: u8 = 1 << 1;

/// The entries of the bridge whose port the link is (`NTF_MASTER`).
const MASTER: u8 = 1 << 2;

/// Entries that age, and give way to what is learned (`NUD_REACHABLE`).
const LEARNED: u16 = 0x02;

/// Entries that do not age (`NUD_PERMANENT | NUD_NOARP`).
const PERMANENT: u16 = 0x80 | 0x40;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// Where an entry is in `struct ndmsg`: `ndm_ifindex`.
const LINK: usize = 4;

/// Where its state is: `ndm_state`.
const STATE: usize = 8;

/// A neighbour whose hardware address is asked for, or was, in vain (`NUD_INCOMPLETE`, `NUD_FAILED`).
const UNKNOWN: u8 = 0x01 | 0x20;

/// One whose hardware address is used, and confirmed on the way (`NUD_STALE`).
const STALE: u16 = 0x04;

fn fixed(family: i32, link: u32, state: u16, flags: u8) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[0] = family as u8;
    bytes[LINK..LINK + 4].copy_from_slice(&link.to_ne_bytes());
    bytes[STATE..STATE + 2].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn entry(kind: u16, flags: i32, link: u32, member: IpAddr) -> Message {
    let fixed = fixed(libc::AF_BRIDGE, link, PERMANENT, SELF);
    let message = Message::new(kind, flags, &fixed).attribute(NDA_LLADDR, &EVERYBODY);
    match member {
        IpAddr::V4(ip) => message.attribute(NDA_DST, &ip.octets()),
        IpAddr::V6(ip) => message.attribute(NDA_DST, &ip.octets()),
    }
}

/// The member to which the VXLAN device `link` copies what is for everybody, if this entry says so.
fn read(body: &[u8], link: u32) -> Option<IpAddr> {
    let attributes = body.get(FIXED..)?;
    if u32_at(body, LINK)? != link || find(attributes, NDA_LLADDR)? != EVERYBODY {
        return None;
    }
    let bytes = find(attributes, NDA_DST)?;
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

// === impl Netlink ===

impl Netlink {
    /// The members to which the VXLAN device `link` copies what is for everybody.
    pub(crate) fn members(&self, link: u32) -> io::Result<Vec<IpAddr>> {
        // The kernel reads this list's request as one about links, and skips other links then.
        let mut links = [0; 16];
        links[0] = libc::AF_BRIDGE as u8;
        links[4..8].copy_from_slice(&link.to_ne_bytes());
        let make = || Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &links);
        self.collect(make, |body| read(body, link))
    }

    /// From now on also to `member`.
    pub(crate) fn add_member(&self, link: u32, member: IpAddr) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.change(entry(libc::RTM_NEWNEIGH, flags, link, member))
    }

    /// No longer to `member`.
    pub(crate) fn remove_member(&self, link: u32, member: IpAddr) -> io::Result<()> {
        self.change(entry(libc::RTM_DELNEIGH, 0, link, member))
    }

    /// Tells a bridge that a hardware address is behind its port `port`, as if it had learned it.
    pub(crate) fn learn(&self, port: u32, mac: Mac) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = Message::new(libc::RTM_NEWNEIGH, flags, &fixed(libc::AF_BRIDGE, port, LEARNED, MASTER));
        self.change(message.attribute(NDA_LLADDR, &mac.0))
    }

    /// The neighbours on a link that packets wait for.
    pub(crate) fn unknown_neighbours(&self, link: u32) -> io::Result<Vec<Ipv4Addr>> {
        let make = || Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &fixed(libc::AF_INET, 0, 0, 0));
        self.collect(make, |body| {
            let [state, _] = u32_at(body, STATE)?.to_ne_bytes()[..2] else { return None };
            let ip = find(body.get(FIXED..)?, NDA_DST)?;
            let waits = u32_at(body, LINK)? == link && state & UNKNOWN != 0;
            waits.then_some(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?))
        })
    }

    /// Tells the hardware address of a neighbour; what waits for it is sent.
    pub(crate) fn tell_neighbour(&self, link: u32, ip: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = Message::new(libc::RTM_NEWNEIGH, flags, &fixed(libc::AF_INET, link, STALE, 0));
        self.change(message.attribute(NDA_DST, &ip.octets()).attribute(NDA_LLADDR, &mac.0))
    }
}
