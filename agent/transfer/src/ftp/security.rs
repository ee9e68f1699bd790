//! The server's certificate and key, and what TLS and GSI are set up with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::ftp::config::Identity;
use crate::ftp::gridmap::{Gridmap, MAX_FILE};
use crate::ftp::gsi::{Delegated, Handshake};
use crate::ftp::identity::{Trust, Verifier};
use crate::ftp::server::ServeError;

/// All that TLS and GSI need.
#[derive(Debug)]
pub(crate) struct Security {
    /// AUTH TLS: a client may show a certificate.
    pub(crate) tls: Arc<ServerConfig>,
    /// Data connections of it. They share the memory of sessions with `tls`, so that a client can resume there what it
    /// began on the control connection, but give no tickets: a client that only sends closes its end with the tickets
    /// unread, and TCP then throws away what it sent last.
    pub(crate) data: Arc<ServerConfig>,
    pub(crate) trust: Arc<Trust>,
    key: Arc<CertifiedKey>,
    accepts: Arc<ServerConfig>,
}

/// One key for all, which rustls does not look into: it may be a proxy's.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Only {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Security {
    /// Reads the files.
    pub(crate) fn load(identity: &Identity) -> Result<Security, ServeError> {
        let wrong = |path: &Path, why: &dyn std::fmt::Display| ServeError::Certificate {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, ServeError> {
            let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, &error))?;
            let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| wrong(path, &error))?;
            if all.is_empty() { Err(wrong(path, &"there is no certificate in it")) } else { Ok(all) }
        };
        let chain = certificates(&identity.cert)?;
        let key =
            PrivateKeyDer::from_pem_file(&identity.key).map_err(|error| wrong(&identity.key, &error))?;
        let key = any_supported_type(&key).map_err(|error| wrong(&identity.key, &error))?;
        let certified = CertifiedKey::new(chain, key);
        if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) =
            certified.keys_match()
        {
            return Err(wrong(&identity.key, &"it is not the key of the certificate"));
        }
        let gridmap = match &identity.gridmap {
            Some(path) => {
                let length = std::fs::metadata(path).map_err(|error| wrong(path, &error))?.len();
                if length > MAX_FILE {
                    return Err(wrong(path, &"it is longer than a grid map can be"));
                }
                let text = std::fs::read_to_string(path).map_err(|error| wrong(path, &error))?;
                Some(Gridmap::parse(&text).map_err(|why| wrong(path, &why))?)
            }
            None => None,
        };
        let anchors = certificates(&identity.ca)?;
        for anchor in &anchors {
            webpki::anchor_from_trusted_cert(anchor).map_err(|error| wrong(&identity.ca, &error))?;
        }
        let trust = Arc::new(Trust { anchors, gridmap, vo: identity.vo.clone() });
        let key = Arc::new(certified);
        let tls = accepting(&trust, &key, false, &[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let accepts = accepting(&trust, &key, true, &[&rustls::version::TLS12])?;
        let mut data = ServerConfig::clone(&tls);
        data.send_tls13_tickets = 0;
        Ok(Security { tls, data: Arc::new(data), trust, key, accepts })
    }

    /// The acceptor's side of a GSI context, for the control connection.
    pub(crate) fn accept_gsi(&self) -> Result<Handshake, rustls::Error> {
        Handshake::new(self.accepts.clone())
    }

    /// For data connections of GSI that come to us. With what the user delegated, we are the user.
    pub(crate) fn accepting(
        &self,
        delegated: Option<&Delegated>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        match delegated {
            None => Ok(self.accepts.clone()),
            Some(delegated) => accepting_as(&self.trust, &delegated.key, true, &[&rustls::version::TLS12]),
        }
    }

    /// For data connections of GSI that we open.
    pub(crate) fn opening(&self, delegated: Option<&Delegated>) -> Result<Arc<ClientConfig>, rustls::Error> {
        let key = delegated.map_or(&self.key, |delegated| &delegated.key);
        let verifier = Arc::new(Verifier { trust: self.trust.clone(), mandatory: true, hints: Vec::new() });
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Only(key.clone())));
        Ok(Arc::new(config))
    }
}

type Versions<'a> = &'a [&'static rustls::SupportedProtocolVersion];

fn accepting(
    trust: &Arc<Trust>,
    key: &Arc<CertifiedKey>,
    mandatory: bool,
    versions: Versions<'_>,
) -> Result<Arc<ServerConfig>, ServeError> {
    accepting_as(trust, key, mandatory, versions)
        .map_err(|error| ServeError::Io(std::io::Error::other(error)))
}

fn accepting_as(
    trust: &Arc<Trust>,
    key: &Arc<CertifiedKey>,
    mandatory: bool,
    versions: Versions<'_>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = Arc::new(Verifier {
        trust: trust.clone(),
        mandatory,
        hints: if mandatory { Vec::new() } else { trust.names() },
    });
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Only(key.clone())));
    Ok(Arc::new(config))
}
