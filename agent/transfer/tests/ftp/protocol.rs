//! What the server says to single commands, and whom it obeys.

use std::io::{Read, Write};
use std::net::TcpListener;

use libgrid::ftp::address::format_port;
use libgrid::ftp::facts::{Entry, Type};

use crate::support::{Client, Server, bytes};

#[test]
fn every_feature_that_is_listed_is_there() {
    let server = Server::open();
    let mut client = server.client();
    let features = client.ask("FEAT");
    let names: Vec<String> = features.text[1..features.text.len() - 1]
        .iter()
        .map(|line| String::from_utf8_lossy(line).trim().to_owned())
        .collect();
    assert_eq!(client.put("STOR x", b"abc").code, 226);
    for feature in names {
        let verb = feature.split(' ').next().unwrap();
        let (command, code) = match verb {
            "EPRT" => ("EPRT |1|127.0.0.1|5000|", 200),
            "EPSV" => ("EPSV", 229),
            "ERET" => ("ERET P 0 1 missing", 550),
            "ESTO" => ("ESTO A 0 missing/x", 550),
            "HOST" => ("HOST x", 220),
            "MDTM" => ("MDTM x", 213),
            "MFMT" => ("MFMT 20240229120000 x", 213),
            "MLST" => ("MLST x", 250),
            "PARALLEL" => ("OPTS RETR Parallelism=2,2,2;", 200),
            "REST" => ("REST 1", 350),
            "SIZE" => ("SIZE x", 213),
            "SPAS" => ("SPAS", 229),
            "SPOR" => ("SPOR 127,0,0,1,20,20", 200),
            "TVFS" => ("CWD /", 250),
            "UTF8" => ("OPTS UTF8 ON", 200),
            "WHOAMI" => ("WHOAMI", 200),
            "CKSM" => ("CKSM SHA256 0 -1 x", 213),
            other => panic!("{other} is not known to this test"),
        };
        // ESTO finds its missing folder only with a data connection.
        client.pasv();
        assert_eq!(client.ask(command).code, code, "{command}");
    }
    assert_eq!(client.ask("CKSM MD5 0 -1 x").text[0], b"900150983cd24fb0d6963f7d28e17f72");
    assert_eq!(client.ask("CKSM MD5 1 1 x").text[0], b"92eb5ffee6ae2fec3ad71c777531578f");
    let line = &client.ask("MLST x").text[1];
    let entry = Entry::parse(&line[1..]).unwrap();
    assert_eq!((entry.kind, entry.size), (Some(Type::File), Some(3)));
}

#[test]
fn data_go_to_the_client_alone_and_never_to_low_ports() {
    let server = Server::open();
    let mut client = server.client();
    for command in ["PORT 10,0,0,1,20,20", "EPRT |1|127.0.0.2|5000|", "SPOR 127,0,0,1,20,20 127,0,0,2,20,20"]
    {
        let reply = client.ask(command);
        assert_eq!(reply.code, 501, "{command}: {reply}");
    }
    assert_eq!(client.ask("PORT 127,0,0,1,0,25").code, 501);
    assert_eq!(client.ask("EPRT |1|127.0.0.1|1023|").code, 501);
}

