//! The ends that FIFOs of tasks have ([`super::super::fifo`]). Their agents may be killed and come again: until [`LOST`] is over they
//! count as readers and writers, no chunk is taken twice, and what one got is kept for it.
//!
//! ```text
//!            comes                 its connection breaks
//!   ───────────────▶ Held ───────────────────────────────▶ Lost
//!                     │  ▲ comes again, or the next run       │ LOST is over
//!          says that  │  └──────────────┬─────────────────────┤
//!          it leaves  │                 │ a later run          │ nobody waits
//!                     └────────────▶ Free ◀── waits ──────────┴──────────────▶ closed
//! ```
//!
//! A task that was moved, or runs again since its node was lost, goes on where the run before was: a run of a later epoch takes
//! the end, and one of an earlier never gets it back. A writer waits for that until the run before has brought what was written
//! where it was, or is lost for good; several wait in the order of their epochs. A reader takes it at once.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use libgrid::control::{Failure, Kind};
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::pipe::Part;
use serde::{Deserialize, Serialize};

use super::{Given, Pipe, Queue, State};
use crate::pipes::spill::Note;

/// For how long one that is lost may come again.
const LOST: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(15) };

/// Tasks of one owner that a pipe has ends of, at most in each direction.
const MOST: usize = 1000;

/// Readers that have left, and writers that were given up, of which it is known how far they were.
const MOST_LEFT: usize = 4000;

/// The places for notes of writers.
const PLACES: usize = 100_000;

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
    /// What readers that have left know, for their next runs.
    left: BTreeMap<Key, (u32, Reader)>,
    /// The epochs of writers that were given up, and the numbers of their last chunks.
    lost: BTreeMap<Key, (u32, u64)>,
    /// The epochs that wait to write, with who came last for each.
    waiting: BTreeMap<Key, BTreeMap<u32, u64>>,
    /// How often one was come for.
    turns: u64,
}

struct End<T> {
    epoch: u32,
    /// Who has it, or had it: the last that came.
    turn: u64,
    hold: Hold,
    role: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Held,
    Lost,
    /// The next run's.
    Free,
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
    lent: Option<Given>,
    /// It was told the end.
    ended: bool,
}

/// Who writes for a FIFO.
pub(in crate::pipes) struct CarriedWriting(Holder);

/// Who reads for a FIFO.
pub(in crate::pipes) struct CarriedReading(Holder);

/// Somebody has an end. Dropped, it is lost.
struct Holder {
    pipe: Arc<Pipe>,
    key: Key,
    turn: u64,
    writes: bool,
}

