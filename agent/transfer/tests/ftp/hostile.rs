//! Clients that mean harm: the server stays up, and what others do goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Client, DEADLINE, Server, bytes, eventually, own_network};

/// Somebody honest, who gets a file again and again while others do harm.
struct Honest {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Honest {
    fn new(server: &Server) -> Honest {
        std::fs::write(server.at("honest"), bytes(1_000_003)).unwrap();
        let mut client = server.client();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(SeqCst) {
                assert!(client.get("honest", 0) == bytes(1_000_003), "wrong bytes");
                count += 1;
            }
            count
        });
        Honest { stop, thread: Some(thread) }
    }

    /// Every get succeeded, and there were some.
    fn check(mut self) {
        self.stop.store(true, SeqCst);
        let count = self.thread.take().unwrap().join().expect("the honest client was disturbed");
        assert!(count > 0);
    }
}

#[test]
fn endless_and_slow_lines_end_their_own_session_alone() {
    let mut server = Server::new(&["--anonymous=write", "--login", "2s", "--idle", "2s"]);
    let honest = Honest::new(&server);
    let mut endless = Client::connect(server.addr);
    endless.expect(220);
    let start = Instant::now();
    // Never an end of line.
    while endless.stream.write_all(&[b'x'; 65_536]).is_ok() {
        assert!(start.elapsed() < DEADLINE, "an endless line is read for ever");
    }
    // Long lines with an end are refused one by one.
    let mut long = server.client();
    for _ in 0..3 {
        assert_eq!(long.ask(&"x".repeat(5000)).code, 500);
    }
    assert_eq!(long.ask("NOOP").code, 200);
    // One byte at a time: the time limit counts from the first.
    let mut slow = Client::connect(server.addr);
    slow.expect(220);
    let start = Instant::now();
    while slow.stream.write_all(b"U").is_ok() {
        assert!(start.elapsed() < DEADLINE, "a slow loris is kept");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut silent = server.client();
    assert_eq!(silent.reply().code, 421);
    assert!(silent.read().is_none());
    honest.check();
    server.assert_up();
}

#[test]
fn ten_thousand_connections_are_refused_politely_beyond_the_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 12_000 || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        println!("SKIPPED: this test needs 12000 open files, and {hard} are allowed: raise ulimit -n");
        return;
    }
    own_network();
    let mut server = Server::new(&["--anonymous=write", "--max-sessions", "400", "--max-per-address", "400"]);
    let honest = Honest::new(&server);
    let (mut kept, mut refused) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        kept.push(stream);
    }
    let mut welcome = 0;
    for stream in &mut kept {
        let mut code = [0; 3];
        match stream.read_exact(&mut code) {
            Ok(()) if &code == b"220" => welcome += 1,
            Ok(()) if &code == b"421" => refused += 1,
            other => panic!("{other:?} {code:?}"),
        }
    }
    // The honest one, and its session that only began.
    assert!((390..=400).contains(&welcome), "{welcome}");
    assert_eq!(welcome + refused, 10_000);
    honest.check();
    drop(kept);
    eventually("sessions are free again", || {
        let mut client = Client::connect(server.addr);
        client.reply().code == 220
    });
    server.assert_up();
}

