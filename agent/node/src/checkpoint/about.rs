//! What the agent notes of a checkpoint, and the task's output so far: both lie in the checkpoint's own folder, and so are
//! stored and compared with all the rest.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use grid_run::logs;
use libgrid::ids::NodeId;
use libgrid::status::{Checkpoint, Usage};
use libgrid::wire;
use serde::{Deserialize, Serialize};

use crate::output::STREAMS;
use crate::processes::Identity;

/// Its name.
pub(super) const NAME: &str = "about";

/// The folder of the output's segments.
const OUTPUT: &str = "output";

/// Changes with the meaning of what is here.
const FORMAT: u32 = 3;

/// Of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    format: u32,
    pub(crate) made: SystemTime,
    /// How long the task stood still for it, at the most.
    pub(crate) cost: Duration,
    /// After how much time of work it was made; by hand, if absent.
    pub(crate) interval: Option<Duration>,
    /// What was left of the task's time limit.
    pub(crate) left: Option<Duration>,
    /// The user of the task's processes, who must be free where they go on.
    pub(crate) uid: u32,
    pub(crate) bytes: u64,
    /// What the task had used, on all nodes.
    pub(crate) used: Usage,
    /// The ids that its processes keep.
    pub(crate) processes: Vec<Identity>,
}

impl About {
    pub(crate) fn new(
        cost: Duration,
        interval: Option<Duration>,
        left: Option<Duration>,
        uid: u32,
        bytes: u64,
    ) -> Self {
        let (made, processes) = (SystemTime::now(), Vec::new());
        Self { format: FORMAT, made, cost, interval, left, uid, bytes, used: Usage::default(), processes }
    }

    /// With the ids of its processes, and what they used.
    pub(super) fn with(self, processes: Vec<Identity>, used: Usage) -> Self {
        Self { processes, used, ..self }
    }

    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join(NAME), wire::encode(self).map_err(io::Error::other)?)
    }

    /// # Errors
    /// A sentence.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let about: Self = wire::decode(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
        match about.format {
            FORMAT => Ok(about),
            other => Err(format!("it has format {other}, of another release")),
        }
    }

    /// That of the checkpoint in this folder.
    ///
    /// # Errors
    /// A sentence.
    pub(crate) fn read_in(folder: &Path) -> Result<Self, String> {
        Self::read(&fs::read(folder.join(NAME)).map_err(|error| format!("{NAME} cannot be read: {error}"))?)
    }

    /// As users see it.
    pub(super) fn shown(&self, number: u64, node: NodeId) -> Checkpoint {
        let Self { made, cost, interval, bytes, .. } = *self;
        Checkpoint { number, made, bytes, cost, interval, node }
    }
}

/// Puts the output so far beside a checkpoint: by names of its own for the same files, which grow on.
pub(super) fn keep_output(task: &Path, checkpoint: &Path) -> io::Result<()> {
    let folder = checkpoint.join(OUTPUT);
    // Of an agent that did not come to its end with it.
    super::remove(&folder);
    fs::create_dir(&folder)?;
    for entry in fs::read_dir(task)? {
        let entry = entry?;
        if !logs::is_segment(&entry.file_name()) {
            continue;
        }
        match fs::hard_link(entry.path(), folder.join(entry.file_name())) {
            // Dropped meanwhile, as newer output came.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            other => other?,
        }
    }
    Ok(())
}

/// Puts the output back where a task shall go on that had printed so much. What came after the checkpoint will come again.
pub(super) fn give_output(checkpoint: &Path, task: &Path, printed: [u64; 2]) -> io::Result<()> {
    let folder = checkpoint.join(OUTPUT);
    for (stream, printed) in STREAMS.into_iter().zip(printed) {
        for start in logs::starts(&folder, stream)? {
            let (from, to) = (logs::segment(&folder, stream, start), logs::segment(task, stream, start));
            if start < printed {
                fs::rename(&from, &to)?;
                shorten(&to, printed - start)?;
            }
        }
    }
    Ok(())
}

fn shorten(path: &Path, len: u64) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > len { file.set_len(len) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use libgrid::control::Stream;

    use super::*;

    #[test]
    fn output_goes_back_as_it_was_at_the_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let [task, checkpoint, again] = ["task", "checkpoint", "again"].map(|name| root.path().join(name));
        for folder in [&task, &checkpoint, &again] {
            fs::create_dir(folder).unwrap();
        }
        let out = |folder: &Path, start| logs::segment(folder, Stream::Stdout, start);
        fs::write(out(&task, 0), "01234567").unwrap();
        fs::write(out(&task, 8), "89abc").unwrap();
        fs::write(out(&task, 13), "later").unwrap();
        fs::write(task.join("other"), "").unwrap();
        keep_output(&task, &checkpoint).unwrap();
        // What is stored is a copy: the task's own file is left alone.
        let copy = root.path().join("copy");
        fs::create_dir_all(copy.join(OUTPUT)).unwrap();
        for entry in fs::read_dir(checkpoint.join(OUTPUT)).unwrap().flatten() {
            fs::copy(entry.path(), copy.join(OUTPUT).join(entry.file_name())).unwrap();
        }
        give_output(&copy, &again, [10, 0]).unwrap();
        assert_eq!(fs::read_to_string(out(&again, 0)).unwrap(), "01234567");
        assert_eq!(fs::read_to_string(out(&again, 8)).unwrap(), "89");
        assert_eq!(fs::read_dir(&again).unwrap().count(), 2);
    }
}
