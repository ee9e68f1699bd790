//! How values cross a process boundary: framing, codec and version.
//!
//! A **frame** is a length (`u32`, little endian, at most [`MAX_FRAME`]) and that many bytes: one value in
//! bincode 2 (standard configuration: little endian, variable-length integers). A longer length is refused
//! before anything is allocated; the decoder itself is limited to [`MAX_FRAME`] bytes; a value that leaves
//! bytes over is refused.
//!
//! A connection begins with a [`Hello`] from each side. Sides whose [`VERSION`]s differ tell each other so
//! and part: nothing is ever decoded by the rules of another version.
//!
//! Everything that crosses a boundary goes through this module, so the codec can be replaced here alone.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The protocol's version; changes whenever the encoding of any message does.
pub const VERSION: u16 = 17;

/// The largest frame in bytes. Bulk data travels as many frames.
pub const MAX_FRAME: usize = 4 << 20;

/// The first four bytes of a [`Hello`].
const MAGIC: [u8; 4] = *b"GRID";

/// A [`Hello`] on the wire, in bytes.
const HELLO_LEN: usize = 8;

/// The greeting that opens a connection: magic and version. It never changes its form.
///
/// ```
/// use libgrid::wire::{Hello, VERSION};
/// let mut wire = Vec::new();
/// Hello::ours().write(&mut wire).unwrap();
/// assert_eq!(Hello::read(&mut wire.as_slice()).unwrap(), Hello { version: VERSION });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version that the sender speaks.
    pub version: u16,
}

/// A value could not be read from a connection.
///
/// ```
/// use libgrid::wire::{decode, WireError};
/// assert!(matches!(decode::<u64>(&[]), Err(WireError::Malformed(_))));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke, or ended inside a frame.
    #[error("the connection broke: {}", broken(.0))]
    Io(#[from] io::Error),
    /// The frame says it is longer than allowed.
    #[error("a message of {len} bytes is over the limit of {MAX_FRAME}")]
    TooLong {
        /// The length that was announced, or that the value to send has.
        len: u64,
    },
    /// The bytes are no value of the expected type.
    #[error("a message could not be understood: {0}")]
    Malformed(String),
    /// The other side does not speak this protocol at all.
    #[error("the other side does not speak the GridOS protocol")]
    NotGrid,
    /// The other side speaks another version.
    #[error(
        "the other side speaks version {theirs} of the protocol, this program version {VERSION}: \
         install the same release of GridOS on both"
    )]
    Version {
        /// The other side's version.
        theirs: u16,
    },
}

/// Why, in words that say who ended it.
fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side closed it".into(),
        _ => error.to_string(),
    }
}

impl Hello {
    /// This program's greeting.
    ///
    /// ```
    /// assert_eq!(libgrid::wire::Hello::ours().version, libgrid::wire::VERSION);
    /// ```
    pub fn ours() -> Self {
        Self { version: VERSION }
    }

    /// The greeting's bytes: magic, version, two bytes of zero.
    ///
    /// ```
    /// assert_eq!(&libgrid::wire::Hello { version: 1 }.to_bytes(), b"GRID\x01\0\0\0");
    /// ```
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// Reads the greeting's bytes.
    ///
    /// # Errors
    /// [`WireError::NotGrid`] where the magic is missing.
    ///
    /// ```
    /// use libgrid::wire::Hello;
    /// assert!(Hello::from_bytes(*b"GET / HT").is_err());
    /// ```
    pub fn from_bytes(bytes: [u8; HELLO_LEN]) -> Result<Self, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::NotGrid);
        }
        Ok(Self { version: u16::from_le_bytes([bytes[4], bytes[5]]) })
    }

    /// Nothing if the other side speaks our version.
    ///
    /// # Errors
    /// [`WireError::Version`] otherwise.
    ///
    /// ```
    /// use libgrid::wire::Hello;
    /// assert!(Hello::ours().check().is_ok());
    /// assert!(Hello { version: 999 }.check().is_err());
    /// ```
    pub fn check(self) -> Result<(), WireError> {
        if self.version == VERSION { Ok(()) } else { Err(WireError::Version { theirs: self.version }) }
    }

    /// Sends the greeting.
    ///
    /// # Errors
    /// [`WireError::Io`] where the connection broke.
    ///
    /// ```
    /// let mut out = Vec::new();
    /// libgrid::wire::Hello::ours().write(&mut out).unwrap();
    /// assert_eq!(out.len(), 8);
    /// ```
    pub fn write(self, to: &mut impl Write) -> Result<(), WireError> {
        Ok(to.write_all(&self.to_bytes())?)
    }

    /// Receives a greeting.
    ///
    /// # Errors
    /// [`WireError::Io`], or [`WireError::NotGrid`].
    ///
    /// ```
    /// assert!(libgrid::wire::Hello::read(&mut b"hello, world".as_slice()).is_err());
    /// ```
    pub fn read(from: &mut impl Read) -> Result<Self, WireError> {
        let mut bytes = [0; HELLO_LEN];
        from.read_exact(&mut bytes)?;
        Self::from_bytes(bytes)
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME>()
}

