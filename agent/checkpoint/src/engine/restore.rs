//! Making a task from a checkpoint.
//!
//! ```text
//!  init has made its mounts ─▶ control groups joined ─▶ CRIU waits [─▶ Go: the checkpoint is there]
//!     ─▶ archives unpacked ─▶ CRIU makes the processes
//!     ─ pre-resume ─▶ user and capabilities compared [─▶ Held ─▶ Go] ─▶ they run, the root as a child of init
//! ```
//! What fails on this way is ended together with init, by the shim.
//!
//! Of a task whose memory comes while it runs elsewhere, all is made ready ahead: while it stands still, nothing is started that
//! could have been started before. Which pids it will have is not known then. The pids of our own processes are guessed, and
//! should one of them be the task's, they are ended, and started anew with others.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use libgrid::wire;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::dump::{begin, path_of, wait};
use super::harmless::{self, Given};
use super::inside::{Inside, Teller};
use super::service::{Service, Start};
use super::{Criu, affinity, archives, explain, files, inside, keep, library, open_folder, packed, size};
use crate::filter;
use crate::images::Tree;
use crate::memory::{Step, Steps};
use crate::order::{self, Connections, Done, External, Go, Restore};
use crate::preflight::{self, needs::Needs};
use crate::rounds;
use crate::{Description, Pinned};

/// A restore that takes longer is ended. Memory comes from the disk at 100 MB/s at the least.
const LIMIT: Duration = Duration::from_secs(600);

/// How many pids our own processes may take: who unpacks, CRIU, and what that starts for itself.
const OURS: i32 = 256;

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
    let mut start = Instant::now();
    if order.uid == 0 {
        return Err("jobs never run as root".into());
    }
    let here = (!order.ahead).then(|| Checkpoint::open(order)).transpose()?;
    let mut descriptors = descriptors.into_iter();
    let (init, mark) = descriptors.next().zip(descriptors.next()).ok_or("the order names no init")?;
    let streams: Vec<OwnedFd> = descriptors.by_ref().take(order.streams).collect();
    let entrances: Vec<File> = descriptors.map(File::from).collect();
    // Init closes its end when its mounts are made, or when it fails, which the shim hears from itself.
    let mut nothing = Vec::new();
    File::from(mark).read_to_end(&mut nothing).map_err(|error| format!("init is not heard: {error}"))?;
    let (ours, its) = UnixStream::pair().map_err(|error| format!("cannot make a socket: {error}"))?;
    let place = Place { order, shim, criu, streams: &streams, entrances: &entrances };
    let begin = |pid| Inside::start(init.as_fd(), Some(pid), |outside| place.restore(&its, outside));
    let mut pid = here.as_ref().map_or_else(Tree::default, |here| here.tree.clone()).free(pid_max());
    let mut inside = begin(pid)?;
    let checkpoint = match here {
        Some(here) => here,
        None => {
            if !may_go(&inside, shim)? {
                // It says why.
                let ended = inside.finish::<()>(None).map_err(String::from);
                return ended.and(Err("the process beside the task ended early".into()));
            }
            start = Instant::now();
            Checkpoint::open(order)?
        }
    };
    if checkpoint.tree.taken.range(pid..pid.saturating_add(OURS)).next().is_some() && order.ahead {
        drop(inside);
        pid = checkpoint.tree.free(pid_max());
        inside = begin(pid)?;
    }
    // One that is gone has said why.
    let _ = checkpoint.pass(&ours);
    inside.finish::<()>(Some(LIMIT)).map_err(|failure| match failure {
        // CRIU ends what it made before it says why: with the first of these processes go init, the namespace, and whoever
        // would have told.
        inside::Failure::Cut if crate::log::first_error(&checkpoint.log).is_some() => {
            explain("restore", library::Failure::Criu, &checkpoint.log)
        }
        failure => failure.into(),
    })?;
    // Only then it is like any other task.
    checkpoint.memory.map(|steps| steps.expect(Step::Filled)).transpose()?;
    Ok(Done { took: start.elapsed(), held: Duration::ZERO, bytes: size(&order.folder) })
}

