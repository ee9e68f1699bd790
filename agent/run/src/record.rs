//! What a task's init tells its shim through the status pipe, before and after the program runs.
//!
//! Shared by the library and by `gridos-init`, which has nothing but the core language.

/// What came through the status pipe.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Record {
    /// The program ended with this wait status.
    Ended(i32),
    /// This step failed with this error number.
    Failed(Step, i32),
}

/// Where a start can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
#[repr(u32)]
pub(crate) enum Step {
    /// Making the task's mounts its own.
    Propagation = 1,
    /// Mounting the working directory.
    Work,
    /// Mounting `/tmp`.
    Tmp,
    /// Mounting `/proc`.
    Proc,
    /// Mounting `/dev/shm`.
    SharedMemory,
    /// Starting the program's process.
    Clone,
    /// Joining the control group.
    Cgroup,
    /// Making a session.
    Session,
    /// Taking the terminal.
    Terminal,
    /// Entering the working directory.
    Folder,
    /// Becoming the task's user.
    Identity,
    /// Giving up privileges.
    Privileges,
    /// Executing the program.
    Execute,
    /// Executing init itself.
    Init,
    /// Opening an empty input.
    Input,
    /// Entering the task's own network.
    Network,
    /// Giving the grid's system call to the shim.
    Calls,
}

/// Bytes of a record: a tag, 0 for the end, and a value.
pub(crate) const RECORD: usize = 8;

impl Step {
    const ALL: [Step; 17] = [
        Step::Propagation,
        Step::Work,
        Step::Tmp,
        Step::Proc,
        Step::SharedMemory,
        Step::Clone,
        Step::Cgroup,
        Step::Session,
        Step::Terminal,
        Step::Folder,
        Step::Identity,
        Step::Privileges,
        Step::Execute,
        Step::Init,
        Step::Input,
        Step::Network,
        Step::Calls,
    ];

    /// What was tried, for the sentence that says that it failed.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Step::Propagation => "separating the task's mounts",
            Step::Work => "mounting the working directory",
            Step::Tmp => "mounting /tmp for the task",
            Step::Proc => "mounting /proc for the task",
            Step::SharedMemory => "mounting /dev/shm for the task",
            Step::Clone => "starting a process",
            Step::Cgroup => "joining the control group",
            Step::Session => "making a session",
            Step::Terminal => "taking the terminal",
            Step::Folder => "entering the working directory",
            Step::Identity => "changing to the task's user",
            Step::Privileges => "giving up privileges",
            Step::Execute => "executing the program",
            Step::Init => "starting the task's init",
            Step::Input => "opening /dev/null",
            Step::Network => "entering the task's own network",
            Step::Calls => "installing the filter for the grid's system call",
        }
    }
}

impl Record {
    /// The record as the pipe carries it, in this machine's byte order.
    pub(crate) fn to_bytes(self) -> [u8; RECORD] {
        let (tag, value) = match self {
            Record::Ended(status) => (0, status),
            Record::Failed(step, errno) => (step as u32, errno),
        };
        (u64::from(tag) | u64::from(value as u32) << 32).to_ne_bytes()
    }

    /// The inverse of [`Record::to_bytes`].
    pub(crate) fn from_bytes(bytes: [u8; RECORD]) -> Option<Self> {
        let both = u64::from_ne_bytes(bytes);
        let value = (both >> 32) as i32;
        match both as u32 {
            0 => Some(Record::Ended(value)),
            tag => {
                Step::ALL.into_iter().find(|step| *step as u32 == tag).map(|step| Record::Failed(step, value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_pipe() {
        let records = Step::ALL.map(|step| Record::Failed(step, 13)).into_iter().chain([Record::Ended(0x8b)]);
        for record in records {
            assert_eq!(Record::from_bytes(record.to_bytes()), Some(record));
        }
        assert_eq!(Record::from_bytes([0xff; RECORD]), None);
    }
}
