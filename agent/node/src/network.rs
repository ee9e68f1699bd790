//! This node's part in the network of tasks with addresses of their own (`--net grid`): made when the agent starts, told who
//! the other nodes are, and removed when the agent stops and no such task is left. Tasks' own links are their shims' business.
//!
//! A node that cannot have it runs everything else: what is missing is told by `gridctl doctor`, and to whom it is refused.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grid_net::{Config as NetConfig, EnsureError, NodeNet};
use libgrid::control::NodeState;
use libgrid::ids::NodeId;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Config;
use crate::membership::Members;

/// The network's number among the VXLANs of these machines: that of the agents' own port.
const VNI: u32 = crate::config::PORT as u32;

/// How often the list of members is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long after a failure it is tried again: the kernel may look for a module each time.
const RETRY: Duration = Duration::from_secs(60);

/// A handle of it.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<Result<Part, String>>>);

struct Part {
    net: NodeNet,
    local: IpAddr,
}

impl Network {
    /// Makes it, or finds it. What is left of tasks is removed, but of those with these addresses.
    pub(crate) fn start(config: &Config, me: NodeId, addrs: &[SocketAddr], kept: &[Ipv4Addr]) -> Self {
        let part = match config.task_network {
            true => Part::make(me, addrs),
            false => Err("its owner has switched it off (task_network in gridosd.toml)".into()),
        };
        match &part {
            Ok(part) => part.sweep(kept),
            Err(why) => info!(why, "no_task_network"),
        }
        Self(Arc::new(Mutex::new(part)))
    }

    fn part(&self) -> MutexGuard<'_, Result<Part, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why tasks cannot have addresses of their own here.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.part().as_ref().err().cloned()
    }

    /// Tells it who the other nodes are, as long as the agent runs.
    pub(crate) async fn follow(
        self,
        config: Arc<Config>,
        me: NodeId,
        addrs: Vec<SocketAddr>,
        members: Members,
    ) {
        let mut told = None;
        let mut retry = Instant::now() + RETRY;
        let mut again = None;
        loop {
            let others = others(&members);
            if let Ok(part) = &*self.part()
                && (told.as_ref() != Some(&others) || again.is_some_and(|at| Instant::now() >= at))
            {
                let set = part.net.set_members(&part.reached_at(&others));
                again = set.as_ref().err().map(|_| Instant::now() + RETRY);
                if let Err(error) = set {
                    warn!(%error, "the network of tasks does not reach all nodes");
                }
                told = Some(others);
            }
            if config.task_network && self.trouble().is_some() && Instant::now() >= retry {
                *self.part() = Part::make(me, &addrs);
                told = None;
                retry = Instant::now() + RETRY;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes it, if no task has a part in it.
    pub(crate) fn stop(&self) {
        let stopped = Err("the agent is stopping".into());
        let Ok(Part { net, .. }) = std::mem::replace(&mut *self.part(), stopped) else { return };
        match net.tasks() {
            Ok(tasks) if tasks.is_empty() => {
                if let Err(error) = net.remove() {
                    warn!(%error, "the network of tasks stays");
                }
            }
            _ => (),
        }
    }
}

impl Part {
    fn make(me: NodeId, addrs: &[SocketAddr]) -> Result<Self, String> {
        let mut why = "this node has no address that others reach".to_owned();
        for local in addrs.iter().map(SocketAddr::ip) {
            let config = NetConfig { node: me, local, vni: VNI, port: NetConfig::PORT, mtu: NetConfig::MTU };
            match NodeNet::ensure(&config) {
                Ok(net) => return Ok(Self { net, local }),
                // One that is translated on its way is not this machine's own: maybe the next is.
                Err(error @ EnsureError::Local(_)) => why = error.to_string(),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(why)
    }

    fn sweep(&self, kept: &[Ipv4Addr]) {
        for address in self.net.tasks().unwrap_or_default() {
            if !kept.contains(&address.ip())
                && let Err(error) = self.net.release(address)
            {
                warn!(%error, "a task's link stays");
            }
        }
    }

    /// Of each node, its first address of the family in which packets are sent.
    fn reached_at(&self, others: &BTreeSet<Vec<IpAddr>>) -> Vec<IpAddr> {
        let same = |ip: &&IpAddr| ip.is_ipv4() == self.local.is_ipv4();
        others.iter().filter_map(|addrs| addrs.iter().find(same).copied()).collect()
    }
}

/// The addresses of the other nodes, as they say, also of those that do not answer now. None is one of many machines, or of
/// whoever asks.
fn others(members: &Members) -> BTreeSet<Vec<IpAddr>> {
    let all = members.all().into_iter();
    all.filter(|member| !member.this && member.state != NodeState::Revoked)
        .map(|member| member.info.addrs.iter().map(SocketAddr::ip).filter(is_one).collect())
        .collect()
}

fn is_one(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(broadcast || ip.is_multicast() || ip.is_unspecified() || ip.is_loopback())
}
