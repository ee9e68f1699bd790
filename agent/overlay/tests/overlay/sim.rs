//! Nodes, a network that delays and loses, and a clock that jumps from event to event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use grid_overlay::{Action, Event, MAX_DATAGRAM, MemberState, Overlay, OverlayConfig};
use libgrid::ids::NodeId;
use libgrid::node::{NodeInfo, Resources, Tier};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub(crate) struct Sim {
    pub(crate) now: Duration,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Which datagrams are lost.
    pub(crate) loss: f64,
    /// Nodes of different groups do not hear each other; those without one are in group 0.
    pub(crate) groups: BTreeMap<NodeId, u32>,
    /// Whether nodes were told of members that do not exist.
    pub(crate) lies: bool,
    pub(crate) sent: u64,
    pub(crate) bytes: u64,
    queue: BinaryHeap<Reverse<Due>>,
    count: u64,
    rng: SmallRng,
    seed: u64,
}

/// When, in which order, for whom, and the datagram with its sender; without one it is a wake-up.
type Due = (Duration, u64, NodeId, Option<(NodeId, Vec<u8>)>);

pub(crate) struct Node {
    pub(crate) overlay: Option<Overlay>,
    /// Who is up, by what the overlay told.
    pub(crate) up: BTreeSet<NodeId>,
    /// Who went down, and when, by what the overlay told.
    pub(crate) downs: Vec<(Duration, NodeId)>,
    wake: Duration,
    starts: u64,
}

pub(crate) fn info(node: u32) -> NodeInfo {
    let all = Resources { cpu: 4000, memory: 8 << 30 };
    NodeInfo {
        node: NodeId(node),
        name: format!("node{node}"),
        addrs: vec![addr(NodeId(node))],
        tier: Tier::Stack,
        total: all,
        free: all,
        load: 0,
        tasks: 0,
        version: "0.1.0".to_owned(),
        addresses: true,
        drained: false,
    }
}

