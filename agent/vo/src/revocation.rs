//! The list of nodes that the VO evicted, signed by its CA, so that any node may pass it on.
//!
//! A list replaces every list with a lower version. What is signed:
//!
//! ```text
//! "gridos revocation list 1\0" ‖ length of the VO's name (u8) ‖ name ‖ version (u64) ‖ count (u32) ‖ numbers (u32 each)
//! ```
//!
//! with integers little endian and the numbers ascending.

use std::collections::BTreeSet;
use std::path::Path;

use libgrid::ids::NodeId;
use rcgen::SigningKey;
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::certificate::public_key;
use crate::files::{self, FileError};
use crate::key::NodeKey;

const CONTEXT: &[u8] = b"gridos revocation list 1\0";
const FILE: &str = "revoked.json";

/// The nodes that were evicted. Believe it only after [`RevocationList::verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    vo: String,
    version: u64,
    nodes: BTreeSet<NodeId>,
    signature: Vec<u8>,
}

/// A revocation list was refused.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// It is another VO's.
    #[error("the revocation list is of VO {theirs}, this is VO {ours}: it was not used")]
    OtherVo {
        /// Our VO.
        ours: String,
        /// The list's VO.
        theirs: String,
    },
    /// The CA did not sign it.
    #[error("the revocation list was not signed by the authority of VO {vo}: it was not used")]
    Signature {
        /// Our VO.
        vo: String,
    },
    /// The file holds no list.
    #[error("{path} holds no revocation list ({why}): remove it, the authority sends the list again")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl RevocationList {
    pub(crate) fn sign(
        key: &NodeKey,
        vo: &str,
        version: u64,
        nodes: BTreeSet<NodeId>,
    ) -> Result<Self, rcgen::Error> {
        let mut list = Self { vo: vo.to_owned(), version, nodes, signature: Vec::new() };
        list.signature = key.pair().sign(&list.covered())?;
        Ok(list)
    }

    /// The VO whose list it is.
    pub fn vo(&self) -> &str {
        &self.vo
    }

    /// Rises with each revocation.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the node was evicted.
    pub fn contains(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }

    /// The evicted nodes, ascending.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().copied()
    }

    /// Whether the CA of this VO signed the list.
    ///
    /// # Errors
    /// [`RevocationError::OtherVo`] or [`RevocationError::Signature`].
    pub fn verify(&self, ca: &CertificateDer<'_>, vo: &str) -> Result<(), RevocationError> {
        if self.vo != vo {
            let theirs = self.vo.chars().take(64).collect();
            return Err(RevocationError::OtherVo { ours: vo.to_owned(), theirs });
        }
        let refused = || RevocationError::Signature { vo: vo.to_owned() };
        let key = public_key(ca).ok_or_else(refused)?;
        UnparsedPublicKey::new(&ED25519, key).verify(&self.covered(), &self.signature).map_err(|_| refused())
    }

    /// Keeps the list in `dir`, so that a restarted node still refuses whom it refused before.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn save(&self, dir: &Path) -> Result<(), RevocationError> {
        let bytes = serde_json::to_vec(self).map_err(|error| malformed(dir, &error))?;
        Ok(files::replace(dir, FILE, files::PUBLIC, &bytes)?)
    }

    /// The list that was kept in `dir`, if any, verified again.
    ///
    /// # Errors
    /// Any [`RevocationError`].
    pub fn load(dir: &Path, ca: &CertificateDer<'_>, vo: &str) -> Result<Option<Self>, RevocationError> {
        let Some(bytes) = files::read(dir, FILE)? else { return Ok(None) };
        let list: Self = serde_json::from_slice(&bytes).map_err(|error| malformed(dir, &error))?;
        list.verify(ca, vo)?;
        Ok(Some(list))
    }

    fn covered(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        // Names are at most 63 bytes; a longer one in a forged list makes a signature that fits nothing.
        bytes.push(self.vo.len() as u8);
        bytes.extend_from_slice(self.vo.as_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&(self.nodes.len() as u32).to_le_bytes());
        for node in &self.nodes {
            bytes.extend_from_slice(&node.0.to_le_bytes());
        }
        bytes
    }
}

fn malformed(dir: &Path, error: &serde_json::Error) -> RevocationError {
    RevocationError::Malformed { path: dir.join(FILE).display().to_string(), why: error.to_string() }
}
