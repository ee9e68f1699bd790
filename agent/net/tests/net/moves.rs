//! Tasks that move between nodes with CRIU, while numbers stream to them, through them and back.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use grid_net::{Address, unsent};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::criu::{Criu, criu};
use crate::grid::{Grid, grid};
use crate::links::{links, task};
use crate::program::Role;
use crate::stream::Stream;
use crate::{figure, program, until};

/// A program on a node.
struct Task {
    address: Address,
    node: usize,
    space: OwnedFd,
    pid: Pid,
}

/// A task's images, and since when it has been silent.
struct Dumped {
    images: TempDir,
    held: Instant,
}

impl Task {
    fn start(grid: &Grid, node: usize, address: Address, role: Role) -> Self {
        let space = grid.nodes[node].net.arrive(address).unwrap();
        grid.nodes[node].net.open(address, space.as_fd()).unwrap();
        let pid = program::start(&space, role);
        Self { address, node, space, pid }
    }

    /// Held and dumped; its processes are gone, its namespace is not.
    fn dump(&self, grid: &Grid, criu: &Criu) -> Dumped {
        assert_eq!(unsent(self.space.as_fd()).unwrap(), 0);
        let images = tempfile::tempdir().unwrap();
        let held = Instant::now();
        grid.nodes[self.node].net.hold(self.address).unwrap();
        criu.dump(&self.space, self.pid.as_raw(), images.path(), &[]).unwrap();
        // The restored one has the same number.
        waitpid(self.pid, None).unwrap();
        Dumped { images, held }
    }

    /// Moves it to another node, with all that the nodes do about it.
    fn carry(&mut self, grid: &Grid, criu: &Criu, to: usize) {
        let Dumped { images, held } = self.dump(grid, criu);
        let there = grid.nodes[to].net.arrive(self.address).unwrap();
        criu.restore(&there, images.path()).unwrap();
        grid.nodes[to].net.open(self.address, there.as_fd()).unwrap();
        let opened = held.elapsed();
        grid.nodes[self.node].net.release(self.address).unwrap();
        let from = std::mem::replace(&mut self.node, to) + 1;
        self.space = there;
        figure(&format!("node {from} to node {}, from hold to open", to + 1), opened);
        figure("every node reaches the task, after open", grid.reached(self.address));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// What the tests of this file need.
fn bench(test: &str) -> Option<(Grid, Criu)> {
    Some((grid(test)?, criu(test)?))
}

/// A task that echoes, one that passes on to it, and a stream to each from different nodes.
struct Scene {
    echo: Task,
    relay: Task,
    direct: Stream,
    through: Stream,
}

impl Scene {
    fn start(grid: &Grid, [echo, relay]: [usize; 2]) -> Self {
        let echo = Task::start(grid, echo, task(1, 1), Role::Echo);
        let relay = Task::start(grid, relay, task(1, 2), Role::Relay(echo.address.ip()));
        let direct = Stream::start("node 3 to the echo", &grid.nodes[2].space, echo.address.ip());
        let through = Stream::start("node 1, the relay, the echo", &grid.nodes[0].space, relay.address.ip());
        Self { echo, relay, direct, through }
    }

    fn flows(&self) {
        for stream in [&self.direct, &self.through] {
            stream.flows();
        }
    }

    fn silences(&self) {
        figure("longest silence on a connection from a node", self.direct.silence());
        figure("longest silence on the way through two tasks", self.through.silence());
    }

    /// All numbers have come; nothing of the tasks is left.
    fn end(self, grid: &Grid) {
        for stream in [self.direct, self.through] {
            assert!(stream.end() > 2 << 20);
        }
        drop((self.echo, self.relay));
        for node in 0..3 {
            until("only the node's own links are left", || links(grid, node) == ["gridnet", "gridvx"]);
        }
    }
}

#[test]
fn connections_go_there_and_back() {
    let Some((grid, criu)) = bench("connections_go_there_and_back") else { return };
    let mut scene = Scene::start(&grid, [0, 1]);
    scene.flows();
    let _ = (scene.direct.silence(), scene.through.silence());
    for to in [1, 0] {
        scene.echo.carry(&grid, &criu, to);
        scene.flows();
        scene.silences();
    }
    scene.end(&grid);
}

#[test]
fn both_ends_of_a_connection_make_three_hops() {
    let Some((grid, criu)) = bench("both_ends_of_a_connection_make_three_hops") else { return };
    let mut scene = Scene::start(&grid, [0, 0]);
    scene.flows();
    for (echo, relay) in [(1, 1), (2, 0), (0, 2)] {
        scene.echo.carry(&grid, &criu, echo);
        // Before the first has found its pace again.
        scene.relay.carry(&grid, &criu, relay);
        scene.flows();
    }
    scene.end(&grid);
}

#[test]
fn a_connection_within_a_task_moves_along() {
    let Some((grid, criu)) = bench("a_connection_within_a_task_moves_along") else { return };
    let mut within = Task::start(&grid, 0, task(1, 3), Role::Within);
    let stream =
        Stream::start("node 2 to the task, and within it", &grid.nodes[1].space, within.address.ip());
    for to in [2, 1, 0] {
        stream.flows();
        within.carry(&grid, &criu, to);
    }
    stream.flows();
    stream.end();
}

#[test]
fn a_dump_that_fails_lets_connections_go_on() {
    let Some((grid, criu)) = bench("a_dump_that_fails_lets_connections_go_on") else { return };
    let scene = Scene::start(&grid, [0, 1]);
    scene.flows();
    let images = tempfile::tempdir().unwrap();
    let script = images.path().join("refuse");
    fs::write(&script, "#!/bin/sh\ntest \"$CRTOOLS_SCRIPT_ACTION\" != post-dump\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let net = &grid.nodes[0].net;
    for _ in 0..2 {
        net.hold(scene.echo.address).unwrap();
        net.hold(scene.echo.address).unwrap();
        let refuse = ["--action-script", script.to_str().unwrap()];
        let pid = scene.echo.pid.as_raw();
        criu.dump(&scene.echo.space, pid, images.path(), &refuse).unwrap_err();
        net.open(scene.echo.address, scene.echo.space.as_fd()).unwrap();
        scene.flows();
    }
    scene.end(&grid);
}

#[test]
fn a_restore_that_fails_brings_the_task_back() {
    let Some((grid, criu)) = bench("a_restore_that_fails_brings_the_task_back") else { return };
    let scene = Scene::start(&grid, [0, 1]);
    scene.flows();
    let dumped = scene.echo.dump(&grid, &criu);
    let there = grid.nodes[2].net.arrive(scene.echo.address).unwrap();
    let nothing = tempfile::tempdir().unwrap();
    criu.restore(&there, nothing.path()).unwrap_err();
    drop(there);
    grid.nodes[2].net.release(scene.echo.address).unwrap();
    criu.restore(&scene.echo.space, dumped.images.path()).unwrap();
    grid.nodes[0].net.open(scene.echo.address, scene.echo.space.as_fd()).unwrap();
    scene.flows();
    scene.end(&grid);
}
