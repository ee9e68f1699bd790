//! A task's memory that is sent in rounds while the task runs (the pre-copy mode): this node's part, as the source or as the
//! destination. What a round is, is in [`grid_checkpoint::rounds`].
//!
//! ```text
//!   destination                                    source
//!                      ── Request::Rounds ────▶    stays open: its end is that of the move
//!                      ── Request::Pages ─────▶    gridos-pages sends files, round after round, while the task runs
//!                      ── Request::Round{1} ──▶    the shim writes all its memory, while it runs
//!                      ◀════════════ images ══
//!                      ── Request::Round{2} ──▶    what was written to since; and so on, until that is little
//!                      ◀════════════ images ══
//!                      ── Request::Depart ────▶    the shim stops the task; the rest is written down
//!                      ◀══ all but the rounds ══
//!     the rounds put beside it, made by the shim, and held
//!     ── Held ──▶ home
//! ```
//!
//! As with [`ahead`], the dump at the end is no checkpoint, and is neither stored nor told of. Checkpoints wait while a task's
//! memory is on its way.
//!
//! **What is left.** At the source, the rounds' folder goes when the first request ends, whatever ended it, when the home lets
//! the task go, or with the run. At the destination, the rounds go with their folder until they are put beside what was
//! unpacked for the run, and with that afterwards. The kernel's notes need no end: a page that is noted as not written to costs
//! one fault when it is.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use grid_checkpoint::order::Done;
use grid_checkpoint::{preflight, rounds};
use grid_jobs::host;
use grid_link::Duplex;
use grid_run::protocol::ToShim;
use libgrid::ids::{NodeId, Run};
use libgrid::status::MovePhase;
use libgrid::wire::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info;

use super::ahead::{self, Arrived, Coming, Folder, Leaving, Outset, PACE, Taking};
use super::moving::{AGAIN, NotDeparted, PATIENCE};
use super::{Local, Runner, luggage};
use crate::checkpoint::{Unpacked, remove};
use crate::peers::Request;

/// The source's answer to [`Request::Round`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Round {
    /// It follows.
    Written {
        /// Bytes of its images.
        bytes: u64,
        /// Whether the task is to be stopped now.
        enough: bool,
    },
    /// It does not: a sentence. There are no rounds any more; the task was not stopped.
    Not(String),
}

/// The answer, and the folder that follows it.
pub(crate) type Rounding = (Round, Option<PathBuf>);

// === from here ===

/// Rounds of a task's memory, for one move; their folder goes with this.
pub(super) struct Rounds {
    /// Of the request that they are for.
    key: u64,
    folder: PathBuf,
    /// Bytes of each.
    written: Vec<u64>,
    writing: bool,
    /// Who asked for the next one, which is being written, or waits for the files.
    asked: Option<oneshot::Sender<Rounding>>,
    /// They are of no more use, and go when nobody writes to their folder.
    over: bool,
}

impl Rounds {
    fn of(&self, round: usize) -> PathBuf {
        self.folder.join(round.to_string())
    }

    /// The folder of the last one.
    pub(super) fn last(&self) -> Option<PathBuf> {
        let round = self.written.len();
        (round > 0 && !self.over).then(|| self.of(round))
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        drop(tokio::task::spawn_blocking(move || remove(&folder)));
    }
}

impl Runner {
    /// Another node asks for the memory of a task that is to move there, in rounds.
    pub(super) fn begin_rounds(&mut self, run: Run, to: NodeId, key: u64, reply: oneshot::Sender<Outset>) {
        let outset = self.try_begin_rounds(run, to, key).unwrap_or_else(|outset| outset);
        // Whoever asked may be gone; then they end with its request.
        let _ = reply.send(outset);
    }

