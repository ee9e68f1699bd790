//! The control connection: commands out, replies in, none of it without a limit.
//!
//! ```text
//!   command ──▶ 1xx … 1xx ──▶ 2xx, 3xx, 4xx or 5xx
//!               markers       (421: the server hangs up)
//! ```
//!
//! Several commands may be sent at once where none depends on the outcome of another; their replies come in order.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::linux::net::TcpStreamExt;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::KeepAlive;

use super::error::shown;
use super::tls::{Connector, TlsStream};
use super::{FtpError, Limits};
use crate::ftp::line::LineReader;
use crate::ftp::reply::{Kind, Reply, ReplyReader};
use crate::io::PathInfo;

/// The longest line of a reply: long paths and lists of features fit.
const MAX_REPLY_LINE: usize = 64 * 1024;

/// So many bytes without a line end are no reply.
const MAX_UNENDED: usize = 2 * MAX_REPLY_LINE;

/// So many preliminary replies to a command that moves no data are no answer.
const MAX_PRELIMINARY: usize = 4096;

enum Channel {
    Plain(TcpStream),
    Secure(Box<TlsStream>),
    /// While it becomes a secure one.
    None,
}

impl Channel {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Secure(stream) => Some(&stream.sock),
            Self::None => None,
        }
    }
}

/// A control connection.
pub(super) struct Control {
    channel: Channel,
    lines: LineReader,
    replies: ReplyReader,
    /// Replies that were read and not asked for yet.
    ready: VecDeque<Reply>,
    unended: usize,
    server: String,
    limits: Limits,
    /// Commands whose final reply is still to come: after an error there are, and the connection is of no use.
    owed: usize,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A path is sent as it is; what would end the line is refused here, wherever the path came from.
pub(super) fn line(verb: &str, argument: &[u8]) -> Result<Vec<u8>, FtpError> {
    if argument.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        let why = "it holds a line end or NUL, which FTP cannot carry: rename the file";
        return Err(FtpError::Name { name: shown(argument), why });
    }
    let mut line = Vec::with_capacity(verb.len() + argument.len() + 3);
    line.extend(verb.as_bytes());
    if !argument.is_empty() {
        line.push(b' ');
        for &byte in argument {
            // 255 is telnet's escape; doubled, it is itself (RFC 854).
            line.extend(std::iter::repeat_n(byte, if byte == 255 { 2 } else { 1 }));
        }
    }
    line.extend(b"\r\n");
    Ok(line)
}

/// A command line as messages show it.
fn told(line: &[u8]) -> String {
    if line.starts_with(b"PASS") {
        return "PASS".to_owned();
    }
    shown(line.trim_ascii_end())
}

