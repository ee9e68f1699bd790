//! `/dev/gridos`: `ioctl(2)` on the module's device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::abi::{Op, Publish, Record};
use super::enter::{Enter, operate_on};

/// `_IO(GRIDOS_IOC_MAGIC, op)`.
const fn command(op: Op) -> libc::Ioctl {
    0xe9 << 8 | op.0 as libc::Ioctl
}

/// The open device.
///
/// ```no_run
/// use libgrid::sys::abi::{Op, Version};
/// use libgrid::sys::{device::Device, enter::Enter};
/// let version: Version = Device::open()?.operate(Op::VERSION, Version::default())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens [`DEVICE`](super::abi::DEVICE).
    ///
    /// # Errors
    /// `NotFound` where the module is not loaded.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(super::abi::DEVICE))
    }

    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// The file, to read requests from and to write answers to, once it is attached.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Replaces a table; for the daemon.
    ///
    /// # Errors
    /// As `gridos.h` says.
    pub fn publish<R: Record>(&self, table: Op, records: &[R]) -> io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        let publish = Publish {
            size: 0,
            table: table.0,
            records: bytes.as_ptr() as u64,
            record_size: R::SIZE as u32,
            count: records.len() as u32,
        };
        operate_on(self, Op::PUBLISH, publish).map(drop)
    }
}

impl Enter for Device {
    #[expect(unsafe_code, reason = "ioctl(2) has no safe wrapper")]
    unsafe fn enter(&self, op: Op, arguments: &mut [u8]) -> io::Result<()> {
        // SAFETY: the kernel uses no more bytes of the arguments than they say; the rest is the caller's promise.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), command(op), arguments.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
