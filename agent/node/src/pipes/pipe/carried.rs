//! The ends that FIFOs of tasks have ([`super::super::fifo`]). Their agents may be killed and come again: until [`LOST`] is over they
//! count as readers and writers, no chunk is taken twice, and what one got is kept for it.
//!
//! Whoever comes for an end takes it from who had it before, unless that was of a later epoch: a task that was moved, or runs
//! again since its node was lost, goes on where the run before was. A writer of a later epoch waits for as long as the one before
//! is there: that has still to bring what was written where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use libgrid::control::{Failure, Kind};
use libgrid::ids::{NodeId, Run, TaskId};
use libgrid::pipe::Part;
use serde::{Deserialize, Serialize};

use super::{Pipe, Queue, State};
use crate::pipes::spill::Note;

/// For how long one that is lost may come again.
const LOST: Duration = Duration::from_secs(30);

/// Tasks that a pipe has ends of, at most in each direction.
const MOST: usize = 4000;

/// Whose end: the task, and its owner as a node and a number there, so that nobody can come for those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::pipes) struct Key {
    pub(in crate::pipes) owner: (NodeId, u32),
    pub(in crate::pipes) task: TaskId,
}

#[derive(Default)]
pub(super) struct Carried {
    writers: BTreeMap<Key, End<Writer>>,
    readers: BTreeMap<Key, End<Reader>>,
    /// How often one was come for.
    turns: u64,
}

struct End<T> {
    epoch: u32,
    /// Who has it: the last that came.
    turn: u64,
    /// Whether it is not lost.
    held: bool,
    /// Later epochs that wait for it.
    waiting: BTreeSet<u32>,
    role: T,
}

struct Writer {
    /// The number of the last chunk that is in the pipe, or was.
    taken: u64,
    /// Where it is noted, with `spill`.
    place: usize,
}

#[derive(Default)]
struct Reader {
    /// As in [`super::Reading`].
    since: u64,
    had: bool,
    /// What it got and did not say that it has.
    lent: Option<(u64, Vec<u8>)>,
    /// It was told the end.
    ended: bool,
}

/// Who writes for a FIFO.
pub(in crate::pipes) struct CarriedWriting(Hold);

/// Who reads for a FIFO.
pub(in crate::pipes) struct CarriedReading(Hold);

/// Somebody has an end.
struct Hold {
    pipe: Arc<Pipe>,
    key: Key,
    turn: u64,
    writes: bool,
}

/// A writer that is to be the next.
struct Waits<'p> {
    pipe: &'p Pipe,
    key: Key,
    epoch: u32,
}

impl Pipe {
    /// Keeps the places of the writers that had not closed when the agent was killed.
    pub(super) fn expect_writers(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.lock();
        let Queue::Spill(spill) = &state.queue else { return Ok(()) };
        let writers = spill.writers()?;
        let mut lost = Vec::new();
        for (place, note) in writers {
            let Note { key, epoch, number, .. } = note;
            // What comes next may lie where its chunk was to be.
            state.note(place, Some(Note { part: Part { at: 0, len: 0 }, ..note }))?;
            state.begin_writing();
            let turn = state.carried.turn();
            state.carried.writers.insert(key, End::new(epoch, turn, Writer { taken: number, place }));
            lost.push(Hold { pipe: self.clone(), key, turn, writes: true });
        }
        drop(state);
        drop(lost);
        Ok(())
    }

