//! The destination's memory: what came from the source, until it is in the restored processes.
//!
//! ```text
//!             Listed                End
//!  Filling ───────────▶ Listed ───────────▶ Complete
//!     └────────────────────┴── any error ──▶ Failed
//! ```
//!
//! A reader thread runs [`PageStore::receive`]; until `Listed` the pages are its own. Then each process is given what it
//! has to have, and what comes later is found by the address that it had at the freeze.
//!
//! **Failed after the restore.** A process that waits for a page that will never come must not be let go: it would find zeros.
//! Its server keeps the userfaultfd open until it is told that the process was killed. So nobody commits before
//! [`PageStore::wait_complete`].

mod image;
pub(crate) mod pending;
mod receive;

pub use receive::{ReceiveError, Received};

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::kernel::{PAGE, Range};
use pending::{Bytes, Held, Pending};

/// How far the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Filling,
    Listed,
    Complete,
    Failed,
}

/// Pages that came after the freeze, from an address on: their bytes, or that they are empty.
#[derive(Clone, Debug)]
struct Late {
    end: u64,
    bytes: Option<Bytes>,
}

/// What is known of a page that came after the freeze.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// So many bytes, from the offset on.
    Bytes(Bytes, usize, u64),
    /// So many bytes of empty pages.
    Empty(u64),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    processes: HashMap<i32, Pending>,
    late: HashMap<i32, BTreeMap<u64, Late>>,
    listeners: Vec<Arc<EventFd>>,
}

/// What came from the source; clones are the same store.
#[derive(Clone, Debug)]
pub struct PageStore {
    shared: Arc<(Mutex<State>, Condvar)>,
    limit: u64,
}

impl PageStore {
    /// An empty store that takes at most so many bytes of pages.
    pub fn new(limit: u64) -> Self {
        let state = State {
            phase: Phase::Filling,
            processes: HashMap::new(),
            late: HashMap::new(),
            listeners: Vec::new(),
        };
        Self { shared: Arc::new((Mutex::new(state), Condvar::new())), limit }
    }

    /// Waits until everything is here: from then on, the source is no longer needed. False if it failed, or took too long.
    pub fn wait_complete(&self, limit: Duration) -> bool {
        self.wait_for(Phase::Complete, limit) == Phase::Complete
    }

    /// Waits until the freeze was told of. False if the stream failed, or it took too long.
    pub fn wait_listed(&self, limit: Duration) -> bool {
        matches!(self.wait_for(Phase::Listed, limit), Phase::Listed | Phase::Complete)
    }

    /// The memory of a process that is being restored. One that the source said nothing of has none.
    pub(crate) fn take(&self, pid: i32) -> Pending {
        self.lock().processes.remove(&pid).unwrap_or_default()
    }

    /// What came of the page that process `pid` had at `origin`.
    pub(crate) fn arrived(&self, pid: i32, origin: u64) -> Option<Arrived> {
        let state = self.lock();
        let (start, late) = state.late.get(&pid)?.range(..=origin).next_back()?;
        let left = late.end.checked_sub(origin).filter(|left| *left > 0)?;
        Some(match &late.bytes {
            Some(bytes) => Arrived::Bytes(bytes.clone(), (origin - start) as usize, left),
            None => Arrived::Empty(left),
        })
    }

    /// The bytes of the page that a process is to have at this address; none if there is no page, or an empty one.
    pub fn page(&self, pid: i32, at: u64) -> Option<Vec<u8>> {
        let (_, held) = self.lock().processes.get(&pid)?.at(at)?;
        let (bytes, offset) = match held {
            Held::Here(bytes, offset) => (bytes, offset),
            Held::Awaited { pid, origin } => match self.arrived(pid, origin)? {
                Arrived::Bytes(bytes, offset, _) => (bytes, offset),
                Arrived::Empty(_) => return None,
            },
        };
        bytes.get(offset..offset + PAGE as usize).map(<[u8]>::to_vec)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Something that becomes readable whenever pages came, or the phase changed.
    pub(crate) fn listener(&self) -> io::Result<Arc<EventFd>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let listener = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        self.lock().listeners.push(listener.clone());
        Ok(listener)
    }

    /// Wakes all who listen.
    pub(crate) fn notify(&self) {
        let mut state = self.lock();
        state.listeners.retain(|listener| Arc::strong_count(listener) > 1);
        for listener in &state.listeners {
            // Full: it is readable.
            let _ = listener.write(1);
        }
        self.shared.1.notify_all();
    }

    fn advance(&self, phase: Phase) {
        self.lock().phase = phase;
        self.notify();
    }

    fn add_late(&self, pid: i32, range: Range, bytes: Option<Bytes>) -> bool {
        let mut state = self.lock();
        let late = state.late.entry(pid).or_default();
        let before = late.range(..range.end).next_back();
        if before.is_some_and(|(_, late)| late.end > range.start) {
            return false;
        }
        late.insert(range.start, Late { end: range.end, bytes });
        drop(state);
        self.notify();
        true
    }

    fn wait_for(&self, phase: Phase, limit: Duration) -> Phase {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.phase >= phase || left.is_zero() {
                return state.phase;
            }
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
