//! What `/proc` tells of a process (proc(5)).

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Of one process, all its threads together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// In ticks from the start of the machine.
    pub(crate) started: u64,
    pub(crate) name: String,
    pub(crate) ran: Duration,
    pub(crate) minor: u64,
    pub(crate) major: u64,
    pub(crate) threads: u32,
    /// Resident pages.
    pub(crate) resident: u64,
}

impl Stat {
    /// Of a process that lives; a zombie does not.
    pub(crate) fn of(pid: u32, proc: &Path) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?)
    }

    fn parse(pid: u32, text: &str) -> Option<Self> {
        // The name is in brackets, and may hold any.
        let (head, rest) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        // The first here is the third of proc(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)? + field(15)?;
        Some(Self {
            pid,
            parent: u32::try_from(field(4)?).ok()?,
            started: field(22)?,
            name,
            ran: Duration::from_nanos(1_000_000_000 / TICKS) * u32::try_from(ticks).ok()?,
            minor: field(10)?,
            major: field(12)?,
            threads: u32::try_from(field(20)?).ok()?,
            resident: field(24)?,
        })
    }
}

/// Ticks a second that the kernel counts in for user space: `USER_HZ`, the same on all machines that Rust runs on but Alpha.
pub(crate) const TICKS: u64 = 100;

/// What only `/proc/PID/status` and `/proc/PID/schedstat` tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Its pid in the innermost namespace that it is in.
    pub(crate) inner: u32,
    pub(crate) uid: u32,
    /// Of its main thread.
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
    pub(crate) waited: Duration,
}

impl Status {
    pub(crate) fn of(pid: u32, proc: &Path) -> Option<Self> {
        let folder = proc.join(pid.to_string());
        let text = fs::read_to_string(folder.join("status")).ok()?;
        let schedule = fs::read_to_string(folder.join("schedstat")).unwrap_or_default();
        let waited = schedule.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Self::parse(&text).map(|status| Self { waited: Duration::from_nanos(waited), ..status })
    }

    fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let count = |name| line(name).and_then(|words| words.trim().parse().ok()).unwrap_or(0);
        Some(Self {
            inner: line("NSpid")?.split_whitespace().last()?.parse().ok()?,
            uid: line("Uid")?.split_whitespace().next()?.parse().ok()?,
            voluntary: count("voluntary_ctxt_switches"),
            involuntary: count("nonvoluntary_ctxt_switches"),
            waited: Duration::ZERO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_brackets_and_spaces() {
        let text = "7 (a) (b c) S 4 7 7 0 -1 64 10 0 2 0 250 50 0 0 20 0 3 0 9000 1 25 1\n";
        let stat = Stat::parse(7, text).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.started), ("a) (b c", 4, 9000));
        assert_eq!((stat.ran, stat.minor, stat.major), (Duration::from_secs(3), 10, 2));
        assert_eq!((stat.threads, stat.resident), (3, 25));
        assert_eq!(Stat::parse(7, &text.replace(") S", ") Z")), None);
        assert_eq!(Stat::parse(7, "7 (x"), None);
    }

    #[test]
    fn a_status_tells_the_innermost_pid() {
        let text = "Name:\tx\nUid:\t1001\t0\t0\t0\nNSpid:\t70\t2\nvoluntary_ctxt_switches:\t5\n\
                    nonvoluntary_ctxt_switches:\t6\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.inner, status.uid, status.voluntary, status.involuntary), (2, 1001, 5, 6));
    }

    #[test]
    fn this_process_is_read_as_it_is() {
        let proc = Path::new("/proc");
        let pid = std::process::id();
        let (stat, status) = (Stat::of(pid, proc).unwrap(), Status::of(pid, proc).unwrap());
        assert!(stat.threads > 0 && stat.resident > 0 && stat.started > 0);
        assert_eq!(status.uid, nix::unistd::getuid().as_raw());
    }
}
