//! Typing into tasks, wherever they are and wherever they go meanwhile.
//!
//! ```text
//!   user's gridctl ─▶ home: keeps what is not taken ─▶ node of the run ─▶ shim ─▶ pipe or terminal
//!                                    ◀───────────────── how far it is ◀──
//! ```
//!
//! What is typed has positions, which outlast runs, agents and connections (`grid_run`, `shim/typing.rs`). The home keeps each
//! byte until the task's pipe or terminal has it, and tells each new connection from that node's position on: a task that moved
//! has in its checkpoint what it has not read, and gets the rest where it goes on; one that did not move, where it stayed. What
//! the home keeps is bounded ([`KEPT`]), and lost if its agent ends.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grid_run::protocol::Typed;
use libgrid::control::{Failure, Input, Kind, MAX_CHUNK, Reply, Response};
use libgrid::ids::{NodeId, Run, Selector, TaskId};
use libgrid::wire::{WireError, stream};
use tokio::io::AsyncRead;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::missing;
use super::{Answer, Stream};
use crate::core::Stopping;
use crate::grid::Grid;
use crate::peers::{Heard, Keys, Request};
use crate::runner::Keyboard;

/// How much of what was typed may be on its way to a task.
const KEPT: u64 = 256 << 10;

/// Nobody types so much: positions beyond are no honest node's.
const FARTHEST: u64 = 1 << 60;

/// What comes in small pieces is kept in pieces of this size at most.
const PIECE: usize = 64 << 10;

/// How long to wait for a node that cannot be reached now.
const AGAIN: Duration = Duration::from_millis(500);

/// The tasks of this home that are typed into just now.
#[derive(Default)]
pub(crate) struct Typists(Mutex<HashMap<TaskId, Arc<Typist>>>);

/// What is typed into one task, by all who do.
struct Typist {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    /// The size of the user's terminal, and whether the task's node was told.
    size: Option<(u16, u16)>,
    size_told: bool,
    /// The task takes no more.
    done: bool,
    clients: usize,
}

/// What is not taken yet.
#[derive(Debug, Default)]
struct Kept {
    pieces: VecDeque<Piece>,
    /// Where the first piece begins, and where the last one ends.
    first: u64,
    next: u64,
    taken: u64,
    /// How far it was sent on this connection.
    sent: u64,
    /// Whether a node has told its position.
    known: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
}

// === the user's end ===

/// Passes what a client types to its task. It waits until the task runs.
pub(super) async fn input<S: Stream>(grid: &Arc<Grid>, task: TaskId, client: &mut S) -> Result<(), Answer> {
    let typed = grid.core.look(move |view| Some(view.home.record(task.job)?.origin.stdin.is_some())).await?;
    if !typed.ok_or_else(|| missing(Selector::Task(task)))? {
        let why = format!("{task} was not submitted to be typed into: use gridctl run");
        return Err(Failure::new(Kind::State, why).into());
    }
    let client_of = Client::new(grid, task);
    let typist = &client_of.typist;
    loop {
        let input = tokio::select! {
            input = stream::read::<Input, _>(client) => input?,
            () = typist.until(|state| state.done) => break,
        };
        match input {
            Input::Bytes(bytes) if bytes.len() > MAX_CHUNK => break,
            Input::Bytes(bytes) => {
                typist.until(|state| state.done || state.kept.has_room()).await;
                typist.change(|state| state.kept.push(&bytes));
            }
            Input::End => {
                typist.until(|state| state.done || state.kept.has_room()).await;
                typist.change(|state| state.kept.end());
            }
            Input::Resize { rows, cols } => typist.change(|state| {
                (state.size, state.size_told) = (Some((rows, cols)), false);
            }),
        }
    }
    Ok(stream::write(client, &Response::Ok(Reply::Done)).await?)
}

/// A client that types, as long as it is connected.
struct Client {
    typist: Arc<Typist>,
}

impl Client {
    fn new(grid: &Arc<Grid>, task: TaskId) -> Self {
        let mut all = grid.typists.all();
        let typist = all.entry(task).or_insert_with(|| {
            let typist = Arc::new(Typist { state: Mutex::default(), changed: watch::Sender::new(()) });
            tokio::spawn(lead(grid.clone(), task, typist.clone()));
            typist
        });
        typist.change(|state| state.clients += 1);
        Self { typist: typist.clone() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.typist.change(|state| state.clients -= 1);
    }
}

impl Typists {
    fn all(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Typist>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets one that has nothing left to do; false if somebody began to type just now.
    fn leave(&self, task: TaskId, typist: &Typist) -> bool {
        let mut all = self.all();
        let over = typist.state().is_over();
        if over {
            all.remove(&task);
        }
        over
    }
}

impl Typist {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        while !holds(&self.state()) {
            // The sender is this value's own.
            let _ = changed.changed().await;
        }
    }
}

impl State {
    /// Whether there is nothing to wait for.
    fn is_over(&self) -> bool {
        self.done || (self.clients == 0 && self.kept.is_empty())
    }
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.taken == self.next
    }

