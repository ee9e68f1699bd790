use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xattr::FileExt as _;

use super::*;

fn open(folder: &Path) -> OwnedFd {
    File::open(folder).unwrap().into()
}

/// A folder, and another that is to become the same.
struct Pair {
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    source: Source,
    target: Target,
}

impl Pair {
    fn new() -> Self {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, target) = (Source::new(open(from.path())).unwrap(), Target::new(open(to.path())));
        Self { from, to, source, target }
    }

    /// Sends a round; returns the bytes of files.
    fn round(&mut self, unsure: &Unsure, last: bool) -> u64 {
        let mut stream = Vec::new();
        let bytes = self.source.round(unsure, last, &mut stream).unwrap();
        let mut stream = stream.as_slice();
        assert_eq!(self.target.round(&mut stream).unwrap(), last);
        assert!(stream.is_empty());
        bytes
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.from.path().join(name)
    }

    fn back(&self, name: &str) -> std::path::PathBuf {
        self.to.path().join(name)
    }
}

/// All that is to be the same of two folders, but for inodes: what has the same one has the same number.
fn picture(folder: &Path) -> Vec<String> {
    let (mut all, mut inodes, mut open) = (Vec::new(), Vec::new(), vec![std::path::PathBuf::new()]);
    while let Some(at) = open.pop() {
        let mut names: Vec<_> =
            fs::read_dir(folder.join(&at)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let entries = names.into_iter().map(|name| at.join(name));
        for name in entries {
            let path = folder.join(&name);
            let meta = fs::symlink_metadata(&path).unwrap();
            // Other names of symbolic links are links of their own.
            let number =
                if meta.is_symlink() { None } else { inodes.iter().position(|inode| *inode == meta.ino()) };
            let number = number.unwrap_or_else(|| {
                inodes.push(meta.ino());
                inodes.len()
            });
            let content = match meta.file_type() {
                kind if kind.is_file() => {
                    let file = File::open(&path).unwrap();
                    let attribute = file.get_xattr("user.note").unwrap();
                    format!("{attribute:?} {}", blake3::hash(&fs::read(&path).unwrap()))
                }
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                kind if kind.is_dir() => {
                    open.push(name.clone());
                    String::new()
                }
                _ => String::new(),
            };
            let time = if meta.is_symlink() { 0 } else { meta.mtime_nsec() };
            all.push(format!("{name:?} {number} {:o} {time} {content}", meta.mode()));
        }
    }
    all.push(format!("{:o}", fs::metadata(folder).unwrap().mode()));
    all
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let mut pair = Pair::new();
    fs::create_dir_all(pair.at("deep/er")).unwrap();
    fs::write(pair.at("deep/er/file"), "text").unwrap();
    fs::hard_link(pair.at("deep/er/file"), pair.at("link")).unwrap();
    symlink("/etc/passwd", pair.at("outside")).unwrap();
    fs::write(pair.from.path().join(std::ffi::OsStr::from_bytes(b"a \n\xff")), "odd").unwrap();
    nix::unistd::mkfifo(&pair.at("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    fs::set_permissions(pair.at("deep/er/file"), fs::Permissions::from_mode(0o551)).unwrap();
    let holes = File::create(pair.at("holes")).unwrap();
    holes.set_len(64 << 30).unwrap();
    holes.write_all_at(b"far", 50 << 30).unwrap();
    holes.set_xattr("user.note", b"kept").unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 7);
    holes.set_modified(then).unwrap();
    File::open(pair.at("deep")).unwrap().set_xattr("user.note", b"too").unwrap();
    fs::set_permissions(pair.at("deep/er"), fs::Permissions::from_mode(0o511)).unwrap();
    File::open(pair.at("deep/er")).unwrap().set_modified(then).unwrap();
    fs::set_permissions(pair.from.path(), fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(pair.round(&Unsure::now(), true), 4 + 3 + (64 << 10));

    assert_eq!(fs::read(pair.back("deep/er/file")).unwrap(), b"text");
    let mode = |folder: &Path| fs::metadata(folder).unwrap().mode() & 0o7777;
    assert_eq!((mode(pair.from.path()), mode(pair.to.path())), (0o750, 0o750));
    let inode = |name| fs::metadata(pair.back(name)).unwrap().ino();
    assert_eq!(inode("link"), inode("deep/er/file"));
    assert_eq!((mode(&pair.back("link")), mode(&pair.back("deep/er"))), (0o551, 0o511));
    assert_eq!(fs::read_link(pair.back("outside")).unwrap(), Path::new("/etc/passwd"));
    let odd = pair.to.path().join(std::ffi::OsStr::from_bytes(b"a \n\xff"));
    assert_eq!(fs::read(odd).unwrap(), b"odd");
    assert!(fs::metadata(pair.back("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(mode(&pair.back("pipe")), 0o640);
    let holes = File::open(pair.back("holes")).unwrap();
    let meta = holes.metadata().unwrap();
    assert!(meta.len() == 64 << 30 && meta.blocks() < 1000, "holes are kept");
    let mut far = [0; 3];
    holes.read_exact_at(&mut far, 50 << 30).unwrap();
    assert_eq!(&far, b"far");
    assert_eq!(meta.modified().unwrap(), then);
    assert_eq!(holes.get_xattr("user.note").unwrap().as_deref(), Some(b"kept".as_slice()));
    let deep = File::open(pair.back("deep")).unwrap();
    assert_eq!(deep.get_xattr("user.note").unwrap().as_deref(), Some(b"too".as_slice()));
    assert_eq!(fs::metadata(pair.back("deep/er")).unwrap().modified().unwrap(), then);
    // For who removes them.
    for path in [pair.at("deep/er"), pair.back("deep/er")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// What a program may do between two rounds.
fn change(folder: &Path, rng: &mut StdRng) {
    let names = ["a", "b", "c", "d/a", "d/b", "d/e/a", "e"];
    let mut name = || folder.join(names[rng.random_range(0..names.len())]);
    let (path, other) = (name(), name());
    let _ = path.parent().map(fs::create_dir_all);
    // Whatever is in the way of one is what another has done.
    match rng.random_range(0..12) {
        0 | 1 => drop(fs::write(&path, vec![rng.random::<u8>(); rng.random_range(0..300_000)])),
        2..=4 => {
            if let Ok(file) = File::options().write(true).open(&path) {
                let at = rng.random_range(0..300_000);
                file.write_all_at(&vec![rng.random(); rng.random_range(0..70_000)], at).unwrap();
            }
        }
        5 => {
            if let Ok(file) = File::options().write(true).open(&path) {
                file.set_len(rng.random_range(0..400_000)).unwrap();
            }
        }
        6 => drop(fs::rename(&path, &other)),
        7 => drop(fs::hard_link(&path, &other)),
        8 => drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))),
        9 => drop(symlink("a", &path)),
        10 => drop(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(rng.random_range(0o400..0o1000) | 0o400),
        )),
        _ => {
            if let Ok(file) = File::open(&path) {
                let _ = file.set_xattr("user.note", &[rng.random()]);
            }
        }
    }
}

#[test]
fn what_changes_between_rounds_comes_whatever_it_is() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pair = Pair::new();
        for _ in 0..rng.random_range(1..6) {
            for _ in 0..rng.random_range(0..20) {
                change(pair.from.path(), &mut rng);
            }
            // All of it is younger than the clock's tick, so that contents are compared.
            pair.round(&Unsure::now(), false);
        }
        (0..rng.random_range(0..20)).for_each(|_| change(pair.from.path(), &mut rng));
        pair.round(&Unsure::now(), true);
        assert_eq!(picture(pair.to.path()), picture(pair.from.path()), "seed {seed}");
    }
}

/// A time at which all that was written is old.
fn later() -> Unsure {
    let mut unsure = Unsure::now();
    unsure.begin_later(Duration::from_secs(3600));
    unsure
}

#[test]
fn only_blocks_that_changed_are_sent_again() {
    let mut pair = Pair::new();
    let bytes: Vec<u8> = (0..4 << 20).map(|n: u32| (n / 7 % 251) as u8).collect();
    fs::write(pair.at("file"), &bytes).unwrap();
    fs::write(pair.at("other"), &bytes).unwrap();
    assert_eq!(pair.round(&later(), false), 8 << 20);
    assert_eq!(pair.round(&later(), false), 0);
    let file = File::options().append(true).open(pair.at("file")).unwrap();
    io::Write::write_all(&mut &file, b"appended").unwrap();
    assert_eq!(pair.round(&later(), true), 8);
    assert_eq!(fs::read(pair.back("file")).unwrap(), fs::read(pair.at("file")).unwrap());
    assert_eq!(picture(pair.to.path()), picture(pair.from.path()));
}

#[test]
fn what_may_change_without_a_trace_is_compared() {
    // As if its time had stayed, as it does where a page that is mapped is dirty already.
    let written_silently = |unsure: &dyn Fn(u64) -> Unsure| {
        let mut pair = Pair::new();
        fs::write(pair.at("file"), "before").unwrap();
        let inode = fs::metadata(pair.at("file")).unwrap().ino();
        pair.round(&unsure(inode), false);
        fs::write(pair.at("file"), "beyond").unwrap();
        pair.source.pretend_unchanged(&pair.from.path().join("file"));
        pair.round(&Unsure::now(), true);
        fs::read_to_string(pair.back("file")).unwrap()
    };
    let mapped = |inode| {
        let mut unsure = later();
        unsure.is_mapped(inode);
        unsure
    };
    let open = |seconds| {
        move |inode| {
            let mut unsure = Unsure::now();
            unsure.is_open(inode);
            unsure.begin_later(Duration::from_secs(seconds));
            unsure
        }
    };
    assert_eq!(written_silently(&|_| Unsure::now()), "beyond", "it had just changed");
    assert_eq!(written_silently(&mapped), "beyond", "it was mapped");
    assert_eq!(written_silently(&open(60)), "beyond", "it was open for writing, and had changed lately");
    // What nothing speaks for is not read again, or all of this would have shown nothing.
    assert_eq!(written_silently(&|_| later()), "before");
    assert_eq!(written_silently(&open(3600)), "before");
}

#[test]
fn what_makes_no_sense_is_refused_and_leads_nowhere() {
    let root = tempfile::tempdir().unwrap();
    let take = |records: &[Record]| {
        let folder = root.path().join("folder");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let mut stream = Vec::new();
        for record in [Record::Begin { version: VERSION }].iter().chain(records) {
            libgrid::wire::write(&mut stream, record).unwrap();
        }
        Target::new(open(&folder)).round(&mut stream.as_slice()).unwrap_err().to_string()
    };
    let name = |name: &str| Name(name.as_bytes().to_vec());
    for leads in ["..", "a/../../b", "/etc/x", "", "."] {
        assert!(take(&[Record::Folder(name(leads))]).contains("leads out"), "{leads}");
    }
    let file = |path: &str, new| Record::File { name: name(path), new, len: 1 };
    let through = [Record::Symlink(name("out"), name("..")), file("out/made", true)];
    assert!(take(&through).contains("cannot write out/made"));
    let through = [Record::Symlink(name("out"), name("../made")), file("out", false)];
    assert!(take(&through).contains("cannot write out"));
    assert!(!root.path().join("made").exists());
    assert!(take(&[file("a", true), Record::Data { at: 0, len: 1 }]).contains("end early"));
    let data = [file("a", true), Record::Data { at: 0, len: 1 << 20 }];
    assert!(take(&data).contains("too large"));
    assert!(take(&[Record::Hole { at: 0, len: 1 }]).contains("no file"));
    let about = About { attributes: vec![(name("security.capability"), name("x"))], ..About::default() };
    assert!(take(&[file("a", true), Record::About(about)]).contains("attributes"));
    assert!(take(&[Record::Begin { version: VERSION }]).contains("beginning"));
    let mut stream = Vec::new();
    libgrid::wire::write(&mut stream, &Record::Begin { version: 9 }).unwrap();
    let other = Target::new(open(root.path())).round(&mut stream.as_slice()).unwrap_err();
    assert!(other.to_string().contains("version 9"), "{other}");
}

#[test]
fn some_of_the_disk_stays_free() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("file"), [7; 10]).unwrap();
    let mut stream = Vec::new();
    Source::new(open(from.path())).unwrap().round(&Unsure::now(), true, &mut stream).unwrap();
    let full = Target::new(open(to.path())).sparing(1 << 60).round(&mut stream.as_slice()).unwrap_err();
    assert!(full.to_string().contains("do not fit"), "{full}");
}
