//! What opens a connection, on its first stream: the version, then who exactly is calling.
//!
//! ```text
//! dialler                              dialled
//!   Hello, frame(Greeting) ──────────►
//!                          ◄────────── Hello, frame(Greeting)
//! ```
//!
//! A side that hears another version closes the connection with its own [`Hello`] as the reason, so that both can
//! name both versions.

use libgrid::wire::{self, Hello, WireError};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{AttemptError, code};

/// Which agent, and which of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// Random for each start of an agent.
    pub(crate) instance: u64,
    /// Counts the dialler's calls; the dialled side sends it back.
    pub(crate) serial: u64,
}

/// The dialler's part; the dialled side's greeting.
pub(crate) async fn call(connection: &Connection, ours: Greeting) -> Result<Greeting, AttemptError> {
    let result = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(Failure::Connection)?;
        write(&mut send, ours).await?;
        read(&mut recv).await
    };
    result.await.map_err(|failure| fail(connection, failure))
}

/// The dialled side's part; the dialler's greeting.
pub(crate) async fn answer(connection: &Connection, instance: u64) -> Result<Greeting, AttemptError> {
    let result = async {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(Failure::Connection)?;
        let theirs = read(&mut recv).await?;
        write(&mut send, Greeting { instance, serial: theirs.serial }).await?;
        Ok(theirs)
    };
    result.await.map_err(|failure| fail(connection, failure))
}

/// Whether these bytes are the greeting of our version.
pub(crate) fn check_hello(bytes: &[u8]) -> Result<(), WireError> {
    let bytes = bytes.try_into().map_err(|_| WireError::NotGrid)?;
    Hello::from_bytes(bytes)?.check()
}

enum Failure {
    Connection(ConnectionError),
    Wire(WireError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Failure::Wire(error)
    }
}

async fn write(send: &mut SendStream, greeting: Greeting) -> Result<(), Failure> {
    let mut bytes = Hello::ours().to_bytes().to_vec();
    bytes.extend(wire::frame(&greeting)?);
    send.write_all(&bytes).await.map_err(|error| WireError::Io(error.into()))?;
    send.flush().await.map_err(WireError::Io)?;
    // It has no more to say; a connection that ended already tells so where it is read.
    let _ = send.finish();
    Ok(())
}

async fn read(recv: &mut RecvStream) -> Result<Greeting, Failure> {
    let mut hello = [0; 8];
    AsyncReadExt::read_exact(recv, &mut hello).await.map_err(WireError::Io)?;
    check_hello(&hello)?;
    Ok(wire::stream::read(recv).await?)
}

fn fail(connection: &Connection, failure: Failure) -> AttemptError {
    match failure {
        Failure::Connection(error) => AttemptError::from_connection(&error, None),
        Failure::Wire(error @ WireError::Version { .. }) => {
            connection.close(code::VERSION, &Hello::ours().to_bytes());
            AttemptError::Version(error)
        }
        // The stream broke because the connection did: that says more.
        Failure::Wire(WireError::Io(error)) => match connection.close_reason() {
            Some(reason) => AttemptError::from_connection(&reason, None),
            None => {
                connection.close(code::GREETING, b"");
                AttemptError::Failed(format!("it broke off its greeting: {error}"))
            }
        },
        Failure::Wire(error) => {
            connection.close(code::GREETING, b"");
            AttemptError::Failed(error.to_string())
        }
    }
}
