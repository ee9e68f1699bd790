//! After a start: finds what an earlier agent's shims kept, and sweeps up what none keeps.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grid_run::protocol::Kept;
use grid_run::spawn::Shims;
use grid_run::tree;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Pid;
use tracing::warn;

use super::shim;
use crate::config::Config;

/// How long the tasks of a shim that was ended may take to die, before the agent goes on without it.
const DYING: Duration = Duration::from_secs(2);

/// The folders and programs that the runner needs are not as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunnerError {
    #[error("cannot use {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("there is no {}: install it beside gridosd", path.display())]
    NoShim { path: PathBuf },
    #[error(transparent)]
    Cgroups(#[from] grid_qos::CgroupError),
}

/// What the shims of an earlier agent kept.
pub(crate) struct Found {
    pub(super) shims: Vec<shim::Connected>,
    pub(crate) kept: Vec<Kept>,
    /// The shims' processes.
    pub(crate) pids: Vec<u32>,
}

/// Makes the folders, finds the shims of an earlier agent, and sweeps up what no shim keeps.
pub(crate) async fn find(config: &Config) -> Result<(Shims, Found), RunnerError> {
    let folder = |path: &Path, mode: u32| {
        let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        let made = made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
        made.map_err(|source| RunnerError::Folder { path: path.to_owned(), source })
    };
    for path in [&config.logs_dir(), &config.shims_dir()] {
        folder(path, 0o700)?;
    }
    let checkpoints = config.checkpoints_dir();
    super::ahead::sweep(&checkpoints).map_err(|source| RunnerError::Folder { path: checkpoints, source })?;
    // Below these, processes of users find what is theirs.
    let passed = [&config.state_dir, &config.tasks_dir(), &config.spool_dir(), &config.inputs_dir()];
    for path in passed.into_iter().chain([&config.runtime_dir, &config.workdir()]) {
        folder(path, 0o711)?;
    }
    let program = shim_program();
    if !program.exists() {
        return Err(RunnerError::NoShim { path: program });
    }
    let shims = Shims {
        program,
        folder: config.shims_dir(),
        cgroup_root: config.cgroup_root.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
    };
    let mut found = Found { shims: Vec::new(), kept: Vec::new(), pids: Vec::new() };
    let sockets = shims.find().map_err(|source| RunnerError::Folder { path: config.shims_dir(), source })?;
    for (socket, stream) in sockets {
        // Of a connected socket: who listens on it.
        let listener = getsockopt(&stream, PeerCredentials).map(|peer| Pid::from_raw(peer.pid()));
        match shim::adopt(stream).await {
            Ok(connected) => {
                found.kept.extend(connected.kept.iter().cloned());
                found.shims.push(connected);
                found.pids.extend(listener.ok().and_then(|pid| u32::try_from(pid.as_raw()).ok()));
            }
            Err(error) => {
                warn!(socket = %socket.display(), %error, "a shim does not answer: it is ended, with its tasks");
                // Its tasks count as lost and start again: they must not run on.
                if let Err(error) = listener.and_then(|pid| kill(pid, Signal::SIGKILL)) {
                    warn!(socket = %socket.display(), %error, "a shim cannot be ended");
                }
            }
        }
    }
    sweep(config, &found.kept)?;
    Ok((shims, found))
}

/// Removes folders and control groups of runs that no shim keeps: the machine, or a shim, went down with them.
fn sweep(config: &Config, kept: &[Kept]) -> Result<(), RunnerError> {
    let names: HashSet<_> = kept.iter().filter_map(|kept| kept.folder.file_name()?.to_str()).collect();
    let groups = grid_qos::Cgroups::open(&config.cgroup_root, &config.cgroup_parent)?;
    let patience = Instant::now() + DYING;
    for name in groups.names()?.iter().filter(|name| !names.contains(name.as_str())) {
        // The tasks of a shim that was just ended are dying: nothing may start again before they are dead.
        while let Err(error) = groups.group(name).remove() {
            if Instant::now() > patience {
                warn!(group = name, %error, "a control group stays");
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let tasks = config.tasks_dir();
    let entries = fs::read_dir(&tasks).map_err(|source| RunnerError::Folder { path: tasks, source })?;
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_none_or(|name| !names.contains(name)) {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Removes something to which files may come for a moment: who brings those of a task that was given up is just being ended.
pub(super) fn insist<T>(remove: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const TRIES: u32 = 20;
    let mut tries = 1;
    loop {
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            removed => return removed,
        }
    }
}

pub(super) fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => insist(|| tree::remove(path)),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "cannot be removed");
    }
}

/// `gridos-shim` lies beside this program.
pub(crate) fn shim_program() -> PathBuf {
    crate::machine::program("gridos-shim")
}
