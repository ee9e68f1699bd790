//! Putting a job's inputs into the working directories of its tasks.
//!
//! The archive is in the home node's spool. Another node fetches it once for all tasks of the job ([`crate::staging`]),
//! and drops it with the last of them. It is unpacked as the task's own user.
//!
//! ```text
//!   inputs/j2.1/           root's, but while it is fetched: then the user's of the task that needs it first
//!               archive
//!               .archive.ID.gridos, its journal       what came of it
//! ```
//!
//! What came in part outlives the tasks that wanted it, and the agent, for [`KEPT`]: a task whose node was cut off, or
//! whose agent was killed, is often started here again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grid_run::protocol::Launch;
use grid_run::spawn::Shims;
use libgrid::ids::{JobId, NodeId};
use libgrid::user::User;
use tokio::process::Command;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::AbortHandle;
use tracing::warn;

use super::{Query, remove};
use crate::config::Config;
use crate::core::Core;
use crate::spool;
use crate::staging::{ARCHIVE, StageError, Staging};

/// How long what nobody needs is kept, in case that somebody does again.
const KEPT: Duration = Duration::from_secs(120);

/// How long to wait for a home node that does not answer. Its tasks are frozen meanwhile, and these wait with them.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the archive is, or why it is not.
type Fetched = Arc<OnceCell<Result<PathBuf, String>>>;

pub(super) struct Inputs {
    source: Source,
    shims: Shims,
    queries: mpsc::UnboundedSender<Query>,
    fetched: HashMap<JobId, Fetched>,
    /// Numbers what is being removed.
    removed: u64,
}

/// Where archives come from.
#[derive(Clone)]
struct Source {
    config: Arc<Config>,
    me: NodeId,
    core: Core,
    staging: Staging,
}

impl Inputs {
    pub(super) fn new(
        config: Arc<Config>,
        me: NodeId,
        core: Core,
        staging: Staging,
        shims: Shims,
        queries: mpsc::UnboundedSender<Query>,
    ) -> Self {
        let source = Source { config, me, core, staging };
        let inputs = Self { source, shims, queries, fetched: HashMap::new(), removed: 0 };
        // What an earlier agent left.
        inputs.sweep_later();
        inputs
    }

    /// Prepares the task's folder; [`Query::Staged`] follows.
    pub(super) fn stage(&mut self, launch: Box<Launch>, done: mpsc::UnboundedSender<Query>) -> AbortHandle {
        let run = launch.run;
        let fetched = self.fetched.entry(run.task.job).or_default().clone();
        let (source, shims) = (self.source.clone(), self.shims.clone());
        let staging = tokio::spawn(async move {
            let staged = async {
                let archive =
                    fetched.get_or_init(|| source.archive(run.task.job, launch.uid)).await.clone()?;
                unpack(&shims, &launch, &archive).await.map(|()| launch)
            };
            let result = staged.await.map_err(|why| format!("the inputs cannot be put in place: {why}"));
            // The runner is gone only when the agent stops.
            let _ = done.send(Query::Staged { run, result });
        });
        staging.abort_handle()
    }

    /// Drops the archive of a job whose last task here was forgotten; what came in part some time later.
    pub(super) fn release(&mut self, job: JobId, in_use: bool) {
        if in_use {
            return;
        }
        let Some(fetched) = self.fetched.remove(&job) else { return };
        if job.home == self.source.me {
            return;
        }
        match fetched.get() {
            Some(_) => self.drop_folder(&self.source.folder(job)),
            None => self.sweep_later(),
        }
    }