    /// An end to write to for a FIFO, whose next chunk has this number, and the number of the last that is here.
    pub(in crate::pipes) async fn write_for(
        self: &Arc<Self>,
        (key, run): (Key, Run),
        next: u64,
    ) -> Result<(CarriedWriting, u64), Failure> {
        let turn = {
            let waits = Waits { pipe: self, key, epoch: run.epoch };
            let free = self.until(|state| waits.is_over(state).then_some(()));
            // It may not be known yet that the one before is lost.
            if let Ok(freed) = tokio::time::timeout(LOST, free).await {
                freed?;
            }
            self.lock().carried.turn()
        };
        let mut locked = self.lock();
        let state = &mut *locked;
        if !state.carried.writers.contains_key(&key) {
            let place = place(&state.carried.writers).ok_or_else(|| self.crowded())?;
            state.begin_writing();
            state.carried.writers.insert(key, End::new(run.epoch, turn, Writer { taken: 0, place }));
        }
        let Some(end) = state.carried.writers.get_mut(&key) else { return Err(self.crowded()) };
        if end.come(run, turn)? {
            end.role.taken = 0;
        }
        let taken = end.role.taken.max(next.saturating_sub(1));
        end.role.taken = taken;
        let place = end.role.place;
        let note = Note { key, epoch: run.epoch, number: taken, part: Part { at: 0, len: 0 } };
        let noted = state.note(place, Some(note));
        drop(locked);
        self.changed.notify_waiters();
        let hold = Hold { pipe: self.clone(), key, turn, writes: true };
        noted.map_err(|error| self.failed(&error))?;
        Ok((CarriedWriting(hold), taken))
    }

    /// An end to read from for a FIFO, which has this part.
    pub(in crate::pipes) fn read_for(
        self: &Arc<Self>,
        (key, run): (Key, Run),
        has: Option<Part>,
    ) -> Result<CarriedReading, Failure> {
        let mut locked = self.lock();
        let state = &mut *locked;
        let turn = state.carried.turn();
        if !state.carried.readers.contains_key(&key) {
            if state.carried.readers.len() >= MOST {
                return Err(self.crowded());
            }
            let role = Reader { since: state.begin_reading(), ..Reader::default() };
            state.carried.readers.insert(key, End::new(run.epoch, turn, role));
        }
        let Some(end) = state.carried.readers.get_mut(&key) else { return Err(self.crowded()) };
        end.come(run, turn)?;
        let settled = match (&end.role.lent, has) {
            (Some((at, bytes)), Some(has)) if *at == has.at => {
                let (at, len) = (*at, bytes.len());
                end.role.lent = None;
                state.lent -= 1;
                state.had(at, len)
            }
            (None, Some(has)) => match &mut state.queue {
                Queue::Spill(spill) => spill.has(has),
                Queue::Memory { .. } => Ok(()),
            },
            // It gets that again.
            (_, None) | (Some(_), Some(_)) => Ok(()),
        };
        drop(locked);
        self.changed.notify_waiters();
        let hold = Hold { pipe: self.clone(), key, turn, writes: false };
        settled.map_err(|error| self.failed(&error))?;
        Ok(CarriedReading(hold))
    }

    fn crowded(&self) -> Failure {
        let why = format!("pipe {} has {MOST} tasks already: end some first", self.spec.name);
        Failure::new(Kind::State, why)
    }
}

impl State {
    fn note(&self, place: usize, note: Option<Note>) -> io::Result<()> {
        match &self.queue {
            Queue::Spill(spill) => spill.note(place, note.as_ref()),
            Queue::Memory { .. } => Ok(()),
        }
    }

    /// Takes a chunk of a writer that may come again, and notes it first.
    fn push_noted(&mut self, key: Key, bytes: &[u8]) -> io::Result<()> {
        let Some(End { epoch, role: Writer { taken, place }, .. }) = self.carried.writers.get(&key) else {
            return Ok(());
        };
        let (epoch, number, place) = (*epoch, taken + 1, *place);
        if let Queue::Spill(spill) = &self.queue {
            let note = Note { key, epoch, number, part: spill.next(bytes.len()) };
            spill.note(place, Some(&note))?;
        }
        if let Err(error) = self.push(bytes) {
            // Others may write there.
            let part = Part { at: 0, len: 0 };
            self.note(place, Some(Note { key, epoch, number: number - 1, part }))?;
            return Err(error);
        }
        if let Some(end) = self.carried.writers.get_mut(&key) {
            end.role.taken = number;
        }
        Ok(())
    }

    /// Nobody has this end any more.
    fn close(&mut self, key: Key, writes: bool) {
        if writes {
            if let Some(end) = self.carried.writers.remove(&key) {
                self.writers -= 1;
                // If it cannot be written it is waited for once more after a start.
                let _ = self.note(end.role.place, None);
            }
        } else if let Some(end) = self.carried.readers.remove(&key) {
            self.readers -= 1;
            if let Some(part) = end.role.lent {
                self.lent -= 1;
                self.returned.push_front(part);
            }
        }
    }
}

