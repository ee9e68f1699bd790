//! Data to the client: RETR, ERET, lists; and CKSM, which only reads.

use std::fs::File;
use std::sync::Arc;

use libgrid::ftp::command::Rest;
use nix::fcntl::OFlag;

use crate::ftp::arrival::abandoned;
use crate::ftp::channel::Channel;
use crate::ftp::checksum::Checksum;
use crate::ftp::extended::{self, Blocks};
use crate::ftp::flight::Fault;
use crate::ftp::guard::Guard;
use crate::ftp::listing::{Form, Listing};
use crate::ftp::path::Place;
use crate::ftp::root::{FileError, Root, size};
use crate::ftp::session::data::Way;
use crate::ftp::session::transfer::Crew;
use crate::ftp::session::{Session, Step};
use crate::ftp::stream;

/// A file that can be read, and how long it is.
type Opened = (Arc<File>, u64);

/// What was interrupted is not given out as if it were whole: the error says how far it came.
fn open(root: &Arc<Root>, place: &Place) -> Result<Result<Opened, u64>, FileError> {
    if let Some((_, stat)) = abandoned(root, place) {
        return Ok(Err(size(&stat)));
    }
    let (file, stat) = root.file(place, OFlag::O_RDONLY)?;
    Ok(Ok((Arc::new(file), size(&stat))))
}

impl Session {
    async fn source(&mut self, place: &Place) -> Result<Option<Opened>, crate::ftp::control::Lost> {
        let there = place.clone();
        match self.disk(move |root| open(root, &there)).await {
            Ok(Ok(opened)) => return Ok(Some(opened)),
            Ok(Err(came)) => {
                let text = format!(
                    "{}: its upload was interrupted at byte {came}: resume it with REST {came} and STOR, or delete it",
                    place.shown()
                );
                self.say(550, text).await?;
            }
            Err(error) => self.refuse(&error).await?,
        }
        Ok(None)
    }

    /// Sends a file, or a part of it (ERET).
    pub(super) async fn retr(&mut self, path: &[u8], rest: Option<Rest>, part: Option<(u64, u64)>) -> Step {
        let place = self.place(path);
        let Some((file, size)) = self.source(&place).await? else { return Ok(()) };
        let (from, to) = match part {
            Some((offset, length)) => (offset, size.min(offset.saturating_add(length))),
            None => (0, size),
        };
        let wanted = match &rest {
            None => vec![(from, to.max(from))],
            Some(Rest::At(at)) => vec![(from + at, to.max(from))],
            // Ranges count from the beginning of what is sent.
            Some(Rest::Have(have)) => {
                have.gaps(to.saturating_sub(from)).into_iter().map(|(a, b)| (a + from, b + from)).collect()
            }
        };
        if let Some((start, end)) = wanted.first().filter(|(start, end)| start > end || *start > size) {
            let text =
                format!("{} has {size} bytes: it cannot begin at byte {}", place.shown(), start.max(end));
            return self.say(554, text).await;
        }
        if !self.ready().await? {
            return Ok(());
        }
        if self.manner.mode_e {
            return self.retr_extended(&place, file, wanted, from).await;
        }
        let ascii = self.manner.ascii;
        let range = wanted.first().copied().unwrap_or((to, to));
        let text = format!("sending {} ({} bytes)", place.shown(), range.1 - range.0);
        let Some((stream, ours)) = self.begin(&text).await? else { return Ok(()) };
        let (guard, ahead, buffer, stall) = self.for_thread();
        let mut crew = Crew::new();
        let started = crew.start(self, move |flight| {
            flight.attach(&stream)?;
            let channel = guard.open(stream, ours, buffer, stall)?;
            stream::send(channel, &file, range, ascii, flight, &ahead).map(|()| None)
        });
        self.sent(&place, &mut crew, started, range.0).await
    }

