//! What is in the files that stand in for `/proc/gridos` ([`grid_kernel::tree`]): the same as the kernel module has there.

use std::io;
use std::sync::{Arc, Weak};

use grid_kernel::tree::{Answers, Opener, Reply, Tree};
use libgrid::sys::abi::Op;
use nix::errno::Errno;
use tokio::runtime::Handle;

use crate::control::operations::{Asked, answer};
use crate::device::closed;
use crate::grid::Grid;

const FILES: &[&str] = &["version", "self", "nodes", "jobs", "gpids", "io", "pipes"];

/// Mounts them.
pub(crate) fn mount(grid: &Arc<Grid>) -> io::Result<Tree> {
    let answers = OfGrid { grid: Arc::downgrade(grid), runtime: Handle::current() };
    Tree::mount(&grid.config.runtime_dir.join("proc"), FILES, answers)
}

struct OfGrid {
    /// The grid has the tree.
    grid: Weak<Grid>,
    runtime: Handle,
}

impl Answers for OfGrid {
    fn read(&self, file: &'static str, who: Opener, reply: Reply) {
        // Each has the name of the command that tells the same.
        self.answer(file.into(), who, reply);
    }

    fn command(&self, line: Vec<u8>, who: Opener, reply: Reply) {
        self.answer(line, who, reply);
    }
}

impl OfGrid {
    fn answer(&self, line: Vec<u8>, who: Opener, reply: Reply) {
        let Some(grid) = self.grid.upgrade() else {
            return reply(Err((Errno::EAGAIN as i32, Vec::new())));
        };
        self.runtime.spawn(async move {
            let Opener { pid, uid, gid } = who;
            let question = Asked { uid, gid, pid, op: Op::COMMAND, input: line, again: false };
            let (errno, output, then) = answer(&grid, question).await;
            reply(if errno == 0 { Ok(output) } else { Err((errno, output)) });
            if let Some(then) = then {
                closed(pid).await;
                then.await;
            }
        });
    }
}
