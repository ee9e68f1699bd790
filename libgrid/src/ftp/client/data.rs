//! Data connections of stream mode: how they come to be, and what goes through them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::control::{Control, line};
use super::tls::{self, Connector, TlsStream};
use super::{Client, FtpError, Limits};
use crate::ftp::address::{format_eprt, format_port, parse_epsv, parse_pasv, parse_spas};
use crate::ftp::reply::{Kind, Reply};
use crate::io::{Broken, Pipe, Plan, Side, Socket};

/// Under TLS the bytes pass through the program, so many at once.
const PIECE: usize = 256 * 1024;

/// A data connection.
pub(super) enum Data {
    /// The kernel moves the bytes.
    Plain(Socket),
    /// The program decrypts and encrypts them.
    Secure(Box<TlsStream>),
}

fn broken(moved: u64, side: Side, source: io::Error) -> Broken {
    Broken { moved, side, source }
}

impl Data {
    /// Shakes hands if there is a connector. The server does its part only after it took the command.
    pub(super) fn new(socket: Socket, connector: Option<&Connector>, limits: &Limits) -> io::Result<Self> {
        Ok(match connector {
            None => Self::Plain(socket),
            Some(connector) => {
                Self::Secure(Box::new(connector.connect(socket.into_stream(), limits.connect)?))
            }
        })
    }

    /// Takes all that comes until the end, from `offset` of the file on. More than `most` bytes are an error, and so
    /// is an end that TLS does not vouch for, unless exactly `most` came.
    pub(super) fn receive(
        &mut self,
        file: &File,
        offset: u64,
        most: Option<u64>,
        part: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Broken> {
        let too_much = |moved| {
            broken(
                moved,
                Side::Network,
                io::Error::new(io::ErrorKind::InvalidData, "the server sends more than the file has"),
            )
        };
        match self {
            Self::Plain(socket) => {
                let mut pipe = Pipe::new().map_err(|error| broken(0, Side::File, error))?;
                let Some(most) = most else { return socket.file_read_all(file, offset, &mut pipe, progress) };
                let mut moved = 0;
                let result = socket.file_read(file, offset, most, &mut pipe, |bytes| {
                    moved += bytes;
                    progress(bytes);
                });
                match result {
                    Ok(()) => (),
                    // Whether this is too early is for the caller to say: the server's reply tells why.
                    Err(end) if end.source.kind() == io::ErrorKind::UnexpectedEof => return Ok(moved),
                    Err(error) => return Err(error),
                }
                if part {
                    return Ok(most);
                }
                match socket.stream().read_some(&mut [0]) {
                    Ok(0) => Ok(most),
                    Ok(_) => Err(too_much(most)),
                    Err(error) => Err(broken(most, Side::Network, error)),
                }
            }
            Self::Secure(stream) => {
                let mut buffer = vec![0; PIECE];
                let mut moved = 0;
                loop {
                    if part && most == Some(moved) {
                        return Ok(moved);
                    }
                    let came = match stream.read(&mut buffer) {
                        Ok(0) => return Ok(moved),
                        Ok(came) => came as u64,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && most == Some(moved) => {
                            return Ok(moved);
                        }
                        Err(error) => return Err(broken(moved, Side::Network, error)),
                    };
                    let mut came = came;
                    if let Some(most) = most
                        && came > most - moved
                    {
                        if !part {
                            return Err(too_much(moved));
                        }
                        came = most - moved;
                    }
                    let bytes = &buffer[..usize::try_from(came).unwrap_or_default()];
                    file.write_all_at(bytes, offset + moved)
                        .map_err(|error| broken(moved, Side::File, error))?;
                    moved += came;
                    progress(came);
                }
            }
        }
    }

    /// Sends a part of a file, and the end.
    pub(super) fn send(
        &mut self,
        file: &File,
        range: std::ops::Range<u64>,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Broken> {
        let length = range.end - range.start;
        match self {
            Self::Plain(socket) => {
                socket.file_write(file, range, progress)?;
                socket
                    .stream()
                    .shutdown(std::net::Shutdown::Write)
                    .map_err(|error| broken(length, Side::Network, error))
            }
            Self::Secure(stream) => {
                let mut buffer = vec![0; PIECE];
                let mut moved = 0;
                while moved < length {
                    let most = usize::try_from(length - moved).unwrap_or(PIECE).min(PIECE);
                    let came = match file.read_at(&mut buffer[..most], range.start + moved) {
                        Ok(0) => return Err(broken(moved, Side::File, io::ErrorKind::UnexpectedEof.into())),
                        Ok(came) => came,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(broken(moved, Side::File, error)),
                    };
                    stream.write_all(&buffer[..came]).map_err(|error| broken(moved, Side::Network, error))?;
                    moved += came as u64;
                    progress(came as u64);
                }
                tls::finish(stream).map_err(|error| broken(moved, Side::Network, error))
            }
        }
    }

    /// All that comes until the end, but no more than `most` bytes, and not for longer than until the deadline.
    pub(super) fn read_all(&mut self, most: u64, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let came = match self {
                Self::Plain(socket) => socket.stream().read_some(&mut buffer)?,
                Self::Secure(stream) => stream.read(&mut buffer)?,
            };
            if came == 0 {
                return Ok(bytes);
            }
            bytes.extend(&buffer[..came]);
            if bytes.len() as u64 > most {
                let why = format!("the list is longer than {most} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its list takes too long"));
            }
        }
    }
}

