//! `/proc/PID/maps`.

use std::fs;
use std::io;
use std::path::Path;

use super::Range;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: Range,
    pub(crate) executable: bool,
    /// Private and of no file: CRIU can restore its pages later than its process, unless it is locked or of huge pages.
    pub(crate) lazy: bool,
    /// The kernel's own code in the process.
    pub(crate) vdso: bool,
}

/// The mappings of a process; of one that has no memory left, none.
///
/// # Errors
/// Where the file cannot be read, or does not look like one.
pub(crate) fn read(proc: &Path, pid: i32) -> io::Result<Vec<Mapping>> {
    let path = proc.join(format!("{pid}/maps"));
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let wrong = |line: &str| io::Error::other(format!("{}: {line:?} is no mapping", path.display()));
    text.lines().map(|line| parse(line).ok_or_else(|| wrong(line))).collect()
}

fn parse(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
        rest = after;
        field
    };
    let (start, end) = field().split_once('-')?;
    let access = field().as_bytes();
    let (_offset, _device, inode) = (field(), field(), field());
    let name = rest.trim();
    let number = |text| u64::from_str_radix(text, 16).ok();
    let range = Range { start: number(start)?, end: number(end)? };
    let &[_, _, executable, sharing] = access else { return None };
    let named = name.is_empty() || name == "[heap]" || name == "[stack]" || name.starts_with("[anon:");
    Some(Mapping {
        range,
        executable: executable == b'x',
        lazy: sharing == b'p' && inode == "0" && named && range.end <= super::TOP,
        vdso: name == "[vdso]",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_memory_of_no_file_can_come_later() {
        let lazy = |line| parse(line).unwrap().lazy;
        assert!(lazy("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 "));
        assert!(lazy("55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]"));
        assert!(lazy("7f0000000000-7f0000021000 ---p 00000000 00:00 0                [anon:a b]"));
        assert!(!lazy("7f0000000000-7f0000021000 rw-s 00000000 00:01 1024    /dev/zero (deleted)"));
        assert!(!lazy("7f0000000000-7f0000021000 rw-p 00003000 08:01 77                 /usr/lib/a b"));
        assert!(!lazy("7ffd00000000-7ffd00004000 r--p 00000000 00:00 0                          [vvar]"));
        assert!(!lazy("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]"));
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse("1000-2000 rw 0 00:00 0"), None);
        let line = "1000-3000 r-xp 00000000 00:00 0 [vdso]";
        let range = Range { start: 0x1000, end: 0x3000 };
        assert_eq!(parse(line), Some(Mapping { range, executable: true, lazy: false, vdso: true }));
    }
}
