//! Which network a task has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{SpecError, field, shown};

/// The network of a task: `host` or `grid`.
///
/// ```
/// use libgrid::spec::Net;
/// assert_eq!("grid".parse::<Net>().unwrap(), Net::Grid);
/// assert!("mesh".parse::<Net>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// That of its node. A task with connections cannot be moved.
    #[default]
    Host,
    /// Its own, with an address that it keeps on all its ways, which every node and task of the grid reaches. Connections
    /// between such tasks, and from nodes to them, move along.
    Grid,
}

// === impl Net ===

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Net::Host => "host",
            Net::Grid => "grid",
        })
    }
}

impl FromStr for Net {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "host" => Ok(Net::Host),
            "grid" => Ok(Net::Grid),
            _ => field("net", format!("{:?} is not known: write host or grid", shown(text))),
        }
    }
}
