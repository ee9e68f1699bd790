//! Any bytes, read as the memory of a task that moves: nothing panics, no more memory is held than the limit and what was
//! read account for, and a stream that is accepted leaves the pages that it names, no others.

use std::collections::{BTreeMap, BTreeSet};

use grid_migrate::PageStore;
use grid_migrate::pages::{Record, VERSION};
use libgrid::wire::{self, MAX_FRAME};

use crate::memory::peak;
use crate::mutation::mutate;

const PAGE: usize = 4096;

/// Bytes of pages that the store may hold: a valid stream has fewer.
const LIMIT: u64 = 64 * PAGE as u64;

/// What a store sets aside for each 2 MiB of addresses with a page in it; it is written only where pages are.
const SLAB: usize = 2 << 20;

/// What decoding and reading ahead may hold, whatever comes.
const AT_ONCE: usize = MAX_FRAME + (2 << 20);

/// What is known of empty pages, for each byte that was read: a record of 8 bytes may name 4 MiB of them.
const FOR_EACH_BYTE: usize = 400;

/// The pages of valid streams: those around the border of two slabs.
const FIRST: u64 = (512 - 8) * PAGE as u64;

/// One record, and what follows it.
type Piece = Vec<u8>;

/// The first byte says what to do with the others.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    let (script, edits) = rest.split_at(rest.len().saturating_sub(8));
    match how % 5 {
        0 => drop(stream(rest)),
        1 => drop(stream(&[piece(&Record::Begin { version: VERSION }, &[]), rest.to_vec()].concat())),
        2 => assert!(stream(&valid(rest).concat()), "a valid stream is refused"),
        3 => drop(stream(&mutate(valid(script).concat(), edits))),
        _ => drop(stream(&shuffled(valid(script), edits).concat())),
    }
}

/// Cuts a valid stream off before its end: whatever is missing, it is not accepted.
pub(crate) fn truncated(data: &[u8]) {
    let whole = valid(data).concat();
    let at = data.iter().fold(0, |at, byte| (at * 31 + usize::from(*byte)) % whole.len());
    assert!(!stream(&whole[..at]), "{at} bytes of {} are accepted", whole.len());
}

fn piece(record: &Record, bytes: &[u8]) -> Piece {
    [&wire::frame(record).expect("records are small"), bytes].concat()
}

/// A stream as a source sends it, from a script of two bytes for each record before the freeze.
fn valid(script: &[u8]) -> Vec<Piece> {
    let mut pieces = vec![piece(&Record::Begin { version: VERSION }, &[])];
    let mut known = BTreeSet::new();
    for step in script.as_chunks::<2>().0.iter().take(10) {
        let (pid, page, pages) =
            (i32::from(step[0] & 1), u64::from(step[0] >> 4), u32::from(step[0] >> 1 & 1) + 1);
        let at = FIRST + page * PAGE as u64;
        match step[1] % 8 {
            0 => pieces.push(piece(&Record::Round, &[])),
            1 | 2 => pieces.push(piece(&Record::Zero { pid, at, pages }, &[])),
            _ => pieces.push(content(pid, at, pages, step[1])),
        }
        if step[1] % 8 > 0 {
            known.extend((page..page + u64::from(pages)).map(|page| (pid, page)));
        }
    }
    // By the script, too: some pages are gone at the freeze, some were written once more.
    let bit = |page: &u64| script.get(*page as usize).is_some_and(|byte| byte & 8 > 0);
    let late = |page: &u64| script.get(*page as usize).is_some_and(|byte| byte & 4 > 0);
    for pid in 0..2 {
        let pages = known.iter().filter(|(of, page)| *of == pid && !bit(page)).map(|(_, page)| *page);
        let exists: Vec<u64> = pages.collect();
        let dirty: Vec<u64> = exists.iter().copied().filter(late).collect();
        let ranges = |pages: &[u64]| pages.iter().map(|page| (FIRST + page * PAGE as u64, 1)).collect();
        pieces.push(piece(&Record::Exists { pid, ranges: ranges(&exists) }, &[]));
        pieces.push(piece(&Record::Dirty { pid, ranges: ranges(&dirty) }, &[]));
        known.retain(|(of, page)| *of != pid || dirty.contains(page));
    }
    pieces.push(piece(&Record::Listed, &[]));
    for (pid, page) in known {
        let at = FIRST + page * PAGE as u64;
        pieces.push(match script.len() as u64 % 3 == page % 3 {
            true => piece(&Record::Zero { pid, at, pages: 1 }, &[]),
            false => content(pid, at, 1, 0xee),
        });
    }
    pieces.push(piece(&Record::End, &[]));
    pieces
}

