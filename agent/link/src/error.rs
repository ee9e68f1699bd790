//! Why there is no connection, and why there is one no longer.

use std::io;
use std::net::SocketAddr;

use libgrid::ids::NodeId;
use libgrid::wire;
use quinn::{ApplicationClose, ConnectionError, VarInt};

use crate::greeting;

/// The codes with which a side closes a connection on purpose.
pub(crate) mod code {
    use quinn::VarInt;

    /// The agent stops.
    pub(crate) const BYE: VarInt = VarInt::from_u32(0);
    /// The greeting was of another version; the reason is our own [`Hello`](libgrid::wire::Hello).
    pub(crate) const VERSION: VarInt = VarInt::from_u32(1);
    /// The greeting was malformed or did not come.
    pub(crate) const GREETING: VarInt = VarInt::from_u32(2);
    /// The peer was evicted.
    pub(crate) const EVICTED: VarInt = VarInt::from_u32(3);
    /// Another connection to the same peer is preferred, and this one is unused.
    pub(crate) const SUPERSEDED: VarInt = VarInt::from_u32(4);
    /// The peer has restarted: this connection is of its former life.
    pub(crate) const RESTARTED: VarInt = VarInt::from_u32(5);
    /// Nothing was heard from the peer.
    pub(crate) const SILENT: VarInt = VarInt::from_u32(6);
    /// The bearer of a token did more than join.
    pub(crate) const BEARER: VarInt = VarInt::from_u32(7);
    /// The peer is no longer trusted.
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(8);
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be used.
    #[error(
        "cannot listen on udp {addr}: {source}: choose another address, or stop the program that uses it"
    )]
    Socket {
        /// Where we wanted to listen.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the node's certificate or key cannot be used for TLS: {why}: join the VO again")]
    Identity {
        /// What is wrong.
        why: String,
    },
}

/// A peer could not be reached, or the connection to it broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody told where the node listens.
    #[error("no address of node {node} is known: it has not been seen since this agent started")]
    Unknown {
        /// Who was meant.
        node: NodeId,
    },
    /// The node that was meant is this one.
    #[error("node {node} is this node: it does not connect to itself")]
    Myself {
        /// Our number.
        node: NodeId,
    },
    /// No address answered.
    #[error("node {node} cannot be reached: {}: check that its agent runs and that nothing blocks its udp port", each(.tried))]
    Unreachable {
        /// Who was meant.
        node: NodeId,
        /// Each address and why it did not do.
        tried: Vec<(SocketAddr, String)>,
    },
    /// One side does not trust the other.
    #[error("no connection to node {node}: {why}")]
    Refused {
        /// Who was meant.
        node: NodeId,
        /// Who refused whom, and why.
        why: String,
    },
    /// The node runs another release.
    #[error("node {node} at {addr}: {source}")]
    Version {
        /// Who was meant.
        node: NodeId,
        /// Where it is.
        addr: SocketAddr,
        /// Both versions.
        source: wire::WireError,
    },
    /// The connection broke; whether the peer got what was sent is not known.
    #[error("the connection to node {node} broke: {why}: try again")]
    Broken {
        /// The peer.
        node: NodeId,
        /// How.
        why: String,
    },
    /// This link was closed.
    #[error("the agent is stopping: no new connections are made")]
    Closed,
}

/// Each address and why it did not do.
pub(crate) fn each(tried: &[(SocketAddr, String)]) -> String {
    let each: Vec<String> = tried.iter().map(|(addr, why)| format!("{addr} ({why})")).collect();
    each.join(", ")
}

/// How one attempt to connect failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// Another attempt may do better.
    Failed(String),
    /// One side does not trust the other.
    Refused(String),
    /// The other side speaks another version.
    Version(wire::WireError),
}

impl AttemptError {
    /// What a connection's end means while it is being made. `ours` is why we refused the peer, if we did.
    pub(crate) fn from_connection(error: &ConnectionError, ours: Option<String>) -> Self {
        if let Some(why) = ours {
            return AttemptError::Refused(format!("we refuse its certificate: {why}"));
        }
        match error {
            ConnectionError::ApplicationClosed(close) if close.error_code == code::VERSION => version(close),
            // RFC 9001, section 4.8: 0x100 plus the TLS alert.
            ConnectionError::ConnectionClosed(close) if is_alert(u64::from(close.error_code)) => {
                AttemptError::Refused(
                    "it refuses our certificate: ours may be expired, revoked or of another VO; its log tells".into(),
                )
            }
            ConnectionError::TimedOut => AttemptError::Failed("no answer".into()),
            other => AttemptError::Failed(describe(other)),
        }
    }

    pub(crate) fn why(&self) -> String {
        match self {
            AttemptError::Failed(why) | AttemptError::Refused(why) => why.clone(),
            AttemptError::Version(error) => error.to_string(),
        }
    }

    /// Whether another attempt at the same address is of no use.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, AttemptError::Failed(_))
    }
}

fn is_alert(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

fn version(close: &ApplicationClose) -> AttemptError {
    match greeting::check_hello(&close.reason) {
        Err(error @ wire::WireError::Version { .. }) => AttemptError::Version(error),
        _ => AttemptError::Failed("it greets in another way".into()),
    }
}

/// A connection's end for people.
pub(crate) fn describe(error: &ConnectionError) -> String {
    let code_name = |code: VarInt| match code {
        code::BYE => "its agent stopped",
        code::VERSION => "it runs another release",
        code::GREETING => "it did not understand our greeting",
        code::EVICTED => "it evicted this node",
        code::SUPERSEDED => "another connection took its place",
        code::RESTARTED => "it says that this agent restarted",
        code::SILENT => "it heard nothing from this node",
        code::BEARER => "a token lets a machine join, and no more",
        code::REFUSED => "it trusts this node no longer",
        _ => "it closed the connection",
    };
    match error {
        ConnectionError::ApplicationClosed(close) => code_name(close.error_code).to_owned(),
        ConnectionError::Reset => "its agent restarted".to_owned(),
        ConnectionError::TimedOut => "nothing was heard from it".to_owned(),
        ConnectionError::LocallyClosed => "this agent closed it".to_owned(),
        other => other.to_string(),
    }
}
