//! Threads that wait for the disk so that others need not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// How much one request reads before others have their turn, in bytes.
const PIECE: u64 = 4 << 20;

/// Threads of a pool need little: they call the kernel.
const STACK: usize = 128 << 10;

type Work = Box<dyn FnOnce() + Send>;

/// A pool of threads that fill the page cache ahead of whoever sends, and carry out what may block.
///
/// The page cache itself is the buffer: nothing is copied, and what is there already costs a look at it. The threads
/// end when the last handle is dropped and what was asked for is done.
///
/// ```
/// let pool = libgrid::io::ReadAhead::new(2)?;
/// let file = std::sync::Arc::new(std::fs::File::open("/proc/self/exe")?);
/// pool.fill(&file, 0..4096);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReadAhead {
    work: mpsc::Sender<Work>,
}

impl ReadAhead {
    /// Starts a pool of so many threads: as many reads wait for disks at once. 2 to 4 suit one disk.
    ///
    /// # Errors
    /// A thread cannot be started.
    ///
    /// ```
    /// libgrid::io::ReadAhead::new(1)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(threads: usize) -> io::Result<Self> {
        let (work, queue) = mpsc::channel::<Work>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new().name("read-ahead".into()).stack_size(STACK).spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match next {
                        Ok(work) => work(),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Self { work })
    }

    /// Asks for a part of a file to be in the page cache soon. What cannot be read is left to the reader to find.
    ///
    /// ```
    /// # let pool = libgrid::io::ReadAhead::new(1)?;
    /// let file = std::sync::Arc::new(std::fs::File::open("/proc/self/exe")?);
    /// pool.fill(&file, 0..1 << 20);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn fill(&self, file: &Arc<File>, range: Range<u64>) {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + PIECE);
            let file = file.clone();
            self.run(move || read_piece(&file, start..end));
            start = end;
        }
    }

    /// Carries something out that may block, on one of the threads.
    ///
    /// ```
    /// # let pool = libgrid::io::ReadAhead::new(1)?;
    /// assert_eq!(pool.start(|| 6 * 7).wait(), Some(42));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (done, result) = mpsc::sync_channel(1);
        self.run(move || {
            // Nobody may want it any more.
            let _ = done.send(work());
        });
        Pending { result }
    }

    fn run(&self, work: impl FnOnce() + Send + 'static) {
        // The threads live as long as this handle.
        let _ = self.work.send(Box::new(work));
    }
}

fn read_piece(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    if posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED).is_ok() {
        // To wait for its last page keeps the number of reads that a disk has to do at once as small as the pool.
        let _ = file.read_at(&mut [0], range.end - 1);
    }
}

/// Something that a pool carries out.
///
/// ```
/// # let pool = libgrid::io::ReadAhead::new(1)?;
/// let pending = pool.start(|| std::fs::read("/proc/self/comm"));
/// assert!(pending.wait().is_some());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pending<T> {
    result: mpsc::Receiver<T>,
}

impl<T> Pending<T> {
    /// Waits for its end; `None` if it panicked.
    ///
    /// ```
    /// # let pool = libgrid::io::ReadAhead::new(1)?;
    /// assert_eq!(pool.start(|| "done").wait(), Some("done"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wait(self) -> Option<T> {
        self.result.recv().ok()
    }

    /// The result, if it is there already.
    ///
    /// ```
    /// # let pool = libgrid::io::ReadAhead::new(1)?;
    /// let pending = pool.start(|| 1);
    /// while pending.poll().is_none() {}
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn poll(&self) -> Option<T> {
        self.result.try_recv().ok()
    }
}
