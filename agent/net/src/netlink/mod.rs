//! A conversation with the kernel about links, addresses, routes and neighbours (rtnetlink(7)).
//!
//! A socket belongs for life to the network namespace in which it was opened, whoever uses it: so a namespace is
//! configured from outside, and a [`Netlink`] can be handed to any thread.

pub(crate) mod link;
mod message;
pub(crate) mod neighbour;
mod queue;
pub(crate) mod route;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use self::message::{Message, messages, u32_at};

/// The kernel fills at most this much of a buffer for one part of a list.
const BUFFER: usize = 64 << 10;

/// The kernel answers within the call; this long only if something is badly wrong.
const PATIENCE_SECONDS: i64 = 10;

/// A list may change while it is told; it is asked for again, at most so often.
const TRIES: u32 = 5;

/// An open conversation.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

/// The kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {what}: {source}")]
pub struct Refused {
    /// What was asked.
    pub doing: &'static str,
    /// Of which link or address.
    pub what: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl Refused {
    pub(crate) fn because(doing: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self { doing, what, source }
    }

    /// Whether the kernel gave this reason.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

// === impl Netlink ===

impl Netlink {
    /// With the kernel, about the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Asks for a change.
    fn change(&self, message: Message) -> io::Result<()> {
        self.ask(message, &mut |_| ())
    }

    /// Asks for a list, or for one thing, and takes of each answer what `take` finds in it.
    fn collect<T>(
        &self,
        make: impl Fn() -> Message,
        take: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut last = io::Error::from(Errno::EINTR);
        for _ in 0..TRIES {
            let mut found = Vec::new();
            match self.ask(make(), &mut |body| found.extend(take(body))) {
                Ok(()) => return Ok(found),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn ask(&self, message: Message, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        send(self.socket.as_raw_fd(), &message.finish(sequence), MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for received in messages(&buffer[..length]) {
                // What an earlier question left, which was given up.
                if received.sequence != sequence {
                    continue;
                }
                match i32::from(received.kind) {
                    // Both begin with a number: the error, or 0.
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        return match u32_at(received.body, 0).unwrap_or(0).cast_signed() {
                            0.. => Ok(()),
                            error => Err(io::Error::from_raw_os_error(-error)),
                        };
                    }
                    _ => each(received.body),
                }
            }
        }
    }
}
