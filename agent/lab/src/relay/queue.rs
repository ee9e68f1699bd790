//! One direction of a slow line, without I/O and without a clock.
//!
//! ```text
//! offer ──▶ loss ──▶ queue (drop-tail) ──▶ serialiser (rate) ──▶ propagation (delay) ──▶ due
//! ```
//!
//! A frame begins to leave when the one before has left, takes `length × 8 / rate` for it, and arrives one
//! delay after its last bit. All times are nanoseconds on one monotonic clock.

use std::collections::VecDeque;

use super::frame::Frame;
use crate::slow::Slow;

/// The most bytes that one direction holds. 10 Gbit/s over 100 ms need half of it; what exceeds it is dropped.
const MAX_BYTES: usize = 256 << 20;

struct Held {
    /// When its last bit leaves the serialiser.
    sent: u64,
    segments: usize,
    bytes: Vec<u8>,
}

/// Frames on their way in one direction.
pub(crate) struct Queue {
    delay: u64,
    rate: Option<u64>,
    loss: u64,
    limit: usize,
    frames: VecDeque<Held>,
    /// How many of `frames`, from the front, have left the serialiser.
    under_way: usize,
    /// The packets of the others.
    waiting: usize,
    bytes: usize,
    busy_until: u64,
    random: u64,
}

// === impl Queue ===

impl Queue {
    /// An empty line; `seed` decides which frames get lost.
    pub(crate) fn new(line: &Slow, seed: u64) -> Queue {
        Queue {
            // At most 10 s, so it fits.
            delay: line.delay.as_nanos() as u64,
            rate: line.rate,
            loss: u64::from(line.loss),
            limit: line.queue_packets() as usize,
            frames: VecDeque::new(),
            under_way: 0,
            waiting: 0,
            bytes: 0,
            busy_until: 0,
            random: seed,
        }
    }

    /// A frame enters the line. Of its packets some may be lost by chance; if the queue is full, all are.
    pub(crate) fn offer(&mut self, now: u64, frame: Frame<'_>) {
        if self.loss == 0 {
            return self.enter(now, frame);
        }
        let segments = frame.segments();
        let lost: Vec<usize> = (0..segments).filter(|_| self.random() % 1_000_000 < self.loss).collect();
        if lost.is_empty() {
            return self.enter(now, frame);
        }
        // What lies between the lost ones goes on.
        let mut from = 0;
        for to in lost.into_iter().chain([segments]) {
            if from < to
                && let Some(part) = Frame::parse(&frame.part(from, to))
            {
                self.enter(now, part);
            }
            from = to + 1;
        }
    }

    fn enter(&mut self, now: u64, frame: Frame<'_>) {
        while let Some(held) = self.frames.get(self.under_way).filter(|held| held.sent <= now) {
            self.under_way += 1;
            self.waiting -= held.segments;
        }
        let bytes = frame.bytes();
        if self.waiting >= self.limit || self.bytes + bytes.len() > MAX_BYTES {
            return;
        }
        let takes = self.rate.map_or(0, |rate| {
            let nanos = frame.line_bytes() as u128 * 8 * 1_000_000_000 / u128::from(rate.max(1));
            u64::try_from(nanos).unwrap_or(u64::MAX)
        });
        self.busy_until = self.busy_until.max(now).saturating_add(takes);
        self.bytes += bytes.len();
        self.waiting += frame.segments();
        let held = Held { sent: self.busy_until, segments: frame.segments(), bytes: bytes.to_vec() };
        self.frames.push_back(held);
    }

    /// The next frame that has arrived by `now`.
    pub(crate) fn due(&mut self, now: u64) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        let held = self.frames.pop_front()?;
        match self.under_way.checked_sub(1) {
            Some(under_way) => self.under_way = under_way,
            // It left and arrived between two looks.
            None => self.waiting -= held.segments,
        }
        self.bytes -= held.bytes.len();
        Some(held.bytes)
    }

    /// When the next frame arrives.
    pub(crate) fn next(&self) -> Option<u64> {
        self.frames.front().map(|held| held.sent.saturating_add(self.delay))
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::HEADER;
    use super::*;
    use std::time::Duration;

    const MS: u64 = 1_000_000;

    fn line(delay_ms: u64, rate: Option<u64>, queue: Option<u32>) -> Slow {
        Slow { delay: Duration::from_millis(delay_ms), rate, loss: 0, queue }
    }

    /// Offers a frame of one packet; was it taken?
    fn offer(queue: &mut Queue, now: u64, bytes: usize, mark: u8) -> bool {
        let before = queue.frames.len();
        let mut frame = vec![0; HEADER + bytes];
        frame[HEADER] = mark;
        queue.offer(now, Frame::parse(&frame).unwrap());
        queue.frames.len() > before
    }

    #[test]
    fn a_frame_arrives_after_its_serialisation_and_the_delay() {
        // 1000 bytes at 8 Mbit/s take 1 ms.
        let mut queue = Queue::new(&line(25, Some(8_000_000), None), 0);
        assert!(offer(&mut queue, 0, 1000, 7) && offer(&mut queue, 0, 1000, 8));
        assert_eq!(queue.next(), Some(26 * MS));
        assert!(queue.due(26 * MS - 1).is_none());
        assert_eq!(queue.due(26 * MS).unwrap()[HEADER], 7);
        assert!(queue.due(26 * MS).is_none());
        assert_eq!(queue.due(27 * MS).unwrap()[HEADER], 8);
        assert_eq!(queue.next(), None);
        assert_eq!((queue.waiting, queue.under_way, queue.bytes), (0, 0, 0));
    }

    #[test]
    fn only_waiting_packets_fill_the_queue() {
        let mut queue = Queue::new(&line(1000, Some(8_000_000), Some(2)), 0);
        assert!(offer(&mut queue, 0, 1000, 0) && offer(&mut queue, 0, 1000, 0));
        assert!(!offer(&mut queue, 0, 1000, 0));
        // The first has left, and is under way for a second.
        assert!(offer(&mut queue, MS, 1000, 0));
        assert!(!offer(&mut queue, MS, 1000, 0));
        for n in 2..1000 {
            assert!(offer(&mut queue, n * MS, 1000, 0));
        }
        assert_eq!(std::iter::from_fn(|| queue.due(u64::MAX)).count(), 1001);
        assert!(offer(&mut queue, 0, 1000, 0));
    }

    #[test]
    fn losses_come_near_what_was_asked() {
        let mut queue = Queue::new(&Slow { loss: 100_000, ..Slow::default() }, 1);
        let lost = (0..100_000)
            .filter(|n| {
                let kept = offer(&mut queue, *n, 60, 0);
                queue.due(*n);
                !kept
            })
            .count();
        assert!((9_500..10_500).contains(&lost), "{lost}");
        let mut all = Queue::new(&Slow { loss: 1_000_000, ..Slow::default() }, 1);
        assert!((0..1000).all(|n| !offer(&mut all, n, 60, 0)));
    }

    #[test]
    fn memory_is_bounded_without_a_rate() {
        let mut queue = Queue::new(&line(10_000, None, Some(u32::MAX)), 0);
        let held = (0..1000).filter(|_| offer(&mut queue, 0, (1 << 20) - HEADER, 0)).count();
        assert_eq!(held, 256);
    }
}
