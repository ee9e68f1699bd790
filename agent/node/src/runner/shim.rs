//! The agent's end of the connection to a shim.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::time::Duration;

use grid_run::protocol::{FromShim, Kept, ToShim};
use grid_run::spawn::Shims;
use libgrid::wire::{self, WireError, stream};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tracing::warn;

use super::Query;

/// A shim that does not greet within this time is taken for dead.
const PATIENCE: Duration = Duration::from_secs(5);

/// Numbers this agent's shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShimId(pub(crate) u64);

/// What is heard of a shim.
pub(crate) enum ShimNews {
    /// It said this.
    Said(FromShim),
    /// Its connection ended: it is no more.
    Gone,
}

/// A shim that an earlier agent started.
pub(crate) struct Connected {
    stream: UnixStream,
    pub(crate) kept: Vec<Kept>,
}

/// Greets a shim and hears what it keeps.
pub(crate) async fn adopt(stream: StdStream) -> Result<Connected, WireError> {
    let greeting = async {
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        stream::greet(&mut stream).await?;
        match stream::read(&mut stream).await? {
            FromShim::Tasks(kept) => Ok(Connected { stream, kept }),
            _ => Err(WireError::NotGrid),
        }
    };
    tokio::time::timeout(PATIENCE, greeting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Starts a shim.
pub(crate) fn start(
    shims: &Shims,
    id: ShimId,
    news: mpsc::UnboundedSender<Query>,
) -> io::Result<mpsc::UnboundedSender<ToShim>> {
    let (mut command, stream) = shims.command(&format!("{}-{}", std::process::id(), id.0))?;
    command.stderr(Stdio::inherit());
    let mut child = tokio::process::Command::from(command).spawn()?;
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await
            && !status.success()
        {
            warn!(shim = id.0, %status, "a shim failed");
        }
    });
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let greeted = tokio::time::timeout(PATIENCE, stream::greet(&mut stream)).await;
        if matches!(greeted, Ok(Ok(()))) {
            talk(stream, id, receiver, news).await;
        } else {
            let _ = news.send(Query::Shim(id, ShimNews::Gone));
        }
    });
    Ok(sender)
}

impl Connected {
    /// Begins to talk to it.
    pub(crate) fn start(
        self,
        id: ShimId,
        news: mpsc::UnboundedSender<Query>,
    ) -> mpsc::UnboundedSender<ToShim> {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(talk(self.stream, id, receiver, news));
        sender
    }
}

async fn talk(
    stream: UnixStream,
    id: ShimId,
    mut messages: mpsc::UnboundedReceiver<ToShim>,
    news: mpsc::UnboundedSender<Query>,
) {
    let (from, mut to) = stream.into_split();
    let reading = read(from, id, news.clone());
    let writing = async {
        while let Some(message) = messages.recv().await {
            // All that waits, in one write.
            let mut frames = wire::frame(&message)?;
            while let Ok(message) = messages.try_recv() {
                frames.extend(wire::frame(&message)?);
            }
            to.write_all(&frames).await?;
        }
        Ok::<(), WireError>(())
    };
    tokio::select! {
        () = reading => (),
        result = writing => if let Err(error) = result {
            warn!(shim = id.0, %error, "cannot talk to a shim");
        },
    }
    let _ = news.send(Query::Shim(id, ShimNews::Gone));
}

async fn read(from: OwnedReadHalf, id: ShimId, news: mpsc::UnboundedSender<Query>) {
    let mut from = BufReader::new(from);
    while let Ok(message) = stream::read::<FromShim, _>(&mut from).await {
        if news.send(Query::Shim(id, ShimNews::Said(message))).is_err() {
            return;
        }
    }
}
