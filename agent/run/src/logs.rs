//! What a task printed, in files of bounded size.
//!
//! A stream is kept in segments, each named by the offset at which it begins, counted from the task's start:
//!
//! ```text
//! stdout.0          dropped when the third segment begins
//! stdout.33554432
//! stdout.67108864   written to
//! ```
//!
//! A segment holds half of the limit, and the last two are kept: always the newest half of the limit, at most
//! the whole of it. An offset means the same byte for ever, so a follower can lose its connection, or find
//! that its place was dropped, and knows it. A task that prints nothing has no file.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use libgrid::control::Stream;

/// The name that a stream's segments begin with.
fn stem(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout.",
        Stream::Stderr => "stderr.",
    }
}

/// The file of the segment of `stream` that begins at `start`.
pub fn segment(folder: &Path, stream: Stream, start: u64) -> PathBuf {
    folder.join(format!("{}{start}", stem(stream)))
}

/// Whether a file of this name is a segment of either stream.
pub fn is_segment(name: &OsStr) -> bool {
    let start = |stream| name.to_str().and_then(|name| name.strip_prefix(stem(stream)));
    [Stream::Stdout, Stream::Stderr].into_iter().filter_map(start).any(|start| start.parse::<u64>().is_ok())
}

/// Where the segments of a stream begin that are in a folder, in no order; none if there is no folder.
///
/// # Errors
/// Where the folder cannot be read.
pub fn starts(folder: &Path, stream: Stream) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let start = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(stem(stream))?.parse().ok();
    Ok(entries.flatten().filter_map(start).collect())
}

/// The writing end; the shim's.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    stream: Stream,
    /// Bytes in a full segment.
    size: u64,
    current: Option<File>,
    /// Where the current segment begins.
    start: u64,
    /// Where the one before it begins.
    before: Option<u64>,
    /// Bytes so far.
    len: u64,
}

impl Writer {
    /// Keeps at most `limit` bytes in `folder`.
    pub fn new(folder: &Path, stream: Stream, limit: u64) -> Self {
        let size = (limit / 2).max(1);
        Self { folder: folder.to_owned(), stream, size, current: None, start: 0, before: None, len: 0 }
    }

    /// Goes on after `len` bytes, of which `folder` has what was kept. Bytes that are missing there are a gap to readers.
    ///
    /// # Errors
    /// Where a segment cannot be opened.
    pub fn resume(folder: &Path, stream: Stream, limit: u64, len: u64) -> io::Result<Self> {
        let mut writer = Self { start: len, len, ..Self::new(folder, stream, limit) };
        let mut starts: Vec<u64> =
            starts(folder, stream)?.into_iter().filter(|start| *start <= len).collect();
        starts.sort_unstable();
        let Some(start) = starts.pop() else { return Ok(writer) };
        let mut file = OpenOptions::new().write(true).open(segment(folder, stream, start))?;
        // One that ends before is whole, as far as it goes: the next begins behind the gap.
        if file.seek(SeekFrom::End(0))? == len - start {
            (writer.start, writer.current) = (start, Some(file));
            writer.before = starts.pop();
        } else {
            writer.before = Some(start);
        }
        Ok(writer)
    }

    /// Bytes written so far, dropped ones included.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file to write to next and how many bytes it still takes; at least one.
    ///
    /// # Errors
    /// Where no file can be made.
    pub fn room(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        let full = self.len - self.start >= self.size;
        if self.current.is_none() || full {
            let path = segment(&self.folder, self.stream, self.len);
            let next = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            if full {
                if let Some(oldest) = self.before.replace(self.start) {
                    fs::remove_file(segment(&self.folder, self.stream, oldest))?;
                }
                self.start = self.len;
            }
            self.current = Some(next);
        }
        let room = self.size - (self.len - self.start);
        self.current.as_ref().map(|file| (file.as_fd(), room)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Counts bytes that were written to the file of [`Writer::room`].
    pub fn wrote(&mut self, bytes: u64) {
        self.len += bytes;
    }
}

/// The reading end: a place in a stream.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    stream: Stream,
    offset: u64,
    open: Option<(u64, File)>,
}

impl Reader {
    /// Begins at the oldest byte that is kept.
    pub fn new(folder: &Path, stream: Stream) -> Self {
        Self { folder: folder.to_owned(), stream, offset: 0, open: None }
    }

    /// Begins at this offset, or at the oldest byte that is kept, if that is later.
    pub fn at(folder: &Path, stream: Stream, offset: u64) -> Self {
        Self { offset, ..Self::new(folder, stream) }
    }

