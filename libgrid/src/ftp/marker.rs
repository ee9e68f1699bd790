//! Which parts of a file have arrived, and the replies 111 and 112 that tell of it while a transfer goes on
//! (GFD.20, 4.4 and 4.5).
//!
//! ```text
//! 111 Range Marker 0-8388608,9437184-10485760       the receiver has these bytes; REST takes the same list
//! 112-Perf Marker
//!  Timestamp:  1700000000.0
//!  Stripe Index: 0
//!  Stripe Bytes Transferred: 8388608
//!  Total Stripe Count: 1
//! 112 End.
//! ```

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ftp::reply::Reply;

/// The most ranges that [`Ranges::parse`] takes.
///
/// ```
/// assert_eq!(libgrid::ftp::marker::MAX_RANGES, 1024);
/// ```
pub const MAX_RANGES: usize = 1024;

/// A set of bytes of a file: ranges `from..to` in order, which neither touch nor overlap.
///
/// ```
/// use libgrid::ftp::marker::Ranges;
/// let mut have = Ranges::default();
/// have.insert(0, 100);
/// have.insert(200, 300);
/// assert_eq!(have.to_string(), "0-100,200-300");
/// assert_eq!(have.prefix(), 100);
/// assert_eq!(have.gaps(400), [(100, 200), (300, 400)]);
/// have.insert(50, 200);
/// assert_eq!(have.to_string(), "0-300");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: Vec<(u64, u64)>,
}

/// The text is not a list of ranges.
///
/// ```
/// use libgrid::ftp::marker::Ranges;
/// assert_eq!(
///     Ranges::parse(b"5-1").unwrap_err().to_string(),
///     "\"5-1\" is not a list of ranges: FROM-TO,FROM-TO is expected, with FROM below TO"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a list of ranges: FROM-TO,FROM-TO is expected, with FROM below TO")]
pub struct RangeError {
    /// What was given, cut to 80 characters.
    pub text: String,
}

impl Ranges {
    /// Adds the bytes `from..to`.
    ///
    /// ```
    /// use libgrid::ftp::marker::Ranges;
    /// let mut have = Ranges::default();
    /// have.insert(5, 5);
    /// assert!(have.is_empty());
    /// ```
    pub fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.ranges.partition_point(|range| range.1 < from);
        let last = self.ranges.partition_point(|range| range.0 <= to);
        if first == last {
            self.ranges.insert(first, (from, to));
        } else {
            let merged = (from.min(self.ranges[first].0), to.max(self.ranges[last - 1].1));
            self.ranges.splice(first..last, [merged]);
        }
    }

    /// The ranges, in order.
    ///
    /// ```
    /// use libgrid::ftp::marker::Ranges;
    /// assert_eq!(Ranges::parse(b"0-1").unwrap().iter().next(), Some((0, 1)));
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// Whether there is no byte in it.
    ///
    /// ```
    /// assert!(libgrid::ftp::marker::Ranges::default().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many bytes are in it.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::marker::Ranges::parse(b"0-5,10-15").unwrap().bytes(), 10);
    /// ```
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(from, to)| to - from).sum()
    }

    /// How many bytes are there from the beginning without a gap.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::marker::Ranges::parse(b"1-5").unwrap().prefix(), 0);
    /// ```
    pub fn prefix(&self) -> u64 {
        self.ranges.first().filter(|range| range.0 == 0).map_or(0, |range| range.1)
    }

    /// One more than the last byte.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::marker::Ranges::parse(b"0-5,10-15").unwrap().end(), 15);
    /// ```
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.1)
    }

    /// What of `0..size` is not in it.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::marker::Ranges::default().gaps(7), [(0, 7)]);
    /// ```
    pub fn gaps(&self, size: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for &(from, to) in &self.ranges {
            if from.min(size) > at {
                gaps.push((at, from.min(size)));
            }
            at = at.max(to);
        }
        if at < size {
            gaps.push((at, size));
        }
        gaps
    }

    /// Reads `FROM-TO,FROM-TO`, in any order.
    ///
    /// # Errors
    /// [`RangeError`] when it is something else, or more than [`MAX_RANGES`].
    ///
    /// ```
    /// use libgrid::ftp::marker::Ranges;
    /// assert_eq!(Ranges::parse(b"10-20,0-10").unwrap().to_string(), "0-20");
    /// ```
    pub fn parse(text: &[u8]) -> Result<Ranges, RangeError> {
        let read = || {
            let mut ranges = Ranges::default();
            for (number, part) in text.split(|&byte| byte == b',').enumerate() {
                let part = std::str::from_utf8(part).ok()?.trim();
                let (from, to) = part.split_once('-')?;
                let (from, to) = (number_of(from)?, number_of(to)?);
                // Globus writes 0-0 for nothing yet.
                if number >= MAX_RANGES || from > to {
                    return None;
                }
                ranges.insert(from, to);
            }
            Some(ranges)
        };
        let shown = || String::from_utf8_lossy(text).chars().take(80).collect();
        read().ok_or_else(|| RangeError { text: shown() })
    }

    /// The reply 111 that tells of it.
    ///
    /// ```
    /// use libgrid::ftp::marker::Ranges;
    /// let reply = Ranges::parse(b"0-5").unwrap().to_reply();
    /// assert_eq!(reply.to_bytes(), b"111 Range Marker 0-5\r\n");
    /// ```
    pub fn to_reply(&self) -> Reply {
        Reply::new(111, format!("Range Marker {self}"))
    }

    /// Reads a reply 111; `None` if it is another.
    ///
    /// ```
    /// use libgrid::ftp::marker::Ranges;
    /// use libgrid::ftp::reply::Reply;
    /// let ranges = Ranges::from_reply(&Reply::new(111, "Range Marker 0-5")).unwrap();
    /// assert_eq!(ranges.end(), 5);
    /// ```
    pub fn from_reply(reply: &Reply) -> Option<Ranges> {
        let text = reply.text.first().filter(|_| reply.code == 111)?;
        let list = text.rsplit(|&byte| byte == b' ').next()?;
        Ranges::parse(list).ok()
    }
}

