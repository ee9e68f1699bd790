//! Managed sockets: bytes between connected TCP sockets and files that never come to the program.
//!
//! They need the kernel module (`kmod/`): nobody else can answer these operations. What each does, and when, is in
//! `kmod/include/uapi/linux/gridos.h`. A process that has one cannot be moved to another node.
//!
//! ```no_run
//! use libgrid::sys::sockets::ManagedSocket;
//!
//! let file = std::fs::File::open("data")?;
//! let stream = std::net::TcpStream::connect("node2:7000")?;
//! let socket = ManagedSocket::new(&stream)?;
//! let sent = socket.send_file(&file, Some(0), file.metadata()?.len())?;
//! println!("{sent} bytes, {} a second", socket.buffers()?.rate_out);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::abi::{
    IO_BUFFER_AUTO, IO_BUFFER_IN, IO_BUFFER_MAX, IO_BUFFER_OUT, IO_CANCEL, Io, IoBuffers, IoOpen, IoWait, Op,
};
use super::device::Device;
use super::enter::{Enter, operate_on};

/// The longest that a peer may do nothing, unless a program says otherwise.
const SILENCE: Duration = Duration::from_secs(30);

/// An operation on a managed socket failed.
///
/// ```
/// use libgrid::sys::{abi::Op, sockets::SocketError};
/// let error = SocketError::Refused { op: Op::IO_SEND, source: std::io::Error::from_raw_os_error(110) };
/// assert_eq!(error.to_string(), "IO_SEND: Connection timed out (os error 110)");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The device cannot be opened.
    #[error("managed sockets need the kernel module gridos, which is not here: {source}")]
    NoModule {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{op}: {source}")]
    Refused {
        /// What was asked for.
        op: Op,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The sizes of a socket's buffers, in bytes.
///
/// ```
/// # use libgrid::sys::sockets::Sizes;
/// let sizes = Sizes::Measured { max: Some(1 << 20) };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Twice the bandwidth-delay product that is measured, at most `max`.
    Measured {
        /// The most of either; none for what the socket has.
        max: Option<u64>,
    },
    /// These; none stays as it is.
    Fixed {
        /// Of what is sent.
        out: Option<u64>,
        /// Of what is received.
        input: Option<u64>,
    },
}

/// A read that was begun.
///
/// ```
/// # fn f(read: libgrid::sys::sockets::Read) {
/// println!("{read:?}");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read(u32);

/// A connected TCP socket that the kernel module manages, until this is dropped. The connection stays open until then,
/// even if the stream is dropped before.
///
/// ```no_run
/// # fn f(stream: std::net::TcpStream) -> Result<(), libgrid::sys::sockets::SocketError> {
/// let socket = libgrid::sys::sockets::ManagedSocket::new(&stream)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ManagedSocket {
    device: Device,
    number: u32,
    silence: Duration,
}

impl ManagedSocket {
    /// Has a connection managed.
    ///
    /// # Errors
    /// Where the module is not loaded, the socket is not connected or is managed already, or the user has too many.
    ///
    /// ```no_run
    /// # fn f(stream: std::net::TcpStream) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// let socket = libgrid::sys::sockets::ManagedSocket::new(&stream)?;
    /// # Ok(()) }
    /// ```
    pub fn new(stream: &TcpStream) -> Result<Self, SocketError> {
        let device = Device::open().map_err(|source| SocketError::NoModule { source })?;
        let open = IoOpen { fd: stream.as_raw_fd(), ..IoOpen::default() };
        let number = device.operate(Op::IO_OPEN, open).map_err(refused(Op::IO_OPEN))?.socket;
        Ok(Self { device, number, silence: SILENCE })
    }

    /// The longest that the peer may do nothing, at least a millisecond. It is half a minute otherwise.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) {
    /// let socket = socket.with_silence(std::time::Duration::from_secs(5));
    /// # }
    /// ```
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// Sends bytes of a file, from there or from its position on: how many were sent, which is less at the end of the
    /// file, and where something ended it that the next call will tell. The file must not be changed until the peer has
    /// them.
    ///
    /// # Errors
    /// Where nothing could be sent.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) -> Result<(), Box<dyn std::error::Error>> {
    /// socket.send_file(&std::fs::File::open("data")?, None, 4096)?;
    /// # Ok(()) }
    /// ```
    pub fn send_file(&self, file: &File, from: Option<u64>, length: u64) -> Result<u64, SocketError> {
        self.transfer(
            Op::IO_SEND,
            Io { file: file.as_raw_fd(), offset: offset(from), length, ..Io::default() },
        )
    }

    /// Receives bytes into a file, there or at its position: how many came, which is less where the peer ended, and where
    /// something else did that the next call will tell. What did not come into the file is still in the socket.
    ///
    /// # Errors
    /// Where nothing could be received.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) -> Result<(), Box<dyn std::error::Error>> {
    /// socket.receive_file(&std::fs::File::create("data")?, Some(0), u64::MAX)?;
    /// # Ok(()) }
    /// ```
    pub fn receive_file(&self, file: &File, at: Option<u64>, length: u64) -> Result<u64, SocketError> {
        self.transfer(Op::IO_RECV, Io { file: file.as_raw_fd(), offset: offset(at), length, ..Io::default() })
    }

