//! What this machine has and how busy it is, from `/proc`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use grid_checkpoint::Installation;
use grid_checkpoint::installation::SOFT_DIRTY;
use libgrid::node::{Resources, Tier};

/// Memory that is left to the machine itself, in bytes.
const OWN: u64 = 256 << 20;

/// What the machine could lend.
pub(crate) fn total() -> Resources {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:").unwrap_or(0);
    Resources {
        cpu: u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(1000),
        memory: memory.saturating_sub(OWN),
    }
}

/// The one-minute load average in hundredths.
pub(crate) fn load() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (load * 100.0) as u32
}

/// What the kernel allows, and the agent uses.
pub(crate) fn tier(module: bool, ebpf: bool) -> Tier {
    match (module, ebpf) {
        (true, _) => Tier::Kernel,
        (false, true) => Tier::Ebpf,
        (false, false) => Tier::Stack,
    }
}

/// Room that is kept free for the records of jobs, in bytes.
pub(crate) const KEEP_FREE: u64 = 16 << 20;

/// Nothing if so many bytes more leave room for the records of jobs below `folder`.
///
/// # Errors
/// ENOSPC.
pub(crate) fn leaves_room(folder: &Path, bytes: usize) -> io::Result<()> {
    match room(folder) {
        Some(room) if room < KEEP_FREE + bytes as u64 => Err(nix::errno::Errno::ENOSPC.into()),
        _ => Ok(()),
    }
}

/// Bytes that can still be written below `folder`, if the system says.
pub(crate) fn room(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

/// Whether the kernel notes which pages a program writes to, as CRIU can use it. Asked once, which takes some ten milliseconds.
pub(crate) fn soft_dirty() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    let ask = || {
        let programs = program("gridos-criu");
        let criu = Installation::find(programs.parent().unwrap_or(Path::new("/")));
        criu.is_some_and(|criu| criu.has(SOFT_DIRTY).unwrap_or(false))
    };
    *HAS.get_or_init(ask)
}

/// The value in kB of a line of `/proc/meminfo`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// Another program of the same installation: it is beside this one.
pub(crate) fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    // The kernel marks the path of a program that was replaced while it ran.
    let here = here.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    Path::new(&here).with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(
            field("MemTotal:       24684092 kB\nMemFree: 1 kB\n", "MemTotal:"),
            Some(24_684_092 << 10)
        );
        assert_eq!(field("", "MemTotal:"), None);
        assert!(total().cpu >= 1000 && total().memory > 0);
    }
}
