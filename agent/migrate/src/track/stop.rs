//! A process whose threads all stand still, and system calls made in it.
//!
//! ```text
//!  seize every thread ─▶ interrupt ─▶ all stopped ─▶ borrow one: save registers and mask, block signals
//!      ▲ until no new one appears                       │ system calls
//!                                                       ▼
//!  detach, all run on ◀─ restore mask and registers ◀─ interrupt again: a stop inside the kernel's signal code
//! ```
//!
//! **The second interrupt.** A thread that was stopped in a system call has it restarted by the kernel's signal code, which
//! looks at the registers on the way out of *that* stop. Registers put back in a stop after a system call would
//! let the program see `-ERESTARTSYS` instead.
//!
//! **A tracer's end.** All this happens in a thread of its own: when it ends, however it does, the kernel lets go of
//! whatever it still traces.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::kernel::{maps::Mapping, tree};

/// For all threads to stop; one that waits for a disk, or for the program of its `vfork`, stops only then.
const TIME_TO_STOP: Duration = Duration::from_secs(1);

/// The kernel adds this to the signal of a stop at a system call (`PTRACE_O_TRACESYSGOOD`).
const AT_CALL: i32 = libc::SIGTRAP | 0x80;

/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Bytes of code that are searched for that instruction, in each mapping.
const MOST_CODE: u64 = 4 << 20;

/// The code segment of 64-bit programs.
const CS_64: u64 = 0x33;

/// A process whose threads are all stopped; they run on when this is dropped.
#[derive(Debug)]
pub(super) struct Stopped {
    threads: Vec<i32>,
}

/// How a wait ended.
enum Stop {
    /// At the entrance or the exit of a system call.
    Call,
    /// By an interrupt, or with the whole process by a signal like SIGSTOP.
    Event,
    /// Before a signal is delivered.
    Signal(i32),
    /// It has ended.
    Gone,
}

impl Stopped {
    /// Stops every thread of a process.
    ///
    /// # Errors
    /// Where one cannot be traced, or does not stop in time.
    pub(super) fn all(proc: &Path, pid: i32) -> io::Result<Self> {
        let mut stopped = Self { threads: Vec::new() };
        let deadline = Instant::now() + TIME_TO_STOP;
        loop {
            let new: Vec<i32> = tree::threads(proc, pid)?
                .into_iter()
                .filter(|thread| !stopped.threads.contains(thread))
                .filter(|thread| !matches!(tree::state(proc, pid, *thread), Some(b'Z' | b'X') | None))
                .collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                match seize(thread) {
                    // It ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                    seized => seized?,
                }
                if stop(thread, deadline)? {
                    stopped.threads.push(thread);
                }
            }
        }
        if stopped.threads.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(stopped)
    }

    /// Borrows the first thread for system calls.
    ///
    /// # Errors
    /// Where it is no 64-bit program, or none of its code holds the instruction.
    pub(super) fn borrow(&self, pid: i32, mappings: &[Mapping]) -> io::Result<Borrowed> {
        let thread = self.threads.first().copied().unwrap_or(pid);
        let registers = get_registers(thread)?;
        if registers.cs != CS_64 {
            return Err(io::Error::other("it is no 64-bit program"));
        }
        let site = site(pid, mappings).ok_or_else(|| io::Error::other("its code holds no syscall"))?;
        let mut mask = 0u64;
        // SAFETY: the kernel writes a mask of the size that is given.
        unsafe { request(libc::PTRACE_GETSIGMASK, thread, size_of::<u64>(), (&raw mut mask) as usize) }?;
        let borrowed = Borrowed { thread, site, registers, mask };
        borrowed.set_mask(u64::MAX)?;
        Ok(borrowed)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // One that was killed meanwhile is gone.
            // SAFETY: no pointers are passed.
            let _ = unsafe { request(libc::PTRACE_DETACH, thread, 0, 0) };
        }
    }
}

/// A stopped thread that makes our system calls.
#[derive(Debug)]
pub(super) struct Borrowed {
    thread: i32,
    site: u64,
    registers: libc::user_regs_struct,
    mask: u64,
}

impl Borrowed {
    /// What the kernel answers to this call, made in the thread.
    pub(super) fn call(&self, number: libc::c_long, arguments: [u64; 2]) -> io::Result<u64> {
        let mut registers = self.registers;
        registers.rip = self.site;
        registers.rax = number as u64;
        // None of the kernel's restarting of what was interrupted.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi] = arguments;
        set_registers(self.thread, &registers)?;
        self.resume(libc::PTRACE_SYSCALL, |stop| matches!(stop, Stop::Call))?;
        self.resume(libc::PTRACE_SYSCALL, |stop| matches!(stop, Stop::Call))?;
        let answer = get_registers(self.thread)?.rax as i64;
        if (-4095..0).contains(&answer) {
            return Err(io::Error::from_raw_os_error(-answer as i32));
        }
        Ok(answer as u64)
    }

