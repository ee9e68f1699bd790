//! The receiving side of a transfer.
//!
//! ```text
//!   listener ──▶ connection 1..n ──splice──▶ page cache
//!                      │ each range, and its checksum when that comes
//!                      ▼
//!                  verifiers ──▶ journal ──▶ Arrived, or Again
//!                      │ last range of a file: attributes, name
//!                      ▼
//!                  everything arrived ──▶ folders, the last rename ──▶ Landed
//! ```
//!
//! Checksums are computed from what is in the page cache after it was written, beside the connections.

mod arrivals;
mod connections;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader, BufWriter};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use libgrid::copy::Landed;
use libgrid::wire;
use nix::sys::socket::shutdown;

use self::arrivals::{Claim, Done, Range, Receiving, Waiting};
use super::conduit::Seal;
use super::landing::Landing;
use super::message::{FromDestination, FromSource, Trouble};
use super::queue::Queue;
use super::record::Key;
use super::spread::Spread;
use super::{listen, locked};
use crate::root::Root;

/// How often arrivals are told.
const TELL: Duration = Duration::from_millis(5);

/// What may be received, and where to.
pub struct ReceiveOrder {
    /// How far paths may lead.
    pub root: Root,
    /// The path below the root.
    pub target: PathBuf,
    /// The target must be a folder that is there: it was written with a slash at its end.
    pub into: bool,
    /// What comes is spread over the target, which is a folder.
    pub spread: Option<Spread>,
    /// Everything is on the disk when the transfer ends.
    pub fsync: bool,
    /// Checksums are taken of what the disk gives back.
    pub verify: bool,
    /// What an earlier try left is not used.
    pub fresh: bool,
    /// TCP ports to listen on, the first and the last; any if absent.
    pub ports: Option<(u16, u16)>,
    /// The address to listen on; all if absent.
    pub listen: Option<IpAddr>,
}

/// Receives; the source is at the other end of `control`.
///
/// # Errors
/// Why it ended early, whichever side it was.
pub fn receive(control: &UnixStream, order: &ReceiveOrder) -> Result<Landed, Trouble> {
    let result = Destination::begin(control, order).and_then(|(destination, mut reader, listener)| {
        let result = destination.run(control, &mut reader, listener.as_ref());
        if matches!(&result, Err(trouble) if !trouble.retry) {
            destination.landing.discard();
        }
        result
    });
    if let Err(trouble) = &result {
        // The other side may be gone already.
        let _ = say(&mut &*control, &FromDestination::Failed(trouble.clone()));
    }
    result
}

fn say(to: &mut impl io::Write, message: &FromDestination) -> Result<(), Trouble> {
    wire::write(to, message).map_err(Trouble::broken)?;
    to.flush().map_err(Trouble::broken)
}

/// What has come so far.
#[derive(Default)]
struct State {
    files: HashMap<u32, Arc<Receiving>>,
    claims: HashMap<u64, Claim>,
    waiting: HashMap<u64, Waiting>,
    done: Done,
    to_tell: Vec<u64>,
    /// How many pieces there are, and how many files were not sent.
    end: Option<(u64, u64)>,
    connections: HashSet<u32>,
    handles: HashMap<u32, TcpStream>,
    trouble: Option<Trouble>,
    ended: bool,
}

struct Destination {
    landing: Landing,
    key: Key,
    seal: Option<Seal>,
    theirs: Option<Vec<u8>>,
    checksums: bool,
    from_disk: bool,
    state: Mutex<State>,
    changed: Condvar,
    verify: Queue<(u64, Range, [u8; 32])>,
    writer: Mutex<BufWriter<UnixStream>>,
    bytes: AtomicU64,
    items: AtomicU64,
    connected: AtomicU64,
    ended: AtomicBool,
}

impl Destination {
    fn begin(
        control: &UnixStream,
        order: &ReceiveOrder,
    ) -> Result<(Self, BufReader<UnixStream>, Option<TcpListener>), Trouble> {
        let mut reader = BufReader::new(control.try_clone().map_err(Trouble::broken)?);
        let mut writer = BufWriter::new(control.try_clone().map_err(Trouble::broken)?);
        let offer = match wire::read(&mut reader).map_err(Trouble::broken)? {
            FromSource::Offer(offer) => offer,
            FromSource::Failed(trouble) => return Err(trouble),
            _ => return Err(Trouble::confused()),
        };
        let landing = Landing::prepare(order, &offer)?;
        let listener = if offer.inline { None } else { Some(listen(order.listen, order.ports)?) };
        let seal = match offer.certificate {
            Some(_) => {
                Some(Seal::new().map_err(|error| Trouble::lasting(format!("no key can be made: {error}")))?)
            }
            None => None,
        };
        let key = Key(rand::random());
        let port = match &listener {
            Some(listener) => listener.local_addr().map_err(Trouble::broken)?.port(),
            None => 0,
        };
        let certificate = seal.as_ref().map(Seal::certificate);
        let checksums = offer.checksums && landing.readable();
        let ready = FromDestination::Ready { port, key: key.0, certificate, checksums };
        wire::write(&mut writer, &ready).map_err(Trouble::broken)?;
        if !order.fresh && !order.verify {
            let mut page = Vec::new();
            landing.held(&mut |held| {
                page.push(held);
                if page.len() < 1000 {
                    return Ok(());
                }
                wire::write(&mut writer, &FromDestination::Held(std::mem::take(&mut page)))
                    .map_err(Trouble::broken)
            })?;
            wire::write(&mut writer, &FromDestination::Held(page)).map_err(Trouble::broken)?;
        }
        say(&mut writer, &FromDestination::HeldEnd)?;
        let destination = Self {
            checksums,
            landing,
            key,
            seal,
            theirs: offer.certificate,
            from_disk: order.verify,
            state: Mutex::default(),
            changed: Condvar::new(),
            verify: Queue::new(usize::MAX),
            writer: Mutex::new(writer),
            bytes: AtomicU64::new(0),
            items: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        };
        Ok((destination, reader, listener))
    }

