//! The sending side of a transfer.
//!
//! ```text
//!   walker ──▶ queue of work ──▶ connection 1..n ──sendfile──▶ destination
//!                  ▲    ▲               │ each range also to
//!                  │    └── checksum ── hashers
//!   supervisor ────┘ what a dead or stalled connection had, once more
//!      ▲ Arrived, Again, Landed, Failed from the destination
//! ```
//!
//! A piece of work stays outstanding until the destination says that it arrived; so a connection may die at any
//! moment. The number of outstanding pieces is bounded, and with it the memory, whatever the size of the tree.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use libgrid::copy::{Landed, Progress};
use libgrid::io::{Fixed, Path, PathInfo, Plan, ReadAhead, Side, Socket, Tuner};
use libgrid::wire;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::conduit::{Conduit, Seal};
use super::journal::{self, Ranges};
use super::message::{FromDestination, FromSource, Held, Offer, RelPath, Shape, Time, Trouble, What};
use super::pace::Pace;
use super::queue::{Next, Queue};
use super::record::{self, Key, MAX_PACK, Pack, Record, Sequence};
use super::walk::{self, Found, SMALL};
use super::{Options, STALL, locked};
use crate::root::Root;

/// Pieces of work that are under way at once at most.
const OUTSTANDING: usize = 256;

/// Small things in one pack at most.
const PACK_ITEMS: usize = 256;

/// Small files are added to a pack up to this many bytes.
const PACK_BYTES: u64 = 1 << 20;

/// The range of one record, in bytes: on a short path, and on a long one, where many connections share the file.
const RANGE: u64 = 4 << 20;
const RANGE_LONG: u64 = 1 << 20;

/// How far ahead of the sender the disk is read, in ranges.
const AHEAD: u64 = 8;

/// The other side ended its half of the connection; nix has no name for it.
const CLOSED: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);

/// The number of the first data connection.
const FIRST: u32 = 1;

/// How long a data connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// How often data connections may fail one after the other before the transfer does.
const FAILURES: u32 = 8;

/// How often the checksum of a range may be wrong.
const REPEATS: u32 = 3;

/// What to send, and where to.
pub struct SendOrder {
    /// Where the sources are, and how far they may lead.
    pub root: Root,
    /// Paths below the root, with wildcards; not empty.
    pub sources: Vec<PathBuf>,
    /// Whether folders are sent.
    pub recursive: bool,
    /// Addresses of the destination's node, best first.
    pub addresses: Vec<IpAddr>,
    /// The same for each try of the same transfer, and for no other.
    pub id: [u8; 8],
    /// How.
    pub options: Options,
}

/// Sends; the destination is at the other end of `control`. `report` hears of the progress several times a second.
///
/// # Errors
/// Why it ended early, whichever side it was.
pub fn send(control: &UnixStream, order: &SendOrder, report: &dyn Fn(Progress)) -> Result<Landed, Trouble> {
    let result = begin(control, order, report);
    if let Err(trouble) = &result {
        // The other side may be gone already.
        let _ = say(&mut &*control, &FromSource::Failed(trouble.clone()));
    }
    // Only our side of it: what was said last must still be heard.
    let _ = control.shutdown(Shutdown::Read);
    result
}

