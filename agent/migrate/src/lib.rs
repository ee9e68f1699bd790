//! Live migration: the memory of running, unmodified processes, moved by stock CRIU and this crate together.
//!
//! ```text
//!        source                                                  destination
//!  ┌─────────────────┐   page stream ([`pages`])             ┌──────────────────┐
//!  │ [`track`]       │ ────────────────────────────────────▶ │ [`store`]        │
//!  │  rounds, freeze │                                       │   │              │
//!  └───────┬─────────┘                                       │   ▼              │
//!   processes, frozen by                                     │ [`lazy`]         │
//!   `criu dump` ([`held`])   ── images, without memory ──▶   │   ▲ lazy-pages.socket
//!                                                            │ `criu restore --lazy-pages`
//!                                                            └──────────────────┘
//! ```
//!
//! 1. [`Tracker::attach`], and rounds while they shrink: the program runs.
//! 2. `criu dump` freezes it, and writes everything but its memory, either because it is to be restored later ([`held`]) or
//!    because it is hidden ([`hide`], much faster). [`Tracker::list`] looks for what was written last, and
//!    [`Tracker::send_rest`] sends it beside the dump.
//! 3. `criu restore --lazy-pages` makes the processes at the destination, and [`lazy::serve`] gives them their memory: what
//!    they ask for first, the rest behind their back.
//! 4. When they run and [`PageStore::wait_complete`] says that nothing is missing, the source is ended ([`held::commit`], [`hide::end`]). Up to then,
//!    it can be let go again at any time.
//!
//! Files on a disk travel along, in rounds of their own (`files.rs`).
//!
//! Whatever is given up leaves the processes at the source as they were.

mod files;
pub mod held;
pub mod hide;
mod kernel;
pub mod lazy;
pub mod order;
pub mod pages;
pub mod program;
pub mod ram;
pub mod store;
pub mod track;

pub use pages::PageSink;
pub use store::PageStore;
pub use track::Tracker;
