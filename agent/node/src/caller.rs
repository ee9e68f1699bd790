//! Who asks, and what they may.
//!
//! | who | may |
//! | --- | --- |
//! | any user of a node of the VO | submit; see nodes and jobs; read the output of their own jobs, type into them, and end them |
//! | root of a node of the VO | that with everybody's jobs; drain nodes |
//! | any user of a node of the VO | copy files that this node lends, as the export says ([`crate::copy::exports`]) |
//! | a process of a job | with its own job, what the job's owner may; submit none |
//! | any user of this machine | copy their own files; get a certificate of the VO that names them |
//! | root of this machine | found and join a VO; lend folders |
//! | root of the founding node | make tokens, revoke nodes |
//!
//! "Their own" are the jobs that the same user submitted on the same node. The kernel says who a local caller is; of
//! a remote one, that node's agent says it, for its own users alone. Finer rules are the VO's policies, which are to
//! come.

use std::io;
use std::sync::Arc;

use grid_jobs::record::JobRecord;
use libgrid::control::{Failure, Kind};
use libgrid::ids::{JobId, NodeId};
use libgrid::wire::stream;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::config::Config;
use crate::grid::Grid;
use crate::peers::{AskError, Request};
use crate::{processes, runner};

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
    /// The job that the asking process is part of, and for which it may act.
    job: Option<JobId>,
    /// The same of a job's owner, for whom a task acts on any node.
    home: Option<NodeId>,
    /// Their process, on this machine.
    #[serde(skip)]
    pid: Option<i32>,
}

impl Caller {
    /// Who is on the other end of a connection, as the kernel says.
    pub(crate) fn of(stream: &UnixStream, config: &Config) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let pid = peer.pid();
        Ok(Self { pid, ..Self::user_of(peer.uid(), peer.gid(), config) })
    }

    /// A user of this machine, as the kernel says.
    pub(crate) fn user_of(uid: u32, gid: u32, config: &Config) -> Self {
        let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let user = known.map_or_else(|| uid.to_string(), |user| user.name);
        Self { user, uid, gid, node_name: config.name.clone(), node: None, job: None, home: None, pid: None }
    }

    /// The same caller, who asks from within a process of this job.
    pub(crate) fn within(self, job: JobId) -> Self {
        Self { job: Some(job), ..self }
    }

    /// Whether it is a process of this job. `at` are the nodes where the job runs: no other one can say so of its own processes.
    pub(crate) fn acts_for(&self, job: JobId, mut at: impl Iterator<Item = NodeId>) -> bool {
        self.job == Some(job) && self.node.is_none_or(|node| at.any(|at| at == node))
    }

    /// The owner of a task's job, if it is a task that asks; otherwise the same.
    pub(crate) async fn for_task(self, grid: &Arc<Grid>) -> Result<Self, Failure> {
        let Some(pid) = self.pid.filter(|_| self.is_local() && runner::is_task(self.uid)) else {
            return Ok(self);
        };
        let places = processes::places(&grid.queries, None).await;
        let Some((run, _)) = grid.processes.of_pid(pid as u32, places).await else { return Ok(self) };
        Self::of_job(grid, run.task.job).await
    }

    /// The owner of a job, for what its tasks do.
    pub(crate) async fn of_job(grid: &Arc<Grid>, job: JobId) -> Result<Self, Failure> {
        let unknown = |why: String| {
            Failure::new(Kind::Unavailable, format!("whose {job} is cannot be asked now: {why}"))
        };
        let owner = if job.home == grid.me {
            owner(grid, job).await
        } else {
            let asked = async {
                let mut duplex = grid.peers.ask(job.home, &Request::Owner(job)).await?;
                let read = stream::read::<Option<Owner>, _>(&mut duplex).await;
                read.map_err(|source| AskError::Wire { node: job.home, source })
            };
            asked.await.map_err(|error| unknown(error.to_string()))?
        };
        let Owner { name, uid, gid } = owner.ok_or_else(|| unknown("its home has forgotten it".into()))?;
        let (user, node_name) = name.split_once('@').unwrap_or((&name, ""));
        let (user, node_name) = (user.to_owned(), node_name.to_owned());
        Ok(Self { user, uid, gid, node_name, node: None, job: None, home: Some(job.home), pid: None })
    }

    /// The user for rights on what is of no job: a node, and the number there.
    pub(crate) fn identity(&self, me: NodeId) -> (NodeId, u32) {
        (self.home.or(self.node).unwrap_or(me), self.uid)
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

    /// Nothing unless the caller is a process of a job: what it submitted would be of a user that the next task has.
    pub(crate) fn may_submit(&self) -> Result<(), Failure> {
        if !runner::is_task(self.uid) {
            return Ok(());
        }
        let why = "a process of a job cannot submit jobs: its owner is known on the job's own node alone, so submit there";
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

/// Whose a job is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    name: String,
    uid: u32,
    gid: u32,
}

/// Whose a job of this home is.
pub(crate) async fn owner(grid: &Grid, job: JobId) -> Option<Owner> {
    let owner = grid.core.look(move |view| {
        let record = view.home.record(job)?;
        let origin = &record.origin;
        Some(Owner { name: origin.owner.clone(), uid: origin.uid, gid: origin.gid })
    });
    owner.await.ok().flatten()
}
