//! What of a file has arrived, so that an interrupted transfer goes on where it ended.
//!
//! ```text
//!   head  64 bytes   magic · boot · size · time of the source's file · check
//!   entry 52 bytes   offset · length · BLAKE3 of the range · check          appended when the range is verified
//! ```
//!
//! A journal stands beside the part of the file that it tells of. It is not synced: after a crash of the transfer
//! alone, the page cache still has both, and entries are believed. After a restart of the machine (another boot id)
//! each range is read again and compared with its checksum; one without is sent again. An entry that was torn has a
//! wrong check, and ends the journal.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::message::Time;

const MAGIC: [u8; 8] = *b"GOSjrnl\x01";
const HEAD: usize = 64;
const ENTRY: usize = 52;

/// Ranges that arrived, in order and joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds the range from `start` up to `end`.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|(_, e)| *e < start);
        let last = self.0.partition_point(|(s, _)| *s <= end);
        let start = self.0[first..last].first().map_or(start, |(s, _)| start.min(*s));
        let end = self.0[first..last].last().map_or(end, |(_, e)| end.max(*e));
        self.0.splice(first..last, [(start, end)]);
    }

    /// What of `start..end` is not in them.
    pub(super) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for (s, e) in self.0.iter().copied().filter(|(s, e)| *e > start && *s < end) {
            if s > at {
                gaps.push((at, s));
            }
            at = at.max(e);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    pub(super) fn into_vec(self) -> Vec<(u64, u64)> {
        self.0
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut all = Self::default();
        for (start, end) in ranges {
            all.add(start, end);
        }
        all
    }
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

/// What a journal says about its file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) modified: Time,
    pub(super) ranges: Ranges,
    /// Whether the machine was not restarted since.
    pub(super) same_boot: bool,
}

impl Journal {
    /// Begins a journal in an empty file.
    pub(super) fn begin(mut file: File, size: u64, modified: Time) -> io::Result<Self> {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&MAGIC);
        head[8..24].copy_from_slice(&boot());
        head[24..32].copy_from_slice(&size.to_le_bytes());
        head[32..40].copy_from_slice(&modified.seconds.to_le_bytes());
        head[40..44].copy_from_slice(&modified.nanos.to_le_bytes());
        let check = check(&head[..44]);
        head[44..48].copy_from_slice(&check);
        file.write_all(&head)?;
        Ok(Self { file })
    }

    /// Goes on with a journal that was read.
    pub(super) fn resume(file: File) -> Self {
        Self { file }
    }

    /// Notes that a range is where it belongs; `sum` is its checksum, if there is one.
    pub(super) fn note(&mut self, offset: u64, length: u64, sum: Option<[u8; 32]>) -> io::Result<()> {
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&offset.to_le_bytes());
        entry[8..16].copy_from_slice(&length.to_le_bytes());
        entry[16..48].copy_from_slice(&sum.unwrap_or_default());
        let check = check(&entry[..48]);
        entry[48..].copy_from_slice(&check);
        self.file.write_all(&entry)
    }

    /// Reads a journal, and checks against `part` what a restart of the machine may have lost.
    pub(super) fn read(mut journal: &File, part: &File) -> io::Result<Found> {
        journal.seek(SeekFrom::Start(0))?;
        let torn = || io::Error::new(io::ErrorKind::InvalidData, "not a journal");
        let mut head = [0; HEAD];
        journal.read_exact(&mut head)?;
        if head[..8] != MAGIC || head[44..48] != check(&head[..44]) {
            return Err(torn());
        }
        let long = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let modified = Time {
            seconds: long(&head[32..40]).cast_signed(),
            nanos: u32::try_from(long(&head[40..48]) & 0xffff_ffff).unwrap_or_default(),
        };
        let same_boot = head[8..24] == boot();
        let length = part.metadata()?.len();
        let mut ranges = Ranges::default();
        let mut entry = [0; ENTRY];
        while journal.read_exact(&mut entry).is_ok() && entry[48..] == check(&entry[..48]) {
            let (offset, size) = (long(&entry[..8]), long(&entry[8..16]));
            let Some(end) = offset.checked_add(size).filter(|end| *end <= length) else { continue };
            if same_boot || matches!(hash(part, offset, size), Ok(sum) if sum == entry[16..48]) {
                ranges.add(offset, end);
            }
        }
        Ok(Found { size: long(&head[24..32]), modified, ranges, same_boot })
    }
}

fn check(bytes: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(bytes);
    let bytes = hash.as_bytes();
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Tells one start of the machine from another.
fn boot() -> [u8; 16] {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(&id).as_bytes()[..16]);
    short
}

/// The BLAKE3 checksum of a part of a file.
pub(super) fn hash(file: &File, offset: u64, length: u64) -> io::Result<[u8; 32]> {
    // Small enough for the second-level cache, large enough for BLAKE3 to hash 16 blocks at once.
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(128 << 10)];
    let mut hasher = blake3::Hasher::new();
    let mut at = offset;
    let end = offset + length;
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..most], at)?;
        hasher.update(&buffer[..most]);
        at += most as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_what_was_added(added in prop::collection::vec((0u64..60, 0u64..12), 0..30)) {
            let ranges: Ranges = added.iter().map(|(start, length)| (*start, start + length)).collect();
            let gaps = ranges.missing(0, 80);
            for byte in 0..80 {
                let there = added.iter().any(|(start, length)| (*start..start + length).contains(&byte));
                let missing = gaps.iter().any(|(start, end)| (*start..*end).contains(&byte));
                prop_assert_eq!(there, !missing, "byte {}", byte);
            }
            prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ranges);
        }
    }

    const TIME: Time = Time { seconds: -5, nanos: 999_999_999 };

    fn written(part: &File) -> File {
        part.write_all_at(&[3; 1000], 0).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut journal = Journal::begin(file.try_clone().unwrap(), 5000, TIME).unwrap();
        journal.note(0, 400, Some(hash(part, 0, 400).unwrap())).unwrap();
        journal.note(600, 400, Some(hash(part, 600, 400).unwrap())).unwrap();
        file
    }

    fn read(file: &File, part: &File) -> io::Result<Found> {
        Journal::read(file, part)
    }

    #[test]
    fn a_journal_tells_what_was_noted_and_a_torn_end_is_dropped() {
        let part = tempfile::tempfile().unwrap();
        let file = written(&part);
        let found = read(&file, &part).unwrap();
        assert_eq!((found.size, found.modified), (5000, TIME));
        assert_eq!(found.ranges.0, [(0, 400), (600, 1000)]);
        file.set_len((HEAD + ENTRY + 20) as u64).unwrap();
        assert_eq!(read(&file, &part).unwrap().ranges.0, [(0, 400)]);
        file.set_len(30).unwrap();
        assert!(read(&file, &part).is_err());
    }

    #[test]
    fn after_a_restart_of_the_machine_only_what_is_right_on_disk_counts() {
        let part = tempfile::tempfile().unwrap();
        let file = written(&part);
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).unwrap();
        head[8] ^= 1;
        let sum = check(&head[..44]);
        head[44..48].copy_from_slice(&sum);
        file.write_all_at(&head, 0).unwrap();
        assert_eq!(read(&file, &part).unwrap().ranges.0, [(0, 400), (600, 1000)]);
        part.write_all_at(&[4], 700).unwrap();
        assert_eq!(read(&file, &part).unwrap().ranges.0, [(0, 400)]);
    }
}
