//! `gridos-init`: pid 1 of a task.
//!
//! It prepares the task's mounts, starts the program as the task's user, reaps orphans until the program ends,
//! tells the shim how it ended, and ends, whereupon the kernel ends the rest of the task.
//!
//! It is a static program without any library, because it is started for every task: an address space of a
//! few pages is made, copied and taken down in a fraction of the time of the shim's. For the same reason it
//! starts the program in a child that borrows its memory until it executes (`CLONE_VM | CLONE_VFORK`).
//!
//! What it is given, by the shim:
//!
//! | what | means |
//! | --- | --- |
//! | descriptors 0, 1, 2 | the program's |
//! | descriptor 3 | the status pipe: [`Record`]s |
//! | descriptors 4 to 3 + `groups` | write `0` here to join the control groups |
//! | arguments | `gridos-init`, work, workdir, tmp, uid, mode, groups, job, task, places, the program's possible places, its arguments |
//! | environment | the program's |
//!
//! The mode is a sum: 1, descriptor 0 is a terminal, to be taken; 2, there is no input: descriptor 0 becomes
//! `/dev/null`, opened here, in the task's own mount namespace, for a checkpoint can name no file of another; 4, a
//! checkpoint is restored. With a job that is not 0, the program's process is entered in the kernel module.
//!
//! **Restored.** Init makes the mounts and starts nothing: it closes descriptors 0 to 2, which tells whoever restores that
//! the mounts are there, and reaps what is put below it until pid 2 ends, the number that every task's program has.
#![no_main]
// The compiler may turn code into calls of these; without the C library they must be here, and must not be turned
// into calls of themselves.
#![no_builtins]

mod memory;
mod system;

#[path = "../../record.rs"]
#[expect(dead_code, reason = "the shim's half reads what this program writes")]
mod record;

use core::ptr;

use record::{Record, Step};
use system::{Errno, Strings};

/// The status pipe.
const STATUS: usize = 3;

/// The first entrance of a control group.
const ENTRANCES: usize = 4;

/// The bits of the mode.
const TERMINAL: usize = 1;
const NO_INPUT: usize = 2;
const RESTORED: usize = 4;

/// The pid of the program: the first process of its namespace after this one.
const PROGRAM: usize = 2;

/// What the arguments say.
struct Task {
    work: *const u8,
    workdir: *const u8,
    tmp: *const u8,
    uid: usize,
    mode: usize,
    groups: usize,
    job: usize,
    index: usize,
    places: Strings,
    count: usize,
    argv: Strings,
    envp: Strings,
}

type Failed = (Step, Errno);

/// Entered by `_start` with the stack that the kernel made.
///
/// # Safety
/// `stack` is what the kernel puts there for a new program: the count of arguments, their addresses, a null, the
/// addresses of the environment, a null.
#[unsafe(no_mangle)]
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: as promised by the caller; the shim passes at least eleven arguments.
    let task = unsafe { Task::read(stack) };
    let started = task.prepare().and_then(|()| match task.mode & RESTORED {
        0 => task.start(),
        _ => system::block_child_signal().map(|()| PROGRAM).map_err(|errno| (Step::Init, errno)),
    });
    match started {
        Ok(pid) => wait(pid),
        Err((step, errno)) => fail(step, errno),
    }
}

impl Task {
    unsafe fn read(stack: *const usize) -> Self {
        // SAFETY: within the arguments and the environment, by the promise of `begin`.
        unsafe {
            let count = *stack;
            let argv = stack.add(1).cast::<*const u8>();
            let at = |index: usize| *argv.add(index);
            let places = system::number(at(9));
            Self {
                work: at(1),
                workdir: at(2),
                tmp: at(3),
                uid: system::number(at(4)),
                mode: system::number(at(5)),
                groups: system::number(at(6)),
                job: system::number(at(7)),
                index: system::number(at(8)),
                places: argv.add(10),
                count: places,
                argv: argv.add(10 + places),
                envp: argv.add(count + 1),
            }
        }
    }

