//! Nodes on 127.0.0.1 whose trust is a list of certificates.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use grid_link::{Duplex, Identity, Incoming, Link, LinkConfig, Peer, Trust};
use libgrid::ids::NodeId;
use libgrid::wire;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;

/// Who is who, by certificate.
#[derive(Default)]
pub(crate) struct Directory {
    known: Mutex<HashMap<Vec<u8>, Peer>>,
}

impl Directory {
    pub(crate) fn add(&self, identity: &Identity, peer: Peer) {
        self.known.lock().unwrap().insert(identity.chain[0].to_vec(), peer);
    }

    pub(crate) fn remove(&self, identity: &Identity) {
        self.known.lock().unwrap().remove(identity.chain[0].as_ref());
    }
}

impl Trust for Directory {
    fn peer(&self, chain: &[CertificateDer<'_>], _now: SystemTime) -> Result<Peer, String> {
        let known = self.known.lock().unwrap();
        let leaf = chain.first().ok_or("no certificate")?;
        known.get(leaf.as_ref()).copied().ok_or_else(|| "not in the directory".to_owned())
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) link: Link,
    pub(crate) identity: Identity,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
}

pub(crate) fn identity() -> Identity {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Identity { chain: vec![certificate.into()], key: PrivateKeyDer::from(key) }
}

pub(crate) fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Quick to give up, so that the tests are.
pub(crate) fn config(id: u32) -> LinkConfig {
    LinkConfig { silence: Duration::from_millis(800), ..LinkConfig::new(NodeId(id)) }
}

pub(crate) fn node(directory: &Arc<Directory>, id: u32) -> Node {
    node_with(directory, config(id))
}

pub(crate) fn node_with(directory: &Arc<Directory>, config: LinkConfig) -> Node {
    let identity = identity();
    let id = config.me;
    directory.add(&identity, Peer::Node(id));
    let (link, incoming) = Link::bind(localhost(), identity.clone(), directory.clone(), config).unwrap();
    Node { id, link, identity, incoming }
}

pub(crate) fn introduce(a: &Node, b: &Node) {
    a.link.learn(b.id, vec![b.link.local_addr()]);
    b.link.learn(a.id, vec![a.link.local_addr()]);
}

/// Answers each request, a number, with the next number.
pub(crate) fn serve(mut incoming: mpsc::Receiver<Incoming>) {
    tokio::spawn(async move {
        while let Some(event) = incoming.recv().await {
            if let Incoming::Stream { duplex, .. } = event {
                tokio::spawn(answer(duplex));
            }
        }
    });
}

pub(crate) async fn answer(mut duplex: Duplex) {
    let Ok(number) = wire::stream::read::<u64, _>(&mut duplex.recv).await else { return };
    let _ = wire::stream::write(&mut duplex.send, &(number + 1)).await;
}

pub(crate) async fn ask(link: &Link, node: NodeId, number: u64) -> Result<u64, String> {
    let duplex = link.open(node).await.map_err(|error| error.to_string())?;
    ask_over(duplex, number).await
}

pub(crate) async fn ask_over(mut duplex: Duplex, number: u64) -> Result<u64, String> {
    wire::stream::write(&mut duplex.send, &number).await.map_err(|error| error.to_string())?;
    duplex.send.finish();
    wire::stream::read(&mut duplex.recv).await.map_err(|error| error.to_string())
}

/// What comes within the deadline of every test.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "never: {what}");
}

pub(crate) async fn next_stream(incoming: &mut mpsc::Receiver<Incoming>) -> (Peer, Duplex) {
    loop {
        if let Incoming::Stream { peer, duplex } = within(incoming.recv()).await.unwrap() {
            return (peer, duplex);
        }
    }
}

pub(crate) async fn presence(incoming: &mut mpsc::Receiver<Incoming>) -> (NodeId, bool) {
    loop {
        match within(incoming.recv()).await.unwrap() {
            Incoming::Connected(node) => return (node, true),
            Incoming::Disconnected(node) => return (node, false),
            _ => {}
        }
    }
}
