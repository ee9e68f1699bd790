//! Making a task: its folder, control group, pipes and namespaces.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use grid_checkpoint::Description;
use grid_checkpoint::order::External;
use grid_qos::{Cgroups, Group, Limits};
use libgrid::control::{Stdin, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open as open_path};
use nix::pty::{Winsize, openpty};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use super::calls::Filter;
use super::line;
use super::network::{Network, Node};
use super::start::{self, Init};
use crate::logs;
use crate::protocol::Launch;

/// A task that has been started.
pub(super) struct Launched {
    pub(super) init: OwnedFd,
    pub(super) pid: libc::pid_t,
    pub(super) group: Group,
    /// The reading end of the status pipe.
    pub(super) status: OwnedFd,
    /// The reading ends of the output, with where it is kept. A terminal has one.
    pub(super) outputs: Vec<(OwnedFd, logs::Writer)>,
    /// The writing end of the input.
    pub(super) input: Option<OwnedFd>,
    /// The pipe of its input, open for nothing but its name (`O_PATH`): it is no reader that a writer would count.
    pub(super) unread: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    /// What of its standard streams comes from us.
    pub(super) external: Vec<External>,
    /// What a restore takes, until it is started.
    pub(super) restoring: Option<Restoring>,
    /// Its own network, if it has one.
    pub(super) network: Option<Network>,
    /// The listener for its calls, of one that was started.
    pub(super) listener: Option<OwnedFd>,
}

/// The descriptors that a restore takes.
pub(super) struct Restoring {
    /// Ends when init has made its mounts.
    pub(super) mark: OwnedFd,
    /// The task's ends of its streams, in the order of [`Launched::external`].
    pub(super) streams: Vec<OwnedFd>,
    /// Of its control groups.
    pub(super) entrances: Vec<File>,
}

