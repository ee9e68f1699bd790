//! The grid's operations, through whichever door this machine has.
//!
//! | [`Door`] | is there | how |
//! | --- | --- | --- |
//! | `Device` | where the kernel module is loaded, and an agent attached | `ioctl(2)` on `/dev/gridos` |
//! | `SystemCall` | in processes of jobs that asked for it | `syscall(SYS_gridos, op, &arguments, size)` |
//! | `Agent` | wherever there is an agent | its socket |
//!
//! The operations, their numbers and their structs are the same at all of them: `kmod/include/uapi/linux/gridos.h`, and in
//! Rust [`abi`]. [`Sys::open`] takes the first door that is there, so a program does not know of them.
//!
//! **A process that moves.** A [`Sys`] keeps nothing open between operations: what has the device or the agent's socket open
//! cannot be moved to another node. For the same reason nobody can wait for its own move: [`Sys::migrate`] is told not to
//! wait, and comes back before it begins.
//!
//! [`sockets`] is for the device alone, and open as long as a socket is managed.
//!
//! **Whose rights.** The kernel says who asks. A process of a job may do with its own job what the job's owner may; everybody
//! else has the rights of their user.
//!
//! ```no_run
//! use libgrid::sys::{Sys, Target};
//!
//! let grid = Sys::open()?;
//! let this = grid.this_process()?;
//! println!("{:?} on node {}", this.gpid, this.node);
//! if let Some(gpid) = this.gpid {
//!     grid.migrate(Target::Process(gpid), None, false)?;
//! }
//! # Ok::<(), libgrid::sys::SysError>(())
//! ```

pub mod abi;
pub mod device;
pub mod enter;
pub mod sockets;
pub mod text;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use self::abi::{Op, Record};
use self::device::Device;
use self::enter::{Enter, SystemCall};
use crate::GridError;
use crate::blocking::{Grid, socket_path};
use crate::control::{Reply, Request};
use crate::ids::{Gpid, JobId, NodeId, TaskId};

/// The longest that an operation may take. A move of much memory takes its time.
const LIMIT: Duration = Duration::from_secs(600);

/// The way to whoever answers.
///
/// ```
/// assert_eq!(libgrid::sys::Door::Device.to_string(), "device");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The kernel module's device.
    Device,
    /// The system call of processes of a job ([`system_call`](crate::spec::JobSpec::system_call)).
    SystemCall,
    /// The agent's socket.
    Agent,
}

/// What is operated on.
///
/// ```
/// use libgrid::sys::Target;
/// let target: Target = "12.5".parse().unwrap();
/// assert!(matches!(target, Target::Process(_)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process, or for what concerns tasks, the one that it is part of.
    Process(Gpid),
    /// A task.
    Task(TaskId),
    /// All tasks of a job.
    Job(JobId),
}

/// The calling process.
///
/// ```
/// # fn f(this: libgrid::sys::This) {
/// println!("on node {}", this.node);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct This {
    /// Where it runs.
    pub node: NodeId,
    /// Its global id; none if it belongs to no job.
    pub gpid: Option<Gpid>,
    /// The task that it is part of.
    pub task: Option<TaskId>,
}

/// An operation failed.
///
/// ```
/// use libgrid::sys::{SysError, abi::Op};
/// let error = SysError::Refused { op: Op::SIGNAL, errno: 3, why: None };
/// assert_eq!(error.to_string(), "SIGNAL: No such process (os error 3)");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// No door is there, or it closed.
    #[error(transparent)]
    Door(#[from] GridError),
    /// The kernel or the agent refused.
    #[error("{}", refusal(*.op, *.errno, .why.as_deref()))]
    Refused {
        /// What was asked for.
        op: Op,
        /// The number of the error (errno(3)).
        errno: i32,
        /// The sentence that came with it.
        why: Option<String>,
    },
}

fn refusal(op: Op, errno: i32, why: Option<&str>) -> String {
    match why {
        Some(why) => why.to_owned(),
        None => format!("{op}: {}", io::Error::from_raw_os_error(errno)),
    }
}

/// The grid, as the kernel would have it.
///
/// ```no_run
/// let grid = libgrid::sys::Sys::open()?;
/// println!("{} nodes, told by the {}", grid.nodes()?.len(), grid.door());
/// # Ok::<(), libgrid::sys::SysError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sys {
    door: Door,
    /// Of the agent.
    socket: PathBuf,
}

