//! One stream with one other process, both directions: what is to be sent, what came, and when to try again. No clock and
//! no socket: `now` is any time that does not run backwards.
//!
//! ```text
//!     push ─▶ [una ...... sent ...... next)  ── Data ──▶  early ─▶ expected ─▶ partial ─▶ ready ─▶ take
//!                ▲  goes back to una when nothing is heard for the timeout
//!                └──────────────────────────── ack, window ◀──┘
//! ```
//!
//! **Which stream.** Each end gives it a name that grows with every new stream (from the clock, but never below one that was
//! used). A packet that names another stream than the receiver has is of an older one, and answered by `Reset`, or begins a
//! newer one, which ends the present one.
//!
//! **Histories.** A process that is restored from an older checkpoint has an older state of the stream, and does not know
//! it. Either of these tells the ends, before any message is passed over, twice delivered or taken for another:
//!
//! | seen | means |
//! | --- | --- |
//! | `ack` beyond what was sent | the sender of the parts went back |
//! | `una` beyond what came | the receiver of the parts went back |
//! | another chain before the next part, or at `ack` | one of them went back, and has sent other things since |
//!
//! All of them end the stream at both ends, with an error; the next message begins a new one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::packet::{Data, MAX_BODY, MAX_PARTS, Packet, Part};
use super::{MAX_MESSAGE, Message};
use crate::ids::Gpid;

/// Bytes that an end has room for.
pub(super) const WINDOW: usize = 2 << 20;

/// Bytes that wait for being sent or acknowledged at most.
pub(super) const UNSENT: usize = 2 << 20;

/// Bytes on their way: at first, after a loss, and at most.
const FLIGHT: usize = 256 << 10;
const LEAST_FLIGHT: usize = MAX_BODY + 64;

/// Packets on their way at most: fewer than an agent takes of one process at once. What is pushed meanwhile goes together.
const PACKETS: usize = 32;

/// How long nothing is heard until parts are sent again.
const FIRST_TIMEOUT: Duration = Duration::from_millis(60);
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// How long an acknowledgement waits for something to go with.
const DELAY: Duration = Duration::from_millis(4);

/// How often a silent other end is asked whether its history is still ours.
const PROBE: Duration = Duration::from_secs(2);

#[cfg_attr(test, derive(Clone))]
struct Sent {
    part: Part,
    /// The chain after it.
    chain: u64,
}

/// The stream broke: the other end has another history, or begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

#[cfg_attr(test, derive(Clone))]
pub(super) struct Stream {
    peer: Gpid,
    mine: u64,
    theirs: Option<u64>,
    // What goes out: parts `una..next`, of which those before `sent` are on their way.
    out: VecDeque<Sent>,
    out_bytes: usize,
    /// Of those, on their way.
    under_way: usize,
    /// The packets that they are in: the number after the last part of each.
    packets: VecDeque<u64>,
    una: u64,
    sent: u64,
    una_chain: u64,
    next_chain: u64,
    /// The highest that `sent` ever was.
    reached: u64,
    room: usize,
    flight: usize,
    timeout: Duration,
    smooth: Option<Duration>,
    timed: Option<(u64, Duration)>,
    again_at: Option<Duration>,
    // What comes in.
    expected: u64,
    expected_chain: u64,
    early: BTreeMap<u64, Part>,
    early_bytes: usize,
    partial: Vec<u8>,
    partial_cost: usize,
    held: usize,
    ready: VecDeque<Message>,
    told_window: usize,
    // What the other end is to be told.
    ack_at: Option<Duration>,
    unacked: u32,
    ask: bool,
    knocks: bool,
    reset: Option<Packet>,
    probe_at: Duration,
}

impl Stream {
    /// A stream of this name, from our side.
    pub(super) fn new(now: Duration, peer: Gpid, mine: u64) -> Self {
        Self {
            peer,
            mine,
            theirs: None,
            out: VecDeque::new(),
            out_bytes: 0,
            under_way: 0,
            packets: VecDeque::new(),
            una: 0,
            sent: 0,
            una_chain: 0,
            next_chain: 0,
            reached: 0,
            room: LEAST_FLIGHT,
            flight: FLIGHT,
            timeout: FIRST_TIMEOUT,
            smooth: None,
            timed: None,
            again_at: None,
            expected: 0,
            expected_chain: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            partial: Vec::new(),
            partial_cost: 0,
            held: 0,
            ready: VecDeque::new(),
            told_window: WINDOW,
            ack_at: None,
            unacked: 0,
            ask: false,
            knocks: false,
            reset: None,
            probe_at: now + PROBE,
        }
    }

    /// Whether the other end has answered.
    pub(super) fn is_open(&self) -> bool {
        self.theirs.is_some()
    }

    /// Asks the other end to answer, until it does.
    pub(super) fn knock(&mut self) {
        if !self.is_open() && !self.knocks {
            (self.knocks, self.ask) = (true, true);
        }
    }

    /// Whether an answer is waited for.
    fn is_owed(&self) -> bool {
        !self.out.is_empty() || (self.knocks && !self.is_open())
    }