/// One read, tried again after signals.
trait ReadSome {
    fn read_some(self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ReadSome for &TcpStream {
    fn read_some(mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                result => return result,
            }
        }
    }
}

/// Connects to where the server listens.
pub(super) fn connect(control: &Control, address: SocketAddr, plan: &Plan) -> Result<Socket, FtpError> {
    let limits = control.limits();
    let connect = || {
        let socket = Socket::connect(address, limits.connect, plan)?;
        socket.set_stall_limit(Some(limits.stall))?;
        Ok(socket)
    };
    connect().map_err(|source| FtpError::Connect {
        server: format!("{} (data, {address})", control.server()),
        source,
    })
}

/// The address in the reply to EPSV or PASV; that of a PASV reply is believed only if it was asked for.
pub(super) fn address_of(control: &Control, reply: &Reply, believe: bool) -> Result<SocketAddr, FtpError> {
    let peer = control.peer()?;
    let text = reply.text.last().map(Vec::as_slice).unwrap_or_default();
    match reply.code {
        229 => {
            let port = parse_epsv(text).map_err(|error| control.protocol(error.to_string()))?;
            Ok(SocketAddr::new(peer.ip(), port))
        }
        227 => {
            let named = parse_pasv(text).map_err(|error| control.protocol(error.to_string()))?;
            if named.port() == 0 {
                return Err(control.protocol("it listens at port 0"));
            }
            Ok(if believe { named } else { SocketAddr::new(peer.ip(), named.port()) })
        }
        code => Err(control.protocol(format!("it answered {code} where 227 or 229 was expected"))),
    }
}

impl Client {
    /// The command that makes the server listen.
    pub(super) fn passive_verb(&self) -> &'static str {
        let six = self.control.peer().is_ok_and(|peer| peer.is_ipv6());
        if six || (self.features.has("EPSV") && !self.login.believe_pasv) { "EPSV" } else { "PASV" }
    }

    /// Makes the server listen: where.
    pub(super) fn passive(&mut self) -> Result<SocketAddr, FtpError> {
        let verb = self.passive_verb();
        let mut reply = self.control.ask(verb, b"")?;
        if reply.kind() == Kind::Permanent && verb == "EPSV" {
            reply = self.control.ask("PASV", b"")?;
        }
        let reply = self.control.done(&line(verb, b"")?, reply)?;
        address_of(&self.control, &reply, self.login.believe_pasv)
    }

    /// Makes all stripes of the server listen: where.
    pub(super) fn striped_passive(&mut self) -> Result<Vec<SocketAddr>, FtpError> {
        let reply = self.control.must("SPAS", b"")?;
        parse_spas(&reply.text).map_err(|error| self.control.protocol(error.to_string()))
    }

    /// Listens, and tells the server where.
    pub(super) fn active(&mut self, striped: bool) -> Result<TcpListener, FtpError> {
        let ip = self.control.local()?.ip();
        let listen = || {
            let listener = TcpListener::bind((ip, 0))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = listen().map_err(|source| FtpError::Connect {
            server: format!("{} (cannot listen for its data)", self.control.server()),
            source,
        })?;
        self.port(address, striped)?;
        Ok(listener)
    }

    /// Tells the server where to connect to.
    pub(super) fn port(&mut self, address: SocketAddr, striped: bool) -> Result<(), FtpError> {
        match format_port(address) {
            Some(port) => self.control.must(if striped { "SPOR" } else { "PORT" }, port.as_bytes())?,
            None => self.control.must("EPRT", format_eprt(address).as_bytes())?,
        };
        Ok(())
    }
}

/// The next connection that comes before `deadline`, `None` after it or when `stop` says so.
pub(super) fn accept(
    listener: &TcpListener,
    deadline: Instant,
    stop: impl Fn() -> bool,
) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        match listener.accept() {
            Ok(pair) => return Ok(Some(pair)),
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Err(error);
            }
            Err(_) => (),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stop() {
            return Ok(None);
        }
        let slice = left.min(Duration::from_millis(20));
        let wait = PollTimeout::try_from(slice).unwrap_or(PollTimeout::ZERO);
        // A signal is as good as a connection: both are looked at above.
        let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], wait);
    }
}
