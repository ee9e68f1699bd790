//! Requests about processes. A job's home knows who may ask; the nodes where its tasks run know their processes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use libgrid::control::{Failure, Kind, Reply, Request, Response};
use libgrid::ids::{Gpid, JobId, NodeId, Run, Selector, TaskId};
use libgrid::process::Process;
use libgrid::wire::stream;
use serde::de::DeserializeOwned;

use super::Answer;
use super::answer::missing;
use super::checkpoints::ask;
use crate::caller::Caller;
use crate::grid::Grid;
use crate::peers;
use crate::processes::{Fate, MOST, bound};

/// How long another node has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processes of one job, or one task, of this home: the caller may see them.
pub(super) async fn of(grid: &Arc<Grid>, of: Selector) -> Result<Reply, Answer> {
    let runs = grid.core.look(move |view| view.home.running(of.job()));
    let runs: Vec<_> = runs.await?.into_iter().filter(|(run, _)| of.covers(run.task.index)).collect();
    let (processes, silent) = at_nodes(grid, runs).await;
    Ok(listing(grid, processes, silent))
}

/// Those of all jobs of this home that are the caller's; with `everywhere`, of theirs of other homes, too.
pub(super) async fn all(grid: &Arc<Grid>, caller: &Caller, everywhere: bool) -> Result<Reply, Answer> {
    let own = caller.clone();
    let runs = grid.core.look(move |view| {
        let jobs: Vec<JobId> = view.home.summaries(false, None).into_iter().map(|job| job.id).collect();
        let owned = |job: &JobId| view.home.record(*job).is_some_and(|record| own.owns(job, &record).is_ok());
        jobs.into_iter().filter(owned).flat_map(|job| view.home.running(job)).collect::<Vec<_>>()
    });
    let (mut processes, mut silent) = at_nodes(grid, runs.await?).await;
    if everywhere {
        silent.extend(grid.members.down());
        let request = Request::Processes { of: None, everywhere: false };
        let asked = peers::Request::Control { caller: caller.clone(), request: Box::new(request) };
        let others = grid.members.others().into_iter().map(|node| (node, asked.clone())).collect();
        for (node, answer) in ask_all::<Response>(grid, others).await {
            match answer {
                Some(Ok(Reply::Processes { processes: theirs, silent: unheard, .. })) => {
                    processes.extend(theirs);
                    silent.extend(unheard);
                }
                _ => silent.push(node),
            }
        }
    }
    Ok(listing(grid, processes, silent))
}

/// Which task a process is part of, wherever it is.
pub(super) async fn find(grid: &Arc<Grid>, process: Gpid) -> Result<TaskId, Failure> {
    let mut fates = match grid.find_here(process).await {
        Ok(task) => return Ok(task),
        Err(fate) => Vec::from_iter(fate),
    };
    let others =
        grid.members.others().into_iter().map(|node| (node, peers::Request::Find(process))).collect();
    let mut silent: Vec<String> = grid.members.down().iter().map(ToString::to_string).collect();
    for (node, answer) in ask_all::<Result<TaskId, Option<Fate>>>(grid, others).await {
        match answer {
            Some(Ok(task)) => return Ok(task),
            Some(Err(fate)) => fates.extend(fate),
            None => silent.push(node.to_string()),
        }
    }
    let last = fates.into_iter().min_by_key(|fate| fate.ago);
    let why = match (last, silent.is_empty()) {
        (Some(fate), true) => fate.sentence,
        // It may have moved there, and have been ended where it was.
        (Some(fate), false) => format!(
            "{}, on the nodes that could be asked; it may run on another (no answer from {}): try again",
            fate.sentence,
            silent.join(", ")
        ),
        (None, true) => {
            format!(
                "no process {process} runs in this VO: gridctl ps --processes --everywhere lists those of yours"
            )
        }
        (None, false) => format!(
            "no process {process} was found, but not every node could be asked (no answer from {}): try again",
            silent.join(", ")
        ),
    };
    Err(Failure::new(Kind::Missing, why))
}