    fn sweep_later(&self) {
        let queries = self.queries.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            // The runner is gone only when the agent stops.
            let _ = queries.send(Query::SweepInputs);
        });
    }

    /// Drops what no task of this agent's wanted for some time.
    pub(super) fn sweep(&mut self) {
        let kept: Vec<PathBuf> = self.fetched.keys().map(|job| self.source.folder(*job)).collect();
        let entries = fs::read_dir(self.source.config.inputs_dir()).into_iter().flatten().flatten();
        let old = |path: &PathBuf| {
            let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
            changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= KEPT))
        };
        let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        for path in paths.iter().filter(|path| !kept.contains(path) && old(path)) {
            self.drop_folder(path);
        }
    }

    /// Removes a folder beside the work of this thread; its name is free at once.
    fn drop_folder(&mut self, folder: &Path) {
        self.removed += 1;
        let aside = self.source.config.inputs_dir().join(format!(".{}", self.removed));
        match fs::rename(folder, &aside) {
            Ok(()) => drop(tokio::task::spawn_blocking(move || remove(&aside))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => warn!(path = %folder.display(), %error, "cannot be removed"),
        }
    }
}

impl Source {
    fn folder(&self, job: JobId) -> PathBuf {
        self.config.inputs_dir().join(job.to_string())
    }

    async fn archive(&self, job: JobId, uid: u32) -> Result<PathBuf, String> {
        if job.home == self.me {
            return spooled(&self.config, &self.core, job).await;
        }
        let folder = self.folder(job);
        let archive = folder.join(ARCHIVE);
        if archive.exists() {
            // An earlier agent fetched it: it has its name only since it is whole.
            return Ok(archive);
        }
        let cannot = |error: io::Error| format!("cannot use {}: {error}", folder.display());
        let lent = Lent::to(&folder, uid).map_err(cannot)?;
        loop {
            match self.staging.inputs(job, &folder, User::of_task(uid)).await {
                Ok(archive) => {
                    drop(lent);
                    return Ok(archive);
                }
                // If it stays away, the run is taken from us some time.
                Err(StageError::Unreachable(_)) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    drop(lent);
                    remove(&folder);
                    return Err(error.to_string());
                }
            }
        }
    }
}

/// A folder that is a task's user's for some time, and then root's again: nothing that the user runs later gets at it.
struct Lent<'a>(&'a Path);

impl<'a> Lent<'a> {
    fn to(folder: &'a Path, uid: u32) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // It is root's now: what another user left in it changes no more.
        let lent = Self(folder);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            match meta.is_file() && meta.nlink() == 1 {
                true => lchown(&path, Some(uid), Some(uid))?,
                false => remove(&path),
            }
        }
        chown(folder, Some(uid), Some(uid))?;
        Ok(lent)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Err(error) = chown(self.0, Some(0), Some(0)) {
            warn!(path = %self.0.display(), %error, "cannot be taken back");
        }
    }
}

/// The archive in this node's spool.
pub(crate) async fn spooled(config: &Config, core: &Core, job: JobId) -> Result<PathBuf, String> {
    let number = core
        .look(move |view| view.home.record(job).and_then(|record| record.origin.inputs))
        .await
        .map_err(|error| error.to_string())?;
    let number = number.ok_or_else(|| format!("{job} has no inputs"))?;
    Ok(spool::path(config, number))
}

async fn unpack(shims: &Shims, launch: &Launch, archive: &Path) -> Result<(), String> {
    let work = launch.folder.join("work");
    make_work(launch, &work).map_err(|error| format!("cannot make {}: {error}", work.display()))?;
    let archive = open(archive).map_err(|error| format!("cannot read {}: {error}", archive.display()))?;
    let mut command = shims.unpack(&User::of_task(launch.uid), &work, &[]);
    command.stdin(archive).stderr(Stdio::piped());
    let output = Command::from(command).kill_on_drop(true).output().await;
    let output = output.map_err(|error| format!("cannot start {}: {error}", shims.program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(said(&output.stderr))
}

/// Opens an archive that a process of a user wrote: the file itself, and nothing that it leads to.
fn open(path: &Path) -> io::Result<fs::File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let meta = file.metadata()?;
    match meta.is_file() && meta.nlink() == 1 {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file")),
    }
}

/// What a helper said last, for a sentence.
pub(crate) fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.trim().lines().last().map_or_else(|| "it was ended".to_owned(), str::to_owned)
}

fn make_work(launch: &Launch, work: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(&launch.folder)?;
    fs::set_permissions(&launch.folder, fs::Permissions::from_mode(0o711))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(work)?;
    chown(work, Some(launch.uid), Some(launch.uid))
}