/// A place for a note that no other has.
fn place(writers: &BTreeMap<Key, End<Writer>>) -> Option<usize> {
    let taken: BTreeSet<usize> = writers.values().map(|end| end.role.place).collect();
    (0..MOST).find(|place| !taken.contains(place))
}

// === impl Carried ===

impl Carried {
    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn has(&self, key: &Key, writes: bool, turn: u64) -> bool {
        let last = match writes {
            true => self.writers.get(key).map(|end| end.turn),
            false => self.readers.get(key).map(|end| end.turn),
        };
        last == Some(turn)
    }

    /// Whoever had it last is lost.
    fn lose(&mut self, key: &Key, writes: bool) {
        match writes {
            true => self.writers.get_mut(key).map(|end| end.held = false),
            false => self.readers.get_mut(key).map(|end| end.held = false),
        };
    }
}

// === impl Waits ===

impl Waits<'_> {
    fn is_over(&self, state: &mut State) -> bool {
        let Some(end) = state.carried.writers.get_mut(&self.key) else { return true };
        if end.epoch >= self.epoch {
            return true;
        }
        end.waiting.insert(self.epoch);
        !end.held && end.waiting.first() == Some(&self.epoch)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(end) = self.pipe.lock().carried.writers.get_mut(&self.key) {
            end.waiting.remove(&self.epoch);
        }
    }
}

impl<T> End<T> {
    fn new(epoch: u32, turn: u64, role: T) -> Self {
        Self { epoch, turn, held: true, waiting: BTreeSet::new(), role }
    }

    /// Somebody comes for it; whether it is of a later epoch.
    fn come(&mut self, run: Run, turn: u64) -> Result<bool, Failure> {
        if run.epoch < self.epoch {
            let why = format!("{run} has been replaced by a later run");
            return Err(Failure::new(Kind::State, why));
        }
        (self.turn, self.held) = (turn, true);
        Ok(std::mem::replace(&mut self.epoch, run.epoch) < run.epoch)
    }
}

// === impl CarriedWriting ===

impl CarriedWriting {
    /// Puts the next chunk into the pipe, in one piece, as soon as there is room.
    pub(in crate::pipes) async fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let Hold { pipe, key, .. } = &self.0;
        let limit = pipe.limit();
        let written = pipe.until(|state| match self.0.check(state) {
            Err(failure) => Some(Err(failure)),
            Ok(()) => state
                .fits(bytes, limit)
                .then(|| state.push_noted(*key, bytes).map_err(|error| pipe.failed(&error))),
        });
        written.await??;
        pipe.changed.notify_waiters();
        Ok(())
    }

    /// It writes nothing more.
    pub(in crate::pipes) fn close(self) {
        self.0.close();
    }
}

// === impl CarriedReading ===

impl CarriedReading {
    /// As [`super::Reading::next`]; the same again until [`Self::had`].
    pub(in crate::pipes) async fn next(&self) -> Result<Option<(u64, Vec<u8>)>, Failure> {
        let Hold { pipe, key, .. } = &self.0;
        let next = pipe.until(|state| {
            if let Err(failure) = self.0.check(state) {
                return Some(Err(failure));
            }
            let Reader { since, had, lent, ended } = &state.carried.readers.get(key)?.role;
            if *ended || lent.is_some() {
                return Some(Ok(lent.clone()));
            }
            let written = *had || state.opened > *since;
            let part = match state.lend(written).transpose()? {
                Ok(part) => part,
                Err(error) => return Some(Err(pipe.failed(&error))),
            };
            let end = state.carried.readers.get_mut(key)?;
            (end.role.ended, end.role.lent) = (part.is_none(), part.clone());
            end.role.had |= part.is_some();
            Some(Ok(part))
        });
        next.await?
    }

    /// It has what it got last.
    pub(in crate::pipes) fn had(&self) -> Result<(), Failure> {
        let Hold { pipe, key, .. } = &self.0;
        let mut state = pipe.lock();
        self.0.check(&state)?;
        let lent = state.carried.readers.get_mut(key).and_then(|end| end.role.lent.take());
        let Some((at, bytes)) = lent else { return Ok(()) };
        state.lent -= 1;
        let noted = state.had(at, bytes.len());
        drop(state);
        pipe.changed.notify_waiters();
        noted.map_err(|error| pipe.failed(&error))
    }