    fn has_room(&self) -> bool {
        self.next - self.taken < KEPT
    }

    fn push(&mut self, bytes: &[u8]) {
        self.next += bytes.len() as u64;
        match self.pieces.back_mut() {
            Some(Piece::Bytes(last)) if last.len() + bytes.len() <= PIECE => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => (),
            _ => self.pieces.push_back(Piece::Bytes(bytes.to_vec())),
        }
    }

    fn end(&mut self) {
        self.next += 1;
        self.pieces.push_back(Piece::End);
    }

    /// A node that was just connected has so much.
    fn align(&mut self, typed: Typed) {
        if !self.known || typed.next < self.first {
            // What was typed before this agent was there, or before the task began anew, is not here.
            let kept = self.next - self.first;
            (self.first, self.taken, self.next) = (typed.next, typed.next, typed.next + kept);
            self.known = true;
        }
        self.sent = typed.next.min(self.next);
        self.heard(typed);
    }

    /// So much is taken.
    fn heard(&mut self, typed: Typed) {
        self.taken = typed.taken.min(self.next).max(self.taken);
        while let Some(piece) = self.pieces.front()
            && self.first + piece.len() <= self.taken
        {
            self.first += piece.len();
            self.pieces.pop_front();
        }
    }

    /// What is to be sent next.
    fn send(&mut self) -> Option<Keys> {
        let mut at = self.first;
        for piece in &self.pieces {
            let end = at + piece.len();
            if self.sent < end {
                let from = self.sent.max(at);
                self.sent = end;
                return Some(match piece {
                    Piece::Bytes(bytes) => Keys::Bytes {
                        at: from,
                        bytes: bytes.get((from - at) as usize..).unwrap_or_default().to_vec(),
                    },
                    Piece::End => Keys::End { at: from },
                });
            }
            at = end;
        }
        None
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::End => 1,
        }
    }
}

// === from the home to the run ===

/// Leads what is typed to wherever the task runs, until there is nothing left to lead.
async fn lead(grid: Arc<Grid>, task: TaskId, typist: Arc<Typist>) {
    loop {
        if lead_some(&grid, task, &typist).await.is_err() {
            typist.change(|state| state.done = true);
        }
        if grid.typists.leave(task, &typist) {
            return;
        }
    }
}

