//! The source: memory copied while its processes run.
//!
//! ```text
//!              attach                round (again and again)                 list, send_rest
//!  running ───────────▶ tracked ──┬───────────────────────▶ copied, nearly ────────────────▶ copied, frozen by CRIU
//!     ▲                    │      └──── while it shrinks ◀──────┘  │                              │
//!     └──── abandon ───────┴───────────────────────────────────────┴──────────────────────────────┘
//! ```
//!
//! Every thread of a process is stopped for some hundred microseconds, a userfaultfd is made in it and taken out of it, and
//! its private anonymous mappings are registered for asynchronous write protection. From then on the kernel notes
//! writes by itself, and a round asks for what was written, protects it again, and copies it.
//!
//! **What is not tracked** (mappings made since, children, a program executed anew) counts as written, because the
//! kernel is asked at every scan whether it tracks the mapping, and says EPERM: it is sent at the freeze. Where that
//! would be much, the next round registers it first. Nothing is concluded from the absence of a sign.
//!
//! **Why the existing pages are recomputed at the freeze.** Pages that a program gave back (`MADV_DONTNEED`, `munmap`) were sent
//! before. Of what was sent, only what exists at the freeze is taken.
//!
//! **Abandoning** closes the userfaultfds: the kernel unregisters their mappings, and nothing of us is left in the processes.
//!
//! Needs Linux 6.7 and x86-64. Memory that a device writes to (io_uring's registered buffers, RDMA) is not seen; CRIU
//! dumps no process that has such. A program that uses userfaultfd itself cannot be tracked: its mappings are taken,
//! stay untracked and are sent at the freeze.

mod copy;
mod process;
mod stop;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::hide::Hidden;
use crate::kernel::flags::Flags;
use crate::kernel::{PAGE, Range, pagemap, tree};
use crate::pages::{PageSink, SinkError};
use process::Process;

