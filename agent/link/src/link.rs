//! What the daemon holds: all connections of this node.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use libgrid::ids::NodeId;
use quinn::{Endpoint, TokioRuntime, TransportConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::LinkConfig;
use crate::connection::{self, Conn};
use crate::dial::{self, Call, Target};
use crate::error::{AttemptError, BindError, LinkError, code, describe};
use crate::greeting::Greeting;
use crate::stream::Duplex;
use crate::table::{Route, Table};
use crate::trust::{Expect, Identity, Peer, Trust};
use crate::{accept, tls};

/// All connections of this node. Clones are the same link.
///
/// It closes when the receiver of its [`Incoming`]s is dropped, or with [`Link::close`].
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

/// What peers do.
#[derive(Debug)]
pub enum Incoming {
    /// A peer opened a stream.
    Stream {
        /// Who.
        peer: Peer,
        /// Both directions of it.
        duplex: Duplex,
    },
    /// A peer sent a datagram.
    Datagram {
        /// Who.
        peer: NodeId,
        /// What; never empty.
        bytes: Bytes,
    },
    /// There is a connection to the node. May come after the first stream over it. Where a node restarted
    /// before its going was told, both are told.
    Connected(NodeId),
    /// There is no connection to the node any more; it may be unused or dead.
    Disconnected(NodeId),
}

pub(crate) struct Shared {
    pub(crate) config: LinkConfig,
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Arc<dyn Trust>,
    pub(crate) table: Table,
    pub(crate) incoming: mpsc::Sender<Incoming>,
    /// Random for each start of the agent.
    pub(crate) instance: u64,
    local: SocketAddr,
    transport: Arc<TransportConfig>,
    identity: RwLock<Identity>,
    calls: AtomicU64,
    closed: AtomicBool,
}

impl Link {
    /// Listens on `addr` (UDP), as `identity`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        addr: SocketAddr,
        identity: Identity,
        trust: Arc<dyn Trust>,
        config: LinkConfig,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), BindError> {
        let transport = config.transport();
        let server = tls::server(&identity, trust.clone(), transport.clone())
            .map_err(|why| BindError::Identity { why })?;
        let endpoint = UdpSocket::bind(addr).and_then(|socket| {
            Endpoint::new(tls::endpoint(&identity), Some(server), socket, Arc::new(TokioRuntime))
        });
        let endpoint = endpoint.map_err(|source| BindError::Socket { addr, source })?;
        let local = endpoint.local_addr().map_err(|source| BindError::Socket { addr, source })?;
        let (incoming, receiver) = mpsc::channel(config.incoming.max(1));
        let shared = Arc::new(Shared {
            config,
            endpoint,
            trust,
            table: Table::default(),
            incoming,
            // Each RandomState has its own keys: an empty hash of it is a random number.
            instance: RandomState::new().build_hasher().finish(),
            local,
            transport,
            identity: RwLock::new(identity),
            calls: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(accept::run(shared.clone()));
        tokio::spawn(tell_presence(shared.clone()));
        Ok((Self { shared }, receiver))
    }

    /// Where this link listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Where the node listens from now on, best first.
    pub fn learn(&self, node: NodeId, addrs: Vec<SocketAddr>) {
        self.shared.table.learn(node, addrs);
    }

    /// The node's addresses are no longer good. Connections that stand stay.
    pub fn forget(&self, node: NodeId) {
        self.shared.table.forget(node);
    }

    /// Closes the node's connections now, and forgets its addresses. That it does not come back is for
    /// [`Trust`] to say, which must know before this is called.
    pub fn evict(&self, node: NodeId) {
        self.shared.table.evict(node);
    }

    /// Shows a renewed certificate from now on; connections that stand are not touched.
    ///
    /// # Errors
    /// [`BindError::Identity`]; the former identity stays.
    pub fn set_identity(&self, identity: Identity) -> Result<(), BindError> {
        let server = tls::server(&identity, self.shared.trust.clone(), self.shared.transport.clone())
            .map_err(|why| BindError::Identity { why })?;
        self.shared.endpoint.set_server_config(Some(server));
        *self.shared.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }

    /// Opens a stream to the node, over the connection that stands or a new one.
    ///
    /// The peer hears of the stream with its first bytes. An error means that nothing was sent. Reads and writes
    /// that fail later are the caller's to judge.
    ///
    /// # Errors
    /// Any [`LinkError`].
    pub async fn open(&self, node: NodeId) -> Result<Duplex, LinkError> {
        let mut broken = None;
        // Twice: the connection that stood may have ended without our knowing.
        for _ in 0..2 {
            let conn = self.shared.connection(node).await?;
            match conn.quic.open_bi().await {
                Ok(stream) => return Ok(Duplex::new(stream, &conn.counted, None)),
                Err(error) => {
                    self.shared.table.remove(&conn);
                    broken = Some(describe(&error));
                }
            }
        }
        Err(LinkError::Broken { node, why: broken.unwrap_or_default() })
    }

    /// Sends a datagram if that can be: it is dropped where it is empty or longer than [`Link::MAX_DATAGRAM`],
    /// where the node cannot be reached, or on the way. Never waits; calls the node in the background if need be.
    pub fn datagram(&self, node: NodeId, bytes: Bytes) {
        if bytes.is_empty() || bytes.len() > Self::MAX_DATAGRAM || node == self.shared.config.me {
            return;
        }
        match self.shared.table.route(node, bytes) {
            Route::Send(conn, bytes) => conn.send(bytes),
            Route::Call => {
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    let result = shared.connection(node).await;
                    shared.table.called(node, result.is_ok());
                });
            }
            Route::Done => {}
        }
    }

    /// Bytes that every path carries as one datagram: QUIC's smallest packet of 1200, without its headers.
    pub const MAX_DATAGRAM: usize = 1150;

    /// The time to the node and back as measured, if there is a connection.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.shared.table.preferred(node).map(|conn| conn.quic.rtt())
    }

    /// How many connections to the node stand: mostly one or none, two while one gives way.
    pub fn connections(&self, node: NodeId) -> usize {
        self.shared.table.count(node)
    }

    /// Tells all peers that this agent stops, and closes the socket.
    pub async fn close(&self) {
        self.shared.close();
        // The peers need not answer.
        let _ = timeout(Duration::from_secs(1), self.shared.endpoint.wait_idle()).await;
    }
}

