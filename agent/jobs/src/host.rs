//! The host's part: lends this node's resources, and knows what runs on them.
//!
//! ```text
//!            Start            shim started it        shim saw its end       Settled
//!  (leased) ───────▶ Preparing ─────────▶ Running ─────────▶ Ended ─────────▶ (gone)
//!                        │                   │
//!                        └───────────────────┴──▶ Fenced ──▶ (gone)
//!                             its epoch is over
//! ```
//!
//! After a restart of the agent, [`Event::Adopted`] tells what the shims kept; reservations are gone with the
//! old agent. Until the home has answered the first heartbeat, nobody knows how old its last word is: so long
//! its `Start`s are refused, as they would prolong the lease of the runs that are here already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use libgrid::ids::{NodeId, Run};
use libgrid::node::Resources;
use libgrid::status::MovePhase;

use crate::message::{Alive, End, LeaseId, Order, Placement, ToHome, ToHost};
use crate::{HEARTBEAT, LEASE, Now, RESERVATION};

/// How often an end is told again until it is settled.
const RETELL: Duration = Duration::from_secs(2);

/// How long a task stays frozen, waiting for a home node that does not come back.
const ORPHAN: Duration = Duration::from_secs(24 * 3600);

/// How long results are kept for a home of which nothing is heard.
const KEPT: Duration = Duration::from_secs(8 * 24 * 3600);

/// A pause between two heartbeats that is none of ours: the machine slept, and has to hear of others again first.
const SLEPT: Duration = Duration::from_secs(60);

/// The most reservations and runs that one home node can have here at once.
const MOST: usize = 20_000;

/// What happens to a host.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message from a home node.
    Message {
        /// Who sent it, as its certificate says.
        from: NodeId,
        /// What it says.
        message: ToHost,
    },
    /// A shim kept this run while the agent was away.
    Adopted {
        /// Which.
        run: Run,
        /// What it takes.
        needs: Resources,
        /// Since when it runs.
        started: SystemTime,
        /// Whether it stands still, because it moved when the agent went away.
        held: bool,
        /// How it ended, if it did.
        end: Option<End>,
    },
    /// A task that moves here, or from here, stands still.
    Held(Run),
    /// A task that moves here is so far.
    Moving {
        /// The run that is to be.
        run: Run,
        /// How far.
        phase: MovePhase,
        /// How long the task has been standing still, if that has just become known.
        stood: Option<Duration>,
        /// How much of its memory came so far.
        bytes: u64,
    },
    /// A task cannot move here; nothing is left of this run.
    NotMoved {
        /// The run that was to be.
        run: Run,
        /// Why: a sentence.
        why: String,
    },
    /// A task's processes run.
    Started {
        /// Which.
        run: Run,
        /// Since when.
        at: SystemTime,
        /// The checkpoint that they were made from.
        resumed: Option<u64>,
    },
    /// The newest checkpoint of a task has this number.
    Saved {
        /// Its run here.
        run: Run,
        /// From 1.
        number: u64,
    },
    /// A task ended, or could not be started.
    Ended {
        /// Which.
        run: Run,
        /// How.
        end: End,
    },
    /// A run that was fenced has ended, or a shim was lost with it.
    Gone(Run),
    /// The node's owner wants no more tasks here, or wants them again.
    Drain(bool),
    /// This node was put out of the VO, or that home was: its runs end.
    Evicted(NodeId),
    /// Time passes; at least every [`HEARTBEAT`].
    Tick,
}

/// What a host wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this message.
    Send {
        /// To which home node.
        to: NodeId,
        /// What it says.
        message: ToHome,
    },
    /// Start a task: [`Event::Started`] or [`Event::Ended`] follows.
    Launch {
        /// Which.
        run: Run,
        /// What to run.
        order: Order,
        /// What is known of its checkpoints.
        placement: Placement,
    },
    /// Send a signal to a task.
    Signal {
        /// Which.
        run: Run,
        /// From 1 to 64.
        signal: i32,
        /// SIGKILL after that.
        grace: Option<Duration>,
    },
    /// End a run: [`Event::Gone`] follows.
    Fence(Run),
    /// Let this node have the run, when it asks for it.
    Depart {
        /// Which.
        run: Run,
        /// Whereto.
        to: NodeId,
        /// Of the run that is to be there: to no other it is given.
        epoch: u32,
    },
    /// Let a run go that is held.
    LetGo(Run),
    /// The tasks of this home may run until then, in the time of [`Now::mono`].
    Lease {
        /// Whose tasks.
        home: NodeId,
        /// Frozen after that.
        until: Duration,
    },
    /// Forget a run that ended, and remove what it left.
    Forget(Run),
}

