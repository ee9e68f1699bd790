//! The network between machines: whole, cut, slow, healed.
//!
//! Times are compared with what physics demands, never with what a quiet machine would reach.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod support;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use grid_lab::{LinkEngine, Machine, Slow};
use support::{Grid, Identity, PATIENCE, grid, output, shell, skipped, until, with_grid};

/// A TCP connection from one machine to another, which sends back what it gets.
struct Echo {
    stream: TcpStream,
}

impl Echo {
    fn between(from: &Machine, to: &Machine) -> Echo {
        let listener = to.with_network(|| TcpListener::bind((to.addr(), 0))).unwrap().unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = from.with_network(|| connect(to.addr(), port)).unwrap().unwrap();
        let (peer, _) = listener.accept().unwrap();
        // Ends when the connection does.
        thread::spawn(move || io::copy(&mut &peer, &mut &peer));
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Echo { stream }
    }

    /// Sends a byte and waits for it; how long that took.
    fn round_trip(&mut self) -> Duration {
        let begun = Instant::now();
        self.send();
        self.receive(PATIENCE).unwrap();
        begun.elapsed()
    }

    fn send(&mut self) {
        self.stream.write_all(b"x").unwrap();
    }

    fn receive(&mut self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        self.stream.read_exact(&mut [0])
    }
}

fn connect(addr: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&(addr, port).into(), PATIENCE)
}

/// As `with_grid`, for tests of slow lines: without netem they need TAP devices.
fn with_slow_grid(test: &str, run: impl FnOnce(&Grid)) {
    if !Path::new("/dev/net/tun").exists() {
        return skipped(test, "there is no /dev/net/tun for lines without netem");
    }
    with_grid(test, 2, run);
}

#[test]
fn machines_and_the_host_reach_each_other() {
    with_grid("machines_and_the_host_reach_each_other", 2, |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        Echo::between(&one, &two).round_trip();
        Echo::between(&two, &one).round_trip();
        Echo::between(&one, &one).round_trip();
        let listener = two.with_network(|| TcpListener::bind((two.addr(), 0))).unwrap().unwrap();
        connect(two.addr(), listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip(), grid.lab.host_addr());
    });
}

#[test]
fn a_cut_machine_hears_nothing_and_says_nothing_until_it_is_healed() {
    with_grid("a_cut_machine_hears_nothing_and_says_nothing_until_it_is_healed", 2, |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        for (from, to) in [(&one, &two), (&two, &one)] {
            let mut echo = Echo::between(from, to);
            echo.round_trip();
            two.cut().unwrap();
            two.cut().unwrap();
            assert!(two.status().unwrap().cut);
            echo.send();
            assert_eq!(
                echo.receive(Duration::from_millis(300)).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            two.heal().unwrap();
            two.heal().unwrap();
            // TCP had kept it.
            echo.receive(PATIENCE).unwrap();
        }
    });
}

#[test]
fn a_machine_that_boots_finds_its_cable_as_it_was() {
    with_grid("a_machine_that_boots_finds_its_cable_as_it_was", 2, |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        one.cut().unwrap();
        one.kill().unwrap();
        one.boot().unwrap();
        assert!(!shell(&one, "ip link show dev eth0").contains("LOWER_UP"));
        one.kill().unwrap();
        one.heal().unwrap();
        assert!(one.is_on().unwrap());
        Echo::between(&one, &two).round_trip();
    });
}

#[test]
fn each_direction_of_a_slow_line_is_delayed() {
    with_slow_grid("each_direction_of_a_slow_line_is_delayed", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        let delay = Duration::from_millis(20);
        one.slow(Slow { delay, ..Slow::default() }).unwrap();
        let mut echo = Echo::between(&two, &one);
        for _ in 0..5 {
            assert!(echo.round_trip() >= 2 * delay);
        }
        let status = one.status().unwrap();
        assert_eq!(status.slow.map(|line| line.delay), Some(delay));
        assert!(status.engine.is_some());
    });
}

#[test]
fn a_rate_bounds_what_passes() {
    with_slow_grid("a_rate_bounds_what_passes", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        one.slow(Slow { rate: Some(8_000_000), ..Slow::default() }).unwrap();
        let bytes = vec![7; 300_000];
        for (from, to) in [(&one, &two), (&two, &one)] {
            let Echo { mut stream } = Echo::between(from, to);
            // Sending alone: that buffers took the bytes says nothing. The other side sends all back over the
            // other direction, and the last byte comes after the last one went.
            let begun = Instant::now();
            let mut writer = stream.try_clone().unwrap();
            let sender = thread::spawn({
                let bytes = bytes.clone();
                move || writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write))
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            sender.join().unwrap().unwrap();
            assert!(back == bytes);
            // 300 kB at 1 MB/s.
            assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        }
    });
}

