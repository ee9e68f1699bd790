//! When checkpoints of a task are written.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{SpecError, field, shown};
use crate::units::Span;

/// When checkpoints of a task are written: `adaptive`, `every=5m` or `off`.
///
/// ```
/// use libgrid::spec::Checkpoints;
/// let every: Checkpoints = "every=5m".parse().unwrap();
/// assert_eq!(every.to_string(), "every=5m");
/// assert!("sometimes".parse::<Checkpoints>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpoints {
    /// When they are asked for.
    #[default]
    Off,
    /// At intervals that follow from what they cost and from how often the node fails.
    Adaptive,
    /// At this interval, from a second on.
    Every(Span),
}

// === impl Checkpoints ===

impl fmt::Display for Checkpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checkpoints::Off => f.write_str("off"),
            Checkpoints::Adaptive => f.write_str("adaptive"),
            Checkpoints::Every(interval) => write!(f, "every={interval}"),
        }
    }
}

impl FromStr for Checkpoints {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let every = || Some(Checkpoints::Every(text.strip_prefix("every=")?.parse().ok()?));
        match text {
            "off" => Ok(Checkpoints::Off),
            "adaptive" => Ok(Checkpoints::Adaptive),
            _ => every().map_or_else(
                || {
                    let shown = shown(text);
                    field("checkpoint", format!("{shown:?} is not known: write adaptive, every=5m or off"))
                },
                Ok,
            ),
        }
    }
}

impl Serialize for Checkpoints {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() {
            return out.collect_str(self);
        }
        let (kind, interval) = match self {
            Checkpoints::Off => (0u8, None),
            Checkpoints::Adaptive => (1, None),
            Checkpoints::Every(interval) => (2, Some(*interval)),
        };
        (kind, interval).serialize(out)
    }
}

impl<'de> Deserialize<'de> for Checkpoints {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        if input.is_human_readable() {
            return String::deserialize(input)?.parse().map_err(D::Error::custom);
        }
        match Deserialize::deserialize(input)? {
            (0u8, None::<Span>) => Ok(Checkpoints::Off),
            (1, None) => Ok(Checkpoints::Adaptive),
            (2, Some(interval)) => Ok(Checkpoints::Every(interval)),
            _ => Err(D::Error::custom("no such way to checkpoint")),
        }
    }
}
