//! Very large files, and very many small ones, in bounded time.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libgrid::ftp::client::{Options, TreeOptions, get_tree, put_tree};

use crate::material::{assert_same, names};
use crate::ready;
use crate::server::{ALL, Kind, Server, own_network};

const LARGE: u64 = 5 << 30;
const MARKS: [u64; 4] = [0, (2 << 30) - 3, (4 << 30) - 3, LARGE - 6];

/// A file of 5 GiB with a few bytes in it, around the borders of 31 and 32 bits.
fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(LARGE).unwrap();
    for mark in MARKS {
        file.write_all_at(b"gridos", mark).unwrap();
    }
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
}

fn assert_sparse(path: &Path) {
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), LARGE);
    for mark in MARKS {
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, mark).unwrap();
        assert_eq!(&bytes, b"gridos", "at {mark}");
    }
}

#[test]
fn five_gibibytes_pass_in_each_mode() {
    if !ready("five_gibibytes_pass_in_each_mode", &ALL) {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    // What goes over the wire has no holes: it lies twice on the disk, while the tests beside this one need theirs.
    const ROOM: u64 = 16 << 30;
    let disk = nix::sys::statvfs::statvfs(here.path()).unwrap();
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    if free < ROOM {
        let test = "five_gibibytes_pass_in_each_mode";
        let _ =
            writeln!(std::io::stdout(), "\nSKIPPED: {test}: {} GiB are free, and it takes 16", free >> 30);
        return;
    }
    let (source, back) = (here.path().join("source"), here.path().join("back"));
    sparse(&source);
    for (kind, extended) in [(Kind::Vsftpd, false), (Kind::Globus, true)] {
        let server = Server::start(kind);
        let mut client = server.client();
        let options = Options { extended, streams: Some(2), ..Options::default() };
        let begun = Instant::now();
        client.put(&source, &server.path("x"), &options, &mut |_| ()).unwrap();
        let put = begun.elapsed();
        assert_sparse(&server.root.join("x"));
        let begun = Instant::now();
        client.get(&server.path("x"), &back, &options, &mut |_| ()).unwrap();
        let get = begun.elapsed();
        assert_sparse(&back);
        fs::remove_file(&back).unwrap();
        assert!(put + get < Duration::from_secs(240), "{kind:?}: {put:?} and {get:?}");
        println!("FIGURE five_gibibytes {kind:?}: put {put:.1?}, get {get:.1?}");
    }
}

#[test]
fn a_tree_of_ten_thousand_files_goes_there_and_back() {
    if !ready("a_tree_of_ten_thousand_files_goes_there_and_back", &ALL) {
        return;
    }
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    for folder in 0..100 {
        let folder = tree.join(format!("folder {folder}"));
        fs::create_dir_all(&folder).unwrap();
        for number in 0..100 {
            let length = (number * 37 + 11) % 4096;
            fs::write(folder.join(format!("file {number}")), vec![u8::try_from(number).unwrap(); length])
                .unwrap();
        }
    }
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    for kind in ALL {
        own_network();
        let server = Server::start(kind);
        let mut client = server.client();
        let options = TreeOptions { connections: 4, ..TreeOptions::default() };
        let begun = Instant::now();
        let put = put_tree(&mut client, &tree, &server.path("tree"), &options, &mut |_| ())
            .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let put_time = begun.elapsed();
        assert_eq!((put.files, put.folders, put.left_out, put.skipped), (10_000, 101, 1, 0), "{kind:?}");
        let back = here.path().join("back");
        let begun = Instant::now();
        let get = get_tree(&mut client, &server.path("tree"), &back, &options, &mut |_| ())
            .unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let get_time = begun.elapsed();
        assert_eq!((get.files, get.folders, get.bytes), (10_000, 101, put.bytes), "{kind:?}");
        for folder in names(&back) {
            assert_eq!(names(&back.join(&folder)).len(), 100);
            for file in names(&back.join(&folder)) {
                assert_same(&tree.join(&folder).join(&file), &back.join(&folder).join(&file));
                assert_same(
                    &tree.join(&folder).join(&file),
                    &server.root.join("tree").join(&folder).join(&file),
                );
            }
        }
        // Once more: what is there is left alone.
        let again = get_tree(&mut client, &server.path("tree"), &back, &options, &mut |_| ()).unwrap();
        assert_eq!((again.files, again.skipped), (0, 10_000), "{kind:?}");
        if client.features().has("MFMT") {
            let again = put_tree(&mut client, &tree, &server.path("tree"), &options, &mut |_| ()).unwrap();
            assert_eq!((again.files, again.skipped), (0, 10_000), "{kind:?}");
        }
        fs::remove_dir_all(&back).unwrap();
        println!("FIGURE ten_thousand_files {kind:?}: put {put_time:.1?}, get {get_time:.1?}");
    }
}
