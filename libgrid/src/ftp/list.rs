//! Lines of LIST, as `ls -l` writes them: what clients without MLSD read.

use std::time::{Duration, SystemTime};

use crate::ftp::facts::{Entry, Type};
use crate::ftp::time::civil;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Files younger than this have a time of the day, older ones the year, as `ls` does it.
const RECENT: Duration = Duration::from_secs(182 * 86_400);

/// A line of LIST without its end. What the entry does not say is written as zero; times are UTC.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use libgrid::ftp::facts::{Entry, Type};
/// use libgrid::ftp::list::format;
/// let entry = Entry {
///     kind: Some(Type::File), size: Some(42), mode: Some(0o640), modify: Some(UNIX_EPOCH),
///     name: b"run7".to_vec(), ..Entry::default()
/// };
/// let line = format(&entry, UNIX_EPOCH + Duration::from_secs(60));
/// assert_eq!(line, b"-rw-r-----   1 0        0                  42 Jan 01 00:00 run7");
/// ```
pub fn format(entry: &Entry, now: SystemTime) -> Vec<u8> {
    let mode = entry.mode.unwrap_or(0);
    let letter = match &entry.kind {
        Some(Type::Dir | Type::Cdir | Type::Pdir) => 'd',
        Some(Type::Slink(_)) => 'l',
        _ => '-',
    };
    let modify = entry.modify.unwrap_or(SystemTime::UNIX_EPOCH);
    let (year, month, day, second) = civil(modify);
    let recent = now.duration_since(modify).is_ok_and(|age| age < RECENT);
    let when =
        if recent { format!("{:02}:{:02}", second / 3600, second / 60 % 60) } else { format!("{year:5}") };
    let month = usize::try_from(month - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
    let mut line = format!(
        "{letter}{}   1 {:<8} {:<8} {:>12} {month} {day:02} {when} ",
        permissions(mode),
        entry.uid.unwrap_or(0),
        entry.gid.unwrap_or(0),
        entry.size.unwrap_or(0),
    )
    .into_bytes();
    let name = |line: &mut Vec<u8>, name: &[u8]| {
        line.extend(name.iter().map(|&byte| if matches!(byte, b'\r' | b'\n' | 0) { b'?' } else { byte }));
    };
    name(&mut line, &entry.name);
    if let Some(Type::Slink(target)) = &entry.kind
        && !target.is_empty()
    {
        line.extend(b" -> ");
        name(&mut line, target);
    }
    line
}

fn permissions(mode: u32) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Reads a line as [`format`] and `ls -l` write it: type, size and name. The time is left out: it has no zone, and
/// often no year. `None` for any other line, such as `total 8`.
///
/// ```
/// use libgrid::ftp::facts::Type;
/// use libgrid::ftp::list::parse;
/// let entry = parse(b"lrwxrwxrwx   1 root root  7 Mar  1  2024 bin -> usr/bin").unwrap();
/// assert_eq!((entry.kind, entry.name), (Some(Type::Slink(b"usr/bin".to_vec())), b"bin".to_vec()));
/// assert!(parse(b"total 8").is_none());
/// ```
pub fn parse(line: &[u8]) -> Option<Entry> {
    let mut words = Vec::new();
    let mut at = 0;
    while words.len() < 8 {
        at += line.get(at..)?.iter().position(|byte| *byte != b' ')?;
        let length = line[at..].iter().position(|byte| *byte == b' ')?;
        words.push(&line[at..at + length]);
        at += length;
    }
    // One space only: a name may begin with one.
    let name = line.get(at + 1..).filter(|name| !name.is_empty())?;
    let mode = words[0];
    if mode.len() < 10 || !words[1].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let size = std::str::from_utf8(words[4]).ok()?.parse().ok()?;
    let (kind, name) = match mode[0] {
        b'd' => (Type::Dir, name),
        b'l' => match name.windows(4).position(|arrow| arrow == b" -> ") {
            Some(arrow) => (Type::Slink(name[arrow + 4..].to_vec()), &name[..arrow]),
            None => (Type::Slink(Vec::new()), name),
        },
        b'-' => (Type::File, name),
        other => (Type::Other(format!("OS.unix={}", char::from(other))), name),
    };
    let bits = mode[1..10].iter().enumerate().fold(0, |bits, (place, &letter)| {
        let set = !matches!(letter, b'-' | b'S' | b'T');
        bits | u32::from(set) << (8 - place)
    });
    Some(Entry {
        kind: Some(kind),
        size: Some(size),
        mode: Some(bits),
        name: name.to_vec(),
        ..Entry::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(size: u64, seconds in 0u64..4_000_000_000, mode in 0u32..0o1000, name in "[!-~][ -~]{0,19}") {
            prop_assume!(!name.contains(" -> "));
            let entry = Entry {
                kind: Some(Type::File), size: Some(size), mode: Some(mode), name: name.into_bytes(),
                modify: Some(UNIX_EPOCH + Duration::from_secs(seconds)), ..Entry::default()
            };
            let read = parse(&format(&entry, UNIX_EPOCH)).unwrap();
            prop_assert_eq!((read.size, read.mode, read.name), (entry.size, entry.mode, entry.name));
        }

        #[test]
        fn any_line_is_an_entry_or_none(line in vec(any::<u8>(), 0..80), text in "[-dl][-rwx]{9} {1,3}1 a b 5 Jan 01 2020 [ ->a]{0,9}") {
            let _ = parse(&line);
            let _ = parse(text.as_bytes());
        }
    }
}
