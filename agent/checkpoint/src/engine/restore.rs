//! Making a task from a checkpoint.
//!
//! ```text
//!  init has made its mounts ─▶ control groups joined ─▶ archives unpacked ─▶ CRIU makes the processes
//!     ─ pre-resume ─▶ user and capabilities compared [─▶ Held ─▶ Go] ─▶ they run, the root as a child of init
//! ```
//! What fails on this way is ended together with init, by the shim.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use super::dump::{begin, path_of, wait};
use super::inside::Teller;
use super::{Criu, Start, archives, explain, files, folders, inside, keep, library, open_folder, size};
use crate::Description;
use crate::images::Tree;
use crate::memory::{self, Step, Steps};
use crate::order::{Connections, Done, Restore};
use crate::preflight::{self, needs::Needs};

/// A restore that takes longer is ended. Memory comes from the disk at 100 MB/s at the least.
const LIMIT: Duration = Duration::from_secs(600);

/// CRIU's log, among the images.
const LOG: &str = "restore.log";

/// Options of CRIU's own, among the images.
const OPTIONS: &str = "criu.conf";

pub(super) fn run(
    order: &Restore,
    descriptors: Vec<OwnedFd>,
    shim: &UnixStream,
    criu: &Criu,
) -> Result<Done, String> {
    let start = Instant::now();
    if order.uid == 0 {
        return Err("jobs never run as root".into());
    }
    let description = Description::read(&order.folder).map_err(|error| error.to_string())?;
    if (description.uid, &description.workdir) != (order.uid, &order.workdir) {
        return Err(format!(
            "the checkpoint is of user {} with its folder at {}: it can be restored to no other",
            description.uid,
            description.workdir.display()
        ));
    }
    if description.apart != order.memory.is_some() {
        return Err("the task's memory moves apart from it, and belongs to no other move".into());
    }
    let here = Needs::of_machine(Path::new("/proc"))
        .map_err(|error| format!("this machine cannot be looked at: {error}"))?;
    let blockers = description.needs.blockers(&here, Path::new("/"));
    if !blockers.is_empty() {
        return Err(preflight::sentence(&blockers));
    }
    let images = order.folder.join("images");
    let tree = Tree::read(&images).map_err(|error| error.to_string())?;
    let mut descriptors = descriptors.into_iter();
    let (init, mark) = descriptors.next().zip(descriptors.next()).ok_or("the order names no init")?;
    let streams: Vec<OwnedFd> = descriptors.by_ref().take(description.stdio.len()).collect();
    if streams.len() != description.stdio.len() {
        return Err(format!(
            "the checkpoint is of a task with {} streams, and {} are given",
            description.stdio.len(),
            streams.len()
        ));
    }
    let entrances: Vec<File> = descriptors.map(File::from).collect();
    let opened = open_folder(&images)?;
    let names = folders(&order.workdir).map(|(_, name)| name);
    let packed = archives(&order.folder, names, File::options().read(true))?;
    // Init closes its end when its mounts are made, or when it fails, which the shim hears from itself.
    let mut nothing = Vec::new();
    File::from(mark).read_to_end(&mut nothing).map_err(|error| format!("init is not heard: {error}"))?;
    let memory = order.memory.as_deref().map(|folder| ready_for_pages(folder, &images)).transpose()?;
    let lazy = if memory.is_some() { "lazy-pages\n" } else { "" };
    fs::write(images.join(OPTIONS), format!("restore-sibling\n{lazy}"))
        .map_err(|error| format!("cannot write {OPTIONS}: {error}"))?;
    let pid = Some(tree.free(pid_max()));
    let log = images.join(LOG);
    // What an earlier restore left: it would speak for this one.
    let _ = fs::remove_file(&log);
    inside::run(init.as_fd(), pid, Some(LIMIT), |outside| {
        let opened = Opened {
            images: &opened,
            streams: &streams,
            entrances: &entrances,
            packed: &packed,
            memory: memory.as_ref(),
        };
        restore(order, &description, tree, opened, shim, criu, outside)
    })
    .map_err(|failure| match failure {
        // CRIU ends what it made before it says why: with the first of these processes go init, the namespace, and whoever
        // would have told.
        inside::Failure::Cut if crate::log::first_error(&log).is_some() => {
            explain("restore", library::Failure::Criu, &log)
        }
        failure => failure.into(),
    })?;
    // Only then it is like any other task.
    memory.map(|steps| steps.expect(Step::Filled)).transpose()?;
    Ok(Done { took: start.elapsed(), held: Duration::ZERO, bytes: size(&order.folder) })
}

/// Lets CRIU ask who has the memory for it.
fn ready_for_pages(folder: &Path, images: &Path) -> Result<Steps, String> {
    let ready = || {
        let here = images.join(memory::PAGES);
        match fs::remove_file(&here) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        // By another name for the same socket: the folder is not to be seen from where CRIU is.
        fs::hard_link(folder.join(memory::PAGES), here)
    };
    ready().map_err(|error| format!("who has the task's memory cannot be reached: {error}"))?;
    Steps::connect(folder)
}

/// What was opened outside.
struct Opened<'o> {
    images: &'o OwnedFd,
    streams: &'o [OwnedFd],
    entrances: &'o [File],
    packed: &'o [File],
    memory: Option<&'o Steps>,
}

