//! GSI: globus-url-copy with a proxy of a throwaway CA.

use std::process::Command;

use crate::support::{Server, assert_same, assert_same_tree, bytes, installed, must, run, tree};
use crate::tls::Ca;

/// What the tools of Globus need to find the CA and the user.
struct Globus {
    ca: Ca,
    server: Server,
}

impl Globus {
    /// `None`, said, where the programs are missing.
    fn new(more: &[&str]) -> Option<Globus> {
        if !installed(&["globus-url-copy", "grid-proxy-init", "openssl"]) {
            return None;
        }
        let (ca, server) = Ca::server(tempfile::tempdir().unwrap(), more);
        let hash =
            must(Command::new("openssl").args(["x509", "-noout", "-hash", "-in"]).arg(ca.at("ca.pem")));
        let hash = String::from_utf8(hash.stdout).unwrap().trim().to_owned();
        let certs = ca.at("certs");
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::copy(ca.at("ca.pem"), certs.join(format!("{hash}.0"))).unwrap();
        let policy = "access_id_CA X509 '/O=Grid/CN=Test CA'\npos_rights globus CA:sign\n\
            cond_subjects globus '\"/O=Grid/*\"'\n";
        std::fs::write(certs.join(format!("{hash}.signing_policy")), policy).unwrap();
        Some(Globus { ca, server })
    }

    fn command(&self, program: &str, who: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("X509_CERT_DIR", self.ca.at("certs"))
            .env("X509_USER_PROXY", self.ca.at(&format!("{who}.proxy")))
            .env("HOME", &self.ca.folder);
        command
    }

    fn proxy(&self, who: &str, options: &[&str]) {
        use std::os::unix::fs::PermissionsExt;
        let key = self.ca.at(&format!("{who}.key"));
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let mut command = self.command("grid-proxy-init", who);
        command.env("X509_USER_CERT", self.ca.at(&format!("{who}.pem"))).env("X509_USER_KEY", key);
        must(command.arg("-q").args(options));
    }

    fn url(&self, path: &str) -> String {
        format!("gsiftp://localhost:{}/{path}", self.server.addr.port())
    }

    fn copy(&self, who: &str, options: &[&str], from: &str, to: &str) -> Command {
        let mut command = self.command("globus-url-copy", who);
        command.args(options).args([from, to]);
        command
    }
}

#[test]
fn a_proxy_logs_in_and_moves_data_without_data_channel_authentication() {
    let Some(globus) = Globus::new(&[]) else { return };
    let server = &globus.server;
    let (source, got) = (server.beside("source"), server.beside("got"));
    std::fs::write(&source, bytes(3_000_001)).unwrap();
    let file = |path: &std::path::Path| format!("file://{}", path.display());
    for (who, kind) in [("alice", &[][..]), ("alice", &["-limited"]), ("dora", &["-bits", "4096"])] {
        globus.proxy(who, kind);
        for options in [&["-nodcau"][..], &["-nodcau", "-p", "4"], &["-nodcau", "-fast"]] {
            must(&mut globus.copy(who, options, &file(&source), &globus.url("put")));
            assert_same(&source, &server.at("put"));
            must(&mut globus.copy(who, options, &globus.url("put"), &file(&got)));
            assert_same(&source, &got);
            std::fs::remove_file(&got).unwrap();
            std::fs::remove_file(server.at("put")).unwrap();
        }
    }
    tree(&server.beside("tree"), 100);
    let from = format!("{}/", file(&server.beside("tree")));
    must(&mut globus.copy("alice", &["-nodcau", "-r", "-cd", "-pp", "-fast"], &from, &globus.url("up/")));
    assert_same_tree(&server.beside("tree"), &server.at("up"));
}

#[test]
fn data_connections_are_authenticated_and_protected_as_asked() {
    let Some(globus) = Globus::new(&[]) else { return };
    let server = &globus.server;
    let (source, got) = (server.beside("source"), server.beside("got"));
    std::fs::write(&source, bytes(3_000_001)).unwrap();
    let file = |path: &std::path::Path| format!("file://{}", path.display());
    globus.proxy("dora", &[]);
    for options in [&[][..], &["-p", "4"], &["-fast"], &["-dcpriv"], &["-dcpriv", "-p", "4"], &["-dcsafe"]] {
        let mut put = globus.copy("dora", options, &file(&source), &globus.url("put"));
        if options.contains(&"-dcsafe") {
            // Integrity alone is not there, and said so.
            assert!(!run(&mut put).status.success());
            continue;
        }
        must(&mut put);
        assert_same(&source, &server.at("put"));
        must(&mut globus.copy("dora", options, &globus.url("put"), &file(&got)));
        assert_same(&source, &got);
        std::fs::remove_file(&got).unwrap();
        std::fs::remove_file(server.at("put")).unwrap();
    }
}

#[test]
fn a_user_whose_name_no_host_could_have_is_told_what_to_do() {
    let Some(globus) = Globus::new(&[]) else { return };
    globus.proxy("alice", &[]);
    std::fs::write(globus.server.at("x"), bytes(3_000_001)).unwrap();
    let got = globus.server.beside("got");
    let to = format!("file://{}", got.display());
    // Connections that we open have no such trouble.
    must(&mut globus.copy("alice", &["-p", "4"], &globus.url("x"), &to));
    assert_same(&globus.server.at("x"), &got);
    // The client tells what it sees first: the end of the data connection, or our reply.
    let told = (0..20).any(|_| {
        let output = run(&mut globus.copy("alice", &[], &globus.url("x"), &to));
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).contains("use -nodcau")
    });
    assert!(told, "it told nothing of it, twenty times");
}

#[test]
fn third_party_transfers_between_two_servers_are_authenticated() {
    let Some(globus) = Globus::new(&["--allow-third-party"]) else { return };
    globus.proxy("dora", &[]);
    std::fs::write(globus.server.at("x"), bytes(3_000_001)).unwrap();
    for options in [&[][..], &["-p", "2"], &["-dcpriv"], &["-nodcau", "-fast"]] {
        must(&mut globus.copy("dora", options, &globus.url("x"), &globus.url("y")));
        assert_same(&globus.server.at("x"), &globus.server.at("y"));
        std::fs::remove_file(globus.server.at("y")).unwrap();
    }
}

#[test]
fn who_is_not_in_the_map_or_of_another_ca_is_refused() {
    let Some(globus) = Globus::new(&[]) else { return };
    std::fs::write(globus.ca.at("gridmap"), "").unwrap();
    std::fs::write(globus.server.at("x"), "secret").unwrap();
    // The certificate of the VO of somebody else, as a user of Globus.
    globus.proxy("eve", &[]);
    let got = format!("file://{}", globus.server.beside("got").display());
    let output = run(&mut globus.copy("eve", &["-nodcau"], &globus.url("x"), &got));
    assert!(!output.status.success(), "{output:?}");
    let other = Ca::new(&globus.server.folder.path().join("other"));
    for name in ["alice.pem", "alice.key"] {
        std::fs::copy(other.at(name), globus.ca.at(name)).unwrap();
    }
    globus.proxy("alice", &[]);
    let output = run(&mut globus.copy("alice", &["-nodcau"], &globus.url("x"), &got));
    assert!(!output.status.success(), "{output:?}");
}