impl fmt::Display for Ranges {
    /// `0-0` stands for nothing, as nothing else could be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ranges.is_empty() {
            return f.write_str("0-0");
        }
        for (number, (from, to)) in self.ranges.iter().enumerate() {
            write!(f, "{}{from}-{to}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn number_of(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// How far a transfer is: the reply 112.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use libgrid::ftp::marker::Perf;
/// let perf = Perf { time: UNIX_EPOCH + Duration::from_millis(1500), stripe: 0, stripes: 1, bytes: 42 };
/// assert_eq!(Perf::from_reply(&perf.to_reply()), Some(perf));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perf {
    /// When it was so, to a tenth of a second.
    pub time: SystemTime,
    /// Of which stripe, from 0.
    pub stripe: u32,
    /// How many stripes there are.
    pub stripes: u32,
    /// How many bytes the stripe has moved.
    pub bytes: u64,
}

impl Perf {
    /// The reply that tells of it.
    ///
    /// ```
    /// use libgrid::ftp::marker::Perf;
    /// let perf = Perf { time: std::time::UNIX_EPOCH, stripe: 0, stripes: 1, bytes: 42 };
    /// assert!(perf.to_reply().to_bytes().starts_with(b"112-Perf Marker\r\n Timestamp:  0.0\r\n"));
    /// ```
    pub fn to_reply(&self) -> Reply {
        let since = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Reply::lines(
            112,
            [
                "Perf Marker".to_owned(),
                format!(" Timestamp:  {}.{}", since.as_secs(), since.subsec_millis() / 100),
                format!(" Stripe Index: {}", self.stripe),
                format!(" Stripe Bytes Transferred: {}", self.bytes),
                format!(" Total Stripe Count: {}", self.stripes),
                "End.".to_owned(),
            ],
        )
    }

    /// Reads a reply 112; `None` if it is another, or says no bytes.
    ///
    /// ```
    /// use libgrid::ftp::marker::Perf;
    /// use libgrid::ftp::reply::Reply;
    /// assert_eq!(Perf::from_reply(&Reply::new(226, "done")), None);
    /// ```
    pub fn from_reply(reply: &Reply) -> Option<Perf> {
        if reply.code != 112 {
            return None;
        }
        let mut perf = Perf { time: UNIX_EPOCH, stripe: 0, stripes: 1, bytes: 0 };
        let mut has_bytes = false;
        for line in &reply.text {
            let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':'))
            else {
                continue;
            };
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "timestamp" => {
                    let (seconds, tenths) = value.split_once('.').unwrap_or((value, "0"));
                    let tenths = tenths.bytes().next().filter(u8::is_ascii_digit)? - b'0';
                    let since = Duration::new(number_of(seconds)?, u32::from(tenths) * 100_000_000);
                    perf.time = UNIX_EPOCH.checked_add(since)?;
                }
                "stripe index" => perf.stripe = value.parse().ok()?,
                "total stripe count" => perf.stripes = value.parse().ok()?,
                "stripe bytes transferred" => {
                    perf.bytes = number_of(value)?;
                    has_bytes = true;
                }
                _ => (),
            }
        }
        has_bytes.then_some(perf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_holds_what_was_put_in(puts in vec((0u64..64, 0u64..64), 0..20)) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 64];
            for (from, to) in puts {
                ranges.insert(from, to);
                (from..to).for_each(|at| bytes[usize::try_from(at).unwrap()] = true);
            }
            let mut told = [false; 64];
            let mut before = None;
            for (from, to) in ranges.iter() {
                prop_assert!(from < to && before.is_none_or(|before| before < from));
                before = Some(to);
                (from..to).for_each(|at| told[usize::try_from(at).unwrap()] = true);
            }
            prop_assert_eq!(bytes, told);
            let missing: u64 = ranges.gaps(64).iter().map(|(from, to)| to - from).sum();
            prop_assert_eq!(missing + ranges.bytes(), 64);
            prop_assert_eq!(Ranges::parse(ranges.to_string().as_bytes()), Ok(ranges));
        }

        #[test]
        fn any_bytes_are_ranges_or_refused(bytes in vec(any::<u8>(), 0..60)) {
            let _ = Ranges::parse(&bytes);
            let _ = Perf::from_reply(&Reply::lines(112, [bytes]));
        }
    }
}
