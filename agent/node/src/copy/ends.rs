//! The two ends of a transfer, at their agents.

use std::net::IpAddr;

use grid_transfer::mover::{self, Order, Report};
use grid_transfer::session::Trouble;
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::copy::Landed;
use libgrid::ids::NodeId;
use libgrid::user::User;
use libgrid::wire::{WireError, stream};
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::exports::Admitted;
use super::movers::Mover;
use super::{Prepared, Preparing, Right, Sending, Ticket, told};
use crate::caller::Caller;
use crate::control::Stream;
use crate::grid::Grid;
use crate::peers::Request;
use crate::relay::relay;

/// Decides whether a caller may write here.
pub(crate) fn prepared(grid: &Grid, caller: &Caller, preparing: Preparing) -> Result<Prepared, Failure> {
    let Admitted { user, within, path } =
        grid.copies.exports.admit(caller, &preparing.target, true, &grid.config.name)?;
    let order = Order::Receive {
        within,
        target: path,
        into: preparing.into,
        spread: None,
        ports: grid.config.ports(),
        options: preparing.options,
    };
    Ok(Prepared { user, order, from: preparing.from })
}

/// Decides whether a caller may write here; the ticket is for the source.
pub(crate) fn prepare(grid: &Grid, caller: &Caller, preparing: Preparing) -> Result<Ticket, Failure> {
    grid.copies.tickets.issue(prepared(grid, caller, preparing)?)
}

/// Sends what the caller may read, and tells `client` how it goes.
pub(crate) async fn send<S: Stream>(
    grid: &Grid,
    caller: &Caller,
    sending: Sending,
    client: &mut S,
) -> Result<(), WireError> {
    let response = match sent(grid, caller, sending, client).await {
        Ok(landed) => Response::Ok(Reply::Copied(landed)),
        Err(failure) => Response::Err(failure),
    };
    stream::write(client, &response).await
}

async fn sent<S: Stream>(
    grid: &Grid,
    caller: &Caller,
    sending: Sending,
    client: &mut S,
) -> Result<Landed, Failure> {
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
        within: admitted.within,
        sources: below,
        recursive: sending.recursive,
        matching: None,
        addresses: addresses(grid, sending.to),
        id: sending.id,
        most_streams: grid.copies.movers.most_streams(),
        options: sending.options,
    };
    let landed = if sending.to == grid.me {
        let Right::Ticket(ticket) = sending.right else {
            return Err(Failure::new(Kind::Denied, "a ticket is needed"));
        };
        let prepared = grid.copies.tickets.redeem(&ticket, grid.me)?;
        within(grid, (&admitted.user, &order), &prepared, client).await?
    } else {
        let request = match sending.right {
            Right::Ticket(ticket) => Request::Receive { ticket },
            Right::Own(preparing) if caller.is_local() => {
                Request::Accept { caller: caller.clone(), preparing }
            }
            Right::Own(_) => return Err(Failure::new(Kind::Denied, "a ticket is needed")),
        };
        pass(grid, (&admitted.user, &order), sending.to, &request, client).await?
    };
    landed.map_err(told)
}

/// From one place of this node to another.
async fn within<S: Stream>(
    grid: &Grid,
    (user, order): (&User, &Order),
    prepared: &Prepared,
    client: &mut S,
) -> Result<Result<Landed, Trouble>, Failure> {
    let (mut source, mut here) = grid.copies.movers.start(user, order)?;
    let (mut target, mut there) = grid.copies.movers.start(&prepared.user, &prepared.order)?;
    let mut quiet = tokio::io::empty();
    let relay = relay(&mut here, &mut there);
    let ended = async { tokio::join!(landed(&mut source, client), target.end(&mut quiet)).0 };
    Ok(tokio::join!(relay, ended).1)
}

/// Sends to another node, as this user, by this order; `request` is what its agent is asked.
pub(crate) async fn pass<S: Stream>(
    grid: &Grid,
    (user, order): (&User, &Order),
    to: NodeId,
    request: &Request,
    client: &mut S,
) -> Result<Result<Landed, Trouble>, Failure> {
    let mut duplex = grid.peers.ask(to, request).await.map_err(|error| super::unreachable(&error))?;
    let (mut source, mut here) = grid.copies.movers.start(user, order)?;
    let relay = async {
        relay(&mut here, &mut duplex).await;
        // The mover notices that nobody is there any more.
        drop(here);
        std::future::pending::<()>().await;
    };
    Ok(tokio::select! {
        landed = landed(&mut source, client) => landed,
        () = relay => Err(Trouble::passing("the connection to the other node broke")),
    })
}

async fn landed<S: Stream>(source: &mut Mover<'_>, client: &mut S) -> Result<Landed, Trouble> {
    match source.end(client).await? {
        Report::Landed(landed) => Ok(landed),
        _ => Err(Trouble::lasting("the mover answered something else")),
    }
}

/// Receives for a source; `duplex` is its end of the control stream. The source hears why not, if not.
pub(crate) async fn receive<S: Stream>(
    grid: &Grid,
    prepared: Result<Prepared, Failure>,
    duplex: &mut S,
) -> Result<(), WireError> {
    let started = prepared.and_then(|prepared| {
        let started = grid.copies.movers.start(&prepared.user, &prepared.order)?;
        Ok((started, prepared.from))
    });
    let ((mut target, mut control), from) = match started {
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
    debug!(%from, ?ended, "a transfer ended");
    Ok(())
}

/// Where a node's data connections go: to the addresses that its agent has.
pub(crate) fn addresses(grid: &Grid, node: NodeId) -> Vec<IpAddr> {
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
