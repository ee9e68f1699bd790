//! What became of a job: its tasks, where they run, how they ended and what they used.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, NodeId, TaskId};
use crate::spec::JobSpec;
use crate::units::{Bytes, Span};

/// Where a task is in its life.
///
/// ```text
///            placed            shim started it
///  Waiting ─────────▶ Placed ─────────▶ Running ─────────▶ Done
///     ▲                  │                 │
///     └──────────────────┴─────────────────┘
///            node lost: again, with the next epoch
/// ```
///
/// ```
/// assert_eq!(libgrid::status::TaskState::Running.to_string(), "running");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// No node has been found yet.
    Waiting,
    /// A node has been chosen and prepares it.
    Placed,
    /// It runs.
    Running,
    /// It ended, well or not.
    Done,
}

/// How a task ended.
///
/// ```
/// use libgrid::status::Outcome;
/// assert_eq!(Outcome::Exited(3).exit_status(), 3);
/// assert_eq!(Outcome::Signaled(15).to_string(), "ended by signal 15 (SIGTERM)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ended by itself with this status.
    Exited(i32),
    /// A signal ended it that was not sent through the grid.
    Signaled(i32),
    /// It needed more memory than it had asked for.
    OutOfMemory {
        /// The limit.
        limit: Bytes,
    },
    /// It ran for longer than it had asked for.
    TimeLimit {
        /// The limit.
        limit: Span,
    },
    /// Its owner or an operator ended it with this signal.
    Killed(i32),
    /// It never ran.
    NotStarted {
        /// What failed, why, and what to do.
        why: String,
        /// Whether the program was there but could not be executed (126, as in a shell) or was not there (127).
        status: u8,
    },
    /// Its node was lost, and it was not to be started again.
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// It ran, but its results could not be brought back.
    ResultsLost {
        /// What failed, why, and what to do.
        why: String,
    },
}

/// What a task used. Zero where the kernel does not count it.
///
/// ```
/// assert_eq!(libgrid::status::Usage::default().cpu(), std::time::Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The most memory that it held at once, in bytes, page cache included.
    pub peak_memory: u64,
    /// Bytes read from storage.
    pub read: u64,
    /// Bytes written to storage.
    pub written: u64,
    /// From start to end. Of a task that moved or went on from a checkpoint: on all nodes, without what it did not run.
    pub wall: Duration,
}

/// One task.
///
/// ```
/// use libgrid::status::{TaskState, TaskStatus};
/// assert_eq!(TaskStatus::waiting(3).state, TaskState::Waiting);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its index in the array.
    pub index: u32,
    /// Where it is in its life.
    pub state: TaskState,
    /// The node that it was placed on last.
    pub node: Option<NodeId>,
    /// How often it was placed: the fencing epoch.
    pub epoch: u32,
    /// When it started, the last time.
    pub started: Option<SystemTime>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What it used; while it runs, so far.
    pub usage: Usage,
    /// Why it waits, or what is happening to it.
    pub why: Option<String>,
    /// Its own address, which it keeps until it is done: of a job with [`Net::Grid`](crate::spec::Net), from its first
    /// placement on.
    pub address: Option<Ipv4Addr>,
}

/// How many tasks are in which state.
///
/// ```
/// let counts = libgrid::status::Counts { waiting: 1, placed: 0, running: 2, succeeded: 3, failed: 0 };
/// assert_eq!(counts.total(), 6);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Have no node yet.
    pub waiting: u32,
    /// Are being prepared.
    pub placed: u32,
    /// Run.
    pub running: u32,
    /// Ended with status 0.
    pub succeeded: u32,
    /// Ended otherwise.
    pub failed: u32,
}

/// One job in a list.
///
/// ```
/// # use libgrid::{ids::*, status::*};
/// # fn show(job: JobSummary) {
/// println!("{} {}: {} of {} done", job.id, job.name, job.counts.done(), job.counts.total());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its name in the grid.
    pub id: JobId,
    /// What the user called it.
    pub name: String,
    /// Who submitted it: `user@node`.
    pub owner: String,
    /// When.
    pub submitted: SystemTime,
    /// When its last task ended.
    pub ended: Option<SystemTime>,
    /// Its tasks by state.
    pub counts: Counts,
    /// The nodes on which its unfinished tasks are.
    pub nodes: Vec<NodeId>,
    /// The exit status for scripts, once it is done: the highest of its tasks.
    pub exit_status: Option<i32>,
    /// Why its tasks wait, or do not come to their end.
    pub why: Option<String>,
    /// How many tasks have ended, and left what cannot be brought home: it stays on their nodes, and is tried again.
    pub stuck: u32,
}

