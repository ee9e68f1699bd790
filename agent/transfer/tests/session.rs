//! Transfers between two ends in this process, over loopback and through a network that misbehaves.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod net;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use grid_transfer::root::Root;
use grid_transfer::session::{Options, ReceiveOrder, SendOrder, Spread, Trouble, discard, receive, send};
use libgrid::archive::Patterns;
use libgrid::copy::{Landed, Progress};
use libgrid::io::Fixed;
use net::{Fault, Network};

/// A transfer to be made.
struct Copy<'a> {
    sources: Vec<PathBuf>,
    target: &'a Path,
    options: Options,
    matching: Option<Patterns>,
    spread: Option<Spread>,
    fsync: bool,
    verify: bool,
    fresh: bool,
    network: Option<&'a Network>,
}

fn copy<'a>(source: &Path, target: &'a Path) -> Copy<'a> {
    let sources = vec![source.strip_prefix("/").unwrap().to_owned()];
    Copy {
        sources,
        target,
        options: Options::default(),
        matching: None,
        spread: None,
        fsync: false,
        verify: false,
        fresh: false,
        network: None,
    }
}

impl Copy<'_> {
    fn run(&self) -> Result<Landed, Trouble> {
        self.run_watched(&|_| ())
    }

    fn run_watched(&self, report: &dyn Fn(Progress)) -> Result<Landed, Trouble> {
        let (here, there) = match self.network {
            Some(network) => network.control(),
            None => UnixStream::pair().unwrap(),
        };
        thread::scope(|scope| {
            let end = scope.spawn(|| {
                let order = ReceiveOrder {
                    root: Root::everything().unwrap(),
                    target: self.target.strip_prefix("/").unwrap().to_owned(),
                    into: self.target.to_string_lossy().ends_with('/'),
                    spread: self.spread.clone(),
                    fsync: self.fsync,
                    verify: self.verify,
                    fresh: self.fresh,
                    ports: self.network.map(|network| (network.port(), network.port())),
                    listen: self.network.map(|_| net::DESTINATION),
                };
                receive(&there, &order)
            });
            let order = SendOrder {
                root: Root::everything().unwrap(),
                sources: self.sources.clone(),
                recursive: true,
                matching: self.matching.clone(),
                addresses: vec![self.network.map_or(Ipv4Addr::LOCALHOST.into(), |_| net::ENTRANCE)],
                id: [7; 8],
                options: self.options.clone(),
            };
            let sent = send(&here, &order, report);
            let received = end.join().unwrap();
            if let (Err(a), Err(b)) = (&sent, &received) {
                eprintln!("source: {a}; destination: {b}");
            }
            sent
        })
    }
}

/// Bytes that no two places have alike.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("gridos-transfer-").tempdir().unwrap()
}

/// Everything below a folder: its path, kind, mode, time and contents.
fn listing(top: &Path) -> Vec<(PathBuf, u32, SystemTime, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata().unwrap();
        let below = path.strip_prefix(top).unwrap().to_owned();
        let contents = if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            blake3::hash(&fs::read(&path).unwrap()).as_bytes().to_vec()
        };
        found.push((below, meta.mode(), meta.modified().unwrap(), contents));
    }
    found.sort();
    found
}

/// Two trees are the same; otherwise the test fails with the paths that differ.
#[track_caller]
fn assert_same(one: &Path, other: &Path, what: impl std::fmt::Debug) {
    let (one, other) = (listing(one), listing(other));
    let differ = one.iter().filter(|entry| !other.contains(entry));
    let differ: Vec<_> = differ.chain(other.iter().filter(|entry| !one.contains(entry))).collect();
    assert!(differ.is_empty(), "{what:?}: {:#?}", &differ[..differ.len().min(8)]);
}