#[test]
fn bytes_arrive_whole_over_a_fast_line_that_loses_some() {
    with_slow_grid("bytes_arrive_whole_over_a_fast_line_that_loses_some", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        // Fast enough for frames of many segments, lossy enough that many of them are taken apart.
        let delay = Duration::from_micros(200);
        one.slow(Slow { delay, rate: Some(2_000_000_000), loss: 5000, queue: Some(1000) }).unwrap();
        let Echo { mut stream } = Echo::between(&two, &one);
        let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        let mut writer = stream.try_clone().unwrap();
        let sender = thread::spawn({
            let bytes = bytes.clone();
            move || writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write))
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap().unwrap();
        assert!(back == bytes);
    });
}

#[test]
fn a_line_that_loses_all_lets_nothing_pass() {
    with_slow_grid("a_line_that_loses_all_lets_nothing_pass", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        let mut echo = Echo::between(&one, &two);
        one.slow(Slow { loss: 1_000_000, ..Slow::default() }).unwrap();
        echo.send();
        assert!(echo.receive(Duration::from_millis(300)).is_err());
        one.heal().unwrap();
        echo.receive(PATIENCE).unwrap();
    });
}

#[test]
fn connections_survive_slowness_and_healing() {
    with_slow_grid("connections_survive_slowness_and_healing", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        let mut echo = Echo::between(&one, &two);
        let address = shell(&one, "ip -o address show dev eth0; cat /sys/class/net/eth0/address 2>/dev/null");
        echo.round_trip();
        for millis in [5, 20, 1] {
            let delay = Duration::from_millis(millis);
            one.slow(Slow { delay, rate: Some(100_000_000), loss: 10, queue: None }).unwrap();
            // The first may need a retransmission.
            echo.round_trip();
            assert!(echo.round_trip() >= 2 * delay);
        }
        one.heal().unwrap();
        echo.round_trip();
        assert_eq!(
            shell(&one, "ip -o address show dev eth0; cat /sys/class/net/eth0/address 2>/dev/null"),
            address
        );
        assert_eq!(one.status().unwrap().slow, None);
        let bridge = support::bridge(&grid.lab);
        assert!(
            !output(std::process::Command::new("ip").args(["-o", "link"])).contains(&format!("{bridge}b"))
        );
    });
}

#[test]
fn a_slow_machine_can_be_cut_and_killed_and_stays_slow() {
    with_slow_grid("a_slow_machine_can_be_cut_and_killed_and_stays_slow", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        let delay = Duration::from_millis(10);
        one.slow(Slow { delay, ..Slow::default() }).unwrap();
        one.cut().unwrap();
        let mut echo = {
            one.kill().unwrap();
            one.heal().unwrap();
            one.slow(Slow { delay, ..Slow::default() }).unwrap();
            one.kill().unwrap();
            one.boot().unwrap();
            Echo::between(&one, &two)
        };
        assert!(echo.round_trip() >= 2 * delay);
        one.cut().unwrap();
        echo.send();
        assert!(echo.receive(Duration::from_millis(300)).is_err());
        // Slow a machine that is off: it is when it boots.
        two.kill().unwrap();
        two.slow(Slow { delay, ..Slow::default() }).unwrap();
        one.heal().unwrap();
        two.boot().unwrap();
        assert!(Echo::between(&one, &two).round_trip() >= 2 * delay);
    });
}

#[test]
fn healing_mends_a_line_whose_relay_has_died() {
    with_slow_grid("healing_mends_a_line_whose_relay_has_died", |grid| {
        let (one, two) = (grid.machine(1), grid.machine(2));
        one.slow(Slow { delay: Duration::from_millis(1), ..Slow::default() }).unwrap();
        if one.status().unwrap().engine != Some(LinkEngine::UserSpace) {
            return skipped("healing_mends_a_line_whose_relay_has_died", "this kernel has netem");
        }
        let mut echo = Echo::between(&one, &two);
        let record = std::fs::read_to_string(one.dir().join("link.json")).unwrap();
        let pid: i32 = record.split(|c: char| !c.is_ascii_digit()).find_map(|n| n.parse().ok()).unwrap();
        // SAFETY: plain system call; the relay is this lab's own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        until("the relay is dead", || !support::processes().any(|other| other == pid));
        echo.send();
        one.heal().unwrap();
        echo.receive(PATIENCE).unwrap();
    });
}

#[test]
fn a_slow_lab_goes_down_whole() {
    with_slow_grid("a_slow_lab_goes_down_whole", |first| {
        // Another lab, so that this one's end can be looked at.
        let second = grid("slowdown", 2);
        second.machine(1).slow(Slow { delay: Duration::from_millis(1), ..Slow::default() }).unwrap();
        second.machine(2).cut().unwrap();
        let identity = Identity::of(second.lab.name(), second.lab.root());
        assert_ne!(support::bridge(&second.lab), support::bridge(&first.lab));
        assert!(identity.traces().len() > 3);
        drop(second);
        assert_eq!(identity.traces(), Vec::<String>::new());
    });
}
