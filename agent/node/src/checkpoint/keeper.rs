//! The thread that reads and writes the store: a checkpoint of a gigabyte takes seconds, in which the agent goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Instant, SystemTime};

use grid_checkpoint::Description;
use grid_checkpoint::store::{Keep, Store, StoreError};
use libgrid::ids::{Run, TaskId};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::about::{self, About};
use super::{List, name_of, task_of};
use crate::runner::Query;

/// What it can be asked to do.
pub(super) enum Work {
    /// Store what was dumped.
    Put { run: Run, number: u64, folder: PathBuf, output: PathBuf, about: About },
    /// Unpack the newest that is whole, of those up to a number.
    Unpack { run: Run, most: u64, into: PathBuf },
    /// Compare all of one.
    Verify { task: TaskId, number: u64, reply: oneshot::Sender<Result<(), String>> },
    /// Forget those after a number.
    Cut { task: TaskId, number: u64 },
    /// One of a task was brought from another node; a run waits for it.
    Imported { task: TaskId, then: Option<(Run, Result<(), String>)> },
    /// Forget all of a task.
    Forget(TaskId),
    /// Remove what lies beside the store for a run: what was unpacked, and dumps that came to nothing.
    Clear { unpacked: PathBuf, dumps: Vec<PathBuf> },
}

/// What came of it.
pub(crate) enum News {
    /// It was stored, or not.
    Put { run: Run, number: u64, result: Result<(), String> },
    /// It was unpacked, or there is none that is whole: what is wrong with each.
    Unpacked { run: Run, result: Result<Box<Unpacked>, String> },
    /// It was brought from the home, or cannot be.
    Brought { run: Run, result: Result<(), String> },
    /// These are a task's checkpoints now, and so many bytes the store takes.
    List { task: TaskId, list: List, size: u64 },
}

/// A checkpoint to go on from.
pub(crate) struct Unpacked {
    pub(crate) number: u64,
    pub(crate) folder: PathBuf,
    pub(crate) about: About,
    /// Bytes that the task had printed to its two streams.
    pub(crate) printed: [u64; 2],
    /// Newer ones that are damaged, and what is wrong with them.
    pub(crate) passed: Vec<(u64, String)>,
}

pub(super) struct Keeper {
    store: Store,
    lists: BTreeMap<TaskId, List>,
    keep: Keep,
    /// Bytes that the store may take.
    limit: u64,
    size: u64,
    news: mpsc::UnboundedSender<Query>,
}

impl Keeper {
    /// Opens the store, and looks at what is in it.
    pub(super) fn open(
        root: &Path,
        keep: Keep,
        limit: u64,
        news: mpsc::UnboundedSender<Query>,
    ) -> Result<Self, StoreError> {
        let store = Store::open(root)?;
        let mut keeper = Self { store, lists: BTreeMap::new(), keep, limit, size: 0, news };
        // Pieces without a checkpoint: the machine stopped between the two.
        keeper.store.sweep()?;
        keeper.size = keeper.store.size()?;
        for task in keeper.store.tasks()?.iter().filter_map(|name| task_of(name)) {
            keeper.look(task);
        }
        Ok(keeper)
    }

    pub(super) fn lists(&self) -> &BTreeMap<TaskId, List> {
        &self.lists
    }

