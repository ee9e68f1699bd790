//! Bulk data: between nodes ([`session`], [`mover`]), and for every FTP client.
#![forbid(unsafe_code)]

pub mod mover;
pub mod root;
pub mod session;
