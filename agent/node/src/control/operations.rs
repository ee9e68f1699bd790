//! The operations of `kmod/include/uapi/linux/gridos.h`, as the agent answers them: to the kernel module, to the files of
//! the tree, and to programs on its socket.
//!
//! Each of them becomes a request of the control protocol, in the name of whoever asks. A process of a job may do with
//! its job what the job's owner may.
//!
//! **Who moves.** What has a door open cannot be dumped, so what is to move its own process begins when that has closed
//! the door: [`Answered::then`].

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libgrid::control::{Failure, Kind, NodeState, Reply, Request, Response, Submission};
use libgrid::ids::{Gpid, Run, Selector, TaskId};
use libgrid::pipe::PipeStatus;
use libgrid::spec::JobSpec;
use libgrid::status::{JobSummary, MoveMode, TaskState, signal_number};
use libgrid::sys::Target;
use libgrid::sys::abi::{self, CALL_MAX, Checkpointed, Moved, Node, Op, Record, Status, Submitted, sized};
use libgrid::sys::text;
use libgrid::wire::stream;
use nix::errno::Errno;

use super::{Answer, processes, submit};
use crate::caller::Caller;
use crate::copy::movers;
use crate::grid::Grid;
use crate::runner;

/// How long a task's start may be unheard of.
const UNHEARD: Duration = Duration::from_secs(1);

/// What an operation came back with.
pub(crate) struct Answered {
    pub(crate) output: Vec<u8>,
    /// What is to be done once whoever asked has closed its door.
    pub(crate) then: Option<Then>,
}

pub(crate) type Then = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why an operation was not carried out.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    pub(crate) why: String,
}

/// Who asks: a user, and one of its processes.
pub(crate) struct Asker {
    caller: Caller,
    /// Its pid as this agent sees it; 0 where it does not.
    pid: u32,
    /// If it is a process of a task.
    run: Option<Run>,
}

impl Asker {
    pub(crate) async fn new(grid: Option<&Arc<Grid>>, caller: Caller, pid: u32) -> Self {
        let (pid, uid) = process_of(pid);
        // A pid may be another process's by now, but each task has a user of its own.
        let run = match grid {
            Some(grid) if pid != 0 && uid == Some(caller.uid) => run_of(grid, &caller, pid).await,
            _ => None,
        };
        let caller = match run {
            Some(run) => caller.within(run.task.job),
            None => caller,
        };
        Self { caller, pid, run }
    }
}

/// The process of a thread, as some doors tell which thread asks, and whose it is.
fn process_of(pid: u32) -> (u32, Option<u32>) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let number = |field| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse().ok()
    };
    (number("Tgid:").unwrap_or(pid), number("Uid:"))
}

