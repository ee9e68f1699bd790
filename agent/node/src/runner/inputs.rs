//! Putting a job's inputs into the working directories of its tasks.
//!
//! The archive is in the home node's spool. Another node fetches it once for all tasks of the job, and drops it
//! with the last of them. It is unpacked as the task's own user.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use grid_run::protocol::Launch;
use grid_run::spawn::Shims;
use libgrid::control::Chunk;
use libgrid::ids::{JobId, NodeId};
use libgrid::user::User;
use libgrid::wire::stream;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::AbortHandle;

use super::Query;
use crate::config::Config;
use crate::core::Core;
use crate::peers::{Peers, Request};

/// How often a broken fetch is tried again.
const TRIES: u32 = 3;

/// Where the archive is, or why it is not.
type Fetched = Arc<OnceCell<Result<PathBuf, String>>>;

pub(super) struct Inputs {
    source: Source,
    shims: Shims,
    fetched: HashMap<JobId, Fetched>,
}

/// Where archives come from.
#[derive(Clone)]
struct Source {
    config: Arc<Config>,
    me: NodeId,
    core: Core,
    peers: Peers,
}

impl Inputs {
    pub(super) fn new(config: Arc<Config>, me: NodeId, core: Core, peers: Peers, shims: Shims) -> Self {
        Self { source: Source { config, me, core, peers }, shims, fetched: HashMap::new() }
    }

    /// Prepares the task's folder; [`Query::Staged`] follows.
    pub(super) fn stage(&mut self, launch: Box<Launch>, done: mpsc::UnboundedSender<Query>) -> AbortHandle {
        let run = launch.run;
        let fetched = self.fetched.entry(run.task.job).or_default().clone();
        let (source, shims) = (self.source.clone(), self.shims.clone());
        let staging = tokio::spawn(async move {
            let staged = async {
                let archive = fetched.get_or_init(|| source.archive(run.task.job)).await.clone()?;
                unpack(&shims, &launch, &archive).await.map(|()| launch)
            };
            let result = staged.await.map_err(|why| format!("the inputs cannot be put in place: {why}"));
            // The runner is gone only when the agent stops.
            let _ = done.send(Query::Staged { run, result });
        });
        staging.abort_handle()
    }

    /// Drops the archive of a job whose last task here was forgotten.
    pub(super) fn release(&mut self, job: JobId, in_use: bool) {
        if in_use {
            return;
        }
        if let Some(fetched) = self.fetched.remove(&job)
            && job.home != self.source.me
            && let Some(Ok(path)) = fetched.get()
        {
            let path = path.clone();
            tokio::task::spawn_blocking(move || fs::remove_file(path));
        }
    }
}

impl Source {
    async fn archive(&self, job: JobId) -> Result<PathBuf, String> {
        if job.home == self.me {
            return spooled(&self.config, &self.core, job).await;
        }
        let target = self.config.inputs_dir().join(format!("{job}.tar"));
        let mut tries = 0;
        loop {
            tries += 1;
            match self.fetch(job, &target).await {
                Ok(()) => return Ok(target),
                Err(why) if tries == TRIES => {
                    let _ = fs::remove_file(&target);
                    return Err(why);
                }
                Err(_) => (),
            }
        }
    }

    async fn fetch(&self, job: JobId, target: &Path) -> Result<(), String> {
        let cannot = |error: io::Error| format!("cannot write {}: {error}", target.display());
        let mut from =
            self.peers.ask(job.home, &Request::Inputs(job)).await.map_err(|error| error.to_string())?;
        let mut file = tokio::fs::File::create(target).await.map_err(cannot)?;
        loop {
            let Chunk(bytes) = stream::read(&mut from)
                .await
                .map_err(|error| format!("node {} stopped sending them: {error}", job.home))?;
            if bytes.is_empty() {
                return file.flush().await.map_err(cannot);
            }
            file.write_all(&bytes).await.map_err(cannot)?;
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
    Ok(config.spool_dir().join(format!("{number}.tar")))
}

async fn unpack(shims: &Shims, launch: &Launch, archive: &Path) -> Result<(), String> {
    let work = launch.folder.join("work");
    make_work(launch, &work).map_err(|error| format!("cannot make {}: {error}", work.display()))?;
    let archive =
        fs::File::open(archive).map_err(|error| format!("cannot read {}: {error}", archive.display()))?;
    let mut command = shims.unpack(&User::of_task(launch.uid), &work, &[]);
    command.stdin(archive).stderr(Stdio::piped());
    let output = Command::from(command).kill_on_drop(true).output().await;
    let output = output.map_err(|error| format!("cannot start {}: {error}", shims.program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(said(&output.stderr))
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
