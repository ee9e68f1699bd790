//! What follows of a task that stands still, on its way as one archive: what the shim has written of it, its output, and CRIU's
//! images; in them its memory, if that does not move by itself.
//!
//! It is packed as it is sent and unpacked as it comes, so that nothing of it is held in memory. What comes makes folders and
//! files below one folder and nothing else, and no more of them than was said.
//!
//! The task stands still meanwhile, and the most of it is pages of libraries: compressed quickly, they are a tenth, and cost both
//! agents a third of what it takes to encrypt and send them as they are.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use grid_checkpoint::{Description, memory, preflight};
use tokio::io::BufReader;
use tokio::net::UnixStream;

use crate::checkpoint::{About, Luggage, Unpacked, remove};
use crate::control::Stream;

/// Bytes that are passed on at once.
const PIECE: usize = 256 << 10;

/// Of zstd: half a gigabyte in a second.
const LEVEL: i32 = 1;

/// How far back what is compressed may refer, as a power of two: what the sender's level needs, and no more memory than that.
const MOST_WINDOW: u32 = 21;

/// Files and folders of a checkpoint at most: CRIU writes a few for each process.
const MOST_ENTRIES: usize = 1 << 18;

/// Sends what follows of a task, compressed.
pub(crate) async fn send(luggage: Luggage, to: &mut impl Stream) -> io::Result<()> {
    let pack = move |end| {
        let packed = zstd::Encoder::new(end, LEVEL)
            .and_then(|end| archive(end, &luggage.folder, luggage.images.as_deref()))
            .and_then(zstd::Encoder::finish);
        // What it keeps here may go.
        drop(luggage);
        packed.map(drop)
    };
    send_packed(pack, to).await
}

/// Sends a folder.
pub(crate) async fn send_folder(folder: PathBuf, to: &mut impl Stream) -> io::Result<()> {
    send_packed(move |end| archive(end, &folder, None).map(drop), to).await
}

/// Sends what this writes.
async fn send_packed(
    pack: impl FnOnce(StdStream) -> io::Result<()> + Send + 'static,
    to: &mut impl Stream,
) -> io::Result<()> {
    let (from, end) = UnixStream::pair()?;
    let end = blocking_end(end)?;
    let packing = tokio::task::spawn_blocking(move || pack(end));
    tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE, from), to).await?;
    packing.await.map_err(io::Error::other)?
}

/// Packs a folder, and one of images. The links in them stay behind.
fn archive<W: io::Write>(to: W, folder: &Path, images: Option<&Path>) -> io::Result<W> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(PIECE, to));
    archive.follow_symlinks(false);
    // Or what has holes would be of a kind of its own.
    archive.sparse(false);
    pack(&mut archive, folder, Path::new(""))?;
    if let Some(images) = images {
        archive.append_dir(memory::IMAGES, images)?;
        pack(&mut archive, images, Path::new(memory::IMAGES))?;
    }
    archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)
}

/// Packs what is in a folder, below this name.
fn pack(archive: &mut tar::Builder<impl io::Write>, folder: &Path, below: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, kind) = (below.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            archive.append_dir(&name, entry.path())?;
            pack(archive, &entry.path(), &name)?;
        } else if kind.is_file() {
            archive.append_path_with_name(entry.path(), &name)?;
        }
    }
    Ok(())
}

/// What is read is counted.
pub(super) struct Counted<R>(pub(super) R, pub(super) Arc<AtomicU64>);

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.read(buffer)?;
        self.1.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Takes what follows of a task, so many bytes at most, and counts them.
pub(super) async fn take(
    from: grid_link::Duplex,
    into: &Path,
    images: Option<&Path>,
    number: u64,
    bytes: u64,
    came: Arc<AtomicU64>,
) -> io::Result<Unpacked> {
    let (into, images) = (into.to_owned(), images.map(Path::to_owned));
    if let Some(blocker) = preflight::room(into.parent().unwrap_or(&into), bytes)? {
        return Err(io::Error::other(blocker.to_string()));
    }
    receive(from, move |end| {
        let mut end = zstd::Decoder::new(end)?;
        end.window_log_max(MOST_WINDOW)?;
        unpack(Counted(end, came), &into, images.as_deref(), number, bytes)
    })
    .await
}

/// Takes what comes, as this unpacks it.
pub(super) async fn receive<T: Send + 'static>(
    from: grid_link::Duplex,
    unpack: impl FnOnce(StdStream) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (mut to, end) = UnixStream::pair()?;
    let end = blocking_end(end)?;
    let unpacking = tokio::task::spawn_blocking(move || unpack(end));
    // One that cannot be unpacked says why itself.
    let _ = tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE, from), &mut to).await;
    drop(to);
    unpacking.await.map_err(io::Error::other)?
}

