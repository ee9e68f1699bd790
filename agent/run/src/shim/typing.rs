//! What is typed into a task, and how much of it.
//!
//! ```text
//!   0 ............ taken ............ next
//!     in the pipe or       in the queue     not here yet: whoever types keeps it
//!     the terminal
//! ```
//!
//! Positions outlast the shim: a checkpoint holds what its task has not read, and the position after that. Who types keeps
//! what is not taken, and goes on from the position of whichever shim has the task. So a byte is typed once, whatever becomes
//! of agents, lines and moves. While a task is being written down nothing of the queue is handed on, and what comes then is
//! not in the checkpoint.

use std::collections::VecDeque;

use crate::protocol::Typed;

/// The input of a task, as far as the task has not taken it.
#[derive(Default)]
pub(super) struct Typing {
    queue: VecDeque<u8>,
    /// After the queue, of a pipe.
    end: bool,
    next: u64,
    closed: bool,
    /// While a checkpoint is written: where it cuts.
    cut: Option<Cut>,
}

#[derive(Clone, Copy)]
struct Cut {
    queued: usize,
    end: bool,
    next: u64,
}

/// The part of the input that a checkpoint keeps.
pub(super) struct Kept {
    pub(super) queue: Vec<u8>,
    pub(super) end: bool,
    pub(super) next: u64,
}

impl Typing {
    /// Goes on with what a checkpoint kept.
    pub(super) fn resumed(queue: Vec<u8>, end: bool, next: u64) -> Self {
        Self { queue: queue.into(), end, next, ..Self::default() }
    }

    /// Takes what is new of this.
    pub(super) fn accept(&mut self, at: u64, bytes: &[u8]) {
        let Some(known) = self.next.checked_sub(at).and_then(|known| usize::try_from(known).ok()) else {
            return;
        };
        if self.closed || self.end {
            return;
        }
        let new = bytes.get(known..).unwrap_or_default();
        self.queue.extend(new);
        self.next += new.len() as u64;
    }

    /// Takes the end, if it is new; of a terminal, that is a key.
    pub(super) fn accept_end(&mut self, at: u64, key: Option<u8>) {
        if at == self.next && !self.closed && !self.end {
            self.next += 1;
            match key {
                Some(key) => self.queue.push_back(key),
                None => self.end = true,
            }
        }
    }

    /// What can be handed on now; empty if there is nothing.
    pub(super) fn front(&self) -> &[u8] {
        match self.cut {
            Some(_) => &[],
            None => self.queue.as_slices().0,
        }
    }

    /// So much of the front was handed on.
    pub(super) fn handed(&mut self, bytes: usize) {
        self.queue.drain(..bytes);
    }

    /// Whether the end is next; it is handed on with this.
    pub(super) fn take_end(&mut self) -> bool {
        self.cut.is_none() && self.queue.is_empty() && std::mem::take(&mut self.end)
    }

    /// The task takes no more.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.queue.clear();
        self.end = false;
    }

    /// Hands on no more, and notes where a checkpoint cuts.
    pub(super) fn stop(&mut self) {
        let (queued, end, next) = (self.queue.len(), self.end, self.next);
        self.cut.get_or_insert(Cut { queued, end, next });
    }

    /// The checkpoint is written, or is not to be.
    pub(super) fn go_on(&mut self) {
        self.cut = None;
    }

    /// What a checkpoint keeps.
    pub(super) fn kept(&self) -> Kept {
        let cut = self.cut.unwrap_or(Cut { queued: self.queue.len(), end: self.end, next: self.next });
        Kept { queue: self.queue.iter().take(cut.queued).copied().collect(), end: cut.end, next: cut.next }
    }

    /// How far it is.
    pub(super) fn typed(&self) -> Typed {
        let waits = self.queue.len() as u64 + u64::from(self.end);
        Typed { next: self.next, taken: self.next.saturating_sub(waits), closed: self.closed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_taken_once_and_a_gap_never() {
        let mut typing = Typing::default();
        typing.accept(0, b"abc");
        typing.accept(1, b"bcd");
        typing.accept(9, b"lost");
        assert_eq!(typing.front(), b"abcd");
        typing.accept_end(3, None);
        assert!(!typing.end);
        typing.accept_end(4, None);
        typing.accept_end(4, None);
        assert_eq!(typing.typed(), Typed { next: 5, taken: 0, closed: false });
        typing.handed(4);
        assert!(typing.take_end() && !typing.take_end());
        assert_eq!(typing.typed(), Typed { next: 5, taken: 5, closed: false });
    }

    #[test]
    fn what_comes_while_a_checkpoint_is_written_is_not_in_it() {
        let mut typing = Typing::default();
        typing.accept(0, b"before");
        typing.stop();
        typing.accept(6, b" after");
        typing.accept_end(12, None);
        assert!(typing.front().is_empty() && !typing.take_end());
        let kept = typing.kept();
        assert_eq!((kept.queue.as_slice(), kept.end, kept.next), (&b"before"[..], false, 6));
        // Made from it elsewhere, the rest is typed there.
        let mut there = Typing::resumed(kept.queue, kept.end, kept.next);
        there.accept(0, b"before after");
        assert_eq!(there.front(), b"before after");
        typing.go_on();
        assert_eq!(typing.front(), b"before after");
    }
}