/// Sends a signal to a process of a task of this home: the caller may.
pub(super) async fn signal(
    grid: &Arc<Grid>,
    task: TaskId,
    process: Gpid,
    signal: i32,
) -> Result<Reply, Answer> {
    if !(1..=64).contains(&signal) {
        let why = format!("{signal} is no signal: use a name such as INT, or a number from 1 to 64");
        return Err(Failure::new(Kind::Invalid, why).into());
    }
    let place = grid.core.look(move |view| view.home.run_of(task)).await?;
    let (run, node) = place.ok_or_else(|| missing(Selector::Task(task)))?;
    match node {
        None => {
            Err(Failure::new(Kind::Missing, format!("{task} does not run now, nor does {process}")).into())
        }
        Some(node) if node == grid.me => {
            grid.signal_here(run, process, signal).await?;
            Ok(Reply::Done)
        }
        Some(node) => {
            let () = ask(grid, node, &peers::Request::Signal { run, process, signal }).await?;
            Ok(Reply::Done)
        }
    }
}

fn listing(grid: &Grid, mut processes: Vec<Process>, mut silent: Vec<NodeId>) -> Reply {
    name_nodes(grid, &mut processes);
    processes.sort_by_key(|process| (process.task, process.gpid));
    let more = processes.len() > MOST;
    bound(&mut processes);
    silent.sort_unstable();
    silent.dedup();
    Reply::Processes { processes, silent, more }
}

/// Tells which of the addresses that processes exchanged packets with are nodes'.
fn name_nodes(grid: &Grid, processes: &mut [Process]) {
    let members = grid.members.all();
    let addresses =
        members.iter().flat_map(|member| member.info.addrs.iter().map(move |addr| (addr.ip(), member)));
    let nodes: BTreeMap<IpAddr, NodeId> =
        addresses.filter(|(ip, _)| !ip.is_loopback()).map(|(ip, member)| (ip, member.info.node)).collect();
    for traffic in processes.iter_mut().flat_map(|process| &mut process.traffic) {
        traffic.node = nodes.get(&traffic.remote).copied();
    }
}

/// The processes of runs, from where they are; and the nodes that did not answer.
async fn at_nodes(grid: &Arc<Grid>, runs: Vec<(Run, NodeId)>) -> (Vec<Process>, Vec<NodeId>) {
    let mut places: BTreeMap<NodeId, Vec<Run>> = BTreeMap::new();
    runs.into_iter().for_each(|(run, node)| places.entry(node).or_default().push(run));
    let mut processes = match places.remove(&grid.me) {
        Some(runs) => grid.processes_of(Some(runs)).await,
        None => Vec::new(),
    };
    let others = places.into_iter().map(|(node, runs)| (node, peers::Request::Processes(runs))).collect();
    let mut silent = Vec::new();
    for (node, answer) in ask_all::<Vec<Process>>(grid, others).await {
        match answer {
            Some(theirs) => processes.extend(theirs),
            None => silent.push(node),
        }
    }
    (processes, silent)
}

/// Asks all at once.
pub(super) async fn ask_all<T: DeserializeOwned + Send + 'static>(
    grid: &Arc<Grid>,
    requests: Vec<(NodeId, peers::Request)>,
) -> Vec<(NodeId, Option<T>)> {
    let asked: Vec<_> = requests
        .into_iter()
        .map(|(node, request)| {
            let peers = grid.peers.clone();
            let answer = async move {
                let mut duplex = peers.ask(node, &request).await.ok()?;
                stream::read::<T, _>(&mut duplex).await.ok()
            };
            (node, tokio::spawn(tokio::time::timeout(PATIENCE, answer)))
        })
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for (node, answer) in asked {
        answers.push((node, answer.await.ok().and_then(Result::ok).flatten()));
    }
    answers
}
