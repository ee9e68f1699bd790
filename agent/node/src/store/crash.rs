//! The power goes at any write: what was committed is there, and transactions are whole.
//!
//! A disk that records every operation stands in for the file. For each prefix of the record a disk is made as it
//! could be found after a crash at that moment: all that was synced is there; of the rest any part may be, a write
//! also by half.

use std::io;
use std::sync::{Arc, Mutex};

use grid_jobs::record::{Change, TaskRecord};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::{Database, StorageBackend};

use super::Store;
use super::tests::job;

const TASKS: u32 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<Operation>)>>);

impl Disk {
    fn with(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((image, Vec::new()))))
    }

    fn record(&self) -> Vec<Operation> {
        self.0.lock().unwrap().1.clone()
    }

    fn open(&self) -> Store {
        let database = Database::builder().create_with_backend(self.clone()).unwrap();
        Store::prepare(database).unwrap()
    }
}

fn apply(image: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, bytes) => {
            let start = *offset as usize;
            image.resize(image.len().max(start + bytes.len()), 0);
            image[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Operation::SetLen(len) => image.resize(*len as usize, 0),
        Operation::Sync => (),
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = offset as usize;
        let found = disk.0.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Operation::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Operation::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Operation::Write(offset, data.to_vec()))
    }
}

impl Disk {
    fn note(&self, operation: Operation) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        apply(&mut disk.0, &operation);
        disk.1.push(operation);
        Ok(())
    }
}

/// A disk as it may be found when the power goes after these operations.
fn after_crash(operations: &[Operation], rng: &mut SmallRng) -> Vec<u8> {
    let synced =
        operations.iter().rposition(|operation| matches!(operation, Operation::Sync)).map_or(0, |at| at + 1);
    let mut image = Vec::new();
    operations[..synced].iter().for_each(|operation| apply(&mut image, operation));
    for operation in &operations[synced..] {
        match (operation, rng.random_range(0..3)) {
            // A file that was made longer is so, or its end could not have been written.
            (Operation::SetLen(_), _) | (_, 0) => apply(&mut image, operation),
            (Operation::Write(offset, bytes), 1) => {
                let half = bytes[..bytes.len() / 2].to_vec();
                apply(&mut image, &Operation::Write(*offset, half));
            }
            _ => (),
        }
    }
    image
}

#[test]
fn a_crash_at_any_write_loses_nothing_that_was_committed() {
    let disk = Disk::default();
    let store = disk.open();
    let made = disk.record().len();
    // How many operations there were when each transaction was reported as durable.
    let mut committed = Vec::new();
    for serial in 1..=12 {
        let (id, change) = job(serial);
        let record = TaskRecord {
            epoch: 1,
            used: 1,
            node: None,
            started: None,
            ended: None,
            saved: None,
            exported: None,
            back: None,
            kept: None,
            serial: None,
        };
        let tasks = (0..TASKS).map(|index| Change::Task(id.task(index), Box::new(record.clone())));
        store.apply(&[change].into_iter().chain(tasks).collect::<Vec<_>>()).unwrap();
        committed.push(disk.record().len());
    }
    let operations = disk.record();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut cut_short = 0;
    for end in made..=operations.len() {
        for _ in 0..3 {
            let found = Disk::with(after_crash(&operations[..end], &mut rng));
            let (_, stored) = found.open().load().unwrap();
            let durable = committed.iter().filter(|at| **at <= end).count();
            assert!(
                (durable..=durable + 1).contains(&stored.len()),
                "after {end}: {} of {durable}",
                stored.len()
            );
            assert!(stored.iter().all(|(_, _, tasks)| tasks.len() == TASKS as usize), "after {end}");
            cut_short += usize::from(stored.len() == durable && !committed.contains(&end));
        }
    }
    assert!(cut_short > 0, "some crashes must come within a transaction");
}
