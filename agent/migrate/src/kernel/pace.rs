//! Who runs when, while a task stands still.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

/// Where the kernel is told what its processors may take to wake up.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// While this is held, but no longer than it says, no processor of this machine sleeps (the kernel's
/// `Documentation/power/pm_qos_interface.rst`).
///
/// A dump and a restore are thousands of handovers between two processes, and each wakes a processor that had just gone to
/// sleep: in a virtual machine, that is most of the time of them.
#[derive(Debug)]
pub(crate) struct Awake {
    _end: Sender<()>,
}

impl Awake {
    /// # Errors
    /// Where the kernel has no such device; that costs nothing but time.
    pub(crate) fn hold(limit: Duration) -> io::Result<Self> {
        let mut device: File = OpenOptions::new().write(true).open(LATENCY)?;
        // Microseconds.
        device.write_all(&0_i32.to_ne_bytes())?;
        let (end, ended) = channel();
        std::thread::Builder::new().name("awake".into()).spawn(move || {
            let over: Result<(), RecvTimeoutError> = ended.recv_timeout(limit);
            // The end of the wait is all there is to know.
            drop((over, device));
        })?;
        Ok(Self { _end: end })
    }
}

/// Does something beside what is more urgent: behind everybody else for so long, and as anybody then. On a machine that has
/// other work for all its processors, it would come to nothing behind them.
pub(crate) fn behind<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let (end, ended) = channel::<()>();
    let (tell, told) = channel();
    let worker = std::thread::Builder::new().name("behind".into()).spawn_scoped(scope, move || {
        let _end = end;
        let _ = tell.send(nix::unistd::gettid());
        // Where it may not, it is as anybody from the start.
        let _ = schedule(0, libc::SCHED_IDLE);
        work()
    })?;
    scope.spawn(move || {
        if let (Ok(thread), Err(RecvTimeoutError::Timeout)) = (told.recv(), ended.recv_timeout(patience)) {
            let _ = schedule(thread.as_raw(), libc::SCHED_OTHER);
        }
    });
    Ok(worker)
}

/// Gives a thread a class of sched(7) without priorities; 0 is the one that calls.
fn schedule(thread: i32, class: i32) -> io::Result<()> {
    // SAFETY: zeros are a valid structure, which the kernel reads.
    let none: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the pointer is to a local.
    match unsafe { libc::sched_setscheduler(thread, class, &raw const none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> i32 {
        // SAFETY: asks for the class of this thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn work_is_behind_all_others_only_as_long_as_it_may_be() {
        let (first, then) = std::thread::scope(|scope| {
            let work = || {
                let first = class();
                while class() == libc::SCHED_IDLE {
                    std::thread::sleep(Duration::from_millis(1));
                }
                (first, class())
            };
            behind(scope, Duration::from_millis(20), work).unwrap().join().unwrap()
        });
        assert_eq!((first, then), (libc::SCHED_IDLE, libc::SCHED_OTHER));
        assert_eq!(class(), libc::SCHED_OTHER);
    }
}
