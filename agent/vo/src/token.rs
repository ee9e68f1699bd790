//! Tokens: the one line that lets one machine join.
//!
//! ```text
//! grid1-BASE64URL( payload ‖ checksum )
//!
//! payload   libgrid::wire: VO name, addresses, SHA-256 of the CA certificate, expiry, seed of 32 bytes
//! checksum  the first 8 bytes of SHA-256("grid1-" ‖ payload)
//! ```
//!
//! The checksum tells a line that was cut or altered while it was copied from one that the authority refuses;
//! it protects nothing. The seed is what must stay secret: it makes the Ed25519 key pair with which the joiner
//! answers in the TLS handshake. The fingerprint lets the joiner know the authority before it has any
//! certificate of the VO.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libgrid::wire;
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{Admission, key_of};
use crate::credentials::{Credentials, CredentialsError};
use crate::key::{NodeKey, sha256};
use crate::name::check_vo_name;
use crate::time::at;
use crate::verify::{PeerId, VerifyError, verify_peer};

/// Addresses that a token can hold.
pub const MAX_ADDRS: usize = 8;

/// Text longer than any token.
const MAX_TEXT: usize = 1024;
const PREFIX: &str = "grid1-";
const CHECKSUM: usize = 8;

/// The subject of the certificate that stands for a token in a handshake.
const SUBJECT: &str = "GridOS token";

/// A token. Its debug output leaves the secret out; [`Token::to_line`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    content: Content,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    vo: String,
    addrs: Vec<SocketAddr>,
    fingerprint: [u8; 32],
    expires: u64,
    seed: [u8; 32],
}

/// A text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("this is not a token: paste the whole line that `gridctl token create` printed")]
    NotAToken,
    /// It is a token of another release.
    #[error("the token was made by another release of GridOS: install the same release on both machines")]
    OtherRelease,
    /// It was cut or altered.
    #[error("the token is damaged: copy the whole line again")]
    Damaged,
}

// === impl Token ===

impl Token {
    pub(crate) fn new(
        vo: &str,
        addrs: &[SocketAddr],
        fingerprint: [u8; 32],
        expires: u64,
        seed: [u8; 32],
    ) -> Self {
        Self { content: Content { vo: vo.to_owned(), addrs: addrs.to_vec(), fingerprint, expires, seed } }
    }

    /// The line to paste. Whoever reads it can join.
    pub fn to_line(&self) -> String {
        let content = &self.content;
        // Cannot fail: the content is far below the limit of a frame.
        let mut bytes = wire::encode(content).unwrap_or_default();
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The VO that the token is for.
    pub fn vo(&self) -> &str {
        &self.content.vo
    }

    /// Where the authority answers, best first; 1 to [`MAX_ADDRS`].
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.content.addrs
    }

    /// From when on the authority refuses the token.
    pub fn expires(&self) -> SystemTime {
        at(self.content.expires)
    }

    /// The public half of the token's key, by which the authority knows it.
    ///
    /// # Errors
    /// [`TokenError::Damaged`] where the seed makes no key, which no seed does.
    pub fn public_key(&self) -> Result<[u8; 32], TokenError> {
        Ok(self.key()?.public_key())
    }

    /// What to show in the TLS handshake with the authority: a self-signed certificate, and its key.
    ///
    /// # Errors
    /// [`TokenError::Damaged`] where the seed makes no key, which no seed does.
    pub fn identity(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TokenError> {
        let key = self.key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(key.pair()).map_err(|_| TokenError::Damaged)?;
        Ok((vec![certificate.into()], key.private_key()))
    }

    /// Who the server is, if it is in the token's VO: its chain must hold the CA certificate that the token
    /// names, and that CA must vouch for it.
    ///
    /// # Errors
    /// [`VerifyError::OtherFingerprint`] where the chain does not hold that CA; else as [`verify_peer`].
    pub fn verify_server(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<PeerId, VerifyError> {
        let ca = chain.iter().skip(1).find(|certificate| sha256(certificate) == self.content.fingerprint);
        let ca = ca.ok_or_else(|| VerifyError::OtherFingerprint { vo: self.content.vo.clone() })?;
        verify_peer(ca, &self.content.vo, chain, now, &|_| false)
    }

    /// Turns what the authority answered into the node's credentials.
    ///
    /// # Errors
    /// [`CredentialsError`] where the answer is not from the token's VO, or not for this key.
    pub fn accept(
        &self,
        key: NodeKey,
        admission: &Admission,
        now: SystemTime,
    ) -> Result<Credentials, CredentialsError> {
        if sha256(&admission.ca_der) != self.content.fingerprint {
            return Err(VerifyError::OtherFingerprint { vo: self.content.vo.clone() }.into());
        }
        Credentials::new(&self.content.vo, key, admission, now)
    }

    fn key(&self) -> Result<NodeKey, TokenError> {
        NodeKey::from_seed(&self.content.seed).map_err(|_| TokenError::Damaged)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(if other_release(text) { TokenError::OtherRelease } else { TokenError::NotAToken });
        };
        if text.len() > MAX_TEXT {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let split = bytes.len().checked_sub(CHECKSUM).ok_or(TokenError::Damaged)?;
        let (payload, sum) = bytes.split_at(split);
        if sum != checksum(payload) {
            return Err(TokenError::Damaged);
        }
        let content: Content = wire::decode(payload).map_err(|_| TokenError::Damaged)?;
        if check_vo_name(&content.vo).is_err() || !(1..=MAX_ADDRS).contains(&content.addrs.len()) {
            return Err(TokenError::Damaged);
        }
        Ok(Self { content })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("vo", &self.content.vo)
            .field("addrs", &self.content.addrs)
            .field("expires", &self.content.expires)
            .finish_non_exhaustive()
    }
}

/// The public key of the token that this certificate stands for; `None` if it is another kind of certificate.
///
/// It says nothing about the token: whether it was minted, used or expired is the authority's to know.
pub fn token_public_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    let named = |name: &x509_parser::x509::X509Name<'_>| {
        let mut names = name.iter_common_name();
        names.next().and_then(|name| name.as_str().ok()) == Some(SUBJECT) && names.next().is_none()
    };
    if rest.is_empty() && named(parsed.subject()) && named(parsed.issuer()) { key_of(&parsed) } else { None }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut covered = PREFIX.as_bytes().to_vec();
    covered.extend_from_slice(payload);
    let sum = sha256(&covered);
    let mut short = [0; CHECKSUM];
    short.copy_from_slice(&sum[..CHECKSUM]);
    short
}