/// Waits until the checkpoint is there; false if the process inside has ended before.
fn may_go(inside: &Inside, shim: &UnixStream) -> Result<bool, String> {
    let lost = |error: &dyn std::fmt::Display| format!("the shim does not answer: {error}");
    let mut ready =
        [PollFd::new(inside.result(), PollFlags::POLLIN), PollFd::new(shim.as_fd(), PollFlags::POLLIN)];
    while let Err(error) = poll(&mut ready, PollTimeout::NONE) {
        if error != nix::errno::Errno::EINTR {
            return Err(lost(&error));
        }
    }
    if ready[0].any() == Some(true) {
        return Ok(false);
    }
    let mut shim = shim;
    wire::read::<Go>(&mut shim).map(|Go| true).map_err(|error| lost(&error))
}

/// A checkpoint, opened where its folder is seen.
struct Checkpoint {
    tree: Tree,
    stdio: Vec<External>,
    pinned: Vec<Pinned>,
    images: OwnedFd,
    /// CRIU's working folder.
    work: OwnedFd,
    archives: Vec<File>,
    memory: Option<Steps>,
    log: std::path::PathBuf,
}

/// What the process inside has to know of it. The descriptors that come with it: the images, CRIU's working folder, the
/// archives, and the line to who has the memory.
#[derive(Serialize, Deserialize)]
struct Passed {
    processes: Vec<i32>,
    stdio: Vec<External>,
    pinned: Vec<Pinned>,
}

impl Checkpoint {
    /// Opens it, if it is what the order says and can be restored here.
    fn open(order: &Restore) -> Result<Self, String> {
        let description = Description::read(&order.folder).map_err(|error| error.to_string())?;
        if (description.uid, &description.workdir) != (order.uid, &order.workdir) {
            return Err(format!(
                "the checkpoint is of user {} with its folder at {}: it can be restored to no other",
                description.uid,
                description.workdir.display()
            ));
        }
        let apart = (order.memory.is_some() || rounds::are_in(&order.folder), order.files);
        if (description.memory_apart, description.files_apart) != apart {
            return Err("the task's memory and files move apart from it, and belong to no other move".into());
        }
        if order.streams != description.stdio.len() {
            return Err(format!(
                "the checkpoint is of a task with {} streams, and {} are given",
                description.stdio.len(),
                order.streams
            ));
        }
        let here = Needs::of_machine(Path::new("/proc"))
            .map_err(|error| format!("this machine cannot be looked at: {error}"))?;
        let blockers = description.needs.blockers(&here, Path::new("/"));
        if !blockers.is_empty() {
            return Err(preflight::sentence(&blockers));
        }
        let images = super::images(&order.folder, order.memory.as_deref());
        let tree = Tree::read(&images).map_err(|error| error.to_string())?;
        filter::retire(&images)
            .map_err(|error| format!("its filters of system calls cannot be read: {error}"))?;
        let opened = open_folder(&images)?;
        let names = packed(&order.workdir, order.files).map(|(_, name)| name);
        let archives = archives(&order.folder, names, File::options().read(true))?;
        let memory = order.memory.as_deref().map(Steps::connect).transpose()?;
        let lazy = if memory.is_some() { "lazy-pages\n" } else { "" };
        fs::write(images.join(OPTIONS), format!("restore-sibling\n{lazy}"))
            .map_err(|error| format!("cannot write {OPTIONS}: {error}"))?;
        // There CRIU finds the socket to ask for memory at.
        let work = order.memory.clone().unwrap_or(images);
        let log = work.join(LOG);
        // What an earlier restore left: it would speak for this one.
        let _ = fs::remove_file(&log);
        let work = open_folder(&work)?;
        let Description { stdio, pinned, .. } = description;
        Ok(Self { tree, stdio, pinned, images: opened, work, archives, memory, log })
    }

    /// Passes it to the process inside.
    fn pass(&self, inside: &UnixStream) -> io::Result<()> {
        let memory = self.memory.iter().map(|steps| steps.socket().as_raw_fd());
        let files = self.archives.iter().map(AsRawFd::as_raw_fd);
        let folders = [&self.images, &self.work].map(AsRawFd::as_raw_fd);
        let descriptors: Vec<_> = folders.into_iter().chain(files).chain(memory).collect();
        let (processes, stdio) = (self.tree.processes.clone(), self.stdio.clone());
        let passed = Passed { processes, stdio, pinned: self.pinned.clone() };
        order::send(inside, &passed, &descriptors)
    }
}

