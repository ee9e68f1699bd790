//! From server to server: the data do not pass through this machine.
//!
//! ```text
//!              PASV ──▶ "here"        ┌──────── here ◀── PORT
//!   destination ◀───────────── us ───────────────▶ source
//!       STOR ▲                                    │ RETR
//!            └────────────── data ────────────────┘
//! ```

use std::time::{Duration, Instant};

use super::checksum::Method;
use super::control::line;
use super::error::{Party, shown};
use super::moving::{Fault, marker};
use super::put::hidden;
use super::{Client, FtpError, Landed, Options, Progress, persist};
use crate::ftp::marker::Ranges;
use crate::ftp::reply::{Kind, Reply};
use crate::ftp::time;

/// How long each control connection is listened to before the other.
const TURN: Duration = Duration::from_millis(20);

/// How long the second server may take to say what it thinks of the first one's refusal.
const REASON: Duration = Duration::from_secs(2);

/// Servers without markers are given up when the whole takes longer than at this rate, in bytes a second.
const SLOWEST: u64 = 128 * 1024;

/// Copies a file of one server to another. Resuming, temporary names, modes and checks are as with [`Client::put`];
/// progress is what the servers tell by markers.
///
/// # Errors
/// As [`Client::put`]. [`FtpError::Unsupported`] when data would have to be encrypted: two servers have no TLS between
/// them.
///
/// ```no_run
/// use libgrid::ftp::client::{Client, FtpUrl, Login, Options, third_party};
/// let (from, to): (FtpUrl, FtpUrl) = ("ftp://node1:2811/x".parse()?, "ftp://node2:2811/x".parse()?);
/// let mut source = Client::connect(&from, &Login::default())?;
/// let mut destination = Client::connect(&to, &Login::default())?;
/// let options = Options { extended: true, streams: Some(4), ..Options::default() };
/// third_party(&mut source, &from.path, &mut destination, &to.path, &options, &mut |_| ())?;
/// # Ok::<(), libgrid::ftp::client::FtpError>(())
/// ```
pub fn third_party(
    source: &mut Client,
    from: &[u8],
    destination: &mut Client,
    to: &[u8],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Landed, FtpError> {
    for client in [&*source, &*destination] {
        if client.data_tls().is_some() {
            let what = "encrypt data that go to another server: leave data in the clear (PROT C)".to_owned();
            return Err(FtpError::Unsupported { server: client.server.clone(), what });
        }
    }
    if options.range.is_some() && (options.extended || !source.features.has("ERET")) {
        let what =
            "send a part of a file to another server: leave out the range, or extended mode".to_owned();
        return Err(FtpError::Unsupported { server: source.server.clone(), what });
    }
    let mut have = Ranges::default();
    let mut fresh = false;
    persist(options.retries, progress, |attempt, progress| {
        let mut pair = Pair { source: &mut *source, from, destination: &mut *destination, to, options };
        pair.attempt(attempt, &mut have, &mut fresh, progress)
    })
}

struct Pair<'a> {
    source: &'a mut Client,
    from: &'a [u8],
    destination: &'a mut Client,
    to: &'a [u8],
    options: &'a Options,
}

