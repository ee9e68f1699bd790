//! Tasks that went to another node with a local user of this one: that user is given to no other task here as long as they
//! are not done, for such a task could not move to where the first is, and that one not back.
//!
//! A file for each, with the user in it. One that is lost costs no more than that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use libgrid::ids::TaskId;
use tracing::warn;

use super::{name_of, task_of};

pub(super) struct Away {
    folder: PathBuf,
    users: BTreeMap<TaskId, (u32, SystemTime)>,
}

impl Away {
    /// # Errors
    /// Where the folder cannot be used.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut users = BTreeMap::new();
        for entry in fs::read_dir(folder)?.flatten() {
            let task = entry.file_name().to_str().and_then(task_of);
            let user = fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok());
            let since = entry.metadata().and_then(|meta| meta.modified());
            match (task, user, since) {
                (Some(task), Some(user), Ok(since)) => drop(users.insert(task, (user, since))),
                // Not written to its end.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(Self { folder: folder.to_owned(), users })
    }

    pub(super) fn note(&mut self, task: TaskId, user: u32) {
        self.users.insert(task, (user, SystemTime::now()));
        let path = self.folder.join(name_of(task));
        if let Err(error) = fs::write(&path, user.to_string()) {
            warn!(path = %path.display(), %error, "cannot be written");
        }
    }

    /// It is done, or here again.
    pub(super) fn forget(&mut self, task: TaskId) {
        if self.users.remove(&task).is_some() {
            // What stays is read by the next agent, which asks again.
            let _ = fs::remove_file(self.folder.join(name_of(task)));
        }
    }

    pub(super) fn users(&self) -> impl Iterator<Item = u32> {
        self.users.values().map(|(user, _)| *user)
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.users.keys().copied()
    }

    pub(super) fn age(&self, task: TaskId) -> Option<Duration> {
        self.users.get(&task).map(|(_, since)| since.elapsed().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_is_remembered_until_it_is_done() {
        let root = tempfile::tempdir().unwrap();
        let task: TaskId = "j3.7/2".parse().unwrap();
        let mut away = Away::open(root.path()).unwrap();
        away.note(task, 1_900_000_003);
        fs::write(root.path().join(name_of("j3.8/0".parse().unwrap())), "190").unwrap();
        fs::write(root.path().join("j3.9-0"), "").unwrap();
        let mut again = Away::open(root.path()).unwrap();
        assert_eq!(again.users().collect::<Vec<_>>(), [1_900_000_003, 190]);
        assert!(again.age(task).is_some());
        again.forget(task);
        assert_eq!(Away::open(root.path()).unwrap().tasks().count(), 1);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
