//! Folders that are used again.
//!
//! Making and removing a task's folders on a disk takes longer than `/bin/true`. A folder in which a task left no
//! trace is kept for the next one: it is empty, and its mode and attributes are those that it was made with. Any
//! other is removed whole.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr;

use crate::{fifo, tree};

/// Makes a task's folder as new. True if it is still there, with `work` and `tmp` in it. `printed` says whether
/// there can be output beside them.
///
/// # Errors
/// Where what the task left cannot be removed.
pub fn clean(folder: &Path, printed: bool) -> io::Result<bool> {
    if !printed
        && !fifo::has_hands(folder)
        && untouched(&folder.join("work"))
        && untouched(&folder.join("tmp"))
    {
        return Ok(true);
    }
    match tree::remove(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(false),
    }
}

fn untouched(folder: &Path) -> bool {
    let Ok(meta) = fs::symlink_metadata(folder) else { return false };
    let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    meta.is_dir() && meta.mode() & 0o7777 == 0o700 && empty && !has_attributes(folder)
}

fn has_attributes(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_encoded_bytes()) else { return true };
    // SAFETY: a C string; with no buffer the call tells the size alone.
    let size = unsafe { libc::llistxattr(path.as_ptr(), ptr::null_mut(), 0) };
    size != 0
}
