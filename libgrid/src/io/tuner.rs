//! How many connections, with which buffers: decided from what was measured. No I/O, no clock.
//!
//! ```text
//!            round trip short                      round trip long
//!   start ──────────────────▶ 1 connection      ──────────────────▶ FIRST_LONG connections
//!                                                       │ every 4 round trips
//!                                                       ▼
//!                     ┌── rate grew by more than 5 % ──▶ half as many again
//!                     └── it did not ──▶ stay; after three times without growth the number stands
//! ```
//!
//! One connection fills a path only if its window reaches the bandwidth-delay product. What keeps it smaller is either
//! a buffer, which the kernel adapts by itself up to `net.ipv4.tcp_rmem` and `tcp_wmem`, or loss: a connection under
//! Reno reaches `1.22 · MSS / (RTT · √loss)` (Mathis et al., 1997), 9 Mbit/s at 50 ms and 0.1 %. Several connections
//! divide both limits among them, and start as many times faster. On a short path they only cost CPU time.

use std::time::Duration;

/// From this round-trip time on a path counts as long.
const LONG: Duration = Duration::from_millis(3);

/// How many connections a long path begins with.
const FIRST_LONG: usize = 8;

/// Bytes that make one more connection worth its handshake.
const WORTH_A_CONNECTION: u64 = 1 << 20;

/// Growth of the rate that shows that more connections helped.
const GROWTH: f64 = 1.05;

/// How often more connections may bring nothing until their number stands.
const PATIENCE: u32 = 3;

/// What a user fixed; what is `None` is found by measuring.
///
/// ```
/// let fixed = libgrid::io::Fixed { streams: Some(4), ..Default::default() };
/// assert_eq!(fixed.buffer, None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The number of connections.
    pub streams: Option<usize>,
    /// The size of both buffers of each connection, in bytes.
    pub buffer: Option<usize>,
    /// The congestion control, by the kernel's name of it.
    pub congestion: Option<String>,
}

/// Which congestion control a connection has.
///
/// ```
/// assert_eq!(libgrid::io::Congestion::default(), libgrid::io::Congestion::Default);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// The system's.
    #[default]
    Default,
    /// This one, where the system allows it.
    Named(std::ffi::OsString),
}

/// What connections to set up.
///
/// ```
/// assert_eq!(libgrid::io::Plan::default().streams, 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many connections.
    pub streams: usize,
    /// The size of both buffers, in bytes; `None` leaves it to the kernel, which adapts it to the path.
    pub buffer: Option<usize>,
    /// Their congestion control.
    pub congestion: Congestion,
}

impl Default for Plan {
    fn default() -> Self {
        Self { streams: 1, buffer: None, congestion: Congestion::Default }
    }
}

/// Decides, during one transfer, how many connections it should have.
///
/// ```
/// use libgrid::io::{Fixed, Tuner};
/// use std::time::Duration;
/// let tuner = Tuner::new(Duration::from_micros(50), 1 << 30, 64, Fixed::default());
/// assert_eq!(tuner.plan().streams, 1);
/// let tuner = Tuner::new(Duration::from_millis(50), 1 << 30, 64, Fixed::default());
/// assert!(tuner.plan().streams > 1);
/// ```
#[derive(Clone, Debug)]
pub struct Tuner {
    rtt: Duration,
    most: usize,
    fixed: Fixed,
    streams: usize,
    /// When the last look was, and how much had been delivered.
    looked: (Duration, u64),
    /// The best rate so far, in bytes a second.
    best: f64,
    disappointments: u32,
}

impl Tuner {
    /// For a transfer of `size` bytes over a path of this round-trip time, with `most` connections at most.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Tuner};
    /// # use std::time::Duration;
    /// // A small file is not worth many connections.
    /// assert_eq!(Tuner::new(Duration::from_millis(50), 1000, 64, Fixed::default()).plan().streams, 1);
    /// ```
    pub fn new(rtt: Duration, size: u64, most: usize, fixed: Fixed) -> Self {
        let most = most.max(1);
        let worth = usize::try_from(size / WORTH_A_CONNECTION).unwrap_or(usize::MAX).max(1);
        let streams = match fixed.streams {
            Some(streams) => streams.clamp(1, most),
            None if rtt < LONG => 1,
            None => FIRST_LONG.min(worth).min(most),
        };
        let most = if fixed.streams.is_some() { streams } else { most.min(worth) };
        Self { rtt, most, fixed, streams, looked: (Duration::ZERO, 0), best: 0.0, disappointments: 0 }
    }

