//! Watches over a source's connections, and hears what the destination says of what arrived.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::{Duration, Instant};

use libgrid::copy::{Landed, Progress};
use libgrid::io::{PathInfo, Plan, Tuner};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sending::changed;
use super::{FIRST, Source, Work};
use crate::session::conduit::Conduit;
use crate::session::message::{FromDestination, Trouble};
use crate::session::walk::Found;
use crate::session::{STALL, locked};

/// The other side ended its half of the connection; nix has no name for it.
const CLOSED: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);

/// How often data connections may fail one after the other before the transfer does.
const FAILURES: u32 = 8;

/// How often the checksum of a range may be wrong.
const REPEATS: u32 = 3;

/// How long to listen for the reason when the destination does not take what it is told.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A connection as the supervisor sees it.
struct Stream {
    number: u32,
    state: Arc<Mutex<State>>,
    acknowledged: u64,
    since: Instant,
}

enum State {
    Connecting,
    Open(TcpStream),
    /// It ended, or could not be made.
    Gone(Option<Trouble>),
}

impl Source {
    pub(super) fn supervise<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        heard: &mpsc::Receiver<Result<FromDestination, Trouble>>,
        first: Conduit,
        tuner: Tuner,
        report: &dyn Fn(Progress),
    ) -> Result<Landed, Trouble> {
        let mut streams = vec![self.start(scope, FIRST, Some(first), tuner.plan())];
        let result = self.oversee(scope, heard, &mut streams, tuner, report);
        if result.is_err() {
            // What they still have to send is of no use any more.
            streams.iter().for_each(Stream::end);
        }
        result
    }

    fn oversee<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        heard: &mpsc::Receiver<Result<FromDestination, Trouble>>,
        streams: &mut Vec<Stream>,
        mut tuner: Tuner,
        report: &dyn Fn(Progress),
    ) -> Result<Landed, Trouble> {
        let start = Instant::now();
        let mut next = FIRST + 1;
        let mut wanted = tuner.plan().streams;
        // Where no more connections are to be had, there are those that stand.
        let mut most = usize::MAX;
        let mut failures = 0;
        let mut reported = start;
        loop {
            if let Some(trouble) = locked(&self.trouble).take() {
                return Err(last_words(heard, trouble));
            }
            let mut refused = None;
            streams.retain(|stream: &Stream| {
                let state = locked(&stream.state);
                if let State::Gone(why) = &*state {
                    self.again_from(stream.number);
                    refused = why.clone().or(refused.take());
                    return false;
                }
                true
            });
            if let Some(trouble) = refused {
                failures += 1;
                most = streams.len().max(1);
                if streams.is_empty() && failures >= FAILURES {
                    return Err(trouble);
                }
            }
            while streams.len() < wanted.min(most) {
                streams.push(self.start(scope, next, None, tuner.plan()));
                next += 1;
            }
            match heard.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(FromDestination::Arrived(works))) => {
                    failures = 0;
                    self.arrived(&works);
                }
                Ok(Ok(FromDestination::Again(work))) => self.again(work)?,
                Ok(Ok(FromDestination::Landed(landed))) => {
                    report(self.progress(streams.len()));
                    return Ok(landed);
                }
                Ok(Ok(FromDestination::Failed(trouble))) => return Err(trouble),
                Ok(Ok(_)) => return Err(Trouble::confused()),
                Ok(Err(trouble)) => return Err(trouble),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return Err(Trouble::confused()),
            }
            let paths: Vec<PathInfo> = streams.iter_mut().filter_map(Stream::watch).collect();
            let queued = paths.iter().filter(|path| path.is_queued()).count() * 2 > paths.len();
            let delivered = self.counts.done_bytes.load(Ordering::Relaxed);
            wanted = tuner.observe(start.elapsed(), delivered, queued);
            if reported.elapsed() >= Duration::from_millis(100) {
                reported = Instant::now();
                report(self.progress(streams.len()));
            }
        }
    }

    /// Starts a connection, which is made by its own thread: a packet of its handshake may get lost.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        number: u32,
        made: Option<Conduit>,
        plan: Plan,
    ) -> Stream {
        let state = Arc::new(Mutex::new(State::Connecting));
        let ours = state.clone();
        scope.spawn(move || {
            let wanted = || !self.ended.load(Ordering::Relaxed);
            let conduit = match made.map_or_else(|| self.door.open(number, &plan, wanted), Ok) {
                Ok(conduit) => conduit,
                Err(trouble) => return *locked(&ours) = State::Gone(Some(trouble)),
            };
            match conduit.handle() {
                Ok(handle) => *locked(&ours) = State::Open(handle),
                Err(error) => return *locked(&ours) = State::Gone(Some(Trouble::broken(error))),
            }
            // A connection that fails is replaced; what went over it is sent again.
            if let Err(trouble) = self.stream(number, conduit) {
                tracing::debug!(number, %trouble, "a data connection ended");
                self.again_from(number);
            }
            *locked(&ours) = State::Gone(None);
        });
        Stream { number, state, acknowledged: 0, since: Instant::now() }
    }

    fn arrived(&self, works: &[u64]) {
        let mut outstanding = locked(&self.outstanding);
        for work in works {
            if let Some(sent) = outstanding.sent.remove(work) {
                let bytes = match &sent.work {
                    Work::Range { length, .. } => *length,
                    Work::Pack(items) => locked(items).iter().map(Found::size).sum(),
                    Work::Sum { .. } => 0,
                };
                self.counts.done_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        self.room.notify_all();
    }

    /// A range whose checksum was wrong.
    fn again(&self, work: u64) -> Result<(), Trouble> {
        let mut outstanding = locked(&self.outstanding);
        let Some(sent) = outstanding.sent.get_mut(&work) else { return Ok(()) };
        sent.repeats += 1;
        if let Work::Range { file, offset, .. } = &sent.work {
            // A file that is written to meanwhile has another checksum each time.
            if file.changed() {
                return Err(changed(&file.shown));
            }
            if sent.repeats > REPEATS {
                let shown = file.shown.display();
                return Err(Trouble::lasting(format!(
                    "{shown} arrives damaged at byte {offset}, {REPEATS} times in a row: look at the network and the memory of both nodes"
                )));
            }
        }
        self.counts.sent_again.fetch_add(1, Ordering::Relaxed);
        self.queue.push_front((work, sent.work.clone()));
        Ok(())
    }

    /// What went over a connection that is gone goes over another.
    fn again_from(&self, number: u32) {
        let mut outstanding = locked(&self.outstanding);
        for (id, sent) in &mut outstanding.sent {
            if sent.over.contains(&Some(number)) {
                sent.over = [None, None];
                self.counts.sent_again.fetch_add(1, Ordering::Relaxed);
                self.queue.push_front((*id, sent.work.clone()));
            }
        }
    }

    fn progress(&self, streams: usize) -> Progress {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Progress {
            bytes: get(&self.counts.done_bytes),
            of_bytes: get(&self.counts.found_bytes),
            of_items: get(&self.counts.found_items),
            whole: self.counts.walked.load(Ordering::Relaxed),
            streams: u32::try_from(streams).unwrap_or(u32::MAX),
            sent_again: get(&self.counts.sent_again),
        }
    }
}

/// What the destination said before it left, if that is why it is not there.
fn last_words(heard: &mpsc::Receiver<Result<FromDestination, Trouble>>, trouble: Trouble) -> Trouble {
    if !trouble.retry {
        return trouble;
    }
    loop {
        match heard.recv_timeout(LAST_WORDS) {
            Ok(Ok(FromDestination::Failed(why))) => return why,
            Ok(Ok(_)) => (),
            Ok(Err(_)) | Err(_) => return trouble,
        }
    }
}

impl Stream {
    /// Ends it at once, whatever it is doing.
    fn end(&self) {
        if let State::Open(handle) = &*locked(&self.state) {
            let _ = handle.shutdown(Shutdown::Both);
        }
    }

    /// Ends a connection that the other side closed, or on which something is under way and nothing arrives.
    fn watch(&mut self) -> Option<PathInfo> {
        let mut state = locked(&self.state);
        let State::Open(handle) = &*state else { return None };
        let mut closed = [PollFd::new(handle.as_fd(), CLOSED)];
        let closed = matches!(poll(&mut closed, PollTimeout::ZERO), Ok(1..));
        let path = PathInfo::of(handle).ok()?;
        if path.acknowledged != self.acknowledged || path.in_flight == 0 {
            self.acknowledged = path.acknowledged;
            self.since = Instant::now();
        }
        if closed || self.since.elapsed() > STALL {
            tracing::debug!(number = self.number, closed, "a data connection is given up");
            let _ = handle.shutdown(Shutdown::Both);
            *state = State::Gone(None);
        }
        Some(path)
    }
}
