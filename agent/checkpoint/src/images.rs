//! What of CRIU's images we read ourselves: which pids a restore takes.
//!
//! `pstree.img` is two magic numbers, then records: a length, and a protobuf message (`images/pstree.proto` of CRIU)
//! of which the fields 1 to 4 are pid, parent, process group and session, and 5 the threads. All are small numbers,
//! so that four of protobuf's rules are enough to read it. See CRIU's wiki, "Images".

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// `IMG_COMMON_MAGIC` and `PSTREE_MAGIC` of CRIU's `magic.h`.
const MAGIC: [u32; 2] = [0x5456_4319, 0x5027_3030];

/// Bytes: a tree of 100,000 threads takes less.
const MOST: u64 = 4 << 20;

/// The processes of a dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Those that will be processes again, zombies included; the first is the root.
    pub processes: Vec<i32>,
    /// Every number that a restore needs to be free: threads, groups and sessions whose leader is gone, too.
    pub taken: BTreeSet<i32>,
}

impl Tree {
    /// Reads it from a folder of images.
    ///
    /// # Errors
    /// Where the file is not there, or is not what CRIU writes.
    pub fn read(images: &Path) -> io::Result<Self> {
        let path = images.join("pstree.img");
        let mut bytes = Vec::new();
        let wrong =
            |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        let file = File::open(&path).map_err(|error| wrong(&error.to_string()))?;
        file.take(MOST).read_to_end(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| wrong("it is not a list of processes as CRIU writes it"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        for magic in MAGIC {
            (u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?) == magic).then_some(())?;
        }
        let mut tree = Self::default();
        while !rest.is_empty() {
            let size = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
            tree.add(take(&mut rest, size as usize)?)?;
        }
        (!tree.processes.is_empty()).then_some(tree)
    }

    /// Adds the process of one message.
    fn add(&mut self, mut entry: &[u8]) -> Option<()> {
        let mut own = None;
        let mut threads = Vec::new();
        while !entry.is_empty() {
            let key = varint(&mut entry)?;
            match (key >> 3, key & 7) {
                (field @ 1..=4, 0) => {
                    let number = i32::try_from(varint(&mut entry)?).ok()?;
                    self.taken.insert(number);
                    if field == 1 {
                        own = Some(number);
                    }
                }
                (5, 0) => threads.push(varint(&mut entry)?),
                // Packed: older and newer writers differ.
                (5, 2) => {
                    let size = varint(&mut entry)?;
                    let mut packed = take(&mut entry, usize::try_from(size).ok()?)?;
                    while !packed.is_empty() {
                        threads.push(varint(&mut packed)?);
                    }
                }
                (_, 0) => drop(varint(&mut entry)?),
                (_, 2) => {
                    let size = varint(&mut entry)?;
                    take(&mut entry, usize::try_from(size).ok()?)?;
                }
                _ => return None,
            }
        }
        let own = own?;
        self.processes.push(own);
        // A zombie has no threads, and CRIU 4.1 writes one all the same, of memory that it never set.
        if threads.contains(&(own as u64)) {
            for thread in threads {
                self.taken.insert(i32::try_from(thread).ok()?);
            }
        }
        Some(())
    }

    /// A number for the first of our own processes among those of a restore, such that as many as possible
    /// follow it that nobody needs: the middle of the widest gap below `pid_max`.
    pub fn free(&self, pid_max: i32) -> i32 {
        // The kernel begins again at 300 when the numbers are used up.
        let mut gap = (300, 0);
        let mut before = 300;
        for next in self.taken.iter().copied().chain([pid_max]).filter(|next| *next > 300) {
            if next - before > gap.1 {
                gap = (before, next - before);
            }
            before = next;
        }
        gap.0 + gap.1 / 2
    }
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(taken)
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(from, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes: Vec<u8> = MAGIC.iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for entry in entries {
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(*entry);
        }
        bytes
    }

    #[test]
    fn processes_threads_and_groups_are_found() {
        // pid 2 with threads 2 and 300 (0xac 0x02), group and session 2; pid 9 in group 7, threads packed.
        let first: &[u8] = &[8, 2, 16, 0, 24, 2, 32, 2, 40, 2, 40, 0xac, 2];
        let second: &[u8] = &[8, 9, 16, 2, 24, 7, 32, 2, 42, 2, 9, 12];
        // A zombie, as CRIU 4.1 writes it.
        let zombie: &[u8] = &[8, 4, 16, 2, 24, 2, 32, 2, 40, 0x80, 0xaa, 0xff, 0xef, 0x7];
        let tree = Tree::parse(&image(&[first, second, zombie])).unwrap();
        assert_eq!(tree.processes, [2, 9, 4]);
        assert_eq!(tree.taken, BTreeSet::from([0, 2, 4, 7, 9, 12, 300]));
    }

    #[test]
    fn what_is_cut_or_no_image_is_refused() {
        let whole = image(&[&[8, 2, 16, 0]]);
        assert!(Tree::parse(&whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(Tree::parse(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(
            Tree::parse(&image(&[&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]])),
            None
        );
        assert_eq!(Tree::parse(&[0; 64]), None);
    }

    #[test]
    fn our_own_processes_keep_away_from_the_tasks() {
        let with = |taken: &[i32]| Tree { processes: vec![2], taken: taken.iter().copied().collect() };
        assert_eq!(with(&[2, 3]).free(32768), 300 + (32768 - 300) / 2);
        let busy = with(&[2, 301, 20_000, 32_700]);
        let free = busy.free(32768);
        assert!((301..20_000).contains(&free) && busy.taken.iter().all(|pid| (pid - free).abs() > 6_000));
    }
}
