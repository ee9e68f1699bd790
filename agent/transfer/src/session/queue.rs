//! A bounded queue between threads, which can be ended from outside.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A queue of work. Whoever waits on it is woken when it is closed.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    most: usize,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// What a wait for an item came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    Item(T),
    /// Nothing came in time.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(most: usize) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), closed: false });
        Self { state, changed: Condvar::new(), most }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds at the end, when there is room; `false` if the queue is closed.
    pub(super) fn push(&self, item: T) -> bool {
        let mut state = self.lock();
        while state.items.len() >= self.most && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.items.push_back(item);
        self.changed.notify_all();
        true
    }

    /// Adds at the front, and beyond the bound if need be: what is done again goes first.
    pub(super) fn push_front(&self, item: T) {
        self.lock().items.push_front(item);
        self.changed.notify_all();
    }

    /// Waits for an item.
    pub(super) fn pop(&self, patience: Duration) -> Next<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if state.closed {
                return Next::Closed;
            }
            if let Some(item) = state.items.pop_front() {
                self.changed.notify_all();
                return Next::Item(item);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it: what is in it is dropped, and whoever waits is told.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_full_queue_holds_the_sender_back_until_something_is_taken() {
        let queue = Arc::new(Queue::new(1));
        assert!(queue.push(1));
        let sender = thread::spawn({
            let queue = queue.clone();
            move || queue.push(2)
        });
        assert_eq!(queue.pop(Duration::from_secs(5)), Next::Item(1));
        assert_eq!(queue.pop(Duration::from_secs(5)), Next::Item(2));
        assert!(sender.join().unwrap());
        assert_eq!(queue.pop(Duration::ZERO), Next::Nothing);
    }

    #[test]
    fn closing_wakes_both_sides() {
        let queue = Arc::new(Queue::new(1));
        queue.push(1);
        let sender = thread::spawn({
            let queue = queue.clone();
            move || queue.push(2)
        });
        queue.close();
        assert!(!sender.join().unwrap());
        assert_eq!(queue.pop(Duration::from_secs(5)), Next::Closed);
    }
}
