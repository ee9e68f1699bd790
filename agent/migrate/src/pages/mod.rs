//! The page stream, from the source to the destination.
//!
//! ```text
//!  Begin ─▶ (Pages │ Zero │ Round)* ─▶ (Exists │ Dirty)* ─▶ Listed ─▶ (Pages │ Zero)* ─▶ End
//!           while the program runs     the scan at the freeze          what is dirty
//! ```
//!
//! Each record is a frame of `libgrid::wire`; the bytes of `Pages` follow their record. Processes go by the number that they
//! have in CRIU's images. Between all of them, its files travel along (`Files`). A later page takes the place of an earlier one. What `Exists` does not name is dropped, what
//! `Dirty` names is stale until it comes again: so the destination can serve the rest from `Listed` on.
//!
//! **Hostile input.** Every record is bounded ([`MOST_PAGES`], [`MOST_RANGES`], `wire`'s frames), addresses have to be
//! those of user space, ranges in order, and the store that reads the stream holds no more than it was told to, nor knows
//! more of empty pages than a task of that size can have. `fuzz/functions/pages.rs` holds it to that.

mod sink;

pub use sink::{PageSink, SinkError};

use serde::{Deserialize, Serialize};

/// The version of the stream.
pub const VERSION: u16 = 2;

/// Pages in one record: 4 MiB.
pub const MOST_PAGES: u32 = 1024;

/// Ranges in one record.
pub const MOST_RANGES: usize = 4096;

/// A range of pages: the address, and how many.
pub type Pages = (u64, u32);

/// What is said in the stream.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// First of all.
    Begin {
        /// [`VERSION`].
        version: u16,
    },
    /// The bytes of these pages follow.
    Pages {
        /// The process.
        pid: i32,
        /// The address of the first.
        at: u64,
        /// How many.
        pages: u32,
    },
    /// These pages are empty.
    Zero {
        /// The process.
        pid: i32,
        /// The address of the first.
        at: u64,
        /// How many.
        pages: u32,
    },
    /// A round is over.
    Round,
    /// A piece of the stream of its files ([`grid_checkpoint::files`]), at any time.
    Files(#[serde(with = "serde_bytes")] Vec<u8>),
    /// These pages exist at the freeze; in order, over any number of records.
    Exists {
        /// The process.
        pid: i32,
        /// Where they are.
        ranges: Vec<Pages>,
    },
    /// These of them are still to come; in order, over any number of records.
    Dirty {
        /// The process.
        pid: i32,
        /// Where they are.
        ranges: Vec<Pages>,
    },
    /// All that exists was named.
    Listed,
    /// All was sent.
    End,
}
