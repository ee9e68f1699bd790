//! A task's memory and files on their way while the task runs (the hybrid mode): this node's part, as the source or as the
//! destination.
//!
//! ```text
//!   destination                                    source
//!     gridos-pages listens
//!                      ── Request::Pages ─────▶    gridos-pages sends memory, round after round, while the task runs
//!                      ◀══════════ memory ══       from the one to the other, over a data connection of their own
//!     all is made ready for it (`ready.rs`), and its files go there; if its user is not free, into a folder of their own
//!                      ── Request::Depart ────▶    not before what is left is little: the shim stops the task; the rest follows
//!                      ◀────────── Departed ──
//!                      ◀══ all but the memory ══
//!     made by the shim, whose CRIU asks gridos-pages for memory, and held
//!     ── Held ──▶ home
//! ```
//!
//! Each end has a folder for each move, made and removed by its `gridos-pages`, in memory where the kernel has that ([`Moves`]):
//! the images of the task lie in it, where they are small.
//!
//! What has no memory in it is no checkpoint: it is neither stored nor told of, and a task never goes on from it anywhere
//! else.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use grid_checkpoint::memory;
use grid_jobs::host;
use grid_migrate::order::{self, Order, Place, Report};
use grid_migrate::ram::Ram;
use grid_transfer::session::Invitation;
use libgrid::ids::{NodeId, Run};
use libgrid::status::MovePhase;
use libgrid::units::Bytes;
use libgrid::wire::stream;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, info};

use super::moving::{AGAIN, Departure, NotDeparted, PATIENCE};
use super::{Query, Runner, luggage};
use crate::checkpoint::{Unpacked, remove};
use crate::core::Core;
use crate::peers::{Peers, Request};

/// Bytes of images that may lie in memory.
const MOST_IN_MEMORY: u64 = 64 << 20;

/// How often the home hears how much came.
pub(super) const PACE: std::time::Duration = std::time::Duration::from_millis(200);

/// How long a process may take to listen.
const LISTEN: std::time::Duration = std::time::Duration::from_secs(10);

/// How long the source may take to say why its stream broke.
const REASON: std::time::Duration = std::time::Duration::from_secs(2);

/// The pid of every task's root in its namespace.
const ROOT: &str = "2";

/// The source's answer to [`Request::Pages`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outset {
    /// It comes; so does its local user, who must be free there.
    Begun(u32),
    /// Not yet: ask again.
    NotYet(String),
    /// It does not: a sentence.
    Not(String),
}

/// A `gridos-pages` that works for a move. When this is dropped before the memory is all there, the move is given up.
pub(super) struct Pages {
    control: AbortHandle,
    /// The same socket, to say more.
    more: std::os::unix::net::UnixStream,
    pub(super) folder: PathBuf,
}

impl Pages {
    /// Starts one; it tells how far it is, its end last.
    fn start(
        folder: PathBuf,
        order: Order,
        mut tell: impl FnMut(Report) + Send + 'static,
    ) -> io::Result<Self> {
        let program = crate::machine::program("gridos-pages");
        let (command, control) = order::command(&program)?;
        let mut child = tokio::process::Command::from(command).spawn()?;
        tokio::spawn(async move { child.wait().await });
        let more = control.try_clone()?;
        control.set_nonblocking(true)?;
        let mut control = UnixStream::from_std(control)?;
        let task = tokio::spawn(async move {
            if stream::write(&mut control, &order).await.is_ok() {
                while let Ok(report) = stream::read::<Report, _>(&mut control).await {
                    let last = matches!(report, Report::Failed(_));
                    tell(report);
                    if last {
                        return;
                    }
                }
            }
            tell(Report::Failed("gridos-pages has ended".into()));
        });
        Ok(Self { control: task.abort_handle(), more, folder })
    }

    /// Where the files of a task go that comes.
    fn place(&self, place: &Place) -> io::Result<()> {
        // Some bytes, for which there is room.
        libgrid::wire::write(&mut &self.more, place).map_err(io::Error::other)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Its end of the socket goes with the task.
        self.control.abort();
    }
}

/// Where it goes.
pub(crate) struct Taker {
    pub(crate) node: NodeId,
    pub(crate) addresses: Vec<IpAddr>,
    /// Of the process that takes it.
    pub(crate) invitation: Invitation,
    /// Whether memory goes, too, and not files alone.
    pub(crate) memory: bool,
}

