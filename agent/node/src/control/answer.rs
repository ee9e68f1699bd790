//! Requests about nodes and jobs: answered here, or by the job's home node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use grid_jobs::home;
use libgrid::control::{Failure, Kind, NodeStatus, Reply, Request, Response};
use libgrid::copy::Place;
use libgrid::ids::{JobId, NodeId, Run, Selector};
use libgrid::pipe::PipeRequest;
use libgrid::status::{JobStatus, JobSummary, TaskState, TaskStatus};
use libgrid::wire::{WireError, stream};

use super::{Answer, Stream, checkpoints, follow, moving, processes, typing};
use crate::caller::Caller;
use crate::core::View;
use crate::grid::Grid;
use crate::peers;
use crate::relay::relay;
use crate::runner::Used;

/// How long other nodes have to list their jobs.
const LIST: Duration = Duration::from_secs(2);

/// How long a node has to say what its tasks have used.
const LOOK: Duration = Duration::from_millis(500);

/// How long a task has after the default signal.
const GRACE: Duration = Duration::from_secs(10);

/// The most jobs of one list, so that it fits a frame.
const MOST_JOBS: usize = 5000;

/// Answers a request of a user of this machine.
pub(super) async fn answer<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: Request,
    client: &mut S,
) -> Result<(), Answer> {
    match request {
        Request::Pipe(request) => return crate::pipes::answer(grid, caller, request, client).await,
        Request::Copy(copy) => return crate::copy::copy(grid, caller, *copy, client).await,
        Request::Export(export) => {
            caller.must_be_root("lend folders")?;
            grid.copies.exports.add(export)?;
            return Ok(stream::write(client, &Response::Ok(Reply::Done)).await?);
        }
        Request::Unexport { path } => {
            caller.must_be_root("change what is lent")?;
            grid.copies.exports.remove(&path)?;
            return Ok(stream::write(client, &Response::Ok(Reply::Done)).await?);
        }
        Request::Certify => {
            let certificate = grid.certify(caller).await?;
            return Ok(stream::write(client, &Response::Ok(Reply::Certificate(certificate))).await?);
        }
        Request::Exports { everywhere } => {
            let (exports, silent) = match everywhere {
                true => crate::copy::exports_of_all(grid).await,
                false => (crate::copy::exports_here(grid), Vec::new()),
            };
            return Ok(stream::write(client, &Response::Ok(Reply::Exports { exports, silent })).await?);
        }
        Request::Find { process } => {
            let found = processes::find(grid, process).await?;
            return Ok(stream::write(client, &Response::Ok(Reply::Found(found))).await?);
        }
        Request::Drain { node, undo, mode } => {
            let Some(number) = grid.members.find(&node) else {
                let why = format!("there is no node {node}: see gridctl nodes");
                return Err(Failure::new(Kind::Missing, why).into());
            };
            let request = Request::Drain { node, undo, mode };
            return match number == grid.me {
                true => local(grid, caller, request, client).await,
                false => forward(grid, caller, number, request, client).await,
            };
        }
        Request::List { place } => {
            // Another node is asked about a path of its own.
            let (node, path) = crate::copy::place(grid, &place, false).await?;
            let request = Request::List { place: Place::Here(path) };
            return match node == grid.me {
                true => local(grid, caller, request, client).await,
                false => forward(grid, caller, node, request, client).await,
            };
        }
        _ => (),
    }
    match job_of(&request) {
        Some(home) if home != grid.me => forward(grid, caller, home, request, client).await,
        _ => local(grid, caller, request, client).await,
    }
}

/// Answers a request of a user of another node, which that node passed on.
pub(crate) async fn relayed<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: Request,
    client: &mut S,
) -> Result<(), WireError> {
    let mine = job_of(&request).is_none_or(|home| home == grid.me);
    let listed = !matches!(
        request,
        Request::Jobs { everywhere: true, .. } | Request::Processes { everywhere: true, .. }
    );
    let result = if mine && listed {
        local(grid, caller, request, client).await
    } else {
        Err(Failure::new(Kind::Invalid, "this request is not for this node").into())
    };
    match result {
        Ok(()) => Ok(()),
        Err(Answer::Failure(failure)) => stream::write(client, &Response::Err(failure)).await,
        Err(Answer::Wire(error)) => Err(error),
    }
}

