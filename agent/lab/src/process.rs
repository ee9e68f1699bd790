//! Processes that belong to a lab, told apart from later ones that got the same pid.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A process: its pid and when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The pid in the namespace of whoever reads this.
    pub(crate) pid: i32,
    /// Clock ticks after the boot of the kernel: field 22 of `/proc/PID/stat`.
    pub(crate) start: u64,
}

// === impl ProcessId ===

impl ProcessId {
    /// The process that has `pid` now.
    pub(crate) fn of(pid: i32) -> io::Result<ProcessId> {
        let (_, start) = stat(pid)?;
        Ok(ProcessId { pid, start })
    }

    /// Does the process still run? A zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        matches!(stat(self.pid), Ok((state, start)) if start == self.start && state != 'Z' && state != 'X')
    }

    /// Sends `signal`; to nobody when the process has ended.
    pub(crate) fn signal(self, signal: libc::c_int) -> io::Result<()> {
        let Some(handle) = self.handle()? else { return Ok(()) };
        // SAFETY: the descriptor is an open pidfd; a null siginfo and no flags are allowed by
        // pidfd_send_signal(2).
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                handle.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Waits until the process has ended, at most for `limit`; says whether it has.
    ///
    /// The pid 1 of a namespace ends only after every other process in there.
    pub(crate) fn wait(self, limit: Duration) -> io::Result<bool> {
        let Some(handle) = self.handle()? else { return Ok(true) };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: handle.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: `poll` is one valid pollfd that lives over the call, and its descriptor is open.
            match unsafe { libc::poll(&raw mut poll, 1, millis.max(1)) } {
                0 if left.is_zero() => return Ok(false),
                0 => {}
                1 => return Ok(true),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }

    /// A pidfd that surely is of this process; `None` when it has ended.
    fn handle(self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open(2) takes a pid and flags and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            return match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: the call has just returned this descriptor and nobody else owns it; it fits in an int.
        let handle = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Only after the pid is held does comparing the start time prove anything.
        Ok(self.is_alive().then_some(handle))
    }
}

/// State and start time of `pid`.
fn stat(pid: i32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("odd /proc/{pid}/stat")))
}

/// The fields 3 and 22 of proc_pid_stat(5). The second field may contain spaces and parentheses.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The process in the pid namespace of `pid1` that is `inner` there; `None` when there is none.
pub(crate) fn outer_pid(pid1: ProcessId, inner: i32) -> io::Result<Option<ProcessId>> {
    let space = fs::read_link(format!("/proc/{}/ns/pid", pid1.pid))?;
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Processes come and go while this reads: what cannot be read has ended.
        let Ok(process) = ProcessId::of(pid) else { continue };
        if fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == space)
            && fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|text| innermost(&text) == Some(inner))
            && process.is_alive()
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// The last number of the line `NSpid:`.
fn innermost(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let rest: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        assert_eq!(parse_stat(&format!("7 (a) b) (c) S {}", rest.join(" "))), Some(('S', 22)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn the_innermost_pid_is_the_last() {
        assert_eq!(innermost("Name:\tx\nNSpid:\t512\t7\nThreads: 1\n"), Some(7));
        assert_eq!(innermost("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_that_has_ended_is_neither_alive_nor_signalled() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessId::of(child.id() as i32).unwrap();
        assert!(process.is_alive());
        assert!(!process.wait(Duration::from_millis(1)).unwrap());
        let other = ProcessId { start: process.start + 1, ..process };
        other.signal(libc::SIGKILL).unwrap();
        assert!(process.is_alive());
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.wait(Duration::from_secs(10)).unwrap());
        assert!(!process.is_alive());
        child.wait().unwrap();
        process.signal(libc::SIGKILL).unwrap();
    }
}
