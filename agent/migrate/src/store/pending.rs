//! Pages of one process that are not in it yet, by the address where they belong now.
//!
//! A program that runs already moves, discards and copies (by `fork`) what it has not seen yet; so an entry is an interval
//! that can be cut, moved and shared, and its bytes are shared with the entries of children.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::Range;

/// Bytes that several intervals may share.
pub(crate) type Bytes = Arc<Vec<u8>>;

/// Where an interval's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Here, from this offset on.
    Here(Bytes, usize),
    /// On their way: those that process `pid` had at this address at the freeze.
    Awaited { pid: i32, origin: u64 },
}

impl Held {
    /// What is so many bytes further.
    fn after(&self, bytes: u64) -> Self {
        match self {
            Held::Here(data, offset) => Held::Here(data.clone(), offset + bytes as usize),
            Held::Awaited { pid, origin } => Held::Awaited { pid: *pid, origin: origin + bytes },
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    end: u64,
    held: Held,
}

/// The intervals, those that are awaited apart: they were written last, and are wanted first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    here: BTreeMap<u64, Piece>,
    awaited: BTreeMap<u64, Piece>,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.here.is_empty() && self.awaited.is_empty()
    }

    /// Adds an interval where there is none.
    pub(crate) fn insert(&mut self, range: Range, held: Held) {
        let side = match held {
            Held::Here(..) => &mut self.here,
            Held::Awaited { .. } => &mut self.awaited,
        };
        side.insert(range.start, Piece { end: range.end, held });
    }

    /// What is to be at this address, and up to where it goes on.
    pub(crate) fn at(&self, address: u64) -> Option<(u64, Held)> {
        [&self.here, &self.awaited].into_iter().find_map(|side| {
            let (start, piece) = side.range(..=address).next_back()?;
            (address < piece.end).then(|| (piece.end, piece.held.after(address - start)))
        })
    }

    /// The first address that is awaited.
    pub(crate) fn first_awaited(&self) -> Option<u64> {
        self.awaited.first_key_value().map(|(start, _)| *start)
    }

    /// The first address of what is here, at or after this one; from the beginning where there is none.
    pub(crate) fn next_here(&self, from: u64) -> Option<u64> {
        let inside = self.here.range(..=from).next_back().filter(|(_, piece)| from < piece.end);
        let next = inside.map(|_| from).or_else(|| self.here.range(from..).next().map(|(start, _)| *start));
        next.or_else(|| self.here.first_key_value().map(|(start, _)| *start))
    }

    /// Forgets a range.
    pub(crate) fn forget(&mut self, range: Range) {
        cut(&mut self.here, range);
        cut(&mut self.awaited, range);
    }

    /// Moves a range to where another mapping ended before.
    pub(crate) fn shift(&mut self, from: Range, to: u64) {
        let moved = [cut(&mut self.here, from), cut(&mut self.awaited, from)];
        self.forget(Range { start: to, end: to + from.bytes() });
        for (range, held) in moved.into_iter().flatten() {
            let start = range.start - from.start + to;
            self.insert(Range { start, end: start + range.bytes() }, held);
        }
    }
}

/// Takes a range out.
fn cut(side: &mut BTreeMap<u64, Piece>, range: Range) -> Vec<(Range, Held)> {
    let first = side.range(..=range.start).next_back().filter(|(_, piece)| piece.end > range.start);
    let first = first.map_or(range.start, |(start, _)| *start);
    let starts: Vec<u64> = side.range(first..range.end).map(|(start, _)| *start).collect();
    let mut taken = Vec::with_capacity(starts.len());
    for start in starts {
        let Some(piece) = side.remove(&start) else { continue };
        let from = start.max(range.start);
        let to = piece.end.min(range.end);
        if to < piece.end {
            side.insert(to, Piece { end: piece.end, held: piece.held.after(to - start) });
        }
        taken.push((Range { start: from, end: to }, piece.held.after(from - start)));
        if start < from {
            side.insert(start, Piece { end: from, held: piece.held });
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    fn offset(pending: &Pending, at: u64) -> Option<(u64, usize)> {
        match pending.at(at)? {
            (end, Held::Here(_, offset)) => Some((end, offset)),
            (end, Held::Awaited { origin, .. }) => Some((end, origin as usize)),
        }
    }

    fn sample() -> Pending {
        let mut pending = Pending::default();
        pending.insert(range(100, 200), Held::Here(Bytes::default(), 0));
        pending.insert(range(200, 300), Held::Awaited { pid: 1, origin: 200 });
        pending
    }

    #[test]
    fn what_is_forgotten_leaves_both_sides() {
        let mut pending = sample();
        pending.forget(range(150, 250));
        assert_eq!(offset(&pending, 149), Some((150, 49)));
        assert_eq!(offset(&pending, 150), None);
        assert_eq!(offset(&pending, 249), None);
        assert_eq!(offset(&pending, 260), Some((300, 260)));
        pending.forget(range(0, 1000));
        assert!(pending.is_empty());
    }

    #[test]
    fn what_is_moved_keeps_its_bytes_and_replaces_what_was_there() {
        let mut pending = sample();
        pending.shift(range(110, 210), 290);
        assert_eq!(offset(&pending, 105), Some((110, 5)));
        assert_eq!(offset(&pending, 110), None);
        assert_eq!(offset(&pending, 290), Some((380, 10)));
        assert_eq!(offset(&pending, 385), Some((390, 205)));
        assert_eq!(offset(&pending, 280), Some((290, 280)));
        assert_eq!(offset(&pending, 390), None);
    }

    #[test]
    fn a_range_may_move_onto_a_part_of_itself() {
        let mut pending = sample();
        pending.shift(range(100, 200), 150);
        assert_eq!(offset(&pending, 149), None);
        assert_eq!(offset(&pending, 150), Some((250, 0)));
        assert_eq!(offset(&pending, 250), Some((300, 250)));
    }

    #[test]
    fn the_next_one_comes_round_again() {
        let pending = sample();
        assert_eq!(pending.next_here(0), Some(100));
        assert_eq!(pending.next_here(150), Some(150));
        assert_eq!(pending.next_here(200), Some(100));
        assert_eq!(pending.first_awaited(), Some(200));
    }

    #[test]
    fn a_child_keeps_what_the_parent_forgets() {
        let mut parent = sample();
        let child = parent.clone();
        parent.forget(range(0, 1000));
        assert_eq!(offset(&child, 120), Some((200, 20)));
    }
}