/// The home node of the job that the request is about.
fn job_of(request: &Request) -> Option<NodeId> {
    match request {
        Request::Job { job, .. } | Request::Wait { job } | Request::Kill { job, .. } => Some(job.job().home),
        Request::Hold { job, .. } => Some(job.home),
        Request::Processes { of: Some(of), .. } => Some(of.job().home),
        Request::Signal { task, .. }
        | Request::Logs { task, .. }
        | Request::Input { task }
        | Request::Checkpoint { task }
        | Request::Checkpoints { task }
        | Request::Restore { task, .. }
        | Request::Migrate { task, .. } => Some(task.job.home),
        _ => None,
    }
}

pub(crate) async fn forward<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    home: NodeId,
    request: Request,
    client: &mut S,
) -> Result<(), Answer> {
    let known = grid.members.find(&home.to_string()).is_some();
    if !known {
        let why = format!("there is no node {home} in this VO, so no job of it: see gridctl ps --all");
        return Err(Failure::new(Kind::Missing, why).into());
    }
    let goes_on = matches!(request, Request::Wait { .. } | Request::Logs { .. } | Request::Input { .. })
        || is_pipe_end(&request);
    let who = if job_of(&request).is_some() { "the job's home node cannot be asked: " } else { "" };
    let asked = peers::Request::Control { caller: caller.clone(), request: Box::new(request) };
    let unreachable =
        |error: &dyn std::fmt::Display| Failure::new(Kind::Unavailable, format!("{who}{error}"));
    let mut duplex = grid.peers.ask(home, &asked).await.map_err(|error| unreachable(&error))?;
    if goes_on {
        // Frames pass through as they are, both ways, until either side ends; so does the client's connection.
        relay(client, &mut duplex).await;
        return Err(Answer::left());
    }
    loop {
        let response: Response = stream::read(&mut duplex).await.map_err(|error| unreachable(&error))?;
        stream::write(client, &response).await?;
        if !matches!(response, Ok(Reply::Moving { .. } | Reply::Relocated { .. })) {
            return Ok(());
        }
    }
}

/// Whether frames go to and fro after this request.
pub(super) fn is_pipe_end(request: &Request) -> bool {
    let Request::Pipe(request) = request else { return false };
    matches!(
        request,
        PipeRequest::Read(_)
            | PipeRequest::Write(_)
            | PipeRequest::ReadFor { .. }
            | PipeRequest::WriteFor { .. }
    )
}

/// Asks each of the other nodes, all at once.
pub(crate) async fn ask_each(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: Request,
) -> Vec<(NodeId, Option<Response>)> {
    let asked = peers::Request::Control { caller: caller.clone(), request: Box::new(request) };
    let requests = grid.members.others().into_iter().map(|node| (node, asked.clone())).collect();
    processes::ask_all(grid, requests).await
}

