//! Files to transfer, and whether a copy is one.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Bytes that look the same nowhere.
pub(crate) fn fill(path: &Path, size: u64, seed: u64) {
    let mut file = File::create(path).unwrap();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = size;
    let mut block = Vec::with_capacity(1 << 16);
    while left > 0 {
        block.clear();
        while block.len() < 1 << 16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        let some = usize::try_from(left.min(block.len() as u64)).unwrap();
        file.write_all(&block[..some]).unwrap();
        left -= some as u64;
    }
    file.set_permissions(Permissions::from_mode(0o666)).unwrap();
}

/// Fails if the files differ, and says where.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    assert_same_part(one, 0, fs::metadata(one).unwrap().len(), other);
}

/// Fails if `other` is not the part `from..to` of `one`.
pub(crate) fn assert_same_part(one: &Path, from: u64, to: u64, other: &Path) {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(one).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    let (mut file, mut copy) = (file.take(to - from), File::open(other).unwrap());
    let length = copy.metadata().unwrap().len();
    assert_eq!(length, to - from, "{} has another size than its source", other.display());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let came = file.read(&mut a).unwrap();
        if came == 0 {
            return;
        }
        copy.read_exact(&mut b[..came]).unwrap();
        if let Some(wrong) = (0..came).find(|&i| a[i] != b[i]) {
            panic!("{} differs from its source at byte {}", other.display(), at + wrong);
        }
        at += came;
    }
}

/// Names in a folder, hidden ones too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