/// Why memory is not moved while its processes run. They run on as before when the tracker is dropped.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The kernel cannot do it.
    #[error("the kernel has no PAGEMAP_SCAN: live migration needs Linux 6.7 or newer")]
    Unsupported,
    /// The tree cannot be looked at.
    #[error("the process tree cannot be looked at")]
    Tree(#[source] io::Error),
    /// A process cannot be prepared.
    #[error("the writes of process {pid} cannot be tracked")]
    Adopt {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process cannot be looked at.
    #[error("the memory of process {pid} cannot be scanned")]
    Scan {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A page that exists cannot be read.
    #[error("the page at {at:#x} of process {pid} cannot be read")]
    Unreadable {
        /// The process.
        pid: i32,
        /// The address.
        at: u64,
    },
    /// The stream broke.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Bytes of memory that were sent, empty pages among them.
    pub bytes: u64,
    /// The time that it took.
    pub took: Duration,
    /// Processes that are tracked.
    pub processes: usize,
}

/// What the freeze left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FinalStats {
    /// Bytes that exist.
    pub exists: u64,
    /// Bytes of them that were sent after the freeze.
    pub bytes: u64,
    /// For the scan, and to tell its result.
    pub scan: Duration,
    /// For the copy.
    pub copy: Duration,
}

/// What is still to come of a tree that stands still.
#[derive(Debug)]
pub struct Listed {
    /// Of each process, in their order.
    dirty: Vec<Vec<Range>>,
    stats: FinalStats,
}

/// Keeps track of what a process tree writes.
#[derive(Debug)]
pub struct Tracker {
    proc: PathBuf,
    roots: Vec<i32>,
    processes: Vec<Process>,
    /// Seen in the last round and not tracked: those that stay are adopted in the next.
    newborn: HashSet<i32>,
}

/// Whether another round is worth it: the bytes of the last one were not few, and fewer than those of the one before.
///
/// A round's bytes are what was written during the round before, so they shrink as long as the link is faster than the
/// program writes.
pub fn goes_on(before: u64, last: u64, small: u64) -> bool {
    last > small && last < before - before / 8
}

impl Tracker {
    /// Starts to track these processes and all below them. The numbers of the images are those of the innermost pid namespace.
    ///
    /// # Errors
    /// Where one of them cannot be tracked; then none is.
    pub fn attach(roots: &[i32]) -> Result<Self, TrackError> {
        if !pagemap::is_supported() {
            return Err(TrackError::Unsupported);
        }
        let mut tracker = Self {
            proc: Path::new("/proc").to_owned(),
            roots: roots.to_vec(),
            processes: Vec::new(),
            newborn: HashSet::new(),
        };
        for pid in tree::below(&tracker.proc, roots).map_err(TrackError::Tree)? {
            tracker.adopt(pid)?;
        }
        Ok(tracker)
    }

    fn adopt(&mut self, pid: i32) -> Result<(), TrackError> {
        let proc = &self.proc;
        let adopted = tree::inner_pid(proc, pid)
            .map_err(|source| TrackError::Adopt { pid, source })
            .and_then(|image_pid| {
                let mut process = Process::untracked(pid, image_pid);
                process.adopt(proc).map(|()| process)
            });
        match adopted {
            Ok(process) => self.processes.push(process),
            // It has ended, or is sent as a whole at the freeze.
            Err(_) if !self.roots.contains(&pid) => (),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends what is new to the destination. The first round sends everything.
    ///
    /// # Errors
    /// Where memory cannot be read or sent; then the tracker is to be dropped.
    pub fn round(&mut self, sink: &mut PageSink<'_>) -> Result<RoundStats, TrackError> {
        let start = Instant::now();
        let pids = tree::below(&self.proc, &self.roots).map_err(TrackError::Tree)?;
        self.processes.retain(|process| pids.contains(&process.pid));
        let new: HashSet<i32> = pids
            .into_iter()
            .filter(|pid| !self.processes.iter().any(|process| process.pid == *pid))
            .collect();
        // Most children live shortly.
        for pid in std::mem::replace(&mut self.newborn, new.clone()).intersection(&new) {
            self.adopt(*pid)?;
        }
        let mut pages = 0;
        let mut kept = Vec::with_capacity(self.processes.len());
        for mut process in self.processes.drain(..) {
            match process.round(&self.proc, sink) {
                Ok(sent) => {
                    pages += sent;
                    kept.push(process);
                }
                Err(TrackError::Sink(error)) => return Err(error.into()),
                // As above.
                Err(_) if !self.roots.contains(&process.pid) => (),
                Err(error) => return Err(error),
            }
        }
        self.processes = kept;
        sink.round()?;
        Ok(RoundStats { bytes: pages * PAGE, took: start.elapsed(), processes: self.processes.len() })
    }

    /// Tells what exists, and what of it is still to come, of a tree of which every thread is stopped. Only who stops them
    /// knows when that is: CRIU lets single threads run for its own code meanwhile, and leaves them in another stop at its
    /// end, so that their states in `/proc` are no sign of it.
    ///
    /// # Errors
    /// Where memory cannot be looked at, or the destination is gone.
    pub fn list(&mut self, sink: &mut PageSink<'_>) -> Result<Listed, TrackError> {
        let still = Instant::now();
        let pids = tree::below(&self.proc, &self.roots).map_err(TrackError::Tree)?;
        self.processes.retain(|process| pids.contains(&process.pid));
        for pid in pids {
            if !self.processes.iter().any(|process| process.pid == pid) {
                let image_pid = tree::inner_pid(&self.proc, pid).map_err(TrackError::Tree)?;
                self.processes.push(Process::untracked(pid, image_pid));
            }
        }
        let mut stats = FinalStats::default();
        let mut dirty = Vec::with_capacity(self.processes.len());
        for process in &self.processes {
            let found = process.at_freeze(&self.proc)?;
            stats.exists += found.exists.iter().map(|range| range.bytes()).sum::<u64>();
            sink.exists(process.image_pid, &found.exists)?;
            sink.dirty(process.image_pid, &found.dirty)?;
            dirty.push(found.dirty);
        }
        sink.listed()?;
        stats.scan = still.elapsed();
        Ok(Listed { dirty, stats })
    }

    /// Sends what is still to come; the tree stands still as before. The end of the stream is for who knows that all is well.
    ///
    /// # Errors
    /// Where memory cannot be read or sent.
    pub fn send_rest(&self, listed: Listed, sink: &mut PageSink<'_>) -> Result<FinalStats, TrackError> {
        let Listed { dirty, mut stats } = listed;
        let begun = Instant::now();
        for (process, dirty) in self.processes.iter().zip(&dirty) {
            stats.bytes += process.send(&self.proc, dirty, sink)? * PAGE;
        }
        sink.flush()?;
        stats.copy = begun.elapsed();
        Ok(stats)
    }

    /// Prepares a dump from which the tracked processes' pages are hidden, in an empty folder that CRIU can reach. A round
    /// should follow: it takes some milliseconds for each GiB. `mappings`: where an eBPF iterator over the mappings of a process
    /// is pinned, if there is one.
    ///
    /// # Errors
    /// Where a process cannot be looked at, or the folder cannot be written.
    pub fn hide(&self, folder: &Path, mappings: Option<&Path>) -> io::Result<Hidden> {
        let numbers = self.processes.iter().map(|process| (process.pid, process.image_pid));
        // Without it, or where the kernel refuses it, `smaps` says as much, and takes longer for it.
        let flags = mappings.and_then(|pinned| Flags::open(pinned).ok());
        Hidden::prepare(&self.proc, numbers, folder, flags)
    }

    /// Lets go of the processes; as dropping it does.
    pub fn abandon(self) {
        drop(self);
    }
}