    fn run(
        &self,
        control: &UnixStream,
        reader: &mut BufReader<UnixStream>,
        listener: Option<&TcpListener>,
    ) -> Result<Landed, Trouble> {
        thread::scope(|scope| {
            if let Some(listener) = listener {
                scope.spawn(|| self.accept(scope, listener));
            }
            scope.spawn(move || {
                if let Err(trouble) = self.listen_to_source(scope, reader) {
                    self.fail(trouble);
                }
            });
            let result = self.wait().and_then(|skipped| {
                self.landing.land()?;
                let landed = Landed {
                    bytes: self.bytes.load(Ordering::Relaxed),
                    items: self.items.load(Ordering::Relaxed),
                    skipped,
                    path: self.landing.path.clone(),
                    missed: None,
                };
                // Whether the source hears it or not: it is so.
                let _ = say(&mut *locked(&self.writer), &FromDestination::Landed(landed.clone()));
                Ok(landed)
            });
            self.ended.store(true, Ordering::Relaxed);
            // Wakes whoever accepts connections; that it is no longer needed is all that can be wrong with it.
            let _ = listener.map(|listener| shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both));
            self.verify.close();
            let mut state = locked(&self.state);
            state.ended = true;
            for handle in state.handles.values() {
                let _ = handle.shutdown(Shutdown::Both);
            }
            drop(state);
            self.changed.notify_all();
            // Only our side of it: what was said last must still be heard.
            let _ = control.shutdown(Shutdown::Read);
            result
        })
    }

    /// Tells arrivals until all is there: how many files were not sent.
    fn wait(&self) -> Result<u64, Trouble> {
        let mut tell = Instant::now();
        let mut state = locked(&self.state);
        loop {
            if let Some(trouble) = state.trouble.take() {
                return Err(trouble);
            }
            if let Some((works, skipped)) = state.end
                && state.done.low >= works
                && state.files.is_empty()
            {
                return Ok(skipped);
            }
            // Those that arrive within a moment are told together.
            let patience = match state.to_tell.is_empty() {
                true => Duration::from_millis(200),
                false => tell.saturating_duration_since(Instant::now()),
            };
            if !patience.is_zero() {
                let woken = self.changed.wait_timeout(state, patience);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let told = std::mem::take(&mut state.to_tell);
            drop(state);
            say(&mut *locked(&self.writer), &FromDestination::Arrived(told))?;
            tell = Instant::now() + TELL;
            state = locked(&self.state);
        }
    }

    fn fail(&self, trouble: Trouble) {
        locked(&self.state).trouble.get_or_insert(trouble);
        self.changed.notify_all();
    }

    fn listen_to_source<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        reader: &mut BufReader<UnixStream>,
    ) -> Result<(), Trouble> {
        let mut verified = false;
        loop {
            match wire::read(reader).map_err(Trouble::broken)? {
                FromSource::Open { file, item } => {
                    let growing = self.landing.begin(item)?;
                    // A transfer of small files is over sooner than these are started.
                    if self.checksums && !std::mem::replace(&mut verified, true) {
                        let cores = thread::available_parallelism().map_or(1, usize::from);
                        for _ in 0..cores.min(4) {
                            scope.spawn(|| self.verify());
                        }
                    }
                    let receiving = Arc::new(Receiving { number: file, growing, state: Mutex::default() });
                    locked(&self.state).files.insert(file, receiving);
                    self.changed.notify_all();
                }
                FromSource::Close { file, ranges } => {
                    let receiving =
                        locked(&self.state).files.get(&file).cloned().ok_or_else(Trouble::confused)?;
                    locked(&receiving.state).expected = Some(ranges);
                    self.finish_if_whole(&receiving)?;
                }
                FromSource::Inline(pack) => {
                    // What was wrong with it, the transfer knows.
                    let _ = self.pack_came(0, &pack);
                }
                FromSource::End { works, skipped } => {
                    locked(&self.state).end = Some((works, skipped));
                    self.changed.notify_all();
                }
                FromSource::Failed(trouble) => return Err(trouble),
                FromSource::Offer(_) => return Err(Trouble::confused()),
            }
        }
    }
}
