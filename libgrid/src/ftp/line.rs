//! Lines out of the bytes of a control connection.
//!
//! A line ends with LF; a CR before it belongs to the end. Telnet's commands (`IAC` and what follows it) are taken
//! out, `IAC IAC` is the byte 255, and `CR NUL` is a CR (RFC 854). A client that aborts sends `IAC IP IAC DM`
//! before `ABOR`: they vanish here.
//!
//! ```text
//!            CR            LF
//!   text ──────────▶ cr ──────────▶ line
//!    │ ▲ ◀─── other ──┘
//! IAC│ │ second byte (255 is kept; WILL, WONT, DO and DONT have a third)
//!    ▼ │
//!    iac
//! ```

/// The longest line of a command, without its end, in bytes.
///
/// ```
/// assert_eq!(libgrid::ftp::line::MAX_LINE, 4096);
/// ```
pub const MAX_LINE: usize = 4096;

/// The longest line that carries a security token (ADAT, MIC, ENC), in bytes: a chain of certificates fits.
///
/// ```
/// assert!(libgrid::ftp::line::MAX_TOKEN_LINE > libgrid::ftp::line::MAX_LINE);
/// ```
pub const MAX_TOKEN_LINE: usize = 128 * 1024;

/// A line was longer than allowed. Nothing of it was kept; the reader goes on behind its end.
///
/// ```
/// use libgrid::ftp::line::LineTooLong;
/// assert_eq!(LineTooLong { limit: 4096 }.to_string(), "a line is longer than 4096 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {limit} bytes")]
pub struct LineTooLong {
    /// How long it might have been, in bytes.
    pub limit: usize,
}

/// Takes bytes as they come and gives lines, never holding more than one.
///
/// ```
/// use libgrid::ftp::line::LineReader;
/// let mut reader = LineReader::new(4096);
/// let mut bytes: &[u8] = b"NOOP\r\nQU";
/// assert_eq!(reader.next(&mut bytes), Some(Ok(b"NOOP".to_vec())));
/// assert_eq!(reader.next(&mut bytes), None);
/// bytes = b"IT\n";
/// assert_eq!(reader.next(&mut bytes), Some(Ok(b"QUIT".to_vec())));
/// ```
#[derive(Debug)]
pub struct LineReader {
    line: Vec<u8>,
    state: State,
    limit: usize,
    too_long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    Cr,
    Iac,
    /// After WILL, WONT, DO or DONT: the option follows.
    Option,
}

const IAC: u8 = 255;

impl LineReader {
    /// A reader of lines of at most `limit` bytes.
    ///
    /// ```
    /// use libgrid::ftp::line::{LineReader, LineTooLong};
    /// let mut reader = LineReader::new(3);
    /// let mut bytes: &[u8] = b"long\nok\n";
    /// assert_eq!(reader.next(&mut bytes), Some(Err(LineTooLong { limit: 3 })));
    /// assert_eq!(reader.next(&mut bytes), Some(Ok(b"ok".to_vec())));
    /// ```
    pub fn new(limit: usize) -> LineReader {
        LineReader { line: Vec::new(), state: State::Text, limit, too_long: false }
    }

    /// Other lines may be longer or shorter from now on.
    ///
    /// ```
    /// use libgrid::ftp::line::LineReader;
    /// let mut reader = LineReader::new(1);
    /// reader.set_limit(10);
    /// assert_eq!(reader.next(&mut &b"NOOP\n"[..]), Some(Ok(b"NOOP".to_vec())));
    /// ```
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether a line has begun and not ended.
    ///
    /// ```
    /// use libgrid::ftp::line::LineReader;
    /// let mut reader = LineReader::new(10);
    /// reader.next(&mut &b"NO"[..]);
    /// assert!(reader.is_inside());
    /// ```
    pub fn is_inside(&self) -> bool {
        !self.line.is_empty() || self.too_long
    }

    /// Takes bytes from the front of `bytes` until a line is whole. `None`: all were taken, and more are needed.
    ///
    /// # Errors
    /// [`LineTooLong`] once the end of such a line was seen.
    ///
    /// ```
    /// use libgrid::ftp::line::LineReader;
    /// let mut reader = LineReader::new(10);
    /// // What telnet's interrupt looks like before an ABOR.
    /// assert_eq!(reader.next(&mut &b"\xff\xf4\xff\xf2ABOR\r\n"[..]), Some(Ok(b"ABOR".to_vec())));
    /// ```
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Result<Vec<u8>, LineTooLong>> {
        while let Some((&byte, rest)) = bytes.split_first() {
            *bytes = rest;
            match self.state {
                State::Option => self.state = State::Text,
                State::Iac => match byte {
                    IAC => {
                        self.state = State::Text;
                        self.keep(IAC);
                    }
                    251..=254 => self.state = State::Option,
                    _ => self.state = State::Text,
                },
                _ if byte == b'\n' => {
                    self.state = State::Text;
                    return Some(self.take());
                }
                State::Cr if byte == 0 => {
                    self.state = State::Text;
                    self.keep(b'\r');
                }
                state => {
                    if state == State::Cr {
                        self.keep(b'\r');
                    }
                    self.state = match byte {
                        b'\r' => State::Cr,
                        IAC => State::Iac,
                        _ => {
                            self.keep(byte);
                            State::Text
                        }
                    };
                }
            }
        }
        None
    }

    fn keep(&mut self, byte: u8) {
        if self.line.len() < self.limit {
            self.line.push(byte);
        } else {
            self.too_long = true;
        }
    }

    fn take(&mut self) -> Result<Vec<u8>, LineTooLong> {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.too_long) { Err(LineTooLong { limit: self.limit }) } else { Ok(line) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_lines_are_the_same(bytes in vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let read = |pieces: &[&[u8]]| {
                let mut reader = LineReader::new(20);
                let mut lines = Vec::new();
                for piece in pieces {
                    let mut piece = *piece;
                    while let Some(line) = reader.next(&mut piece) {
                        lines.push(line);
                    }
                }
                lines
            };
            let cut = cut.min(bytes.len());
            let whole = read(&[&bytes]);
            prop_assert_eq!(&whole, &read(&[&bytes[..cut], &bytes[cut..]]));
            prop_assert!(whole.iter().flatten().all(|line| line.len() <= 20));
        }

        #[test]
        fn a_line_of_plain_text_is_itself(text in vec(32u8..127, 0..100)) {
            let mut sent = text.clone();
            sent.extend(b"\r\n");
            prop_assert_eq!(LineReader::new(100).next(&mut sent.as_slice()), Some(Ok(text)));
        }
    }

    #[test]
    fn telnet_is_taken_out_and_a_doubled_255_is_one() {
        let mut bytes: &[u8] = b"\xff\xfb\x01US\xff\xffER \r\0x\r\n";
        assert_eq!(LineReader::new(20).next(&mut bytes), Some(Ok(b"US\xffER \rx".to_vec())));
    }
}
