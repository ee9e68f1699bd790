//! Any bytes on a data connection of MODE E: a header that is accepted stays within what a file can have, and sets of
//! ranges, made of such headers, keep their order.

use libgrid::ftp::block::{HEADER, Header};
use libgrid::ftp::marker::Ranges;

/// Reads headers, one behind the other, as if no data were between them.
pub(crate) fn run(data: &[u8]) {
    let mut have = Ranges::default();
    for bytes in data.as_chunks::<HEADER>().0 {
        let header = Header::from_bytes(bytes);
        assert_eq!(header.to_bytes(), *bytes);
        if header.check().is_err() {
            continue;
        }
        if let Some(streams) = header.streams() {
            assert!(streams > 0 && header.count == 0);
            continue;
        }
        let Some(end) = header.end() else { panic!("{header:?} was accepted") };
        have.insert(header.offset, end);
        assert!(header.count == 0 || have.gaps(end).iter().all(|gap| gap.1 <= header.offset));
    }
    let again = Ranges::parse(have.to_string().as_bytes());
    // Ranges of more than MAX_RANGES are refused.
    assert!(have.iter().count() > 1024 || again == Ok(have));
}
