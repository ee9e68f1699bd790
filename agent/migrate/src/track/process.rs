//! One process at the source.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::TrackError;
use super::copy::{Memory, PIECE};
use super::stop::Stopped;
use crate::kernel::pagemap::{Pagemap, Query, WRITTEN};
use crate::kernel::uffd::{self, Uffd};
use crate::kernel::{self, PAGE, Range, maps};
use crate::pages::PageSink;

/// Bytes of mappings that appeared since the process was stopped last, before it is stopped again to register them.
const ENOUGH_NEW: u64 = 16 << 20;

/// What is known of a process whose writes are tracked.
#[derive(Debug)]
pub(super) struct Process {
    /// Its number here.
    pub(super) pid: i32,
    /// Its number in the images.
    pub(super) image_pid: i32,
    uffd: Option<Uffd>,
    /// Registered since the last round: whatever is there is new to the destination.
    fresh: Vec<Range>,
    /// What may have been taken without being sent: sent at the freeze, as far as it exists.
    owed: Vec<Range>,
}

/// What a process has at the freeze.
#[derive(Debug, Default)]
pub(super) struct Final {
    /// Pages that exist, for each mapping in order.
    pub(super) exists: Vec<Range>,
    /// Those of them that the destination has not.
    pub(super) dirty: Vec<Range>,
}

impl Process {
    /// One whose writes are not tracked.
    pub(super) fn untracked(pid: i32, image_pid: i32) -> Self {
        Self { pid, image_pid, uffd: None, fresh: Vec::new(), owed: Vec::new() }
    }

    /// Stops it, makes a userfaultfd in it if it has none, registers what can be, and lets it go on.
    pub(super) fn adopt(&mut self, proc: &Path) -> Result<(), TrackError> {
        let pid = self.pid;
        // The tracer is a thread: see `stop`.
        let adopted = std::thread::scope(|scope| scope.spawn(|| self.stop_and_register(proc)).join());
        match adopted {
            Ok(result) => result.map_err(|source| TrackError::Adopt { pid, source }),
            Err(_) => Err(TrackError::Adopt { pid, source: io::Error::other("the tracer panicked") }),
        }
    }

    fn stop_and_register(&mut self, proc: &Path) -> io::Result<()> {
        let stopped = Stopped::all(proc, self.pid)?;
        let mappings = maps::read(proc, self.pid)?;
        let uffd = match self.uffd.take() {
            Some(uffd) => uffd,
            None => make(&stopped, self.pid, &mappings)?,
        };
        for mapping in mappings.iter().filter(|mapping| mapping.lazy) {
            match uffd.register(mapping.range) {
                Ok(()) => self.fresh.push(mapping.range),
                // Of a memory that an `execve` ended: all counts as written until the process is adopted anew.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                // A kind of mapping that the kernel does not take.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (),
                Err(error) => return Err(error),
            }
        }
        self.uffd = Some(uffd);
        Ok(())
    }

