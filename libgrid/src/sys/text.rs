//! Records as lines of text, the same as the files of `/proc/gridos` have (`kmod/proc.c`).

use std::fmt::{self, Write as _};

use super::abi::{
    self, Checkpointed, Job, Moved, Name, Node, SelfInfo, Status, Submitted, Version, gpid_text, job_text,
};

/// The line above nodes.
pub const NODES: &str = "node\tstate\tcpus\tfree\tmemory\tfree\tname\n";

/// The line above jobs.
pub const JOBS: &str = "job\tuid\tstate\ttasks\trunning\tdone\tfailed\tname\n";

/// The line above global ids.
pub const GPIDS: &str = "gpid\tpid\tjob\ttask\n";

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = if self.flags & abi::VERSION_DAEMON == 0 { "none" } else { "attached" };
        writeln!(f, "uapi {}\nnode {}\ndaemon {daemon}", self.version, self.node)
    }
}

impl fmt::Display for SelfInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = if self.job == 0 { "-".into() } else { self.task.to_string() };
        let (gpid, job) = (gpid_text(self.gpid), job_text(self.job));
        writeln!(f, "gpid {gpid}\nnode {}\njob {job}\ntask {task}", self.node)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = ["up", "suspect", "down", "revoked"].get(self.state as usize).unwrap_or(&"-");
        let [cpus, free] =
            [self.cpus, self.cpus_free].map(|cpus| format!("{}.{:03}", cpus / 1000, cpus % 1000));
        write!(f, "{}\t{state}\t{cpus}\t{free}\t{}\t{}\t", self.number, self.memory, self.memory_free)?;
        writeln!(f, "{}", Column(&self.name))
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = ["waiting", "running", "done"].get(self.state as usize).unwrap_or(&"-");
        write!(f, "{}\t{}\t{state}\t{}\t", job_text(self.job), self.uid, self.tasks)?;
        writeln!(f, "{}\t{}\t{}\t{}", self.running, self.done, self.failed, Column(&self.name))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = ["waiting", "running", "done"].get(self.state as usize).unwrap_or(&"-");
        let task = if self.task == abi::TASK_ALL { "-".into() } else { self.task.to_string() };
        let node = if self.node == 0 { "-".into() } else { self.node.to_string() };
        let exit_status = if self.exit_status < 0 { "-".into() } else { self.exit_status.to_string() };
        writeln!(f, "job {}\ntask {task}\nstate {state}\nnode {node}", job_text(self.job))?;
        writeln!(
            f,
            "exit_status {exit_status}\nrunning {}\ndone {}\nfailed {}",
            self.running, self.done, self.failed
        )
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            0 => writeln!(f, "it moves as soon as it can"),
            node => writeln!(f, "node {node}\nstopped {} us", self.stopped_ns / 1000),
        }
    }
}

impl fmt::Display for Checkpointed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => writeln!(f, "it is written as soon as it can be"),
            number => writeln!(f, "number {number}\nbytes {}", self.bytes),
        }
    }
}

impl fmt::Display for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", job_text(self.job))
    }
}

/// A name may have anything in it; a column has no white space, and is not empty.
struct Column<'a>(&'a Name);

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.text();
        if text.is_empty() {
            return f.write_char('-');
        }
        for character in text.chars() {
            match character {
                ' ' | '\\' | '\0'..='\x1f' => write!(f, "\\{:03o}", character as u32)?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_no_white_space_and_is_not_empty() {
        let shown = |name: &str| Column(&name.into()).to_string();
        assert_eq!(shown("a b\nc\\"), "a\\040b\\012c\\134");
        assert_eq!(shown(""), "-");
    }

    #[test]
    fn a_process_of_no_job_has_no_ids() {
        let text = SelfInfo { node: 12, ..SelfInfo::default() }.to_string();
        assert_eq!(text, "gpid -\nnode 12\njob -\ntask -\n");
    }
}
