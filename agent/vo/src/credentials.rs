//! What a node keeps to prove who it is.
//!
//! ```text
//! node-XXXXXXXX.key   the private key (0600), named by the first bytes of its public half
//! node.crt            the node's certificate, then the CA's
//! ```
//!
//! `node.crt` decides: its rename is the moment at which new credentials count, and the key it needs was
//! written before. A renewed certificate replaces that file alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use libgrid::ids::NodeId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::{Admission, Role, SKEW, public_key};
use crate::files::{self, FileError};
use crate::key::{KeyError, NodeKey, hex};
use crate::verify::{PeerId, VerifyError, read_id, verify_peer};

const CHAIN: &str = "node.crt";

/// A node's key, its certificate and the VO that it belongs to.
#[derive(Clone, Debug)]
pub struct Credentials {
    vo: String,
    key: NodeKey,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    id: PeerId,
}

/// Credentials could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The certificate is not good.
    #[error(transparent)]
    Refused(#[from] VerifyError),
    /// The certificate is for another key.
    #[error("the certificate of node {node} is for another key: join again with a new token")]
    OtherKey {
        /// Whose certificate it is.
        node: NodeId,
    },
    /// It is for another node than it was said to be.
    #[error(
        "the certificate names node {named}, the authority said node {said}: join again with a new token"
    )]
    OtherNode {
        /// In the certificate.
        named: NodeId,
        /// In the answer.
        said: NodeId,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged ({why}): join again with a new token")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key could not be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Credentials {
    /// Those of a node that was just admitted to `vo`. Joiners use [`Token::accept`](crate::Token::accept),
    /// which checks the CA as well.
    ///
    /// # Errors
    /// `Refused`, `OtherKey` or `OtherNode`, where the certificate is not this key's from this VO.
    pub fn new(
        vo: &str,
        key: NodeKey,
        admission: &Admission,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let certificate = CertificateDer::from(admission.cert_der.clone());
        let ca = CertificateDer::from(admission.ca_der.clone());
        let id = verify_peer(&ca, vo, std::slice::from_ref(&certificate), now, &|_| false)?;
        if id.node != admission.node {
            return Err(CredentialsError::OtherNode { named: id.node, said: admission.node });
        }
        if public_key(&certificate) != Some(key.public_key()) {
            return Err(CredentialsError::OtherKey { node: id.node });
        }
        Ok(Self { vo: vo.to_owned(), key, certificate, ca, id })
    }

    /// The same node with the certificate that [`Authority::renew`](crate::Authority::renew) gave.
    ///
    /// # Errors
    /// As [`Credentials::new`]; also where the certificate is from another CA or for another node.
    pub fn renewed(&self, admission: &Admission, now: SystemTime) -> Result<Self, CredentialsError> {
        if admission.ca_der != self.ca.as_ref() {
            return Err(VerifyError::OtherAuthority { vo: self.vo.clone() }.into());
        }
        if admission.node != self.id.node {
            return Err(CredentialsError::OtherNode { named: admission.node, said: self.id.node });
        }
        Self::new(&self.vo, self.key.clone(), admission, now)
    }

    /// Keeps them in `dir`; a crash leaves the old ones or these.
    ///
    /// # Errors
    /// [`CredentialsError::File`].
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        files::make_dir(dir)?;
        let key_file = key_file(&self.key.public_key());
        if NodeKey::load(dir, &key_file).ok().flatten().is_none() {
            self.key.save(dir, &key_file)?;
        }
        let chain = files::pem("CERTIFICATE", &self.certificate) + &files::pem("CERTIFICATE", &self.ca);
        files::replace(dir, CHAIN, files::PUBLIC, chain.as_bytes())?;
        NodeKey::forget_joining(dir)?;
        remove_other_keys(dir, &key_file)
    }

    /// The credentials in `dir`, if there are any. Expired ones load, too: ask [`Credentials::expired`].
    ///
    /// # Errors
    /// `Damaged`, `Refused`, `Key` or `File`.
    pub fn load(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let Some(pem) = files::read(dir, CHAIN)? else { return Ok(None) };
        let damaged = |name: &str, why: &str| CredentialsError::Damaged {
            path: dir.join(name).display().to_string(),
            why: why.to_owned(),
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|error| damaged(CHAIN, &error.to_string()))?;
        let [certificate, ca] =
            <[_; 2]>::try_from(chain).map_err(|_| damaged(CHAIN, "not two certificates"))?;
        let public = public_key(&certificate).ok_or_else(|| damaged(CHAIN, "no Ed25519 key in it"))?;
        let key_file = key_file(&public);
        let key = NodeKey::load(dir, &key_file)?.ok_or_else(|| damaged(&key_file, "it is missing"))?;
        if key.public_key() != public {
            return Err(damaged(&key_file, "it is another key"));
        }
        let vo = vo_of(&ca).ok_or_else(|| damaged(CHAIN, "the CA has no name"))?;
        let id = read_id(&vo, &certificate)?;
        // Whether it is the CA's is checked at a time at which it was valid.
        verify_peer(&ca, &vo, std::slice::from_ref(&certificate), id.not_after, &|_| false)?;
        Ok(Some(Self { vo, key, certificate, ca, id }))
    }

    /// The VO's name.
    pub fn vo(&self) -> &str {
        &self.vo
    }

    /// The node's number.
    pub fn node(&self) -> NodeId {
        self.id.node
    }

    /// What the certificate says about the node.
    pub fn id(&self) -> &PeerId {
        &self.id
    }

    /// Whether the node has this role.
    pub fn has(&self, role: Role) -> bool {
        self.id.roles.contains(&role)
    }

    /// The key's public half, to be renewed.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.public_key()
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// What to show in a handshake: the certificate and the CA's, by which joiners know the VO.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    /// The private key, for the handshake.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.private_key()
    }

    /// When to ask for a new certificate: half of its lifetime after it was issued.
    pub fn renewal(&self) -> SystemTime {
        let issued = self.id.not_before.checked_add(SKEW).unwrap_or(self.id.not_before);
        let lifetime: Duration = self.id.not_after.duration_since(issued).unwrap_or_default();
        issued.checked_add(lifetime / 2).unwrap_or(issued)
    }

    /// Whether it is time to ask for a new certificate.
    pub fn needs_renewal(&self, now: SystemTime) -> bool {
        now >= self.renewal()
    }

    /// Whether the others refuse the certificate by now.
    pub fn expired(&self, now: SystemTime) -> bool {
        now > self.id.not_after
    }
}

fn key_file(public: &[u8; 32]) -> String {
    format!("node-{}.key", hex(&public[..8]))
}

/// The CA's CN is the VO's name.
fn vo_of(ca: &CertificateDer<'_>) -> Option<String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(ca).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

/// Keys of former memberships are of no use once the new certificate stands.
fn remove_other_keys(dir: &Path, keep: &str) -> Result<(), CredentialsError> {
    let entries = fs::read_dir(dir).map_err(|source| FileError::new("list the folder", dir, source))?;
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if name.starts_with("node-") && name.ends_with(".key") && name != keep {
            files::remove(dir, &name)?;
        }
    }
    Ok(())
}
