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
//! moment. The number of outstanding pieces is bounded, and with it the memory, whatever the size of the tree. What is
//! very little goes without any of that: [`inline`].

mod door;
mod inline;
mod sending;
mod sorter;
mod supervisor;

use std::collections::HashMap;
use std::io::{BufReader, BufWriter, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use libgrid::archive::{Missed, Patterns};
use libgrid::copy::{Landed, Progress};
use libgrid::io::{Fixed, Path, Plan, ReadAhead, Tuner};
use libgrid::wire;

pub(super) use self::door::Door;
use self::sending::Sending;
use super::conduit::{Conduit, Seal};
use super::message::{FromDestination, FromSource, Held, Offer, RelPath, Shape, Trouble, What};
use super::pace::Pace;
use super::queue::Queue;
use super::record::Key;
use super::walk::{self, Found, Unreadable};
use super::{Options, locked};
use crate::root::Root;

/// Pieces of work that are under way at once at most: of a long path, the product of 10 Gbit/s and 100 ms.
const OUTSTANDING: usize = 512;

/// The range of one record, in bytes: on a short path, and on a long one, where many connections share the file and the
/// slowest of them has the last one.
const RANGE: u64 = 4 << 20;
const RANGE_LONG: u64 = 256 << 10;

/// The number of the first data connection.
const FIRST: u32 = 1;

/// What to send, and where to.
pub struct SendOrder {
    /// Where the sources are, and how far they may lead.
    pub root: Root,
    /// Paths below the root, with wildcards; not empty.
    pub sources: Vec<PathBuf>,
    /// Whether folders are sent.
    pub recursive: bool,
    /// Of each source, a folder, only what matches, under its path from there.
    pub matching: Option<Patterns>,
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
    let lenient = order.matching.is_some();
    let missed = LeftOut::new(lenient);
    let tops = tops(order, &missed)?;
    let shape = shape(order, &tops)?;
    let little = inline::all(&tops, lenient)?;
    let seal = match order.options.encrypt && little.is_none() {
        true => Some(Seal::new().map_err(|error| Trouble::lasting(format!("no key can be made: {error}")))?),
        false => None,
    };
    let mut reader = BufReader::new(control.try_clone().map_err(Trouble::broken)?);
    let mut writer = BufWriter::new(control.try_clone().map_err(Trouble::broken)?);
    let offer = Offer {
        shape,
        id: order.id,
        checksums: order.options.checksums,
        inline: little.is_some(),
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
    if let Some((little, below)) = little {
        let landed = inline::send((reader, writer), little, held, report)?;
        return Ok(missed.tell(below, landed));
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
        ahead: OnceLock::new(),
        trouble: Mutex::default(),
        ended: AtomicBool::new(false),
        counts: Counts::default(),
        left_out: LeftOut::new(lenient),
    };
    let landed = source.run(control, reader, (tops, held), first, tuner, report)?;
    Ok(missed.tell(source.left_out, landed))
}

/// What of a job's results cannot be read: the others come all the same. Of a copy, all has to be readable.
struct LeftOut(Option<Mutex<Missed>>);

impl LeftOut {
    fn new(lenient: bool) -> Self {
        Self(lenient.then(Mutex::default))
    }

    /// What was found, if it can be read.
    fn sift(&self, found: Result<Found, Unreadable>) -> Result<Option<Found>, Trouble> {
        let Some(missed) = &self.0 else { return Ok(Some(found?)) };
        match found.and_then(Found::readable) {
            Ok(found) => Ok(Some(found)),
            Err(Unreadable { path, error, .. }) => {
                locked(missed).unreadable(&path, &error);
                Ok(None)
            }
        }
    }

    fn absent<'a>(&self, names: impl Iterator<Item = &'a std::path::Path>) {
        if let Some(missed) = &self.0 {
            let mut missed = locked(missed);
            names.for_each(|name| missed.absent(name));
        }
    }

    /// Tells what was missed among the things that were named, and below them.
    fn tell(self, below: Self, landed: Landed) -> Landed {
        let [Some(missed), Some(below)] = [self, below].map(|left_out| left_out.0) else { return landed };
        let mut missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
        missed.add(below.into_inner().unwrap_or_else(PoisonError::into_inner));
        Landed { missed: missed.sentence(), ..landed }
    }
}

/// What the order names.
fn tops(order: &SendOrder, left_out: &LeftOut) -> Result<Vec<Found>, Trouble> {
    if let Some(patterns) = &order.matching {
        let mut tops = Vec::new();
        for source in &order.sources {
            walk::matching(&order.root, source, patterns, &mut |found| {
                tops.extend(left_out.sift(found)?);
                Ok(())
            })?;
            left_out.absent(patterns.names().filter(|name| walk::is_absent(&order.root, &source.join(name))));
        }
        return Ok(tops);
    }
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
    /// Started with the first large file: a transfer of small ones is over sooner than its threads are started.
    ahead: OnceLock<Option<ReadAhead>>,
    trouble: Mutex<Option<Trouble>>,
    ended: AtomicBool,
    counts: Counts,
    left_out: LeftOut,
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
            scope.spawn(move || {
                if let Err(trouble) = self.walk(scope, tops, held) {
                    self.fail(trouble);
                }
            });
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
}

/// Nothing is fixed.
impl Default for Options {
    fn default() -> Self {
        Self { checksums: true, encrypt: false, limit: None, most_streams: 64, fixed: Fixed::default() }
    }
}
