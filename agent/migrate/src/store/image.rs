//! What a process's memory was, as it arrives while the process runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pending::{Held, Pending};
use crate::kernel::{PAGE, Range};

/// Bytes of a slab.
pub(super) const SLAB: u64 = 2 << 20;

/// Pages of a slab.
const PAGES: usize = (SLAB / PAGE) as usize;

/// 2 MiB of memory, of which the kernel gives what is written to.
struct Slab {
    bytes: Vec<u8>,
    /// What is known of each page.
    pages: [Page; PAGES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Unknown,
    Empty,
    Here,
}

/// The memory of one process.
#[derive(Default)]
pub(super) struct Image {
    slabs: BTreeMap<u64, Slab>,
    pub(super) exists: Vec<Range>,
    pub(super) dirty: Vec<Range>,
}

impl Image {
    /// Where the bytes of a range within one slab are to be written; and how many pages of it were not here before.
    pub(super) fn place(&mut self, range: Range) -> (&mut [u8], u64) {
        let slab = self.slab(range.start);
        let offset = (range.start % SLAB) as usize;
        let end = offset + range.bytes() as usize;
        let mut new = 0;
        for page in &mut slab.pages[offset / PAGE as usize..end / PAGE as usize] {
            new += u64::from(*page != Page::Here);
            *page = Page::Here;
        }
        if slab.bytes.is_empty() {
            slab.bytes = vec![0; SLAB as usize];
        }
        (&mut slab.bytes[offset..end], new)
    }

    /// Notes that a range within one slab is empty; how many pages of it were here before.
    pub(super) fn empty(&mut self, range: Range) -> u64 {
        let slab = self.slab(range.start);
        let first = (range.start % SLAB / PAGE) as usize;
        let mut gone = 0;
        for page in &mut slab.pages[first..first + (range.bytes() / PAGE) as usize] {
            gone += u64::from(*page == Page::Here);
            *page = Page::Empty;
        }
        gone
    }

    /// Whether something is known of the slab that this range is in.
    pub(super) fn has_slab(&self, range: Range) -> bool {
        self.slabs.contains_key(&(range.start / SLAB))
    }

    fn slab(&mut self, at: u64) -> &mut Slab {
        self.slabs
            .entry(at / SLAB)
            .or_insert_with(|| Slab { bytes: Vec::new(), pages: [Page::Unknown; PAGES] })
    }

    /// What is to be put into the process; or the first page that exists, and never came.
    pub(super) fn into_pending(self, pid: i32) -> Result<Pending, u64> {
        let mut pending = Pending::default();
        for range in &self.dirty {
            pending.insert(*range, Held::Awaited { pid, origin: range.start });
        }
        let mut slabs =
            self.slabs.into_iter().map(|(number, slab)| (number, Arc::new(slab.bytes), slab.pages));
        let mut current = slabs.next();
        let mut dirty = self.dirty.iter().copied().peekable();
        for exists in self.exists {
            let mut at = exists.start;
            while at < exists.end {
                if dirty.peek().is_some_and(|range| range.end <= at) {
                    dirty.next();
                    continue;
                }
                if let Some(range) = dirty.peek().filter(|range| range.start <= at) {
                    at = range.end;
                    continue;
                }
                let number = at / SLAB;
                while current.as_ref().is_some_and(|(other, ..)| *other < number) {
                    current = slabs.next();
                }
                let Some((_, bytes, pages)) = current.as_ref().filter(|(other, ..)| *other == number) else {
                    return Err(at);
                };
                let end = exists.end.min((number + 1) * SLAB);
                let end = dirty.peek().map_or(end, |range| end.min(range.start));
                let first = (at % SLAB / PAGE) as usize;
                let kind = pages[first];
                let most = ((end - at) / PAGE) as usize;
                let run = pages[first..first + most].iter().take_while(|page| **page == kind).count();
                let run = Range { start: at, end: at + run as u64 * PAGE };
                match kind {
                    Page::Unknown => return Err(at),
                    // As if there had never been a page: the kernel gives an empty one to whoever asks.
                    Page::Empty => (),
                    Page::Here => pending.insert(run, Held::Here(bytes.clone(), (at % SLAB) as usize)),
                }
                at = run.end;
            }
        }
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE;

    fn range(start: u64, end: u64) -> Range {
        Range { start: start * P, end: end * P }
    }

    #[test]
    fn only_what_exists_is_kept_and_what_is_dirty_is_awaited() {
        let mut image = Image::default();
        assert_eq!(image.place(range(0, 8)).1, 8);
        image.place(range(0, 8)).0.fill(7);
        assert_eq!(image.empty(range(5, 6)), 1);
        image.exists = vec![range(1, 6)];
        image.dirty = vec![range(2, 3)];
        let pending = image.into_pending(9).unwrap();
        assert!(pending.at(0).is_none() && pending.at(5 * P).is_none() && pending.at(6 * P).is_none());
        assert!(matches!(pending.at(P), Some((end, Held::Here(..))) if end == 2 * P));
        assert!(matches!(pending.at(2 * P), Some((_, Held::Awaited { pid: 9, origin })) if origin == 2 * P));
        assert!(matches!(pending.at(3 * P), Some((end, Held::Here(..))) if end == 5 * P));
    }

    #[test]
    fn a_page_that_exists_and_never_came_is_told_of() {
        let mut image = Image { exists: vec![range(0, 2)], ..Image::default() };
        image.place(range(0, 1));
        assert_eq!(image.into_pending(1).err(), Some(P));
        let far = Image { exists: vec![range(1000, 1001)], ..Image::default() };
        assert_eq!(far.into_pending(1).err(), Some(1000 * P));
    }
}
