//! Data in extended block mode: several connections, blocks in any order (GFD.20, 4.2).
//!
//! The sender of the data connects. Getting: this side listens, and every connection has a thread that puts blocks
//! where they belong until its EOD; the transfer is whole after as many EODs as the EOF announced. Sending: every
//! connection has a thread that takes the next piece of the file from a common queue, so that a slow one does not
//! hold the others up.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Limits;
use super::data::accept;
use super::error::Party;
use super::moving::{Fault, Shared};
use crate::ftp::block::{HEADER, Header};
use crate::io::{Broken, Pipe, Plan, Side, Socket};

/// More connections than this are not taken from a server.
const MAX_CONNECTIONS: usize = 256;

/// The largest and the smallest block to send: large enough for one `sendfile` to be worth it.
const BLOCKS: (u64, u64) = (256 << 10, 4 << 20);

/// Once the ends of all connections are known, no others are waited for; until then it is looked so often.
const LOOK: Duration = Duration::from_millis(5);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where received bytes go, and which may come.
pub(super) struct Sink<'a> {
    pub(super) file: &'a File,
    /// Added to the offset of each block: what ERET sends is counted from the beginning of the part.
    pub(super) base: u64,
    /// How many bytes the file here has in the end, if that is known.
    pub(super) size: Option<u64>,
    /// Who may connect; `None` for everybody.
    pub(super) from: Option<IpAddr>,
}

#[derive(Default)]
struct Ends {
    came: u64,
    announced: Option<u64>,
    fault: Option<Fault>,
}

impl Ends {
    fn all(&self) -> bool {
        self.announced.is_some_and(|announced| self.came >= announced)
    }
}

/// Receives until all connections ended.
pub(super) fn receive(
    listener: &TcpListener,
    sink: &Sink<'_>,
    plan: &Plan,
    limits: &Limits,
    server: &str,
    shared: &Shared,
) -> Result<(), Fault> {
    let ends = Mutex::new(Ends::default());
    let link = |why: String| Fault { party: Party::Link(server.to_owned()), why, passing: true };
    thread::scope(|scope| {
        let ends = &ends;
        let mut connections = 0;
        let begun = Instant::now();
        loop {
            {
                let ends = lock(ends);
                if ends.all() || ends.fault.is_some() || shared.is_stopped() {
                    break;
                }
            }
            let stream = match accept(listener, Instant::now() + LOOK, || shared.is_stopped()) {
                Ok(Some((stream, peer))) => {
                    if sink.from.is_some_and(|from| from.to_canonical() != peer.ip().to_canonical()) {
                        // Somebody else: not an error of the server.
                        continue;
                    }
                    stream
                }
                Ok(None) if connections == 0 && begun.elapsed() > limits.connect + limits.reply => {
                    lock(ends).fault = Some(link("the server opened no data connection".to_owned()));
                    break;
                }
                Ok(None) => continue,
                Err(error) => {
                    lock(ends).fault =
                        Some(Fault { party: Party::Here, why: error.to_string(), passing: false });
                    break;
                }
            };
            connections += 1;
            if connections > MAX_CONNECTIONS {
                let why = format!("it opened more than {MAX_CONNECTIONS} data connections");
                lock(ends).fault =
                    Some(Fault { party: Party::Server(server.to_owned()), why, passing: false });
                break;
            }
            shared.watch(&stream);
            scope.spawn(move || {
                let result = connection(stream, sink, plan, limits, server, shared, ends);
                if let Err(fault) = result {
                    let mut ends = lock(ends);
                    ends.fault.get_or_insert(fault);
                    drop(ends);
                    shared.stop();
                }
            });
        }
        if lock(ends).fault.is_some() {
            shared.stop();
        }
    });
    let ends = ends.into_inner().unwrap_or_else(PoisonError::into_inner);
    match ends.fault {
        Some(fault) => Err(fault),
        None if ends.all() => Ok(()),
        None => Err(link("it was stopped".to_owned())),
    }
}

