//! Cutting a file into pieces where its content says so.
//!
//! A gear hash rolls over the bytes: `h = 2h + T[byte]`, so that it depends on the last 64 bytes alone. A piece ends where
//! its highest bits are zero. Bytes that were put in or taken out change the piece around them; behind it, the cuts are
//! where they were. (Xia et al., "Ddelta", 2014; the table is BLAKE3 of a fixed text, and part of the format: another table
//! would find nothing again.)

use std::io::{self, Read};
use std::sync::LazyLock;

/// Bytes of a piece, the last of a file excepted.
const LEAST: usize = 64 << 10;
pub(super) const MOST: usize = 1 << 20;

/// So many of the highest bits: a cut every 256 KiB beyond the least, on the mean.
const BITS: u32 = 18;

static TABLE: LazyLock<[u64; 256]> = LazyLock::new(|| {
    let mut table = [0; 256];
    let mut stream = blake3::Hasher::new().update(b"gridos checkpoint cut 1").finalize_xof();
    for number in &mut table {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        *number = u64::from_le_bytes(bytes);
    }
    table
});

/// The pieces of what a reader gives.
pub(super) struct Cutter<R> {
    from: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were given out.
    given: usize,
    ended: bool,
}

impl<R: Read> Cutter<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: Vec::new(), given: 0, ended: false }
    }

    /// The next piece, or none at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.drain(..self.given);
        self.given = 0;
        if self.buffer.len() < MOST && !self.ended {
            let wanted = 4 * MOST - self.buffer.len();
            let read = (&mut self.from).take(wanted as u64).read_to_end(&mut self.buffer)?;
            self.ended = read < wanted;
        }
        self.given = length(&self.buffer);
        Ok((self.given > 0).then(|| &self.buffer[..self.given]))
    }
}

/// Of the first piece.
fn length(bytes: &[u8]) -> usize {
    let table = &*TABLE;
    let mut hash = 0u64;
    // The hash depends on 64 bytes: what comes before the least cut's need not be looked at.
    let from = LEAST.saturating_sub(64);
    for (at, byte) in bytes.iter().enumerate().take(MOST).skip(from) {
        hash = (hash << 1).wrapping_add(table[usize::from(*byte)]);
        if at >= LEAST && hash >> (64 - BITS) == 0 {
            return at + 1;
        }
    }
    bytes.len().min(MOST)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new(bytes);
        let mut all = Vec::new();
        while let Some(piece) = cutter.next().unwrap() {
            all.push(piece.to_vec());
        }
        all
    }

    #[test]
    fn the_pieces_are_the_file_and_within_bounds() {
        let bytes = noise(20 << 20);
        let cut = pieces(&bytes);
        assert_eq!(cut.concat(), bytes);
        let (_, whole) = cut.split_last().unwrap();
        assert!(whole.iter().all(|piece| (LEAST..=MOST).contains(&piece.len())));
        let mean = bytes.len() / cut.len();
        assert!((200 << 10..420 << 10).contains(&mean), "{mean}");
        assert!(pieces(&[]).is_empty());
        assert_eq!(pieces(b"x"), [b"x"]);
        assert_eq!(pieces(&vec![7; 3 << 20]).len(), 3);
    }

    #[test]
    fn what_is_put_in_changes_the_piece_around_it_alone() {
        let before = noise(20 << 20);
        let mut after = before.clone();
        after.splice((7 << 20)..(7 << 20), *b"put in here");
        let old: HashSet<_> = pieces(&before).into_iter().collect();
        let new = pieces(&after).into_iter().filter(|piece| !old.contains(piece)).count();
        assert!((1..=3).contains(&new), "{new}");
    }
}
