//! The indices of an array.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{SpecError, field, shown};

/// The indices of an array, both ends included, and how many of its tasks run at one time at most: `0-99`, `0-99%8`.
///
/// ```
/// use libgrid::spec::Indices;
/// let indices: Indices = "10-19%4".parse().unwrap();
/// assert_eq!((indices.count(), indices.at_once()), (10, Some(4)));
/// assert!("5-4".parse::<Indices>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indices {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) at_once: Option<u32>,
}

impl Indices {
    /// How many they are.
    ///
    /// ```
    /// assert_eq!("0-0".parse::<libgrid::spec::Indices>().unwrap().count(), 1);
    /// ```
    pub fn count(self) -> u32 {
        (self.last - self.first).saturating_add(1)
    }

    /// How many of its tasks run at one time at most; as many as there is room for if absent.
    ///
    /// ```
    /// assert_eq!("0-9".parse::<libgrid::spec::Indices>().unwrap().at_once(), None);
    /// ```
    pub fn at_once(self) -> Option<u32> {
        self.at_once
    }

    fn new(first: u32, last: u32, at_once: Option<u32>) -> Option<Self> {
        (first <= last && at_once != Some(0)).then_some(Self { first, last, at_once })
    }

    fn parse(text: &str) -> Option<Self> {
        let (range, at_once) = match text.split_once('%') {
            Some((range, at_once)) => (range, Some(at_once.parse().ok()?)),
            None => (text, None),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Self::new(first.parse().ok()?, last.parse().ok()?, at_once)
    }
}

impl fmt::Display for Indices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)?;
        self.at_once.map_or(Ok(()), |at_once| write!(f, "%{at_once}"))
    }
}

impl FromStr for Indices {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || {
            let shown = shown(text);
            field(
                "array",
                format!(
                    "{shown:?} is no range: write FIRST-LAST, such as 0-99, the last not below the first, or 0-99%8 \
                     to run 8 at a time"
                ),
            )
        };
        Self::parse(text).map_or_else(wrong, Ok)
    }
}

impl Serialize for Indices {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match out.is_human_readable() {
            true => out.collect_str(self),
            false => (self.first, self.last, self.at_once).serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for Indices {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            return input.deserialize_any(Written);
        }
        let (first, last, at_once) = Deserialize::deserialize(input)?;
        Self::new(first, last, at_once).ok_or_else(|| D::Error::custom("no indices of an array"))
    }
}

/// A range, or the one index, as in a job file.
struct Written;

impl Visitor<'_> for Written {
    type Value = Indices;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a range such as \"0-99\", or a number")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Indices, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, index: u64) -> Result<Indices, E> {
        self.visit_str(&index.to_string())
    }

    fn visit_i64<E: Error>(self, index: i64) -> Result<Indices, E> {
        self.visit_str(&index.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["0-99", "7-7", "0-99%8", "0-4294967294%1"] {
            assert_eq!(text.parse::<Indices>().unwrap().to_string(), text);
        }
        assert_eq!("7".parse::<Indices>().unwrap().to_string(), "7-7");
        for wrong in ["", "-", "9-1", "0-9%", "0-9%0", "0-9%-1", "%4", "0-9%4%4", "0-4294967296"] {
            let message = wrong.parse::<Indices>().unwrap_err().to_string();
            assert!(message.starts_with(&format!("array: {wrong:?} is no range: ")), "{message}");
        }
    }
}