impl Sys {
    /// Takes the first door that is there; where the environment names an agent's socket (`GRIDOS_SOCKET`), that.
    ///
    /// # Errors
    /// Where none is.
    ///
    /// ```no_run
    /// let grid = libgrid::sys::Sys::open()?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn open() -> Result<Self, SysError> {
        match std::env::var_os("GRIDOS_SOCKET") {
            Some(_) => Self::through(Door::Agent),
            None => Self::through(Door::Device)
                .or_else(|_| Self::through(Door::SystemCall))
                .or_else(|_| Self::through(Door::Agent)),
        }
    }

    /// Takes this door.
    ///
    /// # Errors
    /// Where it is not there, or nobody is behind it.
    ///
    /// ```no_run
    /// let grid = libgrid::sys::Sys::through(libgrid::sys::Door::Device)?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn through(door: Door) -> Result<Self, SysError> {
        Self::new(door, socket_path())
    }

    /// Takes the agent's door, at this socket.
    ///
    /// # Errors
    /// As [`Sys::through`].
    ///
    /// ```
    /// assert!(libgrid::sys::Sys::at_socket("/nowhere").is_err());
    /// ```
    pub fn at_socket(path: impl Into<PathBuf>) -> Result<Self, SysError> {
        Self::new(Door::Agent, path.into())
    }

    fn new(door: Door, socket: PathBuf) -> Result<Self, SysError> {
        let grid = Self { door, socket };
        let version = grid.version()?;
        match version.flags & abi::VERSION_DAEMON {
            0 => Err(refused(
                Op::VERSION,
                libc::EAGAIN,
                b"the module is loaded, and no agent is attached to it",
            )),
            _ => Ok(grid),
        }
    }

    /// Which door that is.
    ///
    /// ```no_run
    /// println!("{}", libgrid::sys::Sys::open()?.door());
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn door(&self) -> Door {
        self.door
    }

    /// What is behind it.
    ///
    /// # Errors
    /// Where it closed.
    ///
    /// ```no_run
    /// let version = libgrid::sys::Sys::open()?.version()?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn version(&self) -> Result<abi::Version, SysError> {
        self.operate(Op::VERSION, abi::Version::default())
    }

    /// Who asks.
    ///
    /// # Errors
    /// Where the door closed.
    ///
    /// ```no_run
    /// let this = libgrid::sys::Sys::open()?.this_process()?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn this_process(&self) -> Result<This, SysError> {
        let this = self.this()?;
        Ok(This {
            node: NodeId(this.node),
            gpid: (this.gpid != 0).then(|| Gpid::from_u64(this.gpid)),
            task: (this.job != 0).then(|| JobId::from_u64(this.job).task(this.task)),
        })
    }

    /// The same as the kernel has it.
    ///
    /// # Errors
    /// As [`Sys::this_process`].
    ///
    /// ```no_run
    /// print!("{}", libgrid::sys::Sys::open()?.this()?);
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn this(&self) -> Result<abi::SelfInfo, SysError> {
        self.operate(Op::SELF, abi::SelfInfo::default())
    }

    /// The global id of a process of the caller's user, by its pid in the caller's namespace.
    ///
    /// # Errors
    /// `ESRCH` where there is no such process, or it is not the caller's to see.
    ///
    /// ```no_run
    /// let gpid = libgrid::sys::Sys::open()?.gpid_of(std::process::id())?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn gpid_of(&self, pid: u32) -> Result<Gpid, SysError> {
        let pid = i32::try_from(pid).unwrap_or(-1);
        let flags = abi::LOOKUP_PID;
        let lookup = abi::Lookup { flags, pid, ..Default::default() };
        self.operate(Op::LOOKUP, lookup).map(|found| Gpid::from_u64(found.gpid))
    }

    /// The pid, in the caller's namespace, of a process of the caller's user.
    ///
    /// # Errors
    /// As [`Sys::gpid_of`].
    ///
    /// ```no_run
    /// let pid = libgrid::sys::Sys::open()?.pid_of("12.5".parse().unwrap())?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn pid_of(&self, gpid: Gpid) -> Result<u32, SysError> {
        let lookup = abi::Lookup { flags: abi::LOOKUP_GPID, gpid: gpid.as_u64(), ..Default::default() };
        self.operate(Op::LOOKUP, lookup).map(|found| found.pid.unsigned_abs())
    }

    /// The nodes of the grid, by their numbers.
    ///
    /// # Errors
    /// Where the door closed.
    ///
    /// ```no_run
    /// for node in libgrid::sys::Sys::open()?.nodes()? {
    ///     println!("{} {}", node.number, node.name.text());
    /// }
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn nodes(&self) -> Result<Vec<abi::Node>, SysError> {
        self.list(Op::NODES, |node: &abi::Node| node.number.into())
    }

    /// The jobs of the caller's user that were submitted on this node, by their numbers.
    ///
    /// # Errors
    /// Where the door closed.
    ///
    /// ```no_run
    /// let jobs = libgrid::sys::Sys::open()?.jobs()?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn jobs(&self) -> Result<Vec<abi::Job>, SysError> {
        self.list(Op::JOBS, |job: &abi::Job| job.job)
    }

    /// One line of text, and the answer to it, as `/proc/gridos/control` has them: `help` tells what there is.
    ///
    /// # Errors
    /// Where the command is wrong, or cannot be done.
    ///
    /// ```no_run
    /// println!("{}", libgrid::sys::Sys::open()?.command("status j1.2")?);
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn command(&self, line: &str) -> Result<String, SysError> {
        self.call(Op::COMMAND, line.as_bytes()).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    /// How a job, a task, or that of a process is doing.
    ///
    /// # Errors
    /// Where there is none.
    ///
    /// ```no_run
    /// # use libgrid::sys::{Sys, Target};
    /// let status = Sys::open()?.status(Target::Job("j1.2".parse().unwrap()))?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn status(&self, target: Target) -> Result<abi::Status, SysError> {
        self.call_on(Op::STATUS, target, 0, 0)
    }

    /// Sends a signal to a process, to a task's processes, or to those of all tasks.
    ///
    /// # Errors
    /// Where there is none, or the caller may not.
    ///
    /// ```no_run
    /// # use libgrid::sys::{Sys, Target};
    /// Sys::open()?.signal(Target::Process("12.5".parse().unwrap()), 10)?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn signal(&self, target: Target, signal: i32) -> Result<(), SysError> {
        self.call(Op::SIGNAL, &abi::sized(&target.record(0, signal))).map(drop)
    }

    /// Moves a task to this node, or to the best one, while it runs. Without `wait`, it comes back when the task is on its
    /// way, and a move that fails then is seen in nothing but that it runs where it was.
    ///
    /// # Errors
    /// Where it cannot be moved, or the caller may not; `EDEADLK` where the caller would wait for its own move.
    ///
    /// ```no_run
    /// # use libgrid::{ids::NodeId, sys::{Sys, Target}};
    /// let task = Target::Task("j1.2/0".parse().unwrap());
    /// let moved = Sys::open()?.migrate(task, Some(NodeId(3)), true)?;
    /// println!("it stood still for {} ns", moved.stopped_ns);
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn migrate(&self, target: Target, to: Option<NodeId>, wait: bool) -> Result<abi::Moved, SysError> {
        let flags = if wait { 0 } else { abi::TARGET_NOWAIT };
        let node = to.map_or(0, |node| i32::try_from(node.0).unwrap_or(-1));
        self.call_on(Op::MIGRATE, target, flags, node)
    }

    /// Writes a checkpoint of a task now.
    ///
    /// # Errors
    /// Where it cannot be written, or the caller may not.
    ///
    /// ```no_run
    /// # use libgrid::sys::{Sys, Target};
    /// let number = Sys::open()?.checkpoint(Target::Task("j1.2/0".parse().unwrap()))?.number;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn checkpoint(&self, target: Target) -> Result<abi::Checkpointed, SysError> {
        self.call_on(Op::CHECKPOINT, target, 0, 0)
    }

    /// Submits a job by the text of its file ([`JobSpec`](crate::spec::JobSpec)). Nothing is uploaded for it.
    ///
    /// # Errors
    /// Where the text is wrong, or the caller may not.
    ///
    /// ```no_run
    /// let job = libgrid::sys::Sys::open()?.submit("command = [\"/bin/hostname\"]")?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn submit(&self, job: &str) -> Result<JobId, SysError> {
        let submitted = self.call(Op::SUBMIT, job.as_bytes())?;
        Ok(JobId::from_u64(abi::Submitted::from_bytes(&submitted).job))
    }

    /// An operation that the agent answers, from 256 on, as bytes.
    ///
    /// # Errors
    /// As it says.
    ///
    /// ```no_run
    /// use libgrid::sys::{Sys, abi::Op};
    /// let answer = Sys::open()?.call(Op::COMMAND, b"help")?;
    /// # Ok::<(), libgrid::sys::SysError>(())
    /// ```
    pub fn call(&self, op: Op, input: &[u8]) -> Result<Vec<u8>, SysError> {
        let (errno, bytes) = match self.door {
            Door::Device => open(op)?.call(op, input, LIMIT, false).map_err(system(op))?,
            Door::SystemCall => SystemCall.call(op, input, LIMIT, false).map_err(system(op))?,
            Door::Agent => self.ask(op, input)?,
        };
        if errno == 0 { Ok(bytes) } else { Err(refused(op, errno, &bytes)) }
    }

    fn call_on<R: Record>(&self, op: Op, target: Target, flags: u32, value: i32) -> Result<R, SysError> {
        self.call(op, &abi::sized(&target.record(flags, value))).map(|bytes| R::from_bytes(&bytes))
    }

    fn operate<R: Record>(&self, op: Op, arguments: R) -> Result<R, SysError> {
        match self.door {
            Door::Device => open(op)?.operate(op, arguments).map_err(system(op)),
            Door::SystemCall => {
                uninterrupted(|| SystemCall.operate(op, arguments.clone())).map_err(system(op))
            }
            Door::Agent => match self.ask(op, &abi::sized(&arguments))? {
                (0, bytes) => Ok(R::from_bytes(&bytes)),
                (errno, why) => Err(refused(op, errno, &why)),
            },
        }
    }

    fn list<R: Record>(&self, op: Op, number: impl Fn(&R) -> u64) -> Result<Vec<R>, SysError> {
        match self.door {
            Door::Device => open(op)?.list(op, number).map_err(system(op)),
            Door::SystemCall => uninterrupted(|| SystemCall.list(op, &number)).map_err(system(op)),
            Door::Agent => match self.ask(op, &[])? {
                (0, bytes) => Ok(bytes.chunks_exact(R::SIZE).map(R::from_bytes).collect()),
                (errno, why) => Err(refused(op, errno, &why)),
            },
        }
    }

    /// Asks the agent on its socket.
    fn ask(&self, op: Op, input: &[u8]) -> Result<(i32, Vec<u8>), SysError> {
        let request = Request::Operate { op: op.0, input: input.to_vec() };
        match Grid::connect_to(&self.socket)?.ask(&request)? {
            Reply::Operated { errno, output } => Ok((errno, output)),
            _ => Err(GridError::Unexpected.into()),
        }
    }
}