impl Control {
    /// Connects to the first address that answers, and reads the greeting.
    pub(super) fn connect(host: &str, port: u16, server: &str, limits: &Limits) -> Result<Self, FtpError> {
        let fail = |source| FtpError::Connect { server: server.to_owned(), source };
        let deadline = Instant::now() + limits.connect;
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(fail)?.take(16).collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                last = io::ErrorKind::TimedOut.into();
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Self::greeted(stream, server, limits),
                Err(error) => last = error,
            }
        }
        Err(fail(last))
    }

    fn greeted(stream: TcpStream, server: &str, limits: &Limits) -> Result<Self, FtpError> {
        let lost = |source| FtpError::Lost { server: server.to_owned(), source };
        stream.set_nodelay(true).map_err(lost)?;
        stream.set_write_timeout(Some(limits.reply)).map_err(lost)?;
        // A long transfer leaves this connection idle: who stands between must not forget it.
        setsockopt(&stream, KeepAlive, &true).map_err(|error| lost(error.into()))?;
        let mut control = Self {
            channel: Channel::Plain(stream),
            lines: LineReader::new(MAX_REPLY_LINE),
            replies: ReplyReader::default(),
            ready: VecDeque::new(),
            unended: 0,
            server: server.to_owned(),
            limits: limits.clone(),
            owed: 1,
        };
        let greeting = control.last_reply("the greeting")?;
        if greeting.kind() != Kind::Done {
            return Err(control.refused("the connection", greeting));
        }
        Ok(control)
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether all replies came, so that the connection can be used on.
    pub(super) fn is_idle(&self) -> bool {
        self.owed == 0 && self.ready.is_empty() && !matches!(self.channel, Channel::None)
    }

    fn tcp(&self) -> Result<&TcpStream, FtpError> {
        self.channel.tcp().ok_or_else(|| self.lost(io::ErrorKind::NotConnected.into()))
    }

    /// The server's end.
    pub(super) fn peer(&self) -> Result<SocketAddr, FtpError> {
        self.tcp()?.peer_addr().map_err(|error| self.lost(error))
    }

    /// Our end.
    pub(super) fn local(&self) -> Result<SocketAddr, FtpError> {
        self.tcp()?.local_addr().map_err(|error| self.lost(error))
    }

    pub(super) fn lost(&self, source: io::Error) -> FtpError {
        FtpError::Lost { server: self.server.clone(), source }
    }

    pub(super) fn protocol(&self, why: impl Into<String>) -> FtpError {
        FtpError::Protocol { server: self.server.clone(), why: why.into() }
    }

    pub(super) fn refused(&self, command: &str, reply: Reply) -> FtpError {
        FtpError::Refused { server: self.server.clone(), command: command.to_owned(), reply }
    }

    /// What the kernel measured on this connection.
    pub(super) fn path(&self) -> PathInfo {
        self.channel.tcp().and_then(|stream| PathInfo::of(stream).ok()).unwrap_or_default()
    }

    /// Secures the connection after the reply 234.
    pub(super) fn secure(&mut self, connector: &Connector) -> Result<(), FtpError> {
        let fail = |why: String| FtpError::Tls { server: self.server.clone(), why };
        // What came in clear text must not count as said under TLS.
        if !self.is_idle() || self.lines.is_inside() || self.unended > 0 {
            return Err(fail("it sent data before the handshake".to_owned()));
        }
        let Channel::Plain(stream) = std::mem::replace(&mut self.channel, Channel::None) else {
            return Err(fail("it is secured already".to_owned()));
        };
        let secure =
            connector.connect(stream, self.limits.connect).map_err(|error| fail(error.to_string()))?;
        self.channel = Channel::Secure(Box::new(secure));
        Ok(())
    }

    /// Sends lines made by [`line`], each of which has one final reply.
    pub(super) fn send(&mut self, lines: &[Vec<u8>]) -> Result<(), FtpError> {
        if self.owed == 0
            && let Some(reply) = self.ready.pop_front()
        {
            let error = self.unasked(&reply);
            self.close();
            return Err(error);
        }
        self.owed += lines.len();
        let bytes = lines.concat();
        let result = match &mut self.channel {
            Channel::Plain(stream) => stream.write_all(&bytes),
            Channel::Secure(stream) => stream.write_all(&bytes).and_then(|()| stream.flush()),
            Channel::None => Err(io::ErrorKind::NotConnected.into()),
        };
        result.map_err(|error| {
            self.close();
            self.lost(error)
        })
    }

    fn unasked(&self, reply: &Reply) -> FtpError {
        // The last words of a session that ends: of a time limit (421), or of a server that fell over.
        if matches!(reply.kind(), Kind::Transient | Kind::Permanent) {
            return self.lost(io::Error::other(shown(reply.to_string().as_bytes())));
        }
        self.protocol(format!(
            "it sent a reply that nobody asked for: {}",
            shown(reply.to_string().as_bytes())
        ))
    }

    /// The next reply if it comes within `wait`; counts whether it was a final one.
    pub(super) fn poll(&mut self, wait: Duration) -> Result<Option<Reply>, FtpError> {
        let result = self.next_reply(wait);
        if result.is_err() {
            self.close();
        }
        result
    }

    fn next_reply(&mut self, wait: Duration) -> Result<Option<Reply>, FtpError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(reply) = self.ready.pop_front() {
                if reply.kind() != Kind::Preliminary {
                    if self.owed == 0 {
                        return Err(self.unasked(&reply));
                    }
                    self.owed -= 1;
                }
                if reply.code == 421 {
                    return Err(self.lost(io::Error::other(reply.to_string())));
                }
                return Ok(Some(reply));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.fill(left)?;
        }
    }

    /// Reads what is there, waiting at most so long.
    fn fill(&mut self, wait: Duration) -> Result<(), FtpError> {
        // The kernel's clock is coarse, and zero stands for ever.
        let wait = wait.max(Duration::from_millis(1));
        self.tcp()?.set_read_timeout(Some(wait)).map_err(|error| self.lost(error))?;
        // A server that waits for our acknowledgement between two short replies must not wait for 40 ms.
        let _ = self.tcp()?.set_quickack(true);
        let mut buffer = [0; 16 * 1024];
        let came = match &mut self.channel {
            Channel::Plain(stream) => stream.read(&mut buffer),
            Channel::Secure(stream) => stream.read(&mut buffer),
            Channel::None => Err(io::ErrorKind::NotConnected.into()),
        };
        let came = match came {
            Ok(0) => {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it");
                return Err(self.lost(source));
            }
            Ok(came) => came,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(self.lost(error)),
        };
        let mut bytes = &buffer[..came];
        loop {
            let before = bytes.len();
            let next = self.lines.next(&mut bytes);
            match next {
                None => {
                    self.unended += before;
                    if self.unended > MAX_UNENDED {
                        return Err(self.protocol("it sent a line without an end"));
                    }
                    return Ok(());
                }
                Some(line) => {
                    self.unended = 0;
                    let line = line.map_err(|error| self.protocol(error.to_string()))?;
                    let reply = self.replies.line(&line).map_err(|error| self.protocol(error.to_string()))?;
                    self.ready.extend(reply);
                    if self.ready.len() > MAX_PRELIMINARY {
                        return Err(self.protocol("it sent thousands of replies that nobody asked for"));
                    }
                }
            }
        }
    }

    /// The next reply, of any kind, within the limit for replies.
    pub(super) fn reply(&mut self, what: &str) -> Result<Reply, FtpError> {
        self.reply_within(self.limits.reply, what)
    }

    pub(super) fn reply_within(&mut self, limit: Duration, what: &str) -> Result<Reply, FtpError> {
        self.poll(limit)?.ok_or_else(|| self.silent(limit, what))
    }

    pub(super) fn silent(&self, limit: Duration, what: &str) -> FtpError {
        FtpError::Silent { server: self.server.clone(), limit, what: what.to_owned() }
    }

    /// The final reply; preliminary ones are passed over. The limit is for all of them together.
    fn last_reply_within(&mut self, limit: Duration, what: &str) -> Result<Reply, FtpError> {
        let deadline = Instant::now() + limit;
        for _ in 0..MAX_PRELIMINARY {
            let left = deadline.saturating_duration_since(Instant::now());
            let reply = self.poll(left)?.ok_or_else(|| self.silent(limit, what))?;
            if reply.kind() != Kind::Preliminary {
                return Ok(reply);
            }
        }
        Err(self.protocol(format!("it sent thousands of preliminary replies: {what} did not come")))
    }

    pub(super) fn last_reply(&mut self, what: &str) -> Result<Reply, FtpError> {
        self.last_reply_within(self.limits.reply, what)
    }

    /// Sends a command and gives its final reply, whatever that is.
    pub(super) fn ask(&mut self, verb: &str, argument: &[u8]) -> Result<Reply, FtpError> {
        self.ask_within(self.limits.reply, verb, argument)
    }

    pub(super) fn ask_within(
        &mut self,
        limit: Duration,
        verb: &str,
        argument: &[u8],
    ) -> Result<Reply, FtpError> {
        let line = line(verb, argument)?;
        self.send(std::slice::from_ref(&line))?;
        self.last_reply_within(limit, &format!("the answer to {verb}"))
    }

    /// Sends a command that must succeed.
    pub(super) fn must(&mut self, verb: &str, argument: &[u8]) -> Result<Reply, FtpError> {
        let reply = self.ask(verb, argument)?;
        self.done(&line(verb, argument)?, reply)
    }

    /// The reply, if it says that the command was carried out.
    pub(super) fn done(&self, line: &[u8], reply: Reply) -> Result<Reply, FtpError> {
        match reply.kind() {
            Kind::Done => Ok(reply),
            Kind::Transient | Kind::Permanent => Err(self.refused(&told(line), reply)),
            _ => Err(self.protocol(format!("it answered {} to {}", reply.code, told(line)))),
        }
    }

    /// Sends commands of which none depends on another, all at once; gives their final replies.
    pub(super) fn batch(&mut self, lines: &[Vec<u8>]) -> Result<Vec<Reply>, FtpError> {
        self.send(lines)?;
        lines.iter().map(|line| self.last_reply(&format!("the answer to {}", told(line)))).collect()
    }

    /// Says good-bye without waiting for an answer, and closes.
    pub(super) fn quit(&mut self) {
        if self.is_idle() {
            let _ = self.send(&[b"QUIT\r\n".to_vec()]);
        }
        self.close();
    }

    /// Closes the connection; whoever waits on it wakes up.
    pub(super) fn close(&mut self) {
        if let Some(stream) = self.channel.tcp() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.channel = Channel::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_becomes_a_second_command() {
        assert!(line("RETR", b"x\r\nDELE y").is_err());
        assert_eq!(line("RETR", b" a\xff").unwrap(), b"RETR  a\xff\xff\r\n");
        assert_eq!(told(b"PASS secret\r\n"), "PASS");
    }
}
