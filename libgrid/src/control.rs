//! The control protocol: what `gridctl` and every other program asks the agent of its own machine.
//!
//! A client connects to the agent's Unix socket ([`DEFAULT_SOCKET`]); each side sends a
//! [`Hello`](crate::wire::Hello). Then the client sends [`Request`] frames, and gets for each, in order, one
//! [`Response`] frame. Requests may be sent before earlier ones are answered. Eight requests go on after that,
//! and a connection that carried one is closed at its end:
//!
//! | request | then |
//! | --- | --- |
//! | [`Request::Submit`] with `upload` | the client sends [`Chunk`] frames, an empty one last; then comes the response |
//! | [`Request::Wait`] | [`Reply::Job`] whenever the job changes, until it is done |
//! | [`Request::Logs`] | [`Reply::Output`] as it comes, then [`Reply::Done`] |
//! | [`Request::Migrate`] | [`Reply::Moving`] for each phase, then [`Reply::Moved`] |
//! | [`Request::Drain`] | [`Reply::Relocated`] for each task, then [`Reply::Done`] |
//! | [`Request::Copy`] | [`Reply::Copying`] several times a second, then [`Reply::Copied`] |
//! | [`Request::Input`] | the client sends [`Input`] frames; [`Reply::Done`] when the task ended |
//! | [`Request::Pipe`] that reads or writes | see [`PipeRequest`] |
//!
//! The agent knows its caller from the kernel (`SO_PEERCRED`), not from what is sent.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::copy::{Copy, Entry, Export, ExportOf, Landed, Place, Progress};
use crate::ids::{Gpid, JobId, NodeId, Selector, TaskId};
use crate::node::NodeInfo;
use crate::pipe::{PipeReply, PipeRequest};
use crate::process::Process;
use crate::spec::JobSpec;
use crate::status::{JobStatus, JobSummary, MoveMode, MovePhase, Moved, Obstacle, TaskCheckpoints};
use crate::units::Span;

/// Where the agent listens, unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/gridos/control.sock";

/// Bytes in one [`Chunk`], [`Input`] or [`Reply::Output`] at most.
pub const MAX_CHUNK: usize = 256 << 10;

