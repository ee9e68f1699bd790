//! What threads do for a transfer in MODE E: several connections, blocks that say where they belong.
//!
//! ```text
//!  sender, a thread for each connection           receiver, a thread for each connection
//!    next block of the file's ranges                header ──▶ data ──splice──▶ file at its offset
//!    header ─┐                                         ├─────▶ EOF n: n connections will say EOD
//!    data ───┴─▶ connection                            └─────▶ EOD: this one is done, and may be used again
//!    no more: EOD; the first one before: EOF n
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use libgrid::ftp::block::{HEADER, Header};
use libgrid::io::ReadAhead;

use crate::ftp::channel::Channel;
use crate::ftp::flight::{Fault, Flight};

/// Data of a block that is sent: few headers, and yet every connection gets its share.
const BLOCK: u64 = 1 << 20;

/// The blocks that are still to be sent, shared by all connections of a transfer.
#[derive(Debug)]
pub(crate) struct Blocks {
    ranges: Mutex<Vec<(u64, u64)>>,
    /// What is added to the file's offsets on the wire.
    shift: u64,
}

impl Blocks {
    /// The ranges of the file in order; on the wire, offsets are less by `shift`.
    pub(crate) fn new(mut ranges: Vec<(u64, u64)>, shift: u64) -> Blocks {
        ranges.reverse();
        Blocks { ranges: Mutex::new(ranges), shift }
    }

    fn next(&self) -> Option<(u64, u64)> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = ranges.pop()?;
        let end = to.min(from + BLOCK);
        if end < to {
            ranges.push((end, to));
        }
        Some((from, end))
    }
}

/// Sends blocks over one of `streams` connections until there are no more.
pub(crate) fn send(
    channel: &mut Channel,
    file: &Arc<File>,
    blocks: &Blocks,
    first_of: Option<u64>,
    flight: &Flight,
    ahead: &ReadAhead,
) -> Result<(), Fault> {
    while let Some((from, to)) = blocks.next() {
        channel.send_more(&Header::data(to - from, from - blocks.shift).to_bytes())?;
        channel.send_file(file, from, to, flight, Some(ahead))?;
    }
    end(channel, first_of)
}

/// Says that this connection carries no more, and on the first one of how many.
pub(crate) fn end(channel: &mut Channel, first_of: Option<u64>) -> Result<(), Fault> {
    use std::io::Write;
    if let Some(streams) = first_of {
        channel.send_more(&Header::eof(streams).to_bytes())?;
    }
    channel.write_all(&Header::eod().to_bytes()).map_err(Fault::Network)?;
    channel.flush().map_err(Fault::Network)
}

/// How far the connections of a transfer are.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// How many said EOD.
    eods: AtomicU64,
    /// How many will; 0 while that is not known.
    expected: AtomicU64,
}

impl Ends {
    /// A thread is done with a connection that said EOD. Counted here and not by the thread: when the last one is
    /// counted, no thread uses a connection any more that the next transfer may use.
    pub(crate) fn count(&self) {
        self.eods.fetch_add(1, SeqCst);
    }

    /// Whether all data are there.
    pub(crate) fn complete(&self) -> bool {
        let expected = self.expected.load(SeqCst);
        expected != 0 && self.eods.load(SeqCst) >= expected
    }
}

/// Receives blocks over one connection until EOD. Tells whether the sender keeps it open.
pub(crate) fn receive(
    channel: &mut Channel,
    file: &File,
    base: u64,
    flight: &Flight,
    ends: &Ends,
) -> Result<bool, Fault> {
    let mut pipe = None;
    loop {
        let header = read_header(channel, flight)?;
        header.check().map_err(|error| Fault::Protocol(error.to_string()))?;
        if let Some(streams) = header.streams() {
            ends.expected.store(streams, SeqCst);
        } else if header.count > 0 {
            let mut at = header
                .offset
                .checked_add(base)
                .filter(|at| at.checked_add(header.count).is_some_and(|end| i64::try_from(end).is_ok()))
                .ok_or_else(|| Fault::Protocol("a block lies beyond the end of any file".to_owned()))?;
            channel.receive_file(file, at, header.count, &mut pipe, |bytes| {
                flight.add(bytes);
                flight.arrived(at, at + bytes);
                at += bytes;
            })?;
        }
        if header.is_eod() {
            return Ok(!header.is_close());
        }
    }
}

/// Waits for a header; while other connections of the transfer bring something, this one may be silent.
fn read_header(channel: &mut Channel, flight: &Flight) -> Result<Header, Fault> {
    let mut bytes = [0; HEADER];
    let mut filled = 0;
    let mut seen = flight.moved();
    while filled < HEADER {
        match channel.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => {
                return Err(Fault::Network(io::Error::other("it was closed without an EOD block")));
            }
            Ok(0) => return Err(Fault::Network(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && flight.moved() != seen => {
                seen = flight.moved();
            }
            Err(error) => return Err(Fault::Network(error)),
        }
    }
    Ok(Header::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_ranges_and_nothing_else() {
        let blocks = Blocks::new(vec![(0, 10), (BLOCK, 3 * BLOCK + 5)], 0);
        let all: Vec<_> = std::iter::from_fn(|| blocks.next()).collect();
        assert_eq!(all, [(0, 10), (BLOCK, 2 * BLOCK), (2 * BLOCK, 3 * BLOCK), (3 * BLOCK, 3 * BLOCK + 5)]);
    }
}
