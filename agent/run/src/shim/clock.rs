//! What a shim does at a certain time: time limits, the lease of the node, networks that are made known again, and calls
//! whose time is over. One timer serves all.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
use nix::time::clock_gettime;

use super::calls::Calls;
use super::task::Task;
use super::{Shim, network};
use crate::protocol::How;

/// How long a task has between SIGTERM and SIGKILL when its time is over.
const TIME_LIMIT_GRACE: Duration = Duration::from_secs(5);

/// What happens to a task at a certain time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    TimeLimit(u32),
    Kill(u32),
    LeaseEnds,
    Announce(u32),
    Calls(u32),
}

impl Shim {
    pub(super) fn renew(&mut self, until: Option<u64>) {
        if let Some(old) = self.lease.take() {
            self.due.remove(&(old, Due::LeaseEnds));
        }
        self.lease = until;
        match until {
            Some(until) if until <= now() => self.freeze(true),
            Some(until) => {
                self.freeze(false);
                self.schedule(until, Due::LeaseEnds);
            }
            None => self.freeze(false),
        }
    }

    pub(super) fn freeze(&mut self, frozen: bool) {
        if self.frozen != frozen {
            self.frozen = frozen;
            if frozen {
                // What waits for an answer cannot be frozen.
                self.tasks.values_mut().filter_map(|task| task.calls.as_mut()).for_each(Calls::interrupt);
            }
            self.tasks.values().for_each(|task| task.freeze(frozen));
            let slots: Vec<u32> = self.tasks.keys().copied().collect();
            for slot in slots {
                self.close_or_open(slot);
                self.hear_calls(slot);
            }
        }
    }

    /// A task that is frozen may be going to run elsewhere with the same address. One that is worked on is closed.
    pub(super) fn close_or_open(&mut self, slot: u32) {
        let Some(task) = self.tasks.get_mut(&slot).filter(|task| task.worker.is_none()) else { return };
        let Some(network) = task.network() else { return };
        if self.frozen {
            // Where it cannot be closed, its frozen processes send nothing.
            let _ = network.hold();
        } else {
            network.open();
            self.schedule(now() + nanos(network::AGAIN), Due::Announce(slot));
        }
    }

    pub(super) fn schedule(&mut self, at: u64, due: Due) {
        self.due.insert((at, due));
        self.set_timer();
    }

    pub(super) fn set_timer(&self) {
        let Some((at, _)) = self.due.first() else { return };
        // Zero would switch the timer off.
        let expiration = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos((*at).max(1))));
        let _ = self.timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME);
    }

    pub(super) fn on_time(&mut self) {
        // Non-blocking: a timer that was set anew meanwhile has nothing to read.
        let mut count = [0; 8];
        let _ = nix::unistd::read(&self.timer, &mut count);
        let now = now();
        while let Some((at, due)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, due));
            match due {
                Due::TimeLimit(slot) => {
                    if let Some(task) = self.tasks.get_mut(&slot) {
                        task.signal(libc::SIGTERM, Some(How::TimeLimit));
                        self.due.insert((now + nanos(TIME_LIMIT_GRACE), Due::Kill(slot)));
                    }
                }
                Due::Kill(slot) => {
                    if let Some(task) = self.tasks.get_mut(&slot) {
                        task.signal(libc::SIGKILL, None);
                    }
                }
                Due::LeaseEnds => self.freeze(true),
                Due::Calls(slot) => {
                    let calls = self.tasks.get_mut(&slot).and_then(|task| task.calls.as_mut());
                    let next = calls.and_then(|calls| {
                        calls.time_out();
                        calls.next_alarm()
                    });
                    if let Some(next) = next {
                        self.due.insert((next, Due::Calls(slot)));
                    }
                }
                Due::Announce(slot) => {
                    let network = self.tasks.get_mut(&slot).and_then(Task::network);
                    if network.is_some_and(|network| network.is_open() && !network.open()) {
                        self.due.insert((now + nanos(network::AGAIN), Due::Announce(slot)));
                    }
                }
            }
        }
        self.set_timer();
    }

    pub(super) fn limit(&mut self, slot: u32, limit: Option<Duration>) {
        if let Some(limit) = limit {
            self.schedule(now() + nanos(limit), Due::TimeLimit(slot));
        }
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`: the clock of leases, the same in the agent and in its shims.
pub fn now() -> u64 {
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| nanos(Duration::from(time)))
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
