//! Drives the overlay: carries its datagrams over the link, gives it time, and tells the rest of the agent who is
//! there.
//!
//! The members are kept in `members.json`, so that a node that restarts finds the others again, and knows whom its
//! users speak of before it has heard of them: until then they count as down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use grid_jobs::home;
use grid_link::Link;
use grid_overlay::{Action, Event, MemberState, Overlay, OverlayConfig};
use libgrid::control::{NodeState, NodeStatus};
use libgrid::ids::NodeId;
use libgrid::node::NodeInfo;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::core::{self, Core};
use crate::machine;
use crate::network::Network;

/// How often this node looks at itself.
const LOOK: Duration = Duration::from_secs(2);

/// A load that changed by less than this, in hundredths, is not worth telling.
const LOAD_STEP: u32 = 20;

/// What the rest of the agent tells the overlay.
pub(crate) enum News {
    Datagram {
        from: NodeId,
        bytes: Vec<u8>,
    },
    Evict(NodeId),
    /// This node itself has changed: the others are to know now.
    Changed,
    Leave,
}

/// The nodes as they are now; cheap to read.
#[derive(Clone, Default)]
pub(crate) struct Members(Arc<RwLock<BTreeMap<NodeId, NodeStatus>>>);

impl Members {
    pub(crate) fn all(&self) -> Vec<NodeStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The node of this number or name.
    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        let number = name.parse().ok();
        let members = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found =
            members.values().find(|member| Some(member.info.node) == number || member.info.name == name);
        found.map(|member| member.info.node)
    }

    /// The other nodes that answer.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        let up = |member: &NodeStatus| matches!(member.state, NodeState::Up | NodeState::Suspect);
        self.all()
            .into_iter()
            .filter(|member| !member.this && up(member))
            .map(|member| member.info.node)
            .collect()
    }

    /// Those that do not answer: what they have is missing wherever all are asked.
    pub(crate) fn down(&self) -> Vec<NodeId> {
        let down = |member: &NodeStatus| member.state == NodeState::Down;
        self.all().into_iter().filter(down).map(|member| member.info.node).collect()
    }

    fn set(&self, all: BTreeMap<NodeId, NodeStatus>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

struct Driver {
    overlay: Overlay,
    me: NodeInfo,
    told: NodeInfo,
    link: Link,
    core: Core,
    members: Members,
    network: Network,
    revoked: Box<dyn Fn(NodeId) -> bool + Send>,
    file: PathBuf,
    /// The others, as they were last heard of.
    known: BTreeMap<NodeId, NodeInfo>,
    /// Whom the overlay had when it was last asked.
    met: BTreeSet<NodeId>,
    /// What is in the file.
    saved: BTreeMap<NodeId, Kept>,
}

/// What is kept of a member: its name and its addresses.
type Kept = (String, Vec<SocketAddr>);

/// What the driver is made with.
pub(crate) struct Start {
    pub(crate) me: NodeInfo,
    pub(crate) link: Link,
    pub(crate) core: Core,
    pub(crate) members: Members,
    pub(crate) network: Network,
    pub(crate) revoked: Box<dyn Fn(NodeId) -> bool + Send>,
    pub(crate) state_dir: PathBuf,
    /// Whom to contact besides those that were known before.
    pub(crate) contacts: Vec<(NodeId, Vec<SocketAddr>)>,
}

/// Runs until the sender of news is dropped.
pub(crate) fn start(start: Start, news: mpsc::Receiver<News>) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let config = OverlayConfig::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let file = start.state_dir.join("members.json");
    let known = load(&file);
    let driver = Driver {
        overlay: Overlay::new(start.me.clone(), config, rand::random()),
        told: start.me.clone(),
        me: start.me,
        link: start.link,
        core: start.core,
        members: start.members,
        network: start.network,
        revoked: start.revoked,
        file,
        known,
        met: BTreeSet::new(),
        saved: BTreeMap::new(),
    };
    tokio::spawn(driver.run(start.contacts, news));
}