/// Takes blocks from one connection until its EOD.
fn connection(
    stream: std::net::TcpStream,
    sink: &Sink<'_>,
    plan: &Plan,
    limits: &Limits,
    server: &str,
    shared: &Shared,
    ends: &Mutex<Ends>,
) -> Result<(), Fault> {
    let fault = |broken: Broken| Fault::of(&broken, server, limits.stall);
    let wrong = |why: String| Fault { party: Party::Server(server.to_owned()), why, passing: false };
    let network = |source| Broken { moved: 0, side: Side::Network, source };
    let socket = Socket::new(stream, plan).map_err(|error| fault(network(error)))?;
    socket.set_stall_limit(Some(limits.stall)).map_err(|error| fault(network(error)))?;
    let mut pipe =
        Pipe::new().map_err(|error| fault(Broken { moved: 0, side: Side::File, source: error }))?;
    let mut bytes = [0; HEADER];
    // A server that sends the same bytes again and again must come to an end, too.
    let most = sink.size.map(|size| size.saturating_mul(2).saturating_add(64 << 20));
    let mut idle_blocks = 0;
    loop {
        socket.read(&mut bytes).map_err(|error| {
            let early = error.kind() == io::ErrorKind::UnexpectedEof;
            let error = if early { io::Error::new(error.kind(), "it was cut before its end") } else { error };
            fault(network(error))
        })?;
        let header = Header::from_bytes(&bytes);
        header.check().map_err(|error| wrong(error.to_string()))?;
        if header.count > 0 {
            let outside = || {
                wrong(format!(
                    "it sent bytes that are not in the file: {} from {} on",
                    header.count, header.offset
                ))
            };
            let from = header.offset.checked_add(sink.base).ok_or_else(outside)?;
            let to = from.checked_add(header.count).ok_or_else(outside)?;
            if sink.size.is_some_and(|size| to > size) || limits.file.is_some_and(|limit| to > limit) {
                return Err(outside());
            }
            let mut at = from;
            socket
                .file_read(sink.file, from, header.count, &mut pipe, |came| {
                    shared.count(came);
                    shared.arrived(at, at + came);
                    at += came;
                })
                .map_err(fault)?;
            if most.is_some_and(|most| shared.moved() > most) {
                return Err(wrong("it sends the same bytes again and again".to_owned()));
            }
            idle_blocks = 0;
        } else {
            idle_blocks += 1;
            if idle_blocks > 1000 {
                return Err(wrong("it sends blocks without data".to_owned()));
            }
        }
        let mut ends = lock(ends);
        if let Some(streams) = header.streams() {
            ends.announced = Some(streams);
        }
        if header.is_eod() {
            ends.came += 1;
            return Ok(());
        }
    }
}

/// What to send, and where to.
pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    /// Added to the offset in the file here, for the offset in the remote one.
    pub(super) base: u64,
    /// What the receiver does not have, in offsets of the remote file.
    pub(super) gaps: Vec<(u64, u64)>,
    /// Where the receiver listens: one address, or one for each stripe.
    pub(super) to: Vec<SocketAddr>,
}

/// Sends all gaps over `plan.streams` connections to each address.
pub(super) fn send(
    source: &Source<'_>,
    plan: &Plan,
    limits: &Limits,
    server: &str,
    shared: &Shared,
) -> Result<(), Fault> {
    let total: u64 = source.gaps.iter().map(|(from, to)| to - from).sum();
    let connections = plan.streams * source.to.len().max(1);
    let piece = (total / (4 * connections as u64)).clamp(BLOCKS.0, BLOCKS.1);
    let queue: Mutex<VecDeque<(u64, u64)>> = Mutex::new(source.gaps.iter().copied().collect());
    let next = || {
        let mut queue = lock(&queue);
        let (from, to) = queue.pop_front()?;
        let end = to.min(from + piece);
        if end < to {
            queue.push_front((end, to));
        }
        Some((from, end))
    };
    let first_fault = Mutex::new(None);
    thread::scope(|scope| {
        for &address in &source.to {
            for number in 0..plan.streams {
                let (next, first_fault) = (&next, &first_fault);
                scope.spawn(move || {
                    let run = || -> Result<(), Broken> {
                        let network = |source| Broken { moved: 0, side: Side::Network, source };
                        let socket = Socket::connect(address, limits.connect, plan).map_err(network)?;
                        shared.watch(socket.stream());
                        socket.set_stall_limit(Some(limits.stall)).map_err(network)?;
                        if number == 0 {
                            // Each receiver hears how many ends come to it.
                            socket.write(&Header::eof(plan.streams as u64).to_bytes()).map_err(network)?;
                        }
                        while let Some((from, to)) = next() {
                            let header = Header::data(to - from, from);
                            socket.write_more(&header.to_bytes()).map_err(network)?;
                            let here = from + source.base..to + source.base;
                            socket.file_write(source.file, here, |sent| shared.count(sent))?;
                        }
                        let mut end = Header::eod();
                        end.flags |= Header::CLOSE;
                        socket.write(&end.to_bytes()).map_err(network)?;
                        socket.stream().shutdown(std::net::Shutdown::Write).map_err(network)
                    };
                    if let Err(broken) = run() {
                        let fault = Fault::of(&broken, server, limits.stall);
                        lock(first_fault).get_or_insert(fault);
                        shared.stop();
                    }
                });
            }
        }
    });
    match first_fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}
