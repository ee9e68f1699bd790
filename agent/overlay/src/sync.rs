//! Repair: what a digest holds, and what answers it.

use foca::{Member, State};
use libgrid::ids::NodeId;
use libgrid::wire;

use crate::config::SubGrid;
use crate::identity::Id;
use crate::info::{Facts, Version};
use crate::message::{Body, Datagram, Entry, Has, MAX_DATAGRAM};

/// What one digest is answered with at most, in datagrams; a newcomer asks again for the rest.
const MAX_ANSWER: usize = 100;

/// Room for entries in a datagram: what surrounds them takes at most 5 + 1 + 5 + 5 + 3 bytes.
const ROOM: usize = MAX_DATAGRAM - 20;

/// What we have, as digests of one datagram each, which together cover all numbers.
pub(crate) fn digests<'a>(
    sub_grid: SubGrid,
    members: impl Iterator<Item = &'a Member<Id>>,
    facts: &Facts,
) -> Vec<Datagram> {
    let mut has: Vec<Has> = members.map(|member| has(member, facts)).collect();
    has.sort_by_key(|has| has.node);
    let chunks = fill(has);
    let mut first = NodeId(0);
    let count = chunks.len().max(1);
    let mut digests = Vec::with_capacity(count);
    for (place, has) in chunks.into_iter().chain(std::iter::once(Vec::new())).take(count).enumerate() {
        // Each range begins after the last, so that a number that falls between two is asked for.
        let last =
            if place + 1 == count { NodeId(u32::MAX) } else { has.last().map_or(first, |has| has.node) };
        digests.push(Datagram { sub_grid, body: Body::Digest { first, last, has } });
        first = NodeId(last.0.saturating_add(1));
    }
    digests
}

/// What one node alone has told.
pub(crate) fn ask_about(sub_grid: SubGrid, node: NodeId) -> Datagram {
    Datagram { sub_grid, body: Body::Digest { first: node, last: node, has: Vec::new() } }
}

/// What answers a digest: all in its range that is newer here, who is down to us though not to the asker, and whom
/// we suspect.
pub(crate) fn answer<'a>(
    sub_grid: SubGrid,
    (first, last, has): (NodeId, NodeId, &[Has]),
    members: impl Iterator<Item = &'a Member<Id>>,
    facts: &Facts,
) -> Vec<Datagram> {
    let lacks = |member: &&Member<Id>| {
        let node = member.id().node;
        if !(first..=last).contains(&node) || facts.evicted.contains(&node) {
            return false;
        }
        let ours = self::has(member, facts);
        let theirs = has.iter().find(|has| has.node == node);
        match (member.state(), theirs) {
            // A suspicion that is gossiped no more is told again, or its victim could not object for ever.
            (State::Suspect, _) => true,
            // Who is gone is of interest only to those who take it for alive; it may be the asker itself.
            (State::Down, theirs) => theirs.is_some_and(|theirs| ours.incarnation >= theirs.incarnation),
            (_, None) => true,
            (_, Some(theirs)) => ours.incarnation > theirs.incarnation || ours.version > theirs.version,
        }
    };
    let entries = members
        .filter(lacks)
        .map(|member| Entry { member: member.clone(), told: facts.told(member.id().node).cloned() })
        .collect();
    let push = |entries| Datagram { sub_grid, body: Body::Push(entries) };
    fill(entries).into_iter().take(MAX_ANSWER).map(push).collect()
}

fn has(member: &Member<Id>, facts: &Facts) -> Has {
    let node = member.id().node;
    let version = facts.told(node).map_or_else(Version::default, |told| told.version);
    Has { node, incarnation: member.id().incarnation, version }
}

/// Divides values so that each part fits a datagram.
fn fill<T: serde::Serialize>(values: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = Vec::new();
    let mut room = 0;
    for value in values {
        // What cannot be encoded was never decoded or made by us.
        let length = wire::encode(&value).map_or(ROOM, |bytes| bytes.len());
        if length > room {
            parts.push(Vec::new());
            room = ROOM;
        }
        room = room.saturating_sub(length);
        if let Some(part) = parts.last_mut() {
            part.push(value);
        }
    }
    parts
}

