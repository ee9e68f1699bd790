//! A disk that is soon full.

use std::fs;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Grid;

/// A small disk below the agent of a node; taken away with this value.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Puts it there, with nothing on it. The machine is off meanwhile.
    pub fn below(grid: &Grid, index: u32, size: &str) -> SmallDisk {
        let machine = grid.machine(index);
        machine.shutdown().unwrap();
        let state = machine.dir().join("state");
        let options = format!("size={size},mode=755");
        mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let disk = SmallDisk(state);
        machine.boot().unwrap();
        disk
    }

    /// Fills it up but for `left` bytes.
    ///
    /// Who writes to the disk meanwhile takes of what was counted, so it is
    /// counted again until the rest could be had.
    pub fn fill(&self, left: u64) {
        let file = fs::File::create(self.filler()).unwrap();
        loop {
            let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
            let room = stat.blocks_available() as u64 * stat.fragment_size() as u64;
            let Some(taken) = room.checked_sub(left).filter(|taken| *taken > 0) else {
                return;
            };
            match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, taken as i64) {
                Ok(()) => return,
                Err(nix::errno::Errno::ENOSPC) => {}
                Err(error) => panic!("{} cannot be filled: {error}", self.0.display()),
            }
        }
    }

    /// Makes the room free again.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}
