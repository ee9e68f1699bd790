//! A task's memory and files that move apart from its images, while the task runs: what the engine and who moves them have to say
//! to each other. Who moves them is `grid_migrate`; it makes a folder, and listens at [`SOCKET`] in it. Where the memory is
//! written in rounds ([`crate::rounds`]), so that files move alone, that is at the source only.
//!
//! ```text
//!   source                                        destination
//!     ◀── Go ─────── what is left is little         ◀── Sent ────── all of it is here
//!     ── Stopped ──▶ no thread runs, nor will       ── Go ────────▶ the task is let go
//!     ◀── Listed ─── what is left is known          ◀── Filled ──── the task has it
//!     CRIU dumps the rest
//!     ── Written ──▶
//!     ◀── Sent ───── all of it is gone, but for the word that it was all
//! ```
//!
//! CRIU waits between `Stopped` and `Listed`: afterwards it runs code of its own in the task's processes, and maps memory for it.
//!
//! Each step is one byte; instead of it, [`TROUBLE`] and a sentence may come. An end without a word is a failure, too: the task
//! at the source runs on, that at the destination is ended.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The name of the socket.
pub const SOCKET: &str = "steps";

/// The name of the library that is loaded into CRIU at the source, and has it pass over what moves by itself.
pub const LIBRARY: &str = "preload.so";

/// The folder of what the library gives CRIU to read in place of `/proc/PID/smaps`.
pub const MAPPINGS: &str = "smaps";

/// The environment variable that tells the library its folder.
pub const MAPPINGS_VARIABLE: &str = "GRIDOS_HIDE";

/// The environment variable that tells it whom to take for the real user of its process, see [`crate::engine`].
pub const USER_VARIABLE: &str = "GRIDOS_REAL_USER";

/// The environment variable that has the library let CRIU ask for TCP sockets that listen, and no others.
pub const LISTENERS_VARIABLE: &str = "GRIDOS_LISTENERS";

/// The socket at which CRIU asks for memory at the destination (`criu lazy-pages`).
pub const PAGES: &str = "lazy-pages.socket";

/// The folder for CRIU's images, if it is there: made by whoever knows that they are small, where it may be in memory.
pub const IMAGES: &str = "images";

/// Before a sentence that says why it cannot be.
const TROUBLE: u8 = b'!';

/// Bytes of a sentence.
const MOST_SAID: u64 = 4096;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The task is to be stopped now; or it runs.
    Go,
    /// It stands still.
    Stopped,
    /// What is still to be sent is known.
    Listed,
    /// Its images are written.
    Written,
    /// Nothing is missing at the destination; at the source, nothing is to be sent any more.
    Sent,
    /// Nothing is missing in the task.
    Filled,
}

impl Step {
    fn byte(self) -> u8 {
        match self {
            Step::Go => b'g',
            Step::Stopped => b'h',
            Step::Listed => b'l',
            Step::Written => b'w',
            Step::Sent => b's',
            Step::Filled => b'f',
        }
    }
}

/// The line between the engine and who moves the memory.
#[derive(Debug)]
pub struct Steps(UnixStream);

impl Steps {
    /// The engine's end.
    ///
    /// # Errors
    /// Where nobody listens there: a sentence.
    pub(crate) fn connect(folder: &Path) -> Result<Self, String> {
        UnixStream::connect(folder.join(SOCKET))
            .map(Self)
            .map_err(|error| format!("who moves the task's memory cannot be reached: {error}"))
    }

    /// The other end.
    pub fn new(accepted: UnixStream) -> Self {
        Self(accepted)
    }

    /// The same line again.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn another(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The socket, to wait at.
    pub fn socket(&self) -> &UnixStream {
        &self.0
    }

    /// Says that it is so far.
    ///
    /// # Errors
    /// Where nobody hears it: a sentence, the other side's own if it said why.
    pub fn tell(&self, step: Step) -> Result<(), String> {
        (&self.0).write_all(&[step.byte()]).map_err(|error| match self.heard() {
            Ok((TROUBLE, why)) => why,
            _ => format!("the move of its memory is given up: {error}"),
        })
    }

    /// Says why it will not be.
    pub fn fail(&self, why: &str) {
        let mut said = vec![TROUBLE];
        said.extend(why.bytes().take(MOST_SAID as usize));
        // Whoever is gone has given up already.
        let _ = (&self.0).write_all(&said);
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Waits until it is so far.
    ///
    /// # Errors
    /// A sentence: what the other side said instead, or that it is gone.
    pub fn expect(&self, step: Step) -> Result<(), String> {
        match self.heard() {
            Ok((byte, _)) if byte == step.byte() => Ok(()),
            Ok((TROUBLE, why)) => Err(why),
            Ok((byte, _)) => {
                Err(format!("{step:?} was expected of who moves the task's memory, and {byte:?} came"))
            }
            Err(_) => Err("the move of its memory was given up".into()),
        }
    }

    /// The next that the other side says; if it is trouble, with its reason.
    fn heard(&self) -> io::Result<(u8, String)> {
        let mut byte = [0];
        (&self.0).read_exact(&mut byte)?;
        let mut why = Vec::new();
        if byte[0] == TROUBLE {
            // What came of it is enough.
            let _ = (&self.0).take(MOST_SAID).read_to_end(&mut why);
        }
        Ok((byte[0], String::from_utf8_lossy(&why).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order_or_with_a_reason() {
        let pair = || UnixStream::pair().map(|(one, other)| (Steps(one), Steps(other))).unwrap();
        let (ours, theirs) = pair();
        ours.tell(Step::Go).unwrap();
        theirs.expect(Step::Go).unwrap();
        ours.tell(Step::Filled).unwrap();
        assert!(theirs.expect(Step::Sent).unwrap_err().contains("Sent was expected"));
        ours.fail("the disk is full");
        assert_eq!(theirs.expect(Step::Sent), Err("the disk is full".into()));
        let (ours, theirs) = pair();
        ours.fail("the disk is full");
        assert_eq!(theirs.tell(Step::Written), Err("the disk is full".into()));
        let (ours, theirs) = pair();
        drop(ours);
        assert!(theirs.expect(Step::Sent).unwrap_err().contains("given up"));
        assert!(theirs.tell(Step::Sent).is_err());
    }
}
