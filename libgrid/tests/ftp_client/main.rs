//! The client against the servers that Debian packages, and against some that mean harm. Needs root, as the servers
//! change their user.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod authority;
mod files;
mod hostile;
mod interruptions;
mod large;
mod material;
mod proxy;
mod server;
mod third_party;
mod tls;

use std::io::Write;

/// Whether the servers can be started; says why not, past the test harness.
fn ready(test: &str, kinds: &[server::Kind]) -> bool {
    let Some(why) = server::obstacle(kinds) else { return true };
    let _ = writeln!(std::io::stdout(), "\nSKIPPED: {test}: {why}");
    false
}
