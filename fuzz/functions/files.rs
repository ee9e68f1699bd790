//! Any bytes, read as the files of a task that moves: nothing panics, and nothing is made or changed but below the folder that was
//! given for it. A stream as a source sends it is accepted.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use grid_checkpoint::files::{Source, Target, Unsure};

use crate::mutation::mutate;

/// The first byte says what to do with the others.
pub(crate) fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 3 {
        0 => _ = taken(rest),
        1 => assert!(taken(&valid(rest)), "a valid stream is refused"),
        _ => {
            let (script, edits) = rest.split_at(rest.len().saturating_sub(8));
            let _ = taken(&mutate(valid(script), edits));
        }
    }
}

/// Whether it is accepted. Two rounds at most.
fn taken(mut stream: &[u8]) -> bool {
    let root = tempfile::tempdir().expect("a folder");
    let (outside, folder) = (root.path().join("outside"), root.path().join("folder"));
    fs::write(&outside, "as it was").expect("a file");
    fs::create_dir(&folder).expect("a folder");
    let mut target = Target::new(File::open(&folder).expect("it is there").into());
    let last =
        target.round(&mut stream).and_then(|last| if last { Ok(true) } else { target.round(&mut stream) });
    assert_eq!(fs::read(&outside).expect("it is there"), b"as it was");
    assert_eq!(fs::read_dir(root.path()).expect("it is there").count(), 2);
    last.is_ok_and(|last| last && stream.is_empty())
}

/// Two rounds of a folder in which a script changes a few names, those that lead out of it among them.
fn valid(script: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut source =
        Source::new(File::open(folder.path()).expect("it is there").into()).expect("it is a folder");
    let mut stream = Vec::new();
    let (first, second) = script.split_at(script.len() / 2);
    for (script, last) in [(first, false), (second, true)] {
        script.chunks_exact(2).for_each(|step| change(folder.path(), step[0], step[1]));
        source.round(&Unsure::now(), last, &mut stream).expect("it can be read");
    }
    stream
}

/// What cannot be done is in the way of what was done before.
fn change(folder: &Path, what: u8, value: u8) {
    const NAMES: [&str; 4] = ["a", "b", "d/a", "d/e/a"];
    let path = folder.join(NAMES[usize::from(value) % NAMES.len()]);
    let other = folder.join(NAMES[usize::from(value / 4) % NAMES.len()]);
    match what % 6 {
        0 => drop(path.parent().map(fs::create_dir_all)),
        1 => drop(fs::write(&path, vec![value; usize::from(value) * 300])),
        2 => drop(symlink("../outside", &path)),
        3 => drop(fs::hard_link(&path, &other)),
        4 => drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path))),
        _ => drop(fs::rename(&path, &other)),
    }
}
