//! TLS for both sorts of connections (RFC 4217).
//!
//! Servers want data connections to resume the session of the control connection, as a proof that both come from the
//! same client (vsftpd's `require_ssl_reuse`). With TLS 1.3 a ticket serves once, and the server sends a new one over
//! each connection: it is only had if the client reads, so [`finish`] does after sending, too.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};

use super::{FtpError, Tls, Trust};

/// Where distributions keep the authorities' certificates.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How long the other side's good-bye is waited for.
const GOOD_BYE: Duration = Duration::from_secs(5);

/// A connection under TLS.
pub(super) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// How to make connections under TLS to one server: the same value for all, so that sessions are resumed.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    pub(super) fn new(host: &str, server: &str, tls: &Tls) -> Result<Self, FtpError> {
        let fail = |why: String| FtpError::Tls { server: server.to_owned(), why };
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])
            .map_err(|error| fail(error.to_string()))?;
        let builder = match &tls.trust {
            Trust::Anybody => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
            }
            Trust::Ca(path) => builder.with_root_certificates(roots(path).map_err(fail)?),
            Trust::System => {
                let bundle = BUNDLES.iter().map(Path::new).find(|path| path.exists());
                let bundle = bundle.ok_or_else(|| {
                    fail(
                        "this system has no list of authorities: install ca-certificates, or name a CA file"
                            .into(),
                    )
                })?;
                builder.with_root_certificates(roots(bundle).map_err(fail)?)
            }
        };
        let config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let read = |path: &Path| format!("{} cannot be used: ", path.display());
                let chain = certificates(chain).map_err(fail)?;
                let key_der = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| fail(format!("{}{error}", read(key))))?;
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(|error| fail(format!("{}{error}", read(key))))?
            }
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| fail(format!("{host:?} is no name that a certificate could have")))?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// Shakes hands, which may take so long as a whole.
    pub(super) fn connect(&self, mut stream: TcpStream, limit: Duration) -> io::Result<TlsStream> {
        let deadline = Instant::now() + limit;
        let usual = stream.read_timeout()?;
        let mut connection =
            ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        loop {
            while connection.wants_write() {
                connection.write_tls(&mut stream)?;
            }
            if !connection.is_handshaking() {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Zero stands for ever.
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            if connection.read_tls(&mut stream)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it closed in the middle of the handshake",
                ));
            }
            if let Err(error) = connection.process_new_packets() {
                // It should hear why.
                let _ = connection.write_tls(&mut stream);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        stream.set_read_timeout(usual)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(list) if list.is_empty() => Err(format!("{} holds no certificate", path.display())),
        Ok(list) => Ok(list),
        Err(error) => Err(format!("{} cannot be used: {error}", path.display())),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(format!("{} holds no certificate of an authority", path.display()));
    }
    Ok(store)
}

/// Says good-bye, so that the other side can tell the end of the data from a cut.
pub(super) fn finish(stream: &mut TlsStream) -> io::Result<()> {
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(std::net::Shutdown::Write)?;
    // The other side's good-bye, and tickets before it. Not all say it: their reply to the command counts.
    stream.sock.set_read_timeout(Some(GOOD_BYE))?;
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest), Ok(more) if more > 0) {}
    Ok(())
}

/// Believes every certificate; asked for by [`Trust::Anybody`].
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