fn begin(control: &UnixStream, order: &SendOrder, report: &dyn Fn(Progress)) -> Result<Landed, Trouble> {
    let tops = tops(order)?;
    let shape = shape(order, &tops)?;
    let seal = match order.options.encrypt {
        true => Some(Seal::new().map_err(|error| Trouble::lasting(format!("no key can be made: {error}")))?),
        false => None,
    };
    let mut reader = BufReader::new(control.try_clone().map_err(Trouble::broken)?);
    let mut writer = BufWriter::new(control.try_clone().map_err(Trouble::broken)?);
    let offer = Offer {
        shape,
        id: order.id,
        checksums: order.options.checksums,
        certificate: seal.as_ref().map(Seal::certificate),
    };
    say(&mut writer, &FromSource::Offer(offer))?;
    let (port, key, theirs, checksums) = match hear(&mut reader)? {
        FromDestination::Ready { port, key, certificate, checksums } => {
            (port, Key(key), certificate, checksums && order.options.checksums)
        }
        FromDestination::Failed(trouble) => return Err(trouble),
        _ => return Err(Trouble::confused()),
    };
    let mut held = HashMap::new();
    loop {
        match hear(&mut reader)? {
            FromDestination::Held(more) => {
                held.extend(more.into_iter().map(|held| (held.path.clone(), held)))
            }
            FromDestination::HeldEnd => break,
            FromDestination::Failed(trouble) => return Err(trouble),
            _ => return Err(Trouble::confused()),
        }
    }
    let door = Door { addresses: order.addresses.clone(), port, key, seal, theirs };
    let first = door.connect(&Plan::default(), || true)?;
    let mut path = Path { rtt: first.path().map(|path| path.min_rtt).unwrap_or_default(), tolerant: false };
    first.follow(&Plan::for_path(path, &order.options.fixed)).map_err(Trouble::broken)?;
    path.tolerant = first.bears_loss();
    let size = match &tops[..] {
        [top] if top.item.what != What::Folder => top.size(),
        _ => u64::MAX,
    };
    let tuner = Tuner::new(path, size, order.options.most_streams, order.options.fixed.clone());
    let first = door.greet(first, FIRST).map_err(Trouble::broken)?;
    let source = Source {
        checksums,
        range: if tuner.plan().streams > 1 { RANGE_LONG } else { RANGE },
        door,
        queue: Queue::new(OUTSTANDING),
        sums: Queue::new(OUTSTANDING),
        outstanding: Mutex::default(),
        room: Condvar::new(),
        writer: Mutex::new(writer),
        pace: Pace::new(order.options.limit),
        ahead: ReadAhead::new(2)
            .map_err(|error| Trouble::lasting(format!("no thread can be started: {error}")))?,
        trouble: Mutex::default(),
        ended: AtomicBool::new(false),
        counts: Counts::default(),
    };
    source.run(control, reader, (tops, held), first, tuner, report)
}

/// What the order names.
fn tops(order: &SendOrder) -> Result<Vec<Found>, Trouble> {
    let mut paths = Vec::new();
    for source in &order.sources {
        paths.extend(walk::expand(&order.root, source)?);
    }
    let single = paths.len() == 1 && order.sources.len() == 1 && paths[0] == order.sources[0];
    let mut tops = Vec::new();
    for path in paths {
        let name = match single {
            true => PathBuf::new(),
            false => PathBuf::from(path.file_name().unwrap_or_default()),
        };
        let top = walk::find(&order.root, &path, RelPath::new(name).map_err(Trouble::lasting)?)?;
        if top.item.what == What::Folder && !order.recursive {
            let shown = order.root.show(&path);
            return Err(Trouble::lasting(format!("{} is a folder: say -r to copy it", shown.display())));
        }
        tops.push(top);
    }
    Ok(tops)
}

fn shape(order: &SendOrder, tops: &[Found]) -> Result<Shape, Trouble> {
    let name = |path: &std::path::Path| {
        // The root itself has the name of its folder.
        let name = order.root.show(path).file_name().map(PathBuf::from).unwrap_or_default();
        RelPath::new(name).map_err(Trouble::lasting)
    };
    Ok(match tops {
        [top] if top.item.path.as_path().as_os_str().is_empty() => match top.item.what {
            What::Folder => Shape::Tree(name(&order.sources[0])?),
            _ => Shape::File(name(&order.sources[0])?),
        },
        _ => Shape::Several,
    })
}

fn say(to: &mut impl Write, message: &FromSource) -> Result<(), Trouble> {
    wire::write(to, message).map_err(Trouble::broken)?;
    to.flush().map_err(Trouble::broken)
}

fn hear(from: &mut impl std::io::Read) -> Result<FromDestination, Trouble> {
    wire::read(from).map_err(Trouble::broken)
}

/// Where data connections go.
struct Door {
    addresses: Vec<IpAddr>,
    port: u16,
    key: Key,
    seal: Option<Seal>,
    theirs: Option<Vec<u8>>,
}

impl Door {
    fn open(&self, connection: u32, plan: &Plan, wanted: impl Fn() -> bool) -> Result<Conduit, Trouble> {
        self.greet(self.connect(plan, wanted)?, connection).map_err(Trouble::broken)
    }

