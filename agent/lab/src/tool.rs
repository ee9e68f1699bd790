//! Running iproute2's `ip` and `tc`.

use std::ffi::{CString, OsStr};
use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::error::{Doing, LabError};
use crate::lock::Lock;

/// One run of a system program.
pub(crate) struct Tool {
    name: &'static str,
    command: Command,
    input: String,
}

// === impl Tool ===

impl Tool {
    /// The program `name`, found in PATH or where Debian puts it, also when an ordinary user's PATH is set.
    pub(crate) fn new(name: &'static str) -> Tool {
        let mut command = Command::new(name);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).env("LC_ALL", "C");
        Tool { name, command, input: String::new() }
    }

    /// `ip -batch -` with these lines: one process for many changes; it stops at the first that fails.
    pub(crate) fn ip_batch(lines: &[String]) -> Tool {
        let mut tool = Tool::new("ip").args(["-batch", "-"]);
        tool.input = lines.join("\n") + "\n";
        tool
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Tool {
        self.command.args(args);
        self
    }

    /// Runs as part of an operation on the lab; returns what the program printed.
    pub(crate) fn run(mut self, lock: &Lock) -> Result<String, LabError> {
        lock.share(&mut self.command);
        self.run_alone()
    }

    /// Runs without a lock: in a helper whose parent holds it.
    pub(crate) fn run_alone(mut self) -> Result<String, LabError> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LabError::NoTool(self.name),
            _ => LabError::Io { doing: "run", path: self.name.into(), source: error },
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that has already failed does not read: its message tells more than this would.
            let _ = stdin.write_all(self.input.as_bytes());
        }
        let output = child.wait_with_output().doing("wait for", self.name)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let args: Vec<_> = self.command.get_args().map(OsStr::to_string_lossy).collect();
        let mut shown = format!("{} {}", self.name, args.join(" "));
        if !self.input.is_empty() {
            shown = format!("{shown}: {}", self.input.trim_end().replace('\n', "; "));
        }
        let message = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', "; ");
        Err(LabError::Tool { command: shown, message })
    }
}

/// Is there a link of this name in the caller's network namespace?
pub(crate) fn link_exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: the argument is a valid C string that lives over the call; the call only reads it.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_the_package() {
        let message = Tool::new("no-such-program").run_alone().unwrap_err().to_string();
        assert!(message.contains("Debian's package iproute2"), "{message}");
    }

    #[test]
    fn a_failure_tells_command_and_message() {
        let message =
            Tool::ip_batch(&["link show dev no-such-link".into()]).run_alone().unwrap_err().to_string();
        assert!(message.contains("link show dev no-such-link") && message.contains("not exist"), "{message}");
    }
}
