//! Who the other side is: asked of the daemon, inside the handshake.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libgrid::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

/// Who the other side is, as its certificate proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A member of the VO.
    Node(NodeId),
    /// The bearer of the token with this public key. It may only join: open one stream, and no more.
    Bearer([u8; 32]),
}

/// Decides about certificates.
pub trait Trust: Send + Sync + 'static {
    /// Who showed this chain (the peer's own certificate first), or the reason to refuse it, for people.
    ///
    /// It is asked within the handshake, and again right after it; that the peer holds the certificate's key is
    /// checked by this crate.
    ///
    /// # Errors
    /// The reason to refuse it.
    fn peer(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Peer, String>;
}

/// What we show to others.
pub struct Identity {
    /// Our certificate, and those that others need to make sense of it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Whom a dialling side accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// This node alone.
    Node(NodeId),
    /// Any member that [`Trust`] accepts.
    Any,
}

/// The judge in a handshake; keeps the reason of a refusal, which TLS would reduce to a number.
pub(crate) struct Judge {
    trust: Arc<dyn Trust>,
    expect: Option<Expect>,
    algorithms: WebPkiSupportedAlgorithms,
    refusal: Mutex<Option<String>>,
}

impl Judge {
    /// Of those who dial us.
    pub(crate) fn of_clients(trust: Arc<dyn Trust>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { trust, expect: None, algorithms, refusal: Mutex::new(None) }
    }

    /// Of one whom we dial.
    pub(crate) fn of_server(
        trust: Arc<dyn Trust>,
        expect: Expect,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { trust, expect: Some(expect), algorithms, refusal: Mutex::new(None) }
    }

    /// Why the peer was refused, if it was.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let verdict = match (self.trust.peer(&chain, now), self.expect) {
            (Err(why), _) => Err(why),
            (Ok(_), None) | (Ok(Peer::Node(_)), Some(Expect::Any)) => Ok(()),
            (Ok(Peer::Node(found)), Some(Expect::Node(node))) if found == node => Ok(()),
            (Ok(Peer::Node(found)), Some(Expect::Node(node))) => {
                Err(format!("node {found} answers where node {node} was expected"))
            }
            (Ok(Peer::Bearer(_)), Some(_)) => Err("it shows a token instead of a certificate".to_owned()),
        };
        verdict.map_err(|why| {
            tracing::debug!(%why, "link.refused");
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("expect", &self.expect).finish_non_exhaustive()
    }
}

/// TLS 1.2 is not offered; where it is spoken all the same, nobody is let in.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
