//! Where a data connection goes: the host-port forms of PORT, PASV, EPRT, EPSV, SPOR and SPAS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The text is not an address of the form that the command takes.
///
/// ```
/// use libgrid::ftp::address::parse_port;
/// assert_eq!(
///     parse_port(b"127,0,0,1,4").unwrap_err().to_string(),
///     "\"127,0,0,1,4\" is not an address: six numbers of 0 to 255, h1,h2,h3,h4,p1,p2, is expected"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address: {form} is expected")]
pub struct AddressError {
    /// What was given, cut to 80 characters.
    pub text: String,
    /// What it should look like.
    pub form: &'static str,
}

fn bad(text: &[u8], form: &'static str) -> AddressError {
    AddressError { text: String::from_utf8_lossy(text).chars().take(80).collect(), form }
}

const SIX: &str = "six numbers of 0 to 255, h1,h2,h3,h4,p1,p2,";

/// Reads `h1,h2,h3,h4,p1,p2`.
///
/// # Errors
/// [`AddressError`] when it is not six numbers of 0 to 255.
///
/// ```
/// use libgrid::ftp::address::parse_port;
/// assert_eq!(parse_port(b"10,0,0,1,195,80").unwrap(), "10.0.0.1:50000".parse().unwrap());
/// ```
pub fn parse_port(text: &[u8]) -> Result<SocketAddr, AddressError> {
    six(text).ok_or_else(|| bad(text, SIX))
}

fn six(text: &[u8]) -> Option<SocketAddr> {
    let mut numbers = [0u8; 6];
    let mut parts = text.split(|&byte| byte == b',');
    for number in &mut numbers {
        *number = decimal(parts.next()?.trim_ascii())?;
    }
    if parts.next().is_some() {
        return None;
    }
    let [a, b, c, d, high, low] = numbers;
    Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
}

/// A number without a sign.
fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Writes `h1,h2,h3,h4,p1,p2`; `None` for IPv6, which has no such form. An IPv4 address inside IPv6 is taken out.
///
/// ```
/// use libgrid::ftp::address::format_port;
/// assert_eq!(format_port("10.0.0.1:50000".parse().unwrap()).unwrap(), "10,0,0,1,195,80");
/// assert_eq!(format_port("[::1]:50000".parse().unwrap()), None);
/// ```
pub fn format_port(addr: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = addr.ip().to_canonical() else { return None };
    let [a, b, c, d] = ip.octets();
    let [high, low] = addr.port().to_be_bytes();
    Some(format!("{a},{b},{c},{d},{high},{low}"))
}

/// Finds `h1,h2,h3,h4,p1,p2` in the text of a 227 reply, in parentheses or not (RFC 1123, 4.1.2.6).
///
/// # Errors
/// [`AddressError`] when there is none.
///
/// ```
/// use libgrid::ftp::address::parse_pasv;
/// let addr = parse_pasv(b"Entering Passive Mode (10,0,0,1,195,80).").unwrap();
/// assert_eq!(addr, "10.0.0.1:50000".parse().unwrap());
/// ```
pub fn parse_pasv(text: &[u8]) -> Result<SocketAddr, AddressError> {
    text.split(|byte| !byte.is_ascii_digit() && *byte != b',').find_map(six).ok_or_else(|| bad(text, SIX))
}

const EXTENDED: &str = "|1|IPv4|port| or |2|IPv6|port|";

/// Reads the argument of EPRT, `|1|10.0.0.1|50000|` (RFC 2428).
///
/// # Errors
/// [`AddressError`] when it is of another form, or of a protocol other than 1 and 2.
///
/// ```
/// use libgrid::ftp::address::parse_eprt;
/// assert_eq!(parse_eprt(b"|2|::1|50000|").unwrap(), "[::1]:50000".parse().unwrap());
/// ```
pub fn parse_eprt(text: &[u8]) -> Result<SocketAddr, AddressError> {
    let read = || {
        let delimiter = *text.first().filter(|byte| (33..=126).contains(*byte))?;
        let mut parts = text.split(|&byte| byte == delimiter);
        let empty = parts.next()?;
        let (protocol, host, port) = (parts.next()?, parts.next()?, parts.next()?);
        let end = parts.next()?;
        if !empty.is_empty() || !end.is_empty() || parts.next().is_some() {
            return None;
        }
        let ip: IpAddr = std::str::from_utf8(host).ok()?.parse().ok()?;
        let fits = matches!((protocol, ip), (b"1", IpAddr::V4(_)) | (b"2", IpAddr::V6(_)));
        fits.then_some(SocketAddr::new(ip, decimal(port)?))
    };
    read().ok_or_else(|| bad(text, EXTENDED))
}

