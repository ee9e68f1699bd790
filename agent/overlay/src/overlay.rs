//! The overlay itself: events in, actions out.

mod ourselves;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, Member as SwimMember, OwnedNotification, State};
use libgrid::ids::NodeId;
use libgrid::node::NodeInfo;
use libgrid::wire;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::config::OverlayConfig;
use crate::event::{Action, Event};
use crate::identity::Id;
use crate::info::{Shared, Version, trim};
use crate::member::{Member, MemberState};
use crate::message::{Body, Datagram, Entry, Has, SwimCodec, claimed_sender, decode};
use crate::sync;
use crate::timers::Timers;

/// How often states are looked over, and what is missing asked for.
const TICK: Duration = Duration::from_secs(1);

/// Membership of one sub-grid, as this node sees it.
pub struct Overlay {
    config: OverlayConfig,
    me: NodeId,
    shared: Shared,
    foca: Foca<Id, SwimCodec, SmallRng, Shared>,
    runtime: AccumulatingRuntime<Id>,
    timers: Timers,
    rng: SmallRng,
    /// Everybody of whom something was told.
    members: BTreeMap<NodeId, Member>,
    /// Those who are there, told of or not.
    active: BTreeSet<NodeId>,
    /// Those whom we were told to meet, and have not met.
    contacts: BTreeMap<NodeId, Contact>,
    version: Version,
    /// Our information changed and was not told yet.
    untold: bool,
    last_told: Option<Duration>,
    next_tick: Duration,
    next_sync: Duration,
    /// Doubles from a tick to the configured time while nothing new is found.
    sync_wait: Duration,
    next_retry: Duration,
    /// The number of nodes that foca was configured for.
    configured: usize,
    left: bool,
}

struct Contact {
    addrs: Vec<SocketAddr>,
    next: Duration,
    wait: Duration,
}

impl Overlay {
    /// A node that knows itself alone. The same `seed` and events give the same actions.
    pub fn new(me: NodeInfo, config: OverlayConfig, seed: u64) -> Self {
        let me = trim(me);
        let node = me.node;
        let shared = Shared::new(node);
        let mut rng = SmallRng::seed_from_u64(seed);
        let foca = Foca::with_custom_broadcast(
            Id::new(node, config.incarnation, &me.addrs),
            config.swim(1),
            SmallRng::from_rng(&mut rng),
            SwimCodec(shared.clone()),
            shared.clone(),
        );
        let member = Member { info: me, state: MemberState::Alive, seen: Duration::ZERO };
        let mut overlay = Self {
            version: Version { start: config.incarnation, count: 0 },
            config,
            me: node,
            shared,
            foca,
            runtime: AccumulatingRuntime::new(),
            timers: Timers::new(),
            rng,
            members: BTreeMap::from([(node, member)]),
            active: BTreeSet::new(),
            contacts: BTreeMap::new(),
            untold: true,
            last_told: None,
            next_tick: Duration::ZERO,
            next_sync: Duration::MAX,
            sync_wait: TICK,
            next_retry: Duration::ZERO,
            configured: 1,
            left: false,
        };
        overlay.tell(Duration::ZERO);
        overlay
    }