/// One job in full, with a page of its tasks.
///
/// ```
/// # fn show(job: libgrid::status::JobStatus) {
/// for task in &job.tasks {
///     println!("{}/{} is {}", job.summary.id, task.index, task.state);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub summary: JobSummary,
    /// What was submitted.
    pub spec: JobSpec,
    /// Tasks in the order of their indices, at most [`PAGE`].
    pub tasks: Vec<TaskStatus>,
    /// The index to ask for next, if there are more tasks.
    pub more: Option<u32>,
}

/// How far a task is that moves to another node while it runs.
///
/// ```text
///  Reserving ─▶ Ahead, or Rounds ─▶ Departing ─▶ Copying ─▶ Restoring ─▶ (it runs there)
///      └───────────────┴────────────────┴───────────┴───────────┴──────▶ (it runs on where it was)
/// ```
///
/// ```
/// assert_eq!(libgrid::status::MovePhase::Copying.to_string(), "it is copied");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MovePhase {
    /// The destination is asked for room.
    Reserving,
    /// Its memory is sent while it runs; left out where it is stopped and copied.
    Ahead,
    /// It is stopped and written down where it runs.
    Departing,
    /// What the destination lacks of it is on its way.
    Copying,
    /// It is made at the destination.
    Restoring,
    /// As `Ahead`, but as images of CRIU, round after round (pre-copy).
    Rounds,
}

impl fmt::Display for MovePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MovePhase::Reserving => "room is asked for",
            MovePhase::Ahead => "its memory is sent while it runs",
            MovePhase::Departing => "it is stopped and written down",
            MovePhase::Copying => "it is copied",
            MovePhase::Restoring => "it is made there",
            MovePhase::Rounds => "its memory is sent in rounds while it runs",
        })
    }
}

/// How a task moves.
///
/// ```
/// use libgrid::status::MoveMode;
/// assert_eq!("hybrid".parse(), Ok(MoveMode::Hybrid));
/// assert_eq!(MoveMode::StopAndCopy.to_string(), "stop-and-copy");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveMode {
    /// Hybrid; where that cannot be, pre-copy; where that cannot be either, it is stopped and copied.
    #[default]
    Auto,
    /// It is stopped, written down, copied and made anew: it stands still the longer the more memory it has.
    StopAndCopy,
    /// Its memory is sent while it runs; it is stopped for the rest, and runs on while the last of its memory comes. Needs Linux
    /// 6.7 or newer on both sides (userfaultfd with asynchronous write protection, `PAGEMAP_SCAN`).
    Hybrid,
    /// Its memory is sent round by round while it runs, what it wrote to since the last round alone; it is stopped for the rest.
    /// Needs soft-dirty bits where it runs (`CONFIG_MEM_SOFT_DIRTY`; Debian's kernels have them).
    PreCopy,
}

impl MoveMode {
    const ALL: [(Self, &str); 4] = [
        (Self::Auto, "auto"),
        (Self::StopAndCopy, "stop-and-copy"),
        (Self::Hybrid, "hybrid"),
        (Self::PreCopy, "pre-copy"),
    ];
}

impl fmt::Display for MoveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(mode, _)| mode == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for MoveMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text).map(|(mode, _)| *mode);
        found.ok_or_else(|| {
            format!("there is no mode {text:?}: auto, hybrid, pre-copy and stop-and-copy are the ones")
        })
    }
}

/// Something that stops a task from being moved or written down.
///
/// ```
/// use libgrid::status::Obstacle;
/// let obstacle = Obstacle { what: "it has /dev/kvm open".into(), remedy: "run it without".into() };
/// assert_eq!(obstacle.to_string(), "it has /dev/kvm open: run it without");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// What is in the way: no full stop.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

