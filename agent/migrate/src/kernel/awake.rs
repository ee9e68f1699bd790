//! Processors that do not sleep while a task stands still.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Where the kernel is told what its processors may take to wake up.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// While this is held, but no longer than it says, no processor of this machine sleeps (the kernel's
/// `Documentation/power/pm_qos_interface.rst`).
///
/// A dump and a restore are thousands of handovers between two processes, and each wakes a processor that had just gone to
/// sleep: in a virtual machine, that is most of the time of them.
#[derive(Debug)]
pub(crate) struct Awake {
    _end: Sender<()>,
}

impl Awake {
    /// # Errors
    /// Where the kernel has no such device; that costs nothing but time.
    pub(crate) fn hold(limit: Duration) -> io::Result<Self> {
        let mut device: File = OpenOptions::new().write(true).open(LATENCY)?;
        // Microseconds.
        device.write_all(&0_i32.to_ne_bytes())?;
        let (end, ended) = channel();
        std::thread::Builder::new().name("awake".into()).spawn(move || {
            // That it is over is all there is to know.
            let _: Result<(), _> = ended.recv_timeout(limit);
            drop(device);
        })?;
        Ok(Self { _end: end })
    }
}