    fn try_begin_rounds(&mut self, run: Run, to: NodeId, key: u64) -> Result<Outset, Outset> {
        let not_yet = |why: &str| Err(Outset::NotYet(why.to_owned()));
        if !self.departs_to(run, to) {
            return not_yet("its home has not said that it moves");
        }
        // Of an earlier try.
        self.end_rounds(run);
        let folder = folder_of(&self.config.checkpoints_dir(), run, &format!("out-{key:016x}"));
        let Some(local) = self.runs.get_mut(&run) else { return not_yet("it has ended") };
        if local.resuming.is_some() {
            return not_yet("CRIU is not done with it yet");
        }
        if local.rounds.is_some() || self.checkpoints.is_writing(run) {
            return not_yet("another checkpoint of it is being written");
        }
        // Of a try in another mode.
        local.leaving = None;
        if let Err(error) = DirBuilder::new().mode(0o700).create(&folder) {
            return Err(Outset::Not(format!("cannot make {}: {error}", folder.display())));
        }
        info!(%run, %to, "memory_sent_in_rounds");
        local.rounds =
            Some(Rounds { key, folder, written: Vec::new(), writing: false, asked: None, over: false });
        let uid = local.slot.uid();
        self.checkpoints.rest(run, true);
        Ok(Outset::Begun(uid))
    }

    fn departs_to(&self, run: Run, to: NodeId) -> bool {
        self.runs.get(&run).is_some_and(|local| local.departs.is_some_and(|(node, _)| node == to))
    }

    /// It asks for the next one.
    pub(super) fn write_round(&mut self, run: Run, to: NodeId, round: u32, reply: oneshot::Sender<Rounding>) {
        let departs = self.departs_to(run, to);
        let rounds = self.runs.get_mut(&run).and_then(|local| local.rounds.as_mut());
        let rounds = rounds.filter(|rounds| {
            let next = rounds.written.len() + 1;
            let free = !rounds.writing && rounds.asked.is_none() && !rounds.over;
            departs && round as usize == next && next <= rounds::MOST && free
        });
        let Some(rounds) = rounds else {
            let why = "that is not the round of its memory that comes next".to_owned();
            // Whoever asked may be gone.
            let _ = reply.send((Round::Not(why), None));
            if departs {
                self.end_rounds(run);
            }
            return;
        };
        rounds.asked = Some(reply);
        self.begin_round(run);
    }

    /// Has the round written that is asked for, unless its files are still on their way: what is written to meanwhile would have to be
    /// sent again. To be called when they are not any more.
    pub(super) fn begin_round(&mut self, run: Run) {
        let Some(Local { rounds: Some(rounds), leaving, .. }) = self.runs.get_mut(&run) else { return };
        if rounds.asked.is_none() || rounds.writing {
            return;
        }
        match leaving.as_ref().map_or(Err("its files are not on their way".into()), Leaving::sent) {
            Ok(false) => (),
            Ok(true) => {
                rounds.writing = true;
                let (folder, parent) = (rounds.of(rounds.written.len() + 1), rounds.last());
                self.tell(run, ToShim::PreDump { run, folder, parent });
            }
            Err(why) => {
                // Whoever asked may be gone.
                rounds.asked.take().map(|asked| asked.send((Round::Not(why), None)));
                self.end_rounds(run);
            }
        }
    }

    /// The shim tells what came of it.
    pub(super) fn round_written(&mut self, run: Run, folder: PathBuf, result: Result<Done, String>) {
        let rounds = self.runs.get_mut(&run).and_then(|local| local.rounds.as_mut());
        let Some(rounds) = rounds.filter(|rounds| folder.starts_with(&rounds.folder)) else {
            // Of a move that an agent before this one knew of.
            let folder = folder.parent().map(Path::to_owned).unwrap_or(folder);
            return drop(tokio::task::spawn_blocking(move || remove(&folder)));
        };
        rounds.writing = false;
        let asked = rounds.asked.take();
        let answer = match result {
            Ok(_) if rounds.over => Err("the move was given up".to_owned()),
            Ok(done) => {
                rounds.written.push(done.bytes);
                let (round, enough) = (rounds.written.len(), rounds::enough(&rounds.written));
                let ms = done.took.as_millis() as u64;
                info!(%run, round, bytes = done.bytes, took = ms, enough, "round_written");
                Ok((Round::Written { bytes: done.bytes, enough }, Some(folder)))
            }
            Err(why) => Err(why),
        };
        if answer.is_err() {
            self.end_rounds(run);
        }
        let answer = answer.unwrap_or_else(|why| (Round::Not(why), None));
        // Whoever asked may be gone.
        asked.map(|asked| asked.send(answer));
    }

