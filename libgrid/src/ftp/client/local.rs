//! How a file arrives here: under a hidden name first, with a journal of what came, and then at once.
//!
//! ```text
//!   .run7.h5.ftp-part            the bytes, some of them perhaps missing
//!   .run7.h5.ftp-part.journal    of which file they are, and which of them came
//!            │ all there, checked
//!            ▼ rename
//!   run7.h5
//! ```
//!
//! Bytes are in the file before the journal says so. After a crash of the whole machine that need not be true on the
//! disk: what was begun under another boot is not trusted.

use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::FtpError;
use crate::ftp::marker::Ranges;
use crate::ftp::time;

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// A journal is never longer.
const MAX_JOURNAL: u64 = 256 * 1024;

/// More ranges than this are not written down: the first ones are enough to go on from.
const MAX_WRITTEN: usize = 1000;

/// What makes a remote file the same file when it is looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) url: String,
    pub(super) size: Option<u64>,
    pub(super) modify: Option<SystemTime>,
    /// Which part is wanted, if not all.
    pub(super) range: Option<(u64, u64)>,
}

impl Identity {
    fn text(&self) -> String {
        let Self { url, size, modify, range } = self;
        let size = size.map_or_else(|| "unknown".to_owned(), |size| size.to_string());
        let modify = modify.map_or_else(|| "unknown".to_owned(), time::format);
        let range = range.map_or_else(|| "all".to_owned(), |(from, to)| format!("{from}-{to}"));
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        format!(
            "gridos-ftp 1\nurl {url}\nsize {size}\nmodify {modify}\nrange {range}\nboot {}\n",
            boot.trim()
        )
    }
}

/// A 64-bit FNV-1a hash: tells names apart, protects against nothing.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let mut hidden = b".".to_vec();
    if name.len() + 1 + suffix.len() > NAME_MAX {
        hidden.extend(&name[..100]);
        hidden.extend(format!("{:016x}", hash(name)).bytes());
    } else {
        hidden.extend(name);
    }
    hidden.extend(suffix.bytes());
    target.with_file_name(OsString::from_vec(hidden))
}

/// A file that is arriving. What came is kept if the value is dropped before [`Partial::land`].
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) path: PathBuf,
    journal: PathBuf,
    target: PathBuf,
    identity: String,
    /// What came before.
    pub(super) have: Ranges,
}