#[test]
fn a_strangers_connection_to_a_passive_port_is_dropped() {
    let server = Server::open();
    std::fs::write(server.at("x"), "for the client").unwrap();
    let mut client = server.client();
    let addr = client.pasv();
    // From another address of the same machine.
    let stranger = std::process::Command::new("python3")
        .args([
            "-c",
            "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), source_address=('127.0.0.9', 0))
print('in', flush=True); sys.stdin.read(); s.settimeout(30); print(len(s.recv(100)))",
        ])
        .args([addr.ip().to_string(), addr.port().to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut stranger) = stranger else {
        println!("SKIPPED: python3 is not installed: run setup/install test");
        return;
    };
    let mut first = [0; 3];
    stranger.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let mut data = std::net::TcpStream::connect(addr).unwrap();
    assert_eq!(client.ask("RETR x").code, 150);
    let mut got = String::new();
    data.read_to_string(&mut got).unwrap();
    assert_eq!(got, "for the client");
    client.expect(226);
    drop(stranger.stdin.take());
    let mut rest = String::new();
    stranger.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    stranger.wait().unwrap();
    assert_eq!(rest.trim(), "0", "the stranger got data");
}

#[test]
fn nothing_outside_of_the_root_can_be_reached() {
    let server = Server::open();
    std::fs::write(server.beside("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", server.at("link")).unwrap();
    std::os::unix::fs::symlink(server.folder.path(), server.at("up")).unwrap();
    let mut client = server.client();
    client.pasv();
    for command in [
        "RETR link",
        "RETR up/secret",
        "RETR ../secret",
        "RETR /../../../etc/passwd",
        "CWD up",
        "MLST up/secret",
        "SIZE link",
        "CKSM MD5 0 -1 link",
        "STOR up/new",
        "APPE link",
        "MKD up/new",
        "DELE up/secret",
        "RNFR up/secret",
        "SITE CHMOD 777 link",
        "MFMT 20240101000000 link",
        "ESTO A 0 link",
        "LIST up",
        "MLSD up",
        "NLST up",
        "RMD up/root",
    ] {
        let reply = client.ask(command);
        assert_eq!(reply.code, 550, "{command}: {reply}");
    }
    std::fs::write(server.at("mine"), "").unwrap();
    assert_eq!(client.ask("RNFR mine").code, 350);
    assert_eq!(client.ask("RNTO up/mine").code, 550);
    assert_eq!(client.ask("CWD ../../..").code, 250);
    assert_eq!(client.ask("PWD").text[0], b"\"/\" is the current folder");
    assert_eq!(std::fs::read_to_string(server.beside("secret")).unwrap(), "secret");
}

#[test]
fn who_may_only_read_changes_nothing() {
    let server = Server::new(&["--anonymous"]);
    std::fs::write(server.at("x"), "x").unwrap();
    let mut client = server.client();
    client.pasv();
    for command in [
        "STOR y",
        "APPE x",
        "STOU",
        "ESTO A 0 x",
        "DELE x",
        "RMD x",
        "MKD d",
        "RNFR x",
        "RNTO y",
        "SITE CHMOD 777 x",
        "MFMT 20240101000000 x",
        "SITE UTIME 20240101000000 x",
    ] {
        assert_eq!(client.ask(command).code, 550, "{command}");
    }
    assert_eq!(client.get("x", 0), b"x");
}

#[test]
fn nobody_does_anything_before_the_login() {
    let server = Server::open();
    let mut client = Client::connect(server.addr);
    client.expect(220);
    for command in [
        "PWD",
        "PASV",
        "RETR x",
        "LIST",
        "STAT",
        "CKSM MD5 0 -1 x",
        "SITE CHMOD 777 x",
        "REST 5",
        "PORT 127,0,0,1,20,20",
    ] {
        assert_eq!(client.ask(command).code, 530, "{command}");
    }
    assert_eq!(client.ask("PASS x").code, 503);
    assert_eq!(client.ask("USER root").code, 530);
    assert_eq!(client.ask("AUTH TLS").code, 502);
}

#[test]
fn the_ports_that_were_given_are_used_and_no_others() {
    // Below those that the kernel gives to others.
    let server = Server::new(&["--anonymous", "--passive", "21870-21871"]);
    let mut clients: Vec<Client> = (0..2).map(|_| server.client()).collect();
    let mut ports: Vec<u16> = clients.iter_mut().map(|client| client.pasv().port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [21870, 21871]);
    let mut third = server.client();
    assert_eq!(third.ask("PASV").code, 425);
    // A session that asks again gives its old port back.
    clients[0].pasv();
    assert_eq!(third.ask("PASV").code, 425);
    clients.pop();
    crate::support::eventually("a port is free again", || third.ask("PASV").code == 227);
}

#[test]
fn epsv_all_leaves_nothing_but_epsv() {
    let server = Server::open();
    let mut client = server.client();
    assert_eq!(client.ask("EPSV 2").code, 522);
    assert_eq!(client.ask("EPSV ALL").code, 200);
    for command in ["PASV", "PORT 127,0,0,1,20,20", "EPRT |1|127.0.0.1|5000|", "SPAS", "SPOR 127,0,0,1,20,20"]
    {
        assert_eq!(client.ask(command).code, 501, "{command}");
    }
    assert_eq!(client.ask("EPSV").code, 229);
}

#[test]
fn abor_ends_a_transfer_and_the_session_goes_on() {
    let server = Server::open();
    let big = std::fs::File::create(server.at("big")).unwrap();
    big.set_len(1 << 30).unwrap();
    let mut client = server.client();
    let mut data = client.passive();
    assert_eq!(client.ask("RETR big").code, 150);
    data.read_exact(&mut [0; 100_000]).unwrap();
    // As real clients send it: telnet's interrupt before.
    client.stream.write_all(b"\xff\xf4\xff").unwrap();
    let flags = nix::sys::socket::MsgFlags::MSG_OOB;
    nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&client.stream), b"\xf2", flags).unwrap();
    client.stream.write_all(b"ABOR\r\n").unwrap();
    let text = client.expect(426).to_string();
    assert!(text.contains("the client aborted it") && text.contains("REST"), "{text}");
    client.expect(226);
    let mut upload = client.passive();
    assert_eq!(client.ask("STOR new").code, 150);
    upload.write_all(&[1; 1000]).unwrap();
    client.say("ABOR");
    client.expect(426);
    client.expect(226);
    assert_eq!(client.ask("ABOR").code, 226);
    assert!(!server.at("new").exists());
    std::fs::write(server.at("x"), "x").unwrap();
    assert_eq!(client.get("x", 0), b"x");
}

