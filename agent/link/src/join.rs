//! A joiner's only call: it has a token, and no number yet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::NodeId;
use quinn::{Endpoint, EndpointConfig, TokioRuntime};

use crate::config::LinkConfig;
use crate::dial::{self, Call, Target};
use crate::error::{AttemptError, describe, each};
use crate::greeting::Greeting;
use crate::stream::{Duplex, Use};
use crate::trust::{Expect, Identity, Trust};

/// The VO could not be reached.
#[derive(Debug, thiserror::Error)]
#[error(
    "no address of the token let this machine in: {}: check that the agent runs there, and that nothing blocks \
     its udp port", each(.tried)
)]
pub struct JoinError {
    /// Each address and why it did not do.
    pub tried: Vec<(SocketAddr, String)>,
}

/// Opens one stream to the first of the addresses that answers and that `trust` accepts, within `limit`.
///
/// The connection lives as long as the stream. Must be called within a tokio runtime.
///
/// # Errors
/// [`JoinError`], which names each address.
pub async fn dial(
    addrs: &[SocketAddr],
    identity: &Identity,
    trust: Arc<dyn Trust>,
    limit: Duration,
) -> Result<Duplex, JoinError> {
    let mut tried = Vec::new();
    let mut targets = Vec::new();
    let (mut v4, mut v6) = (None, None);
    for &addr in addrs {
        let slot = if addr.is_ipv4() { &mut v4 } else { &mut v6 };
        match slot.get_or_insert_with(|| endpoint(addr)) {
            Ok(endpoint) => targets.push(Target { addr, endpoint: endpoint.clone() }),
            Err(error) => tried.push((addr, error.to_string())),
        }
    }
    if targets.is_empty() {
        return Err(JoinError { tried });
    }
    let call = Call {
        identity: identity.clone(),
        trust,
        expect: Expect::Any,
        transport: LinkConfig::new(NodeId(0)).transport(),
        greeting: Greeting { instance: 0, serial: 0 },
    };
    let answer = dial::first(&call, &targets, limit).await;
    let why = |(addr, error): (SocketAddr, AttemptError)| (addr, error.why());
    let answer = match answer {
        Ok(answer) => answer,
        Err(failures) => {
            tried.extend(failures.into_iter().map(why));
            return Err(JoinError { tried });
        }
    };
    match answer.connection.open_bi().await {
        Ok(stream) => Ok(Duplex::new(stream, &Arc::<Use>::default(), Some(answer.endpoint))),
        Err(error) => {
            tried.push((answer.connection.remote_address(), describe(&error)));
            Err(JoinError { tried })
        }
    }
}

fn endpoint(addr: SocketAddr) -> io::Result<Endpoint> {
    let any: SocketAddr =
        if addr.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    Endpoint::new(EndpointConfig::default(), None, UdpSocket::bind(any)?, Arc::new(TokioRuntime))
}
