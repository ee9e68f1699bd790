//! The build id of an ELF file: the note that its linker wrote, the same for the same build alone.
//!
//! System V ABI, chapter 5 (program header, note section); the note is of type 3 by the name `GNU`. Files of 64 bits in
//! this machine's byte order are read: others are no programs for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of all notes together that are looked at.
const MOST: u64 = 64 << 10;

/// Program headers that are looked at.
const MOST_HEADERS: u16 = 256;

/// The build id of the file, or `None` if it has none or is no ELF file.
pub fn read(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let header: [u8; 64] = bytes(&file, 0, 64)?.try_into().ok()?;
    if header[..5] != *b"\x7fELF\x02" {
        return None;
    }
    let (offset, size, count) = (number(&header, 32)?, half(&header, 54)?, half(&header, 56)?);
    for index in 0..count.min(MOST_HEADERS) {
        let at = offset.checked_add(u64::from(index) * u64::from(size))?;
        let header = bytes(&file, at, 56)?;
        const NOTE: u32 = 4;
        if word(&header, 0)? != NOTE {
            continue;
        }
        let (at, len) = (number(&header, 8)?, number(&header, 32)?);
        if let Some(id) = find(&bytes(&file, at, len.min(MOST))?) {
            return Some(id);
        }
    }
    None
}

fn find(mut notes: &[u8]) -> Option<Vec<u8>> {
    const BUILD_ID: u32 = 3;
    while notes.len() >= 12 {
        let (name, content, kind) = (word(notes, 0)? as usize, word(notes, 4)? as usize, word(notes, 8)?);
        let from = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let to = from.checked_add(content)?;
        if kind == BUILD_ID && notes.get(12..12usize.checked_add(name)?)? == b"GNU\0" {
            return notes.get(from..to).map(<[u8]>::to_vec);
        }
        notes = notes.get(to.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn bytes(file: &File, at: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_one_and_other_files_do_not() {
        let shell = read("/bin/sh".as_ref()).unwrap();
        assert_eq!(shell.len(), 20);
        assert_ne!(Some(&shell), read("/bin/ls".as_ref()).as_ref());
        assert_eq!(read("/etc/passwd".as_ref()), None);
        assert_eq!(read("/nowhere".as_ref()), None);
    }

    #[test]
    fn notes_that_are_cut_are_none() {
        let mut note = Vec::new();
        for word in [4u32, 20, 3] {
            note.extend(word.to_ne_bytes());
        }
        note.extend(b"GNU\0");
        note.extend([7; 20]);
        assert_eq!(find(&note), Some(vec![7; 20]));
        for len in 0..note.len() {
            assert_eq!(find(&note[..len]), None, "{len}");
        }
        note[0..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(find(&note), None);
    }
}
