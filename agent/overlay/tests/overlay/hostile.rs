//! Datagrams that no overlay sent.

use std::time::Duration;

use grid_overlay::{Action, Event, MAX_RECEIVED, Overlay};
use libgrid::ids::NodeId;
use proptest::prelude::*;

use crate::sim::Sim;

fn numbers(overlay: &Overlay) -> Vec<(NodeId, String)> {
    overlay.members().map(|member| (member.info.node, member.info.name.clone())).collect()
}

fn sends_only(actions: &[Action]) -> bool {
    actions.iter().all(|action| matches!(action, Action::Send { .. }))
}

/// Datagrams that a node of three really sent to node 1.
fn overheard() -> Vec<(NodeId, Vec<u8>)> {
    let mut sim = Sim::grid(3, 5);
    let mut heard = Vec::new();
    for node in [NodeId(2), NodeId(3)] {
        for second in 0..12 {
            let overlay = sim.nodes.get_mut(&node).unwrap().overlay.as_mut().unwrap();
            for action in overlay.handle(sim.now + Duration::from_secs(second), Event::Wakeup) {
                if let Action::Send { to: NodeId(1), bytes, .. } = action {
                    heard.push((node, bytes));
                }
            }
        }
    }
    assert!(heard.len() > 4);
    heard
}

#[test]
fn a_datagram_that_claims_another_sender_is_ignored() {
    let mut sim = Sim::grid(3, 5);
    let now = sim.now;
    // A probe of node 3 under the name of node 2, and of one who is no member.
    for (from, bytes) in overheard().into_iter().filter(|(from, _)| *from == NodeId(3)) {
        for liar in [NodeId(2), NodeId(9), NodeId(1)] {
            let overlay = sim.nodes.get_mut(&NodeId(1)).unwrap().overlay.as_mut().unwrap();
            let before = numbers(overlay);
            let actions = overlay.handle(now, Event::Datagram { from: liar, bytes: bytes.clone() });
            assert!(sends_only(&actions), "{actions:?}");
            assert_eq!(numbers(overlay), before, "said {liar}, was {from}");
        }
    }
}

#[test]
fn a_datagram_that_is_too_long_is_not_looked_at() {
    let mut sim = Sim::grid(3, 5);
    let now = sim.now;
    let overlay = sim.nodes.get_mut(&NodeId(1)).unwrap().overlay.as_mut().unwrap();
    for length in [MAX_RECEIVED + 1, 1 << 20] {
        let actions = overlay.handle(now, Event::Datagram { from: NodeId(2), bytes: vec![0; length] });
        assert_eq!(actions, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_datagrams_never_panic_and_change_nobody(
        datagrams in prop::collection::vec((0u32..6, prop::collection::vec(any::<u8>(), 0..200)), 0..100),
        kind in 0u8..4,
    ) {
        let mut sim = Sim::grid(3, 5);
        let now = sim.now;
        let overlay = sim.nodes.get_mut(&NodeId(1)).unwrap().overlay.as_mut().unwrap();
        let before = numbers(overlay);
        for (from, mut bytes) in datagrams {
            // Sub-grid 0 and a kind that exists: what follows gets as far as it can.
            if kind < 3 && bytes.len() > 2 {
                bytes[0] = 0;
                bytes[1] = kind;
            }
            let actions = overlay.handle(now, Event::Datagram { from: NodeId(from), bytes });
            prop_assert!(sends_only(&actions));
        }
        prop_assert_eq!(numbers(overlay), before);
    }

    #[test]
    fn altered_datagrams_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..50),
    ) {
        let heard = overheard();
        let mut sim = Sim::grid(3, 5);
        sim.lies = true;
        for (which, place, byte) in changes {
            let (from, mut bytes) = heard[which.index(heard.len())].clone();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            sim.handle(NodeId(1), Event::Datagram { from, bytes });
        }
        sim.run(Duration::from_secs(5));
        prop_assert!(sim.overlay(NodeId(1)).member(NodeId(1)).is_some());
    }
}
