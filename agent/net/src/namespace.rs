//! Network namespaces: making one, and doing something in one.
//!
//! Both happen on a thread of their own, so that the caller's namespace is never another one, not even for a moment.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::netlink::Netlink;

/// A new namespace: what holds it, and the conversation about it.
pub(crate) struct Fresh {
    pub(crate) namespace: OwnedFd,
    pub(crate) netlink: Netlink,
}

/// Makes an empty namespace. It lasts as long as a descriptor or a process holds it.
pub(crate) fn make() -> io::Result<Fresh> {
    aside(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?.into();
        Ok(Fresh { namespace, netlink: Netlink::open()? })
    })
}

/// Runs `act` in a namespace; sockets that it makes stay there.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    aside(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    })
}

fn aside<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grid-net".into()).spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
