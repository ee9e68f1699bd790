//! The system calls of init, straight to the kernel: nothing here uses a library, or memory of its own beyond the
//! stack. Numbers are from the kernel's tables for each architecture.

use core::arch::{asm, global_asm};

/// A null-terminated array of C strings.
pub(crate) type Strings = *const *const u8;

/// The kernel's error number.
pub(crate) type Errno = i32;

pub(crate) const NOT_FOUND: Errno = 2;
pub(crate) const INTERRUPTED: Errno = 4;
pub(crate) const NO_CHILD: Errno = 10;
pub(crate) const NO_FOLDER: Errno = 20;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const CHDIR: usize = 80;
    pub(super) const UMASK: usize = 95;
    pub(super) const SETSID: usize = 112;
    pub(super) const SETGROUPS: usize = 116;
    pub(super) const SETRESUID: usize = 117;
    pub(super) const SETRESGID: usize = 119;
    pub(super) const RT_SIGTIMEDWAIT: usize = 128;
    pub(super) const PRCTL: usize = 157;
    pub(super) const MOUNT: usize = 165;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const CLOSE_RANGE: usize = 436;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const IOCTL: usize = 29;
    pub(super) const MOUNT: usize = 40;
    pub(super) const CHDIR: usize = 49;
    pub(super) const OPENAT: usize = 56;
    pub(super) const CLOSE: usize = 57;
    pub(super) const WRITE: usize = 64;
    pub(super) const EXIT_GROUP: usize = 94;
    pub(super) const RT_SIGACTION: usize = 134;
    pub(super) const RT_SIGPROCMASK: usize = 135;
    pub(super) const RT_SIGTIMEDWAIT: usize = 137;
    pub(super) const SETRESUID: usize = 147;
    pub(super) const SETRESGID: usize = 149;
    pub(super) const SETSID: usize = 157;
    pub(super) const SETGROUPS: usize = 159;
    pub(super) const UMASK: usize = 166;
    pub(super) const PRCTL: usize = 167;
    pub(super) const CLONE: usize = 220;
    pub(super) const EXECVE: usize = 221;
    pub(super) const WAIT4: usize = 260;
    pub(super) const CLOSE_RANGE: usize = 436;
}

// The kernel enters here; there is no frame to return to.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym crate::begin
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {begin}",
    "brk #1",
    begin = sym crate::begin
);

/// The stack of the child that becomes the program.
const STACK: usize = 16 << 10;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; STACK]>);

// SAFETY: this program has one thread, and starts one child, once.
unsafe impl Sync for Stack {}

static CHILD: Stack = Stack(core::cell::UnsafeCell::new([0; STACK]));

/// # Safety
/// The arguments are what this system call demands.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments are what this system call demands.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but x0; the rest is the caller's promise.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
             in("x4") e, options(nostack));
    }
    result
}

fn check(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| -result as Errno)
}

/// Starts a child that shares this memory, and waits until it executes or ends.
///
/// # Safety
/// Called once; `enter` never returns.
pub(crate) unsafe fn spawn<T>(
    enter: extern "C" fn(*const T) -> !,
    argument: *const T,
) -> Result<usize, Errno> {
    // CLONE_VM, CLONE_VFORK, SIGCHLD.
    const FLAGS: usize = 0x100 | 0x4000 | 17;
    let top = CHILD.0.get() as usize + STACK;
    let result: isize;
    // SAFETY: the child begins on its own stack with the argument in place and calls `enter`, which never returns;
    // the parent goes on behind it with all registers that it counts on.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "mov rdi, r13", "call r12", "ud2", "2:",
             inlateout("rax") number::CLONE => result, in("rdi") FLAGS, in("rsi") top, in("rdx") 0, in("r10") 0,
             in("r8") 0, in("r12") enter, in("r13") argument, lateout("rcx") _, lateout("r11") _);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", "cbnz x0, 2f", "mov x0, x20", "blr x21", "brk #1", "2:",
             in("x8") number::CLONE, inlateout("x0") FLAGS => result, in("x1") top, in("x2") 0, in("x3") 0,
             in("x4") 0, in("x20") argument, in("x21") enter, lateout("x30") _);
    }
    check(result)
}

