//! What an overlay says of its own node.

use std::time::Duration;

use foca::Member as SwimMember;
use libgrid::node::NodeInfo;
use libgrid::wire;

use super::Overlay;
use crate::identity::Id;
use crate::info::{Told, Version, trim};

impl Overlay {
    /// Takes what this node has from now on.
    pub(super) fn inform(&mut self, now: Duration, info: NodeInfo) {
        if info.node != self.me {
            return;
        }
        let info = trim(info);
        let identity = self.foca.identity();
        let moved = Id::new(self.me, identity.incarnation.saturating_add(1), &info.addrs);
        if moved.addrs != identity.addrs {
            self.report(|foca, runtime| foca.change_identity(moved, runtime));
        }
        if let Some(member) = self.members.get_mut(&self.me) {
            self.untold |= member.info != info;
            member.info = info;
        }
        // Not at once, if it was told just now: `tick` comes soon.
        self.tell(now);
    }

    /// Spreads what we have, if it changed and enough time has passed.
    pub(super) fn tell(&mut self, now: Duration) {
        let too_soon = self.last_told.is_some_and(|last| now < last + self.config.tell);
        if !self.untold || too_soon {
            return;
        }
        let Some(member) = self.members.get(&self.me) else { return };
        self.version.count += 1;
        let told = Told { version: self.version, info: member.info.clone() };
        self.shared.facts().learn(told.clone());
        match wire::encode(&told) {
            Ok(bytes) => self.report(|foca, _| foca.add_broadcast(&bytes).map(|_| ())),
            Err(error) => tracing::warn!(%error, "overlay.info_not_told"),
        }
        self.untold = false;
        self.last_told = Some(now);
    }

    /// Goes above what others know of a former life of ours.
    pub(super) fn outbid(&mut self, now: Duration) {
        let (incarnation, start) = {
            let mut facts = self.shared.facts();
            (facts.outbid, facts.outtold.take())
        };
        let identity = self.foca.identity();
        if incarnation > identity.incarnation {
            let higher = Id { incarnation: incarnation.saturating_add(1), ..identity.clone() };
            self.report(|foca, runtime| foca.change_identity(higher, runtime));
        }
        if let Some(start) = start {
            self.version = Version { start: start.saturating_add(1), count: 0 };
            self.untold = true;
            self.last_told = None;
            self.tell(now);
        }
    }

    /// Ourselves as a member. Receivers that know more keep what they know.
    pub(super) fn ourselves(&self) -> SwimMember<Id> {
        SwimMember::alive(self.foca.identity().clone())
    }
}
