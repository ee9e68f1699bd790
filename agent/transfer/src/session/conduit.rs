//! One data connection: plain, or encrypted by TLS 1.3.
//!
//! The ends of an encrypted one show certificates that were made for this transfer alone and told over the control stream, and
//! believe no other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use libgrid::io::{Broken, Pipe, Side, Socket};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

/// What is encrypted at once, in bytes.
const PIECE: usize = 64 << 10;

/// The certificate and key of one transfer.
pub(super) struct Seal {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Seal {
    pub(super) fn new() -> io::Result<Self> {
        let made =
            rcgen::generate_simple_self_signed(["transfer.gridos".to_owned()]).map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
        Ok(Self { certificate: made.cert.der().clone(), key })
    }

    pub(super) fn certificate(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }
}

/// A data connection.
pub(super) enum Conduit {
    Plain(Socket),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Conduit {
    /// The source's end of an encrypted connection.
    pub(super) fn client(socket: Socket, seal: &Seal, theirs: Vec<u8>) -> io::Result<Self> {
        client(socket, Some(seal), theirs).map(|stream| Self::Client(Box::new(stream)))
    }

    /// The destination's end of an encrypted connection.
    pub(super) fn server(socket: Socket, seal: &Seal, theirs: Vec<u8>) -> io::Result<Self> {
        server(socket, seal, Some(theirs)).map(|stream| Self::Server(Box::new(stream)))
    }

    /// Writes all of it; `more` tells that something follows at once.
    pub(super) fn write(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        match self {
            Self::Plain(socket) if more => socket.write_more(bytes),
            Self::Plain(socket) => socket.write(bytes),
            Self::Client(stream) => stream.write_all(bytes),
            Self::Server(stream) => stream.write_all(bytes),
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Client(stream) => stream.read_exact(buffer),
            Self::Server(stream) => stream.read_exact(buffer),
        }
    }

    /// Sends a part of a file.
    pub(super) fn send(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        if let Self::Plain(socket) = self {
            return socket.file_write(file, offset..offset + length, progress);
        }
        let mut buffer = vec![0; PIECE];
        let mut moved = 0;
        while moved < length {
            let most = usize::try_from(length - moved).unwrap_or(PIECE).min(PIECE);
            let piece = &mut buffer[..most];
            file.read_exact_at(piece, offset + moved).map_err(|source| Broken {
                moved,
                side: Side::File,
                source,
            })?;
            self.write(piece, false).map_err(|source| Broken { moved, side: Side::Network, source })?;
            moved += most as u64;
            progress(most as u64);
        }
        Ok(())
    }

    /// Receives a part of a file.
    pub(super) fn receive(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        pipe: &mut Pipe,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        if let Self::Plain(socket) = self {
            return socket.file_read(file, offset, length, pipe, progress);
        }
        let mut buffer = vec![0; PIECE];
        let mut moved = 0;
        while moved < length {
            let most = usize::try_from(length - moved).unwrap_or(PIECE).min(PIECE);
            let piece = &mut buffer[..most];
            self.read(piece).map_err(|source| Broken { moved, side: Side::Network, source })?;
            file.write_all_at(piece, offset + moved).map_err(|source| Broken {
                moved,
                side: Side::File,
                source,
            })?;
            moved += most as u64;
            progress(most as u64);
        }
        Ok(())
    }

    /// Another handle on the TCP connection, to end it from outside.
    pub(super) fn handle(&self) -> io::Result<TcpStream> {
        match self {
            Self::Plain(socket) => socket.stream().try_clone(),
            Self::Client(stream) => stream.sock.try_clone(),
            Self::Server(stream) => stream.sock.try_clone(),
        }
    }

    /// Says that nothing more comes.
    pub(super) fn finish(mut self) {
        // Whoever reads notices the end either way.
        match &mut self {
            Self::Plain(_) => (),
            Self::Client(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
            Self::Server(stream) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
        if let Ok(stream) = self.handle() {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

/// The end that connects; it may show no certificate.
pub(super) fn client(
    socket: Socket,
    seal: Option<&Seal>,
    theirs: Vec<u8>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(theirs, provider)));
    let config = match seal {
        Some(seal) => config
            .with_client_auth_cert(vec![seal.certificate.clone()], seal.key.clone_key())
            .map_err(io::Error::other)?,
        None => config.with_no_client_auth(),
    };
    let name = ServerName::try_from("transfer.gridos").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, socket.into_stream()))
}

/// The end that accepts; it may ask for no certificate.
pub(super) fn server(
    socket: Socket,
    seal: &Seal,
    theirs: Option<Vec<u8>>,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    let config = match theirs {
        Some(theirs) => config.with_client_cert_verifier(Arc::new(Pinned::new(theirs, provider))),
        None => config.with_no_client_auth(),
    };
    let mut config = config
        .with_single_cert(vec![seal.certificate.clone()], seal.key.clone_key())
        .map_err(io::Error::other)?;
    // Nobody comes again. What a client that only writes left unread would reset the connection when it closes it.
    config.send_tls13_tickets = 0;
    let connection = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, socket.into_stream()))
}

/// Believes one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(certificate: Vec<u8>, provider: Arc<CryptoProvider>) -> Self {
        Self { certificate, provider }
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if shown.as_ref() == self.certificate {
            return Ok(());
        }
        Err(rustls::Error::General("the certificate is not the one of this transfer".into()))
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn no_tls12() -> rustls::Error {
        rustls::Error::General("only TLS 1.3 is spoken here".into())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
