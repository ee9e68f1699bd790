//! A limit on the rate of a transfer: a token bucket over all its connections.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may go at once after a pause, as time at the full rate.
const BURST: Duration = Duration::from_millis(50);

/// Holds senders back.
pub(super) struct Pace {
    /// Bytes a second; `None` for no limit.
    rate: Option<f64>,
    /// When the next byte may go.
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1) as f64), next: Mutex::new(Instant::now()) }
    }

    /// How much to send at once, so that no wait gets long.
    pub(super) fn piece(&self, most: u64) -> u64 {
        match self.rate {
            Some(rate) => ((rate * BURST.as_secs_f64()) as u64).clamp(4096, most.max(4096)).min(most),
            None => most,
        }
    }

    /// Waits until so many bytes may go.
    pub(super) fn wait(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let wait = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = (*next).max(now.checked_sub(BURST).unwrap_or(now));
            *next = start + Duration::from_secs_f64(bytes as f64 / rate);
            next.saturating_duration_since(now)
        };
        thread::sleep(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_senders_together_keep_to_the_rate() {
        let pace = Pace::new(Some(10_000_000));
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| pace.wait(100_000)));
            }
        });
        // 2 MB at 10 MB a second, less the burst.
        assert!(start.elapsed() >= Duration::from_millis(145), "{:?}", start.elapsed());
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let pace = Pace::new(None);
        assert_eq!(pace.piece(1 << 22), 1 << 22);
        pace.wait(u64::MAX);
    }
}
