//! Typing into a task.

use grid_run::protocol::{ToShim, Typed};
use libgrid::ids::Run;
use tokio::sync::{mpsc, watch};

use super::Progress;

/// The way to a task's standard input.
#[derive(Clone)]
pub(crate) struct Keyboard {
    run: Run,
    shim: mpsc::UnboundedSender<ToShim>,
    typed: watch::Receiver<Typed>,
    progress: watch::Receiver<Progress>,
}

impl Keyboard {
    pub(super) fn new(
        run: Run,
        shim: mpsc::UnboundedSender<ToShim>,
        typed: watch::Receiver<Typed>,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        Self { run, shim, typed, progress }
    }

    /// Types what comes at this position; no bytes are the end.
    pub(crate) fn press(&self, at: u64, bytes: Vec<u8>) {
        // A shim that is gone is told of by its reader.
        let _ = self.shim.send(ToShim::Input { run: self.run, at, bytes });
    }

    /// How far the shim is.
    pub(crate) fn typed(&self) -> watch::Receiver<Typed> {
        self.typed.clone()
    }

    /// Waits until the task has ended.
    pub(crate) async fn ended(&self) {
        // An error means that the run was forgotten, so it has ended, too.
        let _ = self.progress.clone().wait_for(|progress| progress.ended).await;
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let _ = self.shim.send(ToShim::Resize { run: self.run, rows, cols });
    }
}