#[derive(Debug)]
struct Reserved {
    home: NodeId,
    each: Resources,
    left: u32,
    granted: Duration,
}

#[derive(Debug)]
enum Phase {
    Preparing,
    Running(SystemTime),
    Ended { end: Box<End>, told: Duration, retold: u32 },
    Fenced,
}

#[derive(Debug)]
struct Hosted {
    needs: Resources,
    phase: Phase,
    resumed: Option<u64>,
    saved: Option<u64>,
    held: bool,
    /// Whether it moves here, and is not this node's before it is let go.
    arrives: bool,
    /// The node that may take it away.
    departs: Option<(NodeId, u32)>,
    /// Moves of it up to this epoch are over.
    past: u32,
}

/// What this node knows of a home whose tasks it runs.
#[derive(Debug, Default)]
struct Contact {
    /// When the last message was sent that the home is known to have received, if this agent knows.
    at: Option<Duration>,
    /// Since when it is waited for: this agent began, or the machine woke up.
    since: Duration,
    /// When the heartbeats were sent that are not answered yet, by number.
    unanswered: BTreeMap<u64, Duration>,
}

/// The host's state machine.
#[derive(Debug)]
pub struct Host {
    me: NodeId,
    total: Resources,
    free: Resources,
    draining: bool,
    leases: HashMap<LeaseId, Reserved>,
    runs: BTreeMap<Run, Hosted>,
    contacts: HashMap<NodeId, Contact>,
    seq: u64,
    beat: Duration,
}

impl Host {
    /// A host that lends `total`.
    pub fn new(me: NodeId, total: Resources) -> Self {
        Self {
            me,
            total,
            free: total,
            draining: false,
            leases: HashMap::new(),
            runs: BTreeMap::new(),
            contacts: HashMap::new(),
            seq: 0,
            beat: Duration::ZERO,
        }
    }

    /// What is neither reserved nor in use; nothing on a node that takes no more tasks.
    pub fn free(&self) -> Resources {
        if self.draining { Resources::default() } else { self.free }
    }

    /// Whether this node takes no more tasks.
    pub fn is_drained(&self) -> bool {
        self.draining
    }

    /// What this node lends in all.
    pub fn total(&self) -> Resources {
        self.total
    }

    /// How many tasks are here and have not ended.
    pub fn tasks(&self) -> usize {
        self.runs.values().filter(|hosted| !matches!(hosted.phase, Phase::Ended { .. })).count()
    }

    /// Whether this run is here, in whatever phase.
    pub fn has(&self, run: Run) -> bool {
        self.runs.contains_key(&run)
    }

