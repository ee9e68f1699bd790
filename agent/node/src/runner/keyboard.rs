//! Typing into a task.

use std::sync::Arc;

use grid_run::protocol::ToShim;
use libgrid::ids::Run;
use tokio::sync::{Semaphore, mpsc, watch};

use super::Progress;

/// How much typed input may be on its way to a task.
pub(super) const TYPED: usize = 256 << 10;

/// The way to a task's standard input.
#[derive(Clone)]
pub(crate) struct Keyboard {
    run: Run,
    shim: mpsc::UnboundedSender<ToShim>,
    /// Bytes that may be sent before the task has taken earlier ones; closed when it takes no more.
    room: Arc<Semaphore>,
    progress: watch::Receiver<Progress>,
}

impl Keyboard {
    pub(super) fn new(
        run: Run,
        shim: mpsc::UnboundedSender<ToShim>,
        room: Arc<Semaphore>,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        Self { run, shim, room, progress }
    }

    /// Types; waits while the task has not taken what was typed before. False when it takes no more.
    pub(crate) async fn press(&self, bytes: Vec<u8>) -> bool {
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(TYPED as u32);
        match self.room.acquire_many(count).await {
            Ok(permit) => {
                permit.forget();
                self.shim.send(ToShim::Input { run: self.run, bytes }).is_ok()
            }
            Err(_) => false,
        }
    }

    /// Waits until the task has ended.
    pub(crate) async fn closed(&self) {
        // An error means that the run was forgotten, so it has ended, too.
        let _ = self.progress.clone().wait_for(|progress| progress.ended).await;
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let _ = self.shim.send(ToShim::Resize { run: self.run, rows, cols });
    }
}
