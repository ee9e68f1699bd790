//! What a source has to send, as pieces of work.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};

use super::sending::Sending;
use super::{OUTSTANDING, Sent, Source, Work, say};
use crate::session::journal::Ranges;
use crate::session::locked;
use crate::session::message::{FromSource, Held, RelPath, Trouble, What};
use crate::session::record::MAX_PACK;
use crate::session::walk::{self, Found, SMALL, Unreadable};

/// Small things in one pack at most.
const PACK_ITEMS: usize = 256;

/// Small files are added to a pack up to this many bytes.
const PACK_BYTES: u64 = 1 << 20;

impl Source {
    pub(super) fn walk<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        tops: Vec<Found>,
        held: HashMap<RelPath, Held>,
    ) -> Result<(), Trouble> {
        let start_hashers = || {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            for _ in 0..cores.min(4) {
                scope.spawn(|| self.hash());
            }
        };
        let mut sorter = Sorter {
            source: self,
            start_hashers: &start_hashers,
            held,
            pack: Vec::new(),
            bytes: 0,
            works: 0,
            files: 0,
        };
        for top in tops {
            let on = match top.item.what {
                What::Folder => walk::walk(top, &mut |found| sorter.take(found))?,
                _ => sorter.take(Ok(top))?,
            };
            if !on {
                return Ok(());
            }
        }
        sorter.flush();
        self.counts.walked.store(true, Ordering::Relaxed);
        let skipped = self.counts.skipped.load(Ordering::Relaxed);
        say(&mut *locked(&self.writer), &FromSource::End { works: sorter.works, skipped })
    }

    /// Gives out a piece of work when there is room; `false` if the transfer ended.
    pub(super) fn give(&self, work: Work) -> bool {
        let mut outstanding = locked(&self.outstanding);
        while outstanding.sent.len() >= OUTSTANDING && !self.ended.load(Ordering::Relaxed) {
            outstanding = self.room.wait(outstanding).unwrap_or_else(PoisonError::into_inner);
        }
        let number = outstanding.next;
        outstanding.next += 1;
        outstanding.sent.insert(number, Sent { work: work.clone(), over: [None, None], repeats: 0 });
        drop(outstanding);
        self.queue.push((number, work))
    }
}

/// Makes pieces of work of what the walk finds.
struct Sorter<'a> {
    source: &'a Source,
    /// Called with the first large file: small ones need none.
    start_hashers: &'a dyn Fn(),
    held: HashMap<RelPath, Held>,
    pack: Vec<Found>,
    bytes: u64,
    works: u64,
    files: u32,
}

impl Sorter<'_> {
    fn take(&mut self, found: Result<Found, Unreadable>) -> Result<bool, Trouble> {
        if self.source.ended.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(found) = self.source.left_out.sift(found)? else { return Ok(true) };
        let counts = &self.source.counts;
        let size = found.size();
        counts.found_items.fetch_add(1, Ordering::Relaxed);
        counts.found_bytes.fetch_add(size, Ordering::Relaxed);
        let held = match found.item.what {
            What::File { .. } => self.held.remove(&found.item.path),
            _ => None,
        };
        let held = held.filter(|held| held.size == size && held.modified == found.item.modified);
        match held {
            Some(Held { ranges: None, .. }) => {
                counts.done_bytes.fetch_add(size, Ordering::Relaxed);
                counts.skipped.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            held if size >= SMALL => self.large(found, held.and_then(|held| held.ranges).unwrap_or_default()),
            _ => {
                self.pack.push(found);
                self.bytes += size;
                match self.pack.len() >= PACK_ITEMS || self.bytes >= PACK_BYTES {
                    true => Ok(self.flush()),
                    false => Ok(true),
                }
            }
        }
    }

    fn flush(&mut self) -> bool {
        if self.pack.is_empty() {
            return true;
        }
        self.bytes = 0;
        self.works += 1;
        self.source.give(Work::Pack(Arc::new(Mutex::new(std::mem::take(&mut self.pack)))))
    }

    fn large(&mut self, mut found: Found, held: Vec<(u64, u64)>) -> Result<bool, Trouble> {
        let source = self.source;
        let shown = found.shown();
        let file = found.open().map_err(|error| walk::unreadable(&shown, &error))?;
        let (size, modified) = (found.size(), found.item.modified);
        let number = self.files;
        if number == 0 && source.checksums {
            (self.start_hashers)();
        }
        self.files += 1;
        say(&mut *locked(&source.writer), &FromSource::Open { file: number, item: found.item })?;
        let held: Ranges = held.into_iter().collect();
        let extents = walk::extents(&file, size, found.sparse);
        let file = Arc::new(Sending { number, file: Arc::new(file), shown, size, modified });
        let mut ranges = 0;
        let mut todo = 0;
        for (start, end) in extents {
            for (start, end) in held.missing(start, end) {
                let mut at = start;
                while at < end {
                    let length = source.range.min(end - at);
                    if !source.give(Work::Range { file: file.clone(), offset: at, length }) {
                        return Ok(false);
                    }
                    at += length;
                    ranges += 1;
                    todo += length;
                }
            }
        }
        // Holes, and what is there, are done already.
        source.counts.done_bytes.fetch_add(size - todo, Ordering::Relaxed);
        self.works += u64::from(ranges);
        say(&mut *locked(&source.writer), &FromSource::Close { file: number, ranges })?;
        Ok(true)
    }
}

const _: () = assert!(PACK_BYTES as usize + SMALL as usize + PACK_ITEMS * 1024 <= MAX_PACK);
