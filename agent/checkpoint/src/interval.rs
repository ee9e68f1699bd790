//! How long to wait until the next checkpoint: adaptive, from what checkpoints cost and how often the node fails. It reads
//! no clock and does no I/O.
//!
//! # From what the interval follows
//! A checkpoint that costs `C` after every `τ` of work takes `C/τ` of the time. A failure, one every `M` on the mean, loses
//! half an interval on the mean, and takes `τ/2M`. The sum is least where its derivative is zero:
//!
//! ```text
//!   loss(τ) = C/τ + τ/2M        0 = -C/τ² + 1/2M        τ = √(2CM)                                     (Young, 1974)
//! ```
//!
//! That neglects failures during checkpoints and more than one in an interval. With these, for `C < 2M` and exponential
//! failures (Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", 2006, equation 37):
//!
//! ```text
//!   τ = √(2CM) · (1 + ⅓·√(C/2M) + ⅑·C/2M) − C            and τ = M for C ≥ 2M                           (Daly, 2006)
//! ```
//!
//! # The weighted formula
//! The paper sets `Int = W·Int₋₁ + (1−W)·Int₋₂`. If those are its own earlier intervals, it cannot adapt: every interval lies
//! between the two before it, and the sequence converges to `(Int₋₁ + (1−W)·Int₋₂) / (2−W)`, whatever is measured. So the two
//! that enter are the **measured optima** of the last two periods: Daly's `τ` from the cost of the checkpoint that ended the
//! period, and from the failures seen by then. Then:
//!
//! - where nothing changes, `Int` is the optimum;
//! - noise of a variance `σ²` in single optima becomes `(W² + (1−W)²)·σ²`: half of it at `W = ½`, all of it at 0 and 1;
//! - after a step, half (`W`) of the way is gone at once and the rest one period later; nothing older is remembered.
//!
//! A period ends with a checkpoint or with a failure. One that a failure ended has an optimum, too, of the last cost that was
//! measured: without it, an interval that is far longer than the time between failures would never end, and nothing be
//! learnt.
//!
//! `loss` is flat at its minimum: an interval that is wrong by a factor `f` costs `(f + 1/f)/2` of the least. A factor of
//! 1.5 costs 8 %. So two periods are memory enough, and the failure rate, of which little is ever seen, matters more: it is
//! kept with a prior ([`Failures`]).

use std::time::Duration;

/// What a site sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// `W`: how much the last period counts against the one before it, from 0 to 1.
    pub weight: f64,
    /// No interval is shorter.
    pub shortest: Duration,
    /// No interval is longer.
    pub longest: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { weight: 0.5, shortest: Duration::from_secs(10), longest: Duration::from_secs(12 * 3600) }
    }
}

/// A policy that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is no share.
    #[error("the weight must be a number from 0 to 1")]
    Weight,
    /// Nothing lies between them.
    #[error("the shortest interval must be longer than zero, and not longer than the longest")]
    Bounds,
}

/// The interval of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    policy: Policy,
    /// The optimum of the last period.
    last: Duration,
    /// And of the one before it.
    before: Duration,
    /// Of the last checkpoint.
    cost: Duration,
}

impl Interval {
    /// For a task of which nothing is measured yet: `cost` is what a checkpoint is expected to take.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn new(policy: Policy, cost: Duration, failures: &Failures) -> Result<Self, PolicyError> {
        if !(0.0..=1.0).contains(&policy.weight) {
            return Err(PolicyError::Weight);
        }
        if policy.shortest.is_zero() || policy.shortest > policy.longest {
            return Err(PolicyError::Bounds);
        }
        let optimum = optimum(cost, failures.mean_time_between());
        Ok(Self { policy, last: optimum, before: optimum, cost })
    }

    /// A period has ended with a checkpoint that cost the task so much.
    pub fn measured(&mut self, cost: Duration, failures: &Failures) {
        self.cost = cost;
        self.interrupted(failures);
    }

    /// A period has ended with a failure.
    pub fn interrupted(&mut self, failures: &Failures) {
        self.before = self.last;
        self.last = optimum(self.cost, failures.mean_time_between());
    }

    /// How long the task works until its next checkpoint.
    pub fn next(&self) -> Duration {
        let weight = self.policy.weight;
        let mixed = weight * self.last.as_secs_f64() + (1.0 - weight) * self.before.as_secs_f64();
        Duration::from_secs_f64(mixed).clamp(self.policy.shortest, self.policy.longest)
    }
}

/// Daly's optimum for checkpoints of this cost, with failures so far apart on the mean.
pub fn optimum(cost: Duration, between: Duration) -> Duration {
    let (cost, between) = (cost.as_secs_f64(), between.as_secs_f64());
    if cost >= 2.0 * between {
        return Duration::from_secs_f64(between);
    }
    let part = cost / (2.0 * between);
    let young = (2.0 * cost * between).sqrt();
    Duration::from_secs_f64((young * (1.0 + part.sqrt() / 3.0 + part / 9.0) - cost).max(0.0))
}

