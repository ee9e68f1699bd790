//! The destination's page daemon: what `criu restore --lazy-pages` believes to be `criu lazy-pages`.
//!
//! ```text
//!  criu restore ── pid, userfaultfd ──▶ one thread for each process: faults first, events, then filling
//!       │                                   Waiting ── Filling::wait ──▶ Filling ── nothing left ──▶ closed
//!       └───────── the end ──────────▶ serve returns; whoever holds the processes lets them run
//! ```
//!
//! One thread serves one process, so what the process does to its mappings and what is filled into them are in one order,
//! and a fault waits for one piece at the most. Nothing is filled before the processes run but what was written last, and little of
//! it: it would slow down whoever makes them and lets them go.
//!
//! When a process has all its pages, its userfaultfd is closed: from then on the kernel gives it empty pages by itself.

mod process;
mod socket;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::uffd::Uffd;
use crate::store::PageStore;
use crate::store::pending::Pending;
use process::Server;
use socket::{Connection, Said};

/// The name of the socket that CRIU connects to, in the working directory of the restore (`--work-dir`).
pub const SOCKET: &str = "lazy-pages.socket";

/// Why the restored processes are not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// CRIU did not connect, or is not understood.
    #[error("CRIU does not speak with the page daemon")]
    Socket(#[source] io::Error),
    /// The restore ended before it was done.
    #[error("CRIU ended before the processes were restored: its log says why")]
    Ended,
    /// The source did not tell of its freeze.
    #[error("the source did not say what memory the processes have")]
    NoPages,
    /// There is no thread for a process.
    #[error("the pages of process {pid} cannot be served")]
    Thread {
        /// The process, in its namespace.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the daemon did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Pages that were filled.
    pub pages: u64,
    /// Faults that were answered.
    pub faults: u64,
    /// Of these, with an empty page.
    pub empty: u64,
    /// Forks, moved and discarded mappings.
    pub events: u64,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    store: PageStore,
    /// CRIU is done: every mapping is registered.
    finished: AtomicBool,
    /// The processes run: all is filled.
    running: AtomicBool,
    /// Somebody gave up, after the processes were killed.
    stopped: AtomicBool,
    /// Threads that serve.
    active: Mutex<usize>,
    fewer: Condvar,
    counters: Counters,
    /// What cannot be, and was: the first of it.
    trouble: Mutex<Option<String>>,
    threads: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counters {
    pages: AtomicU64,
    faults: AtomicU64,
    empty: AtomicU64,
    events: AtomicU64,
}

/// Processes that are given their memory. When this is dropped, whatever is still missing is lost: kill them first.
#[derive(Debug)]
pub struct Filling {
    shared: Arc<Shared>,
}

/// Takes CRIU's connection and serves its processes; returns when they are restored.
///
/// # Errors
/// Where the restore fails, or takes longer than `limit`; CRIU kills what it made.
pub fn serve(listener: &UnixListener, store: &PageStore, limit: Duration) -> Result<Filling, ServeError> {
    let filling = Filling { shared: Arc::new(Shared::new(store.clone())) };
    let deadline = Instant::now() + limit;
    let connection = Connection::accept(listener, deadline).map_err(ServeError::Socket)?;
    loop {
        match connection.next(deadline).map_err(ServeError::Socket)? {
            Said::Process(pid, uffd) => {
                if !store.wait_listed(deadline.saturating_duration_since(Instant::now())) {
                    return Err(ServeError::NoPages);
                }
                let pending = store.take(pid);
                Shared::start(&filling.shared, uffd, pending)
                    .map_err(|source| ServeError::Thread { pid, source })?;
            }
            Said::Zombie => (),
            Said::Finished => break,
            Said::Ended => return Err(ServeError::Ended),
        }
    }
    filling.shared.finished.store(true, Ordering::Release);
    store.notify();
    Ok(filling)
}

// === impl Shared ===

impl Shared {
    fn new(store: PageStore) -> Self {
        Self {
            store,
            finished: AtomicBool::new(false),
            running: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            active: Mutex::new(0),
            fewer: Condvar::new(),
            counters: Counters::default(),
            trouble: Mutex::new(None),
            threads: AtomicUsize::new(0),
        }
    }

    /// Serves one more process.
    fn start(shared: &Arc<Self>, uffd: Uffd, pending: Pending) -> io::Result<()> {
        let server = Server::new(shared.clone(), uffd, pending)?;
        *shared.active() += 1;
        let number = shared.threads.fetch_add(1, Ordering::Relaxed);
        let started = std::thread::Builder::new().name(format!("pages-{number}")).spawn({
            let shared = shared.clone();
            move || {
                if let Err(error) = server.run() {
                    let mut trouble = shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    trouble.get_or_insert(error.to_string());
                }
                *shared.active() -= 1;
                shared.fewer.notify_all();
            }
        });
        if let Err(error) = started {
            *shared.active() -= 1;
            return Err(error);
        }
        Ok(())
    }

    fn active(&self) -> std::sync::MutexGuard<'_, usize> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Filling ===

impl Filling {
    /// Fills what nobody asked for, now that the processes run, and waits until each has all its memory, or has ended. Nothing if
    /// that took longer than `limit`.
    ///
    /// # Errors
    /// Where a process could not be served: it has to be killed.
    pub fn wait(&self, limit: Duration) -> Result<Option<Served>, String> {
        let deadline = Instant::now() + limit;
        self.shared.running.store(true, Ordering::Release);
        self.shared.store.notify();
        let mut active = self.shared.active();
        while *active > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            active = self.shared.fewer.wait_timeout(active, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        match trouble {
            Some(why) => Err(why),
            None => Ok(Some(Served {
                pages: read(&counters.pages),
                faults: read(&counters.faults),
                empty: read(&counters.empty),
                events: read(&counters.events),
            })),
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.store.notify();
    }
}