    /// Sends bytes: how many were sent.
    ///
    /// # Errors
    /// Where none could be sent.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// assert_eq!(socket.write(b"hello")?, 5);
    /// # Ok(()) }
    /// ```
    pub fn write(&self, bytes: &[u8]) -> Result<u64, SocketError> {
        let length = bytes.len() as u64;
        self.transfer(Op::IO_WRITE, Io { file: -1, bytes: bytes.as_ptr() as u64, length, ..Io::default() })
    }

    /// Begins to receive bytes into a file, there; [`wait`](Self::wait) tells when they are there.
    ///
    /// # Errors
    /// Where too many are under way already, or the file cannot be written.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket, file: std::fs::File) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// let read = socket.begin_receive(&file, 0, 4096)?;
    /// println!("{} bytes", socket.wait(read)?);
    /// # Ok(()) }
    /// ```
    pub fn begin_receive(&self, file: &File, at: u64, length: u64) -> Result<Read, SocketError> {
        let io = Io {
            socket: self.number,
            file: file.as_raw_fd(),
            offset: offset(Some(at)),
            length,
            ..Io::default()
        };
        Ok(Read(operate_on(&self.device, Op::IO_READ, io).map_err(refused(Op::IO_READ))?.read))
    }

    /// Waits for a read: how many bytes it got.
    ///
    /// # Errors
    /// Where the peer does nothing for too long, after which it can be waited for again; and where it failed.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket, read: libgrid::sys::sockets::Read) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// println!("{} bytes", socket.wait(read)?);
    /// # Ok(()) }
    /// ```
    pub fn wait(&self, read: Read) -> Result<u64, SocketError> {
        let ended = self.ended(read, 0)?;
        match ended.error {
            0 => Ok(ended.done),
            error => Err(refused(Op::IO_READ)(io::Error::from_raw_os_error(-error))),
        }
    }

    /// Gives a read up, if it has not ended: how many bytes it got.
    ///
    /// # Errors
    /// Where there is no such read any more.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket, read: libgrid::sys::sockets::Read) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// socket.cancel(read)?;
    /// # Ok(()) }
    /// ```
    pub fn cancel(&self, read: Read) -> Result<u64, SocketError> {
        Ok(self.ended(read, IO_CANCEL)?.done)
    }

    /// What is measured of the connection, and its buffers.
    ///
    /// # Errors
    /// As the kernel says.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// println!("{} us", socket.buffers()?.min_rtt_us);
    /// # Ok(()) }
    /// ```
    pub fn buffers(&self) -> Result<IoBuffers, SocketError> {
        let of = IoBuffers { socket: self.number, ..IoBuffers::default() };
        self.device.operate(Op::IO_GETOPT, of).map_err(refused(Op::IO_GETOPT))
    }

    /// Sets the buffers' sizes, which are bounded by the module: what they are now.
    ///
    /// # Errors
    /// Where a size is 0, or none is given.
    ///
    /// ```no_run
    /// # fn f(socket: libgrid::sys::sockets::ManagedSocket) -> Result<(), libgrid::sys::sockets::SocketError> {
    /// socket.set_buffers(libgrid::sys::sockets::Sizes::Measured { max: None })?;
    /// # Ok(()) }
    /// ```
    pub fn set_buffers(&self, sizes: Sizes) -> Result<IoBuffers, SocketError> {
        let flag = |given: Option<u64>, flag| given.map_or(0, |_| flag);
        let of = IoBuffers { socket: self.number, ..IoBuffers::default() };
        let of = match sizes {
            Sizes::Measured { max } => {
                IoBuffers { flags: IO_BUFFER_AUTO | flag(max, IO_BUFFER_MAX), max: max.unwrap_or(0), ..of }
            }
            Sizes::Fixed { out, input } => IoBuffers {
                flags: flag(out, IO_BUFFER_OUT) | flag(input, IO_BUFFER_IN),
                out: out.unwrap_or(0),
                input: input.unwrap_or(0),
                ..of
            },
        };
        self.device.operate(Op::IO_SETOPT, of).map_err(refused(Op::IO_SETOPT))
    }

    fn ended(&self, read: Read, flags: u32) -> Result<IoWait, SocketError> {
        let wait = IoWait {
            socket: self.number,
            read: read.0,
            flags,
            timeout_ms: self.timeout(),
            ..IoWait::default()
        };
        self.device.operate(Op::IO_WAIT, wait).map_err(refused(Op::IO_WAIT))
    }

    fn transfer(&self, op: Op, io: Io) -> Result<u64, SocketError> {
        let io = Io { socket: self.number, timeout_ms: self.timeout(), ..io };
        Ok(operate_on(&self.device, op, io).map_err(refused(op))?.done)
    }

    fn timeout(&self) -> u32 {
        u32::try_from(self.silence.as_millis()).unwrap_or(u32::MAX).max(1)
    }
}

/// -1 is the file's position. No file goes further than what is negative then, which the kernel refuses.
fn offset(given: Option<u64>) -> i64 {
    given.map_or(-1, |offset| i64::try_from(offset).unwrap_or(i64::MIN))
}

fn refused(op: Op) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Refused { op, source }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn without_the_module_the_error_says_so() {
        if std::path::Path::new(super::super::abi::DEVICE).exists() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let error = ManagedSocket::new(&stream).unwrap_err();
        assert!(error.to_string().starts_with("managed sockets need the kernel module gridos"), "{error}");
    }

    #[test]
    fn an_offset_is_never_taken_for_the_position() {
        assert_eq!((offset(None), offset(Some(0)), offset(Some(7))), (-1, 0, 7));
        assert_eq!(offset(Some(u64::MAX)), i64::MIN);
    }
}
