//! One transfer from its command to its last reply: data on one side, replies on the other, both watched.
//!
//! ```text
//!   caller's thread                              threads for data
//!   replies: 1xx, markers, the last ──┐   ┌── move bytes, count them
//!   progress to the caller            │   │
//!              refusal: closes their sockets │
//!              their failure: waits a little for the server's reason
//! ```

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::control::Control;
use super::error::Party;
use super::{FtpError, Progress};
use crate::ftp::marker::{Perf, Ranges};
use crate::ftp::reply::{Kind, Reply};
use crate::io::{Broken, Side};

/// How often the caller hears of progress.
const TICK: Duration = Duration::from_millis(100);

/// How long the server may take to say why, once the data broke.
const REASON: Duration = Duration::from_secs(2);

/// What the threads of a transfer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    moved: AtomicU64,
    stopped: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    arrived: Mutex<Ranges>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(arrived: Ranges) -> Self {
        Self { arrived: Mutex::new(arrived), ..Self::default() }
    }

    /// Bytes have moved.
    pub(super) fn count(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// These bytes are in the file now.
    pub(super) fn arrived(&self, from: u64, to: u64) {
        lock(&self.arrived).insert(from, to);
    }

    pub(super) fn have(&self) -> Ranges {
        lock(&self.arrived).clone()
    }

    /// The socket is shut down if the transfer is stopped.
    pub(super) fn watch(&self, stream: &TcpStream) {
        if let Ok(stream) = stream.try_clone() {
            lock(&self.sockets).push(stream);
        }
        if self.is_stopped() {
            self.stop();
        }
    }

    /// The data are through: some servers say nothing before this side has closed, too.
    fn release(&self) {
        lock(&self.sockets).clear();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for socket in lock(&self.sockets).iter() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Why data stopped to move: whose fault, and why.
pub(super) struct Fault {
    pub(super) party: Party,
    pub(super) why: String,
    pub(super) passing: bool,
}

impl Fault {
    pub(super) fn of(broken: &Broken, server: &str, stall: Duration) -> Self {
        match broken.side {
            Side::File => Self { party: Party::Here, why: broken.source.to_string(), passing: false },
            Side::Network => {
                let passing = broken.source.kind() != std::io::ErrorKind::InvalidData;
                let why = if broken.stalled() {
                    format!("nothing moved for {stall:?}")
                } else {
                    broken.source.to_string()
                };
                Self { party: Party::Link(server.to_owned()), why, passing }
            }
        }
    }

    /// As an error of the transfer of `path`, of which `at` bytes arrived.
    pub(super) fn broken(self, path: String, at: u64, resumable: bool) -> FtpError {
        let Self { party, why, passing } = self;
        FtpError::Broken { path, at, party, why, resumable: resumable && at > 0, passing }
    }

    fn control(error: &FtpError, server: &str) -> Self {
        let party = match error {
            FtpError::Lost { .. } => Party::Link(server.to_owned()),
            _ => Party::Server(server.to_owned()),
        };
        let why = match error {
            FtpError::Lost { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Self { party, why, passing: error.may_pass() }
    }

    pub(super) fn reply(reply: &Reply, server: &str) -> Self {
        let passing = reply.kind() == Kind::Transient && reply.code != 452;
        Self { party: Party::Server(server.to_owned()), why: reply.to_string(), passing }
    }
}

/// Carries a transfer through whose command was sent. `work` moves the data, on a thread of its own.
pub(super) fn carry<T: Send>(
    control: &mut Control,
    shared: &Shared,
    already: u64,
    progress: &mut dyn FnMut(Progress<'_>),
    mut tick: impl FnMut(),
    work: impl FnOnce(&Shared) -> Result<T, Fault> + Send,
) -> Result<T, Fault> {
    let limits = control.limits().clone();
    let server = control.server().to_owned();
    let begun = Instant::now();
    thread::scope(|scope| {
        let (tell, told) = mpsc::sync_channel(1);
        scope.spawn(move || {
            let result = work(shared);
            shared.release();
            // Nobody listens only if the transfer is given up.
            let _ = tell.send(result);
        });
        let mut data: Option<Result<T, Fault>> = None;
        // When anything showed life last.
        let mut alive = Instant::now();
        let mut seen = 0;
        let mut marked = 0;
        let last = loop {
            match control.poll(TICK) {
                Ok(Some(reply)) if reply.kind() == Kind::Preliminary => {
                    // A marker of more than there can be shows nothing.
                    if marker(&reply, &mut marked, progress) && marked <= already + shared.moved() {
                        alive = Instant::now();
                    }
                }
                Ok(Some(reply)) => break Ok(reply),
                Ok(None) => (),
                Err(error) => break Err(Fault::control(&error, &server)),
            }
            progress(Progress::Moved { bytes: already + shared.moved() });
            tick();
            if shared.moved() != seen {
                seen = shared.moved();
                alive = Instant::now();
            }
            if data.is_none()
                && let Ok(result) = told.try_recv()
            {
                alive = Instant::now();
                data = Some(result);
            }
            let silence = alive.elapsed();
            let (limit, what) = match &data {
                None => (limits.stall + limits.connect, "data"),
                Some(Ok(_)) => (limits.finish, "the reply after all data"),
                Some(Err(_)) => (REASON, ""),
            };
            if silence > limit {
                let error = control.silent(limit, what);
                break Err(Fault::control(&error, &server));
            }
            if limits.whole.is_some_and(|whole| begun.elapsed() > whole) {
                let why =
                    format!("it took longer than the {:?} that it may", limits.whole.unwrap_or_default());
                break Err(Fault { party: Party::Here, why, passing: false });
            }
        };
        let good = matches!(&last, Ok(reply) if reply.kind() == Kind::Done);
        if !good {
            shared.stop();
        }
        if last.is_err() {
            control.close();
        }
        // All waits of the data threads have limits of their own.
        let data = match data {
            Some(data) => data,
            None => loop {
                match told.recv_timeout(TICK) {
                    Ok(data) => break data,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        progress(Progress::Moved { bytes: already + shared.moved() });
                        tick();
                        if limits.whole.is_some_and(|whole| begun.elapsed() > whole) {
                            shared.stop();
                        }
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        let why = "its thread ended".to_owned();
                        break Err(Fault { party: Party::Here, why, passing: false });
                    }
                }
            },
        };
        progress(Progress::Moved { bytes: already + shared.moved() });
        match (data, last) {
            // What broke here is the reason of what the server says.
            (Err(fault), _) if fault.party == Party::Here => Err(fault),
            (Err(fault), _) if !fault.passing && fault.party != Party::Here && good => Err(fault),
            (_, Ok(reply)) if !good => Err(Fault::reply(&reply, &server)),
            // What the server did wrong explains more than that the data then broke.
            (Err(fault), Err(said)) => Err(if said.passing { fault } else { said }),
            (Ok(_), Err(fault)) | (Err(fault), Ok(_)) => Err(fault),
            (Ok(data), Ok(_)) => Ok(data),
        }
    })
}

/// Hands a marker on; whether it shows that bytes moved.
pub(super) fn marker(reply: &Reply, marked: &mut u64, progress: &mut dyn FnMut(Progress<'_>)) -> bool {
    let bytes = if let Some(ranges) = Ranges::from_reply(reply) {
        progress(Progress::Arrived(&ranges));
        ranges.bytes()
    } else if let Some(perf) = Perf::from_reply(reply) {
        progress(Progress::Perf(perf));
        perf.bytes
    } else {
        return false;
    };
    let more = bytes > *marked;
    *marked = bytes.max(*marked);
    more
}
