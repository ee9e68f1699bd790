//! Bulk data: between nodes ([`session`], [`mover`]), and for every FTP client ([`ftp`]).
#![forbid(unsafe_code)]

pub mod ftp;
pub mod mover;
pub mod root;
pub mod session;
