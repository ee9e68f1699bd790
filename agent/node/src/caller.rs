//! Who asks, and what they may.
//!
//! | who | may |
//! | --- | --- |
//! | any user of a node of the VO | submit; see nodes and jobs; read the output of their own jobs, type into them, and end them |
//! | root of a node of the VO | that with everybody's jobs; drain nodes |
//! | any user of a node of the VO | copy files that this node lends, as the export says ([`crate::copy::exports`]) |
//! | any user of this machine | copy their own files; get a certificate of the VO that names them |
//! | root of this machine | found and join a VO; lend folders |
//! | root of the founding node | make tokens, revoke nodes |
//!
//! "Their own" are the jobs that the same user submitted on the same node. The kernel says who a local caller is; of
//! a remote one, that node's agent says it, for its own users alone. Finer rules are the VO's policies, which are to
//! come.

use std::io;

use grid_jobs::record::JobRecord;
use libgrid::control::{Failure, Kind};
use libgrid::ids::NodeId;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::config::Config;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Caller {
    /// The name on their machine, or the number where there is none.
    user: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The name of their node.
    node_name: String,
    /// The number of their node, if it is another one.
    node: Option<NodeId>,
}

impl Caller {
    /// Who is on the other end of a connection, as the kernel says.
    pub(crate) fn of(stream: &UnixStream, config: &Config) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let known = nix::unistd::User::from_uid(peer.uid().into()).ok().flatten();
        Ok(Self {
            user: known.map_or_else(|| peer.uid().to_string(), |user| user.name),
            uid: peer.uid(),
            gid: peer.gid(),
            node_name: config.name.clone(),
            node: None,
        })
    }

    /// The same caller, as another node tells of it.
    pub(crate) fn at_node(self, node: NodeId) -> Self {
        Self { node: Some(node), ..self }
    }

    /// Whether it is a user of this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.node.is_none()
    }

    /// Their name on their machine.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// How jobs name their owner.
    pub(crate) fn owner(&self) -> String {
        format!("{}@{}", self.user, self.node_name)
    }

    /// Nothing if the caller may read, type into and end this job.
    pub(crate) fn owns(&self, job: impl std::fmt::Display, record: &JobRecord) -> Result<(), Failure> {
        // A job's home is where it was submitted: its owner's own node is this one.
        let same = self.node.is_none() && self.uid == record.origin.uid;
        if self.is_root() || same {
            return Ok(());
        }
        let owner = &record.origin.owner;
        let why = format!("{job} is {owner}'s, and you are {}: ask them, or root", self.owner());
        Err(Failure::new(Kind::Denied, why))
    }

    /// Nothing if the caller is root of this machine.
    pub(crate) fn must_be_root(&self, what: &str) -> Result<(), Failure> {
        if self.is_root() && self.node.is_none() {
            return Ok(());
        }
        Err(Failure::new(Kind::Denied, format!("only root of this machine may {what}: use sudo")))
    }
}