#[cfg(test)]
pub(crate) mod tests {
    use libgrid::node::{NodeInfo, Resources, Tier};

    use super::*;
    use crate::info::{Shared, Told};

    pub(crate) fn largest(node: NodeId) -> Told {
        let addr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let all = Resources { cpu: u32::MAX, memory: u64::MAX };
        let info = NodeInfo {
            node,
            name: "n".repeat(64),
            addrs: vec![addr; 8],
            tier: Tier::Kernel,
            total: all,
            free: all,
            load: u32::MAX,
            tasks: u32::MAX,
            version: "v".repeat(32),
            addresses: true,
            drained: true,
        };
        Told { version: Version { start: u64::MAX, count: u64::MAX }, info }
    }

    fn know(nodes: impl Iterator<Item = u32>) -> (Vec<Member<Id>>, Shared) {
        let shared = Shared::new(NodeId(u32::MAX));
        let members = nodes.map(|node| {
            let told = largest(NodeId(node));
            let id = Id::new(NodeId(node), u64::MAX, &told.info.addrs);
            shared.facts().learn(told);
            Member::new(id, u16::MAX, State::Alive)
        });
        (members.collect(), shared)
    }

    #[test]
    fn every_datagram_fits_and_digests_cover_every_number_once() {
        let (members, shared) = know(1..=300);
        let facts = shared.facts();
        let digests = digests(SubGrid(u32::MAX), members.iter(), &facts);
        let mut next = 0;
        for digest in &digests {
            assert!(wire::encode(digest).unwrap().len() <= MAX_DATAGRAM);
            let Body::Digest { first, last, has } = &digest.body else { panic!("{digest:?}") };
            assert_eq!(first.0, next);
            assert!(has.iter().all(|has| (first..=last).contains(&&has.node)));
            next = last.0.wrapping_add(1);
        }
        assert_eq!(next, 0, "the last ends with the last number");
        let pushes = answer(SubGrid(0), (NodeId(0), NodeId(u32::MAX), &[]), members.iter(), &facts);
        assert_eq!(pushes.len(), MAX_ANSWER);
        assert!(pushes.iter().all(|push| wire::encode(push).unwrap().len() <= MAX_DATAGRAM));
    }

    #[test]
    fn only_what_is_newer_is_pushed() {
        let (mine, my_facts) = know(1..=5);
        let (theirs, their_facts) = know(2..=5);
        let all = digests(SubGrid(0), theirs.iter(), &their_facts.facts());
        let [Datagram { body: Body::Digest { first, last, has }, .. }] = all.as_slice() else {
            panic!("{all:?}")
        };
        let pushes = answer(SubGrid(0), (*first, *last, has), mine.iter(), &my_facts.facts());
        let [Datagram { body: Body::Push(entries), .. }] = pushes.as_slice() else { panic!("{pushes:?}") };
        let nodes: Vec<_> = entries.iter().map(|entry| entry.member.id().node.0).collect();
        assert_eq!(nodes, [1]);
        let down = Member::down(mine[4].id().clone());
        let pushes = answer(SubGrid(0), (*first, *last, has), [&down].into_iter(), &my_facts.facts());
        assert_eq!(pushes.len(), 1, "who is taken for dead is told");
        let down = Member::down(mine[0].id().clone());
        let pushes = answer(SubGrid(0), (*first, *last, has), [&down].into_iter(), &my_facts.facts());
        assert!(pushes.is_empty(), "who is gone for both is not talked about");
        let suspect = Member::new(mine[4].id().clone(), u16::MAX, State::Suspect);
        let pushes = answer(SubGrid(0), (*first, *last, has), [&suspect].into_iter(), &my_facts.facts());
        assert_eq!(pushes.len(), 1, "who is suspected hears of it");
    }
}