    fn connect(&self, plan: &Plan, wanted: impl Fn() -> bool) -> Result<Socket, Trouble> {
        let mut tried = Vec::new();
        for address in &self.addresses {
            let address = SocketAddr::new(*address, self.port);
            match Socket::connect_while(address, CONNECT, plan, &wanted) {
                Ok(socket) => return Ok(socket),
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(Trouble::passing(format!(
            "no data connection to the other node can be made ({}): open TCP port {} there, or set data_ports",
            tried.join("; "),
            self.port
        )))
    }

    fn greet(&self, socket: Socket, connection: u32) -> std::io::Result<Conduit> {
        socket.set_stall_limit(Some(STALL))?;
        socket.write(&record::greeting(self.key, connection))?;
        match (&self.seal, &self.theirs) {
            (Some(seal), Some(theirs)) => Conduit::client(socket, seal, theirs.clone()),
            (Some(_), None) => Err(std::io::Error::other("the other node does not encrypt")),
            (None, _) => Ok(Conduit::Plain(socket)),
        }
    }
}

/// A large file that is being sent.
struct Sending {
    number: u32,
    file: Arc<File>,
    shown: PathBuf,
    size: u64,
    modified: Time,
}

#[derive(Clone)]
enum Work {
    Range { file: Arc<Sending>, offset: u64, length: u64 },
    Pack(Arc<Mutex<Vec<Found>>>),
    Sum { work: u64, sum: [u8; 32] },
}

/// A piece of work that has not yet arrived.
struct Sent {
    work: Work,
    /// The connections that it and its checksum went over.
    over: [Option<u32>; 2],
    repeats: u32,
}

#[derive(Default)]
struct Outstanding {
    sent: HashMap<u64, Sent>,
    next: u64,
}

#[derive(Default)]
struct Counts {
    /// Bytes and items that were found, and those that arrived or were there.
    found_bytes: AtomicU64,
    found_items: AtomicU64,
    done_bytes: AtomicU64,
    skipped: AtomicU64,
    walked: AtomicBool,
    sent_again: AtomicU64,
}

struct Source {
    checksums: bool,
    range: u64,
    door: Door,
    queue: Queue<(u64, Work)>,
    sums: Queue<(u64, Arc<Sending>, u64, u64)>,
    outstanding: Mutex<Outstanding>,
    /// Told when something is no longer outstanding.
    room: Condvar,
    writer: Mutex<BufWriter<UnixStream>>,
    pace: Pace,
    ahead: ReadAhead,
    trouble: Mutex<Option<Trouble>>,
    ended: AtomicBool,
    counts: Counts,
}

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
    fn run(
        &self,
        control: &UnixStream,
        mut reader: BufReader<UnixStream>,
        (tops, held): (Vec<Found>, HashMap<RelPath, Held>),
        first: Conduit,
        tuner: Tuner,
        report: &dyn Fn(Progress),
    ) -> Result<Landed, Trouble> {
        thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(trouble) = self.walk(tops, held) {
                    self.fail(trouble);
                }
            });
            if self.checksums {
                let cores = thread::available_parallelism().map_or(1, usize::from);
                for _ in 0..cores.min(4) {
                    scope.spawn(|| self.hash());
                }
            }
            let (told, heard) = mpsc::channel();
            scope.spawn(move || {
                loop {
                    let message = hear(&mut reader);
                    let last = message.is_err();
                    if told.send(message).is_err() || last {
                        return;
                    }
                }
            });
            let result = self.supervise(scope, &heard, first, tuner, report);
            self.ended.store(true, Ordering::Relaxed);
            self.queue.close();
            self.sums.close();
            self.room.notify_all();
            // Wakes the thread that listens to the destination.
            let _ = control.shutdown(Shutdown::Read);
            result
        })
    }

    fn fail(&self, trouble: Trouble) {
        locked(&self.trouble).get_or_insert(trouble);
    }

    // === what to send ===

    fn walk(&self, tops: Vec<Found>, held: HashMap<RelPath, Held>) -> Result<(), Trouble> {
        let mut sorter = Sorter { source: self, held, pack: Vec::new(), bytes: 0, works: 0, files: 0 };
        for top in tops {
            let on = match top.item.what {
                What::Folder => walk::walk(top, &mut |found| sorter.take(found))?,
                _ => sorter.take(top)?,
            };
            if !on {
                return Ok(());
            }
        }
        sorter.flush();
        self.counts.walked.store(true, Ordering::Relaxed);
        let skipped = self.counts.skipped.load(Ordering::Relaxed);
        say(&mut *locked(&self.writer), &FromSource::End { works: sorter.works, skipped })
    }

    /// Gives out a piece of work when there is room; `false` if the transfer ended.
    fn give(&self, work: Work) -> bool {
        let mut outstanding = locked(&self.outstanding);
        while outstanding.sent.len() >= OUTSTANDING && !self.ended.load(Ordering::Relaxed) {
            outstanding = self.room.wait(outstanding).unwrap_or_else(PoisonError::into_inner);
        }
        let number = outstanding.next;
        outstanding.next += 1;
        outstanding.sent.insert(number, Sent { work: work.clone(), over: [None, None], repeats: 0 });
        drop(outstanding);
        self.queue.push((number, work))
    }

    // === sending ===

    fn stream(&self, number: u32, mut conduit: Conduit) -> Result<(), Trouble> {
        let mut sequence = Sequence::new(self.door.key, number);
        loop {
            let (id, work) = match self.queue.pop(Duration::from_secs(3600)) {
                Next::Item(next) => next,
                Next::Nothing => continue,
                Next::Closed => {
                    conduit.finish();
                    return Ok(());
                }
            };
            self.mark(id, &work, number);
            match work {
                Work::Sum { work, sum } => {
                    let header = sequence.header(Record::Sum { work }, &sum);
                    conduit
                        .write(&header, true)
                        .and_then(|()| conduit.write(&sum, false))
                        .map_err(Trouble::broken)?;
                }
                Work::Pack(items) => {
                    let bytes =
                        pack(&mut locked(&items)).inspect_err(|trouble| self.fail(trouble.clone()))?;
                    self.pace.wait(bytes.len() as u64);
                    // The one kind of data that is bound by its header: it is in memory.
                    let record = Record::Pack { work: id, length: bytes.len() as u64 };
                    let body = if self.checksums { &bytes[..] } else { &[] };
                    let header = sequence.header(record, body);
                    conduit
                        .write(&header, true)
                        .and_then(|()| conduit.write(&bytes, false))
                        .map_err(Trouble::broken)?;
                }
                Work::Range { file, offset, length } => {
                    if self.checksums && !self.sums.push((id, file.clone(), offset, length)) {
                        return Ok(());
                    }
                    let ahead = offset + length..file.size.min(offset + length + AHEAD * self.range);
                    if offset.is_multiple_of(AHEAD * self.range) {
                        self.ahead.fill(&file.file, ahead);
                    }
                    let record = Record::Range { work: id, file: file.number, offset, length };
                    conduit.write(&sequence.header(record, &[]), true).map_err(Trouble::broken)?;
                    self.send_range(&mut conduit, &file, offset, length)?;
                }
            }
        }
    }

    fn send_range(
        &self,
        conduit: &mut Conduit,
        file: &Sending,
        offset: u64,
        length: u64,
    ) -> Result<(), Trouble> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let piece = self.pace.piece(end - at);
            self.pace.wait(piece);
            conduit.send(&file.file, at, piece, |_| ()).map_err(|broken| match broken.side {
                Side::Network => Trouble::broken(broken.source),
                Side::File => {
                    let why = format!(
                        "{} cannot be read at byte {}: {}",
                        file.shown.display(),
                        at + broken.moved,
                        broken.source
                    );
                    let trouble = match broken.source.kind() {
                        std::io::ErrorKind::UnexpectedEof => changed(&file.shown),
                        _ => Trouble::lasting(why),
                    };
                    self.fail(trouble.clone());
                    trouble
                }
            })?;
            at += piece;
        }
        Ok(())
    }

    /// Notes over which connection a piece goes.
    fn mark(&self, id: u64, work: &Work, number: u32) {
        let mut outstanding = locked(&self.outstanding);
        let (id, slot) = match work {
            Work::Sum { work, .. } => (*work, 1),
            _ => (id, 0),
        };
        if let Some(sent) = outstanding.sent.get_mut(&id) {
            sent.over[slot] = Some(number);
        }
    }

    fn hash(&self) {
        while let Next::Item((work, file, offset, length)) = self.sums.pop(Duration::from_secs(3600)) {
            match journal::hash(&file.file, offset, length) {
                Ok(sum) => self.queue.push_front((work, Work::Sum { work, sum })),
                Err(error) => self.fail(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => changed(&file.shown),
                    _ => walk::unreadable(&file.shown, &error),
                }),
            }
        }
    }

    // === supervision ===

    fn supervise<'scope>(
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
                return Err(trouble);
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