fn other_release(text: &str) -> bool {
    let version = text.strip_prefix("grid").and_then(|rest| rest.split_once('-')).map(|(version, _)| version);
    version.is_some_and(|v| !v.is_empty() && v != "1" && v.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixed() -> Token {
        let addrs = ["10.0.0.1:7411".parse().unwrap(), "[fd00::1]:7411".parse().unwrap()];
        Token::new("lab", &addrs, [0xab; 32], 1_800_000_000, [7; 32])
    }

    #[test]
    fn golden() {
        // A change here breaks every token in people's hands: give it another prefix instead.
        assert_eq!(fixed().to_line(), GOLDEN);
        assert_eq!(GOLDEN.parse::<Token>().unwrap(), fixed());
    }

    const GOLDEN: &str = "grid1-A2xhYgIACgAAAfvzHAH9AAAAAAAAAAAAAAAAAAAB-_Mcq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6v8ANJJawcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHTSWQ8pLIhio";

    #[test]
    fn what_is_wrong_with_a_line_is_told_apart() {
        let line = fixed().to_line();
        assert_eq!(format!("  {line}\n").parse(), Ok(fixed()));
        assert_eq!(line[..line.len() - 5].parse::<Token>(), Err(TokenError::Damaged));
        assert_eq!(line.replacen("grid1-", "grid2-", 1).parse::<Token>(), Err(TokenError::OtherRelease));
        for text in ["", "hello", "grid", "grid-", "gridx-abc"] {
            assert_eq!(text.parse::<Token>(), Err(TokenError::NotAToken), "{text:?}");
        }
        for text in ["grid1-", "grid1-AAAA", "grid1-ä", &format!("grid1-{}", "A".repeat(2000))] {
            assert_eq!(text.parse::<Token>(), Err(TokenError::Damaged), "{text:?}");
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?}", fixed());
        assert!(!shown.contains("seed") && !shown.contains("7, 7"), "{shown}");
    }

    #[test]
    fn only_a_token_certificate_has_a_token_key() {
        let token = fixed();
        let (chain, _) = token.identity().unwrap();
        assert_eq!(token_public_key(&chain[0]), Some(token.public_key().unwrap()));
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        assert_eq!(token_public_key(other.cert.der()), None);
        assert_eq!(token_public_key(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    fn token() -> impl Strategy<Value = Token> {
        let addrs = proptest::collection::vec(any::<(u32, u16)>(), 1..=MAX_ADDRS);
        ("[a-z0-9-]{1,63}", addrs, any::<[u8; 32]>(), any::<u64>(), any::<[u8; 32]>()).prop_map(
            |(vo, addrs, fingerprint, expires, seed)| {
                let addrs: Vec<SocketAddr> =
                    addrs.into_iter().map(|(ip, port)| (std::net::Ipv4Addr::from(ip), port).into()).collect();
                Token::new(&vo, &addrs, fingerprint, expires, seed)
            },
        )
    }

    proptest! {
        #[test]
        fn every_token_survives_its_text(token in token()) {
            prop_assert_eq!(token.to_line().parse::<Token>(), Ok(token));
        }

        #[test]
        fn every_altered_line_is_refused(token in token(), place in any::<prop::sample::Index>(), by in 33u8..127) {
            let mut line = token.to_line().into_bytes();
            let place = place.index(line.len());
            prop_assume!(line[place] != by);
            line[place] = by;
            prop_assert!(String::from_utf8(line).unwrap().parse::<Token>().is_err());
        }

        #[test]
        fn every_cut_line_is_refused(token in token(), end in any::<prop::sample::Index>()) {
            let line = token.to_line();
            prop_assert!(line[..end.index(line.len())].parse::<Token>().is_err());
        }

        #[test]
        fn random_text_never_panics(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            prop_assert!(text.parse::<Token>().is_err());
            let line = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            prop_assert!(line.parse::<Token>().is_err());
        }

        #[test]
        fn random_content_with_a_good_checksum_never_panics(bytes in any::<Vec<u8>>()) {
            let mut bytes = bytes;
            let sum = checksum(&bytes);
            bytes.extend_from_slice(&sum);
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes)).parse::<Token>();
        }

        #[test]
        fn random_bytes_are_no_token_certificate(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(token_public_key(&CertificateDer::from(bytes)), None);
        }
    }
}
