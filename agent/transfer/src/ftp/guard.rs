//! Data connections under TLS (RFC 4217) or GSI (DCAU and PROT of GFD.20), on threads that may block.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::ftp::channel::{Channel, Secure};
use crate::ftp::flight::Fault;
use crate::ftp::gsi::Delegated;
use crate::ftp::security::Security;

/// What protects data connections.
#[derive(Clone, Debug)]
pub(crate) enum Guard {
    Plain,
    /// We are the TLS server. Who logged in with a certificate shows it here, too, or resumes a session in which it was
    /// shown: nobody else gets the data.
    Tls {
        security: Arc<Security>,
        leaf: Option<Vec<u8>>,
    },
    /// Who opens the connection is the TLS client.
    Gsi {
        security: Arc<Security>,
        delegated: Option<Arc<Delegated>>,
        /// The subject that must be at the other end.
        expect: Option<String>,
        private: bool,
    },
}

/// Bytes over TLS.
struct Tls {
    connection: Connection,
    stream: TcpStream,
    /// The other side said that this was all.
    closed: bool,
    /// Whether it must say so. Clients of Globus do not, and tell the length before (ALLO).
    strict: bool,
}

fn network(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Fault {
    Fault::Network(io::Error::other(error))
}

/// Of what rustls says, one thing can be helped by the user: see `gsi.rs`.
fn explained(error: io::Error) -> Fault {
    if error.to_string().contains("ServerNameMustContainOneHostName") {
        return Fault::Protocol(
            "the client wrote its user's name where TLS has the name of a host, and no host could be called so: \
             use -nodcau, or -p 2 to get files"
                .to_owned(),
        );
    }
    Fault::Network(error)
}

impl Guard {
    /// Secures a connection that we opened, if `ours`, or that came to us.
    pub(crate) fn open(
        &self,
        stream: TcpStream,
        ours: bool,
        buffer: Option<usize>,
        stall: Duration,
    ) -> Result<Channel, Fault> {
        let channel = Channel::plain(stream, buffer).map_err(Fault::Network)?;
        channel.set_stall_limit(stall).map_err(Fault::Network)?;
        let copy = |channel: &Channel| channel.stream().try_clone().map_err(Fault::Network);
        match self {
            Guard::Plain => Ok(channel),
            Guard::Tls { security, leaf } => {
                let config: Arc<ServerConfig> = security.data.clone();
                let connection = Connection::Server(ServerConnection::new(config).map_err(network)?);
                let mut tls = Tls { connection, stream: copy(&channel)?, closed: false, strict: true };
                tls.handshake()?;
                let shown = tls.peer().into_iter().next().map(|one| one.to_vec());
                if leaf.is_some() && shown != *leaf {
                    return Err(Fault::Protocol(
                        "the data connection showed another certificate than the session, or none".to_owned(),
                    ));
                }
                let stream = copy(&channel)?;
                Ok(Channel::Secure(Box::new(tls), stream))
            }
            Guard::Gsi { security, delegated, expect, private } => {
                let connection = if ours {
                    let config = security.opening(delegated.as_deref()).map_err(network)?;
                    let name = ServerName::try_from("data.invalid").map_err(network)?;
                    Connection::Client(ClientConnection::new(config, name).map_err(network)?)
                } else {
                    let config = security.accepting(delegated.as_deref()).map_err(network)?;
                    Connection::Server(ServerConnection::new(config).map_err(network)?)
                };
                let mut tls = Tls { connection, stream: copy(&channel)?, closed: false, strict: false };
                tls.handshake()?;
                // Protected data connections of Globus are plain TLS; the others still say that nothing is delegated.
                if !*private {
                    tls.flag(ours)?;
                }
                if let Some(expect) = expect {
                    let chain = tls.peer();
                    let trust = &security.trust;
                    let subject = trust.subject(&chain, true).or_else(|_| trust.subject(&chain, false));
                    let subject = subject.map_err(|error| Fault::Protocol(error.to_string()))?;
                    if subject != *expect {
                        return Err(Fault::Protocol(format!(
                            "the data connection is {subject}'s, and should be {expect}'s (DCAU)"
                        )));
                    }
                }
                if *private {
                    let stream = copy(&channel)?;
                    return Ok(Channel::Secure(Box::new(tls), stream));
                }
                Ok(channel)
            }
        }
    }
}

impl Tls {
    fn peer(&self) -> Vec<CertificateDer<'static>> {
        let shown = self.connection.peer_certificates().unwrap_or_default();
        shown.iter().map(|one| one.clone().into_owned()).collect()
    }

    fn handshake(&mut self) -> Result<(), Fault> {
        while self.connection.is_handshaking() {
            self.send().map_err(Fault::Network)?;
            if self.connection.is_handshaking() && !self.record().map_err(explained)? {
                return Err(Fault::Network(io::Error::other("it was closed during the handshake")));
            }
        }
        self.send().map_err(Fault::Network)
    }

    /// What GSI says after the handshake: that nothing is delegated.
    fn flag(&mut self, ours: bool) -> Result<(), Fault> {
        if ours {
            self.connection.writer().write_all(b"0").map_err(Fault::Network)?;
            return self.send().map_err(Fault::Network);
        }
        let mut flag = [0];
        self.read_exact(&mut flag).map_err(Fault::Network)?;
        match flag {
            [b'D'] => Err(Fault::Protocol("nothing is delegated on data connections".to_owned())),
            _ => Ok(()),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Takes exactly one record from the connection: what follows it may be plain data. False at its end.
    fn record(&mut self) -> io::Result<bool> {
        let mut header = [0; 5];
        let mut filled = 0;
        while filled < header.len() {
            match self.stream.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let mut record = vec![0; header.len() + length];
        record[..header.len()].copy_from_slice(&header);
        self.stream.read_exact(&mut record[header.len()..])?;
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            self.connection.read_tls(&mut rest)?;
            let state = self.connection.process_new_packets().map_err(io::Error::other)?;
            self.closed |= state.peer_has_closed();
        }
        Ok(true)
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                result => return result,
            }
            if self.closed {
                return Ok(0);
            }
            if !self.record()? {
                if !self.strict {
                    return Ok(0);
                }
                // The end of TCP without the end of TLS: somebody may have cut it.
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it was cut: TLS did not say its end",
                ));
            }
            self.send()?;
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.connection.writer().write(bytes)?;
        self.send()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Secure for Tls {
    fn finish(&mut self) -> io::Result<()> {
        self.connection.send_close_notify();
        self.send()
    }
}
