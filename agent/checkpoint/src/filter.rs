//! The filter of system calls that gives programs the grid's ([`SYS_GRIDOS`]), and what becomes of it in a checkpoint.
//!
//! CRIU writes the filters of a process down and installs them again, but a filter's listener is nobody's then, and of
//! several filters that would give a call to a listener the kernel takes the last: the calls of a restored process would be
//! `ENOSYS`. Its processes have inherited a new one, with a listener, from whoever restores them, so the old one is made to
//! let everything pass before CRIU reads it. It stays, for a filter cannot be left out without renumbering those of each
//! thread: a task has one more with each move, at no cost to its calls, as the kernel remembers which pass.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libgrid::sys::abi::SYS_GRIDOS;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K` and `BPF_RET | BPF_K`, as struct sock_filter has them.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// `AUDIT_ARCH_*` of programs that are not for another processor than the kernel's.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in struct seccomp_data.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

const TO_LISTENER: u32 = 0x7fc0_0000;
const PASS: u32 = 0x7fff_0000;

/// Images are named so by CRIU.
const IMAGE: &str = "seccomp.img";

/// The instructions, as the kernel takes them: the grid's call to the listener, all others to the kernel.
pub fn program() -> [u8; 48] {
    let instructions = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 0, 3, ARCHITECTURE),
        (LOAD, 0, 0, NUMBER_AT),
        (EQUAL, 0, 1, SYS_GRIDOS as u32),
        (RETURN, 0, 0, TO_LISTENER),
        (RETURN, 0, 0, PASS),
    ];
    encoded(instructions)
}

/// As many that let everything pass.
fn passing() -> [u8; 48] {
    encoded([(RETURN, 0, 0, PASS); 6])
}

fn encoded(instructions: [(u16, u8, u8, u32); 6]) -> [u8; 48] {
    let mut bytes = [0; 48];
    for (at, (code, jt, jf, k)) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(instructions) {
        at[..2].copy_from_slice(&code.to_ne_bytes());
        (at[2], at[3]) = (jt, jf);
        at[4..].copy_from_slice(&k.to_ne_bytes());
    }
    bytes
}

/// Lets all pass that an earlier filter of ours, in the images of this folder, would give to its listener.
///
/// # Errors
/// Where the image cannot be read or written.
pub fn retire(folder: &Path) -> io::Result<()> {
    let path = folder.join(IMAGE);
    let image = match fs::read(&path) {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let ours = program();
    let places = image.windows(ours.len()).enumerate().filter(|(_, part)| *part == ours);
    let mut file = None;
    for (at, _) in places {
        // The file of a checkpoint that others share is another's, too: this one gets its own.
        if file.is_none() {
            let copy = folder.join("seccomp.part");
            fs::copy(&path, &copy)?;
            fs::rename(&copy, &path)?;
            file = Some(OpenOptions::new().write(true).open(&path)?);
        }
        if let Some(file) = &file {
            file.write_all_at(&passing(), at as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_filter_is_retired() {
        let folder = tempfile::tempdir().unwrap();
        // A folder without filters is one, too.
        retire(folder.path()).unwrap();
        let image = [b"before".as_slice(), &program(), b"between", &program()[..40], b"after"].concat();
        fs::write(folder.path().join(IMAGE), &image).unwrap();
        retire(folder.path()).unwrap();
        let left = fs::read(folder.path().join(IMAGE)).unwrap();
        assert_eq!(left, [b"before".as_slice(), &passing(), b"between", &program()[..40], b"after"].concat());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