    /// It reads no more.
    pub(in crate::pipes) fn close(self) {
        self.0.close();
    }
}

// === impl Hold ===

impl Hold {
    /// Nothing if nobody came after it.
    fn check(&self, state: &State) -> Result<(), Failure> {
        if state.carried.has(&self.key, self.writes, self.turn) {
            return Ok(());
        }
        let why = format!("another agent carries for {} now", self.key.task);
        Err(Failure::new(Kind::State, why))
    }

    fn close(&self) {
        let mut state = self.pipe.lock();
        if state.carried.has(&self.key, self.writes, self.turn) {
            state.close(self.key, self.writes);
        }
        drop(state);
        self.pipe.changed.notify_waiters();
    }
}

impl Drop for Hold {
    /// Lost, unless it was closed: it may come again.
    fn drop(&mut self) {
        let Self { pipe, key, turn, writes } = self;
        let has = {
            let mut state = pipe.lock();
            let has = state.carried.has(key, *writes, *turn);
            if has {
                state.carried.lose(key, *writes);
            }
            has
        };
        pipe.changed.notify_waiters();
        let Some(runtime) = tokio::runtime::Handle::try_current().ok().filter(|_| has) else { return };
        let (pipe, key, turn, writes) = (pipe.clone(), *key, *turn, *writes);
        runtime.spawn(async move {
            tokio::time::sleep(LOST).await;
            let mut state = pipe.lock();
            if state.carried.has(&key, writes, turn) {
                state.close(key, writes);
            }
            drop(state);
            pipe.changed.notify_waiters();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use libgrid::ids::JobId;
    use libgrid::pipe::PipeSpec;
    use libgrid::units::Bytes;

    use super::super::{Reading, Writing};
    use super::*;

    fn memory() -> Arc<Pipe> {
        Pipe::open(PipeSpec::new("x"), Path::new("/nowhere")).unwrap()
    }

    fn spilled(folder: &Path) -> Arc<Pipe> {
        let spec = PipeSpec { spill: Some(Bytes(1 << 20)), ..PipeSpec::new("x") };
        Pipe::open(spec, folder).unwrap()
    }

    fn end(index: u32, epoch: u32) -> (Key, Run) {
        let task = JobId { home: NodeId(1), serial: 1 }.task(index);
        (Key { owner: (NodeId(1), 1000), task }, Run { task, epoch })
    }

    async fn all(pipe: &Arc<Pipe>) -> Vec<u8> {
        let mut reading = Reading::begin(pipe);
        let mut bytes = Vec::new();
        while let Ok(Ok(Some(lent))) = tokio::time::timeout(Duration::from_millis(50), reading.next()).await {
            bytes.extend(lent.bytes());
            lent.had().unwrap();
        }
        bytes
    }

    async fn waits<T>(what: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(50), what).await.is_err()
    }

    #[tokio::test]
    async fn a_writer_that_comes_again_is_told_what_was_taken_and_its_pipe_does_not_end_meanwhile() {
        let pipe = memory();
        let mut reading = Reading::begin(&pipe);
        let (lost, taken) = pipe.write_for(end(0, 1), 1).await.unwrap();
        assert_eq!(taken, 0);
        lost.write(b"one").await.unwrap();
        lost.write(b"two").await.unwrap();
        drop(lost);
        reading.next().await.unwrap().unwrap().had().unwrap();
        assert!(waits(reading.next()).await, "it may come again");
        let (again, taken) = pipe.write_for(end(0, 1), 2).await.unwrap();
        assert_eq!(taken, 2, "the second is here");
        let (third, taken) = pipe.write_for(end(0, 1), 3).await.unwrap();
        assert_eq!(taken, 2);
        assert!(again.write(b"x").await.is_err(), "another came after it");
        third.close();
        assert!(reading.next().await.unwrap().is_none());
        assert_eq!(pipe.counts(), (0, 1, 0));
    }

    #[tokio::test]
    async fn a_later_run_writes_when_the_one_before_is_done_and_that_writes_no_more() {
        let pipe = memory();
        let (first, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
        let second = tokio::spawn({
            let pipe = pipe.clone();
            async move { pipe.write_for(end(0, 2), 1).await.unwrap().0 }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!second.is_finished(), "the first is there");
        first.write(b"a").await.unwrap();
        drop(first);
        let second = second.await.unwrap();
        second.write(b"b").await.unwrap();
        assert!(pipe.write_for(end(0, 1), 2).await.is_err(), "it is replaced");
        second.close();
        assert_eq!(all(&pipe).await, b"ab");
        // Of another owner the same task is another one.
        let (key, run) = end(0, 1);
        assert!(pipe.write_for((Key { owner: (NodeId(2), 7), ..key }, run), 1).await.is_ok());
    }

    #[tokio::test]
    async fn what_a_lost_reader_got_is_kept_for_it_and_not_given_again_if_it_has_it() {
        let pipe = memory();
        let writing = Writing::begin(&pipe);
        let reading = pipe.read_for(end(0, 1), None).unwrap();
        writing.write(b"abc").await.unwrap();
        let (at, bytes) = reading.next().await.unwrap().unwrap();
        drop(reading);
        assert!(all(&pipe).await.is_empty(), "others do not get it");
        let reading = pipe.read_for(end(0, 1), None).unwrap();
        assert_eq!(reading.next().await.unwrap().unwrap(), (at, bytes.clone()));
        drop(reading);
        let reading = pipe.read_for(end(0, 1), Some(Part { at, len: 3 })).unwrap();
        assert!(waits(reading.next()).await);
        writing.write(b"de").await.unwrap();
        assert_eq!(reading.next().await.unwrap().unwrap(), (3, b"de".to_vec()));
        reading.close();
        assert_eq!(all(&pipe).await, b"de", "it reads no more");
        drop(writing);
        let reading = pipe.read_for(end(0, 1), None).unwrap();
        assert!(waits(reading.next()).await, "one that comes later waits for the next writer");
    }

    #[tokio::test]
    async fn a_spilled_pipe_knows_after_a_kill_who_wrote_what_and_what_readers_have() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = spilled(folder.path());
        let (writing, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
        writing.write(b"one").await.unwrap();
        let (other, _) = pipe.write_for(end(1, 1), 1).await.unwrap();
        other.write(b"two").await.unwrap();
        other.close();
        writing.write(b"three").await.unwrap();
        let reading = pipe.read_for(end(2, 1), None).unwrap();
        assert_eq!(reading.next().await.unwrap().unwrap(), (0, b"onetwothree".to_vec()));
        // As if the agent were killed: what was there before sees nothing of this one.
        let again = spilled(folder.path());
        assert_eq!(again.counts(), (11, 0, 1), "who has not closed is waited for");
        let read = again.read_for(end(2, 1), Some(Part { at: 0, len: 3 })).unwrap();
        assert_eq!(read.next().await.unwrap().unwrap(), (3, b"twothree".to_vec()));
        let (writing, taken) = again.write_for(end(0, 1), 2).await.unwrap();
        assert_eq!(taken, 2);
        writing.close();
        read.had().unwrap();
        assert!(read.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_chunk_that_a_kill_left_in_part_is_cut_off_and_wanted_again() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = spilled(folder.path());
        let (writing, _) = pipe.write_for(end(0, 1), 1).await.unwrap();
        writing.write(b"whole").await.unwrap();
        writing.write(b"torn").await.unwrap();
        let data = std::fs::File::options().write(true).open(folder.path().join("x.data")).unwrap();
        data.set_len(7).unwrap();
        let again = spilled(folder.path());
        let (writing, taken) = again.write_for(end(0, 1), 2).await.unwrap();
        assert_eq!((taken, again.counts().0), (1, 5));
        // What others write where it was is not taken for it.
        let other = Writing::begin(&again);
        other.write(b"another").await.unwrap();
        let last = spilled(folder.path());
        assert_eq!(last.write_for(end(0, 1), 2).await.unwrap().1, 1);
        drop(writing);
    }
}
