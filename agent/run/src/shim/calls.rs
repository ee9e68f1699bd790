//! The grid's system call: `syscall(SYS_gridos, op, &arguments, size)` from the processes of a task whose job asked for it.
//!
//! ```text
//!   process: syscall ──▶ filter ──▶ the listener ──▶ FromShim::Called ──▶ agent
//!            returns ◀── what the shim says ◀─────── ToShim::Answer  ◀──
//! ```
//!
//! The task's init installs a filter (`seccomp_unotify(2)`) that gives this one number, which no kernel has, to whoever
//! holds the filter's listener, and all others to the kernel. Descendants inherit it. The shim holds the listener, so that
//! agents may come and go: what an agent had not answered goes to the next, and `EAGAIN` is for those that would not wait.
//!
//! **Pointers.** The shim reads the arguments from the caller's memory and writes what came of them. The file of that memory
//! is opened first, and then the kernel is asked whether the caller still waits (`SECCOMP_IOCTL_NOTIF_ID_VALID`): a pid
//! that another process has by then is never mistaken for it. What the caller may not write to is written to no less, as a
//! debugger would; it is its own memory alone.
//!
//! **Moves.** A call that the shim has taken can be interrupted by nothing but death
//! (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`), so none is done twice. What waits for its answer cannot be dumped:
//! before a task is written down, those calls end with `EINTR`, and none is taken until it runs again; those that were not
//! taken are begun again by the kernel, on whichever node that is. The filter of a restored task is that of who
//! restores it, which its processes inherit, with a listener of this shim's; the one that they had, which hears of nothing any
//! more, lets everything pass ([`grid_checkpoint::filter`]).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use libgrid::sys::abi::{self, CALL_MAX, CALL_NOWAIT, Call, List, Op, Record};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Due, Shim, Source, nanos, now};
use crate::protocol::FromShim;

/// The most bytes of arguments: none come near it.
const ARGUMENTS_MAX: usize = 4096;

/// How many calls of a task may be under way.
const MOST: usize = 64;

/// How long an answer may take if the caller does not say, as the kernel module has it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The calls of a task.
pub(super) struct Calls {
    listener: OwnedFd,
    /// By the kernel's number for them.
    under_way: BTreeMap<u64, Waiting>,
    /// Whether it is listened to.
    pub(super) heard: bool,
    /// When their times are looked at next.
    alarm: Option<u64>,
}

/// A process that waits for an answer.
struct Waiting {
    asked: Asked,
    /// Its memory.
    memory: File,
    /// Where its arguments are, and as they were.
    at: u64,
    arguments: Vec<u8>,
    /// Whether no agent is an answer.
    nowait: bool,
    /// As [`now`] has it.
    until: u64,
    /// Whether an agent has it.
    told: bool,
}

/// What the agent is to answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) pid: u32,
    pub(super) op: u32,
    pub(super) input: Vec<u8>,
}

/// A number of errno(3).
type Errno = i32;

