//! Bridges, members, namespaces: what is made, found again, changed and removed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use grid_net::{Address, ArriveError, Config, HoldError, NodeNet, OpenError, unsent};
use libgrid::ids::NodeId;

use crate::grid::{Grid, config, grid, inside, ip, local, namespace, plug, reach, shown, silent};
use crate::{figure, until};

pub(crate) fn task(node: u32, serial: u16) -> Address {
    Address::of_task(NodeId(node), serial).unwrap()
}

/// The names of a node's links, but for those that were there before.
pub(crate) fn links(grid: &Grid, node: usize) -> Vec<String> {
    let listed = shown(&grid.nodes[node].space, "ip", &["-o", "link"]);
    let name = |line: &str| line.split([' ', '@']).nth(1).map(|name| name.trim_end_matches(':').to_owned());
    let ours = |name: &String| !["lo", "wan"].contains(&name.as_str());
    let mut names: Vec<_> = listed.lines().filter_map(name).filter(ours).collect();
    names.sort();
    names
}

/// The numbers and names of the first node's links.
fn numbers(grid: &Grid) -> Vec<String> {
    let listed = shown(&grid.nodes[0].space, "ip", &["-o", "link"]);
    listed.lines().filter_map(|line| line.split('<').next()).map(str::to_owned).collect()
}

fn forwarding(grid: &Grid, node: usize) -> usize {
    let listed = shown(&grid.nodes[node].space, "bridge", &["fdb", "show", "dev", "gridvx"]);
    listed.lines().filter(|line| line.starts_with("00:00:00:00:00:00 dst")).count()
}

#[test]
fn nodes_and_tasks_reach_each_other() {
    let Some(grid) = grid("nodes_and_tasks_reach_each_other") else { return };
    let (a, b, c) = (task(1, 1), task(1, 2), task(3, 1));
    let spaces = [(0, a), (0, b), (2, c)].map(|(node, address)| {
        let space = grid.nodes[node].net.arrive(address).unwrap();
        assert!(silent(&grid.nodes[node].space, address.ip()), "{address} is open before it is opened");
        grid.nodes[node].net.open(address, space.as_fd()).unwrap();
        space
    });
    for address in [a, b, c].into_iter().chain((1..=3).map(|n| Address::of_node(NodeId(n)).unwrap())) {
        grid.reached(address);
        for space in &spaces {
            reach(space, address.ip()).unwrap();
        }
    }
    let shows = shown(&spaces[0], "ip", &["addr"]);
    assert!(shows.contains("02:67:64:40:10:01") && shows.contains("100.64.16.1/10"), "{shows}");
    assert!(shows.contains("mtu 1330") && !shows.contains("fe80"), "{shows}");
    assert!(shown(&spaces[2], "ip", &["route"]).contains("default via 100.64.48.0 dev eth0"));
    // The gateway answers with any of its addresses, and forwards nothing.
    let std::net::IpAddr::V4(wan) = local(1) else { unreachable!() };
    reach(&spaces[0], wan).unwrap();
}

#[test]
fn what_ends_leaves_nothing() {
    let Some(grid) = grid("what_ends_leaves_nothing") else { return };
    let node = &grid.nodes[0];
    assert_eq!(links(&grid, 0), ["gridnet", "gridvx"]);
    let address = task(1, 5);
    let space = node.net.arrive(address).unwrap();
    node.net.open(address, space.as_fd()).unwrap();
    assert_eq!(node.net.tasks().unwrap(), [address]);
    assert!(matches!(node.net.arrive(address), Err(ArriveError::Taken(taken)) if taken == address));
    assert!(matches!(node.net.arrive(Address::of_node(NodeId(1)).unwrap()), Err(ArriveError::NotATask(_))));
    assert_eq!(links(&grid, 0).len(), 3, "a refused arrival leaves nothing");
    // Given up while its namespace still is: the address is free at once.
    node.net.release(address).unwrap();
    node.net.release(address).unwrap();
    assert_eq!(node.net.tasks().unwrap(), []);
    assert!(matches!(node.net.hold(address), Err(HoldError::Absent(_))));
    assert!(matches!(node.net.open(address, space.as_fd()), Err(OpenError::Absent(_))));
    let second = node.net.arrive(address).unwrap();
    node.net.open(address, second.as_fd()).unwrap();
    grid.reached(address);
    drop(space);
    until("the first namespace's link is gone", || links(&grid, 0).len() == 3);
    grid.reached(address);
    // Without a word: the link goes with the namespace.
    drop(second);
    until("the second namespace's link is gone", || links(&grid, 0) == ["gridnet", "gridvx"]);
    node.net.release(address).unwrap();
}

