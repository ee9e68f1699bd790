//! Making a task: its folder, control group, pipes and namespaces.

use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use grid_qos::{Cgroups, Group, Limits};
use libgrid::control::{Stdin, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::unistd::pipe2;

use super::inside::{CStrings, Inside};
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
    pub(super) terminal: Option<OwnedFd>,
}

/// Our ends of the task's standard streams.
struct Streams {
    outputs: Vec<(OwnedFd, logs::Writer)>,
    input: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// The task's ends; closed here once it runs.
struct Theirs {
    stdio: [i32; 3],
    _open: Vec<OwnedFd>,
}

/// Starts a task.
///
/// # Errors
/// One sentence that says what failed and why; nothing but the task's folder is left then.
pub(super) fn launch(launch: &Launch, cgroups: &Cgroups) -> Result<Launched, String> {
    if launch.uid == 0 {
        return Err("jobs never run as root".into());
    }
    make_folders(launch)?;
    let limits = Limits { cpu: launch.limits.cpu, memory: launch.limits.memory, pids: launch.pids };
    let name =
        launch.folder.file_name().and_then(|name| name.to_str()).ok_or("the task's folder has no name")?;
    let group = cgroups.create(name, limits).map_err(|error| error.to_string())?;
    start(launch, &group)
        .inspect_err(|_| {
            // The failure of the start is the one to tell.
            let _ = group.remove();
        })
        .map(|(init, pid, status, streams)| Launched {
            init,
            pid,
            status,
            group,
            outputs: streams.outputs,
            input: streams.input,
            terminal: streams.terminal,
        })
}

fn start(launch: &Launch, group: &Group) -> Result<(OwnedFd, libc::pid_t, OwnedFd, Streams), String> {
    let entrances = group.entrances().map_err(|error| error.to_string())?;
    let (streams, theirs) =
        open_streams(launch).map_err(|error| format!("cannot make the task's streams: {error}"))?;
    let (status, status_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|error| format!("cannot make a pipe: {error}"))?;
    let words =
        |error: std::ffi::NulError| format!("cannot pass a word with a zero byte to the program: {error}");
    let env = launch.env.iter().map(|(key, value)| CString::new(format!("{key}={value}")));
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
    let inside = (|| {
        Ok(Inside {
            programs: places(launch)?,
            argv: CStrings::new(
                launch.command.iter().map(|w| CString::new(w.as_str())).collect::<Result<_, _>>()?,
            ),
            envp: CStrings::new(env.collect::<Result<_, _>>()?),
            work: path(&launch.folder.join("work"))?,
            workdir: path(&launch.workdir)?,
            tmp: path(&launch.folder.join("tmp"))?,
            stdio: theirs.stdio,
            terminal: streams.terminal.is_some(),
            status: status_end.as_raw_fd(),
            entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
            uid: launch.uid,
        })
    })()
    .map_err(words)?;
    let (pid, init) =
        clone_init(&inside).map_err(|error| format!("cannot make the task's namespaces: {error}"))?;
    Ok((init, pid, status, streams))
}

/// Where the program may be: itself if it has a slash, else below each folder of the task's `PATH`.
fn places(launch: &Launch) -> Result<Vec<CString>, std::ffi::NulError> {
    let program = launch.command.first().map_or("", String::as_str);
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let path = launch.env.get("PATH").map_or("", String::as_str);
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| CString::new(format!("{folder}/{program}")))
        .collect()
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

fn open_streams(launch: &Launch) -> io::Result<(Streams, Theirs)> {
    let keep = |stream| logs::Writer::new(&launch.folder, stream, launch.log_limit);
    if let Some(Stdin::Terminal { rows, cols }) = launch.stdin {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None)?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        set_nonblocking(&pty.master)?;
        nix::unistd::fchown(&pty.slave, Some(launch.uid.into()), None)?;
        let slave = pty.slave.as_raw_fd();
        let ours = Streams {
            outputs: vec![(pty.master.try_clone()?, keep(Stream::Stdout))],
            input: Some(pty.master.try_clone()?),
            terminal: Some(pty.master),
        };
        return Ok((ours, Theirs { stdio: [slave; 3], _open: vec![pty.slave] }));
    }
    let (out, out_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (err, err_end) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&out)?;
    set_nonblocking(&err)?;
    let (stdin, input) = match launch.stdin {
        Some(_) => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(&write)?;
            (read, Some(write))
        }
        None => (File::open("/dev/null")?.into(), None),
    };
    let stdio = [stdin.as_raw_fd(), out_end.as_raw_fd(), err_end.as_raw_fd()];
    let outputs = vec![(out, keep(Stream::Stdout)), (err, keep(Stream::Stderr))];
    Ok((Streams { outputs, input, terminal: None }, Theirs { stdio, _open: vec![stdin, out_end, err_end] }))
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Clones this process into new namespaces; the child is the task's init and never comes back.
fn clone_init(inside: &Inside) -> io::Result<(libc::pid_t, OwnedFd)> {
    let mut pidfd: i32 = -1;
    let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // SAFETY: zeros are valid for every field of clone_args.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has its own copy of this memory, and this process has one thread, so
    // the copy is consistent; `args` lives for the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => {
            // SAFETY: this is the child of such a clone.
            unsafe { inside.init() }
        }
        pid if pid > 0 => {
            // SAFETY: the kernel opened this descriptor for us.
            Ok((pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}