/// A tree with everything in it that trees have.
fn tree(top: &Path) {
    fs::create_dir_all(top.join("a/b/empty")).unwrap();
    fs::write(top.join("zero"), "").unwrap();
    for (index, size) in [1, 4096, 262_143, 262_144, 262_145, 5_000_001].into_iter().enumerate() {
        fs::write(top.join(format!("a/size-{size}")), noise(size, index as u64)).unwrap();
    }
    for index in 0..700 {
        fs::write(top.join(format!("a/b/small {index}\n")), noise(index, 99)).unwrap();
    }
    symlink("../zero", top.join("a/link")).unwrap();
    symlink("/nowhere", top.join("a/dangling")).unwrap();
    fs::set_permissions(top.join("zero"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(top.join("a/b"), fs::Permissions::from_mode(0o750)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::options().write(true).open(top.join("a/size-4096")).unwrap().set_modified(old).unwrap();
}

fn hidden_leftovers(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with('.'))
        .collect()
}

#[test]
fn files_of_all_sizes_arrive_whole_with_mode_and_time() {
    let folder = place();
    for size in [0, 1, 1000, 262_143, 262_144, 4 << 20, (4 << 20) + 1, 23_456_789] {
        let (from, to) = (folder.path().join("from"), folder.path().join(format!("to-{size}")));
        fs::write(&from, noise(size, 1)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o604)).unwrap();
        let landed = copy(&from, &to).run().unwrap();
        assert_eq!((landed.bytes, landed.items, &landed.path), (size as u64, 1, &to));
        assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap(), "{size}");
        let (a, b) = (from.metadata().unwrap(), to.metadata().unwrap());
        assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()));
    }
    assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn what_is_very_little_needs_no_data_connection() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("a/empty")).unwrap();
    fs::write(from.join("a/file"), "contents").unwrap();
    symlink("file", from.join("a/link")).unwrap();
    // Whatever tried to get through here would be cut.
    let network = Network::start(Fault::Cut { every: 1 });
    let landed = Copy { network: Some(&network), ..copy(&from, &to) }.run().unwrap();
    assert_eq!((landed.bytes, listing(&from)), (8, listing(&to)));
    fs::write(from.join("more"), "!").unwrap();
    // Into a folder that is there, and then onto what came of it.
    let into = Copy { network: Some(&network), ..copy(&from, &to) };
    assert_eq!(into.run().unwrap().bytes, 9);
    let again = Copy { network: Some(&network), ..copy(&from, &to) }.run().unwrap();
    assert_eq!((again.bytes, again.skipped), (0, 2), "what is there is not sent");
    assert_eq!(network.faults(), 0, "a data connection was made");
    assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_tree_arrives_as_it_was() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    tree(&from);
    copy(&from, &to).run().unwrap();
    assert_same(&from, &to, ());
    assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_tree_is_merged_into_one_that_is_there_and_unchanged_files_are_not_sent() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    tree(&from);
    fs::create_dir(&to).unwrap();
    copy(&from, &to).run().unwrap();
    let inner = to.join("from");
    fs::write(inner.join("mine"), "stays").unwrap();
    fs::write(from.join("zero"), "no longer").unwrap();
    let landed = copy(&from, &to).run().unwrap();
    assert_eq!(landed.bytes, 9);
    assert_eq!(fs::read(inner.join("zero")).unwrap(), b"no longer");
    assert_eq!(fs::read(inner.join("mine")).unwrap(), b"stays");
}

#[test]
fn holes_stay_holes_and_attributes_are_kept() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let file = fs::File::create(&from).unwrap();
    file.set_len(5 << 30).unwrap();
    file.write_all_at(&noise(10_000, 3), 3 << 30).unwrap();
    file.write_all_at(b"end", (5 << 30) - 3).unwrap();
    let tagged = xattr::set(&from, "user.origin", b"telescope").is_ok();
    let landed = copy(&from, &to).run().unwrap();
    assert!(landed.bytes < 1 << 20, "{}", landed.bytes);
    let meta = to.metadata().unwrap();
    assert_eq!(meta.len(), 5 << 30);
    assert!(meta.blocks() * 512 < 1 << 20, "{}", meta.blocks());
    let mut back = vec![0; 10_000];
    fs::File::open(&to).unwrap().read_exact_at(&mut back, 3 << 30).unwrap();
    assert!(back == noise(10_000, 3));
    if tagged {
        assert_eq!(xattr::get(&to, "user.origin").unwrap().unwrap(), b"telescope");
    }
}

