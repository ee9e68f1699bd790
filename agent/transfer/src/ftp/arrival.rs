//! How an upload arrives: whole, or not at all; and how an interrupted one goes on.
//!
//! ```text
//!   STOR ──▶ .NAME.part~gridos ──── all came ────▶ NAME            (renamed: readers see the old file or the new)
//!                │    ▲
//!    interrupted │    │ REST n + STOR, APPE
//!                ▼    │
//!            abandoned: for FTP clients, this is NAME now          (SIZE, MLST, REST; RETR says what is missing)
//! ```
//!
//! While it comes, the upload has a name of its own and a lock. If it is interrupted, by a client, a line or the end
//! of the server, the lock is gone and the part stays. From then on FTP clients find the part under the final name,
//! so that `SIZE`, `REST` and `APPE` resume it, as clients are used to; programs on the server go on seeing the old
//! file, or none. A new `STOR` from the beginning drops the part.
//!
//! MODE E writes at any place, so an abandoned part could have holes. It therefore is called `.strewn~gridos` while it
//! comes, which no client sees; when it is interrupted, it is cut to what came without a gap and becomes a part. What
//! markers (reply 111) promise is never more than that. If the server is killed, only a client that knows markers
//! can resume from the strewn part.
//!
//! With `ESTO` a client writes into a file in place: that is what it asks for.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, renameat};
use nix::sys::stat::{FileStat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::ftp::path::Place;
use crate::ftp::root::{FileError, Root, is_null, size};

const PART: &[u8] = b".part~gridos";
const STREWN: &[u8] = b".strewn~gridos";

/// Longest names have no room for the suffix: they arrive in place.
const NAME_MAX: usize = 255;

/// How long a new upload waits for an older one to the same name that is being stopped.
const PATIENCE: Duration = Duration::from_secs(3);

/// How an upload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// From nothing.
    Fresh,
    /// At this byte: what is before must be there.
    At(u64),
    /// At the end of what is there.
    End,
    /// MODE E, with so many bytes already there.
    Strewn(u64),
    /// Into the file itself, wherever its data belong.
    InPlace,
}

/// An upload that is coming in. Dropped without [`Arrival::commit`], it stays as a part.
#[derive(Debug)]
pub(crate) struct Arrival {
    parent: OwnedFd,
    name: Vec<u8>,
    /// The name while it comes; `None` when it is written in place.
    part: Option<Vec<u8>>,
    file: Flock<File>,
    /// Its length is not the upload's to set.
    keep: bool,
    /// Where the first byte goes.
    pub(crate) offset: u64,
}

fn hidden(name: &[u8], suffix: &[u8]) -> Option<Vec<u8>> {
    let hidden = [b".", name, suffix].concat();
    (hidden.len() <= NAME_MAX).then_some(hidden)
}

/// The name that the hidden name of a part stands for.
pub(crate) fn unhidden(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b".")?.strip_suffix(PART).filter(|name| !name.is_empty())
}

/// Whether no client should see the name.
pub(crate) fn is_hidden(name: &[u8]) -> bool {
    unhidden(name).is_some() || name.strip_prefix(b".").is_some_and(|rest| rest.ends_with(STREWN))
}

fn beside(place: &Place, suffix: &[u8]) -> Option<Place> {
    let (folder, name) = place.split()?;
    Some(folder.join(&hidden(name, suffix)?))
}

/// The part of an upload that was interrupted and that nobody continues at the moment.
pub(crate) fn abandoned(root: &Root, place: &Place) -> Option<(File, FileStat)> {
    let part = beside(place, PART)?;
    let (file, _) = root.file(&part, OFlag::O_RDONLY | OFlag::O_NOFOLLOW).ok()?;
    let lock = Flock::lock(file, FlockArg::LockSharedNonblock).ok()?;
    // Another session may have completed it since it was opened; then it is the file itself.
    let stat = fstat(&*lock).ok()?;
    let file = lock.unlock().ok()?;
    let still = root.stat(&part).ok()?;
    ((still.st_dev, still.st_ino) == (stat.st_dev, stat.st_ino)).then_some((file, stat))
}

/// Removes a file, and what was left of an upload to it.
pub(crate) fn remove(root: &Root, place: &Place) -> Result<(), FileError> {
    let part = abandoned(root, place).and_then(|_| beside(place, PART));
    let part = part.map(|part| root.remove_file(&part));
    match root.remove_file(place) {
        Err(error) if error.errno == Errno::ENOENT && matches!(part, Some(Ok(()))) => Ok(()),
        result => result,
    }
}