/// A move that is done.
///
/// ```no_run
/// # fn show(moved: libgrid::status::Moved) {
/// println!("it stood still for {:?}", moved.stopped);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it was.
    pub from: NodeId,
    /// Where it is.
    pub to: NodeId,
    /// How it moved.
    pub mode: MoveMode,
    /// Bytes of its memory and of its files that came while it ran; what changed meanwhile counts again.
    pub ahead: u64,
    /// From the first question to the destination until the task could go on there.
    pub took: Duration,
    /// How long the task stood still, as its home saw it.
    pub stopped: Duration,
}

/// A checkpoint of a task.
///
/// ```
/// # fn show(checkpoint: libgrid::status::Checkpoint) {
/// println!("{}: {} bytes on node {}", checkpoint.number, checkpoint.bytes, checkpoint.node);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Counts up, for each task.
    pub number: u64,
    /// When it was made.
    pub made: SystemTime,
    /// Its bytes: what it keeps, not what it takes from the disk, which has of several that are alike but one.
    pub bytes: u64,
    /// How long it took; the task stood still for a part of that.
    pub cost: Duration,
    /// After how much time of work it was made; `None` if somebody asked for it.
    pub interval: Option<Duration>,
    /// Where it is kept.
    pub node: NodeId,
}

/// The checkpoints of a task.
///
/// ```
/// # fn show(task: libgrid::status::TaskCheckpoints) {
/// println!("{} has {}", task.task, task.checkpoints.len());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCheckpoints {
    /// Of which.
    pub task: TaskId,
    /// In the order of their numbers.
    pub checkpoints: Vec<Checkpoint>,
    /// Why the last one could not be made, or a restore was not as it should be: one sentence.
    pub trouble: Option<String>,
}

/// The most tasks in one [`JobStatus`].
pub const PAGE: usize = 1000;

// === impls ===

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskState::Waiting => "waiting",
            TaskState::Placed => "placed",
            TaskState::Running => "running",
            TaskState::Done => "done",
        })
    }
}

impl Outcome {
    /// Whether it ended by itself with status 0, results brought back.
    ///
    /// ```
    /// assert!(libgrid::status::Outcome::Exited(0).is_success());
    /// ```
    pub fn is_success(&self) -> bool {
        *self == Outcome::Exited(0)
    }

    /// The status for scripts, as shells and `timeout` have it: its own; 128 + signal; 137 out of memory;
    /// 124 over time; 126 or 127 not started; 75 (`EX_TEMPFAIL`) node lost; 74 (`EX_IOERR`) results lost.
    ///
    /// ```
    /// # use libgrid::status::Outcome;
    /// assert_eq!(Outcome::Killed(9).exit_status(), 137);
    /// ```
    pub fn exit_status(&self) -> i32 {
        match self {
            Outcome::Exited(status) => *status,
            Outcome::Signaled(signal) | Outcome::Killed(signal) => 128 + signal,
            Outcome::OutOfMemory { .. } => 137,
            Outcome::TimeLimit { .. } => 124,
            Outcome::NotStarted { status, .. } => i32::from(*status),
            Outcome::NodeLost { .. } => 75,
            Outcome::ResultsLost { .. } => 74,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Exited(0) => f.write_str("succeeded"),
            Outcome::Exited(status) => write!(f, "ended with status {status}"),
            Outcome::Signaled(signal) => write!(f, "ended by signal {signal}{}", SignalName(*signal)),
            Outcome::OutOfMemory { limit } => {
                write!(f, "ended for needing more than its {limit} of memory: ask for more with --mem")
            }
            Outcome::TimeLimit { limit } => {
                write!(f, "ended for running longer than its {limit}: ask for more with --time")
            }
            Outcome::Killed(signal) => write!(f, "killed with signal {signal}{}", SignalName(*signal)),
            Outcome::NotStarted { why, .. } => write!(f, "not started: {why}"),
            Outcome::NodeLost { node } => write!(f, "lost with node {node}: submit it again"),
            Outcome::ResultsLost { why } => write!(f, "ran, but its results are not all here: {why}"),
        }
    }
}

/// ` (SIGTERM)` for 15; nothing for a signal without a name.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => write!(f, " (SIG{name})"),
            None => Ok(()),
        }
    }
}

/// Linux's numbers (signal(7), x86 and ARM).
const SIGNALS: [(i32, &str); 20] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (5, "TRAP"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
    (19, "STOP"),
    (20, "TSTP"),
    (24, "XCPU"),
    (25, "XFSZ"),
];

