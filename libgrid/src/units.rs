//! Amounts as people write them: cores, bytes, time.
//!
//! Each is a number on the wire, and text or a number in TOML and JSON.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share of the processors, in thousandths of a core; at least 0.001, at most 100,000 cores.
///
/// ```
/// use libgrid::units::Cpus;
/// assert_eq!("0.5".parse::<Cpus>().unwrap(), Cpus::from_milli(500));
/// assert_eq!(Cpus::cores(2).to_string(), "2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(u32);

/// An amount of memory or storage in bytes.
///
/// ```
/// use libgrid::units::Bytes;
/// assert_eq!("512M".parse::<Bytes>().unwrap(), Bytes(512 << 20));
/// assert_eq!(Bytes(3 << 29).to_string(), "1.5G");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A length of time, of at most 100 years.
///
/// ```
/// use libgrid::units::Span;
/// use std::time::Duration;
/// assert_eq!("1h30m".parse::<Span>().unwrap(), Span(Duration::from_secs(5400)));
/// assert_eq!(Span(Duration::from_secs(90)).to_string(), "1m30s");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// The text is no such amount.
///
/// ```
/// let error = "12Q".parse::<libgrid::units::Bytes>().unwrap_err();
/// assert_eq!(error.to_string(), "\"12Q\" is no amount of bytes: write a number and K, M, G or T, such as 512M, 16777215T at most");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: write {how}")]
pub struct ParseAmountError {
    text: String,
    what: &'static str,
    how: &'static str,
}

const CENTURY: u64 = 100 * 366 * 86_400;

// === impl Cpus ===

impl Cpus {
    /// Whole cores; more than 100,000 count as 100,000.
    ///
    /// ```
    /// assert_eq!(libgrid::units::Cpus::cores(1).milli(), 1000);
    /// ```
    pub fn cores(cores: u32) -> Self {
        Self(cores.clamp(1, 100_000) * 1000)
    }

    /// Thousandths of a core; 0 counts as 1.
    ///
    /// ```
    /// assert_eq!(libgrid::units::Cpus::from_milli(250).to_string(), "0.25");
    /// ```
    pub fn from_milli(milli: u32) -> Self {
        Self(milli.clamp(1, 100_000_000))
    }

    /// This share in thousandths of a core.
    ///
    /// ```
    /// assert_eq!("1.5".parse::<libgrid::units::Cpus>().unwrap().milli(), 1500);
    /// ```
    pub fn milli(self) -> u32 {
        self.0
    }

    /// With its noun.
    ///
    /// ```
    /// # use libgrid::units::Cpus;
    /// assert_eq!([Cpus::cores(1), Cpus::from_milli(1500)].map(Cpus::in_words), ["1 core", "1.5 cores"]);
    /// ```
    pub fn in_words(self) -> String {
        format!("{self} {}", if self == Self::cores(1) { "core" } else { "cores" })
    }

    fn from_number(cores: f64) -> Option<Self> {
        let milli = (cores * 1000.0).round();
        (1.0..=100_000_000.0).contains(&milli).then_some(Self(milli as u32))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / 1000.0).fmt(f)
    }
}

impl FromStr for Cpus {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Self, ParseAmountError> {
        text.parse().ok().and_then(Self::from_number).ok_or_else(|| ParseAmountError {
            text: clip(text),
            what: "number of cores",
            how: "a number from 0.001 to 100000, such as 2 or 0.5",
        })
    }
}

// === impl Bytes ===

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.0 {
            n if n >= 1 << 40 => ("T", 40),
            n if n >= 1 << 30 => ("G", 30),
            n if n >= 1 << 20 => ("M", 20),
            n if n >= 1 << 10 => ("K", 10),
            n => return n.fmt(f),
        };
        let amount = self.0 as f64 / (1u64 << shift) as f64;
        let text = format!("{amount:.1}");
        write!(f, "{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
    }
}

