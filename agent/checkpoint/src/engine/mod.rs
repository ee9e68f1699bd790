//! What the program `gridos-criu` does; see the crate's own page for who is who.

mod affinity;
mod cache;
mod dump;
mod files;
mod harmless;
mod inside;
mod library;
mod predump;
mod restore;
mod service;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libgrid::wire;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::Mode;

use crate::installation::{Installation, Open};
use crate::memory;
use crate::order::{self, Order, Report};

/// A tmpfs of the task's own.
const SHARED_MEMORY: &str = "/dev/shm";

/// The three folders that a task writes to, as it sees them, and their archives.
pub(crate) fn folders(workdir: &Path) -> [(&Path, &'static str); 3] {
    [(workdir, "work.files"), (Path::new("/tmp"), "tmp.files"), (Path::new(SHARED_MEMORY), "shm.files")]
}

/// Of these, those that are in a checkpoint. Those on a disk may move by themselves.
fn packed(workdir: &Path, apart: bool) -> impl Iterator<Item = (&Path, &'static str)> {
    folders(workdir).into_iter().filter(move |(folder, _)| !apart || *folder == Path::new(SHARED_MEMORY))
}

/// Where the images of a checkpoint are, whose memory may move apart from it: made already, or to be made.
fn images(folder: &Path, memory: Option<&Path>) -> PathBuf {
    let apart = memory.map(|memory| memory.join(memory::IMAGES)).filter(|images| images.is_dir());
    apart.unwrap_or_else(|| folder.join("images"))
}

/// Carries out the one order that comes over the socket. True if it was done.
pub fn serve(socket: UnixStream, programs: &Path) -> bool {
    let result = carry_out(&socket, programs);
    let report = match &result {
        Ok(done) => Report::Done(*done),
        Err(why) => Report::Failed(why.clone()),
    };
    // A shim that is gone hears nothing.
    let told = wire::write(&mut &socket, &report).is_ok();
    told && result.is_ok()
}

fn carry_out(socket: &UnixStream, programs: &Path) -> Result<order::Done, String> {
    let (order, descriptors) =
        order::receive(socket).map_err(|error| format!("there is no order: {error}"))?;
    let installation = Installation::find(programs)
        .ok_or("CRIU is not installed on this node: install criu 4.2 or newer (setup/install build does)")?;
    cache::ensure(&installation)?;
    let criu = Criu {
        libcriu: library::Library::load(&installation)?,
        open: installation.open().map_err(|error| format!("cannot open CRIU: {error}"))?,
    };
    match order {
        Order::Dump(order) => dump::run(&order, descriptors, socket, &criu),
        Order::Restore(order) => restore::run(&order, descriptors, socket, &criu),
        Order::PreDump(order) => predump::run(&order, descriptors, &criu),
    }
}

/// CRIU, usable from another mount namespace.
struct Criu {
    libcriu: library::Library,
    open: Open,
}

/// Lets a descriptor stay open when this process executes another program.
fn keep(fd: impl AsFd) -> Result<(), String> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))
        .map(drop)
        .map_err(|error| format!("cannot pass a descriptor on: {error}"))
}

/// A folder as CRIU takes it.
fn open_folder(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

/// What became of CRIU's work, in one sentence.
fn explain(what: &str, failure: library::Failure, log: &Path) -> String {
    match failure {
        library::Failure::Hook(why) => why,
        library::Failure::Started(why) => format!("CRIU could not be asked to {what} the task: {why}"),
        library::Failure::Criu => {
            let why = crate::log::first_error(log).unwrap_or_else(|| "it did not say why".into());
            format!("CRIU could not {what} the task: {why}")
        }
    }
}

/// Bytes of the files in a folder and one below it.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// The archives of a checkpoint, open.
fn archives<'n>(
    folder: &Path,
    names: impl Iterator<Item = &'n str>,
    options: &std::fs::OpenOptions,
) -> Result<Vec<File>, String> {
    let open = |name: &str| {
        let path = folder.join(name);
        options.open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))
    };
    names.map(open).collect()
}
