//! What a server says that it can (RFC 2389).

use crate::ftp::reply::Reply;

/// What a server can do beyond RFC 959.
///
/// ```
/// use libgrid::ftp::client::Features;
/// use libgrid::ftp::reply::Reply;
/// let reply = Reply::lines(211, ["Extensions:", " MLST Type*;Size*;", " REST STREAM", " CKSM MD5:10;SHA256:11;", "End"]);
/// let features = Features::parse(&reply);
/// assert!(features.has("mlst") && features.has("REST") && !features.has("EPSV"));
/// assert_eq!(features.checksums(), ["MD5", "SHA256"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Upper-case names, and what follows them.
    list: Vec<(String, String)>,
}

/// More features than this no server has.
const MAX_FEATURES: usize = 256;

impl Features {
    /// Reads the reply to FEAT; any other reply is none.
    ///
    /// ```
    /// use libgrid::ftp::client::Features;
    /// use libgrid::ftp::reply::Reply;
    /// assert_eq!(Features::parse(&Reply::new(500, "what?")), Features::default());
    /// ```
    pub fn parse(reply: &Reply) -> Self {
        if reply.code != 211 {
            return Self::default();
        }
        let lines = reply.text.iter().skip(1).take(reply.text.len().saturating_sub(2)).take(MAX_FEATURES);
        let read = |line: &Vec<u8>| {
            let text = String::from_utf8_lossy(line).trim().to_owned();
            let (name, rest) = text.split_once(' ').unwrap_or((&text, ""));
            (name.to_ascii_uppercase(), rest.trim().to_owned())
        };
        Self { list: lines.map(read).collect() }
    }

    /// Whether there is a feature of this name.
    ///
    /// ```
    /// assert!(!libgrid::ftp::client::Features::default().has("MLST"));
    /// ```
    pub fn has(&self, name: &str) -> bool {
        self.rest(name).is_some()
    }

    /// What follows the name of a feature.
    pub(super) fn rest(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, rest)| rest.as_str())
    }

    /// The sorts of checksum that CKSM can make, in upper case.
    ///
    /// ```
    /// assert!(libgrid::ftp::client::Features::default().checksums().is_empty());
    /// ```
    pub fn checksums(&self) -> Vec<String> {
        let list = self.rest("CKSM").unwrap_or_default().split([';', ',']);
        let names = list.filter_map(|word| word.split(':').next());
        names.map(|name| name.trim().to_ascii_uppercase()).filter(|name| !name.is_empty()).collect()
    }
}