    /// Makes it what it was.
    pub(super) fn give_back(self) -> io::Result<()> {
        interrupt(self.thread)?;
        self.resume(libc::PTRACE_CONT, |stop| matches!(stop, Stop::Event))?;
        set_registers(self.thread, &self.registers)?;
        self.set_mask(self.mask)
    }

    fn set_mask(&self, mask: u64) -> io::Result<()> {
        // SAFETY: the kernel reads a mask of the size that is given.
        unsafe { request(libc::PTRACE_SETSIGMASK, self.thread, size_of::<u64>(), (&raw const mask) as usize) }
    }

    /// Lets it go on until such a stop.
    fn resume(&self, how: libc::c_uint, until: impl Fn(&Stop) -> bool) -> io::Result<()> {
        let deadline = Instant::now() + TIME_TO_STOP;
        let mut signal = 0;
        loop {
            // SAFETY: no pointers are passed.
            unsafe { request(how, self.thread, 0, signal as usize) }?;
            let stop = wait(self.thread, deadline)?;
            if until(&stop) {
                return Ok(());
            }
            signal = match stop {
                // Only those that cannot be blocked.
                Stop::Signal(signal) => signal,
                Stop::Call | Stop::Event => 0,
                Stop::Gone => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            };
        }
    }
}

/// Where the instruction is, best in the kernel's own code.
fn site(pid: i32, mappings: &[Mapping]) -> Option<u64> {
    let own = mappings.iter().filter(|mapping| mapping.vdso);
    own.chain(mappings.iter().filter(|mapping| mapping.executable && !mapping.vdso)).find_map(|mapping| {
        let mut code = vec![0; mapping.range.bytes().min(MOST_CODE) as usize];
        let read = super::copy::read(pid, mapping.range.start, &mut code).ok()?;
        let at = code[..read].windows(2).position(|bytes| bytes == INSTRUCTION)?;
        Some(mapping.range.start + at as u64)
    })
}

/// Traces a thread; a filter of its system calls does not hold for ours.
fn seize(thread: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
    // SAFETY: no pointers are passed.
    let seized = unsafe { request(libc::PTRACE_SEIZE, thread, 0, options as usize) };
    match seized {
        // A kernel or a tracer that cannot suspend them. A thread that has such a filter is left alone.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) && !is_filtered(thread) =>
        {
            // SAFETY: no pointers are passed.
            unsafe { request(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize) }
        }
        seized => seized,
    }
}

fn is_filtered(thread: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    !status.lines().any(|line| line.split_ascii_whitespace().eq(["Seccomp:", "0"]))
}

/// Stops a seized thread; false if it has ended.
fn stop(thread: i32, deadline: Instant) -> io::Result<bool> {
    interrupt(thread)?;
    loop {
        let signal = match wait(thread, deadline)? {
            Stop::Event => return Ok(true),
            Stop::Gone => return Ok(false),
            // It was on its way to the thread; the interrupt comes after it.
            Stop::Signal(signal) => signal,
            Stop::Call => 0,
        };
        // SAFETY: no pointers are passed.
        unsafe { request(libc::PTRACE_CONT, thread, 0, signal as usize) }?;
    }
}

fn interrupt(thread: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    unsafe { request(libc::PTRACE_INTERRUPT, thread, 0, 0) }
}

fn wait(thread: i32, deadline: Instant) -> io::Result<Stop> {
    loop {
        let mut status = 0;
        // SAFETY: the status is written to a place of its type.
        match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 if Instant::now() > deadline => {
                let why = format!("thread {thread} did not stop within {TIME_TO_STOP:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            0 => std::thread::sleep(Duration::from_micros(20)),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => (),
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Stop::Gone),
                error => return Err(error),
            },
            _ if !libc::WIFSTOPPED(status) => return Ok(Stop::Gone),
            _ if status >> 16 == libc::PTRACE_EVENT_STOP => return Ok(Stop::Event),
            _ => match libc::WSTOPSIG(status) {
                AT_CALL => return Ok(Stop::Call),
                signal => return Ok(Stop::Signal(signal)),
            },
        }
    }
}

fn get_registers(thread: i32) -> io::Result<libc::user_regs_struct> {
    // SAFETY: zeros are valid registers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure.
    unsafe { request(libc::PTRACE_GETREGS, thread, 0, (&raw mut registers) as usize) }?;
    Ok(registers)
}

fn set_registers(thread: i32, registers: &libc::user_regs_struct) -> io::Result<()> {
    // SAFETY: the kernel reads one such structure.
    unsafe { request(libc::PTRACE_SETREGS, thread, 0, std::ptr::from_ref(registers) as usize) }
}

/// # Safety
/// Where the request takes a pointer in `data`, it points to what the request reads or writes.
unsafe fn request(request: libc::c_uint, thread: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: as the caller says.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
