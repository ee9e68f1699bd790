//! Names of files on servers: `ftp://USER:PASSWORD@HOST:PORT/PATH` (RFC 1738, 3.2).

use std::fmt;
use std::str::FromStr;

/// Where a file is: a server, and a path on it as bytes.
///
/// The path begins with `/`, as globus-url-copy understands it; `ftp://host/~/data` is below the folder in which the
/// login ends. `%XX` stands for a byte. `ftps://` asks for TLS, and `gsiftp://` is taken for `ftp://`.
///
/// ```
/// use libgrid::ftp::client::FtpUrl;
/// let url: FtpUrl = "ftp://ann@node1:2811/data/run%207.h5".parse().unwrap();
/// assert_eq!((url.host.as_str(), url.port, url.user.as_deref()), ("node1", 2811, Some("ann")));
/// assert_eq!(url.path, b"/data/run 7.h5");
/// assert_eq!(url.to_string(), "ftp://node1:2811/data/run%207.h5");
/// assert_eq!("ftp://node1/~/x".parse::<FtpUrl>().unwrap().path, b"x");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FtpUrl {
    /// Whether the scheme asked for TLS.
    pub tls: bool,
    /// Who logs in.
    pub user: Option<String>,
    /// With which password. [`fmt::Display`] does not show it.
    pub password: Option<String>,
    /// A name or an address; an IPv6 one without brackets.
    pub host: String,
    /// 21 unless it was given.
    pub port: u16,
    /// The path, decoded.
    pub path: Vec<u8>,
}

/// The text is not the URL of a file on an FTP server.
///
/// ```
/// use libgrid::ftp::client::FtpUrl;
/// let error = "http://node1/x".parse::<FtpUrl>().unwrap_err();
/// assert_eq!(error.to_string(), "\"http://node1/x\" is not ftp://HOST:PORT/PATH: it begins otherwise");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not ftp://HOST:PORT/PATH: {why}")]
pub struct UrlError {
    /// What was given, without a password.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for FtpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        parse(text).map_err(|why| {
            // What is before an @ may hold a password.
            let shown = text.rsplit('@').next().unwrap_or_default();
            UrlError { text: shown.chars().take(200).collect(), why }
        })
    }
}

fn parse(text: &str) -> Result<FtpUrl, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it begins otherwise")?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "ftp" | "gsiftp" => false,
        "ftps" | "ftpes" => true,
        _ => return Err("it begins otherwise"),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, authority),
    };
    let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
        Some((user, password)) => {
            let password = (!password.is_empty()).then(|| word(password)).transpose()?;
            ((!user.is_empty()).then(|| word(user)).transpose()?, password)
        }
        None => (None, None),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(six) => {
            let (host, rest) = six.split_once(']').ok_or("a bracket is missing")?;
            (host, rest.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    if host.is_empty() || host.len() > 255 || host.bytes().any(|byte| byte <= b' ' || byte == 127) {
        return Err("the name of the server is missing");
    }
    let port = match port.filter(|port| !port.is_empty()) {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("the port is not a number")?,
        None => 21,
    };
    let mut path = decode(path)?;
    if path.starts_with(b"/~/") {
        path.drain(..3);
    }
    if path.is_empty() {
        path.extend(if rest.contains("/~/") { &b"."[..] } else { &b"/"[..] });
    }
    Ok(FtpUrl { tls, user, password, host: host.to_owned(), port, path })
}

fn word(text: &str) -> Result<String, &'static str> {
    String::from_utf8(decode(text)?).map_err(|_| "the user or password is not text")
}

fn decode(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
            let (high, low) = (digit(), digit());
            let number = high.zip(low).map(|(high, low)| high * 16 + low);
            number.and_then(|number| u8::try_from(number).ok()).ok_or("% needs two digits behind it")?
        } else {
            byte
        };
        if matches!(byte, 0 | b'\r' | b'\n') {
            return Err("no name on a server holds NUL or line ends");
        }
        bytes.push(byte);
    }
    Ok(bytes)
}

impl FtpUrl {
    /// The server, as error messages name it.
    ///
    /// ```
    /// use libgrid::ftp::client::FtpUrl;
    /// assert_eq!("ftp://[::1]:2811/x".parse::<FtpUrl>().unwrap().server(), "[::1]:2811");
    /// ```
    pub fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the path ends with a slash: a folder is meant.
    ///
    /// ```
    /// use libgrid::ftp::client::FtpUrl;
    /// assert!("ftp://node1/data/".parse::<FtpUrl>().unwrap().is_folder());
    /// ```
    pub fn is_folder(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// The last part of the path; empty for a folder.
    ///
    /// ```
    /// use libgrid::ftp::client::FtpUrl;
    /// assert_eq!("ftp://node1/data/x".parse::<FtpUrl>().unwrap().name(), b"x");
    /// ```
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }
}

impl fmt::Display for FtpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "ftps" } else { "ftp" }, self.server())?;
        if !self.path.starts_with(b"/") {
            f.write_str("/~/")?;
        }
        for &byte in &self.path {
            if byte.is_ascii_alphanumeric() || b"/-._~+,=:@!$&'()*;".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(path in vec(any::<u8>(), 0..30), port in 1u16.., tls: bool) {
            let mut path: Vec<u8> = path.into_iter().filter(|byte| !matches!(byte, 0 | b'\r' | b'\n')).collect();
            path.insert(0, b'/');
            prop_assume!(!path.starts_with(b"/~/"));
            let url = FtpUrl { tls, user: None, password: None, host: "h".into(), port, path };
            prop_assert_eq!(url.to_string().parse(), Ok(url));
        }

        #[test]
        fn any_text_is_a_url_or_refused(text in "(ftp://)?.{0,40}") {
            let _ = text.parse::<FtpUrl>();
        }
    }

    #[test]
    fn a_line_end_cannot_be_smuggled_in_and_no_password_is_shown() {
        let error = "ftp://ann:secret@h/x%0d%0aDELE y".parse::<FtpUrl>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        for bad in ["ftp:/x", "ftp://", "ftp://:21/x", "ftp://h:0/x", "ftp://h:99999/x", "ftp://h/%4"] {
            assert!(bad.parse::<FtpUrl>().is_err(), "{bad}");
        }
    }
}
