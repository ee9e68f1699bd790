//! The receiving side of a transfer.
//!
//! ```text
//!   listener ──▶ connection 1..n ──splice──▶ page cache
//!                      │ each range, and its checksum when that comes
//!                      ▼
//!                  verifiers ──▶ journal ──▶ Arrived, or Again
//!                      │ last range of a file: attributes, name
//!                      ▼
//!                  everything arrived ──▶ folders, the last rename ──▶ Landed
//! ```
//!
//! Checksums are computed from what is in the page cache after it was written, beside the connections.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, BufReader, BufWriter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use libgrid::copy::Landed;
use libgrid::io::{Pipe, Plan, Side, Socket};
use libgrid::wire;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use super::conduit::{Conduit, Seal};
use super::journal;
use super::landing::{Growing, Landing};
use super::message::{FromDestination, FromSource, Trouble};
use super::queue::{Next, Queue};
use super::record::{self, GREETING, HEADER, Key, Record, Sequence};
use super::{STALL, locked};
use crate::root::Root;

/// How long a data connection may take to prove that it is of this transfer.
const GREET: Duration = Duration::from_secs(5);

/// Data connections at once at most.
const CONNECTIONS: usize = 256;

/// Ranges and checksums that wait for each other at most: a source has fewer outstanding.
const WAITING: usize = 4096;

/// How often arrivals are told.
const TELL: Duration = Duration::from_millis(5);

/// What may be received, and where to.
pub struct ReceiveOrder {
    /// How far paths may lead.
    pub root: Root,
    /// The path below the root.
    pub target: PathBuf,
    /// The target must be a folder that is there: it was written with a slash at its end.
    pub into: bool,
    /// Everything is on the disk when the transfer ends.
    pub fsync: bool,
    /// Checksums are taken of what the disk gives back.
    pub verify: bool,
    /// What an earlier try left is not used.
    pub fresh: bool,
    /// TCP ports to listen on, the first and the last; any if absent.
    pub ports: Option<(u16, u16)>,
    /// The address to listen on; all if absent.
    pub listen: Option<IpAddr>,
}

/// Receives; the source is at the other end of `control`.
///
/// # Errors
/// Why it ended early, whichever side it was.
pub fn receive(control: &UnixStream, order: &ReceiveOrder) -> Result<Landed, Trouble> {
    let result = Destination::begin(control, order)
        .and_then(|(destination, mut reader, listener)| destination.run(control, &mut reader, &listener));
    if let Err(trouble) = &result {
        // The other side may be gone already.
        let _ = say(&mut &*control, &FromDestination::Failed(trouble.clone()));
    }
    result
}

fn say(to: &mut impl io::Write, message: &FromDestination) -> Result<(), Trouble> {
    wire::write(to, message).map_err(Trouble::broken)?;
    to.flush().map_err(Trouble::broken)
}

fn listen(order: &ReceiveOrder) -> Result<TcpListener, Trouble> {
    let (first, last) = order.ports.unwrap_or((0, 0));
    let mut why = None;
    for port in first..=last {
        let bound = match order.listen {
            Some(address) => TcpListener::bind((address, port)),
            // A machine without IPv6 has the other.
            None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
        };
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => why = Some(error),
        }
    }
    let why = why.map_or_else(|| "there is none".to_owned(), |error| error.to_string());
    Err(Trouble::passing(format!("no port for data from {first} to {last} is free: {why}")))
}

/// A range that is written, and its checksum: whichever came.
#[derive(Default)]
struct Waiting {
    range: Option<Range>,
    sum: Option<[u8; 32]>,
}

#[derive(Clone)]
struct Range {
    file: Arc<Receiving>,
    offset: u64,
    length: u64,
}

/// A large file that is being received.
struct Receiving {
    number: u32,
    growing: Growing,
    state: Mutex<Ranges>,
}

#[derive(Default)]
struct Ranges {
    done: u32,
    expected: Option<u32>,
    finished: bool,
}

