//! Links over real sockets on 127.0.0.1.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;
mod members;
mod strangers;
