//! What goes wrong between a client and servers, said so that a person can act on it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::ftp::client::UrlError;
use crate::ftp::reply::{Kind, Reply};

/// Where a transfer broke.
///
/// ```
/// assert_eq!(libgrid::ftp::client::Party::Here.to_string(), "this machine");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// The file system of this machine.
    Here,
    /// The server of this name, which refused or gave up.
    Server(String),
    /// The connection to the server of this name.
    Link(String),
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::Server(server) => f.write_str(server),
            Self::Link(server) => write!(f, "the connection to {server}"),
        }
    }
}

/// Why something could not be done.
///
/// ```
/// use libgrid::ftp::client::FtpError;
/// let error = FtpError::Silent { server: "node1:2811".into(), limit: std::time::Duration::from_secs(60), what: "the answer to PASV".into() };
/// assert_eq!(error.to_string(), "node1:2811 was silent for 60s: the answer to PASV did not come");
/// assert!(error.may_pass());
/// ```
#[derive(Debug, thiserror::Error)]
pub enum FtpError {
    /// The URL is none.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// There is no connection to the server.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection is not secure, and is not used.
    #[error("no secure connection to {server}: {why}")]
    Tls {
        /// The server.
        server: String,
        /// Why.
        why: String,
    },
    /// The server refused a command.
    #[error("{server} refused {command}: {reply}")]
    Refused {
        /// The server.
        server: String,
        /// The command, without a password.
        command: String,
        /// The server's words.
        reply: Reply,
    },
    /// The control connection broke.
    #[error("the connection to {server} broke: {source}")]
    Lost {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("{server} was silent for {limit:?}: {what} did not come")]
    Silent {
        /// The server.
        server: String,
        /// For how long it was waited.
        limit: Duration,
        /// For what.
        what: String,
    },
    /// The server does not keep to the protocol.
    #[error("{server} does not speak FTP as it should: {why}")]
    Protocol {
        /// The server.
        server: String,
        /// What it did.
        why: String,
    },
    /// The server cannot do what was asked.
    #[error("{server} cannot {what}")]
    Unsupported {
        /// The server.
        server: String,
        /// What it cannot, and what helps.
        what: String,
    },
    /// A transfer broke off.
    #[error("{path} broke off at byte {at}: {party}: {why}{}", if *resumable { "; the same command goes on from there" } else { "" })]
    Broken {
        /// The file.
        path: String,
        /// So many bytes arrived.
        at: u64,
        /// Who failed.
        party: Party,
        /// Why.
        why: String,
        /// Whether what arrived was kept, for a transfer that goes on.
        resumable: bool,
        /// Whether it may work when it is tried again.
        passing: bool,
    },
    /// A file or folder of this machine cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    Local {
        /// What was tried, such as `write`.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy is not what the original is.
    #[error(
        "{path} was damaged on its way: its {algorithm} is {theirs} on {server} and {ours} here; it was thrown away"
    )]
    Damaged {
        /// The file.
        path: String,
        /// The server.
        server: String,
        /// The sort of checksum.
        algorithm: String,
        /// The server's checksum.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The file changed while it was sent.
    #[error("{path} changed while it was transferred: nothing was kept; try again when nobody writes it")]
    Changed {
        /// The file.
        path: String,
    },
    /// Another client is fetching the same file.
    #[error("{} is being fetched by another process: wait for it, or choose another name", path.display())]
    Busy {
        /// Where to.
        path: PathBuf,
    },
    /// A name in a server's list would lead out of the folder, or cannot be sent.
    #[error("the name {name:?} cannot be used: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl FtpError {
    /// Whether the same may work later, so that trying again makes sense.
    ///
    /// ```
    /// use libgrid::ftp::client::FtpError;
    /// use libgrid::ftp::reply::Reply;
    /// let no = |code| FtpError::Refused { server: "h".into(), command: "RETR x".into(), reply: Reply::new(code, "no") };
    /// assert!(no(426).may_pass() && !no(550).may_pass());
    /// ```
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::Silent { .. } => true,
            // 452 is a full disk.
            Self::Refused { reply, .. } => reply.kind() == Kind::Transient && reply.code != 452,
            Self::Broken { passing, .. } => *passing,
            _ => false,
        }
    }

    pub(super) fn local(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Local { what, path, source }
    }
}

/// A path as messages show it.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() > 200 {
        format!("{}…", text.chars().take(200).collect::<String>())
    } else {
        text.into_owned()
    }
}