    pub(super) fn store(&self) -> Store {
        self.store.clone()
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Begins to work.
    pub(super) fn start(mut self) -> Sender<Work> {
        let (sender, receiver): (_, Receiver<Work>) = channel();
        std::thread::spawn(move || {
            for work in receiver {
                self.carry_out(work);
            }
        });
        sender
    }

    fn carry_out(&mut self, work: Work) {
        let news = match work {
            Work::Put { run, number, folder, output, about } => {
                let result = self.put(run, number, &folder, &output, &about);
                // Stored or not, the dump is of no more use.
                remove(&folder);
                self.tell_list(run.task);
                News::Put { run, number, result: result.map_err(|error| error.to_string()) }
            }
            Work::Unpack { run, most, into } => {
                News::Unpacked { run, result: self.unpack(run.task, most, &into).map(Box::new) }
            }
            Work::Verify { task, number, reply } => {
                let verified = self.store.verify(&name_of(task), number).map_err(|error| error.to_string());
                // Whoever asked may be gone.
                return drop(reply.send(verified));
            }
            Work::Cut { task, number } => {
                self.drop_some(task, |each| each > number);
                return self.tell_list(task);
            }
            Work::Imported { task, then } => {
                self.look(task);
                if let Err(error) = self.expire(task, self.keep) {
                    warn!(%task, %error, "old checkpoints cannot be removed");
                }
                self.sweep();
                self.size = self.store.size().unwrap_or(self.size);
                self.tell_list(task);
                let Some((run, result)) = then else { return };
                News::Brought { run, result }
            }
            Work::Clear { unpacked, dumps } => {
                remove(&unpacked);
                let failed = dumps.iter().filter(|dump| Description::read(dump).is_err());
                return failed.for_each(|dump| remove(dump));
            }
            Work::Forget(task) => {
                self.drop_some(task, |_| true);
                return self.tell_list(task);
            }
        };
        self.tell(news);
    }

    fn put(
        &mut self,
        run: Run,
        number: u64,
        folder: &Path,
        output: &Path,
        about: &About,
    ) -> Result<(), StoreError> {
        let name = name_of(run.task);
        let with = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { what, path, source }
        };
        about::keep_output(output, folder).map_err(with("cannot keep the output of", output))?;
        about.write(folder).map_err(with("cannot write to", folder))?;
        let begun = Instant::now();
        let stored = self.store.put(&name, number, folder)?;
        self.size += stored.written;
        let took = begun.elapsed().as_millis() as u64;
        info!(%run, number, bytes = stored.bytes, new = stored.new, written = stored.written, took, "checkpoint_kept");
        self.lists.entry(run.task).or_default().insert(number, about.clone());
        self.expire(run.task, self.keep)?;
        if self.size > self.limit {
            let tasks: Vec<TaskId> = self.lists.keys().copied().collect();
            for task in tasks {
                self.expire(task, Keep { newest: 1, ..self.keep })?;
            }
        }
        self.sweep();
        Ok(())
    }

    fn expire(&mut self, task: TaskId, keep: Keep) -> Result<(), StoreError> {
        if self.store.expire(&name_of(task), keep, SystemTime::now())? > 0 {
            self.look(task);
            self.tell_list(task);
        }
        Ok(())
    }

    fn unpack(&mut self, task: TaskId, most: u64, into: &Path) -> Result<Unpacked, String> {
        remove(into);
        let parent = into.parent().unwrap_or(into);
        let made = match fs::DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        };
        made.map_err(|error| format!("cannot make {}: {error}", parent.display()))?;
        let (number, passed) =
            self.store.newest(&name_of(task), most, into).map_err(|error| error.to_string())?;
        let read = || {
            let about = fs::read(into.join(about::NAME)).map_err(|error| error.to_string())?;
            let description = Description::read(into).map_err(|error| error.to_string())?;
            Ok::<_, String>((About::read(&about)?, description.streams.printed))
        };
        let (about, printed) = read().inspect_err(|_| remove(into))?;
        Ok(Unpacked { number, folder: into.to_owned(), about, printed, passed })
    }

    fn drop_some(&mut self, task: TaskId, gone: impl Fn(u64) -> bool) {
        let name = name_of(task);
        let numbers = self.store.numbers(&name).unwrap_or_default();
        let rest = numbers.iter().any(|number| !gone(*number));
        let dropped = match rest {
            true => numbers.into_iter().filter(|n| gone(*n)).try_for_each(|n| self.store.remove(&name, n)),
            false => self.store.forget(&name),
        };
        if let Err(error) = dropped {
            warn!(%task, %error, "checkpoints cannot be removed");
        }
        self.look(task);
        self.sweep();
    }

    fn sweep(&mut self) {
        match self.store.sweep() {
            Ok(freed) => self.size = self.size.saturating_sub(freed),
            Err(error) => warn!(%error, "the store of checkpoints cannot be swept"),
        }
    }

    /// Looks again at what there is of a task. One that is damaged is no more than what it is found to be when it is needed:
    /// it has no place in the list.
    fn look(&mut self, task: TaskId) {
        let name = name_of(task);
        let about = |number: u64| {
            let bytes = self.store.read(&name, number, Path::new(about::NAME)).map_err(|e| e.to_string())?;
            About::read(&bytes)
        };
        let mut list = List::new();
        for number in self.store.numbers(&name).unwrap_or_default() {
            match about(number) {
                Ok(about) => drop(list.insert(number, about)),
                Err(why) => warn!(%task, number, why, "a checkpoint cannot be used"),
            }
        }
        match list.is_empty() {
            true => drop(self.lists.remove(&task)),
            false => drop(self.lists.insert(task, list)),
        }
    }

    fn tell_list(&self, task: TaskId) {
        let list = self.lists.get(&task).cloned().unwrap_or_default();
        self.tell(News::List { task, list, size: self.size });
    }

    fn tell(&self, news: News) {
        // The runner is gone only when the agent stops.
        let _ = self.news.send(Query::Checkpoints(news));
    }
}

pub(crate) fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(path = %folder.display(), %error, "cannot be removed");
        }
        _ => (),
    }
}
