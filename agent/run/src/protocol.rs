//! What agent and shim say to each other, as frames of [`libgrid::wire`] over a Unix stream socket.
//!
//! Both send a [`Hello`](libgrid::wire::Hello) first. The shim then sends [`FromShim::Tasks`], so that an
//! agent that was restarted learns what runs. Only one agent is connected at a time; a newer connection
//! replaces the older one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use grid_checkpoint::order::{Done, Then};
use libgrid::control::Stdin;
use libgrid::ids::Run;
use libgrid::node::Resources;
use libgrid::pipe::PipeUse;
use libgrid::spec::Checkpoints;
use libgrid::status::Usage;
use serde::{Deserialize, Serialize};

/// Everything that a shim needs to start a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Which.
    pub run: Run,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder of the task; made if absent, with `work` and `tmp` in it.
    pub folder: PathBuf,
    /// Where `work` appears to the task.
    pub workdir: PathBuf,
    /// The local user and group that the task runs as; never 0.
    pub uid: u32,
    /// Processor and memory.
    pub limits: Resources,
    /// Processes and threads.
    pub pids: u32,
    /// Whether the control group of the folder's name is there with these limits: [`Ending::group_kept`] said so.
    pub group_ready: bool,
    /// How long it may run.
    pub time: Option<Duration>,
    /// What it used before, if it goes on from a checkpoint.
    pub before: Usage,
    /// How much of each output stream is kept, in bytes.
    pub log_limit: u64,
    /// What its standard input is; nothing if absent.
    pub stdin: Option<Stdin>,
    /// The folder of the checkpoint to go on from, instead of starting the program. `work` and `tmp` are to be empty, or as `files` says,
    /// and the user, the working folder and the kind of input the same as when it was written.
    pub restore: Option<PathBuf>,
    /// Whether the checkpoint will be there later, of a task that is still on its way: [`ToShim::Arrived`] says when. All is made
    /// ready until then. Should the agent go before, nothing is left of it.
    pub ahead: bool,
    /// Whether what is made from a checkpoint waits for [`ToShim::LetGo`] before its first instruction.
    pub hold: bool,
    /// Where its memory is, if it is not in the checkpoint: see [`grid_checkpoint::memory`].
    pub memory: Option<PathBuf>,
    /// Whether `work` and `tmp` are as they are to be, and not in the checkpoint.
    pub files: bool,
    /// When checkpoints are written: no concern of the shim's, which keeps it for an agent that is started again.
    pub checkpoint: Checkpoints,
    /// Its own address in the grid's network; on that of the node if absent.
    pub address: Option<Ipv4Addr>,
    /// Whether the kernel module is this agent's: the program's process is entered there.
    pub enters: bool,
    /// Whether it has the grid's system call.
    pub calls: bool,
    /// The pipes that it has as FIFOs, which are there, or come with what it is made from: see [`crate::fifo`].
    pub pipes: Vec<PipeUse>,
}

