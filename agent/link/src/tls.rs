//! TLS 1.3 over QUIC: both sides show certificates, no session is resumed.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, ServerConfig, TransportConfig};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::server::NoServerSessionStorage;

use crate::trust::{Expect, Identity, Judge, Trust};

/// It names the service, not the release: versions meet in the greeting, which can say so.
const ALPN: &[u8] = b"gridos/1";

/// Nobody looks at the name: [`Judge`] knows whom it expects. TLS demands one.
pub(crate) const SERVER_NAME: &str = "gridos";

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// For those who dial us.
pub(crate) fn server(
    identity: &Identity,
    trust: Arc<dyn Trust>,
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, String> {
    let crypto = crypto();
    let judge = Judge::of_clients(trust, crypto.signature_verification_algorithms);
    let mut tls = rustls::ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(Arc::new(judge))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|error| error.to_string())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport);
    // Nodes do not wander between addresses while they talk.
    config.migration(false);
    Ok(config)
}

/// For one call; the judge tells afterwards why it refused.
pub(crate) fn client(
    identity: &Identity,
    trust: Arc<dyn Trust>,
    expect: Expect,
    transport: Arc<TransportConfig>,
) -> Result<(ClientConfig, Arc<Judge>), String> {
    let crypto = crypto();
    let judge = Arc::new(Judge::of_server(trust, expect, crypto.signature_verification_algorithms));
    let mut tls = rustls::ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(judge.clone())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|error| error.to_string())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport);
    Ok((config, judge))
}

/// The endpoint's keys, derived from the node's: the same after a restart, so that packets of a former life are
/// recognised and answered with a reset (RFC 9000, section 10.3) that their sender believes.
pub(crate) fn endpoint(identity: &Identity) -> EndpointConfig {
    let node_key = hmac::Key::new(hmac::HMAC_SHA256, identity.key.secret_der());
    let reset = hmac::sign(&node_key, b"gridos link stateless reset");
    let ids = hmac::sign(&node_key, b"gridos link connection ids");
    let mut short = [0; 8];
    short.copy_from_slice(&ids.as_ref()[..8]);
    let ids = u64::from_le_bytes(short);
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref())));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}
