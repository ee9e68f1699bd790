//! Jobs: submitting, watching, ending.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request, Stream, Streams, Submitted};
use libgrid::ids::{JobId, NodeId, Selector, TaskId};
use libgrid::node::NodeInfo;
use libgrid::spec::JobSpec;
use libgrid::status::{JobStatus, JobSummary, TaskStatus, signal_number};
use libgrid::units::{Bytes, Span};
use serde::Serialize;

use crate::args::{Options, Submit, Which};
use crate::process::{self, Target};
use crate::{Done, inputs, show};

/// The job that the options describe, on top of what a file says.
pub(crate) fn spec(mut spec: JobSpec, options: &Options) -> anyhow::Result<JobSpec> {
    spec.cpus = options.cpus.unwrap_or(spec.cpus);
    spec.memory = options.mem.unwrap_or(spec.memory);
    spec.time = options.time.or(spec.time);
    spec.name = options.name.clone().or(spec.name);
    spec.stage_in.extend(options.stage_in.iter().cloned());
    spec.stage_out.extend(options.stage_out.iter().cloned());
    spec.net = options.net.unwrap_or(spec.net);
    spec.pipes.extend(options.pipe.iter().cloned());
    spec.system_call |= options.system_call;
    spec.nodes.extend(options.node.iter().cloned());
    for pair in &options.env {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("--env {pair:?} has no '=': write KEY=VALUE");
        };
        spec.env.insert(key.to_owned(), value.to_owned());
    }
    if !options.no_auto_stage {
        let folder = std::env::current_dir().context("the current folder is gone: change to another")?;
        inputs::stage_named_files(&mut spec, &folder)?;
    }
    Ok(spec)
}

pub(crate) fn submit(grid: &mut Grid, submit: &Submit, json: bool) -> Done {
    let base = match &submit.file {
        Some(path) if path.as_os_str() == "-" => {
            let text = io::read_to_string(io::stdin()).context("cannot read the job from standard input")?;
            JobSpec::from_toml(&text).context("standard input")?
        }
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| {
                format!("cannot read the job file {} (a program to run follows --)", path.display())
            })?;
            JobSpec::from_toml(&text).with_context(|| not_a_job(path))?
        }
        None if submit.options.command.is_empty() => {
            bail!("there is no program to run: write gridctl submit -- PROGRAM, or gridctl submit FILE.toml")
        }
        None => JobSpec::command(submit.options.command.iter().cloned()),
    };
    let mut spec = spec(base, &submit.options)?;
    spec.array = submit.array.or(spec.array);
    spec.after.extend(&submit.after);
    spec.hold |= submit.hold;
    spec.restart &= !submit.no_restart;
    spec.checkpoint = submit.checkpoint.unwrap_or(spec.checkpoint);
    let Submitted { job, waits } = inputs::submit(grid, spec, None)?;
    if let Some(why) = waits {
        eprintln!("gridctl: {job} waits: {}", show::plain(why));
    }
    if json { show::json(&job) } else { show::text(job) }
}

/// What to say before what is wrong with a job file. Some take a program for one.
fn not_a_job(path: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let program = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
    let shown = path.display();
    match program {
        true => format!("{shown} is read as a job file (to run it, write gridctl submit -- {shown})"),
        false => shown.to_string(),
    }
}

#[derive(Serialize)]
struct Listing<'a> {
    jobs: &'a [JobSummary],
    silent: &'a [NodeId],
}

pub(crate) fn ps(grid: &mut Grid, all: bool, everywhere: bool, json: bool) -> Done {
    let (jobs, silent) = jobs(grid, Request::Jobs { everywhere, done: all, at: None })?;
    show_jobs(&jobs, &silent, json)
}

/// The jobs that have tasks on a node.
pub(crate) fn ps_of_node(grid: &mut Grid, node: &str, json: bool) -> Done {
    let Reply::Nodes(nodes) = grid.ask(&Request::Nodes)? else { return Err(GridError::Unexpected.into()) };
    let meant = |info: &NodeInfo| info.name == node || info.node.to_string() == node;
    let Some(number) = nodes.iter().map(|status| &status.info).find(|info| meant(info)).map(|info| info.node)
    else {
        bail!("there is no node {node}: see gridctl nodes");
    };
    let (jobs, silent) = jobs(grid, Request::Jobs { everywhere: true, done: false, at: Some(number) })?;
    show_jobs(&jobs, &silent, json)
}

fn jobs(grid: &mut Grid, request: Request) -> Result<(Vec<JobSummary>, Vec<NodeId>), GridError> {
    match grid.ask(&request)? {
        Reply::Jobs { jobs, silent } => Ok((jobs, silent)),
        _ => Err(GridError::Unexpected),
    }
}