/// A value as bytes, without a length before them.
///
/// # Errors
/// [`WireError::TooLong`] over [`MAX_FRAME`].
///
/// ```
/// assert_eq!(libgrid::wire::encode(&("ab", 7u8)).unwrap(), [2, b'a', b'b', 7]);
/// ```
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let bytes = bincode::serde::encode_to_vec(value, config())
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_FRAME {
        return Err(WireError::TooLong { len: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// The value that [`encode`] turned into these bytes.
///
/// # Errors
/// [`WireError::Malformed`] where the bytes are no such value, or hold more than it.
///
/// ```
/// use libgrid::wire::{decode, encode};
/// let bytes = encode(&vec![1u32, 2, 3]).unwrap();
/// assert_eq!(decode::<Vec<u32>>(&bytes).unwrap(), [1, 2, 3]);
/// ```
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > MAX_FRAME {
        return Err(WireError::TooLong { len: bytes.len() as u64 });
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(WireError::Malformed(format!("{} bytes too many", bytes.len() - used)));
    }
    Ok(value)
}

/// A value as a frame: its length, then its bytes.
///
/// # Errors
/// As [`encode`].
///
/// ```
/// assert_eq!(libgrid::wire::frame(&7u8).unwrap(), [1, 0, 0, 0, 7]);
/// ```
pub fn frame<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = bincode::serde::encode_to_vec((0u8, 0u8, 0u8, 0u8, value), config())
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    let len = frame.len() - 4;
    if len > MAX_FRAME {
        return Err(WireError::TooLong { len: len as u64 });
    }
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// The length of the frame that begins with these four bytes.
///
/// # Errors
/// [`WireError::TooLong`] over [`MAX_FRAME`].
///
/// ```
/// assert_eq!(libgrid::wire::frame_len([5, 0, 0, 0]).unwrap(), 5);
/// assert!(libgrid::wire::frame_len([255; 4]).is_err());
/// ```
pub fn frame_len(header: [u8; 4]) -> Result<usize, WireError> {
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_FRAME { Err(WireError::TooLong { len: len as u64 }) } else { Ok(len) }
}

/// Sends one frame.
///
/// # Errors
/// [`WireError::Io`] or [`WireError::TooLong`].
///
/// ```
/// let mut out = Vec::new();
/// libgrid::wire::write(&mut out, &"hi").unwrap();
/// assert_eq!(libgrid::wire::read::<String>(&mut out.as_slice()).unwrap(), "hi");
/// ```
pub fn write<T: Serialize>(to: &mut impl Write, value: &T) -> Result<(), WireError> {
    Ok(to.write_all(&frame(value)?)?)
}

/// Receives one frame.
///
/// # Errors
/// Any [`WireError`]; after one, the connection is of no further use.
///
/// ```
/// assert!(libgrid::wire::read::<u8>(&mut [9, 0, 0, 0, 1].as_slice()).is_err());
/// ```
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, WireError> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let len = frame_len(header)?;
    // Grows with what arrives, not with what the header promises.
    let mut bytes = Vec::with_capacity(len.min(64 << 10));
    from.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&bytes)
}