#[test]
fn the_target_is_understood_as_cp_understands_it() {
    let folder = place();
    let from = folder.path().join("from");
    fs::write(&from, "x").unwrap();
    let dir = folder.path().join("dir");
    fs::create_dir(&dir).unwrap();
    copy(&from, &dir).run().unwrap();
    assert!(dir.join("from").exists());
    let missing = folder.path().join("missing/");
    let trouble = copy(&from, &missing).run().unwrap_err();
    assert!(trouble.why.contains("a folder was asked for") && !trouble.retry, "{trouble}");
    let deep = folder.path().join("no/such/folder");
    assert!(copy(&from, &deep).run().unwrap_err().why.contains("cannot be written"));
    let mut several = copy(&from, &dir);
    several.sources.push(several.sources[0].with_file_name("dir*"));
    several.target = folder.path();
    // A folder into itself would not end: it is refused by its name being there.
    let only_wild = Copy { sources: vec![several.sources[0].with_file_name("fr*")], ..copy(&from, &dir) };
    only_wild.run().unwrap();
    assert_eq!(fs::read(dir.join("from")).unwrap(), b"x");
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = place();
    let trouble = copy(&folder.path().join("none"), &folder.path().join("to")).run().unwrap_err();
    assert!(trouble.why.contains("none cannot be read"), "{trouble}");
    assert!(!trouble.retry);
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut flat = copy(&tree, folder.path());
    flat.sources = vec![tree.strip_prefix("/").unwrap().join("*.h5")];
    assert!(flat.run().unwrap_err().why.contains("nothing matches"));
}

#[test]
fn encrypted_limited_synced_and_verified_transfers_arrive_too() {
    let folder = place();
    let from = folder.path().join("from");
    tree(&from);
    let encrypted = Options { encrypt: true, ..Options::default() };
    let unchecked = Options { checksums: false, ..Options::default() };
    let several = Options { fixed: Fixed { streams: Some(4), ..Fixed::default() }, ..Options::default() };
    let slow = Options { limit: Some(20_000_000), ..Options::default() };
    for (index, options) in [encrypted, unchecked, several, slow].into_iter().enumerate() {
        let to = folder.path().join(format!("to{index}"));
        Copy { options, fsync: true, verify: index == 2, ..copy(&from, &to) }.run().unwrap();
        assert_same(&from, &to, index);
    }
}

#[test]
fn a_limit_on_the_rate_is_kept() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, noise(4_000_000, 1)).unwrap();
    let start = Instant::now();
    let options = Options { limit: Some(8_000_000), ..Options::default() };
    Copy { options, ..copy(&from, &to) }.run().unwrap();
    // Half a second, less the burst.
    assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn what_the_network_damages_is_sent_again() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, noise(30_000_000, 5)).unwrap();
    let network = Network::start(Fault::Flip { every: 9_000_000 });
    let mut again = 0;
    let seen = std::sync::Mutex::new(&mut again);
    Copy { network: Some(&network), ..copy(&from, &to) }
        .run_watched(&|progress| **seen.lock().unwrap() = progress.sent_again)
        .unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
    assert!(again > 0, "nothing was damaged");
}

#[test]
fn connections_that_break_or_stall_are_replaced() {
    let folder = place();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    tree(&from.join("tree"));
    fs::write(from.join("large"), noise(40_000_000, 5)).unwrap();
    for (index, fault) in
        [Fault::Cut { every: 7_000_000 }, Fault::StallOnce { after: 3_000_000 }].into_iter().enumerate()
    {
        let network = Network::start(fault);
        let to = folder.path().join(format!("to{index}"));
        Copy { network: Some(&network), ..copy(&from, &to) }.run().unwrap();
        assert_same(&from, &to, fault);
        assert!(network.faults() > 0, "{fault:?}");
    }
}

