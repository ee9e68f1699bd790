//! Copies between nodes: who may, and which two processes do it.
//!
//! ```text
//!   user's agent ── Prepare ──▶ destination's agent: may the user write there?        a ticket, for one source
//!        │
//!        └── Send{ticket} ────▶ source's agent: may the user read there?
//!                                    │ starts a mover
//!                                    └── Receive{ticket} ──▶ destination's agent starts a mover,
//!                                        and the two movers talk over this stream
//!
//!   user's agent is the source's ── Accept ──▶ destination's agent: the same with one round trip less
//! ```
//!
//! Each agent decides about its own files, on the word of the user's own agent. The user's agent may be either end.
//! Data goes from mover to mover, see [`grid_transfer::session`]. When the user goes, the movers are ended; what came
//! is kept for the next try.

mod ends;
pub(crate) mod exports;
pub(crate) mod movers;
mod tickets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use grid_transfer::mover::{self, Order, Report};
use grid_transfer::session::Trouble;
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::copy::{Copy, ExportOf, Options, Place};
use libgrid::ids::NodeId;
use libgrid::wire::{WireError, stream};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

pub(crate) use self::ends::{addresses, pass, prepare, prepared, receive, send};
use self::exports::Exports;
use self::movers::Movers;
use self::tickets::Tickets;
pub(crate) use self::tickets::{Prepared, Ticket};
use crate::caller::Caller;
use crate::config::Config;
use crate::control::{Answer, Stream};
use crate::grid::Grid;
use crate::peers::{AskError, Request};

/// How long another node has to answer a question.
const ANSWER: Duration = Duration::from_secs(10);

/// What a source is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sending {
    pub(crate) sources: Vec<PathBuf>,
    pub(crate) recursive: bool,
    pub(crate) to: NodeId,
    pub(crate) right: Right,
    pub(crate) id: [u8; 8],
    pub(crate) options: Options,
}

/// What lets a source write to the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Right {
    /// The destination has said so already.
    Ticket(Ticket),
    /// The user is of the source's own node: the destination is asked with the first word, and a round trip is saved.
    Own(Preparing),
}

/// What a destination is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Preparing {
    pub(crate) target: PathBuf,
    /// It was written with a slash at its end.
    pub(crate) into: bool,
    pub(crate) from: NodeId,
    pub(crate) options: Options,
}

/// This node's part in copies.
pub(crate) struct Copies {
    pub(crate) exports: Exports,
    pub(crate) tickets: Tickets,
    pub(crate) movers: Movers,
}

impl Copies {
    pub(crate) fn load(config: &Config) -> Result<Self, Failure> {
        let exports = Exports::load(&config.state_dir)?;
        Ok(Self { exports, tickets: Tickets::default(), movers: Movers::default() })
    }
}

fn told(trouble: Trouble) -> Failure {
    let kind = if trouble.retry { Kind::Unavailable } else { Kind::Invalid };
    let Trouble { why, first, .. } = trouble;
    match first {
        Some(first) => {
            let again = "then give the same command again: it goes on where it ended";
            Failure::new(kind, format!("{why}; {first}, {again}"))
        }
        None => Failure::new(kind, why),
    }
}

fn unreachable(error: &AskError) -> Failure {
    Failure::new(Kind::Unavailable, error.to_string())
}

// === a user's request ===

/// Copies for a user of this machine, who hears of the progress.
pub(crate) async fn copy<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    copy: Copy,
    client: &mut S,
) -> Result<(), Answer> {
    let (from, sources) = sources(grid, &copy.sources).await?;
    let (to, target) = place(grid, &copy.target, true).await?;
    let into = ends_with_slash(&target);
    let id = identify(caller, from, &sources, to, &target);
    let preparing = Preparing { target, into, from, options: copy.options.clone() };
    let right = if to == grid.me {
        Right::Ticket(prepare(grid, caller, preparing)?)
    } else if from == grid.me {
        Right::Own(preparing)
    } else {
        let request = Request::Prepare { caller: caller.clone(), preparing };
        let answer: Result<Ticket, Failure> = ask(grid, to, &request).await?;
        Right::Ticket(answer?)
    };
    let sending = Sending { sources, recursive: copy.recursive, to, right, id, options: copy.options };
    if from == grid.me {
        return Ok(send(grid, caller, sending, client).await?);
    }
    let request = Request::Send { caller: caller.clone(), sending };
    let mut duplex = grid.peers.ask(from, &request).await.map_err(|error| unreachable(&error))?;
    loop {
        let lost = |error: WireError| {
            Failure::new(Kind::Unavailable, format!("the connection to node {from} broke: {error}"))
        };
        let response: Response = stream::read(&mut duplex).await.map_err(lost)?;
        let goes_on = matches!(response, Ok(Reply::Copying(_)));
        stream::write(client, &response).await?;
        if !goes_on {
            return Ok(());
        }
    }
}

async fn ask<T: serde::de::DeserializeOwned>(
    grid: &Grid,
    node: NodeId,
    request: &Request,
) -> Result<T, Failure> {
    let mut duplex = grid.peers.ask(node, request).await.map_err(|error| unreachable(&error))?;
    let answer = tokio::time::timeout(ANSWER, stream::read(&mut duplex)).await;
    let silent = |why: String| Failure::new(Kind::Unavailable, format!("node {node} does not answer: {why}"));
    answer.map_err(|_| silent("it took too long".into()))?.map_err(|error| silent(error.to_string()))
}

