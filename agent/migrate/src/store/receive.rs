//! Reading the stream.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use libgrid::wire::{self, WireError};

use super::image::{Image, SLAB};
use super::{PageStore, Phase};
use crate::kernel::{PAGE, Range, TOP};
use crate::pages::{MOST_PAGES, MOST_RANGES, Record, VERSION};

/// Bytes that are read ahead, for small records.
const BUFFER: usize = 256 << 10;

/// Ranges that a stream may name in all: 16 bytes each.
const MOST_NAMED: usize = 16 << 20;

/// Processes of a stream.
const MOST_PROCESSES: usize = 65_536;

/// Pieces of memory of which something is known, beyond those of which each page of the limit may have two: 2 MiB before the
/// freeze, a record after it. Empty pages take no room, but what is known of them does, and each such piece costs the task at
/// least a page: of memory, or of the kernel's tables for it.
const SPARE_PIECES: u64 = 65_536;

/// Why the memory of the source is not here.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A record is none.
    #[error("the source's pages cannot be read")]
    Wire(#[from] WireError),
    /// Bytes do not come.
    #[error("the source's pages do not come")]
    Io(#[from] io::Error),
    /// Its files cannot be passed on.
    #[error("the files of the task are not taken")]
    Files(#[source] io::Error),
    /// The other side speaks another version.
    #[error("the source sends pages in version {0}, this node takes {VERSION}: update the older one")]
    Version(u16),
    /// A record that makes no sense.
    #[error("the source sent {0}")]
    Malformed(&'static str),
    /// More than was agreed.
    #[error("the source sends more than {0} bytes of memory")]
    TooMuch(u64),
    /// A page that exists was never sent.
    #[error("the page at {at:#x} of process {pid} exists, and the source never sent it")]
    Missing {
        /// The process.
        pid: i32,
        /// The address.
        at: u64,
    },
}

/// What came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of pages that are not empty, again and again if they changed.
    pub bytes: u64,
    /// Of these, after the freeze.
    pub late: u64,
    /// Rounds that were completed.
    pub rounds: u32,
}

/// A stream that is being read.
struct Receiver<'s> {
    store: &'s PageStore,
    images: HashMap<i32, Image>,
    /// After `Listed`: what is still to come.
    dirty: HashMap<i32, Vec<Range>>,
    listed: bool,
    named: usize,
    /// Bytes of dirty pages that did not come yet; of many processes more than 64 bits can count.
    owed: u128,
    kept: u64,
    pieces: u64,
    received: Received,
}

impl PageStore {
    /// Reads the source's stream to its end. What is in it of files goes to `files`.
    ///
    /// # Errors
    /// [`ReceiveError`]; the store is of no further use then.
    pub fn receive(&self, from: impl Read, mut files: impl Write) -> Result<Received, ReceiveError> {
        let mut receiver = Receiver {
            store: self,
            images: HashMap::new(),
            dirty: HashMap::new(),
            listed: false,
            named: 0,
            owed: 0,
            kept: 0,
            pieces: 0,
            received: Received::default(),
        };
        let result = receiver.run(&mut BufReader::with_capacity(BUFFER, from), &mut files);
        self.advance(if result.is_ok() { Phase::Complete } else { Phase::Failed });
        result.map(|()| receiver.received)
    }
}

impl Receiver<'_> {
    fn run(&mut self, from: &mut impl Read, files: &mut impl Write) -> Result<(), ReceiveError> {
        match wire::read(from)? {
            Record::Begin { version: VERSION } => (),
            Record::Begin { version } => return Err(ReceiveError::Version(version)),
            _ => return Err(ReceiveError::Malformed("no beginning")),
        }
        loop {
            match wire::read(from)? {
                Record::Pages { pid, at, pages } => {
                    let range = range(at, pages, MOST_PAGES)?;
                    if self.listed {
                        self.late_pages(pid, range, from)?;
                    } else {
                        self.pages(pid, range, from)?;
                    }
                    self.received.bytes += range.bytes();
                }
                Record::Zero { pid, at, pages } => {
                    let range = range(at, pages, MOST_PAGES)?;
                    if self.listed {
                        self.late(pid, range, None)?;
                    } else {
                        for piece in in_slabs(range) {
                            let gone = self.image_with(pid, piece)?.empty(piece);
                            self.kept -= gone * PAGE;
                        }
                    }
                }
                Record::Round if !self.listed => self.received.rounds += 1,
                Record::Exists { pid, ranges } if !self.listed => {
                    let ranges = self.ranges(ranges)?;
                    append(&mut self.image(pid)?.exists, ranges)?;
                }
                Record::Dirty { pid, ranges } if !self.listed => {
                    let ranges = self.ranges(ranges)?;
                    append(&mut self.image(pid)?.dirty, ranges)?;
                }
                Record::Files(piece) => files.write_all(&piece).map_err(ReceiveError::Files)?,
                Record::Listed if !self.listed => self.list()?,
                Record::End if self.listed && self.owed == 0 => return Ok(()),
                Record::End => return Err(ReceiveError::Malformed("its end too early")),
                _ => return Err(ReceiveError::Malformed("a record out of order")),
            }
        }
    }

    fn pages(&mut self, pid: i32, range: Range, from: &mut impl Read) -> Result<(), ReceiveError> {
        for piece in in_slabs(range) {
            let (place, new) = self.image_with(pid, piece)?.place(piece);
            from.read_exact(place)?;
            self.keep(new * PAGE)?;
        }
        Ok(())
    }

    fn late_pages(&mut self, pid: i32, range: Range, from: &mut impl Read) -> Result<(), ReceiveError> {
        self.keep(range.bytes())?;
        let mut bytes = vec![0; range.bytes() as usize];
        from.read_exact(&mut bytes)?;
        self.received.late += range.bytes();
        self.late(pid, range, Some(Arc::new(bytes)))
    }

    fn late(&mut self, pid: i32, range: Range, bytes: Option<Arc<Vec<u8>>>) -> Result<(), ReceiveError> {
        let dirty = self.dirty.get(&pid).map(Vec::as_slice).unwrap_or_default();
        let place = dirty.partition_point(|dirty| dirty.end <= range.start);
        let expected =
            dirty.get(place).is_some_and(|dirty| dirty.start <= range.start && range.end <= dirty.end);
        if !expected || !self.store.add_late(pid, range, bytes) {
            return Err(ReceiveError::Malformed("pages that it did not announce"));
        }
        self.owed -= u128::from(range.bytes());
        self.piece()
    }

    /// The freeze was told of: what does not exist any more is dropped, the rest is handed on.
    fn list(&mut self) -> Result<(), ReceiveError> {
        self.listed = true;
        let mut processes = HashMap::new();
        for (pid, mut image) in self.images.drain() {
            image.dirty = joined(std::mem::take(&mut image.dirty));
            self.owed += image.dirty.iter().map(|range| u128::from(range.bytes())).sum::<u128>();
            self.dirty.insert(pid, image.dirty.clone());
            let pending = image.into_pending(pid).map_err(|at| ReceiveError::Missing { pid, at })?;
            processes.insert(pid, pending);
        }
        self.store.lock().processes = processes;
        self.store.advance(Phase::Listed);
        Ok(())
    }

    fn image(&mut self, pid: i32) -> Result<&mut Image, ReceiveError> {
        if self.images.len() >= MOST_PROCESSES && !self.images.contains_key(&pid) {
            return Err(ReceiveError::Malformed("too many processes"));
        }
        Ok(self.images.entry(pid).or_default())
    }

    /// The same, for it to take a range within one slab.
    fn image_with(&mut self, pid: i32, piece: Range) -> Result<&mut Image, ReceiveError> {
        if !self.image(pid)?.has_slab(piece) {
            self.piece()?;
        }
        self.image(pid)
    }

    fn piece(&mut self) -> Result<(), ReceiveError> {
        self.pieces += 1;
        match self.pieces > SPARE_PIECES + 2 * (self.store.limit / PAGE) {
            true => Err(ReceiveError::Malformed("more pieces of memory than such a task can have")),
            false => Ok(()),
        }
    }

    fn keep(&mut self, bytes: u64) -> Result<(), ReceiveError> {
        self.kept += bytes;
        let limit = self.store.limit;
        if self.kept > limit { Err(ReceiveError::TooMuch(limit)) } else { Ok(()) }
    }

    fn ranges(&mut self, ranges: Vec<(u64, u32)>) -> Result<Vec<Range>, ReceiveError> {
        self.named += ranges.len();
        if ranges.len() > MOST_RANGES || self.named > MOST_NAMED {
            return Err(ReceiveError::Malformed("too many ranges"));
        }
        ranges.into_iter().map(|(at, pages)| range(at, pages, u32::MAX)).collect()
    }
}

fn range(at: u64, pages: u32, most: u32) -> Result<Range, ReceiveError> {
    let end = at.checked_add(u64::from(pages) * PAGE).filter(|end| *end <= TOP);
    match end {
        Some(end) if at.is_multiple_of(PAGE) && (1..=most).contains(&pages) => Ok(Range { start: at, end }),
        _ => Err(ReceiveError::Malformed("pages at no address")),
    }
}

/// Adds ranges that come after those that are there.
fn append(to: &mut Vec<Range>, ranges: Vec<Range>) -> Result<(), ReceiveError> {
    for range in ranges {
        if to.last().is_some_and(|last| range.start < last.end) {
            return Err(ReceiveError::Malformed("ranges out of order"));
        }
        to.push(range);
    }
    Ok(())
}

/// Ranges that touch, as one: a record may go over the border of two mappings.
fn joined(ranges: Vec<Range>) -> Vec<Range> {
    crate::kernel::merged(ranges)
}

/// A range, cut where slabs end.
fn in_slabs(range: Range) -> impl Iterator<Item = Range> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / SLAB + 1) * SLAB);
        (start < at).then_some(Range { start, end: at })
    })
}
