//! CRIU's knowledge of the kernel, where CRIU would not keep it by itself.
//!
//! CRIU asks the kernel some fifty questions at each start (40 ms), or reads the answers in `/run/criu.kdat`. It writes
//! that file only where `/run` is a tmpfs, for the answers must not outlive the boot. One question cannot be asked by a
//! CRIU whose real user is the task's ([`super::service`]): libnftables ends the process when the real and the
//! effective user differ. So where CAP_SYS_RESOURCE is missing and `/run` is on a disk, as in some containers,
//! the file is made here: by `criu check` with a tmpfs of its own at `/run`, in a mount namespace that ends with it. One
//! that is older than the boot is made anew.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{files, service};
use crate::installation::Installation;

/// Where CRIU looks.
const RUN: &str = "/run";
const NAME: &str = "criu.kdat";

/// Sees to it that CRIU need not ask.
///
/// # Errors
/// A sentence.
pub(super) fn ensure(installation: &Installation) -> Result<(), String> {
    let on_tmpfs = statfs(RUN).is_ok_and(|run| run.filesystem_type() == TMPFS_MAGIC);
    if service::may_ask_for_limits() || (on_tmpfs && Path::new(RUN).join(NAME).exists()) || is_fresh() {
        return Ok(());
    }
    files::in_process(|| make(installation))
        .map_err(|why| format!("CRIU's knowledge of the kernel cannot be kept in {RUN}/{NAME}: {why}"))
}

/// Whether there is one of this boot.
fn is_fresh() -> bool {
    let made = fs::metadata(Path::new(RUN).join(NAME)).map(|meta| meta.mtime());
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "));
    let boot = boot.and_then(|boot| boot.trim().parse::<i64>().ok());
    // A clock that was set since: made anew, which is never wrong.
    made.is_ok_and(|made| boot.is_some_and(|boot| made > boot))
}

fn make(installation: &Installation) -> io::Result<()> {
    let run = File::open(RUN)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), RUN, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
    let check = installation.command(&["check"]).output()?;
    let answers = fs::read(Path::new(RUN).join(NAME)).map_err(|_| {
        let said = String::from_utf8_lossy(&check.stderr);
        io::Error::other(format!("criu check made none: {}", said.lines().last().unwrap_or_default()))
    })?;
    let real = |name: &str| format!("/proc/self/fd/{}/{name}", run.as_raw_fd());
    // Two at once write the same; each its own file until it is whole.
    let part = real(&format!("{NAME}.{}", std::process::id()));
    let write = File::create(&part).and_then(|mut file| file.write_all(&answers));
    write.and_then(|()| fs::rename(&part, real(NAME))).inspect_err(|_| drop(fs::remove_file(&part)))
}
