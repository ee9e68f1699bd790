//! One pipe: what is in it, who reads and writes, and when that is at its end.

mod carried;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libgrid::control::{Failure, Kind, MAX_CHUNK};
use libgrid::pipe::PipeSpec;
use tokio::sync::Notify;

use self::carried::Carried;
pub(super) use self::carried::{CarriedReading, CarriedWriting, Key};
use super::spill::Spill;

/// Bytes, and how many were handed out before them.
type Given = (u64, Vec<u8>);

pub(super) struct Pipe {
    spec: PipeSpec,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    queue: Queue,
    /// What a reader got and did not say that it has: the next one's.
    returned: VecDeque<Given>,
    /// What readers have got just now.
    lent: usize,
    readers: u32,
    writers: u32,
    /// How often there was a first writer.
    opened: u64,
    carried: Carried,
    removed: bool,
}

enum Queue {
    /// `given` counts the bytes that were handed out.
    Memory {
        parts: VecDeque<Vec<u8>>,
        held: usize,
        given: u64,
    },
    Spill(Spill),
}

/// Who reads; no more when it is dropped.
pub(super) struct Reading {
    pipe: Arc<Pipe>,
    /// How often there had been a first writer that is gone.
    since: u64,
    had: bool,
}

/// Who writes.
pub(super) struct Writing(Arc<Pipe>);

/// What a reader got; the next reader's, unless it says that it has it.
pub(super) struct Lent {
    pipe: Arc<Pipe>,
    part: Option<Given>,
}

impl Pipe {
    pub(super) fn open(spec: PipeSpec, folder: &Path) -> io::Result<Arc<Self>> {
        let queue = match spec.spill {
            Some(_) => Queue::Spill(Spill::open(folder, &spec.name)?),
            None => Queue::Memory { parts: VecDeque::new(), held: 0, given: 0 },
        };
        let (returned, carried) = (VecDeque::new(), Carried::default());
        let (readers, writers, opened) = (0, 0, 0);
        let state = State { queue, returned, lent: 0, readers, writers, opened, carried, removed: false };
        let pipe = Arc::new(Self { spec, state: Mutex::new(state), changed: Notify::new() });
        pipe.expect_writers()?;
        Ok(pipe)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> u64 {
        self.spec.capacity.0 + self.spec.spill.map_or(0, |spill| spill.0)
    }

    /// Bytes that are held, and how many read and write.
    pub(super) fn counts(&self) -> (u64, u32, u32) {
        let state = self.lock();
        (state.held(), state.readers, state.writers)
    }

    /// Nobody can use it any more.
    pub(super) fn remove(&self) {
        self.lock().removed = true;
        self.changed.notify_waiters();
    }

    /// Waits until `done` has an answer; it is asked again after each change.
    async fn until<T>(&self, mut done: impl FnMut(&mut State) -> Option<T>) -> Result<T, Failure> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.removed {
                    let why = format!("pipe {} was removed", self.spec.name);
                    return Err(Failure::new(Kind::Missing, why));
                }
                if let Some(answer) = done(&mut state) {
                    return Ok(answer);
                }
            }
            changed.await;
        }
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let why =
            format!("pipe {} cannot use its file: {error}: make room in the state folder", self.spec.name);
        Failure::new(Kind::Internal, why)
    }
}

impl State {
    fn held(&self) -> u64 {
        match &self.queue {
            Queue::Memory { held, .. } => *held as u64,
            Queue::Spill(spill) => spill.held(),
        }
    }

    /// Another reads; how often there had been a first writer that is gone.
    fn begin_reading(&mut self) -> u64 {
        self.readers += 1;
        self.opened - u64::from(self.writers > 0)
    }

    fn begin_writing(&mut self) {
        self.opened += u64::from(self.writers == 0);
        self.writers += 1;
    }

    fn fits(&self, bytes: &[u8], limit: u64) -> bool {
        self.held() == 0 || self.held() + bytes.len() as u64 <= limit
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.queue {
            Queue::Memory { parts, held, .. } => {
                *held += bytes.len();
                parts.push_back(bytes.to_vec());
                Ok(())
            }
            Queue::Spill(spill) => spill.push(bytes),
        }
    }

    /// The next bytes, if there are some.
    fn take(&mut self) -> io::Result<Option<Given>> {
        if let Some(part) = self.returned.pop_front() {
            return Ok(Some(part));
        }
        let (at, bytes) = match &mut self.queue {
            Queue::Memory { parts, given, .. } => {
                let mut bytes = parts.pop_front().unwrap_or_default();
                while let Some(part) = parts.pop_front_if(|part| bytes.len() + part.len() <= MAX_CHUNK) {
                    bytes.extend(part);
                }
                let at = *given;
                *given += bytes.len() as u64;
                (at, bytes)
            }
            Queue::Spill(spill) => spill.take(MAX_CHUNK)?,
        };
        Ok((!bytes.is_empty()).then_some((at, bytes)))
    }