    /// Takes what happened, at a time since any fixed origin that never goes back, and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.left {
            return actions;
        }
        self.timers.forgive_stall(now);
        self.take(now, event, &mut actions);
        self.drain(now, &mut actions);
        while !self.left
            && let Some(timer) = self.timers.take_due(now)
        {
            self.report(|foca, runtime| foca.handle_timer(timer, runtime));
            self.drain(now, &mut actions);
        }
        if !self.left {
            self.outbid(now);
            self.tick(now, &mut actions);
            self.drain(now, &mut actions);
        }
        actions
    }

    /// When to call [`Overlay::handle`] with [`Event::Wakeup`], unless something happens before.
    pub fn next_wakeup(&self) -> Option<Duration> {
        if self.left {
            return None;
        }
        let own = self.next_tick.min(self.next_sync);
        Some(self.timers.next().map_or(own, |timer| timer.min(own)))
    }

    /// Ourselves, all who are there, and those who went down not long ago; by number.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One of them.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    fn take(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Wakeup => {}
            Event::Datagram { from, bytes } => self.receive(now, from, &bytes, actions),
            Event::Meet { node, addrs } => {
                if node != self.me && !self.shared.facts().evicted.contains(&node) {
                    let wait = TICK;
                    self.contacts.insert(node, Contact { addrs, next: now, wait });
                    self.next_tick = now;
                }
            }
            Event::Info(info) => self.inform(now, info),
            Event::Evict(node) => self.evict(now, node, actions),
            Event::Admit(node) => {
                self.shared.facts().evicted.remove(&node);
            }
            Event::Leave => {
                self.report(|foca, runtime| foca.leave_cluster(runtime));
                self.drain(now, actions);
                self.left = true;
            }
        }
    }

    fn receive(&mut self, now: Duration, from: NodeId, bytes: &[u8], actions: &mut Vec<Action>) {
        if from == self.me || self.shared.facts().evicted.contains(&from) {
            return;
        }
        let datagram = decode(bytes).filter(|datagram| datagram.sub_grid == self.config.sub_grid);
        let Some(datagram) = datagram else {
            tracing::debug!(%from, bytes = bytes.len(), "overlay.datagram_refused");
            return;
        };
        if let Some(member) = self.members.get_mut(&from) {
            member.seen = now;
        }
        match datagram.body {
            Body::Swim(swim) if claimed_sender(&swim) == Some(from) => {
                self.report(|foca, runtime| foca.handle_data(&swim, runtime));
            }
            Body::Swim(_) => tracing::debug!(%from, "overlay.datagram_refused"),
            Body::Digest { first, last, has } => self.push(from, (first, last, &has), actions),
            Body::Push(entries) => self.learn(now, entries),
        }
    }

    /// Answers a digest.
    fn push(&self, to: NodeId, digest: (NodeId, NodeId, &[Has]), actions: &mut Vec<Action>) {
        let ourselves = self.ourselves();
        let members = self.foca.iter_membership_state().chain([&ourselves]);
        let answer = sync::answer(self.config.sub_grid, digest, members, &self.shared.facts());
        let addrs = self.addrs(to);
        actions.extend(answer.iter().filter_map(|datagram| send(to, &addrs, datagram)));
    }

    /// Takes what answers our digest.
    fn learn(&mut self, now: Duration, entries: Vec<Entry>) {
        let mut members = Vec::new();
        {
            let mut facts = self.shared.facts();
            for Entry { member, told } in entries {
                if facts.evicted.contains(&member.id().node) {
                    continue;
                }
                facts.note(member.id());
                if let Some(told) = told {
                    facts.learn_from_others(told);
                }
                members.push(member);
            }
        }
        let before = self.foca.num_members();
        self.report(|foca, runtime| foca.apply_many(members.into_iter(), false, runtime));
        if self.foca.num_members() > before {
            // There may be more than one answer holds.
            self.sync_soon(now + TICK);
        }
    }

    fn evict(&mut self, now: Duration, node: NodeId, actions: &mut Vec<Action>) {
        if node == self.me {
            return;
        }
        self.contacts.remove(&node);
        let known = self.foca.iter_members().find(|member| member.id().node == node).cloned();
        if let Some(known) = known {
            let down = SwimMember::new(known.id().clone(), known.incarnation(), State::Down);
            self.report(|foca, runtime| foca.apply_many([down].into_iter(), true, runtime));
            self.drain(now, actions);
        }
        let mut facts = self.shared.facts();
        facts.evicted.insert(node);
        facts.forget(node);
        self.members.remove(&node);
    }

    /// Does what foca asked for, and tells what it and the news have changed.
    fn drain(&mut self, now: Duration, actions: &mut Vec<Action>) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers.add(now + after, timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(id) => self.up(now, id.node, actions),
                OwnedNotification::MemberDown(id) => self.down(now, id.node, actions),
                OwnedNotification::Active => self.sync_soon(now),
                _ => {}
            }
        }
        let changed = self.shared.facts().take_changed();
        for node in changed {
            self.changed(now, node, actions);
        }
        while let Some((id, bytes)) = self.runtime.to_send() {
            let datagram = Datagram { sub_grid: self.config.sub_grid, body: Body::Swim(bytes.to_vec()) };
            if self.shared.facts().evicted.contains(&id.node) {
                continue;
            }
            let mut addrs = self.addrs(id.node);
            if addrs.is_empty() {
                addrs = id.addrs;
            }
            actions.extend(send(id.node, &addrs, &datagram));
        }
    }

    fn up(&mut self, now: Duration, node: NodeId, actions: &mut Vec<Action>) {
        self.active.insert(node);
        // Otherwise it is up once it has told something.
        if let Some(told) = self.shared.facts().told(node) {
            let info = told.info.clone();
            self.members.insert(node, Member { info: info.clone(), state: MemberState::Alive, seen: now });
            actions.push(Action::Up(info));
        }
    }

    fn down(&mut self, now: Duration, node: NodeId, actions: &mut Vec<Action>) {
        self.active.remove(&node);
        if let Some(member) = self.members.get_mut(&node)
            && member.state != MemberState::Down
        {
            member.state = MemberState::Down;
            member.seen = now;
            actions.push(Action::Down(node));
        }
    }

    fn changed(&mut self, now: Duration, node: NodeId, actions: &mut Vec<Action>) {
        if node == self.me {
            return;
        }
        let Some(info) = self.shared.facts().told(node).map(|told| told.info.clone()) else { return };
        let is_there = self.active.contains(&node);
        match self.members.get_mut(&node) {
            Some(member) if member.state != MemberState::Down && member.info == info => {}
            Some(member) if member.state != MemberState::Down => {
                member.info = info.clone();
                actions.push(Action::Changed(info));
            }
            _ if is_there => {
                self.members
                    .insert(node, Member { info: info.clone(), state: MemberState::Alive, seen: now });
                actions.push(Action::Up(info));
            }
            Some(member) => member.info = info,
            None => {}
        }
    }

    /// Where a node listens, as it told itself or as others know.
    fn addrs(&self, node: NodeId) -> Vec<SocketAddr> {
        if let Some(told) = self.shared.facts().told(node)
            && !told.info.addrs.is_empty()
        {
            return told.info.addrs.clone();
        }
        let known = self.foca.iter_membership_state().find(|member| member.id().node == node);
        known.map(|member| member.id().addrs.clone()).unwrap_or_default()
    }

    /// Lets foca work. Its errors are about datagrams that are not worth more than a line in the log.
    fn report(
        &mut self,
        work: impl FnOnce(
            &mut Foca<Id, SwimCodec, SmallRng, Shared>,
            &mut AccumulatingRuntime<Id>,
        ) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = work(&mut self.foca, &mut self.runtime) {
            tracing::debug!(%error, "overlay.swim");
        }
    }
}

fn send(to: NodeId, addrs: &[SocketAddr], datagram: &Datagram) -> Option<Action> {
    // Far below the limit of a frame.
    let bytes = wire::encode(datagram).ok()?;
    Some(Action::Send { to, addrs: addrs.to_vec(), bytes })
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("me", &self.me)
            .field("active", &self.active.len())
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}
