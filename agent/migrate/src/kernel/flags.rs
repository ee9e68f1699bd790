//! The flags of a process's mappings, told by an eBPF iterator that the agent has pinned (`mappings` of
//! `kmod/bpf/processes.bpf.c`), without a walk through its pages.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Commands of bpf(2), in `include/uapi/linux/bpf.h`.
const OBJ_GET: i32 = 7;
const LINK_CREATE: i32 = 28;
const ITER_CREATE: i32 = 33;

/// `BPF_TRACE_ITER`.
const TRACE_ITER: u32 = 28;

/// `VM_READ`, `VM_WRITE`, `VM_EXEC` and `VM_SHARED` of `include/linux/mm.h`: what `maps` tells of a mapping.
const RIGHTS: u64 = 0xf;

/// `VM_UFFD_WP`: the tracker's own.
const TRACKED: u64 = 1 << 12;

/// As `struct mapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    start: u64,
    end: u64,
    flags: u64,
}

impl Mapping {
    const SIZE: usize = 24;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut members = bytes.chunks_exact(8).map(|member| member.try_into().map(u64::from_ne_bytes));
        let mut next = || members.next()?.ok();
        Some(Self { start: next()?, end: next()?, flags: next()? })
    }

    /// Where it is, and its rights.
    pub(crate) fn place(self) -> (u64, u64, u64) {
        (self.start, self.end, self.flags & RIGHTS)
    }

    /// All flags but the tracker's.
    pub(crate) fn flags(self) -> u64 {
        self.flags & !TRACKED
    }
}

/// The iterator.
#[derive(Clone, Debug)]
pub(crate) struct Flags(Arc<OwnedFd>);

impl Flags {
    /// # Errors
    /// Where nothing is pinned there, or the kernel refuses it.
    pub(crate) fn open(pinned: &Path) -> io::Result<Self> {
        #[repr(C)]
        struct Attributes {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(pinned.as_os_str().as_bytes())?;
        let attributes = Attributes { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
        bpf(OBJ_GET, &attributes).map(|program| Self(Arc::new(program)))
    }

    /// The mappings of a process, in order.
    ///
    /// # Errors
    /// Where it has ended, or the kernel refuses: before Linux 6.1, it tells of all processes or none.
    pub(crate) fn of(&self, pid: i32) -> io::Result<Vec<Mapping>> {
        /// `union bpf_iter_link_info`.
        #[repr(C)]
        struct Which {
            tid: u32,
            pid: u32,
            pidfd: u32,
            none: u32,
        }
        #[repr(C)]
        struct Attributes {
            program: u32,
            target: u32,
            kind: u32,
            flags: u32,
            which: u64,
            which_size: u32,
            none: u32,
        }
        #[repr(C)]
        struct Iterate {
            link: u32,
            flags: u32,
        }
        let which = Which { tid: 0, pid: pid.unsigned_abs(), pidfd: 0, none: 0 };
        let link = bpf(
            LINK_CREATE,
            &Attributes {
                program: number(&self.0),
                target: 0,
                kind: TRACE_ITER,
                flags: 0,
                which: (&raw const which).addr() as u64,
                which_size: size_of::<Which>() as u32,
                none: 0,
            },
        )?;
        let mut all = Vec::new();
        File::from(bpf(ITER_CREATE, &Iterate { link: number(&link), flags: 0 })?).read_to_end(&mut all)?;
        Ok(all.chunks_exact(Mapping::SIZE).filter_map(Mapping::read).collect())
    }
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// A command that gives a descriptor. The addresses among its attributes must be of what is there until it returns.
fn bpf<A>(command: i32, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads so many bytes of the structure, of which each command has its own.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<A>()) };
    match i32::try_from(fd) {
        Ok(fd @ 0..) => {
            // SAFETY: the kernel has just given it to this process.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