    /// The next bytes for a reader, or nothing at the end, which one comes to that has had something or seen a writer. If absent,
    /// it is to wait.
    fn lend(&mut self, written: bool) -> io::Result<Option<Option<Given>>> {
        let part = self.take()?;
        self.lent += usize::from(part.is_some());
        let ended = self.writers == 0 && self.lent == 0 && written;
        Ok((part.is_some() || ended).then_some(part))
    }

    fn had(&mut self, at: u64, len: usize) -> io::Result<()> {
        match &mut self.queue {
            Queue::Memory { held, .. } => *held -= len,
            Queue::Spill(spill) => spill.had(at)?,
        }
        Ok(())
    }
}

// === impl Reading ===

impl Reading {
    pub(super) fn begin(pipe: &Arc<Pipe>) -> Self {
        let since = pipe.lock().begin_reading();
        Self { pipe: pipe.clone(), since, had: false }
    }

    /// The next bytes; nothing at the end, when all writers have closed and nothing is left.
    pub(super) async fn next(&mut self) -> Result<Option<Lent>, Failure> {
        let pipe = self.pipe.clone();
        let part = pipe.until(|state| state.lend(self.had || state.opened > self.since).transpose());
        let part = part.await?.map_err(|error| self.pipe.failed(&error))?;
        self.had |= part.is_some();
        Ok(part.map(|part| Lent { pipe, part: Some(part) }))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.pipe.lock().readers -= 1;
    }
}

// === impl Writing ===

impl Writing {
    pub(super) fn begin(pipe: &Arc<Pipe>) -> Self {
        pipe.lock().begin_writing();
        pipe.changed.notify_waiters();
        Self(pipe.clone())
    }

    /// Puts bytes into the pipe, in one piece, as soon as there is room.
    pub(super) async fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let limit = self.0.limit();
        let written = self.0.until(|state| state.fits(bytes, limit).then(|| state.push(bytes)));
        written.await?.map_err(|error| self.0.failed(&error))?;
        self.0.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.changed.notify_waiters();
    }
}

// === impl Lent ===

impl Lent {
    pub(super) fn bytes(&self) -> &[u8] {
        self.part.as_ref().map_or(&[], |(_, bytes)| bytes)
    }

    /// The reader has it.
    pub(super) fn had(mut self) -> Result<(), Failure> {
        let Some((at, bytes)) = self.part.take() else { return Ok(()) };
        let mut state = self.pipe.lock();
        state.lent -= 1;
        let noted = state.had(at, bytes.len());
        drop(state);
        self.pipe.changed.notify_waiters();
        noted.map_err(|error| self.pipe.failed(&error))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            let mut state = self.pipe.lock();
            state.lent -= 1;
            state.returned.push_back(part);
            drop(state);
            self.pipe.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libgrid::units::Bytes;

    use super::*;

    fn pipe(capacity: u64) -> Arc<Pipe> {
        let spec = PipeSpec { capacity: Bytes(capacity), ..PipeSpec::new("x") };
        Pipe::open(spec, Path::new("/nowhere")).unwrap()
    }

    async fn read(reading: &mut Reading) -> Option<Vec<u8>> {
        let lent = reading.next().await.unwrap()?;
        let bytes = lent.bytes().to_vec();
        lent.had().unwrap();
        Some(bytes)
    }

    async fn waits<T>(what: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(50), what).await.is_err()
    }

    #[tokio::test]
    async fn it_begins_with_the_first_writer_and_ends_with_the_last() {
        let pipe = pipe(100);
        let mut reader = Reading::begin(&pipe);
        assert!(waits(reader.next()).await, "nobody has written");
        let (one, two) = (Writing::begin(&pipe), Writing::begin(&pipe));
        one.write(b"a").await.unwrap();
        drop(one);
        assert_eq!(read(&mut reader).await.unwrap(), b"a");
        assert!(waits(reader.next()).await, "one writes still");
        two.write(b"b").await.unwrap();
        drop(two);
        assert_eq!(read(&mut reader).await.unwrap(), b"b");
        assert!(read(&mut reader).await.is_none());
        let mut later = Reading::begin(&pipe);
        assert!(waits(later.next()).await, "a FIFO waits for the next writer, too");
        drop(Writing::begin(&pipe));
        assert!(read(&mut later).await.is_none());
    }

    #[tokio::test]
    async fn a_full_one_makes_writers_wait_and_a_lost_reader_loses_nothing() {
        let pipe = pipe(10);
        let writer = Writing::begin(&pipe);
        writer.write(b"12345678").await.unwrap();
        assert!(waits(writer.write(b"abc")).await);
        let mut lost = Reading::begin(&pipe);
        let lent = lost.next().await.unwrap().unwrap();
        assert_eq!(lent.bytes(), b"12345678");
        assert!(waits(writer.write(b"abc")).await, "the reader may not have it");
        let mut other = Reading::begin(&pipe);
        drop(lent);
        drop(lost);
        assert_eq!(read(&mut other).await.unwrap(), b"12345678");
        writer.write(b"abc").await.unwrap();
        assert_eq!(read(&mut other).await.unwrap(), b"abc");
        assert_eq!(pipe.counts(), (0, 1, 1));
        pipe.remove();
        assert!(other.next().await.is_err() && writer.write(b"x").await.is_err());
    }
}