/// The decimal number in a C string.
///
/// # Safety
/// `text` is null-terminated.
pub(crate) unsafe fn number(text: *const u8) -> usize {
    let mut value = 0usize;
    let mut at = text;
    // SAFETY: stops at the null.
    unsafe {
        while *at >= b'0' && *at <= b'9' {
            value = value.wrapping_mul(10).wrapping_add((*at - b'0') as usize);
            at = at.add(1);
        }
    }
    value
}

pub(crate) fn write(fd: usize, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `bytes` alone.
    check(unsafe { call(number::WRITE, fd, bytes.as_ptr() as usize, bytes.len(), 0, 0) })
}

pub(crate) fn mount(
    source: *const u8,
    target: *const u8,
    kind: *const u8,
    flags: usize,
    data: *const u8,
) -> Result<(), Errno> {
    // SAFETY: every caller passes C strings, or null for `data`.
    let result =
        unsafe { call(number::MOUNT, source as usize, target as usize, kind as usize, flags, data as usize) };
    check(result).map(drop)
}

pub(crate) fn prctl(what: usize, value: usize) -> Result<(), Errno> {
    // SAFETY: the options that are used take a number.
    check(unsafe { call(number::PRCTL, what, value, 0, 0, 0) }).map(drop)
}

/// Answers `landlock_create_ruleset(2)` as a kernel does on which Landlock is switched off, from here on and in all that
/// descends from here. A kernel without filters of system calls has to be taken as it is.
///
/// The number is the same on every architecture, and for programs of 32 bits. Wants `PR_SET_NO_NEW_PRIVS` set.
pub(crate) fn refuse_landlock() {
    const PR_SET_SECCOMP: usize = 22;
    const SECCOMP_MODE_FILTER: usize = 2;
    const LANDLOCK_CREATE_RULESET: u32 = 444;
    const EOPNOTSUPP: u32 = 95;
    /// struct sock_filter.
    #[repr(C)]
    struct Instruction(u16, u8, u8, u32);
    /// struct sock_fprog.
    #[repr(C)]
    struct Program(u16, *const Instruction);
    let instructions = [
        // BPF_LD | BPF_W | BPF_ABS: the number, the first word of struct seccomp_data.
        Instruction(0x20, 0, 0, 0),
        // BPF_JMP | BPF_JEQ | BPF_K.
        Instruction(0x15, 0, 1, LANDLOCK_CREATE_RULESET),
        // BPF_RET | BPF_K: SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW.
        Instruction(0x06, 0, 0, 0x0005_0000 | EOPNOTSUPP),
        Instruction(0x06, 0, 0, 0x7fff_0000),
    ];
    let program = Program(instructions.len() as u16, instructions.as_ptr());
    // SAFETY: the kernel copies the program, which is there meanwhile and as long as it says.
    let _ = unsafe {
        call(number::PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program as usize, 0, 0)
    };
}

pub(crate) fn setsid() -> Result<(), Errno> {
    // SAFETY: takes nothing.
    check(unsafe { call(number::SETSID, 0, 0, 0, 0, 0) }).map(drop)
}

pub(crate) fn take_terminal(fd: usize) -> Result<(), Errno> {
    const TIOCSCTTY: usize = 0x540e;
    // SAFETY: takes a number.
    check(unsafe { call(number::IOCTL, fd, TIOCSCTTY, 0, 0, 0) }).map(drop)
}

pub(crate) fn chdir(path: *const u8) -> Result<(), Errno> {
    // SAFETY: the caller passes a C string.
    check(unsafe { call(number::CHDIR, path as usize, 0, 0, 0, 0) }).map(drop)
}

/// The user and the group of this number, and no other group.
pub(crate) fn become_user(id: usize) -> Result<(), Errno> {
    // SAFETY: an empty list of groups needs no address; the others take numbers.
    unsafe {
        check(call(number::SETGROUPS, 0, 0, 0, 0, 0))?;
        check(call(number::SETRESGID, id, id, id, 0, 0))?;
        check(call(number::SETRESUID, id, id, id, 0, 0)).map(drop)
    }
}

/// What a program expects: no signal blocked, SIGPIPE as usual, files readable by all.
pub(crate) fn restore_signals() {
    const SIGPIPE: usize = 13;
    // The kernel's struct sigaction: default handler, no flags, no restorer, nothing blocked.
    let default = [0usize; 4];
    let none = 0u64;
    // SAFETY: both structures are of the sizes that the kernel is told.
    unsafe {
        call(number::RT_SIGACTION, SIGPIPE, (&raw const default) as usize, 0, size_of_val(&none), 0);
        call(number::RT_SIGPROCMASK, 2, (&raw const none) as usize, 0, size_of_val(&none), 0);
        call(number::UMASK, 0o022, 0, 0, 0, 0);
    }
}