impl Sending {
    fn changed(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(now) = self.file.metadata() else { return true };
        let modified = Time { seconds: now.mtime(), nanos: u32::try_from(now.mtime_nsec()).unwrap_or(0) };
        now.len() != self.size || modified != self.modified
    }
}

fn changed(path: &std::path::Path) -> Trouble {
    Trouble::passing(format!("{} changed while it was read", path.display()))
}

fn pack(items: &mut [Found]) -> Result<Vec<u8>, Trouble> {
    let mut pack = Pack::new();
    for found in items {
        let file = match found.item.what {
            What::File { .. } => {
                Some(found.open().map_err(|error| walk::unreadable(&found.shown(), &error))?)
            }
            _ => None,
        };
        let size = found.size();
        let added = pack.add(&found.item, |to| file.map_or(Ok(()), |file| read_small(&file, size, to)));
        added.map_err(|_| changed(&found.shown()))?;
    }
    if pack.len() > MAX_PACK {
        return Err(Trouble::lasting(
            "the extended attributes of 256 small files are larger than 6 MiB together",
        ));
    }
    Ok(pack.into_bytes())
}

/// Reads a file of this size; one byte more is asked for, so that a file that grew is found with the same call.
fn read_small(mut file: &File, size: u64, to: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::Read;
    let start = to.len();
    let most = start + usize::try_from(size).map_err(std::io::Error::other)? + 1;
    to.resize(most, 0);
    let mut at = start;
    while at < most {
        let came = file.read(&mut to[at..])?;
        at += came;
        // A regular file gives less than asked for only at its end.
        if came == 0 || at + 1 == most {
            break;
        }
    }
    to.truncate(at);
    Ok(())
}

