//! What the kernel is asked: mappings, written pages, faults.

pub(crate) mod awake;
pub(crate) mod flags;
pub(crate) mod maps;
pub(crate) mod pagemap;
pub(crate) mod tree;
pub(crate) mod uffd;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Where addresses of user space end, with five levels of page tables.
pub(crate) const TOP: u64 = 1 << 56;

/// Addresses, whole pages, from the first to the one after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    pub(crate) fn bytes(self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What both have.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let both = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (both.start < both.end).then_some(both)
    }

    /// In pieces of at most so many bytes.
    pub(crate) fn pieces(self, bytes: u64) -> impl Iterator<Item = Self> {
        (self.start..self.end)
            .step_by(bytes as usize)
            .map(move |start| Self { start, end: self.end.min(start + bytes) })
    }
}

/// The same pages, in order, each once.
pub(crate) fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_where_they_touch() {
        let range = |start, end| Range { start, end };
        let all = vec![range(8, 9), range(1, 3), range(3, 4), range(2, 6), range(8, 9)];
        assert_eq!(merged(all), [range(1, 6), range(8, 9)]);
        assert_eq!(range(1, 5).pieces(3).collect::<Vec<_>>(), [range(1, 4), range(4, 5)]);
    }
}
