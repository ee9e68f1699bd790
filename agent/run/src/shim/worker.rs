//! A `gridos-criu` that works for a task: it writes a checkpoint, or a round of its memory, or makes the task from one.

use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use grid_checkpoint::order::{self, Done, Go, Order, Report, Streams, Then};
use libgrid::wire;
use serde::Serialize;

use super::calls::Filter;

pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    incoming: Vec<u8>,
    /// The folder of the checkpoint, or of the round.
    pub(super) folder: PathBuf,
    pub(super) work: Work,
    /// What it holds, as long as it is not told to let go.
    pub(super) held: Option<Done>,
    /// The listener for the calls of what it restores.
    pub(super) listener: Option<OwnedFd>,
    /// What it said at last.
    said: Option<Report>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Dump(Then),
    Restore,
    PreDump,
}

impl Worker {
    /// Starts it, and gives it its order. With a filter, it is installed there, and what it restores inherits it.
    ///
    /// # Errors
    /// One sentence; nothing runs then.
    #[expect(unsafe_code, reason = "a filter is installed between fork and exec")]
    pub(super) fn start(
        program: &Path,
        order: &Order,
        descriptors: &[RawFd],
        filter: Option<Filter>,
    ) -> Result<Self, String> {
        let (folder, work) = match order {
            Order::Dump(dump) => (dump.folder.clone(), Work::Dump(dump.then)),
            Order::Restore(restore) => (restore.folder.clone(), Work::Restore),
            Order::PreDump(round) => (round.folder.clone(), Work::PreDump),
        };
        let wrong = |error: io::Error| format!("cannot start {}: {error}", program.display());
        let (mut command, socket) = order::command(program).map_err(wrong)?;
        let filter = filter.map(std::sync::Arc::new);
        if let Some(filter) = filter.clone() {
            // SAFETY: it makes system calls alone.
            unsafe { command.pre_exec(move || filter.install()) };
        }
        let mut child = command.spawn().map_err(wrong)?;
        // Its end of the socket: only its own copy may be left, or its end is never heard.
        drop(command);
        let ordered = order::send(&socket, order, descriptors).and_then(|()| socket.set_nonblocking(true));
        if let Err(error) = ordered {
            drop(socket);
            let _ = child.wait();
            return Err(wrong(error));
        }
        // Only ours is left.
        let listener = filter.and_then(std::sync::Arc::into_inner).map(Filter::listener).transpose();
        let listener = listener.map_err(wrong)?;
        Ok(Self { child, socket, incoming: Vec::new(), folder, work, held: None, listener, said: None })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// What it says next; `None` when there is nothing yet. The last is always `Done` or `Failed`.
    pub(super) fn hear(&mut self) -> Option<Report> {
        let mut buffer = [0; 4096];
        let ended = loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break true,
                Ok(bytes) => self.incoming.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        match self.take() {
            Some(report @ (Report::Begins | Report::Frozen | Report::Held(_))) => return Some(report),
            Some(last) => self.said = Some(last),
            None => (),
        }
        if !ended {
            return None;
        }
        // It says its last word before it ends: it must be gone when others hear of it.
        let status = self.child.wait();
        let last = self.said.take();
        Some(last.unwrap_or_else(|| {
            Report::Failed(match status {
                Ok(status) => format!("gridos-criu ended early: {status}"),
                Err(error) => format!("gridos-criu cannot be waited for: {error}"),
            })
        }))
    }

    fn take(&mut self) -> Option<Report> {
        let len = wire::frame_len(*self.incoming.first_chunk::<4>()?).ok()?;
        let report = wire::decode(self.incoming.get(4..4 + len)?);
        self.incoming.drain(..4 + len);
        report.ok()
    }

    /// Lets a dump go on.
    pub(super) fn go(&mut self, streams: &Result<Streams, String>) {
        self.say(streams);
    }

    /// Lets it look at the task, or make its connections.
    pub(super) fn begin(&mut self, isolated: Result<(), String>) {
        self.say(&isolated.map(|()| Go));
    }

    /// The checkpoint that it waits for is there.
    pub(super) fn arrived(&mut self) {
        self.say(&Go);
    }

    /// Lets a task go that it holds.
    pub(super) fn let_go(&mut self) {
        if self.held.take().is_some() {
            self.say(&Go);
        }
    }

    fn say(&mut self, message: &impl Serialize) {
        let said = self.socket.set_nonblocking(false).and_then(|()| {
            // It reads at once: this waits for nobody. If it is gone, its end tells.
            let frame = wire::frame(message).map_err(io::Error::other)?;
            self.socket.write_all(&frame)?;
            self.socket.set_nonblocking(true)
        });
        if said.is_err() {
            // Unanswered, it would wait with the task stopped.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}
