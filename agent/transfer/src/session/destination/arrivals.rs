//! What a destination does with what arrived: it is compared with its checksum, noted, and named.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Destination, say};
use crate::session::journal;
use crate::session::landing::Growing;
use crate::session::locked;
use crate::session::message::{FromDestination, Trouble};
use crate::session::queue::Next;
use crate::session::record;

/// Ranges and checksums that wait for each other at most: a source has fewer outstanding.
const WAITING: usize = 4096;

/// A range that is written, and its checksum: whichever came.
#[derive(Default)]
pub(super) struct Waiting {
    range: Option<Range>,
    sum: Option<[u8; 32]>,
}

/// How far a range is that is not done. What is written is not written again, unless its checksum is wrong: otherwise a
/// connection that was given up could still change what was verified, or a file that has its name.
pub(super) enum Claim {
    /// This connection writes it.
    Writing(u32),
    /// It waits for its checksum.
    Written,
}

#[derive(Clone)]
pub(super) struct Range {
    pub(super) file: Arc<Receiving>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A large file that is being received.
pub(super) struct Receiving {
    pub(super) number: u32,
    pub(super) growing: Growing,
    pub(super) state: Mutex<Ranges>,
}

#[derive(Default)]
pub(super) struct Ranges {
    pub(super) done: u32,
    pub(super) expected: Option<u32>,
    finished: bool,
}

/// Pieces that arrived: all below `low`, and these.
#[derive(Default)]
pub(super) struct Done {
    pub(super) low: u64,
    above: BTreeSet<u64>,
}

impl Done {
    /// Adds one; `false` if it was there.
    fn add(&mut self, work: u64) -> bool {
        if work < self.low || !self.above.insert(work) {
            return false;
        }
        while self.above.remove(&self.low) {
            self.low += 1;
        }
        true
    }

    pub(super) fn has(&self, work: u64) -> bool {
        work < self.low || self.above.contains(&work)
    }
}

impl Destination {
    pub(super) fn pack_came(&self, work: u64, bytes: &[u8]) -> io::Result<()> {
        {
            // One that came over two connections is put away once, or the second would change folders that have their times.
            let mut state = locked(&self.state);
            if state.done.has(work) || state.claims.insert(work, Claim::Written).is_some() {
                return Ok(());
            }
        }
        let mut trouble = None;
        record::unpack(bytes, |item, contents| {
            self.items.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(contents.len() as u64, Ordering::Relaxed);
            self.landing.small(item, contents).map_err(|why| {
                trouble = Some(why);
                io::ErrorKind::Other.into()
            })
        })
        .inspect_err(|_| self.fail(trouble.take().unwrap_or_else(Trouble::confused)))?;
        self.arrived(work);
        Ok(())
    }

    pub(super) fn range_came(&self, work: u64, range: Range) {
        self.pair(work, |waiting| waiting.range = Some(range));
    }

    pub(super) fn sum_came(&self, work: u64, sum: [u8; 32]) {
        self.pair(work, |waiting| waiting.sum = Some(sum));
    }

    /// Verifies a range when both it and its checksum are there.
    fn pair(&self, work: u64, set: impl FnOnce(&mut Waiting)) {
        let mut state = locked(&self.state);
        if state.done.has(work) {
            return;
        }
        if state.waiting.len() > WAITING {
            drop(state);
            return self.fail(Trouble::confused());
        }
        let waiting = state.waiting.entry(work).or_default();
        set(waiting);
        if let (Some(range), Some(sum)) = (waiting.range.clone(), waiting.sum) {
            state.waiting.remove(&work);
            drop(state);
            self.verify.push((work, range, sum));
        }
    }

    pub(super) fn verify(&self) {
        while let Next::Item((work, range, sum)) = self.verify.pop(Duration::from_secs(3600)) {
            if let Err(trouble) = self.verify_one(work, &range, sum) {
                self.fail(trouble);
            }
        }
    }

    fn verify_one(&self, work: u64, range: &Range, sum: [u8; 32]) -> Result<(), Trouble> {
        let file = &range.file.growing.file;
        let path = || self.landing.shown(&range.file.growing.item.path);
        let cannot = |error: io::Error| {
            let at = range.offset;
            Trouble::lasting(format!("{} cannot be read back at byte {at}: {error}", path().display()))
        };
        if self.from_disk {
            file.sync_data().map_err(cannot)?;
            let (offset, length) = (range.offset.cast_signed(), range.length.cast_signed());
            posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|error| cannot(error.into()))?;
        }
        if journal::hash(file, range.offset, range.length).map_err(cannot)? == sum {
            return self.keep(work, range, Some(sum));
        }
        tracing::warn!(path = %path().display(), offset = range.offset, "a range arrived damaged");
        locked(&self.state).claims.remove(&work);
        say(&mut *locked(&self.writer), &FromDestination::Again(work))
    }

    /// A range is where it belongs.
    pub(super) fn keep(&self, work: u64, range: &Range, sum: Option<[u8; 32]>) -> Result<(), Trouble> {
        if locked(&self.state).done.has(work) {
            return Ok(());
        }
        range.file.growing.note(range.offset, range.length, sum).map_err(|error| {
            let path = self.landing.shown(&range.file.growing.item.path);
            Trouble::lasting(format!("the journal of {} cannot be written: {error}", path.display()))
        })?;
        if self.arrived(work) {
            self.bytes.fetch_add(range.length, Ordering::Relaxed);
            locked(&range.file.state).done += 1;
            self.finish_if_whole(&range.file)?;
        }
        Ok(())
    }

    /// Counts a piece that arrived; `false` if it had before.
    fn arrived(&self, work: u64) -> bool {
        let mut state = locked(&self.state);
        let new = state.done.add(work);
        if new {
            state.claims.remove(&work);
            state.to_tell.push(work);
            self.changed.notify_all();
        }
        new
    }

    pub(super) fn finish_if_whole(&self, file: &Arc<Receiving>) -> Result<(), Trouble> {
        {
            let mut ranges = locked(&file.state);
            if ranges.finished || ranges.expected != Some(ranges.done) {
                return Ok(());
            }
            ranges.finished = true;
        }
        self.landing.finish(&file.growing)?;
        self.items.fetch_add(1, Ordering::Relaxed);
        locked(&self.state).files.remove(&file.number);
        self.changed.notify_all();
        Ok(())
    }
}