/// What leaves this node ahead of its task.
pub(super) struct Leaving {
    pages: Pages,
    state: State,
    /// Whether little else than its memory will be in its images.
    small: bool,
}

enum State {
    Sending,
    Ready,
    Failed(String),
}

impl Leaving {
    /// Whether what is left is little.
    ///
    /// # Errors
    /// It cannot be sent: a sentence.
    pub(super) fn sent(&self) -> Result<bool, String> {
        match &self.state {
            State::Sending => Ok(false),
            State::Ready => Ok(true),
            State::Failed(why) => Err(format!("it cannot be sent while it runs: {why}")),
        }
    }

    /// The folder of who moves what goes ahead, if somebody does, once the task can be stopped; what to answer till then. What
    /// failed is said once.
    pub(super) fn ready(leaving: &mut Option<Self>) -> Result<Option<PathBuf>, Departure> {
        let Some(Self { pages, state, small }) = leaving else { return Ok(None) };
        match state {
            State::Sending => Err(Departure::Ahead),
            State::Ready => {
                if *small {
                    // Where it cannot be made, they are written beside the rest.
                    let _ = DirBuilder::new().mode(0o700).create(pages.folder.join(memory::IMAGES));
                }
                Ok(Some(pages.folder.clone()))
            }
            State::Failed(why) => {
                let why = format!("it cannot be sent while it runs: {why}");
                *leaving = None;
                Err(Departure::NotAhead(why))
            }
        }
    }
}

impl Runner {
    /// Another node asks for the files of a task that is to move there, or for its memory, too.
    pub(super) fn send_ahead(&mut self, run: Run, to: Taker, reply: oneshot::Sender<Outset>) {
        let outset = self.begin_ahead(run, to).map_or_else(|outset| outset, Outset::Begun);
        // Whoever asked may be gone; then it has nowhere to go.
        let _ = reply.send(outset);
    }

    /// Its local user, once it is on its way.
    fn begin_ahead(&mut self, run: Run, to: Taker) -> Result<u32, Outset> {
        let Taker { node: to, addresses, invitation, memory } = to;
        let folder = self.moves.leaves(run);
        let groups = grid_qos::Cgroups::open(&self.config.cgroup_root, &self.config.cgroup_parent);
        let local = self.runs.get_mut(&run).filter(|local| local.departs.is_some_and(|(node, _)| node == to));
        let local = local.ok_or_else(|| Outset::NotYet("its home has not said that it moves".into()))?;
        if local.resuming.is_some() {
            return Err(Outset::NotYet("its memory is still on its way here".into()));
        }
        // Of an earlier try.
        local.leaving = None;
        let not =
            |error: &dyn std::fmt::Display| Outset::Not(format!("it cannot be sent while it runs: {error}"));
        let pids = groups.map_err(|error| not(&error))?.group(&local.slot.name()).processes();
        let Tree { root, resident, apart } = look_at(&pids.map_err(|error| not(&error))?);
        let limit = local.limits.0.0;
        if memory && resident > limit {
            return Err(Outset::Not(format!(
                "its processes share memory, of which each would have its own there, {} in all, and it may have {}: use \
                 --mode stop-and-copy",
                Bytes(resident),
                Bytes(limit)
            )));
        }
        let root = root.ok_or_else(|| Outset::Not("it has ended".into()))?;
        let queries = self.queries.clone();
        let tell = move |report| drop(queries.send(Query::Ahead { run, report }));
        let mappings = self.processes.mappings();
        let files = Place { folder: self.slots.folder(&local.slot), uid: local.slot.uid() };
        let order =
            Order::Send { folder: folder.clone(), root, memory, addresses, invitation, mappings, files };
        let pages = Pages::start(folder, order, tell).map_err(|error| not(&error))?;
        info!(%run, %to, memory, resident, "sent_ahead");
        // Those that follow rounds are beside them, on the disk.
        let small = memory && apart <= MOST_IN_MEMORY;
        local.leaving = Some(Leaving { pages, state: State::Sending, small });
        Ok(local.slot.uid())
    }

