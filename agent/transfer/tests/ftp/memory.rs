//! What sessions and transfers cost.

use std::io::Read;

use crate::support::{Client, Server, bytes, eventually};

/// Resident memory of the server, in MiB.
fn resident(server: &Server) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
fn a_thousand_idle_sessions_fit_into_64_mib() {
    let server = Server::new(&[
        "--anonymous",
        "--max-per-address",
        "2000",
        "--max-per-user",
        "2000",
        "--max-sessions",
        "2000",
    ]);
    std::fs::write(server.at("x"), bytes(10_000)).unwrap();
    let before = resident(&server);
    let clients: Vec<Client> = (0..1000)
        .map(|_| {
            let mut client = server.client();
            // It has moved something: what that took must not stay.
            assert_eq!(client.get("x", 0).len(), 10_000);
            client
        })
        .collect();
    let with = resident(&server);
    println!("{before:.1} MiB without, {with:.1} MiB with {} sessions", clients.len());
    assert!(with < 64.0, "{with} MiB");
}

#[test]
fn a_hundred_transfers_at_once_take_the_same_for_files_of_any_size() {
    let server = Server::new(&["--anonymous"]);
    let mut peak = Vec::new();
    for (name, size) in [("small", 8u64 << 20), ("large", 4 << 30)] {
        std::fs::File::create(server.at(name)).unwrap().set_len(size).unwrap();
        let mut transfers = Vec::new();
        for _ in 0..100 {
            let mut client = server.client();
            let mut data = client.passive();
            assert_eq!(client.ask(&format!("RETR {name}")).code, 150);
            // It goes on, and waits for its reader.
            data.read_exact(&mut [0; 100_000]).unwrap();
            transfers.push((client, data));
        }
        peak.push(resident(&server));
        drop(transfers);
        let fds = format!("/proc/{}/fd", server.pid());
        eventually("the transfers are over", || std::fs::read_dir(&fds).unwrap().count() < 60);
    }
    println!("{:.1} MiB with small files, {:.1} MiB with large ones", peak[0], peak[1]);
    assert!(peak[1] < peak[0] + 8.0, "{peak:?} MiB");
    assert!(peak[1] < 128.0, "{peak:?} MiB");
}