/// The set of signals with SIGCHLD alone.
const CHILD_SIGNAL: u64 = 1 << 16;

/// A child's end waits, instead of being ignored, from now on.
pub(crate) fn block_child_signal() -> Result<(), Errno> {
    let set = CHILD_SIGNAL;
    // SAFETY: the set is of the size that the kernel is told. 0 is SIG_BLOCK.
    check(unsafe { call(number::RT_SIGPROCMASK, 0, (&raw const set) as usize, 0, size_of::<u64>(), 0) })
        .map(drop)
}

/// Waits until a child ended, or has ended since it was blocked.
pub(crate) fn wait_for_child_signal() {
    let set = CHILD_SIGNAL;
    // SAFETY: the set is of the size that the kernel is told; nobody asks for details, and there is no time limit.
    unsafe { call(number::RT_SIGTIMEDWAIT, (&raw const set) as usize, 0, 0, size_of::<u64>(), 0) };
}

pub(crate) fn close(fd: usize) {
    // SAFETY: takes a number.
    unsafe { call(number::CLOSE, fd, 0, 0, 0, 0) };
}

/// The lowest free number becomes the file's.
pub(crate) fn open_for_reading(path: &'static core::ffi::CStr) -> Result<usize, Errno> {
    // AT_FDCWD, which a path from the root does not use. SAFETY: a C string; O_RDONLY is 0.
    check(unsafe { call(number::OPENAT, -100isize as usize, path.as_ptr() as usize, 0, 0, 0) })
}

/// Enters this process in the kernel module: `GRIDOS_OP_ENTER` of `kmod/include/uapi/linux/gridos.h`.
pub(crate) fn register(job: usize, task: usize) -> Result<(), Errno> {
    const ENTER: usize = 0xe9 << 8 | 133;
    const O_RDWR: usize = 2;
    #[repr(C)]
    struct Register {
        size: u32,
        pid: i32,
        gpid: u64,
        job: u64,
        task: u32,
        reserved: u32,
    }
    let size = size_of::<Register>() as u32;
    let mut register = Register { size, pid: 0, gpid: 0, job: job as u64, task: task as u32, reserved: 0 };
    let path = c"/dev/gridos".as_ptr() as usize;
    // AT_FDCWD, which a path from the root does not use. SAFETY: a C string, and numbers.
    let device = check(unsafe { call(number::OPENAT, -100isize as usize, path, O_RDWR, 0, 0) })?;
    // SAFETY: the kernel reads and writes the struct alone.
    let done = check(unsafe { call(number::IOCTL, device, ENTER, (&raw mut register) as usize, 0, 0) });
    close(device);
    done.map(drop)
}

pub(crate) fn close_on_exec_from(fd: usize) {
    // CLOSE_RANGE_CLOEXEC. SAFETY: takes numbers; from Linux 5.11.
    unsafe { call(number::CLOSE_RANGE, fd, u32::MAX as usize, 4, 0, 0) };
}

pub(crate) fn close_all_but(fd: usize) {
    // SAFETY: takes numbers.
    unsafe {
        call(number::CLOSE_RANGE, 0, fd - 1, 0, 0, 0);
        call(number::CLOSE_RANGE, fd + 1, u32::MAX as usize, 0, 0, 0);
    }
}

pub(crate) fn execute(program: *const u8, argv: Strings, envp: Strings) -> Errno {
    // SAFETY: a C string and null-terminated arrays of them, all on the stack that the kernel made.
    let result = unsafe { call(number::EXECVE, program as usize, argv as usize, envp as usize, 0, 0) };
    -result as Errno
}

/// The next child that ended, and its status.
pub(crate) fn wait() -> Result<(usize, i32), Errno> {
    let mut status = 0i32;
    // SAFETY: the kernel writes one int.
    let pid = check(unsafe { call(number::WAIT4, usize::MAX, (&raw mut status) as usize, 0, 0, 0) })?;
    Ok((pid, status))
}

pub(crate) fn exit(status: usize) -> ! {
    loop {
        // SAFETY: takes a number, and does not return.
        unsafe { call(number::EXIT_GROUP, status, 0, 0, 0, 0) };
    }
}
