//! How many connections, with which buffers: decided from what was measured. No I/O, no clock.
//!
//! ```text
//!            round trip short                round trip long
//!   start ──────────────────▶ 1           ──────────────────▶ 4, or 16 where each loss slows a connection down
//!                                                 │ every 4 round trips
//!                                                 ▼
//!            ┌── the rate still grows ───────────────────▶ wait
//!            ├── a queue was seen: the path is full ─────▶ stay
//!            ├── the rest is sent before one gets going ─▶ stay
//!            ├── it stopped growing ─────────────────────▶ half as many again
//!            └── more connections brought nothing, twice ▶ stay for good
//! ```
//!
//! One connection fills a path only if its window reaches the bandwidth-delay product. What keeps it smaller is either
//! a buffer, which the kernel adapts by itself up to `net.ipv4.tcp_rmem` and `tcp_wmem`, or loss: a connection under
//! Reno reaches `1.22 · MSS / (RTT · √loss)` (Mathis et al., 1997), 9 Mbit/s at 50 ms and 0.1 %. Several connections
//! divide both limits among them, and start as many times faster. BBR (Cardwell et al., 2016) does not take each lost
//! packet for a full queue, and is asked for on long paths; the system may not have it, or not allow it. On a short
//! path more connections only cost CPU time.

use std::time::Duration;

/// From this round-trip time on a path counts as long.
const LONG: Duration = Duration::from_millis(3);

/// How many connections a long path begins with, if they bear loss, and if they do not.
const FIRST_TOLERANT: usize = 4;
const FIRST: usize = 16;

/// Bytes that make one more connection worth its handshake.
const WORTH_A_CONNECTION: u64 = 1 << 20;

/// How many round trips a new connection needs until it has brought more than it cost: it shakes hands, and doubles what it
/// has under way with each.
const WARM: u32 = 16;

/// Unsent bytes in a connection on a long path at most.
const UNSENT: u32 = 256 << 10;

/// Growth of the rate, from one look to the next, that is no chance.
const GROWTH: f64 = 1.05;

/// How often more connections may bring nothing until their number stands.
const PATIENCE: u32 = 2;

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
    /// Bytes that a connection takes at most before it can send them: where several share the work, a slow one must
    /// not hold much of it. `None` for as many as fit its buffer.
    pub unsent: Option<u32>,
}

impl Plan {
    /// Buffers and congestion control for a path; one connection.
    ///
    /// ```
    /// use libgrid::io::{Congestion, Fixed, Path, Plan};
    /// let long = Path { rtt: std::time::Duration::from_millis(50), tolerant: false };
    /// assert_ne!(Plan::for_path(long, &Fixed::default()).congestion, Congestion::Default);
    /// ```
    pub fn for_path(path: Path, fixed: &Fixed) -> Self {
        let congestion = match &fixed.congestion {
            Some(name) => Congestion::Named(name.into()),
            None if path.is_long() => Congestion::Named("bbr".into()),
            None => Congestion::Default,
        };
        let unsent = path.is_long().then_some(UNSENT);
        Self { streams: 1, buffer: fixed.buffer, congestion, unsent }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { streams: 1, buffer: None, congestion: Congestion::Default, unsent: None }
    }
}

/// What is known of a path before anything was sent.
///
/// ```
/// let path = libgrid::io::Path { rtt: std::time::Duration::from_millis(50), tolerant: true };
/// assert!(path.is_long());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// The round-trip time.
    pub rtt: Duration,
    /// Whether connections have a congestion control that bears loss: [`Socket::bears_loss`](super::Socket::bears_loss).
    pub tolerant: bool,
}

impl Path {
    /// Whether it is long enough for several connections to help.
    ///
    /// ```
    /// assert!(!libgrid::io::Path::default().is_long());
    /// ```
    pub fn is_long(self) -> bool {
        self.rtt >= LONG
    }
}

