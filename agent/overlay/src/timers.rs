//! What is due when.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use foca::Timer;

use crate::identity::Id;

/// A wake-up this much later than asked means that the agent stood still.
const STALL: Duration = Duration::from_secs(1);

/// foca's timers, and the overlay's own tick.
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    count: u64,
}

struct Entry {
    due: Duration,
    /// Keeps the order of those that are due together.
    count: u64,
    timer: Timer<Id>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), count: 0 }
    }

    pub(crate) fn add(&mut self, due: Duration, timer: Timer<Id>) {
        self.count += 1;
        self.heap.push(Reverse(Entry { due, count: self.count, timer }));
    }

    /// When the first is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(entry)| entry.due)
    }

    /// Takes the first if it is due.
    pub(crate) fn take_due(&mut self, now: Duration) -> Option<Timer<Id>> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.timer)
    }

    /// Puts everything off by the time that the agent stood still, if it did.
    pub(crate) fn forgive_stall(&mut self, now: Duration) {
        let Some(late) = self.next().and_then(|due| now.checked_sub(due)) else { return };
        if late > STALL {
            let entries = std::mem::take(&mut self.heap).into_iter();
            self.heap =
                entries.map(|Reverse(entry)| Reverse(Entry { due: entry.due + late, ..entry })).collect();
        }
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// foca wants those that are due together in the order of their kinds.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, &self.timer, self.count).cmp(&(other.due, &other.timer, other.count))
    }
}

#[cfg(test)]
mod tests {
    use libgrid::ids::NodeId;

    use super::*;

    #[test]
    fn a_stall_puts_timers_off_and_keeps_their_distances() {
        let id = |node| Timer::RemoveDown(Id::new(NodeId(node), 0, &[]));
        let second = Duration::from_secs(1);
        let mut timers = Timers::new();
        timers.add(second * 2, id(2));
        timers.add(second, id(1));
        timers.forgive_stall(second * 2);
        assert_eq!(timers.next(), Some(second), "a second late is not a stall");
        timers.forgive_stall(second * 11);
        assert_eq!(timers.take_due(second * 11), Some(id(1)));
        assert_eq!(timers.take_due(second * 11), None);
        assert_eq!(timers.take_due(second * 12), Some(id(2)));
    }
}