    /// Who sends it tells how far it is.
    pub(super) fn sent_ahead(&mut self, run: Run, report: Report) {
        let Some(leaving) = self.runs.get_mut(&run).and_then(|local| local.leaving.as_mut()) else { return };
        if let Report::Failed(why) = &report {
            debug!(%run, why, "not_sent_ahead");
        }
        match (report, &leaving.state) {
            (Report::Ready, _) => leaving.state = State::Ready,
            (Report::Failed(why), State::Sending) => leaving.state = State::Failed(why),
            _ => (),
        }
        self.begin_round(run);
    }
}

/// Where each move has a folder of its own.
#[derive(Clone)]
pub(super) struct Moves {
    root: PathBuf,
    /// Where that is, if it is in memory.
    _ram: Option<Arc<Ram>>,
}

impl Moves {
    /// In memory where the kernel has that, else beside the store.
    pub(super) fn open(checkpoints: &Path) -> Self {
        match Ram::new() {
            Ok(ram) => Self { root: ram.path(), _ram: Some(Arc::new(ram)) },
            Err(error) => {
                debug!(%error, "moves_beside_the_store");
                Self { root: on_disk(checkpoints), _ram: None }
            }
        }
    }

    /// Of a run that leaves.
    fn leaves(&self, run: Run) -> PathBuf {
        self.folder(run, "out")
    }

    /// Of a run that is to be.
    pub(super) fn arrives(&self, run: Run) -> PathBuf {
        self.folder(run, "in")
    }

    fn folder(&self, run: Run, way: &str) -> PathBuf {
        let task = run.task;
        self.root.join(format!("{}-{}-{}-{way}", task.job, task.index, run.epoch))
    }
}

/// Beside the store.
pub(super) fn on_disk(checkpoints: &Path) -> PathBuf {
    checkpoints.join("moving")
}

/// Makes the folder of all moves anew, without what earlier agents left.
///
/// # Errors
/// Where it cannot be made.
pub(super) fn sweep(checkpoints: &Path) -> io::Result<()> {
    let folder = on_disk(checkpoints);
    remove(&folder);
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The processes of a task.
#[derive(Default)]
struct Tree {
    root: Option<i32>,
    /// Bytes of memory that are in no file; what they share counts for each.
    resident: u64,
    /// Bytes that CRIU writes to its images all the same: memory that is shared, files without a name.
    apart: u64,
}

fn look_at(pids: &[u32]) -> Tree {
    let mut tree = Tree::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
        let bytes = |name| {
            let kib = field(name).and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        tree.resident += bytes("RssAnon:");
        tree.apart += bytes("RssShmem:") + nameless(*pid);
        if field("NSpid:").and_then(|numbers| numbers.split_ascii_whitespace().next_back()) == Some(ROOT) {
            tree.root = i32::try_from(*pid).ok();
        }
    }
    tree
}

/// Bytes of the files without a name that a process has open.
fn nameless(pid: u32) -> u64 {
    let opened = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = opened.filter_map(|entry| fs::metadata(entry.path()).ok());
    files.filter(|meta| meta.is_file() && meta.nlink() == 0).map(|meta| meta.blocks() * 512).sum()
}

// === to here ===

/// A task that has come.
pub(crate) struct Arrived {
    /// All that did not come ahead.
    pub(super) unpacked: Unpacked,
    /// Who has its memory, if that came ahead, and not in rounds.
    pub(super) pages: Option<Pages>,
    /// Its files on a disk, if they came ahead.
    pub(super) files: Option<Files>,
}

/// Where the files are that came with its memory.
pub(crate) enum Files {
    /// In the place that was made ready for it.
    InPlace,
    /// In a folder of their own, as its place was not free; it goes with this.
    Apart(Folder),
}

impl Files {
    /// Puts them in the place of their task, in which nothing is yet.
    pub(super) fn give(self, place: &Path) -> io::Result<()> {
        let Self::Apart(folder) = self else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o711).create(place)?;
        for part in ["work", "tmp"] {
            match fs::remove_dir(place.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(folder.0.join(part), place.join(part))?,
            }
        }
        Ok(())
    }
}

/// A folder of what came; it goes with this, unless it was taken elsewhere.
pub(crate) struct Folder(pub(super) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.0);
        drop(tokio::task::spawn_blocking(move || super::recover::remove(&folder)));
    }
}

