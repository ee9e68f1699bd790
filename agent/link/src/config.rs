//! What can be set, and what is set unless somebody does.

use std::sync::Arc;
use std::time::Duration;

use libgrid::ids::NodeId;
use quinn::{IdleTimeout, TransportConfig, VarInt};

/// How a [`Link`](crate::Link) behaves.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Our own number.
    pub me: NodeId,
    /// An unused connection ends after this long; 60 s. At most a year.
    pub idle: Duration,
    /// A connection in use ends when nothing was heard for this long; 4 s. At least 80 ms.
    pub silence: Duration,
    /// What a connection may take until both sides have greeted; 3 s.
    pub handshake: Duration,
    /// How many may try to connect to us at once; 64.
    pub max_handshakes: usize,
    /// How many streams a peer may have open; 1024.
    pub max_streams: u32,
    /// How many [`Incoming`](crate::Incoming)s wait before peers are made to; 256.
    pub incoming: usize,
}

/// Longer than any round trip in a grid is not: a lost first packet is sent again after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(30);

/// 10 Gbit/s over 3 ms. What one stream can hold in memory.
const STREAM_WINDOW: u32 = 4 << 20;

/// What all streams of a connection can hold together, in each direction.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Datagrams that wait to be read or sent; older ones give way.
const DATAGRAM_BUFFER: usize = 256 << 10;

impl LinkConfig {
    /// The defaults for this node.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            idle: Duration::from_secs(60),
            silence: Duration::from_secs(4),
            handshake: Duration::from_secs(3),
            max_handshakes: 64,
            max_streams: 1024,
            incoming: 256,
        }
    }

    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let idle = self.idle.min(Duration::from_secs(366 * 24 * 3600));
        transport
            .max_idle_timeout(IdleTimeout::try_from(idle).ok())
            .initial_rtt(INITIAL_RTT)
            .max_concurrent_bidi_streams(VarInt::from_u32(self.max_streams.max(1)))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
            .send_window(u64::from(CONNECTION_WINDOW))
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_BUFFER);
        Arc::new(transport)
    }
}