/// A writer that is to be the next. Dropped, it may come again.
struct Waits {
    pipe: Arc<Pipe>,
    key: Key,
    epoch: u32,
    turn: u64,
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
            state.note(place, Some(Note { part: NOWHERE, ..note }))?;
            state.begin_writing();
            let turn = state.carried.turn();
            let role = Writer { taken: number, place };
            state.carried.writers.insert(key, End { epoch, turn, hold: Hold::Held, role });
            lost.push(Holder { pipe: self.clone(), key, turn, writes: true });
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
        let epoch = run.epoch;
        if !(1..u64::MAX / 2).contains(&next) {
            return Err(Failure::new(Kind::Invalid, format!("no chunk has the number {next}")));
        }
        let turn = self.lock().carried.turn();
        let waits = Waits { pipe: self.clone(), key, epoch, turn };
        let claimed = self.until(|state| {
            if state.carried.has_to_wait(key, epoch, turn) {
                return None;
            }
            Some(self.claim_writer(state, (key, epoch), next, turn))
        });
        let claimed = claimed.await?;
        drop(waits);
        self.changed.notify_waiters();
        let taken = claimed?;
        Ok((CarriedWriting(Holder { pipe: self.clone(), key, turn, writes: true }), taken))
    }

    fn claim_writer(
        &self,
        state: &mut State,
        (key, epoch): (Key, u32),
        next: u64,
        turn: u64,
    ) -> Result<u64, Failure> {
        let (before, place) = match state.carried.writers.get(&key) {
            Some(end) if epoch < end.epoch => return Err(replaced(key, epoch)),
            Some(end) if epoch == end.epoch => (end.role.taken, end.role.place),
            Some(end) => (0, end.role.place),
            None if state.carried.lost.get(&key).is_some_and(|(lost, _)| epoch < *lost) => {
                return Err(replaced(key, epoch));
            }
            None if crowded(&state.carried.writers, key) => return Err(self.crowded()),
            None => {
                let place = place(&state.carried.writers).ok_or_else(|| self.crowded())?;
                let lost = state.carried.lost.get(&key).filter(|(lost, _)| epoch == *lost);
                (lost.map_or(0, |(_, taken)| *taken), place)
            }
        };
        state.carried.lost.remove(&key);
        let taken = before.max(next - 1);
        let note = Note { key, epoch, number: taken, part: NOWHERE };
        state.note(place, Some(note)).map_err(|error| self.failed(&error))?;
        if !state.carried.writers.contains_key(&key) {
            state.begin_writing();
        }
        let role = Writer { taken, place };
        state.carried.writers.insert(key, End { epoch, turn, hold: Hold::Held, role });
        Ok(taken)
    }

    /// An end to read from for a FIFO, which has this part, and whether it had something before.
    pub(in crate::pipes) fn read_for(
        self: &Arc<Self>,
        (key, run): (Key, Run),
        has: Option<Part>,
        began: bool,
    ) -> Result<CarriedReading, Failure> {
        let epoch = run.epoch;
        let mut locked = self.lock();
        let state = &mut *locked;
        let turn = state.carried.turn();
        let last = state.carried.readers.get(&key).map(|end| end.epoch);
        let last = last.max(state.carried.left.get(&key).map(|(epoch, _)| *epoch));
        if last.is_some_and(|last| epoch < last) {
            return Err(replaced(key, epoch));
        }
        let mut role = match state.carried.readers.remove(&key) {
            Some(end) => end.role,
            None if crowded(&state.carried.readers, key) => return Err(self.crowded()),
            None => {
                let since = state.begin_reading();
                let before = state.carried.left.remove(&key).map(|(_, reader)| reader);
                before.unwrap_or(Reader { since, ..Reader::default() })
            }
        };
        // A pipe in memory has lost what it had, and its writers with it.
        role.had |= (began || has.is_some()) && matches!(state.queue, Queue::Spill(_));
        let settled = match has {
            Some(has) => state.settle(&mut role, has),
            None => Ok(()),
        };
        state.carried.readers.insert(key, End { epoch, turn, hold: Hold::Held, role });
        drop(locked);
        self.changed.notify_waiters();
        let holder = Holder { pipe: self.clone(), key, turn, writes: false };
        settled.map_err(|error| self.failed(&error))?;
        Ok(CarriedReading(holder))
    }

    fn crowded(&self) -> Failure {
        let why = format!("pipe {} has {MOST} tasks of yours already: end some first", self.spec.name);
        Failure::new(Kind::State, why)
    }
}

const NOWHERE: Part = Part { at: 0, len: 0 };

fn replaced(key: Key, epoch: u32) -> Failure {
    let run = Run { task: key.task, epoch };
    Failure::new(Kind::State, format!("{run} has been replaced by a later run"))
}

/// Whether the owner has as many ends as may be.
fn crowded<T>(ends: &BTreeMap<Key, End<T>>, key: Key) -> bool {
    let first = TaskId { job: JobId { home: NodeId(0), serial: 0 }, index: 0 };
    let theirs = ends.range(Key { task: first, ..key }..);
    theirs.take_while(|(other, _)| other.owner == key.owner).count() >= MOST
}

/// A place for a note that no other has.
fn place(writers: &BTreeMap<Key, End<Writer>>) -> Option<usize> {
    let taken: BTreeSet<usize> = writers.values().map(|end| end.role.place).collect();
    (0..PLACES).find(|place| !taken.contains(place))
}

impl State {
    fn note(&self, place: usize, note: Option<Note>) -> io::Result<()> {
        match &self.queue {
            Queue::Spill(spill) => spill.note(place, note.as_ref()),
            Queue::Memory { .. } => Ok(()),
        }
    }

