//! How the server is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What somebody without a certificate may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Nothing.
    #[default]
    No,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Where the certificates are, all PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The server's certificate, with those between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA that vouches for users.
    pub ca: PathBuf,
    /// Names of users for subjects of certificates, as Globus writes them.
    pub gridmap: Option<PathBuf>,
    /// The VO whose names count: others of the same CA are refused. Any, if absent.
    pub vo: Option<String>,
}

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that is served.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What somebody without a certificate may do.
    pub anonymous: Anonymous,
    /// Certificates; without, there is neither TLS nor GSI.
    pub identity: Option<Identity>,
    /// Whether nobody gets in without TLS or GSI.
    pub require_tls: bool,
    /// The ports for passive data connections, first and last; any, if absent.
    pub passive: Option<(u16, u16)>,
    /// Whether users with certificates may have data sent to, and received from, other machines than their own.
    pub allow_third_party: bool,
    /// How long a session may say nothing.
    pub idle: Duration,
    /// How long a session may last in all.
    pub longest: Duration,
    /// How long a client may take to log in.
    pub login: Duration,
    /// How long a data connection may move nothing.
    pub stall: Duration,
    /// Sessions at once.
    pub max_sessions: usize,
    /// Sessions at once from one address.
    pub max_per_address: usize,
    /// Sessions at once of one user.
    pub max_per_user: usize,
    /// Threads for transfers; each data connection has one while it is used.
    pub max_threads: usize,
    /// Data connections of one transfer.
    pub max_streams: u32,
    /// Time between performance markers.
    pub markers: Duration,
}

impl Config {
    /// The defaults, for this folder.
    pub fn new(root: impl Into<PathBuf>) -> Config {
        Config {
            root: root.into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 2811)),
            anonymous: Anonymous::No,
            identity: None,
            require_tls: false,
            passive: None,
            allow_third_party: false,
            idle: Duration::from_secs(300),
            longest: Duration::from_secs(86_400),
            login: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            max_sessions: 2000,
            max_per_address: 2000,
            max_per_user: 2000,
            max_threads: 1024,
            max_streams: 32,
            markers: Duration::from_secs(5),
        }
    }
}
