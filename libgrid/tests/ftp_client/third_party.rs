//! From server to server, with a client that only says so.

use libgrid::ftp::client::{FtpError, Options, Progress, third_party};

use crate::material::{assert_same, fill, names};
use crate::ready;
use crate::server::{ALL, Kind, Server};

fn copy(one: &Server, other: &Server, options: &Options, size: u64) {
    let told = format!("{:?} to {:?}, {size} bytes, {options:?}", one.kind, other.kind);
    fill(&one.root.join("x"), size, size);
    let (mut source, mut destination) = (one.client(), other.client());
    let mut moved = 0;
    let result = third_party(
        &mut source,
        &one.path("x"),
        &mut destination,
        &other.path("y z"),
        options,
        &mut |news| {
            if let Progress::Moved { bytes } = news {
                moved = bytes;
            }
        },
    );
    let landed = result.unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(landed.bytes, size, "{told}");
    assert!(moved <= size, "{told}: {moved}");
    assert_same(&one.root.join("x"), &other.root.join("y z"));
    assert_eq!(names(&other.root), ["y z"], "{told}");
}

#[test]
fn two_gridftp_servers_exchange_files_in_both_modes() {
    if !ready("two_gridftp_servers_exchange_files_in_both_modes", &[Kind::Globus]) {
        return;
    }
    let (one, other) = (Server::start(Kind::Globus), Server::start(Kind::Globus));
    for size in [0, 1, 7_000_001] {
        copy(&one, &other, &Options { verify: true, ..Options::default() }, size);
        for streams in [Some(1), Some(4)] {
            for striped in [false, true] {
                let options =
                    Options { extended: true, streams, striped, verify: true, ..Options::default() };
                copy(&one, &other, &options, size);
            }
        }
    }
}

#[test]
fn every_pair_of_servers_exchanges_files_in_stream_mode() {
    if !ready("every_pair_of_servers_exchanges_files_in_stream_mode", &ALL) {
        return;
    }
    for from in ALL {
        for to in ALL {
            copy(&Server::start(from), &Server::start(to), &Options::default(), 1_000_003);
        }
    }
}

#[test]
fn a_refusal_names_the_server_that_refused() {
    if !ready("a_refusal_names_the_server_that_refused", &ALL) {
        return;
    }
    let (one, other) = (Server::start(Kind::Globus), Server::start(Kind::Proftpd));
    fill(&one.root.join("x"), 1000, 1);
    let (mut source, mut destination) = (one.client(), other.client());
    let options = Options::default();
    let mut run = |from: &[u8], to: &[u8], options: &Options| {
        third_party(&mut source, from, &mut destination, to, options, &mut |_| ()).unwrap_err()
    };
    let error = run(&one.path("x"), b"/no/such/folder/x", &options);
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", other.port)), "{error}");
    let error = run(&one.path("not here"), b"/x", &options);
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", one.port)), "{error}");
    // It is no GridFTP server.
    let error = run(&one.path("x"), b"/x", &Options { extended: true, ..options });
    assert!(matches!(error, FtpError::Broken { .. } | FtpError::Unsupported { .. }), "{error:?}");
    assert!(error.to_string().contains("stream mode"), "{error}");
}
