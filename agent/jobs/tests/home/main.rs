//! One home, event by event.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod addresses;
mod bench;
mod leases;
mod order;
