//! The authority's state document: whom it admitted, which tokens it minted, whom it revoked.
//!
//! One JSON file, replaced as a whole before any answer is given. Every change is made on a copy that takes
//! the place of the records in memory only once it is on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libgrid::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::certificate::Role;
use crate::files::{self, FileError};

/// The file's name.
pub(crate) const FILE: &str = "state.json";

/// How long a token is remembered after it expired or was used, so that its refusal can say why.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

const FORMAT: &str = "gridos authority 1";

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Records {
    format: String,
    /// The VO's name.
    pub(crate) vo: String,
    /// The number that the next node gets.
    pub(crate) next_node: u32,
    /// The version of the revocation list.
    pub(crate) revocations: u64,
    /// Every node that was ever admitted.
    pub(crate) nodes: BTreeMap<u32, Admitted>,
    /// By the public key in base64url.
    tokens: BTreeMap<String, Minted>,
}

/// One admitted node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admitted {
    pub(crate) name: String,
    pub(crate) roles: Vec<Role>,
    /// Seconds since 1970.
    pub(crate) since: u64,
    pub(crate) revoked: bool,
}

/// One token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Minted {
    /// Seconds since 1970.
    pub(crate) expires: u64,
    pub(crate) used: Option<Used>,
}

/// Who used a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Used {
    pub(crate) node: u32,
    /// The node's public key in base64url.
    pub(crate) key: String,
    /// Seconds since 1970.
    pub(crate) at: u64,
}

/// The document could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0}")]
    Malformed(String),
}

impl Records {
    pub(crate) fn new(vo: &str) -> Self {
        Self {
            format: FORMAT.to_owned(),
            vo: vo.to_owned(),
            next_node: 1,
            revocations: 0,
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, ReadError> {
        let Some(bytes) = files::read(dir, FILE)? else { return Ok(None) };
        let records: Self =
            serde_json::from_slice(&bytes).map_err(|error| ReadError::Malformed(error.to_string()))?;
        if records.format != FORMAT {
            return Err(ReadError::Malformed(format!("its format is {:?}, not {FORMAT:?}", records.format)));
        }
        Ok(Some(records))
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<(), FileError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::new("write", &dir.join(FILE), error.into()))?;
        bytes.push(b'\n');
        files::replace(dir, FILE, files::SECRET, &bytes)
    }

    /// Takes the next number.
    pub(crate) fn admit(&mut self, name: &str, roles: &[Role], now: u64) -> Option<NodeId> {
        let node = self.next_node;
        self.next_node = node.checked_add(1)?;
        let admitted = Admitted { name: name.to_owned(), roles: roles.to_vec(), since: now, revoked: false };
        self.nodes.insert(node, admitted);
        Some(NodeId(node))
    }

    pub(crate) fn token(&self, key: &[u8; 32]) -> Option<&Minted> {
        self.tokens.get(&text(key))
    }

    pub(crate) fn add_token(&mut self, key: &[u8; 32], expires: u64) {
        self.tokens.insert(text(key), Minted { expires, used: None });
    }

    pub(crate) fn use_token(&mut self, key: &[u8; 32], used: Used) {
        if let Some(token) = self.tokens.get_mut(&text(key)) {
            token.used = Some(used);
        }
    }

    /// Forgets tokens that ended long ago.
    pub(crate) fn forget_old_tokens(&mut self, now: u64) {
        self.tokens.retain(|_, token| {
            let ended = token.used.as_ref().map_or(token.expires, |used| used.at.max(token.expires));
            ended.saturating_add(REMEMBERED.as_secs()) > now
        });
    }

    /// Tokens that can still be used.
    pub(crate) fn outstanding(&self, now: u64) -> usize {
        self.tokens.values().filter(|token| token.used.is_none() && token.expires > now).count()
    }
}

/// A key as the records hold it.
pub(crate) fn text(key: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(key)
}
