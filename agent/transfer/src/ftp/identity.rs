//! Who a chain of certificates is, and whether the CA vouches for it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::ftp::gridmap::Gridmap;
use crate::ftp::proxy;
use crate::ftp::signature;

/// Whom to believe.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) anchors: Vec<CertificateDer<'static>>,
    pub(crate) gridmap: Option<Gridmap>,
    pub(crate) vo: Option<String>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// The user of the VO or of the grid map.
    pub(crate) name: String,
    /// The subject of the user's own certificate, as Globus writes it.
    pub(crate) subject: String,
    /// The certificate that was shown, DER: it is the same on data connections.
    pub(crate) leaf: Vec<u8>,
}

/// The certificate is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhoError {
    #[error("no certificate was shown")]
    None,
    #[error("the certificate is not accepted: {why}")]
    Refused { why: String },
    #[error("{subject} is not a user here: ask the server's administrator for a line in the grid map")]
    Unknown { subject: String },
}

fn refused(why: impl std::fmt::Display) -> WhoError {
    WhoError::Refused { why: why.to_string() }
}

impl Trust {
    /// The names of the CAs.
    pub(crate) fn names(&self) -> Vec<DistinguishedName> {
        let subject = |ca: &CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(ca).ok()?;
            Some(DistinguishedName::from(parsed.subject().as_raw().to_vec()))
        };
        self.anchors.iter().filter_map(subject).collect()
    }

    /// The subject of the user's own certificate, behind all proxies, if the CA vouches for it now.
    pub(crate) fn subject(&self, chain: &[CertificateDer<'_>], client: bool) -> Result<String, WhoError> {
        let user = self.verified(chain, client)?;
        let (_, parsed) = X509Certificate::from_der(user).map_err(refused)?;
        Ok(written(parsed.subject()))
    }

    fn verified<'a>(
        &self,
        chain: &'a [CertificateDer<'a>],
        client: bool,
    ) -> Result<&'a CertificateDer<'a>, WhoError> {
        if chain.is_empty() {
            return Err(WhoError::None);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let proxies = proxy::check(chain, seconds).map_err(refused)?;
        let (user, between) = chain[proxies..].split_first().ok_or(WhoError::None)?;
        let anchors: Vec<_> = self
            .anchors
            .iter()
            .map(|ca| anchor_from_trusted_cert(ca).map_err(refused))
            .collect::<Result<_, _>>()?;
        let usage = if client { KeyUsage::client_auth() } else { KeyUsage::server_auth() };
        EndEntityCert::try_from(user)
            .map_err(refused)?
            .verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                between,
                UnixTime::since_unix_epoch(since),
                usage,
                None,
                None,
            )
            .map_err(|error| match error {
                webpki::Error::UnknownIssuer => refused("another CA issued it"),
                webpki::Error::CertExpired { .. } => refused("it has expired"),
                other => refused(other),
            })?;
        Ok(user)
    }

    /// Who showed this chain.
    pub(crate) fn person(&self, chain: &[CertificateDer<'_>]) -> Result<Person, WhoError> {
        let user = self.verified(chain, true)?;
        let (_, parsed) = X509Certificate::from_der(user).map_err(refused)?;
        let subject = written(parsed.subject());
        let leaf = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let name = match proxy::uri(&parsed).filter(|uri| uri.starts_with("spiffe://")) {
            Some(uri) => self.member(&uri)?,
            None => self
                .gridmap
                .as_ref()
                .and_then(|map| map.user(&subject))
                .ok_or_else(|| WhoError::Unknown { subject: subject.clone() })?
                .to_owned(),
        };
        Ok(Person { name, subject, leaf })
    }

    /// `spiffe://VO/user/NAME` or `spiffe://VO/node/NUMBER`.
    fn member(&self, uri: &str) -> Result<String, WhoError> {
        let rest = uri.strip_prefix("spiffe://").unwrap_or_default();
        let (vo, path) = rest.split_once('/').ok_or_else(|| refused("its name is not one of a VO"))?;
        if self.vo.as_deref().is_some_and(|ours| ours != vo) {
            return Err(refused(format!("it is for VO {vo}, and this server is another's")));
        }
        let plain = |name: &&str| !name.is_empty() && name.len() <= 64 && !name.contains('/');
        if let Some(name) = path.strip_prefix("user/").filter(plain) {
            return Ok(name.to_owned());
        }
        let number = path.strip_prefix("node/").and_then(|number| number.parse::<u32>().ok());
        number.map(|number| format!("node {number}")).ok_or_else(|| refused("its name is not one of a VO"))
    }
}

/// A name as Globus writes it: `/O=Grid/CN=Alice`.
fn written(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for attribute in name.iter_attributes() {
        let kind = match attribute.attr_type().to_id_string().as_str() {
            "2.5.4.3" => "CN".to_owned(),
            "2.5.4.6" => "C".to_owned(),
            "2.5.4.7" => "L".to_owned(),
            "2.5.4.8" => "ST".to_owned(),
            "2.5.4.10" => "O".to_owned(),
            "2.5.4.11" => "OU".to_owned(),
            "0.9.2342.19200300.100.1.25" => "DC".to_owned(),
            "0.9.2342.19200300.100.1.1" => "UID".to_owned(),
            "1.2.840.113549.1.9.1" => "emailAddress".to_owned(),
            other => other.to_owned(),
        };
        text.push_str(&format!("/{kind}={}", attribute.as_str().unwrap_or("?")));
    }
    text
}

/// Lets rustls ask [`Trust`].
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) trust: std::sync::Arc<Trust>,
    pub(crate) mandatory: bool,
    /// The CAs whose certificates are wanted: some clients show none without being told. With proxies they would mislead,
    /// as those are issued by users.
    pub(crate) hints: Vec<DistinguishedName>,
}

fn chain<'a>(first: &'a CertificateDer<'a>, others: &'a [CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(first).chain(others).map(|one| CertificateDer::from(one.as_ref())).collect()
}

fn application(error: &WhoError) -> Error {
    tracing::info!(%error, "a certificate was refused");
    match error {
        WhoError::Refused { why } if why.contains("expired") => {
            Error::InvalidCertificate(CertificateError::Expired)
        }
        _ => Error::InvalidCertificate(CertificateError::UnknownIssuer),
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.subject(&chain(end_entity, intermediates), true).map_err(|error| application(&error))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::handshake(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::schemes()
    }
}

/// For data connections of GSI that we open: the other side is a user or a server of the same CA, whose name is
/// checked after the handshake.
impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        // A proxy of a user is no server's certificate: either use will do.
        self.trust
            .subject(&chain, true)
            .or_else(|_| self.trust.subject(&chain, false))
            .map_err(|error| application(&error))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::handshake(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature::schemes()
    }
}
