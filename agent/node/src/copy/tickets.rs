//! Rights to send something here, each good once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grid_transfer::mover::Order;
use libgrid::control::{Failure, Kind};
use libgrid::ids::NodeId;
use libgrid::user::User;

/// How long a ticket is good.
const LIFETIME: Duration = Duration::from_secs(60);

/// Tickets that are out at most.
const MOST: usize = 1000;

/// A right to send something here, once.
pub(crate) type Ticket = [u8; 16];

/// Something may come: as whom it is received, and how.
pub(crate) struct Prepared {
    pub(crate) user: User,
    pub(crate) order: Order,
    /// The only node that it may come from.
    pub(crate) from: NodeId,
}

/// Those that are out.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<HashMap<Ticket, (Prepared, Instant)>>);

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ticket, (Prepared, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn issue(&self, prepared: Prepared) -> Result<Ticket, Failure> {
        let now = Instant::now();
        let mut tickets = self.lock();
        tickets.retain(|_, (_, until)| *until > now);
        if tickets.len() >= MOST {
            let why = format!("{MOST} transfers are about to begin: try again");
            return Err(Failure::new(Kind::Unavailable, why));
        }
        let ticket = rand::random();
        tickets.insert(ticket, (prepared, now + LIFETIME));
        Ok(ticket)
    }

    /// The right that a node has a ticket for; the ticket is used up.
    pub(crate) fn redeem(&self, ticket: &Ticket, from: NodeId) -> Result<Prepared, Failure> {
        let found = self.lock().remove(ticket);
        let good = found.filter(|(prepared, until)| prepared.from == from && *until > Instant::now());
        let stale = || Failure::new(Kind::Unavailable, "the transfer took too long to begin: try again");
        good.map(|(prepared, _)| prepared).ok_or_else(stale)
    }
}
