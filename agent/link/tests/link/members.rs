//! Nodes that know each other: requests, datagrams, and what happens to connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use grid_link::{Incoming, Link, LinkConfig, LinkError, Peer};
use libgrid::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Barrier;

#[tokio::test]
async fn both_sides_ask_over_one_connection() {
    let directory = Arc::default();
    let (a, b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    let (link_a, link_b) = (a.link.clone(), b.link.clone());
    serve(a.incoming);
    serve(b.incoming);
    for number in 0..20 {
        assert_eq!(within(ask(&link_a, b.id, number)).await, Ok(number + 1));
        assert_eq!(within(ask(&link_b, a.id, number)).await, Ok(number + 1));
    }
    assert_eq!((link_a.connections(b.id), link_b.connections(a.id)), (1, 1));
    assert!(link_a.round_trip(b.id).unwrap() < Duration::from_secs(1));
    assert_eq!(link_a.round_trip(NodeId(3)), None);
}

#[tokio::test]
async fn many_requests_share_a_connection() {
    let directory = Arc::default();
    let (a, b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    serve(b.incoming);
    let requests = (0..2000).map(|number| {
        let link = a.link.clone();
        tokio::spawn(async move { ask(&link, NodeId(2), number).await })
    });
    for (number, request) in requests.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(within(request).await.unwrap(), Ok(number as u64 + 1));
    }
    assert_eq!(a.link.connections(b.id), 1);
}

#[tokio::test]
async fn a_stream_carries_more_than_its_windows_hold() {
    const LENGTH: usize = 40 << 20;
    let directory = Arc::default();
    let (a, mut b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    let mut duplex = within(a.link.open(b.id)).await.unwrap();
    let send = tokio::spawn(async move {
        let block = vec![7; 1 << 20];
        for _ in 0..LENGTH >> 20 {
            duplex.send.write_all(&block).await.unwrap();
        }
        duplex.send.finish();
        duplex.send.delivered().await.unwrap();
    });
    let (_, mut received) = next_stream(&mut b.incoming).await;
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        match within(received.read(&mut buffer)).await.unwrap() {
            0 => break,
            length => total += length,
        }
    }
    assert_eq!(total, LENGTH);
    within(send).await.unwrap();
}

#[tokio::test]
async fn a_call_to_nobody_says_why() {
    let directory = Arc::default();
    let a = node_with(&directory, LinkConfig { handshake: Duration::from_millis(300), ..config(1) });
    assert!(matches!(a.link.open(NodeId(2)).await, Err(LinkError::Unknown { node: NodeId(2) })));
    assert!(matches!(a.link.open(NodeId(1)).await, Err(LinkError::Myself { .. })));
    // A socket that never answers.
    let silent = std::net::UdpSocket::bind(localhost()).unwrap();
    a.link.learn(NodeId(2), vec![silent.local_addr().unwrap()]);
    let error = within(a.link.open(NodeId(2))).await.unwrap_err();
    assert!(matches!(&error, LinkError::Unreachable { tried, .. } if tried.len() == 1), "{error}");
    assert!(error.to_string().contains("no answer"), "{error}");
    a.link.close().await;
    assert!(matches!(a.link.open(NodeId(2)).await, Err(LinkError::Closed)));
}

#[tokio::test]
async fn datagrams_arrive_and_call_the_peer_if_need_be() {
    let directory = Arc::default();
    let (a, mut b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    a.link.datagram(b.id, Bytes::from(vec![0; Link::MAX_DATAGRAM + 1]));
    a.link.datagram(b.id, Bytes::new());
    assert_eq!(a.link.connections(b.id), 0, "what cannot be sent calls nobody");
    let largest = Bytes::from(vec![7; Link::MAX_DATAGRAM]);
    a.link.datagram(b.id, largest.clone());
    a.link.datagram(NodeId(9), largest.clone());
    let received = loop {
        if let Incoming::Datagram { peer, bytes } = within(b.incoming.recv()).await.unwrap() {
            break (peer, bytes);
        }
    };
    assert_eq!(received, (a.id, largest));
    b.link.datagram(a.id, Bytes::from_static(b"back"));
    let mut incoming = a.incoming;
    loop {
        if let Incoming::Datagram { peer, bytes } = within(incoming.recv()).await.unwrap() {
            assert_eq!((peer, bytes.as_ref()), (b.id, b"back".as_slice()));
            break;
        }
    }
    assert_eq!(a.link.connections(b.id), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_call_at_once_one_connection_remains_and_nothing_fails() {
    for _ in 0..5 {
        let directory = Arc::default();
        let (a, b) = (node(&directory, 1), node(&directory, 2));
        introduce(&a, &b);
        let (link_a, link_b) = (a.link.clone(), b.link.clone());
        serve(a.incoming);
        serve(b.incoming);
        let barrier = Arc::new(Barrier::new(2));
        let call = |link: Link, node| {
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                for number in 0..50 {
                    assert_eq!(ask(&link, node, number).await, Ok(number + 1));
                }
            })
        };
        let (first, second) = (call(link_a.clone(), NodeId(2)), call(link_b.clone(), NodeId(1)));
        within(first).await.unwrap();
        within(second).await.unwrap();
        eventually("one connection", || {
            link_a.connections(NodeId(2)) == 1 && link_b.connections(NodeId(1)) == 1
        })
        .await;
        assert_eq!(within(ask(&link_a, NodeId(2), 7)).await, Ok(8));
    }
}

#[tokio::test]
async fn an_evicted_node_is_cut_off_at_once_and_stays_out() {
    let directory = Arc::default();
    let (mut a, mut b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    let mut duplex = within(b.link.open(a.id)).await.unwrap();
    libgrid::wire::stream::write(&mut duplex.send, &1u64).await.unwrap();
    let (_, held) = next_stream(&mut a.incoming).await;
    assert_eq!(presence(&mut b.incoming).await, (a.id, true));

    directory.remove(&b.identity);
    a.link.evict(b.id);
    assert_eq!(presence(&mut b.incoming).await, (a.id, false));
    drop(held);
    assert!(within(duplex.recv.read_u8()).await.is_err(), "the stream ends with the connection");
    assert_eq!(a.link.connections(b.id), 0);
    assert!(matches!(a.link.open(b.id).await, Err(LinkError::Unknown { .. })));
    let error = within(b.link.open(a.id)).await.unwrap_err();
    assert!(matches!(error, LinkError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let directory: Arc<Directory> = Arc::default();
    let (a, b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    let (link_a, link_b) = (a.link.clone(), b.link.clone());
    serve(a.incoming);
    serve(b.incoming);
    assert_eq!(within(ask(&link_a, b.id, 1)).await, Ok(2));

    let renewed = identity();
    directory.add(&renewed, Peer::Node(a.id));
    link_a.set_identity(renewed).unwrap();
    directory.remove(&a.identity);
    assert_eq!(within(ask(&link_a, b.id, 1)).await, Ok(2), "connections that stand stay");
    link_b.evict(a.id);
    eventually("cut off", || link_a.connections(b.id) == 0).await;
    assert_eq!(within(ask(&link_a, b.id, 1)).await, Ok(2), "as a caller");
    link_b.evict(a.id);
    eventually("cut off", || link_a.connections(b.id) == 0).await;
    link_b.learn(a.id, vec![link_a.local_addr()]);
    assert_eq!(within(ask(&link_b, a.id, 1)).await, Ok(2), "as one who is called");
}

#[tokio::test]
async fn an_unused_connection_ends_and_a_used_one_does_not() {
    let directory = Arc::default();
    let short = |id| LinkConfig { idle: Duration::from_millis(600), ..config(id) };
    let (mut a, mut b) = (node_with(&directory, short(1)), node_with(&directory, short(2)));
    introduce(&a, &b);
    let begin = Instant::now();
    let mut duplex = within(a.link.open(b.id)).await.unwrap();
    libgrid::wire::stream::write(&mut duplex.send, &1u64).await.unwrap();
    let (_, held) = next_stream(&mut b.incoming).await;
    assert_eq!(presence(&mut a.incoming).await, (b.id, true));
    // Three times the limit, without a byte of ours.
    let quiet = tokio::time::timeout(Duration::from_millis(1800), presence(&mut a.incoming)).await;
    assert!(quiet.is_err(), "{quiet:?} after {:?}", begin.elapsed());
    drop((duplex, held));
    assert_eq!(presence(&mut a.incoming).await, (b.id, false));
}

/// An agent with a runtime of its own, which dies without a word when that is shut down.
struct Agent {
    runtime: Runtime,
    link: Link,
}

impl Agent {
    fn start(
        addr: std::net::SocketAddr,
        directory: &Arc<Directory>,
        identity: &grid_link::Identity,
        id: u32,
    ) -> Option<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let bound = {
            let _guard = runtime.enter();
            Link::bind(addr, identity.clone(), directory.clone(), config(id)).map(|(link, incoming)| {
                serve(incoming);
                link
            })
        };
        match bound {
            Ok(link) => Some(Self { runtime, link }),
            Err(_) => {
                runtime.shutdown_background();
                None
            }
        }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

async fn restart_is_noticed(me: u32, peer: u32, peer_calls: bool) -> Duration {
    let directory: Arc<Directory> = Arc::default();
    let a = node(&directory, me);
    let (link, id) = (a.link.clone(), NodeId(peer));
    serve(a.incoming);
    let identity = identity();
    directory.add(&identity, Peer::Node(id));
    let agent = Agent::start(localhost(), &directory, &identity, peer).unwrap();
    let addr = agent.link.local_addr();
    link.learn(id, vec![addr]);
    if peer_calls {
        agent.link.learn(NodeId(me), vec![link.local_addr()]);
        let (their, me) = (agent.link.clone(), NodeId(me));
        let call = agent.runtime.spawn(async move { ask(&their, me, 1).await });
        assert_eq!(within(call).await.unwrap(), Ok(2));
    }
    assert_eq!(within(ask(&link, id, 1)).await, Ok(2));
    agent.kill();
    assert_eq!(link.connections(id), 1, "we believe in the old connection still");
    let mut agent = None;
    eventually("the port is free", || {
        agent = Agent::start(addr, &directory, &identity, peer);
        agent.is_some()
    })
    .await;
    let begin = Instant::now();
    while within(ask(&link, id, 5)).await != Ok(6) {}
    let took = begin.elapsed();
    if let Some(agent) = agent {
        agent.kill();
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_that_we_called_is_noticed_by_its_reset() {
    for (me, peer) in [(1, 2), (2, 1)] {
        let took = restart_is_noticed(me, peer, false).await;
        assert!(took < Duration::from_millis(600), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_that_had_called_us_is_noticed_while_it_is_needed() {
    for (me, peer) in [(1, 2), (2, 1)] {
        let took = restart_is_noticed(me, peer, true).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_vanishes_in_use_is_given_up_and_found_again_when_it_is_back() {
    let directory: Arc<Directory> = Arc::default();
    let mut a = node(&directory, 1);
    let identity = identity();
    directory.add(&identity, Peer::Node(NodeId(2)));
    let agent = Agent::start(localhost(), &directory, &identity, 2).unwrap();
    let addr = agent.link.local_addr();
    a.link.learn(NodeId(2), vec![addr]);
    let mut duplex = within(a.link.open(NodeId(2))).await.unwrap();
    // A length without its bytes: the peer waits, and the stream stays open.
    duplex.send.write_all(&[8, 0, 0, 0]).await.unwrap();
    assert_eq!(presence(&mut a.incoming).await, (NodeId(2), true));
    agent.kill();
    let begin = Instant::now();
    assert_eq!(presence(&mut a.incoming).await, (NodeId(2), false));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(within(duplex.recv.read_u8()).await.is_err());

    // It comes back while we are calling it.
    let link = a.link.clone();
    let call = tokio::spawn(async move { ask(&link, NodeId(2), 1).await });
    let mut agent = None;
    eventually("the port is free", || {
        agent = Agent::start(addr, &directory, &identity, 2);
        agent.is_some()
    })
    .await;
    assert_eq!(within(call).await.unwrap(), Ok(2));
    agent.unwrap().kill();
}

#[tokio::test]
async fn a_slow_receiver_makes_its_peers_wait_and_loses_nothing() {
    let directory = Arc::default();
    let a = node(&directory, 1);
    let b = node_with(&directory, LinkConfig { incoming: 1, max_streams: 4, ..config(2) });
    introduce(&a, &b);
    let requests = (0..100).map(|number| {
        let link = a.link.clone();
        tokio::spawn(async move { ask(&link, NodeId(2), number).await })
    });
    let requests: Vec<_> = requests.collect();
    eventually("they wait", || a.link.connections(b.id) == 1).await;
    serve(b.incoming);
    for (number, request) in requests.into_iter().enumerate() {
        assert_eq!(within(request).await.unwrap(), Ok(number as u64 + 1));
    }
}