#[test]
fn leaving_in_every_state_leaves_nothing_behind() {
    let mut server = Server::open();
    let honest = Honest::new(&server);
    std::fs::File::create(server.at("big")).unwrap().set_len(1 << 30).unwrap();
    let states: [&[&str]; 17] = [
        &[],
        &["USER anonymous"],
        &["USER anonymous", "PASS x"],
        &["!", "PASV"],
        &["!", "PASV", "RETR big"],
        &["!", "PASV", "STOR x"],
        &["!", "MODE E", "PASV", "STOR y"],
        &["!", "MODE E", "PASV", "RETR big"],
        &["!", "REST 5"],
        &["!", "RNFR big"],
        &["!", "PORT 127,0,0,1,250,250", "RETR big"],
        &["!", "CKSM MD5 0 -1 big"],
        &["!", "PASV", "LIST"],
        &["!", "PASV", "MLSD"],
        &["!", "EPSV", "APPE z", "ABOR"],
        &["!", "PASV", "RETR big", "RETR big", "RETR big", "ABOR"],
        &["AUTH GSSAPI", "ADAT AAAA"],
    ];
    for connected in [false, true] {
        for state in states {
            let mut client = Client::connect(server.addr);
            let mut data = None;
            for command in state {
                match *command {
                    "!" => {
                        client.expect(220);
                        client.login();
                    }
                    "PASV" if connected => data = Some(TcpStream::connect(client.pasv()).unwrap()),
                    "MODE E" => assert_eq!(client.ask("MODE E").code, 200),
                    command => client.say(command),
                }
            }
            if let Some(data) = &mut data {
                // Some of it is garbage to whoever reads it.
                let _ = data.write_all(&[0xff; 100]);
            }
        }
    }
    honest.check();
    server.assert_up();
    let fds = format!("/proc/{}/fd", server.pid());
    eventually("all descriptors of those sessions are closed", || {
        std::fs::read_dir(&fds).unwrap().count() < 40
    });
    let left = || -> Vec<_> {
        let names = std::fs::read_dir(server.at("")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> =
            names.map(|name| name.into_string().unwrap()).filter(|name| name.contains("strewn")).collect();
        names.sort();
        names
    };
    eventually("nothing strewn is left", || left().is_empty());
}

#[test]
fn garbage_of_any_sort_is_answered_or_ended() {
    let mut server = Server::open();
    let honest = Honest::new(&server);
    for number in 0..60u8 {
        let mut client = server.client();
        client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut garbage = bytes(3000);
        garbage.iter_mut().for_each(|byte| *byte ^= number);
        garbage.extend(b"\r\nQUIT\r\n");
        let _ = client.stream.write_all(&garbage);
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
    }
    // MODE E headers that make no sense.
    for header in [[0xff; 17], [0x01; 17], [0x40; 17], [0x10; 17], [0x00; 17]] {
        let mut client = server.client();
        assert_eq!(client.ask("MODE E").code, 200);
        let mut data = client.passive();
        assert_eq!(client.ask("STOR garbage").code, 150);
        data.write_all(&header).unwrap();
        data.shutdown(std::net::Shutdown::Write).unwrap();
        let reply = loop {
            let reply = client.reply();
            if reply.code >= 200 {
                break reply;
            }
        };
        assert!(reply.code >= 400, "{reply}");
        assert_eq!(client.ask("NOOP").code, 200);
    }
    assert!(!server.at("garbage").exists());
    honest.check();
    server.assert_up();
}

#[test]
fn folders_that_become_links_meanwhile_lead_nowhere() {
    let mut server = Server::open();
    std::fs::create_dir(server.beside("outside")).unwrap();
    std::fs::write(server.beside("outside/x"), "SECRET").unwrap();
    std::fs::create_dir(server.at("dir")).unwrap();
    std::fs::write(server.at("dir/x"), "public").unwrap();
    std::os::unix::fs::symlink(server.beside("outside"), server.at("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, root) = (stop.clone(), server.at(""));
    let race = std::thread::spawn(move || {
        while !stopped.load(SeqCst) {
            // The folder and the link change their names, in one step.
            for (one, other) in [("dir", "spare"), ("link", "dir"), ("dir", "link"), ("spare", "dir")] {
                std::fs::rename(root.join(one), root.join(other)).unwrap();
            }
        }
    });
    let mut client = server.client();
    let (mut read, mut refused) = (0, 0);
    let start = Instant::now();
    while (read < 50 || refused < 50) && start.elapsed() < Duration::from_secs(20) {
        let mut data = client.passive();
        let reply = client.ask("RETR dir/x");
        if reply.code == 150 {
            let mut got = String::new();
            data.read_to_string(&mut got).unwrap();
            client.expect(226);
            assert_eq!(got, "public");
            read += 1;
        } else {
            assert_eq!(reply.code, 550, "{reply}");
            refused += 1;
        }
        let made = client.ask("MKD dir/new").code;
        assert!(matches!(made, 257 | 550), "{made}");
        let _ = client.ask("DELE dir/x2");
    }
    stop.store(true, SeqCst);
    race.join().unwrap();
    assert!(read > 0 && refused > 0, "there was no race: {read} read, {refused} refused");
    assert_eq!(std::fs::read_dir(server.beside("outside")).unwrap().count(), 1, "something was made outside");
    server.assert_up();
}

#[test]
fn one_more_session_of_an_address_than_allowed_is_refused() {
    let server = Server::new(&["--anonymous", "--max-per-address", "2"]);
    let _two = [server.client(), server.client()];
    let mut third = Client::connect(server.addr);
    let reply = third.reply();
    assert_eq!(reply.code, 421, "{reply}");
    assert!(reply.to_string().contains("from your address"), "{reply}");
}

#[test]
fn a_data_connection_that_stands_still_is_ended() {
    let server = Server::new(&["--anonymous=write", "--stall", "1s"]);
    std::fs::File::create(server.at("big")).unwrap().set_len(1 << 30).unwrap();
    let mut client = server.client();
    let _data = client.passive();
    assert_eq!(client.ask("RETR big").code, 150);
    let reply = client.expect(426);
    assert!(reply.to_string().contains("nothing moved"), "{reply}");
    let _data = client.passive();
    assert_eq!(client.ask("STOR x").code, 150);
    client.expect(426);
}
