//! Connections that a task has closed, and whose last bytes are still on their way; and those that are just being made to it.
//!
//! They belong to no process any more, or not yet, so that no checkpoint has them: a task that moves now leaves those bytes
//! behind, or a peer that takes its connection for made. They take a round trip; the link must be open for it.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use crate::namespace;

/// FIN-WAIT-1, LAST-ACK and CLOSING in `include/net/tcp_states.h`: the end was sent, and nobody has said that it came.
/// SYN-RECEIVED: the beginning was answered, and nobody has said that the answer came.
const ON_THE_WAY: [&str; 4] = ["03", "04", "09", "0B"];

/// How many connections of the namespace are being closed or made, and belong to no process.
///
/// To lose nothing, wait until it is 0 before [`hold`](crate::NodeNet::hold), for a second or so; and look again once
/// CRIU has frozen the task: one that has closed a connection in between is let go on, and moved later.
///
/// # Errors
/// Where the kernel does not tell.
pub fn unsent(namespace: BorrowedFd<'_>) -> io::Result<usize> {
    namespace::inside(namespace, || {
        let mut found = 0;
        for table in ["tcp", "tcp6"] {
            match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
                Ok(table) => found += count(&table),
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    })
}

fn count(table: &str) -> usize {
    let lines = table.lines().skip(1);
    lines
        .filter(|line| {
            let mut fields = line.split_whitespace();
            let (state, inode) = (fields.nth(3), fields.nth(5));
            inode == Some("0") && state.is_some_and(|state| ON_THE_WAY.contains(&state))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_and_unanswered_are_counted() {
        let line = |state: &str, inode: u32| {
            format!(
                "   0: 01104064:1B58 00104064:A1B2 {state} 00000005:00000000 01:00000014 00000000     0        0 {inode} 2 0\n"
            )
        };
        let lines = [
            line("0A", 7),
            line("03", 0),
            line("01", 8),
            line("04", 0),
            line("09", 0),
            line("06", 0),
            line("04", 9),
        ];
        assert_eq!(count(&format!("  sl  local_address rem_address\n{}", lines.concat())), 3);
    }
}
