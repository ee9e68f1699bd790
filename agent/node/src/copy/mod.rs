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

pub(crate) mod exports;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use grid_transfer::mover::{self, Order, Report};
use grid_transfer::session::Trouble;
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::copy::{Copy, ExportOf, Options, Place};
use libgrid::ids::NodeId;
use libgrid::wire::{WireError, stream};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tracing::debug;

use self::exports::{Admitted, Exports};
use crate::caller::Caller;
use crate::config::Config;
use crate::control::{Answer, Stream};
use crate::grid::Grid;
use crate::identity::failure;
use crate::machine;
use crate::peers::{AskError, Request};
use crate::relay::relay;

/// How long a ticket is good.
const TICKET: Duration = Duration::from_secs(60);

/// Tickets that are out at most.
const TICKETS: usize = 1000;

/// How long another node has to answer a question.
const ANSWER: Duration = Duration::from_secs(10);

/// Data connections of all transfers of this node together, about.
const STREAMS: usize = 64;

/// A right to write, once.
pub(crate) type Ticket = [u8; 16];

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

/// Somebody may write here.
pub(crate) struct Prepared {
    admitted: Admitted,
    preparing: Preparing,
    until: Instant,
}

/// This node's part in copies.
pub(crate) struct Copies {
    pub(crate) exports: Exports,
    tickets: Mutex<HashMap<Ticket, Prepared>>,
    /// Movers that run.
    running: AtomicUsize,
}

/// A mover that runs; ended when this is dropped.
struct Mover<'a> {
    copies: &'a Copies,
    child: Child,
    orders: UnixStream,
}

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        self.copies.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Copies {
    pub(crate) fn load(config: &Config) -> Result<Self, Failure> {
        let exports = Exports::load(&config.state_dir)?;
        Ok(Self { exports, tickets: Mutex::default(), running: AtomicUsize::new(0) })
    }

    fn start(&self, admitted: &Admitted, order: &Order) -> Result<(Mover<'_>, UnixStream), Failure> {
        let cannot = |error: std::io::Error| {
            let program = machine::program("gridos-mover");
            failure(Kind::Internal, format!("cannot start {}: {error}", program.display()))
        };
        let (mut command, orders, control) =
            mover::command(&machine::program("gridos-mover"), &admitted.user).map_err(cannot)?;
        command.stderr(Stdio::null());
        let child = Command::from(command).kill_on_drop(true).spawn().map_err(cannot)?;
        self.running.fetch_add(1, Ordering::Relaxed);
        // An order is far smaller than the buffer of a socket.
        libgrid::wire::write(&mut &orders, order).map_err(|error| failure(Kind::Internal, &error))?;
        let asynchronous = |socket: std::os::unix::net::UnixStream| {
            socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket)).map_err(cannot)
        };
        let mover = Mover { copies: self, child, orders: asynchronous(orders)? };
        Ok((mover, asynchronous(control)?))
    }

    fn most_streams(&self) -> u16 {
        let others = self.running.load(Ordering::Relaxed);
        u16::try_from((STREAMS / (others + 1)).max(1)).unwrap_or(1)
    }

    fn redeem(&self, ticket: &Ticket, from: NodeId) -> Option<Prepared> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = tickets.remove(ticket)?;
        (prepared.preparing.from == from && prepared.until > Instant::now()).then_some(prepared)
    }
}

impl Mover<'_> {
    /// Waits for what it has to say last; the client hears of the progress.
    async fn end<S: Stream>(&mut self, client: &mut S) -> Result<Report, Trouble> {
        let gone = |_| Trouble::passing("the process that moves the data ended early: see the agent's log");
        loop {
            match stream::read::<Report, _>(&mut self.orders).await.map_err(gone)? {
                Report::Progress(progress) => {
                    let told = stream::write(client, &Response::Ok(Reply::Copying(progress))).await;
                    told.map_err(|_| Trouble::lasting("nobody waits for it any more"))?;
                }
                Report::Failed(trouble) => return Err(trouble),
                last => {
                    // It ends by itself now; a child is waited for.
                    let _ = self.child.wait().await;
                    return Ok(last);
                }
            }
        }
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
        let what = if write { "for writing " } else { "" };
        let mut why =
            format!("no node lends grid:{} {what}: see gridctl exports --everywhere", path.display());
        if !silent.is_empty() {
            why = format!("{why} ({} nodes did not answer)", silent.len());
        }
        return Err(Failure::new(Kind::Missing, why));
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
    let (mut mover, _control) = grid.copies.start(&admitted, &order)?;
    match mover.end(&mut tokio::io::empty()).await.map_err(told)? {
        Report::Listing(entries, more) => Ok(Reply::Listing { entries, more }),
        _ => Err(Failure::new(Kind::Internal, "the mover answered something else")),
    }
}

// === the two ends ===

/// Decides whether a caller may write here.
pub(crate) fn prepared(grid: &Grid, caller: &Caller, preparing: Preparing) -> Result<Prepared, Failure> {
    let admitted = grid.copies.exports.admit(caller, &preparing.target, true, &grid.config.name)?;
    Ok(Prepared { admitted, preparing, until: Instant::now() + TICKET })
}

/// The right of which a source of this node has the ticket.
pub(crate) fn redeemed(grid: &Grid, from: NodeId, ticket: &Ticket) -> Result<Prepared, Failure> {
    let stale = || Failure::new(Kind::Unavailable, "the copy took too long to begin: try again");
    grid.copies.redeem(ticket, from).ok_or_else(stale)
}

