//! Routes what processes of jobs say to each other ([`libgrid::comm`]): datagrams, which may get lost.
//!
//! ```text
//!   endpoint ─▶ comm.sock ─▶ who is it? where is the other? ─┬─ here ─▶ may they? ─▶ its socket
//!                                                            └─ elsewhere ─▶ line ─▶ that node: here? may they? ─▶ its socket
//! ```
//!
//! Nothing is kept but what can be asked again: where processes are, until a node says that one is not there, and who may talk
//! to whom, for a minute. A process has at most [`QUOTA`] datagrams under way here; what is over is dropped, and sent again by
//! its endpoint.
//!
//! Who speaks, the kernel says (`SCM_CREDENTIALS`), and [`crate::processes`] which process of a task that is. To other nodes,
//! this one vouches for it.

mod doors;
mod rights;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grid_link::Duplex;
use libgrid::comm::{FromAgent, Refusal, ToAgent, decode};
use libgrid::ids::{Gpid, JobId, NodeId, TaskId};
use libgrid::wire::{self, WireError, stream};
use nix::sys::socket::UnixCredentials;
use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, warn};

pub(crate) use self::rights::same_user;

use self::doors::{Alive, Ear};
use self::rights::Rights;
use crate::grid::Grid;
use crate::peers::Request;
use crate::processes::{self, Fate};
use crate::runner;

/// Datagrams of one process that are under way at most.
const QUOTA: usize = 64;

/// Those that wait for one process, or one node.
const QUEUE: usize = 256;

/// Those that wait until a process is found.
const SOUGHT: usize = 16;

/// How long nothing is said to a process until its socket is closed here.
const IDLE: Duration = Duration::from_secs(30);

/// How long other nodes have to say whether a process is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may run before it is known to be of a task, and how often that is looked at.
const FRESH: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(100);

/// How many processes that spoke are known before those that ended are looked for.
const MANY: usize = 1024;

/// A datagram from process to process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Routed {
    from: Gpid,
    /// The job that `from` is part of.
    job: JobId,
    to: Gpid,
    #[serde(with = "serde_bytes")]
    packet: Vec<u8>,
}

/// What a node answers where it did not deliver one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bounce {
    from: Gpid,
    to: Gpid,
    /// Nothing if the process is not there: it is to be looked for again.
    why: Option<Refusal>,
}

/// A datagram on its way, and what it takes of its sender's quota.
struct Letter {
    routed: Routed,
    origin: Origin,
}