    async fn retr_extended(
        &mut self,
        place: &Place,
        file: Arc<File>,
        wanted: Vec<(u64, u64)>,
        shift: u64,
    ) -> Step {
        let bytes: u64 = wanted.iter().map(|(from, to)| to - from).sum();
        let first = wanted.first().map_or(0, |range| range.0);
        self.say(150, format!("sending {} ({bytes} bytes) in MODE E", place.shown())).await?;
        let Some(channels) = self.channels().await? else { return Ok(()) };
        let blocks = Arc::new(Blocks::new(wanted, shift));
        let streams = channels.len() as u64;
        let mut crew = Crew::new();
        let mut started = Ok(());
        for (number, source) in channels.into_iter().enumerate() {
            let (guard, ahead, buffer, stall) = self.for_thread();
            let (file, blocks) = (file.clone(), blocks.clone());
            started = crew.start(self, move |flight| {
                flight.attach(source.stream())?;
                let mut channel = source.open(&guard, buffer, stall)?;
                let first = (number == 0).then_some(streams);
                extended::send(&mut channel, &file, &blocks, first, flight, &ahead)?;
                Ok(Some(channel))
            });
            if started.is_err() {
                break;
            }
        }
        self.sent(place, &mut crew, started, first).await
    }

    /// The end of a transfer to the client.
    async fn sent(&mut self, place: &Place, crew: &mut Crew, started: Result<(), Fault>, from: u64) -> Step {
        if let Err(fault) = &started {
            crew.flight.stop(fault.to_string());
        }
        let attended = self.attend(crew, None).await?;
        if !self.manner.mode_e {
            self.used();
        }
        match started.and(attended) {
            Ok(()) => {
                tracing::info!(peer = %self.peer, path = %place.shown(), bytes = crew.flight.moved(), "sent");
                self.say(226, format!("{} bytes sent", crew.flight.moved())).await
            }
            Err(fault) => {
                let at = from + crew.flight.moved();
                let how = if self.manner.mode_e {
                    "resume with REST and the ranges that you have".to_owned()
                } else if self.manner.ascii {
                    "begin again".to_owned()
                } else {
                    format!("resume with REST and the bytes that you have, at most {at}")
                };
                let text = format!("sending {} stopped at byte {at}: {fault}; {how}", place.shown());
                self.failed(&fault, text).await
            }
        }
    }

    /// The preliminary reply, and the data connection.
    pub(super) async fn begin(
        &mut self,
        text: &str,
    ) -> Result<Option<(std::net::TcpStream, bool)>, crate::ftp::control::Lost> {
        self.say(150, text).await?;
        match self.connection().await {
            Ok(connection) => Ok(Some(connection)),
            Err(why) => {
                self.used();
                self.say(425, why).await?;
                Ok(None)
            }
        }
    }

    /// The connections of MODE E over which we send: those that are open, and as many new ones as there may be.
    async fn channels(&mut self) -> Result<Option<Vec<Source>>, crate::ftp::control::Lost> {
        let mut sources: Vec<Source> = self.data.take_idle().into_iter().map(Source::Open).collect();
        let wanted = usize::try_from(self.manner.parallelism).unwrap_or(1);
        let most = wanted.min(self.server.pool.free()).max(1);
        sources.truncate(most);
        let addrs = match &self.data.way {
            Way::Active(addrs) => addrs.clone(),
            _ => Vec::new(),
        };
        let mut failure = None;
        if addrs.is_empty() && sources.is_empty() {
            // GFD.20 wants the sender to connect; who said PASV gets the data all the same, over one connection.
            match self.connection().await {
                Ok((stream, ours)) => sources.push(Source::New(stream, ours)),
                Err(why) => failure = Some(why),
            }
        }
        for addr in addrs.iter().cycle().take(most.saturating_sub(sources.len())) {
            match self.connect(*addr).await {
                Ok(stream) => sources.push(Source::New(stream, true)),
                Err(why) => {
                    failure = Some(why);
                    break;
                }
            }
        }
        // Fewer than wanted will do.
        match failure {
            Some(why) if sources.is_empty() => {
                self.say(425, why).await?;
                Ok(None)
            }
            _ => Ok(Some(sources)),
        }
    }

    pub(super) async fn list(&mut self, path: Option<Vec<u8>>) -> Step {
        self.listing(path.as_deref().unwrap_or_default(), Form::List).await
    }

    pub(super) async fn nlst(&mut self, path: Option<Vec<u8>>) -> Step {
        let path = path.unwrap_or_default();
        let mut before = path.clone();
        if !before.is_empty() && !before.ends_with(b"/") {
            before.push(b'/');
        }
        self.listing(&path, Form::Names(before)).await
    }

