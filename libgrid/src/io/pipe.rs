//! The pipe that `splice` needs between two descriptors.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::{Broken, Side, info};

/// How much a [`Pipe`] holds where the kernel allows it, in bytes: 1 MiB, the default of `fs.pipe-max-size`.
pub const PIPE_SIZE: usize = 1 << 20;

/// Smaller sizes to try: a user who has many pipes gets no more large ones (`fs.pipe-user-pages-soft`).
const SMALLER: [usize; 3] = [PIPE_SIZE, 256 << 10, 64 << 10];

/// A pipe through which pages are moved from one descriptor to another (splice(2)).
///
/// ```
/// let pipe = libgrid::io::Pipe::new()?;
/// assert!(pipe.size() >= 4096);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
    /// Bytes in it, left by a movement whose second half failed.
    held: usize,
}

/// How many bytes a receiver lets gather before it is woken; where less is still to come, that.
///
/// It is woken a quarter as often, and both sides do with a quarter less processor time.
struct Batch<'a> {
    of: &'a TcpStream,
    bytes: u32,
}

impl Batch<'_> {
    const MOST: u32 = 256 << 10;

    fn set(&mut self, to_come: usize) {
        let bytes = u32::try_from(to_come).map_or(Self::MOST, |to_come| to_come.min(Self::MOST));
        // Where the kernel does not know it, more wake-ups are all that comes of it.
        if bytes != self.bytes && info::wake_at(self.of, bytes).is_ok() {
            self.bytes = bytes;
        }
    }
}

impl Pipe {
    /// A pipe of [`PIPE_SIZE`], or smaller where the limits of the user say so.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    ///
    /// ```
    /// libgrid::io::Pipe::new()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let large = SMALLER.into_iter().find_map(|size| {
            fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX))).ok()
        });
        let size = match large {
            Some(size) => size,
            None => fcntl(&write, FcntlArg::F_GETPIPE_SZ)?,
        };
        Ok(Self { read, write, size: usize::try_from(size).unwrap_or(4096), held: 0 })
    }

    /// How many bytes fit in.
    ///
    /// ```
    /// # let pipe = libgrid::io::Pipe::new()?;
    /// println!("{} bytes", pipe.size());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn size(&self) -> usize {
        self.size
    }

    /// Takes bytes from a connection into the pipe: how many came, 0 at its end.
    fn fill(&mut self, from: &impl AsFd, most: usize) -> Result<usize, Errno> {
        loop {
            let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_MORE;
            match splice(from, None, &self.write, None, most.min(self.size), flags) {
                Err(Errno::EINTR) => (),
                Ok(came) => {
                    self.held += came;
                    return Ok(came);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives what the pipe holds to a descriptor; at an offset, if it has one.
    fn drain(&mut self, to: &impl AsFd, mut offset: Option<i64>, more: bool) -> Result<(), Errno> {
        let mut flags = SpliceFFlags::SPLICE_F_MOVE;
        if more {
            flags |= SpliceFFlags::SPLICE_F_MORE;
        }
        while self.held > 0 {
            match splice(&self.read, None, to, offset.as_mut(), self.held, flags) {
                Err(Errno::EINTR) => (),
                Ok(0) => return Err(Errno::EIO),
                Ok(gone) => self.held -= gone,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves exactly `length` bytes from a connection into a file, from `offset` on.
    pub(super) fn receive(
        &mut self,
        from: &TcpStream,
        to: &File,
        offset: u64,
        length: u64,
        progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        let mut batch = Batch { of: from, bytes: 1 };
        let result = self.move_to(&mut batch, to, offset, length, progress);
        // Who reads next may wait for a single byte.
        batch.set(1);
        result
    }

    fn move_to(
        &mut self,
        batch: &mut Batch<'_>,
        to: &File,
        offset: u64,
        length: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        let from = batch.of;
        let mut moved = 0;
        while moved < length {
            let most = usize::try_from(length - moved).unwrap_or(usize::MAX);
            batch.set(most);
            let came = self.fill(from, most).map_err(|error| Broken::new(moved, Side::Network, error))?;
            if came == 0 {
                return Err(Broken::new(moved, Side::Network, io::ErrorKind::UnexpectedEof));
            }
            let at = i64::try_from(offset + moved).ok();
            if let Err(error) = self.drain(to, at, false) {
                // What is stuck in the pipe must not end up in another file.
                let arrived = moved + (came - self.held.min(came)) as u64;
                *self = Self::new().map_err(|error| Broken::new(arrived, Side::File, error))?;
                return Err(Broken::new(arrived, Side::File, error));
            }
            moved += came as u64;
            progress(came as u64);
        }
        Ok(())
    }

    /// Moves bytes from a connection into a file until the connection ends: how many.
    pub(super) fn receive_all(
        &mut self,
        from: &TcpStream,
        to: &File,
        offset: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Broken> {
        let mut moved = 0;
        let result = self.receive(from, to, offset, u64::MAX, |came| {
            moved += came;
            progress(came);
        });
        match result {
            Err(broken)
                if broken.side == Side::Network && broken.source.kind() == io::ErrorKind::UnexpectedEof =>
            {
                Ok(moved)
            }
            Err(broken) => Err(broken),
            Ok(()) => Ok(moved),
        }
    }
}

/// Moves bytes from one connection to another until the first ends, without looking at them: how many.
///
/// # Errors
/// [`Broken`] with the bytes that went on. Both count as [`Side::Network`].
///
/// ```no_run
/// use std::net::TcpStream;
/// let (from, to) = (TcpStream::connect("10.0.0.1:9")?, TcpStream::connect("10.0.0.2:9")?);
/// libgrid::io::relay(&from, &to, &mut libgrid::io::Pipe::new()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn relay(from: &impl AsFd, to: &impl AsFd, pipe: &mut Pipe) -> Result<u64, Broken> {
    let mut moved = 0;
    loop {
        let came = pipe.fill(from, pipe.size).map_err(|error| Broken::new(moved, Side::Network, error))?;
        if came == 0 {
            return Ok(moved);
        }
        pipe.drain(to, None, false).map_err(|error| Broken::new(moved, Side::Network, error))?;
        moved += came as u64;
    }
}
