//! What runs inside the task's namespaces: init (pid 1), and the program up to its `execve`.
//!
//! Everything here runs between `clone` and `execve` of a copy of the shim. It allocates nothing and returns
//! nothing: it makes system calls on what [`Inside`] prepared before, and tells failures through the status
//! pipe as [`Record`]s.

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::ptr;

use libc::{c_char, c_int, c_void};

/// Prepared by the shim before it clones.
pub(super) struct Inside {
    /// The program's possible places, in the order of `PATH`.
    pub(super) programs: Vec<CString>,
    pub(super) argv: CStrings,
    pub(super) envp: CStrings,
    /// The task's folder `work`, and where it appears.
    pub(super) work: CString,
    pub(super) workdir: CString,
    /// The task's folder `tmp`, which appears as `/tmp`.
    pub(super) tmp: CString,
    /// Standard input, output and error.
    pub(super) stdio: [RawFd; 3],
    /// Whether they are a terminal.
    pub(super) terminal: bool,
    /// The writing end of the status pipe.
    pub(super) status: RawFd,
    /// Write `0` here to join the control group.
    pub(super) entrances: Vec<RawFd>,
    pub(super) uid: u32,
}

/// A null-terminated array of C strings, as `execve` takes it.
pub(super) struct CStrings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    pub(super) fn new(owned: Vec<CString>) -> Self {
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

/// What came through the status pipe: a tag and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// The program ended with this wait status.
    Ended(c_int),
    /// This step failed with this error number.
    Failed(Step, c_int),
}

/// Where a start can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Propagation = 1,
    Proc,
    Work,
    Tmp,
    SharedMemory,
    Clone,
    Cgroup,
    Session,
    Terminal,
    Stdio,
    Identity,
    Privileges,
    Folder,
    Execute,
}

impl Step {
    const ALL: [Step; 14] = [
        Step::Propagation,
        Step::Proc,
        Step::Work,
        Step::Tmp,
        Step::SharedMemory,
        Step::Clone,
        Step::Cgroup,
        Step::Session,
        Step::Terminal,
        Step::Stdio,
        Step::Identity,
        Step::Privileges,
        Step::Folder,
        Step::Execute,
    ];

    /// What was tried, for the sentence that says that it failed.
    pub(super) fn what(self) -> &'static str {
        match self {
            Step::Propagation => "separating the task's mounts",
            Step::Proc => "mounting /proc for the task",
            Step::Work => "mounting the working directory",
            Step::Tmp => "mounting /tmp for the task",
            Step::SharedMemory => "mounting /dev/shm for the task",
            Step::Clone => "starting a process",
            Step::Cgroup => "joining the control group",
            Step::Session => "making a session",
            Step::Terminal => "taking the terminal",
            Step::Stdio => "connecting standard input and output",
            Step::Identity => "changing to the task's user",
            Step::Privileges => "giving up privileges",
            Step::Folder => "entering the working directory",
            Step::Execute => "executing the program",
        }
    }
}

/// Bytes of a record.
pub(super) const RECORD: usize = 8;

impl Record {
    fn to_bytes(self) -> [u8; RECORD] {
        let (tag, value) = match self {
            Record::Ended(status) => (0, status),
            Record::Failed(step, errno) => (step as u32, errno),
        };
        let mut bytes = [0; RECORD];
        bytes[..4].copy_from_slice(&tag.to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; RECORD]) -> Option<Self> {
        let [t0, t1, t2, t3, v0, v1, v2, v3] = bytes;
        let value = c_int::from_ne_bytes([v0, v1, v2, v3]);
        match u32::from_ne_bytes([t0, t1, t2, t3]) {
            0 => Some(Record::Ended(value)),
            tag => {
                Step::ALL.into_iter().find(|step| *step as u32 == tag).map(|step| Record::Failed(step, value))
            }
        }
    }
}

