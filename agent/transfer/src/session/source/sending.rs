//! What goes over one data connection of a source, and the checksums beside it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use libgrid::io::{ReadAhead, Side};

use super::{Source, Work};
use crate::session::conduit::Conduit;
use crate::session::journal;
use crate::session::locked;
use crate::session::message::{Time, Trouble, What};
use crate::session::queue::Next;
use crate::session::record::{MAX_PACK, Pack, Record, Sequence};
use crate::session::walk::{self, Found};

/// How far ahead of the sender the disk is read, in ranges.
const AHEAD: u64 = 8;

/// Threads that read ahead.
const READERS: usize = 2;

/// A large file that is being sent.
pub(super) struct Sending {
    pub(super) number: u32,
    pub(super) file: Arc<File>,
    pub(super) shown: PathBuf,
    pub(super) size: u64,
    pub(super) modified: Time,
}

impl Source {
    pub(super) fn stream(&self, number: u32, mut conduit: Conduit) -> Result<(), Trouble> {
        let mut sequence = Sequence::new(self.door.key, number);
        loop {
            let (id, work) = match self.queue.pop(Duration::from_secs(3600)) {
                Next::Item(next) => next,
                Next::Nothing => continue,
                Next::Closed => {
                    conduit.finish();
                    return Ok(());
                }
            };
            self.mark(id, &work, number);
            match work {
                Work::Sum { work, sum } => {
                    let header = sequence.header(Record::Sum { work }, &sum);
                    conduit
                        .write(&header, true)
                        .and_then(|()| conduit.write(&sum, false))
                        .map_err(Trouble::broken)?;
                }
                Work::Pack(items) => {
                    let bytes =
                        pack(&mut locked(&items)).inspect_err(|trouble| self.fail(trouble.clone()))?;
                    self.pace.wait(bytes.len() as u64);
                    // The one kind of data that is bound by its header: it is in memory.
                    let record = Record::Pack { work: id, length: bytes.len() as u64 };
                    let body = if self.checksums { &bytes[..] } else { &[] };
                    let header = sequence.header(record, body);
                    conduit
                        .write(&header, true)
                        .and_then(|()| conduit.write(&bytes, false))
                        .map_err(Trouble::broken)?;
                }
                Work::Range { file, offset, length } => {
                    if self.checksums && !self.sums.push((id, file.clone(), offset, length)) {
                        return Ok(());
                    }
                    let ahead = offset + length..file.size.min(offset + length + AHEAD * self.range);
                    if offset.is_multiple_of(AHEAD * self.range) {
                        // Without, it is slower, and no worse.
                        let pool = self.ahead.get_or_init(|| ReadAhead::new(READERS).ok());
                        if let Some(pool) = pool {
                            pool.fill(&file.file, ahead);
                        }
                    }
                    let record = Record::Range { work: id, file: file.number, offset, length };
                    conduit.write(&sequence.header(record, &[]), true).map_err(Trouble::broken)?;
                    self.send_range(&mut conduit, &file, offset, length)?;
                }
            }
        }
    }

    fn send_range(
        &self,
        conduit: &mut Conduit,
        file: &Sending,
        offset: u64,
        length: u64,
    ) -> Result<(), Trouble> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let piece = self.pace.piece(end - at);
            self.pace.wait(piece);
            conduit.send(&file.file, at, piece, |_| ()).map_err(|broken| match broken.side {
                Side::Network => Trouble::broken(broken.source),
                Side::File => {
                    let why = format!(
                        "{} cannot be read at byte {}: {}",
                        file.shown.display(),
                        at + broken.moved,
                        broken.source
                    );
                    let trouble = match broken.source.kind() {
                        std::io::ErrorKind::UnexpectedEof => changed(&file.shown),
                        _ => Trouble::lasting(why),
                    };
                    self.fail(trouble.clone());
                    trouble
                }
            })?;
            at += piece;
        }
        Ok(())
    }

    /// Notes over which connection a piece goes.
    fn mark(&self, id: u64, work: &Work, number: u32) {
        let mut outstanding = locked(&self.outstanding);
        let (id, slot) = match work {
            Work::Sum { work, .. } => (*work, 1),
            _ => (id, 0),
        };
        if let Some(sent) = outstanding.sent.get_mut(&id) {
            sent.over[slot] = Some(number);
        }
    }

    pub(super) fn hash(&self) {
        while let Next::Item((work, file, offset, length)) = self.sums.pop(Duration::from_secs(3600)) {
            match journal::hash(&file.file, offset, length) {
                Ok(sum) => self.queue.push_front((work, Work::Sum { work, sum })),
                Err(error) => self.fail(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => changed(&file.shown),
                    _ => walk::unreadable(&file.shown, &error),
                }),
            }
        }
    }
}

impl Sending {
    pub(super) fn changed(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(now) = self.file.metadata() else { return true };
        let modified = Time { seconds: now.mtime(), nanos: u32::try_from(now.mtime_nsec()).unwrap_or(0) };
        now.len() != self.size || modified != self.modified
    }
}

pub(super) fn changed(path: &std::path::Path) -> Trouble {
    Trouble::passing(format!("{} changed while it was read", path.display()))
}

/// Small things as they are packed, their contents read now.
pub(super) fn pack(items: &mut [Found]) -> Result<Vec<u8>, Trouble> {
    let mut pack = Pack::new();
    for found in items {
        let file = match found.item.what {
            What::File { .. } => {
                Some(found.open().map_err(|error| walk::unreadable(&found.shown(), &error))?)
            }
            _ => None,
        };
        let size = found.size();
        let added = pack.add(&found.item, |to| file.map_or(Ok(()), |file| read_small(&file, size, to)));
        added.map_err(|_| changed(&found.shown()))?;
    }
    if pack.len() > MAX_PACK {
        return Err(Trouble::lasting(
            "the extended attributes of 256 small files are larger than 6 MiB together",
        ));
    }
    Ok(pack.into_bytes())
}

/// Reads a file of this size; one byte more is asked for, so that a file that grew is found with the same call.
fn read_small(mut file: &File, size: u64, to: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::Read;
    let start = to.len();
    let most = start + usize::try_from(size).map_err(std::io::Error::other)? + 1;
    to.resize(most, 0);
    let mut at = start;
    while at < most {
        let came = file.read(&mut to[at..])?;
        at += came;
        // A regular file gives less than asked for only at its end.
        if came == 0 || at + 1 == most {
            break;
        }
    }
    to.truncate(at);
    Ok(())
}
