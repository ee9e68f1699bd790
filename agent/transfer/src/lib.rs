//! Bulk data: between nodes ([`session`]), and for every FTP client.
#![forbid(unsafe_code)]

pub mod root;
pub mod session;