pub(crate) fn addr(node: NodeId) -> SocketAddr {
    ([10, 0, (node.0 >> 8) as u8, node.0 as u8], 7411).into()
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Duration::from_secs(100),
            nodes: BTreeMap::new(),
            loss: 0.0,
            groups: BTreeMap::new(),
            lies: false,
            sent: 0,
            bytes: 0,
            queue: BinaryHeap::new(),
            count: 0,
            rng: SmallRng::seed_from_u64(seed),
            seed,
        }
    }

    /// A grid whose nodes join through node 1 within a second, and all see all.
    pub(crate) fn grid(size: u32, seed: u64) -> Self {
        let mut sim = Self::new(seed);
        for node in 1..=size {
            sim.start(NodeId(node), 1_000_000);
            if node > 1 {
                sim.meet(NodeId(node), NodeId(1));
            }
            sim.run(Duration::from_secs(1) / size);
        }
        sim.until("all see all", Duration::from_secs(60), Sim::all_see_all);
        sim
    }

    /// Starts a node's agent, or starts it again, with this clock.
    pub(crate) fn start(&mut self, node: NodeId, clock: u64) {
        let starts = self.nodes.get(&node).map_or(0, |node| node.starts) + 1;
        let seed = self.seed.wrapping_mul(1_000_003) + u64::from(node.0) * 1009 + starts;
        let overlay = Overlay::new(info(node.0), OverlayConfig::new(clock), seed);
        let up = BTreeSet::from([node]);
        let fresh = Node { overlay: Some(overlay), up, downs: Vec::new(), wake: Duration::MAX, starts };
        self.nodes.insert(node, fresh);
        self.schedule(node);
    }

    pub(crate) fn meet(&mut self, node: NodeId, other: NodeId) {
        self.handle(node, Event::Meet { node: other, addrs: vec![addr(other)] });
    }

    pub(crate) fn kill(&mut self, node: NodeId) {
        self.nodes.get_mut(&node).unwrap().overlay = None;
    }

    pub(crate) fn overlay(&self, node: NodeId) -> &Overlay {
        self.nodes[&node].overlay.as_ref().unwrap()
    }

    pub(crate) fn living(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.overlay.is_some()).map(|(id, _)| *id).collect()
    }

    /// Who is there to a node, by its list; checks that what it told says the same.
    pub(crate) fn seen_by(&self, node: NodeId) -> BTreeSet<NodeId> {
        let there = self.overlay(node).members().filter(|member| member.state != MemberState::Down);
        let there: BTreeSet<_> = there.map(|member| member.info.node).collect();
        assert_eq!(there, self.nodes[&node].up, "node {node}: the list and the actions differ");
        there
    }

    /// Whether all of this set see exactly this set.
    pub(crate) fn see_each_other(&self, nodes: &BTreeSet<NodeId>) -> bool {
        nodes.iter().all(|node| self.seen_by(*node) == *nodes)
    }

    pub(crate) fn all_see_all(&self) -> bool {
        self.see_each_other(&self.living())
    }

    /// Runs until the condition holds; returns how long that took.
    pub(crate) fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Sim) -> bool) -> Duration {
        let begin = self.now;
        while !holds(self) {
            assert!(self.now < begin + limit, "seed {}: {what}: not within {limit:?}", self.seed);
            self.run(Duration::from_millis(100));
        }
        self.now - begin
    }

    /// Runs for this long.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse((due, ..))| *due <= end) {
            let Some(Reverse((due, _, to, what))) = self.queue.pop() else { break };
            self.now = due;
            match what {
                Some((from, bytes)) => {
                    if self.nodes.get(&to).is_some_and(|node| node.overlay.is_some()) {
                        self.handle(to, Event::Datagram { from, bytes });
                    }
                }
                None => {
                    // A wake-up that a later event has put off is of no use.
                    let node = self.nodes.get_mut(&to).unwrap();
                    node.wake = Duration::MAX;
                    if node.overlay.as_ref().and_then(Overlay::next_wakeup).is_some_and(|wake| wake <= due) {
                        self.handle(to, Event::Wakeup);
                    } else {
                        self.schedule(to);
                    }
                }
            }
        }
        self.now = end;
    }

    pub(crate) fn handle(&mut self, node: NodeId, event: Event) {
        let it = self.nodes.get_mut(&node).unwrap();
        let Some(overlay) = &mut it.overlay else { return };
        for action in overlay.handle(self.now, event) {
            let it = self.nodes.get_mut(&node).unwrap();
            match action {
                Action::Send { to, addrs, bytes } => self.send(node, to, &addrs, bytes),
                Action::Up(info) => assert!(it.up.insert(info.node), "up twice: {}", info.node),
                Action::Changed(info) => assert!(it.up.contains(&info.node), "changed before it was up"),
                Action::Down(gone) => {
                    assert!(it.up.remove(&gone), "down before it was up: {gone}");
                    it.downs.push((self.now, gone));
                }
            }
        }
        self.schedule(node);
    }

    fn send(&mut self, from: NodeId, to: NodeId, addrs: &[SocketAddr], bytes: Vec<u8>) {
        assert!(bytes.len() <= MAX_DATAGRAM, "{} bytes", bytes.len());
        // One that called us can be answered without knowing where it listens.
        let reachable = addrs.is_empty() || addrs.contains(&addr(to)) || self.lies;
        assert!(reachable, "{from} does not know where {to} listens: {addrs:?}");
        self.sent += 1;
        self.bytes += bytes.len() as u64;
        let group = |node| self.groups.get(&node).copied().unwrap_or_default();
        if group(from) != group(to) || self.rng.random_bool(self.loss) {
            return;
        }
        let delay = Duration::from_micros(self.rng.random_range(200..5000));
        self.push(self.now + delay, to, Some((from, bytes)));
    }

    fn schedule(&mut self, node: NodeId) {
        let it = self.nodes.get_mut(&node).unwrap();
        let Some(wake) = it.overlay.as_ref().and_then(Overlay::next_wakeup) else { return };
        let wake = wake.max(self.now);
        if wake < it.wake {
            it.wake = wake;
            self.push(wake, node, None);
        }
    }

    fn push(&mut self, due: Duration, node: NodeId, what: Option<(NodeId, Vec<u8>)>) {
        self.count += 1;
        self.queue.push(Reverse((due, self.count, node, what)));
    }
}
