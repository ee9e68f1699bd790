//! TLS with servers whose certificates a throwaway authority signed.

use std::fs;

use libgrid::ftp::client::{Client, FtpError, Login, Options, Tls, TreeOptions, Trust, put_tree};

use crate::authority::Authority;
use crate::material::{assert_same, fill, names};
use crate::ready;
use crate::server::{Kind, Server, TlsSetup, login};

const SERVERS: [Kind; 2] = [Kind::Vsftpd, Kind::Proftpd];

fn with(trust: Trust, private: bool, certificate: Option<&Authority>) -> Login {
    let certificate =
        certificate.map(|authority| (authority.file("client.pem"), authority.file("client.key")));
    Login { tls: Some(Tls { trust, certificate, private }), ..login() }
}

fn there_and_back(server: &Server, login: &Login) {
    let here = tempfile::tempdir().unwrap();
    let (source, back) = (here.path().join("source"), here.path().join("back"));
    let mut client = Client::connect(&server.url(), login).unwrap();
    // Many connections: a client that runs out of sessions to resume is refused.
    for (round, size) in [0, 1, 3_000_001].into_iter().chain([70_000; 12]).enumerate() {
        fill(&source, size, 3 + size);
        let told = format!("{:?}, round {round}", server.kind);
        client
            .put(&source, &server.path("x"), &Options::default(), &mut |_| ())
            .unwrap_or_else(|error| panic!("put, {told}: {error}"));
        assert_same(&source, &server.root.join("x"));
        client
            .get(&server.path("x"), &back, &Options::default(), &mut |_| ())
            .unwrap_or_else(|error| panic!("get, {told}: {error}"));
        assert_same(&source, &back);
        assert_eq!(client.list(&server.path("")).unwrap().len(), 1, "{told}");
    }
}

#[test]
fn commands_and_data_go_under_tls() {
    if !ready("commands_and_data_go_under_tls", &SERVERS) {
        return;
    }
    let authority = Authority::new();
    for kind in SERVERS {
        let server = Server::start_with(kind, TlsSetup::Yes, Some(&authority));
        there_and_back(&server, &with(Trust::Ca(authority.file("ca.pem")), true, None));
        if kind == Kind::Vsftpd {
            there_and_back(&server, &with(Trust::Ca(authority.file("ca.pem")), false, None));
        }
    }
}

#[test]
fn a_stranger_is_not_believed_unless_everybody_is() {
    if !ready("a_stranger_is_not_believed_unless_everybody_is", &SERVERS) {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    for kind in SERVERS {
        let server = Server::start_with(kind, TlsSetup::Yes, Some(&authority));
        for trust in [Trust::Ca(other.file("ca.pem")), Trust::System] {
            let error = Client::connect(&server.url(), &with(trust, true, None)).unwrap_err();
            assert!(matches!(&error, FtpError::Tls { .. }), "{error}");
        }
        there_and_back(&server, &with(Trust::Anybody, true, None));
    }
}

#[test]
fn a_client_shows_its_certificate() {
    if !ready("a_client_shows_its_certificate", &SERVERS) {
        return;
    }
    let authority = Authority::new();
    let ca = || Trust::Ca(authority.file("ca.pem"));
    for kind in SERVERS {
        let server = Server::start_with(kind, TlsSetup::Mutual, Some(&authority));
        assert!(Client::connect(&server.url(), &with(ca(), true, None)).is_err(), "{kind:?}");
        there_and_back(&server, &with(ca(), true, Some(&authority)));
    }
}

#[test]
fn a_server_without_tls_is_not_used_in_the_clear() {
    if !ready("a_server_without_tls_is_not_used_in_the_clear", &[Kind::Vsftpd]) {
        return;
    }
    let server = Server::start(Kind::Vsftpd);
    let error = Client::connect(&server.url(), &with(Trust::Anybody, true, None)).unwrap_err();
    assert!(matches!(error, FtpError::Tls { .. }), "{error}");
}

#[test]
fn a_tree_goes_under_tls() {
    if !ready("a_tree_goes_under_tls", &SERVERS) {
        return;
    }
    let authority = Authority::new();
    let here = tempfile::tempdir().unwrap();
    for number in 0..100 {
        fs::write(here.path().join(number.to_string()), vec![number; 1000]).unwrap();
    }
    for kind in SERVERS {
        let server = Server::start_with(kind, TlsSetup::Yes, Some(&authority));
        let mut client =
            Client::connect(&server.url(), &with(Trust::Ca(authority.file("ca.pem")), true, None)).unwrap();
        let report =
            put_tree(&mut client, here.path(), &server.path("t"), &TreeOptions::default(), &mut |_| ());
        assert_eq!(report.unwrap().files, 100, "{kind:?}");
        assert_eq!(names(&server.root.join("t")).len(), 100);
        assert_same(&here.path().join("42"), &server.root.join("t/42"));
    }
}
