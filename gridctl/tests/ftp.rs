//! `gridctl ftp` against servers that Debian packages. Needs root, as the servers change their user.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

#[path = "../../libgrid/tests/ftp_client/authority.rs"]
mod authority;
#[path = "../../libgrid/tests/ftp_client/material.rs"]
mod material;
#[path = "../../libgrid/tests/ftp_client/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the client itself")]
mod server;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::authority::Authority;
use crate::material::{assert_same, assert_same_part, fill, names};
use crate::server::{ALL, Kind, Server, TlsSetup};

fn ready(test: &str) -> bool {
    let Some(why) = server::obstacle(&ALL) else { return true };
    let _ = writeln!(std::io::stdout(), "\nSKIPPED: {test}: {why}");
    false
}

fn gridctl(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridctl"));
    command.current_dir(folder).arg("ftp").args(words).output().unwrap()
}

#[track_caller]
fn good(folder: &Path, words: &[&str]) -> String {
    let output = gridctl(folder, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn url(server: &Server, name: &str) -> String {
    let path = String::from_utf8(server.path(name)).unwrap();
    format!("ftp://127.0.0.1:{}{path}", server.port)
}

#[test]
fn files_are_sent_listed_fetched_and_copied_between_servers() {
    if !ready("files_are_sent_listed_fetched_and_copied_between_servers") {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    let folder = here.path();
    fill(&folder.join("big.h5"), 3_000_001, 1);
    let (one, other) = (Server::start(Kind::Globus), Server::start(Kind::Globus));
    good(folder, &["put", "-p", "4", "--verify", "big.h5", &url(&one, "")]);
    assert_same(&folder.join("big.h5"), &one.root.join("big.h5"));
    let listed = good(folder, &["ls", &url(&one, "")]);
    assert!(listed.contains("3000001") && listed.contains("big.h5"), "{listed}");
    good(folder, &["cp", "--fast", "--stripe", &url(&one, "big.h5"), &url(&other, "copy.h5")]);
    good(folder, &["get", "--fast", "-o", "back.h5", &url(&other, "copy.h5")]);
    assert_same(&folder.join("big.h5"), &folder.join("back.h5"));
    good(folder, &["get", "--off", "1000", "--len", "5000", "-o", "part", &url(&other, "copy.h5")]);
    assert_same_part(&folder.join("big.h5"), 1000, 6000, &folder.join("part"));
    let output = gridctl(folder, &["get", &url(&one, "missing")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.starts_with("gridctl: 127.0.0.1:"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn folders_go_both_ways_under_tls() {
    if !ready("folders_go_both_ways_under_tls") {
        return;
    }
    let authority = Authority::new();
    let here = tempfile::tempdir().unwrap();
    let folder = here.path();
    fs::create_dir_all(folder.join("run 7/deep")).unwrap();
    fill(&folder.join("run 7/deep/x"), 70_001, 1);
    fill(&folder.join("run 7/empty"), 0, 1);
    let server = Server::start_with(Kind::Proftpd, TlsSetup::Mutual, Some(&authority));
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"]
        .map(|name| authority.file(name).into_os_string().into_string().unwrap());
    let tls = ["--tls", "--ca", &ca, "--cert", &cert, "--key", &key, "-r"];
    let target = url(&server, "");
    let with = |words: &[&str]| good(folder, &[words, &tls[..]].concat());
    with(&["put", "run 7", &target]);
    assert_same(&folder.join("run 7/deep/x"), &server.root.join("run 7/deep/x"));
    fs::create_dir(folder.join("back")).unwrap();
    let from = url(&server, "run%207");
    with(&["get", "-o", "back", &from]);
    assert_same(&folder.join("run 7/deep/x"), &folder.join("back/run 7/deep/x"));
    assert_eq!(names(&folder.join("back/run 7")), ["deep", "empty"]);
}