fn content(pid: i32, at: u64, pages: u32, byte: u8) -> Piece {
    let bytes: Vec<u8> =
        (0..pages as usize * PAGE).map(|n| byte ^ (n / PAGE) as u8 ^ (n % 251) as u8).collect();
    piece(&Record::Pages { pid, at, pages }, &bytes)
}

/// Records change places, come again or are left out: two bytes for each time.
fn shuffled(mut pieces: Vec<Piece>, edits: &[u8]) -> Vec<Piece> {
    for edit in edits.as_chunks::<2>().0 {
        let (one, other) = (usize::from(edit[0]) % pieces.len(), usize::from(edit[1] >> 2) % pieces.len());
        match edit[1] % 4 {
            0 => pieces.swap(one, other),
            1 => pieces.insert(other, pieces[one].clone()),
            2 if pieces.len() > 1 => drop(pieces.remove(one)),
            _ => (),
        }
    }
    pieces
}

/// Whether the store accepts the stream. If it does, it has what the stream says.
fn stream(bytes: &[u8]) -> bool {
    let store = PageStore::new(LIMIT);
    let (result, held) = peak(|| store.receive(bytes, std::io::sink()));
    let slabs = 1 + (LIMIT as usize / PAGE).min(bytes.len() / PAGE);
    let most = AT_ONCE + slabs * SLAB + LIMIT as usize + FOR_EACH_BYTE * bytes.len();
    assert!(held <= most, "a stream of {} bytes took {held} bytes of memory, over {most}", bytes.len());
    if result.is_err() {
        return false;
    }
    let said = said(bytes);
    for (pid, page) in
        said.keys().flat_map(|(pid, page)| [page - 1, *page, page + 1].map(|page| (*pid, page)))
    {
        let at = page * PAGE as u64;
        let there = store.page(pid, at).filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        let expected = said.get(&(pid, page)).cloned().flatten();
        assert!(there == expected, "the page at {at:#x} of process {pid} is not what was sent");
    }
    true
}

/// What each page is to be that an accepted stream names, read in the simplest way; empty ones have no bytes.
fn said(mut from: &[u8]) -> BTreeMap<(i32, u64), Option<Vec<u8>>> {
    let mut all: BTreeMap<(i32, u64), Option<Vec<u8>>> = BTreeMap::new();
    let (mut exists, mut dirty) = (Vec::new(), Vec::new());
    let page = |at: u64| at / PAGE as u64;
    loop {
        match wire::read(&mut from).expect("it was accepted") {
            Record::Pages { pid, at, pages } => {
                let (bytes, rest) = from.split_at(pages as usize * PAGE);
                from = rest;
                for (n, bytes) in (0..).zip(bytes.chunks(PAGE)) {
                    let some = bytes.iter().any(|byte| *byte != 0);
                    all.insert((pid, page(at) + n), some.then(|| bytes.to_vec()));
                }
            }
            Record::Zero { pid, at, pages } => {
                all.extend((0..u64::from(pages)).map(|n| ((pid, page(at) + n), None)));
            }
            Record::Exists { pid, ranges } => exists.extend(ranges.into_iter().map(|range| (pid, range))),
            Record::Dirty { pid, ranges } => dirty.extend(ranges.into_iter().map(|range| (pid, range))),
            Record::Listed => {
                let named = |ranges: &[(i32, (u64, u32))], (pid, at): (i32, u64)| {
                    let has = |at: u64, start: u64, pages: u32| {
                        (page(start)..page(start) + u64::from(pages)).contains(&at)
                    };
                    ranges.iter().any(|(of, (start, pages))| *of == pid && has(at, *start, *pages))
                };
                for (at, bytes) in &mut all {
                    if !named(&exists, *at) || named(&dirty, *at) {
                        *bytes = None;
                    }
                }
            }
            Record::End => return all,
            Record::Begin { .. } | Record::Round | Record::Files(_) => (),
        }
    }
}