enum Origin {
    Here(#[expect(dead_code, reason = "held until the datagram is gone")] OwnedSemaphorePermit),
    There(mpsc::Sender<Bounce>),
}

#[derive(Default)]
pub(crate) struct Comm(Mutex<State>);

#[derive(Default)]
struct State {
    senders: HashMap<u32, Sender>,
    asked: HashSet<u32>,
    doors: HashMap<Gpid, Door>,
    serial: u64,
    away: HashMap<Gpid, NodeId>,
    sought: HashMap<Gpid, Vec<Letter>>,
    lines: HashMap<NodeId, mpsc::Sender<Letter>>,
    rights: Rights,
}

/// A process that spoke.
struct Sender {
    gpid: Gpid,
    job: JobId,
    alive: Alive,
    quota: Arc<Semaphore>,
}

/// The way to an endpoint that is here.
struct Door {
    serial: u64,
    job: JobId,
    queue: mpsc::Sender<(Vec<u8>, Option<Letter>)>,
}

/// Begins to serve the processes of this node.
pub(crate) fn start(grid: Arc<Grid>) {
    let path = grid.config.comm_socket();
    match Ear::open(&path) {
        Ok(ear) => drop(tokio::spawn(listen(grid, ear))),
        Err(error) => warn!(%error, path = %path.display(), "processes of jobs cannot send messages"),
    }
}

async fn listen(grid: Arc<Grid>, ear: Ear) {
    loop {
        match ear.hear().await {
            Ok((sender, bytes)) => heard(&grid, sender, bytes),
            Err(error) => {
                debug!(%error, "a datagram was not received");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Takes what a process of this machine says.
fn heard(grid: &Arc<Grid>, credentials: UnixCredentials, bytes: Vec<u8>) {
    let Ok(message) = decode::<ToAgent>(&bytes) else { return };
    spoken(grid, (credentials.pid() as u32, credentials.uid()), message);
}

fn spoken(grid: &Arc<Grid>, (pid, uid): (u32, u32), message: ToAgent) {
    let mut state = grid.comm.lock();
    let known = state.senders.get(&pid).filter(|sender| sender.alive.is_still());
    let Some(sender) = known else {
        if state.asked.len() < MANY && state.asked.insert(pid) {
            tokio::spawn(meet(grid.clone(), (pid, uid), message));
        }
        return;
    };
    let (gpid, job) = (sender.gpid, sender.job);
    match message {
        ToAgent::Hello => {
            drop(state);
            greet(grid, pid, Some((gpid, job)));
        }
        ToAgent::To { to, packet } => {
            let Ok(permit) = sender.quota.clone().try_acquire_owned() else { return };
            drop(state);
            route(
                grid,
                Letter { routed: Routed { from: gpid, job, to, packet }, origin: Origin::Here(permit) },
            );
        }
    }
}

/// Finds out who speaks for the first time.
async fn meet(grid: Arc<Grid>, (pid, uid): (u32, u32), message: ToAgent) {
    let alive = Alive::open(pid);
    let mut found = None;
    // A process may speak before its shim has told of it.
    let tries = if runner::is_task(uid) { FRESH.as_millis() / AGAIN.as_millis() } else { 0 };
    for _ in 0..tries {
        let places = processes::places(&grid.queries, None).await;
        found = grid.processes.of_pid(pid, places).await;
        if found.is_some() || !alive.as_ref().is_ok_and(Alive::is_still) {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    let mut state = grid.comm.lock();
    state.asked.remove(&pid);
    let found = found.map(|(run, gpid)| (gpid, run.task.job));
    if let (Some((gpid, job)), Ok(alive)) = (found, alive) {
        if state.senders.len() >= MANY {
            state.senders.retain(|_, sender| sender.alive.is_still());
        }
        state.senders.insert(pid, Sender { gpid, job, alive, quota: Arc::new(Semaphore::new(QUOTA)) });
    }
    drop(state);
    match found {
        Some(_) => spoken(&grid, (pid, uid), message),
        None => greet(&grid, pid, None),
    }
}

/// Tells a process who it is.
fn greet(grid: &Arc<Grid>, pid: u32, known: Option<(Gpid, JobId)>) {
    let Ok(socket) = doors::open(pid) else { return };
    match known {
        Some((gpid, job)) => {
            // A newer endpoint of the process is in the place of an older one.
            open_door(grid, gpid, job, socket);
            grid.comm.lock().tell(gpid, &FromAgent::You(gpid));
        }
        None => drop(tokio::spawn(async move {
            // It asks again.
            if let Ok(bytes) = wire::encode(&FromAgent::Stranger) {
                let _ = tokio::time::timeout(PATIENCE, socket.send(&bytes)).await;
            }
        })),
    }
}

fn open_door(grid: &Arc<Grid>, gpid: Gpid, job: JobId, socket: UnixDatagram) {
    let (queue, letters) = mpsc::channel(QUEUE);
    let mut state = grid.comm.lock();
    state.serial += 1;
    let serial = state.serial;
    state.away.remove(&gpid);
    state.doors.insert(gpid, Door { serial, job, queue });
    drop(state);
    tokio::spawn(pass(grid.clone(), gpid, serial, socket, letters));
}

/// Writes to the socket of an endpoint, until it is gone or nobody has anything to say.
async fn pass(
    grid: Arc<Grid>,
    gpid: Gpid,
    serial: u64,
    socket: UnixDatagram,
    mut letters: mpsc::Receiver<(Vec<u8>, Option<Letter>)>,
) {
    let mut gone = None;
    while let Ok(Some((bytes, letter))) = tokio::time::timeout(IDLE, letters.recv()).await {
        // It may have been stopped, and moved: those who wait are told no more than that it is not here.
        if socket.send(&bytes).await.is_err() {
            gone = letter;
            break;
        }
    }
    let mut state = grid.comm.lock();
    if state.doors.get(&gpid).is_some_and(|door| door.serial == serial) {
        state.doors.remove(&gpid);
    }
    drop(state);
    if let Some(letter) = gone {
        route(&grid, letter);
    }
}

/// Sends a datagram on its way.
fn route(grid: &Arc<Grid>, letter: Letter) {
    let mut state = grid.comm.lock();
    let to = letter.routed.to;
    if let Some(door) = state.doors.get(&to) {
        let jobs = (letter.routed.job, door.job);
        match state.rights.known(grid, jobs) {
            Some(true) => state.deliver(letter),
            Some(false) => {
                drop(state);
                refuse(grid, letter, Some(rights::denied(jobs.1)));
            }
            None => drop(tokio::spawn(judge(grid.clone(), jobs, letter))),
        }
        return;
    }
    let node = state.away.get(&to).copied();
    match (&letter.origin, node) {
        (Origin::Here(_), Some(node)) => state.send_away(grid, node, letter),
        _ => {
            let waiting = state.sought.entry(to).or_default();
            if waiting.len() < SOUGHT {
                waiting.push(letter);
            }
            if waiting.len() == 1 {
                tokio::spawn(seek(grid.clone(), to));
            }
        }
    }
}

/// Asks who may, and tries again.
async fn judge(grid: Arc<Grid>, jobs: (JobId, JobId), letter: Letter) {
    match rights::ask(&grid, jobs).await {
        Some(may) => {
            grid.comm.lock().rights.learn(jobs, may);
            route(&grid, letter);
        }
        // The home cannot be asked now; the sender tries again.
        None => {
            let why = format!("node {}, whose jobs they are, does not answer", jobs.1.home);
            refuse(&grid, letter, Some(Refusal::Unsure(why)));
        }
    }
}

/// Looks for a process, and sends on what waits for it.
async fn seek(grid: Arc<Grid>, to: Gpid) {
    let places = processes::places(&grid.queries, None).await;
    let here = grid.processes.locate(to, places).await;
    let opened = here.map(|(run, pid)| (run, doors::open(pid)));
    let refusal = match opened {
        Some((run, Ok(socket))) => {
            open_door(&grid, to, run.task.job, socket);
            None
        }
        Some((_, Err(_))) => Some(Refusal::Deaf),
        None => None,
    };
    let is_here = grid.comm.lock().doors.contains_key(&to) || refusal.is_some();
    let waiting = |grid: &Grid| grid.comm.lock().sought.remove(&to).unwrap_or_default();
    if is_here {
        for letter in waiting(&grid) {
            match &refusal {
                Some(why) => refuse(&grid, letter, Some(why.clone())),
                None => route(&grid, letter),
            }
        }
        return;
    }
    // Another node that asks looks for itself.
    let from_here = {
        let mut state = grid.comm.lock();
        let waiting = state.sought.entry(to).or_default();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            waiting.drain(..).partition(|letter| matches!(letter.origin, Origin::Here(_)));
        let any = !ours.is_empty();
        *waiting = ours;
        if !any {
            state.sought.remove(&to);
        }
        drop(state);
        theirs.into_iter().for_each(|letter| refuse(&grid, letter, None));
        any
    };
    if !from_here {
        return;
    }
    let found = ask_others(&grid, to).await;
    let mut state = grid.comm.lock();
    let letters = state.sought.remove(&to).unwrap_or_default();
    if let Ok(node) = &found {
        state.away.insert(to, *node);
    }
    drop(state);
    for letter in letters {
        match (&found, &letter.origin) {
            (Ok(_), Origin::Here(_)) => route(&grid, letter),
            (Err(why), Origin::Here(_)) => refuse(&grid, letter, Some(why.clone())),
            (_, Origin::There(_)) => refuse(&grid, letter, None),
        }
    }
}

/// The node where a process is.
async fn ask_others(grid: &Arc<Grid>, to: Gpid) -> Result<NodeId, Refusal> {
    let others = grid.members.others();
    let (answer, mut answers) = mpsc::channel(others.len().max(1));
    for node in others {
        let (peers, answer) = (grid.peers.clone(), answer.clone());
        tokio::spawn(async move {
            let asked = async {
                let mut duplex = peers.ask(node, &Request::Find(to)).await.ok()?;
                stream::read::<Result<TaskId, Option<Fate>>, _>(&mut duplex).await.ok()
            };
            let found = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
            let _ = answer.send((node, found)).await;
        });
    }
    drop(answer);
    let (mut silent, mut last) = (Vec::new(), grid.processes.fate(to));
    while let Some((node, found)) = answers.recv().await {
        match found {
            Some(Ok(_)) => return Ok(node),
            Some(Err(Some(fate))) => {
                if last.as_ref().is_none_or(|last| fate.ago < last.ago) {
                    last = Some(fate);
                }
            }
            Some(Err(None)) => (),
            None => silent.push(node.to_string()),
        }
    }
    if silent.is_empty() {
        let unknown = || "no such process runs in this VO: see gridctl ps --processes --everywhere".into();
        return Err(Refusal::Missing(last.map_or_else(unknown, |fate| fate.sentence)));
    }
    let silent = silent.join(", ");
    Err(Refusal::Unsure(format!("{to} was not found, and node {silent} does not answer")))
}

/// Tells whoever sent a datagram that it was not delivered.
fn refuse(grid: &Arc<Grid>, letter: Letter, why: Option<Refusal>) {
    let Routed { from, to, .. } = letter.routed;
    match letter.origin {
        Origin::There(bounces) => drop(bounces.try_send(Bounce { from, to, why })),
        Origin::Here(_) => {
            if let Some(why) = why {
                grid.comm.lock().tell(from, &FromAgent::Refused { to, why });
            }
        }
    }
}

/// Writes what is for one node, as long as it can be reached.
async fn carry(grid: Arc<Grid>, node: NodeId, mut letters: mpsc::Receiver<Letter>) {
    let opened = tokio::time::timeout(PATIENCE, grid.peers.ask(node, &Request::Comm)).await;
    if let Ok(Ok(Duplex { mut send, mut recv })) = opened {
        let reader = {
            let grid = grid.clone();
            tokio::spawn(async move {
                while let Ok(bounce) = stream::read::<Bounce, _>(&mut recv).await {
                    bounced(&grid, node, bounce);
                }
            })
        };
        while let Ok(Some(letter)) = tokio::time::timeout(IDLE, letters.recv()).await {
            if reader.is_finished() || stream::write(&mut send, &letter.routed).await.is_err() {
                break;
            }
        }
        reader.abort();
    }
    // What waits is lost, and sent again; by then the process may be elsewhere.
    let mut state = grid.comm.lock();
    state.lines.remove(&node);
    state.away.retain(|_, at| *at != node);
}

fn bounced(grid: &Arc<Grid>, node: NodeId, bounce: Bounce) {
    let mut state = grid.comm.lock();
    match bounce.why {
        None if state.away.get(&bounce.to) == Some(&node) => drop(state.away.remove(&bounce.to)),
        None => (),
        Some(why) => state.tell(bounce.from, &FromAgent::Refused { to: bounce.to, why }),
    }
}

/// Takes what another node has for processes here.
pub(crate) async fn take(grid: &Arc<Grid>, duplex: Duplex) -> Result<(), WireError> {
    let Duplex { mut send, mut recv } = duplex;
    let (bounces, mut bounced) = mpsc::channel::<Bounce>(QUEUE);
    tokio::spawn(async move {
        while let Some(bounce) = bounced.recv().await {
            if stream::write(&mut send, &bounce).await.is_err() {
                return;
            }
        }
    });
    loop {
        let routed = stream::read::<Routed, _>(&mut recv).await?;
        route(grid, Letter { routed, origin: Origin::There(bounces.clone()) });
    }
}

// === impl Comm ===

impl Comm {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// To an endpoint that is here; what finds no room is dropped.
    fn deliver(&mut self, mut letter: Letter) {
        let Some(door) = self.doors.get(&letter.routed.to) else { return };
        let packet = std::mem::take(&mut letter.routed.packet);
        let message = FromAgent::From { from: letter.routed.from, packet };
        if let Ok(bytes) = wire::encode(&message) {
            let FromAgent::From { packet, .. } = message else { return };
            letter.routed.packet = packet;
            let _ = door.queue.try_send((bytes, Some(letter)));
        }
    }

    fn tell(&mut self, to: Gpid, message: &FromAgent) {
        if let (Some(door), Ok(bytes)) = (self.doors.get(&to), wire::encode(message)) {
            let _ = door.queue.try_send((bytes, None));
        }
    }

    fn send_away(&mut self, grid: &Arc<Grid>, node: NodeId, letter: Letter) {
        let line = self.lines.entry(node).or_insert_with(|| {
            let (line, letters) = mpsc::channel(QUEUE);
            tokio::spawn(carry(grid.clone(), node, letters));
            line
        });
        let _ = line.try_send(letter);
    }
}
