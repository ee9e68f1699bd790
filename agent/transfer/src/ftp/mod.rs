//! FTP and GridFTP for anybody's client.
//!
//! ```text
//!   one thread, tokio                         bounded pools of threads
//!   ┌────────────────────────────┐  opened   ┌──────────────────────────────────────────┐
//!   │ server: accepts, limits    │  files,   │ pool: a thread for each data connection: │
//!   │ session: commands, replies │ ────────▶ │   sendfile, splice; checksums            │
//!   │   (one task for a client)  │ ◀──────── ├──────────────────────────────────────────┤
//!   └────────────────────────────┘  how it   │ read-ahead: fills the page cache, so that│
//!                                   ended    │   senders do not wait for the disk       │
//!                                            ├──────────────────────────────────────────┤
//!                                            │ tokio's own: open, stat, rename          │
//!                                            └──────────────────────────────────────────┘
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | `server` | accepts, refuses over the limits |
//! | `session` | a client's session: its states are drawn there |
//! | `control` | lines and replies, plain, under TLS or GSI |
//! | `root`, `path` | no way out of the folder that is served |
//! | `arrival` | uploads arrive whole, and can be resumed |
//! | `stream`, `extended`, `listing`, `channel` | data in stream mode, in MODE E, lists |
//! | `guard` | data connections under TLS or GSI |
//! | `identity`, `proxy`, `gridmap` | who a certificate is |
//! | `gsi` | the security of Globus: TLS inside of ADAT |
//!
//! Runs with the rights of the user who started it; who started it as root names another.

mod arrival;
mod ascii;
mod channel;
mod checksum;
mod config;
mod control;
mod extended;
mod flight;
mod gridmap;
mod gsi;
mod guard;
mod identity;
mod listing;
mod path;
mod pool;
mod proxy;
mod root;
mod security;
mod server;
mod session;
mod signature;
mod stream;

pub use config::{Anonymous, Config, Identity};
pub use server::{Bound, ServeError};