    /// Whether all that was pushed has arrived.
    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether a message of this length finds room.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.out_bytes == 0 || self.out_bytes + len <= UNSENT
    }

    /// Takes a message to send.
    pub(super) fn push(&mut self, tag: u32, bytes: &[u8]) {
        let mut chunks = bytes.chunks(MAX_BODY).peekable();
        if chunks.peek().is_none() {
            self.append(Part { tag, last: true, bytes: Vec::new() });
        }
        while let Some(chunk) = chunks.next() {
            self.append(Part { tag, last: chunks.peek().is_none(), bytes: chunk.to_vec() });
        }
    }

    fn append(&mut self, part: Part) {
        self.next_chain = part.chained(self.next_chain);
        self.out_bytes += part.cost();
        self.out.push_back(Sent { chain: self.next_chain, part });
    }

    /// The oldest message that came and is wanted.
    pub(super) fn take(&mut self, now: Duration, tag: Option<u32>) -> Option<Message> {
        let at = self.ready.iter().position(|message| tag.is_none_or(|tag| message.tag == tag))?;
        let message = self.ready.remove(at)?;
        self.held -= message.cost;
        // The other end may wait for room.
        if self.window() - self.told_window.min(self.window()) >= WINDOW / 4 {
            self.ack_at = Some(now);
        }
        Some(message)
    }

    fn window(&self) -> usize {
        WINDOW.saturating_sub(self.held + self.early_bytes)
    }

    /// The chain before part `at`, which is not older than `una`.
    fn chain_before(&self, at: u64) -> u64 {
        match at - self.una {
            0 => self.una_chain,
            past => self.out[past as usize - 1].chain,
        }
    }

    /// Takes what the other end sent.
    pub(super) fn receive(&mut self, now: Duration, packet: Packet) -> Result<(), Broken> {
        match packet {
            Packet::Reset { yours, ack, closed, .. } if yours == self.mine => {
                if closed && ack <= self.reached {
                    self.advance(ack);
                }
                Err(Broken)
            }
            Packet::Reset { .. } => Ok(()),
            Packet::Data(data) => self.receive_data(now, data),
        }
    }

    fn receive_data(&mut self, now: Duration, data: Data) -> Result<(), Broken> {
        let stale = |floor| Some(Packet::Reset { yours: data.mine, floor, closed: false, mine: 0, ack: 0 });
        if data.yours != 0 && data.yours != self.mine {
            self.reset = stale(0);
            return Ok(());
        }
        match self.theirs {
            Some(theirs) if data.mine < theirs => {
                self.reset = stale(theirs);
                return Ok(());
            }
            Some(theirs) if data.mine > theirs => return Err(Broken),
            Some(_) => (),
            None => self.theirs = Some(data.mine),
        }
        let went_back = data.ack > self.reached
            || data.una > self.expected
            || (data.ack >= self.una && data.ack_chain != self.chain_before(data.ack))
            || (data.first == self.expected && data.chain != self.expected_chain);
        if went_back {
            return Err(Broken);
        }
        self.probe_at = now + PROBE;
        self.acknowledged(now, &data);
        let news = !data.parts.is_empty();
        let in_order = data.first == self.expected && self.early.is_empty();
        let (before, count) = (self.expected, data.parts.len());
        for (number, part) in (data.first..).zip(data.parts) {
            let cost = part.cost();
            if number >= self.expected && cost <= self.window() && !self.early.contains_key(&number) {
                self.early_bytes += cost;
                self.early.insert(number, part);
            }
        }
        while let Some(part) = self.early.remove(&self.expected) {
            self.early_bytes -= part.cost();
            self.assemble(part);
        }
        if news {
            self.unacked += 1;
        }
        let whole = in_order && self.expected - before == count as u64;
        if data.ask || self.unacked >= 2 || (news && !whole) {
            self.ack_at = Some(now);
        } else if news && self.ack_at.is_none() {
            self.ack_at = Some(now + DELAY);
        }
        Ok(())
    }

    fn assemble(&mut self, part: Part) {
        self.expected += 1;
        self.expected_chain = part.chained(self.expected_chain);
        self.held += part.cost();
        self.partial_cost += part.cost();
        // Nobody of ours sends more; what is over is dropped, and its end, too.
        if self.partial.len() + part.bytes.len() <= MAX_MESSAGE {
            self.partial.extend_from_slice(&part.bytes);
        }
        if part.last {
            let bytes = std::mem::take(&mut self.partial);
            let cost = std::mem::take(&mut self.partial_cost);
            self.ready.push_back(Message { from: self.peer, tag: part.tag, bytes, cost });
        }
    }

    fn acknowledged(&mut self, now: Duration, data: &Data) {
        if data.ack < self.una {
            return;
        }
        self.room = data.window as usize;
        let came = self.advance(data.ack);
        if came == 0 {
            return;
        }
        self.flight = (self.flight + came).min(WINDOW);
        if let Some((number, at)) = self.timed
            && self.una > number
        {
            let took = now.saturating_sub(at);
            let smooth = self.smooth.map_or(took, |smooth| (smooth * 7 + took) / 8);
            self.smooth = Some(smooth);
            self.timed = None;
        }
        let smooth = self.smooth.map_or(FIRST_TIMEOUT, |smooth| smooth * 3);
        self.timeout = smooth.clamp(SHORTEST, LONGEST);
        self.again_at = (!self.out.is_empty()).then_some(now + self.timeout);
    }

    /// Drops the parts before this one, which have arrived; says how much that was.
    fn advance(&mut self, ack: u64) -> usize {
        let mut came = 0;
        while self.una < ack
            && let Some(sent) = self.out.pop_front()
        {
            if self.una < self.sent {
                self.under_way -= sent.part.cost();
            }
            self.una += 1;
            self.una_chain = sent.chain;
            came += sent.part.cost();
        }
        self.sent = self.sent.max(self.una);
        while self.packets.front().is_some_and(|end| *end <= self.una) {
            self.packets.pop_front();
        }
        self.out_bytes -= came;
        came
    }

    /// The next packet to send, if there is one now.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Packet> {
        if let Some(reset) = self.reset.take() {
            return Some(reset);
        }
        if !self.is_owed() {
            self.again_at = None;
        } else if self.again_at.is_some_and(|at| at <= now) {
            self.go_back(now);
        }
        if self.is_open() && self.probe_at <= now {
            self.probe_at = now + PROBE;
            self.ask = true;
        }
        let first = self.sent;
        let parts = self.parts();
        if parts.is_empty() && !self.ask && self.ack_at.is_none_or(|at| at > now) {
            // A window that is shut may have opened, and the news of it got lost.
            if self.is_owed() && self.again_at.is_none() {
                self.again_at = Some(now + self.timeout);
            }
            return None;
        }
        let chain = self.chain_before(first);
        self.sent += parts.len() as u64;
        self.under_way += parts.iter().map(Part::cost).sum::<usize>();
        if !parts.is_empty() {
            self.packets.push_back(self.sent);
        }
        if !parts.is_empty() && self.timed.is_none() && first >= self.reached {
            self.timed = Some((first, now));
        }
        if self.is_owed() {
            self.again_at = self.again_at.or(Some(now + self.timeout));
        }
        self.reached = self.reached.max(self.sent);
        self.told_window = self.window();
        (self.ack_at, self.unacked) = (None, 0);
        Some(Packet::Data(Data {
            mine: self.mine,
            yours: self.theirs.unwrap_or(0),
            ack: self.expected,
            ack_chain: self.expected_chain,
            window: self.told_window as u32,
            una: self.una,
            ask: std::mem::take(&mut self.ask),
            first,
            chain,
            parts,
        }))
    }

    /// What may be sent now: as many parts as go into one packet.
    fn parts(&self) -> Vec<Part> {
        if self.packets.len() >= PACKETS {
            return Vec::new();
        }
        let begin = (self.sent - self.una) as usize;
        let mut under_way = self.under_way;
        let most = self.room.min(self.flight);
        let mut body = 0;
        let mut parts = Vec::new();
        for sent in self.out.iter().skip(begin).take(MAX_PARTS) {
            under_way += sent.part.cost();
            body += sent.part.bytes.len();
            if under_way > most || body > MAX_BODY {
                break;
            }
            parts.push(sent.part.clone());
        }
        parts
    }

    /// Nothing was heard: what is on its way is taken for lost.
    fn go_back(&mut self, now: Duration) {
        (self.sent, self.under_way) = (self.una, 0);
        self.packets.clear();
        self.flight = LEAST_FLIGHT;
        self.timed = None;
        self.ask = true;
        self.timeout = (self.timeout * 2).min(LONGEST);
        self.again_at = Some(now + self.timeout);
    }

    /// When [`Stream::poll`] has something to say, if nothing comes before.
    pub(super) fn wake(&self) -> Option<Duration> {
        let probe = self.is_open().then_some(self.probe_at);
        [self.ack_at, self.again_at.filter(|_| self.is_owed()), probe].into_iter().flatten().min()
    }

    /// What tells the other end that this stream is over: `closed`, because nobody wants it any more.
    pub(super) fn farewell(&self, closed: bool) -> Option<Packet> {
        self.theirs.map(|yours| Packet::Reset {
            yours,
            floor: 0,
            closed,
            mine: self.mine,
            ack: self.expected,
        })
    }

    /// Whether this packet begins a stream that is newer than the present one.
    pub(super) fn is_renewed_by(&self, packet: &Packet) -> bool {
        matches!((packet, self.theirs), (Packet::Data(data), Some(theirs)) if data.yours == 0 && data.mine > theirs)
    }

    /// Whether anything was ever sent or came: a user has to be told that it broke.
    pub(super) fn was_used(&self) -> bool {
        self.una > 0 || self.expected > 0 || !self.out.is_empty()
    }

    /// Messages that came whole before it broke.
    pub(super) fn into_ready(self) -> VecDeque<Message> {
        self.ready
    }
}