impl Calls {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self { listener, under_way: BTreeMap::new(), heard: false, alarm: None }
    }

    /// Takes the next call, if one is there that has not failed already; nothing of it is with an agent yet.
    pub(super) fn take(&mut self) -> Option<u64> {
        // SAFETY: the kernel wants it zeroed.
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: it is what this request fills.
        let taken =
            unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
        if taken < 0 {
            // Who called is gone.
            return None;
        }
        match self.read(&call) {
            Ok(waiting) => {
                self.under_way.insert(call.id, waiting);
                Some(call.id)
            }
            Err(errno) => {
                self.say(call.id, Err(errno));
                None
            }
        }
    }

    fn read(&self, call: &libc::seccomp_notif) -> Result<Waiting, Errno> {
        if self.under_way.len() >= MOST {
            return Err(libc::EDQUOT);
        }
        let [op, at, size, ..] = call.data.args;
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", call.pid));
        let memory = memory.map_err(|_| libc::ESRCH)?;
        if !self.waits(call.id) {
            return Err(libc::ESRCH);
        }
        let op = Op(u32::try_from(op).map_err(|_| libc::ENOTTY)?);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let at_least = match op {
            Op::VERSION => abi::Version::SIZE,
            Op::SELF => abi::SelfInfo::SIZE,
            Op::LOOKUP => abi::Lookup::SIZE,
            Op::NODES | Op::JOBS => List::SIZE,
            Op::CALL => Call::SIZE,
            Op(128..=255) => return Err(libc::EPERM),
            _ => return Err(libc::ENOTTY),
        };
        if size < at_least {
            return Err(libc::EINVAL);
        }
        if size > ARGUMENTS_MAX {
            return Err(libc::E2BIG);
        }
        let arguments = load(&memory, at, size)?;
        if arguments.first_chunk().map(|said| u32::from_ne_bytes(*said) as usize) != Some(size) {
            return Err(libc::EINVAL);
        }
        if arguments[at_least..].iter().any(|byte| *byte != 0) {
            return Err(libc::E2BIG);
        }
        let (op, input, nowait, patience) = match op {
            Op::CALL => {
                let call = Call::from_bytes(&arguments);
                if call.op < 256 || call.flags & !CALL_NOWAIT != 0 {
                    return Err(libc::EINVAL);
                }
                let (given, room) = (call.input_len as usize, call.output_len as usize);
                if given > CALL_MAX || room > CALL_MAX {
                    return Err(libc::EMSGSIZE);
                }
                let patience = match call.timeout_ms {
                    0 => PATIENCE,
                    given => Duration::from_millis(given.into()),
                };
                (call.op, load(&memory, call.input, given)?, call.flags & CALL_NOWAIT != 0, patience)
            }
            op => (op.0, arguments.clone(), true, PATIENCE),
        };
        let asked = Asked { pid: call.pid, op, input };
        let until = now() + nanos(patience);
        Ok(Waiting { asked, memory, at, arguments, nowait, until, told: false })
    }

    /// Whether who called still waits for this.
    fn waits(&self, id: u64) -> bool {
        // SAFETY: the request reads this number.
        unsafe {
            libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0
        }
    }

    /// What an agent is to be told of a call, and whether another was before.
    pub(super) fn tell(&mut self, id: u64) -> Option<(Asked, bool)> {
        let waiting = self.under_way.get_mut(&id)?;
        let again = mem::replace(&mut waiting.told, true);
        Some((waiting.asked.clone(), again))
    }

    /// All that are under way.
    pub(super) fn all(&self) -> Vec<u64> {
        self.under_way.keys().copied().collect()
    }

    /// The agent's answer.
    pub(super) fn answer(&mut self, id: u64, errno: Errno, output: &[u8]) {
        let Some(waiting) = self.under_way.remove(&id) else { return };
        let done = if self.waits(id) { waiting.write(errno, output) } else { Err(libc::EINTR) };
        self.say(id, done);
    }

    /// Ends those calls that would not wait for an agent that is to come.
    pub(super) fn no_agent(&mut self) {
        self.end(libc::EAGAIN, |waiting| waiting.nowait);
    }

    /// Ends all: what called is to stand still.
    pub(super) fn interrupt(&mut self) {
        self.end(libc::EINTR, |_| true);
    }

    /// Ends those whose time is over.
    pub(super) fn time_out(&mut self) {
        let now = now();
        self.alarm = None;
        self.end(libc::ETIMEDOUT, |waiting| waiting.until <= now);
    }

    /// When [`Calls::time_out`] is to be called, if that is earlier than was said before: there is one alarm, not one a call.
    pub(super) fn next_alarm(&mut self) -> Option<u64> {
        let first = self.under_way.values().map(|waiting| waiting.until).min()?;
        let earlier = self.alarm.is_none_or(|alarm| first < alarm);
        earlier.then(|| *self.alarm.insert(first))
    }

    fn end(&mut self, errno: Errno, which: impl Fn(&Waiting) -> bool) {
        let ended: Vec<u64> =
            self.under_way.iter().filter(|(_, waiting)| which(waiting)).map(|(id, _)| *id).collect();
        for id in ended {
            self.under_way.remove(&id);
            self.say(id, Err(errno));
        }
    }

    fn say(&self, id: u64, result: Result<(), Errno>) {
        let error = result.err().map_or(0, |errno| -errno);
        let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags: 0 };
        // Who died meanwhile needs no answer.
        // SAFETY: it is what this request reads.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }
}

impl AsFd for Calls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Waiting {
    /// Writes what came of it where the caller wants it; as the device does, of an error the sentence.
    fn write(&self, errno: Errno, output: &[u8]) -> Result<(), Errno> {
        let failed = if errno == 0 { Ok(()) } else { Err(errno) };
        if self.asked.op >= 256 {
            let mut call = Call::from_bytes(&self.arguments);
            let room = (call.output_len as usize).min(CALL_MAX);
            if output.len() > room && errno == 0 {
                return Err(libc::EMSGSIZE);
            }
            let output = &output[..output.len().min(room)];
            store(&self.memory, call.output, output)?;
            call.output_len = output.len() as u32;
            store(&self.memory, self.at, &call.to_bytes())?;
            return failed;
        }
        failed?;
        match Op(self.asked.op) {
            Op::NODES => self.list(output, abi::Node::SIZE),
            Op::JOBS => self.list(output, abi::Job::SIZE),
            _ => store(&self.memory, self.at, &output[..output.len().min(self.arguments.len())]),
        }
    }

    /// The records that the agent chose, as long as the caller knows them.
    fn list(&self, output: &[u8], record: usize) -> Result<(), Errno> {
        let mut list = List::from_bytes(&self.arguments);
        let known = list.record_size as usize;
        let mut at = list.records;
        let mut count = 0;
        for one in output.chunks_exact(record).take(list.count as usize) {
            store(&self.memory, at, &one[..record.min(known)])?;
            store(&self.memory, at + record.min(known) as u64, &vec![0; known.saturating_sub(record)])?;
            at += known as u64;
            count += 1;
        }
        list.count = count;
        store(&self.memory, self.at, &list.to_bytes())
    }
}

