//! The terminal that this program has.

use std::io;
use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Lines and columns.
pub(crate) fn size() -> (u16, u16) {
    // 24 by 80 is what every program expects of a terminal that does not say.
    terminal_size::terminal_size().map_or((24, 80), |(cols, rows)| (rows.0, cols.0))
}

/// The terminal in another mode; as it was when this is dropped.
pub(crate) struct Mode(Termios);

impl Mode {
    /// Without its own handling of keys: all of them are bytes.
    pub(crate) fn raw() -> Option<Self> {
        Self::enter(cfmakeraw)
    }

    /// Each key is told at once, and none is shown; Ctrl-C ends the program still.
    pub(crate) fn keys() -> Option<Self> {
        Self::enter(|mode| mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    fn enter(change: impl FnOnce(&mut Termios)) -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut mode = before.clone();
        change(&mut mode);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &mode).ok()?;
        Some(Self(before))
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}
