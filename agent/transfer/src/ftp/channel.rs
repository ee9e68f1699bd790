//! One data connection: plain, where the kernel moves the bytes, or secured, where they pass through the program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use libgrid::io::{Pipe, Plan, ReadAhead, Socket};
use nix::sys::socket::{MsgFlags, send};

use crate::ftp::flight::{Fault, Flight};

/// Bytes that pass through the program at a time.
const PIECE: usize = 64 * 1024;

/// How much of a file is asked for ahead of what is sent.
const AHEAD: u64 = 16 << 20;

/// A connection over which bytes are protected.
pub(crate) trait Secure: Read + Write + Send {
    /// Says that no more bytes will come, so that the other side can tell the end from a cut.
    fn finish(&mut self) -> io::Result<()>;
}

pub(crate) enum Channel {
    Plain(Socket),
    Secure(Box<dyn Secure>, TcpStream),
}

impl Channel {
    pub(crate) fn plain(stream: TcpStream, buffer: Option<usize>) -> io::Result<Channel> {
        let plan = Plan { buffer, ..Plan::default() };
        Ok(Channel::Plain(Socket::new(stream, &plan)?))
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        match self {
            Channel::Plain(socket) => socket.stream(),
            Channel::Secure(_, stream) => stream,
        }
    }

    pub(crate) fn set_stall_limit(&self, limit: Duration) -> io::Result<()> {
        self.stream().set_read_timeout(Some(limit))?;
        self.stream().set_write_timeout(Some(limit))
    }

    /// Sends a part of a file.
    pub(crate) fn send_file(
        &mut self,
        file: &Arc<File>,
        mut from: u64,
        to: u64,
        flight: &Flight,
        ahead: Option<&ReadAhead>,
    ) -> Result<(), Fault> {
        match self {
            Channel::Plain(socket) => {
                let mut asked = from;
                let fill = |at: u64, asked: &mut u64| {
                    if let Some(ahead) = ahead.filter(|_| *asked < to && at + AHEAD / 2 > *asked) {
                        let end = to.min(at + AHEAD);
                        ahead.fill(file, *asked..end);
                        *asked = end;
                    }
                };
                fill(from, &mut asked);
                let mut at = from;
                socket.file_write(file, from..to, |sent| {
                    flight.add(sent);
                    at += sent;
                    fill(at, &mut asked);
                })?;
            }
            Channel::Secure(secure, _) => {
                let mut buffer = vec![0; PIECE];
                while from < to {
                    let most = usize::try_from(to - from).unwrap_or(PIECE).min(PIECE);
                    let read = read_at(file, &mut buffer[..most], from)?;
                    if read == 0 {
                        return Err(Fault::File(io::ErrorKind::UnexpectedEof.into()));
                    }
                    secure.write_all(&buffer[..read]).map_err(Fault::Network)?;
                    flight.add(read as u64);
                    from += read as u64;
                }
                secure.flush().map_err(Fault::Network)?;
            }
        }
        Ok(())
    }

    /// Receives exactly so many bytes into a file; `came` hears of each piece.
    pub(crate) fn receive_file(
        &mut self,
        file: &File,
        offset: u64,
        length: u64,
        pipe: &mut Option<Pipe>,
        mut came: impl FnMut(u64),
    ) -> Result<(), Fault> {
        match self {
            Channel::Plain(socket) => {
                let pipe = piped(pipe)?;
                Ok(socket.file_read(file, offset, length, pipe, came)?)
            }
            Channel::Secure(secure, _) => {
                let mut buffer = vec![0; PIECE];
                let mut moved = 0;
                while moved < length {
                    let most = usize::try_from(length - moved).unwrap_or(PIECE).min(PIECE);
                    let read = read(secure, &mut buffer[..most])?;
                    if read == 0 {
                        return Err(Fault::Network(io::ErrorKind::UnexpectedEof.into()));
                    }
                    file.write_all_at(&buffer[..read], offset + moved).map_err(Fault::File)?;
                    moved += read as u64;
                    came(read as u64);
                }
                Ok(())
            }
        }
    }

    /// Receives until the other side says that this was all.
    pub(crate) fn receive_all(
        &mut self,
        file: &File,
        offset: u64,
        mut came: impl FnMut(u64),
    ) -> Result<(), Fault> {
        match self {
            Channel::Plain(socket) => {
                socket.file_read_all(file, offset, piped(&mut None)?, came)?;
            }
            Channel::Secure(secure, _) => {
                let mut buffer = vec![0; PIECE];
                let mut at = offset;
                loop {
                    match read(secure, &mut buffer)? {
                        0 => break,
                        read => {
                            file.write_all_at(&buffer[..read], at).map_err(Fault::File)?;
                            at += read as u64;
                            came(read as u64);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends bytes that something else follows at once.
    pub(crate) fn send_more(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if let Channel::Plain(socket) = self {
            // One packet for a header and what follows it.
            let more = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
            let sent = send(socket.stream().as_raw_fd(), bytes, more | MsgFlags::MSG_NOSIGNAL)
                .map_err(|errno| Fault::Network(errno.into()))?;
            if sent == bytes.len() {
                return Ok(());
            }
            return self.write_all(&bytes[sent..]).map_err(Fault::Network);
        }
        self.write_all(bytes).map_err(Fault::Network)
    }

    /// No more will be sent on this connection.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self {
            Channel::Plain(socket) => socket.stream().shutdown(Shutdown::Write),
            Channel::Secure(secure, stream) => {
                secure.finish()?;
                stream.shutdown(Shutdown::Write)
            }
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(socket) => socket.stream().read(buffer),
            Channel::Secure(secure, _) => secure.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(socket) => socket.stream().write(bytes),
            Channel::Secure(secure, _) => secure.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Channel::Plain(_) => Ok(()),
            Channel::Secure(secure, _) => secure.flush(),
        }
    }
}

/// A pipe is made when it is needed first: most files are small, and a pipe costs more than they do.
fn piped(pipe: &mut Option<Pipe>) -> Result<&mut Pipe, Fault> {
    if pipe.is_none() {
        *pipe = Some(Pipe::new().map_err(Fault::File)?);
    }
    pipe.as_mut().ok_or_else(|| Fault::File(io::ErrorKind::OutOfMemory.into()))
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Fault> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result.map_err(Fault::Network),
        }
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> Result<usize, Fault> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result.map_err(Fault::File),
        }
    }
}
