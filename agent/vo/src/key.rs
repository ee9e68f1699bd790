//! Ed25519 key pairs: a node's, the authority's, and those that tokens carry.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ED25519};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::files::{self, FileError};

/// The file that holds the key of a join that has not ended yet.
const JOINING: &str = "joining.key";

/// PKCS #8 around a bare Ed25519 seed (RFC 8410, section 7).
const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// An Ed25519 key pair. Its debug output shows the public half alone.
#[derive(Clone)]
pub struct NodeKey {
    pair: Arc<KeyPair>,
    public: [u8; 32],
}

/// A key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("cannot make a key: {0}")]
    Generate(String),
    /// The file or the bytes hold no Ed25519 key.
    #[error("{what} holds no Ed25519 private key: restore it from a backup, or join the VO again")]
    Malformed {
        /// Which file or bytes.
        what: String,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl NodeKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Generate`] where there is none.
    pub fn generate() -> Result<Self, KeyError> {
        let pair =
            KeyPair::generate_for(&PKCS_ED25519).map_err(|error| KeyError::Generate(error.to_string()))?;
        Self::of(pair, "the new key")
    }

    /// The key to join with: kept in `dir` until [`Credentials::save`](crate::Credentials::save), so that a
    /// joiner that crashed asks again with the same key and its token is not lost.
    ///
    /// # Errors
    /// Any [`KeyError`].
    pub fn for_joining(dir: &Path) -> Result<Self, KeyError> {
        files::make_dir(dir)?;
        if let Some(key) = Self::load(dir, JOINING)? {
            return Ok(key);
        }
        let key = Self::generate()?;
        key.save(dir, JOINING)?;
        Ok(key)
    }

    /// The joining has ended.
    pub(crate) fn forget_joining(dir: &Path) -> Result<(), FileError> {
        files::remove(dir, JOINING)
    }

    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// The private half as rustls takes it (PKCS #8).
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialized_der().to_vec()))
    }

    /// The private half as a PEM file that every program takes: PKCS #8 of version 1 (RFC 5958). Version 2, with the
    /// public half in it, is what OpenSSL before 3.2 refuses.
    pub fn pem(&self) -> String {
        let der = self.pair.serialized_der();
        // Both versions have the seed at the same place, after a head of the same length.
        let seed = der.get(PKCS8_HEAD.len()..PKCS8_HEAD.len() + 32).unwrap_or_default();
        files::pem("PRIVATE KEY", &[&PKCS8_HEAD[..], seed].concat())
    }

    /// The key pair of a token.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let mut pkcs8 = PKCS8_HEAD.to_vec();
        pkcs8.extend_from_slice(seed);
        Self::from_pkcs8(&pkcs8, "the token")
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn save(&self, dir: &Path, name: &str) -> Result<(), FileError> {
        let text = files::pem("PRIVATE KEY", self.pair.serialized_der());
        files::replace(dir, name, files::SECRET, text.as_bytes())
    }

    pub(crate) fn load(dir: &Path, name: &str) -> Result<Option<Self>, KeyError> {
        let Some(text) = files::read(dir, name)? else { return Ok(None) };
        let what = dir.join(name).display().to_string();
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| KeyError::Malformed { what: what.clone() })?;
        Self::from_pkcs8(key.secret_pkcs8_der(), &what).map(Some)
    }

    fn from_pkcs8(der: &[u8], what: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from(der);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
            .map_err(|_| KeyError::Malformed { what: what.to_owned() })?;
        Self::of(pair, what)
    }

    fn of(pair: KeyPair, what: &str) -> Result<Self, KeyError> {
        let public =
            pair.public_key_raw().try_into().map_err(|_| KeyError::Malformed { what: what.to_owned() })?;
        Ok(Self { pair: Arc::new(pair), public })
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(public {})", hex(&self.public[..8]))
    }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_joining_key_survives_a_restart_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = NodeKey::for_joining(dir.path()).unwrap();
        assert_eq!(NodeKey::for_joining(dir.path()).unwrap().public_key(), key.public_key());
        let mode = std::fs::metadata(dir.path().join(JOINING)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_seed_makes_the_key_of_rfc_8032() {
        // RFC 8032, section 7.1, test 1.
        let seed = *b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60";
        let key = NodeKey::from_seed(&seed).unwrap();
        assert_eq!(
            hex(&key.public_key()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let key = NodeKey::from_seed(&[7; 32]).unwrap();
        let shown = format!("{key:?}");
        assert!(!shown.contains("0707") && !shown.contains("7, 7"), "{shown}");
    }
}