fn load(memory: &File, at: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; bytes];
    memory.read_exact_at(&mut buffer, at).map_err(|_| libc::EFAULT)?;
    Ok(buffer)
}

fn store(memory: &File, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    memory.write_all_at(bytes, at).map_err(|_| libc::EFAULT)
}

impl Shim {
    /// Takes calls of a task's processes while it runs, and no others: see above.
    pub(super) fn hear_calls(&mut self, slot: u32) {
        let frozen = self.frozen;
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        let runs = !frozen && task.worker.is_none();
        let Some(calls) = task.calls.as_mut().filter(|calls| calls.heard != runs) else { return };
        let changed = match runs {
            true => {
                self.epoll.add(&*calls, EpollEvent::new(EpollFlags::EPOLLIN, Source::Call(slot).to_u64()))
            }
            false => self.epoll.delete(&*calls),
        };
        calls.heard = runs && changed.is_ok();
    }

    pub(super) fn call(&mut self, slot: u32, events: EpollFlags) {
        let has_agent = self.agent.is_some();
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        let Some(calls) = &mut task.calls else { return };
        if !events.contains(EpollFlags::EPOLLIN) {
            // Nobody is left who could call.
            let _ = self.epoll.delete(&*calls);
            return;
        }
        let Some(id) = calls.take() else { return };
        if !has_agent {
            calls.no_agent();
        }
        if let Some(next) = calls.next_alarm() {
            self.schedule(next, Due::Calls(slot));
        }
        if has_agent {
            self.tell_call(slot, id);
        }
    }

    fn tell_call(&mut self, slot: u32, call: u64) {
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        let run = task.run();
        if let Some((asked, again)) = task.calls.as_mut().and_then(|calls| calls.tell(call)) {
            let Asked { pid, op, input } = asked;
            self.tell(&FromShim::Called { run, call, again, pid, op, input });
        }
    }

    /// What an earlier agent has not answered is for the new one.
    pub(super) fn calls_again(&mut self, slot: u32) {
        let calls = self.tasks.get(&slot).and_then(|task| task.calls.as_ref());
        let all = calls.map(Calls::all).unwrap_or_default();
        all.into_iter().for_each(|call| self.tell_call(slot, call));
    }
}

/// A filter that is to be installed, and the way back for its listener.
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
    ours: OwnedFd,
    its: OwnedFd,
}

impl Filter {
    /// # Errors
    /// Where no descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let instruction = |one: &[u8; 8]| libc::sock_filter {
            code: u16::from_ne_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_ne_bytes([one[4], one[5], one[6], one[7]]),
        };
        let program = grid_checkpoint::filter::program();
        let program = program.as_chunks().0.iter().map(instruction).collect();
        Ok(Self { program, ours, its })
    }

    /// Installs it in the calling thread, which this must be the only one of its process, and sends the listener. Makes
    /// system calls alone, so that it can be called between fork and exec.
    ///
    /// # Errors
    /// Where the kernel does not take it.
    pub(super) fn install(&self) -> io::Result<()> {
        const FLAGS: libc::c_ulong =
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let program =
            libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_ptr().cast_mut() };
        let mut byte = 0u8;
        // SAFETY: the program is there while the kernel copies it; the message and what it points to are this frame's, and
        // as large as they say.
        unsafe {
            let listener =
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, &raw const program);
            if listener < 0 {
                return Err(io::Error::last_os_error());
            }
            #[repr(C)]
            struct Rights {
                header: libc::cmsghdr,
                descriptor: libc::c_int,
            }
            let mut rights = Rights {
                header: libc::cmsghdr {
                    cmsg_len: mem::offset_of!(Rights, descriptor) + size_of::<libc::c_int>(),
                    cmsg_level: libc::SOL_SOCKET,
                    cmsg_type: libc::SCM_RIGHTS,
                },
                descriptor: listener as libc::c_int,
            };
            let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let mut message: libc::msghdr = mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut rights).cast();
            message.msg_controllen = size_of::<Rights>();
            let sent = libc::sendmsg(self.its.as_raw_fd(), &raw const message, 0);
            let error = io::Error::last_os_error();
            libc::close(listener as libc::c_int);
            if sent < 0 { Err(error) } else { Ok(()) }
        }
    }

    /// The listener of one that was installed.
    ///
    /// # Errors
    /// Where it was not.
    pub(super) fn listener(self) -> io::Result<OwnedFd> {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        drop(self.its);
        let mut byte = [0];
        let mut parts = [io::IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.ours.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let descriptor = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let descriptor = descriptor.ok_or_else(|| io::Error::other("its listener did not come"))?;
        // SAFETY: the kernel opened it for this message.
        Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) })
    }
}