async fn lead_some(grid: &Arc<Grid>, task: TaskId, typist: &Typist) -> Result<(), Stopping> {
    let mut changes = grid.core.watch(task.job).await?;
    loop {
        changes.mark_unchanged();
        let place = grid.core.look(move |view| {
            let (run, node) = view.home.run_of(task).filter(|_| !view.home.is_done(task))?;
            Some((run, node.filter(|_| view.home.is_running(task))))
        });
        let Some((run, node)) = place.await? else {
            typist.change(|state| state.done = true);
            return Ok(());
        };
        let mut during = changes.clone();
        let moved = async {
            while during.changed().await.is_ok() {
                let now = grid.core.look(move |view| view.home.run_of(task)).await;
                if now.is_ok_and(|now| now != Some((run, node))) {
                    return;
                }
            }
        };
        let led = async {
            match node {
                Some(node) => connect(grid, typist, run, node).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = typist.until(State::is_over) => return Ok(()),
            () = moved => (),
            // It ended there, or its node is out of reach: whatever comes of it is a change.
            () = led => drop(timeout(AGAIN, changes.changed()).await),
        }
    }
}

/// What a node has of what was typed, unless it says what cannot be.
async fn heard(from: &mut (impl AsyncRead + Unpin)) -> Option<Typed> {
    match stream::read::<Heard, _>(from).await {
        Ok(Heard::Typed(typed)) if typed.taken <= typed.next && typed.next <= FARTHEST => Some(typed),
        _ => None,
    }
}

/// One connection to the node of a run.
async fn connect(grid: &Arc<Grid>, typist: &Typist, run: Run, node: NodeId) {
    let host: Box<dyn Stream> = if node == grid.me {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let keyboard = grid.keyboard(run).await;
        tokio::spawn(async move {
            // Ends with the other side.
            let _ = hear(keyboard, &mut far).await;
        });
        Box::new(near)
    } else {
        match grid.peers.ask(node, &Request::Input(run)).await {
            Ok(duplex) => Box::new(duplex),
            Err(_) => return,
        }
    };
    let (mut from, mut to) = tokio::io::split(host);
    let Some(typed) = heard(&mut from).await else { return };
    typist.change(|state| {
        state.kept.align(typed);
        (state.size_told, state.done) = (false, state.done || typed.closed);
    });
    let hearing = async {
        while let Some(typed) = heard(&mut from).await {
            typist.change(|state| {
                state.kept.heard(typed);
                state.done |= typed.closed;
            });
        }
    };
    let saying = async {
        let mut changed = typist.changed.subscribe();
        loop {
            loop {
                let keys = {
                    let mut state = typist.state();
                    let told = std::mem::replace(&mut state.size_told, true);
                    let size = state.size.filter(|_| !told);
                    size.map(|(rows, cols)| Keys::Resize { rows, cols }).or_else(|| state.kept.send())
                };
                let Some(keys) = keys else { break };
                if stream::write(&mut to, &keys).await.is_err() {
                    return;
                }
            }
            let _ = changed.changed().await;
        }
    };
    tokio::select! {
        () = hearing => (),
        () = saying => (),
    }
}

// === at the run's node ===

/// Types what its home says into a run that is here, and tells how far it is.
pub(crate) async fn hear<S: Stream>(keyboard: Option<Keyboard>, home: &mut S) -> Result<(), WireError> {
    let Some(keyboard) = keyboard else { return stream::write(home, &Heard::Ended).await };
    let (mut from, mut to) = tokio::io::split(home);
    let telling = async {
        let mut typed = keyboard.typed();
        loop {
            let now = *typed.borrow_and_update();
            stream::write(&mut to, &Heard::Typed(now)).await?;
            tokio::select! {
                changed = typed.changed() => if changed.is_err() { break },
                () = keyboard.ended() => break,
            }
        }
        stream::write(&mut to, &Heard::Ended).await
    };
    let typing = async {
        loop {
            match stream::read::<Keys, _>(&mut from).await {
                Ok(Keys::Bytes { at, bytes }) if !bytes.is_empty() && bytes.len() <= MAX_CHUNK => {
                    let mut typed = keyboard.typed();
                    // A home does not send more; whoever did would fill the shim.
                    let room = |typed: &Typed| typed.closed || at <= typed.taken.saturating_add(KEPT);
                    if typed.wait_for(room).await.is_err() {
                        return;
                    }
                    keyboard.press(at, bytes);
                }
                // No bytes are the end, to the shim.
                Ok(Keys::End { at }) => keyboard.press(at, Vec::new()),
                Ok(Keys::Resize { rows, cols }) => keyboard.resize(rows, cols),
                Ok(Keys::Bytes { .. }) | Err(_) => return,
            }
        }
    };
    let (mut telling, mut typing) = (pin!(telling), pin!(typing));
    tokio::select! {
        told = &mut telling => told,
        () = &mut typing => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(next: u64, taken: u64) -> Typed {
        Typed { next, taken, closed: false }
    }

    /// All that it would send now, with its positions.
    fn sent(kept: &mut Kept) -> (Option<u64>, String) {
        let (mut first, mut text) = (None, String::new());
        while let Some(keys) = kept.send() {
            let (at, piece) = match keys {
                Keys::Bytes { at, bytes } => (at, String::from_utf8(bytes).unwrap()),
                Keys::End { at } => (at, "$".to_owned()),
                Keys::Resize { .. } => unreachable!(),
            };
            assert_eq!(first.map_or(at, |first| first + text.len() as u64), at);
            first.get_or_insert(at);
            text += &piece;
        }
        (first, text)
    }

    #[test]
    fn what_is_not_in_the_checkpoint_is_sent_where_the_task_goes_on() {
        let mut kept = Kept::default();
        kept.push(b"abc");
        kept.align(typed(0, 0));
        kept.push(b"def");
        assert_eq!(sent(&mut kept), (Some(0), "abcdef".into()));
        kept.heard(typed(6, 2));
        kept.end();
        // The checkpoint holds five; of those, the pipe there has one.
        kept.align(typed(5, 1));
        assert_eq!(sent(&mut kept), (Some(5), "f$".into()));
        kept.heard(typed(7, 7));
        assert!(kept.is_empty() && kept.pieces.is_empty());
    }

    #[tokio::test]
    async fn what_no_node_can_have_is_not_heard() {
        for (next, taken, sound) in [(7, 7, true), (7, 8, false), (FARTHEST, 0, true), (u64::MAX, 1, false)] {
            let (mut near, mut far) = tokio::io::duplex(1 << 10);
            stream::write(&mut near, &Heard::Typed(typed(next, taken))).await.unwrap();
            assert_eq!(heard(&mut far).await.is_some(), sound, "{next} {taken}");
        }
        let mut kept = Kept::default();
        kept.push(b"abc");
        kept.align(typed(FARTHEST, 0));
        kept.end();
        kept.align(typed(0, 0));
        assert_eq!(sent(&mut kept), (Some(0), "abc$".into()));
    }

    #[test]
    fn an_agent_that_is_new_goes_on_at_the_position_of_the_run() {
        let mut kept = Kept::default();
        kept.push(b"new");
        kept.align(typed(1000, 990));
        assert_eq!(sent(&mut kept), (Some(1000), "new".into()));
        kept.align(typed(1001, 1001));
        assert_eq!(sent(&mut kept), (Some(1001), "ew".into()));
    }
}
