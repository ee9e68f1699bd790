//! A transfer under way: what its session and its threads share.

use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libgrid::ftp::marker::Ranges;
use libgrid::io::{Broken, Side};

/// A transfer under way.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    moved: AtomicU64,
    stop: Mutex<Stop>,
    have: Mutex<Ranges>,
}

#[derive(Debug, Default)]
struct Stop {
    why: Option<String>,
    sockets: Vec<TcpStream>,
}

/// Why a transfer ended before its end.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Reading or writing the file.
    File(std::io::Error),
    /// The data connection.
    Network(std::io::Error),
    /// What came makes no sense.
    Protocol(String),
    /// The session, the client or an administrator ended it.
    Stopped(String),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flight {
    /// Makes the connection end with the transfer.
    pub(crate) fn attach(&self, stream: &TcpStream) -> Result<(), Fault> {
        let mut stop = locked(&self.stop);
        if let Some(why) = &stop.why {
            return Err(Fault::Stopped(why.clone()));
        }
        stop.sockets.push(stream.try_clone().map_err(Fault::Network)?);
        Ok(())
    }

    /// Ends it: threads that wait for a connection find it closed.
    pub(crate) fn stop(&self, why: impl Into<String>) {
        let mut stop = locked(&self.stop);
        if stop.why.is_none() {
            stop.why = Some(why.into());
        }
        for socket in stop.sockets.drain(..) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Why it was stopped, if it was.
    pub(crate) fn stopped(&self) -> Option<String> {
        locked(&self.stop).why.clone()
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    /// Bytes of the file that were moved.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    pub(crate) fn arrived(&self, from: u64, to: u64) {
        locked(&self.have).insert(from, to);
    }

    /// What of the file is there.
    pub(crate) fn have(&self) -> Ranges {
        locked(&self.have).clone()
    }

    /// What really was the cause: a connection that we closed ourselves fails, too.
    pub(crate) fn cause(&self, fault: Fault) -> Fault {
        self.stopped().map_or(fault, Fault::Stopped)
    }
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Fault {
        match broken.side {
            Side::File => Fault::File(broken.source),
            Side::Network => Fault::Network(broken.source),
        }
    }
}

impl Fault {
    /// The code of the reply.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Fault::File(error) if error.kind() == std::io::ErrorKind::StorageFull => 452,
            Fault::File(_) => 451,
            Fault::Network(_) | Fault::Stopped(_) => 426,
            Fault::Protocol(_) => 501,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::File(error) => write!(f, "the server's file: {}", plain(error)),
            Fault::Network(error) => write!(f, "the data connection: {}", plain(error)),
            Fault::Protocol(why) | Fault::Stopped(why) => f.write_str(why),
        }
    }
}

/// The error in words of the kernel, without its number.
fn plain(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            return "nothing moved for as long as the server waits".to_owned();
        }
        ErrorKind::UnexpectedEof => return "it ended too early".to_owned(),
        _ => (),
    }
    match error.raw_os_error() {
        Some(errno) => crate::ftp::root::reason(nix::errno::Errno::from_raw(errno)).to_owned(),
        None => error.to_string(),
    }
}
