//! Who belongs to a process tree, and in which states they are.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// Pids of these processes and of all below them that still have memory, parents first.
///
/// # Errors
/// Where a root cannot be looked at.
pub(crate) fn below(proc: &Path, roots: &[i32]) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut ahead: Vec<i32> = roots.iter().rev().copied().collect();
    while let Some(pid) = ahead.pop() {
        if !seen.insert(pid) {
            continue;
        }
        let threads = match threads(proc, pid) {
            Ok(threads) => threads,
            Err(error) if roots.contains(&pid) => return Err(error),
            // One that ended meanwhile.
            Err(_) => continue,
        };
        for thread in threads {
            let children = fs::read_to_string(proc.join(format!("{pid}/task/{thread}/children")));
            let children = children.unwrap_or_default();
            ahead.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
        let leader = state(proc, pid, pid);
        if leader.is_some_and(|state| !matches!(state, b'Z' | b'X')) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The threads of a process.
///
/// # Errors
/// Where it has ended.
pub(crate) fn threads(proc: &Path, pid: i32) -> io::Result<Vec<i32>> {
    let path = proc.join(format!("{pid}/task"));
    let wrong = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut threads = Vec::new();
    for entry in fs::read_dir(&path).map_err(wrong)? {
        threads.extend(entry.map_err(wrong)?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(threads)
}

/// The letter of a thread's state.
pub(crate) fn state(proc: &Path, pid: i32, thread: i32) -> Option<u8> {
    let stat = fs::read(proc.join(format!("{pid}/task/{thread}/stat"))).ok()?;
    // The name before it may hold anything, even this sign.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(name_end + 2).copied()
}

/// The number of a process in the innermost pid namespace that it is in.
///
/// # Errors
/// Where it has ended.
pub(crate) fn inner_pid(proc: &Path, pid: i32) -> io::Result<i32> {
    let path = proc.join(format!("{pid}/status"));
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers
        .and_then(|numbers| numbers.split_ascii_whitespace().last()?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{}: it says no NSpid", path.display())))
}