impl FromStr for Bytes {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Self, ParseAmountError> {
        let bare = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
        let (digits, shift) = match bare.as_bytes().last() {
            Some(b'K' | b'k') => (&bare[..bare.len() - 1], 10),
            Some(b'M' | b'm') => (&bare[..bare.len() - 1], 20),
            Some(b'G' | b'g') => (&bare[..bare.len() - 1], 30),
            Some(b'T' | b't') => (&bare[..bare.len() - 1], 40),
            _ => (bare, 0),
        };
        let amount = if digits.bytes().all(|b| b.is_ascii_digit()) {
            digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift))
        } else {
            let number = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let scaled = digits.parse::<f64>().ok().filter(|_| number).map(|n| n * (1u64 << shift) as f64);
            scaled.filter(|n| *n < u64::MAX as f64).map(|n| n as u64)
        };
        amount.map(Bytes).ok_or_else(|| ParseAmountError {
            text: clip(text),
            what: "amount of bytes",
            how: "a number and K, M, G or T, such as 512M, 16777215T at most",
        })
    }
}

// === impl Span ===

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        if secs < 60 {
            return if self.0.subsec_millis() == 0 {
                write!(f, "{secs}s")
            } else {
                write!(f, "{:.1}s", self.0.as_secs_f64())
            };
        }
        let parts = [(secs / 86_400, "d"), (secs / 3600 % 24, "h"), (secs / 60 % 60, "m"), (secs % 60, "s")];
        parts.iter().filter(|(n, _)| *n > 0).take(3).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

impl FromStr for Span {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Self, ParseAmountError> {
        parse_span(text).map(Span).ok_or_else(|| ParseAmountError {
            text: clip(text),
            what: "length of time",
            how: "numbers with d, h, m, s or ms, such as 10m or 1h30m, 100 years at most",
        })
    }
}

fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[..letters] {
            "d" => Duration::from_secs(86_400),
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(unit.checked_mul(u32::try_from(number).ok()?)?)?;
    }
    (!text.is_empty() && total.as_secs() <= CENTURY).then_some(total)
}

/// So much of a wrong text as an error message may repeat.
fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

// === serde ===

/// Accepts text, an integer or a float and turns them into `T`.
struct Amount<T> {
    expecting: &'static str,
    number: fn(f64) -> Option<T>,
}

impl<T: FromStr<Err = ParseAmountError>> Visitor<'_> for Amount<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_f64(number as f64)
    }
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_f64(number as f64)
    }
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::custom(format!("{number} is not {}", self.expecting)))
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() {
            out.serialize_f64(f64::from(self.0) / 1000.0)
        } else {
            out.serialize_u32(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let expecting = "a number of cores from 0.001 to 100000, such as 2 or 0.5";
            input.deserialize_any(Amount { expecting, number: Cpus::from_number })
        } else {
            let milli = u32::deserialize(input)?;
            Self::from_number(f64::from(milli) / 1000.0).ok_or_else(|| D::Error::custom("cores out of range"))
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let expecting = "an amount of bytes, such as \"512M\"";
            // Every whole number below 2^53 is exact; more memory than that nobody has.
            let number =
                |n: f64| (n >= 0.0 && n.fract() == 0.0 && n < 2f64.powi(53)).then_some(Bytes(n as u64));
            input.deserialize_any(Amount { expecting, number })
        } else {
            u64::deserialize(input).map(Bytes)
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() {
            out.serialize_f64(self.0.as_secs_f64())
        } else {
            out.serialize_u64(u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX))
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            let expecting = "a length of time, such as \"10m\" or a number of seconds";
            let number = |n: f64| (n >= 0.0 && n <= CENTURY as f64).then(|| Span(Duration::from_secs_f64(n)));
            input.deserialize_any(Amount { expecting, number })
        } else {
            u64::deserialize(input).map(|nanos| Span(Duration::from_nanos(nanos)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_out_of_range_or_without_unit_are_refused() {
        for text in ["", "0", "-1", "nan", "inf", "1e9", "two"] {
            assert!(text.parse::<Cpus>().is_err(), "{text:?} must be no cores");
        }
        for text in ["", "M", "-1M", "1e3", "99999999999T", "5 M", "inf"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?} must be no bytes");
        }
        for text in ["", "10", "m", "1y", "-5s", "4000000000d", "1h 5m"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} must be no time");
        }
    }

    #[test]
    fn what_is_printed_can_be_typed() {
        for text in ["512M", "1.5G", "7", "2T"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
        for text in ["10m", "1h30m", "2d", "45s", "1d1h1m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
