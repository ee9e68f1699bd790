//! Grids in virtual time. The same seed gives the same run.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod grids;
mod hostile;
mod sim;
