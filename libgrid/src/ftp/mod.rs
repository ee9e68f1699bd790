//! FTP and GridFTP as they are written on the wire: parsing and formatting, without any I/O; and a client.
//!
//! Server and client share it. Every byte comes from a stranger: lines have a longest length, numbers are checked,
//! paths are bytes and never text.
//!
//! | module | what it holds | from |
//! | --- | --- | --- |
//! | [`line`] | lines out of a stream, telnet's own bytes taken out | RFC 959, 1123 4.1.2.10 |
//! | [`command`] | commands | RFC 959, 2228, 2389, 2428, 3659, 4217, GFD.20 |
//! | [`reply`] | replies, of one line and of several | RFC 959 4.2 |
//! | [`address`] | host-port forms | RFC 959, 2428, GFD.20 (SPAS) |
//! | [`block`] | headers of MODE E | GFD.20 |
//! | [`marker`] | ranges, restart and performance markers | GFD.20 |
//! | [`facts`] | what MLST and MLSD say of a file | RFC 3659 |
//! | [`list`] | lines of LIST | as `ls -l` |
//! | [`time`] | times as MDTM writes them | RFC 3659 2.3 |
//! | `client` | the client; with the feature `ftp-client` | |
//!
//! ```
//! use libgrid::ftp::command::Command;
//! use libgrid::ftp::reply::Reply;
//!
//! let command = Command::parse(b"RETR /data/run 7.h5").unwrap();
//! assert!(matches!(command, Command::Retr(path) if path == b"/data/run 7.h5"));
//! assert_eq!(Reply::new(226, "done").to_bytes(), b"226 done\r\n");
//! ```

pub mod address;
pub mod block;
#[cfg(feature = "ftp-client")]
pub mod client;
pub mod command;
pub mod facts;
pub mod line;
pub mod list;
pub mod marker;
pub mod reply;
pub mod time;
