//! TCP connections that are made for bulk data.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SndBuf, SndBufForce, TcpCongestion};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getsockopt, send, setsockopt,
    socket,
};

use super::info::limit_unsent;
use super::{Broken, Congestion, PathInfo, Pending, Pipe, Plan, ReadAhead, Side};

/// How much one `sendfile` is asked for: enough to make the call cheap, little enough to tell progress.
const SEND_PIECE: u64 = 4 << 20;

/// A buffer of a [`Socket`], for [`Socket::buffer_setopt`].
///
/// ```
/// assert_ne!(libgrid::io::BufferOption::Send, libgrid::io::BufferOption::Receive);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferOption {
    /// What was written and not yet acknowledged (`SO_SNDBUF`).
    Send,
    /// What came and was not yet read (`SO_RCVBUF`).
    Receive,
}

/// A TCP connection for bulk data. Its calls block.
///
/// ```no_run
/// use libgrid::io::{Plan, Socket};
/// use std::time::Duration;
/// let socket = Socket::connect("10.0.0.1:5000".parse()?, Duration::from_secs(10), &Plan::default())?;
/// let file = std::fs::File::open("big.h5")?;
/// let length = file.metadata()?.len();
/// socket.file_write(&file, 0..length, |_| ())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Connects, and sets the connection up as the plan says.
    ///
    /// # Errors
    /// Nobody answers at the address within `patience`, or the connection is refused.
    ///
    /// ```no_run
    /// # use libgrid::io::{Plan, Socket};
    /// # use std::time::Duration;
    /// Socket::connect("10.0.0.1:5000".parse().unwrap(), Duration::from_secs(10), &Plan::default())?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn connect(address: SocketAddr, patience: Duration, plan: &Plan) -> io::Result<Self> {
        Self::connect_while(address, patience, plan, || true)
    }

    /// As [`Socket::connect`], but gives up as soon as `wanted` says so; it is asked every 20 ms.
    ///
    /// # Errors
    /// As [`Socket::connect`]; [`io::ErrorKind::Interrupted`] if it is no longer wanted.
    ///
    /// ```no_run
    /// # use libgrid::io::{Plan, Socket};
    /// # use std::time::Duration;
    /// let address = "10.0.0.1:5000".parse().unwrap();
    /// Socket::connect_while(address, Duration::from_secs(10), &Plan::default(), || true)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn connect_while(
        address: SocketAddr,
        patience: Duration,
        plan: &Plan,
        wanted: impl Fn() -> bool,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
        match connect(stream.as_raw_fd(), &SockaddrStorage::from(address)) {
            Err(Errno::EINPROGRESS) => (),
            begun => begun?,
        }
        let deadline = Instant::now() + patience;
        let mut wait = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        while !matches!(poll(&mut wait, PollTimeout::from(20u8)), Ok(1..)) {
            if !wanted() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Self::new(stream, plan),
        }
    }

    /// Takes a connection over, and sets it up as the plan says. It becomes a blocking one.
    ///
    /// # Errors
    /// The connection is closed.
    ///
    /// ```no_run
    /// # use libgrid::io::{Plan, Socket};
    /// let listener = std::net::TcpListener::bind("10.0.0.1:5000")?;
    /// let socket = Socket::new(listener.accept()?.0, &Plan::default())?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(stream: TcpStream, plan: &Plan) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        // Headers between pieces of data must not wait for an acknowledgement.
        stream.set_nodelay(true)?;
        let socket = Self { stream };
        socket.follow(plan)?;
        Ok(socket)
    }

    /// Sets buffers and congestion control as the plan says.
    ///
    /// # Errors
    /// The connection is closed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// let plan = libgrid::io::Plan { buffer: Some(8 << 20), ..Default::default() };
    /// socket.follow(&plan)
    /// # }
    /// ```
    pub fn follow(&self, plan: &Plan) -> io::Result<()> {
        if let Some(bytes) = plan.buffer {
            self.buffer_setopt(BufferOption::Send, bytes)?;
            self.buffer_setopt(BufferOption::Receive, bytes)?;
        }
        if let Some(bytes) = plan.unsent {
            limit_unsent(&self.stream, bytes)?;
        }
        if let Congestion::Named(name) = &plan.congestion {
            // Not every user may choose every one; the default works, too.
            let _ = setsockopt(&self.stream, TcpCongestion, name);
        }
        Ok(())
    }

    /// Whether the congestion control of the connection bears loss: BBR, of any version.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) {
    /// println!("{}", socket.bears_loss());
    /// # }
    /// ```
    pub fn bears_loss(&self) -> bool {
        getsockopt(&self.stream, TcpCongestion).is_ok_and(|name| name.as_encoded_bytes().starts_with(b"bbr"))
    }

    /// How long a call may wait without moving a byte before it fails with [`Broken::stalled`].
    ///
    /// # Errors
    /// `limit` is zero.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// socket.set_stall_limit(Some(std::time::Duration::from_secs(20)))
    /// # }
    /// ```
    pub fn set_stall_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(limit)?;
        self.stream.set_write_timeout(limit)
    }

    /// Fixes the size of a buffer, in bytes. The kernel then no longer adapts it by itself; beyond `net.core.rmem_max`
    /// and `wmem_max` it takes CAP_NET_ADMIN, and the limit is what one gets without.
    ///
    /// # Errors
    /// The connection is closed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// use libgrid::io::BufferOption;
    /// socket.buffer_setopt(BufferOption::Send, 8 << 20)?;
    /// assert!(socket.buffer_getopt(BufferOption::Send)? > 0);
    /// # Ok(()) }
    /// ```
    pub fn buffer_setopt(&self, buffer: BufferOption, bytes: usize) -> io::Result<()> {
        match buffer {
            BufferOption::Send => {
                setsockopt(&self.stream, SndBufForce, &bytes)
                    .or_else(|_| setsockopt(&self.stream, SndBuf, &bytes))?;
            }
            BufferOption::Receive => {
                setsockopt(&self.stream, RcvBufForce, &bytes)
                    .or_else(|_| setsockopt(&self.stream, RcvBuf, &bytes))?;
            }
        }
        Ok(())
    }

    /// The size of a buffer, in bytes, as the kernel has it: twice what was set, for its own bookkeeping (socket(7)).
    ///
    /// # Errors
    /// The connection is closed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// println!("{}", socket.buffer_getopt(libgrid::io::BufferOption::Receive)?);
    /// # Ok(()) }
    /// ```
    pub fn buffer_getopt(&self, buffer: BufferOption) -> io::Result<usize> {
        Ok(match buffer {
            BufferOption::Send => getsockopt(&self.stream, SndBuf)?,
            BufferOption::Receive => getsockopt(&self.stream, RcvBuf)?,
        })
    }

    /// What the kernel measured on this connection.
    ///
    /// # Errors
    /// The connection is closed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// println!("round trip {:?}", socket.path()?.rtt);
    /// # Ok(()) }
    /// ```
    pub fn path(&self) -> io::Result<PathInfo> {
        PathInfo::of(&self.stream)
    }

    /// Writes all of these bytes.
    ///
    /// # Errors
    /// The connection is closed, or the time limit passed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// socket.write(b"hello")
    /// # }
    /// ```
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Writes all of these bytes, to be sent together with what is written next (`MSG_MORE`).
    ///
    /// # Errors
    /// As [`Socket::write`].
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket, file: &std::fs::File) -> Result<(), Box<dyn std::error::Error>> {
    /// socket.write_more(b"a header")?;
    /// socket.file_write(file, 0..4096, |_| ())?;
    /// # Ok(()) }
    /// ```
    pub fn write_more(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // nix has no name for it.
            let flags = MsgFlags::from_bits_retain(libc::MSG_MORE) | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_raw_fd(), bytes, flags) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::EINTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads as many bytes as the buffer holds.
    ///
    /// # Errors
    /// The connection is closed before, or the time limit passed.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// socket.read(&mut [0; 16])
    /// # }
    /// ```
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        (&self.stream).read_exact(buffer)
    }

    /// Begins to read so many bytes on a thread of the pool; [`Pending::wait`] gives them.
    ///
    /// ```no_run
    /// # fn f(socket: std::sync::Arc<libgrid::io::Socket>) -> std::io::Result<()> {
    /// let pool = libgrid::io::ReadAhead::new(2)?;
    /// let pending = socket.async_read(&pool, 16);
    /// // ... something else ...
    /// let bytes = pending.wait().expect("the read does not panic")?;
    /// # Ok(()) }
    /// ```
    pub fn async_read(self: &Arc<Self>, pool: &ReadAhead, length: usize) -> Pending<io::Result<Vec<u8>>> {
        let socket = self.clone();
        pool.start(move || {
            let mut bytes = Vec::new();
            let came = (&socket.stream).take(length as u64).read_to_end(&mut bytes)?;
            if came < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
        })
    }

    /// Sends a part of a file by `sendfile`; `progress` hears of each piece.
    ///
    /// # Errors
    /// [`Broken`], with the bytes that the kernel took. A file that is shorter than the range is a failure of the file.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> Result<(), Box<dyn std::error::Error>> {
    /// let file = std::fs::File::open("big.h5")?;
    /// socket.file_write(&file, 0..1 << 20, |bytes| println!("{bytes} more"))?;
    /// # Ok(()) }
    /// ```
    pub fn file_write(
        &self,
        file: &File,
        range: Range<u64>,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        let mut at = range.start;
        while at < range.end {
            let moved = at - range.start;
            let mut offset =
                i64::try_from(at).map_err(|_| Broken::new(moved, Side::File, Errno::EOVERFLOW))?;
            let piece = usize::try_from((range.end - at).min(SEND_PIECE)).unwrap_or(usize::MAX);
            match sendfile64(&self.stream, file, Some(&mut offset), piece) {
                Ok(0) => return Err(Broken::new(moved, Side::File, io::ErrorKind::UnexpectedEof)),
                Ok(sent) => {
                    at += sent as u64;
                    progress(sent as u64);
                }
                Err(Errno::EINTR) => (),
                Err(error) => return Err(Broken::new(moved, side_of(error), error)),
            }
        }
        Ok(())
    }

    /// Receives exactly `length` bytes into a file, from `offset` on, by `splice`; `progress` hears of each piece.
    ///
    /// # Errors
    /// [`Broken`], with the bytes that are in the file.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> Result<(), Box<dyn std::error::Error>> {
    /// let file = std::fs::File::create("big.h5")?;
    /// socket.file_read(&file, 0, 1 << 20, &mut libgrid::io::Pipe::new()?, |_| ())?;
    /// # Ok(()) }
    /// ```
    pub fn file_read(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        pipe: &mut Pipe,
        progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        pipe.receive(&self.stream, file, offset, length, progress)
    }

    /// Receives into a file until the other side closes the connection: how many bytes came.
    ///
    /// # Errors
    /// [`Broken`], with the bytes that are in the file.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> Result<(), Box<dyn std::error::Error>> {
    /// let file = std::fs::File::create("big.h5")?;
    /// let length = socket.file_read_all(&file, 0, &mut libgrid::io::Pipe::new()?, |_| ())?;
    /// # Ok(()) }
    /// ```
    pub fn file_read_all(
        &self,
        file: &File,
        offset: u64,
        pipe: &mut Pipe,
        progress: impl FnMut(u64),
    ) -> Result<u64, Broken> {
        pipe.receive_all(&self.stream, file, offset, progress)
    }

    /// The connection itself.
    ///
    /// ```no_run
    /// # fn f(socket: &libgrid::io::Socket) -> std::io::Result<()> {
    /// println!("{}", socket.stream().peer_addr()?);
    /// # Ok(()) }
    /// ```
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Gives the connection back.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::io::Socket) { drop(socket.into_stream()); }
    /// ```
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// `sendfile` does not tell which descriptor failed; these can only come of reading the file.
fn side_of(error: Errno) -> Side {
    match error {
        Errno::EIO | Errno::EINVAL | Errno::EOVERFLOW | Errno::ESTALE | Errno::EISDIR => Side::File,
        _ => Side::Network,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::FileExt;
    use std::thread;

    use super::*;

    fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Plan::default();
        let here = Socket::connect(address, Duration::from_secs(5), &plan).unwrap();
        (here, Socket::new(listener.accept().unwrap().0, &plan).unwrap())
    }

    fn pattern(length: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn a_file_arrives_as_it_was_at_its_offset() {
        let (sender, receiver) = pair();
        let (file, bytes) = pattern(3_000_001);
        let copy = tempfile::tempfile().unwrap();
        let sending = thread::spawn(move || sender.file_write(&file, 1..3_000_001, |_| ()).unwrap());
        let mut told = 0;
        receiver.file_read(&copy, 5, 3_000_000, &mut Pipe::new().unwrap(), |came| told += came).unwrap();
        sending.join().unwrap();
        let mut back = vec![0; 3_000_000];
        copy.read_exact_at(&mut back, 5).unwrap();
        assert!(back == bytes[1..]);
        assert_eq!(told, 3_000_000);
    }

    #[test]
    fn a_file_that_ends_early_is_named_with_the_bytes_that_went() {
        let (sender, receiver) = pair();
        let (file, _) = pattern(1000);
        let broken = sender.file_write(&file, 0..5000, |_| ()).unwrap_err();
        assert_eq!((broken.moved, broken.side), (1000, Side::File));
        drop(sender);
        let sink = tempfile::tempfile().unwrap();
        let broken = receiver.file_read(&sink, 0, 5000, &mut Pipe::new().unwrap(), |_| ()).unwrap_err();
        assert_eq!((broken.moved, broken.side), (1000, Side::Network));
    }

    #[test]
    fn silence_beyond_the_limit_is_a_stall() {
        let (_sender, receiver) = pair();
        receiver.set_stall_limit(Some(Duration::from_millis(20))).unwrap();
        let sink = tempfile::tempfile().unwrap();
        let broken = receiver.file_read(&sink, 0, 1, &mut Pipe::new().unwrap(), |_| ()).unwrap_err();
        assert!(broken.stalled(), "{broken}");
    }

    #[test]
    fn a_full_file_system_is_told_and_the_pipe_is_clean_after() {
        let (sender, receiver) = pair();
        sender.write(&[1; 100]).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut pipe = Pipe::new().unwrap();
        let broken = receiver.file_read(&full, 0, 100, &mut pipe, |_| ()).unwrap_err();
        assert_eq!(broken.side, Side::File);
        sender.write(&[2; 50]).unwrap();
        let next = tempfile::tempfile().unwrap();
        receiver.file_read(&next, 0, 50, &mut pipe, |_| ()).unwrap();
        let mut back = [0; 50];
        next.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, [2; 50]);
    }

    #[test]
    fn a_relay_passes_everything_on() {
        let (sender, from) = pair();
        let (to, receiver) = pair();
        let (file, bytes) = pattern(2_000_003);
        let sending = thread::spawn(move || sender.file_write(&file, 0..2_000_003, |_| ()).unwrap());
        let relaying = thread::spawn(move || {
            super::super::relay(from.stream(), to.stream(), &mut Pipe::new().unwrap()).unwrap()
        });
        let copy = tempfile::tempfile().unwrap();
        let came = receiver.file_read_all(&copy, 0, &mut Pipe::new().unwrap(), |_| ()).unwrap();
        sending.join().unwrap();
        assert_eq!((came, relaying.join().unwrap()), (2_000_003, 2_000_003));
        let mut back = vec![0; 2_000_003];
        copy.read_exact_at(&mut back, 0).unwrap();
        assert!(back == bytes);
    }

    #[test]
    fn the_kernel_tells_what_it_measured_and_buffers_can_be_fixed() {
        let (sender, receiver) = pair();
        sender.write(&[0; 100_000]).unwrap();
        receiver.read(&mut vec![0; 100_000]).unwrap();
        let path = sender.path().unwrap();
        assert!(path.min_rtt < Duration::from_secs(1) && path.rtt > Duration::ZERO, "{path:?}");
        assert!(path.segments > 0 && path.window > 0, "{path:?}");
        sender.buffer_setopt(BufferOption::Send, 300_000).unwrap();
        assert_eq!(sender.buffer_getopt(BufferOption::Send).unwrap(), 600_000);
    }

    #[test]
    fn a_read_goes_on_while_something_else_is_done() {
        let (sender, receiver) = pair();
        let pool = ReadAhead::new(1).unwrap();
        let pending = Arc::new(receiver).async_read(&pool, 5);
        assert!(pending.poll().is_none());
        sender.write(b"hello").unwrap();
        assert_eq!(pending.wait().unwrap().unwrap(), b"hello");
    }
}
