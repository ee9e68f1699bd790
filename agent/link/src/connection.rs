//! One connection to a node, from its greeting to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libgrid::ids::NodeId;
use quinn::ConnectionError;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::{code, describe};
use crate::link::{Incoming, Shared};
use crate::stream::{Duplex, Use};
use crate::trust::Peer;

/// A superseded connection ends after this long without a stream: the peer may open one more until it knows.
const QUIET: Duration = Duration::from_secs(1);

/// A connection that both sides greeted over.
pub(crate) struct Conn {
    pub(crate) quic: quinn::Connection,
    pub(crate) node: NodeId,
    /// Whether the lower of the two numbers opened it.
    pub(crate) opened_by_lower: bool,
    /// Of the peer's agent.
    pub(crate) instance: u64,
    /// Of the call, as its dialler counts.
    pub(crate) serial: u64,
    pub(crate) counted: Arc<Use>,
    /// Whether new streams take this one.
    pub(crate) preferred: watch::Sender<bool>,
}

impl Conn {
    pub(crate) fn new(
        quic: quinn::Connection,
        node: NodeId,
        opened_by_lower: bool,
        instance: u64,
        serial: u64,
    ) -> Arc<Self> {
        let (preferred, _) = watch::channel(true);
        Arc::new(Self { quic, node, opened_by_lower, instance, serial, counted: Arc::default(), preferred })
    }

    /// Both sides see the same order: the highest is the one that they keep.
    pub(crate) fn rank(&self) -> (bool, u64) {
        (self.opened_by_lower, self.serial)
    }

    /// Sends a datagram if it fits and there is room.
    pub(crate) fn send(&self, bytes: Bytes) {
        match self.quic.send_datagram(bytes) {
            Ok(()) => self.counted.sent(),
            Err(error) => tracing::debug!(node = %self.node, %error, "link.datagram_dropped"),
        }
    }

    fn received(&self) -> u64 {
        self.quic.stats().udp_rx.datagrams
    }
}

/// Serves the connection until it ends.
pub(crate) async fn run(shared: Arc<Shared>, conn: Arc<Conn>) {
    let why = tokio::select! {
        error = conn.quic.closed() => error,
        Err(error) = streams(&shared, &conn) => error,
        Err(error) = datagrams(&shared, &conn) => error,
        error = watch_silence(&shared, &conn) => error,
        error = retire(&conn) => error,
    };
    tracing::debug!(node = %conn.node, why = describe(&why), "link.closed");
    shared.table.remove(&conn);
}

async fn streams(shared: &Arc<Shared>, conn: &Arc<Conn>) -> Result<Infallible, ConnectionError> {
    loop {
        let stream = conn.quic.accept_bi().await?;
        let duplex = Duplex::new(stream, &conn.counted, None);
        shared.hand_over(Incoming::Stream { peer: Peer::Node(conn.node), duplex }).await;
    }
}

async fn datagrams(shared: &Arc<Shared>, conn: &Arc<Conn>) -> Result<Infallible, ConnectionError> {
    loop {
        let bytes = conn.quic.read_datagram().await?;
        // Empty ones only ask whether we are there.
        if !bytes.is_empty() {
            shared.hand_over(Incoming::Datagram { peer: conn.node, bytes }).await;
        }
    }
}

/// Gives the peer up if nothing is heard from it while it is needed.
///
/// ```text
/// eighths of the limit without a sound:   1, 3, 4, ..  ask        2  call anew        8  give up
/// ```
async fn watch_silence(shared: &Arc<Shared>, conn: &Arc<Conn>) -> ConnectionError {
    let tick = shared.config.silence.max(Duration::from_millis(80)) / 8;
    loop {
        conn.counted.begun().await;
        let (mut received, mut silent) = (conn.received(), 0);
        while conn.counted.is_used() {
            sleep(tick).await;
            let now = conn.received();
            if now != received {
                (received, silent) = (now, 0);
                conn.counted.heard();
                continue;
            }
            silent += 1;
            match silent {
                // It may have restarted, and not know this connection: a new one tells.
                2 => shared.call_anew(conn.node),
                8 => {
                    conn.quic.close(code::SILENT, b"");
                    return conn.quic.closed().await;
                }
                _ => {
                    // Refused only where the connection has ended.
                    let _ = conn.quic.send_datagram(Bytes::new());
                }
            }
        }
    }
}

/// Ends the connection once another is preferred and the last stream is gone.
async fn retire(conn: &Arc<Conn>) -> ConnectionError {
    let mut preferred = conn.preferred.subscribe();
    let step = QUIET / 4;
    'preferred: loop {
        // The sender lives in `conn`.
        let _ = preferred.wait_for(|preferred| !preferred).await;
        let mut quiet = Duration::ZERO;
        while quiet < QUIET {
            tokio::select! {
                _ = preferred.wait_for(|preferred| *preferred) => continue 'preferred,
                () = sleep(step) => {}
            }
            quiet = if conn.counted.streams() == 0 { quiet + step } else { Duration::ZERO };
        }
        conn.quic.close(code::SUPERSEDED, b"");
        return conn.quic.closed().await;
    }
}
