//! One encrypted data connection for what is no file: the memory of a task that moves.
//!
//! ```text
//!   destination                                     source
//!     Listener::bind
//!     ── Invitation, over the agents' mutual TLS ──▶
//!     ◀═══════ TCP, TLS 1.3, then a greeting ═══════   connect
//!     accept
//! ```
//!
//! The source believes the certificate of the invitation alone; the destination believes whoever has its key. Strangers are
//! closed, and keep nobody waiting.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use libgrid::io::{Plan, Socket};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde::{Deserialize, Serialize};

use super::conduit::{self, Seal};
use super::message::Trouble;
use super::record::{self, GREETING, Key};
use super::source::Door;
use super::{STALL, listen};

/// How long a connection may take to prove that it is the one.
const GREET: Duration = Duration::from_secs(5);

/// Connections that are proving it at most.
const STRANGERS: usize = 16;

/// Between two looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// The number in the greeting: there is one connection.
const ONLY: u32 = 0;

/// What the source has to know. It is a secret: whoever has it is taken for the source.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The TCP port.
    port: u16,
    key: [u8; 32],
    /// The destination's certificate, made for this connection, as DER.
    #[serde(with = "serde_bytes")]
    certificate: Vec<u8>,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A destination that waits for its source.
pub struct Listener {
    listener: TcpListener,
    seal: Seal,
    key: Key,
}

impl Listener {
    /// Listens at one of these ports, the first to the last, or at any.
    ///
    /// # Errors
    /// No port is free, or no key can be made.
    pub fn bind(ports: Option<(u16, u16)>) -> Result<Self, Trouble> {
        let seal = Seal::new().map_err(|error| Trouble::lasting(format!("no key can be made: {error}")))?;
        let listener = listen(None, ports)?;
        listener.set_nonblocking(true).map_err(Trouble::broken)?;
        Ok(Self { listener, seal, key: Key(rand::random()) })
    }

    /// For the source.
    ///
    /// # Errors
    /// The listener is gone.
    pub fn invitation(&self) -> io::Result<Invitation> {
        let port = self.listener.local_addr()?.port();
        Ok(Invitation { port, key: self.key.0, certificate: self.seal.certificate() })
    }

    /// Waits for the source, as long as it is wanted.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when it is no longer wanted.
    pub fn accept(self, wanted: impl Fn() -> bool) -> io::Result<Line> {
        let Self { listener, seal, key } = self;
        let seal = Arc::new(seal);
        let (proven, lines) = mpsc::channel();
        loop {
            // Each that is being looked at has a handle of the channel, and a handle of the certificate.
            while Arc::strong_count(&seal) <= STRANGERS
                && let Ok((stream, _)) = listener.accept()
            {
                let (seal, proven) = (seal.clone(), proven.clone());
                thread::spawn(move || {
                    if let Ok(line) = Line::accepted(stream, &seal, key) {
                        // A second one comes too late.
                        let _ = proven.send(line);
                    }
                });
            }
            match lines.recv_timeout(LOOK) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if wanted() => (),
                Err(_) => return Err(io::ErrorKind::Interrupted.into()),
            }
        }
    }
}

/// Connects to a destination that waits at one of these addresses, as long as it is wanted.
///
/// # Errors
/// It is at none of them, or is another one.
pub fn connect(
    addresses: &[IpAddr],
    invitation: &Invitation,
    wanted: impl Fn() -> bool,
) -> Result<Line, Trouble> {
    let Invitation { port, key, certificate } = invitation.clone();
    let door = Door { addresses: addresses.to_vec(), port, key: Key(key), seal: None, theirs: None };
    let socket = door.connect(&Plan::default(), wanted)?;
    let greet = || {
        socket.set_stall_limit(Some(STALL))?;
        let mut stream = conduit::client(socket, None, certificate)?;
        stream.write_all(&record::greeting(door.key, ONLY))?;
        stream.flush()?;
        Ok(Line(End::Source(Box::new(stream))))
    };
    greet().map_err(|error: io::Error| Trouble::broken(error))
}