    /// The runs that are here.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.keys().copied()
    }

    /// The runs that are here, and have not ended.
    pub fn running(&self) -> impl Iterator<Item = Run> {
        let alive = |hosted: &Hosted| matches!(hosted.phase, Phase::Preparing | Phase::Running(_));
        self.runs.iter().filter(move |(_, hosted)| alive(hosted)).map(|(run, _)| *run)
    }

    /// The runs that ended, and whose results their homes do not take for some time now.
    pub fn kept(&self) -> impl Iterator<Item = Run> {
        let kept = |hosted: &Hosted| matches!(hosted.phase, Phase::Ended { retold: 2.., .. });
        self.runs.iter().filter(move |(_, hosted)| kept(hosted)).map(|(run, _)| *run)
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Message { from, message } => self.hear(now, from, message, &mut actions),
            Event::Adopted { run, needs, started, held, end } => {
                self.adopt(now, run, needs, started, end, &mut actions);
                if let Some(hosted) = self.runs.get_mut(&run) {
                    hosted.held = held;
                }
            }
            Event::Held(run) => {
                if let Some(hosted) = self.runs.get_mut(&run) {
                    hosted.held = true;
                    if hosted.arrives {
                        let message = ToHome::Arrived(run);
                        actions.push(Action::Send { to: run.task.job.home, message });
                    }
                }
            }
            Event::Moving { run, phase, stood, bytes } => {
                let message = ToHome::Moving { run, phase, stood, bytes };
                actions.push(Action::Send { to: run.task.job.home, message });
            }
            Event::NotMoved { run, why } => {
                if self.remove(run).is_some() {
                    actions.push(Action::Forget(run));
                }
                let message = ToHome::NotMoved { run, why };
                actions.push(Action::Send { to: run.task.job.home, message });
            }
            Event::Started { run, at, resumed } => {
                if let Some(hosted @ Hosted { phase: Phase::Preparing, .. }) = self.runs.get_mut(&run) {
                    hosted.phase = Phase::Running(at);
                    hosted.held = false;
                    hosted.resumed = resumed;
                    let message = ToHome::Started { run, at, resumed };
                    actions.push(Action::Send { to: run.task.job.home, message });
                }
            }
            // The next heartbeat tells of it.
            Event::Saved { run, number } => {
                if let Some(hosted) = self.runs.get_mut(&run) {
                    hosted.saved = Some(number);
                }
            }
            Event::Ended { run, end } => self.ended(now, run, end, &mut actions),
            Event::Gone(run) => {
                if self.remove(run).is_some() {
                    actions.push(Action::Forget(run));
                    // Also if it was fenced: its home may want to know when the next can start.
                    let message = ToHome::Gone(vec![run]);
                    actions.push(Action::Send { to: run.task.job.home, message });
                }
            }
            Event::Drain(draining) => self.draining = draining,
            Event::Evicted(home) => {
                let runs: Vec<_> =
                    self.runs.keys().copied().filter(|run| run.task.job.home == home).collect();
                runs.into_iter().for_each(|run| self.fence(run, &mut actions));
                self.contacts.remove(&home);
            }
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn hear(&mut self, now: Now, from: NodeId, message: ToHost, actions: &mut Vec<Action>) {
        match message {
            ToHost::Reserve { lease, each, count } => {
                let used = self.leases.values().filter(|reserved| reserved.home == from).count();
                let known = self.leases.contains_key(&lease) || used >= MOST;
                let count = if known { 0 } else { count.min(self.free().fits(each)).min(MOST as u32) };
                if count > 0 {
                    self.free = self.free.minus(each.times(count));
                    let reserved = Reserved { home: from, each, left: count, granted: now.mono };
                    self.leases.insert(lease, reserved);
                }
                let message = ToHome::Granted { lease, count, free: self.free() };
                actions.push(Action::Send { to: from, message });
            }
            ToHost::Release(lease) => {
                if self.leases.get(&lease).is_some_and(|reserved| reserved.home == from) {
                    self.release(lease);
                }
            }
            ToHost::Start { lease, order, tasks } if order.job.home == from => {
                self.start(from, lease, order, tasks, actions);
            }
            // Only a job's own home places its tasks.
            ToHost::Start { .. } => (),
            ToHost::Keeping(runs) => {
                let gone = |run: &Run| run.task.job.home == from && !self.runs.contains_key(run);
                let gone: Vec<Run> = runs.into_iter().filter(gone).collect();
                if !gone.is_empty() {
                    actions.push(Action::Send { to: from, message: ToHome::Gone(gone) });
                }
            }
            ToHost::Signal { run, signal, grace } => {
                if run.task.job.home == from && self.runs.contains_key(&run) {
                    actions.push(Action::Signal { run, signal, grace });
                }
            }
            ToHost::Depart { run, to, epoch } => {
                if let Some(hosted) = self.runs.get_mut(&run).filter(|_| run.task.job.home == from)
                    && epoch > hosted.past
                    && hosted.departs.is_none_or(|(_, known)| known <= epoch)
                {
                    // Told again with each heartbeat, for those that were started since.
                    if hosted.departs.replace((to, epoch)) != Some((to, epoch)) {
                        actions.push(Action::Depart { run, to, epoch });
                    }
                }
            }
            ToHost::LetGo { run, past } => {
                if let Some(hosted) = self.runs.get_mut(&run).filter(|_| run.task.job.home == from) {
                    hosted.past = hosted.past.max(past);
                    // A later move has begun, and may have taken it as it stands here.
                    if hosted.departs.is_none_or(|(_, epoch)| epoch <= past) {
                        (hosted.held, hosted.arrives, hosted.departs) = (false, false, None);
                        actions.push(Action::LetGo(run));
                    }
                }
            }
            ToHost::Pulse { seq, fence } => {
                // First: the new lease thaws, and a run whose epoch is over is not to do a thing more.
                for run in fence.into_iter().filter(|run| run.task.job.home == from) {
                    self.fence(run, actions);
                }
                self.contact(from, seq, actions);
            }
            ToHost::Settled(runs) => {
                for run in runs.into_iter().filter(|run| run.task.job.home == from) {
                    if matches!(self.runs.get(&run), Some(Hosted { phase: Phase::Ended { .. }, .. })) {
                        self.remove(run);
                        actions.push(Action::Forget(run));
                    }
                }
            }
        }
    }

    fn start(
        &mut self,
        home: NodeId,
        lease: LeaseId,
        order: Order,
        tasks: Vec<Placement>,
        actions: &mut Vec<Action>,
    ) {
        let mut gone = Vec::new();
        let mut begun = false;
        for placement in tasks {
            let run = Run { task: order.job.task(placement.index), epoch: placement.epoch };
            if self.runs.contains_key(&run) {
                continue;
            }
            let in_contact =
                self.contacts.get(&home).is_none_or(|contact| contact.at.is_some()) || home == self.me;
            let reserved = self.leases.get_mut(&lease).filter(|reserved| {
                let mine = reserved.home == home && reserved.each == order.spec.needs();
                in_contact && mine && reserved.left > 0
            });
            let Some(reserved) = reserved else {
                gone.push(run);
                continue;
            };
            begun = true;
            // The home has the grant: it knew then that this node was there. Runs that are here already have
            // their own, which the home may know to be older.
            let first = Contact { at: Some(reserved.granted), ..Contact::default() };
            self.contacts.entry(home).or_insert(first);
            reserved.left -= 1;
            // An older run of the task is over, whatever it is doing.
            let older: Vec<_> =
                self.runs.range(Run { task: run.task, epoch: 0 }..run).map(|(run, _)| *run).collect();
            older.into_iter().for_each(|run| self.fence(run, actions));
            let arrives = placement.arrives.is_some();
            self.runs.insert(run, Hosted { arrives, ..Hosted::new(order.spec.needs(), Phase::Preparing) });
            actions.push(Action::Launch { run, order: order.clone(), placement });
        }
        if begun {
            self.renew(home, actions);
        }
        if self.leases.get(&lease).is_some_and(|reserved| reserved.home == home) {
            self.release(lease);
        }
        if !gone.is_empty() {
            actions.push(Action::Send { to: home, message: ToHome::Gone(gone) });
        }
    }

    fn adopt(
        &mut self,
        now: Now,
        run: Run,
        needs: Resources,
        started: SystemTime,
        end: Option<End>,
        actions: &mut Vec<Action>,
    ) {
        self.free = self.free.minus(needs);
        self.runs.insert(run, Hosted::new(needs, Phase::Running(started)));
        // How old the last contact is, only the shim knows; it holds on to its own deadline until we renew it.
        self.contacts.entry(run.task.job.home).or_default().since = now.mono;
        if let Some(end) = end {
            self.ended(now, run, end, actions);
        }
    }

    fn ended(&mut self, now: Now, run: Run, end: End, actions: &mut Vec<Action>) {
        let Some(hosted) = self.runs.get_mut(&run) else { return };
        let was = std::mem::replace(&mut hosted.phase, Phase::Fenced);
        match was {
            Phase::Preparing | Phase::Running(_) => {
                hosted.phase = Phase::Ended { end: Box::new(end.clone()), told: now.mono, retold: 0 };
                // What it used is free; what it left is kept until the home has it.
                let needs = std::mem::take(&mut hosted.needs);
                self.free = self.free.plus(needs);
                actions.push(Action::Send { to: run.task.job.home, message: ToHome::Ended { run, end } });
            }
            Phase::Ended { .. } => hosted.phase = was,
            Phase::Fenced => {
                self.remove(run);
                actions.push(Action::Forget(run));
                let message = ToHome::Gone(vec![run]);
                actions.push(Action::Send { to: run.task.job.home, message });
            }
        }
    }

    fn fence(&mut self, run: Run, actions: &mut Vec<Action>) {
        let Some(hosted) = self.runs.get_mut(&run) else { return };
        match hosted.phase {
            Phase::Ended { .. } => {
                self.remove(run);
                actions.push(Action::Forget(run));
            }
            Phase::Preparing | Phase::Running(_) => {
                hosted.phase = Phase::Fenced;
                actions.push(Action::Fence(run));
            }
            // Asked again: the shim may not have heard.
            Phase::Fenced => actions.push(Action::Fence(run)),
        }
    }

    fn remove(&mut self, run: Run) -> Option<Hosted> {
        let hosted = self.runs.remove(&run)?;
        self.free = self.free.plus(hosted.needs);
        Some(hosted)
    }

    fn release(&mut self, lease: LeaseId) {
        if let Some(reserved) = self.leases.remove(&lease) {
            self.free = self.free.plus(reserved.each.times(reserved.left));
        }
    }

    fn contact(&mut self, home: NodeId, seq: u64, actions: &mut Vec<Action>) {
        let Some(contact) = self.contacts.get_mut(&home) else { return };
        let Some(sent) = contact.unanswered.get(&seq).copied() else { return };
        contact.unanswered = contact.unanswered.split_off(&(seq + 1));
        contact.at = contact.at.max(Some(sent));
        self.renew(home, actions);
    }

    fn renew(&self, home: NodeId, actions: &mut Vec<Action>) {
        // The agent and its tasks' home are one: if they are lost, they are lost together.
        if home != self.me
            && let Some(at) = self.contacts.get(&home).and_then(|contact| contact.at)
        {
            actions.push(Action::Lease { home, until: at + LEASE });
        }
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        let over: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, reserved)| now.mono > reserved.granted + RESERVATION)
            .map(|(lease, _)| *lease)
            .collect();
        over.into_iter().for_each(|lease| self.release(lease));
        if now.mono < self.beat + HEARTBEAT {
            return;
        }
        if now.mono > self.beat + SLEPT {
            self.contacts.values_mut().for_each(|contact| contact.since = now.mono);
        }
        self.beat = now.mono;
        let mut homes: BTreeMap<NodeId, Vec<Alive>> = BTreeMap::new();
        let mut orphans = BTreeSet::new();
        for (run, hosted) in &mut self.runs {
            let home = run.task.job.home;
            let since = match &mut hosted.phase {
                Phase::Running(since) => Some(*since),
                Phase::Ended { end, told, retold } if now.mono >= *told + RETELL => {
                    *told = now.mono;
                    *retold = retold.saturating_add(1);
                    let end = (**end).clone();
                    actions.push(Action::Send { to: home, message: ToHome::Ended { run: *run, end } });
                    None
                }
                _ => None,
            };
            let contact = self.contacts.entry(home).or_default();
            let patience = if matches!(hosted.phase, Phase::Ended { .. }) { KEPT } else { ORPHAN };
            let last = contact.at.map_or(contact.since, |at| at.max(contact.since));
            if home != self.me && now.mono > last + patience {
                orphans.insert(*run);
            }
            let Hosted { resumed, saved, held, .. } = *hosted;
            homes.entry(home).or_default().push(Alive { run: *run, since, resumed, saved, held });
        }
        self.contacts.retain(|home, _| homes.contains_key(home));
        for (home, runs) in homes {
            self.seq += 1;
            let Some(contact) = self.contacts.get_mut(&home) else { continue };
            contact.unanswered.insert(self.seq, now.mono);
            while contact.unanswered.len() > 16 {
                contact.unanswered.pop_first();
            }
            let message = ToHome::Heartbeat { seq: self.seq, runs, free: self.free() };
            actions.push(Action::Send { to: home, message });
        }
        orphans.into_iter().for_each(|run| self.fence(run, actions));
    }
}

impl Hosted {
    fn new(needs: Resources, phase: Phase) -> Self {
        Self { needs, phase, resumed: None, saved: None, held: false, arrives: false, departs: None, past: 0 }
    }
}