/// Into this folder; the images to another, if there is one for them.
fn unpack(
    from: impl io::Read,
    into: &Path,
    images: Option<&Path>,
    number: u64,
    bytes: u64,
) -> io::Result<Unpacked> {
    remove(into);
    DirBuilder::new().recursive(true).mode(0o700).create(into)?;
    let unpacked = (|| {
        extract(from, into, images, bytes)?;
        let description = Description::read(into).map_err(io::Error::other)?;
        let about = About::read_in(into).map_err(io::Error::other)?;
        Ok((about, description.streams.printed))
    })();
    let (about, printed) = unpacked.inspect_err(|_: &io::Error| remove(into))?;
    Ok(Unpacked { number, folder: into.to_owned(), about, printed, passed: Vec::new() })
}

/// Unpacks a folder that came, so many bytes at most; images to another, if there is one for them.
pub(super) fn extract(from: impl io::Read, into: &Path, images: Option<&Path>, bytes: u64) -> io::Result<()> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(PIECE, from));
    let mut left = bytes;
    // Raw: names are short, and headers that say more of an entry would be read whole into memory.
    for (count, entry) in archive.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        if count == MOST_ENTRIES {
            return Err(io::Error::other("it holds more files than a checkpoint has"));
        }
        let kind = entry.header().entry_type();
        left =
            left.checked_sub(entry.size()).ok_or_else(|| io::Error::other("it is larger than was said"))?;
        let name = entry.path()?.into_owned();
        let stays = name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        // Nothing but these is made there: no name leads out of the folder. Modes and times are of no use.
        let path = match images.zip(name.strip_prefix(memory::IMAGES).ok()) {
            Some((images, name)) if name == Path::new("") => images.to_owned(),
            Some((images, name)) => images.join(name),
            None => into.join(name),
        };
        match (kind.is_file(), kind.is_dir()) {
            (true, _) if stays => drop(io::copy(&mut entry, &mut File::create_new(path)?)?),
            (_, true) if stays => DirBuilder::new().recursive(true).mode(0o700).create(path)?,
            _ => return Err(io::Error::other("it holds what does not belong there")),
        }
    }
    Ok(())
}

fn blocking_end(end: UnixStream) -> io::Result<StdStream> {
    let end = end.into_std()?;
    end.set_nonblocking(false)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Packs with these entries beside a description, and unpacks with room for so many bytes.
    fn carried(bytes: u64, add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Result<(), String> {
        let root = tempfile::tempdir().unwrap();
        let [from, into] = ["from", "into"].map(|name| root.path().join(name));
        fs::create_dir(&from).unwrap();
        let streams = grid_checkpoint::order::Streams { printed: [3, 4], ..Default::default() };
        let description =
            Description::new(7, "/w".into(), Vec::new(), streams, Duration::ZERO, Default::default());
        description.write(&from, false).unwrap();
        About::new(Duration::ZERO, None, None, 7, 0).write(&from).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all(".", &from).unwrap();
        add(&mut archive);
        let packed = archive.into_inner().unwrap();
        let (near, far) = StdStream::pair().unwrap();
        let sending = std::thread::spawn(move || {
            // One that reads no more says why.
            let _ = io::Write::write_all(&mut &far, &packed);
        });
        let unpacked = unpack(near, &into, None, 5, bytes);
        sending.join().unwrap();
        if unpacked.is_err() {
            assert!(!into.exists(), "nothing is left");
        }
        let unpacked = unpacked.map_err(|error| error.to_string())?;
        assert_eq!((unpacked.number, unpacked.printed, unpacked.about.uid), (5, [3, 4], 7));
        Ok(())
    }

    #[test]
    fn links_stay_behind() {
        let root = tempfile::tempdir().unwrap();
        let [from, into] = ["from", "into"].map(|name| root.path().join(name));
        fs::create_dir_all(from.join("images")).unwrap();
        fs::create_dir(&into).unwrap();
        fs::write(from.join("images/core"), "core").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("images/parent")).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        pack(&mut archive, &from, Path::new("")).unwrap();
        extract(archive.into_inner().unwrap().as_slice(), &into, None, 4).unwrap();
        let names = fs::read_dir(into.join("images")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["core"]);
    }

    #[test]
    fn what_is_carried_is_no_more_than_was_said_and_stays_in_its_folder() {
        let room = 1 << 20;
        carried(room, |_| ()).unwrap();
        assert!(carried(10, |_| ()).unwrap_err().contains("larger"));
        let link = |kind, name: &str, target: &str| {
            let (name, target) = (name.to_owned(), target.to_owned());
            move |archive: &mut tar::Builder<Vec<u8>>| {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(0);
                archive.append_link(&mut header, name, target).unwrap();
            }
        };
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
            assert!(carried(room, link(kind, "images", "/etc")).unwrap_err().contains("does not belong"));
        }
        let outside = |archive: &mut tar::Builder<Vec<u8>>| {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            // As the crate itself would not write it.
            header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../../out");
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
        };
        assert!(carried(room, outside).unwrap_err().contains("does not belong"));
    }
}
