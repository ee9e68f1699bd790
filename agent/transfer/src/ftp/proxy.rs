//! Proxy certificates (RFC 3820): a user's certificate signs a short-lived one, so that programs need not the user's
//! own key.
//!
//! ```text
//!   CA ──webpki──▶ user's certificate ──here──▶ proxy ──here──▶ proxy of a proxy ...
//! ```
//!
//! A proxy's subject is its issuer's and one more CN; it says what it may do (a policy); it is no CA and has no other
//! names. A proxy acts for the user, unless it says that it is independent.

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::ftp::signature;

/// `proxyCertInfo`.
const PROXY: &str = "1.3.6.1.5.5.7.1.14";

/// Acts for the user in all, or in moving files.
const INHERIT_ALL: &str = "1.3.6.1.5.5.7.21.1";
const LIMITED: &str = "1.3.6.1.4.1.3536.1.1.1.9";

/// Proxies of proxies of ... : more than this nobody has.
const MAX_DEPTH: usize = 8;

/// How many certificates from the front of the chain are proxies; each is checked against the next.
pub(crate) fn check(chain: &[impl AsRef<[u8]>], now: i64) -> Result<usize, String> {
    let read = |place: usize| -> Result<X509Certificate<'_>, String> {
        let der = chain.get(place).ok_or("the certificate that signed the proxy is missing")?;
        match X509Certificate::from_der(der.as_ref()) {
            Ok(([], certificate)) => Ok(certificate),
            _ => Err("a certificate cannot be understood".to_owned()),
        }
    };
    let mut depth = 0;
    loop {
        let certificate = read(depth)?;
        let Some(info) = certificate.extensions().iter().find(|ext| ext.oid.to_id_string() == PROXY) else {
            return Ok(depth);
        };
        if depth == MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} proxies, one behind the other"));
        }
        let issuer = read(depth + 1)?;
        let (limit, policy) = policy(info.value).ok_or("what the proxy may do cannot be read")?;
        if !matches!(policy.as_str(), INHERIT_ALL | LIMITED) {
            return Err("the proxy does not act for its user: make one without a policy".to_owned());
        }
        // The proxies in front of this one are below it.
        if limit.is_some_and(|limit| limit < depth as u64) {
            return Err("the proxy signed more proxies than it may".to_owned());
        }
        follows(&certificate, &issuer)?;
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() {
            return Err("the proxy is not valid yet: a clock is wrong".to_owned());
        }
        if now > validity.not_after.timestamp() {
            return Err("the proxy has expired: make a new one with grid-proxy-init".to_owned());
        }
        if !signature::certificate(&certificate, &issuer) {
            return Err("the proxy was not signed by the certificate behind it".to_owned());
        }
        depth += 1;
    }
}

/// Whether the names and uses of a proxy are those that its issuer may give.
fn follows(proxy: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), String> {
    if proxy.issuer().as_raw() != issuer.subject().as_raw() {
        return Err("the proxy names another issuer".to_owned());
    }
    // The subject is a sequence of relative names: all but the last are the issuer's.
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (proxy.subject().iter().collect(), issuer.subject().iter().collect());
    let is_one_cn = ours.len() == theirs.len() + 1
        && ours.iter().zip(&theirs).all(|(a, b)| a == b)
        && ours.last().is_some_and(|last| {
            let mut attributes = last.iter();
            attributes.next().is_some_and(|name| name.attr_type().to_id_string() == "2.5.4.3")
                && attributes.next().is_none()
        });
    if !is_one_cn {
        return Err("the proxy's subject is not its issuer's and one CN".to_owned());
    }
    if proxy.is_ca() || issuer.is_ca() {
        return Err("a CA is no proxy, and signs none".to_owned());
    }
    match issuer.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => {
            return Err("the certificate behind the proxy may not sign".to_owned());
        }
        Err(_) => return Err("the uses of a certificate cannot be read".to_owned()),
        _ => (),
    }
    for extension in proxy.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(_) | ParsedExtension::IssuerAlternativeName(_) => {
                return Err("a proxy has no other names".to_owned());
            }
            ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::BasicConstraints(_) => (),
            _ if extension.critical && extension.oid.to_id_string() != PROXY => {
                return Err("the proxy has a critical extension that is not known here".to_owned());
            }
            _ => (),
        }
    }
    Ok(())
}

/// `SEQUENCE { pCPathLenConstraint INTEGER OPTIONAL, proxyPolicy SEQUENCE { policyLanguage OID, ... } }`
fn policy(der: &[u8]) -> Option<(Option<u64>, String)> {
    let (outer, rest) = element(der, 0x30)?;
    if !rest.is_empty() {
        return None;
    }
    let (limit, outer) = match element(outer, 0x02) {
        Some((integer, rest)) => {
            if integer.is_empty() || integer.len() > 8 || integer[0] & 0x80 != 0 {
                return None;
            }
            (Some(integer.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))), rest)
        }
        None => (None, outer),
    };
    let (policy, _) = element(outer, 0x30)?;
    let (language, _) = element(policy, 0x06)?;
    Some((limit, oid(language)?))
}

/// The content of an element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=127 => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
        _ => return None,
    };
    (found == tag).then_some(())?;
    Some((rest.get(..length)?, rest.get(length..)?))
}

fn oid(bytes: &[u8]) -> Option<String> {
    let (&first, rest) = bytes.split_first()?;
    let mut text = format!("{}.{}", first / 40, first % 40);
    let mut number: u32 = 0;
    for byte in rest {
        number = number.checked_mul(128)?.checked_add(u32::from(byte & 127))?;
        if byte & 128 == 0 {
            text.push_str(&format!(".{number}"));
            number = 0;
        }
    }
    Some(text)
}

/// The only URI among a certificate's other names.
pub(crate) fn uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    // An identity has one (SPIFFE); a server's certificate has names of hosts beside it.
    let first = uris.next()?;
    uris.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_read_with_and_without_a_limit() {
        let inherit = [0x30, 0x0c, 0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 21, 1];
        assert_eq!(policy(&inherit), Some((None, INHERIT_ALL.to_owned())));
        let limited = [0x30, 0x0f, 0x02, 1, 3, 0x30, 0x0a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 21, 1];
        assert_eq!(policy(&limited), Some((Some(3), INHERIT_ALL.to_owned())));
        for cut in 0..limited.len() {
            assert_eq!(policy(&limited[..cut]), None);
        }
    }
}
