//! Starting a process that stays: the helper forks, and parent and child take turns until all is made.
//!
//! ```text
//! library ── starts, lends the lock ──▶ parent ── fork ──▶ child
//!                                         │                  │
//!                                         │    recorded ───▶ │   nothing is made before the pid is on disk
//!                                         │ ◀─── step … ───▶ │
//!                                         │ ◀─── running     │
//! library ◀──────── status 0 ──────────── ┘                  └──▶ goes on for itself
//! ```
//!
//! When either side fails or dies, the other sees the end of the channel and gives up, so that no process is
//! left that no document names.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{ForkResult, fork as fork_process, setsid};

use crate::error::{Doing, LabError};
use crate::lock::Lock;
use crate::process::ProcessId;

/// How long one side waits for the other's next step.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which side of the fork this is.
pub(crate) enum Role {
    Parent(Child),
    Child(Channel),
}

/// The other side, as a line of text per step.
pub(crate) struct Channel {
    stream: BufReader<UnixStream>,
}

/// The child as its parent sees it.
pub(crate) struct Child {
    channel: Channel,
    pub(crate) process: ProcessId,
    /// The lock that the library lent, for what the parent does and starts.
    pub(crate) lock: Lock,
}

/// Forks. The child leads a session of its own, lets go of the lock, and writes its standard output and error
/// to `log`.
pub(crate) fn fork(lock_fd: RawFd, log: &Path) -> Result<Role, LabError> {
    let nowhere = Path::new("a new process");
    // SAFETY: the library opened this descriptor for this program alone, and told it the number; nothing else
    // in the program uses it.
    let lock = unsafe { Lock::inherited(lock_fd) };
    let (ours, theirs) = UnixStream::pair().doing("connect to", nowhere)?;
    // SAFETY: the helper program has one thread, so the child may do all that its parent could.
    match unsafe { fork_process() }.doing("fork", nowhere)? {
        ForkResult::Parent { child } => {
            let process = ProcessId::of(child.as_raw()).doing("look at", nowhere)?;
            Ok(Role::Parent(Child { channel: Channel::new(ours)?, process, lock }))
        }
        ForkResult::Child => {
            drop(ours);
            drop(lock);
            let mut channel = Channel::new(theirs)?;
            let ready = (|| {
                setsid().doing("lead a session in", nowhere)?;
                redirect(log)
            })();
            match ready {
                Ok(()) => Ok(Role::Child(channel)),
                Err(error) => {
                    channel.fail(&error);
                    Err(error)
                }
            }
        }
    }
}

/// Closes what the caller's caller had open, say the pipe of a build: a process that stays must not keep it.
/// The first thing that the program does.
pub(crate) fn close_inherited(lock_fd: RawFd) {
    let lock = lock_fd.max(3).cast_unsigned();
    // SAFETY: the program has just started and opened no descriptor above 2 of its own; it works on the three
    // standard ones and on the lock, which are left out.
    unsafe {
        if lock > 3 {
            libc::close_range(3, lock - 1, 0);
        }
        libc::close_range(lock + 1, u32::MAX, 0);
    }
}

fn redirect(log: &Path) -> Result<(), LabError> {
    let nothing = fs::File::open("/dev/null").doing("open", "/dev/null")?;
    let file = OpenOptions::new().create(true).append(true).open(log).doing("open", log)?;
    nix::unistd::dup2_stdin(&nothing).doing("redirect to", "/dev/null")?;
    nix::unistd::dup2_stdout(&file).doing("redirect to", log)?;
    nix::unistd::dup2_stderr(&file).doing("redirect to", log)
}

// === impl Channel ===

impl Channel {
    fn new(stream: UnixStream) -> Result<Channel, LabError> {
        stream.set_read_timeout(Some(PATIENCE)).doing("set the time limit of", "a channel")?;
        Ok(Channel { stream: BufReader::new(stream) })
    }

    /// Tells the other side that a step is done.
    pub(crate) fn tell(&mut self, step: &str) -> Result<(), LabError> {
        writeln!(self.stream.get_mut(), "{step}").doing("report", step)
    }

    /// Waits until the other side has done a step.
    pub(crate) fn expect(&mut self, step: &str) -> Result<(), LabError> {
        let start = |message: String| LabError::Start { what: "its process".to_owned(), message };
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(start(format!("the other side ended before `{step}`"))),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(start(format!("`{step}` took over {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(start(format!("`{step}`: {error}"))),
        }
        match line.trim_end() {
            said if said == step => Ok(()),
            said => Err(start(said.strip_prefix("failed: ").unwrap_or(said).to_owned())),
        }
    }

    /// Tells the other side why there will be no next step.
    pub(crate) fn fail(&mut self, error: &LabError) {
        // If the other side has gone, nobody wants to know.
        let _ = writeln!(self.stream.get_mut(), "failed: {}", error.to_string().replace('\n', "; "));
    }
}

// === impl Child ===

impl Child {
    pub(crate) fn tell(&mut self, step: &str) -> Result<(), LabError> {
        self.channel.tell(step)
    }

    pub(crate) fn expect(&mut self, step: &str) -> Result<(), LabError> {
        self.channel.expect(step)
    }

    /// Does the parent's steps; if one fails, ends the child and says what did not start.
    pub(crate) fn supervise(
        &mut self,
        what: String,
        steps: impl FnOnce(&mut Child) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        let failure = match steps(self) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let nowhere = Path::new("the process that failed to start");
        self.process.signal(libc::SIGKILL).doing("end", nowhere)?;
        self.process.wait(PATIENCE).doing("wait for", nowhere)?;
        Err(match failure {
            LabError::Start { message, .. } => LabError::Start { what, message },
            other => LabError::Start { what, message: other.to_string() },
        })
    }
}