#[test]
fn what_comes_late_over_a_connection_that_was_given_up_changes_nothing() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, noise(40_000_000, 5)).unwrap();
    // The range that was under way is sent again first; then the transfer goes on for a second.
    let network = Network::start(Fault::LateOnce { after: 6_000_000, overtaken: 22_000_000 });
    let options = Options { limit: Some(20_000_000), ..Options::default() };
    Copy { network: Some(&network), options, ..copy(&from, &to) }.run().unwrap();
    assert!(network.faults() > 0, "nothing came late");
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
    assert_eq!(listing(&from)[0].2, listing(&to)[0].2, "it was written to after it had its time");
}

#[test]
fn a_transfer_that_is_cut_again_and_again_goes_on_where_it_ended() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    tree(&from.join("tree"));
    fs::write(from.join("large"), noise(60_000_000, 5)).unwrap();
    let total: u64 = listing(&from).len() as u64;
    let mut tries = 0;
    let mut sent = 0;
    loop {
        tries += 1;
        assert!(tries < 300, "it does not come to its end");
        // Everything breaks, control and data, after another number of bytes each time.
        let network = Network::start(Fault::CutAll { after: 2_000_000 + 997_001 * (tries % 11) });
        let result = Copy { network: Some(&network), ..copy(&from, &to) }.run();
        sent += network.passed();
        match result {
            Ok(_) => break,
            Err(trouble) => assert!(trouble.retry, "{trouble}"),
        }
        assert!(!to.exists(), "it has its name before it is whole");
    }
    assert!(tries > 3, "{tries}");
    assert_same(&from, &to, ());
    assert_eq!(listing(&to).len() as u64, total);
    // What came was not sent again: twice as much is what a try loses at its end, and no more.
    assert!(sent < 2 * 66_000_000 + tries * 8_000_000, "{sent} bytes in {tries} tries");
    assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn two_hundred_interruptions_at_random_points_leave_no_wrong_byte() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    for index in 0..60 {
        fs::write(from.join(format!("small{index}")), noise(index * 97, index as u64)).unwrap();
    }
    let mut random = 0x5eed_u64;
    let mut below = |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    let (mut interruptions, mut copies) = (0, 0);
    while interruptions < 200 {
        // Another file each time, of which an earlier copy's journal knows nothing.
        fs::write(from.join("large"), noise(6_000_000 + below(999) as usize, copies)).unwrap();
        loop {
            let network = Network::start(Fault::CutAll { after: below(8_000_000) });
            let result = Copy { network: Some(&network), ..copy(&from, &to) }.run();
            match result {
                Ok(_) => break,
                Err(trouble) => assert!(trouble.retry, "{trouble}"),
            }
            assert!(!to.exists(), "it has its name before it is whole");
            interruptions += 1;
        }
        copies += 1;
        assert_same(&from, &to, interruptions);
        fs::remove_dir_all(&to).unwrap();
    }
    assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_source_that_changed_meanwhile_is_sent_anew() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, noise(40_000_000, 5)).unwrap();
    let network = Network::start(Fault::CutAll { after: 20_000_000 });
    Copy { network: Some(&network), ..copy(&from, &to) }.run().unwrap_err();
    fs::write(&from, noise(40_000_000, 6)).unwrap();
    copy(&from, &to).run().unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
}

