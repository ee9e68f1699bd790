//! The addresses that a home gives to tasks with `--net grid`: [`LAST_SERIAL`] at a time, each for the life of its task.
//!
//! A serial that is free again is the last to be taken: a run that was given up as lost may still be there, frozen, on a node
//! that nobody can reach, with the address of its task.

use std::collections::BTreeSet;

use libgrid::address::LAST_SERIAL;

#[derive(Debug)]
pub(super) struct Serials {
    used: BTreeSet<u16>,
    last: u16,
}

impl Serials {
    /// None is used; the first is any, so that a home that starts again does not begin with those that it gave away last.
    pub(super) fn new(seed: u64) -> Self {
        Self { used: BTreeSet::new(), last: (seed % u64::from(LAST_SERIAL)) as u16 }
    }

    /// How many are left.
    pub(super) fn free(&self) -> usize {
        usize::from(LAST_SERIAL) - self.used.len()
    }

    /// A free one.
    pub(super) fn take(&mut self) -> Option<u16> {
        if self.free() == 0 {
            return None;
        }
        loop {
            self.last = self.last % LAST_SERIAL + 1;
            if self.used.insert(self.last) {
                return Some(self.last);
            }
        }
    }

    /// One that a task has, as the store says.
    pub(super) fn keep(&mut self, serial: u16) {
        self.used.insert(serial);
    }

    /// Its task is done.
    pub(super) fn give_back(&mut self, serial: u16) {
        self.used.remove(&serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_and_what_comes_back_is_given_last() {
        let mut serials = Serials::new(u64::from(LAST_SERIAL) - 1);
        serials.keep(2);
        let first = serials.take().unwrap();
        assert_eq!(first, LAST_SERIAL);
        serials.give_back(first);
        let mut taken: Vec<u16> = std::iter::from_fn(|| serials.take()).collect();
        assert_eq!((taken[0], taken[1], taken.last()), (1, 3, Some(&first)));
        taken.push(2);
        taken.sort_unstable();
        assert!(taken.into_iter().eq(1..=LAST_SERIAL) && serials.free() == 0);
        serials.give_back(7);
        assert_eq!((serials.take(), serials.take()), (Some(7), None));
    }
}