fn show_jobs(jobs: &[JobSummary], silent: &[NodeId], json: bool) -> Done {
    if json {
        return show::json(&Listing { jobs, silent });
    }
    show::text(show::jobs(jobs))?;
    for node in silent {
        eprintln!("gridctl: node {node} did not answer; its jobs are missing here");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn status(grid: &mut Grid, job: Selector, (from, failed): (u32, bool), json: bool) -> Done {
    let status = if failed { with_failed(grid, job, usize::MAX)? } else { page(grid, job, from)? };
    if json { show::json(&status) } else { show::text(show::status(&status)) }
}

/// A job with its tasks from this index on, as many as come at once.
fn page(grid: &mut Grid, job: Selector, from: u32) -> Result<JobStatus, GridError> {
    match grid.ask(&Request::Job { job, from })? {
        Reply::Job(status) => Ok(*status),
        _ => Err(GridError::Unexpected),
    }
}

/// All tasks that are meant, in order.
pub(crate) fn tasks(grid: &mut Grid, job: Selector) -> anyhow::Result<Vec<TaskStatus>> {
    let mut tasks = Vec::new();
    let mut from = Some(0);
    while let Some(next) = from {
        let status = page(grid, job, next)?;
        tasks.extend(status.tasks);
        from = status.more;
    }
    Ok(tasks)
}

/// A job with those of its tasks alone that failed, the first so many.
fn with_failed(grid: &mut Grid, job: Selector, most: usize) -> Result<JobStatus, GridError> {
    let failed = |task: &TaskStatus| task.outcome.as_ref().is_some_and(|outcome| !outcome.is_success());
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let status = page(grid, job, from)?;
        found.extend(status.tasks.into_iter().filter(failed));
        match status.more.filter(|_| found.len() < most) {
            Some(more) => from = more,
            None => {
                found.truncate(most);
                return Ok(JobStatus { tasks: found, more: None, ..page(grid, job, from)? });
            }
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    stream: Stream,
    offset: u64,
    text: &'a str,
}

pub(crate) fn logs(grid: &mut Grid, job: Selector, follow: bool, which: Which, json: bool) -> Done {
    let streams = match which {
        Which::Stdout => Streams::Stdout,
        Which::Stderr => Streams::Stderr,
        Which::Both => Streams::Both,
    };
    // All that there are, in order; with one task there is nothing to tell apart.
    let tasks = tasks(grid, job)?;
    let many = tasks.len() > 1;
    for task in tasks {
        let task = job.job().task(task.index);
        if many && !json {
            println!("==> {task} <==");
        }
        let mut printer = Printer::new(task, json);
        grid.logs(task, streams, follow, |stream, offset, bytes| printer.print(stream, offset, bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes what a task printed, each stream to its own, at once; says where some of it is missing.
pub(crate) struct Printer {
    task: TaskId,
    json: bool,
    /// Where the next piece of standard output and of standard error begins, if nothing is missing.
    next: [u64; 2],
}

impl Printer {
    pub(crate) fn new(task: TaskId, json: bool) -> Self {
        Self { task, json, next: [0; 2] }
    }

    pub(crate) fn print(&mut self, stream: Stream, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.json {
            let line = Line { stream, offset, text: &String::from_utf8_lossy(bytes) };
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, &line)?;
            return writeln!(out);
        }
        let (at, name) = match stream {
            Stream::Stdout => (0, "output"),
            Stream::Stderr => (1, "error output"),
        };
        if offset < self.next[at] {
            eprintln!("gridctl: {} was lost, and runs again: what it prints begins anew", self.task);
            self.next = [0; 2];
        }
        let next = &mut self.next[at];
        let missing = offset.saturating_sub(*next);
        *next = offset + bytes.len() as u64;
        if missing > 0 {
            let (task, missing) = (self.task, Bytes(missing));
            eprintln!(
                "gridctl: {missing} of the {name} of {task} are missing here: over the job's log_limit"
            );
        }
        let write = |out: &mut dyn Write| out.write_all(bytes).and_then(|()| out.flush());
        match stream {
            Stream::Stdout => write(&mut io::stdout().lock()),
            Stream::Stderr => write(&mut io::stderr().lock()),
        }
    }
}

/// Tasks of which it is told why they failed.
const TOLD: usize = 10;

/// The status of `wait` when the time is over: that of timeout(1).
const LATE: u8 = 124;

pub(crate) fn wait(grid: &Grid, jobs: &[Selector], limit: Option<Duration>, json: bool) -> Done {
    let mut highest = 0;
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    for job in jobs {
        let Some(status) = watch(grid, *job, until)? else {
            eprintln!("gridctl: {job} is not done after {}: it goes on", Span(limit.unwrap_or_default()));
            return Ok(ExitCode::from(LATE));
        };
        let exit = match job {
            Selector::Job(_) => status.summary.exit_status.unwrap_or(0),
            Selector::Task(_) => status
                .tasks
                .iter()
                .filter_map(|task| task.outcome.as_ref())
                .map(|o| o.exit_status())
                .max()
                .unwrap_or(0),
        };
        highest = highest.max(exit);
        if json {
            show::json(&status)?;
        } else if status.more.is_some() && status.summary.counts.failed > 0 {
            let mut own = Grid::connect_to(grid.path())?;
            let more = status.more;
            tell_failures(&JobStatus { more, ..with_failed(&mut own, *job, TOLD)? });
        } else {
            tell_failures(&status);
        }
    }
    Ok(exit_code(highest))
}

/// Says of the tasks that failed why, on standard error.
pub(crate) fn tell_failures(status: &JobStatus) {
    let failed = status.tasks.iter().filter_map(|task| Some((task, task.outcome.as_ref()?)));
    let failed: Vec<_> = failed.filter(|(_, outcome)| !outcome.is_success()).collect();
    for (task, outcome) in failed.iter().take(TOLD) {
        eprintln!("gridctl: {}/{} {}", status.summary.id, task.index, show::plain(outcome));
    }
    // Of an array that is long not all tasks are here.
    let all = if status.more.is_some() { status.summary.counts.failed as usize } else { failed.len() };
    let rest = all.saturating_sub(failed.len().min(TOLD));
    if rest > 0 {
        eprintln!("gridctl: and {rest} more: see gridctl status --failed {}", status.summary.id);
    }
}

/// A status as a process can end with it.
pub(crate) fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Tells once why tasks that have ended are not done: what they left cannot be brought home.
#[derive(Default)]
pub(crate) struct Stuck {
    told: Option<String>,
}

impl Stuck {
    pub(crate) fn news<'a>(&mut self, status: &'a JobStatus) -> Option<&'a str> {
        let why = status.summary.why.as_ref().filter(|_| status.summary.stuck > 0)?;
        let is_new = self.told.as_ref() != Some(why);
        self.told = Some(why.clone());
        is_new.then_some(why)
    }
}

/// The job's end; nothing if it comes later.
fn watch(grid: &Grid, job: Selector, until: Option<Instant>) -> anyhow::Result<Option<JobStatus>> {
    let template = "{prefix}  {wide_bar}  {pos}/{len} done  {msg}  {elapsed}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style).with_prefix(job.to_string());
    let mut stuck = Stuck::default();
    let seen = |status: &JobStatus| {
        if let Some(why) = stuck.news(status) {
            bar.suspend(|| eprintln!("gridctl: {}", show::plain(why)));
        }
        let counts = status.summary.counts;
        bar.set_length(counts.total().into());
        bar.set_position(counts.done().into());
        bar.set_message(match &status.summary.why {
            Some(why) if counts.running + counts.placed == 0 => why.clone(),
            _ => format!("{} running", counts.running + counts.placed),
        });
    };
    let status = match until {
        Some(until) => grid.watch_for(job, until - Instant::now(), seen),
        None => grid.watch(job, seen).map(Some),
    };
    bar.finish_and_clear();
    Ok(status?)
}

pub(crate) fn hold(grid: &mut Grid, jobs: &[JobId], undo: bool) -> Done {
    let mut status = ExitCode::SUCCESS;
    for job in jobs {
        match grid.ask(&Request::Hold { job: *job, undo }) {
            Ok(Reply::Done) => (),
            Ok(_) => return Err(GridError::Unexpected.into()),
            // The others are meant all the same.
            Err(GridError::Refused(failure)) => {
                eprintln!("gridctl: {}", show::plain(failure));
                status = ExitCode::FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(status)
}

#[derive(Serialize)]
struct Signalled {
    job: Selector,
    tasks: u32,
}

pub(crate) fn kill(grid: &mut Grid, targets: &[Target], signal: Option<&str>, json: bool) -> Done {
    // 0 lets the agent end it: TERM, and KILL if that is not enough.
    let number = match signal {
        None => 0,
        Some(text) => match signal_number(text) {
            Some(number) => number,
            None => bail!("{text:?} is no signal: use a name such as INT, or a number from 1 to 64"),
        },
    };
    for target in targets {
        let job = match target {
            Target::Job(job) => *job,
            Target::Process(gpid) => {
                process::kill(grid, *gpid, signal, json)?;
                continue;
            }
        };
        match grid.ask(&Request::Kill { job, signal: number })? {
            Reply::Signalled(tasks) if json => drop(show::json(&Signalled { job, tasks })?),
            Reply::Signalled(0) => eprintln!("gridctl: {job} was done already"),
            Reply::Signalled(_) => (),
            _ => return Err(GridError::Unexpected.into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
