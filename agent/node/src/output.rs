//! Output and results of runs: read where they are, bring home, keep.
//!
//! ```text
//!   host: tasks/s5/{stdout.*}  ── Output ──▶  home: logs/j2.1/7/{stdout.*}
//!         tasks/s5/work        ── Stage ───▶        the user's folder (as that user), see crate::staging
//! ```
//!
//! Segments keep their names on the way, so offsets mean the same bytes before and after.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use grid_jobs::home::{self, Action, Collected};
use grid_jobs::record::Origin;
use grid_run::logs::{self, Reader};
use grid_run::spawn::{MISSED, Shims};
use libgrid::control::{MAX_CHUNK, Stream};
use libgrid::ids::{JobId, NodeId, Run, TaskId};
use libgrid::user::User;
use libgrid::wire::stream;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

use crate::config::Config;
use crate::core::Core;
use crate::fates;
use crate::peers::{Peers, Piece, Request};
use crate::runner::inputs::said;
use crate::runner::{Following, Query, Used};
use crate::spool;
use crate::staging::{StageError, Staging};

/// Both streams, in the order of the offsets in [`Request::Logs`].
pub(crate) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// How many runs are brought home at once.
const AT_ONCE: usize = 16;

/// How many of those that could not be before are tried again at once; for how many jobs inputs are gathered, and of how many runs
/// parts of results dropped.
const AGAIN_AT_ONCE: usize = 4;
const GATHERS: usize = 4;
const ABANDONS: usize = 4;

/// Parts of a stream at most, with gaps between them: a task that went on from an older checkpoint may leave one.
const SEGMENTS: u32 = 64;

/// How long a helper of this node may do nothing: a file system may hang, and whoever it runs as may stop it. At its end it may
/// have much to write.
const IDLE: Duration = Duration::from_secs(300);

/// How long a node may be silent while it sends what a run printed.
const SILENCE: Duration = Duration::from_secs(10);

/// Reads and brings home.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) config: Arc<Config>,
    pub(crate) me: NodeId,
    pub(crate) core: Core,
    pub(crate) peers: Peers,
    pub(crate) staging: Staging,
    pub(crate) shims: Shims,
    pub(crate) queries: mpsc::UnboundedSender<Query>,
}

impl Output {
    /// Where the output of a task that is done is kept.
    pub(crate) fn kept(&self, task: TaskId) -> PathBuf {
        self.job_logs(task.job).join(task.index.to_string())
    }

    fn job_logs(&self, job: JobId) -> PathBuf {
        self.config.logs_dir().join(job.to_string())
    }

