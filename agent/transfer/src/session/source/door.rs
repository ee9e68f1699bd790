//! How a source makes its data connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libgrid::io::{Plan, Socket};

use crate::session::STALL;
use crate::session::conduit::{Conduit, Seal};
use crate::session::message::Trouble;
use crate::session::record::{self, Key};

/// How long a data connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Where data connections go.
pub(in crate::session) struct Door {
    pub(in crate::session) addresses: Vec<IpAddr>,
    pub(in crate::session) port: u16,
    pub(in crate::session) key: Key,
    pub(in crate::session) seal: Option<Seal>,
    pub(in crate::session) theirs: Option<Vec<u8>>,
}

impl Door {
    pub(super) fn open(
        &self,
        connection: u32,
        plan: &Plan,
        wanted: impl Fn() -> bool,
    ) -> Result<Conduit, Trouble> {
        self.greet(self.connect(plan, wanted)?, connection).map_err(Trouble::broken)
    }

    pub(in crate::session) fn connect(
        &self,
        plan: &Plan,
        wanted: impl Fn() -> bool,
    ) -> Result<Socket, Trouble> {
        let mut tried = Vec::new();
        for address in &self.addresses {
            let address = SocketAddr::new(*address, self.port);
            match Socket::connect_while(address, CONNECT, plan, &wanted) {
                Ok(socket) => return Ok(socket),
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(Trouble::passing(format!(
            "no data connection to the other node can be made ({}): open TCP port {} there, or set data_ports",
            tried.join("; "),
            self.port
        )))
    }

    pub(super) fn greet(&self, socket: Socket, connection: u32) -> std::io::Result<Conduit> {
        socket.set_stall_limit(Some(STALL))?;
        socket.write(&record::greeting(self.key, connection))?;
        match (&self.seal, &self.theirs) {
            (Some(seal), Some(theirs)) => Conduit::client(socket, seal, theirs.clone()),
            (Some(_), None) => Err(std::io::Error::other("the other node does not encrypt")),
            (None, _) => Ok(Conduit::Plain(socket)),
        }
    }
}
