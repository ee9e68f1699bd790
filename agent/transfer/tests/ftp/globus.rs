//! globus-url-copy, and globus-gridftp-server as the other end of third-party transfers.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{
    Server, assert_same, assert_same_tree, bytes, eventually, installed, must, own_network, tree,
};

fn copy(options: &[&str], from: &str, to: &str) {
    must(Command::new("globus-url-copy").args(options).args([from, to]));
}

fn file(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// The server of Globus, for everybody.
struct Reference {
    process: Child,
    port: u16,
}

impl Reference {
    /// `None`, said, where it does not run.
    fn start() -> Option<Reference> {
        if !installed(&["globus-gridftp-server", "globus-url-copy"]) {
            return None;
        }
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("globus-gridftp-server")
            .args([
                "-aa",
                "-anonymous-user",
                "nobody",
                "-anonymous-group",
                "nogroup",
                "-p",
                &port.to_string(),
            ])
            .args(["-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the reference server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Reference { process, port })
    }

    fn url(&self, path: &Path) -> String {
        format!("ftp://127.0.0.1:{}{}", self.port, path.display())
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_way_of_copying_one_file() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    let server = Server::open();
    let (source, got) = (server.beside("source"), server.beside("got"));
    let ways: [&[&str]; 8] = [
        &[],
        &["-p", "1"],
        &["-p", "4"],
        &["-fast"],
        &["-fast", "-p", "2", "-tcp-bs", "1048576"],
        &["-stripe", "-p", "2"],
        &["-verify-checksum"],
        &["-p", "4", "-bs", "1000"],
    ];
    for size in [0, 1, 65_537, 5_000_001] {
        std::fs::write(&source, bytes(size)).unwrap();
        for options in ways {
            copy(options, &file(&source), &server.url("put"));
            assert_same(&source, &server.at("put"));
            copy(options, &server.url("put"), &file(&got));
            assert_same(&source, &got);
            std::fs::remove_file(&got).unwrap();
            std::fs::remove_file(server.at("put")).unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(server.at("")).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_part_of_a_file_arrives_at_its_place() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    let server = Server::open();
    std::fs::write(server.at("x"), bytes(50_000)).unwrap();
    for options in [&["-off", "1000", "-len", "5000"][..], &["-off", "1000", "-len", "5000", "-p", "2"]] {
        let got = server.beside("got");
        copy(options, &server.url("x"), &file(&got));
        assert_eq!(std::fs::read(&got).unwrap()[1000..], bytes(50_000)[1000..6000], "{options:?}");
        std::fs::remove_file(&got).unwrap();
    }
}

#[test]
fn synchronising_by_checksum_copies_what_differs() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    let server = Server::open();
    let (source, got) = (server.at("x"), server.beside("got"));
    std::fs::write(&source, bytes(100_000)).unwrap();
    let mut other = bytes(100_000);
    other[5] ^= 1;
    std::fs::write(&got, other).unwrap();
    let options = ["-sync", "-sync-level", "3"];
    copy(&options, &server.url("x"), &file(&got));
    assert_same(&source, &got);
    copy(&options, &server.url("x"), &file(&got));
}

#[test]
fn ten_thousand_small_files_in_a_pipeline() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    own_network();
    let server = Server::open();
    let (source, got) = (server.beside("source"), server.beside("got"));
    tree(&source, 10_000);
    let url = |path: &Path| format!("{}/", file(path));
    copy(&["-r", "-cd", "-pp", "-cc", "4", "-fast"], &url(&source), &server.url("up/"));
    assert_same_tree(&source, &server.at("up"));
    copy(&["-r", "-cd", "-pp", "-cc", "4", "-fast"], &server.url("up/"), &url(&got));
    assert_same_tree(&source, &got);
}

#[test]
fn trees_without_a_pipeline() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    let server = Server::open();
    let (source, got) = (server.beside("source"), server.beside("got"));
    tree(&source, 200);
    let url = |path: &Path| format!("{}/", file(path));
    for options in [&["-r", "-cd"][..], &["-r", "-cd", "-p", "2"], &["-r", "-cd", "-pp"]] {
        copy(options, &url(&source), &server.url("up/"));
        assert_same_tree(&source, &server.at("up"));
        copy(options, &server.url("up/"), &url(&got));
        assert_same_tree(&source, &got);
        std::fs::remove_dir_all(&got).unwrap();
        std::fs::remove_dir_all(server.at("up")).unwrap();
    }
}

#[test]
fn third_party_transfers_with_the_reference_server() {
    let Some(reference) = Reference::start() else { return };
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: the reference server takes another user only as root");
        return;
    }
    let server = Server::open();
    std::fs::write(server.at("x"), bytes(5_000_001)).unwrap();
    for options in [&[][..], &["-p", "4"], &["-fast"], &["-stripe", "-p", "2"]] {
        copy(options, &server.url("x"), &reference.url(&server.at("theirs")));
        assert_same(&server.at("x"), &server.at("theirs"));
        copy(options, &reference.url(&server.at("theirs")), &server.url("back"));
        assert_same(&server.at("x"), &server.at("back"));
        std::fs::remove_file(server.at("theirs")).unwrap();
        std::fs::remove_file(server.at("back")).unwrap();
    }
    tree(&server.at("tree"), 200);
    let folder = |path: &Path| format!("{}/", reference.url(path));
    copy(&["-r", "-cd", "-pp", "-fast"], &server.url("tree/"), &folder(&server.at("t1")));
    copy(&["-r", "-cd", "-pp", "-fast"], &folder(&server.at("t1")), &server.url("t2/"));
    assert_same_tree(&server.at("tree"), &server.at("t2"));
}

#[test]
fn five_sparse_gigabytes_with_something_in_them() {
    if !installed(&["globus-url-copy"]) {
        return;
    }
    use std::os::unix::fs::FileExt;
    const LENGTH: u64 = 5 << 30;
    let server = Server::open();
    let source = std::fs::File::create(server.at("sparse")).unwrap();
    source.set_len(LENGTH).unwrap();
    for at in [0, (4 << 30) - 1, LENGTH - 10] {
        source.write_all_at(b"0123456789", at).unwrap();
    }
    // Beyond 4 GiB, by parts: what would be cut by a number of 32 bits.
    let got = server.beside("got");
    let offset = (4u64 << 30) - 1;
    copy(&["-p", "2", "-off", &offset.to_string(), "-len", "10"], &server.url("sparse"), &file(&got));
    let mut read = [0; 10];
    std::fs::File::open(&got).unwrap().read_exact_at(&mut read, offset).unwrap();
    assert_eq!(&read, b"0123456789");
    std::fs::remove_file(&got).unwrap();
    // All of it, its bytes summed up as they come: a copy would only measure the disk.
    let sum = |command: &str| {
        let output = must(Command::new("sh").args(["-c", command]));
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
    };
    let there = sum(&format!("cksum < {}", server.at("sparse").display()));
    let here = sum(&format!("curl -sS {} | cksum", server.url("sparse")));
    assert_eq!(there, here);
}
