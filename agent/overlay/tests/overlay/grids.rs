//! What a grid does when its nodes come, change, die, are cut off and come back.

use std::collections::BTreeSet;
use std::time::Duration;

use grid_overlay::{Event, MemberState};
use libgrid::ids::NodeId;

use crate::sim::{Sim, info};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn all_see_all_soon_after_they_join_through_one() {
    for (size, limit) in [(2, 1), (3, 2), (50, 8)] {
        for seed in 0..5 {
            let mut sim = Sim::grid(size, seed);
            assert!(sim.now <= seconds(101 + limit), "{size} nodes, seed {seed}: {:?}", sim.now);
            sim.run(seconds(20));
            assert!(sim.all_see_all());
            assert!(sim.nodes.values().all(|node| node.downs.is_empty()), "nobody was taken for dead");
        }
    }
}

#[test]
fn five_hundred_nodes_see_each_other_and_notice_who_dies() {
    let mut sim = Sim::grid(500, 1);
    assert!(sim.now <= seconds(125), "{:?}", sim.now);
    let dead: BTreeSet<_> = (1..=500).step_by(10).map(NodeId).collect();
    dead.iter().for_each(|node| sim.kill(*node));
    let took = sim.until("the dead are down", seconds(40), Sim::all_see_all);
    assert!(took <= seconds(30), "{took:?}");
    for node in sim.nodes.values().filter(|node| node.overlay.is_some()) {
        assert!(node.downs.iter().all(|(_, gone)| dead.contains(gone)), "only the dead are down");
    }
}

#[test]
fn what_a_node_tells_reaches_all_and_is_not_told_too_often() {
    let mut sim = Sim::grid(50, 3);
    sim.loss = 0.05;
    let mut changed = info(7);
    for tasks in 1..=20 {
        changed.tasks = tasks;
        sim.handle(NodeId(7), Event::Info(changed.clone()));
        sim.run(Duration::from_millis(10));
    }
    let last = |sim: &Sim| {
        let tells = |node: &NodeId| sim.overlay(*node).member(NodeId(7)).map(|member| member.info.tasks);
        sim.living().iter().all(|node| tells(node) == Some(20))
    };
    let took = sim.until("all know", seconds(30), last);
    assert!(took <= seconds(15), "{took:?}");
    // What others say of us, and what is of another node, changes nothing.
    sim.handle(NodeId(7), Event::Info(info(8)));
    sim.run(seconds(15));
    assert!(last(&sim));
}

#[test]
fn a_dead_node_of_five_is_down_within_five_seconds() {
    for seed in 0..20 {
        let mut sim = Sim::grid(5, seed);
        sim.run(seconds(10) + Duration::from_millis(137 * seed));
        sim.kill(NodeId(3));
        let took = sim.until("it is down", seconds(8), Sim::all_see_all);
        assert!(took <= Duration::from_millis(5600), "seed {seed}: {took:?}");
        let member = sim.overlay(NodeId(1)).member(NodeId(3)).unwrap();
        assert_eq!(member.state, MemberState::Down, "it stays listed");
        assert_eq!(member.info, info(3));
    }
}

#[test]
fn a_tenth_of_fifty_dies_under_loss_and_nobody_else_is_taken_for_dead() {
    for seed in 0..5 {
        let mut sim = Sim::grid(50, seed);
        sim.loss = 0.05;
        sim.run(seconds(60));
        let dead: BTreeSet<_> = (1..=5).map(|n| NodeId(n * 9)).collect();
        dead.iter().for_each(|node| sim.kill(*node));
        let took = sim.until("the dead are down", seconds(40), Sim::all_see_all);
        assert!(took <= seconds(20), "seed {seed}: {took:?}");
        sim.run(seconds(60));
        for (id, node) in sim.nodes.iter().filter(|(_, node)| node.overlay.is_some()) {
            let wrong: Vec<_> = node.downs.iter().filter(|(_, gone)| !dead.contains(gone)).collect();
            assert!(wrong.is_empty(), "seed {seed}: {id} took {wrong:?} for dead");
        }
    }
}

#[test]
fn three_nodes_under_loss_do_not_take_each_other_for_dead() {
    for seed in 0..10 {
        let mut sim = Sim::grid(3, seed);
        sim.loss = 0.05;
        sim.run(seconds(300));
        assert!(sim.nodes.values().all(|node| node.downs.is_empty()), "seed {seed}");
    }
}