/// What is needed to bring one here.
pub(super) struct Coming {
    pub(super) peers: Peers,
    pub(super) queries: mpsc::UnboundedSender<Query>,
    pub(super) core: Core,
    pub(super) moves: Moves,
    pub(super) checkpoints: PathBuf,
    /// The run that is to be.
    pub(super) run: Run,
    /// The run that is, and where.
    pub(super) old: Run,
    pub(super) node: NodeId,
    /// How much memory it may have.
    pub(super) limit: u64,
    /// Where this node may listen.
    pub(super) ports: Option<(u16, u16)>,
}

impl Coming {
    /// Has memory and files sent while the task runs, then all else.
    pub(super) async fn bring(&self, into: &Path) -> Result<Arrived, NotDeparted> {
        let taking = self.take_ahead(true).await?;
        let images = taking.pages.folder.join(memory::IMAGES);
        let Taking { pages, files, troubled, came, all_files } = taking;
        let unpacked = self.depart(into, &images, troubled, &came, all_files).await?;
        Ok(Arrived { unpacked, pages: Some(pages), files: Some(files) })
    }

    /// Has files sent while the task runs, and its memory, too, if it is to come so.
    pub(super) async fn take_ahead(&self, memory: bool) -> Result<Taking, NotDeparted> {
        let not_taken = |why: &dyn std::fmt::Display| NotDeparted::NotAhead(not_taken(why));
        let folder = self.moves.arrives(self.run);
        let order = Order::Receive {
            folder: folder.clone(),
            memory: memory.then_some(self.limit),
            ports: self.ports,
        };
        let (listens, invited) = oneshot::channel();
        let (trouble, mut troubled) = watch::channel(None);
        let came = Arc::new(AtomicU64::new(0));
        let (all, all_files) = oneshot::channel();
        let tell = {
            let (mut listens, mut all, came) = (Some(listens), Some(all), came.clone());
            move |report| match report {
                Report::Listens(invitation) => {
                    // Whoever waited gave up: this process goes, too.
                    let _ = listens.take().map(|listens| listens.send(invitation));
                }
                Report::Came { bytes } => came.store(bytes, Ordering::Relaxed),
                Report::Files => drop(all.take().map(|all| all.send(()))),
                // The end of who had nothing else to do.
                Report::Failed(_) if !memory && all.is_none() => (),
                Report::Failed(why) => drop(trouble.send(Some(why))),
                Report::Round { .. } | Report::Ready => (),
            }
        };
        let pages = Pages::start(folder, order, tell).map_err(|error| not_taken(&error))?;
        let invitation = tokio::select! {
            why = said(&mut troubled) => return Err(not_taken(&why)),
            invited = tokio::time::timeout(LISTEN, invited) => {
                invited.ok().and_then(Result::ok).ok_or_else(|| not_taken(&"gridos-pages does not listen"))?
            }
        };
        let uid = self.ask_for_it(&invitation, memory).await?;
        let comes = |reply| Query::Comes { run: self.run, uid, memory, reply };
        let ready = super::moving::ask(&self.queries, comes).await;
        let ready = ready.ok_or_else(|| not_taken(&"the agent is stopping"))?;
        let (folder, files) = ready.map_err(NotDeparted::Failed)?;
        // It goes before the files do.
        let pages = pages;
        pages.place(&Place { folder, uid }).map_err(|error| not_taken(&error))?;
        Ok(Taking { pages, files, troubled, came, all_files })
    }

    /// Has it stopped, and then all of it sent.
    pub(super) async fn bring_stopped(&self, into: &Path) -> Result<Arrived, NotDeparted> {
        let depart = || super::moving::depart(&self.peers, self.old, (self.node, self.run.epoch));
        let came = Arc::new(AtomicU64::new(0));
        let tell = |phase, stood| {
            let bytes = came.load(Ordering::Relaxed);
            self.core.host(host::Event::Moving { run: self.run, phase, stood, bytes });
        };
        // Whatever was told of other tries.
        tell(MovePhase::Departing, None);
        let (departed, duplex) = match depart().await {
            // Of the try before.
            Err(NotDeparted::NotAhead(_)) => depart().await?,
            departed => departed?,
        };
        tell(MovePhase::Copying, Some(departed.stood));
        let telling = async {
            loop {
                tokio::time::sleep(PACE).await;
                tell(MovePhase::Copying, None);
            }
        };
        let coming = luggage::take(duplex, into, None, departed.number, departed.bytes, came.clone());
        let unpacked = tokio::select! {
            unpacked = coming => unpacked,
            never = telling => never,
        };
        tell(MovePhase::Restoring, None);
        let failed = |error| NotDeparted::Failed(format!("it did not come whole: {error}"));
        Ok(Arrived { unpacked: unpacked.map_err(failed)?, pages: None, files: None })
    }

