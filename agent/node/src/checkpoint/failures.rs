//! How often this node fails, kept across restarts: what the adaptive interval needs besides the cost.
//!
//! Counted as a failure is what ends tasks that should have gone on: a start of the machine after another, and a shim that
//! is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grid_checkpoint::interval::Failures;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Where the kernel tells which start of the machine this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// How often the time without failure is written down.
const OFTEN: Duration = Duration::from_secs(600);

/// More failures than this change nothing any more.
const MOST: u32 = 1000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    boot: String,
    failures: u32,
    /// Seconds.
    lived: u64,
}

pub(super) struct Seen {
    path: PathBuf,
    record: Record,
    /// What is expected of a node of which nothing is known.
    expected: Duration,
    counted: Instant,
}

impl Seen {
    /// Takes up what an earlier agent wrote down.
    pub(super) fn load(path: &Path, expected: Duration) -> Self {
        let boot = fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned();
        let read = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        let mut seen = Self {
            path: path.to_owned(),
            record: read.unwrap_or_default(),
            expected,
            counted: Instant::now(),
        };
        if seen.record.boot != boot {
            let first = std::mem::replace(&mut seen.record.boot, boot).is_empty();
            seen.record.failures += u32::from(!first);
            seen.write();
        }
        seen
    }

    /// Another one.
    pub(super) fn failed(&mut self) {
        self.record.failures = self.record.failures.saturating_add(1).min(MOST);
        self.count();
        self.write();
    }

    /// As the interval takes it.
    pub(super) fn estimate(&mut self) -> Failures {
        if self.counted.elapsed() >= OFTEN {
            self.count();
            self.write();
        }
        let mut failures = Failures::new(self.expected);
        failures.lived(Duration::from_secs(self.record.lived) + self.counted.elapsed());
        (0..self.record.failures).for_each(|_| failures.failed());
        failures
    }

    fn count(&mut self) {
        self.record.lived += self.counted.elapsed().as_secs();
        self.counted = Instant::now();
    }

    fn write(&self) {
        let part = self.path.with_extension("part");
        let text = serde_json::to_vec(&self.record).unwrap_or_default();
        if let Err(error) = fs::write(&part, text).and_then(|()| fs::rename(&part, &self.path)) {
            // It is an estimate: the next write has the same.
            warn!(path = %self.path.display(), %error, "cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_remembered_and_another_boot_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failures");
        let week = Duration::from_secs(7 * 86_400);
        let mean = |seen: &mut Seen| seen.estimate().mean_time_between().as_secs();
        let mut seen = Seen::load(&path, week);
        assert_eq!(mean(&mut seen), week.as_secs(), "the first start is none");
        seen.failed();
        assert_eq!(mean(&mut Seen::load(&path, week)), week.as_secs() / 2);
        let record = Record { boot: "another".into(), failures: 1, lived: week.as_secs() };
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(mean(&mut Seen::load(&path, week)), 2 * week.as_secs() / 3);
        fs::write(&path, "garbled").unwrap();
        assert_eq!(mean(&mut Seen::load(&path, week)), week.as_secs());
    }
}
