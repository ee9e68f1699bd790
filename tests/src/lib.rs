//! The harness of the end-to-end suites: real agents in a lab, driven by the real `gridctl`.
//!
//! ```text
//!   tests/grid.rs ─┐
//!   tests/loss.rs ─┼─▶ Grid ──▶ grid_lab::Lab ──▶ gridosd, gridos-shim, tasks
//!   …              ┘    │ control sockets, gridctl          │ append lines
//!                       └──────────────▶ Witness ◀──────────┘
//! ```
//!
//! - [`Grid`] is a lab whose nodes are in one VO; it goes down with its value, also in a panic.
//! - [`Run`] is what a program did; [`Grid::gridctl`] runs `gridctl` on a node as any user.
//! - [`Witness`] is what the tasks themselves say of when they ran: who runs twice is seen here, whatever the
//!   agents believe.
//! - [`until`] waits for a condition; nothing else in the suites waits.
//!
//! A suite that cannot run here says so with [`skipped`]; nothing passes by returning early in silence.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]
#![expect(clippy::missing_panics_doc, reason = "failing a test is what these functions are for")]

mod disk;
mod grid;
mod machine;
mod machines;
pub mod module;
mod obstacle;
mod programs;
mod run;
mod terminal;
mod traces;
pub mod trial;
mod until;
mod witness;

pub use disk::SmallDisk;
pub use grid::{Grid, GridConfig, Shared};
pub use machine::{Console, Machine, fetched};
pub use machines::Machines;
pub use obstacle::{obstacle, skipped};
pub use programs::{probed, program};
pub use run::{NOBODY, Run, Running};
pub use terminal::Terminal;
pub use traces::Traces;
pub use until::{PATIENCE, until, until_some, until_within};
pub use witness::{Line, Witness};

/// Runs the body of a test with the value that `make` makes, unless there can be no lab here.
///
/// ```no_run
/// grid_tests::with("name of the test", || grid_tests::Grid::up("name", 3), |grid| {
///     assert_eq!(grid.nodes(), 3);
/// });
/// ```
pub fn with<G>(test: &str, make: impl FnOnce() -> G, body: impl FnOnce(&G)) {
    match obstacle() {
        Some(why) => skipped(test, &why),
        None => body(&make()),
    }
}
