//! The socket of a process, the thread that serves it, and what users call.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::packet::{self, MAX_DATAGRAM, Packet};
use super::stream::Stream;
use super::{CommError, DEFAULT_SOCKET, FromAgent, MAX_MESSAGE, Message, Refusal, ToAgent, place};
use crate::ids::Gpid;
use crate::wire;

/// How long the agent has to say who we are: one that is started again is back by then.
const GREETING: Duration = Duration::from_secs(10);

/// How often it is asked meanwhile.
const GREET_AGAIN: Duration = Duration::from_millis(200);

/// The longest sleep of the thread.
const IDLE: Duration = Duration::from_secs(1);

/// How long the agent may not take a datagram, until that counts as lost.
const STUCK: Duration = Duration::from_millis(100);

/// How long a process may not be found: one that never was there, and one that may be moving or coming back from a checkpoint.
const GRACE_NEW: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(15);

/// How long an endpoint that is dropped waits for acknowledgements.
const LINGER: Duration = Duration::from_secs(5);

/// One process has one endpoint: the agent finds it by the pid.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What a process sends and receives with; threads may share it.
///
/// ```no_run
/// use libgrid::comm::Endpoint;
/// let endpoint = Endpoint::open()?;
/// println!("I am {}", endpoint.gpid());
/// # Ok::<(), libgrid::comm::CommError>(())
/// ```
#[derive(Debug)]
pub struct Endpoint {
    service: Service,
    gpid: Gpid,
}

/// The socket and its thread; both end with this value.
struct Service {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: UnixDatagram,
    path: String,
    agent: String,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    clock: Clock,
    peers: BTreeMap<Gpid, Peer>,
    /// The last name of a stream.
    named: u64,
    me: Option<Gpid>,
    stranger: bool,
    /// Until when the thread sleeps.
    sleeps: Duration,
    /// The first moment at which a user is to be woken.
    due: Option<Duration>,
    stopping: bool,
    failed: Option<io::ErrorKind>,
}

struct Peer {
    stream: Stream,
    /// Messages of streams that are over.
    kept: VecDeque<Message>,
    trouble: Option<Trouble>,
    refused: Option<(Refusal, Duration)>,
    /// Its present stream tells the other end that the one before broke.
    tells: bool,
}

struct Trouble {
    error: CommError,
    /// Whether something that was sent, or was to come, may be lost.
    lossy: bool,
}

/// A time that goes on where it was when the process moves: the clock of the next machine may be far from this one's.
struct Clock {
    seen: Instant,
    sum: Duration,
}

impl Endpoint {
    /// Opens the endpoint of this process.
    ///
    /// # Errors
    /// Where there is no agent, or this process is not of a task, or it has an endpoint.
    pub fn open() -> Result<Self, CommError> {
        Self::open_at(DEFAULT_SOCKET)
    }