/// Makes pieces of work of what the walk finds.
struct Sorter<'a> {
    source: &'a Source,
    held: HashMap<RelPath, Held>,
    pack: Vec<Found>,
    bytes: u64,
    works: u64,
    files: u32,
}

impl Sorter<'_> {
    fn take(&mut self, found: Found) -> Result<bool, Trouble> {
        if self.source.ended.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let counts = &self.source.counts;
        let size = found.size();
        counts.found_items.fetch_add(1, Ordering::Relaxed);
        counts.found_bytes.fetch_add(size, Ordering::Relaxed);
        let held = match found.item.what {
            What::File { .. } => self.held.remove(&found.item.path),
            _ => None,
        };
        let held = held.filter(|held| held.size == size && held.modified == found.item.modified);
        match held {
            Some(Held { ranges: None, .. }) => {
                counts.done_bytes.fetch_add(size, Ordering::Relaxed);
                counts.skipped.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            held if size >= SMALL => self.large(found, held.and_then(|held| held.ranges).unwrap_or_default()),
            _ => {
                self.pack.push(found);
                self.bytes += size;
                match self.pack.len() >= PACK_ITEMS || self.bytes >= PACK_BYTES {
                    true => Ok(self.flush()),
                    false => Ok(true),
                }
            }
        }
    }

    fn flush(&mut self) -> bool {
        if self.pack.is_empty() {
            return true;
        }
        self.bytes = 0;
        self.works += 1;
        self.source.give(Work::Pack(Arc::new(Mutex::new(std::mem::take(&mut self.pack)))))
    }

    fn large(&mut self, mut found: Found, held: Vec<(u64, u64)>) -> Result<bool, Trouble> {
        let source = self.source;
        let shown = found.shown();
        let file = found.open().map_err(|error| walk::unreadable(&shown, &error))?;
        let (size, modified) = (found.size(), found.item.modified);
        let number = self.files;
        self.files += 1;
        say(&mut *locked(&source.writer), &FromSource::Open { file: number, item: found.item })?;
        let held: Ranges = held.into_iter().collect();
        let extents = walk::extents(&file, size, found.sparse);
        let file = Arc::new(Sending { number, file: Arc::new(file), shown, size, modified });
        let mut ranges = 0;
        let mut todo = 0;
        for (start, end) in extents {
            for (start, end) in held.missing(start, end) {
                let mut at = start;
                while at < end {
                    let length = source.range.min(end - at);
                    if !source.give(Work::Range { file: file.clone(), offset: at, length }) {
                        return Ok(false);
                    }
                    at += length;
                    ranges += 1;
                    todo += length;
                }
            }
        }
        // Holes, and what is there, are done already.
        source.counts.done_bytes.fetch_add(size - todo, Ordering::Relaxed);
        self.works += u64::from(ranges);
        say(&mut *locked(&source.writer), &FromSource::Close { file: number, ranges })?;
        Ok(true)
    }
}

const _: () = assert!(PACK_BYTES as usize + SMALL as usize + PACK_ITEMS * 1024 <= MAX_PACK);

/// Nothing is fixed.
impl Default for Options {
    fn default() -> Self {
        Self { checksums: true, encrypt: false, limit: None, most_streams: 64, fixed: Fixed::default() }
    }
}
