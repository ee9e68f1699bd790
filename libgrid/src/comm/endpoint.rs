//! The socket of a process, the thread that serves it, and what users call.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::packet::{self, MAX_DATAGRAM, Packet};
use super::state::{Peer, State, Trouble};
use super::{CommError, DEFAULT_SOCKET, FromAgent, MAX_MESSAGE, Message, ToAgent, place};
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

/// How long an endpoint that is dropped waits for acknowledgements.
const LINGER: Duration = Duration::from_secs(5);

/// When it says again that it goes, the first time; then after twice as long each time.
const FAREWELL: Duration = Duration::from_millis(50);

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
        let shared = Arc::new(Shared {
            socket,
            path,
            agent: agent.to_owned(),
            state: Mutex::new(State::new()),
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
        if let Packet::Reset { mine: yours @ 1.., .. } = packet {
            let heard = Packet::Reset { yours, floor: 0, closed: true, mine: 0, ack: 0 };
            self.send_packet(from, &heard);
        }
        if !state.peers.contains_key(&from) {
            let Packet::Data(data) = &packet else { return };
            if data.yours != 0 {
                // Of a stream that we do not have.
                let reset =
                    Packet::Reset { yours: data.mine, floor: data.yours, closed: false, mine: 0, ack: 0 };
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
        // Until each has heard of it: what it sent last may still wait for our word that it came.
        let (mut next, mut pause) = (Duration::ZERO, FAREWELL);
        let _ = shared.wait(Some(LINGER), |state, now| {
            let farewell = |(id, peer): (&Gpid, &Peer)| Some((*id, peer.stream.farewell(true)?));
            let left: Vec<_> = state.peers.iter().filter_map(farewell).collect();
            if left.is_empty() {
                return Some(Ok(()));
            }
            if now >= next {
                left.iter().for_each(|(id, farewell)| shared.send_packet(*id, farewell));
                (next, pause) = (now + pause, pause * 2);
            }
            state.due = Some(next);
            None
        });
        shared.lock().stopping = true;
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
