//! A slow line in user space, for kernels without netem.
//!
//! The machine's cable is unplugged from the lab's bridge and plugged into a little bridge with a TAP; this
//! process carries frames between that TAP and another one on the lab's bridge. The machine itself keeps its
//! device, MAC and IP address, so its connections live on when the line becomes slow and when it heals.
//!
//! ```text
//! eth0 ═ veth ═ gridlab7p2 ─ gridlab7b2 ─ gridlab7n2 │ this process │ gridlab7f2 ─ gridlab7
//!   machine                 (little bridge)  near TAP                  far TAP     (bridge)
//! ```

mod frame;
mod queue;
mod tap;

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use crate::detach::{self, Role};
use crate::document::{self, LabDoc};
use crate::error::{Doing, LabError};
use crate::slow::Slow;
use crate::tool::Tool;
use crate::wire::Wire;

use frame::Frame;
use queue::Queue;
use tap::Tap;

/// Frames that are read from one side before the other gets its turn.
const BATCH: usize = 64;

/// Longer than any frame, with all its headers.
const MAX_FRAME: usize = 66_000;

/// From this rate on, frames of many segments are carried whole. Each arrives when its last segment does: up
/// to 64 KiB late, 1 ms at this rate. Below, single packets are cheap enough, and exact.
const FAST: u64 = 500_000_000;

/// What `gridos-lab link ROOT INDEX LOCK_FD` does: starts the relay of a machine and returns when it runs.
pub fn link(root: &Path, index: u32, lock_fd: RawFd) -> Result<(), LabError> {
    let doc: LabDoc =
        document::read(&root.join(document::LAB))?.ok_or_else(|| LabError::NotFound(root.into()))?;
    let dir = doc.machine_dir(root, index);
    let wire: Wire = document::read(&dir.join(document::WIRE))?.unwrap_or_default();
    let line = wire.slow.unwrap_or_default();
    let (near, far) = doc.slot.taps(index);
    detach::close_inherited(lock_fd);
    match detach::fork(lock_fd, &dir.join("link.log"))? {
        Role::Parent(mut child) => child.supervise(format!("the slow line of node{index}"), |child| {
            document::write(&dir.join(document::LINK), &child.process)?;
            child.tell("recorded")?;
            child.expect("taps")?;
            let (bridge, little) = (doc.slot.bridge(), doc.slot.slow_bridge(index));
            Tool::ip_batch(&[
                // The relay empties the device at once; only while it is not scheduled do frames wait there.
                format!("link set dev {near} txqueuelen 5000"),
                format!("link set dev {far} txqueuelen 5000"),
                format!("link add name {little} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
                format!("link set dev {near} master {little} up"),
                format!("link set dev {far} master {bridge} up"),
                format!("link set dev {little} up"),
            ])
            .run(&child.lock)?;
            child.tell("wired")?;
            child.expect("running")
        }),
        Role::Child(mut parent) => {
            let outcome = (|| {
                parent.expect("recorded")?;
                let fast = line.rate.is_none_or(|rate| rate >= FAST);
                let taps = (Tap::create(&near, fast)?, Tap::create(&far, fast)?);
                parent.tell("taps")?;
                parent.expect("wired")?;
                prepare();
                parent.tell("running")?;
                Ok(taps)
            })();
            match outcome {
                Ok((near, far)) => {
                    drop(parent);
                    relay(&near, &far, &line).doing("relay frames of", format!("node{index}"))
                }
                Err(error) => {
                    parent.fail(&error);
                    Err(error)
                }
            }
        }
    }
}

/// Timers to the nanosecond instead of 50 µs, and a place before ordinary processes where that is allowed.
fn prepare() {
    // SAFETY: neither call touches memory of ours. Without them the line is a little less exact.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        libc::setpriority(libc::PRIO_PROCESS, 0, -10);
    }
}

/// Carries frames until a device goes away.
fn relay(near: &Tap, far: &Tap, line: &Slow) -> io::Result<()> {
    let seed = now() ^ u64::from(std::process::id());
    let mut directions = [(near, far, Queue::new(line, seed)), (far, near, Queue::new(line, !seed))];
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let mut more = false;
        for (from, to, queue) in &mut directions {
            let arrived = now();
            let mut count = 0;
            while count < BATCH
                && let Some(length) = from.receive(&mut buffer)?
            {
                if let Some(frame) = Frame::parse(&buffer[..length]) {
                    queue.offer(arrived, frame);
                }
                count += 1;
            }
            more |= count == BATCH;
            let now = now();
            while let Some(frame) = queue.due(now) {
                to.send(&frame);
            }
        }
        if !more {
            let next = directions.iter().filter_map(|(_, _, queue)| queue.next()).min();
            wait([near.fd(), far.fd()], next)?;
        }
    }
}

/// Waits for a frame on either device, or until `next`.
fn wait(devices: [RawFd; 2], next: Option<u64>) -> io::Result<()> {
    let mut polls = devices.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let left = next.map(|at| {
        let nanos = at.saturating_sub(now());
        // A queue looks ahead a few hours at most, and the rest is below 10⁹: both fit.
        libc::timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 }
    });
    let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: two valid pollfds, a timespec that is null or lives over the call, and no signal mask.
    match unsafe { libc::ppoll(polls.as_mut_ptr(), 2, timeout, std::ptr::null()) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// The monotonic clock in nanoseconds.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives over it; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
