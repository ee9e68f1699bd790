//! The network of a task that has an address of its own: made before its init, closed while CRIU works on it, given up with
//! the task. The shim sees to it, and not the agent, which may be started again in the middle of a move.
//!
//! ```text
//!   launched ─▶ open ── a dump begins ─▶ closed ── it failed, or the task is let go ─▶ open
//!                                          └────── it is ended: given up
//!   restored ─▶ closed ── it runs ─▶ open
//! ```
//!
//! Opening a link tells all nodes where the task is. One lost packet can keep a node from learning it: it is done once more a
//! second later, and again and again if it cannot be done.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use grid_net::{Address, ArriveError, NodeNet, isolate, unsent};

use crate::protocol::Launch;

/// When a link that was opened is opened again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// How long a dump waits for connections that are just being made or closed: some round trips.
const LAST_BYTES: Duration = Duration::from_millis(200);

/// The node's part of the grid's network, from the first task on that needs it.
#[derive(Default)]
pub(super) struct Node(Option<Rc<NodeNet>>);

/// A task's own network. It is given up with this value.
pub(super) struct Network {
    node: Rc<NodeNet>,
    address: Address,
    space: OwnedFd,
    open: bool,
}

impl Node {
    /// Makes the network that a task is to have, if any. It is closed.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn network(&mut self, launch: &Launch) -> Result<Option<Network>, String> {
        let Some(address) = launch.address else { return Ok(None) };
        let address = Address::try_from(address).map_err(|error| error.to_string())?;
        let made = match &self.0 {
            Some(node) => Network::make(node, address).ok(),
            None => None,
        };
        if made.is_some() {
            return Ok(made);
        }
        // Found for the first time; or the node's part was made anew since.
        let node = Rc::new(NodeNet::find().map_err(|error| error.to_string())?);
        let network = Network::make(&node, address).map_err(|error| error.to_string())?;
        self.0 = Some(node);
        Ok(Some(network))
    }
}

impl Network {
    fn make(node: &Rc<NodeNet>, address: Address) -> Result<Self, ArriveError> {
        let space = match node.arrive(address) {
            // Of an earlier run of the task, whose end its home has ordered, or seen.
            Err(ArriveError::Taken(_)) if node.release(address).is_ok() => node.arrive(address),
            other => other,
        };
        Ok(Self { node: Rc::clone(node), address, space: space?, open: false })
    }

    /// What init enters.
    pub(super) fn space(&self) -> RawFd {
        self.space.as_raw_fd()
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Opens it, and tells the nodes where the task is. It is to be opened again, [`AGAIN`] later, and again after a failure:
    /// false.
    pub(super) fn open(&mut self) -> bool {
        self.open = true;
        self.node.open(self.address, self.space.as_fd()).is_ok()
    }

    /// Closes it.
    ///
    /// # Errors
    /// One sentence; it may be open then.
    pub(super) fn hold(&mut self) -> Result<(), String> {
        self.node.hold(self.address).map_err(|error| error.to_string())?;
        self.open = false;
        Ok(())
    }

    /// Closes it for a dump. One that `moves` waits for connections that are just being made or closed.
    ///
    /// # Errors
    /// One sentence; it is as it was then.
    pub(super) fn hold_for(&mut self, moves: bool) -> Result<(), String> {
        let until = Instant::now() + LAST_BYTES;
        while moves && let Err(why) = self.is_sent() {
            if Instant::now() > until {
                return Err(why);
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.hold()
    }

    /// No connection is just being made or closed: no process has those, and no checkpoint.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn is_sent(&self) -> Result<(), String> {
        match unsent(self.space.as_fd()) {
            Ok(0) => Ok(()),
            Ok(_) => Err("a connection to it is just being made, or closed: try again".into()),
            Err(error) => Err(format!("its connections cannot be looked at: {error}")),
        }
    }

    /// Drops what the task's processes send to each other, until it is opened.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn isolate(&self) -> Result<(), String> {
        isolate(self.space.as_fd()).map_err(|error| error.to_string())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What stays goes with the namespace: with the last of its processes.
        let _ = self.node.release(self.address);
    }
}