/// From the agent to the shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToShim {
    /// Start a task. A run that the shim has already is left alone.
    Launch(Box<Launch>),
    /// Send a signal to every process of the task; with `grace`, SIGKILL when it has not ended by then.
    Signal {
        /// To which.
        run: Run,
        /// From 1 to 64.
        signal: i32,
        /// How long it has.
        grace: Option<Duration>,
    },
    /// End it, because a newer epoch runs elsewhere.
    Fence(Run),
    /// Until when the tasks may run without news from their home node: nanoseconds of `CLOCK_BOOTTIME`.
    Lease {
        /// Forever if absent.
        until: Option<u64>,
    },
    /// Bytes for the task's standard input, at most [`libgrid::control::MAX_CHUNK`].
    Input {
        /// To which.
        run: Run,
        /// How much was typed before. What the shim has already is passed over; what would leave a gap is not taken.
        at: u64,
        /// Empty: the end of the input, which counts for one byte.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The terminal has a new size.
    Resize {
        /// Whose.
        run: Run,
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Send [`FromShim::Output`] for this task from now on.
    Watch(Run),
    /// Write a checkpoint of it; one at a time. [`FromShim::Checkpointed`] is the answer.
    Checkpoint {
        /// Of which.
        run: Run,
        /// The folder to make and to write it to; not where the task's own mounts are.
        folder: PathBuf,
        /// What becomes of the task. One that is ended was killed, to its home node; one that is held is told of by
        /// [`FromShim::Held`] first.
        then: Then,
        /// Who moves its files, and its memory unless there are rounds of it, which then are not in the checkpoint: see
        /// [`grid_checkpoint::memory`].
        ahead: Option<PathBuf>,
        /// The last round of its memory, which then is in the checkpoint as far as it was written to since.
        parent: Option<PathBuf>,
    },
    /// Write a round of its memory, while it runs: see [`grid_checkpoint::rounds`]. [`FromShim::PreDumped`] is the answer.
    PreDump {
        /// Of which.
        run: Run,
        /// The folder to make and to write it to.
        folder: PathBuf,
        /// The round before, if there was one.
        parent: Option<PathBuf>,
    },
    /// The checkpoint of a task that was launched ahead is there.
    Arrived {
        /// Which.
        run: Run,
        /// How long it may run.
        time: Option<Duration>,
        /// As in [`Launch::before`].
        before: Usage,
    },
    /// Let a task run that is held; [`ToShim::Fence`] ends it.
    LetGo(Run),
    /// The FIFO of a pipe has come to its end: its program is to see that.
    ClosePipe {
        /// Whose.
        run: Run,
        /// The name of the FIFO.
        name: String,
    },
    /// What comes of a [`FromShim::Called`].
    Answer {
        /// Whose call.
        run: Run,
        /// Which.
        call: u64,
        /// A number of errno(3), or 0.
        errno: i32,
        /// What the caller gets, at most [`libgrid::control::MAX_CHUNK`].
        #[serde(with = "serde_bytes")]
        output: Vec<u8>,
    },
    /// The home node has its exit status: forget it.
    Forget(Run),
    /// End when no task is left.
    Retire,
}

/// From the shim to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromShim {
    /// All that it keeps; the first message of a connection.
    Tasks(Vec<Kept>),
    /// A task's processes have been started.
    Started {
        /// Which.
        run: Run,
        /// When.
        at: SystemTime,
    },
    /// A task stands still: it was written down to be held, or made from a checkpoint and waits.
    Held {
        /// Which.
        run: Run,
        /// The folder of the checkpoint.
        folder: PathBuf,
        /// What it cost.
        done: Done,
    },
    /// A checkpoint was written, or not; a task that was not to be ended runs on in either case.
    Checkpointed {
        /// Of which.
        run: Run,
        /// To which folder; if it failed there is none.
        folder: PathBuf,
        /// What it cost, or why it failed: a sentence.
        result: Result<Done, String>,
    },
    /// A round of its memory was written, or not; the task runs on in either case.
    PreDumped {
        /// Of which.
        run: Run,
        /// To which folder; if it failed there is none.
        folder: PathBuf,
        /// What it cost, or why it failed: a sentence.
        result: Result<Done, String>,
    },
    /// A task ended; repeated in [`FromShim::Tasks`] until [`ToShim::Forget`].
    Ended {
        /// Which.
        run: Run,
        /// How.
        end: Ending,
    },
    /// So much was written so far.
    Output {
        /// By which.
        run: Run,
        /// To standard output, in bytes.
        stdout: u64,
        /// To standard error, in bytes.
        stderr: u64,
    },
    /// A process of a task made the grid's system call, and waits for [`ToShim::Answer`].
    Called {
        /// Of which.
        run: Run,
        /// The shim's number for it.
        call: u64,
        /// Whether an earlier agent was told of it, which may have done it.
        again: bool,
        /// The caller's pid.
        pid: u32,
        /// What it asks for: `libgrid::sys::abi::Op`.
        op: u32,
        /// The operation's arguments.
        #[serde(with = "serde_bytes")]
        input: Vec<u8>,
    },
    /// How far a task's input is now.
    Typed {
        /// Which.
        run: Run,
        /// How far.
        typed: Typed,
    },
}

/// How far the input of a task is. It goes on where it was when the task moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    /// How much the shim has: whatever becomes of the agent, that is not typed again.
    pub next: u64,
    /// How much of that is in the task's pipe or terminal, and so in every checkpoint from now on.
    pub taken: u64,
    /// It takes no more ever.
    pub closed: bool,
}

/// A task that a shim keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Which.
    pub run: Run,
    /// Its folder.
    pub folder: PathBuf,
    /// Its uid.
    pub uid: u32,
    /// What it takes from the node.
    pub limits: Resources,
    /// How long it may run.
    pub time: Option<Duration>,
    /// As in [`Launch::before`].
    pub before: Usage,
    /// When it started.
    pub started: SystemTime,
    /// As in [`Launch::checkpoint`].
    pub checkpoint: Checkpoints,
    /// Whether it is still being made from a checkpoint.
    pub restoring: bool,
    /// Whether it stands still until it is let go.
    pub held: bool,
    /// How far its input is.
    pub typed: Typed,
    /// As in [`Launch::address`].
    pub address: Option<Ipv4Addr>,
    /// As in [`Launch::pipes`].
    pub pipes: Vec<PipeUse>,
    /// How it ended, if it did.
    pub end: Option<Ending>,
}

impl Kept {
    pub(crate) fn queued(launch: &Launch) -> Self {
        Self {
            run: launch.run,
            folder: launch.folder.clone(),
            uid: launch.uid,
            limits: launch.limits,
            time: launch.time,
            before: launch.before,
            started: SystemTime::now(),
            checkpoint: launch.checkpoint,
            restoring: launch.restore.is_some(),
            held: false,
            typed: Typed::default(),
            address: launch.address,
            pipes: launch.pipes.clone(),
            end: None,
        }
    }
}

/// How a task ended, as the shim saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// How.
    pub how: How,
    /// What it used.
    pub usage: Usage,
    /// Bytes of output that it wrote, dropped ones included.
    pub printed: u64,
    /// Whether its control group is as new, and was kept for another task.
    pub group_kept: bool,
}

/// The ways to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum How {
    /// By itself.
    Exited(i32),
    /// By a signal that did not come from us.
    Signaled(i32),
    /// By a signal that the agent asked for.
    Killed(i32),
    /// Over its memory limit.
    OutOfMemory,
    /// Over its time limit.
    TimeLimit,
    /// Its epoch was over.
    Fenced,
    /// It could not be started.
    NotStarted {
        /// What failed and why.
        why: String,
        /// 126 or 127, as a shell would say.
        status: u8,
    },
}