/// What a client can ask.
///
/// ```
/// use libgrid::{control::Request, wire};
/// let bytes = wire::encode(&Request::Nodes).unwrap();
/// assert_eq!(wire::decode::<Request>(&bytes).unwrap(), Request::Nodes);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What this agent is: [`Reply::Agent`].
    Agent,
    /// Found a VO with this node as its first: [`Reply::Agent`].
    CreateVo {
        /// 1 to 63 of `a-z`, `0-9` and `-`.
        name: String,
    },
    /// Make a token for one more node: [`Reply::Token`].
    CreateToken {
        /// How long it can be used.
        lifetime: Span,
    },
    /// Join the VO that the token came from: [`Reply::Agent`].
    Join {
        /// The line that `gridctl token create` printed.
        token: String,
    },
    /// Put a node out of the VO: [`Reply::Done`].
    Revoke {
        /// Its number or name.
        node: String,
    },
    /// All nodes: [`Reply::Nodes`].
    Nodes,
    /// What this machine can do and what it lacks: [`Reply::Doctor`].
    Doctor,
    /// Run a job: [`Reply::Submitted`].
    Submit(Box<Submission>),
    /// Jobs that were submitted on this node, or with `everywhere` on any: [`Reply::Jobs`].
    Jobs {
        /// Ask the other nodes, too.
        everywhere: bool,
        /// Also those that are done.
        done: bool,
        /// Those alone that have tasks on this node.
        at: Option<NodeId>,
    },
    /// One job: [`Reply::Job`].
    Job {
        /// Which.
        job: Selector,
        /// The first index of the page of tasks.
        from: u32,
    },
    /// One job, again at each change until it is done: [`Reply::Job`]. Then the connection takes the next request, where
    /// the job is of this node, or ends.
    Wait {
        /// Which.
        job: Selector,
    },
    /// What a task wrote: [`Reply::Output`].
    Logs {
        /// Which.
        task: TaskId,
        /// Which streams.
        streams: Streams,
        /// Where to begin in standard output and in standard error: 0, or where a broken connection left off.
        from: [u64; 2],
        /// Go on until the task ends.
        follow: bool,
    },
    /// Send a signal: [`Reply::Signalled`].
    Kill {
        /// To which tasks.
        job: Selector,
        /// From 1 to 64.
        signal: i32,
    },
    /// Let nothing more of a job start, or with `undo` let it start again: [`Reply::Done`].
    Hold {
        /// Which.
        job: JobId,
        /// Whether it is released.
        undo: bool,
    },
    /// Type into a task that was submitted with [`Submission::input`]: [`Reply::Done`] when it ends.
    Input {
        /// Which.
        task: TaskId,
    },
    /// Copy files: [`Reply::Copying`], several times a second, then [`Reply::Copied`].
    Copy(Box<Copy>),
    /// What is in a folder, or a file by itself: [`Reply::Listing`].
    List {
        /// Which.
        place: Place,
    },
    /// Lend a folder to the other nodes, or change how: [`Reply::Done`].
    Export(Export),
    /// Lend a folder no longer: [`Reply::Done`].
    Unexport {
        /// Which.
        path: PathBuf,
    },
    /// A certificate of the VO for the caller, with its key: [`Reply::Certificate`].
    Certify,
    /// What is lent: [`Reply::Exports`].
    Exports {
        /// By the other nodes, too.
        everywhere: bool,
    },
    /// Write a checkpoint of a task now: [`Reply::Checkpoints`] with it alone, when it is stored.
    Checkpoint {
        /// Of which.
        task: TaskId,
    },
    /// The checkpoints of a task: [`Reply::Checkpoints`].
    Checkpoints {
        /// Of which.
        task: TaskId,
    },
    /// End a task that runs, and let it go on from a checkpoint: [`Reply::Restoring`]. Later ones are dropped.
    Restore {
        /// Which.
        task: TaskId,
        /// The number of the checkpoint; the newest if absent.
        from: Option<u64>,
    },
    /// Move a task to another node while it runs: [`Reply::Moving`] for each phase, then [`Reply::Moved`]; with `check`, only
    /// look whether it can be: [`Reply::Fits`].
    Migrate {
        /// Which.
        task: TaskId,
        /// The number or name of the node; the best one if absent.
        to: Option<String>,
        /// How.
        mode: MoveMode,
        /// Whether to look only.
        check: bool,
    },
    /// Move all that runs on a node to others, and let it take no more: [`Reply::Relocated`] for each task, then
    /// [`Reply::Done`]. With `undo`, let it take tasks again.
    Drain {
        /// Its number or name.
        node: String,
        /// Whether to let it take tasks again.
        undo: bool,
        /// How they move.
        mode: MoveMode,
    },
    /// The processes that run in tasks of the caller's jobs, or in everybody's if that is root: [`Reply::Processes`].
    Processes {
        /// Of these tasks alone.
        of: Option<Selector>,
        /// Of jobs that were submitted on other nodes, too.
        everywhere: bool,
    },
    /// Which task a process is part of, wherever it runs: [`Reply::Found`].
    Find {
        /// Its global id.
        process: Gpid,
    },
    /// Send a signal to one process of a task: [`Reply::Done`].
    Signal {
        /// The task that it is part of, as [`Request::Find`] tells.
        task: TaskId,
        /// Which.
        process: Gpid,
        /// From 1 to 64.
        signal: i32,
    },
    /// One of the operations that the kernel module has, too (`libgrid::sys`): [`Reply::Operated`].
    Operate {
        /// Its number.
        op: u32,
        /// Its arguments, as `kmod/include/uapi/linux/gridos.h` has them; at most 64 KiB.
        #[serde(with = "serde_bytes")]
        input: Vec<u8>,
    },
    /// About named pipes.
    Pipe(PipeRequest),
}

/// A job to run, and where it came from.
///
/// ```
/// use libgrid::{control::Submission, spec::JobSpec};
/// let submission = Submission::new(JobSpec::command(["/bin/true"]), "/tmp");
/// assert!(!submission.upload);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// What to run.
    pub spec: JobSpec,
    /// The folder that results are brought back to; the caller's rights decide about it.
    pub folder: PathBuf,
    /// Whether a tar archive of the inputs follows. Otherwise the agent gathers them from `folder`, with the caller's rights, when
    /// the jobs that come before have ended.
    pub upload: bool,
    /// Whether the task's standard input comes from the client.
    pub input: Option<Stdin>,
}

/// A job that was accepted.
///
/// ```no_run
/// # fn show(submitted: libgrid::control::Submitted) {
/// println!("{} is written down; {}", submitted.job, submitted.waits.unwrap_or_default());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Its name.
    pub job: JobId,
    /// Why no node that answers could run it as things are, however little else ran there: a sentence. It waits until one can.
    pub waits: Option<String>,
}

