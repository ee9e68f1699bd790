//! What an overlay does from time to time, whatever happens.

use std::time::Duration;

use foca::State;
use rand::seq::IteratorRandom;

use super::{Overlay, TICK, send};
use crate::event::Action;
use crate::identity::Id;
use crate::member::{Member, MemberState};
use crate::sync;

/// How many nodes of which nothing is told are asked in one tick.
const ASKED: usize = 8;

impl Overlay {
    /// What is done from time to time.
    pub(super) fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if now >= self.next_sync {
            self.next_sync = now + self.sync_wait;
            self.sync_wait = (self.sync_wait * 2).min(self.config.sync);
            self.sync(actions);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.tell(now);
        self.look_over(now);
        self.try_contacts(now);
        if now >= self.next_retry {
            self.next_retry = now + self.config.retry;
            self.retry_one();
        }
        self.ask_the_silent(actions);
        let size = self.foca.num_members() + 1;
        if size != self.configured {
            self.configured = size;
            let config = self.config.swim(size);
            self.report(|foca, _| foca.set_config(config));
        }
    }

    /// Something is new: look closer for a while.
    pub(super) fn sync_soon(&mut self, at: Duration) {
        self.next_sync = self.next_sync.min(at);
        self.sync_wait = TICK;
    }

    /// Compares what we know with somebody.
    fn sync(&mut self, actions: &mut Vec<Action>) {
        let Some(&to) = self.active.iter().choose(&mut self.rng) else { return };
        let ourselves = self.ourselves();
        let members = self.foca.iter_members().chain([&ourselves]);
        let digests = sync::digests(self.config.sub_grid, members, &self.shared.facts());
        let addrs = self.addrs(to);
        actions.extend(digests.iter().filter_map(|datagram| send(to, &addrs, datagram)));
    }

    /// Who is suspected, and who is forgotten.
    fn look_over(&mut self, now: Duration) {
        for swim in self.foca.iter_members() {
            if let Some(member) = self.members.get_mut(&swim.id().node) {
                member.state = match swim.state() {
                    State::Alive => MemberState::Alive,
                    State::Suspect => MemberState::Suspect,
                    State::Down => MemberState::Down,
                };
            }
        }
        let remember = self.config.remember;
        let old = |member: &Member| member.state == MemberState::Down && member.seen + remember < now;
        let mut facts = self.shared.facts();
        self.members.retain(|node, member| {
            let keep = !old(member);
            if !keep {
                facts.forget(*node);
            }
            keep
        });
    }

    /// Announces us to those whom we have not met.
    fn try_contacts(&mut self, now: Duration) {
        self.contacts.retain(|node, _| !self.active.contains(node));
        let mut due = Vec::new();
        for (node, contact) in &mut self.contacts {
            if now >= contact.next {
                contact.next = now + contact.wait;
                contact.wait = (contact.wait * 2).min(self.config.retry);
                due.push(Id::new(*node, 0, &contact.addrs));
            }
        }
        for id in due {
            self.report(|foca, runtime| foca.announce(id, runtime));
        }
    }

    /// Announces us to one of those who are down: it may only have been cut off.
    fn retry_one(&mut self) {
        let down = self.foca.iter_membership_state().filter(|member| member.state() == State::Down);
        let Some(id) = down.map(|member| member.id().clone()).choose(&mut self.rng) else { return };
        if !self.shared.facts().evicted.contains(&id.node) {
            self.report(|foca, runtime| foca.announce(id, runtime));
        }
    }

    /// Asks those who are there and of whom nothing is told.
    fn ask_the_silent(&self, actions: &mut Vec<Action>) {
        let silent = self.active.iter().filter(|node| !self.members.contains_key(node));
        for &node in silent.take(ASKED) {
            let addrs = self.addrs(node);
            actions.extend(send(node, &addrs, &sync::ask_about(self.config.sub_grid, node)));
        }
    }
}
