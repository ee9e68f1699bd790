//! The control connection: lines in, replies out; plain, under TLS, or with each line sealed by GSI.

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::time::Duration;

use libgrid::ftp::line::{LineReader, LineTooLong, MAX_LINE, MAX_TOKEN_LINE};
use libgrid::ftp::reply::Reply;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ftp::gsi::Seal;

/// How long a line may take once it has begun: nobody types that slowly, and whoever does holds a session.
const LINE: Duration = Duration::from_secs(30);

/// How long a client may leave replies unread.
const REPLY: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// Bytes that are read at a time.
const PIECE: usize = 1024;

/// The session is over.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The client said QUIT, or closed the connection.
    Ended,
    /// It said nothing for too long.
    Idle,
    /// It began a line and did not end it, or leaves replies unread.
    Slow,
    /// It failed.
    Io(io::Error),
    /// It sent what cannot go on.
    Protocol(&'static str),
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// While it changes from one to the other; for good, if that failed.
    Gone,
}

pub(crate) struct Control {
    wire: Wire,
    reader: LineReader,
    buffer: Vec<u8>,
    at: usize,
    /// When the line that is being read began.
    begun: Option<Instant>,
    seal: Option<Box<Seal>>,
}

impl Control {
    pub(crate) fn new(stream: TcpStream) -> Control {
        Control {
            wire: Wire::Plain(stream),
            reader: LineReader::new(MAX_LINE),
            buffer: Vec::new(),
            at: 0,
            begun: None,
            seal: None,
        }
    }

    /// The next line. May be dropped while it waits, and called again: nothing is lost. Without `idle`, silence is no
    /// failure.
    pub(crate) async fn next_line(
        &mut self,
        idle: Option<Instant>,
    ) -> Result<Result<Vec<u8>, LineTooLong>, Lost> {
        loop {
            let mut rest = &self.buffer[self.at..];
            let line = self.reader.next(&mut rest);
            self.at = self.buffer.len() - rest.len();
            if let Some(line) = line {
                self.begun = None;
                return Ok(line);
            }
            // An idle session holds no buffer.
            self.buffer = Vec::new();
            self.at = 0;
            if self.reader.is_inside() && self.begun.is_none() {
                self.begun = Some(Instant::now());
            }
            let line = self.begun.map(|begun| begun + LINE);
            let deadline = [idle, line].into_iter().flatten().min();
            let late = || match line {
                Some(line) if line <= Instant::now() => Lost::Slow,
                _ => Lost::Idle,
            };
            // A client that never pauses: what is always ready is never timed out.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(late());
            }
            let mut piece = [0; PIECE];
            let read = async {
                match &mut self.wire {
                    // A read ends before urgent data, which comes before ABOR. tokio's own read takes a short read for
                    // the last one, and would wait for more to arrive.
                    Wire::Plain(stream) => {
                        let fd = stream.as_raw_fd();
                        let read = || recv(fd, &mut piece, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from);
                        stream.async_io(Interest::READABLE, read).await
                    }
                    Wire::Tls(stream) => stream.read(&mut piece).await,
                    Wire::Gone => Ok(0),
                }
            };
            let read = match deadline {
                Some(deadline) => match timeout_at(deadline, read).await {
                    Ok(read) => read,
                    Err(_) => return Err(late()),
                },
                None => read.await,
            };
            match read {
                Ok(0) => return Err(Lost::Ended),
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Lost::Io(error)),
            }
        }
    }

    /// Whether bytes came that are not a line yet, or are one that was not asked for.
    pub(crate) fn has_more(&self) -> bool {
        self.at < self.buffer.len() || self.reader.is_inside()
    }

    /// Whether the client has closed the connection, as far as the kernel knows now.
    pub(crate) fn is_closed(&self) -> bool {
        let fd = match &self.wire {
            Wire::Plain(stream) => stream.as_raw_fd(),
            Wire::Tls(stream) => stream.get_ref().0.as_raw_fd(),
            Wire::Gone => return true,
        };
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(fd, &mut [0], flags) {
            Ok(read) => read == 0,
            Err(errno) => errno != nix::errno::Errno::EAGAIN,
        }
    }

    pub(crate) async fn send(&mut self, reply: &Reply) -> Result<(), Lost> {
        let bytes = reply.to_bytes();
        let bytes = match &mut self.seal {
            Some(seal) => seal.reply(&bytes).map_err(Lost::Io)?,
            None => bytes,
        };
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let write: Pin<Box<dyn Future<Output = io::Result<()>> + '_>> = match &mut self.wire {
            Wire::Plain(stream) => {
                // Almost always there is room, and nothing has to wait.
                match stream.try_write(bytes) {
                    Ok(written) if written == bytes.len() => return Ok(()),
                    Ok(written) => Box::pin(stream.write_all(&bytes[written..])),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        Box::pin(stream.write_all(bytes))
                    }
                    Err(error) => return Err(Lost::Io(error)),
                }
            }
            Wire::Tls(stream) => Box::pin(async {
                stream.write_all(bytes).await?;
                stream.flush().await
            }),
            Wire::Gone => return Err(Lost::Ended),
        };
        match timeout(REPLY, write).await {
            Ok(written) => written.map_err(Lost::Io),
            Err(_) => Err(Lost::Slow),
        }
    }

    /// Goes on under TLS. What came in plain text behind the command is refused: somebody on the way may have put it
    /// there.
    pub(crate) async fn start_tls(
        &mut self,
        acceptor: &TlsAcceptor,
    ) -> Result<&rustls::ServerConnection, Lost> {
        if self.has_more() {
            return Err(Lost::Protocol("commands came before the TLS handshake"));
        }
        let Wire::Plain(stream) = std::mem::replace(&mut self.wire, Wire::Gone) else {
            return Err(Lost::Protocol("TLS inside TLS"));
        };
        let accepted = timeout(HANDSHAKE, acceptor.accept(stream)).await.map_err(|_| Lost::Slow)?;
        self.wire = Wire::Tls(Box::new(accepted.map_err(Lost::Io)?));
        match &self.wire {
            Wire::Tls(stream) => Ok(stream.get_ref().1),
            _ => Err(Lost::Ended),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.wire, Wire::Tls(_))
    }

    /// Tokens of a security mechanism are longer than commands.
    pub(crate) fn expect_tokens(&mut self) {
        self.reader.set_limit(MAX_TOKEN_LINE);
    }

    /// From now on, replies are sealed, and sealed commands can be opened.
    pub(crate) fn set_seal(&mut self, seal: Seal) {
        self.seal = Some(Box::new(seal));
    }

    pub(crate) fn seal(&mut self) -> Option<&mut Seal> {
        self.seal.as_deref_mut()
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// Ends the connection properly, if the client still listens.
    pub(crate) async fn close(mut self) {
        if let Wire::Tls(stream) = &mut self.wire {
            // The session is over in any case.
            let _ = timeout(Duration::from_secs(1), stream.shutdown()).await;
        }
    }
}
