//! A destination's data connections.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use libgrid::io::{Pipe, Plan, Side, Socket};

use super::Destination;
use super::arrivals::{Claim, Range, Receiving};
use crate::session::conduit::Conduit;
use crate::session::message::Trouble;
use crate::session::record::{self, GREETING, HEADER, Record, Sequence};
use crate::session::{STALL, locked};

/// How long a data connection may take to prove that it is of this transfer.
const GREET: Duration = Duration::from_secs(5);

/// Data connections at once at most.
const CONNECTIONS: usize = 256;

impl Destination {
    pub(super) fn accept<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, listener: &TcpListener) {
        // Whoever ends the transfer shuts the listener down, and that wakes this thread.
        while !self.ended.load(Ordering::Relaxed) {
            let (stream, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if self.ended.load(Ordering::Relaxed) => return tracing::trace!(%error, "the end"),
                Err(error) => {
                    // Out of descriptors, say: connections that end make room.
                    tracing::debug!(%error, "a data connection cannot be accepted");
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            // Strangers get no thread beyond this, and no longer than GREET.
            if self.connected.load(Ordering::Relaxed) >= CONNECTIONS as u64 {
                continue;
            }
            self.connected.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || {
                if let Err(error) = self.connection(stream) {
                    tracing::debug!(%from, %error, "a data connection ended");
                }
                self.connected.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    fn connection(&self, stream: TcpStream) -> io::Result<()> {
        let socket = Socket::new(stream, &Plan::default())?;
        socket.set_stall_limit(Some(GREET))?;
        let mut greeting = [0; GREETING];
        socket.read(&mut greeting)?;
        let strange = || io::Error::new(io::ErrorKind::PermissionDenied, "it is not of this transfer");
        let number = record::check_greeting(self.key, &greeting).ok_or_else(strange)?;
        {
            let mut state = locked(&self.state);
            // A connection that somebody recorded and plays again has a number that was there.
            if state.ended || !state.connections.insert(number) {
                return Err(strange());
            }
            state.handles.insert(number, socket.stream().try_clone()?);
        }
        // An idle connection is no stalled one: the source watches them.
        socket.set_stall_limit(None)?;
        let mut conduit = match (&self.seal, &self.theirs) {
            (Some(seal), Some(theirs)) => Conduit::server(socket, seal, theirs.clone())?,
            _ => Conduit::Plain(socket),
        };
        let mut sequence = Sequence::new(self.key, number);
        let mut pipe = Pipe::new()?;
        let mut pack = Vec::new();
        loop {
            let mut header = [0; HEADER];
            conduit.read(&mut header)?;
            match Sequence::parse(&header)? {
                Record::Sum { work } => {
                    let mut sum = [0; 32];
                    conduit.read(&mut sum)?;
                    sequence.check(&header, &sum)?;
                    self.sum_came(work, sum);
                }
                Record::Pack { work, length } => {
                    pack.resize(usize::try_from(length).unwrap_or(0), 0);
                    conduit.read(&mut pack)?;
                    sequence.check(&header, if self.checksums { &pack } else { &[] })?;
                    self.pack_came(work, &pack)?;
                }
                Record::Range { work, file, offset, length } => {
                    sequence.check(&header, &[])?;
                    match self.claim(number, work, file)? {
                        Some(file) if offset + length <= file.growing.size => {
                            let range = Range { file, offset, length };
                            self.receive_range(&mut conduit, &mut pipe, work, range)?;
                        }
                        Some(_) => {
                            self.fail(Trouble::confused());
                            return Ok(());
                        }
                        None => discard(&mut conduit, length)?,
                    }
                }
            }
        }
    }

    /// The file of a range that this connection is to write, when it is announced; `None` if the range is here already,
    /// or the transfer ended.
    ///
    /// One connection at a time writes a range. The source gave up the other, or it would not send the range again.
    fn claim(&self, connection: u32, work: u64, number: u32) -> io::Result<Option<Arc<Receiving>>> {
        let deadline = Instant::now() + STALL;
        let mut state = locked(&self.state);
        loop {
            if state.done.has(work) || state.ended {
                return Ok(None);
            }
            match state.claims.get(&work) {
                Some(Claim::Written) => return Ok(None),
                Some(Claim::Writing(other)) => {
                    let _ = state.handles.get(other).map(|handle| handle.shutdown(Shutdown::Both));
                }
                None => {
                    if let Some(file) = state.files.get(&number).cloned() {
                        state.claims.insert(work, Claim::Writing(connection));
                        return Ok(Some(file));
                    }
                }
            }
            // The source sends it again over another connection.
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let woken = self.changed.wait_timeout(state, Duration::from_millis(100));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whoever wrote a range is done with it.
    fn release(&self, work: u64, written: bool) {
        let mut state = locked(&self.state);
        match written {
            true => drop(state.claims.insert(work, Claim::Written)),
            false => drop(state.claims.remove(&work)),
        }
        self.changed.notify_all();
    }

    fn receive_range(
        &self,
        conduit: &mut Conduit,
        pipe: &mut Pipe,
        work: u64,
        range: Range,
    ) -> io::Result<()> {
        let Range { file, offset, length } = &range;
        let received = conduit.receive(&file.growing.file, *offset, *length, pipe, |_| ());
        self.release(work, received.is_ok());
        match received {
            Ok(()) => {
                if self.checksums {
                    self.range_came(work, range);
                } else if let Err(trouble) = self.keep(work, &range, None) {
                    self.fail(trouble);
                }
                Ok(())
            }
            Err(broken) if broken.side == Side::File => {
                let path = self.landing.shown(&file.growing.item.path);
                let at = offset + broken.moved;
                let why = format!("{} cannot be written at byte {at}: {}", path.display(), broken.source);
                self.fail(Trouble::until("mend it", why));
                Err(broken.source)
            }
            Err(broken) => Err(broken.source),
        }
    }
}

/// Takes bytes off a connection that nobody needs.
fn discard(conduit: &mut Conduit, mut length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while length > 0 {
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        conduit.read(&mut buffer[..most])?;
        length -= most as u64;
    }
    Ok(())
}