/// What has come so far.
#[derive(Default)]
struct State {
    files: HashMap<u32, Arc<Receiving>>,
    waiting: HashMap<u64, Waiting>,
    done: Done,
    to_tell: Vec<u64>,
    /// How many pieces there are, and how many files were not sent.
    end: Option<(u64, u64)>,
    connections: HashSet<u32>,
    handles: Vec<TcpStream>,
    trouble: Option<Trouble>,
    ended: bool,
}

/// Pieces that arrived: all below `low`, and these.
#[derive(Default)]
struct Done {
    low: u64,
    above: BTreeSet<u64>,
}

impl Done {
    /// Adds one; `false` if it was there.
    fn add(&mut self, work: u64) -> bool {
        if work < self.low || !self.above.insert(work) {
            return false;
        }
        while self.above.remove(&self.low) {
            self.low += 1;
        }
        true
    }

    fn has(&self, work: u64) -> bool {
        work < self.low || self.above.contains(&work)
    }
}

struct Destination {
    landing: Landing,
    key: Key,
    seal: Option<Seal>,
    theirs: Option<Vec<u8>>,
    checksums: bool,
    from_disk: bool,
    state: Mutex<State>,
    changed: Condvar,
    verify: Queue<(u64, Range, [u8; 32])>,
    writer: Mutex<BufWriter<UnixStream>>,
    bytes: AtomicU64,
    items: AtomicU64,
    connected: AtomicU64,
    ended: AtomicBool,
}

