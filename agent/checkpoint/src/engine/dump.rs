//! Writing a checkpoint.
//!
//! ```text
//!  Stopping ─▶ images made by CRIU ── post-dump ─▶ Frozen ─▶ Streams ─▶ archives ─▶ description ─▶ synced ─▶ the task goes on, or is ended
//!                                                                                            └▶ Held ─▶ Go ─▶ the task goes on
//! ```
//!
//! Whatever fails before the description is there lets the task run on, and the folder is removed. A task that is held
//! stays stopped in CRIU's hands; a hook that fails is what lets it go on.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use libgrid::wire;

use super::service::{Service, Start};
use super::{Criu, affinity, archives, explain, files, inside, open_folder, packed, size};
use crate::Description;
use crate::memory::{Step, Steps};
use crate::order::{Done, Dump, Go, Report, Streams, Then};
use crate::preflight::{self, needs::Needs};
use crate::rounds;

/// The pid of every task's root in its namespace: the first process that init starts.
pub(super) const ROOT: i32 = 2;

pub(super) fn run(
    order: &Dump,
    descriptors: Vec<OwnedFd>,
    shim: &UnixStream,
    criu: &Criu,
) -> Result<Done, String> {
    let start = Instant::now();
    let [init]: [OwnedFd; 1] =
        descriptors.try_into().map_err(|_| "the order names no task to dump".to_owned())?;
    let needs = preflight(&order.folder, &order.workdir, order.parent.is_none(), &init)?;
    let images = super::images(&order.folder, order.ahead.as_deref());
    make(&order.folder)?;
    let made = if images.is_dir() { Ok(()) } else { make(&images) };
    let result = made.and_then(|()| {
        let mover = order.ahead.as_deref().map(Mover::connect).transpose()?;
        // Opened here: where the task's own mounts hide the folder, its path leads elsewhere.
        let opened = open_folder(&images)?;
        let folder = open_folder(&order.folder)?;
        let names = packed(&order.workdir, mover.is_some()).map(|(_, name)| name);
        let archives = archives(&order.folder, names, File::options().write(true).create_new(true))?;
        // From here on, the task is stopped as soon as CRIU is started.
        mover.as_ref().map(|mover| mover.steps.expect(Step::Go)).transpose()?;
        let opened = Opened { images: &opened, folder: &folder, archives, mover };
        inside::run(init.as_fd(), None, |_| dump(order, opened, needs, shim, criu)).map_err(String::from)
    });
    // A task that is ended takes its namespace along, and with it the process that would tell of it.
    let result = match (result, Description::read(&order.folder)) {
        (Ok(()), Ok(description)) => Ok(description),
        // It was let go, or is elsewhere now, and what was written of it has gone there.
        (Ok(()), Err(_)) if order.then == Then::Hold => {
            return Ok(Done { took: start.elapsed(), ..Done::default() });
        }
        (Err(_), Ok(description)) if order.then == Then::End => Ok(description),
        (Err(why), _) => Err(why),
        (Ok(()), Err(error)) => Err(error.to_string()),
    };
    match result {
        Ok(description) => {
            Ok(Done { took: start.elapsed(), held: description.held, bytes: size(&order.folder) })
        }
        Err(why) => {
            // The sentence of the dump is the one to tell.
            let _ = fs::remove_dir_all(&order.folder);
            Err(why)
        }
    }
}

pub(super) fn make(folder: &Path) -> Result<(), String> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| format!("cannot make {}: {error}", folder.display()))
}

/// What is in the way, in one sentence; else what a machine must have to restore the task. With `whole`, all its memory is to
/// have room beside that folder.
pub(super) fn preflight(folder: &Path, workdir: &Path, whole: bool, init: &OwnedFd) -> Result<Needs, String> {
    let proc = Path::new("/proc");
    let wrong = |error: io::Error| format!("the task cannot be looked at: {error}");
    let (init, pids) = processes(proc, init).map_err(wrong)?;
    let own = preflight::own(workdir);
    let survey = preflight::survey(proc, Path::new("/"), init, &pids, &own).map_err(wrong)?;
    let mut obstacles = survey.obstacles;
    let above = folder.parent().unwrap_or(Path::new("/"));
    let memory = if whole { survey.memory } else { 0 };
    obstacles.extend(preflight::room(above, memory).map_err(wrong)?.map(Into::into));
    match obstacles.is_empty() {
        true => Ok(survey.needs),
        false => Err(preflight::sentence(&obstacles)),
    }
}

/// The pid of this init, and of all others in its pid namespace.
fn processes(proc: &Path, init: &OwnedFd) -> io::Result<(u32, Vec<u32>)> {
    let info = fs::read_to_string(proc.join(format!("self/fdinfo/{}", init.as_raw_fd())))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    let gone = || io::Error::new(io::ErrorKind::NotFound, "it has ended");
    let init: u32 = pid.ok_or_else(gone)?;
    let namespace = |pid: u32| fs::read_link(proc.join(format!("{pid}/ns/pid")));
    let own = namespace(init).map_err(|_| gone())?;
    let numbers = fs::read_dir(proc)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok((
        init,
        numbers.filter(|pid| *pid != init && namespace(*pid).is_ok_and(|other| other == own)).collect(),
    ))
}

/// What was opened outside.
struct Opened<'o> {
    images: &'o OwnedFd,
    folder: &'o OwnedFd,
    archives: Vec<File>,
    mover: Option<Mover>,
}