    /// The same with an agent whose socket is elsewhere.
    ///
    /// # Errors
    /// As of [`Endpoint::open`].
    ///
    /// ```
    /// use libgrid::comm::{CommError, Endpoint};
    /// # fn f() -> Result<(), CommError> {
    /// let endpoint = Endpoint::open_at("/run/gridos-test/comm.sock")?;
    /// # Ok(()) }
    /// ```
    pub fn open_at(agent: &str) -> Result<Self, CommError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(CommError::Taken);
        }
        Self::begin(agent).inspect_err(|_| TAKEN.store(false, Ordering::SeqCst))
    }

    fn begin(agent: &str) -> Result<Self, CommError> {
        let path = place(std::process::id());
        let bound = || {
            // Of an earlier program of this process.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
            let socket = UnixDatagram::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            socket.set_write_timeout(Some(STUCK))?;
            Ok(socket)
        };
        let socket = bound().map_err(|source| CommError::Socket { path: path.clone(), source })?;
        let state = State {
            clock: Clock { seen: Instant::now(), sum: Duration::ZERO },
            peers: BTreeMap::new(),
            named: 0,
            me: None,
            stranger: false,
            sleeps: Duration::ZERO,
            due: None,
            stopping: false,
            failed: None,
        };
        let shared = Arc::new(Shared {
            socket,
            path,
            agent: agent.to_owned(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new().name("grid-comm".into()).spawn(move || shared.serve())
        };
        let thread = thread.map_err(|source| CommError::Socket { path: shared.path.clone(), source })?;
        let service = Service { shared, thread: Some(thread) };
        let gpid = service.shared.greet()?;
        Ok(Self { service, gpid })
    }

    /// The global id of this process.
    ///
    /// ```no_run
    /// # let endpoint = libgrid::comm::Endpoint::open()?;
    /// println!("{}", endpoint.gpid());
    /// # Ok::<(), libgrid::comm::CommError>(())
    /// ```
    pub fn gpid(&self) -> Gpid {
        self.gpid
    }

    /// Sends a message, and returns as soon as it is taken: that it arrives is known after [`Endpoint::flush`]. Waits while the
    /// other end has no room, or no endpoint yet.
    ///
    /// # Errors
    /// [`CommError::Missing`], [`CommError::Denied`], [`CommError::TooLarge`], [`CommError::Timeout`], or
    /// [`CommError::Reset`] once if an earlier message may be lost.
    ///
    /// ```no_run
    /// # let endpoint = libgrid::comm::Endpoint::open()?;
    /// endpoint.send("2.5031".parse()?, 0, b"hello", None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, to: Gpid, tag: u32, bytes: &[u8], timeout: Option<Duration>) -> Result<(), CommError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(CommError::TooLarge { len: bytes.len() });
        }
        let shared = &self.service.shared;
        shared.wait(timeout, |state, now| {
            if let Some(error) = state.trouble_of(to) {
                return Some(Err(error));
            }
            let peer = state.peer(now, to);
            let taken = peer.stream.is_open() && peer.stream.has_room(bytes.len());
            match taken {
                true => peer.stream.push(tag, bytes),
                false => peer.stream.knock(),
            }
            shared.pump(state, now, to);
            taken.then_some(Ok(()))
        })
    }

    /// The next message from anybody.
    ///
    /// # Errors
    /// [`CommError::Timeout`]; [`CommError::Reset`] or [`CommError::Missing`] once where messages may be lost.
    ///
    /// ```no_run
    /// # let endpoint = libgrid::comm::Endpoint::open()?;
    /// let message = endpoint.recv(Some(std::time::Duration::from_secs(1)))?;
    /// # Ok::<(), libgrid::comm::CommError>(())
    /// ```
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Message, CommError> {
        self.recv_from(None, None, timeout)
    }

    /// The next message from this process and with this tag, as far as they are given. Others stay.
    ///
    /// # Errors
    /// As of [`Endpoint::recv`]; of a process that is named, also [`CommError::Closed`] and [`CommError::Denied`].
    ///
    /// ```no_run
    /// # let endpoint = libgrid::comm::Endpoint::open()?;
    /// let answer = endpoint.recv_from(Some("2.5031".parse()?), Some(7), None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_from(
        &self,
        from: Option<Gpid>,
        tag: Option<u32>,
        timeout: Option<Duration>,
    ) -> Result<Message, CommError> {
        let shared = &self.service.shared;
        shared.wait(timeout, |state, now| {
            if let Some(peer) = from {
                state.peer(now, peer).stream.knock();
                shared.pump(state, now, peer);
            }
            let wanted: Vec<Gpid> = match from {
                Some(peer) => vec![peer],
                None => state.peers.keys().copied().collect(),
            };
            wanted.into_iter().find_map(|id| {
                let peer = state.peers.get_mut(&id)?;
                let at = peer.kept.iter().position(|message| tag.is_none_or(|tag| message.tag == tag));
                if let Some(message) = at.and_then(|at| peer.kept.remove(at)) {
                    return Some(Ok(message));
                }
                let told = |trouble: &mut Trouble| from.is_some() || trouble.lossy;
                if let Some(trouble) = peer.trouble.take_if(told) {
                    return Some(Err(trouble.error));
                }
                let message = peer.stream.take(now, tag)?;
                shared.pump(state, now, id);
                Some(Ok(message))
            })
        })
    }

    /// Waits until all that was sent has arrived.
    ///
    /// # Errors
    /// [`CommError::Timeout`], or what stopped it.
    ///
    /// ```no_run
    /// # let endpoint = libgrid::comm::Endpoint::open()?;
    /// endpoint.flush(Some(std::time::Duration::from_secs(10)))?;
    /// # Ok::<(), libgrid::comm::CommError>(())
    /// ```
    pub fn flush(&self, timeout: Option<Duration>) -> Result<(), CommError> {
        self.service.shared.wait(timeout, |state, _| {
            let lost =
                state.peers.values_mut().find_map(|peer| peer.trouble.take_if(|trouble| trouble.lossy));
            if let Some(trouble) = lost {
                return Some(Err(trouble.error));
            }
            state.peers.values().all(|peer| peer.stream.is_flushed()).then_some(Ok(()))
        })
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who we are, as the agent says.
    fn greet(&self) -> Result<Gpid, CommError> {
        let mut last: Option<Duration> = None;
        let greeted = self.wait(Some(GREETING), |state, now| {
            if state.stranger {
                return Some(Err(CommError::Stranger));
            }
            if last.is_none_or(|last| now >= last + GREET_AGAIN) {
                last = Some(now);
                self.tell(&ToAgent::Hello);
            }
            // To ask again, too.
            state.due = Some(now + GREET_AGAIN);
            state.me.map(Ok)
        });
        greeted.map_err(|error| match error {
            CommError::Timeout { .. } => CommError::NoAgent { path: self.agent.clone() },
            other => other,
        })
    }

    /// Waits until `done` says how it ended. The thread wakes whoever waits: a sleep of the library would be measured by a clock
    /// that is another one after a move.
    fn wait<T>(
        &self,
        timeout: Option<Duration>,
        mut done: impl FnMut(&mut State, Duration) -> Option<Result<T, CommError>>,
    ) -> Result<T, CommError> {
        let mut state = self.lock();
        let begun = state.clock.now();
        let until = timeout.map(|timeout| begun + timeout);
        loop {
            let now = state.clock.now();
            if let Some(kind) = state.failed {
                return Err(CommError::Socket { path: self.path.clone(), source: kind.into() });
            }
            if let Some(result) = done(&mut state, now) {
                return result;
            }
            if until.is_some_and(|until| now >= until) {
                let after = now.saturating_sub(begun);
                return Err(CommError::Timeout { after, why: state.waits_for() });
            }
            state.due = [state.due, until].into_iter().flatten().min();
            self.hurry(&mut state);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the thread if it would sleep too long.
    fn hurry(&self, state: &mut State) {
        if state.wake().is_some_and(|wake| wake < state.sleeps) {
            state.sleeps = Duration::ZERO;
            // Its socket is full: it is awake.
            let _ = self.socket.send_to(&[], &self.path);
        }
    }

    fn tell(&self, message: &ToAgent) {
        // What the agent does not take now is sent again.
        if let Ok(bytes) = wire::encode(message) {
            let _ = self.socket.send_to(&bytes, &self.agent);
        }
    }

    fn send_packet(&self, to: Gpid, packet: &Packet) {
        if let Ok(packet) = wire::encode(packet) {
            self.tell(&ToAgent::To { to, packet });
        }
    }

    /// Sends what is to be sent to a process now.
    fn pump(&self, state: &mut State, now: Duration, to: Gpid) {
        let Some(peer) = state.peers.get_mut(&to) else { return };
        while let Some(packet) = peer.stream.poll(now) {
            self.send_packet(to, &packet);
        }
        self.hurry(state);
    }

    /// The thread.
    fn serve(&self) {
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        let mut slept = None;
        loop {
            {
                let mut state = self.lock();
                if state.stopping {
                    return;
                }
                let now = state.clock.now();
                let late: Vec<Gpid> = state.peers.keys().copied().collect();
                for peer in late {
                    if state
                        .peers
                        .get(&peer)
                        .is_some_and(|peer| peer.stream.wake().is_some_and(|at| at <= now))
                    {
                        self.pump(&mut state, now, peer);
                    }
                }
                if state.due.is_some_and(|due| due <= now) {
                    state.due = None;
                    self.changed.notify_all();
                }
                let until =
                    state.wake().unwrap_or(now + IDLE).clamp(now + Duration::from_millis(1), now + IDLE);
                state.sleeps = until;
                let sleep = until - now;
                if slept != Some(sleep) && self.socket.set_read_timeout(Some(sleep)).is_ok() {
                    slept = Some(sleep);
                }
            }
            match self.socket.recv(&mut buffer) {
                Ok(0) => (),
                Ok(len) => self.take(&buffer[..len]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => (),
                    kind => {
                        self.lock().failed = Some(kind);
                        self.changed.notify_all();
                        return;
                    }
                },
            }
        }
    }

    fn take(&self, bytes: &[u8]) {
        // Only the agent can write to the socket, or this very task.
        let Ok(message) = packet::decode::<FromAgent>(bytes) else { return };
        let mut state = self.lock();
        let now = state.clock.now();
        match message {
            FromAgent::You(gpid) => state.me = Some(gpid),
            FromAgent::Stranger => state.stranger = true,
            FromAgent::From { from, packet } => {
                let Some(packet) = packet::packet(&packet) else { return };
                self.hear(&mut state, now, from, packet);
                self.pump(&mut state, now, from);
            }
            FromAgent::Refused { to, why } => state.refused(now, to, why),
        }
        drop(state);
        self.changed.notify_all();
    }

    fn hear(&self, state: &mut State, now: Duration, from: Gpid, packet: Packet) {
        let is_reset = matches!(packet, Packet::Reset { .. });
        if !state.peers.contains_key(&from) {
            let Packet::Data(data) = &packet else { return };
            if data.yours != 0 {
                // Of a stream that we do not have.
                let reset = Packet::Reset { yours: data.mine, floor: data.yours, closed: false, ack: 0 };
                return self.send_packet(from, &reset);
            }
        }
        let peer = state.peer(now, from);
        peer.refused = None;
        let renews = peer.stream.is_renewed_by(&packet);
        let (floor, closed) = match packet {
            Packet::Reset { floor, closed, .. } => (floor, closed),
            Packet::Data(_) => (0, false),
        };
        if peer.stream.receive(now, packet.clone()).is_ok() {
            return;
        }
        let lossless = closed && peer.stream.is_flushed();
        let error = if lossless { CommError::Closed(from) } else { CommError::Reset(from) };
        let used = peer.stream.was_used();
        state.renew(now, from, floor);
        if used {
            state.tell(from, Trouble { error, lossy: !lossless });
        }
        if !is_reset && !renews {
            // Until it answers, that it is a new one is news to the other end.
            let peer = state.peer(now, from);
            peer.tells = true;
            peer.stream.knock();
        }
        if renews {
            // It names a stream that is new: nothing is wrong with it.
            let _ = state.peer(now, from).stream.receive(now, packet);
        }
    }
}

// === impl State ===

impl State {
    fn peer(&mut self, now: Duration, id: Gpid) -> &mut Peer {
        let named = &mut self.named;
        self.peers.entry(id).or_insert_with(|| Peer {
            stream: Stream::new(now, id, name_after(named, 0)),
            kept: VecDeque::new(),
            trouble: None,
            refused: None,
            tells: false,
        })
    }

    /// Puts a new stream in the place of one that is over.
    fn renew(&mut self, now: Duration, id: Gpid, floor: u64) {
        let name = name_after(&mut self.named, floor);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let old = std::mem::replace(&mut peer.stream, Stream::new(now, id, name));
        peer.kept.extend(old.into_ready());
        peer.refused = None;
    }

    fn tell(&mut self, id: Gpid, trouble: Trouble) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.trouble = Some(trouble);
        }
    }

    /// What a user who sends is to be told first. That the other end has closed an earlier stream is nothing to a new one.
    fn trouble_of(&mut self, id: Gpid) -> Option<CommError> {
        let trouble = self.peers.get_mut(&id)?.trouble.take()?;
        (!matches!(trouble.error, CommError::Closed(_))).then_some(trouble.error)
    }

    fn refused(&mut self, now: Duration, id: Gpid, why: Refusal) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let since = peer.refused.as_ref().map_or(now, |(_, since)| *since);
        let grace = if peer.stream.is_open() { GRACE } else { GRACE_NEW };
        let over = now.saturating_sub(since) >= grace;
        let error = match &why {
            Refusal::Denied(why) => Some(CommError::Denied { peer: id, why: why.clone() }),
            Refusal::Missing(why) => over.then(|| CommError::Missing { peer: id, why: why.clone() }),
            Refusal::Deaf => (over && peer.stream.is_open())
                .then(|| CommError::Missing { peer: id, why: "it has no endpoint any more".into() }),
            Refusal::Unsure(_) => None,
        };
        // Silence of some nodes is no news of the process.
        let since = if matches!(why, Refusal::Unsure(_)) { now } else { since };
        peer.refused = Some((why, since));
        if let Some(error) = error {
            let lossy = !peer.stream.is_flushed();
            self.renew(now, id, 0);
            self.tell(id, Trouble { error, lossy });
        }
    }

    /// The moment at which the thread has to do something.
    fn wake(&self) -> Option<Duration> {
        self.peers.values().filter_map(|peer| peer.stream.wake()).chain(self.due).min()
    }

    /// What a user who waited too long waited for.
    fn waits_for(&self) -> String {
        let refused = self.peers.iter().find_map(|(id, peer)| Some((id, peer.refused.as_ref()?)));
        match refused {
            Some((id, (Refusal::Deaf, _))) => format!("{id} has no endpoint yet"),
            Some((_, (Refusal::Missing(why) | Refusal::Unsure(why) | Refusal::Denied(why), _))) => {
                why.clone()
            }
            None => "the other end has sent nothing, or takes nothing".into(),
        }
    }
}

