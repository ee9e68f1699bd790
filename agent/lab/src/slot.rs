//! What keeps labs of one host apart: each has a slot, and from it the names of its links and its subnet.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::lock::Lock;
use crate::tool::{self, Tool};

/// How many labs can be up at once.
const SLOTS: u16 = 1024;

/// A lab's number on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    number: u16,
    /// The bridge's MAC address, made from the lab's root: tells whose bridge it is.
    owner: [u8; 6],
}

// === impl Slot ===

impl Slot {
    /// The slots in the order in which they are tried, without those whose subnet the host already routes.
    pub(crate) fn candidates(root: &Path) -> impl Iterator<Item = Slot> + use<> {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let owner = owner(root);
        (0..SLOTS)
            .map(move |number| Slot { number, owner })
            .filter(move |slot| !routes.lines().any(|line| overlaps(line, slot.host(0))))
    }

    /// Claims the slot by making its bridge; false when another lab has it.
    pub(crate) fn claim(self, lock: &Lock) -> Result<bool, LabError> {
        let (bridge, mac) = (self.bridge(), self.owner());
        if tool::link_exists(&bridge) {
            return Ok(false);
        }
        let made = Tool::new("ip")
            .args(["link", "add", "name", &bridge, "address", &mac, "type", "bridge", "forward_delay", "0"])
            .args(["stp_state", "0", "mcast_snooping", "0"])
            .run(lock);
        match made {
            Ok(_) => Ok(true),
            // Lost the race: the kernel makes a name only once.
            Err(LabError::Tool { .. }) if tool::link_exists(&bridge) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Is the slot's bridge there, and this lab's?
    pub(crate) fn is_ours(self, lock: &Lock) -> Result<bool, LabError> {
        if !tool::link_exists(&self.bridge()) {
            return Ok(false);
        }
        let shown = Tool::new("ip").args(["-o", "link", "show", "dev", &self.bridge()]).run(lock)?;
        Ok(shown.contains(&format!("link/ether {}", self.owner())))
    }

    /// Host `k` of the subnet; the host itself is 254.
    pub(crate) fn host(self, k: u8) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10, 100 + high, low, k)
    }

    /// The bridge.
    pub(crate) fn bridge(self) -> String {
        format!("gridlab{}", self.number)
    }

    /// The bridge's end of the cable to machine `index`. 15 bytes at most, as the kernel demands.
    pub(crate) fn port(self, index: u32) -> String {
        format!("gridlab{}p{index}", self.number)
    }

    /// The little bridge between the cable and the near TAP, while the machine is slow without netem.
    pub(crate) fn slow_bridge(self, index: u32) -> String {
        format!("gridlab{}b{index}", self.number)
    }

    /// The TAPs of the relay: near to the machine, and far from it.
    pub(crate) fn taps(self, index: u32) -> (String, String) {
        (format!("gridlab{}n{index}", self.number), format!("gridlab{}f{index}", self.number))
    }

    /// The MAC address of machine `index`: the same after each boot, so that neighbours need not ask again.
    pub(crate) fn mac(self, index: u32) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("02:67:{high:02x}:{low:02x}:00:{:02x}", u8::try_from(index).unwrap_or(u8::MAX))
    }

    fn owner(self) -> String {
        self.owner.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A locally administered unicast address from the FNV-1a hash of the root's path.
fn owner(root: &Path) -> [u8; 6] {
    let hash = root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// Does the line of `/proc/net/route` lead into the /24 of `subnet`?
///
/// Routes shorter than /16 (the default route, a VPN's 10.0.0.0/8) are left aside: the lab's own is more
/// specific, and the host's traffic to the few addresses of the lab is what is wanted.
fn overlaps(line: &str, subnet: Ipv4Addr) -> bool {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |index: usize| {
        fields.get(index).and_then(|hex| u32::from_str_radix(hex, 16).ok()).map(u32::swap_bytes)
    };
    let (Some(to), Some(mask)) = (number(1), number(7)) else { return false };
    let common = mask & 0xffff_ff00;
    mask.leading_ones() >= 16 && (to ^ u32::from(subnet)) & common == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot { number: 1023, owner: [2, 0, 0, 0, 0, 1] };

    #[test]
    fn names_fit_into_the_kernels_fifteen_bytes() {
        assert_eq!(SLOT.port(250), "gridlab1023p250");
        assert_eq!(SLOT.port(250).len(), 15);
        assert_eq!(SLOT.host(254), Ipv4Addr::new(10, 103, 255, 254));
        assert_eq!(SLOT.mac(250), "02:67:03:ff:00:fa");
    }

    #[test]
    fn the_owner_is_the_root() {
        assert_eq!(owner(Path::new("/a")), owner(Path::new("/a")));
        assert_ne!(owner(Path::new("/a")), owner(Path::new("/b")));
    }

    #[test]
    fn a_subnet_that_is_routed_is_not_used() {
        let subnet = Ipv4Addr::new(10, 100, 7, 0);
        let route = |to: &str, mask: &str| overlaps(&format!("eth0\t{to}\t0\t1\t0\t0\t0\t{mask}\t0"), subnet);
        assert!(route("0007640A", "00FFFFFF"));
        assert!(route("0000640A", "0000FFFF"));
        assert!(route("8007640A", "80FFFFFF"));
        assert!(!route("0008640A", "00FFFFFF"));
        assert!(!route("0000000A", "000000FF"));
        assert!(!route("00000000", "00000000"));
        assert!(!overlaps("Iface\tDestination\tGateway", subnet));
    }
}
