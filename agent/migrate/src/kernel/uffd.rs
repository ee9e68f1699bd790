//! `userfaultfd(2)`: at the source to see writes (WP-async, Linux 6.7), at the destination to fill pages.
//!
//! `include/uapi/linux/userfaultfd.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::Range;

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;

const UFFD_API: u64 = 0xaa;
const MODE_WP: u64 = 1 << 1;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;

/// The flag of `userfaultfd(2)` for what needs no privilege: a task has none.
pub(crate) const USER_MODE_ONLY: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffd_msg`: a byte that says what it is, seven that are reserved, three words.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

/// What a process did, or waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// It waits for the page at this address.
    Fault(u64),
    /// It forked; the child's.
    Fork(Uffd),
    /// It moved a mapping.
    Remap { from: Range, to: u64 },
    /// It has nothing more here, or no mapping.
    Gone(Range),
}

/// A userfaultfd, of this process's or another's memory.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Uffd {
    /// Makes a new one one that sees writes without stopping whoever writes.
    pub(crate) fn track_writes(&self) -> io::Result<()> {
        let mut api = Api { api: UFFD_API, features: WP_ASYNC | WP_UNPOPULATED, ioctls: 0 };
        // SAFETY: the kernel's structure for this request.
        unsafe { self.ioctl(UFFDIO_API, &mut api) }
    }

    /// Tracks writes in a range.
    pub(crate) fn register(&self, range: Range) -> io::Result<()> {
        let mut register = Register { start: range.start, len: range.bytes(), mode: MODE_WP, ioctls: 0 };
        // SAFETY: the kernel's structure for this request.
        unsafe { self.ioctl(UFFDIO_REGISTER, &mut register) }
    }

    /// Puts bytes at an address, whole pages; those that were put, which may be fewer.
    ///
    /// # Errors
    /// ENOENT where nothing is registered, EEXIST where there is a page, EAGAIN while events wait, ESRCH after the end.
    pub(crate) fn copy(&self, to: u64, bytes: &[u8]) -> io::Result<u64> {
        let mut copy =
            Copy { dst: to, src: bytes.as_ptr() as u64, len: bytes.len() as u64, mode: 0, copied: 0 };
        // SAFETY: the kernel's structure for this request; it reads `len` bytes at `src`, which are borrowed.
        match unsafe { self.ioctl(UFFDIO_COPY, &mut copy) } {
            Ok(()) => Ok(bytes.len() as u64),
            Err(_) if copy.copied > 0 => Ok(copy.copied as u64),
            Err(error) => Err(error),
        }
    }

    /// Puts an empty page at an address.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub(crate) fn zero(&self, at: u64) -> io::Result<()> {
        let mut zero = Zero { start: at, len: super::PAGE, mode: 0, done: 0 };
        // SAFETY: the kernel's structure for this request.
        unsafe { self.ioctl(UFFDIO_ZEROPAGE, &mut zero) }
    }

    /// Lets whoever waits for a page look again.
    pub(crate) fn wake(&self, at: u64) -> io::Result<()> {
        let mut range = [at, super::PAGE];
        // SAFETY: the kernel's structure for this request is these two words.
        unsafe { self.ioctl(UFFDIO_WAKE, &mut range) }
    }

    /// The next event, if one waits.
    pub(crate) fn event(&self) -> io::Result<Option<Event>> {
        let mut message = Message::default();
        let size = size_of::<Message>();
        // SAFETY: the kernel writes one structure of this size; every bit pattern is valid.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), size) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        if read as usize != size {
            return Err(io::Error::other(format!("an event of {read} bytes")));
        }
        let [a, b, c] = message.words;
        match message.event {
            0x12 => Ok(Some(Event::Fault(b & !(super::PAGE - 1)))),
            // SAFETY: the kernel has just put this descriptor into this process.
            0x13 => Ok(Some(Event::Fork(Self(unsafe { OwnedFd::from_raw_fd(a as u32 as i32) })))),
            0x14 => Ok(Some(Event::Remap { from: Range { start: a, end: a + c }, to: b })),
            0x15 | 0x16 => Ok(Some(Event::Gone(Range { start: a, end: b }))),
            other => Err(io::Error::other(format!("an unknown event: {other:#x}"))),
        }
    }

    /// # Safety
    /// `argument` is what the request takes.
    unsafe fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: as the caller says; it is borrowed for the time of the call.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
