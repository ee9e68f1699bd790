//! Those who call us: handshake, greeting, and what each may then do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::Connection;
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::connection::Conn;
use crate::error::{AttemptError, code};
use crate::greeting::{self, Greeting};
use crate::link::{Incoming, Shared};
use crate::stream::{Duplex, Use};
use crate::trust::Peer;

/// How long the bearer of a token may take to join.
const JOINING: Duration = Duration::from_secs(60);

/// Takes calls until the link is closed, or nobody wants to hear of them.
pub(crate) async fn run(shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(shared.config.max_handshakes.max(1)));
    loop {
        let caller = tokio::select! {
            caller = shared.endpoint.accept() => caller,
            () = shared.incoming.closed() => {
                shared.close();
                return;
            }
        };
        let Some(caller) = caller else { return };
        // Without a slot the packet is ignored: the caller repeats it, and may find one.
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            caller.ignore();
            continue;
        };
        // In a crowd callers must show that they are where they say, before they cost us a signature.
        let crowded = slots.available_permits() < shared.config.max_handshakes / 2;
        if crowded && !caller.remote_address_validated() && caller.may_retry() {
            // Fails only where `may_retry` is false.
            let _ = caller.retry();
            continue;
        }
        tokio::spawn(admit(shared.clone(), caller, slot));
    }
}

async fn admit(shared: Arc<Shared>, caller: quinn::Incoming, slot: OwnedSemaphorePermit) {
    let from = caller.remote_address();
    let greeted = timeout(shared.config.handshake, async {
        let connection = match caller.accept() {
            Ok(connecting) => connecting.await,
            Err(error) => Err(error),
        };
        let connection = connection.map_err(|error| AttemptError::from_connection(&error, None))?;
        let greeting = greeting::answer(&connection, shared.instance).await?;
        Ok::<_, AttemptError>((connection, greeting))
    });
    let greeted = greeted.await;
    drop(slot);
    match greeted {
        Ok(Ok((connection, greeting))) => serve(shared, connection, greeting).await,
        Ok(Err(error)) => tracing::debug!(%from, why = error.why(), "link.caller_refused"),
        Err(_) => tracing::debug!(%from, why = "it took too long", "link.caller_refused"),
    }
}

async fn serve(shared: Arc<Shared>, connection: Connection, greeting: Greeting) {
    loop {
        let evictions = shared.table.evictions();
        match identify(&shared, &connection) {
            Ok(Peer::Node(node)) => {
                let lower = node < shared.config.me;
                let conn = Conn::new(connection.clone(), node, lower, greeting.instance, greeting.serial);
                if !shared.table.add(&conn, evictions) {
                    // Somebody was evicted meanwhile: ask again whether it was this one.
                    continue;
                }
                tracing::debug!(%node, from = %connection.remote_address(), "link.connected");
                return crate::connection::run(shared, conn).await;
            }
            Ok(Peer::Bearer(key)) => return serve_bearer(&shared, &connection, key).await,
            Err(why) => {
                tracing::debug!(from = %connection.remote_address(), %why, "link.caller_refused");
                return connection.close(code::REFUSED, b"");
            }
        }
    }
}

/// Who called, by the certificate of the handshake.
pub(crate) fn identify(shared: &Shared, connection: &Connection) -> Result<Peer, String> {
    let chain =
        connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.ok_or("it showed no certificate")?;
    let peer = shared.trust.peer(&chain, SystemTime::now())?;
    if peer == Peer::Node(shared.config.me) {
        return Err(format!("it has our own number, {}", shared.config.me));
    }
    Ok(peer)
}

/// One stream, and nothing more.
async fn serve_bearer(shared: &Arc<Shared>, connection: &Connection, key: [u8; 32]) {
    let counted = Arc::<Use>::default();
    let one_stream = async {
        let stream = connection.accept_bi().await.ok()?;
        let duplex = Duplex::new(stream, &counted, None);
        shared.hand_over(Incoming::Stream { peer: Peer::Bearer(key), duplex }).await;
        // A second stream, a datagram or the end of the connection.
        tokio::select! {
            _ = connection.accept_bi() => {}
            _ = connection.read_datagram() => {}
        }
        Some(())
    };
    // Where the time is over, the connection ends as well.
    let _ = timeout(JOINING, one_stream).await;
    connection.close(code::BEARER, b"");
}
