//! The store: what is put in comes out, what is damaged is passed over, what is old goes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use grid_checkpoint::store::{Keep, Store, StoreError};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

const TASK: &str = "j2.1.0";

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    Bench { folder, store }
}

impl Bench {
    /// A checkpoint of 8 MiB that hardly fits a pattern, with zeros, in two folders.
    fn checkpoint(&self, seed: u64) -> PathBuf {
        let path = self.folder.path().join(format!("c{seed}"));
        fs::create_dir_all(path.join("images")).unwrap();
        let mut memory = vec![0; 8 << 20];
        SmallRng::seed_from_u64(1).fill_bytes(&mut memory[..6 << 20]);
        let at = SmallRng::seed_from_u64(seed).random_range(0..5 << 20);
        memory[at..at + 4096].fill(seed as u8);
        fs::write(path.join("images/pages-1.img"), memory).unwrap();
        fs::write(path.join("images/empty.img"), "").unwrap();
        fs::write(path.join("task"), seed.to_string()).unwrap();
        path
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    fn chunks(&self) -> Vec<PathBuf> {
        let below =
            |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        below(&self.folder.path().join("store/chunks")).iter().flat_map(|half| below(half)).collect()
    }

    fn manifest(&self, number: u64) -> PathBuf {
        self.folder.path().join(format!("store/tasks/{TASK}/{number}"))
    }
}

fn assert_same(left: &Path, right: &Path) {
    for name in ["images/pages-1.img", "images/empty.img", "task"] {
        assert_eq!(fs::read(left.join(name)).unwrap(), fs::read(right.join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_dir(left.join("images")).unwrap().count(), 2);
}

#[test]
fn what_is_put_in_comes_out_and_what_did_not_change_costs_nothing() {
    let bench = bench();
    let (one, two) = (bench.checkpoint(1), bench.checkpoint(2));
    let first = bench.store.put(TASK, 1, &one).unwrap();
    assert_eq!(first.bytes, (8 << 20) + 1);
    assert!(first.written < 7 << 20, "zeros are compressed: {first:?}");
    let second = bench.store.put(TASK, 2, &two).unwrap();
    assert!(second.new > 0 && second.new < 4 << 20, "{second:?}");
    let again = bench.store.put("another", 1, &two).unwrap();
    assert_eq!((again.new, again.written), (0, 0));
    bench.store.get(TASK, 1, &bench.target()).unwrap();
    assert_same(&bench.target(), &one);
    fs::remove_dir_all(bench.target()).unwrap();
    assert_eq!(bench.store.newest(TASK, u64::MAX, &bench.target()).unwrap(), (2, vec![]));
    assert_same(&bench.target(), &two);
    fs::remove_dir_all(bench.target()).unwrap();
    assert_eq!(
        bench.store.newest(TASK, 1, &bench.target()).unwrap(),
        (1, vec![]),
        "not beyond what was asked for"
    );
    let mut tasks = bench.store.tasks().unwrap();
    tasks.sort();
    assert_eq!(tasks, ["another", TASK]);
    assert_eq!(bench.store.size().unwrap(), first.written + second.written);
    assert_eq!(fs::read_dir(bench.folder.path().join("store/part")).unwrap().count(), 0);
}

#[test]
fn a_damaged_checkpoint_is_found_and_the_one_before_it_is_used() {
    type Damage = fn(&Bench);
    let cases: [(&str, Damage); 6] = [
        ("its digest does not fit", |bench| {
            let path = bench.manifest(2);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("its digest does not fit", |bench| {
            let path = bench.manifest(2);
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("it was cut off", |bench| fs::write(bench.manifest(2), "").unwrap()),
        ("it is not there", |bench| fs::remove_file(only_of_second(bench)).unwrap()),
        ("it cannot be decompressed", |bench| fs::write(only_of_second(bench), "no").unwrap()),
        ("its content is not what its name says", |bench| {
            let other = zstd::bulk::compress(&[7; 100], 1).unwrap();
            fs::write(only_of_second(bench), other).unwrap();
        }),
    ];
    for (wanted, damage) in cases {
        let bench = bench();
        let one = bench.checkpoint(1);
        bench.store.put(TASK, 1, &one).unwrap();
        bench.store.put(TASK, 2, &bench.checkpoint(2)).unwrap();
        assert_eq!(bench.store.read(TASK, 2, Path::new("task")).unwrap(), b"2");
        let large = bench.store.read(TASK, 2, Path::new("images/pages-1.img")).unwrap_err().to_string();
        assert!(large.ends_with("a file in it is larger than it can be"), "{large}");
        bench.store.verify(TASK, 2).unwrap();
        damage(&bench);
        let (number, passed) = bench.store.newest(TASK, u64::MAX, &bench.target()).unwrap();
        assert_eq!(number, 1, "{wanted}");
        assert!(passed.len() == 1 && passed[0].0 == 2 && passed[0].1.ends_with(wanted), "{passed:?}");
        assert_same(&bench.target(), &one);
        assert!(bench.store.verify(TASK, 2).is_err());
        bench.store.verify(TASK, 1).unwrap();
        // What was damaged is not relied on: written again, it is whole.
        bench.store.put(TASK, 2, &bench.checkpoint(2)).unwrap();
        bench.store.verify(TASK, 2).unwrap();
        fs::write(bench.manifest(2), "x").unwrap();
        // And without the other one, there is none, and nothing is left of the attempts.
        fs::remove_dir_all(bench.target()).unwrap();
        fs::write(bench.manifest(1), "x").unwrap();
        let none = bench.store.newest(TASK, u64::MAX, &bench.target()).unwrap_err();
        assert!(matches!(&none, StoreError::None { passed, .. } if passed.len() == 2), "{none}");
        assert!(!bench.target().exists());
    }
}

/// A piece that the second checkpoint alone has.
fn only_of_second(bench: &Bench) -> PathBuf {
    let with = bench.chunks();
    let away = bench.folder.path().join("away");
    fs::rename(bench.manifest(2), &away).unwrap();
    let kept = bench.folder.path().join("kept");
    copy(&bench.folder.path().join("store/chunks"), &kept);
    bench.store.sweep().unwrap();
    let without = bench.chunks();
    fs::remove_dir_all(bench.folder.path().join("store/chunks")).unwrap();
    fs::rename(&kept, bench.folder.path().join("store/chunks")).unwrap();
    fs::rename(&away, bench.manifest(2)).unwrap();
    with.into_iter().find(|path| !without.contains(path)).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn old_checkpoints_go_and_their_pieces_with_them() {
    let bench = bench();
    for number in 1..=4 {
        bench.store.put(TASK, number, &bench.checkpoint(number)).unwrap();
    }
    let full = bench.chunks().len();
    let now = SystemTime::now();
    let young = Keep { newest: 2, younger: Duration::from_secs(3600) };
    assert_eq!(bench.store.expire(TASK, young, now).unwrap(), 0);
    assert_eq!(bench.store.sweep().unwrap(), 0);
    assert_eq!(bench.store.expire(TASK, young, now + Duration::from_secs(7200)).unwrap(), 2);
    assert_eq!(bench.store.numbers(TASK).unwrap(), [3, 4]);
    assert!(bench.store.sweep().unwrap() > 0);
    assert!(bench.chunks().len() < full);
    for number in [3, 4] {
        bench.store.get(TASK, number, &bench.target()).unwrap();
        fs::remove_dir_all(bench.target()).unwrap();
    }
    // The last one is never taken away by a policy.
    assert_eq!(bench.store.expire(TASK, Keep { newest: 0, younger: Duration::ZERO }, now).unwrap(), 1);
    assert_eq!(bench.store.numbers(TASK).unwrap(), [4]);
    bench.store.remove(TASK, 4).unwrap();
    bench.store.remove(TASK, 4).unwrap();
    assert_eq!(bench.store.numbers(TASK).unwrap(), Vec::<u64>::new());
    bench.store.put(TASK, 5, &bench.checkpoint(5)).unwrap();
    bench.store.forget(TASK).unwrap();
    bench.store.sweep().unwrap();
    assert_eq!(bench.chunks(), Vec::<PathBuf>::new());
}

#[test]
fn names_lead_nowhere_else() {
    let bench = bench();
    for name in ["", ".", "..", "../x", "a/b", "\0"] {
        assert!(matches!(bench.store.numbers(name), Err(StoreError::Name { .. })), "{name:?}");
    }
    let none = bench.store.newest(TASK, u64::MAX, &bench.target()).unwrap_err();
    assert_eq!(none.to_string(), format!("there is no checkpoint of {TASK} to go on from"));
}

#[test]
fn what_a_writer_left_behind_does_no_harm() {
    let bench = bench();
    let part = bench.folder.path().join("store/part");
    // Killed in the middle: a piece that is half written, under the name that it was to get.
    bench.store.put(TASK, 1, &bench.checkpoint(1)).unwrap();
    let chunk = bench.chunks().remove(0);
    let half = chunk.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let name = half + chunk.file_name().unwrap().to_str().unwrap();
    fs::remove_file(&chunk).unwrap();
    fs::write(part.join(name), "half").unwrap();
    bench.store.put(TASK, 2, &bench.checkpoint(1)).unwrap();
    assert_eq!(bench.store.newest(TASK, u64::MAX, &bench.target()).unwrap().0, 2);
    assert_eq!(fs::read_dir(part).unwrap().count(), 0);
}

#[test]
fn a_checkpoint_goes_to_another_store_by_what_that_lacks() {
    let (here, there) = (bench(), bench());
    let (one, two) = (here.checkpoint(1), here.checkpoint(2));
    here.store.put(TASK, 1, &one).unwrap();
    here.store.put(TASK, 2, &two).unwrap();
    let send = |number: u64| {
        let manifest = here.store.manifest(TASK, number).unwrap();
        let missing = there.store.missing(&manifest, false).unwrap();
        let folder = there.folder.path().join("coming");
        here.store.lay_out(TASK, number, &missing, &folder).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), missing.len());
        (manifest, missing.len(), folder)
    };
    let (manifest, all, folder) = send(1);
    assert!(all > 10);
    // Cut off on its way, it is none.
    let first = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, "other").unwrap();
    assert!(matches!(there.store.import(TASK, 1, &manifest, &folder), Err(StoreError::Damaged { .. })));
    assert_eq!(there.store.numbers(TASK).unwrap(), Vec::<u64>::new());
    fs::write(&first, bytes).unwrap();
    there.store.import(TASK, 1, &manifest, &folder).unwrap();
    there.store.get(TASK, 1, &there.target()).unwrap();
    assert_same(&there.target(), &one);
    fs::remove_dir_all(&folder).unwrap();
    // The next one is what changed.
    let (manifest, few, folder) = send(2);
    assert!(few > 0 && few < all / 3, "{few} of {all}");
    assert!(there.store.import(TASK, 2, &manifest, &folder).unwrap() > 0);
    there.store.verify(TASK, 2).unwrap();
    // What was damaged there is missing, too.
    let spoilt = there.chunks();
    for path in &spoilt[..3] {
        fs::write(path, "x").unwrap();
    }
    assert!(there.store.missing(&manifest, false).unwrap().is_empty());
    assert!((1..=3).contains(&there.store.missing(&manifest, true).unwrap().len()));
    // What is not of the checkpoint is not given out.
    let folder = there.folder.path().join("other");
    here.store.lay_out(TASK, 1, &[[7; 32]], &folder).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    let mut garbled = manifest;
    garbled[20] ^= 1;
    assert!(there.store.missing(&garbled, false).is_err());
    assert!(there.store.import(TASK, 3, &garbled, &folder).is_err());
}
