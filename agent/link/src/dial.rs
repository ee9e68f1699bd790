//! Calling a peer: all its addresses at once, again each second, the first that greets wins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, TransportConfig};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::error::AttemptError;
use crate::greeting::{self, Greeting};
use crate::tls::{self, SERVER_NAME};
use crate::trust::{Expect, Identity, Judge, Trust};

/// QUIC repeats its first packet ever more slowly; a new attempt begins quickly again, for a peer that starts.
const AGAIN: Duration = Duration::from_secs(1);

/// Whom to call, and as whom.
pub(crate) struct Call {
    pub(crate) identity: Identity,
    pub(crate) trust: Arc<dyn Trust>,
    pub(crate) expect: Expect,
    pub(crate) transport: Arc<TransportConfig>,
    pub(crate) greeting: Greeting,
}

/// One address and how to get there.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) endpoint: Endpoint,
}

/// A peer that answered.
pub(crate) struct Answer {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) greeting: Greeting,
}

/// Calls until one of the targets answers, each has refused, or the time is over.
pub(crate) async fn first(
    call: &Call,
    targets: &[Target],
    limit: Duration,
) -> Result<Answer, BTreeMap<SocketAddr, AttemptError>> {
    let mut failures = BTreeMap::new();
    let attempts = attempts(call, targets, &mut failures);
    if let Ok(Some(answer)) = timeout(limit, attempts).await {
        return Ok(answer);
    }
    for target in targets {
        failures.entry(target.addr).or_insert_with(|| AttemptError::Failed("no answer".into()));
    }
    Err(failures)
}

async fn attempts(
    call: &Call,
    targets: &[Target],
    failures: &mut BTreeMap<SocketAddr, AttemptError>,
) -> Option<Answer> {
    let mut running = JoinSet::new();
    let mut again = interval(AGAIN);
    loop {
        tokio::select! {
            _ = again.tick() => {
                for target in targets {
                    if failures.get(&target.addr).is_some_and(AttemptError::is_final) {
                        continue;
                    }
                    let config = tls::client(
                        &call.identity, call.trust.clone(), call.expect, call.transport.clone());
                    match config {
                        Ok(config) => {
                            let (target, greeting) = (target.clone(), call.greeting);
                            running.spawn(async move { (target.addr, attempt(target, config, greeting).await) });
                        }
                        Err(why) => {
                            failures.insert(target.addr, AttemptError::Refused(format!("our identity: {why}")));
                        }
                    }
                }
            }
            Some(Ok((addr, result))) = running.join_next() => match result {
                Ok(answer) => return Some(answer),
                Err(error) => { failures.insert(addr, error); }
            },
        }
        let final_ones = failures.values().filter(|error| error.is_final()).count();
        if final_ones == targets.len() {
            return None;
        }
    }
}

async fn attempt(
    target: Target,
    (config, judge): (ClientConfig, Arc<Judge>),
    ours: Greeting,
) -> Result<Answer, AttemptError> {
    let connecting = target
        .endpoint
        .connect_with(config, target.addr, SERVER_NAME)
        .map_err(|error| AttemptError::Failed(error.to_string()))?;
    let connection =
        connecting.await.map_err(|error| AttemptError::from_connection(&error, judge.refusal()))?;
    let greeting = greeting::call(&connection, ours).await?;
    Ok(Answer { connection, endpoint: target.endpoint, greeting })
}