#[test]
fn both_sides_of_a_cut_go_on_and_find_each_other_when_it_heals() {
    for (size, far) in [(2, 1), (3, 1), (5, 2), (50, 20), (50, 25)] {
        let mut sim = Sim::grid(size, u64::from(size));
        let (near, cut): (BTreeSet<_>, BTreeSet<_>) = sim.living().into_iter().partition(|node| node.0 > far);
        cut.iter().for_each(|node| {
            sim.groups.insert(*node, 1);
        });
        let both = |sim: &Sim| sim.see_each_other(&near) && sim.see_each_other(&cut);
        sim.until("each side knows", seconds(60), both);
        sim.run(seconds(300));
        assert!(both(&sim));
        sim.groups.clear();
        let took = sim.until("all see all", seconds(60), Sim::all_see_all);
        assert!(took <= seconds(30), "{size} nodes, {far} cut off: {took:?}");
    }
}

#[test]
fn a_restarted_node_takes_its_own_place_and_was_never_down() {
    for seed in 0..5 {
        let mut sim = Sim::grid(10, seed);
        sim.run(seconds(5));
        sim.start(NodeId(4), 2_000_000);
        let mut renamed = info(4);
        renamed.tasks = 9;
        sim.handle(NodeId(4), Event::Info(renamed.clone()));
        sim.meet(NodeId(4), NodeId(2));
        let all_know = |sim: &Sim| {
            let knows = |node: &NodeId| sim.overlay(*node).member(NodeId(4)).map(|m| m.info.tasks) == Some(9);
            sim.all_see_all() && sim.living().iter().all(knows)
        };
        let took = sim.until("all know the new life", seconds(30), all_know);
        assert!(took <= seconds(12), "seed {seed}: {took:?}");
        sim.run(seconds(30));
        assert!(sim.nodes.values().all(|node| node.downs.is_empty()), "seed {seed}");
    }
}

#[test]
fn a_node_that_was_down_comes_back_with_its_next_life() {
    let mut sim = Sim::grid(5, 9);
    sim.kill(NodeId(2));
    sim.until("it is down", seconds(10), Sim::all_see_all);
    sim.start(NodeId(2), 2_000_000);
    sim.meet(NodeId(2), NodeId(5));
    let took = sim.until("it is back", seconds(10), Sim::all_see_all);
    assert!(took <= seconds(3), "{took:?}");
}

#[test]
fn a_node_whose_clock_went_back_is_believed_all_the_same() {
    for down_first in [false, true] {
        let mut sim = Sim::grid(5, 11);
        sim.kill(NodeId(2));
        if down_first {
            sim.until("it is down", seconds(10), Sim::all_see_all);
        }
        sim.start(NodeId(2), 5);
        let mut now = info(2);
        now.tasks = 3;
        sim.handle(NodeId(2), Event::Info(now));
        sim.meet(NodeId(2), NodeId(5));
        let all_know = |sim: &Sim| {
            let knows = |node: &NodeId| sim.overlay(*node).member(NodeId(2)).map(|m| m.info.tasks) == Some(3);
            sim.all_see_all() && sim.living().iter().all(knows)
        };
        let took = sim.until("it is believed", seconds(40), all_know);
        assert!(took <= seconds(25), "{took:?}");
        sim.run(seconds(30));
        assert!(all_know(&sim));
    }
}

#[test]
fn a_whole_grid_that_restarts_at_once_finds_itself() {
    let mut sim = Sim::grid(10, 13);
    for node in 1..=10 {
        sim.start(NodeId(node), 2_000_000);
        for other in (1..=10).filter(|other| *other != node) {
            sim.meet(NodeId(node), NodeId(other));
        }
    }
    let took = sim.until("all see all", seconds(10), Sim::all_see_all);
    assert!(took <= seconds(3), "{took:?}");
}

#[test]
fn a_contact_that_is_not_there_yet_is_tried_again() {
    let mut sim = Sim::new(17);
    sim.start(NodeId(1), 1);
    sim.meet(NodeId(1), NodeId(2));
    sim.run(seconds(60));
    sim.start(NodeId(2), 1);
    let took = sim.until("they meet", seconds(20), Sim::all_see_all);
    assert!(took <= seconds(11), "{took:?}");
}

