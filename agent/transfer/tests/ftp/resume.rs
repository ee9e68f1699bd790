//! Uploads that are interrupted at random places, by the death of the client or of the server, and go on: no wrong byte.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use libgrid::ftp::block::{HEADER, Header};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Server, assert_same, bytes, eventually, installed, must};

const LENGTH: usize = 3_000_001;

/// What SIZE says; 0 for no file.
fn size(server: &Server, name: &str) -> usize {
    let reply = server.client().ask(&format!("SIZE {name}"));
    match reply.code {
        213 => String::from_utf8_lossy(&reply.text[0]).parse().unwrap(),
        550 => 0,
        _ => panic!("{reply}"),
    }
}

#[test]
fn in_stream_mode_rest_goes_on_where_size_says() {
    let mut random = StdRng::seed_from_u64(1);
    let mut server = Server::open();
    let all = bytes(LENGTH);
    std::fs::write(server.at("old"), "an old file that is replaced").unwrap();
    for round in 0..40 {
        let name = if round % 2 == 0 { "old".to_owned() } else { format!("new{round}") };
        let before = std::fs::read(server.at(&name)).ok();
        for part in 0..3 {
            // The first part of a file that replaces another begins anew.
            let from = if part == 0 { 0 } else { size(&server, &name) };
            assert!(from <= LENGTH);
            let to = random.random_range(from..=LENGTH);
            let mut client = server.client();
            let mut data = client.passive();
            if from > 0 {
                assert_eq!(client.ask(&format!("REST {from}")).code, 350);
            }
            assert_eq!(client.ask(&format!("STOR {name}")).code, 150);
            data.write_all(&all[from..to]).unwrap();
            // Killed: all connections end, in either order.
            if round % 4 == 3 {
                server.kill_and_restart();
            }
            drop(client);
            drop(data);
            assert_eq!(
                std::fs::read(server.at(&name)).ok(),
                before,
                "readers see half a file, round {round}"
            );
        }
        let mut client = server.client();
        let from = size(&server, &name);
        let reply = if round % 8 < 4 {
            assert_eq!(client.ask(&format!("REST {from}")).code, 350);
            client.put(&format!("STOR {name}"), &all[from..])
        } else {
            client.put(&format!("APPE {name}"), &all[from..])
        };
        assert_eq!(reply.code, 226, "{reply}");
        assert!(std::fs::read(server.at(&name)).unwrap() == all, "wrong bytes in round {round}");
        std::fs::write(server.at("old"), "an old file that is replaced").unwrap();
    }
}

/// Starts a client, and kills it once so many bytes of its upload are there. False if it was quicker.
fn killed(command: &mut Command, server: &mut Server, name: &str, enough: u64, with_server: bool) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let coming = |suffix: &str| {
        let part = server.at(&format!(".{name}.{suffix}~gridos"));
        std::fs::metadata(part).is_ok_and(|part| part.len() >= enough)
    };
    eventually("some of it came", || coming("part") || coming("strewn") || server.at(name).exists());
    if with_server {
        server.kill_and_restart();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let whole = std::fs::metadata(server.at(name)).map(|there| there.len());
    assert!(whole.as_ref().map_or(true, |length| *length == LENGTH as u64), "half a file has its name");
    whole.is_err()
}

#[test]
fn curl_and_lftp_go_on_after_they_or_the_server_were_killed() {
    if !installed(&["curl", "lftp"]) {
        return;
    }
    let mut server = Server::open();
    let source = server.beside("source");
    std::fs::write(&source, bytes(LENGTH)).unwrap();
    let local = source.display().to_string();
    let mut interrupted = 0;
    for (round, with_server) in [false, true, false, true].into_iter().enumerate() {
        let enough = 100_000 + 400_000 * round as u64;
        let name = format!("curl{round}");
        let mut slow = Command::new("curl");
        slow.args(["-sS", "--limit-rate", "2M", "-T", &local]).arg(server.url(&name));
        interrupted += u32::from(killed(&mut slow, &mut server, &name, enough, with_server));
        must(Command::new("curl").args(["-sS", "-C", "-", "-T", &local]).arg(server.url(&name)));
        assert_same(&source, &server.at(&name));
        let name = format!("lftp{round}");
        let lftp = |more: &str| {
            let mut command = Command::new("lftp");
            let script = format!(
                "set cmd:fail-exit yes; set net:max-retries 1; {more} {local} -o {name}",
                more = more.replace("URL", &server.url(""))
            );
            command.args(["-c", &script]);
            command
        };
        let mut slow = lftp("set net:limit-total-rate 2000000; open URL; put");
        interrupted += u32::from(killed(&mut slow, &mut server, &name, enough, with_server));
        let mut again = Command::new("lftp");
        let open = format!("set cmd:fail-exit yes; open {}; put -c {local} -o {name}", server.url(""));
        must(again.args(["-c", &open]));
        assert_same(&source, &server.at(&name));
    }
    assert_eq!(std::fs::read_dir(server.at("")).unwrap().count(), 8, "parts were left behind");
    assert!(interrupted >= 4, "only {interrupted} of 8 uploads were interrupted");
}

