//! How fast the overlay notices and how much it sends.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};
use serde::{Deserialize, Serialize};

use crate::message::MAX_SWIM;

/// Which sub-grid a datagram is for. There is one so far: number 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SubGrid(pub u32);

/// How an [`Overlay`](crate::Overlay) behaves.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// When this agent started, in milliseconds since 1970: higher than at its last start.
    pub incarnation: u64,
    /// The sub-grid that the node is in.
    pub sub_grid: SubGrid,
    /// How often each node probes another; 1 s.
    pub probe_period: Duration,
    /// How long a probe may take before others are asked to try; 500 ms. Less than the period.
    pub probe_rtt: Duration,
    /// How long a suspect may object in a grid of up to ten nodes; 2 s. Grows with the logarithm of the size.
    pub suspicion: Duration,
    /// How often one of those who are down is tried again, and a contact that never answered; 10 s.
    pub retry: Duration,
    /// How often a node compares what it knows with another's; 10 s, and more often while it finds something new.
    pub sync: Duration,
    /// Changes of our own information are told at most this often; 1 s.
    pub tell: Duration,
    /// How long a node that is down stays listed; 24 h.
    pub remember: Duration,
}

impl OverlayConfig {
    /// The defaults for an agent that started then (milliseconds since 1970).
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            sub_grid: SubGrid::default(),
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(500),
            suspicion: Duration::from_secs(2),
            retry: Duration::from_secs(10),
            sync: Duration::from_secs(10),
            tell: Duration::from_secs(1),
            remember: Duration::from_secs(24 * 3600),
        }
    }

    /// What foca is told in a grid of this many nodes.
    pub(crate) fn swim(&self, nodes: usize) -> Config {
        let size = nodes.max(1) as f64;
        // Gossip has reached all after a multiple of log(n) rounds (SWIM, section 4.1); digests repair the rest.
        let transmissions = (4.0 * (size + 1.0).log10()).ceil().clamp(6.0, 24.0) as u8;
        Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: NonZeroUsize::MIN.saturating_add(2),
            max_transmissions: NonZeroU8::new(transmissions).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: self.suspicion.mul_f64(size.log10().max(1.0)),
            remove_down_after: Some(self.remember),
            max_packet_size: MAX_SWIM,
            notify_down_members: true,
            // Ours: see `sync` and `retry`. foca's stop in a node that is alone.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(PeriodicParams {
                frequency: self.probe_period / 5,
                num_members: NonZeroUsize::MIN.saturating_add(2),
            }),
        }
    }
}