/// Decides, during one transfer, how many connections it should have.
///
/// ```
/// use libgrid::io::{Fixed, Path, Tuner};
/// use std::time::Duration;
/// assert_eq!(Tuner::new(Path::default(), 1 << 30, 64, Fixed::default()).plan().streams, 1);
/// let long = Path { rtt: Duration::from_millis(50), tolerant: false };
/// assert!(Tuner::new(long, 1 << 30, 64, Fixed::default()).plan().streams > 1);
/// ```
#[derive(Clone, Debug)]
pub struct Tuner {
    path: Path,
    size: u64,
    most: usize,
    fixed: Fixed,
    streams: usize,
    /// Whether a queue was seen since the last look.
    queued: bool,
    /// When the last look was, and how much had been delivered.
    looked: (Duration, u64),
    /// The rate at the last look, in bytes a second.
    rate: f64,
    /// The rate before connections were last added.
    before: Option<f64>,
    disappointments: u32,
}

impl Tuner {
    /// For a transfer of `size` bytes over this path, with `most` connections at most.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Path, Tuner};
    /// # use std::time::Duration;
    /// let long = Path { rtt: Duration::from_millis(50), tolerant: true };
    /// // A small file is not worth many connections.
    /// assert_eq!(Tuner::new(long, 1000, 64, Fixed::default()).plan().streams, 1);
    /// ```
    pub fn new(path: Path, size: u64, most: usize, fixed: Fixed) -> Self {
        let most = most.max(1);
        let worth = usize::try_from(size / WORTH_A_CONNECTION).unwrap_or(usize::MAX).max(1);
        let first = if path.tolerant { FIRST_TOLERANT } else { FIRST };
        let streams = match fixed.streams {
            Some(streams) => streams.clamp(1, most),
            None if !path.is_long() => 1,
            None => first.min(worth).min(most),
        };
        let most = if fixed.streams.is_some() { streams } else { most.min(worth) };
        let looked = (Duration::ZERO, 0);
        Self {
            path,
            size,
            most,
            fixed,
            streams,
            queued: false,
            looked,
            rate: 0.0,
            before: None,
            disappointments: 0,
        }
    }

    /// What to set up now.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Path, Tuner};
    /// let fixed = Fixed { streams: Some(3), ..Default::default() };
    /// assert_eq!(Tuner::new(Path::default(), 1 << 30, 64, fixed).plan().streams, 3);
    /// ```
    pub fn plan(&self) -> Plan {
        Plan { streams: self.streams, ..Plan::for_path(self.path, &self.fixed) }
    }