    /// Its local user, once it is on its way.
    async fn ask_for_it(&self, invitation: &Invitation, memory: bool) -> Result<u32, NotDeparted> {
        let until = Instant::now() + PATIENCE;
        let request = Request::Pages { run: self.old, invitation: invitation.clone(), memory };
        loop {
            let asked = async {
                let mut duplex = self.peers.ask(self.node, &request).await.map_err(|e| e.to_string())?;
                stream::read::<Outset, _>(&mut duplex).await.map_err(|e| e.to_string())
            };
            match asked.await.map_err(NotDeparted::Failed)? {
                Outset::Begun(uid) => return Ok(uid),
                Outset::Not(why) => return Err(NotDeparted::NotAhead(why)),
                Outset::NotYet(why) if Instant::now() >= until => return Err(NotDeparted::Failed(why)),
                Outset::NotYet(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Waits until the task stands still, and takes all of it but its memory.
    async fn depart(
        &self,
        into: &Path,
        images: &Path,
        mut troubled: watch::Receiver<Option<String>>,
        came: &Arc<AtomicU64>,
        all_files: oneshot::Receiver<()>,
    ) -> Result<Unpacked, NotDeparted> {
        let tell = |phase, stood| {
            let bytes = came.load(Ordering::Relaxed);
            self.core.host(host::Event::Moving { run: self.run, phase, stood, bytes });
        };
        let telling = async {
            loop {
                tell(MovePhase::Ahead, None);
                tokio::time::sleep(PACE).await;
            }
        };
        let coming = async {
            let (departed, duplex) = tokio::select! {
                departed = super::moving::depart(&self.peers, self.old, (self.node, self.run.epoch)) => departed?,
                never = telling => never,
            };
            let bytes = departed.bytes;
            tell(MovePhase::Copying, Some(departed.stood));
            let images = (bytes <= MOST_IN_MEMORY).then_some(images);
            let unpacked = luggage::take(duplex, into, images, departed.number, bytes, came.clone()).await;
            all_came(all_files).await;
            tell(MovePhase::Restoring, None);
            let failed = |error| NotDeparted::Failed(format!("it did not come whole: {error}"));
            unpacked.map_err(failed)
        };
        unless_troubled(&mut troubled, coming).await
    }
}

/// What comes ahead of its task.
pub(super) struct Taking {
    /// Who takes it.
    pub(super) pages: Pages,
    pub(super) files: Files,
    /// Why it does not.
    pub(super) troubled: watch::Receiver<Option<String>>,
    /// Bytes.
    pub(super) came: Arc<AtomicU64>,
    pub(super) all_files: oneshot::Receiver<()>,
}

/// Waits for all files of a task. If they do not come, trouble does.
pub(super) async fn all_came(all_files: oneshot::Receiver<()>) {
    if all_files.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What is done while something comes ahead.
pub(super) async fn unless_troubled<T>(
    troubled: &mut watch::Receiver<Option<String>>,
    coming: impl Future<Output = Result<T, NotDeparted>>,
) -> Result<T, NotDeparted> {
    tokio::pin!(coming);
    tokio::select! {
        came = &mut coming => came,
        why = said(troubled) => match tokio::time::timeout(REASON, coming).await {
            // The source knows better why its stream broke.
            Ok(Err(why)) => Err(why),
            _ => Err(NotDeparted::Failed(not_taken(&why))),
        },
    }
}

fn not_taken(why: &dyn std::fmt::Display) -> String {
    format!("it cannot be taken while it runs: {why}")
}

/// What went wrong, once something has.
async fn said(troubled: &mut watch::Receiver<Option<String>>) -> String {
    let why = troubled.wait_for(Option::is_some).await.map(|why| why.clone());
    match why {
        Ok(why) => why.unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}
