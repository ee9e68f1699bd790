//! One process at the destination: its faults, its events, its pages.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::Shared;
use crate::kernel::uffd::{Event, Uffd};
use crate::kernel::{PAGE, Range};
use crate::store::pending::{Held, Pending};
use crate::store::{Arrived, Phase};

/// Bytes that a fault brings: its neighbours are wanted next.
const FAULT: u64 = 32 << 10;

/// Bytes that are filled between two looks for faults: some thirty microseconds.
const FILL: u64 = 128 << 10;

/// Bytes that are filled before the processes run.
const AHEAD: u64 = 2 << 20;

/// Milliseconds until the next try, while CRIU has not registered the mappings.
const NOT_YET: u8 = 1;

/// What became of pages.
#[derive(Debug, PartialEq, Eq)]
enum Placed {
    /// So many bytes are settled.
    Done(u64),
    /// They did not come yet.
    Awaited,
    /// Events have to be read first.
    Events,
    /// Nothing is registered there.
    Unregistered,
    /// The process is gone.
    Gone,
}

/// Serves one process.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    uffd: Uffd,
    wake: Arc<EventFd>,
    pending: Pending,
    /// Pages that the process waits for, and that could not be given yet.
    stuck: BTreeSet<u64>,
    /// Where filling goes on.
    cursor: u64,
    ahead: u64,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, uffd: Uffd, pending: Pending) -> io::Result<Self> {
        let wake = shared.store.listener()?;
        Ok(Self { shared, uffd, wake, pending, stuck: BTreeSet::new(), cursor: 0, ahead: AHEAD })
    }

    /// Serves it until it has everything, or has ended.
    ///
    /// # Errors
    /// Where the kernel refuses what it never refuses; the process must not run on.
    pub(super) fn run(mut self) -> io::Result<()> {
        let result = self.serve();
        if result.is_err() || self.shared.store.phase() == Phase::Failed {
            // Closing the userfaultfd would give it empty pages instead of its own.
            self.hold();
        }
        result
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            if self.is_stopped() || self.shared.store.phase() == Phase::Failed {
                return Ok(());
            }
            while let Some(event) = self.uffd.event()? {
                self.handle(event)?;
            }
            let finished = self.shared.finished.load(Ordering::Acquire);
            for at in std::mem::take(&mut self.stuck) {
                self.fault(at)?;
            }
            if finished && self.pending.is_empty() && self.stuck.is_empty() {
                return Ok(());
            }
            let timeout = match self.fill(finished)? {
                Placed::Done(_) | Placed::Events => PollTimeout::ZERO,
                Placed::Unregistered => NOT_YET.into(),
                // The kernel says "not now" until whoever forks or unmaps has gone on, and nothing tells of that.
                Placed::Awaited if !self.stuck.is_empty() => NOT_YET.into(),
                Placed::Awaited => PollTimeout::NONE,
                Placed::Gone => return Ok(()),
            };
            self.wait(timeout)?;
        }
    }

    /// Until somebody says that the process was killed.
    fn hold(&self) {
        while !self.is_stopped() {
            let mut on = [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut on, PollTimeout::NONE);
            let _ = self.wake.read();
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<()> {
        let mut on = [
            PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut on, timeout) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => return Err(error.into()),
        }
        // Nothing to read: it was not this one.
        let _ = self.wake.read();
        Ok(())
    }

    fn handle(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Fault(at) => {
                self.count(|counters| &counters.faults, 1);
                return self.fault(at);
            }
            Event::Gone(range) => self.pending.forget(range),
            Event::Remap { from, to } => self.pending.shift(from, to),
            // What the parent has not got, the child has not got either; what it got was copied by the kernel.
            Event::Fork(child) => Shared::start(&self.shared, child, self.pending.clone())?,
        }
        self.count(|counters| &counters.events, 1);
        Ok(())
    }

    /// Gives a process the page that it waits for.
    fn fault(&mut self, at: u64) -> io::Result<()> {
        if self.pending.at(at).is_none() {
            match self.uffd.zero(at) {
                Ok(()) => self.count(|counters| &counters.empty, 1),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => drop(self.stuck.insert(at)),
                    // There is one by now, or no mapping.
                    Some(libc::EEXIST | libc::ENOENT) => self.uffd.wake(at)?,
                    Some(libc::ESRCH) => (),
                    _ => return Err(error),
                },
            }
            return Ok(());
        }
        match self.place(at, FAULT)? {
            Placed::Done(_) => self.uffd.wake(at)?,
            // Its neighbours may be of another mapping.
            Placed::Unregistered => match self.place(at, PAGE)? {
                Placed::Done(_) | Placed::Unregistered => self.uffd.wake(at)?,
                _ => drop(self.stuck.insert(at)),
            },
            Placed::Gone => (),
            Placed::Awaited | Placed::Events => drop(self.stuck.insert(at)),
        }
        Ok(())
    }

    /// Fills some pages that nobody asked for.
    fn fill(&mut self, finished: bool) -> io::Result<Placed> {
        let running = self.shared.running.load(Ordering::Acquire);
        if let Some(at) = self.pending.first_awaited() {
            if !running && self.ahead == 0 {
                return Ok(Placed::Awaited);
            }
            match self.fill_at(at, finished)? {
                Placed::Awaited => (),
                Placed::Done(bytes) => {
                    self.ahead = self.ahead.saturating_sub(bytes);
                    return Ok(Placed::Done(bytes));
                }
                placed => return Ok(placed),
            }
        }
        let next = if finished && running { self.pending.next_here(self.cursor) } else { None };
        let Some(at) = next else { return Ok(Placed::Awaited) };
        let placed = self.fill_at(at, finished)?;
        if let Placed::Done(bytes) = placed {
            self.cursor = at + bytes;
        }
        Ok(placed)
    }

    /// Fills from an address on, as much as goes.
    fn fill_at(&mut self, at: u64, finished: bool) -> io::Result<Placed> {
        let mut most = FILL;
        loop {
            match self.place(at, most)? {
                // The interval may go over the border of two mappings.
                Placed::Unregistered if finished && most > PAGE => most = (most / 8).max(PAGE),
                // CRIU restored this page itself: it is locked memory, say.
                Placed::Unregistered if finished => {
                    self.pending.forget(Range { start: at, end: at + PAGE });
                    return Ok(Placed::Done(PAGE));
                }
                placed => return Ok(placed),
            }
        }
    }

    /// Puts at most so many bytes that are pending at an address into the process.
    fn place(&mut self, at: u64, most: u64) -> io::Result<Placed> {
        let Some((end, held)) = self.pending.at(at) else { return Ok(Placed::Done(0)) };
        let most = most.min(end - at);
        let (bytes, offset, most) = match held {
            Held::Here(bytes, offset) => (bytes, offset, most),
            Held::Awaited { pid, origin } => match self.shared.store.arrived(pid, origin) {
                None => return Ok(Placed::Awaited),
                Some(Arrived::Bytes(bytes, offset, left)) => (bytes, offset, most.min(left)),
                Some(Arrived::Empty(left)) => {
                    let most = most.min(left);
                    self.pending.forget(Range { start: at, end: at + most });
                    // Whoever waits for it asks again, and is given an empty page.
                    return Ok(Placed::Done(most));
                }
            },
        };
        let settled = match self.uffd.copy(at, &bytes[offset..offset + most as usize]) {
            Ok(copied) => {
                self.count(|counters| &counters.pages, copied / PAGE);
                copied
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => PAGE,
                Some(libc::EAGAIN) => return Ok(Placed::Events),
                Some(libc::ENOENT) => return Ok(Placed::Unregistered),
                Some(libc::ESRCH) => return Ok(Placed::Gone),
                _ => return Err(error),
            },
        };
        self.pending.forget(Range { start: at, end: at + settled });
        Ok(Placed::Done(settled))
    }

    fn count(&self, which: impl Fn(&super::Counters) -> &AtomicU64, by: u64) {
        which(&self.shared.counters).fetch_add(by, Ordering::Relaxed);
    }
}
