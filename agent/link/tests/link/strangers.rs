//! Those who must not get in, and those who may only join.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use grid_link::{Identity, Incoming, LinkError, Peer, join};
use libgrid::ids::NodeId;
use libgrid::wire::{self, Hello};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::AsyncReadExt;

/// A client that believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Shows a certificate whether or not the key is its own.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl Shows {
    fn new(identity: &Identity) -> Self {
        let key = rustls::crypto::ring::sign::any_supported_type(&identity.key).unwrap();
        Self(Arc::new(CertifiedKey::new(identity.chain.clone(), key)))
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A connection by hand, past everything that `grid_link` checks on its own side.
async fn by_hand(
    addr: SocketAddr,
    identity: Option<&Identity>,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut tls = match identity {
        Some(identity) => tls.with_client_cert_resolver(Arc::new(Shows::new(identity))),
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"gridos/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(localhost()).unwrap();
    endpoint.connect_with(config, addr, "gridos").unwrap().await
}

/// Whether the server lets the connection do anything.
async fn is_let_in(connection: Result<quinn::Connection, quinn::ConnectionError>) -> bool {
    let Ok(connection) = connection else { return false };
    let Ok((mut send, mut recv)) = connection.open_bi().await else { return false };
    let _ = send.write_all(&Hello::ours().to_bytes()).await;
    let _ = send.write_all(&wire::frame(&(1u64, 1u64)).unwrap()).await;
    within(recv.read_u8()).await.is_ok()
}

fn signed_by_another_ca() -> Identity {
    let ca_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let ca = ca.self_signed(&ca_key).unwrap();
    Identity { chain: vec![certificate.into(), ca.into()], key: PrivateKeyDer::from(key) }
}

#[tokio::test]
async fn strangers_are_refused_in_the_handshake_and_the_daemon_never_hears_of_them() {
    let directory: Arc<Directory> = Arc::default();
    let mut server = node(&directory, 1);
    let addr = server.link.local_addr();
    let member = identity();
    directory.add(&member, Peer::Node(NodeId(2)));
    // Another's certificate without its key.
    let thief = Identity { chain: member.chain.clone(), key: identity().key };
    for (who, stranger) in
        [("self-signed", identity()), ("another CA", signed_by_another_ca()), ("a thief", thief)]
    {
        assert!(!is_let_in(by_hand(addr, Some(&stranger)).await).await, "{who}");
    }
    assert!(!is_let_in(by_hand(addr, None).await).await, "no certificate");
    // Our own number is taken, too.
    let twin = identity();
    directory.add(&twin, Peer::Node(NodeId(1)));
    let twin = by_hand(addr, Some(&twin)).await.unwrap();
    let (mut send, mut recv) = twin.open_bi().await.unwrap();
    send.write_all(&Hello::ours().to_bytes()).await.unwrap();
    send.write_all(&wire::frame(&(1u64, 1u64)).unwrap()).await.unwrap();
    while within(recv.read_u8()).await.is_ok() {}
    within(twin.closed()).await;

    // The first that the daemon hears of is the member.
    let connection = by_hand(addr, Some(&member)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&Hello::ours().to_bytes()).await.unwrap();
    send.write_all(&wire::frame(&(1u64, 1u64)).unwrap()).await.unwrap();
    within(recv.read_u8()).await.unwrap();
    let first = within(server.incoming.recv()).await.unwrap();
    assert!(matches!(first, Incoming::Connected(NodeId(2))), "{first:?}");
}

#[tokio::test]
async fn a_caller_refuses_a_server_that_is_another_node_or_a_stranger() {
    let directory: Arc<Directory> = Arc::default();
    let (a, b) = (node(&directory, 1), node(&directory, 3));
    a.link.learn(NodeId(2), vec![b.link.local_addr()]);
    let error = within(a.link.open(NodeId(2))).await.unwrap_err();
    assert!(error.to_string().contains("node 3 answers where node 2 was expected"), "{error}");
    directory.remove(&b.identity);
    let error = within(a.link.open(NodeId(2))).await.unwrap_err();
    assert!(matches!(error, LinkError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("not in the directory"), "{error}");
    directory.add(&b.identity, Peer::Bearer([1; 32]));
    let error = within(a.link.open(NodeId(2))).await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
}

#[tokio::test]
async fn a_refused_caller_is_told_so() {
    let (ours, theirs): (Arc<Directory>, Arc<Directory>) = (Arc::default(), Arc::default());
    let (a, b) = (node(&ours, 1), node(&theirs, 2));
    ours.add(&b.identity, Peer::Node(b.id));
    a.link.learn(b.id, vec![b.link.local_addr()]);
    let error = within(a.link.open(b.id)).await.unwrap_err();
    assert!(error.to_string().contains("it refuses our certificate"), "{error}");
}

#[tokio::test]
async fn a_bearer_opens_one_stream_and_no_more() {
    let directory: Arc<Directory> = Arc::default();
    let mut server = node(&directory, 1);
    let token = identity();
    directory.add(&token, Peer::Bearer([9; 32]));
    let addrs = [server.link.local_addr()];
    let limit = Duration::from_secs(3);
    let joiner = within(join::dial(&addrs, &token, directory.clone(), limit)).await.unwrap();
    let asked = tokio::spawn(ask_over(joiner, 41));
    let (peer, duplex) = next_stream(&mut server.incoming).await;
    assert_eq!(peer, Peer::Bearer([9; 32]));
    answer(duplex).await;
    assert_eq!(within(asked).await.unwrap(), Ok(42));

    let connection = by_hand(addrs[0], Some(&token)).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&Hello::ours().to_bytes()).await.unwrap();
    send.write_all(&wire::frame(&(1u64, 1u64)).unwrap()).await.unwrap();
    within(recv.read_u8()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        streams.push((send, recv));
    }
    let end = within(connection.closed()).await;
    assert!(matches!(end, quinn::ConnectionError::ApplicationClosed(_)), "{end}");
    let (peer, _) = next_stream(&mut server.incoming).await;
    assert_eq!(peer, Peer::Bearer([9; 32]));
    assert!(server.incoming.try_recv().is_err(), "the second stream was not handed over");
}

#[tokio::test]
async fn a_joiner_is_told_about_each_address() {
    let directory: Arc<Directory> = Arc::default();
    let server = node(&directory, 1);
    let silent = UdpSocket::bind(localhost()).unwrap();
    let addrs = [silent.local_addr().unwrap(), server.link.local_addr()];
    let limit = Duration::from_millis(700);
    let stranger = identity();
    let error = within(join::dial(&addrs, &stranger, directory.clone(), limit)).await.unwrap_err();
    assert_eq!(error.tried.len(), 2);
    let text = error.to_string();
    assert!(text.contains(&format!("{} (no answer)", addrs[0])), "{text}");
    assert!(text.contains("it refuses our certificate"), "{text}");
    let error = join::dial(&[], &stranger, directory.clone(), limit).await.unwrap_err();
    assert!(error.tried.is_empty());

    directory.add(&stranger, Peer::Bearer([1; 32]));
    let joined = within(join::dial(&addrs, &stranger, directory.clone(), limit)).await;
    assert!(joined.is_ok(), "a dead address does not hinder: {joined:?}");
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let directory: Arc<Directory> = Arc::default();
    let (a, b) = (node(&directory, 1), node(&directory, 2));
    introduce(&a, &b);
    let target = b.link.local_addr();
    serve(b.incoming);
    let socket = UdpSocket::bind(localhost()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for length in (0..1400).chain([1472, 9000, 60_000]) {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(length)
        .collect();
        // A full buffer drops some; there are enough.
        let _ = socket.send_to(&bytes, target);
    }
    // A member whose greeting is nonsense, or a frame of four gigabytes.
    let member = identity();
    directory.add(&member, Peer::Node(NodeId(3)));
    for greeting in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), [&Hello::ours().to_bytes()[..], &[255; 64]].concat()]
    {
        let connection = by_hand(target, Some(&member)).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&greeting).await.unwrap();
        let end = within(connection.closed()).await;
        assert!(matches!(end, quinn::ConnectionError::ApplicationClosed(_)), "{end}");
    }
    assert_eq!(within(ask(&a.link, b.id, 1)).await, Ok(2));
}

