//! The records of the jobs that were submitted on this node, in redb: one file, ACID.
//!
//! A batch of changes is one transaction, durable when [`Store::apply`] returns. Values are in the codec of
//! [`libgrid::wire`]; a record of another format version is refused at start, never misread.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use grid_jobs::record::{Change, JobRecord, TaskRecord};
use libgrid::ids::JobId;
use libgrid::wire::{self, WireError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const JOBS: TableDefinition<u64, &[u8]> = TableDefinition::new("jobs");
const TASKS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("tasks");

/// Changes whenever a record's encoding does.
const FORMAT: u64 = 7;

/// What redb keeps in memory at most, in bytes.
const CACHE: usize = 8 << 20;

/// The records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the job records cannot be used: {0}")]
    Database(#[from] redb::Error),
    #[error("a job record cannot be read: {0}")]
    Record(#[from] WireError),
    #[error(
        "the job records are of format {found}, this release reads {FORMAT}: install the release that wrote them"
    )]
    Format { found: u64 },
}

macro_rules! from_redb {
    ($($error:ty),*) => { $(impl From<$error> for StoreError {
        fn from(error: $error) -> Self { StoreError::Database(error.into()) }
    })* };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

pub(crate) struct Store(Database);

/// A job with those of its tasks that have records.
pub(crate) type Stored = (JobId, Arc<JobRecord>, Vec<(u32, TaskRecord)>);

impl Store {
    /// Opens the store, or makes it. After a crash it is as the last transaction left it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        // What jobs say, such as their environment, is between their users and root.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(redb::StorageError::from)?;
        Self::prepare(database)
    }

    fn prepare(database: Database) -> Result<Self, StoreError> {
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            transaction.open_table(JOBS)?;
            transaction.open_table(TASKS)?;
            let found = meta.get("format")?.map(|value| value.value());
            match found {
                Some(FORMAT) => (),
                Some(found) => return Err(StoreError::Format { found }),
                None => drop(meta.insert("format", FORMAT)?),
            }
        }
        transaction.commit()?;
        Ok(Self(database))
    }

    /// Everything, and the first serial number that was never used.
    pub(crate) fn load(&self) -> Result<(u32, Vec<Stored>), StoreError> {
        let transaction = self.0.begin_read()?;
        let serial = transaction.open_table(META)?.get("serial")?.map_or(1, |value| value.value() as u32);
        let mut tasks: BTreeMap<u64, Vec<(u32, TaskRecord)>> = BTreeMap::new();
        for entry in transaction.open_table(TASKS)?.iter()? {
            let (key, value) = entry?;
            let (job, index) = key.value();
            tasks.entry(job).or_default().push((index, wire::decode(value.value())?));
        }
        let mut stored = Vec::new();
        for entry in transaction.open_table(JOBS)?.iter()? {
            let (key, value) = entry?;
            let job = key.value();
            let record = Arc::new(wire::decode(value.value())?);
            stored.push((JobId::from_u64(job), record, tasks.remove(&job).unwrap_or_default()));
        }
        Ok((serial, stored))
    }

    /// Makes the changes durable, all or none.
    pub(crate) fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let transaction = self.0.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut jobs = transaction.open_table(JOBS)?;
            let mut tasks = transaction.open_table(TASKS)?;
            for change in changes {
                match change {
                    Change::Job(id, record) => {
                        jobs.insert(id.as_u64(), wire::encode(&**record)?.as_slice())?;
                        let next = u64::from(id.serial) + 1;
                        if meta.get("serial")?.is_none_or(|serial| serial.value() < next) {
                            meta.insert("serial", next)?;
                        }
                    }
                    Change::Task(task, record) => {
                        tasks.insert((task.job.as_u64(), task.index), wire::encode(record)?.as_slice())?;
                    }
                    Change::Forget(id) => {
                        jobs.remove(id.as_u64())?;
                        tasks.retain_in((id.as_u64(), 0)..=(id.as_u64(), u32::MAX), |_, _| false)?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod crash;

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use grid_jobs::record::Origin;
    use libgrid::spec::JobSpec;

    use super::*;

    pub(crate) fn job(serial: u32) -> (JobId, Change) {
        let id = JobId::from_u64(1 << 32 | u64::from(serial));
        let origin =
            Origin { owner: "u@n".into(), uid: 1, gid: 1, folder: "/".into(), inputs: None, stdin: None };
        let spec = Arc::new(JobSpec::command(["x"]).array(0, 9));
        let (submitted, unmet) = (SystemTime::UNIX_EPOCH, Vec::new());
        let record = JobRecord { spec, origin, submitted, cancelled: None, held: false, unmet };
        (id, Change::Job(id, Arc::new(record)))
    }

    #[test]
    fn what_was_applied_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.redb");
        let (one, first) = job(1);
        let (two, second) = job(2);
        let task = TaskRecord {
            epoch: 3,
            used: 4,
            node: None,
            started: None,
            ended: None,
            saved: None,
            exported: None,
            back: None,
            kept: None,
            serial: Some(9),
        };
        {
            let store = Store::open(&path).unwrap();
            store.apply(&[first, second, Change::Task(one.task(4), Box::new(task.clone()))]).unwrap();
            store.apply(&[Change::Forget(two)]).unwrap();
        }
        let (serial, stored) = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(serial, 3, "a forgotten job's number is not used again");
        assert_eq!(stored.len(), 1);
        assert_eq!((stored[0].0, &stored[0].2), (one, &vec![(4, task)]));
    }
}
