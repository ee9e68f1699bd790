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
//! [`Hidden::holds`] compares the copy with the real one while the tree is frozen; where they differ, the dump is given up. The
//! kernel walks through all pages to tell `smaps`. Where it tells the flags by eBPF, nothing is walked through, but for
//! processes whose flags have changed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel::flags::{Flags, Mapping};
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
    kept: HashMap<i32, Kept>,
    /// Who tells the flags, if somebody does.
    flags: Option<Flags>,
}

/// What was written of a process.
#[derive(Clone, Debug)]
struct Kept {
    text: String,
    /// The flags, when it was written.
    mappings: Option<Vec<Mapping>>,
}

impl Hidden {
    /// Writes the folder for these processes: their numbers here and in the images.
    pub(crate) fn prepare(
        proc: &Path,
        processes: impl Iterator<Item = (i32, i32)>,
        folder: &Path,
        flags: Option<Flags>,
    ) -> io::Result<Self> {
        let of = |pid| flags.as_ref().and_then(|flags| flags.of(pid).ok());
        let mut kept = HashMap::new();
        for (pid, image_pid) in processes {
            let before = of(pid);
            let text = match mappings(proc, pid) {
                // It has ended since the last round.
                Err(_) if has_ended(proc, pid) => continue,
                text => text?,
            };
            let path = folder.join(image_pid.to_string());
            fs::write(&path, &text)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
            // What changed while it was written is known to neither.
            let mappings = before.filter(|before| of(pid).is_some_and(|after| are_equal(before, &after)));
            kept.insert(pid, Kept { text, mappings });
        }
        Ok(Self { proc: proc.to_owned(), kept, flags })
    }

    /// Whether no mapping that is still there has other flags than were written. The tree stands still.
    ///
    /// # Errors
    /// Where a process cannot be looked at.
    pub fn holds(&self) -> io::Result<bool> {
        for (&pid, kept) in &self.kept {
            if has_ended(&self.proc, pid) || self.holds_by_flags(pid, kept) {
                continue;
            }
            let kept: HashMap<_, _> = pairs(&kept.text).collect();
            let now = mappings(&self.proc, pid)?;
            if pairs(&now).any(|(first, flags)| kept.get(first).is_some_and(|kept| !are_same(kept, flags))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the flags alone say so.
    fn holds_by_flags(&self, pid: i32, kept: &Kept) -> bool {
        let Some((flags, before)) = self.flags.as_ref().zip(kept.mappings.as_ref()) else { return false };
        flags.of(pid).is_ok_and(|now| are_equal(before, &now))
    }
}

/// Whether the mappings that both have, at the same place and with the same rights, have the same flags.
fn are_equal(before: &[Mapping], now: &[Mapping]) -> bool {
    let before: HashMap<_, _> = before.iter().map(|mapping| (mapping.place(), mapping.flags())).collect();
    now.iter().all(|mapping| before.get(&mapping.place()).is_none_or(|flags| *flags == mapping.flags()))
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
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    /// They go with this, and so does what is mounted for them.
    struct Programs(grid_kernel::Processes);

    impl Drop for Programs {
        fn drop(&mut self) {
            self.0.close().unwrap();
        }
    }

    /// A process with a mapping, whose flags change at a word.
    struct Changing(std::process::Child);

    impl Changing {
        fn new() -> Self {
            let script = "import ctypes, mmap, sys\nlibc = ctypes.CDLL(None)\nmapping = mmap.mmap(-1, 1 << 20)\n\
                          at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapping)))\n\
                          size = ctypes.c_size_t(1 << 20)\nadvice = {'plain': 17, 'undumped': 16}\nprint('ready', flush=True)\n\
                          for word in map(str.strip, sys.stdin):\n    \
                          call = [getattr(libc, word), at, size] if 'lock' in word else [libc.madvise, at, size, advice[word]]\n    \
                          print(call[0](*call[1:]), flush=True)\n";
            let mut command = Command::new("python3");
            let child = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut changing = Self(child.unwrap());
            assert_eq!(changing.hear(), "ready");
            changing
        }

        fn hear(&mut self) -> String {
            let mut line = Vec::new();
            let output = self.0.stdout.as_mut().unwrap();
            let bytes = std::iter::from_fn(|| {
                let mut byte = [0];
                output.read_exact(&mut byte).ok().map(|()| byte[0])
            });
            line.extend(bytes.take_while(|byte| *byte != b'\n'));
            String::from_utf8(line).unwrap()
        }

        fn change(&mut self, word: &str) {
            writeln!(self.0.stdin.as_mut().unwrap(), "{word}").unwrap();
            assert_eq!(self.hear(), "0", "{word}");
        }
    }

    impl Drop for Changing {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[test]
    fn flags_and_smaps_say_the_same_of_what_changed() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let folders = grid_kernel::Folders {
            runtime: of("run"),
            state: of("state"),
            proc: "/proc".into(),
            group: None,
        };
        let programs = Programs(grid_kernel::Processes::open(&folders, libgrid::ids::NodeId(1), Ok(())));
        if let Some(why) = programs.0.lacks() {
            // Not by println, which a test that passes keeps to itself.
            let _ = writeln!(io::stdout(), "\nSKIPPED: flags_and_smaps_say_the_same_of_what_changed: {why}");
            return;
        }
        let flags = Flags::open(programs.0.mappings().unwrap()).unwrap();
        let mut process = Changing::new();
        let pid = i32::try_from(process.0.id()).unwrap();
        let prepare = |flags| {
            Hidden::prepare(Path::new("/proc"), std::iter::once((pid, 7)), &of("kept"), flags).unwrap()
        };
        let hidden = prepare(Some(flags));
        fs::remove_dir_all(folder.path().join("kept")).unwrap();
        let by_smaps = prepare(None);
        for (word, same) in
            [("mlock", false), ("munlock", true), ("undumped", false), ("plain", true), ("mlock", false)]
        {
            process.change(word);
            assert_eq!(hidden.holds_by_flags(pid, &hidden.kept[&pid]), same, "{word}");
            assert_eq!(hidden.holds().unwrap(), same, "{word}");
            assert_eq!(by_smaps.holds().unwrap(), same, "{word}");
        }
    }

    #[test]
    fn a_lock_is_seen_and_the_tracker_is_not() {
        assert!(are_same("VmFlags: rd wr mr mw me ac uw ", "VmFlags: rd wr mr mw me ac "));
        assert!(!are_same("VmFlags: rd wr mr mw me ac ", "VmFlags: rd wr mr mw me lo ac "));
    }
}
