//! What is on its way between a FIFO and its pipe: in a pipe of its own, which outlives the agent ([`super`]), with the
//! number of the chunk or its place in the pipe in a file beside it. The number is written first: it belongs to what is in the
//! hand, and to nothing if that is empty. Beside it is whether the FIFO's program has
//! begun: the pipe knows of it then; and which node the pipe was found on, so that no other of its name is taken for it.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, tee};

/// What it holds: more than comes at once, in pieces of any size.
pub const SIZE: i32 = 1 << 20;

/// What [`Hand::number`] is once the FIFO's pipe has come to its end.
pub const END: u64 = u64::MAX;

/// See the module.
pub struct Hand {
    pipe: File,
    mark: File,
    number: u64,
    begun: bool,
    node: u64,
    /// For looking at what is in it.
    copy: (PipeReader, PipeWriter),
}

impl Hand {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// What the system call says.
    pub fn open(folder: &Path, name: &str) -> io::Result<Self> {
        let path = super::hand(folder, name)?;
        let flags = OFlag::O_NONBLOCK.bits();
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
        // No pipe's name begins with a dot.
        let mark = path.with_file_name(format!(".{name}"));
        let mark =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(mark)?;
        let copy = io::pipe()?;
        for pipe in [pipe.as_fd(), copy.1.as_fd()] {
            fcntl(pipe, FcntlArg::F_SETPIPE_SZ(SIZE))?;
        }
        let word = |at: u64| {
            let mut bytes = [0; 8];
            match mark.read_exact_at(&mut bytes, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                read => read.map(|()| u64::from_le_bytes(bytes)),
            }
        };
        let (number, begun, node) = (word(0)?, word(8)? != 0, word(16)?);
        Ok(Self { pipe, mark, number, begun, node, copy })
    }

    /// The number of the node where the pipe is, as far as it is known.
    pub fn node(&self) -> Option<u32> {
        u32::try_from(self.node).ok().filter(|node| *node > 0)
    }

    /// Notes where it is, or that it is not known any more.
    ///
    /// # Errors
    /// What the system call says.
    pub fn note_node(&mut self, node: Option<u32>) -> io::Result<()> {
        self.node = node.unwrap_or(0).into();
        self.mark.write_all_at(&self.node.to_le_bytes(), 16)
    }

    /// Whether the pipe may know of who writes or reads here.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Notes that it will, or that it does not any more.
    ///
    /// # Errors
    /// What the system call says.
    pub fn note_begun(&mut self, begun: bool) -> io::Result<()> {
        if begun != self.begun {
            self.mark.write_all_at(&u64::from(begun).to_le_bytes(), 8)?;
            self.begun = begun;
        }
        Ok(())
    }

    /// The number of what is in it, or was last.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes the number of what will be in it; it is empty.
    ///
    /// # Errors
    /// What the system call says.
    pub fn note(&mut self, number: u64) -> io::Result<()> {
        if number != self.number {
            self.mark.write_all_at(&number.to_le_bytes(), 0)?;
            self.number = number;
        }
        Ok(())
    }

    /// How many bytes are in it.
    ///
    /// # Errors
    /// What the system call says.
    pub fn held(&self) -> io::Result<usize> {
        held(&self.pipe)
    }

    /// Takes what is in a FIFO, up to so much; 0 if nobody has it open to write.
    ///
    /// # Errors
    /// What the system call says.
    pub fn take_from(&self, fifo: &File, most: usize) -> io::Result<usize> {
        Ok(splice(fifo, None, &self.pipe, None, most, SpliceFFlags::SPLICE_F_NONBLOCK)?)
    }

    /// Takes bytes, all of which it holds.
    ///
    /// # Errors
    /// What the system call says.
    pub fn take(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.pipe).write_all(bytes)
    }

    /// What is in it, which stays there.
    ///
    /// # Errors
    /// What the system call says.
    pub fn look(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held()?];
        let copied = tee(&self.pipe, &self.copy.1, bytes.len(), SpliceFFlags::SPLICE_F_NONBLOCK)?;
        bytes.truncate(copied);
        self.copy.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Gives all of it to a FIFO that is empty.
    ///
    /// # Errors
    /// What the system call says.
    pub fn give_to(&self, fifo: &File) -> io::Result<()> {
        loop {
            let held = self.held()?;
            if held == 0 {
                return Ok(());
            }
            splice(&self.pipe, None, fifo, None, held, SpliceFFlags::SPLICE_F_NONBLOCK)?;
        }
    }

    /// Its pipe has it.
    ///
    /// # Errors
    /// What the system call says.
    pub fn clear(&self) -> io::Result<()> {
        let mut bytes = vec![0; self.held()?];
        (&self.pipe).read_exact(&mut bytes)
    }
}

/// How many bytes are in a pipe, of which this is either end.
///
/// # Errors
/// What ioctl(2) says.
pub fn held(pipe: &File) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result)?;
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_in_it_stays_as_long_as_somebody_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut hand = Hand::open(folder.path(), "x").unwrap();
        assert!(hand.take_from(&both, 10).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
        (&both).write_all(b"some of it").unwrap();
        hand.note(7).unwrap();
        hand.note_begun(true).unwrap();
        hand.note_node(Some(3)).unwrap();
        assert_eq!(hand.take_from(&both, 4).unwrap(), 4);
        let kept = File::options().read(true).write(true).open(folder.path().join("pipes/x")).unwrap();
        drop(hand);
        let mut hand = Hand::open(folder.path(), "x").unwrap();
        assert_eq!((hand.number(), hand.begun(), hand.held().unwrap()), (7, true, 4));
        assert_eq!(hand.node(), Some(3));
        hand.note_node(None).unwrap();
        assert_eq!(hand.node(), None);
        assert_eq!(hand.look().unwrap(), b"some");
        assert_eq!(hand.look().unwrap(), b"some", "it is still there");
        assert_eq!(held(&both).unwrap(), 6);
        hand.give_to(&both).unwrap();
        assert_eq!((hand.held().unwrap(), held(&both).unwrap()), (0, 10));
        hand.take(&[1; 256 << 10]).unwrap();
        assert_eq!(hand.look().unwrap().len(), 256 << 10);
        hand.clear().unwrap();
        drop((kept, hand));
        assert_eq!(Hand::open(folder.path(), "x").unwrap().held().unwrap(), 0);
    }
}