    /// The run's folder here, if the run is here.
    pub(crate) async fn follow(&self, run: Run) -> Option<Following> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Follow { run, reply }).ok()?;
        answer.await.ok().flatten()
    }

    /// What runs that are here have used so far.
    pub(crate) async fn usage(&self, runs: Vec<Run>) -> Vec<Used> {
        let (reply, answer) = oneshot::channel();
        let asked = self.queries.send(Query::Usage { runs, reply });
        match asked {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    // === bringing home ===

    /// Carries out [`Action::Collect`], [`Action::Spent`] and [`Action::Forget`] of the home.
    pub(crate) async fn collect_all(self, mut actions: mpsc::UnboundedReceiver<Action>) {
        let [places, again, gathers, abandons] =
            [AT_ONCE, AGAIN_AT_ONCE, GATHERS, ABANDONS].map(|many| Arc::new(Semaphore::new(many)));
        while let Some(action) = actions.recv().await {
            match action {
                Action::Collect { run, node, results, origin, again: is_again } => {
                    let (output, places) = (self.clone(), if is_again { &again } else { &places }.clone());
                    tokio::spawn(async move {
                        let _place = places.acquire().await;
                        let result = output.collect(run, node, results, &origin).await;
                        debug!(%run, ?result, "collected");
                        output.core.home(home::Event::Collected { run, result });
                    });
                }
                Action::Spent(inputs) => {
                    // What stays after a failure is swept up at the next start.
                    let archive = spool::path(&self.config, inputs);
                    tokio::task::spawn_blocking(move || fs::remove_file(archive));
                }
                Action::Forget(job) => {
                    let logs = self.job_logs(job);
                    tokio::task::spawn_blocking(move || fs::remove_dir_all(logs));
                }
                Action::Export { task, number, from, to } => {
                    let _ = self.queries.send(Query::Export { task, number, from, to });
                }
                Action::Cut { task, number } => {
                    let _ = self.queries.send(Query::Cut { task, number });
                }
                Action::Abandon { run, origin } => {
                    let (output, places) = (self.clone(), abandons.clone());
                    tokio::spawn(async move {
                        let _place = places.acquire().await;
                        let user = User::of_machine(origin.uid, origin.gid);
                        output.staging.abandon(run, &origin.folder, user).await;
                    });
                }
                Action::Gather { job, origin, paths } => {
                    let (output, places) = (self.clone(), gathers.clone());
                    tokio::spawn(async move {
                        let _place = places.acquire().await;
                        let inputs = spool::gather(&output.config, &output.shims, &origin, &paths).await;
                        output.core.home(home::Event::Gathered { job, inputs });
                    });
                }
                Action::AskFates { home, jobs } => {
                    let output = self.clone();
                    tokio::spawn(async move { fates::learn(&output.core, &output.peers, home, jobs).await });
                }
                // The core keeps the others.
                _ => (),
            }
        }
    }

    async fn collect(
        &self,
        run: Run,
        node: NodeId,
        results: Option<Vec<String>>,
        origin: &Origin,
    ) -> Collected {
        if node == self.me {
            return self.collect_here(run, results, origin).await;
        }
        // The output first: it is small, and results that cannot be had are told when it is here.
        let missed = match self.fetch_output(run, node).await {
            Collected::Whole => None,
            Collected::Missed(why) => Some(why),
            other => return other,
        };
        match (self.fetch_results(run, node, results, origin).await, missed) {
            (Collected::Whole, Some(why)) => Collected::Missed(why),
            (Collected::Missed(results), Some(why)) => Collected::Missed(format!("{why}; {results}")),
            (results, _) => results,
        }
    }

    async fn fetch_output(&self, run: Run, node: NodeId) -> Collected {
        let Ok(mut from) = self.peers.ask(node, &Request::Output(run)).await else {
            return Collected::Unreachable;
        };
        let job = run.task.job;
        let record = self.core.look(move |view| view.home.record(job)).await;
        let Some(limit) = record.ok().flatten().map(|record| record.spec.log_limit.0) else {
            return Collected::Unreachable;
        };
        let mut keeper = Keeper::new(self.job_logs(job).join(format!(".{}", run.task.index)), limit);
        loop {
            let piece = match tokio::time::timeout(SILENCE, stream::read(&mut from)).await {
                Ok(Ok(piece)) => piece,
                _ => return Collected::Unreachable,
            };
            let kept = match piece {
                Piece::Output { stream, offset, bytes } => keeper.keep(stream, offset, &bytes),
                Piece::End => {
                    let kept = keeper.finish(&self.kept(run.task));
                    return kept.map_or_else(|not_kept| not_kept, |()| Collected::Whole);
                }
                // Another try would end in the same way.
                Piece::Failed(why) => return Collected::Missed(why),
            };
            if let Err(not_kept) = kept {
                return not_kept;
            }
        }
    }

    async fn fetch_results(
        &self,
        run: Run,
        node: NodeId,
        patterns: Option<Vec<String>>,
        origin: &Origin,
    ) -> Collected {
        let Some(patterns) = patterns else { return Collected::Whole };
        let user = User::of_machine(origin.uid, origin.gid);
        match self.staging.results(run, node, patterns, &origin.folder, user).await {
            Ok(missed) => complete(missed),
            Err(StageError::Unreachable(_)) => Collected::Unreachable,
            Err(error) => {
                let folder = origin.folder.display();
                Collected::Failed(format!("its results cannot be brought to {folder}: {error}"))
            }
        }
    }

    async fn collect_here(&self, run: Run, results: Option<Vec<String>>, origin: &Origin) -> Collected {
        let Some(following) = self.follow(run).await else {
            // It was ended before it had a place.
            return Collected::Missed("what it left is not on this node any more".into());
        };
        let delivered = match results {
            Some(patterns) => self.deliver(&following, &patterns, origin).await,
            None => Ok(None),
        };
        // The output last: as long as the run is not done, it is read where it ran.
        let delivered = delivered.and_then(|missed| {
            let moved = move_logs(&following.folder, &self.kept(run.task));
            moved.map(|()| missed).map_err(|error| format!("its output cannot be kept: {error}"))
        });
        delivered.map_or_else(Collected::Failed, complete)
    }

    /// Brings results of a run that was here: what is left out.
    async fn deliver(
        &self,
        following: &Following,
        patterns: &[String],
        origin: &Origin,
    ) -> Result<Option<String>, String> {
        let mut pack = self.pack(following, patterns)?;
        let mut delivery = Delivery::start(&self.shims, origin, patterns)?;
        let mut from = pack.stdout.take().ok_or("no pipe to the packer")?;
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            let read = in_time(from.read(&mut buffer)).await?.map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            in_time(delivery.write(&buffer[..read])).await??;
        }
        let packed = in_time(ended(pack, "packing the results failed")).await?;
        in_time(delivery.finish()).await??;
        packed
    }

    fn pack(&self, following: &Following, patterns: &[String]) -> Result<Child, String> {
        let work = following.folder.join("work");
        let mut command = self.shims.pack(&User::of_task(following.uid), &work, patterns);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = Command::from(command).kill_on_drop(true).spawn();
        child.map_err(|error| format!("cannot start {}: {error}", self.shims.program.display()))
    }

    // === for other nodes ===

    /// Answers [`Request::Output`].
    pub(crate) async fn send_output<W: AsyncWrite + Unpin>(
        &self,
        run: Run,
        to: &mut W,
    ) -> Result<(), libgrid::wire::WireError> {
        let Some(following) = self.follow(run).await else {
            return stream::write(to, &Piece::Failed(format!("{run} is not on this node any more"))).await;
        };
        for stream in STREAMS {
            let mut reader = Reader::new(&following.folder, stream);
            loop {
                match reader.read(MAX_CHUNK) {
                    Ok((_, bytes)) if bytes.is_empty() => break,
                    Ok((offset, bytes)) => {
                        stream::write(to, &Piece::Output { stream, offset, bytes }).await?
                    }
                    Err(error) => {
                        let why = format!("its output cannot be read: {error}");
                        return stream::write(to, &Piece::Failed(why)).await;
                    }
                }
            }
        }
        stream::write(to, &Piece::End).await
    }

    /// Sends what a run that is here printed, from these offsets on; with `follow` until it ends. Nothing more
    /// comes when it is not here.
    pub(crate) async fn send_logs<W: AsyncWrite + Unpin>(
        &self,
        run: Run,
        mut from: [u64; 2],
        follow: bool,
        to: &mut W,
    ) -> Result<(), libgrid::wire::WireError> {
        let Some(mut following) = self.follow(run).await else {
            return stream::write(to, &Piece::End).await;
        };
        loop {
            let ended = following.progress.borrow_and_update().ended;
            for (stream, offset) in STREAMS.into_iter().zip(&mut from) {
                send_stored(&following.folder, stream, offset, to).await?;
            }
            to.flush().await?;
            if ended || !follow || following.progress.changed().await.is_err() {
                return stream::write(to, &Piece::End).await;
            }
        }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let late = |_| format!("what brings its results home did nothing for {IDLE:?}");
    tokio::time::timeout(IDLE, work).await.map_err(late)
}

/// Sends what a folder holds of a stream from `offset` on, and moves the offset.
pub(crate) async fn send_stored<W: AsyncWrite + Unpin>(
    folder: &Path,
    stream: Stream,
    offset: &mut u64,
    to: &mut W,
) -> Result<(), libgrid::wire::WireError> {
    let mut reader = Reader::at(folder, stream, *offset);
    loop {
        let (at, bytes) = reader.read(MAX_CHUNK)?;
        if bytes.is_empty() {
            return Ok(());
        }
        *offset = at + bytes.len() as u64;
        stream::write(to, &Piece::Output { stream, offset: at, bytes }).await?;
    }
}

/// Moves the segments of a run's output to where it is kept: within one file system a rename each.
fn move_logs(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if logs::is_segment(&entry.file_name()) {
            fs::rename(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Writes output that came from another node into segments of the same names, and no more than its node may keep of it.
struct Keeper {
    folder: PathBuf,
    open: [Option<(u64, fs::File)>; 2],
    /// Of each stream, the bytes that may still come, and the segments.
    left: [(u64, u32); 2],
}

impl Keeper {
    fn new(folder: PathBuf, limit: u64) -> Self {
        // What an earlier try left.
        let _ = fs::remove_dir_all(&folder);
        // What was there before such a gap may be as much again.
        Self { folder, open: [None, None], left: [(limit.saturating_mul(2), SEGMENTS); 2] }
    }

    /// Gives what came its place, where an earlier try may have put the same.
    fn finish(self, place: &Path) -> Result<(), Collected> {
        let cannot = |error: io::Error| Collected::Failed(format!("its output cannot be kept: {error}"));
        if !self.folder.exists() {
            return Ok(());
        }
        match fs::remove_dir_all(place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => (),
        }
        fs::rename(&self.folder, place).map_err(cannot)
    }

    fn keep(&mut self, stream: Stream, offset: u64, bytes: &[u8]) -> Result<(), Collected> {
        let cannot = |error: io::Error| Collected::Failed(format!("its output cannot be kept: {error}"));
        let stream_index = STREAMS.iter().position(|s| *s == stream).unwrap_or(0);
        let (slot, (left, segments)) = (&mut self.open[stream_index], &mut self.left[stream_index]);
        let continues = slot.as_ref().is_some_and(|(end, _)| *end == offset);
        let fits = left.checked_sub(bytes.len() as u64).zip(segments.checked_sub(u32::from(!continues)));
        let Some(fits) = fits else {
            return Err(Collected::Missed("its node sends more output than it may keep".into()));
        };
        (*left, *segments) = fits;
        if !continues {
            fs::create_dir_all(&self.folder).map_err(cannot)?;
            let path = logs::segment(&self.folder, stream, offset);
            let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            *slot = Some((offset, file.map_err(cannot)?));
        }
        let Some((end, file)) = slot else { return Ok(()) };
        file.write_all(bytes).map_err(cannot)?;
        *end += bytes.len() as u64;
        Ok(())
    }
}

/// Unpacks results into the folder of the submission, as the user who submitted.
struct Delivery {
    child: Child,
    stdin: Option<tokio::process::ChildStdin>,
    folder: PathBuf,
}

impl Delivery {
    fn start(shims: &Shims, origin: &Origin, wanted: &[String]) -> Result<Self, String> {
        let user = User::of_machine(origin.uid, origin.gid);
        // The packer ran as the task: it is not to be trusted with more than what was asked for.
        let mut command = shims.unpack(&user, &origin.folder, wanted);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let child = Command::from(command).kill_on_drop(true).spawn();
        let mut child =
            child.map_err(|error| format!("cannot start {}: {error}", shims.program.display()))?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, folder: origin.folder.clone() })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let broken = match &mut self.stdin {
            Some(stdin) => stdin.write_all(bytes).await.is_err(),
            None => false,
        };
        if broken {
            // It ended early: what it said is the reason; the rest of the archive is of no use.
            self.stdin = None;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(), String> {
        self.stdin = None;
        let what = format!("its results cannot be brought to {}", self.folder.display());
        ended(self.child, &what).await.map(drop)
    }
}

/// Waits for the end of a packer or unpacker: what it says that it left out.
async fn ended(child: Child, what: &str) -> Result<Option<String>, String> {
    let output = child.wait_with_output().await.map_err(|error| format!("{what}: {error}"))?;
    match output.status.code() {
        Some(0) => Ok(None),
        Some(code) if code == i32::from(MISSED) => Ok(Some(said(&output.stderr))),
        _ => {
            warn!(what, "a helper failed");
            Err(format!("{what}: {}", said(&output.stderr)))
        }
    }
}

/// What came of results of which this was missed.
fn complete(missed: Option<String>) -> Collected {
    missed.map_or(Collected::Whole, Collected::Missed)
}
