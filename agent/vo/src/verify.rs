//! Who a certificate says its holder is, once the VO's CA vouches for it.

use std::time::SystemTime;

use libgrid::ids::NodeId;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::certificate::Role;
use crate::time::{at, when};

/// A member of the VO, as its certificate proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    /// The number in the VO.
    pub node: NodeId,
    /// The node's name, for people.
    pub name: String,
    /// What it may do. Roles that this release does not know are left out.
    pub roles: Vec<Role>,
    /// When the certificate began to be valid.
    pub not_before: SystemTime,
    /// When the certificate expires.
    pub not_after: SystemTime,
}

/// A certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// None was shown.
    #[error("no certificate was shown: only members of VO {vo} are let in")]
    NoCertificate {
        /// Our VO.
        vo: String,
    },
    /// It is not a certificate that GridOS issues.
    #[error("the certificate cannot be understood ({why}): it was not issued by GridOS")]
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// Another CA issued it.
    #[error(
        "the certificate was not issued by the authority of VO {vo}: join this VO with one of its tokens"
    )]
    OtherAuthority {
        /// Our VO.
        vo: String,
    },
    /// It is over.
    #[error(
        "the certificate expired on {}: the node was cut off from the authority for too long, or its clock is \
         wrong; join again with a new token", when(*.at)
    )]
    Expired {
        /// When, in seconds since 1970.
        at: u64,
    },
    /// Its time has not come.
    #[error("the certificate is valid only from {}: the clock of one of the two nodes is wrong, set it", when(*.from))]
    NotYetValid {
        /// From when, in seconds since 1970.
        from: u64,
    },
    /// The VO evicted the node.
    #[error("node {node} was revoked: it may join again only with a new token")]
    Revoked {
        /// Its number.
        node: NodeId,
    },
    /// Our CA issued it, but the name in it is another VO's.
    #[error("the certificate is for VO {theirs}, this is VO {ours}: use a node of the same VO")]
    OtherVo {
        /// Our VO.
        ours: String,
        /// The name in the certificate.
        theirs: String,
    },
    /// The name in it is not one that GridOS gives.
    #[error("the certificate names no node ({why}): join again with a new token")]
    BadId {
        /// What is wrong with the name.
        why: String,
    },
    /// The server is not the token's VO.
    #[error(
        "the machine at this address is not in VO {vo}, which the token is for: ask for a new token, made \
         on the VO's founding node"
    )]
    OtherFingerprint {
        /// The token's VO.
        vo: String,
    },
}

/// Who showed this chain (the node's own certificate first), if `ca` vouches for it and `revoked` does not
/// name it.
///
/// The chain's other certificates are not used: the VO's CA signs every node's certificate itself.
///
/// # Errors
/// Any [`VerifyError`] but `OtherFingerprint`.
pub fn verify_peer(
    ca: &CertificateDer<'_>,
    vo: &str,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
    revoked: &dyn Fn(NodeId) -> bool,
) -> Result<PeerId, VerifyError> {
    let leaf = chain.first().ok_or_else(|| VerifyError::NoCertificate { vo: vo.to_owned() })?;
    check_chain(ca, vo, leaf, now)?;
    let peer = read_id(vo, leaf)?;
    if revoked(peer.node) {
        return Err(VerifyError::Revoked { node: peer.node });
    }
    Ok(peer)
}

fn check_chain(
    ca: &CertificateDer<'_>,
    vo: &str,
    leaf: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let refused = |error: webpki::Error| match error {
        webpki::Error::CertExpired { not_after, .. } => VerifyError::Expired { at: not_after.as_secs() },
        webpki::Error::CertNotValidYet { not_before, .. } => {
            VerifyError::NotYetValid { from: not_before.as_secs() }
        }
        webpki::Error::UnknownIssuer
        | webpki::Error::InvalidSignatureForPublicKey
        | webpki::Error::CaUsedAsEndEntity => VerifyError::OtherAuthority { vo: vo.to_owned() },
        other => VerifyError::Malformed { why: other.to_string() },
    };
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let anchors = [anchor_from_trusted_cert(ca).map_err(refused)?];
    let leaf = EndEntityCert::try_from(leaf).map_err(refused)?;
    leaf.verify_for_usage(
        &[webpki::ring::ED25519],
        &anchors,
        &[],
        UnixTime::since_unix_epoch(since),
        KeyUsage::client_auth(),
        None,
        None,
    )
    .map_err(refused)?;
    Ok(())
}

/// Reads the names in a certificate that is already known to be the CA's.
pub(crate) fn read_id(vo: &str, leaf: &CertificateDer<'_>) -> Result<PeerId, VerifyError> {
    let malformed = |error: &dyn std::fmt::Display| VerifyError::Malformed { why: error.to_string() };
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"bytes after its end"));
    }
    let names = parsed.subject_alternative_name().map_err(|error| malformed(&error))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let [GeneralName::URI(id)] = names else {
        return Err(VerifyError::BadId { why: format!("{} names instead of one URI", names.len()) });
    };
    let subject = parsed.subject();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let roles = subject
        .iter_organizational_unit()
        .filter_map(|unit| unit.as_str().ok())
        .flat_map(|unit| unit.split(','))
        .filter_map(|role| role.parse().ok())
        .collect();
    let validity = parsed.validity();
    Ok(PeerId {
        node: node_of(vo, id)?,
        name: name.to_owned(),
        roles,
        not_before: at(validity.not_before.timestamp().try_into().unwrap_or(0)),
        not_after: at(validity.not_after.timestamp().try_into().unwrap_or(0)),
    })
}

/// The number in `spiffe://VO/node/NUMBER`.
fn node_of(vo: &str, id: &str) -> Result<NodeId, VerifyError> {
    let bad =
        || VerifyError::BadId { why: format!("its id is {:?}", id.chars().take(100).collect::<String>()) };
    let (theirs, path) =
        id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
    let node: NodeId = path.strip_prefix("node/").and_then(|number| number.parse().ok()).ok_or_else(bad)?;
    if node == NodeId(0) {
        return Err(bad());
    }
    if theirs != vo {
        return Err(VerifyError::OtherVo { ours: vo.to_owned(), theirs: theirs.chars().take(64).collect() });
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_in_its_one_spelling_alone() {
        assert_eq!(node_of("lab", "spiffe://lab/node/7"), Ok(NodeId(7)));
        for bad in [
            "spiffe://lab/node/0",
            "spiffe://lab/node/07",
            "spiffe://lab/node/7/",
            "spiffe://lab/node/",
            "spiffe://lab/user/7",
            "spiffe://lab",
            "https://lab/node/7",
            "SPIFFE://lab/node/7",
            "spiffe://lab/node/4294967296",
        ] {
            assert!(matches!(node_of("lab", bad), Err(VerifyError::BadId { .. })), "{bad}");
        }
        assert!(matches!(node_of("lab", "spiffe://office/node/7"), Err(VerifyError::OtherVo { .. })));
    }
}