#[tokio::test]
async fn another_version_is_told_in_one_sentence_on_both_sides() {
    let later = Hello { version: wire::VERSION + 1 };
    let directory: Arc<Directory> = Arc::default();
    let server = node(&directory, 1);
    let member = identity();
    directory.add(&member, Peer::Node(NodeId(2)));
    let connection = by_hand(server.link.local_addr(), Some(&member)).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&later.to_bytes()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = within(connection.closed()).await else {
        panic!("the server closes the connection");
    };
    assert_eq!(close.reason.as_ref(), Hello::ours().to_bytes());

    // A server of a later release, which tells its version in its greeting, or as it closes.
    for tells_by_closing in [false, true] {
        let endpoint = later_release(&member);
        server.link.learn(NodeId(2), vec![endpoint.local_addr().unwrap()]);
        let serve = async {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, _recv) = connection.accept_bi().await.unwrap();
            if tells_by_closing {
                connection.close(1u32.into(), &later.to_bytes());
            } else {
                send.write_all(&later.to_bytes()).await.unwrap();
            }
            connection.closed().await;
        };
        let (result, ()) = within(async { tokio::join!(server.link.open(NodeId(2)), serve) }).await;
        let error = result.unwrap_err();
        assert!(matches!(error, LinkError::Version { .. }), "{error}");
        assert!(error.to_string().contains("install the same release"), "{error}");
    }
}

fn later_release(identity: &Identity) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .unwrap();
    tls.alpn_protocols = vec![b"gridos/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    quinn::Endpoint::server(config, localhost()).unwrap()
}
