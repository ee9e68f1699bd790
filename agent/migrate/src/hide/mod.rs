//! A dump that does not look at memory: what is moved page by page is hidden from CRIU.
//!
//! ```text
//!  tracker ─▶ [`Hidden::prepare`] ─▶ one more round ─▶ criu dump, with LIBRARY loaded ─▶ frozen ─▶ images
//!             folder of smaps                                        [`Hidden::holds`] ──┘ beside it
//! ```
//!
//! CRIU spends 12.5 ms a GiB in reading `smaps`, and some 60 in listing and keeping pages that nobody will ask it for. The library is
//! loaded into the stock program: it answers `smaps` from a copy, and says of the tracked processes that their lazily
//! restorable mappings are empty. Then `criu dump --leave-stopped` ends with the images complete and the tree stopped: to commit
//! is to kill it, to roll back is [`release`].
//!
//! **A restore that waits.** The same library in `criu restore`, with [`GO`] in its environment, lets CRIU start ahead, and wait
//! before it reads the first image (20 to 40 ms less), and again when all processes are made and none has run. So the
//! source can be ended before the destination runs: there are never two. Each time, [`go_on`] lets it go on, and [`cancel`] makes it
//! fail, and kill what it made.
//!
//! **Only tracked processes are hidden**, those with a file in the folder. Of the others, CRIU keeps the pages.
//!
//! **Flags that change without a trace.** `mlock` and `madvise` change what `smaps` says and leave `maps` as it was. So
//! [`Hidden::holds`] compares the copy with the real one while the tree is frozen; where they differ, the dump is given up.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::tree;

/// The library, to be written to a file that CRIU can reach, and named in its `LD_PRELOAD`.
pub const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The environment variable that names the folder to the library.
pub const FOLDER: &str = grid_checkpoint::memory::MAPPINGS_VARIABLE;

/// The environment variable that names a fifo to it, in a restore: there it waits before the first image. At a second fifo, of
/// the same name with `.run` after it, it waits before the processes run.
pub const GO: &str = "GRIDOS_GO";

/// Between two looks whether CRIU waits.
const LOOK: Duration = Duration::from_micros(100);

/// What the library is told.
#[derive(Clone, Debug)]
pub struct Hidden {
    proc: PathBuf,
    /// By their numbers here: what was written.
    kept: HashMap<i32, String>,
}

impl Hidden {
    /// Writes the folder for these processes: their numbers here and in the images.
    pub(crate) fn prepare(
        proc: &Path,
        processes: impl Iterator<Item = (i32, i32)>,
        folder: &Path,
    ) -> io::Result<Self> {
        let mut kept = HashMap::new();
        for (pid, image_pid) in processes {
            let text = match mappings(proc, pid) {
                // It has ended since the last round.
                Err(_) if has_ended(proc, pid) => continue,
                text => text?,
            };
            let path = folder.join(image_pid.to_string());
            fs::write(&path, &text)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            kept.insert(pid, text);
        }
        Ok(Self { proc: proc.to_owned(), kept })
    }

    /// Whether no mapping that is still there has other flags than were written. The tree stands still.
    ///
    /// # Errors
    /// Where a process cannot be looked at.
    pub fn holds(&self) -> io::Result<bool> {
        for (&pid, kept) in &self.kept {
            if has_ended(&self.proc, pid) {
                continue;
            }
            let kept: HashMap<_, _> = pairs(kept).collect();
            let now = mappings(&self.proc, pid)?;
            if pairs(&now).any(|(first, flags)| kept.get(first).is_some_and(|kept| !are_same(kept, flags))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn has_ended(proc: &Path, pid: i32) -> bool {
    matches!(tree::state(proc, pid, pid), None | Some(b'Z' | b'X'))
}

/// The first line and the flags of each mapping.
fn mappings(proc: &Path, pid: i32) -> io::Result<String> {
    let path = proc.join(format!("{pid}/smaps"));
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let is_kept = |line: &&str| {
        line.starts_with("VmFlags:")
            || line.starts_with(|sign: char| sign.is_ascii_hexdigit() && !sign.is_ascii_uppercase())
    };
    Ok(text.split_inclusive('\n').filter(is_kept).collect())
}

/// Whether two lists of flags are the same, but for what the tracker itself makes of a mapping: one that was made anew
/// in the same place is not registered.
fn are_same(left: &str, right: &str) -> bool {
    let flags = |list| str::split_ascii_whitespace(list).filter(|flag| *flag != "uw");
    flags(left).eq(flags(right))
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut lines = text.lines();
    std::iter::from_fn(move || Some((lines.next()?, lines.next()?)))
}

/// Lets a restore go on that waits at this fifo, or will.
///
/// # Errors
/// TimedOut where it does not come to wait.
pub fn go_on(fifo: &Path, limit: Duration) -> io::Result<()> {
    (&waiting(fifo, limit)?).write_all(b"g")
}

/// Lets it fail.
///
/// # Errors
/// As [`go_on`].
pub fn cancel(fifo: &Path, limit: Duration) -> io::Result<()> {
    waiting(fifo, limit).map(drop)
}

fn waiting(fifo: &Path, limit: Duration) -> io::Result<File> {
    let deadline = Instant::now() + limit;
    loop {
        match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo) {
            // Nobody reads yet.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && Instant::now() < deadline => {
                std::thread::sleep(LOOK);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            opened => return opened,
        }
    }
}

/// Lets a tree go on that `criu dump --leave-stopped` left behind.
///
/// # Errors
/// Where its root has ended.
pub fn release(roots: &[i32]) -> io::Result<()> {
    signal_all(roots, Signal::SIGCONT)
}

/// Ends such a tree: the migration is done.
///
/// # Errors
/// Where its root has ended.
pub fn end(roots: &[i32]) -> io::Result<()> {
    signal_all(roots, Signal::SIGKILL)
}

fn signal_all(roots: &[i32], signal: Signal) -> io::Result<()> {
    for pid in tree::below(Path::new("/proc"), roots)? {
        // It is stopped: it ends only by somebody else's hand, and then all is well.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_and_the_tracker_is_not() {
        assert!(are_same("VmFlags: rd wr mr mw me ac uw ", "VmFlags: rd wr mr mw me ac "));
        assert!(!are_same("VmFlags: rd wr mr mw me ac ", "VmFlags: rd wr mr mw me lo ac "));
    }
}