/// How often a node fails, as seen so far.
///
/// Most nodes were never seen to fail, and "never" is no rate. So the estimate begins with one failure in a time that is
/// expected, and that counts as if it had been seen (a Gamma prior of weight one; the mean of its posterior is the rate):
///
/// ```text
///   M = (expected + lived) / (1 + failures)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    seen: u32,
    /// The expected time included.
    lived: Duration,
}

impl Failures {
    /// Of a node of which nothing is known but what is expected of its kind.
    pub fn new(expected: Duration) -> Self {
        Self { seen: 0, lived: expected }
    }

    /// The node was up for so much longer.
    pub fn lived(&mut self, time: Duration) {
        self.lived = self.lived.saturating_add(time);
    }

    /// It failed.
    pub fn failed(&mut self) {
        self.seen = self.seen.saturating_add(1);
    }

    /// The mean time between two failures.
    pub fn mean_time_between(&self) -> Duration {
        self.lived / self.seen.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// The time that is lost with this interval, as a share, by the exact formula for exponential failures; a restart costs
    /// as much as a checkpoint.
    fn loss(interval: f64, cost: f64, between: f64) -> f64 {
        between * (cost / between).exp() * (((interval + cost) / between).exp() - 1.0) / interval - 1.0
    }

    #[test]
    fn the_optimum_is_where_the_exact_loss_is_least() {
        for cost in [0.1, 1.0, 10.0, 100.0] {
            for between in [HOUR, MONTH] {
                let best = optimum(seconds(cost), between).as_secs_f64();
                let between = between.as_secs_f64();
                let least = loss(best, cost, between);
                for factor in [0.7, 0.9, 1.1, 1.4] {
                    assert!(
                        loss(best * factor, cost, between) >= least * 0.9999,
                        "{cost} {between} {factor}"
                    );
                }
            }
        }
        assert_eq!(optimum(HOUR * 3, HOUR), HOUR);
        assert_eq!(optimum(Duration::ZERO, HOUR), Duration::ZERO);
    }

    #[test]
    fn the_last_two_measured_optima_are_mixed_by_the_weight() {
        let failures = Failures::new(HOUR);
        let policy = Policy { weight: 0.75, ..Policy::default() };
        let mut interval = Interval::new(policy, seconds(2.0), &failures).unwrap();
        let first = optimum(seconds(2.0), HOUR);
        assert_eq!(interval.next(), first);
        interval.measured(seconds(8.0), &failures);
        let second = optimum(seconds(8.0), HOUR);
        let mixed = 0.75 * second.as_secs_f64() + 0.25 * first.as_secs_f64();
        assert!((interval.next().as_secs_f64() - mixed).abs() < 1e-6);
        interval.measured(seconds(8.0), &failures);
        assert_eq!(interval.next(), second, "the step is over after two periods");
    }

    #[test]
    fn the_bounds_hold_and_senseless_ones_are_refused() {
        let failures = Failures::new(HOUR);
        let policy = Policy { shortest: seconds(60.0), longest: seconds(120.0), ..Policy::default() };
        let of = |cost| Interval::new(policy, seconds(cost), &failures).unwrap().next();
        assert_eq!((of(0.0), of(1000.0)), (seconds(60.0), seconds(120.0)));
        for weight in [-0.1, 1.1, f64::NAN] {
            let wrong = Interval::new(Policy { weight, ..policy }, HOUR, &failures);
            assert_eq!(wrong, Err(PolicyError::Weight));
        }
        for (shortest, longest) in [(Duration::ZERO, HOUR), (HOUR, seconds(1.0))] {
            let wrong = Interval::new(Policy { shortest, longest, ..policy }, HOUR, &failures);
            assert_eq!(wrong, Err(PolicyError::Bounds));
        }
    }

    #[test]
    fn failures_shorten_an_interval_that_never_ends() {
        let mut failures = Failures::new(MONTH);
        let mut interval = Interval::new(Policy::default(), seconds(500.0), &failures).unwrap();
        let first = interval.next();
        for _ in 0..20 {
            failures.lived(HOUR);
            failures.failed();
            interval.interrupted(&failures);
        }
        assert!(interval.next() < first / 3, "{first:?} {:?}", interval.next());
    }

    #[test]
    fn a_node_that_never_failed_is_trusted_more_with_time() {
        let mut failures = Failures::new(HOUR);
        assert_eq!(failures.mean_time_between(), HOUR);
        failures.lived(9 * HOUR);
        assert_eq!(failures.mean_time_between(), 10 * HOUR);
        failures.failed();
        assert_eq!(failures.mean_time_between(), 5 * HOUR);
    }
}