/// Our ends of the task's standard streams.
struct Streams {
    outputs: Vec<(OwnedFd, logs::Writer)>,
    input: Option<OwnedFd>,
    unread: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// The task's ends; closed here once it runs.
struct Theirs {
    stdio: [i32; 3],
    mode: u32,
    external: Vec<External>,
    open: Vec<OwnedFd>,
}

/// Starts a task.
///
/// # Errors
/// One sentence that says what failed and why; nothing but the task's folder is left then.
pub(super) fn launch(
    launch: &Launch,
    cgroups: &Cgroups,
    program: &Path,
    node: &mut Node,
) -> Result<Launched, String> {
    if launch.uid == 0 {
        return Err("jobs never run as root".into());
    }
    let mut network = node.network(launch)?;
    make_folders(launch)?;
    let limits = Limits { cpu: launch.limits.cpu, memory: launch.limits.memory, pids: launch.pids };
    let name =
        launch.folder.file_name().and_then(|name| name.to_str()).ok_or("the task's folder has no name")?;
    let ready = if launch.group_ready { cgroups.reuse(name).ok() } else { None };
    let group = ready.map_or_else(|| cgroups.create(name, limits), Ok).map_err(|error| error.to_string())?;
    if launch.hold {
        // CRIU makes it as fast as it can, and nothing of it runs before its limit is back. With the limit it takes longer.
        let _ = group.limit_cpu(None);
    }
    if let Some(network) = network.as_mut().filter(|_| launch.restore.is_none()) {
        // The program finds it open.
        network.open();
    }
    match begin(launch, &group, program, network.as_ref().map(Network::space)) {
        Ok(started) => Ok(Launched {
            init: started.init,
            pid: started.pid,
            status: started.status,
            group,
            outputs: started.streams.outputs,
            input: started.streams.input,
            unread: started.streams.unread,
            terminal: started.streams.terminal,
            external: started.external,
            restoring: started.restoring,
            network,
            listener: started.listener,
        }),
        Err(why) => {
            // The failure of the start is the one to tell.
            let _ = group.remove();
            Err(why)
        }
    }
}

struct Started {
    init: OwnedFd,
    pid: libc::pid_t,
    status: OwnedFd,
    streams: Streams,
    external: Vec<External>,
    restoring: Option<Restoring>,
    listener: Option<OwnedFd>,
}

fn begin(launch: &Launch, group: &Group, program: &Path, network: Option<RawFd>) -> Result<Started, String> {
    let entrances = group.entrances().map_err(|error| error.to_string())?;
    let (streams, theirs) =
        open_streams(launch).map_err(|error| format!("cannot make the task's streams: {error}"))?;
    let pipe =
        |flags| pipe2(OFlag::O_CLOEXEC | flags).map_err(|error| format!("cannot make a pipe: {error}"));
    let (status, status_end) = pipe(OFlag::O_NONBLOCK)?;
    let init = |stdio, mode, entrances: &[File], filter| {
        Init::new(program, launch, stdio, mode, &status_end, entrances, network)
            .and_then(|init| init.filtered(filter).start())
            .map_err(|error| format!("cannot start the task's init: {error}"))
    };
    let ((pid, init, listener), restoring) = if launch.restore.is_none() {
        let filter = filter(launch)?;
        (init(theirs.stdio, theirs.mode, &entrances, filter)?, None)
    } else {
        let (mark, end) = pipe(OFlag::empty())?;
        // Its processes are no children of this one.
        let started = init([end.as_raw_fd(); 3], start::RESTORED, &[], None)?;
        (started, Some(Restoring { mark, streams: theirs.open, entrances }))
    };
    Ok(Started { init, pid, status, streams, external: theirs.external, restoring, listener })
}

/// What gives a task the grid's system call, if it asked for it.
///
/// # Errors
/// One sentence.
pub(super) fn filter(launch: &Launch) -> Result<Option<Filter>, String> {
    let filter = launch.calls.then(Filter::new).transpose();
    filter.map_err(|error| format!("cannot prepare the grid's system call: {error}"))
}

fn make_folders(launch: &Launch) -> Result<(), String> {
    let own = |path: &Path, mode| match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(true),
        // Staging made it before.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(format!("cannot make {}: {error}", path.display())),
    };
    // The task's own files are deeper; its user must get there to pack and unpack them.
    own(&launch.folder, 0o711)?;
    for part in ["work", "tmp"] {
        let path = launch.folder.join(part);
        if own(&path, 0o700)? {
            chown(&path, Some(launch.uid), Some(launch.uid))
                .map_err(|error| format!("cannot give {} to the task: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Where a task's output is kept, that has printed so much before.
pub(super) fn writers(launch: &Launch, printed: [u64; 2]) -> io::Result<[logs::Writer; 2]> {
    let [stdout, stderr] = printed;
    let keep = |stream, printed| logs::Writer::resume(&launch.folder, stream, launch.log_limit, printed);
    Ok([keep(Stream::Stdout, stdout)?, keep(Stream::Stderr, stderr)?])
}

fn open_streams(launch: &Launch) -> io::Result<(Streams, Theirs)> {
    // A checkpoint that cannot be read is told by who restores it. One that is not there yet is looked at when it is.
    let folder = launch.restore.as_deref().filter(|_| !launch.ahead);
    let before = folder.and_then(|folder| Description::read(folder).ok());
    let streams = before.map(|description| description.streams).unwrap_or_default();
    let [stdout, stderr] = writers(launch, streams.printed)?;
    if let Some(Stdin::Terminal { rows, cols }) = launch.stdin {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        set_nonblocking(&pty.master)?;
        nix::unistd::fchown(&pty.slave, Some(launch.uid.into()), None)?;
        if let Some(line) = &streams.line {
            line::put_back(&pty.slave, line)?;
        }
        let slave = pty.slave.as_raw_fd();
        let stat = nix::sys::stat::fstat(&pty.slave)?;
        let external = vec![External::Terminal { device: stat.st_rdev, filesystem: stat.st_dev }];
        let ours = Streams {
            outputs: vec![(pty.master.try_clone()?, stdout)],
            input: Some(pty.master.try_clone()?),
            unread: None,
            terminal: Some(pty.master),
        };
        let open = vec![pty.slave];
        return Ok((ours, Theirs { stdio: [slave; 3], mode: start::TERMINAL, external, open }));
    }
    let (out, out_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (err, err_end) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&out)?;
    set_nonblocking(&err)?;
    let mut open = vec![out_end, err_end];
    let mut stdio = [open[0].as_raw_fd(), open[0].as_raw_fd(), open[1].as_raw_fd()];
    let (mut input, mut unread) = (None, None);
    let mut mode = start::NO_INPUT;
    if launch.stdin.is_some() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&write)?;
        let path = format!("/proc/self/fd/{}", write.as_raw_fd());
        unread = Some(open_path(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?);
        (stdio[0], mode, input) = (read.as_raw_fd(), 0, Some(write));
        open.insert(0, read);
    }
    let external = open
        .iter()
        .map(|end| Ok(External::Pipe { inode: nix::sys::stat::fstat(end)?.st_ino }))
        .collect::<io::Result<_>>()?;
    let outputs = vec![(out, stdout), (err, stderr)];
    Ok((Streams { outputs, input, unread, terminal: None }, Theirs { stdio, mode, external, open }))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
