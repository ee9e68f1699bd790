//! Connections within a task, which never leave its namespace.
//!
//! They have nothing to do with the task's link, but with `lo`. While CRIU makes one end of such a connection, the other may
//! not exist yet; what the first one sends would be answered by a reset, and the restore fails. Usually CRIU's lock of the
//! network prevents that; here it is told to set none.
//!
//! `lo` cannot be closed from the beginning: CRIU tries out, when it starts, what the kernel can do, with a connection on
//! `lo`, and waits two minutes for it. So it is closed when CRIU has done that, and says that it begins.

use std::io;
use std::os::fd::BorrowedFd;

use crate::namespace;
use crate::netlink::{Netlink, Refused};

/// The number of `lo`, in every namespace.
pub(crate) const LO: u32 = 1;

/// What is sent on the task's `lo` still arrives.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace of a task: {0}")]
    Namespace(#[source] io::Error),
    /// The kernel refused; one that was built without traffic control (`CONFIG_NET_SCHED`) does.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Drops all that processes of this namespace send to each other, until [`open`](crate::NodeNet::open).
///
/// To be called at CRIU's stage `pre-restore` (its hook, or its action script), and, to be strict, at `pre-dump`: what the
/// kernel sends again by itself between two frozen processes must not arrive after one of them has been looked at.
///
/// # Errors
/// [`IsolateError`].
pub fn isolate(namespace: BorrowedFd<'_>) -> Result<(), IsolateError> {
    let own = namespace::inside(namespace, Netlink::open).map_err(IsolateError::Namespace)?;
    Ok(own.discard(LO).map_err(Refused::because("close", "lo"))?)
}
