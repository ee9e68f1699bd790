//! Answers other nodes: what they ask is in [`crate::peers`], and who may ask it is decided here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use grid_jobs::{home, host};
use grid_link::{Duplex, Incoming, Peer};
use libgrid::control::{Failure, Kind};
use libgrid::ids::NodeId;
use libgrid::wire::{WireError, stream};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tracing::debug;

use crate::caller;
use crate::checkpoint::exports;
use crate::comm;
use crate::control;
use crate::copy;
use crate::core::{Letter, View};
use crate::fates;
use crate::grid::{Grid, blocking};
use crate::peers::{Admitted, Request};
use crate::runner::{self, Departing, Outset, finished};
use crate::staging;

/// How long a peer may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);

/// Serves other nodes until the link is closed.
pub(crate) async fn serve(grid: Arc<Grid>, mut incoming: mpsc::Receiver<Incoming>) {
    while let Some(event) = incoming.recv().await {
        match event {
            Incoming::Datagram { peer, bytes } => {
                // A datagram may get lost; one that finds no room does.
                grid.datagram(peer, bytes.to_vec());
            }
            Incoming::Stream { peer, duplex } => {
                let grid = grid.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(&grid, peer, duplex).await {
                        debug!(?peer, %error, "a peer's request ended");
                    }
                });
            }
            Incoming::Connected(node) => {
                if let Some(list) = grid.identity.revocations() {
                    tokio::spawn(grid.clone().pass_on(node, list));
                }
            }
            Incoming::Disconnected(_) => (),
        }
    }
}

async fn answer(grid: &Arc<Grid>, peer: Peer, mut duplex: Duplex) -> Result<(), WireError> {
    let request = tokio::time::timeout(REQUEST, stream::read::<Request, _>(&mut duplex)).await;
    let request = request.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match (peer, request) {
        (Peer::Node(node), request) => answer_node(grid, node, request, duplex).await,
        (Peer::Bearer(token), Request::Join { public_key, name }) => {
            let identity = grid.identity.clone();
            let admitted = blocking(move || identity.redeem(&token, public_key, &name)).await;
            answer_once(&mut duplex, &admitted).await
        }
        // A token is for joining alone.
        (Peer::Bearer(_), _) => Ok(()),
    }
}

