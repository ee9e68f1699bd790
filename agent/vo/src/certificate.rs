//! What is written into certificates, and how they are issued.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use libgrid::ids::NodeId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::key::NodeKey;
use crate::time::seconds;

/// How long a node's certificate is valid, unless the authority was told otherwise.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How far clocks may differ: certificates are valid from this long before they were issued.
pub const SKEW: Duration = Duration::from_secs(3600);

/// How long the CA's own certificate is valid: ten years.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a certificate lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Take part in the grid.
    Node,
    /// Administrate the VO.
    Admin,
    /// Hold the VO's CA: mint and redeem tokens, renew certificates.
    Authority,
}

/// What a node gets when it is admitted or renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The node's number in the VO.
    pub node: NodeId,
    /// Its certificate, DER.
    pub cert_der: Vec<u8>,
    /// The CA's certificate, DER.
    pub ca_der: Vec<u8>,
}

/// A user of a node: `NODE.USER`, for users of the same name on two nodes may be two people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

impl UserName {
    /// The user of this name on the node of this name.
    ///
    /// # Errors
    /// The name has other signs than letters, digits, `.`, `-` and `_`, which an identity (SPIFFE) cannot have.
    pub fn new(node: &str, user: &str) -> Result<Self, IssueError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let name = format!("{node}.{user}");
        if user.is_empty() || name.len() > 128 || !name.chars().all(plain) {
            let why = "only letters, digits, '.', '-' and '_' are possible in an identity".into();
            return Err(IssueError { holder: format!("user {name:?}"), why });
        }
        Ok(Self(name))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name under which a server is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerName {
    /// A host's name.
    Dns(String),
    /// An address.
    Address(IpAddr),
}

/// A certificate could not be issued.
#[derive(Debug, thiserror::Error)]
#[error("cannot issue a certificate for {holder}: {why}")]
pub struct IssueError {
    holder: String,
    why: String,
}

/// What the authority writes into a node's certificate.
pub(crate) struct Subject<'a> {
    pub(crate) vo: &'a str,
    pub(crate) node: NodeId,
    pub(crate) name: &'a str,
    pub(crate) roles: &'a [Role],
    pub(crate) public_key: [u8; 32],
}

// === impl Role ===

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Node => "node",
            Role::Admin => "admin",
            Role::Authority => "authority",
        })
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "node" => Ok(Role::Node),
            "admin" => Ok(Role::Admin),
            "authority" => Ok(Role::Authority),
            _ => Err(()),
        }
    }
}

/// The public half alone, for rcgen.
struct PublicHalf([u8; 32]);

impl PublicKeyData for PublicHalf {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// The Ed25519 public key in a certificate; `None` if it holds another kind of key or is malformed.
pub fn public_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    if rest.is_empty() { key_of(&parsed) } else { None }
}

pub(crate) fn key_of(parsed: &X509Certificate<'_>) -> Option<[u8; 32]> {
    let info = parsed.public_key();
    if info.algorithm.algorithm.to_id_string() != "1.3.101.112" {
        return None;
    }
    info.subject_public_key.data.as_ref().try_into().ok()
}

/// The CA's parameters. They depend on nothing but the VO's name and the time, so that an issuer can be made
/// again from the key and the name.
fn ca_params(vo: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "GridOS VO");
    params.distinguished_name.push(DnType::CommonName, vo);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The self-signed certificate of a new CA.
pub(crate) fn issue_ca(
    key: &NodeKey,
    vo: &str,
    now: SystemTime,
) -> Result<CertificateDer<'static>, IssueError> {
    let fail = |why: String| IssueError { holder: format!("the authority of VO {vo}"), why };
    let mut params = ca_params(vo);
    params.not_before =
        date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds(now).saturating_sub(SKEW.as_secs()));
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds(now)) + CA_LIFETIME;
    params.serial_number = Some(serial().map_err(fail)?);
    let signed = params.self_signed(key.pair()).map_err(|error| fail(error.to_string()))?;
    Ok(signed.into())
}

/// A node's certificate.
pub(crate) fn issue_node(
    ca_key: &NodeKey,
    subject: &Subject<'_>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<CertificateDer<'static>, IssueError> {
    let fail = |why: String| IssueError { holder: format!("node {} ({})", subject.node, subject.name), why };
    let id = format!("spiffe://{}/node/{}", subject.vo, subject.node);
    let roles: Vec<String> = subject.roles.iter().map(Role::to_string).collect();
    let mut params = leaf(&id, lifetime, now).map_err(fail)?;
    params.distinguished_name.push(DnType::CommonName, subject.name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, roles.join(","));
    sign(ca_key, subject.vo, params, subject.public_key).map_err(fail)
}

/// A user's certificate; as a server it is good for these names.
pub(crate) fn issue_user(
    ca_key: &NodeKey,
    vo: &str,
    user: &UserName,
    names: &[ServerName],
    public_key: [u8; 32],
    (lifetime, now): (Duration, SystemTime),
) -> Result<CertificateDer<'static>, IssueError> {
    let fail = |why: String| IssueError { holder: format!("user {user}"), why };
    let mut params = leaf(&format!("spiffe://{vo}/user/{user}"), lifetime, now).map_err(fail)?;
    params.distinguished_name.push(DnType::CommonName, user.to_string());
    for name in names {
        params.subject_alt_names.push(match name {
            ServerName::Dns(name) => {
                let name = Ia5String::try_from(name.as_str()).map_err(|error| fail(error.to_string()))?;
                SanType::DnsName(name)
            }
            ServerName::Address(address) => SanType::IpAddress(*address),
        });
    }
    sign(ca_key, vo, params, public_key).map_err(fail)
}

/// What all certificates but the CA's have in common.
fn leaf(id: &str, lifetime: Duration, now: SystemTime) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.not_before =
        date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds(now).saturating_sub(SKEW.as_secs()));
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds(now)) + lifetime;
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    let uri = Ia5String::try_from(id).map_err(|error| error.to_string())?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn sign(
    ca_key: &NodeKey,
    vo: &str,
    params: CertificateParams,
    public_key: [u8; 32],
) -> Result<CertificateDer<'static>, String> {
    let ca = ca_params(vo);
    let issuer = Issuer::from_params(&ca, ca_key.pair());
    let signed = params.signed_by(&PublicHalf(public_key), &issuer).map_err(|error| error.to_string())?;
    Ok(signed.into())
}

/// A random positive serial number of 16 bytes (RFC 5280 allows 20).
fn serial() -> Result<SerialNumber, String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gave no randomness".to_owned())?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
