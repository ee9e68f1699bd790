//! Telling everybody where a task is now.
//!
//! A gratuitous ARP request (RFC 5227, section 3: an "ARP announcement"), sent from inside the task's namespace. On its way
//! the bridge here learns the port of the task's hardware address, and each other node learns this node's address for it,
//! from the frame's sender, whatever they believed before. Caches of neighbours need no change: the hardware address has
//! moved along.
//!
//! The other way round, the task's namespace is a new one, that knows nobody. CRIU's restored connections have already
//! sent something, to have the other end speak up; it waits, on a link that was closed, for an answer to a question that
//! nobody heard, and which the kernel repeats after a second. The answer can be calculated ([`Address::mac`]), so it is
//! told, and the connections go on at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::address::{Address, Mac};
use crate::namespace;
use crate::netlink::Netlink;
use crate::task::OWN_INDEX;

/// `ETH_P_ARP` as a frame has it.
const ARP: [u8; 2] = [0x08, 0x06];

const BROADCAST: Mac = Mac([0xff; 6]);

/// The shortest frame that Ethernet knows, without its checksum.
const SHORTEST: usize = 60;

/// A way to send frames in a task's namespace, found before there is a hurry.
#[derive(Debug)]
pub(crate) struct Announcer {
    socket: OwnedFd,
    netlink: Netlink,
    frame: Vec<u8>,
}

// === impl Announcer ===

impl Announcer {
    pub(crate) fn new(address: Address, namespace: BorrowedFd<'_>) -> io::Result<Self> {
        // Without a protocol it receives nothing.
        let packets = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        let (socket, netlink) = namespace::inside(namespace, || Ok((packets()?, Netlink::open()?)))?;
        Ok(Self { socket, netlink, frame: frame(address) })
    }

    /// Sends it once. A task whose link is closed is not heard.
    pub(crate) fn announce(&self) -> io::Result<()> {
        // SAFETY: zeros are a valid sockaddr_ll, which is made of integers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = u16::from_ne_bytes(ARP);
        to.sll_ifindex = OWN_INDEX.cast_signed();
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&BROADCAST.0);
        // SAFETY: the descriptor is open; the frame and the address are valid for their lengths over the call, and are
        // only read.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                self.frame.as_ptr().cast(),
                self.frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Tells the namespace the hardware addresses that it has asked for in vain.
    pub(crate) fn introduce(&self) -> io::Result<()> {
        for ip in self.netlink.unknown_neighbours(OWN_INDEX)? {
            if let Ok(neighbour) = Address::try_from(ip) {
                self.netlink.tell_neighbour(OWN_INDEX, ip, neighbour.mac())?;
            }
        }
        Ok(())
    }
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
