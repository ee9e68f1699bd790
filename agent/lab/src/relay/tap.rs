//! A TAP device: Ethernet frames by read and write, each behind a virtio header (see the module `frame`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Doing, LabError};

const DEVICE: &str = "/dev/net/tun";

/// A TAP in the network namespace of whoever made it; it ends with its maker.
pub(crate) struct Tap {
    file: File,
}

// === impl Tap ===

impl Tap {
    /// Makes the device `name`. With `offloads`, TCP comes in frames of many segments, with checksums left
    /// to be done, and is taken so; else in the size of the MTU.
    pub(crate) fn create(name: &str, offloads: bool) -> Result<Tap, LabError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .doing("open (it belongs to the kernel's module `tun`)", DEVICE)?;
        // SAFETY: all bytes zero is a valid ifreq: it consists of integers and arrays of them.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero: the name is a C string.
        let end = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name[..end].iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        // The flags fit: they are bits of a short.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives over the call, and the descriptor is open.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error()).doing("make the TAP", name);
        }
        let wanted = if offloads { libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 } else { 0 };
        // SAFETY: TUNSETOFFLOAD takes its argument by value, and the descriptor is open.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(wanted)) } < 0 {
            return Err(io::Error::last_os_error()).doing("set the offloads of", name);
        }
        Ok(Tap { file })
    }

    /// The next frame, its length; `None` when there is none now.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame. Like a cable it keeps nothing back: a frame that the device does not take is lost.
    pub(crate) fn send(&self, frame: &[u8]) {
        let _ = (&self.file).write(frame);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