impl Pair<'_> {
    fn attempt(
        &mut self,
        attempt: u32,
        arrived: &mut Ranges,
        fresh: &mut bool,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        let options = self.options;
        self.source.ready()?;
        self.destination.ready()?;
        let method = options.verify.then(|| self.method()).transpose()?;
        let told = self.source.told(self.from)?;
        let (whole, modify) = told;
        let range = options.range.map(|(from, to)| {
            let end = whole.map_or(to, |size| to.min(size));
            (from.min(end), end)
        });
        let size = range.map(|(from, to)| to - from).or(whole);
        let what = format!(
            "{} {whole:?} {} {range:?}",
            self.source.url_of(self.from),
            modify.map_or_else(String::new, time::format)
        );
        let there = if options.atomic { hidden(self.to, &what, options.extended) } else { self.to.to_vec() };
        // Whose identity is not known may have changed.
        let resume = whole.is_some() && (options.resume && options.atomic || attempt > 0);
        let mut have = Ranges::default();
        if resume && !*fresh {
            let came = self.destination.size_if_there(&there)?.unwrap_or(0);
            if !options.extended {
                have.insert(0, if size.is_some_and(|size| came <= size) { came } else { 0 });
            } else if came >= arrived.end() {
                have = arrived.clone();
            } else {
                *arrived = Ranges::default();
            }
        }
        let resumed = have.bytes();
        if size.is_none_or(|size| size == 0 || resumed < size) {
            let result = self.run(&there, size, range, &have, arrived, progress);
            if let Err(Failure { fault, at }) = result {
                // Refused at once where it should have gone on: from the beginning, then.
                let stuck = resumed > 0 && at <= resumed && matches!(fault.party, Party::Server(_));
                *fresh = stuck;
                let fault = Fault { passing: fault.passing || stuck, ..fault };
                let what = format!("{} to {}", shown(self.from), self.destination.url_of(self.to));
                return Err(fault.broken(what, at, resume));
            }
        }
        self.source.ready()?;
        self.destination.ready()?;
        if whole.is_some() && self.source.told(self.from)? != told {
            self.destination.control.ask("DELE", &there)?;
            return Err(FtpError::Changed { path: shown(self.from) });
        }
        let came = self.destination.size_if_there(&there)?;
        if let (Some(size), Some(came)) = (size, came)
            && size != came
        {
            self.destination.control.ask("DELE", &there)?;
            let why = format!("the file there has {came} bytes, not {size}; it was removed");
            let party = Party::Server(self.destination.server.clone());
            return Err(Fault { party, why, passing: true }.broken(shown(self.to), 0, false));
        }
        let bytes = size.or(came).unwrap_or(0);
        let mut checksum = None;
        if let Some((at_source, at_destination)) = method {
            progress(Progress::Verifying);
            let part = range.unwrap_or((0, bytes));
            let theirs = self.source.remote_checksum(at_source, self.from, part, range.is_none())?;
            let ours = self.destination.remote_checksum(at_destination, &there, (0, bytes), true)?;
            let algorithm = at_source.name().to_owned();
            if theirs != ours {
                self.destination.control.ask("DELE", &there)?;
                let server = self.source.server.clone();
                return Err(FtpError::Damaged { path: shown(self.from), server, algorithm, theirs, ours });
            }
            checksum = Some((algorithm, ours));
        }
        if options.atomic {
            self.destination.rename(&there, self.to)?;
        }
        if let Some(modify) = modify.filter(|_| options.times && self.destination.features.has("MFMT")) {
            let argument = [time::format(modify).as_bytes(), b" ", self.to].concat();
            self.destination.control.ask("MFMT", &argument)?;
        }
        Ok(Landed { bytes, resumed, interruptions: 0, checksum })
    }

    /// A checksum that both can make.
    fn method(&self) -> Result<(Method, Method), FtpError> {
        let (one, other) = (self.source.checksum_method()?, self.destination.checksum_method()?);
        if one.name() == other.name() {
            return Ok((one, other));
        }
        let what = format!(
            "make a checksum that {} can make, too: leave the verification out",
            self.destination.server
        );
        Err(FtpError::Unsupported { server: self.source.server.clone(), what })
    }

    /// Both commands, up to their last replies.
    fn run(
        &mut self,
        there: &[u8],
        size: Option<u64>,
        range: Option<(u64, u64)>,
        have: &Ranges,
        arrived: &mut Ranges,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let already = have.bytes();
        let begin = |error: FtpError| Failure::before(error, already);
        self.begin(there, size, range, have, progress).map_err(begin)?;
        let mut at = already;
        let mut heard = |news: Progress<'_>| {
            match &news {
                Progress::Arrived(ranges) => {
                    for (from, to) in ranges.iter() {
                        arrived.insert(from, to);
                    }
                }
                Progress::Perf(perf) => {
                    at = at.max(already + perf.bytes);
                    progress(Progress::Moved { bytes: at });
                }
                _ => (),
            }
            progress(news);
        };
        let outcome = self.watch(size.unwrap_or(0), &mut heard);
        outcome.map_err(|fault| Failure { fault, at })
    }

    /// Sets both up and sends the commands.
    fn begin(
        &mut self,
        there: &[u8],
        size: Option<u64>,
        range: Option<(u64, u64)>,
        have: &Ranges,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FtpError> {
        let options = self.options;
        let (source, destination) = (&mut *self.source, &mut *self.destination);
        source.enter_mode(options.extended)?;
        destination.enter_mode(options.extended)?;
        let mut plan = source.plan(options, size.unwrap_or(0));
        if options.extended && options.streams.is_none() {
            // The round trip between them is not known here.
            plan.streams = plan.streams.max(4);
        }
        source.tune(&plan, true)?;
        destination.tune(&plan, false)?;
        if options.striped && options.extended {
            let addresses = destination.striped_passive()?;
            let ports: Vec<String> =
                addresses.into_iter().filter_map(crate::ftp::address::format_port).collect();
            source.control.must("SPOR", ports.join(" ").as_bytes())?;
        } else {
            let address = destination.passive()?;
            source.port(address, false)?;
        }
        if let Some(size) = size {
            destination.announce(size - have.bytes())?;
        }
        let already = have.bytes();
        let retr = match range {
            Some((from, to)) => {
                let part = format!("P {} {} ", from + already, to - from - already);
                line("ERET", &[part.as_bytes(), self.from].concat())?
            }
            None => line("RETR", self.from)?,
        };
        if already > 0 {
            let at = if options.extended { have.to_string() } else { already.to_string() };
            let clients = [&mut *destination, &mut *source];
            for client in clients.into_iter().take(if range.is_some() { 1 } else { 2 }) {
                let reply = client.control.ask("REST", at.as_bytes())?;
                if reply.kind() != Kind::Intermediate {
                    return Err(client.control.refused("REST", reply));
                }
            }
        }
        progress(Progress::Begun { size, already, streams: plan.streams });
        destination.control.send(&[line("STOR", there)?])?;
        source.control.send(&[retr])
    }

    /// Listens to both until both have said their last word.
    fn watch(&mut self, size: u64, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Fault> {
        let limits = self.source.login.limits.clone();
        let whole = limits.finish + limits.stall + Duration::from_secs(size / SLOWEST);
        let whole = limits.whole.map_or(whole, |limit| limit.min(whole));
        let begun = Instant::now();
        let mut alive = Instant::now();
        let (mut marked, mut marks) = (0, false);
        let mut last: [Option<Result<Reply, FtpError>>; 2] = [None, None];
        let mut done_at = None;
        loop {
            for (number, client) in [&mut *self.source, &mut *self.destination].into_iter().enumerate() {
                if last[number].is_some() {
                    continue;
                }
                match client.control.poll(TURN) {
                    Ok(Some(reply)) if reply.kind() == Kind::Preliminary => {
                        // A marker of more than there can be shows nothing.
                        if marker(&reply, &mut marked, progress) && marked <= size {
                            (alive, marks) = (Instant::now(), true);
                        }
                    }
                    Ok(None) => (),
                    Ok(Some(reply)) => {
                        last[number] = Some(Ok(reply));
                        alive = Instant::now();
                    }
                    Err(error) => last[number] = Some(Err(error)),
                }
            }
            let bad = |one: &Option<Result<Reply, FtpError>>| match one {
                Some(Ok(reply)) => reply.kind() != Kind::Done,
                Some(Err(_)) => true,
                None => false,
            };
            let finished = last.iter().all(Option::is_some);
            if last.iter().any(bad) {
                done_at.get_or_insert_with(Instant::now);
            }
            let waited = done_at.is_some_and(|at: Instant| at.elapsed() > REASON);
            let limit = if marks { limits.stall.max(limits.finish) } else { whole };
            if finished
                || waited
                || alive.elapsed() > limit
                || limits.whole.is_some_and(|whole| begun.elapsed() > whole)
            {
                break;
            }
        }
        let clients = [&mut *self.source, &mut *self.destination];
        let mut faults = Vec::new();
        for (client, last) in clients.into_iter().zip(last) {
            let server = client.server.clone();
            match last {
                Some(Ok(reply)) if reply.kind() == Kind::Done => (),
                Some(Ok(reply)) => faults.push(Fault::reply(&reply, &server)),
                Some(Err(error)) => {
                    let passing = error.may_pass();
                    faults.insert(0, Fault { party: Party::Link(server), why: error.to_string(), passing });
                }
                None => {
                    client.control.close();
                    let why = format!("it did not say within {:?} that it is done", alive.elapsed());
                    faults.push(Fault { party: Party::Server(server), why, passing: true });
                }
            }
        }
        // A refusal for good explains more than what followed from it at the other server.
        let at = faults.iter().position(|fault| !fault.passing).unwrap_or(0);
        if faults.is_empty() { Ok(()) } else { Err(faults.swap_remove(at)) }
    }
}

struct Failure {
    fault: Fault,
    at: u64,
}

impl Failure {
    fn before(error: FtpError, at: u64) -> Self {
        let passing = error.may_pass();
        let party = match &error {
            FtpError::Lost { server, .. } | FtpError::Connect { server, .. } => Party::Link(server.clone()),
            FtpError::Refused { server, .. }
            | FtpError::Silent { server, .. }
            | FtpError::Protocol { server, .. }
            | FtpError::Unsupported { server, .. } => Party::Server(server.clone()),
            _ => Party::Here,
        };
        Self { fault: Fault { party, why: error.to_string(), passing }, at }
    }
}
