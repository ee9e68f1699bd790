//! What a task that runs has used so far.
//!
//! When it ends, the kernel tells processor time and input and output exactly (`wait4`). Until then they are read:
//! from the control group where it counts them, else summed over the group's processes and the children that
//! they have waited for.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use grid_qos::Group;
use libgrid::status::Usage;

/// What the tasks of `group` have used since `started`. What cannot be read counts as nothing. `proc` is where
/// procfs is mounted.
pub fn so_far(group: &Group, started: SystemTime, proc: &Path) -> Usage {
    let used = group.used();
    let mut usage = Usage {
        peak_memory: used.peak_memory,
        read: used.read,
        written: used.written,
        wall: started.elapsed().unwrap_or_default(),
        ..Usage::default()
    };
    for pid in group.processes().unwrap_or_default() {
        let folder = proc.join(pid.to_string());
        if let Some((user, system)) = fs::read_to_string(folder.join("stat")).ok().as_deref().and_then(times)
        {
            usage.user += user;
            usage.system += system;
        }
        if used.read + used.written == 0 {
            let io = fs::read_to_string(folder.join("io")).unwrap_or_default();
            usage.read += field(&io, "read_bytes: ");
            usage.written += field(&io, "write_bytes: ");
        }
    }
    if let Some(micros) = used.cpu_micros {
        // The group's sum is exact; how it divides, only the processes tell.
        let all = Duration::from_micros(micros);
        usage.system = usage.system.min(all);
        usage.user = all - usage.system;
    }
    usage
}

/// User and system time of a process and of its children that it waited for, from `/proc/PID/stat` (proc(5): fields
/// 14 to 17, in ticks).
fn times(stat: &str) -> Option<(Duration, Duration)> {
    // The second field is the name in brackets, which may hold anything.
    let mut fields =
        stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let mut next =
        || Some(Duration::from_secs(1) / u32::try_from(ticks).ok()? * u32::try_from(fields.next()??).ok()?);
    let (user, system, child_user, child_system) = (next()?, next()?, next()?, next()?);
    Some((user + child_user, system + child_system))
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 100 25 20 0 1 0 1 1 1";
        let (user, system) = times(stat).unwrap();
        assert_eq!((user.as_millis(), system.as_millis()), (3500, 750));
        assert_eq!(times("42 (x"), None);
    }
}
