//! Replies: a code of three digits and text, on one line or several (RFC 959, 4.2).

use std::fmt;

/// The most lines of a reply that [`ReplyReader`] keeps.
///
/// ```
/// assert!(libgrid::ftp::reply::MAX_LINES >= 1000);
/// ```
pub const MAX_LINES: usize = 4096;

/// The most bytes of a reply that [`ReplyReader`] keeps.
///
/// ```
/// assert!(libgrid::ftp::reply::MAX_BYTES >= 65_536);
/// ```
pub const MAX_BYTES: usize = 1 << 20;

/// A reply: its code and its lines, of which there is at least one.
///
/// ```
/// use libgrid::ftp::reply::Reply;
/// assert_eq!(Reply::new(200, "ok").to_bytes(), b"200 ok\r\n");
/// let feat = Reply::lines(211, ["Extensions:", " MLST Size*;", "End"]);
/// assert_eq!(feat.to_bytes(), b"211-Extensions:\r\n MLST Size*;\r\n211 End\r\n");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 100 to 699.
    pub code: u16,
    /// The text without codes. A line in the middle keeps its leading space, if it has one.
    pub text: Vec<Vec<u8>>,
}

/// What a code's first digit says.
///
/// ```
/// use libgrid::ftp::reply::{Kind, Reply};
/// assert_eq!(Reply::new(150, "").kind(), Kind::Preliminary);
/// assert_eq!(Reply::new(633, "").kind(), Kind::Protected);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1xx: begun; another reply follows.
    Preliminary,
    /// 2xx: done.
    Done,
    /// 3xx: another command is needed.
    Intermediate,
    /// 4xx: failed for now; trying again may help.
    Transient,
    /// 5xx: failed for good.
    Permanent,
    /// 6xx: a protected reply is inside (RFC 2228).
    Protected,
}

/// What came is not a reply.
///
/// ```
/// use libgrid::ftp::reply::{ReplyError, ReplyReader};
/// assert_eq!(ReplyReader::default().line(b"hello"), Err(ReplyError::NoCode { line: "hello".into() }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The line does not begin with three digits.
    #[error("the server's answer {line:?} has no code: it may not be an FTP server")]
    NoCode {
        /// Its beginning.
        line: String,
    },
    /// The reply does not end.
    #[error("the server's reply is longer than {MAX_LINES} lines or {MAX_BYTES} bytes")]
    TooLong,
}

impl Reply {
    /// A reply of one line. Line ends and control characters in `text` are replaced by spaces, so that nobody can
    /// smuggle a second reply in a name.
    ///
    /// ```
    /// use libgrid::ftp::reply::Reply;
    /// assert_eq!(Reply::new(550, "no\r\n226 fine").to_bytes(), b"550 no  226 fine\r\n");
    /// ```
    pub fn new(code: u16, text: impl AsRef<[u8]>) -> Reply {
        Reply { code, text: vec![clean(text.as_ref())] }
    }

    /// A reply of several lines; without any, an empty one.
    ///
    /// ```
    /// use libgrid::ftp::reply::Reply;
    /// assert_eq!(Reply::lines(229, ["a", " b", "c"]).text.len(), 3);
    /// ```
    pub fn lines<T: AsRef<[u8]>>(code: u16, lines: impl IntoIterator<Item = T>) -> Reply {
        let mut text: Vec<Vec<u8>> = lines.into_iter().map(|line| clean(line.as_ref())).collect();
        if text.is_empty() {
            text.push(Vec::new());
        }
        Reply { code, text }
    }

    /// What the first digit of the code says.
    ///
    /// ```
    /// use libgrid::ftp::reply::{Kind, Reply};
    /// assert_eq!(Reply::new(226, "").kind(), Kind::Done);
    /// ```
    pub fn kind(&self) -> Kind {
        match self.code / 100 {
            1 => Kind::Preliminary,
            2 => Kind::Done,
            3 => Kind::Intermediate,
            4 => Kind::Transient,
            6 => Kind::Protected,
            _ => Kind::Permanent,
        }
    }