/// Where a task is to be made.
#[derive(Clone, Copy)]
struct Place<'p> {
    order: &'p Restore,
    shim: &'p UnixStream,
    criu: &'p Criu,
    streams: &'p [OwnedFd],
    entrances: &'p [File],
}

impl Place<'_> {
    /// Makes it from the checkpoint that is passed here; in the process inside.
    fn restore(self, passed: &UnixStream, outside: &Teller) -> Result<(), String> {
        let Self { order, shim, criu, streams, entrances } = self;
        for mut entrance in entrances {
            entrance.write_all(b"0").map_err(|error| format!("joining the control group failed: {error}"))?;
        }
        streams.iter().try_for_each(keep)?;
        let service = Service::start(&criu.open, order.uid, Start::BelowInit)?;
        let lost = |error: &dyn std::fmt::Display| format!("the checkpoint was not passed on: {error}");
        let (Passed { processes, stdio, pinned }, descriptors) =
            order::receive(passed).map_err(|error| lost(&error))?;
        let mut descriptors = descriptors.into_iter();
        let (images, work) =
            descriptors.next().zip(descriptors.next()).ok_or_else(|| lost(&"it has no images"))?;
        let folders: Vec<&Path> = packed(&order.workdir, order.files).map(|(folder, _)| folder).collect();
        let archives: Vec<File> = descriptors.by_ref().take(folders.len()).map(File::from).collect();
        let memory = descriptors.next().map(|line| Steps::new(line.into()));

        let filled = folders.into_iter().zip(&archives).filter(|(_, archive)| files::is_filled(archive));
        files::each_as_user(order.uid, filled, files::unpack)?;
        let mut options = criu.libcriu.options(images.as_fd(), c"restore.log")?;
        options.work_in(work.as_fd());
        options.configure(&format!("/proc/{}/fd/{}/{OPTIONS}", std::process::id(), images.as_raw_fd()))?;
        for (stream, external) in streams.iter().zip(&stdio) {
            options.inherit(stream.as_fd(), &external.key())?;
        }
        let connections = order.connections;
        options.connections(connections);
        let (uid, hold, outside) = (order.uid, order.hold, outside.another()?);
        let runs = memory.as_ref().map(Steps::another).transpose();
        let runs = runs.map_err(|error| format!("cannot keep the line to its memory: {error}"))?;
        let given = Given::new(streams).map_err(|error| format!("cannot look at what is given: {error}"))?;
        let shim = shim.try_clone().map_err(|error| format!("cannot speak to the shim: {error}"))?;
        let (begun, bytes) = (Instant::now(), size(&path_of(&images)));
        let hook = move |stage: &str| {
            if stage == "pre-restore" && connections != Connections::Refused {
                return begin(&shim);
            }
            if stage != "pre-resume" {
                return Ok(());
            }
            // They have their users by now, and are stopped before their first instruction.
            let checked = harmless::check_all(&processes, uid, &given);
            affinity::set(&pinned);
            let done = || Done { took: begun.elapsed(), held: Duration::ZERO, bytes };
            // Before that, the source must not be given up.
            let checked =
                checked.and_then(|()| memory.as_ref().map_or(Ok(()), |steps| steps.expect(Step::Sent)));
            let held = checked.and_then(|()| if hold { wait(&shim, done()) } else { Ok(()) });
            held.inspect_err(|why| {
                // CRIU would let them go all the same. Their end is that of the namespace, and of this process.
                outside.tell::<()>(Err(why.clone()));
                for pid in &processes {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            })
        };
        let log = path_of(&work).join(LOG);
        let restored = options.restore(service, Box::new(hook));
        // Its memory may be filled in as a whole now that it runs. Who does that takes an end of the line for the same.
        let _ = runs.filter(|_| restored.is_ok()).map(|steps| steps.tell(Step::Go));
        restored.map(drop).map_err(|failure| explain("restore", failure, &log))
    }
}

fn pid_max() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768)
}
