//! Whole folders: many files over a few control connections.
//!
//! Small files cost round trips, not bytes. So commands of which none depends on another go out together: the rename
//! of the last file, its time, and the two commands of the next one are a single packet. A file that does not go well
//! this way is sent once more in the careful one. Files of the same size and time are not sent again.

mod fetch;
mod send;

pub use fetch::get_tree;
pub use send::put_tree;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::data::{self, Data, address_of};
use super::error::shown;
use super::moving::Fault;
use super::{Client, FtpError, Options};
use crate::io::{Broken, Plan};

/// Larger files are worth the careful way, which can go on after an interruption.
const SMALL: u64 = 4 << 20;

/// So many commands are sent ahead of their replies.
const AHEAD: usize = 64;

/// Folders deeper than this are a loop, or a joke.
const MAX_DEPTH: usize = 128;

/// How often the caller hears of progress.
const TICK: Duration = Duration::from_millis(100);

/// How to copy a tree.
///
/// ```
/// assert_eq!(libgrid::ftp::client::TreeOptions::default().connections, 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeOptions {
    /// How each file is transferred.
    pub transfer: Options,
    /// How many sessions share the work, 1 to 16.
    pub connections: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { transfer: Options::default(), connections: 2 }
    }
}

/// What became of a tree; while it is copied, what became of it so far.
///
/// ```
/// assert_eq!(libgrid::ftp::client::TreeReport::default().files, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Files copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were there already, with the same size and time.
    pub skipped: u64,
    /// Folders.
    pub folders: u64,
    /// What is neither a file nor a folder, and was left out: links, sockets.
    pub left_out: u64,
    /// All files that there are to copy.
    pub of_files: u64,
    /// All their bytes.
    pub of_bytes: u64,
}

/// One file of a tree.
#[derive(Clone, Debug)]
struct Item {
    local: PathBuf,
    remote: Vec<u8>,
    size: u64,
    modify: Option<SystemTime>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sessions share.
struct Work {
    queue: Mutex<VecDeque<Item>>,
    files: AtomicU64,
    bytes: AtomicU64,
    stopped: AtomicBool,
    error: Mutex<Option<FtpError>>,
}

impl Work {
    fn next(&self) -> Option<Item> {
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        lock(&self.queue).pop_front()
    }

    fn landed(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn fail(&self, error: FtpError) {
        lock(&self.error).get_or_insert(error);
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// Lets several sessions work on the queue.
fn share(
    client: &mut Client,
    items: Vec<Item>,
    options: &TreeOptions,
    report: TreeReport,
    progress: &mut dyn FnMut(&TreeReport),
    job: impl Fn(&mut Client, &Work) -> Result<(), FtpError> + Sync,
) -> Result<TreeReport, FtpError> {
    let sessions = options.connections.clamp(1, 16).min(items.len().max(1));
    let mut report = report;
    report.of_files = items.len() as u64;
    report.of_bytes = items.iter().map(|item| item.size).sum();
    let work = Work {
        queue: Mutex::new(items.into()),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    let mut others = Vec::new();
    for _ in 1..sessions {
        match client.another() {
            Ok(other) => others.push(other),
            // A server that takes only so many from one address: fewer, then.
            Err(_) => break,
        }
    }
    thread::scope(|scope| {
        let (work, job) = (&work, &job);
        let mut running = Vec::new();
        for session in others.iter_mut().chain([client]) {
            running.push(scope.spawn(move || {
                if let Err(error) = job(session, work) {
                    work.fail(error);
                }
            }));
        }
        while !running.iter().all(thread::ScopedJoinHandle::is_finished) {
            report.files = work.files.load(Ordering::Relaxed);
            report.bytes = work.bytes.load(Ordering::Relaxed);
            progress(&report);
            let waiting = running.iter().find(|handle| !handle.is_finished());
            if waiting.is_some() {
                thread::park_timeout(TICK.min(Duration::from_millis(20)));
            }
        }
    });
    report.files = work.files.into_inner();
    report.bytes = work.bytes.into_inner();
    progress(&report);
    match work.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(report),
    }
}

/// Connects to where the server listens, after its reply.
fn open(session: &mut Client) -> Result<Data, FtpError> {
    let reply = session.control.last_reply("the address for data")?;
    let reply = session.control.done(b"PASV", reply)?;
    let address = address_of(&session.control, &reply, session.login.believe_pasv)?;
    let socket = data::connect(&session.control, address, &Plan::default())?;
    let data = Data::new(socket, session.data_tls(), &session.login.limits);
    data.map_err(|error| session.control.lost(error))
}

/// The last reply after data, and what it means together with how the data went.
fn finish<T>(session: &mut Client, path: &[u8], moved: Result<T, Broken>) -> Result<T, FtpError> {
    let reply = session.control.last_reply("the reply after the data")?;
    session.control.done(b"the transfer", reply)?;
    let stall = session.login.limits.stall;
    moved
        .map_err(|broken| Fault::of(&broken, &session.server, stall).broken(shown(path), broken.moved, false))
}