async fn local<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: Request,
    client: &mut S,
) -> Result<(), Answer> {
    let reply = match request {
        Request::Nodes => Reply::Nodes(nodes(grid)),
        Request::Jobs { everywhere, done, at } => jobs(grid, caller, everywhere, (done, at)).await?,
        Request::Job { job, from } => {
            let status = grid.core.look(move |view| view.home.status(job, from)).await?;
            let mut status = status.ok_or_else(|| missing(job))?;
            add_usage(grid, &mut status).await;
            Reply::Job(Box::new(status))
        }
        Request::Kill { job, signal } => {
            owned(grid, caller, job).await?;
            Reply::Signalled(kill(grid, job, signal).await?)
        }
        Request::Hold { job, undo } => {
            owned(grid, caller, Selector::Job(job)).await?;
            hold(grid, job, !undo).await?;
            Reply::Done
        }
        Request::Processes { of: None, everywhere } => processes::all(grid, caller, everywhere).await?,
        Request::Processes { of: Some(of), .. } => {
            owned(grid, caller, of).await?;
            processes::of(grid, of).await?
        }
        Request::Signal { task, process, signal } => {
            owned(grid, caller, Selector::Task(task)).await?;
            processes::signal(grid, task, process, signal).await?
        }
        Request::Wait { job } => return follow::wait(grid, job, client).await,
        Request::Logs { task, streams, from, follow } => {
            owned(grid, caller, Selector::Task(task)).await?;
            return follow::logs(grid, task, streams, from, follow, client).await;
        }
        Request::Input { task } => {
            owned(grid, caller, Selector::Task(task)).await?;
            return typing::input(grid, task, client).await;
        }
        Request::Checkpoint { task } => {
            owned(grid, caller, Selector::Task(task)).await?;
            Reply::Checkpoints(Box::new(checkpoints::write(grid, task).await?))
        }
        Request::Checkpoints { task } => {
            owned(grid, caller, Selector::Task(task)).await?;
            Reply::Checkpoints(Box::new(checkpoints::list(grid, task).await?))
        }
        Request::Restore { task, from } => {
            owned(grid, caller, Selector::Task(task)).await?;
            Reply::Restoring(checkpoints::restore(grid, task, from).await?)
        }
        Request::Drain { undo, mode, .. } => {
            if !caller.is_root() {
                let why = "only root of a node of the VO may drain nodes: use sudo";
                return Err(Failure::new(Kind::Denied, why).into());
            }
            return moving::drain(grid, undo, mode, client).await;
        }
        Request::Migrate { task, to, mode, check } => {
            owned(grid, caller, Selector::Task(task)).await?;
            return moving::migrate(grid, task, to.as_deref(), mode, check, client).await;
        }
        Request::Pipe(request) => return crate::pipes::local(grid, caller, request, client).await,
        Request::List { place: Place::Here(path) } => crate::copy::list(grid, caller, &path).await?,
        _ => return Err(Failure::new(Kind::Invalid, "this request is not for another node").into()),
    };
    Ok(stream::write(client, &Response::Ok(reply)).await?)
}

pub(super) fn missing(job: Selector) -> Failure {
    Failure::new(
        Kind::Missing,
        format!("there is no {job} on its home node {}: see gridctl ps --all", job.job().home),
    )
}

/// Nothing if the job is there and the caller may read and end it.
async fn owned(grid: &Arc<Grid>, caller: &Caller, job: Selector) -> Result<(), Answer> {
    let found = grid.core.look(move |view| {
        let record = view.home.record(job.job())?;
        let runs = view.home.running(job.job());
        match job {
            Selector::Task(task) => view.home.run_of(task).map(|_| (record, runs)),
            Selector::Job(_) => Some((record, runs)),
        }
    });
    let (record, runs) = found.await?.ok_or_else(|| missing(job))?;
    match caller.acts_for(job.job(), runs.into_iter().map(|(_, node)| node)) {
        true => Ok(()),
        false => Ok(caller.owns(job, &record)?),
    }
}

/// Fills in what the tasks that run have used so far, as far as their nodes say it in time.
async fn add_usage(grid: &Arc<Grid>, status: &mut JobStatus) {
    let job = status.summary.id;
    let mut places: BTreeMap<NodeId, Vec<Run>> = BTreeMap::new();
    for task in status.tasks.iter().filter(|task| task.state == TaskState::Running) {
        let run = Run { task: job.task(task.index), epoch: task.epoch };
        task.node.into_iter().for_each(|node| places.entry(node).or_default().push(run));
    }
    for (node, runs) in places {
        let used = if node == grid.me {
            grid.output.usage(runs).await
        } else {
            let answer = tokio::time::timeout(LOOK, async {
                let mut duplex = grid.peers.ask(node, &peers::Request::Usage(runs)).await.ok()?;
                stream::read::<Vec<Used>, _>(&mut duplex).await.ok()
            });
            answer.await.ok().flatten().unwrap_or_default()
        };
        for (run, usage, told) in used {
            let same = |task: &&mut TaskStatus| task.index == run.task.index && task.epoch == run.epoch;
            if let Some(task) = status.tasks.iter_mut().find(same) {
                task.usage = usage;
                task.why = task.why.take().or(told);
            }
        }
    }
}