    /// As it is sent. A line in the middle that could be taken for the last one gets a space before it.
    ///
    /// ```
    /// use libgrid::ftp::reply::Reply;
    /// let sly = Reply::lines(211, ["a", "211 b", "c"]);
    /// assert_eq!(sly.to_bytes(), b"211-a\r\n 211 b\r\n211 c\r\n");
    /// ```
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let last = self.text.len().saturating_sub(1);
        for (number, line) in self.text.iter().enumerate() {
            if number == last {
                bytes.extend(format!("{:03} ", self.code).bytes());
            } else if number == 0 {
                bytes.extend(format!("{:03}-", self.code).bytes());
            } else if line.first().is_some_and(u8::is_ascii_digit) {
                bytes.push(b' ');
            }
            bytes.extend(line);
            bytes.extend(b"\r\n");
        }
        bytes
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for line in &self.text {
            write!(f, " {}", String::from_utf8_lossy(line).trim())?;
        }
        Ok(())
    }
}

fn clean(text: &[u8]) -> Vec<u8> {
    text.iter().map(|&byte| if byte < 32 || byte == 127 { b' ' } else { byte }).collect()
}

/// Puts replies together from lines, for a client.
///
/// ```
/// use libgrid::ftp::reply::{Reply, ReplyReader};
/// let mut reader = ReplyReader::default();
/// assert_eq!(reader.line(b"211-Extensions:"), Ok(None));
/// assert_eq!(reader.line(b" SIZE"), Ok(None));
/// let reply = reader.line(b"211 End").unwrap().unwrap();
/// assert_eq!(reply, Reply::lines(211, ["Extensions:", " SIZE", "End"]));
/// ```
#[derive(Debug, Default)]
pub struct ReplyReader {
    begun: Option<Reply>,
    bytes: usize,
}

impl ReplyReader {
    /// Takes the next line, without its end; gives the reply that it completes.
    ///
    /// # Errors
    /// [`ReplyError`]; the connection is then of no use any more.
    ///
    /// ```
    /// use libgrid::ftp::reply::ReplyReader;
    /// assert_eq!(ReplyReader::default().line(b"220 ready").unwrap().unwrap().code, 220);
    /// ```
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        self.bytes += line.len();
        if self.bytes > MAX_BYTES {
            return Err(ReplyError::TooLong);
        }
        match &mut self.begun {
            None => {
                let Some((code, more)) = head(line) else {
                    let line = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
                    return Err(ReplyError::NoCode { line });
                };
                let reply = Reply { code, text: vec![rest(line)] };
                if more {
                    self.begun = Some(reply);
                    return Ok(None);
                }
                self.bytes = 0;
                Ok(Some(reply))
            }
            Some(reply) => {
                if reply.text.len() >= MAX_LINES {
                    return Err(ReplyError::TooLong);
                }
                match head(line) {
                    Some((code, more)) if code == reply.code => {
                        // Many servers write the code before each line.
                        reply.text.push(rest(line));
                        if more {
                            return Ok(None);
                        }
                        self.bytes = 0;
                        Ok(self.begun.take())
                    }
                    _ => {
                        reply.text.push(line.to_vec());
                        Ok(None)
                    }
                }
            }
        }
    }
}

fn rest(line: &[u8]) -> Vec<u8> {
    line.get(4..).unwrap_or_default().to_vec()
}

/// The code, and whether a hyphen says that more lines follow.
fn head(line: &[u8]) -> Option<(u16, bool)> {
    let digits = line.get(..3)?;
    if !(b'1'..=b'6').contains(&digits[0]) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match line.get(3) {
        None | Some(b' ') => Some((code, false)),
        Some(b'-') => Some((code, true)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            code in 100u16..700, lines in vec("[ -~]{0,20}", 1..6),
        ) {
            let reply = Reply::lines(code, &lines);
            let bytes = reply.to_bytes();
            let mut reader = ReplyReader::default();
            let mut read = None;
            for line in bytes.split(|&byte| byte == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                prop_assert!(read.is_none() || line.is_empty());
                if read.is_none() {
                    read = reader.line(line).unwrap();
                }
            }
            let read = read.unwrap();
            prop_assert_eq!(read.code, code);
            prop_assert_eq!(read.text.len(), lines.len());
            prop_assert_eq!(read.text.last(), reply.text.last());
        }

        #[test]
        fn any_line_is_taken_or_refused(lines in vec(vec(any::<u8>(), 0..30), 0..20)) {
            let mut reader = ReplyReader::default();
            for line in &lines {
                if reader.line(line).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_reply_without_an_end_is_given_up() {
        let mut reader = ReplyReader::default();
        reader.line(b"211-x").unwrap();
        let error = (0..=MAX_LINES).find_map(|_| reader.line(b" y").err());
        assert_eq!(error, Some(ReplyError::TooLong));
    }
}