impl Destination {
    fn begin(
        control: &UnixStream,
        order: &ReceiveOrder,
    ) -> Result<(Self, BufReader<UnixStream>, TcpListener), Trouble> {
        let mut reader = BufReader::new(control.try_clone().map_err(Trouble::broken)?);
        let mut writer = BufWriter::new(control.try_clone().map_err(Trouble::broken)?);
        let offer = match wire::read(&mut reader).map_err(Trouble::broken)? {
            FromSource::Offer(offer) => offer,
            FromSource::Failed(trouble) => return Err(trouble),
            _ => return Err(Trouble::confused()),
        };
        let landing = Landing::prepare(order, &offer)?;
        let listener = listen(order)?;
        let seal = match offer.certificate {
            Some(_) => {
                Some(Seal::new().map_err(|error| Trouble::lasting(format!("no key can be made: {error}")))?)
            }
            None => None,
        };
        let key = Key(rand::random());
        let port = listener.local_addr().map_err(Trouble::broken)?.port();
        let certificate = seal.as_ref().map(Seal::certificate);
        let checksums = offer.checksums && landing.readable();
        let ready = FromDestination::Ready { port, key: key.0, certificate, checksums };
        wire::write(&mut writer, &ready).map_err(Trouble::broken)?;
        if !order.fresh && !order.verify {
            let mut page = Vec::new();
            landing.held(&mut |held| {
                page.push(held);
                if page.len() < 1000 {
                    return Ok(());
                }
                wire::write(&mut writer, &FromDestination::Held(std::mem::take(&mut page)))
                    .map_err(Trouble::broken)
            })?;
            wire::write(&mut writer, &FromDestination::Held(page)).map_err(Trouble::broken)?;
        }
        say(&mut writer, &FromDestination::HeldEnd)?;
        let destination = Self {
            checksums,
            landing,
            key,
            seal,
            theirs: offer.certificate,
            from_disk: order.verify,
            state: Mutex::default(),
            changed: Condvar::new(),
            verify: Queue::new(usize::MAX),
            writer: Mutex::new(writer),
            bytes: AtomicU64::new(0),
            items: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        Ok((destination, reader, listener))
    }

    fn run(
        &self,
        control: &UnixStream,
        reader: &mut BufReader<UnixStream>,
        listener: &TcpListener,
    ) -> Result<Landed, Trouble> {
        thread::scope(|scope| {
            scope.spawn(|| self.accept(scope, listener));
            if self.checksums {
                let cores = thread::available_parallelism().map_or(1, usize::from);
                for _ in 0..cores.min(4) {
                    scope.spawn(|| self.verify());
                }
            }
            scope.spawn(|| {
                if let Err(trouble) = self.listen_to_source(reader) {
                    self.fail(trouble);
                }
            });
            let result = self.wait().and_then(|skipped| {
                self.landing.land()?;
                let landed = Landed {
                    bytes: self.bytes.load(Ordering::Relaxed),
                    items: self.items.load(Ordering::Relaxed),
                    skipped,
                    path: self.landing.path.clone(),
                };
                // Whether the source hears it or not: it is so.
                let _ = say(&mut *locked(&self.writer), &FromDestination::Landed(landed.clone()));
                Ok(landed)
            });
            self.ended.store(true, Ordering::Relaxed);
            self.verify.close();
            let mut state = locked(&self.state);
            state.ended = true;
            for handle in &state.handles {
                let _ = handle.shutdown(Shutdown::Both);
            }
            drop(state);
            self.changed.notify_all();
            // Only our side of it: what was said last must still be heard.
            let _ = control.shutdown(Shutdown::Read);
            result
        })
    }

    /// Tells arrivals until all is there: how many files were not sent.
    fn wait(&self) -> Result<u64, Trouble> {
        loop {
            let mut state = locked(&self.state);
            if let Some(trouble) = state.trouble.take() {
                return Err(trouble);
            }
            let told = std::mem::take(&mut state.to_tell);
            let end = state.end.filter(|(works, _)| state.done.low >= *works && state.files.is_empty());
            if told.is_empty() && end.is_none() {
                drop(self.changed.wait_timeout(state, Duration::from_millis(200)));
                continue;
            }
            drop(state);
            if let Some((_, skipped)) = end {
                return Ok(skipped);
            }
            say(&mut *locked(&self.writer), &FromDestination::Arrived(told))?;
            thread::sleep(TELL);
        }
    }

    fn fail(&self, trouble: Trouble) {
        locked(&self.state).trouble.get_or_insert(trouble);
        self.changed.notify_all();
    }

    fn listen_to_source(&self, reader: &mut BufReader<UnixStream>) -> Result<(), Trouble> {
        loop {
            match wire::read(reader).map_err(Trouble::broken)? {
                FromSource::Open { file, item } => {
                    let growing = self.landing.begin(item)?;
                    let receiving = Arc::new(Receiving { number: file, growing, state: Mutex::default() });
                    locked(&self.state).files.insert(file, receiving);
                    self.changed.notify_all();
                }
                FromSource::Close { file, ranges } => {
                    let receiving =
                        locked(&self.state).files.get(&file).cloned().ok_or_else(Trouble::confused)?;
                    locked(&receiving.state).expected = Some(ranges);
                    self.finish_if_whole(&receiving)?;
                }
                FromSource::End { works, skipped } => {
                    locked(&self.state).end = Some((works, skipped));
                    self.changed.notify_all();
                }
                FromSource::Failed(trouble) => return Err(trouble),
                FromSource::Offer(_) => return Err(Trouble::confused()),
            }
        }
    }

    // === connections ===

    fn accept<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut wait, PollTimeout::from(50u8)), Ok(1..)) {
                continue;
            }
            let Ok((stream, from)) = listener.accept() else { continue };
            // Strangers get no thread beyond this, and no longer than GREET.
            if self.connected.load(Ordering::Relaxed) >= CONNECTIONS as u64 {
                continue;
            }
            self.connected.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || {
                if let Err(error) = self.connection(stream) {
                    tracing::debug!(%from, %error, "a data connection ended");
                }
                self.connected.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    fn connection(&self, stream: TcpStream) -> io::Result<()> {
        let socket = Socket::new(stream, &Plan::default())?;
        socket.set_stall_limit(Some(GREET))?;
        let mut greeting = [0; GREETING];
        socket.read(&mut greeting)?;
        let strange = || io::Error::new(io::ErrorKind::PermissionDenied, "it is not of this transfer");
        let number = record::check_greeting(self.key, &greeting).ok_or_else(strange)?;
        {
            let mut state = locked(&self.state);
            // A connection that somebody recorded and plays again has a number that was there.
            if state.ended || !state.connections.insert(number) {
                return Err(strange());
            }
            state.handles.push(socket.stream().try_clone()?);
        }
        // An idle connection is no stalled one: the source watches them.
        socket.set_stall_limit(None)?;
        let mut conduit = match (&self.seal, &self.theirs) {
            (Some(seal), Some(theirs)) => Conduit::server(socket, seal, theirs.clone())?,
            _ => Conduit::Plain(socket),
        };
        let mut sequence = Sequence::new(self.key, number);
        let mut pipe = Pipe::new()?;
        let mut pack = Vec::new();
        loop {
            let mut header = [0; HEADER];
            conduit.read(&mut header)?;
            match Sequence::parse(&header)? {
                Record::Sum { work } => {
                    let mut sum = [0; 32];
                    conduit.read(&mut sum)?;
                    sequence.check(&header, &sum)?;
                    self.sum_came(work, sum);
                }
                Record::Pack { work, length } => {
                    pack.resize(usize::try_from(length).unwrap_or(0), 0);
                    conduit.read(&mut pack)?;
                    sequence.check(&header, if self.checksums { &pack } else { &[] })?;
                    self.pack_came(work, &pack)?;
                }
                Record::Range { work, file, offset, length } => {
                    sequence.check(&header, &[])?;
                    match self.file(work, file) {
                        Some(file) if offset + length <= file.growing.size => {
                            let range = Range { file, offset, length };
                            self.receive_range(&mut conduit, &mut pipe, work, range)?;
                        }
                        Some(_) => {
                            self.fail(Trouble::confused());
                            return Ok(());
                        }
                        None => discard(&mut conduit, length)?,
                    }
                }
            }
        }
    }

    /// The file of a range, when it is announced; `None` if the range is here already, or the transfer ended.
    fn file(&self, work: u64, number: u32) -> Option<Arc<Receiving>> {
        let deadline = Instant::now() + STALL;
        let mut state = locked(&self.state);
        loop {
            if state.done.has(work) || state.ended || Instant::now() > deadline {
                return None;
            }
            if let Some(file) = state.files.get(&number) {
                return Some(file.clone());
            }
            state = self
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn receive_range(
        &self,
        conduit: &mut Conduit,
        pipe: &mut Pipe,
        work: u64,
        range: Range,
    ) -> io::Result<()> {
        let Range { file, offset, length } = &range;
        match conduit.receive(&file.growing.file, *offset, *length, pipe, |_| ()) {
            Ok(()) => {
                if self.checksums {
                    self.range_came(work, range);
                } else if let Err(trouble) = self.keep(work, &range, None) {
                    self.fail(trouble);
                }
                Ok(())
            }
            Err(broken) if broken.side == Side::File => {
                let path = self.landing.shown(&file.growing.item.path);
                let trouble = Trouble::lasting(format!(
                    "{} cannot be written at byte {}: {}; mend it, then give the same command again: it goes on where it ended",
                    path.display(),
                    offset + broken.moved,
                    broken.source
                ));
                self.fail(trouble);
                Err(broken.source)
            }
            Err(broken) => Err(broken.source),
        }
    }

    // === arrivals ===

    fn pack_came(&self, work: u64, bytes: &[u8]) -> io::Result<()> {
        if locked(&self.state).done.has(work) {
            return Ok(());
        }
        let mut trouble = None;
        record::unpack(bytes, |item, contents| {
            self.items.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(contents.len() as u64, Ordering::Relaxed);
            self.landing.small(item, contents).map_err(|why| {
                trouble = Some(why);
                io::ErrorKind::Other.into()
            })
        })
        .inspect_err(|_| self.fail(trouble.take().unwrap_or_else(Trouble::confused)))?;
        self.arrived(work);
        Ok(())
    }

    fn range_came(&self, work: u64, range: Range) {
        self.pair(work, |waiting| waiting.range = Some(range));
    }

    fn sum_came(&self, work: u64, sum: [u8; 32]) {
        self.pair(work, |waiting| waiting.sum = Some(sum));
    }

    /// Verifies a range when both it and its checksum are there.
    fn pair(&self, work: u64, set: impl FnOnce(&mut Waiting)) {
        let mut state = locked(&self.state);
        if state.done.has(work) {
            return;
        }
        if state.waiting.len() > WAITING {
            drop(state);
            return self.fail(Trouble::confused());
        }
        let waiting = state.waiting.entry(work).or_default();
        set(waiting);
        if let (Some(range), Some(sum)) = (waiting.range.clone(), waiting.sum) {
            state.waiting.remove(&work);
            drop(state);
            self.verify.push((work, range, sum));
        }
    }

    fn verify(&self) {
        while let Next::Item((work, range, sum)) = self.verify.pop(Duration::from_secs(3600)) {
            if let Err(trouble) = self.verify_one(work, &range, sum) {
                self.fail(trouble);
            }
        }
    }

    fn verify_one(&self, work: u64, range: &Range, sum: [u8; 32]) -> Result<(), Trouble> {
        let file = &range.file.growing.file;
        let path = || self.landing.shown(&range.file.growing.item.path);
        let cannot = |error: io::Error| {
            let at = range.offset;
            Trouble::lasting(format!("{} cannot be read back at byte {at}: {error}", path().display()))
        };
        if self.from_disk {
            file.sync_data().map_err(cannot)?;
            let (offset, length) = (range.offset.cast_signed(), range.length.cast_signed());
            posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|error| cannot(error.into()))?;
        }
        if journal::hash(file, range.offset, range.length).map_err(cannot)? == sum {
            return self.keep(work, range, Some(sum));
        }
        tracing::warn!(path = %path().display(), offset = range.offset, "a range arrived damaged");
        say(&mut *locked(&self.writer), &FromDestination::Again(work))
    }

    /// A range is where it belongs.
    fn keep(&self, work: u64, range: &Range, sum: Option<[u8; 32]>) -> Result<(), Trouble> {
        if locked(&self.state).done.has(work) {
            return Ok(());
        }
        range.file.growing.note(range.offset, range.length, sum).map_err(|error| {
            let path = self.landing.shown(&range.file.growing.item.path);
            Trouble::lasting(format!("the journal of {} cannot be written: {error}", path.display()))
        })?;
        if self.arrived(work) {
            self.bytes.fetch_add(range.length, Ordering::Relaxed);
            locked(&range.file.state).done += 1;
            self.finish_if_whole(&range.file)?;
        }
        Ok(())
    }

    /// Counts a piece that arrived; `false` if it had before.
    fn arrived(&self, work: u64) -> bool {
        let mut state = locked(&self.state);
        let new = state.done.add(work);
        if new {
            state.to_tell.push(work);
            self.changed.notify_all();
        }
        new
    }

    fn finish_if_whole(&self, file: &Arc<Receiving>) -> Result<(), Trouble> {
        {
            let mut ranges = locked(&file.state);
            if ranges.finished || ranges.expected != Some(ranges.done) {
                return Ok(());
            }
            ranges.finished = true;
        }
        self.landing.finish(&file.growing)?;
        self.items.fetch_add(1, Ordering::Relaxed);
        locked(&self.state).files.remove(&file.number);
        self.changed.notify_all();
        Ok(())
    }
}

/// Takes bytes off a connection that nobody needs.
fn discard(conduit: &mut Conduit, mut length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while length > 0 {
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        conduit.read(&mut buffer[..most])?;
        length -= most as u64;
    }
    Ok(())
}
