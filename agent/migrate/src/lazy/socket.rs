//! CRIU's words on the socket of its page daemon (`criu/uffd.c`).
//!
//! | what | bytes |
//! | --- | --- |
//! | a process | `i32`, its pid; then a message of one byte with its userfaultfd |
//! | a process that has ended | `i32`, its pid, negative; no descriptor |
//! | the end | `u32`, [`FINISHED`]; no answer is expected |

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::kernel::uffd::Uffd;

/// CRIU's `LAZY_PAGES_RESTORE_FINISHED`.
const FINISHED: u32 = 0x5253_5446;

/// What CRIU says.
#[derive(Debug)]
pub(super) enum Said {
    Process(i32, Uffd),
    Zombie,
    Finished,
    /// Nothing more, and not the end.
    Ended,
}

/// CRIU's one connection.
#[derive(Debug)]
pub(super) struct Connection(UnixStream);

impl Connection {
    pub(super) fn accept(listener: &UnixListener, deadline: Instant) -> io::Result<Self> {
        ready(listener, deadline)?;
        Ok(Self(listener.accept()?.0))
    }

    pub(super) fn next(&self, deadline: Instant) -> io::Result<Said> {
        let mut word = [0; 4];
        ready(&self.0, deadline)?;
        self.0.set_read_timeout(Some(left(deadline)?))?;
        match (&self.0).read_exact(&mut word) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Said::Ended),
            read => read?,
        }
        if u32::from_ne_bytes(word) == FINISHED {
            return Ok(Said::Finished);
        }
        match i32::from_ne_bytes(word) {
            pid @ 1.. => self.descriptor().map(|uffd| Said::Process(pid, uffd)),
            _ => Ok(Said::Zombie),
        }
    }

    fn descriptor(&self) -> io::Result<Uffd> {
        let mut byte = [0; 1];
        let mut into = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let message =
            recvmsg::<()>(self.0.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                // SAFETY: the kernel has just put these descriptors into this process, and nobody else takes them.
                let mut owned = descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                if let Some(fd) = owned.next() {
                    return Ok(Uffd::from(fd));
                }
            }
        }
        Err(io::Error::other("a process came without its userfaultfd"))
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn ready(socket: &impl AsFd, deadline: Instant) -> io::Result<()> {
    loop {
        let timeout = PollTimeout::try_from(left(deadline)?).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => (),
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn what_ends_without_a_word_did_not_finish() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let connection = Connection(ours);
        theirs.write_all(&(-7i32).to_ne_bytes()).unwrap();
        assert!(matches!(connection.next(soon()).unwrap(), Said::Zombie));
        theirs.write_all(&FINISHED.to_ne_bytes()).unwrap();
        assert!(matches!(connection.next(soon()).unwrap(), Said::Finished));
        drop(theirs);
        assert!(matches!(connection.next(soon()).unwrap(), Said::Ended));
    }

    #[test]
    fn a_process_without_a_descriptor_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&7i32.to_ne_bytes()).unwrap();
        theirs.write_all(&[0]).unwrap();
        assert!(Connection(ours).next(soon()).is_err());
    }
}
