//! The header before each block of MODE E, extended block mode (GFD.20, 4.2).
//!
//! ```text
//!  0        1                 9                17
//! ┌────────┬─────────────────┬─────────────────┬───────────── ─ ─
//! │ flags  │ count, u64 BE   │ offset, u64 BE  │ count bytes
//! └────────┴─────────────────┴─────────────────┴───────────── ─ ─
//! ```
//!
//! The sender of the data opens the connections. Each ends with a block that has EOD; one block of the whole transfer
//! has EOF, and its *offset* then says how many EODs there will be.

/// How long a header is, in bytes.
///
/// ```
/// assert_eq!(libgrid::ftp::block::HEADER, 17);
/// ```
pub const HEADER: usize = 17;

/// The header of a block.
///
/// ```
/// use libgrid::ftp::block::Header;
/// let header = Header::data(5000, 65_536);
/// assert_eq!(Header::from_bytes(&header.to_bytes()), header);
/// assert_eq!(header.end(), Some(70_536));
/// assert_eq!(Header::eof(4).streams(), Some(4));
/// assert!(Header::eod().is_eod() && !Header::eod().is_eof());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the block is, of the constants of this type.
    pub flags: u8,
    /// How many bytes follow.
    pub count: u64,
    /// Where in the file they belong; with [`Header::EOF`] alone, how many EODs there will be.
    pub offset: u64,
}

impl Header {
    /// The end of a record: nobody uses it with files.
    pub const EOR: u8 = 128;
    /// The end of the file: no data, and the offset says how many EODs end the transfer.
    pub const EOF: u8 = 64;
    /// The sender doubts the data.
    pub const SUSPECT: u8 = 32;
    /// The data are a restart marker, not the file's.
    pub const RESTART: u8 = 16;
    /// This connection carries no more data of this transfer.
    pub const EOD: u8 = 8;
    /// The sender will close the connection after this block.
    pub const CLOSE: u8 = 4;

    /// Before `count` bytes that belong at `offset`.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::block::Header::data(1, 2).to_bytes()[0], 0);
    /// ```
    pub fn data(count: u64, offset: u64) -> Header {
        Header { flags: 0, count, offset }
    }

    /// The end of this connection's data; the connection may be used again.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::block::Header::eod().flags, 8);
    /// ```
    pub fn eod() -> Header {
        Header { flags: Header::EOD, count: 0, offset: 0 }
    }

    /// The end of the file, which came over `streams` connections.
    ///
    /// ```
    /// assert_eq!(libgrid::ftp::block::Header::eof(2).offset, 2);
    /// ```
    pub fn eof(streams: u64) -> Header {
        Header { flags: Header::EOF, count: 0, offset: streams }
    }

    /// As it is sent.
    ///
    /// ```
    /// let bytes = libgrid::ftp::block::Header::data(0x0102, 3).to_bytes();
    /// assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
    /// ```
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1..9].copy_from_slice(&self.count.to_be_bytes());
        bytes[9..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    /// Reads a header. All 17 bytes always are one; whether it makes sense is [`Header::check`]'s to say.
    ///
    /// ```
    /// use libgrid::ftp::block::Header;
    /// assert_eq!(Header::from_bytes(&[0; 17]), Header::data(0, 0));
    /// ```
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Header {
        let number = |from: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[from..from + 8]);
            u64::from_be_bytes(number)
        };
        Header { flags: bytes[0], count: number(1), offset: number(9) }
    }

    /// Whether this connection carries no more data of this transfer.
    ///
    /// ```
    /// assert!(libgrid::ftp::block::Header::eod().is_eod());
    /// ```
    pub fn is_eod(self) -> bool {
        self.flags & Header::EOD != 0
    }

    /// Whether it says how many EODs there will be.
    ///
    /// ```
    /// assert!(libgrid::ftp::block::Header::eof(1).is_eof());
    /// ```
    pub fn is_eof(self) -> bool {
        self.flags & Header::EOF != 0
    }

    /// Whether the sender will close the connection after this block.
    ///
    /// ```
    /// assert!(!libgrid::ftp::block::Header::eod().is_close());
    /// ```
    pub fn is_close(self) -> bool {
        self.flags & Header::CLOSE != 0
    }

    /// How many EODs there will be, of a header with EOF.
    ///
    /// ```
    /// use libgrid::ftp::block::Header;
    /// assert_eq!(Header::data(1, 2).streams(), None);
    /// ```
    pub fn streams(self) -> Option<u64> {
        self.is_eof().then_some(self.offset)
    }

    /// Where the data end in the file; `None` if that is beyond what a file can have (2^63 - 1 bytes).
    ///
    /// ```
    /// use libgrid::ftp::block::Header;
    /// assert_eq!(Header::data(u64::MAX, 1).end(), None);
    /// ```
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.count).filter(|end| *end <= i64::MAX.cast_unsigned())
    }

    /// Whether a receiver of files can do what the header says.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong.
    ///
    /// ```
    /// use libgrid::ftp::block::Header;
    /// assert!(Header::data(1, 2).check().is_ok());
    /// assert!(Header { flags: 64, count: 5, offset: 1 }.check().is_err());
    /// ```
    pub fn check(self) -> Result<(), BlockError> {
        const KNOWN: u8 =
            Header::EOR | Header::EOF | Header::SUSPECT | Header::RESTART | Header::EOD | Header::CLOSE;
        let why = if self.flags & !KNOWN != 0 {
            "it has flags that GFD.20 does not know"
        } else if self.flags & Header::RESTART != 0 {
            "it carries a restart marker, which nobody sends inside data"
        } else if self.flags & Header::SUSPECT != 0 && self.count > 0 {
            "the sender says that its data may be wrong"
        } else if self.is_eof() && self.count != 0 {
            "it ends the file and carries data"
        } else if self.is_eof() && (self.offset == 0 || self.offset > MAX_STREAMS) {
            "it announces no data connection, or more than 65536"
        } else if !self.is_eof() && self.end().is_none() {
            "its data would be beyond the end of any file"
        } else {
            return Ok(());
        };
        Err(BlockError { header: self, why })
    }
}

/// More data connections than this no transfer has.
const MAX_STREAMS: u64 = 65_536;

/// A block that cannot be taken.
///
/// ```
/// use libgrid::ftp::block::Header;
/// let error = Header { flags: 1, count: 0, offset: 0 }.check().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "the block header (flags 1, count 0, offset 0) makes no sense: it has flags that GFD.20 does not know"
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the block header (flags {}, count {}, offset {}) makes no sense: {why}",
    header.flags, header.count, header.offset
)]
pub struct BlockError {
    /// The header.
    pub header: Header,
    /// What is wrong with it.
    pub why: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_header_is_read_as_it_was_written(flags: u8, count: u64, offset: u64) {
            let header = Header { flags, count, offset };
            prop_assert_eq!(Header::from_bytes(&header.to_bytes()), header);
            if header.check().is_ok() && !header.is_eof() {
                prop_assert!(header.end().is_some());
            }
        }
    }
}
