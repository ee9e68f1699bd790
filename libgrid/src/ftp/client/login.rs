//! Who logs in, how the connection is protected, and how patient the client is.

use std::path::PathBuf;
use std::time::Duration;

/// How a client introduces itself to a server.
///
/// ```
/// use libgrid::ftp::client::{Login, Tls};
/// let login = Login { user: "ann".into(), password: "secret".into(), tls: Some(Tls::default()), ..Login::default() };
/// assert_eq!(Login::default().user, "anonymous");
/// assert!(!format!("{login:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct Login {
    /// The user; `anonymous` unless it is said otherwise.
    pub user: String,
    /// The password; anonymous users give a mail address by custom.
    pub password: String,
    /// Protect the session by TLS (RFC 4217).
    pub tls: Option<Tls>,
    /// Connect to the address that a PASV reply names, and not to the host of the control connection: needed with
    /// servers whose data come from other machines, and dangerous with servers that one does not trust.
    pub believe_pasv: bool,
    /// How long to wait, and how much to take.
    pub limits: Limits,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            user: "anonymous".to_owned(),
            password: "gridos@".to_owned(),
            tls: None,
            believe_pasv: false,
            limits: Limits::default(),
        }
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, tls, believe_pasv, limits, password: _ } = self;
        f.debug_struct("Login")
            .field("user", user)
            .field("tls", tls)
            .field("believe_pasv", believe_pasv)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// How TLS is used: whom to trust, and who we are.
///
/// ```
/// use libgrid::ftp::client::{Tls, Trust};
/// let tls = Tls { trust: Trust::Ca("/etc/grid/ca.pem".into()), ..Tls::default() };
/// assert!(tls.private);
/// ```
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whose certificates are believed.
    pub trust: Trust,
    /// A chain of certificates and its key, both PEM, with which the client proves who it is.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether data are encrypted, too (PROT P), or only commands (PROT C).
    pub private: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { trust: Trust::System, certificate: None, private: true }
    }
}

/// Whose certificates are believed.
///
/// ```
/// assert_ne!(libgrid::ftp::client::Trust::System, libgrid::ftp::client::Trust::Anybody);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that the system knows.
    System,
    /// Those of the authorities in this file, PEM.
    Ca(PathBuf),
    /// Every certificate: whoever is between us and the server can read and change everything.
    Anybody,
}

/// How long to wait, and how much to take. Nothing waits longer, whatever a server does.
///
/// ```
/// use std::time::Duration;
/// use libgrid::ftp::client::Limits;
/// let hasty = Limits { reply: Duration::from_secs(5), ..Limits::default() };
/// assert_eq!(hasty.connect, Duration::from_secs(20));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection to be there. 20 s.
    pub connect: Duration,
    /// For the whole reply to a command. 60 s.
    pub reply: Duration,
    /// Without a byte of data moving. 60 s.
    pub stall: Duration,
    /// For the last reply after all data went, while the server tells of no progress. 2 min.
    pub finish: Duration,
    /// For one whole transfer; `None` for as long as something moves.
    pub whole: Option<Duration>,
    /// The most bytes of a list of a folder. 64 MiB.
    pub list: u64,
    /// The most names below a folder that is copied whole. 10 million.
    pub entries: u64,
    /// The most bytes of a file whose size the server does not tell; `None` for as many as fit.
    pub file: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            reply: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            finish: Duration::from_secs(120),
            whole: None,
            list: 64 << 20,
            entries: 10_000_000,
            file: None,
        }
    }
}