    /// The request that these rounds were for has ended.
    pub(super) fn rounds_over(&mut self, run: Run, key: u64) {
        let rounds = self.runs.get(&run).and_then(|local| local.rounds.as_ref());
        if rounds.is_some_and(|rounds| rounds.key == key) {
            self.end_rounds(run);
        }
    }

    /// Rounds of an earlier try, or of a move that is over, are of no use.
    pub(super) fn end_rounds(&mut self, run: Run) {
        let Some(local) = self.runs.get_mut(&run) else { return };
        match &mut local.rounds {
            Some(rounds) if rounds.writing => rounds.over = true,
            rounds => *rounds = None,
        }
        let rests = local.rounds.is_some();
        self.checkpoints.rest(run, rests);
    }
}

// === to here ===

impl Coming {
    /// Has files sent while the task runs, and memory in rounds, then all else.
    pub(super) async fn bring_in_rounds(&self, into: &Path) -> Result<Arrived, NotDeparted> {
        // Its end is what the source gives the rounds up at.
        let _open = self.ask_for_rounds().await?;
        let Taking { pages, files, mut troubled, came: files_came, all_files } =
            self.take_ahead(false).await?;
        let folder = Folder(folder_of(&self.checkpoints, self.run, "in"));
        make(&folder.0).map_err(|error| NotDeparted::Failed(error.to_string()))?;
        let came = Arc::new(AtomicU64::new(0));
        let tell = |phase, stood| {
            let bytes = files_came.load(Ordering::Relaxed) + came.load(Ordering::Relaxed);
            self.core.host(host::Event::Moving { run: self.run, phase, stood, bytes });
        };
        let telling = async {
            loop {
                tell(MovePhase::Rounds, None);
                tokio::time::sleep(PACE).await;
            }
        };
        let stands_still = async {
            let rounds = self.take_rounds(&folder.0, &came).await?;
            let (departed, duplex) =
                super::moving::depart(&self.peers, self.old, (self.node, self.run.epoch)).await?;
            Ok((rounds, departed, duplex))
        };
        let coming = async {
            let (rounds, departed, duplex) = tokio::select! {
                still = stands_still => still?,
                never = telling => never,
            };
            tell(MovePhase::Copying, Some(departed.stood));
            let bytes = departed.bytes;
            let unpacked = luggage::take(duplex, into, None, departed.number, bytes, came.clone()).await;
            let unpacked = unpacked.and_then(|unpacked| put_beside(unpacked, &folder.0, rounds));
            ahead::all_came(all_files).await;
            tell(MovePhase::Restoring, None);
            unpacked.map_err(|error| NotDeparted::Failed(format!("it did not come whole: {error}")))
        };
        let unpacked = ahead::unless_troubled(&mut troubled, coming).await?;
        // Who took the files is done.
        drop(pages);
        Ok(Arrived { unpacked, pages: None, files: Some(files) })
    }

