//! What source and destination say to each other over the control stream: frames of [`libgrid::wire`].
//!
//! ```text
//!   source                                              destination
//!     ── Offer ────────────────────────────────────────▶   finds the place, begins to listen
//!     ◀── Ready, Held…, HeldEnd ────────────────────────   what an interrupted transfer left
//!     ── Open, Close (a large file) ───────────────────▶
//!     ══ data connections: records, see [`super::record`] ═▶
//!     ◀── Arrived, Again ───────────────────────────────
//!     ── End ──────────────────────────────────────────▶   all is there: names, times, folders
//!     ◀── Landed ───────────────────────────────────────
//!   either: Failed
//! ```
//!
//! What is very little is offered as such, and comes as one Inline before End, without data connections.

use std::path::{Component, Path, PathBuf};

use libgrid::copy::Landed;
use serde::{Deserialize, Serialize};

/// Bytes in a path at most, as the kernel has it.
const MAX_PATH: usize = 4096;

/// Extended attributes of one file, in bytes, at most; the kernel's own limit for a list of names.
pub(super) const MAX_ATTRIBUTES: usize = 64 << 10;

/// From the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromSource {
    /// The first message.
    Offer(Offer),
    /// A large file follows in ranges.
    Open {
        /// Its number in the records.
        file: u32,
        item: Item,
    },
    /// All ranges of a large file are given out: so many.
    Close { file: u32, ranges: u32 },
    /// All that there is to send, as one pack: it was offered so.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Everything is given out.
    End {
        /// Records with data in all.
        works: u64,
        /// Files and links that were not sent because they are there.
        skipped: u64,
    },
    /// The source cannot go on.
    Failed(Trouble),
}

/// From the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromDestination {
    /// Where the data connections go, and their key.
    Ready {
        port: u16,
        key: [u8; 32],
        certificate: Option<Vec<u8>>,
        /// Whether checksums are of use: what goes into a device is not read back.
        checksums: bool,
    },
    /// What is there already.
    Held(Vec<Held>),
    /// That was all of it.
    HeldEnd,
    /// These records are where they belong, and their checksums are right.
    Arrived(Vec<u64>),
    /// The checksum of this record is wrong: once more.
    Again(u64),
    /// Everything is in place.
    Landed(Landed),
    /// The destination cannot go on.
    Failed(Trouble),
}

/// What a source wants to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) shape: Shape,
    /// Tells this transfer from others to the same place: a transfer that is tried again has the same.
    pub(super) id: [u8; 8],
    pub(super) checksums: bool,
    /// It is so little that it comes over this stream.
    pub(super) inline: bool,
    /// The source's certificate for its data connections, if they are to be encrypted.
    pub(super) certificate: Option<Vec<u8>>,
}

/// The shape of what is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shape {
    /// One file of this name.
    File(RelPath),
    /// One folder of this name.
    Tree(RelPath),
    /// Several things, each with its name.
    Several,
}

/// A path below the folder that is sent; empty for that itself. Made only by [`RelPath::new`], also when decoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawPath", into = "RawPath")]
pub(super) struct RelPath(PathBuf);

#[derive(Serialize, Deserialize)]
struct RawPath(#[serde(with = "serde_bytes")] Vec<u8>);

impl RelPath {
    /// Checks that it stays below: no `..`, not absolute, not too long.
    pub(super) fn new(path: PathBuf) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = path.as_os_str().as_bytes();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if bytes.len() > MAX_PATH || bytes.contains(&0) || !plain {
            return Err(format!("{} is not a path below the folder that is sent", path.display()));
        }
        Ok(Self(path))
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<RawPath> for RelPath {
    type Error = String;

    fn try_from(raw: RawPath) -> Result<Self, String> {
        use std::os::unix::ffi::OsStringExt;
        Self::new(std::ffi::OsString::from_vec(raw.0).into())
    }
}

impl From<RelPath> for RawPath {
    fn from(path: RelPath) -> Self {
        use std::os::unix::ffi::OsStringExt;
        Self(path.0.into_os_string().into_vec())
    }
}

/// A file, folder or link, without its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) path: RelPath,
    pub(super) what: What,
    /// The permission bits; set-user-id and its like are not sent.
    pub(super) mode: u32,
    pub(super) modified: Time,
    /// Extended attributes of the `user.` class.
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    File {
        /// Bytes.
        size: u64,
    },
    Folder,
    Link(#[serde(with = "serde_bytes")] Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attribute {
    #[serde(with = "serde_bytes")]
    pub(super) name: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(super) value: Vec<u8>,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

/// What an earlier try left of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) path: RelPath,
    pub(super) size: u64,
    pub(super) modified: Time,
    /// Parts that are there, as start and end; `None`: all of it.
    pub(super) ranges: Option<Vec<(u64, u64)>>,
}

/// Why a transfer ended early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct Trouble {
    /// One sentence: which side, which file, at which byte, and why.
    pub why: String,
    /// Whether it may go well when it is tried again.
    pub retry: bool,
    /// What somebody has to do first, if what came is kept and the next try goes on there.
    pub first: Option<String>,
}

impl Trouble {
    /// One that trying again does not mend.
    pub fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), retry: false, first: None }
    }

    /// One that trying again may mend.
    pub fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), retry: true, first: None }
    }

    /// One that somebody has to mend, and then the next try goes on.
    pub(super) fn until(first: &str, why: String) -> Self {
        Self { why, retry: false, first: Some(first.into()) }
    }

    /// The control stream or a data connection ended.
    pub(super) fn broken(error: impl std::fmt::Display) -> Self {
        Self::passing(format!("the connection to the other node broke: {error}"))
    }

    /// A message that does not fit.
    pub(super) fn confused() -> Self {
        Self::lasting("the other node says what makes no sense here: do both run the same release?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_elsewhere_is_not_even_decoded() {
        for bad in ["../x", "/etc", "a/../../b", "./a"] {
            let bytes = libgrid::wire::encode(&RawPath(bad.into())).unwrap();
            assert!(libgrid::wire::decode::<RelPath>(&bytes).is_err(), "{bad}");
        }
        for good in ["", "a", "a/b c/\u{e4}"] {
            let path = RelPath::new(good.into()).unwrap();
            let bytes = libgrid::wire::encode(&path).unwrap();
            assert_eq!(libgrid::wire::decode::<RelPath>(&bytes).unwrap(), path);
        }
    }
}
