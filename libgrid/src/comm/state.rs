//! What an endpoint knows: itself, its streams by who is at their other ends, and what is wrong with them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::stream::Stream;
use super::{CommError, Message, Refusal};
use crate::ids::Gpid;

/// How long a process may not be found: one that never was there, and one that may be moving or coming back from a checkpoint.
const GRACE_NEW: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(15);

/// What a clock goes on by at most between two looks, which are a second apart.
const LEAP: Duration = Duration::from_secs(2);

pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) peers: BTreeMap<Gpid, Peer>,
    /// The last name of a stream.
    pub(super) named: u64,
    pub(super) me: Option<Gpid>,
    pub(super) stranger: bool,
    /// Until when the thread sleeps.
    pub(super) sleeps: Duration,
    /// The first moment at which a user is to be woken.
    pub(super) due: Option<Duration>,
    pub(super) stopping: bool,
    pub(super) failed: Option<io::ErrorKind>,
}

pub(super) struct Peer {
    pub(super) stream: Stream,
    /// Messages of streams that are over.
    pub(super) kept: VecDeque<Message>,
    pub(super) trouble: Option<Trouble>,
    pub(super) refused: Option<(Refusal, Duration)>,
    /// Its present stream tells the other end that the one before broke.
    pub(super) tells: bool,
}

pub(super) struct Trouble {
    pub(super) error: CommError,
    /// Whether something that was sent, or was to come, may be lost.
    pub(super) lossy: bool,
}

/// A time that goes on where it was when the process moves: the clock of the next machine may be far from this one's.
pub(super) struct Clock {
    pub(super) seen: Instant,
    pub(super) sum: Duration,
}

// === impl State ===

impl State {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock { seen: Instant::now(), sum: Duration::ZERO },
            peers: BTreeMap::new(),
            named: 0,
            me: None,
            stranger: false,
            sleeps: Duration::ZERO,
            due: None,
            stopping: false,
            failed: None,
        }
    }

    pub(super) fn peer(&mut self, now: Duration, id: Gpid) -> &mut Peer {
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
    pub(super) fn renew(&mut self, now: Duration, id: Gpid, floor: u64) {
        let name = name_after(&mut self.named, floor);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let old = std::mem::replace(&mut peer.stream, Stream::new(now, id, name));
        peer.kept.extend(old.into_ready());
        peer.refused = None;
    }

    pub(super) fn tell(&mut self, id: Gpid, trouble: Trouble) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.trouble = Some(trouble);
        }
    }

    /// What a user who sends is to be told first. That the other end has closed an earlier stream is nothing to a new one.
    pub(super) fn trouble_of(&mut self, id: Gpid) -> Option<CommError> {
        let trouble = self.peers.get_mut(&id)?.trouble.take()?;
        (!matches!(trouble.error, CommError::Closed(_))).then_some(trouble.error)
    }

    pub(super) fn refused(&mut self, now: Duration, id: Gpid, why: Refusal) {
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
    pub(super) fn wake(&self) -> Option<Duration> {
        self.peers.values().filter_map(|peer| peer.stream.wake()).chain(self.due).min()
    }

    /// What a user who waited too long waited for.
    pub(super) fn waits_for(&self) -> String {
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
    pub(super) fn now(&mut self) -> Duration {
        let now = Instant::now();
        self.sum += now.saturating_duration_since(self.seen).min(LEAP);
        self.seen = now;
        self.sum
    }
}