/// Sends blocks of these ranges, and then EOF if `ends`.
fn blocks(data: &mut TcpStream, all: &[u8], ranges: &[(usize, usize)], ends: bool) {
    for &(from, to) in ranges {
        data.write_all(&Header::data((to - from) as u64, from as u64).to_bytes()).unwrap();
        data.write_all(&all[from..to]).unwrap();
    }
    if ends {
        data.write_all(&Header::eof(1).to_bytes()).unwrap();
        data.write_all(&Header::eod().to_bytes()).unwrap();
    }
}

#[test]
fn in_mode_e_only_what_has_no_gap_is_promised_and_kept() {
    let mut random = StdRng::seed_from_u64(2);
    let server = Server::open();
    let all = bytes(LENGTH);
    for round in 0..30 {
        let name = format!("e{round}");
        let cut = random.random_range(1..LENGTH - 2);
        let gap = random.random_range(cut + 1..LENGTH);
        let mut client = server.client();
        assert_eq!(client.ask("MODE E").code, 200);
        let mut data = client.passive();
        assert_eq!(client.ask(&format!("STOR {name}")).code, 150);
        blocks(&mut data, &all, &[(gap, LENGTH), (0, cut)], false);
        drop(client);
        drop(data);
        // How much of it the server read before it heard of the client's end is its own affair.
        let strewn = server.at(&format!(".{name}.strewn~gridos"));
        eventually("the upload is given up", || !strewn.exists());
        let kept = size(&server, &name);
        assert!(kept <= cut, "{kept} bytes are promised, and {cut} came without a gap");
        let cut = kept;
        let mut client = server.client();
        assert_eq!(client.ask("MODE E").code, 200);
        let mut data = client.passive();
        assert_eq!(client.ask(&format!("REST 0-{cut}")).code, 350);
        assert_eq!(client.ask(&format!("STOR {name}")).code, 150);
        blocks(&mut data, &all, &[(cut, LENGTH)], true);
        let reply = loop {
            let reply = client.reply();
            if reply.code >= 200 {
                break reply;
            }
        };
        assert_eq!(reply.code, 226, "{reply}");
        assert!(std::fs::read(server.at(&name)).unwrap() == all, "wrong bytes in round {round}");
    }
    assert_eq!(std::fs::read_dir(server.at("")).unwrap().count(), 30, "parts were left behind");
}

#[test]
fn ranges_that_were_never_promised_are_refused() {
    let server = Server::open();
    let mut client = server.client();
    assert_eq!(client.ask("MODE E").code, 200);
    client.pasv();
    assert_eq!(client.ask("REST 0-5,9-12").code, 350);
    assert_eq!(client.ask("STOR x").code, 554);
    assert_eq!(client.ask("MODE S").code, 200);
    assert_eq!(client.ask("REST 100").code, 350);
    assert_eq!(client.ask("STOR x").code, 554);
    assert_eq!(client.ask("REST 0-5").code, 504);
}

#[test]
fn a_gap_in_what_was_sent_is_an_error_and_not_a_file() {
    let server = Server::open();
    let mut client = server.client();
    assert_eq!(client.ask("MODE E").code, 200);
    let mut data = client.passive();
    assert_eq!(client.ask("STOR x").code, 150);
    blocks(&mut data, &bytes(1000), &[(0, 100), (200, 1000)], true);
    let reply = loop {
        let reply = client.reply();
        if reply.code >= 200 {
            break reply;
        }
    };
    assert!(reply.code >= 400 && reply.to_string().contains("bytes 100 to 200 were never sent"), "{reply}");
    assert!(!server.at("x").exists());
}

#[test]
fn mode_e_sends_what_rest_leaves_and_uses_its_connection_again() {
    let server = Server::open();
    let all = bytes(LENGTH);
    std::fs::write(server.at("x"), &all).unwrap();
    let mut client = server.client();
    assert_eq!(client.ask("MODE E").code, 200);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = libgrid::ftp::address::format_port(listener.local_addr().unwrap()).unwrap();
    assert_eq!(client.ask(&format!("PORT {port}")).code, 200);
    let mut data = None;
    for _ in 0..3 {
        assert_eq!(client.ask("REST 0-1000,5000-2000000").code, 350);
        assert_eq!(client.ask("RETR x").code, 150);
        let data = data.get_or_insert_with(|| listener.accept().unwrap().0);
        let mut got = vec![None; LENGTH];
        let (mut streams, mut eods) = (u64::MAX, 0);
        while eods < streams {
            let mut header = [0; HEADER];
            data.read_exact(&mut header).unwrap();
            let header = Header::from_bytes(&header);
            header.check().unwrap();
            if let Some(count) = header.streams() {
                streams = count;
            } else {
                let mut piece = vec![0; usize::try_from(header.count).unwrap()];
                data.read_exact(&mut piece).unwrap();
                let from = usize::try_from(header.offset).unwrap();
                for (place, byte) in got[from..from + piece.len()].iter_mut().zip(piece) {
                    assert!(place.replace(byte).is_none(), "a byte came twice");
                }
            }
            eods += u64::from(header.is_eod());
        }
        client.expect(226);
        for (at, byte) in got.iter().enumerate() {
            let had = at < 1000 || (5000..2_000_000).contains(&at);
            assert_eq!(*byte, (!had).then_some(all[at]), "byte {at}");
        }
    }
}
