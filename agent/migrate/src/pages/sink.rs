//! The end of the stream that is written to.

use std::io::{self, BufWriter, Write};

use libgrid::wire::{self, WireError};

use super::{MOST_RANGES, Record, VERSION};
use crate::kernel::{PAGE, Range};

/// Bytes that are kept until more come: single pages and records are small.
const BUFFER: usize = 256 << 10;

/// The stream to the destination broke.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A record could not be sent.
    #[error("the destination does not take the pages")]
    Wire(#[from] WireError),
    /// Bytes could not be sent.
    #[error("the destination does not take the pages")]
    Io(#[from] io::Error),
}

/// Sends pages.
pub struct PageSink<'w> {
    to: BufWriter<&'w mut (dyn Write + Send)>,
    /// Pages on their way from a process.
    room: Vec<u8>,
}

impl std::fmt::Debug for PageSink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageSink").finish_non_exhaustive()
    }
}

impl<'w> PageSink<'w> {
    /// Begins a stream.
    ///
    /// # Errors
    /// Where the destination is gone.
    pub fn new(to: &'w mut (dyn Write + Send)) -> Result<Self, SinkError> {
        let mut sink = Self { to: BufWriter::with_capacity(BUFFER, to), room: Vec::new() };
        sink.say(&Record::Begin { version: VERSION })?;
        Ok(sink)
    }

    /// Where to put the bytes that [`pages`](Self::pages) sends.
    pub(crate) fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.room.len() < bytes {
            self.room.resize(bytes, 0);
        }
        &mut self.room[..bytes]
    }

    /// Sends the first `bytes` of the room as the pages from `at` on.
    pub(crate) fn pages(&mut self, pid: i32, at: u64, bytes: usize) -> Result<(), SinkError> {
        let room = std::mem::take(&mut self.room);
        let sent = self.send(pid, at, &room[..bytes]);
        self.room = room;
        sent
    }

    fn send(&mut self, pid: i32, mut at: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let page = PAGE as usize;
        for run in bytes.chunk_by_pages(page) {
            let pages = (run.bytes.len() / page) as u32;
            if run.empty {
                self.say(&Record::Zero { pid, at, pages })?;
            } else {
                self.say(&Record::Pages { pid, at, pages })?;
                self.to.write_all(run.bytes)?;
            }
            at += run.bytes.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn files(&mut self, piece: Vec<u8>) -> Result<(), SinkError> {
        self.say(&Record::Files(piece))
    }

    pub(crate) fn round(&mut self) -> Result<(), SinkError> {
        self.say(&Record::Round)?;
        Ok(self.to.flush()?)
    }

    pub(crate) fn exists(&mut self, pid: i32, ranges: &[Range]) -> Result<(), SinkError> {
        // A process without any is named, too.
        self.ranges(ranges, |ranges| Record::Exists { pid, ranges })
    }

    pub(crate) fn dirty(&mut self, pid: i32, ranges: &[Range]) -> Result<(), SinkError> {
        self.ranges(ranges, |ranges| Record::Dirty { pid, ranges })
    }

    pub(crate) fn listed(&mut self) -> Result<(), SinkError> {
        self.say(&Record::Listed)?;
        Ok(self.to.flush()?)
    }

    pub(crate) fn flush(&mut self) -> Result<(), SinkError> {
        Ok(self.to.flush()?)
    }

    /// Tells that all was sent and is valid: without it, the destination lets nothing go.
    ///
    /// # Errors
    /// Where the stream broke.
    pub fn end(&mut self) -> Result<(), SinkError> {
        self.say(&Record::End)?;
        Ok(self.to.flush()?)
    }

    fn ranges(
        &mut self,
        ranges: &[Range],
        record: impl Fn(Vec<super::Pages>) -> Record,
    ) -> Result<(), SinkError> {
        // A count of pages has 32 bits.
        let pieces = ranges.iter().flat_map(|range| range.pieces(1 << 40));
        let pieces: Vec<_> = pieces.map(|piece| (piece.start, (piece.bytes() / PAGE) as u32)).collect();
        if pieces.is_empty() {
            return self.say(&record(Vec::new()));
        }
        pieces.chunks(MOST_RANGES).try_for_each(|chunk| self.say(&record(chunk.to_vec())))
    }

    fn say(&mut self, record: &Record) -> Result<(), SinkError> {
        Ok(wire::write(&mut self.to, record)?)
    }
}

/// Pages of one kind.
struct Run<'b> {
    bytes: &'b [u8],
    empty: bool,
}

trait Runs {
    fn chunk_by_pages(&self, page: usize) -> impl Iterator<Item = Run<'_>>;
}

impl Runs for [u8] {
    fn chunk_by_pages(&self, page: usize) -> impl Iterator<Item = Run<'_>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let empty = is_empty(rest.get(..page)?);
            let pages = rest.chunks_exact(page).take_while(|page| is_empty(page) == empty).count();
            let (bytes, after) = rest.split_at(pages * page);
            rest = after;
            Some(Run { bytes, empty })
        })
    }
}

/// Whether there is nothing but zeros.
fn is_empty(page: &[u8]) -> bool {
    // Most pages differ in the first bytes; the rest is compared in pieces that the compiler can make wide.
    page[..64].iter().all(|byte| *byte == 0)
        && page.chunks_exact(64).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_one_kind_travel_together() {
        let mut bytes = vec![0u8; 5 * 4096];
        bytes[4096 + 4095] = 1;
        bytes[2 * 4096] = 1;
        let runs: Vec<_> =
            bytes.chunk_by_pages(4096).map(|run| (run.bytes.len() / 4096, run.empty)).collect();
        assert_eq!(runs, [(1, true), (2, false), (2, true)]);
    }
}