/// The node that the sources are on, and their paths there.
async fn sources(grid: &Arc<Grid>, sources: &[Place]) -> Result<(NodeId, Vec<PathBuf>), Failure> {
    let mut found = None;
    let mut paths = Vec::new();
    for source in sources {
        let (node, path) = place(grid, source, false).await?;
        if found.is_some_and(|other| other != node) {
            return Err(Failure::new(
                Kind::Invalid,
                "the sources are on several nodes: copy from one at a time",
            ));
        }
        found = Some(node);
        paths.push(path);
    }
    let none = || Failure::new(Kind::Invalid, "no source is given: see gridctl cp --help");
    Ok((found.ok_or_else(none)?, paths))
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Tells a copy from others: a try that follows has the same.
fn identify(caller: &Caller, from: NodeId, sources: &[PathBuf], to: NodeId, target: &Path) -> [u8; 8] {
    let owner = caller.owner();
    mover::transfer_id(&format!("{owner}\0{from}\0{sources:?}\0{to}\0{target:?}"))
}

/// The node and the path there that a place stands for.
pub(crate) async fn place(
    grid: &Arc<Grid>,
    place: &Place,
    write: bool,
) -> Result<(NodeId, PathBuf), Failure> {
    match place {
        Place::Here(path) => Ok((grid.me, path.clone())),
        Place::Node { node, path } => {
            let found = grid.members.find(node).or_else(|| (*node == grid.config.name).then_some(grid.me));
            let missing =
                || Failure::new(Kind::Missing, format!("there is no node {node}: see gridctl nodes"));
            Ok((found.ok_or_else(missing)?, path.clone()))
        }
        Place::Grid(path) => in_grid(grid, path, write).await,
    }
}

/// The node that exports a path of the grid: the longest export wins, and of several the one with the most room.
async fn in_grid(grid: &Arc<Grid>, path: &Path, write: bool) -> Result<(NodeId, PathBuf), Failure> {
    let (exports, silent) = exports_of_all(grid).await;
    let best = exports
        .iter()
        .filter_map(|of| {
            let below = path.strip_prefix(of.export.grid.as_deref()?).ok()?;
            (of.export.write || !write).then_some((below, of))
        })
        .max_by_key(|(below, of)| (std::cmp::Reverse(below.components().count()), of.free));
    let Some((below, of)) = best else {
        let what = if write { " for writing" } else { "" };
        let wanted = format!("lends grid:{}{what}", path.display());
        let see = "see gridctl exports --everywhere";
        let silent: BTreeSet<NodeId> = silent.into_iter().chain(grid.members.down()).collect();
        let silent: Vec<String> = silent.into_iter().map(|node| format!("node {node}")).collect();
        return Err(match silent.is_empty() {
            true => Failure::new(Kind::Missing, format!("no node {wanted}: {see}")),
            // One of these may lend it: whoever copies tries again.
            false => Failure::new(
                Kind::Unavailable,
                format!(
                    "no node that answers {wanted}, and there is no answer from {}: {see}",
                    silent.join(", ")
                ),
            ),
        });
    };
    let mut found = of.export.path.join(below);
    if ends_with_slash(path) {
        found.push("");
    }
    Ok((of.node, found))
}

/// What all nodes lend, and who did not say.
pub(crate) async fn exports_of_all(grid: &Arc<Grid>) -> (Vec<ExportOf>, Vec<NodeId>) {
    let mut all = exports_here(grid);
    let mut silent = Vec::new();
    let mut asked = JoinSet::new();
    for node in grid.members.others() {
        let grid = grid.clone();
        asked.spawn(async move { (node, ask::<Vec<ExportOf>>(&grid, node, &Request::Exports).await) });
    }
    while let Some(Ok((node, answer))) = asked.join_next().await {
        match answer {
            // Each speaks for itself alone.
            Ok(more) => all.extend(more.into_iter().filter(|of| of.node == node)),
            Err(_) => silent.push(node),
        }
    }
    all.sort_by(|a, b| (a.node, &a.export.path).cmp(&(b.node, &b.export.path)));
    (all, silent)
}

/// What this node lends.
pub(crate) fn exports_here(grid: &Grid) -> Vec<ExportOf> {
    let exports = grid.copies.exports.all().into_iter();
    let of = |export: libgrid::copy::Export| {
        let free = exports::free(&export.path);
        ExportOf { node: grid.me, name: grid.config.name.clone(), export, free }
    };
    exports.map(of).collect()
}

/// Lists a folder of this node for a caller.
pub(crate) async fn list(grid: &Grid, caller: &Caller, path: &Path) -> Result<Reply, Failure> {
    let admitted = grid.copies.exports.admit(caller, path, false, &grid.config.name)?;
    let order = Order::List { within: admitted.within.clone(), path: admitted.path.clone() };
    let (mut mover, _control) = grid.copies.movers.start(&admitted.user, &order)?;
    match mover.end(&mut tokio::io::empty()).await.map_err(told)? {
        Report::Listing(entries, more) => Ok(Reply::Listing { entries, more }),
        _ => Err(Failure::new(Kind::Internal, "the mover answered something else")),
    }
}