/// Writes the argument of EPRT.
///
/// ```
/// use libgrid::ftp::address::format_eprt;
/// assert_eq!(format_eprt("10.0.0.1:50000".parse().unwrap()), "|1|10.0.0.1|50000|");
/// ```
pub fn format_eprt(addr: SocketAddr) -> String {
    let ip = addr.ip().to_canonical();
    format!("|{}|{ip}|{}|", if ip.is_ipv4() { 1 } else { 2 }, addr.port())
}

/// Finds the port in the text of a 229 reply to EPSV, `(|||50000|)`.
///
/// # Errors
/// [`AddressError`] when there is none.
///
/// ```
/// use libgrid::ftp::address::parse_epsv;
/// assert_eq!(parse_epsv(b"Entering Extended Passive Mode (|||50000|)").unwrap(), 50000);
/// ```
pub fn parse_epsv(text: &[u8]) -> Result<u16, AddressError> {
    let read = || {
        let open = text.iter().position(|&byte| byte == b'(')?;
        let inner = &text[open + 1..];
        let inner = &inner[..inner.iter().position(|&byte| byte == b')')?];
        let delimiter = *inner.first()?;
        let port = inner.strip_prefix(&[delimiter; 3])?.strip_suffix(&[delimiter])?;
        decimal(port).filter(|port| *port != 0)
    };
    read().ok_or_else(|| bad(text, "(|||port|)"))
}

/// The most addresses that SPOR or SPAS may name.
///
/// ```
/// assert_eq!(libgrid::ftp::address::MAX_STRIPES, 64);
/// ```
pub const MAX_STRIPES: usize = 64;

/// Reads the argument of SPOR: one or more of `h1,h2,h3,h4,p1,p2`, with spaces between.
///
/// # Errors
/// [`AddressError`] when one of them is none, or when there are none or more than [`MAX_STRIPES`].
///
/// ```
/// use libgrid::ftp::address::parse_spor;
/// assert_eq!(parse_spor(b"10,0,0,1,195,80 10,0,0,2,195,80").unwrap().len(), 2);
/// ```
pub fn parse_spor(text: &[u8]) -> Result<Vec<SocketAddr>, AddressError> {
    let words = || text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let count = words().take(MAX_STRIPES + 1).count();
    if !(1..=MAX_STRIPES).contains(&count) {
        return Err(bad(text, "one to 64 of h1,h2,h3,h4,p1,p2"));
    }
    words().map(parse_port).collect()
}

/// The lines between the first and the last of a 229 reply to SPAS, as addresses. EPSV has the same code: a reply
/// of one line is its.
///
/// # Errors
/// [`AddressError`] when there is none, or one cannot be read.
///
/// ```
/// use libgrid::ftp::address::parse_spas;
/// use libgrid::ftp::reply::Reply;
/// let reply = Reply::lines(229, ["Entering Striped Passive Mode.", " 10,0,0,1,195,80", "End"]);
/// assert_eq!(parse_spas(&reply.text).unwrap(), ["10.0.0.1:50000".parse().unwrap()]);
/// ```
pub fn parse_spas(lines: &[Vec<u8>]) -> Result<Vec<SocketAddr>, AddressError> {
    let inner = lines.get(1..lines.len().saturating_sub(1)).unwrap_or_default();
    if inner.is_empty() || inner.len() > MAX_STRIPES {
        return Err(bad(&lines.concat(), "a line of h1,h2,h3,h4,p1,p2 for each stripe"));
    }
    inner.iter().map(|line| parse_port(line.trim_ascii())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ip: [u8; 4], ip6: [u8; 16], port: u16) {
            let addr = SocketAddr::from((ip, port));
            prop_assert_eq!(parse_port(format_port(addr).unwrap().as_bytes()), Ok(addr));
            prop_assert_eq!(parse_pasv(format!("x ({}).", format_port(addr).unwrap()).as_bytes()), Ok(addr));
            prop_assert_eq!(parse_eprt(format_eprt(addr).as_bytes()), Ok(addr));
            let addr = SocketAddr::from((ip6, port));
            if addr.ip().to_canonical().is_ipv6() {
                prop_assert_eq!(parse_eprt(format_eprt(addr).as_bytes()), Ok(addr));
            }
        }

        #[test]
        fn any_bytes_are_an_address_or_refused(bytes in vec(any::<u8>(), 0..60)) {
            let _ = (parse_port(&bytes), parse_pasv(&bytes), parse_eprt(&bytes), parse_epsv(&bytes), parse_spor(&bytes));
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in ["1,2,3,4,5", "1,2,3,4,5,6,7", "256,0,0,1,1,1", "1,2,3,4,5,-6", "a,0,0,1,1,1", ""] {
            assert!(parse_port(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in
            ["|1|::1|5|", "|2|10.0.0.1|5|", "|3|10.0.0.1|5|", "|1|10.0.0.1|5", "|1|10.0.0.1|70000|", ""]
        {
            assert!(parse_eprt(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
