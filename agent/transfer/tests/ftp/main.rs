//! The FTP server as a program, with other people's clients and with hostile ones. All on loopback.
//!
//! As root the server becomes `nobody`; without root it serves as whoever runs the tests. The clients come from Debian:
//! `setup/install test`. A client that is not installed skips its test.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod clients;
mod globus;
mod gsi;
mod hostile;
mod memory;
mod protocol;
mod resume;
mod support;
mod tls;
