//! Messages of netlink, written and read.
//!
//! Every field is in the machine's own order of bytes, and begins at a multiple of four (`linux/netlink.h`).

/// The bytes of a message's header.
pub(crate) const HEADER: usize = 16;

/// The bytes of an attribute's header.
const ATTRIBUTE: usize = 4;

/// An attribute that holds others (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;

/// What of an attribute's kind is the kind (`NLA_TYPE_MASK`).
const KIND: u16 = (1 << 14) - 1;

/// A request under construction.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request of this kind, with flags beyond those of every request, and the fixed part of its kind.
    pub(crate) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTRIBUTE + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A name, with the zero that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An attribute that holds what `fill` writes.
    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE]);
        let mut filled = fill(self);
        let length = (filled.0.len() - start) as u16;
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        filled
    }

    /// Bytes without a header: the fixed part of a message within the message.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Complete.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message that came: its kind, its sequence number, what it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received<'b> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'b [u8],
}

/// The messages in what one call received.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let received = Received { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, body };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        let value = bytes.get(ATTRIBUTE..length)?;
        if u16_at(bytes, 2)? & KIND == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A number in an attribute.
pub(crate) fn find_number(bytes: &[u8], kind: u16) -> Option<u32> {
    u32_at(find(bytes, kind)?, 0)
}

/// A name in an attribute.
pub(crate) fn find_text(bytes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(find(bytes, kind)?.strip_suffix(&[0])?).ok()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let message = Message::new(16, 0, &[7; 8])
            .text(3, "eth0")
            .nest(18, |inner| inner.text(1, "veth").nest(2, |inner| inner.number(9, 77)))
            .number(4, 1350);
        let bytes = message.finish(5);
        assert_eq!(bytes.len() % 4, 0);
        let received: Vec<_> = messages(&bytes).collect();
        assert_eq!((received.len(), received[0].kind, received[0].sequence), (1, 16, 5));
        let attributes = &received[0].body[8..];
        assert_eq!(find_text(attributes, 3), Some("eth0"));
        assert_eq!(find_number(attributes, 4), Some(1350));
        let nested = find(attributes, 18).unwrap();
        assert_eq!(find_number(find(nested, 2).unwrap(), 9), Some(77));
        assert_eq!(find(attributes, 99), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let whole = Message::new(16, 0, &[]).number(4, 1).finish(1);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
            let _ = find(&whole[..length], 4);
        }
        let mut endless = whole;
        endless[0..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(messages(&endless).count(), 0);
        assert_eq!(find(&[0; 8], 4), None, "an attribute shorter than its header");
    }
}