    /// How long to wait between two calls of [`Tuner::observe`].
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Path, Tuner};
    /// # use std::time::Duration;
    /// let long = Path { rtt: Duration::from_millis(50), tolerant: false };
    /// assert_eq!(Tuner::new(long, 1 << 30, 64, Fixed::default()).interval(), Duration::from_millis(200));
    /// ```
    pub fn interval(&self) -> Duration {
        (self.path.rtt * 4).max(Duration::from_millis(100))
    }

    /// Learns that at `now`, counted from the start, `delivered` bytes had arrived in all, and whether data waits in
    /// queues on the way, so that the round trip takes longer than it must; tells how many connections there should be.
    ///
    /// ```
    /// # use libgrid::io::{Fixed, Path, Tuner};
    /// # use std::time::Duration;
    /// let long = Path { rtt: Duration::from_millis(50), tolerant: false };
    /// let mut tuner = Tuner::new(long, 1 << 30, 64, Fixed::default());
    /// let first = tuner.plan().streams;
    /// assert_eq!(tuner.observe(Duration::from_millis(200), 1 << 20, false), first, "the rate grew from nothing");
    /// assert!(tuner.observe(Duration::from_millis(400), 2 << 20, false) > first, "it grows no more");
    /// ```
    pub fn observe(&mut self, now: Duration, delivered: u64, queued: bool) -> usize {
        // BBR lets the queue drain now and then: once in a while is enough.
        self.queued |= queued;
        let (then, before) = self.looked;
        let span = now.saturating_sub(then);
        if span < self.interval() {
            return self.streams;
        }
        self.looked = (now, delivered);
        let rate = delivered.saturating_sub(before) as f64 / span.as_secs_f64();
        let grows = rate > self.rate * GROWTH || delivered == 0;
        self.rate = rate;
        let queued = std::mem::take(&mut self.queued);
        let left = self.size.saturating_sub(delivered) as f64;
        let late = left < rate * (self.path.rtt * WARM).as_secs_f64();
        // A short path is full with one, or the machine is.
        if grows || queued || late || !self.path.is_long() || self.disappointments >= PATIENCE {
            return self.streams;
        }
        if let Some(before) = self.before.take() {
            self.disappointments = if rate > before * GROWTH { 0 } else { self.disappointments + 1 };
        }
        if self.streams < self.most && self.disappointments < PATIENCE {
            self.before = Some(rate);
            self.streams = (self.streams + self.streams.div_ceil(2)).min(self.most);
        }
        self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSY: Path = Path { rtt: Duration::from_millis(50), tolerant: false };

    /// A path on which each connection gets `each` bytes a second, and all together `link`.
    fn settled(each: f64, link: f64, queues: bool) -> (usize, f64) {
        let mut tuner = Tuner::new(LOSSY, 10 << 30, 64, Fixed::default());
        let (mut now, mut delivered) = (Duration::ZERO, 0.0);
        let mut rate = 0.0;
        for _ in 0..40 {
            let wish = tuner.plan().streams as f64 * each;
            rate = wish.min(link);
            now += tuner.interval();
            delivered += rate * tuner.interval().as_secs_f64();
            tuner.observe(now, delivered as u64, queues && wish > link);
        }
        (tuner.plan().streams, rate)
    }

    #[test]
    fn connections_are_added_until_the_path_is_full() {
        let link = 125e6;
        let (streams, rate) = settled(link / 40.0, link, true);
        assert!((40..=64).contains(&streams), "{streams}");
        assert_eq!(rate, link);
    }

    #[test]
    fn a_path_that_is_full_gets_no_more() {
        assert_eq!(settled(125e6, 125e6, true).0, FIRST);
        // One without queues has to be tried.
        assert!(settled(125e6, 125e6, false).0 <= FIRST * 3);
    }

    #[test]
    fn a_queue_that_was_seen_once_counts() {
        let mut tuner = Tuner::new(LOSSY, 10 << 30, 64, Fixed::default());
        for look in 1..=40 {
            let now = tuner.interval() * look;
            tuner.observe(now - Duration::from_millis(100), u64::from(look) * 25_000_000 - 12_500_000, true);
            assert_eq!(tuner.observe(now, u64::from(look) * 25_000_000, false), FIRST);
        }
    }

    #[test]
    fn near_the_end_none_is_added() {
        let mut tuner = Tuner::new(LOSSY, 200_000_000, 64, Fixed::default());
        // 25 MB a look, 800 ms to warm up: at 100 MB and less to come.
        let most: Vec<usize> = (1..=8)
            .map(|look| tuner.observe(tuner.interval() * look, 25_000_000 * u64::from(look), false))
            .collect();
        assert!(most[3] > FIRST, "{most:?}");
        assert_eq!(most[4..], [most[4]; 4]);
    }

    #[test]
    fn a_fixed_number_is_kept() {
        let fixed = Fixed { streams: Some(2), ..Fixed::default() };
        let mut tuner = Tuner::new(LOSSY, 10 << 30, 64, fixed);
        for second in 1..20 {
            assert_eq!(tuner.observe(Duration::from_secs(second), 1 << 30, false), 2);
        }
    }

    #[test]
    fn a_short_path_keeps_one() {
        let mut tuner = Tuner::new(Path::default(), 10 << 30, 64, Fixed::default());
        for second in 1..20 {
            assert_eq!(tuner.observe(Duration::from_secs(second), 1 << 30, false), 1);
        }
    }
}