fn nodes(grid: &Arc<Grid>) -> Vec<NodeStatus> {
    grid.members.all()
}

async fn kill(grid: &Arc<Grid>, job: Selector, signal: i32) -> Result<u32, Answer> {
    // 0 stands for the default: to end it, and make sure.
    let (signal, grace) = if signal == 0 { (15, Some(GRACE)) } else { (signal, None) };
    if !(1..=64).contains(&signal) {
        let why = format!("{signal} is no signal: use a name such as INT, or a number from 1 to 64");
        return Err(Failure::new(Kind::Invalid, why).into());
    }
    let alive = grid.core.look(move |view| {
        let tasks = view.home.record(job.job()).map(|record| record.spec.indices());
        let alive = |index: &u32| job.covers(*index) && !view.home.is_done(job.job().task(*index));
        tasks.into_iter().flatten().filter(alive).count()
    });
    let alive = alive.await?;
    grid.core.home(home::Event::Kill { job, signal, grace });
    Ok(u32::try_from(alive).unwrap_or(u32::MAX))
}

async fn hold(grid: &Arc<Grid>, job: JobId, held: bool) -> Result<(), Answer> {
    let look = move |view: &mut View| {
        let counts = view.home.status(Selector::Job(job), u32::MAX)?.summary.counts;
        Some((counts, view.home.record(job)?.held))
    };
    let (counts, is_held) = grid.core.look(look).await?.ok_or_else(|| missing(Selector::Job(job)))?;
    let why = if counts.done() == counts.total() {
        format!("{job} is done: there is nothing to hold or to release")
    } else if held && counts.waiting == 0 {
        format!("{job} has no task that waits: end it with gridctl kill, or submit it with --hold")
    } else if !held && !is_held {
        format!("{job} is not held: gridctl status {job} tells what it waits for")
    } else {
        grid.core.home(home::Event::Hold { job, held });
        return Ok(());
    };
    Err(Failure::new(Kind::State, why).into())
}

async fn jobs(
    grid: &Arc<Grid>,
    caller: &Caller,
    everywhere: bool,
    (done, at): (bool, Option<NodeId>),
) -> Result<Reply, Answer> {
    let mut jobs = grid.core.look(move |view| view.home.summaries(done, at)).await?;
    let mut silent = Vec::new();
    if everywhere {
        silent = grid.members.down();
        let asked: Vec<_> = grid
            .members
            .others()
            .into_iter()
            .map(|node| {
                let (grid, caller) = (grid.clone(), caller.clone());
                (node, tokio::spawn(async move { list(&grid, &caller, node, (done, at)).await }))
            })
            .collect();
        for (node, listing) in asked {
            match listing.await {
                Ok(Some(theirs)) => jobs.extend(theirs),
                _ => silent.push(node),
            }
        }
        jobs.sort_by_key(|job| job.submitted);
    }
    let surplus = jobs.len().saturating_sub(MOST_JOBS);
    jobs.drain(..surplus);
    Ok(Reply::Jobs { jobs, silent })
}

async fn list(
    grid: &Grid,
    caller: &Caller,
    node: NodeId,
    (done, at): (bool, Option<NodeId>),
) -> Option<Vec<JobSummary>> {
    let request = Box::new(Request::Jobs { everywhere: false, done, at });
    let asked = peers::Request::Control { caller: caller.clone(), request };
    let answer = tokio::time::timeout(LIST, async {
        let mut duplex = grid.peers.ask(node, &asked).await.ok()?;
        stream::read::<Response, _>(&mut duplex).await.ok()?.ok()
    });
    match answer.await.ok()?? {
        Reply::Jobs { jobs, .. } => Some(jobs),
        _ => None,
    }
}
