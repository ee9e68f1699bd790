//! Folders of tasks, removed however they are shaped.
//!
//! A task may leave folders in folders without end, by relative paths. Whoever went down all of them by recursion would run
//! out of stack, and by open descriptors out of those. What lies deeper than a few levels is moved up to the top first.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Levels that are gone down at once.
const DEPTH: usize = 32;

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes a folder with all that is below it, through no link.
///
/// # Errors
/// Of the first thing that cannot be removed; what was removed by then is gone.
pub fn remove(path: &Path) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let before = moved;
        let mut top = Dir::from_fd(open(path, FOLDER, Mode::empty())?)?;
        // The names are read through one descriptor, and things are moved to the top by another.
        let to = open(path, FOLDER, Mode::empty())?;
        empty(&mut top, &to, 0, &mut moved)?;
        if moved == before {
            return fs::remove_dir(path);
        }
    }
}

fn empty(folder: &mut Dir, top: &impl AsFd, depth: usize, moved: &mut u64) -> io::Result<()> {
    let here = folder.as_fd().try_clone_to_owned()?;
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(&here, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR) => (),
            Err(error) => return Err(error.into()),
        }
        if depth == DEPTH {
            move_up(&here, name, top, moved)?;
            continue;
        }
        let mut inner = Dir::from_fd(openat(&here, name, FOLDER, Mode::empty())?)?;
        empty(&mut inner, top, depth + 1, moved)?;
        unlinkat(&here, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// Gives a folder another place, at the top.
fn move_up(from: &impl AsFd, name: &std::ffi::CStr, top: &impl AsFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let free = format!(".removed-{moved}");
        match renameat2(from, name, top, free.as_str(), RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => (),
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn what_is_deeper_than_any_stack_goes_and_what_links_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (task, other) = (root.path().join("task"), root.path().join("other"));
        for folder in [&task, &other] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(other.join("kept"), "").unwrap();
        // A name that is to be used for what is moved.
        fs::create_dir(task.join(".removed-1")).unwrap();
        let mut at = open(&task, FOLDER, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            mkdirat(&at, "e", Mode::S_IRWXU).unwrap();
            nix::unistd::symlinkat(&other, &at, "link").unwrap();
            at = openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        let small = thread::Builder::new().stack_size(256 << 10);
        let removed = small.spawn({
            let task = task.clone();
            move || remove(&task)
        });
        removed.unwrap().join().unwrap().unwrap();
        assert!(!task.exists() && other.join("kept").exists());
        symlink(&other, &task).unwrap();
        assert!(remove(&task).is_err() && other.join("kept").exists());
    }
}
