//! The network of tasks on this machine's kernel: three nodes in namespaces of their own, and the real CRIU.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod criu;
mod grid;
mod links;
mod moves;
mod program;
mod stream;

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says why a test cannot run here: a line of its own, past the test harness, which would swallow it.
fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stdout(), "\nSKIPPED: {test}: {why}");
}

/// A number to read, and not to judge.
fn figure(what: &str, value: Duration) {
    let _ = writeln!(io::stdout(), "\nFIGURE: {what}: {:.2} ms", value.as_secs_f64() * 1e3);
}

/// Waits until `condition` holds.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
