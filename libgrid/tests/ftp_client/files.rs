//! Files and folders, both ways, with each server.

use std::fs;
use std::time::{Duration, SystemTime};

use libgrid::ftp::client::{FtpError, Landed, Options, Progress};
use libgrid::ftp::facts::Type;

use crate::material::{assert_same, assert_same_part, fill, names};
use crate::ready;
use crate::server::{ALL, Kind, Server};

const SIZES: [u64; 4] = [0, 1, 65_537, 3_000_001];

/// Both ways with one server.
fn there_and_back(server: &Server, options: &Options) {
    let here = tempfile::tempdir().unwrap();
    let mut client = server.client();
    for size in SIZES {
        let (source, back) = (here.path().join("source"), here.path().join("back"));
        fill(&source, size, size + 1);
        let told = format!("{:?}, {size} bytes, {options:?}", server.kind);
        let put = client.put(&source, &server.path("a file"), options, &mut |_| ());
        let put = put.unwrap_or_else(|error| panic!("put, {told}: {error}"));
        assert_eq!(
            (put.bytes, put.interruptions, put.checksum.is_some()),
            (size, 0, options.verify),
            "{told}"
        );
        assert_same(&source, &server.root.join("a file"));
        let mut moved = 0;
        let get = client.get(&server.path("a file"), &back, options, &mut |news| {
            if let Progress::Moved { bytes } = news {
                moved = bytes;
            }
        });
        let get = get.unwrap_or_else(|error| panic!("get, {told}: {error}"));
        assert_eq!((get.bytes, moved, get.checksum.is_some()), (size, size, options.verify), "{told}");
        assert_same(&source, &back);
        // Nothing hidden is left on either side.
        assert_eq!(names(&server.root), ["a file"]);
        assert_eq!(names(here.path()), ["back", "source"]);
        fs::remove_file(server.root.join("a file")).unwrap();
    }
}

#[test]
fn every_server_takes_and_gives_files_in_stream_mode() {
    if !ready("every_server_takes_and_gives_files_in_stream_mode", &ALL) {
        return;
    }
    for kind in ALL {
        there_and_back(&Server::start(kind), &Options::default());
    }
}

#[test]
fn extended_mode_works_both_ways_with_one_four_and_self_chosen_streams_and_striped() {
    if !ready("extended_mode_works_both_ways", &[Kind::Globus]) {
        return;
    }
    let server = Server::start(Kind::Globus);
    for streams in [Some(1), Some(4), None] {
        for striped in [false, true] {
            let options = Options { extended: true, streams, striped, verify: true, ..Options::default() };
            there_and_back(&server, &options);
        }
    }
    there_and_back(
        &server,
        &Options { extended: true, streams: Some(2), buffer: Some(1 << 20), ..Options::default() },
    );
}

#[test]
fn checksums_are_compared_where_the_server_can_make_them() {
    if !ready("checksums_are_compared_where_the_server_can_make_them", &ALL) {
        return;
    }
    let options = Options { verify: true, ..Options::default() };
    for kind in [Kind::Globus, Kind::Proftpd] {
        there_and_back(&Server::start(kind), &options);
    }
    let server = Server::start(Kind::Vsftpd);
    let here = tempfile::tempdir().unwrap();
    fill(&here.path().join("x"), 10, 1);
    let result = server.client().put(&here.path().join("x"), &server.path("x"), &options, &mut |_| ());
    assert!(matches!(result, Err(FtpError::Unsupported { .. })), "{result:?}");
}

#[test]
fn a_part_of_a_file_is_fetched_and_sent() {
    if !ready("a_part_of_a_file_is_fetched_and_sent", &ALL) {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    for kind in ALL {
        let server = Server::start(kind);
        let mut client = server.client();
        let source = server.root.join("source");
        fill(&source, 5_000_000, 7);
        for extended in [false, true] {
            if extended && kind != Kind::Globus {
                continue;
            }
            for range in [(1000, 6000), (0, 1), (4_999_999, 9_000_000), (100_001, 4_100_003), (7, 7)] {
                let target = here.path().join("part");
                let options =
                    Options { extended, streams: Some(2), range: Some(range), ..Options::default() };
                let to = range.1.min(5_000_000);
                let result = client.get(&server.path("source"), &target, &options, &mut |_| ());
                let told = format!("{kind:?} {extended} {range:?}");
                let landed: Landed = result.unwrap_or_else(|error| panic!("get {told}: {error}"));
                assert_eq!(landed.bytes, to - range.0, "{told}");
                assert_same_part(&source, range.0, to, &target);
                let result = client.put(&source, &server.path("part"), &options, &mut |_| ());
                result.unwrap_or_else(|error| panic!("put {told}: {error}"));
                assert_same_part(&source, range.0, to, &server.root.join("part"));
            }
        }
    }
}

#[test]
fn folders_names_sizes_and_times_are_handled_with_every_server() {
    if !ready("folders_names_sizes_and_times_are_handled_with_every_server", &ALL) {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    let source = here.path().join("x");
    fill(&source, 1234, 1);
    let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&source).unwrap().set_modified(when).unwrap();
    for kind in ALL {
        let server = Server::start(kind);
        let mut client = server.client();
        client.make_folder(&server.path("a folder")).unwrap();
        client.put(&source, &server.path("a folder/x y"), &Options::default(), &mut |_| ()).unwrap();
        let entries = client.list(&server.path("a folder")).unwrap();
        assert_eq!(entries.len(), 1, "{kind:?} {entries:?}");
        assert_eq!((entries[0].name.as_slice(), entries[0].size), (&b"x y"[..], Some(1234)), "{kind:?}");
        assert_eq!(entries[0].kind, Some(Type::File));
        assert_eq!(client.size(&server.path("a folder/x y")).unwrap(), 1234);
        if client.features().has("MFMT") {
            assert_eq!(client.modified(&server.path("a folder/x y")).unwrap(), when, "{kind:?}");
            client.set_modified(&server.path("a folder/x y"), when + Duration::from_secs(5)).unwrap();
            assert_eq!(
                client.look(&server.path("a folder/x y")).unwrap().modify,
                Some(when + Duration::from_secs(5))
            );
        }
        assert_eq!(client.look(&server.path("a folder")).unwrap().kind, Some(Type::Dir), "{kind:?}");
        client.rename(&server.path("a folder/x y"), &server.path("z")).unwrap();
        assert_same(&source, &server.root.join("z"));
        client.remove(&server.path("z")).unwrap();
        client.remove_folder(&server.path("a folder")).unwrap();
        assert!(names(&server.root).is_empty());
        let missing = client.get(&server.path("z"), &here.path().join("z"), &Options::default(), &mut |_| ());
        assert!(matches!(missing, Err(FtpError::Refused { .. })), "{kind:?} {missing:?}");
        assert_eq!(names(here.path()), ["x"]);
    }
}