    async fn ask_for_rounds(&self) -> Result<Duplex, NotDeparted> {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = async {
                let request = Request::Rounds(self.old);
                let mut duplex = self.peers.ask(self.node, &request).await.map_err(|e| e.to_string())?;
                let outset = stream::read::<Outset, _>(&mut duplex).await.map_err(|e| e.to_string())?;
                Ok((outset, duplex))
            };
            match asked.await.map_err(NotDeparted::Failed)? {
                (Outset::Begun(_), duplex) => return Ok(duplex),
                (Outset::Not(why), _) => return Err(NotDeparted::NotAhead(why)),
                (Outset::NotYet(why), _) if Instant::now() >= until => return Err(NotDeparted::Failed(why)),
                (Outset::NotYet(_), _) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Takes one after the other, each into a folder of its own; returns how many.
    async fn take_rounds(&self, folder: &Path, came: &Arc<AtomicU64>) -> Result<usize, NotDeparted> {
        for round in 1..=rounds::MOST {
            let request = Request::Round { run: self.old, round: round as u32 };
            let asked = async {
                let mut duplex = self.peers.ask(self.node, &request).await.map_err(|e| e.to_string())?;
                let written = stream::read::<Round, _>(&mut duplex).await.map_err(|e| e.to_string())?;
                Ok((written, duplex))
            };
            let (written, duplex) = asked.await.map_err(NotDeparted::Failed)?;
            let (bytes, enough) = match written {
                Round::Written { bytes, enough } => (bytes, enough),
                Round::Not(why) => return Err(NotDeparted::NotAhead(why)),
            };
            let failed = |why: String| NotDeparted::Failed(format!("its memory cannot be taken: {why}"));
            let room = preflight::room(folder, bytes).map_err(|error| failed(error.to_string()))?;
            room.map_or(Ok(()), |blocker| Err(failed(blocker.to_string())))?;
            let (into, came) = (folder.join(round.to_string()), came.clone());
            let taken = luggage::receive(duplex, move |from| {
                make(&into)?;
                luggage::extract(luggage::Counted(from, came), &into, None, bytes)
            });
            taken.await.map_err(|error| failed(error.to_string()))?;
            if enough {
                return Ok(round);
            }
        }
        Ok(rounds::MOST)
    }
}

/// Puts rounds where those of a checkpoint have to be.
fn put_beside(unpacked: Unpacked, came: &Path, rounds: usize) -> io::Result<Unpacked> {
    let put = fs::rename(came, unpacked.folder.join(rounds::FOLDER))
        .and_then(|()| rounds::assemble(&unpacked.folder, rounds));
    put.inspect_err(|_| remove(&unpacked.folder))?;
    Ok(unpacked)
}

/// A folder for rounds, on the disk: together they may be some times as much as the task has memory.
fn folder_of(checkpoints: &Path, run: Run, way: &str) -> PathBuf {
    let Run { task, epoch } = run;
    ahead::on_disk(checkpoints).join(format!("{}-{}-{epoch}-rounds-{way}", task.job, task.index))
}

fn make(folder: &Path) -> io::Result<()> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| io::Error::new(error.kind(), format!("cannot make {}: {error}", folder.display())))
}

#[cfg(test)]
mod tests {
    use grid_checkpoint::rounds::{FOLDER, PARENT};

    use super::*;
    use crate::checkpoint::About;

    fn unpacked(folder: &Path) -> Unpacked {
        let about = About::new(std::time::Duration::ZERO, None, None, 7, 0);
        Unpacked { number: 1, folder: folder.to_owned(), about, printed: [0; 2], passed: Vec::new() }
    }

    #[test]
    fn rounds_come_to_lie_where_the_dump_looks_for_them() {
        let root = tempfile::tempdir().unwrap();
        let [came, into] = ["came", "into"].map(|name| root.path().join(name));
        for folder in [came.join("1"), came.join("2"), into.join("images")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(came.join("1/pages"), "all").unwrap();
        put_beside(unpacked(&into), &came, 2).unwrap();
        assert!(!came.exists());
        let first = into.join("images").join(PARENT).join(PARENT).join("pages");
        assert_eq!(fs::read(first).unwrap(), b"all");
        assert_eq!(fs::read_dir(into.join(FOLDER)).unwrap().count(), 2);
        // A round that is missing: nothing is left of what came with it.
        assert!(put_beside(unpacked(&into), &root.path().join("nowhere"), 1).is_err());
        assert!(!into.exists());
    }

    #[test]
    fn what_comes_is_counted_and_its_bound_kept() {
        let root = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5000);
        header.set_mode(0o600);
        archive.append_data(&mut header, "pages-1.img", &[7; 5000][..]).unwrap();
        let packed = archive.into_inner().unwrap();
        let came = Arc::new(AtomicU64::new(0));
        let take = |bytes: u64| {
            let into = root.path().join(bytes.to_string());
            fs::create_dir(&into).unwrap();
            luggage::extract(luggage::Counted(packed.as_slice(), came.clone()), &into, None, bytes)
        };
        take(5000).unwrap();
        assert_eq!(came.load(Ordering::Relaxed), packed.len() as u64);
        assert!(take(4999).unwrap_err().to_string().contains("larger than was said"));
    }
}
