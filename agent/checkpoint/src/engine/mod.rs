//! What the program `gridos-criu` does; see the crate's own page for who is who.
//!
//! The program is executed twice: by the shim, to carry out an order ([`serve`]), and by libcriu, as the program that it
//! believes to be CRIU, inside the task's namespaces ([`become_criu`]): that one executes the real CRIU by descriptors,
//! with its own loader where it has one.

mod cache;
mod dump;
mod files;
mod inside;
mod library;
mod restore;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use libgrid::wire;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use crate::installation::{Installation, Open};
use crate::memory;
use crate::order::{self, Order, Report};

/// Tells the process that becomes CRIU what to execute: descriptors of the program, the loader and the libraries.
const PROGRAM: &str = "GRIDOS_CRIU";

/// Tells it the task's user.
const USER: &str = "GRIDOS_CRIU_USER";

/// Tells it what to load into CRIU: the descriptor of a folder of [`crate::memory`], in the process that started it.
const MEMORY: &str = "GRIDOS_CRIU_MEMORY";

/// Tells it to be a child of the task's init: a descriptor that closes with it.
const LEASH: &str = "GRIDOS_CRIU_LEASH";

/// The three folders that a task writes to, as it sees them, and their archives.
pub(crate) fn folders(workdir: &Path) -> [(&Path, &'static str); 3] {
    [(workdir, "work.tar"), (Path::new("/tmp"), "tmp.tar"), (Path::new("/dev/shm"), "shm.tar")]
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
        .ok_or("CRIU is not installed on this node: install criu 4.1 or newer (setup/install build does)")?;
    cache::ensure(&installation)?;
    let criu = Criu {
        libcriu: library::Library::load(&installation)?,
        open: installation.open().map_err(|error| format!("cannot open CRIU: {error}"))?,
    };
    match order {
        Order::Dump(order) => dump::run(&order, descriptors, socket, &criu),
        Order::Restore(order) => restore::run(&order, descriptors, socket, &criu),
    }
}

/// CRIU, usable from another mount namespace.
struct Criu {
    libcriu: library::Library,
    open: Open,
}

impl Criu {
    /// Prepares this process to start CRIU; in the process beside the task.
    fn prepare(&self, uid: u32, start: &Start<'_>) -> Result<(), String> {
        let mut numbers = Vec::new();
        let own = self.open.own.iter().flat_map(|(loader, libraries)| [loader, libraries]);
        for file in [&self.open.program].into_iter().chain(own) {
            keep(file.as_fd())?;
            numbers.push(file.as_raw_fd().to_string());
        }
        // SAFETY: this process has one thread.
        unsafe {
            std::env::set_var(PROGRAM, numbers.join(","));
            std::env::set_var(USER, uid.to_string());
            match start {
                Start::Child => (),
                Start::WithoutMemory(folder) => std::env::set_var(MEMORY, folder.as_raw_fd().to_string()),
                Start::BelowInit(leash) => {
                    keep(leash)?;
                    std::env::set_var(LEASH, leash.as_raw_fd().to_string());
                }
            }
        }
        Ok(())
    }
}

/// How CRIU is started.
enum Start<'a> {
    /// As a child of who prepared it.
    Child,
    /// So, and it passes over memory: with the folder of who moves that.
    WithoutMemory(&'a OwnedFd),
    /// As a child of the task's init, so that the task's root is one from its first instruction (`--restore-sibling`): nobody
    /// finds CRIU as its parent, or gets the signal of a parent's death when CRIU is done. The descriptor closes with the last
    /// of CRIU's processes.
    BelowInit(OwnedFd),
}

/// Becomes the real CRIU, as libcriu asked for it: `swrk` and the number of a socket. Returns only what went wrong.
pub fn become_criu(arguments: impl Iterator<Item = OsString>) -> String {
    let Ok(numbers) = std::env::var(PROGRAM) else {
        return "started by hand: it is started by gridos-shim, see gridctl checkpoint --help".into();
    };
    if std::env::var_os(LEASH).is_some() {
        // Its parent's end is what makes it a child of init.
        match inside::fork(None) {
            Ok(None) => (),
            Ok(Some(_)) => std::process::exit(0),
            Err(error) => return format!("cannot start CRIU: {error}"),
        }
    }
    let numbers: Option<Vec<RawFd>> = numbers.split(',').map(|number| number.parse().ok()).collect();
    let path = |fd: &RawFd| format!("/proc/self/fd/{fd}");
    let mut command = match numbers.as_deref() {
        Some([program]) => Command::new(path(program)),
        Some([program, loader, libraries]) => {
            let mut command = Command::new(path(loader));
            command.arg("--library-path").arg(path(libraries)).arg(path(program));
            command
        }
        _ => return "it was told of no CRIU".into(),
    };
    let user = user_to_borrow();
    match (std::env::var(MEMORY), user) {
        (Ok(folder), user) => {
            let folder = format!("/proc/{}/fd/{folder}", nix::unistd::getppid());
            command.env("LD_PRELOAD", format!("{folder}/{}", memory::LIBRARY));
            command.env(memory::MAPPINGS_VARIABLE, format!("{folder}/{}", memory::MAPPINGS));
            // Before it is executed, it would be a program whose library the loader must not load.
            if let Some(user) = user {
                command.env(memory::USER_VARIABLE, user.to_string());
            }
        }
        (Err(_), Some(user)) => {
            if let Err(error) = borrow(user) {
                return format!("cannot take the task's user as the real one: {error}");
            }
        }
        (Err(_), None) => (),
    }
    for name in [PROGRAM, USER, MEMORY, LEASH] {
        command.env_remove(name);
    }
    format!("cannot execute CRIU: {}", command.args(arguments).exec())
}

/// The task's user, where CAP_SYS_RESOURCE is missing: to be made CRIU's real one. What it may do does not change, for that
/// depends on the effective one, which stays root.
///
/// CRIU asks for the limits of each process, and the kernel answers to that capability, or to those whose **real** user and
/// group are those of the process asked about (`check_prlimit_permission` in `kernel/sys.c`). The price: the task may send
/// signals to this CRIU, until it is stopped. It would spoil its own checkpoint, and nothing else.
fn user_to_borrow() -> Option<u32> {
    let user = std::env::var(USER).ok().and_then(|user| user.parse().ok());
    user.filter(|_| !may_ask_for_limits())
}

fn borrow(user: u32) -> io::Result<()> {
    nix::unistd::setresgid(Gid::from_raw(user), Gid::from_raw(0), Gid::from_raw(0))?;
    Ok(nix::unistd::setresuid(Uid::from_raw(user), Uid::from_raw(0), Uid::from_raw(0))?)
}

/// Whether this process has CAP_SYS_RESOURCE.
fn may_ask_for_limits() -> bool {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    effective & 1 << SYS_RESOURCE != 0
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
fn archives(folder: &Path, names: [&str; 3], options: &std::fs::OpenOptions) -> Result<Vec<File>, String> {
    let open = |name: &str| {
        let path = folder.join(name);
        options.open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))
    };
    names.into_iter().map(open).collect()
}
