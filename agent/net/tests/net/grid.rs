//! Three nodes, each in a network namespace, with one more for the switch between them. All end with the value.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use grid_net::{Address, Config, EnsureError, NodeNet};
use libgrid::ids::NodeId;
use nix::sched::{CloneFlags, setns, unshare};

use crate::{PATIENCE, skipped};

/// A port on which nobody listens: the refusal is an answer, too.
const NOBODY: u16 = 9;

pub(crate) struct Grid {
    pub(crate) switch: OwnedFd,
    pub(crate) nodes: Vec<Node>,
}

pub(crate) struct Node {
    pub(crate) space: OwnedFd,
    pub(crate) config: Config,
    pub(crate) net: NodeNet,
}

/// A grid of three nodes that know each other; `None`, with the reason printed, where there can be none.
pub(crate) fn grid(test: &str) -> Option<Grid> {
    if !nix::unistd::geteuid().is_root() {
        skipped(test, "network namespaces need root: run the tests with sudo");
        return None;
    }
    let switch = match namespace() {
        Ok(switch) => switch,
        Err(error) => {
            skipped(test, &format!("this machine allows no network namespaces: {error}"));
            return None;
        }
    };
    if let Err(why) = ip(&switch, "link add sw type bridge\nlink set sw up\n") {
        skipped(test, &format!("the program ip does not make a bridge: {why}"));
        return None;
    }
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let space = namespace().unwrap();
        plug(&switch, &space, number);
        let config = config(number);
        match inside(&space, || NodeNet::ensure(&config)) {
            Ok(net) => nodes.push(Node { space, config, net }),
            Err(EnsureError::Missing { source, .. }) => {
                skipped(test, &source.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let grid = Grid { switch, nodes };
    for node in &grid.nodes {
        node.net.set_members(&grid.members()).unwrap();
    }
    Some(grid)
}

pub(crate) fn config(number: u8) -> Config {
    Config { node: NodeId(number.into()), local: local(number), vni: 7, port: Config::PORT, mtu: Config::MTU }
}

/// A node's address on the switch.
pub(crate) fn local(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

/// A cable between the switch and a node.
pub(crate) fn plug(switch: &OwnedFd, space: &OwnedFd, number: u8) {
    let theirs = format!("/proc/{}/fd/{}", std::process::id(), space.as_raw_fd());
    let lines = format!("link add p{number} master sw up type veth peer name wan netns {theirs}\n");
    ip(switch, &lines).unwrap();
    ip(space, &format!("addr add 10.0.0.{number}/24 dev wan\nlink set wan up\nlink set lo up\n")).unwrap();
}

impl Grid {
    pub(crate) fn members(&self) -> Vec<IpAddr> {
        self.nodes.iter().map(|node| node.config.local).collect()
    }

    /// How long until every node reaches the address; each is asked in turn, and asks again quickly.
    pub(crate) fn reached(&self, address: Address) -> Duration {
        let start = Instant::now();
        for node in &self.nodes {
            reach(&node.space, address.ip()).unwrap_or_else(|error| {
                panic!("node {} does not reach {address}: {error}", node.config.node);
            });
        }
        start.elapsed()
    }
}

/// A network namespace without a name.
pub(crate) fn namespace() -> io::Result<OwnedFd> {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })
    .join()
    .unwrap()
}

/// Runs `act` in a namespace.
pub(crate) fn inside<T: Send>(space: impl AsFd, act: impl FnOnce() -> T + Send) -> T {
    fn enter(space: BorrowedFd<'_>) {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
    }
    let space = space.as_fd();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter(space);
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs lines of `ip -batch` in a namespace.
pub(crate) fn ip(space: &OwnedFd, lines: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = inside(space, || command.spawn()).map_err(|error| error.to_string())?;
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// What a program prints in a namespace.
pub(crate) fn shown(space: &OwnedFd, program: &str, args: &[&str]) -> String {
    let output = inside(space, || Command::new(program).args(args).output()).unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks until an answer comes.
pub(crate) fn reach(space: &OwnedFd, ip: Ipv4Addr) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    inside(space, || {
        loop {
            let asked = SocketAddr::from((ip, NOBODY));
            match TcpStream::connect_timeout(&asked, Duration::from_millis(50)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                _ => (),
            }
        }
    })
}

/// Whether there is no answer, three times.
pub(crate) fn silent(space: &OwnedFd, ip: Ipv4Addr) -> bool {
    let asked = SocketAddr::from((ip, NOBODY));
    let ask = || TcpStream::connect_timeout(&asked, Duration::from_millis(30)).unwrap_err().kind();
    inside(space, || (0..3).all(|_| ask() != ErrorKind::ConnectionRefused))
}