fn restore(
    order: &Restore,
    description: &Description,
    tree: Tree,
    opened: Opened<'_>,
    shim: &UnixStream,
    criu: &Criu,
    outside: &Teller,
) -> Result<(), String> {
    let Opened { images, streams, entrances, packed, memory } = opened;
    for mut entrance in entrances {
        entrance.write_all(b"0").map_err(|error| format!("joining the control group failed: {error}"))?;
    }
    let mut each = folders(&order.workdir).into_iter().zip(packed);
    files::as_user(order.uid, || each.try_for_each(|((base, _), archive)| files::unpack(base, archive)))?;
    let (gone, leash) = pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    let start = Start::BelowInit(leash);
    criu.prepare(order.uid, &start)?;
    let mut options = criu.libcriu.options(images.as_fd(), c"restore.log")?;
    options.configure(&format!("/proc/{}/fd/{}/{OPTIONS}", std::process::id(), images.as_raw_fd()))?;
    let memory =
        memory.map(Steps::another).transpose().map_err(|error| format!("no descriptor is left: {error}"))?;
    for (stream, external) in streams.iter().zip(&description.stdio) {
        keep(stream)?;
        options.inherit(stream.as_fd(), &external.key())?;
    }
    let connections = order.connections;
    options.connections(connections);
    let (uid, hold, outside) = (order.uid, order.hold, outside.another()?);
    let shim = shim.try_clone().map_err(|error| format!("cannot speak to the shim: {error}"))?;
    let (begun, bytes) = (Instant::now(), size(&path_of(images)));
    let hook = move |stage: &str| {
        if stage == "pre-restore" && connections != Connections::Refused {
            return begin(&shim);
        }
        if stage != "pre-resume" {
            return Ok(());
        }
        // They have their users by now, and are stopped before their first instruction.
        let checked = tree.processes.iter().try_for_each(|pid| check_user(*pid, uid));
        let done = || Done { took: begun.elapsed(), held: Duration::ZERO, bytes };
        // Before that, the source must not be given up.
        let checked = checked.and_then(|()| memory.as_ref().map_or(Ok(()), |steps| steps.expect(Step::Sent)));
        let held = checked.and_then(|()| if hold { wait(&shim, done()) } else { Ok(()) });
        // Its memory may be filled in as a whole now. Who does that takes an end of the line for the same.
        let _ = memory.as_ref().filter(|_| held.is_ok()).map(|steps| steps.tell(Step::Go));
        held.inspect_err(|why| {
            // CRIU would let them go all the same. Their end is that of the namespace, and of this process.
            outside.tell::<()>(Err(why.clone()));
            for pid in &tree.processes {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        })
    };
    let log = path_of(images).join(LOG);
    let restored =
        options.restore(Box::new(hook)).map(drop).map_err(|failure| explain("restore", failure, &log));
    drop(start);
    // Its own end follows its last word: until then it would be taken for one of the task's processes.
    let _ = File::from(gone).read(&mut [0]);
    restored
}

/// Whether a process, which has not run yet, is what the task may be.
fn check_user(pid: i32, uid: u32) -> Result<(), String> {
    let path = format!("/proc/{pid}/status");
    let status =
        fs::read_to_string(&path).map_err(|error: io::Error| format!("cannot read {path}: {error}"))?;
    if is_harmless(&status, uid) {
        Ok(())
    } else {
        Err(format!(
            "the checkpoint would make process {pid} another user than {uid}, or give it rights: it is refused"
        ))
    }
}

/// No user but this one, no capability that could be used or gained.
fn is_harmless(status: &str, uid: u32) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.split_whitespace().collect::<Vec<_>>())
    };
    let own = uid.to_string();
    let is_own = |ids: Vec<&str>| ids.len() == 4 && ids.iter().all(|id| *id == own);
    // What has ended runs no more, and CRIU makes it end as its own user.
    if field("State:").is_some_and(|state| state.first() == Some(&"Z")) {
        return true;
    }
    let none = |name| field(name).is_some_and(|set| set.iter().all(|set| set.chars().all(|c| c == '0')));
    field("Uid:").is_some_and(is_own)
        && field("Gid:").is_some_and(is_own)
        && ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().all(none)
        && field("Groups:").is_none_or(|groups| groups.iter().all(|group| *group == own))
        && field("NoNewPrivs:").is_some_and(|set| set == ["1"])
}

fn pid_max() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "State:\tT (stopped)\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000\n\
                          CapPrm:\t0000\nCapEff:\t0000\nCapBnd:\tffff\nCapAmb:\t0000\nNoNewPrivs:\t1\n";

    #[test]
    fn only_the_tasks_user_without_rights_is_let_go() {
        assert!(is_harmless(STATUS, 7));
        assert!(!is_harmless(STATUS, 8));
        assert!(is_harmless(&STATUS.replace("T (stopped)", "Z (zombie)"), 8));
        for (good, bad) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7"),
            ("Gid:\t7\t7\t7\t7", "Gid:\t0\t7\t7\t7"),
            ("Groups:\t ", "Groups:\t0 "),
            ("CapPrm:\t0000", "CapPrm:\t0001"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("CapEff:\t0000\n", ""),
        ] {
            assert!(STATUS.contains(good) && !is_harmless(&STATUS.replace(good, bad), 7), "{bad}");
        }
    }
}
