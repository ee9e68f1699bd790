//! Why the authority did not do what it was asked.

use std::path::PathBuf;

use libgrid::ids::NodeId;

use crate::certificate::IssueError;
use crate::files::FileError;
use crate::key::KeyError;
use crate::name::NameError;
use crate::time::when;
use crate::token::MAX_ADDRS;

/// The authority could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The VO's name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is one already.
    #[error("{} already holds the authority of VO {vo}: leave that VO first, or choose another folder", dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
        /// Whose authority is there.
        vo: String,
    },
    /// There is none.
    #[error("{} holds no authority: run this on the node that founded the VO", dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// A file is not what it should be.
    #[error("the authority in {} is damaged ({why}): restore the folder from a backup", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The CA's key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The CA's certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A token could not be minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// Not 1 to 8 addresses.
    #[error("a token holds 1 to {MAX_ADDRS} addresses of this node, not {count}: choose some")]
    Addresses {
        /// How many were given.
        count: usize,
    },
    /// It would expire at once.
    #[error("a token that expires at once is of no use: give it at least a second, such as --expires 24h")]
    Lifetime,
    /// The system gave no randomness.
    #[error("cannot make a token: the system gave no randomness")]
    Random,
    /// The token's key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The records could not be written.
    #[error("cannot make a token: {0}")]
    File(#[from] FileError),
}

/// A node was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// Nobody knows the token.
    #[error(
        "VO {vo} does not know the token: it was made for another VO, or ended over a week ago; ask for a new one"
    )]
    Unknown {
        /// This VO.
        vo: String,
    },
    /// Its time is over.
    #[error("the token expired on {}: ask for a new one", when(*.at))]
    Expired {
        /// When, in seconds since 1970.
        at: u64,
    },
    /// Another node has used it.
    #[error("the token was used on {} by node {node} ({name}): a token lets one machine join, ask for a new one", when(*.at))]
    Used {
        /// When, in seconds since 1970.
        at: u64,
        /// Who.
        node: NodeId,
        /// The name that it gave.
        name: String,
    },
    /// The node that used it was evicted since.
    #[error("the token was used by node {node}, which was revoked: ask for a new one")]
    Revoked {
        /// Who.
        node: NodeId,
    },
    /// The node's name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// All numbers were given.
    #[error("VO {vo} has no node number left: found another VO")]
    Full {
        /// This VO.
        vo: String,
    },
    /// The certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The records could not be written.
    #[error("the authority cannot admit a node now: {0}")]
    File(#[from] FileError),
}

/// A certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The authority never admitted the node.
    #[error("the authority of VO {vo} has no record of node {node}: join again with a new token")]
    Unknown {
        /// This VO.
        vo: String,
        /// Who asked.
        node: NodeId,
    },
    /// It was evicted.
    #[error("node {node} was revoked: it may join again only with a new token")]
    Revoked {
        /// Who asked.
        node: NodeId,
    },
    /// The certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// A node was not revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There is no such node.
    #[error("VO {vo} has no node {node}: `gridctl nodes` lists them")]
    Unknown {
        /// This VO.
        vo: String,
        /// Who was meant.
        node: NodeId,
    },
    /// The authority cannot evict itself.
    #[error(
        "node {node} holds the authority of VO {vo}, it cannot be revoked: without it no node is renewed"
    )]
    Authority {
        /// This VO.
        vo: String,
        /// Who was meant.
        node: NodeId,
    },
    /// The list could not be signed.
    #[error("cannot sign the revocation list: {0}")]
    Sign(String),
    /// The records could not be written.
    #[error("cannot revoke a node: {0}")]
    File(#[from] FileError),
}