/// What an interactive task has as its standard input.
///
/// ```
/// use libgrid::control::Stdin;
/// assert_ne!(Stdin::Pipe, Stdin::Terminal { rows: 24, cols: 80 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// A pipe; standard output and error are kept apart.
    Pipe,
    /// A terminal of its own, on which standard output and error are one.
    Terminal {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// Bytes of an upload; empty at the end.
///
/// ```
/// assert!(libgrid::control::Chunk(Vec::new()).0.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// What a client sends to a task that it types into.
///
/// ```
/// assert_eq!(libgrid::control::Input::End, libgrid::control::Input::End);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Typed bytes.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Nothing more will be typed.
    End,
    /// The terminal has a new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// Which output of a task.
///
/// ```
/// use libgrid::control::{Stream, Streams};
/// assert!(Streams::Both.has(Stream::Stderr));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Streams {
    /// Standard output alone.
    Stdout,
    /// Standard error alone.
    Stderr,
    /// Both.
    Both,
}

/// One output stream of a task.
///
/// ```
/// assert_ne!(libgrid::control::Stream::Stdout, libgrid::control::Stream::Stderr);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the agent answers.
pub type Response = Result<Reply, Failure>;

/// What the agent answers when all went well.
///
/// ```
/// use libgrid::control::{Reply, Response};
/// let response: Response = Ok(Reply::Done);
/// assert!(response.is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done; there is nothing to say.
    Done,
    /// This agent.
    Agent(AgentInfo),
    /// A token, one line.
    Token(String),
    /// The nodes of the VO, in the order of their numbers.
    Nodes(Vec<NodeStatus>),
    /// Findings about this machine.
    Doctor(Vec<Finding>),
    /// The job has been accepted.
    Submitted(Submitted),
    /// Jobs, newest last, and the nodes that did not answer.
    Jobs {
        /// The jobs.
        jobs: Vec<JobSummary>,
        /// Nodes whose jobs are missing.
        silent: Vec<NodeId>,
    },
    /// One job.
    Job(Box<JobStatus>),
    /// How many tasks got the signal or will not be started.
    Signalled(u32),
    /// A piece of a task's output.
    Output {
        /// Which stream.
        stream: Stream,
        /// Where the piece begins, counted from the task's start. A gap means that the oldest was dropped.
        offset: u64,
        /// The piece.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// How far a copy is.
    Copying(Progress),
    /// A copy is done.
    Copied(Landed),
    /// What is in a folder, in the order of names, and whether there is more than fits.
    Listing {
        /// The first entries.
        entries: Vec<Entry>,
        /// Whether there are more.
        more: bool,
    },
    /// A certificate.
    Certificate(Certificate),
    /// What nodes lend, and the nodes that did not answer.
    Exports {
        /// In the order of nodes.
        exports: Vec<ExportOf>,
        /// Nodes whose exports are missing.
        silent: Vec<NodeId>,
    },
    /// Checkpoints of a task.
    Checkpoints(Box<TaskCheckpoints>),
    /// The task goes on from this checkpoint.
    Restoring(u64),
    /// A task that moves is so far.
    Moving {
        /// Where it runs.
        from: NodeId,
        /// Where it shall run.
        to: NodeId,
        /// How far it is.
        phase: MovePhase,
        /// Bytes of its memory that came while it runs.
        bytes: u64,
    },
    /// A task has moved, and runs on.
    Moved(Moved),
    /// What came of a task on a node that is drained.
    Relocated {
        /// Which.
        task: TaskId,
        /// It runs elsewhere now.
        moved: Option<Moved>,
        /// It stays: a sentence why.
        stayed: Option<String>,
    },
    /// Whether a task could move.
    Fits {
        /// From where.
        from: NodeId,
        /// Whereto.
        to: NodeId,
        /// What stops it; nothing if it can.
        obstacles: Vec<Obstacle>,
    },
    /// Processes, in the order of tasks, and the nodes that did not answer.
    Processes {
        /// The first of them.
        processes: Vec<Process>,
        /// Nodes whose processes are missing.
        silent: Vec<NodeId>,
        /// Whether there are more than fit.
        more: bool,
    },
    /// The process is part of this task.
    Found(TaskId),
    /// What an operation came back with.
    Operated {
        /// The number of the error (errno(3)); 0 for none.
        errno: i32,
        /// What came out; with an error, a sentence.
        #[serde(with = "serde_bytes")]
        output: Vec<u8>,
    },
    /// About named pipes.
    Pipe(PipeReply),
}

