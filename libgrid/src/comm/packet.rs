//! What endpoints and agents say to each other: one datagram each, at most [`MAX_DATAGRAM`] bytes.

use serde::{Deserialize, Serialize};

use super::MAX_MESSAGE;
use crate::ids::Gpid;
use crate::wire::{self, WireError};

/// Bytes in one datagram between a process and its agent at most.
pub const MAX_DATAGRAM: usize = 48 << 10;

/// Bytes of messages in one packet at most; the rest of [`MAX_DATAGRAM`] is for what is around them.
pub(super) const MAX_BODY: usize = 32 << 10;

/// Parts in one packet at most.
pub(super) const MAX_PARTS: usize = 256;

/// From a process to the agent of its node.
///
/// ```
/// use libgrid::comm::{ToAgent, decode};
/// let bytes = libgrid::wire::encode(&ToAgent::Hello).unwrap();
/// assert_eq!(decode::<ToAgent>(&bytes).unwrap(), ToAgent::Hello);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Who am I? [`FromAgent::You`] or [`FromAgent::Stranger`].
    Hello,
    /// For another process: a [`Packet`], which agents do not look into.
    To {
        /// Which.
        to: Gpid,
        /// The packet.
        #[serde(with = "serde_bytes")]
        packet: Vec<u8>,
    },
}

/// From the agent to a process.
///
/// ```
/// use libgrid::comm::FromAgent;
/// assert_ne!(FromAgent::You("1.2".parse().unwrap()), FromAgent::Stranger);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The process has this id.
    You(Gpid),
    /// It is no process of a task.
    Stranger,
    /// From another process: the agents vouch for who that is.
    From {
        /// Which.
        from: Gpid,
        /// The packet.
        #[serde(with = "serde_bytes")]
        packet: Vec<u8>,
    },
    /// A packet was not delivered.
    Refused {
        /// To whom.
        to: Gpid,
        /// Why.
        why: Refusal,
    },
}

/// Why a packet does not reach a process.
///
/// ```
/// assert_ne!(libgrid::comm::Refusal::Deaf, libgrid::comm::Refusal::Denied("no".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No process of this id was found; a sentence with what is known of it.
    Missing(String),
    /// Not every node could be asked for it.
    Unsure(String),
    /// It is there, and has no endpoint yet.
    Deaf,
    /// It belongs to somebody else; a sentence.
    Denied(String),
}

/// From endpoint to endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Packet {
    Data(Data),
    /// The stream that the receiver calls `yours` is broken, or closed by a user who has all parts before `ack`; its next one is to
    /// have a name above `floor`.
    Reset {
        yours: u64,
        floor: u64,
        closed: bool,
        /// How the sender calls it, if it waits to hear that this has come: then the same comes back, with 0 here.
        mine: u64,
        ack: u64,
    },
}

/// A piece of a stream, and how far the other direction came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Data {
    /// The sender's name for the stream.
    pub(super) mine: u64,
    /// The receiver's, if the sender knows it, or 0.
    pub(super) yours: u64,
    /// The number of the part that the sender waits for, and the chain of all before it.
    pub(super) ack: u64,
    pub(super) ack_chain: u64,
    /// How many bytes after that it has room for.
    pub(super) window: u32,
    /// The sender's oldest part that it does not know to have arrived.
    pub(super) una: u64,
    /// An answer is wanted at once.
    pub(super) ask: bool,
    /// The number of the first of the parts, and the chain of all before it.
    pub(super) first: u64,
    pub(super) chain: u64,
    pub(super) parts: Vec<Part>,
}

/// A message or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) tag: u32,
    /// Whether the message ends with it.
    pub(super) last: bool,
    #[serde(with = "serde_bytes")]
    pub(super) bytes: Vec<u8>,
}

impl Part {
    /// What it takes of a window: an empty one is not for nothing.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + 64
    }

    /// The chain after this part: two histories that differ do not have the same, but by a chance of one in 2^64.
    pub(super) fn chained(&self, before: u64) -> u64 {
        const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(PRIME);
        let head = u64::from(self.tag) << 32 | (self.bytes.len() as u64) << 1 | u64::from(self.last);
        let words = self.bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let sum = words.fold(mix(before, head), mix);
        sum ^ sum >> 29
    }
}

/// What is in a datagram.
///
/// # Errors
/// Where it is longer than [`MAX_DATAGRAM`], or no such value.
///
/// ```
/// use libgrid::comm::{FromAgent, decode};
/// assert!(decode::<FromAgent>(&[9; 4]).is_err());
/// ```
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bytes.len() > MAX_DATAGRAM {
        true => Err(WireError::TooLong { len: bytes.len() as u64 }),
        false => wire::decode(bytes),
    }
}

/// A packet that another endpoint may have sent; nothing if none of ours would.
pub(super) fn packet(bytes: &[u8]) -> Option<Packet> {
    let packet: Packet = decode(bytes).ok()?;
    match &packet {
        Packet::Data(data) => {
            let sound = data.mine != 0
                && data.parts.len() <= MAX_PARTS
                && data.parts.iter().map(|part| part.bytes.len()).sum::<usize>() <= MAX_BODY.min(MAX_MESSAGE)
                && data.first.checked_add(MAX_PARTS as u64).is_some();
            sound.then_some(packet)
        }
        Packet::Reset { yours, .. } => (*yours != 0).then_some(packet),
    }
}

/// Whether these bytes are a packet that an endpoint would look at: for fuzzing.
#[doc(hidden)]
pub fn is_packet(bytes: &[u8]) -> bool {
    packet(bytes).is_some()
}

/// A packet that sets every field: for fuzzing, and for the golden vectors.
#[doc(hidden)]
pub fn sample_packet() -> Vec<u8> {
    let part = |last| Part { tag: 7, last, bytes: b"\xffout\n".to_vec() };
    let data = Data {
        mine: 1 << 50,
        yours: 3,
        ack: 300,
        ack_chain: u64::MAX,
        window: 1 << 21,
        una: 290,
        ask: true,
        first: 295,
        chain: 1 << 63,
        parts: vec![part(false), part(true)],
    };
    wire::encode(&Packet::Data(data)).unwrap_or_default()
}