async fn answer_node(
    grid: &Arc<Grid>,
    node: NodeId,
    request: Request,
    mut duplex: Duplex,
) -> Result<(), WireError> {
    match request {
        Request::Letters => loop {
            match stream::read::<Letter, _>(&mut duplex).await? {
                Letter::Host(message) => grid.core.host(host::Event::Message { from: node, message }),
                Letter::Home(message) => grid.core.home(home::Event::Message { from: node, message }),
            }
        },
        Request::Control { caller, request } => {
            // Its node vouches for the user; what that may do is decided here.
            let caller = caller.at_node(node);
            control::relayed(grid, &caller, *request, &mut duplex).await?;
            duplex.send.finish();
            let _ = duplex.send.delivered().await;
            Ok(())
        }
        Request::Logs { run, from, follow } if run.task.job.home == node => {
            grid.output.send_logs(run, from, follow, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Output(run) if run.task.job.home == node => {
            grid.output.send_output(run, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Stage { what, ticket } => {
            staging::send(grid, node, what, ticket, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Input(run) if run.task.job.home == node => {
            control::hear(grid.keyboard(run).await, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Usage(runs) if runs.iter().all(|run| run.task.job.home == node) => {
            answer_once(&mut duplex, &grid.output.usage(runs).await).await
        }
        Request::Processes(runs) if runs.iter().all(|run| run.task.job.home == node) => {
            answer_once(&mut duplex, &grid.processes_of(Some(runs)).await).await
        }
        Request::Comm => comm::take(grid, duplex).await,
        Request::Owner(job) => answer_once(&mut duplex, &caller::owner(grid, job).await).await,
        Request::Fates(jobs) => match fates::here(&grid.core, jobs).await {
            Ok(fates) => answer_once(&mut duplex, &fates).await,
            Err(_) => Ok(()),
        },
        Request::SameUser(one, other) => {
            answer_once(&mut duplex, &comm::same_user(grid, one, other).await).await
        }
        Request::Find(process) => answer_once(&mut duplex, &grid.find_here(process).await).await,
        Request::Signal { run, process, signal } if run.task.job.home == node => {
            answer_once(&mut duplex, &grid.signal_here(run, process, signal).await).await
        }
        Request::Checkpoint(run) if run.task.job.home == node => {
            answer_once(&mut duplex, &grid.checkpoint(run).await).await
        }
        Request::Checkpoints(task) if task.job.home == node => {
            answer_once(&mut duplex, &grid.checkpoints(task).await).await
        }
        Request::Verify { task, number } if task.job.home == node => {
            answer_once(&mut duplex, &grid.verify(task, number).await).await
        }
        Request::Keep { task, number } if task.job.home == node => {
            answer_once(&mut duplex, &grid.keep(task, number).await).await
        }
        Request::Survey(run) if run.task.job.home == node => {
            answer_once(&mut duplex, &grid.survey(run).await).await
        }
        Request::Fits { run, there } if run.task.job.home == node => {
            let found: Result<_, Failure> = Ok(grid.fits(run, there).await);
            answer_once(&mut duplex, &found).await
        }
        Request::Relocate { run, mode } => {
            let there = move |view: &mut View| view.home.run_of(run.task) == Some((run, Some(node)));
            let moved = match grid.core.look(there).await {
                Ok(true) => control::relocate(grid, run, mode).await,
                _ => Err(Failure::new(Kind::Denied, format!("{} is not on node {node}", run.task))),
            };
            answer_once(&mut duplex, &moved).await
        }
        // Only whom the job's home named gets it.
        Request::Depart { run, epoch } => {
            let Departing { departure, luggage } = grid.depart(run, (node, epoch)).await;
            stream::write(&mut duplex, &departure).await?;
            if let Some(luggage) = luggage {
                runner::luggage::send(luggage, &mut duplex).await?;
            }
            finish(&mut duplex).await
        }
        Request::Pages { run, invitation, memory } => {
            answer_once(&mut duplex, &grid.ahead(run, node, invitation, memory).await).await
        }
        Request::Rounds(run) => {
            let (outset, key) = grid.rounds(run, node).await;
            stream::write(&mut duplex, &outset).await?;
            if matches!(outset, Outset::Begun(_)) {
                // However it ends.
                let _ = duplex.recv.read(&mut [0]).await;
                grid.rounds_over(run, key);
            }
            finish(&mut duplex).await
        }
        Request::Round { run, round } => {
            let (round, folder) = grid.round(run, node, round).await;
            stream::write(&mut duplex, &round).await?;
            if let Some(folder) = folder {
                runner::luggage::send_folder(folder, &mut duplex).await?;
            }
            finish(&mut duplex).await
        }
        // Who may have it is decided there.
        Request::Manifest { task, number } => {
            answer_once(&mut duplex, &exports::answer(grid, node, task, number).await).await
        }
        // Only a job's home may ask for what its tasks left.
        Request::Logs { .. }
        | Request::Output(_)
        | Request::Input(_)
        | Request::Usage(_)
        | Request::Processes(_)
        | Request::Signal { .. }
        | Request::Checkpoint(_)
        | Request::Checkpoints(_)
        | Request::Verify { .. }
        | Request::Keep { .. }
        | Request::Survey(_)
        | Request::Fits { .. } => Ok(()),
        // Of other homes' tasks this one knows nothing.
        Request::Finished(mut tasks) => {
            tasks.retain(|task| task.job.home == grid.me);
            match grid.core.look(move |view| finished(view, tasks)).await {
                Ok(finished) => answer_once(&mut duplex, &finished).await,
                Err(_) => Ok(()),
            }
        }
        Request::Renew { public_key } => {
            let identity = grid.identity.clone();
            let admitted = blocking(move || identity.renew(node, public_key)).await;
            answer_once(&mut duplex, &admitted).await
        }
        Request::Certify { user, addresses, public_key } => {
            let identity = grid.identity.clone();
            let certify = move || identity.certify(node, &user, addresses.as_deref(), public_key);
            answer_once(&mut duplex, &blocking(certify).await).await
        }
        Request::Revocations(list) => {
            grid.learn(list).await;
            Ok(())
        }
        Request::Prepare { caller, preparing } => {
            let answer = copy::prepare(grid, &caller.at_node(node), preparing);
            answer_once(&mut duplex, &answer).await
        }
        Request::Send { caller, sending } => {
            copy::send(grid, &caller.at_node(node), sending, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Receive { ticket } => {
            let prepared = grid.copies.tickets.redeem(&ticket, node);
            copy::receive(grid, prepared, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Accept { caller, preparing } => {
            let prepared = copy::prepared(grid, &caller.at_node(node), preparing);
            copy::receive(grid, prepared, &mut duplex).await?;
            finish(&mut duplex).await
        }
        Request::Exports => answer_once(&mut duplex, &copy::exports_here(grid)).await,
        Request::Join { .. } => {
            let refused: Admitted = Err("this node is in the VO already".into());
            answer_once(&mut duplex, &refused).await
        }
    }
}

async fn answer_once<T: serde::Serialize>(duplex: &mut Duplex, answer: &T) -> Result<(), WireError> {
    stream::write(duplex, answer).await?;
    finish(duplex).await
}

async fn finish(duplex: &mut Duplex) -> Result<(), WireError> {
    duplex.send.finish();
    Ok(duplex.send.delivered().await?)
}
