//! Names of nodes, jobs and tasks.
//!
//! A node gets its number when it joins; it is part of the node's certificate. A job's name holds the number
//! of its home node, so that names are unique without asking anybody, and any node knows whom to ask:
//!
//! ```text
//! 12        a node
//! j12.7     the 7th job that was submitted on node 12
//! j12.7/3   task 3 of that job
//! 12.5031   a process that was started on node 12, wherever it is now
//! ```

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of a node in its VO, given at join; from 1.
///
/// ```
/// use libgrid::ids::NodeId;
/// assert_eq!(NodeId(3).to_string(), "3");
/// assert_eq!("3".parse::<NodeId>().unwrap(), NodeId(3));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// A job: its home node and a serial number there.
///
/// ```
/// use libgrid::ids::{JobId, NodeId};
/// let job: JobId = "j12.7".parse().unwrap();
/// assert_eq!(job, JobId { home: NodeId(12), serial: 7 });
/// assert_eq!(JobId::from_u64(job.as_u64()), job);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// The node where the job was submitted.
    pub home: NodeId,
    /// Counts from 1 on each home node.
    pub serial: u32,
}

/// One task of a job.
///
/// ```
/// use libgrid::ids::TaskId;
/// let task: TaskId = "j12.7/3".parse().unwrap();
/// assert_eq!(task.index, 3);
/// assert_eq!(task.to_string(), "j12.7/3");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The job that the task belongs to.
    pub job: JobId,
    /// The array index; 0 for a job of one task.
    pub index: u32,
}

/// One run of a task: the task and its fencing epoch. A task whose node is lost runs again with the next epoch,
/// and whatever remains of an older one is ended.
///
/// ```
/// use libgrid::ids::{Run, TaskId};
/// let run = Run { task: "j12.7/3".parse().unwrap(), epoch: 2 };
/// assert_eq!(run.to_string(), "j12.7/3#2");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The task.
    pub task: TaskId,
    /// Counts how often it was placed, from 1.
    pub epoch: u32,
}

/// The global id of a process of a task: the node where it was started, and a serial number there. It keeps it when it
/// moves, and no other ever gets it.
///
/// ```
/// use libgrid::ids::{Gpid, NodeId};
/// let gpid: Gpid = "12.5031".parse().unwrap();
/// assert_eq!(gpid, Gpid { node: NodeId(12), serial: 5031 });
/// assert_eq!(Gpid::from_u64(gpid.as_u64()), gpid);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpid {
    /// The node where the process was started.
    pub node: NodeId,
    /// Counts from 1 on each node.
    pub serial: u32,
}

/// What a user may type where a job or one of its tasks is meant.
///
/// ```
/// use libgrid::ids::Selector;
/// assert!(matches!("j1.2".parse(), Ok(Selector::Job(_))));
/// assert!(matches!("j1.2/0".parse(), Ok(Selector::Task(_))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// Every task of the job.
    Job(JobId),
    /// This task alone.
    Task(TaskId),
}

/// The text is not the name of a node, job or task.
///
/// ```
/// let error = "seven".parse::<libgrid::ids::JobId>().unwrap_err();
/// assert_eq!(error.to_string(), "\"seven\" is not a job: write it as gridctl printed it, such as j2.1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: write it as gridctl printed it, such as {example}")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    example: &'static str,
}

// === impl NodeId ===

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        number(text).map(NodeId).ok_or_else(|| bad(text, "node number", "2"))
    }
}

// === impl JobId ===

impl JobId {
    /// The job as one number: the home node in the upper half, the serial in the lower.
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!(JobId { home: NodeId(1), serial: 2 }.as_u64(), 0x1_0000_0002);
    /// ```
    pub fn as_u64(self) -> u64 {
        u64::from(self.home.0) << 32 | u64::from(self.serial)
    }

    /// The inverse of [`JobId::as_u64`].
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!(JobId::from_u64(0x1_0000_0002).to_string(), "j1.2");
    /// ```
    pub fn from_u64(number: u64) -> Self {
        Self { home: NodeId((number >> 32) as u32), serial: number as u32 }
    }

    /// Task `index` of this job.
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!(JobId { home: NodeId(1), serial: 2 }.task(5).to_string(), "j1.2/5");
    /// ```
    pub fn task(self, index: u32) -> TaskId {
        TaskId { job: self, index }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}.{}", self.home, self.serial)
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        (|| {
            let (home, serial) = text.strip_prefix('j')?.split_once('.')?;
            Some(Self { home: NodeId(number(home)?), serial: number(serial)? })
        })()
        .ok_or_else(|| bad(text, "job", "j2.1"))
    }
}