    /// A reader has this part, and may not have said so.
    fn settle(&mut self, role: &mut Reader, has: Part) -> io::Result<()> {
        if let Some((at, bytes)) = role.lent.take_if(|(at, _)| *at == has.at) {
            self.lent -= 1;
            return self.had(at, bytes.len());
        }
        // It was away for so long that others were to have it.
        let returned = self.returned.iter().position(|(at, _)| *at == has.at);
        if let Some((at, bytes)) = returned.and_then(|place| self.returned.remove(place)) {
            return self.had(at, bytes.len());
        }
        match &mut self.queue {
            Queue::Spill(spill) => spill.has(has),
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
            self.note(place, Some(Note { key, epoch, number: number - 1, part: NOWHERE }))?;
            return Err(error);
        }
        if let Some(end) = self.carried.writers.get_mut(&key) {
            end.role.taken = number;
        }
        Ok(())
    }

    /// It writes no more. If a later run waits, that goes on as the same writer.
    fn close_writer(&mut self, key: Key) {
        if self.carried.waiting.contains_key(&key) {
            return self.free_writer(key);
        }
        if let Some(end) = self.carried.writers.remove(&key) {
            self.writers -= 1;
            // If it cannot be written it is waited for once more after a start.
            let _ = self.note(end.role.place, None);
        }
    }

    /// It was away for too long. Should it come after all, it is told what it had brought.
    fn lose_writer(&mut self, key: Key) {
        if let Some(end) = self.carried.writers.get(&key) {
            self.carried.lost.insert(key, (end.epoch, end.role.taken));
            if self.carried.lost.len() > MOST_LEFT {
                self.carried.lost.pop_first();
            }
        }
        self.close_writer(key);
    }

    /// This epoch does not wait any more, unless somebody came after this turn. What was kept for it goes.
    fn waits_no_more(&mut self, key: Key, epoch: u32, turn: u64) {
        let Some(waiting) = self.carried.waiting.get_mut(&key) else { return };
        if waiting.get(&epoch) == Some(&turn) {
            waiting.remove(&epoch);
        }
        if waiting.is_empty() {
            self.carried.waiting.remove(&key);
            if self.carried.writers.get(&key).is_some_and(|end| end.hold == Hold::Free) {
                self.close_writer(key);
            }
        }
    }

    fn free_writer(&mut self, key: Key) {
        if let Some(end) = self.carried.writers.get_mut(&key) {
            end.hold = Hold::Free;
        }
    }

    /// It reads no more; what it got is the next reader's. What it knows is kept if a later run may go on.
    fn close_reader(&mut self, key: Key, keep: bool) {
        let Some(End { epoch, mut role, .. }) = self.carried.readers.remove(&key) else { return };
        self.readers -= 1;
        if let Some(part) = role.lent.take() {
            self.lent -= 1;
            self.returned.push_front(part);
        }
        if keep {
            self.carried.left.insert(key, (epoch, role));
            if self.carried.left.len() > MOST_LEFT {
                self.carried.left.pop_first();
            }
        }
    }
}

// === impl Carried ===

impl Carried {
    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// How the one who came in this turn holds its end; nothing if others came after it.
    fn hold_of(&mut self, key: &Key, writes: bool, turn: u64) -> Option<&mut Hold> {
        match writes {
            true => self.writers.get_mut(key).filter(|end| end.turn == turn).map(|end| &mut end.hold),
            false => self.readers.get_mut(key).filter(|end| end.turn == turn).map(|end| &mut end.hold),
        }
    }

    /// Whether an earlier run has still to bring something. Then this one is noted.
    fn has_to_wait(&mut self, key: Key, epoch: u32, turn: u64) -> bool {
        let Some(end) = self.writers.get(&key).filter(|end| end.epoch < epoch) else { return false };
        let waiting = self.waiting.entry(key).or_default();
        let last = waiting.entry(epoch).or_default();
        *last = turn.max(*last);
        let first = waiting.first_key_value().map(|(epoch, _)| *epoch);
        end.hold != Hold::Free || first != Some(epoch)
    }
}