/// The number of a signal that is written `INT`, `SIGINT` or `2`.
///
/// ```
/// use libgrid::status::signal_number;
/// assert_eq!(signal_number("sigterm"), Some(15));
/// assert_eq!(signal_number("65"), None);
/// ```
pub fn signal_number(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = SIGNALS.iter().find(|(_, known)| *known == name).map(|(number, _)| *number);
    by_name.or_else(|| text.parse().ok().filter(|number| (1..=64).contains(number)))
}

impl Usage {
    /// With what was used before, by the same task elsewhere. What another node says it was may be anything: the largest
    /// amounts are the limit.
    ///
    /// ```
    /// use libgrid::status::Usage;
    /// let [before, now] = [(3, 10), (2, 7)].map(|(read, peak_memory)| Usage { read, peak_memory, ..Usage::default() });
    /// assert_eq!((now.after(before).read, now.after(before).peak_memory), (5, 10));
    /// let all = Usage { user: std::time::Duration::MAX, written: u64::MAX, ..now };
    /// assert_eq!(all.after(all), Usage { read: 4, ..all });
    /// ```
    #[must_use]
    pub fn after(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_add(before.user),
            system: self.system.saturating_add(before.system),
            peak_memory: self.peak_memory.max(before.peak_memory),
            read: self.read.saturating_add(before.read),
            written: self.written.saturating_add(before.written),
            wall: self.wall.saturating_add(before.wall),
        }
    }

    /// Processor time in all.
    ///
    /// ```
    /// # use libgrid::status::Usage;
    /// # use std::time::Duration;
    /// let usage = Usage { user: Duration::from_secs(2), system: Duration::from_secs(1), ..Usage::default() };
    /// assert_eq!(usage.cpu().as_secs(), 3);
    /// ```
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

impl TaskStatus {
    /// A task that nobody has touched.
    ///
    /// ```
    /// assert_eq!(libgrid::status::TaskStatus::waiting(0).epoch, 0);
    /// ```
    pub fn waiting(index: u32) -> Self {
        Self {
            index,
            state: TaskState::Waiting,
            node: None,
            epoch: 0,
            started: None,
            outcome: None,
            usage: Usage::default(),
            why: None,
            address: None,
        }
    }
}

impl Counts {
    /// All tasks.
    ///
    /// ```
    /// assert_eq!(libgrid::status::Counts::default().total(), 0);
    /// ```
    pub fn total(&self) -> u32 {
        self.waiting + self.placed + self.running + self.done()
    }

    /// Those that ended.
    ///
    /// ```
    /// # use libgrid::status::Counts;
    /// assert_eq!(Counts { succeeded: 1, failed: 1, ..Counts::default() }.done(), 2);
    /// ```
    pub fn done(&self) -> u32 {
        self.succeeded + self.failed
    }
}

impl JobSummary {
    /// Whether every task ended.
    ///
    /// ```
    /// # fn check(job: libgrid::status::JobSummary) {
    /// assert_eq!(job.is_done(), job.counts.done() == job.counts.total());
    /// # }
    /// ```
    pub fn is_done(&self) -> bool {
        self.counts.done() == self.counts.total()
    }

    /// Whether every task ended with status 0.
    ///
    /// ```
    /// # fn check(job: libgrid::status::JobSummary) {
    /// assert!(job.succeeded());
    /// # }
    /// ```
    pub fn succeeded(&self) -> bool {
        self.counts.succeeded == self.counts.total()
    }

    /// One word for lists: `waiting`, `running`, `done` or `failed`.
    ///
    /// ```
    /// # fn check(job: libgrid::status::JobSummary) {
    /// assert_eq!(job.state(), "done");
    /// # }
    /// ```
    pub fn state(&self) -> &'static str {
        match self.counts {
            counts if self.is_done() && counts.failed > 0 => "failed",
            _ if self.is_done() => "done",
            Counts { running: 1.., .. } | Counts { placed: 1.., .. } => "running",
            _ => "waiting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_one_number() {
        for (number, name) in SIGNALS {
            assert_eq!(signal_number(name), Some(number));
            assert_eq!(signal_number(&format!("SIG{name}")), Some(number));
        }
        for wrong in ["", "0", "-1", "65", "SIG", "TERMINATE"] {
            assert_eq!(signal_number(wrong), None, "{wrong:?}");
        }
    }
}