impl Partial {
    /// Opens what came of this file before, or begins.
    pub(super) fn open(target: &Path, identity: &Identity, resume: bool) -> Result<Self, FtpError> {
        let (path, journal) = (beside(target, ".ftp-part"), beside(target, ".ftp-part.journal"));
        // A link that somebody laid there would lead the bytes elsewhere.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let open = options.open(&path);
        let file = open.map_err(FtpError::local("write", &path))?;
        match file.try_lock() {
            Ok(()) => (),
            Err(fs::TryLockError::WouldBlock) => return Err(FtpError::Busy { path: target.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(FtpError::local("lock", &path)(source)),
        }
        let mut partial = Self {
            file,
            path,
            journal,
            target: target.to_owned(),
            identity: identity.text(),
            have: Ranges::default(),
        };
        if resume && identity.size.is_some() {
            partial.have = partial.recall().unwrap_or_default();
        }
        if partial.have.is_empty() {
            partial.start_over()?;
        }
        Ok(partial)
    }

    /// What the journal says, as far as it is about this file and the bytes are there.
    fn recall(&self) -> Option<Ranges> {
        let mut text = String::new();
        File::open(&self.journal).ok()?.take(MAX_JOURNAL).read_to_string(&mut text).ok()?;
        let have = text.strip_prefix(&self.identity)?.strip_prefix("have ")?.trim_end();
        let length = self.file.metadata().ok()?.len();
        let mut kept = Ranges::default();
        if have == "prefix" {
            kept.insert(0, length);
        } else {
            for (from, to) in Ranges::parse(have.as_bytes()).ok()?.iter() {
                kept.insert(from.min(length), to.min(length));
            }
        }
        Some(kept)
    }

    /// Throws away what came.
    pub(super) fn start_over(&mut self) -> Result<(), FtpError> {
        self.have = Ranges::default();
        self.forget();
        self.file.set_len(0).map_err(FtpError::local("write", &self.path))
    }

    /// From now on the bytes come in order, and the length of the file says how many.
    pub(super) fn in_order(&mut self) -> Result<u64, FtpError> {
        let prefix = self.have.prefix();
        self.file.set_len(prefix).map_err(FtpError::local("write", &self.path))?;
        self.note("prefix")?;
        Ok(prefix)
    }

    /// From now on the bytes come in any order, and the journal says which.
    pub(super) fn note_ranges(&self, have: &Ranges) -> Result<(), FtpError> {
        let mut kept = Ranges::default();
        for (from, to) in have.iter().take(MAX_WRITTEN) {
            kept.insert(from, to);
        }
        self.note(&kept.to_string())
    }

    fn note(&self, have: &str) -> Result<(), FtpError> {
        let new = self.journal.with_extension("journal-new");
        let write = || {
            fs::write(&new, format!("{}have {have}\n", self.identity))?;
            fs::rename(&new, &self.journal)
        };
        write().map_err(FtpError::local("write", &self.journal))
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.journal);
    }

    /// The file is whole: it gets its name.
    pub(super) fn land(self, modify: Option<SystemTime>, sync: bool) -> Result<(), FtpError> {
        let finish = || {
            if let Some(modify) = modify {
                self.file.set_times(FileTimes::new().set_modified(modify))?;
            }
            if sync {
                self.file.sync_all()?;
            }
            fs::rename(&self.path, &self.target)?;
            if sync {
                let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
                File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            }
            Ok(())
        };
        finish().map_err(FtpError::local("write", &self.target))?;
        self.forget();
        Ok(())
    }

    /// Throws everything away.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.path);
        self.forget();
    }
}

/// The size of a file to send, and when it was written.
pub(super) fn source(path: &Path) -> Result<(File, u64, SystemTime), FtpError> {
    let file = File::open(path).map_err(FtpError::local("read", path))?;
    let look = || {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok((metadata.len(), metadata.modified()?))
    };
    let (size, modify) = look().map_err(FtpError::local("read", path))?;
    Ok((file, size, modify))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::UNIX_EPOCH;

    use super::*;

    fn identity(size: u64) -> Identity {
        Identity { url: "ftp://h/x".into(), size: Some(size), modify: Some(UNIX_EPOCH), range: None }
    }

    #[test]
    fn what_came_is_found_again_for_the_same_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let partial = Partial::open(&target, &identity(100), true).unwrap();
        partial.file.write_all_at(&[7; 50], 10).unwrap();
        partial.note_ranges(&Ranges::parse(b"10-40").unwrap()).unwrap();
        assert!(matches!(Partial::open(&target, &identity(100), true), Err(FtpError::Busy { .. })));
        drop(partial);
        let partial = Partial::open(&target, &identity(100), true).unwrap();
        assert_eq!(partial.have.to_string(), "10-40");
        drop(partial);
        let partial = Partial::open(&target, &identity(101), true).unwrap();
        assert!(partial.have.is_empty());
        partial.land(Some(UNIX_EPOCH), true).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&target).unwrap().modified().unwrap(), UNIX_EPOCH);
    }

    #[test]
    fn in_order_only_what_is_there_from_the_beginning_counts() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("n".repeat(250));
        let mut partial = Partial::open(&target, &identity(100), true).unwrap();
        partial.file.write_all_at(&[7; 90], 0).unwrap();
        partial.have = Ranges::parse(b"0-40,60-90").unwrap();
        assert_eq!(partial.in_order().unwrap(), 40);
        drop(partial);
        let partial = Partial::open(&target, &identity(100), true).unwrap();
        assert_eq!(partial.have.to_string(), "0-40");
        partial.discard();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
