//! Times as MDTM, MFMT and the facts of MLSx write them: `YYYYMMDDHHMMSS`, UTC (RFC 3659, 2.3).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// The time as 14 digits, UTC; what is finer than a second is left out. Times before 1970 and after 9999 are
/// written as the nearest that can be.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use libgrid::ftp::time::format;
/// assert_eq!(format(UNIX_EPOCH + Duration::from_secs(951_868_799)), "20000229235959");
/// ```
pub fn format(time: SystemTime) -> String {
    let (year, month, day, seconds) = civil(time);
    format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Reads what [`format`] writes; digits after a point are a fraction of a second, of which nanoseconds count.
/// `None` if it is not such a time, or before 1970.
///
/// ```
/// use libgrid::ftp::time::{format, parse};
/// assert_eq!(format(parse(b"20240229120000.5").unwrap()), "20240229120000");
/// assert!(parse(b"20230229120000").is_none());
/// ```
pub fn parse(text: &[u8]) -> Option<SystemTime> {
    let (digits, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    if digits.len() != 14 || !digits.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, to: usize| {
        digits[from..to].iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'))
    };
    let (year, month, day) = (number(0, 4), number(4, 6), number(6, 8));
    let (hour, minute, second) = (number(8, 10), number(10, 12), number(12, 14));
    // 60 is a leap second, which Unix does not count.
    if year < 1970
        || !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let days = days_before(year, month) + day - 1;
    let nanos = fraction.iter().take(9).chain([b'0'; 9].iter()).take(9);
    let nanos = nanos.fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(UNIX_EPOCH + Duration::new(days * DAY + hour * 3600 + minute * 60 + second.min(59), nanos))
}

/// Year, month and day (from 1), and seconds of the day.
pub(super) fn civil(time: SystemTime) -> (u64, u64, u64, u64) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(253_402_300_799);
    let mut days = seconds / DAY;
    let mut year = 1970 + days / 366;
    while days_before(year + 1, 1) <= days {
        year += 1;
    }
    days -= days_before(year, 1);
    let mut month = 1;
    while days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    (year, month, days + 1, seconds % DAY)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of the month.
fn days_before(year: u64, month: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    years + (1..month).map(|month| days_in(year, month)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(seconds in 0u64..253_402_300_800) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(parse(format(time).as_bytes()), Some(time));
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "2024",
            "20241301000000",
            "20240132000000",
            "20240101240000",
            "2024010100000x",
            "19690101000000",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