#[test]
fn a_node_that_leaves_is_down_at_once() {
    let mut sim = Sim::grid(10, 19);
    sim.run(seconds(5));
    sim.handle(NodeId(6), Event::Leave);
    assert_eq!(sim.overlay(NodeId(6)).next_wakeup(), None);
    sim.kill(NodeId(6));
    let took = sim.until("it is down", seconds(5), Sim::all_see_all);
    assert!(took <= seconds(2), "{took:?}");
}

#[test]
fn an_evicted_node_is_ignored_until_it_is_admitted_again() {
    let mut sim = Sim::grid(5, 23);
    let others: BTreeSet<_> = [1, 2, 3, 4].into_iter().map(NodeId).collect();
    for node in &others {
        sim.handle(*node, Event::Evict(NodeId(5)));
    }
    assert!(sim.see_each_other(&others), "at once");
    assert!(sim.overlay(NodeId(1)).member(NodeId(5)).is_none());
    // It tries everything.
    sim.start(NodeId(5), 2_000_000);
    for node in &others {
        sim.meet(NodeId(5), *node);
    }
    sim.run(seconds(60));
    assert!(sim.see_each_other(&others));
    for node in &others {
        sim.handle(*node, Event::Admit(NodeId(5)));
    }
    sim.until("it is back", seconds(40), Sim::all_see_all);
}

#[test]
fn an_evicted_node_stays_out_though_one_has_not_heard_of_it_yet() {
    let mut sim = Sim::grid(5, 29);
    for node in [1, 2, 3] {
        sim.handle(NodeId(node), Event::Evict(NodeId(5)));
    }
    sim.run(seconds(60));
    for node in [1, 2, 3] {
        assert!(!sim.seen_by(NodeId(node)).contains(&NodeId(5)));
    }
}

#[test]
fn an_agent_that_stood_still_does_not_take_the_others_for_dead() {
    let mut sim = Sim::grid(5, 31);
    sim.run(seconds(5));
    // Node 1 handles nothing for 20 s: the others see it go.
    sim.groups.insert(NodeId(1), 1);
    let frozen = sim.nodes.get_mut(&NodeId(1)).unwrap().overlay.take();
    sim.run(seconds(20));
    sim.nodes.get_mut(&NodeId(1)).unwrap().overlay = frozen;
    sim.groups.clear();
    sim.handle(NodeId(1), Event::Wakeup);
    sim.until("all see all", seconds(30), Sim::all_see_all);
    assert_eq!(sim.nodes[&NodeId(1)].downs, []);
}

#[test]
fn a_node_that_moves_is_found_where_it_is() {
    let mut sim = Sim::grid(5, 37);
    let mut moved = info(3);
    moved.addrs.insert(0, "10.9.9.9:7411".parse().unwrap());
    sim.handle(NodeId(3), Event::Info(moved.clone()));
    let all_know = |sim: &Sim| {
        let knows =
            |node: &NodeId| sim.overlay(*node).member(NodeId(3)).map(|m| m.info == moved) == Some(true);
        sim.all_see_all() && sim.living().iter().all(knows)
    };
    sim.until("all know", seconds(15), all_know);
    assert!(sim.nodes.values().all(|node| node.downs.is_empty()));
}

#[test]
fn a_node_that_is_down_is_forgotten_after_a_day() {
    let mut sim = Sim::grid(3, 41);
    sim.kill(NodeId(2));
    sim.until("it is down", seconds(10), Sim::all_see_all);
    sim.run(seconds(23 * 3600));
    assert!(sim.overlay(NodeId(1)).member(NodeId(2)).is_some());
    sim.run(seconds(2 * 3600));
    assert!(sim.overlay(NodeId(1)).member(NodeId(2)).is_none());
}

#[test]
fn an_idle_grid_is_quiet() {
    for (size, datagrams, bytes) in [(3, 3.0, 300.0), (50, 3.0, 400.0)] {
        let mut sim = Sim::grid(size, 43);
        sim.run(seconds(60));
        (sim.sent, sim.bytes) = (0, 0);
        sim.run(seconds(60));
        let per_second = |total: u64| total as f64 / 60.0 / f64::from(size);
        let found = (per_second(sim.sent), per_second(sim.bytes));
        assert!(found.0 <= datagrams && found.1 <= bytes, "{size} nodes: {found:?}");
    }
}