#[test]
fn active_data_connections_come_to_the_client() {
    let server = Server::open();
    std::fs::write(server.at("x"), bytes(100_000)).unwrap();
    let mut client = server.client();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format_port(listener.local_addr().unwrap()).unwrap();
    for _ in 0..2 {
        assert_eq!(client.ask(&format!("PORT {port}")).code, 200);
        assert_eq!(client.ask("RETR x").code, 150);
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        assert_eq!(got, bytes(100_000));
        client.expect(226);
    }
}

#[test]
fn text_is_converted_both_ways() {
    let server = Server::open();
    let mut client = server.client();
    assert_eq!(client.ask("TYPE A").code, 200);
    assert_eq!(client.put("STOR t", b"one\r\ntwo\r\n").code, 226);
    assert_eq!(std::fs::read(server.at("t")).unwrap(), b"one\ntwo\n");
    assert_eq!(client.get("t", 0), b"one\r\ntwo\r\n");
    assert_eq!(client.ask("SIZE t").code, 550);
    assert_eq!(client.ask("REST 1").code, 504);
    for refused in ["TYPE E", "MODE B", "STRU R"] {
        assert_eq!(client.ask(refused).code, 504, "{refused}");
    }
}

#[test]
fn files_are_changed_as_told() {
    let server = Server::open();
    let mut client = server.client();
    assert_eq!(client.put("STOR a", b"hello").code, 226);
    assert_eq!(client.put("APPE a", b", world").code, 226);
    assert_eq!(std::fs::read(server.at("a")).unwrap(), b"hello, world");
    assert_eq!(client.put("STOU a", b"unique").code, 226);
    assert_eq!(std::fs::read(server.at("a.1")).unwrap(), b"unique");
    assert_eq!(client.put("ESTO A 3 a", b"LO").code, 226);
    assert_eq!(std::fs::read(server.at("a")).unwrap(), b"helLO, world");
    assert_eq!(client.ask("MFMT 20240229120000 a").code, 213);
    assert_eq!(client.ask("MDTM a").text[0], b"20240229120000");
    assert_eq!(client.ask("SITE CHMOD 640 a").code, 200);
    assert_eq!(client.ask("STAT a").code, 213);
    assert_eq!(client.ask("RNTO b").code, 503);
    assert_eq!(client.ask("RNFR a").code, 350);
    assert_eq!(client.ask("RNTO b").code, 250);
    assert_eq!(client.get("b", 10), b"ld");
    assert_eq!(client.ask("ALLO 10").code, 200);
    let reply = client.put("STOR short", b"four");
    assert_eq!(reply.code, 426, "{reply}");
    assert!(reply.to_string().contains("4 of 10 bytes came"), "{reply}");
}

#[test]
fn it_never_serves_as_root() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root can be refused for being root");
        return;
    }
    for user in [&[][..], &["--user", "root"]] {
        let output = crate::support::run(
            std::process::Command::new(env!("CARGO_BIN_EXE_gridos-ftpd"))
                .args(["--root", "/tmp", "--port", "0", "--listen", "127.0.0.1", "--anonymous"])
                .args(user),
        );
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("never serves as root"), "{text}");
    }
    let server = Server::open();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.to_string();
    assert!(uids.split_whitespace().skip(1).all(|uid| uid == nobody), "{uids}");
}