impl Driver {
    async fn run(mut self, contacts: Vec<(NodeId, Vec<SocketAddr>)>, mut news: mpsc::Receiver<News>) {
        self.publish();
        let known = self.known.values().map(|info| (info.node, info.addrs.clone()));
        for (node, addrs) in known.chain(contacts).collect::<Vec<_>>() {
            if node != self.me.node && !(self.revoked)(node) {
                self.link.learn(node, addrs.clone());
                self.handle(Event::Meet { node, addrs });
            }
        }
        let mut look = Instant::now() + LOOK;
        loop {
            let now = core::now().mono;
            let wake = self.overlay.next_wakeup().map_or(LOOK, |at| at.saturating_sub(now));
            tokio::select! {
                heard = news.recv() => match heard {
                    Some(News::Datagram { from, bytes }) => self.handle(Event::Datagram { from, bytes }),
                    Some(News::Evict(node)) => {
                        self.handle(Event::Evict(node));
                        self.link.evict(node);
                        self.core.home(home::Event::NodeDown(node));
                    }
                    Some(News::Changed) => look = Instant::now(),
                    Some(News::Leave) => self.handle(Event::Leave),
                    None => return,
                },
                () = tokio::time::sleep(wake) => self.handle(Event::Wakeup),
                () = tokio::time::sleep_until(look) => {
                    look = Instant::now() + LOOK;
                    self.look().await;
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let mut changed = false;
        for action in self.overlay.handle(core::now().mono, event) {
            match action {
                Action::Send { to, addrs, bytes } => {
                    if !addrs.is_empty() {
                        self.link.learn(to, addrs);
                    }
                    self.link.datagram(to, bytes.into());
                }
                Action::Up(info) => {
                    info!(node = %info.node, name = info.name, "node_up");
                    changed = true;
                    self.link.learn(info.node, info.addrs.clone());
                    self.core.home(home::Event::Node(info));
                }
                Action::Changed(info) => {
                    changed = true;
                    self.core.home(home::Event::Node(info));
                }
                Action::Down(node) => {
                    info!(%node, "node_down");
                    changed = true;
                    self.core.home(home::Event::NodeDown(node));
                }
            }
        }
        if changed {
            self.publish();
        }
    }

    /// Looks at this node itself, and tells the others if they should know.
    async fn look(&mut self) {
        let host = self.core.look(|view| {
            let host = &view.host;
            (host.total(), host.free(), host.tasks(), host.is_drained())
        });
        let Ok((total, free, tasks, drained)) = host.await else { return };
        self.me.drained = drained;
        self.me.total = total;
        self.me.free = free;
        self.me.tasks = u32::try_from(tasks).unwrap_or(u32::MAX);
        self.me.load = machine::load();
        self.me.addresses = self.network.trouble().is_none();
        let told = NodeInfo { load: self.me.load, ..self.told.clone() };
        if told != self.me || self.me.load.abs_diff(self.told.load) >= LOAD_STEP {
            self.told = self.me.clone();
            self.core.home(home::Event::Node(self.me.clone()));
            self.handle(Event::Info(self.me.clone()));
        }
        // Suspicions come and go without an action.
        self.publish();
    }

    fn publish(&mut self) {
        let mut all = BTreeMap::new();
        for member in self.overlay.members() {
            let this = member.info.node == self.me.node;
            let state = match member.state {
                _ if (self.revoked)(member.info.node) => NodeState::Revoked,
                MemberState::Alive => NodeState::Up,
                MemberState::Suspect => NodeState::Suspect,
                MemberState::Down => NodeState::Down,
            };
            let info = if this { self.me.clone() } else { member.info.clone() };
            all.insert(info.node, NodeStatus { info, state, this });
        }
        let all = self.remember(all);
        self.members.set(all);
    }

    /// Adds those who are known of old and not heard of yet. What is new is written down.
    fn remember(&mut self, mut all: BTreeMap<NodeId, NodeStatus>) -> BTreeMap<NodeId, NodeStatus> {
        // Whom the overlay had and forgot is forgotten; whom it never had may still come.
        let met: BTreeSet<NodeId> = all.keys().copied().collect();
        for node in self.met.difference(&met) {
            self.known.remove(node);
        }
        self.met = met;
        let others = all.values().filter(|member| !member.this);
        self.known.extend(others.map(|member| (member.info.node, member.info.clone())));
        self.known.retain(|node, _| !(self.revoked)(*node));
        let kept = |info: &NodeInfo| (info.node, (info.name.clone(), info.addrs.clone()));
        let kept: BTreeMap<_, _> = self.known.values().map(kept).collect();
        if kept != self.saved {
            if let Err(error) = save(&self.file, &self.known) {
                warn!(%error, path = %self.file.display(), "the members cannot be kept");
            }
            self.saved = kept;
        }
        for (node, info) in &self.known {
            let down = || NodeStatus { info: info.clone(), state: NodeState::Down, this: false };
            all.entry(*node).or_insert_with(down);
        }
        all
    }
}

/// What an earlier start kept; nothing if it cannot be read, as it can be learnt anew.
fn load(file: &Path) -> BTreeMap<NodeId, NodeInfo> {
    let known: Option<Vec<NodeInfo>> =
        fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    known.unwrap_or_default().into_iter().map(|info| (info.node, info)).collect()
}

fn save(file: &Path, known: &BTreeMap<NodeId, NodeInfo>) -> io::Result<()> {
    let partial = file.with_extension("json.part");
    let list: Vec<_> = known.values().collect();
    let mut writer = fs::File::create(&partial)?;
    writer.write_all(&serde_json::to_vec(&list)?)?;
    writer.sync_all()?;
    fs::rename(partial, file)
}
