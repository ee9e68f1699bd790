//! The adaptive interval in virtual time: what a long job loses, against fixed intervals and the true optimum.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use grid_checkpoint::interval::{Failures, Interval, Policy, optimum};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const MONTH: f64 = 30.0 * 24.0 * HOUR;

/// What is expected of a node of which nothing is known.
const EXPECTED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Failures of one run on the mean: enough that chance decides nothing.
const FAILURES: f64 = 2000.0;

/// How the next interval is chosen.
enum Chooser {
    Fixed(f64),
    Adaptive(Interval, Failures),
}

impl Chooser {
    fn interval(&self) -> f64 {
        match self {
            Chooser::Fixed(interval) => *interval,
            Chooser::Adaptive(interval, _) => interval.next().as_secs_f64(),
        }
    }

    fn lived(&mut self, time: f64) {
        if let Chooser::Adaptive(_, failures) = self {
            failures.lived(Duration::from_secs_f64(time));
        }
    }

    fn failed(&mut self) {
        if let Chooser::Adaptive(interval, failures) = self {
            failures.failed();
            interval.interrupted(failures);
        }
    }

    fn measured(&mut self, cost: f64) {
        if let Chooser::Adaptive(interval, failures) = self {
            interval.measured(Duration::from_secs_f64(cost), failures);
        }
    }
}

/// The time that a job loses, as a share of its work. Checkpoints cost `cost` on the mean, from half to one and a half; a
/// restart costs as much.
fn lost(mut chooser: Chooser, cost: f64, between: f64, seed: u64) -> f64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let failure = |random: &mut SmallRng| -between * (1.0 - random.random::<f64>()).ln();
    let work = FAILURES * between;
    let (mut done, mut time) = (0.0, 0.0);
    let mut next = failure(&mut random);
    while done < work {
        let price = cost * random.random_range(0.5..1.5);
        let interval = chooser.interval().min(work - done);
        if time + interval + price <= next {
            time += interval + price;
            done += interval;
            chooser.lived(interval + price);
            chooser.measured(price);
        } else {
            chooser.lived(next - time);
            chooser.failed();
            time = next + price;
            // The next failure is counted from the end of the restart, which therefore always succeeds.
            next = time + failure(&mut random);
        }
    }
    (time - work) / work
}

fn adaptive(cost: f64) -> Chooser {
    let failures = Failures::new(EXPECTED);
    // The first guess of the cost is wrong by a factor of five.
    let guess = Duration::from_secs_f64(cost * 5.0);
    Chooser::Adaptive(Interval::new(Policy::default(), guess, &failures).unwrap(), failures)
}

#[test]
fn a_job_loses_hardly_more_than_with_the_true_optimum() {
    let mut worst: f64 = 0.0;
    let mut sums = [0.0; 4];
    for between in [HOUR, 6.0 * HOUR, 24.0 * HOUR, 7.0 * 24.0 * HOUR, MONTH] {
        for cost in [0.1, 1.0, 10.0, 100.0] {
            let seed = (between * cost) as u64;
            let best = optimum(Duration::from_secs_f64(cost), Duration::from_secs_f64(between)).as_secs_f64();
            let run = |chooser| lost(chooser, cost, between, seed);
            let losses = [
                run(adaptive(cost)),
                run(Chooser::Fixed(best)),
                run(Chooser::Fixed(5.0 * MINUTE)),
                run(Chooser::Fixed(HOUR)),
            ];
            let percent = losses.map(|loss| loss * 100.0);
            println!(
                "a failure every {:>5.0} h, {cost:>5} s: adaptive {:.3} %, optimum {:.3} %, 5 min {:.3} %, 1 h {:.3} %",
                between / HOUR,
                percent[0],
                percent[1],
                percent[2],
                percent[3]
            );
            worst = worst.max(losses[0] / losses[1]);
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum += loss;
            }
            assert!(losses[0] < 1.1 * losses[1], "{:?}", percent);
            for fixed in &losses[2..] {
                assert!(losses[0] < 1.1 * fixed, "{percent:?}");
            }
        }
    }
    println!("at worst {worst:.3} times the loss of the optimum; sums {sums:?}");
    assert!(sums[2] > 1.5 * sums[0] && sums[3] > 1.5 * sums[0], "{sums:?}");
}

#[test]
fn it_follows_when_the_cost_changes() {
    let mut failures = Failures::new(EXPECTED);
    failures.lived(EXPECTED * 9);
    let mut interval = Interval::new(Policy::default(), Duration::from_secs(1), &failures).unwrap();
    let before = interval.next();
    for _ in 0..2 {
        interval.measured(Duration::from_secs(100), &failures);
    }
    let ratio = interval.next().as_secs_f64() / before.as_secs_f64();
    assert!((9.5..10.5).contains(&ratio), "the square root of a hundred: {ratio}");
}