/// Renames a file, or what was left of an upload to it.
pub(crate) fn rename(root: &Root, from: &Place, to: &Place) -> Result<(), FileError> {
    if abandoned(root, from).is_some()
        && let (Some(old), Some(new)) = (beside(from, PART), beside(to, PART))
    {
        return root.rename(&old, &new);
    }
    root.rename(from, to)
}

impl Arrival {
    /// Opens what an upload is written to.
    ///
    /// EBUSY: another session uploads to the same name. EINVAL: fewer bytes are there than the client says.
    pub(crate) fn begin(root: &Root, place: &Place, start: Start) -> Result<Arrival, FileError> {
        let patience = Instant::now() + PATIENCE;
        loop {
            match Arrival::try_begin(root, place, start) {
                // Somebody only looked, or an upload that was told to stop has not stopped yet.
                Err(error) if error.errno == Errno::EBUSY && Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    fn try_begin(root: &Root, place: &Place, start: Start) -> Result<Arrival, FileError> {
        let fail = |errno| FileError { path: place.shown(), errno };
        let (parent, name) = root.parent(place)?;
        let name = name.to_vec();
        // A folder of that name must be found before all the data came.
        let there = match root.stat(place) {
            Ok(stat) if crate::ftp::root::kind(&stat) == nix::sys::stat::SFlag::S_IFREG => Some(stat),
            Ok(stat) if crate::ftp::root::kind(&stat) == nix::sys::stat::SFlag::S_IFDIR => {
                return Err(fail(Errno::EISDIR));
            }
            // The null device, for measurements: it takes everything in place.
            Ok(_) => return in_place(root, place, parent, name, 0, start),
            Err(error) if error.errno == Errno::ENOENT => None,
            Err(error) => return Err(error),
        };
        let abandoned = abandoned(root, place).map(|(_, stat)| size(&stat));
        let offset = match start {
            Start::InPlace => return in_place(root, place, parent, name, 0, start),
            Start::Fresh | Start::Strewn(0) => 0,
            Start::At(at) => at,
            Start::End => abandoned.or(there.as_ref().map(size)).unwrap_or(0),
            Start::Strewn(have) => have,
        };
        let suffix = if matches!(start, Start::Strewn(_)) { STREWN } else { PART };
        let (Some(part), Some(part_name)) = (beside(place, suffix), hidden(&name, suffix)) else {
            return in_place(root, place, parent, name, offset, start);
        };
        let plain = beside(place, PART);
        // What is continued: the part, or else the file that is there, which then changes in place as it always did.
        let continues = match start {
            Start::Fresh | Start::Strewn(0) => false,
            Start::Strewn(_) => {
                // A strewn part of a server that was killed, or a part of an upload that was interrupted.
                if root.stat(&part).is_err()
                    && let Some(plain) = &plain
                    && abandoned.is_some()
                {
                    root.rename(plain, &part)?;
                }
                root.stat(&part).is_ok()
            }
            _ => abandoned.is_some(),
        };
        if !continues && offset > 0 {
            return in_place(root, place, parent, name, offset, start);
        }
        let (file, _) = root.file(&part, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW)?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| fail(Errno::EBUSY))?;
        let arrival = Arrival { parent, name, part: Some(part_name), file, offset, keep: false };
        let stat = fstat(&*arrival.file).map_err(fail)?;
        // Whoever had the lock before may have renamed or removed it meanwhile.
        let still = root.stat(&part).map_err(|_| fail(Errno::EBUSY))?;
        if still.st_ino != stat.st_ino {
            return Err(fail(Errno::EBUSY));
        }
        if size(&stat) < offset {
            return Err(fail(Errno::EINVAL));
        }
        if !matches!(start, Start::Strewn(have) if have > 0) {
            arrival.file.set_len(offset).map_err(|error| fail(errno_of(&error)))?;
        }
        if matches!(start, Start::Strewn(0))
            && let Some(plain) = plain.filter(|_| abandoned.is_some())
        {
            // It starts anew: the old part must not be found as this name any more.
            let _ = root.remove_file(&plain);
        }
        Ok(arrival)
    }

    pub(crate) fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// All came: it gets its name. `end` is its length, where that is known.
    pub(crate) fn commit(self, end: Option<u64>) -> nix::Result<()> {
        if let Some(end) = end.filter(|_| !self.keep) {
            self.file.set_len(end).map_err(|error| errno_of(&error))?;
        }
        if let Some(part) = &self.part {
            renameat(&self.parent, part.as_slice(), &self.parent, self.name.as_slice())?;
            if part.ends_with(STREWN)
                && let Some(old) = hidden(&self.name, PART)
            {
                let _ = unlinkat(&self.parent, old.as_slice(), UnlinkatFlags::NoRemoveDir);
            }
        }
        Ok(())
    }

    /// It was interrupted: `prefix` bytes are there without a gap. Tells how many a resumption finds.
    ///
    /// A part without a byte stays, too, if data could have come and there is an older file: a client that asks SIZE
    /// must not resume its new file behind the bytes of the old one.
    pub(crate) fn abandon(self, prefix: u64, begun: bool) -> u64 {
        let Some(part) = &self.part else { return prefix };
        let replaces =
            begun && fstatat(&self.parent, self.name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
        if prefix == 0 && !replaces {
            let _ = unlinkat(&self.parent, part.as_slice(), UnlinkatFlags::NoRemoveDir);
        } else if part.ends_with(STREWN)
            && self.file.set_len(prefix).is_ok()
            && let Some(plain) = hidden(&self.name, PART)
        {
            let _ = renameat(&self.parent, part.as_slice(), &self.parent, plain.as_slice());
        }
        prefix
    }
}

fn in_place(
    root: &Root,
    place: &Place,
    parent: OwnedFd,
    name: Vec<u8>,
    offset: u64,
    start: Start,
) -> Result<Arrival, FileError> {
    let fail = |errno| FileError { path: place.shown(), errno };
    let (file, stat) = root.file(place, OFlag::O_RDWR | OFlag::O_CREAT)?;
    if is_null(&stat) {
        let file = Flock::lock(file, FlockArg::LockShared).map_err(|(_, errno)| fail(errno))?;
        return Ok(Arrival { parent, name, part: None, file, offset: 0, keep: true });
    }
    if size(&stat) < offset {
        return Err(fail(Errno::EINVAL));
    }
    let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| fail(Errno::EBUSY))?;
    if matches!(start, Start::Fresh | Start::Strewn(0)) {
        file.set_len(0).map_err(|error| fail(errno_of(&error)))?;
    }
    Ok(Arrival { parent, name, part: None, file, offset, keep: start == Start::InPlace })
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Served {
        folder: tempfile::TempDir,
        root: Root,
    }

    fn served() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        Served { folder, root }
    }

    fn place() -> Place {
        Place::default().join(b"x")
    }

    fn put(arrival: &Arrival, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        arrival.file().unwrap().write_all_at(bytes, arrival.offset).unwrap();
    }

    #[test]
    fn until_it_is_whole_readers_see_the_old_file() {
        let Served { folder, root } = served();
        std::fs::write(folder.path().join("x"), "old").unwrap();
        let arrival = Arrival::begin(&root, &place(), Start::Fresh).unwrap();
        put(&arrival, b"newer");
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"old");
        assert!(abandoned(&root, &place()).is_none(), "it is still coming");
        arrival.commit(Some(5)).unwrap();
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"newer");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_interrupted_is_found_and_continued() {
        let Served { folder, root } = served();
        std::fs::write(folder.path().join("x"), "a long old file").unwrap();
        let arrival = Arrival::begin(&root, &place(), Start::Fresh).unwrap();
        put(&arrival, b"new");
        drop(arrival);
        assert_eq!(size(&abandoned(&root, &place()).unwrap().1), 3);
        assert_eq!(Arrival::begin(&root, &place(), Start::At(4)).unwrap_err().errno, Errno::EINVAL);
        let arrival = Arrival::begin(&root, &place(), Start::End).unwrap();
        assert_eq!(arrival.offset, 3);
        put(&arrival, b"er");
        arrival.commit(Some(5)).unwrap();
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"newer");
    }

    #[test]
    fn a_strewn_part_is_cut_to_what_has_no_gap() {
        let Served { folder, root } = served();
        let arrival = Arrival::begin(&root, &place(), Start::Strewn(0)).unwrap();
        put(&arrival, b"12345678");
        assert_eq!(arrival.abandon(4, true), 4);
        assert_eq!(size(&abandoned(&root, &place()).unwrap().1), 4);
        let mut arrival = Arrival::begin(&root, &place(), Start::Strewn(4)).unwrap();
        arrival.offset = 4;
        put(&arrival, b"abcd");
        arrival.commit(Some(8)).unwrap();
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"1234abcd");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn appending_to_a_whole_file_changes_it_in_place() {
        let Served { folder, root } = served();
        File::create(folder.path().join("x")).unwrap().write_all(b"abc").unwrap();
        let arrival = Arrival::begin(&root, &place(), Start::End).unwrap();
        put(&arrival, b"d");
        arrival.commit(Some(4)).unwrap();
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"abcd");
    }
}