    fn prepare(&self) -> Result<(), Failed> {
        const NOSUID: usize = 2;
        const NODEV: usize = 4;
        const NOEXEC: usize = 8;
        const BIND: usize = 4096;
        const REC: usize = 16384;
        const SLAVE: usize = 1 << 19;
        let none = c"none".as_ptr().cast::<u8>();
        let text = |text: &'static core::ffi::CStr| text.as_ptr().cast::<u8>();
        let mount = |step, source, target, kind, flags, data| {
            system::mount(source, target, kind, flags, data).map_err(|errno| (step, errno))
        };
        // The shim's death is ours: PR_SET_PDEATHSIG, SIGKILL.
        system::prctl(1, 9).map_err(|errno| (Step::Init, errno))?;
        mount(Step::Propagation, none, text(c"/"), none, REC | SLAVE, ptr::null())?;
        mount(Step::Work, self.work, self.workdir, none, BIND, ptr::null())?;
        mount(Step::Tmp, self.tmp, text(c"/tmp"), none, BIND, ptr::null())?;
        let proc = text(c"proc");
        mount(Step::Proc, proc, text(c"/proc"), proc, NOSUID | NODEV | NOEXEC, ptr::null())?;
        let tmpfs = text(c"tmpfs");
        mount(Step::SharedMemory, tmpfs, text(c"/dev/shm"), tmpfs, NOSUID | NODEV, text(c"mode=1777"))
    }

    fn start(&self) -> Result<usize, Failed> {
        extern "C" fn enter(task: *const Task) -> ! {
            // SAFETY: `start` waits (CLONE_VFORK) until this child no longer uses it.
            unsafe { (*task).become_program() }
        }
        // SAFETY: `enter` takes a task and never returns; this process has no other thread that could use the
        // child's stack meanwhile.
        unsafe { system::spawn(enter, self) }.map_err(|errno| (Step::Clone, errno))
    }

    fn become_program(&self) -> ! {
        let (step, errno) = match self.enter() {
            Ok(()) => (Step::Execute, self.execute()),
            Err(failed) => failed,
        };
        fail(step, errno)
    }

    fn enter(&self) -> Result<(), Failed> {
        let at = |step| move |errno| (step, errno);
        for entrance in ENTRANCES..ENTRANCES + self.groups {
            system::write(entrance, b"0").map_err(at(Step::Cgroup))?;
        }
        if self.job != 0 {
            // Where that fails, the agent gives it an id when it is looked at.
            let _ = system::register(self.job, self.index);
        }
        system::setsid().map_err(at(Step::Session))?;
        if self.mode & TERMINAL != 0 {
            system::take_terminal(0).map_err(at(Step::Terminal))?;
        }
        if self.mode & NO_INPUT != 0 {
            system::close(0);
            system::open_for_reading(c"/dev/null").map_err(at(Step::Input))?;
        }
        system::chdir(self.workdir).map_err(at(Step::Folder))?;
        system::become_user(self.uid).map_err(at(Step::Identity))?;
        // PR_SET_NO_NEW_PRIVS: no program with special rights lifts the task above its user.
        system::prctl(38, 1).map_err(at(Step::Privileges))?;
        // The kernel tells nobody to what a program restricts itself by Landlock: a restored one would have lost it unseen.
        // Nor can one that closes itself off from sockets be written down at all.
        system::refuse_landlock();
        system::restore_signals();
        // The status pipe stays until the program is executed.
        system::close_on_exec_from(STATUS);
        Ok(())
    }

    /// Tries each place; returns the error to tell.
    fn execute(&self) -> Errno {
        let mut worst = system::NOT_FOUND;
        for index in 0..self.count {
            // SAFETY: `places` has `count` entries.
            let place = unsafe { *self.places.add(index) };
            let errno = system::execute(place, self.argv, self.envp);
            if errno != system::NOT_FOUND && errno != system::NO_FOLDER {
                worst = errno;
            }
        }
        worst
    }
}

/// Reaps until the program ends; its end is the task's.
fn wait(program: usize) -> ! {
    // Nothing of the task's pipes may stay open here, or their end would never be seen. To a restore it is the mark.
    system::close_all_but(STATUS);
    loop {
        match system::wait() {
            Ok((pid, status)) if pid == program => {
                tell(Record::Ended(status));
                system::exit(0);
            }
            Ok(_) | Err(system::INTERRUPTED) => (),
            // Nothing was restored yet: the end of what comes is waited for, blocked as its signal is.
            Err(system::NO_CHILD) => system::wait_for_child_signal(),
            Err(_) => system::exit(1),
        }
    }
}

fn tell(record: Record) {
    // A shim that is gone hears nothing, and has taken this process with it.
    let _ = system::write(STATUS, &record.to_bytes());
}

fn fail(step: Step, errno: Errno) -> ! {
    tell(Record::Failed(step, errno));
    system::exit(127)
}