/// Who moves what goes ahead of the task.
struct Mover {
    folder: OwnedFd,
    steps: Steps,
}

impl Mover {
    fn connect(folder: &Path) -> Result<Self, String> {
        Ok(Self { folder: open_folder(folder)?, steps: Steps::connect(folder)? })
    }

    /// The task stands still: waits until it was looked at.
    fn stopped(&self) -> Result<(), String> {
        self.steps.tell(Step::Stopped)?;
        self.steps.expect(Step::Listed)
    }
}

fn dump(
    order: &Dump,
    opened: Opened<'_>,
    needs: Needs,
    shim: &UnixStream,
    criu: &Criu,
) -> Result<(), String> {
    let Opened { images, folder, archives, mover } = opened;
    let connections = order.connections;
    let start = match (&mover, &order.parent) {
        (Some(Mover { folder, .. }), None) => Start::WithoutMemory { folder, connections },
        _ => Start::Child,
    };
    let service = Service::start(&criu.open, order.uid, start)?;
    let mut options = criu.libcriu.options(images.as_fd(), c"dump.log")?;
    for stream in &order.stdio {
        options.external(&stream.key())?;
    }
    options.connections(connections);
    if let Some(parent) = &order.parent {
        options.track(Some(&rounds::way(&order.folder.join("images"), parent)))?;
    }
    let begun = Instant::now();
    let here = path_of(folder);
    let log = path_of(images).join("dump.log");
    let let_go = Arc::new(AtomicBool::new(false));
    let hook = {
        let (order, mut needs, let_go) = (order.clone(), Some(needs), let_go.clone());
        let shim = shim.try_clone().map_err(|error| format!("cannot speak to the shim: {error}"))?;
        let folder = folder.try_clone().map_err(|error| format!("cannot keep the folder open: {error}"))?;
        move |stage: &str| {
            match stage {
                "pre-dump" => return begin(&shim),
                // The first word after every thread was seized and has stopped (`cr_dump_tasks`).
                "query-ext-files" => return mover.as_ref().map_or(Ok(()), Mover::stopped),
                "post-dump" => (),
                _ => return Ok(()),
            }
            let start = Instant::now();
            // Who moves the rest looks at the task once more, beside what follows here.
            mover.as_ref().map(|mover| mover.steps.tell(Step::Written)).transpose()?;
            if order.parent.is_some() {
                // CRIU's own, to where it leads here.
                let link = here.join("images").join(rounds::PARENT);
                fs::remove_file(&link)
                    .map_err(|error| format!("cannot remove {}: {error}", link.display()))?;
            }
            let streams = ask(&shim)?;
            let bases = packed(&order.workdir, mover.is_some()).map(|(base, _)| base);
            let filled = bases.zip(&archives).filter(|(base, _)| !files::may_be_left(base));
            files::each_as_user(order.uid, filled, files::pack)?;
            if order.then == Then::End {
                // From here on, the checkpoint is all that there is of the task.
                files::sync(&folder)?;
            }
            let needs = needs.take().unwrap_or_default();
            let (stdio, held) = (order.stdio.clone(), start.elapsed());
            let workdir = order.workdir.clone();
            let mut description = Description::new(order.uid, workdir, stdio, streams, held, needs);
            description.memory_apart = mover.is_some() || order.parent.is_some();
            description.files_apart = mover.is_some();
            description.pinned = affinity::read();
            description.write(&here, order.then != Then::Hold).map_err(|error| error.to_string())?;
            mover.as_ref().map(|mover| mover.steps.expect(Step::Sent)).transpose()?;
            if order.then != Then::Hold {
                return Ok(());
            }
            wait(&shim, Done { took: begun.elapsed(), held, bytes: size(&here) })?;
            let_go.store(true, Ordering::Relaxed);
            Err("the task is let go".to_owned())
        }
    };
    let leave_running = order.then == Then::RunOn;
    match options.dump(service, ROOT, leave_running, Box::new(hook)) {
        Err(_) if let_go.load(Ordering::Relaxed) => Ok(()),
        result => result.map_err(|failure| explain("dump", failure, &log)),
    }
}

/// A folder that was opened before, as a path of this process.
pub(super) fn path_of(folder: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

/// Says that the task stands still, and waits until it may go.
pub(super) fn wait(shim: &UnixStream, done: Done) -> Result<(), String> {
    let mut shim = shim;
    let lost = |error: &dyn std::fmt::Display| format!("the shim does not answer: {error}");
    wire::write(&mut shim, &Report::Held(done)).map_err(|error| lost(&error))?;
    wire::read::<Go>(&mut shim).map(drop).map_err(|error| lost(&error))
}

/// Lets the shim close what the task's processes say to each other.
pub(super) fn begin(shim: &UnixStream) -> Result<(), String> {
    let mut shim = shim;
    let lost = |error: &dyn std::fmt::Display| format!("the shim does not answer: {error}");
    wire::write(&mut shim, &Report::Begins).map_err(|error| lost(&error))?;
    wire::read::<Result<Go, String>>(&mut shim).map_err(|error| lost(&error))?.map(drop)
}

/// Lets the shim take what waits in the task's pipes.
fn ask(shim: &UnixStream) -> Result<Streams, String> {
    let mut shim = shim;
    let lost = |error: &dyn std::fmt::Display| format!("the shim does not answer: {error}");
    wire::write(&mut shim, &Report::Frozen).map_err(|error| lost(&error))?;
    wire::read::<Result<Streams, String>>(&mut shim).map_err(|error| lost(&error))?
}