/// The same over tokio's streams.
#[cfg(feature = "async")]
pub mod stream {
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    use super::{DeserializeOwned, HELLO_LEN, Hello, Serialize, WireError, decode, frame, frame_len};

    /// Sends our greeting and waits for the other side's.
    ///
    /// # Errors
    /// [`WireError::NotGrid`], [`WireError::Version`] or [`WireError::Io`].
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// let (mut a, mut b) = tokio::io::duplex(64);
    /// let (left, right) =
    ///     tokio::join!(libgrid::wire::stream::greet(&mut a), libgrid::wire::stream::greet(&mut b));
    /// assert!(left.is_ok() && right.is_ok());
    /// # }
    /// ```
    pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), WireError> {
        stream.write_all(&Hello::ours().to_bytes()).await?;
        let mut bytes = [0; HELLO_LEN];
        stream.read_exact(&mut bytes).await?;
        Hello::from_bytes(bytes)?.check()
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As [`super::write`].
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// let (mut a, mut b) = tokio::io::duplex(64);
    /// libgrid::wire::stream::write(&mut a, &7u8).await.unwrap();
    /// assert_eq!(libgrid::wire::stream::read::<u8, _>(&mut b).await.unwrap(), 7);
    /// # }
    /// ```
    pub async fn write<T: Serialize, W: AsyncWrite + Unpin>(to: &mut W, value: &T) -> Result<(), WireError> {
        let frame = frame(value)?;
        Ok(to.write_all(&frame).await?)
    }

    /// Receives one frame.
    ///
    /// # Errors
    /// As [`super::read`].
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// let mut bytes: &[u8] = &[1, 0, 0, 0, 7];
    /// assert_eq!(libgrid::wire::stream::read::<u8, _>(&mut bytes).await.unwrap(), 7);
    /// # }
    /// ```
    pub async fn read<T: DeserializeOwned, R: AsyncRead + Unpin>(from: &mut R) -> Result<T, WireError> {
        let mut header = [0; 4];
        from.read_exact(&mut header).await?;
        let len = frame_len(header)?;
        // Grows with what arrives, not with what the header promises.
        let mut bytes = Vec::with_capacity(len.min(64 << 10));
        while bytes.len() < len {
            let missing = (len - bytes.len()) as u64;
            if (&mut *from).take(missing).read_buf(&mut bytes).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_over_the_limit_is_refused_before_reading_on() {
        let mut endless = io::repeat(0xff);
        assert!(matches!(read::<Vec<u8>>(&mut endless), Err(WireError::TooLong { len: 0xffff_ffff })));
    }

    #[test]
    fn a_vector_that_promises_more_than_the_frame_holds_is_refused() {
        // 0xfd: a u64 follows. The vector claims 2^60 elements.
        let bytes = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(WireError::Malformed(_))));
    }

    /// Byte for byte they would take a hundred times as long.
    #[test]
    fn bytes_in_bulk_look_like_a_vector() {
        let chunk = crate::control::Chunk(vec![1, 2, 255]);
        assert_eq!(encode(&chunk).unwrap(), encode(&vec![1u8, 2, 255]).unwrap());
        assert_eq!(decode::<crate::control::Chunk>(&[3, 1, 2, 255]).unwrap(), chunk);
        assert!(decode::<crate::control::Chunk>(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10]).is_err());
    }

    #[test]
    fn a_truncated_frame_is_an_io_error_and_bytes_left_over_are_malformed() {
        let whole = frame(&"hello").unwrap();
        assert!(matches!(read::<String>(&mut &whole[..whole.len() - 1]), Err(WireError::Io(_))));
        assert!(matches!(decode::<u8>(&[1, 2]), Err(WireError::Malformed(_))));
    }

    #[test]
    fn another_version_is_told_apart_from_another_protocol() {
        let later = Hello { version: VERSION + 1 };
        let read = Hello::read(&mut later.to_bytes().as_slice()).unwrap();
        assert!(read.check().unwrap_err().to_string().contains("install the same release"));
        assert!(matches!(Hello::read(&mut b"SSH-2.0-".as_slice()), Err(WireError::NotGrid)));
    }
}