// === impl TaskId ===

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.index)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        (|| {
            let (job, index) = text.split_once('/')?;
            Some(job.parse::<JobId>().ok()?.task(number(index)?))
        })()
        .ok_or_else(|| bad(text, "task", "j2.1/0"))
    }
}

// === impl Gpid ===

impl Gpid {
    /// The id as the kernel's side has it: the node in the upper half, the serial in the lower.
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!(Gpid { node: NodeId(1), serial: 2 }.as_u64(), 0x1_0000_0002);
    /// ```
    pub fn as_u64(self) -> u64 {
        u64::from(self.node.0) << 32 | u64::from(self.serial)
    }

    /// The inverse of [`Gpid::as_u64`].
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!(Gpid::from_u64(0x1_0000_0002).to_string(), "1.2");
    /// ```
    pub fn from_u64(number: u64) -> Self {
        Self { node: NodeId((number >> 32) as u32), serial: number as u32 }
    }
}

impl fmt::Display for Gpid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.serial)
    }
}

impl FromStr for Gpid {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        (|| {
            let (node, serial) = text.split_once('.')?;
            Some(Self { node: NodeId(number(node)?), serial: number(serial)? })
        })()
        .ok_or_else(|| bad(text, "process", "2.5031"))
    }
}

// === impl Run ===

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.task, self.epoch)
    }
}

// === impl Selector ===

impl Selector {
    /// The job that is meant, or whose task is meant.
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// assert_eq!("j1.2/9".parse::<Selector>().unwrap().job().to_string(), "j1.2");
    /// ```
    pub fn job(self) -> JobId {
        match self {
            Selector::Job(job) => job,
            Selector::Task(task) => task.job,
        }
    }

    /// Whether the task is among those that are meant.
    ///
    /// ```
    /// # use libgrid::ids::*;
    /// let one: Selector = "j1.2/9".parse().unwrap();
    /// assert!(one.covers(9) && !one.covers(8));
    /// ```
    pub fn covers(self, index: u32) -> bool {
        match self {
            Selector::Job(_) => true,
            Selector::Task(task) => task.index == index,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Job(job) => job.fmt(f),
            Selector::Task(task) => task.fmt(f),
        }
    }
}

impl FromStr for Selector {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.contains('/') { text.parse().map(Selector::Task) } else { text.parse().map(Selector::Job) }
    }
}

/// A positive decimal number without sign or padding, so that every id has one spelling.
fn number(text: &str) -> Option<u32> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

fn bad(text: &str, kind: &'static str, example: &'static str) -> ParseIdError {
    let shown: String = text.chars().take(64).collect();
    ParseIdError { text: shown, kind, example }
}

/// To people (JSON, TOML) an id is its text, on the wire its numbers.
macro_rules! serde_as_text {
    ($id:ty, $wire:ty, $to:expr, $from:expr) => {
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                if out.is_human_readable() { out.collect_str(self) } else { ($to)(self).serialize(out) }
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                if input.is_human_readable() {
                    String::deserialize(input)?.parse().map_err(D::Error::custom)
                } else {
                    <$wire>::deserialize(input).map($from)
                }
            }
        }
    };
}

serde_as_text!(JobId, u64, |id: &JobId| id.as_u64(), JobId::from_u64);
serde_as_text!(Gpid, u64, |id: &Gpid| id.as_u64(), Gpid::from_u64);
serde_as_text!(TaskId, (u64, u32), |id: &TaskId| (id.job.as_u64(), id.index), |(job, index)| {
    JobId::from_u64(job).task(index)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        for text in
            ["", "j", "j1", "j1.", "j.1", "j01.1", "j1.01", "j1.1/", "j+1.1", "j1.4294967296", "1.1", "J1.1"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text:?} must not be a job");
        }
        for text in ["j1.1", "j4294967295.4294967295", "j1.1/0"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn people_see_text_and_the_wire_carries_numbers() {
        let task: TaskId = "j2.1/7".parse().unwrap();
        assert_eq!(serde_json::to_string(&task).unwrap(), "\"j2.1/7\"");
        assert_eq!(serde_json::from_str::<TaskId>("\"j2.1/7\"").unwrap(), task);
        let bytes = crate::wire::encode(&task).unwrap();
        assert_eq!(crate::wire::decode::<TaskId>(&bytes).unwrap(), task);
    }
}