/// The run that a process is part of. One of a task's user may ask before its shim's word of it was heard, or before it has its
/// id back after a move: that is waited for.
async fn run_of(grid: &Grid, caller: &Caller, pid: u32) -> Option<Run> {
    let begun = Instant::now();
    loop {
        let run = grid.run_of(pid).await;
        if run.is_some() || !runner::is_task(caller.uid) || begun.elapsed() > UNHEARD {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A question of a local process.
pub(crate) struct Asked {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// As [`Asker`] has it.
    pub(crate) pid: u32,
    pub(crate) op: Op,
    pub(crate) input: Vec<u8>,
    /// Whether an earlier agent had it, too.
    pub(crate) again: bool,
}

/// Answers it: the error, or 0; what the process gets, which of an error is the sentence; and what is to be done after.
pub(crate) async fn answer(grid: &Arc<Grid>, asked: Asked) -> (i32, Vec<u8>, Option<Then>) {
    let caller = Caller::user_of(asked.uid, asked.gid, &grid.config);
    let asker = Asker::new(Some(grid), caller, asked.pid).await;
    let changes = asked.op.0 >= Op::COMMAND.0 && asked.op != Op::STATUS;
    let answered = match asked.again && changes {
        false => operate(Ok(grid.clone()), &asker, asked.op, &asked.input).await,
        true => {
            let why =
                "the agent was restarted while it did this, and may have done it: look before you ask again";
            Err(Refused { errno: Errno::EINTR, why: why.into() })
        }
    };
    match answered {
        Ok(answered) => (0, answered.output, answered.then),
        Err(Refused { errno, why }) => (errno as i32, (why + "\n").into_bytes(), None),
    }
}

/// Carries out one operation.
pub(crate) async fn operate(
    grid: Result<Arc<Grid>, Failure>,
    asker: &Asker,
    op: Op,
    input: &[u8],
) -> Result<Answered, Refused> {
    if input.len() > CALL_MAX {
        let why = format!("{} bytes are too many: {CALL_MAX} are taken", input.len());
        return Err(Refused { errno: Errno::EMSGSIZE, why });
    }
    if op == Op::VERSION {
        let node = grid.map_or(0, |grid| grid.me.0);
        let version =
            abi::Version { version: abi::VERSION, flags: abi::VERSION_DAEMON, node, ..Default::default() };
        return Ok(sized(&version).into());
    }
    let operation = Operation { grid: grid?, asker };
    match op {
        Op::SELF => Ok(sized(&operation.this().await).into()),
        Op::LOOKUP => Ok(sized(&operation.lookup(abi::Lookup::from_bytes(input)).await?).into()),
        Op::NODES => Ok(operation.nodes().iter().flat_map(Record::to_bytes).collect::<Vec<u8>>().into()),
        Op::JOBS => {
            let jobs = operation.jobs().await?;
            Ok(jobs.iter().flat_map(Record::to_bytes).collect::<Vec<u8>>().into())
        }
        Op::COMMAND => operation.command(input).await,
        Op::STATUS => Ok(sized(&operation.status(target(input)?.into()).await?).into()),
        Op::SIGNAL => {
            let target = target(input)?;
            operation.signal(target.into(), target.value).await?;
            Ok(Vec::new().into())
        }
        Op::MIGRATE => {
            let target = target(input)?;
            let to = (target.value != 0).then(|| target.value.to_string());
            operation.migrate(target.into(), to, target.flags & abi::TARGET_NOWAIT != 0).await
        }
        Op::CHECKPOINT => {
            let target = target(input)?;
            operation.checkpoint(target.into(), target.flags & abi::TARGET_NOWAIT != 0).await
        }
        Op::SUBMIT => {
            let text = text_of(input)?;
            let spec = JobSpec::from_toml(text).map_err(|error| invalid(error.to_string()))?;
            Ok(sized(&operation.submit(spec).await?).into())
        }
        op => Err(Refused { errno: Errno::ENOTTY, why: format!("this release has no {op}") }),
    }
}

/// The processes here that this user may see, as a table.
pub(crate) async fn gpids(grid: &Arc<Grid>, asker: &Asker) -> String {
    let mut lines: Vec<(Gpid, String)> = Vec::new();
    for (pid, gpid, task) in grid.ids().await {
        if grid.may_see(&asker.caller, pid) {
            lines.push((gpid, format!("{gpid}\t{pid}\t{}\t{}\n", task.job, task.index)));
        }
    }
    lines.sort();
    text::GPIDS.chars().chain(lines.iter().flat_map(|(_, line)| line.chars())).collect()
}

/// The nodes, as records.
pub(crate) fn nodes(grid: &Grid) -> Vec<Node> {
    let mut nodes: Vec<Node> = grid
        .members
        .all()
        .into_iter()
        .map(|node| Node {
            number: node.info.node.0,
            state: match node.state {
                NodeState::Up => 0,
                NodeState::Suspect => 1,
                NodeState::Down => 2,
                NodeState::Revoked => 3,
            },
            memory: node.info.total.memory,
            memory_free: node.info.free.memory,
            cpus: node.info.total.cpu,
            cpus_free: node.info.free.cpu,
            name: node.info.name.as_str().into(),
        })
        .collect();
    nodes.sort_by_key(|node| node.number);
    nodes.truncate(abi::NODES_MAX);
    nodes
}

/// A job and its owner's user, as a record.
pub(crate) fn job(summary: &JobSummary, uid: u32) -> abi::Job {
    let counts = summary.counts;
    abi::Job {
        job: summary.id.as_u64(),
        uid,
        state: state_of(summary),
        tasks: counts.total(),
        running: counts.running,
        done: counts.succeeded + counts.failed,
        failed: counts.failed,
        name: summary.name.as_str().into(),
    }
}

fn state_of(summary: &JobSummary) -> u32 {
    match (summary.ended, summary.counts.running) {
        (Some(_), _) => 2,
        (None, 0) => 0,
        (None, _) => 1,
    }
}

struct Operation<'a> {
    grid: Arc<Grid>,
    asker: &'a Asker,
}

impl Operation<'_> {
    async fn this(&self) -> abi::SelfInfo {
        let node = self.grid.me.0;
        let Some(run) = self.asker.run else { return abi::SelfInfo { node, ..Default::default() } };
        let all = self.grid.ids().await;
        let gpid = all
            .into_iter()
            .find(|(pid, _, _)| *pid == self.asker.pid)
            .map_or(0, |(_, gpid, _)| gpid.as_u64());
        abi::SelfInfo { node, gpid, job: run.task.job.as_u64(), task: run.task.index, ..Default::default() }
    }

    /// Pids are those of the asker's namespace: that of its task, or this one.
    async fn lookup(&self, lookup: abi::Lookup) -> Result<abi::Lookup, Refused> {
        let missing =
            || Refused { errno: Errno::ESRCH, why: "there is no such process that you may see".into() };
        let inner = |pid| if self.asker.run.is_some() { self.grid.processes.inner(pid) } else { Some(pid) };
        let mut found = self.grid.ids().await.into_iter().filter(|(pid, _, task)| {
            self.asker.run.is_none_or(|run| run.task == *task) && self.grid.may_see(&self.asker.caller, *pid)
        });
        let found = match lookup.flags {
            abi::LOOKUP_PID => {
                found.find(|(pid, _, _)| inner(*pid).map(i64::from) == Some(lookup.pid.into()))
            }
            abi::LOOKUP_GPID => found.find(|(_, gpid, _)| gpid.as_u64() == lookup.gpid),
            _ => return Err(invalid("either the pid or the global id has to be given".into())),
        };
        let (pid, gpid, _) = found.ok_or_else(missing)?;
        let pid = inner(pid).and_then(|pid| i32::try_from(pid).ok()).ok_or_else(missing)?;
        Ok(abi::Lookup { gpid: gpid.as_u64(), pid, ..lookup })
    }

    fn nodes(&self) -> Vec<Node> {
        nodes(&self.grid)
    }

    async fn jobs(&self) -> Result<Vec<abi::Job>, Refused> {
        let all = self.grid.jobs().await.map_err(failed)?;
        let caller = &self.asker.caller;
        Ok(all.into_iter().filter(|job| caller.is_root() || caller.uid == job.uid).collect())
    }

    async fn status(&self, target: Target) -> Result<Status, Refused> {
        let job = self.selector(target).await?;
        let Reply::Job(status) = self.ask(Request::Job { job, from: 0 }).await? else {
            return Err(unexpected());
        };
        let counts = status.summary.counts;
        let all = Status {
            state: state_of(&status.summary),
            job: job.job().as_u64(),
            task: abi::TASK_ALL,
            exit_status: -1,
            running: counts.running,
            done: counts.succeeded + counts.failed,
            failed: counts.failed,
            ..Status::default()
        };
        match (job, status.tasks.first()) {
            (Selector::Task(task), Some(told)) => Ok(Status {
                state: match told.state {
                    TaskState::Waiting | TaskState::Placed => 0,
                    TaskState::Running => 1,
                    TaskState::Done => 2,
                },
                task: task.index,
                node: told.node.filter(|_| told.state == TaskState::Running).map_or(0, |node| node.0),
                exit_status: told.outcome.as_ref().map_or(-1, |outcome| outcome.exit_status()),
                ..all
            }),
            _ => Ok(all),
        }
    }

    async fn signal(&self, target: Target, signal: i32) -> Result<(), Refused> {
        if !(1..=64).contains(&signal) {
            return Err(invalid(format!("{signal} is no signal: they go from 1 to 64")));
        }
        let request = match target {
            Target::Process(process) => {
                let task = processes::find(&self.grid, process).await.map_err(failed)?;
                Request::Signal { task, process, signal }
            }
            Target::Task(task) => Request::Kill { job: Selector::Task(task), signal },
            Target::Job(job) => Request::Kill { job: Selector::Job(job), signal },
        };
        self.ask(request).await.map(drop)
    }

    async fn migrate(&self, target: Target, to: Option<String>, nowait: bool) -> Result<Answered, Refused> {
        let task = self.task(target).await?;
        let request = |check| Request::Migrate { task, to: to.clone(), mode: MoveMode::Auto, check };
        if nowait {
            // What can be told now is told now.
            return match self.ask(request(true)).await? {
                Reply::Fits { obstacles, .. } => match obstacles.first() {
                    // What asks has its door open, which it closes before it moves.
                    Some(obstacle) if !self.is_own(task) => {
                        let why = format!("{task} cannot move: {}: {}", obstacle.what, obstacle.remedy);
                        Err(Refused { errno: Errno::EBUSY, why })
                    }
                    _ => Ok(self.later(sized(&Moved::default()), request(false))),
                },
                _ => Err(unexpected()),
            };
        }
        self.may_wait_for(task)?;
        match self.ask(request(false)).await? {
            Reply::Moved(moved) => {
                let stopped_ns = u64::try_from(moved.stopped.as_nanos()).unwrap_or(u64::MAX);
                Ok(sized(&Moved { node: moved.to.0, stopped_ns, ..Moved::default() }).into())
            }
            _ => Err(unexpected()),
        }
    }

    async fn checkpoint(&self, target: Target, nowait: bool) -> Result<Answered, Refused> {
        let task = self.task(target).await?;
        if nowait {
            // Whether the caller may is asked with this.
            self.ask(Request::Checkpoints { task }).await?;
            return Ok(self.later(sized(&Checkpointed::default()), Request::Checkpoint { task }));
        }
        self.may_wait_for(task)?;
        match self.ask(Request::Checkpoint { task }).await? {
            Reply::Checkpoints(written) => {
                let one = written.checkpoints.first().ok_or_else(unexpected)?;
                Ok(sized(&Checkpointed { number: one.number, bytes: one.bytes, ..Default::default() }).into())
            }
            _ => Err(unexpected()),
        }
    }

    /// What stops a process that waits for it would never end.
    fn may_wait_for(&self, task: TaskId) -> Result<(), Refused> {
        if self.is_own(task) {
            let why = format!("a process of {task} cannot wait until {task} is stopped: ask without waiting");
            return Err(Refused { errno: Errno::EDEADLK, why });
        }
        Ok(())
    }

    fn is_own(&self, task: TaskId) -> bool {
        self.asker.run.is_some_and(|run| run.task == task)
    }

    fn later(&self, output: Vec<u8>, request: Request) -> Answered {
        let (grid, caller) = (self.grid.clone(), self.asker.caller.clone());
        let then = async move {
            if let Err(refused) = ask(&grid, &caller, request).await {
                tracing::info!(errno = %refused.errno, why = refused.why, "operation_failed_later");
            }
        };
        Answered { output, then: Some(Box::pin(then)) }
    }

    async fn submit(&self, spec: JobSpec) -> Result<Submitted, Refused> {
        // Where results go.
        let folder = std::fs::read_link(format!("/proc/{}/cwd", self.asker.pid));
        let submission = Submission::new(spec, folder.unwrap_or_else(|_| PathBuf::from("/")));
        let (_, mut nothing) = tokio::io::duplex(1);
        let submitted = submit::submit(Ok(self.grid.clone()), &self.asker.caller, submission, &mut nothing);
        let submitted = submitted.await.map_err(refused)?;
        Ok(Submitted { job: submitted.job.as_u64(), ..Submitted::default() })
    }

    async fn selector(&self, target: Target) -> Result<Selector, Refused> {
        Ok(match target {
            Target::Process(process) => {
                Selector::Task(processes::find(&self.grid, process).await.map_err(failed)?)
            }
            Target::Task(task) => Selector::Task(task),
            Target::Job(job) => Selector::Job(job),
        })
    }

    async fn task(&self, target: Target) -> Result<TaskId, Refused> {
        match self.selector(target).await? {
            Selector::Task(task) => Ok(task),
            Selector::Job(job) => Err(invalid(format!("name one task of {job}, such as {job}/0"))),
        }
    }

    async fn ask(&self, request: Request) -> Result<Reply, Refused> {
        ask(&self.grid, &self.asker.caller, request).await
    }

    // === as text ===

    async fn command(&self, line: &[u8]) -> Result<Answered, Refused> {
        let words: Vec<&str> = text_of(line)?.split_whitespace().collect();
        let target = |word: &str| word.parse::<Target>().map_err(|error| invalid(error.to_string()));
        let said = match words.as_slice() {
            ["help"] => HELP.into(),
            ["version"] => return operate_text::<abi::Version>(self, Op::VERSION).await,
            ["self"] => self.this().await.to_string(),
            ["nodes"] => table(text::NODES, &self.nodes()),
            ["jobs"] => table(text::JOBS, &self.jobs().await?),
            ["gpids"] => gpids(&self.grid, self.asker).await,
            ["pipes"] => self.pipes().await?,
            ["io"] => {
                let caller = &self.asker.caller;
                table(movers::IO, &self.grid.copies.movers.of((!caller.is_root()).then_some(caller.uid)))
            }
            ["status", of] => self.status(target(of)?).await?.to_string(),
            ["signal", of, signal] => {
                self.signal(target(of)?, signal_of(signal)?).await?;
                String::new()
            }
            ["migrate", of] => return self.migrate_text(target(of)?, None).await,
            ["migrate", of, to] => return self.migrate_text(target(of)?, Some((*to).into())).await,
            ["checkpoint", of] => {
                let target = target(of)?;
                let own = self.is_own(self.task(target).await?);
                let answered = self.checkpoint(target, own).await?;
                let written = Checkpointed::from_bytes(&answered.output);
                return Ok(Answered { output: written.to_string().into(), ..answered });
            }
            ["submit", command @ ..] if !command.is_empty() => {
                self.submit(JobSpec::command(command.iter().copied())).await?.to_string()
            }
            _ => {
                return Err(invalid(format!(
                    "{:?} is no command: help tells which there are",
                    words.join(" ")
                )));
            }
        };
        Ok(said.into_bytes().into())
    }

    /// The named pipes of this node that the asker may use, as a table.
    async fn pipes(&self) -> Result<String, Refused> {
        let caller = self.asker.caller.clone().for_task(&self.grid).await?;
        let mut lines = String::from("name\treaders\twriters\tbuffered\tof\towner\n");
        for pipe in self.grid.pipes.list(self.grid.me, &caller) {
            let PipeStatus { spec, owner, buffered, readers, writers, .. } = pipe;
            let (name, most) = (spec.name, spec.capacity);
            lines += &format!("{name}\t{readers}\t{writers}\t{}\t{}\t{owner}\n", buffered.0, most.0);
        }
        Ok(lines)
    }

    async fn migrate_text(&self, target: Target, to: Option<String>) -> Result<Answered, Refused> {
        let own = self.is_own(self.task(target).await?);
        let answered = self.migrate(target, to, own).await?;
        let moved = Moved::from_bytes(&answered.output);
        Ok(Answered { output: moved.to_string().into(), ..answered })
    }
}

/// What `help` says.
const HELP: &str = "\
version                     of the interface
self                        this process
nodes, jobs, gpids          tables
pipes                       of this node, that you may use
io                          transfers of this node, that are yours
status TARGET               how a job, a task or that of a process is doing
signal TARGET SIGNAL        SIGNAL is a number, or a name such as INT
migrate TARGET [NODE]       to this node, or to the best one
checkpoint TARGET
submit PROGRAM [ARGUMENT]...
TARGET is a process (12.5), a task (j12.7/0) or a job (j12.7)
";

/// The answer of an operation without arguments, as text.
async fn operate_text<R: Record + std::fmt::Display>(
    operation: &Operation<'_>,
    op: Op,
) -> Result<Answered, Refused> {
    let answered = Box::pin(operate(Ok(operation.grid.clone()), operation.asker, op, &[])).await?;
    Ok(R::from_bytes(&answered.output).to_string().into_bytes().into())
}

/// Records below the line that names their columns.
pub(crate) fn table<R: std::fmt::Display>(head: &str, records: &[R]) -> String {
    records.iter().fold(head.to_owned(), |text, record| text + &record.to_string())
}

fn signal_of(text: &str) -> Result<i32, Refused> {
    signal_number(text)
        .ok_or_else(|| invalid(format!("{text} is no signal: use a name such as INT, or a number")))
}

fn target(input: &[u8]) -> Result<abi::Target, Refused> {
    let target = abi::Target::from_bytes(input);
    if input.len() < abi::Target::SIZE || target.flags & !abi::TARGET_NOWAIT != 0 {
        return Err(invalid(
            "the arguments are no struct gridos_target, or have flags that are not known".into(),
        ));
    }
    Ok(target)
}

fn text_of(input: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(input).map_err(|_| invalid("the text is not UTF-8".into()))
}

fn invalid(why: String) -> Refused {
    Refused { errno: Errno::EINVAL, why }
}

fn unexpected() -> Refused {
    Refused { errno: Errno::EIO, why: "the agent gave an answer that does not fit the question".into() }
}

fn failed(failure: Failure) -> Refused {
    let errno = match failure.kind {
        Kind::Invalid => Errno::EINVAL,
        Kind::Denied => Errno::EPERM,
        Kind::Missing => Errno::ESRCH,
        Kind::State => Errno::EBUSY,
        Kind::Unavailable => Errno::EAGAIN,
        Kind::Internal => Errno::EIO,
    };
    Refused { errno, why: failure.message }
}

fn refused(answer: Answer) -> Refused {
    match answer {
        Answer::Failure(failure) => failed(failure),
        Answer::Wire(error) => Refused { errno: Errno::EIO, why: error.to_string() },
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        failed(failure)
    }
}

impl From<Vec<u8>> for Answered {
    fn from(output: Vec<u8>) -> Self {
        Self { output, then: None }
    }
}

/// Asks as a user of this machine does, and takes the last of the answers.
async fn ask(grid: &Arc<Grid>, caller: &Caller, request: Request) -> Result<Reply, Refused> {
    let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
    let answering = async {
        let answered = super::answer::answer(grid, caller, request, &mut theirs).await;
        drop(theirs);
        answered
    };
    let hearing = async {
        loop {
            match stream::read::<Response, _>(&mut ours).await {
                Ok(Ok(Reply::Moving { .. })) => (),
                other => break other,
            }
        }
    };
    match tokio::join!(answering, hearing) {
        (Err(answer), _) => Err(refused(answer)),
        (Ok(()), Ok(response)) => response.map_err(failed),
        (Ok(()), Err(error)) => Err(refused(error.into())),
    }
}
