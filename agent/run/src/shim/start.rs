//! Starting `gridos-init` in new namespaces.
//!
//! The child borrows this process's memory until it executes init (`CLONE_VM | CLONE_VFORK`), so that nothing of
//! it is copied. What the child needs is therefore prepared before; it makes system calls only.

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use libc::{c_char, c_int, c_void};
use nix::fcntl::{FcntlArg, fcntl};

use super::calls::Filter;
use crate::protocol::Launch;
use crate::record::{Record, Step};

/// The child's stack until it executes, in bytes.
const STACK: usize = 32 << 10;

/// Where init expects the status pipe; the entrances of control groups follow.
const STATUS: RawFd = 3;

/// The bits of init's mode: descriptor 0 is a terminal; there is no input; a checkpoint is restored.
pub(super) const TERMINAL: u32 = 1;
pub(super) const NO_INPUT: u32 = 2;
pub(super) const RESTORED: u32 = 4;

/// What the child needs.
pub(super) struct Init {
    program: CString,
    argv: CStrings,
    envp: CStrings,
    /// What become descriptors 0, 1, 2, 3 and on.
    descriptors: Vec<Descriptor>,
    /// The network namespace to enter.
    network: Option<RawFd>,
    /// What gives it the grid's system call.
    filter: Option<Filter>,
}

/// The caller's, or, where that was among the places, a copy that is not.
enum Descriptor {
    Callers(RawFd),
    Raised(OwnedFd),
}

impl Descriptor {
    fn beyond(fd: RawFd, places: RawFd) -> io::Result<Self> {
        if fd >= places {
            return Ok(Self::Callers(fd));
        }
        // SAFETY: the caller keeps it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let raised = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(places))?;
        // SAFETY: the kernel opened this descriptor for us.
        Ok(Self::Raised(unsafe { OwnedFd::from_raw_fd(raised) }))
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Callers(fd) => *fd,
            Self::Raised(fd) => fd.as_raw_fd(),
        }
    }
}

/// A null-terminated array of C strings, as `execve` takes it.
struct CStrings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    fn new(owned: Vec<CString>) -> Self {
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

impl Init {
    /// Prepares what the child needs. The descriptors stay the caller's.
    ///
    /// # Errors
    /// Where a word holds a zero byte, or no descriptor is left.
    pub(super) fn new(
        program: &Path,
        launch: &Launch,
        stdio: [RawFd; 3],
        mode: u32,
        status: &impl AsRawFd,
        entrances: &[std::fs::File],
        network: Option<RawFd>,
    ) -> io::Result<Self> {
        let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
        let number = |number: u32| CString::new(number.to_string());
        let places = places(launch)?;
        let job = if launch.enters { launch.run.task.job.as_u64() } else { 0 };
        let mut argv = vec![
            CString::new("gridos-init")?,
            path(&launch.folder.join("work"))?,
            path(&launch.workdir)?,
            path(&launch.folder.join("tmp"))?,
            number(launch.uid)?,
            number(mode)?,
            number(entrances.len() as u32)?,
            CString::new(job.to_string())?,
            number(launch.run.task.index)?,
            number(places.len() as u32)?,
        ];
        argv.extend(places);
        for word in &launch.command {
            argv.push(CString::new(word.as_str())?);
        }
        let env = launch.env.iter().map(|(key, value)| CString::new(format!("{key}={value}")));
        let mut descriptors = stdio.to_vec();
        descriptors.push(status.as_raw_fd());
        descriptors.extend(entrances.iter().map(AsRawFd::as_raw_fd));
        let places = descriptors.len() as RawFd;
        let descriptors = descriptors.into_iter().map(|fd| Descriptor::beyond(fd, places));
        Ok(Self {
            program: path(program)?,
            argv: CStrings::new(argv),
            envp: CStrings::new(env.collect::<Result<_, _>>()?),
            descriptors: descriptors.collect::<io::Result<_>>()?,
            network,
            filter: None,
        })
    }

    /// The same, which gives the task the grid's system call.
    pub(super) fn filtered(self, filter: Option<Filter>) -> Self {
        Self { filter, ..self }
    }

    /// Starts it; returns its pid, a descriptor for it, and the listener for its calls. What fails from then on comes through
    /// the status pipe.
    ///
    /// # Errors
    /// Where the kernel makes no process or no namespaces.
    pub(super) fn start(self) -> io::Result<(libc::pid_t, OwnedFd, Option<OwnedFd>)> {
        extern "C" fn enter(init: *mut c_void) -> c_int {
            // SAFETY: `start` passes itself, and waits (CLONE_VFORK) until the child is done with it.
            unsafe { (*init.cast_const().cast::<Init>()).execute() }
        }
        let mut stack = [0u8; STACK];
        let mut pidfd: c_int = -1;
        let namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | namespaces | libc::SIGCHLD;
        // SAFETY: the stack outlives the child's use of it, as the call returns only after execve or _exit; with
        // CLONE_PIDFD the fifth argument receives the descriptor.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(STACK);
            let top = top.sub(top as usize % 16);
            libc::clone(enter, top.cast(), flags, ptr::from_ref(&self).cast_mut().cast(), &raw mut pidfd)
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel opened this descriptor for us.
        let init = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // Where there is none, the status pipe tells why.
        let listener = self.filter.and_then(|filter| filter.listener().ok());
        Ok((pid, init, listener))
    }

    /// The child: puts the descriptors in their places and executes init.
    ///
    /// # Safety
    /// Only in the child of such a clone.
    unsafe fn execute(&self) -> c_int {
        // SAFETY: system calls on descriptors and strings that outlive the child's use of them. No descriptor is
        // overwritten before it is placed, as all lie beyond the places.
        unsafe {
            if let Some(network) = self.network
                && libc::setns(network, libc::CLONE_NEWNET) < 0
            {
                return self.fail(Step::Network);
            }
            // Before others take the place of its socket.
            if self.filter.as_ref().is_some_and(|filter| filter.install().is_err()) {
                return self.fail(Step::Calls);
            }
            for (place, fd) in (0..).zip(&self.descriptors) {
                if libc::dup2(fd.as_raw_fd(), place) < 0 {
                    return self.fail(Step::Init);
                }
            }
            let beyond = self.descriptors.len() as libc::c_uint;
            libc::syscall(libc::SYS_close_range, beyond, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::execve(self.program.as_ptr(), self.argv.pointers.as_ptr(), self.envp.pointers.as_ptr());
            self.fail(Step::Init)
        }
    }

    /// Tells the shim that init itself could not be executed.
    fn fail(&self, step: Step) -> c_int {
        // SAFETY: the address is this thread's own; the parent is suspended.
        let errno = unsafe { *libc::__errno_location() };
        let record = Record::Failed(step, errno).to_bytes();
        if let Some(status) = self.descriptors.get(STATUS as usize) {
            // SAFETY: writes a whole record from the stack; a pipe takes so little at once.
            unsafe { libc::write(status.as_raw_fd(), record.as_ptr().cast(), record.len()) };
        }
        127
    }
}

/// Where the program may be: itself if it has a slash, else below each folder of the task's `PATH`.
fn places(launch: &Launch) -> Result<Vec<CString>, NulError> {
    let program = launch.command.first().map_or("", String::as_str);
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let path = launch.env.get("PATH").map_or("", String::as_str);
    let folders = path.split(':').filter(|folder| !folder.is_empty());
    folders.map(|folder| CString::new(format!("{folder}/{program}"))).collect()
}