#[test]
fn a_full_disk_is_told_with_what_to_do_and_the_transfer_goes_on_after() {
    let folder = place();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m", "gridos-test"])
        .arg(&disk)
        .status()
        .unwrap();
    if !mounted.success() {
        println!("SKIPPED: no file system of a limited size can be mounted here: root is needed");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(disk.clone());
    let (from, to) = (folder.path().join("from"), disk.join("to"));
    fs::write(&from, noise(20_000_000, 5)).unwrap();
    let trouble = copy(&from, &to).run().unwrap_err();
    assert!(trouble.why.contains("at byte") && trouble.why.contains("No space left"), "{trouble}");
    assert!(!to.exists());
    let bigger =
        std::process::Command::new("mount").args(["-o", "remount,size=64m"]).arg(&disk).status().unwrap();
    assert!(bigger.success());
    let landed = copy(&from, &to).run().unwrap();
    assert!(landed.bytes < 20_000_000, "nothing was kept");
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
}

#[test]
fn a_stranger_on_the_data_port_disturbs_nothing() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, noise(20_000_000, 5)).unwrap();
    let network = Network::start(Fault::Strangers);
    Copy { network: Some(&network), ..copy(&from, &to) }.run().unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
    assert!(network.faults() > 0);
}

// === spread over a folder that has other things ===

fn spread<'a>(source: &Path, target: &'a Path, sent: &[&str], wanted: &[&str]) -> Copy<'a> {
    let patterns =
        |words: &[&str]| Patterns::new(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
    let spread = Spread { name: "j1.1-0".into(), id: [7; 8], wanted: patterns(wanted).unwrap() };
    Copy { matching: Some(patterns(sent).unwrap()), spread: Some(spread), ..copy(source, target) }
}

#[test]
fn what_matches_takes_its_place_among_other_things() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    tree(&from.join("out"));
    fs::create_dir_all(from.join("part/deep/er")).unwrap();
    for name in ["part/deep/a.png", "part/deep/er/b.png", "part/stray", "stray"] {
        fs::write(from.join(name), name).unwrap();
    }
    symlink("part/stray", from.join("named")).unwrap();
    symlink("/nowhere", from.join("dangling")).unwrap();
    fs::set_permissions(from.join("out/a"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::create_dir_all(to.join("out/a")).unwrap();
    fs::write(to.join("out/a/size-1"), "old").unwrap();
    fs::write(to.join("out/mine"), "mine").unwrap();
    let words = ["out", "part/deep/**/*.png", "named", "dangling", "none"];
    let landed = spread(&from, &to, &words, &words).run().unwrap();
    assert_eq!(landed.missed.unwrap(), "there is no none");
    // What was there stays, and keeps its mode.
    assert_eq!(fs::read(to.join("out/mine")).unwrap(), b"mine");
    assert_eq!(to.join("out/a").metadata().unwrap().mode() & 0o777, 0o755);
    fs::remove_file(to.join("out/mine")).unwrap();
    let plain = |top: &Path| {
        let mut all = listing(top);
        all.retain(|(path, ..)| path.to_str() != Some("") && path.to_str() != Some("a"));
        all
    };
    assert!(plain(&from.join("out")) == plain(&to.join("out")));
    assert_eq!(fs::read(to.join("part/deep/er/b.png")).unwrap(), b"part/deep/er/b.png");
    // A folder of which only a part was asked for is like any new one.
    assert_eq!(to.join("part/deep").metadata().unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::read(to.join("named")).unwrap(), b"part/stray");
    assert_eq!(fs::read_link(to.join("dangling")).unwrap(), Path::new("/nowhere"));
    for absent in ["part/stray", "stray"] {
        assert!(to.join(absent).symlink_metadata().is_err(), "{absent}");
    }
    assert_eq!(hidden_leftovers(&to), Vec::<PathBuf>::new());
}

#[test]
fn little_that_is_spread_leaves_what_was_there_as_it_was() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let mode =
        |path: &str, mode| fs::set_permissions(to.join(path), fs::Permissions::from_mode(mode)).unwrap();
    for path in ["from/out/deep", "from/new", "from/part", "to/out"] {
        fs::create_dir_all(folder.path().join(path)).unwrap();
    }
    for path in ["out/1", "out/deep/2", "new/3", "part/4", "blocked"] {
        fs::write(from.join(path), path).unwrap();
    }
    fs::set_permissions(from.join("new"), fs::Permissions::from_mode(0o700)).unwrap();
    mode("out", 0o710);
    let words = ["out", "new", "part/4"];
    spread(&from, &to, &words, &words).run().unwrap();
    for path in ["out/1", "out/deep/2", "new/3", "part/4"] {
        assert_eq!(fs::read(to.join(path)).unwrap(), path.as_bytes());
    }
    for (path, mode) in [("out", 0o710), ("new", 0o700), ("part", 0o755)] {
        assert_eq!(to.join(path).metadata().unwrap().mode() & 0o777, mode, "{path}");
    }
    fs::create_dir(to.join("blocked")).unwrap();
    let trouble = spread(&from, &to, &["blocked"], &["blocked"]).run().unwrap_err();
    assert!(trouble.why.contains("blocked cannot be written: Is a directory"), "{trouble}");
    assert_eq!(hidden_leftovers(&to), Vec::<PathBuf>::new());
}

