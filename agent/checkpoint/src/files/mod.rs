//! The files of a task: a folder as a stream of records, whole, or in rounds while its programs write to it.
//!
//! ```text
//!  Begin ─▶ (Remove │ Folder │ Symlink │ Pipe │ Link │ File, (Data │ Hole)*, About)* ─▶ Round ─▶ what changed since ... ─▶ Folders ─▶ End
//! ```
//!
//! A checkpoint has one stream for each folder that a task writes to, of one round, read while the task stood still. A move
//! in hybrid mode sends rounds while the task runs, and the last one when it stands still: then all that is read are the times of
//! files, and the contents of those that changed ([`Source`]). The other side puts each round in its place as it comes
//! ([`Target`]).
//!
//! Kept are files (with their holes), folders, symbolic and hard links and named pipes, with mode, time, and the extended
//! attributes of users. A socket's file is made again by CRIU when it binds the socket.
//!
//! **What changed.** A file whose times (`ctime`) and length are those of the last round has the content of the last round, but
//! for these, which are *unsure*, and are read and compared in the next round, block by block:
//! - those that changed after the round began, by the clock of the kernel, which ticks in milliseconds;
//! - those that a program had mapped when it began: what is written to a page that is dirty already leaves no trace
//!   (`page_mkwrite` in `Documentation/filesystems/vfs.rst` is called for clean ones);
//! - those that were open for writing and changed shortly before: a `write` notes the time first, and then the bytes;
//! - all, where the file system is none of those that are known to do so ([`Source::new`]): a tmpfs notes no time for what is
//!   written by mapping.
//!
//! A file that has another name now is sent anew.
//!
//! **Hostile input.** Records are frames of `libgrid::wire`, data comes in blocks; names lead nowhere but below the folder, through
//! no symbolic link, by `openat2` (Linux 5.6); what is made belongs to who makes it, and who starts that sees to it that it is not root.

mod source;
mod target;

pub use source::{Source, Unsure};
pub use target::Target;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the stream.
const VERSION: u16 = 1;

/// Bytes that are compared, and sent, as one.
const BLOCK: u64 = 64 << 10;

/// Bytes of the extended attributes of one file.
const MOST_ATTRIBUTES: usize = 1 << 20;

/// Bytes of the names of all files of a task: some millions of them. They are held in memory, twice.
const MOST_NAMED: usize = 256 << 20;

/// What is said in the stream. Names are paths from the folder, without `.` and `..`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Record {
    /// First of all.
    Begin { version: u16 },
    /// Nothing has this name any more; what was below it went before.
    Remove(Name),
    /// A folder.
    Folder(Name),
    /// A symbolic link, and what is in it.
    Symlink(Name, Name),
    /// A named pipe, and its mode.
    Pipe(Name, u32),
    /// Another name of a file.
    Link { name: Name, to: Name },
    /// A file, a new one or not, with so many bytes; what follows is about it.
    File { name: Name, new: bool, len: u64 },
    /// So many bytes follow, for this place in it.
    Data { at: u64, len: u32 },
    /// Nothing but zeros there.
    Hole { at: u64, len: u64 },
    /// All that is said of the file.
    About(About),
    /// What a folder is like at the end, the deepest first; the last is the one that all are in. Until then, their user may
    /// write to all of them.
    Folders(Name, About),
    /// The programs run on, and more will follow.
    Round,
    /// All was said.
    End,
}

/// A name may have any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Name(#[serde(with = "serde_bytes")] Vec<u8>);

/// What is kept of a file or a folder besides what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    mode: u32,
    seconds: i64,
    nanos: i64,
    attributes: Vec<(Name, Name)>,
}

/// With the path, and what was tried.
fn told(what: &str, path: &Path, error: &io::Error) -> io::Error {
    // One that was told deeper down stays as it is.
    if error.get_ref().is_some() {
        return io::Error::new(error.kind(), error.to_string());
    }
    let shown = if path.as_os_str().is_empty() { Path::new("the task's folder") } else { path };
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", shown.display()))
}

#[cfg(test)]
mod tests;
