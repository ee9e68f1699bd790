//! Whether there can be a lab here, and how a test says that it was skipped.

use std::io::Write;
use std::process::Command;

/// Why there can be no lab on this machine; `None` when there can.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("a lab needs root: run the tests with sudo".to_owned());
    }
    let mut command = Command::new("unshare");
    let output = match command.args(["--net", "--mount", "--pid", "--fork", "true"]).output() {
        Ok(output) => output,
        Err(error) => return Some(format!("cannot run unshare: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("this machine allows no namespaces: {}", said.trim()))
}

/// Says why a test cannot run here: a line of its own, past the test harness, which would swallow it.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stdout(), "\nSKIPPED: {test}: {why}");
}