/// Decides whether a caller may write here; the ticket is for the source.
pub(crate) fn prepare(grid: &Grid, caller: &Caller, preparing: Preparing) -> Result<Ticket, Failure> {
    let prepared = prepared(grid, caller, preparing)?;
    let now = Instant::now();
    let mut tickets = grid.copies.tickets.lock().unwrap_or_else(PoisonError::into_inner);
    tickets.retain(|_, prepared| prepared.until > now);
    if tickets.len() >= TICKETS {
        return Err(Failure::new(
            Kind::Unavailable,
            format!("{TICKETS} copies are about to begin: try again"),
        ));
    }
    let ticket = rand::random();
    tickets.insert(ticket, prepared);
    Ok(ticket)
}

/// Sends what the caller may read, and tells `client` how it goes.
pub(crate) async fn send<S: Stream>(
    grid: &Grid,
    caller: &Caller,
    sending: Sending,
    client: &mut S,
) -> Result<(), WireError> {
    let response = match sent(grid, caller, sending, client).await {
        Ok(reply) => Response::Ok(reply),
        Err(failure) => Response::Err(failure),
    };
    stream::write(client, &response).await
}

async fn sent<S: Stream>(
    grid: &Grid,
    caller: &Caller,
    sending: Sending,
    client: &mut S,
) -> Result<Reply, Failure> {
    let mut first: Option<Admitted> = None;
    let mut below = Vec::new();
    for source in &sending.sources {
        let admitted = grid.copies.exports.admit(caller, source, false, &grid.config.name)?;
        below.push(admitted.path.clone());
        let same = first.as_ref().is_none_or(|first| first.within == admitted.within);
        if !same {
            return Err(Failure::new(
                Kind::Invalid,
                "the sources are in several exports: copy from one at a time",
            ));
        }
        first = Some(admitted);
    }
    let admitted = first.ok_or_else(|| Failure::new(Kind::Invalid, "no source is given"))?;
    let order = Order::Send {
        within: admitted.within.clone(),
        sources: below,
        recursive: sending.recursive,
        matching: None,
        addresses: addresses(grid, sending.to),
        id: sending.id,
        most_streams: grid.copies.most_streams(),
        options: sending.options,
    };
    let landed = if sending.to == grid.me {
        let Right::Ticket(ticket) = sending.right else {
            return Err(Failure::new(Kind::Denied, "a ticket is needed"));
        };
        let prepared = redeemed(grid, grid.me, &ticket)?;
        let (mut source, mut here) = grid.copies.start(&admitted, &order)?;
        let (mut target, mut there) = receiver(grid, prepared)?;
        let mut quiet = tokio::io::empty();
        let relay = relay(&mut here, &mut there);
        let ended = async { tokio::join!(source.end(client), target.end(&mut quiet)).0 };
        tokio::join!(relay, ended).1
    } else {
        let request = match sending.right {
            Right::Ticket(ticket) => Request::Receive { ticket },
            Right::Own(preparing) if caller.is_local() => {
                Request::Accept { caller: caller.clone(), preparing }
            }
            Right::Own(_) => return Err(Failure::new(Kind::Denied, "a ticket is needed")),
        };
        let mut duplex = grid.peers.ask(sending.to, &request).await.map_err(|error| unreachable(&error))?;
        let (mut source, mut here) = grid.copies.start(&admitted, &order)?;
        let relay = async {
            relay(&mut here, &mut duplex).await;
            // The mover notices that nobody is there any more.
            drop(here);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            landed = source.end(client) => landed,
            () = relay => unreachable_end(),
        }
    };
    match landed.map_err(told)? {
        Report::Landed(landed) => Ok(Reply::Copied(landed)),
        _ => Err(Failure::new(Kind::Internal, "the mover answered something else")),
    }
}

fn unreachable_end() -> Result<Report, Trouble> {
    Err(Trouble::passing("the connection to the other node broke"))
}

/// Receives for a source; `duplex` is its end of the control stream. The source hears why not, if not.
pub(crate) async fn receive<S: Stream>(
    grid: &Grid,
    from: NodeId,
    prepared: Result<Prepared, Failure>,
    duplex: &mut S,
) -> Result<(), WireError> {
    let started = prepared.and_then(|prepared| receiver(grid, prepared));
    let (mut target, mut control) = match started {
        Ok(started) => started,
        Err(failure) => {
            let retry = failure.kind == Kind::Unavailable;
            let refusal = mover::refusal(Trouble { why: failure.message, retry, first: None })?;
            duplex.write_all(&refusal).await?;
            return Ok(());
        }
    };
    let relay = async {
        relay(&mut control, duplex).await;
        // A source that is gone is noticed by the mover only when nobody is at the other end.
        drop(control);
    };
    let mut quiet = tokio::io::empty();
    let ((), ended) = tokio::join!(relay, target.end(&mut quiet));
    debug!(%from, ?ended, "a copy ended");
    Ok(())
}

fn receiver(grid: &Grid, prepared: Prepared) -> Result<(Mover<'_>, UnixStream), Failure> {
    let Prepared { admitted, preparing, .. } = prepared;
    let order = Order::Receive {
        within: admitted.within.clone(),
        target: admitted.path.clone(),
        into: preparing.into,
        spread: None,
        ports: grid.config.data_ports.map(|ports| (ports.first, ports.last)),
        options: preparing.options,
    };
    grid.copies.start(&admitted, &order)
}

/// Where a node's data connections go: to the addresses that its agent has.
fn addresses(grid: &Grid, node: NodeId) -> Vec<IpAddr> {
    let addrs = match node == grid.me {
        true => grid.addrs.clone(),
        false => grid
            .members
            .all()
            .into_iter()
            .filter(|n| n.info.node == node)
            .flat_map(|n| n.info.addrs)
            .collect(),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in addrs.iter().map(std::net::SocketAddr::ip) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}