    pub(super) async fn mlsd(&mut self, path: Option<Vec<u8>>) -> Step {
        self.listing(path.as_deref().unwrap_or_default(), Form::Facts(self.manner.wanted)).await
    }

    async fn listing(&mut self, path: &[u8], form: Form) -> Step {
        let place = self.place(path);
        let may_write = self.may_write();
        let there = place.clone();
        let listing = match self.disk(move |root| Listing::open(root, there, form, may_write)).await {
            Ok(listing) => listing,
            Err(error) if error.errno == nix::errno::Errno::ENOTDIR => {
                return self.say(501, error.to_string()).await;
            }
            Err(error) => return self.refuse(&error).await,
        };
        if !self.ready().await? {
            return Ok(());
        }
        let mode_e = self.manner.mode_e;
        let idle = if mode_e { self.data.take_idle().into_iter().next() } else { None };
        let text = format!("listing {}", place.shown());
        let source = match idle {
            Some(channel) => {
                self.say(150, text).await?;
                Source::Open(channel)
            }
            None => match self.begin(&text).await? {
                Some((stream, ours)) => Source::New(stream, ours),
                None => return Ok(()),
            },
        };
        let (guard, _, buffer, stall) = self.for_thread();
        let mut crew = Crew::new();
        let started = crew.start(self, move |flight| {
            flight.attach(source.stream())?;
            listing.send(source.open(&guard, buffer, stall)?, mode_e, flight)
        });
        let attended = self.attend(&mut crew, None).await?;
        if !mode_e {
            self.used();
        }
        match started.and(attended) {
            Ok(()) => self.say(226, "that was all").await,
            Err(fault) => {
                let text = format!("listing {} stopped: {fault}; ask again", place.shown());
                self.failed(&fault, text).await
            }
        }
    }

    pub(super) async fn cksm(
        &mut self,
        algorithm: &str,
        offset: u64,
        length: Option<u64>,
        path: &[u8],
    ) -> Step {
        let Some(checksum) = Checksum::named(algorithm) else {
            return self.say(504, "only MD5, ADLER32, SHA1, SHA256 and SHA512").await;
        };
        let place = self.place(path);
        let Some((file, size)) = self.source(&place).await? else { return Ok(()) };
        let to = length.map_or(size, |length| offset.saturating_add(length));
        if offset > size || to > size {
            return self.say(554, format!("{} has only {size} bytes", place.shown())).await;
        }
        let mut crew = Crew::new();
        let ahead = self.server.ahead.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        let started = crew.start(self, move |flight| {
            let sum = checksum.of(&file, offset, to, flight, &ahead)?;
            // Whoever asked may be gone.
            let _ = tell.send(sum);
            Ok(None)
        });
        let attended = self.attend(&mut crew, None).await?;
        match (started.and(attended), told.await) {
            (Ok(()), Ok(sum)) => self.say(213, sum).await,
            (Err(fault), _) => {
                let text = format!("the checksum of {} cannot be told: {fault}", place.shown());
                self.failed(&fault, text).await
            }
            (Ok(()), Err(_)) => self.say(451, "the checksum was lost: ask again").await,
        }
    }

    /// What a thread needs to open a data connection and to read ahead.
    pub(super) fn for_thread(&self) -> (Guard, libgrid::io::ReadAhead, Option<usize>, std::time::Duration) {
        (self.guard(), self.server.ahead.clone(), self.manner.buffer, self.server.config.stall)
    }
}

/// A data connection that is open already, or still has to be secured.
pub(super) enum Source {
    Open(Channel),
    New(std::net::TcpStream, bool),
}

impl Source {
    pub(super) fn stream(&self) -> &std::net::TcpStream {
        match self {
            Source::Open(channel) => channel.stream(),
            Source::New(stream, _) => stream,
        }
    }

    pub(super) fn open(
        self,
        guard: &Guard,
        buffer: Option<usize>,
        stall: std::time::Duration,
    ) -> Result<Channel, Fault> {
        match self {
            Source::Open(channel) => Ok(channel),
            Source::New(stream, ours) => guard.open(stream, ours, buffer, stall),
        }
    }
}