// === impl Waits ===

impl Drop for Waits {
    fn drop(&mut self) {
        let Self { pipe, key, epoch, turn } = self;
        let (key, epoch, turn) = (*key, *epoch, *turn);
        let mut state = pipe.lock();
        let claimed = state.carried.hold_of(&key, true, turn).is_some();
        let waits = state.carried.waiting.get(&key).is_some_and(|all| all.get(&epoch) == Some(&turn));
        if claimed {
            state.waits_no_more(key, epoch, turn);
        }
        drop(state);
        if waits && !claimed {
            later(pipe.clone(), move |state| state.waits_no_more(key, epoch, turn));
        }
    }
}

/// Does this once [`LOST`] is over.
fn later(pipe: Arc<Pipe>, act: impl FnOnce(&mut State) + Send + 'static) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        tokio::time::sleep(LOST).await;
        act(&mut pipe.lock());
        pipe.changed.notify_waiters();
    });
}

// === impl CarriedWriting ===

impl CarriedWriting {
    /// Puts the next chunk into the pipe, in one piece, as soon as there is room.
    pub(in crate::pipes) async fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let Holder { pipe, key, .. } = &self.0;
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
        self.0.end(State::close_writer);
    }

    /// The next run goes on.
    pub(in crate::pipes) fn leave(self) {
        let Holder { pipe, key, turn, .. } = &self.0;
        let (key, turn) = (*key, *turn);
        self.0.end(State::free_writer);
        later(pipe.clone(), move |state| {
            if state.carried.hold_of(&key, true, turn).is_some() {
                state.close_writer(key);
            }
        });
    }
}

// === impl CarriedReading ===

impl CarriedReading {
    /// As [`super::Reading::next`]; the same again until [`Self::had`].
    pub(in crate::pipes) async fn next(&self) -> Result<Option<Given>, Failure> {
        let Holder { pipe, key, .. } = &self.0;
        let next = pipe.until(|state| {
            if let Err(failure) = self.0.check(state) {
                return Some(Err(failure));
            }
            let Reader { since, had, lent, ended } = &state.carried.readers.get(key)?.role;
            // Unless somebody has written since.
            let ended = *ended && state.writers == 0 && state.held() == 0;
            if ended || lent.is_some() {
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
        let Holder { pipe, key, .. } = &self.0;
        let mut state = pipe.lock();
        self.0.check(&mut state)?;
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
        self.0.end(|state, key| state.close_reader(key, false));
    }

    /// It reads no more for now, or the next run goes on.
    pub(in crate::pipes) fn leave(self) {
        self.0.end(|state, key| state.close_reader(key, true));
    }
}

// === impl Holder ===

impl Holder {
    /// Nothing if nobody came after it.
    fn check(&self, state: &mut State) -> Result<(), Failure> {
        match state.carried.hold_of(&self.key, self.writes, self.turn) {
            Some(_) => Ok(()),
            None => {
                let why = format!("another agent carries for {} now", self.key.task);
                Err(Failure::new(Kind::State, why))
            }
        }
    }

    fn end(&self, act: impl FnOnce(&mut State, Key)) {
        let mut state = self.pipe.lock();
        if self.check(&mut state).is_ok() {
            act(&mut state, self.key);
        }
        drop(state);
        self.pipe.changed.notify_waiters();
    }
}

impl Drop for Holder {
    /// Lost, unless it has closed or left: it may come again.
    fn drop(&mut self) {
        let (key, turn, writes) = (self.key, self.turn, self.writes);
        {
            let mut state = self.pipe.lock();
            match state.carried.hold_of(&key, writes, turn) {
                Some(hold) if *hold == Hold::Held => *hold = Hold::Lost,
                _ => return,
            }
        }
        later(self.pipe.clone(), move |state| {
            if state.carried.hold_of(&key, writes, turn).is_none() {
                return;
            }
            match writes {
                true => state.lose_writer(key),
                // It may come after all.
                false => state.close_reader(key, true),
            }
        });
    }
}
