//! `PAGEMAP_SCAN`: which pages a process has, and which it wrote to since the last time.
//!
//! Needs Linux 6.7; `fs/proc/task_mmu.c` and `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::Range;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// Protect what matches, so that the next write to it is seen.
const WP_MATCHING: u64 = 1;
/// Fail with EPERM at a mapping where writes are not tracked.
const CHECK_WPASYNC: u64 = 2;

pub(crate) const WRITTEN: u64 = 1 << 1;
pub(crate) const PRESENT: u64 = 1 << 3;
pub(crate) const SWAPPED: u64 = 1 << 4;
pub(crate) const PFNZERO: u64 = 1 << 5;

/// Regions that one call may return.
const REGIONS: usize = 4096;

/// Bytes that one call walks: the process cannot change its mappings meanwhile.
const STEP: u64 = 256 << 20;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Region {
    start: u64,
    end: u64,
    pub(crate) categories: u64,
}

impl Region {
    pub(crate) fn range(self) -> Range {
        Range { start: self.start, end: self.end }
    }

    /// Whether there is anything in these pages.
    pub(crate) fn exists(self) -> bool {
        self.categories & (PRESENT | SWAPPED) != 0 && self.categories & PFNZERO == 0
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Query {
    /// What was written since the last time, which is forgotten. EPERM where that is not tracked.
    Take,
    /// Everything that exists; from now on, its writes are tracked, where they can be.
    TakeAll,
    /// What does not exist, what exists in swap, and what was written. Fewer regions than those that exist: 0.9 ms a GiB
    /// instead of 2.9. EPERM where writes are not tracked.
    Changed,
    /// The same, of a mapping where writes are not tracked.
    Everything,
}

impl Query {
    /// Flags; inverted; all of; any of.
    fn terms(self) -> [u64; 4] {
        let there = PRESENT | SWAPPED;
        match self {
            Query::Take => [WP_MATCHING | CHECK_WPASYNC, PFNZERO, PFNZERO | WRITTEN, there],
            Query::TakeAll => [WP_MATCHING, PFNZERO, PFNZERO, there],
            Query::Changed => [CHECK_WPASYNC, PRESENT, 0, PRESENT | WRITTEN],
            Query::Everything => [0, PRESENT, 0, PRESENT | WRITTEN],
        }
    }
}

/// The open file of a process. After an `execve`, it still speaks of the old memory.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl Pagemap {
    /// # Errors
    /// Where it cannot be opened: the process is gone.
    pub(crate) fn open(proc: &Path, pid: i32) -> io::Result<Self> {
        let path = proc.join(format!("{pid}/pagemap"));
        let file = File::open(&path);
        file.map(Self).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Asks about a range; regions come in order.
    ///
    /// # Errors
    /// The kernel's, or what `each` returns. Of a query that takes, some may have been taken and not told of.
    pub(crate) fn scan(
        &self,
        range: Range,
        query: Query,
        mut each: impl FnMut(Region) -> io::Result<()>,
    ) -> io::Result<()> {
        let [flags, category_inverted, category_mask, category_anyof_mask] = query.terms();
        let mut regions = vec![Region::default(); REGIONS];
        for piece in range.pieces(STEP) {
            let mut start = piece.start;
            while start < piece.end {
                let mut argument = Argument {
                    size: size_of::<Argument>() as u64,
                    flags,
                    start,
                    end: piece.end,
                    walk_end: 0,
                    vec: regions.as_mut_ptr() as u64,
                    vec_len: regions.len() as u64,
                    max_pages: 0,
                    category_inverted,
                    category_mask,
                    category_anyof_mask,
                    return_mask: WRITTEN | PRESENT | SWAPPED | PFNZERO,
                };
                // SAFETY: the argument is the kernel's structure, of its size; `vec` points to `vec_len` regions, which
                // live until after the call.
                let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
                let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
                let found = regions.get(..found).unwrap_or_default();
                found.iter().try_for_each(|region| each(*region))?;
                start = match found.last() {
                    Some(last) if found.len() == regions.len() => last.end,
                    // All was walked. `walk_end` says less where the kernel's own buffer of 512 regions was full on the way
                    // (`do_pagemap_scan`: it is set there, and not at the end).
                    _ => piece.end,
                };
            }
        }
        Ok(())
    }
}

/// Whether the kernel has `PAGEMAP_SCAN`.
pub(crate) fn is_supported() -> bool {
    let nothing = Range { start: 0x1000, end: 0x2000 };
    Pagemap::open(Path::new("/proc"), std::process::id() as i32)
        .and_then(|pagemap| pagemap.scan(nothing, Query::Everything, |_| Ok(())))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    #[test]
    fn each_region_is_told_once_and_in_order() {
        if !is_supported() {
            println!("SKIPPED: the kernel has no PAGEMAP_SCAN");
            return;
        }
        // Fewer than the kernel keeps for itself, more, as many as we take at once, and more.
        for count in [500, 513, 1500, REGIONS, REGIONS + 1, 3 * REGIONS + 7] {
            let bytes = 2 * count * PAGE as usize;
            // SAFETY: a new mapping, unmapped below.
            let mapped = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
            };
            assert_ne!(mapped, libc::MAP_FAILED);
            let start = mapped as u64;
            let wanted: Vec<Range> = (0..count as u64)
                .map(|number| start + 2 * number * PAGE)
                .map(|start| Range { start, end: start + PAGE })
                .collect();
            // SAFETY: within the mapping.
            unsafe {
                libc::madvise(mapped, bytes, libc::MADV_NOHUGEPAGE);
                wanted.iter().for_each(|page| *(page.start as *mut u8) = 1);
            }
            let pagemap = Pagemap::open(Path::new("/proc"), std::process::id() as i32).unwrap();
            let mut told = Vec::new();
            let range = Range { start, end: start + bytes as u64 };
            let scan = pagemap.scan(range, Query::Everything, |region| {
                told.extend(region.exists().then_some(region.range()));
                Ok(())
            });
            scan.unwrap();
            assert!(told == wanted, "{count}");
            // SAFETY: nothing refers to it any more.
            unsafe { libc::munmap(mapped, bytes) };
        }
    }
}