/// Asks again where a move or a checkpoint came between: what changes nothing may be asked twice.
fn uninterrupted<T>(ask: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match ask() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            other => return other,
        }
    }
}

fn open(op: Op) -> Result<Device, SysError> {
    Device::open().map_err(system(op))
}

fn system(op: Op) -> impl Fn(io::Error) -> SysError {
    move |error| refused(op, error.raw_os_error().unwrap_or(libc::EIO), b"")
}

fn refused(op: Op, errno: i32, why: &[u8]) -> SysError {
    let why = match errno {
        libc::ENOSYS if why.is_empty() => {
            b"this process has no system call of the grid: only those of jobs have it that were submitted with --system-call"
        }
        _ => why,
    };
    let why = (!why.is_empty()).then(|| String::from_utf8_lossy(why).trim_end().to_owned());
    SysError::Refused { op, errno, why }
}

impl Target {
    /// As the operations take it.
    fn record(self, flags: u32, value: i32) -> abi::Target {
        let (gpid, job, task) = match self {
            Self::Process(gpid) => (gpid.as_u64(), 0, 0),
            Self::Task(task) => (0, task.job.as_u64(), task.index),
            Self::Job(job) => (0, job.as_u64(), abi::TASK_ALL),
        };
        abi::Target { size: 0, flags, gpid, job, task, value }
    }
}

impl From<abi::Target> for Target {
    fn from(target: abi::Target) -> Self {
        match (target.gpid, target.task) {
            (0, abi::TASK_ALL) => Self::Job(JobId::from_u64(target.job)),
            (0, index) => Self::Task(JobId::from_u64(target.job).task(index)),
            (gpid, _) => Self::Process(Gpid::from_u64(gpid)),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = crate::ids::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(gpid) = text.parse() {
            return Ok(Self::Process(gpid));
        }
        match text.parse()? {
            crate::ids::Selector::Job(job) => Ok(Self::Job(job)),
            crate::ids::Selector::Task(task) => Ok(Self::Task(task)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(gpid) => gpid.fmt(f),
            Self::Task(task) => task.fmt(f),
            Self::Job(job) => job.fmt(f),
        }
    }
}

impl std::str::FromStr for Door {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Device, Self::SystemCall, Self::Agent]
            .into_iter()
            .find(|door| door.to_string() == text)
            .ok_or_else(|| format!("there is no door {text:?}: device, syscall and agent are"))
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::SystemCall => "syscall",
            Self::Agent => "agent",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "operation {}", self.0),
        }
    }
}