    /// What to set up now.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Tuner};
    /// # use std::time::Duration;
    /// let fixed = Fixed { streams: Some(3), ..Default::default() };
    /// assert_eq!(Tuner::new(Duration::ZERO, 1 << 30, 64, fixed).plan().streams, 3);
    /// ```
    pub fn plan(&self) -> Plan {
        let congestion = match &self.fixed.congestion {
            Some(name) => Congestion::Named(name.into()),
            // It does not take each lost packet for a full queue. Where it is not there, more connections do it.
            None if self.rtt >= LONG => Congestion::Named("bbr".into()),
            None => Congestion::Default,
        };
        Plan { streams: self.streams, buffer: self.fixed.buffer, congestion }
    }

    /// How long to wait between two calls of [`Tuner::observe`].
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Tuner};
    /// # use std::time::Duration;
    /// let tuner = Tuner::new(Duration::from_millis(50), 1 << 30, 64, Fixed::default());
    /// assert_eq!(tuner.interval(), Duration::from_millis(200));
    /// ```
    pub fn interval(&self) -> Duration {
        (self.rtt * 4).max(Duration::from_millis(100))
    }

    /// Learns that at `now`, counted from the start, `delivered` bytes had arrived in all; tells how many connections
    /// there should be.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Tuner};
    /// # use std::time::Duration;
    /// let mut tuner = Tuner::new(Duration::from_millis(50), 1 << 30, 64, Fixed::default());
    /// let before = tuner.plan().streams;
    /// assert!(tuner.observe(Duration::from_millis(200), 1 << 20) > before, "the rate grew from nothing");
    /// ```
    pub fn observe(&mut self, now: Duration, delivered: u64) -> usize {
        let (then, before) = self.looked;
        let span = now.saturating_sub(then);
        if span < self.interval() {
            return self.streams;
        }
        self.looked = (now, delivered);
        let rate = delivered.saturating_sub(before) as f64 / span.as_secs_f64();
        if rate > self.best * GROWTH {
            self.disappointments = 0;
        } else {
            self.disappointments += 1;
        }
        self.best = self.best.max(rate);
        // A short path is full with one, or the machine is.
        if self.rtt >= LONG && self.disappointments < PATIENCE && self.streams < self.most {
            self.streams = (self.streams + self.streams.div_ceil(2)).min(self.most);
        }
        self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// A path on which each connection gets `each` bytes a second, and all together `link`.
    fn settled(each: f64, link: f64) -> (usize, f64) {
        let mut tuner = Tuner::new(RTT, 10 << 30, 64, Fixed::default());
        let (mut now, mut delivered) = (Duration::ZERO, 0.0);
        let mut rate = 0.0;
        for _ in 0..40 {
            rate = (tuner.plan().streams as f64 * each).min(link);
            now += tuner.interval();
            delivered += rate * tuner.interval().as_secs_f64();
            tuner.observe(now, delivered as u64);
        }
        (tuner.plan().streams, rate)
    }

    #[test]
    fn connections_are_added_until_the_path_is_full() {
        let link = 125e6;
        let (streams, rate) = settled(link / 20.0, link);
        assert!(streams >= 20, "{streams}");
        assert_eq!(rate, link);
    }

    #[test]
    fn a_path_that_is_full_gets_few_more() {
        let (streams, _) = settled(125e6, 125e6);
        assert!(streams <= FIRST_LONG * 4, "{streams}");
    }

    #[test]
    fn a_fixed_number_is_kept() {
        let fixed = Fixed { streams: Some(2), ..Fixed::default() };
        let mut tuner = Tuner::new(RTT, 10 << 30, 64, fixed);
        for second in 1..20 {
            assert_eq!(tuner.observe(Duration::from_secs(second), second << 30), 2);
        }
    }

    #[test]
    fn a_short_path_keeps_one() {
        let mut tuner = Tuner::new(Duration::from_micros(100), 10 << 30, 64, Fixed::default());
        for second in 1..20 {
            assert_eq!(tuner.observe(Duration::from_secs(second), (second * second) << 30), 1);
        }
    }
}