/// A certificate of the VO, for programs that speak TLS or GSI, all as PEM.
///
/// ```
/// # fn f(certificate: libgrid::control::Certificate) {
/// std::fs::write("user.crt", certificate.certificate).unwrap();
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// It names its holder as `spiffe://VO/user/NODE.USER`.
    pub certificate: String,
    /// Its private key: whoever has it is the holder.
    pub key: String,
    /// The certificate of the VO's authority.
    pub authority: String,
}

/// Without the key, which is to be in no log.
impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What the agent is.
///
/// ```
/// # fn show(agent: libgrid::control::AgentInfo) {
/// println!("gridosd {} {}", agent.version, agent.vo.as_deref().unwrap_or("is in no VO"));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its release.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The VO that it is in.
    pub vo: Option<String>,
    /// Its number there.
    pub node: Option<NodeId>,
    /// Whether it holds the VO's authority.
    pub authority: bool,
    /// When its certificate ends, in seconds from 1970.
    pub certificate_ends: Option<u64>,
}

/// A node as this agent sees it.
///
/// ```
/// # fn show(node: libgrid::control::NodeStatus) {
/// println!("{} {:?}", node.info.name, node.state);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// What it says of itself.
    pub info: NodeInfo,
    /// Whether it answers.
    pub state: NodeState,
    /// Whether it is the agent that answers.
    pub this: bool,
}

/// Whether a node answers.
///
/// ```
/// assert_eq!(libgrid::control::NodeState::Up.to_string(), "up");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It does.
    Up,
    /// It missed a probe.
    Suspect,
    /// It does not.
    Down,
    /// It was put out of the VO.
    Revoked,
}

/// One thing that `gridctl doctor` looked at.
///
/// ```
/// # fn show(finding: libgrid::control::Finding) {
/// println!("{:?} {}: {}", finding.verdict, finding.subject, finding.text);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found; if it is not good, what it costs and what to do.
    pub text: String,
}

/// How a finding is.
///
/// ```
/// assert_ne!(libgrid::control::Verdict::Good, libgrid::control::Verdict::Bad);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but something is missing.
    Missing,
    /// Tasks cannot run like this.
    Bad,
}

/// What the agent answers when it cannot.
///
/// ```
/// use libgrid::control::{Failure, Kind};
/// let failure = Failure::new(Kind::Missing, "there is no job j1.9: see gridctl ps --all");
/// assert_eq!(failure.to_string(), "there is no job j1.9: see gridctl ps --all");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What sort of failure, for programs.
    pub kind: Kind,
    /// What failed, why, and what to do, in one sentence.
    pub message: String,
}

/// Sorts of failure.
///
/// ```
/// assert_ne!(libgrid::control::Kind::Denied, libgrid::control::Kind::Missing);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The request itself is wrong.
    Invalid,
    /// The caller may not.
    Denied,
    /// What was asked for is not there.
    Missing,
    /// It does not fit the present state.
    State,
    /// A node or a service cannot be reached now.
    Unavailable,
    /// The agent failed.
    Internal,
}

// === impls ===

impl Submission {
    /// A job whose results come back to `folder`, without upload or input.
    ///
    /// ```
    /// # use libgrid::{control::Submission, spec::JobSpec};
    /// assert!(Submission::new(JobSpec::command(["x"]), "/").input.is_none());
    /// ```
    pub fn new(spec: JobSpec, folder: impl Into<PathBuf>) -> Self {
        Self { spec, folder: folder.into(), upload: false, input: None }
    }
}

impl Streams {
    /// Whether `stream` is among them.
    ///
    /// ```
    /// # use libgrid::control::*;
    /// assert!(!Streams::Stdout.has(Stream::Stderr));
    /// ```
    pub fn has(self, stream: Stream) -> bool {
        matches!(
            (self, stream),
            (Streams::Both, _) | (Streams::Stdout, Stream::Stdout) | (Streams::Stderr, Stream::Stderr)
        )
    }
}

impl Failure {
    /// A failure of this kind with this sentence.
    ///
    /// ```
    /// # use libgrid::control::*;
    /// assert_eq!(Failure::new(Kind::Invalid, "no").kind, Kind::Invalid);
    /// ```
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Revoked => "revoked",
        })
    }
}