    /// Sends what was written since the last round; the pages that were sent.
    pub(super) fn round(&mut self, proc: &Path, sink: &mut PageSink<'_>) -> Result<u64, TrackError> {
        if self.uffd.is_none() {
            self.adopt(proc)?;
        }
        let (pid, image_pid) = (self.pid, self.image_pid);
        let failed = |source| TrackError::Scan { pid, source };
        let pagemap = Pagemap::open(proc, pid).map_err(failed)?;
        let memory = Memory::open(proc, pid).map_err(failed)?;
        let fresh = std::mem::take(&mut self.fresh);
        let mut sent = 0;
        let mut untracked = 0;
        let mut ranges = Vec::new();
        for mapping in maps::read(proc, pid).map_err(failed)?.iter().filter(|mapping| mapping.lazy) {
            let is_fresh = fresh.iter().any(|range| range.overlaps(mapping.range));
            let query = if is_fresh { Query::TakeAll } else { Query::Take };
            ranges.clear();
            let scanned = pagemap.scan(mapping.range, query, |region| {
                ranges.push(region.range());
                Ok(())
            });
            match scanned {
                Ok(()) => (),
                // Here or in a part of it, writes are not tracked; the rest may have been taken.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    untracked += mapping.range.bytes();
                    self.owed.push(mapping.range);
                }
                Err(error) => return Err(failed(error)),
            }
            for range in &ranges {
                sent += send(&memory, image_pid, *range, sink, |lost| {
                    // Unmapped meanwhile; if not, it is owed.
                    self.owed.push(lost);
                    Ok(())
                })?;
            }
        }
        if untracked >= ENOUGH_NEW {
            self.adopt(proc)?;
        }
        Ok(sent)
    }

    /// What it has, and what the destination has not of it. It stands still.
    pub(super) fn at_freeze(&self, proc: &Path) -> Result<Final, TrackError> {
        let failed = |source| TrackError::Scan { pid: self.pid, source };
        let pagemap = Pagemap::open(proc, self.pid).map_err(failed)?;
        let mut all = Final::default();
        for mapping in maps::read(proc, self.pid).map_err(failed)?.iter().filter(|mapping| mapping.lazy) {
            let is_new = self.uffd.is_none() || self.fresh.iter().any(|range| range.overlaps(mapping.range));
            let changed = match look(&pagemap, mapping.range, Query::Changed) {
                _ if is_new => None,
                Ok(found) => Some(found),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
                Err(error) => return Err(failed(error)),
            };
            if let Some(mut found) = changed {
                for owed in &self.owed {
                    found.dirty.extend(found.exists.iter().filter_map(|range| range.common(*owed)));
                }
                all.exists.append(&mut found.exists);
                all.dirty.append(&mut kernel::merged(found.dirty));
            } else {
                let found = look(&pagemap, mapping.range, Query::Everything).map_err(failed)?;
                all.dirty.extend_from_slice(&found.exists);
                all.exists.extend(found.exists);
            }
        }
        Ok(all)
    }

    /// Sends these pages of a process that stands still.
    pub(super) fn send(
        &self,
        proc: &Path,
        ranges: &[Range],
        sink: &mut PageSink<'_>,
    ) -> Result<u64, TrackError> {
        let pid = self.pid;
        let memory = Memory::open(proc, pid).map_err(|source| TrackError::Scan { pid, source })?;
        let mut sent = 0;
        for range in ranges {
            sent += send(&memory, self.image_pid, *range, sink, |lost| {
                Err(TrackError::Unreadable { pid, at: lost.start })
            })?;
        }
        Ok(sent)
    }
}

/// What one mapping has, and what was written of it.
fn look(pagemap: &Pagemap, mapping: Range, query: Query) -> io::Result<Final> {
    let mut found = Final::default();
    // What is not told of exists, and was not written.
    let mut from = mapping.start;
    pagemap.scan(mapping, query, |region| {
        let range = region.range();
        if !region.exists() {
            if from < range.start {
                found.exists.push(Range { start: from, end: range.start });
            }
            from = range.end;
        } else if region.categories & WRITTEN != 0 {
            found.dirty.push(range);
        }
        Ok(())
    })?;
    if from < mapping.end {
        found.exists.push(Range { start: from, end: mapping.end });
    }
    Ok(found)
}

/// Sends a range; what of it cannot be read is `lost`. The pages that were sent.
fn send(
    memory: &Memory,
    image_pid: i32,
    range: Range,
    sink: &mut PageSink<'_>,
    mut lost: impl FnMut(Range) -> Result<(), TrackError>,
) -> Result<u64, TrackError> {
    let mut sent = 0;
    let mut at = range.start;
    while at < range.end {
        let bytes = (range.end - at).min(PIECE);
        match memory.read(at, sink.room(bytes as usize)) {
            Ok(read) => {
                sink.pages(image_pid, at, read)?;
                sent += read as u64 / PAGE;
                at += read as u64;
            }
            Err(_) => {
                lost(Range { start: at, end: at + PAGE })?;
                at += PAGE;
            }
        }
    }
    Ok(sent)
}

/// Makes a userfaultfd of a stopped process's memory, and takes it from there.
fn make(stopped: &Stopped, pid: i32, mappings: &[maps::Mapping]) -> io::Result<Uffd> {
    // SAFETY: no pointers are passed.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let pidfd = owned(pidfd)?;
    let borrowed = stopped.borrow(pid, mappings)?;
    let flags = libc::O_CLOEXEC as u64 | uffd::USER_MODE_ONLY;
    let made = borrowed.call(libc::SYS_userfaultfd, [flags, 0]).and_then(|there| {
        // SAFETY: no pointers are passed.
        let here = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), there as i32, 0) };
        let here = owned(here);
        borrowed.call(libc::SYS_close, [there, 0])?;
        here
    });
    borrowed.give_back()?;
    let uffd = Uffd::from(made?);
    uffd.track_writes()?;
    Ok(uffd)
}

/// The descriptor that a system call returned.
fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match answer {
        0.. => {
            // SAFETY: the kernel has just given it to this process.
            Ok(unsafe { OwnedFd::from_raw_fd(answer as i32) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
