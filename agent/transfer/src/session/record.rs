//! What goes over the data connections.
//!
//! ```text
//!   source ── greeting ──▶ destination         magic · number of the connection · proof
//!          ── record ────▶                     header (56 bytes) · what it announces
//!          ── record ────▶ …
//! ```
//!
//! A record is a range of a large file, a pack of small things, or the checksum of a record that went before. The
//! key came over the control stream, which is authenticated: a connection of somebody else is closed, and a header
//! or a checksum that was altered on the way is found. The data itself is protected by the checksums.

use std::io;

use super::message::Item;

/// How much a range or a pack holds at most, in bytes.
pub(super) const MAX_RANGE: u64 = 8 << 20;

/// The bytes of a pack at most. It is the one record that is held in memory.
pub(super) const MAX_PACK: usize = 8 << 20;

/// The bytes of a greeting.
pub(super) const GREETING: usize = 44;

/// The bytes of a header.
pub(super) const HEADER: usize = 56;

const MAGIC: [u8; 8] = *b"GridOS\0\x01";

/// The key of one transfer.
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) [u8; 32]);

/// The first bytes of a data connection.
pub(super) fn greeting(key: Key, connection: u32) -> [u8; GREETING] {
    let mut bytes = [0; GREETING];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&connection.to_le_bytes());
    let proof = blake3::keyed_hash(&key.0, &bytes[..12]);
    bytes[12..].copy_from_slice(proof.as_bytes());
    bytes
}

/// The number of the connection, if it is of this transfer.
pub(super) fn check_greeting(key: Key, bytes: &[u8; GREETING]) -> Option<u32> {
    let connection = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    // blake3 compares hashes in constant time.
    let proof: [u8; 32] = bytes[12..].try_into().ok()?;
    let right = blake3::keyed_hash(&key.0, &bytes[..12]) == blake3::Hash::from(proof);
    (bytes[..8] == MAGIC && right).then_some(connection)
}

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// `length` bytes of a large file, from `offset` on.
    Range { work: u64, file: u32, offset: u64, length: u64 },
    /// `length` bytes: small things, see [`Pack`].
    Pack { work: u64, length: u64 },
    /// 32 bytes: the BLAKE3 checksum of a range.
    Sum { work: u64 },
}

/// Makes and checks headers of one connection: each is bound to its place in the order.
pub(super) struct Sequence {
    key: Key,
    connection: u32,
    next: u64,
}

impl Sequence {
    pub(super) fn new(key: Key, connection: u32) -> Self {
        Self { key, connection, next: 0 }
    }

    /// The header of a record. `body` is bound, too, if it is given: checksums.
    pub(super) fn header(&mut self, record: Record, body: &[u8]) -> [u8; HEADER] {
        let (kind, work, file, offset, length) = match record {
            Record::Range { work, file, offset, length } => (1u32, work, file, offset, length),
            Record::Pack { work, length } => (2, work, 0, 0, length),
            Record::Sum { work } => (3, work, 0, 0, 32),
        };
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&file.to_le_bytes());
        bytes[8..16].copy_from_slice(&work.to_le_bytes());
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        let proof = self.proof(&bytes[..32], body);
        bytes[32..].copy_from_slice(&proof);
        bytes
    }

    /// Understands the first 32 bytes of a header, before [`Sequence::check`] with its body.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> io::Result<Record> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (kind, file, work, offset, length) = (word(0), word(4), long(8), long(16), long(24));
        match kind {
            1 if length <= MAX_RANGE && offset.checked_add(length).is_some() => {
                Ok(Record::Range { work, file, offset, length })
            }
            2 if length <= MAX_PACK as u64 => Ok(Record::Pack { work, length }),
            3 if length == 32 => Ok(Record::Sum { work }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a record that makes no sense")),
        }
    }

    /// Whether a header is the next of this connection.
    pub(super) fn check(&mut self, bytes: &[u8; HEADER], body: &[u8]) -> io::Result<()> {
        let proof = self.proof(&bytes[..32], body);
        // Not secret once it was sent; compared as a whole all the same.
        if bytes[32..] == proof {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a record that was altered on the way"))
    }

    fn proof(&mut self, header: &[u8], body: &[u8]) -> [u8; 24] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        hasher.update(&self.connection.to_le_bytes());
        hasher.update(&self.next.to_le_bytes());
        hasher.update(header);
        hasher.update(body);
        self.next += 1;
        let mut proof = [0; 24];
        proof.copy_from_slice(&hasher.finalize().as_bytes()[..24]);
        proof
    }
}

/// Small things in one record: for each the length of its description, the description, and its contents.
#[derive(Default)]
pub(super) struct Pack {
    bytes: Vec<u8>,
    items: usize,
}