#[test]
fn what_was_not_asked_for_is_not_taken_and_nothing_is_placed_through_a_link() {
    let folder = place();
    let (from, to, outside) =
        (folder.path().join("from"), folder.path().join("to"), folder.path().join("outside"));
    for path in [&from.join("way"), &to, &outside] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(from.join("way/loot"), "x").unwrap();
    fs::write(from.join(".bashrc"), "x").unwrap();
    fs::write(from.join("big"), noise(1 << 20, 1)).unwrap();
    for (sent, name) in [(".bashrc", ".bashrc"), ("big", "big"), ("**", "big")] {
        let trouble = spread(&from, &to, &[sent], &["way"]).run().unwrap_err();
        assert!(
            trouble.why.contains("is not among what was asked for") && !trouble.retry,
            "{name}: {trouble}"
        );
        assert!(fs::read_dir(&to).unwrap().next().is_none(), "{name}: something stays");
    }
    symlink(&outside, to.join("way")).unwrap();
    let trouble = spread(&from, &to, &["way"], &["way"]).run().unwrap_err();
    assert!(trouble.why.contains("way cannot be written: Not a directory"), "{trouble}");
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert_eq!(hidden_leftovers(&to), Vec::<PathBuf>::new());
}

#[test]
fn what_is_spread_goes_on_where_it_ended_or_is_dropped() {
    let folder = place();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("out")).unwrap();
    fs::create_dir_all(to.join("out")).unwrap();
    let bytes = noise(40 << 20, 5);
    fs::write(from.join("out/big"), &bytes).unwrap();
    let cut = |after| {
        let network = Network::start(Fault::CutAll { after });
        let broken = Copy { network: Some(&network), ..spread(&from, &to, &["out"], &["out"]) };
        assert!(broken.run().unwrap_err().retry);
    };
    cut(30 << 20);
    assert!(!to.join("out/big").exists() && !hidden_leftovers(&to).is_empty());
    let landed = spread(&from, &to, &["out"], &["out"]).run().unwrap();
    assert!(landed.bytes < 40 << 20, "all of it was sent again");
    assert!(fs::read(to.join("out/big")).unwrap() == bytes);
    assert_eq!(hidden_leftovers(&to), Vec::<PathBuf>::new());

    fs::write(from.join("out/big"), noise(40 << 20, 6)).unwrap();
    cut(30 << 20);
    assert!(!hidden_leftovers(&to).is_empty());
    let target = to.strip_prefix("/").unwrap();
    // The end that was cut off may not have noticed yet.
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(trouble) = discard(&Root::everything().unwrap(), target, "j1.1-0", [7; 8]) {
        assert!(trouble.retry && Instant::now() < deadline, "{trouble}");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(hidden_leftovers(&to), Vec::<PathBuf>::new());
    assert!(fs::read(to.join("out/big")).unwrap() == bytes);
}
