//! A CRIU that was started, and waits at its socket for what to do (`criu swrk`). libcriu tells it.
//!
//! It is started here and not by libcriu, so that it can be there before there is anything to do, and below whom it has to be.
//! The program is executed by descriptors, with its own loader where it has one: it runs where the task's mounts are.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, Uid, getpid, pipe2};

use super::{inside, keep};
use crate::installation::Open;
use crate::memory;
use crate::order::Connections;

/// How it is started.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// As a child of who starts it.
    Child,
    /// So, and it passes over memory.
    WithoutMemory {
        /// Of who moves that.
        folder: &'a OwnedFd,
        /// Of the task, which may have some.
        connections: Connections,
    },
    /// As a child of the task's init, so that the task's root is one from its first instruction (`--restore-sibling`): nobody
    /// finds CRIU as its parent, or gets the signal of a parent's death when CRIU is done.
    BelowInit,
}

/// One that waits.
pub(super) struct Service {
    socket: OwnedFd,
    end: End,
}

/// How its end is seen.
pub(super) enum End {
    Child(Pid),
    /// A pipe that closes with the last of its processes.
    Leash(File),
}

impl Service {
    /// Starts it, for a task of this user. What the task is to inherit is open in this process, and stays so in CRIU.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn start(open: &Open, uid: u32, start: Start<'_>) -> Result<Self, String> {
        let started = || -> io::Result<Self> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (socket, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
            let (gone, leash) = pipe2(OFlag::O_CLOEXEC)?;
            let here = getpid();
            match inside::fork(None)? {
                None => {
                    let below_init = matches!(start, Start::BelowInit);
                    // Its parent's end is what makes it a child of init.
                    let error = match below_init.then(|| inside::fork(None)).transpose() {
                        Ok(Some(Some(_))) => std::process::exit(0),
                        Ok(_) => execute(open, uid, start, here, &its, below_init.then_some(leash)),
                        Err(error) => error,
                    };
                    eprintln!("gridos-criu: cannot start CRIU: {error}");
                    std::process::exit(1)
                }
                Some(child) if matches!(start, Start::BelowInit) => {
                    inside::wait(child);
                    Ok(Self { socket, end: End::Leash(File::from(gone)) })
                }
                Some(child) => Ok(Self { socket, end: End::Child(child) }),
            }
        };
        started().map_err(|error| format!("cannot start CRIU: {error}"))
    }

    /// Its socket, for libcriu, and its end, to wait for when that is done.
    pub(super) fn into_parts(self) -> (OwnedFd, End) {
        (self.socket, self.end)
    }
}

impl End {
    /// Waits until its last process has ended. That follows its last word, and until then it would be taken for one of the task's.
    pub(super) fn wait(self) {
        match self {
            End::Child(child) => inside::wait(child),
            End::Leash(mut leash) => drop(leash.read(&mut [0])),
        }
    }
}

/// Executes it. Returns only what went wrong.
fn execute(
    open: &Open,
    uid: u32,
    start: Start<'_>,
    parent: Pid,
    socket: &OwnedFd,
    leash: Option<OwnedFd>,
) -> io::Error {
    let own = open.own.iter().flat_map(|(loader, libraries)| [loader.as_fd(), libraries.as_fd()]);
    let mut kept = own.chain([open.program.as_fd(), socket.as_fd()]).chain(leash.as_ref().map(AsFd::as_fd));
    if let Err(why) = kept.try_for_each(keep) {
        return io::Error::other(why);
    }
    let path = |fd: RawFd| format!("/proc/self/fd/{fd}");
    let program = path(open.program.as_raw_fd());
    let mut command = match &open.own {
        None => Command::new(program),
        Some((loader, libraries)) => {
            let mut command = Command::new(path(loader.as_raw_fd()));
            command.arg("--library-path").arg(path(libraries.as_raw_fd())).arg(program);
            command
        }
    };
    let user = (!may_ask_for_limits()).then_some(uid);
    match (start, user) {
        (Start::WithoutMemory { folder, connections }, user) => {
            let folder = format!("/proc/{parent}/fd/{}", folder.as_raw_fd());
            command.env("LD_PRELOAD", format!("{folder}/{}", memory::LIBRARY));
            command.env(memory::MAPPINGS_VARIABLE, format!("{folder}/{}", memory::MAPPINGS));
            if connections == Connections::Refused {
                command.env(memory::LISTENERS_VARIABLE, "1");
            }
            // Before it is executed, it would be a program whose library the loader must not load.
            if let Some(user) = user {
                command.env(memory::USER_VARIABLE, user.to_string());
            }
        }
        (_, Some(user)) => {
            if let Err(error) = borrow(user) {
                return io::Error::other(format!("cannot take the task's user as the real one: {error}"));
            }
        }
        (_, None) => (),
    }
    command.arg("swrk").arg(socket.as_raw_fd().to_string()).exec()
}

/// Makes the task's user CRIU's real one, where CAP_SYS_RESOURCE is missing. What CRIU may do does not change, for that depends
/// on the effective one, which stays root.
///
/// CRIU asks for the limits of each process, and the kernel answers to that capability, or to those whose **real** user and
/// group are those of the process asked about (`check_prlimit_permission` in `kernel/sys.c`). The price: the task may send
/// signals to this CRIU, until it is stopped. It would spoil its own checkpoint, and nothing else.
fn borrow(user: u32) -> io::Result<()> {
    nix::unistd::setresgid(Gid::from_raw(user), Gid::from_raw(0), Gid::from_raw(0))?;
    Ok(nix::unistd::setresuid(Uid::from_raw(user), Uid::from_raw(0), Uid::from_raw(0))?)
}

/// Whether this process has CAP_SYS_RESOURCE.
pub(super) fn may_ask_for_limits() -> bool {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    effective & 1 << SYS_RESOURCE != 0
}