impl Pack {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(1 << 20), items: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a thing; `contents` writes exactly the bytes that the item's size says, or the item is left out.
    pub(super) fn add(
        &mut self,
        item: &Item,
        contents: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = self.bytes.len();
        let head = libgrid::wire::encode(item).map_err(io::Error::other)?;
        let length = u32::try_from(head.len()).map_err(io::Error::other)?;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&head);
        let body = self.bytes.len();
        let result = contents(&mut self.bytes).and_then(|()| {
            if (self.bytes.len() - body) as u64 == contents_of(item) {
                Ok(())
            } else {
                Err(io::Error::other("the file changed while it was read"))
            }
        });
        match result {
            Ok(()) => self.items += 1,
            Err(_) => self.bytes.truncate(start),
        }
        result
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn contents_of(item: &Item) -> u64 {
    match item.what {
        super::message::What::File { size } => size,
        _ => 0,
    }
}

/// Takes a pack apart.
pub(super) fn unpack(
    mut bytes: &[u8],
    mut each: impl FnMut(Item, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "a pack that makes no sense");
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(torn)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
        let (head, rest) = rest.split_at_checked(length).ok_or_else(torn)?;
        let item: Item = libgrid::wire::decode(head).map_err(io::Error::other)?;
        let size = usize::try_from(contents_of(&item)).map_err(io::Error::other)?;
        let (contents, rest) = rest.split_at_checked(size).ok_or_else(torn)?;
        each(item, contents)?;
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::super::message::{RelPath, Time, What};
    use super::*;

    const KEY: Key = Key([7; 32]);

    #[test]
    fn a_greeting_with_another_key_is_refused() {
        let bytes = greeting(KEY, 3);
        assert_eq!(check_greeting(KEY, &bytes), Some(3));
        assert_eq!(check_greeting(Key([8; 32]), &bytes), None);
        for at in 0..GREETING {
            let mut altered = bytes;
            altered[at] ^= 1;
            assert_eq!(check_greeting(KEY, &altered), None, "byte {at}");
        }
    }

    #[test]
    fn an_altered_or_repeated_header_is_refused() {
        let record = Record::Range { work: 1 << 40, file: 2, offset: 3, length: 4 };
        let bytes = Sequence::new(KEY, 0).header(record, &[]);
        assert_eq!(Sequence::parse(&bytes).unwrap(), record);
        let mut there = Sequence::new(KEY, 0);
        there.check(&bytes, &[]).unwrap();
        assert!(there.check(&bytes, &[]).is_err(), "the same header once more");
        assert!(Sequence::new(KEY, 1).check(&bytes, &[]).is_err(), "on another connection");
        for at in 0..HEADER {
            let mut altered = bytes;
            altered[at] ^= 1;
            assert!(Sequence::new(KEY, 0).check(&altered, &[]).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_announces_too_much_is_refused() {
        let huge = Record::Range { work: 0, file: 0, offset: 0, length: MAX_RANGE + 1 };
        assert!(Sequence::parse(&Sequence::new(KEY, 0).header(huge, &[])).is_err());
        let beyond = Record::Range { work: 0, file: 0, offset: u64::MAX, length: 1 };
        assert!(Sequence::parse(&Sequence::new(KEY, 0).header(beyond, &[])).is_err());
        let pack = Record::Pack { work: 0, length: MAX_PACK as u64 + 1 };
        assert!(Sequence::parse(&Sequence::new(KEY, 0).header(pack, &[])).is_err());
    }

    fn file(path: &str, size: u64) -> Item {
        Item {
            path: RelPath::new(path.into()).unwrap(),
            what: What::File { size },
            mode: 0o644,
            modified: Time::default(),
            attributes: Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn bytes_of_a_stranger_are_refused_or_within_the_limits(bytes in prop::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            // Kinds are few: most random words are none.
            header[0] &= 3;
            header[1..4].fill(0);
            match Sequence::parse(&header) {
                Ok(Record::Range { length, offset, .. }) => {
                    prop_assert!(length <= MAX_RANGE && offset.checked_add(length).is_some());
                }
                Ok(Record::Pack { length, .. }) => prop_assert!(length <= MAX_PACK as u64),
                Ok(Record::Sum { .. }) | Err(_) => (),
            }
            prop_assert!(Sequence::new(KEY, 0).check(&header, &[]).is_err());
        }

        #[test]
        fn a_pack_of_a_stranger_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut contents = 0;
            let _ = unpack(&bytes, |_, piece| {
                contents += piece.len();
                Ok(())
            });
            prop_assert!(contents <= bytes.len());
        }
    }

    #[test]
    fn a_pack_comes_apart_as_it_was_put_together() {
        let mut pack = Pack::new();
        pack.add(&file("a", 3), |to| to.write_all(b"abc")).unwrap();
        assert!(pack.add(&file("grew", 3), |to| to.write_all(b"abcd")).is_err());
        pack.add(&file("empty", 0), |_| Ok(())).unwrap();
        let bytes = pack.into_bytes();
        let mut seen = Vec::new();
        unpack(&bytes, |item, contents| {
            seen.push((item.path, contents.to_vec()));
            Ok(())
        })
        .unwrap();
        let path = |name: &str| RelPath::new(name.into()).unwrap();
        assert_eq!(seen, [(path("a"), b"abc".to_vec()), (path("empty"), Vec::new())]);
        for cut in 1..bytes.len() {
            // Whatever is cut off, nothing is made up.
            let mut names = 0;
            let _ = unpack(&bytes[..cut], |_, _| {
                names += 1;
                Ok(())
            });
            assert!(names <= 1);
        }
    }
}
