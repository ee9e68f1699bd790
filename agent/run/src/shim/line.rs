//! What a terminal has taken in and nobody has read.
//!
//! CRIU dumps what waits in a terminal only if it has both its ends, and the master of a task's is the shim's. So the shim reads
//! it, while the task stands still, and puts it back there and into the terminal of a restore. What it puts there was shown
//! before, and what it read was edited: it goes past echo, editing and signals, through a terminal that knows two keys
//! ([`Line::keys`]), and by `TIOCSTI`, which the line discipline takes in before the call returns. See `n_tty.c`,
//! <https://elixir.bootlin.com/linux/v6.1/source/drivers/tty/n_tty.c>.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use grid_checkpoint::order::Line;
use nix::errno::Errno;
use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices as Key, Termios, tcgetattr, tcsetattr,
};

/// The two keys.
const END: u8 = 4;
const LITERAL: u8 = 0x16;

/// A line discipline holds so much (`N_TTY_BUF_SIZE`, without the last), and a read gives as much at most.
const ROOM: usize = 4095;

/// How often it is read at most: each gives a line.
const MOST_LINES: usize = 16 << 10;

/// Takes what waits in a terminal, leaves it there, and returns it with what is beyond the terminal's room. Whatever was
/// written into the master is in it then: shown, and a signal if it was one.
///
/// # Errors
/// Where the terminal has no other end, or does not do what terminals do.
pub(super) fn copy(master: &OwnedFd) -> io::Result<(Option<Line>, Vec<u8>)> {
    let slave = peer(master)?;
    let before = tcgetattr(&slave)?;
    let canonical = before.local_flags.contains(LocalFlags::ICANON);
    let ends = [before.control_chars[Key::VEOL as usize], before.control_chars[Key::VEOL2 as usize]];
    let mut taken = Taken { line: Line { canonical, ends, keys: Vec::new() }, chars: 0, beyond: Vec::new() };
    if canonical {
        for _ in 0..MOST_LINES {
            match read(&slave)? {
                Some(line) => taken.line(&line),
                None => break,
            }
        }
        // What is left is a line that has no end yet.
        let mut raw = before.clone();
        raw.local_flags.remove(LocalFlags::ICANON);
        at_once(&mut raw);
        tcsetattr(&slave, SetArg::TCSANOW, &raw)?;
    } else {
        let mut raw = before.clone();
        at_once(&mut raw);
        tcsetattr(&slave, SetArg::TCSANOW, &raw)?;
    }
    let rest = (|| {
        while let Some(bytes) = read(&slave)?.filter(|bytes| !bytes.is_empty()) {
            taken.bytes(&bytes);
        }
        if !taken.line.keys.is_empty() {
            put_back(&slave, &taken.line)?;
        }
        Ok(())
    })();
    tcsetattr(&slave, SetArg::TCSANOW, &before)?;
    rest.map(|()| (Some(taken.line).filter(|line| !line.keys.is_empty()), taken.beyond))
}

/// Has the line discipline take in all that was written into the master before, as far as it has room.
pub(super) fn settle(master: &OwnedFd) {
    if let Ok(slave) = peer(master) {
        let mut poll = [nix::poll::PollFd::new(slave.as_fd(), nix::poll::PollFlags::POLLIN)];
        // Asking whether there is something to read is what does it.
        let _ = nix::poll::poll(&mut poll, 0u8);
    }
}

/// Puts this into a terminal that is in its mode otherwise. It is left in a mode that keeps it as it is.
///
/// # Errors
/// Where the kernel does not let us.
pub(super) fn put_back(slave: &impl AsFd, line: &Line) -> io::Result<()> {
    let mut mode = tcgetattr(slave)?;
    mode.input_flags &= InputFlags::IUTF8;
    mode.local_flags = LocalFlags::empty();
    if line.canonical {
        mode.local_flags = LocalFlags::ICANON | LocalFlags::IEXTEN;
        mode.control_chars = [0; libc::NCCS];
        mode.control_chars[Key::VEOF as usize] = END;
        mode.control_chars[Key::VLNEXT as usize] = LITERAL;
        mode.control_chars[Key::VEOL as usize] = line.ends[0];
        mode.control_chars[Key::VEOL2 as usize] = line.ends[1];
    } else {
        at_once(&mut mode);
    }
    tcsetattr(slave, SetArg::TCSANOW, &mode)?;
    for key in &line.keys {
        // SAFETY: the ioctl reads one byte.
        if unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSTI, key) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What was read, as keys.
struct Taken {
    line: Line,
    chars: usize,
    /// What is too much for a terminal; it is typed as it was.
    beyond: Vec<u8>,
}

impl Taken {
    /// What one read of a terminal gave that gives lines: without its end, it ends by the key for that.
    fn line(&mut self, line: &[u8]) {
        let ended = line.last().is_some_and(|last| self.ends(*last));
        if self.chars + line.len() + 1 > ROOM {
            self.chars = ROOM;
            self.beyond.extend(line);
            self.beyond.extend((!ended).then_some(END));
            return;
        }
        match line.split_last().filter(|_| ended) {
            Some((last, body)) => {
                self.bytes(body);
                self.line.keys.push(*last);
                self.chars += 1;
            }
            None => {
                self.bytes(line);
                self.line.keys.push(END);
                self.chars += 1;
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.chars >= ROOM {
                self.beyond.push(*byte);
                continue;
            }
            if self.line.canonical && (self.ends(*byte) || matches!(*byte, END | LITERAL)) {
                self.line.keys.push(LITERAL);
            }
            self.line.keys.push(*byte);
            self.chars += 1;
        }
    }

    fn ends(&self, byte: u8) -> bool {
        byte == b'\n' || (byte != 0 && self.line.ends.contains(&byte))
    }
}

/// The task's end of a terminal, for a moment.
fn peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes flags, and returns a descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One read; nothing if it would wait.
fn read(slave: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 2 * ROOM];
    match nix::unistd::read(slave, &mut buffer) {
        Ok(bytes) => {
            buffer.truncate(bytes);
            Ok(Some(buffer))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn at_once(mode: &mut Termios) {
    mode.control_chars[Key::VMIN as usize] = 1;
    mode.control_chars[Key::VTIME as usize] = 0;
}
