//! The functions of `fuzz/` for streams of pages and of files, for a bounded time: random ones, valid ones that were damaged, and
//! those that took more than they should.

#[path = "../../../fuzz/functions/files.rs"]
mod files;
#[path = "../../../fuzz/functions/memory.rs"]
mod memory;
#[path = "../../../fuzz/functions/mutation.rs"]
mod mutation;
#[path = "../../../fuzz/functions/pages.rs"]
mod pages;
#[path = "../../../fuzz/functions/random.rs"]
mod random;

use std::io::{self, Read};

use grid_migrate::PageStore;
use grid_migrate::pages::{Record, VERSION};
use grid_migrate::store::ReceiveError;
use proptest::collection::vec;
use proptest::prelude::any;

use self::random::{after, try_all};

/// How many inputs of each sort.
const CASES: u32 = 500;

/// The most that a test takes for a stream that has no end.
const MOST: usize = 128 << 20;

#[test]
fn random_bytes_are_no_pages() {
    try_all(CASES, after(0, vec(any::<u8>(), 0..300)), pages::run);
    try_all(CASES, after(1, vec(any::<u8>(), 0..300)), pages::run);
}

#[test]
fn a_valid_stream_leaves_the_pages_that_were_sent() {
    try_all(CASES, after(2, vec(any::<u8>(), 0..24)), pages::run);
}

#[test]
fn a_stream_that_ends_too_early_is_refused() {
    try_all(CASES, vec(any::<u8>(), 1..24), pages::truncated);
}

#[test]
fn an_altered_stream_is_refused_or_means_what_it_says() {
    try_all(CASES, after(3, vec(any::<u8>(), 8..32)), pages::run);
}

#[test]
fn records_that_change_places_come_again_or_are_missing_are_refused_or_mean_what_they_say() {
    try_all(CASES, after(4, vec(any::<u8>(), 8..32)), pages::run);
}

#[test]
fn whatever_comes_as_files_stays_in_their_folder() {
    try_all(CASES, after(0, vec(any::<u8>(), 0..300)), files::run);
    try_all(CASES, after(1, vec(any::<u8>(), 0..40)), files::run);
    try_all(CASES, after(2, vec(any::<u8>(), 8..48)), files::run);
}

/// How many records of one kind come: as good as without an end.
const MANY: u32 = 300_000;

/// Records almost without an end.
struct Endless<F> {
    left: u32,
    first: Vec<Record>,
    next: F,
    frame: io::Cursor<Vec<u8>>,
}

impl<F: FnMut() -> Record> Endless<F> {
    fn new(first: Vec<Record>, next: F) -> Self {
        Self { left: MANY, first, next, frame: io::Cursor::default() }
    }
}

impl<F: FnMut() -> Record> Read for Endless<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.frame.read(into)?;
        if read > 0 {
            return Ok(read);
        }
        if self.left == 0 {
            return Ok(0);
        }
        self.left -= 1;
        let record = if self.first.is_empty() { (self.next)() } else { self.first.remove(0) };
        self.frame = io::Cursor::new(libgrid::wire::frame(&record).map_err(io::Error::other)?);
        self.frame.read(into)
    }
}

/// It is refused before it has taken too much.
fn refused<F: FnMut() -> Record>(stream: Endless<F>) {
    let store = PageStore::new(16 << 20);
    let (result, held) = memory::peak(|| store.receive(stream, io::sink()));
    println!("FIGURE {held} bytes of memory, then: {result:?}");
    assert!(matches!(result, Err(ReceiveError::Malformed(_))), "{result:?}");
    assert!(held < MOST, "{held} bytes");
}

fn begin() -> Record {
    Record::Begin { version: VERSION }
}

#[test]
fn empty_pages_everywhere_are_more_than_a_task_can_have() {
    let mut at = 0;
    refused(Endless::new(vec![begin()], || {
        at += 2 << 20;
        Record::Zero { pid: 1, at, pages: 1 }
    }));
}

#[test]
fn empty_pages_after_the_freeze_are_more_than_a_task_can_have() {
    let mut at = 0;
    let dirty = Record::Dirty { pid: 1, ranges: vec![(0, u32::MAX)] };
    refused(Endless::new(vec![begin(), dirty, Record::Listed], || {
        at += 4096;
        Record::Zero { pid: 1, at, pages: 1 }
    }));
}

#[test]
fn what_is_announced_is_counted_beyond_what_there_can_be() {
    // Of 256 processes all that they can address, which is nothing in 64 bits.
    let pages = 1 << 31;
    let mut records = vec![begin()];
    for pid in 0..256 {
        for half in [0, 4096_u64] {
            let ranges = (half..half + 4096).map(|n| (n * u64::from(pages) * 4096, pages)).collect();
            records.push(Record::Dirty { pid, ranges });
        }
    }
    records.extend([Record::Listed, Record::End]);
    records.reverse();
    let stream = Endless::new(Vec::new(), || records.pop().unwrap_or(Record::End));
    let result = PageStore::new(16 << 20).receive(stream, io::sink());
    assert!(matches!(result, Err(ReceiveError::Malformed(_))), "{result:?}");
}