/// The connection: the source writes, the destination reads. A source that does not get rid of a byte for ten seconds, and a
/// destination whose source does not answer the kernel's questions for as long, hear of an error.
pub struct Line(End);

enum End {
    Source(Box<StreamOwned<ClientConnection, TcpStream>>),
    Destination(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Line {
    fn accepted(stream: TcpStream, seal: &Seal, key: Key) -> io::Result<Self> {
        let socket = Socket::new(stream, &Plan::default())?;
        socket.set_stall_limit(Some(GREET))?;
        let mut stream = conduit::server(socket, seal, None)?;
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting)?;
        if record::check_greeting(key, &greeting) != Some(ONLY) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not the source"));
        }
        // It may have nothing to say for a while; one that is gone is noticed.
        stream.sock.set_read_timeout(None)?;
        setsockopt(&stream.sock, TcpKeepIdle, &4)?;
        setsockopt(&stream.sock, TcpKeepInterval, &2)?;
        setsockopt(&stream.sock, TcpKeepCount, &3)?;
        setsockopt(&stream.sock, KeepAlive, &true)?;
        Ok(Self(End::Destination(Box::new(stream))))
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            End::Source(stream) => stream.read(buffer),
            End::Destination(stream) => stream.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            End::Source(stream) => stream.write(bytes),
            End::Destination(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            End::Source(stream) => stream.flush(),
            End::Destination(stream) => stream.flush(),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Whoever reads notices the end either way.
        if let End::Source(stream) = &mut self.0 {
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _ = stream.sock.shutdown(Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::*;

    const HERE: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];

    #[test]
    fn what_the_source_writes_is_read_and_then_the_end() {
        let listener = Listener::bind(None).unwrap();
        let invitation = listener.invitation().unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let source = thread::spawn({
            let sent = sent.clone();
            move || connect(&HERE, &invitation, || true).unwrap().write_all(&sent).unwrap()
        });
        let mut read = Vec::new();
        listener.accept(|| true).unwrap().read_to_end(&mut read).unwrap();
        source.join().unwrap();
        assert!(read == sent);
    }

    #[test]
    fn strangers_are_neither_taken_for_the_source_nor_keep_it_waiting() {
        let listener = Listener::bind(None).unwrap();
        let invitation = listener.invitation().unwrap();
        // One that says nothing, one that speaks no TLS, one with another key.
        let _silent = TcpStream::connect((HERE[0], invitation.port)).unwrap();
        let mut noisy = TcpStream::connect((HERE[0], invitation.port)).unwrap();
        noisy.write_all(&[7; 100]).unwrap();
        let mut other = invitation.clone();
        other.key[0] ^= 1;
        let accepted = thread::spawn(move || listener.accept(|| true));
        let _other = connect(&HERE, &other, || true);
        let begun = Instant::now();
        connect(&HERE, &invitation, || true).unwrap().write_all(b"it is me").unwrap();
        let mut read = Vec::new();
        accepted.join().unwrap().unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, b"it is me");
        assert!(begun.elapsed() < GREET, "it waited for a stranger");
    }

    #[test]
    fn a_source_believes_no_other_destination() {
        let (listener, other) = (Listener::bind(None).unwrap(), Listener::bind(None).unwrap());
        let invitation = Invitation {
            certificate: other.invitation().unwrap().certificate,
            ..listener.invitation().unwrap()
        };
        let accepting = thread::spawn(move || {
            let begun = Instant::now();
            listener.accept(|| begun.elapsed() < Duration::from_millis(500))
        });
        assert!(
            connect(&HERE, &invitation, || true).unwrap_err().why.contains("not the one of this transfer")
        );
        assert_eq!(accepting.join().unwrap().unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn nobody_waits_for_what_is_not_wanted() {
        let refused = Listener::bind(None).unwrap().accept(|| false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Interrupted);
    }
}