impl Inside {
    /// Pid 1 of the task: prepares the mounts, starts the program, reaps until it ends.
    ///
    /// # Safety
    /// To be called only in the child of a `clone` of a process with one thread, with new pid, mount, ipc and
    /// uts namespaces.
    pub(super) unsafe fn init(&self) -> ! {
        // SAFETY: plain system calls; the strings they take are owned by `self`.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let pid = match self.prepare().and_then(|()| self.start()) {
                Ok(pid) => pid,
                Err((step, errno)) => self.fail(step, errno),
            };
            // Nothing of the task's pipes may stay open here, or their end would never be seen.
            self.close_all_but_status();
            loop {
                let mut status = 0;
                let ended = libc::waitpid(-1, &raw mut status, 0);
                if ended == pid {
                    self.tell(Record::Ended(status));
                    libc::_exit(0);
                }
                if ended < 0 && errno() != libc::EINTR {
                    libc::_exit(1);
                }
            }
        }
    }

    unsafe fn prepare(&self) -> Result<(), (Step, c_int)> {
        let none = ptr::null::<c_void>();
        let mount = |step, source: &CStr, target: &CStr, kind: &CStr, flags, data: *const c_void| {
            // SAFETY: all strings are null-terminated and live for the call.
            let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) };
            check(step, done)
        };
        let safe = libc::MS_NOSUID | libc::MS_NODEV;
        mount(Step::Propagation, c"none", c"/", c"none", libc::MS_REC | libc::MS_SLAVE, none)?;
        mount(Step::Work, &self.work, &self.workdir, c"none", libc::MS_BIND, none)?;
        mount(Step::Tmp, &self.tmp, c"/tmp", c"none", libc::MS_BIND, none)?;
        mount(Step::Proc, c"proc", c"/proc", c"proc", safe | libc::MS_NOEXEC, none)?;
        mount(Step::SharedMemory, c"tmpfs", c"/dev/shm", c"tmpfs", safe, c"mode=1777".as_ptr().cast())
    }

    /// Starts the program in a child that borrows this memory until it executes, as `posix_spawn` does:
    /// copying the page tables once more would cost as much as all namespaces together.
    unsafe fn start(&self) -> Result<libc::pid_t, (Step, c_int)> {
        extern "C" fn enter(inside: *mut c_void) -> c_int {
            // SAFETY: `start` passes itself, and waits (CLONE_VFORK) until the child is done with it.
            unsafe { (*inside.cast_const().cast::<Inside>()).program() }
        }
        let mut stack = [0u8; 32 << 10];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack outlives the child's use of it, as the call returns only after execve or _exit.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            let top = top.sub(top as usize % 16);
            libc::clone(enter, top.cast(), flags, ptr::from_ref(self).cast_mut().cast())
        };
        if pid < 0 { Err((Step::Clone, errno())) } else { Ok(pid) }
    }

    /// The child, up to the program.
    unsafe fn program(&self) -> ! {
        // SAFETY: plain system calls on descriptors and strings owned by `self`.
        unsafe {
            let (step, errno) = match self.become_program() {
                Ok(()) => (Step::Execute, self.execute()),
                Err(failed) => failed,
            };
            self.fail(step, errno)
        }
    }

    unsafe fn become_program(&self) -> Result<(), (Step, c_int)> {
        // SAFETY: as in `program`. The raw system calls for the ids act on this one thread, which is all.
        unsafe {
            for entrance in &self.entrances {
                check(
                    Step::Cgroup,
                    if libc::write(*entrance, c"0".as_ptr().cast(), 1) == 1 { 0 } else { -1 },
                )?;
            }
            check(Step::Session, libc::setsid())?;
            if self.terminal {
                check(Step::Terminal, libc::ioctl(self.stdio[0], libc::TIOCSCTTY, 0))?;
            }
            for (at, fd) in (0..).zip(self.stdio) {
                check(Step::Stdio, libc::dup2(fd, at))?;
            }
            check(Step::Folder, libc::chdir(self.workdir.as_ptr()))?;
            let id = libc::c_long::from(self.uid);
            check(Step::Identity, libc::syscall(libc::SYS_setgroups, 0, ptr::null::<c_void>()) as c_int)?;
            check(Step::Identity, libc::syscall(libc::SYS_setresgid, id, id, id) as c_int)?;
            check(Step::Identity, libc::syscall(libc::SYS_setresuid, id, id, id) as c_int)?;
            check(Step::Privileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            libc::umask(0o022);
            restore_signals();
            // All others close at execve; the status pipe must stay until then.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        }
    }

    /// Tries each place; returns the error to tell.
    unsafe fn execute(&self) -> c_int {
        let mut worst = libc::ENOENT;
        for program in &self.programs {
            // SAFETY: arrays of pointers to null-terminated strings, themselves null-terminated.
            unsafe {
                libc::execve(program.as_ptr(), self.argv.pointers.as_ptr(), self.envp.pointers.as_ptr());
            }
            match errno() {
                libc::ENOENT | libc::ENOTDIR => (),
                other => worst = other,
            }
        }
        worst
    }

    unsafe fn close_all_but_status(&self) {
        // SAFETY: no Rust object here owns a descriptor that would be used again.
        unsafe {
            let status = self.status as u32;
            if status > 0 {
                libc::syscall(libc::SYS_close_range, 0, status - 1, 0);
            }
            libc::syscall(libc::SYS_close_range, status + 1, u32::MAX, 0);
        }
    }

    fn tell(&self, record: Record) {
        let bytes = record.to_bytes();
        // SAFETY: writes a whole record from the stack; a pipe takes so little at once.
        unsafe { libc::write(self.status, bytes.as_ptr().cast(), bytes.len()) };
    }

    fn fail(&self, step: Step, errno: c_int) -> ! {
        self.tell(Record::Failed(step, errno));
        // SAFETY: ends this process without running anything of the shim's.
        unsafe { libc::_exit(127) }
    }
}

fn check(step: Step, result: c_int) -> Result<(), (Step, c_int)> {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

/// A program expects default dispositions and no blocked signals; Rust ignores SIGPIPE, the shim blocks some.
unsafe fn restore_signals() {
    // SAFETY: sigset and sigaction of zeros are valid: the empty set, the default action.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn errno() -> c_int {
    // SAFETY: the address is this thread's own.
    unsafe { *libc::__errno_location() }
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
