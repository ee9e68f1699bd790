//! Transfers go on after the link, the server or the client broke, at points that a seed decides.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use libgrid::ftp::client::{Client, FtpUrl, Options};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::material::{assert_same, fill, names};
use crate::proxy::Proxy;
use crate::ready;
use crate::server::{ALL, Kind, Server, login};

const SIZE: u64 = 24 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Link,
    Server,
    Client,
}

/// A way to transfer.
#[derive(Clone, Copy, Debug)]
struct Way {
    kind: Kind,
    put: bool,
    extended: bool,
}

impl Way {
    fn options(self) -> Options {
        Options { extended: self.extended, streams: Some(3), retries: 30, ..Options::default() }
    }
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for put in [false, true] {
        ways.extend(ALL.map(|kind| Way { kind, put, extended: false }));
        ways.push(Way { kind: Kind::Globus, put, extended: true });
    }
    ways
}

fn transfer(way: Way, port: u16, here: &Path, there: &[u8]) -> Result<u32, String> {
    let url: FtpUrl = format!("ftp://127.0.0.1:{port}/").parse().unwrap();
    let mut client = Client::connect(&url, &login()).map_err(|error| error.to_string())?;
    let landed = if way.put {
        client.put(here, there, &way.options(), &mut |_| ())
    } else {
        client.get(there, here, &way.options(), &mut |_| ())
    };
    landed.map(|landed| landed.interruptions).map_err(|error| error.to_string())
}

/// The client as a process of its own, which can be killed.
fn child(way: Way, port: u16, here: &Path, there: &[u8]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "interruptions::a_client_of_its_own", "--ignored"])
        .env("FTP_PORT", port.to_string())
        .env("FTP_HERE", here)
        .env("FTP_THERE", std::str::from_utf8(there).unwrap())
        .env("FTP_WAY", format!("{}{}", u8::from(way.put), u8::from(way.extended)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "started by the test of the interruptions, as a process that it kills"]
fn a_client_of_its_own() {
    let Ok(port) = std::env::var("FTP_PORT") else { return };
    let way = std::env::var("FTP_WAY").unwrap();
    let way = Way { kind: Kind::Globus, put: way.starts_with('1'), extended: way.ends_with('1') };
    let here = PathBuf::from(std::env::var_os("FTP_HERE").unwrap());
    transfer(way, port.parse().unwrap(), &here, std::env::var("FTP_THERE").unwrap().as_bytes()).unwrap();
}

/// One file, broken `times` times on its way. Gives how often it did break, and how many bytes passed.
fn broken(way: Way, victim: Victim, times: u32, seed: u64) -> (u32, u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut server = Server::start(way.kind);
    let proxy = Proxy::new(server.port);
    let folder = tempfile::tempdir().unwrap();
    let (source, copy) = if way.put {
        (folder.path().join("x"), server.root.join("x"))
    } else {
        (server.root.join("x"), folder.path().join("x"))
    };
    let size = SIZE + random.random_range(0..100_000);
    fill(&source, size, seed);
    let there = server.path("x");
    let here = folder.path().join("x");
    let told = format!("{way:?}, {victim:?}, seed {seed}");
    let mut kills = 0;
    let next = |random: &mut SmallRng| random.random_range(1..size / u64::from(times));
    if victim == Victim::Client {
        for _ in 0..times {
            proxy.trip_after(next(&mut random));
            let mut process = child(way, proxy.port, &here, &there);
            if proxy.wait(PATIENCE).is_some() {
                kills += 1;
            }
            let _ = process.kill();
            process.wait().unwrap();
            proxy.cut();
        }
        transfer(way, proxy.port, &here, &there).unwrap_or_else(|error| panic!("{told}: {error}"));
    } else {
        proxy.trip_after(next(&mut random));
        let running = {
            let (port, here, there) = (proxy.port, here.clone(), there.clone());
            thread::spawn(move || transfer(way, port, &here, &there))
        };
        while kills < times && proxy.wait(PATIENCE).is_some() {
            kills += 1;
            if victim == Victim::Server {
                server.kill();
            }
            proxy.cut();
            if victim == Victim::Server {
                server.restart();
            }
            if kills < times {
                proxy.trip_after(next(&mut random));
            }
        }
        let interruptions = running.join().unwrap().unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(interruptions >= kills, "{told}: {interruptions} of {kills} were noticed");
    }
    assert_same(&source, &copy);
    assert_eq!(names(folder.path()), ["x"], "{told}");
    assert_eq!(names(&server.root), ["x"], "{told}");
    let passed = proxy.passed();
    // In extended mode a server that is sent to need not have told how far it was; else nothing is sent twice but
    // what was on its way.
    if !(way.extended && way.put) {
        assert!(passed < size + u64::from(times) * (8 << 20), "{told}: {passed} bytes for {size}");
    }
    (kills, passed)
}

fn all(victim: Victim, test: &str) {
    if !ready(test, &ALL) {
        return;
    }
    let begun = std::time::Instant::now();
    let mut kills = 0;
    for (number, way) in ways().into_iter().enumerate() {
        kills += broken(way, victim, 3, 1000 + number as u64).0;
    }
    assert!(kills >= 20, "only {kills} interruptions");
    println!("FIGURE {test}: {kills} interruptions in {:.1?}", begun.elapsed());
}

#[test]
fn transfers_go_on_after_the_link_breaks() {
    all(Victim::Link, "transfers_go_on_after_the_link_breaks");
}

#[test]
fn transfers_go_on_after_the_server_is_killed() {
    all(Victim::Server, "transfers_go_on_after_the_server_is_killed");
}

#[test]
fn transfers_go_on_after_the_client_is_killed() {
    all(Victim::Client, "transfers_go_on_after_the_client_is_killed");
}