#[test]
fn a_restarted_agent_finds_its_network() {
    let Some(mut grid) = grid("a_restarted_agent_finds_its_network") else { return };
    let address = task(1, 1);
    let space = grid.nodes[0].net.arrive(address).unwrap();
    grid.nodes[0].net.open(address, space.as_fd()).unwrap();
    grid.reached(address);
    let before = numbers(&grid);
    let node = &mut grid.nodes[0];
    node.net = inside(&node.space, || NodeNet::ensure(&node.config)).unwrap();
    assert_eq!(forwarding(&grid, 0), 2, "members stay, too");
    assert_eq!(numbers(&grid), before, "all links are the same ones");
    assert_eq!(grid.nodes[0].net.tasks().unwrap(), [address]);
    grid.reached(address);
    // Half made, or changed: brought to what it should be, with the task's link as it was.
    ip(
        &grid.nodes[0].space,
        "link set gridvx nomaster down\naddr flush dev gridnet\nlink set gridnet down\n",
    )
    .unwrap();
    let node = &mut grid.nodes[0];
    node.config.vni = 8;
    node.net = inside(&node.space, || NodeNet::ensure(&node.config)).unwrap();
    for node in &mut grid.nodes[1..] {
        node.config.vni = 8;
        node.net = inside(&node.space, || NodeNet::ensure(&node.config)).unwrap();
    }
    for node in &grid.nodes {
        node.net.set_members(&grid.members()).unwrap();
    }
    grid.reached(address);
    let node = grid.nodes.remove(0);
    node.net.remove().unwrap();
    let left = shown(&node.space, "ip", &["-o", "link"]);
    assert!(!left.contains("grid") && !left.contains("gt"), "{left}");
    assert!(!shown(&space, "ip", &["-o", "link"]).contains("eth0"), "a task's link goes, too");
}

#[test]
fn members_come_and_go() {
    let Some(mut grid) = grid("members_come_and_go") else { return };
    let space = namespace().unwrap();
    plug(&grid.switch, &space, 4);
    let config = config(4);
    let net = inside(&space, || NodeNet::ensure(&config)).unwrap();
    let address = task(4, 1);
    let far = net.arrive(address).unwrap();
    net.open(address, far.as_fd()).unwrap();
    assert!(silent(&grid.nodes[0].space, address.ip()), "nobody knows it yet");
    grid.nodes.push(crate::grid::Node { space, config, net });
    for _ in 0..2 {
        for node in &grid.nodes {
            node.net.set_members(&grid.members()).unwrap();
        }
    }
    assert_eq!(forwarding(&grid, 0), 3);
    grid.reached(address);
    let gone = grid.nodes.pop().unwrap();
    gone.net.remove().unwrap();
    for node in &grid.nodes {
        node.net.set_members(&grid.members()).unwrap();
    }
    assert_eq!(forwarding(&grid, 0), 2);
    assert_eq!(forwarding(&grid, 2), 2);
}

#[test]
fn what_a_closed_connection_still_sends_is_told() {
    let Some(grid) = grid("what_a_closed_connection_still_sends_is_told") else { return };
    let net = &grid.nodes[0].net;
    let address = task(1, 1);
    let space = net.arrive(address).unwrap();
    net.open(address, space.as_fd()).unwrap();
    let listener = inside(&grid.nodes[2].space, || TcpListener::bind(("0.0.0.0", 7000))).unwrap();
    let node = Address::of_node(NodeId(3)).unwrap();
    let mut sender = inside(&space, || TcpStream::connect((node.ip(), 7000))).unwrap();
    assert_eq!(unsent(space.as_fd()).unwrap(), 0);
    net.hold(address).unwrap();
    sender.write_all(b"the last words").unwrap();
    drop(sender);
    assert_eq!(unsent(space.as_fd()).unwrap(), 1);
    net.open(address, space.as_fd()).unwrap();
    until("all is sent", || unsent(space.as_fd()).unwrap() == 0);
    let mut heard = String::new();
    listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "the last words");
}

#[test]
fn wrong_configurations_are_told() {
    let Some(grid) = grid("wrong_configurations_are_told") else { return };
    let space = &grid.nodes[0].space;
    let ensure = |config: Config| inside(space, || NodeNet::ensure(&config)).unwrap_err().to_string();
    let said = ensure(Config { local: local(77), ..config(1) });
    assert!(said.starts_with("10.0.0.77 is not an address of this machine"), "{said}");
    let said = ensure(Config { mtu: 1451, ..config(1) });
    assert!(said.contains("1500 that wan carries") && said.ends_with("to 1450 bytes or less"), "{said}");
    let said = ensure(Config { node: NodeId(1024), ..config(1) });
    assert!(said.contains("node 1024 has no address"), "{said}");
    let other = namespace().unwrap();
    plug(&grid.switch, &other, 9);
    ip(&other, "link add gridnet type dummy\n").ok();
    if shown(&other, "ip", &["-o", "link"]).contains("gridnet") {
        let said = inside(&other, || NodeNet::ensure(&config(9))).unwrap_err().to_string();
        assert!(said.contains("a link named gridnet that is no bridge"), "{said}");
    }
}

#[test]
fn what_it_costs() {
    let Some(grid) = grid("what_it_costs") else { return };
    let net = &grid.nodes[0].net;
    let mut times: [Vec<Duration>; 4] = Default::default();
    for serial in 1..=50 {
        let address = task(1, serial);
        let start = Instant::now();
        let space = net.arrive(address).unwrap();
        let arrived = Instant::now();
        net.open(address, space.as_fd()).unwrap();
        let opened = Instant::now();
        net.hold(address).unwrap();
        let held = Instant::now();
        net.release(address).unwrap();
        let spent = [arrived - start, opened - arrived, held - opened, held.elapsed()];
        times.iter_mut().zip(spent).for_each(|(times, spent)| times.push(spent));
        drop(space);
        // Paced: the end of a namespace holds the kernel's lock of all links.
        until("the link is gone", || links(&grid, 0).len() == 2);
    }
    for (what, mut times) in ["arrive", "open", "hold", "release"].into_iter().zip(times) {
        times.sort();
        figure(&format!("{what}, median"), times[times.len() / 2]);
        figure(&format!("{what}, worst of {}", times.len()), times[times.len() - 1]);
    }
}
