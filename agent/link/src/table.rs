//! Which peers there are, where they listen, and which connections to them stand.
//!
//! All of it is behind one lock that is never held across an `await`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use libgrid::ids::NodeId;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use crate::connection::Conn;
use crate::error::code;

/// Datagrams that wait for a connection; older ones give way.
const WAITING: usize = 32;

/// After a call in the background failed, the next waits this long, doubled with each failure up to 16 times it.
const BACKOFF: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    /// Some node's connection appeared or went.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Inner {
    peers: HashMap<NodeId, Entry>,
    dirty: HashSet<NodeId>,
    /// Rises with each eviction: what trust said before may not hold after.
    evictions: u64,
}

#[derive(Default)]
struct Entry {
    addrs: Vec<SocketAddr>,
    connections: Vec<Arc<Conn>>,
    waiting: VecDeque<Bytes>,
    dialling: Arc<AsyncMutex<()>>,
    in_background: bool,
    failures: u32,
    not_before: Option<Instant>,
}

/// What to do with a datagram.
pub(crate) enum Route {
    /// Send it over this connection.
    Send(Arc<Conn>, Bytes),
    /// It waits; call the peer.
    Call,
    /// It waits for a call that is under way, or was dropped.
    Done,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn learn(&self, node: NodeId, addrs: Vec<SocketAddr>) {
        let mut inner = self.lock();
        let entry = inner.peers.entry(node).or_default();
        if entry.addrs != addrs {
            entry.addrs = addrs;
            entry.failures = 0;
            entry.not_before = None;
        }
    }

    pub(crate) fn forget(&self, node: NodeId) {
        let mut inner = self.lock();
        if let Some(entry) = inner.peers.get_mut(&node) {
            entry.addrs.clear();
            entry.waiting.clear();
        }
        inner.tidy(node);
    }

    /// Closes all connections to the node and forgets it.
    pub(crate) fn evict(&self, node: NodeId) {
        let mut inner = self.lock();
        inner.evictions += 1;
        if let Some(entry) = inner.peers.remove(&node) {
            for connection in entry.connections {
                connection.quic.close(code::EVICTED, b"");
            }
            inner.dirty.insert(node);
        }
        drop(inner);
        self.changed.notify_one();
    }

    pub(crate) fn addrs(&self, node: NodeId) -> Vec<SocketAddr> {
        self.lock().peers.get(&node).map(|entry| entry.addrs.clone()).unwrap_or_default()
    }

    /// The connection that new streams take.
    pub(crate) fn preferred(&self, node: NodeId) -> Option<Arc<Conn>> {
        self.lock().peers.get(&node)?.preferred()
    }

    /// How many connections to the node stand.
    pub(crate) fn count(&self, node: NodeId) -> usize {
        self.lock().peers.get(&node).map_or(0, |entry| entry.connections.len())
    }

    /// Held by whoever calls the node, so that one call is made at a time.
    pub(crate) fn dialling(&self, node: NodeId) -> Arc<AsyncMutex<()>> {
        self.lock().peers.entry(node).or_default().dialling.clone()
    }

    pub(crate) fn route(&self, node: NodeId, bytes: Bytes) -> Route {
        let mut inner = self.lock();
        let Some(entry) = inner.peers.get_mut(&node) else { return Route::Done };
        if let Some(connection) = entry.preferred() {
            return Route::Send(connection, bytes);
        }
        let now = Instant::now();
        if entry.addrs.is_empty() || entry.not_before.is_some_and(|time| now < time) {
            return Route::Done;
        }
        if entry.waiting.len() == WAITING {
            entry.waiting.pop_front();
        }
        entry.waiting.push_back(bytes);
        if mem::replace(&mut entry.in_background, true) { Route::Done } else { Route::Call }
    }

    /// A call for waiting datagrams has ended.
    pub(crate) fn called(&self, node: NodeId, connected: bool) {
        let mut inner = self.lock();
        let Some(entry) = inner.peers.get_mut(&node) else { return };
        entry.in_background = false;
        if connected {
            return;
        }
        entry.waiting.clear();
        entry.not_before = Some(Instant::now() + BACKOFF * (1 << entry.failures.min(4)));
        entry.failures = entry.failures.saturating_add(1);
        inner.tidy(node);
    }

    /// How many evictions there were; to be asked before trust is.
    pub(crate) fn evictions(&self) -> u64 {
        self.lock().evictions
    }

    /// Adds a connection, unless some node was evicted since `evictions` was asked.
    pub(crate) fn add(&self, connection: &Arc<Conn>, evictions: u64) -> bool {
        let mut inner = self.lock();
        if inner.evictions != evictions {
            return false;
        }
        let entry = inner.peers.entry(connection.node).or_default();
        entry.connections.retain(|other| {
            let same = other.instance == connection.instance;
            if !same {
                other.quic.close(code::RESTARTED, b"");
            }
            same
        });
        entry.connections.push(connection.clone());
        entry.prefer();
        entry.failures = 0;
        entry.not_before = None;
        if let Some(preferred) = entry.preferred() {
            entry.waiting.drain(..).for_each(|bytes| preferred.send(bytes));
        }
        inner.dirty.insert(connection.node);
        drop(inner);
        self.changed.notify_one();
        true
    }

    pub(crate) fn remove(&self, connection: &Arc<Conn>) {
        let mut inner = self.lock();
        let node = connection.node;
        if let Some(entry) = inner.peers.get_mut(&node) {
            entry.connections.retain(|other| !Arc::ptr_eq(other, connection));
            entry.prefer();
        }
        inner.dirty.insert(node);
        inner.tidy(node);
        drop(inner);
        self.changed.notify_one();
    }

    /// The nodes whose connections changed since the last call, each with its instance if it is connected.
    pub(crate) fn take_changes(&self) -> Vec<(NodeId, Option<u64>)> {
        let mut inner = self.lock();
        let dirty = mem::take(&mut inner.dirty);
        let instance = |node: &NodeId| Some(inner.peers.get(node)?.preferred()?.instance);
        dirty.into_iter().map(|node| (node, instance(&node))).collect()
    }
}

impl Inner {
    /// Forgets a node of which nothing is known.
    fn tidy(&mut self, node: NodeId) {
        let empty = |entry: &Entry| {
            entry.addrs.is_empty() && entry.connections.is_empty() && Arc::strong_count(&entry.dialling) == 1
        };
        if self.peers.get(&node).is_some_and(empty) {
            self.peers.remove(&node);
        }
    }
}

impl Entry {
    fn preferred(&self) -> Option<Arc<Conn>> {
        let alive = self.connections.iter().filter(|connection| connection.quic.close_reason().is_none());
        alive.max_by_key(|connection| connection.rank()).cloned()
    }

    /// Tells each connection whether it is the one.
    fn prefer(&self) {
        let preferred = self.preferred();
        for connection in &self.connections {
            let is_it = preferred.as_ref().is_none_or(|preferred| Arc::ptr_eq(preferred, connection));
            connection.preferred.send_if_modified(|was| mem::replace(was, is_it) != is_it);
        }
    }
}