    /// Reads on: the offset of the first byte and the bytes; none when all there is has been read. After a
    /// gap, the offset is larger than where the piece before ended.
    ///
    /// # Errors
    /// Where a segment cannot be read.
    pub fn read(&mut self, most: usize) -> io::Result<(u64, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            if let Some((start, file)) = &mut self.open {
                file.seek(SeekFrom::Start(self.offset - *start))?;
                file.take(most as u64).read_to_end(&mut bytes)?;
            }
            if !bytes.is_empty() {
                let at = self.offset;
                self.offset += bytes.len() as u64;
                return Ok((at, bytes));
            }
            // At the end of this segment: a later one that begins here or, after a gap, further on?
            let Some(start) = self.next_segment()? else {
                return Ok((self.offset, bytes));
            };
            match File::open(segment(&self.folder, self.stream, start)) {
                Ok(file) => {
                    self.offset = self.offset.max(start);
                    self.open = Some((start, file));
                }
                // Dropped between listing and opening.
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(error),
            }
        }
    }

    fn next_segment(&self) -> io::Result<Option<u64>> {
        let after = self.open.as_ref().map(|(start, _)| *start);
        let starts = starts(&self.folder, self.stream)?.into_iter();
        let mut later: Vec<u64> = starts.filter(|start| after.is_none_or(|after| *start > after)).collect();
        later.sort_unstable();
        // The one that holds the offset; those before it have been read.
        let at = later.partition_point(|start| *start <= self.offset).saturating_sub(1);
        Ok(later.get(at).copied())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(writer: &mut Writer, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (fd, room) = writer.room().unwrap();
            let piece = bytes.len().min(room as usize);
            File::from(fd.try_clone_to_owned().unwrap()).write_all(&bytes[..piece]).unwrap();
            writer.wrote(piece as u64);
            bytes = &bytes[piece..];
        }
    }

    fn read_all(reader: &mut Reader) -> Vec<(u64, Vec<u8>)> {
        std::iter::from_fn(|| Some(reader.read(1000).unwrap()).filter(|(_, bytes)| !bytes.is_empty()))
            .collect()
    }

    #[test]
    fn the_newest_bytes_are_kept_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), Stream::Stdout, 8);
        write(&mut writer, b"abcdefghijklmnop_");
        let kept: u64 =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!((4..=8).contains(&kept), "{kept} bytes kept");
        let read = read_all(&mut Reader::new(folder.path(), Stream::Stdout));
        assert_eq!(read, [(12, b"mnop".to_vec()), (16, b"_".to_vec())]);
    }

    #[test]
    fn a_follower_sees_every_byte_once_and_gaps_by_their_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), Stream::Stderr, 8);
        let mut reader = Reader::new(folder.path(), Stream::Stderr);
        assert_eq!(reader.read(10).unwrap(), (0, vec![]));
        write(&mut writer, b"ab");
        assert_eq!(reader.read(10).unwrap(), (0, b"ab".to_vec()));
        write(&mut writer, b"cdef");
        assert_eq!(read_all(&mut reader), [(2, b"cd".to_vec()), (4, b"ef".to_vec())]);
        write(&mut writer, b"ghijklmnopqrst");
        // The open segment is read to its end although it was removed; then comes the gap.
        assert_eq!(
            read_all(&mut reader),
            [(6, b"gh".to_vec()), (12, b"mnop".to_vec()), (16, b"qrst".to_vec())]
        );
    }

    #[test]
    fn a_writer_goes_on_where_another_was() {
        for len in 0..17 {
            let folder = tempfile::tempdir().unwrap();
            let all = &b"abcdefghijklmnopqrstuvwxyz"[..];
            write(&mut Writer::new(folder.path(), Stream::Stdout, 8), &all[..len]);
            let mut writer = Writer::resume(folder.path(), Stream::Stdout, 8, len as u64).unwrap();
            write(&mut writer, &all[len..]);
            let whole = tempfile::tempdir().unwrap();
            write(&mut Writer::new(whole.path(), Stream::Stdout, 8), all);
            let read = |folder: &Path| read_all(&mut Reader::new(folder, Stream::Stdout));
            assert_eq!(read(folder.path()), read(whole.path()), "after {len}");
        }
        // Where nothing is left of it, the rest is behind a gap.
        let folder = tempfile::tempdir().unwrap();
        write(&mut Writer::resume(folder.path(), Stream::Stdout, 8, 5).unwrap(), b"fgh");
        assert_eq!(read_all(&mut Reader::new(folder.path(), Stream::Stdout)), [(5, b"fgh".to_vec())]);
    }

    #[test]
    fn a_task_that_prints_nothing_has_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer::new(folder.path(), Stream::Stdout, 8);
        assert!(writer.is_empty() && fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
