//! The files of a task, packed and unpacked by a process of the task's user, which sees what the task sees.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libgrid::user::User;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::files::{Source, Target, Unsure};

/// Bytes that are read and written at once.
const BUFFER: usize = 256 << 10;

/// Bytes of a sentence.
const MOST_SAID: u64 = 4096;

/// Runs this in a process of its own.
///
/// # Errors
/// Its sentence.
pub(super) fn in_process(act: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    let (said, end) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    // SAFETY: this program has one thread: the child finds no lock taken.
    match unsafe { fork() } {
        Err(error) => Err(format!("cannot start a process: {error}")),
        Ok(ForkResult::Child) => {
            let result = act();
            if let Err(error) = &result {
                let _ = File::from(end).write_all(error.to_string().as_bytes());
            }
            std::process::exit(i32::from(result.is_err()))
        }
        Ok(ForkResult::Parent { child }) => {
            drop(end);
            let mut why = String::new();
            let _ = File::from(said).take(MOST_SAID).read_to_string(&mut why);
            loop {
                return match waitpid(child, None) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    Ok(WaitStatus::Exited(_, 0)) => Ok(()),
                    _ if why.is_empty() => Err("the process for it ended early".into()),
                    _ => Err(why),
                };
            }
        }
    }
}

/// Does this with each of the task's folders and its archive, as the task's user, in a process of its own; with none, that is not
/// needed.
///
/// # Errors
/// Its sentence.
pub(super) fn each_as_user<'e>(
    uid: u32,
    each: impl Iterator<Item = (&'e Path, &'e File)>,
    act: impl Fn(&Path, &File) -> io::Result<()>,
) -> Result<(), String> {
    let mut each = each.peekable();
    match each.peek() {
        Some(_) => in_process(|| {
            User::of_task(uid).enter().and_then(|()| each.try_for_each(|(base, archive)| act(base, archive)))
        }),
        None => Ok(()),
    }
}

/// Whether there is nothing in a folder that is root's, and always as it has to be: its archive is an empty file.
pub(super) fn may_be_left(base: &Path) -> bool {
    let is_roots = fs::metadata(base).is_ok_and(|meta| meta.uid() == 0);
    is_roots && fs::read_dir(base).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether there is something in an archive.
pub(super) fn is_filled(archive: &File) -> bool {
    archive.metadata().is_ok_and(|meta| meta.len() > 0)
}

/// Packs all below `base`.
///
/// # Errors
/// With the path.
pub(super) fn pack(base: &Path, to: &File) -> io::Result<()> {
    let mut to = io::BufWriter::with_capacity(BUFFER, to);
    Source::new(open(base)?)?.round(&Unsure::now(), true, &mut to)?;
    to.flush()
}

/// Unpacks an archive of [`pack`] into `base`. Nothing lands outside of it.
///
/// # Errors
/// With the path.
pub(super) fn unpack(base: &Path, from: &File) -> io::Result<()> {
    let whole = Target::new(open(base)?).round(&mut io::BufReader::with_capacity(BUFFER, from))?;
    if whole { Ok(()) } else { Err(io::Error::other("the files of the task end early")) }
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(folder, flags, nix::sys::stat::Mode::empty())
        .map_err(|error| io::Error::other(format!("cannot open {}: {error}", folder.display())))
}

/// Writes all of a file system's files to the disk.
pub(super) fn sync(folder: impl AsFd) -> Result<(), String> {
    nix::unistd::syncfs(folder).map_err(|error| format!("cannot write the checkpoint to the disk: {error}"))
}
