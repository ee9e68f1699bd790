//! What goes over the wire, all of it in datagrams.
//!
//! A received datagram is believed about nothing before it is decoded whole, and its sender is who the
//! transport says.

use std::num::NonZeroUsize;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, State};
use libgrid::ids::NodeId;
use libgrid::wire;
use serde::{Deserialize, Serialize};

use crate::config::SubGrid;
use crate::identity::Id;
use crate::info::{Shared, Told, Version};

/// No datagram of ours is longer, in bytes: it fits QUIC's smallest packet.
pub const MAX_DATAGRAM: usize = 1150;

/// Longer datagrams are not looked at, in bytes.
pub const MAX_RECEIVED: usize = 1400;

/// foca's part of a datagram: without the sub-grid, the kind and the length, of at most 5, 1 and 3 bytes.
pub(crate) const MAX_SWIM: NonZeroUsize = NonZeroUsize::new(MAX_DATAGRAM - 9).expect("it is over 9");

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Datagram {
    pub(crate) sub_grid: SubGrid,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// foca's.
    Swim(#[serde(with = "opaque")] Vec<u8>),
    /// Of these numbers the sender has these versions: push what is newer or missing.
    Digest { first: NodeId, last: NodeId, has: Vec<Has> },
    /// What the receiver lacks.
    Push(Vec<Entry>),
}

/// What the sender of a digest has of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Has {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) version: Version,
}

/// What a node knows of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) member: Member<Id>,
    pub(crate) told: Option<Told>,
}

impl Entry {
    /// Whether a node can have said so.
    pub(crate) fn is_sound(&self) -> bool {
        let node = self.member.id().node;
        self.member.id().is_sound()
            && self.told.as_ref().is_none_or(|told| told.is_sound() && told.info.node == node)
    }
}

/// Bytes as one piece: serde takes a `Vec<u8>` for a sequence, and goes through it number by number.
mod opaque {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    struct Piece;

    impl Visitor<'_> for Piece {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
        input.deserialize_byte_buf(Piece)
    }
}

/// Decodes a datagram whose sender is known; `None` if it is nothing of ours or not sound.
pub(crate) fn decode(bytes: &[u8]) -> Option<Datagram> {
    if bytes.len() > MAX_RECEIVED {
        return None;
    }
    let datagram: Datagram = wire::decode(bytes).ok()?;
    match &datagram.body {
        Body::Push(entries) if !entries.iter().all(Entry::is_sound) => None,
        _ => Some(datagram),
    }
}

/// The sender that foca's part of a datagram claims.
pub(crate) fn claimed_sender(mut swim: &[u8]) -> Option<NodeId> {
    let header: Header<Id> = get(&mut swim).ok()?;
    Some(header.src.node)
}

/// How foca's values become bytes: each behind its length in one byte, in the one codec.
pub(crate) struct SwimCodec(pub(crate) Shared);

/// A value of foca's could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("the datagram is full")]
    Full,
    #[error("the datagram ends too soon")]
    Short,
    #[error("an identity is over the limits")]
    Unsound,
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

impl Codec<Id> for SwimCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        put(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Id>, CodecError> {
        let header: Header<Id> = get(buf)?;
        if !header.src.is_sound() {
            return Err(CodecError::Unsound);
        }
        self.0.facts().note(&header.dst);
        Ok(header)
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        put(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Id>, CodecError> {
        let member: Member<Id> = get(buf)?;
        if !member.id().is_sound() {
            return Err(CodecError::Unsound);
        }
        let mut facts = self.0.facts();
        facts.note(member.id());
        // Whoever speaks for an evicted node, it stays out.
        if facts.evicted.contains(&member.id().node) {
            return Ok(Member::new(member.id().clone(), member.incarnation(), State::Down));
        }
        Ok(member)
    }
}

fn put<T: Serialize>(value: &T, mut buf: impl BufMut) -> Result<(), CodecError> {
    let bytes = wire::encode(value)?;
    let len = u8::try_from(bytes.len()).map_err(|_| CodecError::Unsound)?;
    if buf.remaining_mut() < bytes.len() + 1 {
        return Err(CodecError::Full);
    }
    buf.put_u8(len);
    buf.put_slice(&bytes);
    Ok(())
}

fn get<T: serde::de::DeserializeOwned>(mut buf: impl Buf) -> Result<T, CodecError> {
    if !buf.has_remaining() {
        return Err(CodecError::Short);
    }
    let len = usize::from(buf.get_u8());
    if buf.remaining() < len {
        return Err(CodecError::Short);
    }
    let mut bytes = [0; u8::MAX as usize];
    buf.copy_to_slice(&mut bytes[..len]);
    Ok(wire::decode(&bytes[..len])?)
}

#[cfg(test)]
mod tests {
    use foca::Message;

    use super::*;

    #[test]
    fn the_largest_header_and_the_largest_info_fit() {
        let addr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let id = Id::new(NodeId(u32::MAX), u64::MAX, &[addr; 8]);
        let header = Header {
            src: id.clone(),
            src_incarnation: u16::MAX,
            dst: id.clone(),
            message: Message::PingReq { target: id.clone(), probe_number: u8::MAX },
        };
        let mut codec = SwimCodec(Shared::new(NodeId(1)));
        let mut buf = Vec::new();
        codec.encode_header(&header, &mut buf).unwrap();
        let told = crate::sync::tests::largest(NodeId(u32::MAX));
        let told = wire::encode(&told).unwrap();
        assert!(told.len() <= 1024);
        assert!(buf.len() + 2 + 2 + told.len() <= MAX_SWIM.get());
        assert_eq!(codec.decode_header(buf.as_slice()).unwrap(), header);
    }

    #[test]
    fn golden() {
        let id = Id::new(NodeId(3), 1_790_000_000_000, &["10.0.0.3:7411".parse().unwrap()]);
        let member = Member::new(id, 2, State::Suspect);
        let datagram = Datagram {
            sub_grid: SubGrid(0),
            body: Body::Push(vec![Entry { member: member.clone(), told: None }]),
        };
        let bytes = wire::encode(&datagram).unwrap();
        assert_eq!(bytes, GOLDEN);
        assert_eq!(decode(GOLDEN), Some(datagram));
        let mut buf = Vec::new();
        SwimCodec(Shared::new(NodeId(1))).encode_member(&member, &mut buf).unwrap();
        assert_eq!(usize::from(buf[0]), buf.len() - 1);
    }

    const GOLDEN: &[u8] =
        &[0, 2, 1, 3, 253, 0, 108, 80, 196, 160, 1, 0, 0, 1, 0, 10, 0, 0, 3, 251, 243, 28, 2, 1, 0];
}
