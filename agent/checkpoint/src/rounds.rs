//! A task's memory that is written in rounds while the task runs (pre-copy), by CRIU's `pre-dump`. The kernel notes which pages
//! are written to (soft-dirty bits, `Documentation/admin-guide/mm/soft-dirty.rst`), and each round has those alone; so does the
//! dump at the end.
//!
//! ```text
//!   round 1              round 2                        the dump
//!   all its memory ◀──── what was written to since ◀─── what was written to since, and all else; the task stands still
//!                parent                          parent
//! ```
//!
//! Each is a folder of images in which a link, [`PARENT`], names that of the round before. Where a task was dumped, they lie
//! wherever they were written. Where it is made, they are [`FOLDER`]`/1`, `2` and so on in the folder of the checkpoint, and the
//! links are made there ([`assemble`]): none is taken from another node.
//!
//! A round that fails ends its row: the kernel may have begun to note anew by then, and nobody knows what was lost. The next
//! row begins with all the memory again.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

/// The link among a folder's images to the images before them, as CRIU calls it.
pub const PARENT: &str = "parent";

/// The folder of the rounds in that of a checkpoint.
pub const FOLDER: &str = "rounds";

/// Rounds of one move at most.
pub const MOST: usize = 8;

/// Bytes that are little enough to be written while the task stands still: some ten milliseconds. The kernel notes writes to a
/// huge page as a whole, so that this is four of them.
const LITTLE: u64 = 8 << 20;

/// Whether the task is to be stopped after rounds of so many bytes: what was written last is little, or no longer gets less.
/// All but the last are together four times the first at most, for each of them is a quarter less than the one before.
pub fn enough(rounds: &[u64]) -> bool {
    match rounds {
        [] => false,
        [.., before, last] if *last > before / 4 * 3 => true,
        [.., last] => *last <= LITTLE || rounds.len() >= MOST,
    }
}

/// Makes the links of a checkpoint that came with so many rounds.
///
/// # Errors
/// Where one cannot be made.
pub fn assemble(checkpoint: &Path, rounds: usize) -> io::Result<()> {
    let link = |images: PathBuf, to: PathBuf| {
        let link = images.join(PARENT);
        symlink(to, &link)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", link.display())))
    };
    for round in 2..=rounds {
        let images = checkpoint.join(FOLDER).join(round.to_string());
        link(images, Path::new("..").join((round - 1).to_string()))?;
    }
    if rounds == 0 {
        return Ok(());
    }
    link(checkpoint.join("images"), Path::new("..").join(FOLDER).join(rounds.to_string()))
}

/// Whether the images of a checkpoint begin with rounds that are here.
pub(crate) fn are_in(checkpoint: &Path) -> bool {
    let parent = checkpoint.join("images").join(PARENT);
    // Through the link.
    parent.join("inventory.img").is_file()
}

/// The way from one folder to another, both given from the root on. CRIU sees another root, and follows links from where they
/// are.
pub(crate) fn way(from: &Path, to: &Path) -> PathBuf {
    let same = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(same).map(|_| Component::ParentDir);
    up.chain(to.components().skip(same)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rounds_end_when_little_is_left_or_it_no_longer_gets_less() {
        assert!(!enough(&[]));
        assert!(!enough(&[50 * MIB]));
        assert!(enough(&[MIB]));
        assert!(!enough(&[50 * MIB, 20 * MIB]));
        assert!(enough(&[50 * MIB, 20 * MIB, 8 * MIB]));
        assert!(enough(&[50 * MIB, 45 * MIB]));
        assert!(enough(&[50 * MIB, 60 * MIB]));
        assert!(enough(&[50 * MIB, 20 * MIB, 19 * MIB]));
    }

    #[test]
    fn rounds_are_bounded_in_number_and_in_all() {
        let mut rounds = vec![1 << 40];
        while !enough(&rounds) {
            rounds.push(rounds[rounds.len() - 1] / 4 * 3);
        }
        assert_eq!(rounds.len(), MOST);
        assert!(rounds.iter().sum::<u64>() < 5 << 40);
    }

    #[test]
    fn links_lead_from_the_dump_to_the_first_round() {
        let root = tempfile::tempdir().unwrap();
        let checkpoint = root.path();
        for folder in ["images", "rounds/1", "rounds/2", "rounds/3"] {
            fs::create_dir_all(checkpoint.join(folder)).unwrap();
        }
        fs::write(checkpoint.join("rounds/1/first"), "").unwrap();
        assert!(!are_in(checkpoint));
        assemble(checkpoint, 3).unwrap();
        assert!(checkpoint.join("images/parent/parent/parent/first").exists());
        assert!(!are_in(checkpoint), "the last round is no folder of images");
        fs::write(checkpoint.join("rounds/3/inventory.img"), "").unwrap();
        assert!(are_in(checkpoint));
        assert!(assemble(checkpoint, 3).is_err(), "links that are there are another's");
    }

    #[test]
    fn ways_lead_to_neighbours() {
        let way = |from: &str, to: &str| way(from.as_ref(), to.as_ref());
        assert_eq!(way("/x/fresh/j-7/images", "/x/moving/j-out/3"), Path::new("../../../moving/j-out/3"));
        assert_eq!(way("/x/moving/j-out/3", "/x/moving/j-out/2"), Path::new("../2"));
        assert_eq!(way("/x", "/x/y"), Path::new("y"));
    }
}
