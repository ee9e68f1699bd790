//! Telling everybody where a task is now, and the task where everybody is.
//!
//! ```text
//!  this bridge ◀─ told: the port of the task's hardware address
//!      │ ARP announcement, from the task's hardware address, to everybody
//!      ├─▶ other tasks here ┐
//!      └─▶ gridvx ─▶ nodes ─┴─ learn from its sender where the task is, whatever they believed before
//! ```
//!
//! The announcement is a gratuitous ARP request (RFC 5227, section 3). It is sent by the node in the task's name, so that
//! one socket does for all tasks: when a packet socket is closed, the kernel has its owner wait for a grace period (10 ms).
//! Neighbours that know the task need to hear nothing new, as its hardware address has moved along; those that have asked
//! for it in vain hear the answer.
//!
//! The other way round, the task's namespace is a new one, that knows nobody. CRIU's restored connections have already
//! sent something, to have the other end speak up; it waits, on a link that was closed, for an answer to a question that
//! nobody heard, and which the kernel repeats after a second. The answer can be calculated ([`Address::mac`]), so it is
//! told, and the connections go on at once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netlink::Netlink;
use libgrid::address::{Address, Mac};

/// `ETH_P_ARP` as a frame has it.
const ARP: [u8; 2] = [0x08, 0x06];

const BROADCAST: Mac = Mac([0xff; 6]);

/// The shortest frame that Ethernet knows, without its checksum.
const SHORTEST: usize = 60;

/// Sends announcements through the bridge of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Announcer(OwnedFd);

// === impl Announcer ===

impl Announcer {
    pub(crate) fn open() -> io::Result<Self> {
        // Without a protocol it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// Tells all nodes, and all tasks of this one, through the link `bridge`.
    pub(crate) fn announce(&self, address: Address, bridge: u32) -> io::Result<()> {
        let frame = frame(address);
        // SAFETY: zeros are a valid sockaddr_ll, which is made of integers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes(ARP);
        to.sll_ifindex = bridge.cast_signed();
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&BROADCAST.0);
        // SAFETY: the descriptor is open; the frame and the address are valid for their lengths over the call, and are
        // only read.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Tells a namespace the hardware addresses, behind its link `link`, that it has asked for in vain.
pub(crate) fn introduce(netlink: &Netlink, link: u32) -> io::Result<()> {
    for ip in netlink.unknown_neighbours(link)? {
        if let Ok(neighbour) = Address::try_from(ip) {
            netlink.tell_neighbour(link, ip, neighbour.mac())?;
        }
    }
    Ok(())
}

/// Who has this address? I have.
fn frame(address: Address) -> Vec<u8> {
    const ETHERNET: [u8; 2] = [0, 1];
    const IPV4: [u8; 2] = [8, 0];
    const LENGTHS: [u8; 2] = [6, 4];
    const REQUEST: [u8; 2] = [0, 1];
    let (mac, ip) = (address.mac().0, address.ip().octets());
    let mut frame = [BROADCAST.0, mac].concat();
    for part in [ARP, ETHERNET, IPV4, LENGTHS, REQUEST] {
        frame.extend(part);
    }
    for (hardware, protocol) in [(mac, ip), ([0; 6], ip)] {
        frame.extend(hardware);
        frame.extend(protocol);
    }
    frame.resize(SHORTEST, 0);
    frame
}

#[cfg(test)]
mod tests {
    use libgrid::ids::NodeId;

    use super::*;

    #[test]
    fn the_frame_is_an_announcement() {
        let frame = frame(Address::of_task(NodeId(1), 1).unwrap());
        let sender = [0x02, 0x67, 0x64, 0x40, 0x10, 0x01];
        assert_eq!(frame.len(), 60);
        assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &sender[..]));
        assert_eq!(frame[12..22], [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!((&frame[22..28], &frame[28..32]), (&sender[..], &[100, 64, 16, 1][..]));
        assert_eq!(frame[38..42], [100, 64, 16, 1], "who asks and who is asked for are the same");
    }
}