/// A name for a stream that is above all earlier ones.
fn name_after(last: &mut u64, floor: u64) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    *last = (since.as_micros() as u64).max(*last + 1).max(floor.saturating_add(1));
    *last
}

// === impl Clock ===

impl Clock {
    fn now(&mut self) -> Duration {
        let now = Instant::now();
        self.sum += now.saturating_duration_since(self.seen).min(IDLE * 2);
        self.seen = now;
        self.sum
    }
}

// === impl Service ===

impl Drop for Service {
    fn drop(&mut self) {
        let shared = &self.shared;
        let flushed = |state: &mut State, _| {
            let told = |peer: &Peer| peer.stream.is_flushed() && (!peer.tells || peer.stream.is_open());
            state.peers.values().all(told).then_some(Ok(()))
        };
        // Whoever wants to know has called flush.
        let _ = shared.wait(Some(LINGER), flushed);
        let mut state = shared.lock();
        state.stopping = true;
        for (id, peer) in &state.peers {
            if let Some(farewell) = peer.stream.farewell(true) {
                shared.send_packet(*id, &farewell);
            }
        }
        drop(state);
        let _ = shared.socket.send_to(&[], &shared.path);
        if let Some(thread) = self.thread.take() {
            // It has no panic to tell of.
            let _ = thread.join();
        }
        let _ = fs::remove_file(&shared.path);
        TAKEN.store(false, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("path", &self.shared.path).finish_non_exhaustive()
    }
}