impl Shared {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.endpoint.close(code::BYE, b"");
    }

    /// Waits while the receiver is behind; peers wait with us.
    pub(crate) async fn hand_over(&self, incoming: Incoming) {
        // Without a receiver the link is closing.
        let _ = self.incoming.send(incoming).await;
    }

    /// The connection that stands, or a new one.
    async fn connection(self: &Arc<Self>, node: NodeId) -> Result<Arc<Conn>, LinkError> {
        if node == self.config.me {
            return Err(LinkError::Myself { node });
        }
        if let Some(conn) = self.table.preferred(node) {
            return Ok(conn);
        }
        if self.table.addrs(node).is_empty() {
            return Err(LinkError::Unknown { node });
        }
        let dialling = self.table.dialling(node);
        let _one_at_a_time = dialling.lock().await;
        if let Some(conn) = self.table.preferred(node) {
            return Ok(conn);
        }
        self.call(node).await
    }

    /// Calls a node whose connection is silent. Where it greets with another instance, the old one is closed.
    pub(crate) fn call_anew(self: &Arc<Self>, node: NodeId) {
        let shared = self.clone();
        tokio::spawn(async move {
            let dialling = shared.table.dialling(node);
            // Somebody else is calling it: that tells as much.
            let Ok(_one_at_a_time) = dialling.try_lock() else { return };
            if let Err(error) = shared.call(node).await {
                tracing::debug!(%node, %error, "link.call_failed");
            }
        });
    }

    async fn call(self: &Arc<Self>, node: NodeId) -> Result<Arc<Conn>, LinkError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(LinkError::Closed);
        }
        let addrs = self.table.addrs(node);
        if addrs.is_empty() {
            return Err(LinkError::Unknown { node });
        }
        let target = |addr| Target { addr, endpoint: self.endpoint.clone() };
        let targets: Vec<_> = addrs.into_iter().map(target).collect();
        let serial = self.calls.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            identity: self.identity.read().unwrap_or_else(PoisonError::into_inner).clone(),
            trust: self.trust.clone(),
            expect: Expect::Node(node),
            transport: self.transport.clone(),
            greeting: Greeting { instance: self.instance, serial },
        };
        let answer = dial::first(&call, &targets, self.config.handshake).await;
        let answer = answer.map_err(|failures| failed(node, failures))?;
        let lower = self.config.me < node;
        let conn = Conn::new(answer.connection, node, lower, answer.greeting.instance, serial);
        loop {
            let evictions = self.table.evictions();
            if let Err(why) = accept::identify(self, &conn.quic) {
                conn.quic.close(code::REFUSED, b"");
                return Err(LinkError::Refused { node, why });
            }
            if self.table.add(&conn, evictions) {
                break;
            }
        }
        tracing::debug!(%node, at = %conn.quic.remote_address(), "link.connected");
        tokio::spawn(connection::run(self.clone(), conn.clone()));
        Ok(conn)
    }
}

fn failed(node: NodeId, failures: std::collections::BTreeMap<SocketAddr, AttemptError>) -> LinkError {
    let mut tried = Vec::new();
    for (addr, failure) in failures {
        match failure {
            AttemptError::Version(source) => return LinkError::Version { node, addr, source },
            AttemptError::Refused(why) => return LinkError::Refused { node, why: format!("{addr}: {why}") },
            AttemptError::Failed(why) => tried.push((addr, why)),
        }
    }
    LinkError::Unreachable { node, tried }
}

/// Tells of nodes that come and go. What happens while the receiver is behind is told as one step.
async fn tell_presence(shared: Arc<Shared>) {
    let mut told = HashMap::new();
    loop {
        tokio::select! {
            () = shared.table.changed.notified() => {}
            () = shared.incoming.closed() => return,
        }
        for (node, instance) in shared.table.take_changes() {
            let before = match instance {
                Some(instance) => told.insert(node, instance),
                None => told.remove(&node),
            };
            if before == instance {
                continue;
            }
            if before.is_some() {
                shared.hand_over(Incoming::Disconnected(node)).await;
            }
            if instance.is_some() {
                shared.hand_over(Incoming::Connected(node)).await;
            }
        }
    }
}
