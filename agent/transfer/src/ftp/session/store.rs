//! Data from the client: STOR, APPE, STOU, ESTO. How they arrive is told in `arrival.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libgrid::ftp::command::Rest;
use libgrid::ftp::marker::Ranges;
use libgrid::ftp::reply::Reply;
use nix::errno::Errno;

use crate::ftp::arrival::{Arrival, Start};
use crate::ftp::extended::{self, Ends};
use crate::ftp::flight::Fault;
use crate::ftp::path::Place;
use crate::ftp::session::retrieve::Source;
use crate::ftp::session::transfer::{Crew, Incoming};
use crate::ftp::session::{Session, Step};
use crate::ftp::stream;

/// How long the end of the control connection may come after that of the data, at least and at most.
const GRACE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// Names that STOU tries.
const TRIES: u32 = 100;

impl Session {
    pub(super) async fn stor(&mut self, path: &[u8], rest: Option<Rest>) -> Step {
        let place = self.place(path);
        let (start, have) = match (rest, self.manner.mode_e) {
            (None | Some(Rest::At(0)), false) => (Start::Fresh, Ranges::default()),
            (None | Some(Rest::At(0)), true) => (Start::Strewn(0), Ranges::default()),
            (Some(Rest::At(at)), false) => (Start::At(at), Ranges::default()),
            (Some(Rest::At(at)), true) => {
                let mut have = Ranges::default();
                have.insert(0, at);
                (Start::Strewn(at), have)
            }
            (Some(Rest::Have(have)), _) => {
                // Markers promise only what has no gap before it; more was never said to be here.
                if have.iter().count() > 1 || have.prefix() != have.end() {
                    return self.say(554, format!(
                        "{} was never told to have {have}: resume with the last range marker, which begins at 0",
                        place.shown()
                    )).await;
                }
                (Start::Strewn(have.prefix()), have)
            }
        };
        self.receive(place, start, have, 0, None).await
    }

    pub(super) async fn appe(&mut self, path: &[u8]) -> Step {
        if self.manner.mode_e {
            return self.say(504, "APPE needs MODE S: in MODE E each block says where it belongs").await;
        }
        self.receive(self.place(path), Start::End, Ranges::default(), 0, None).await
    }

    pub(super) async fn esto(&mut self, path: &[u8], offset: u64) -> Step {
        self.receive(self.place(path), Start::InPlace, Ranges::default(), offset, None).await
    }

    /// A name that is not there yet.
    pub(super) async fn stou(&mut self, path: Option<Vec<u8>>) -> Step {
        let wish = path.unwrap_or_else(|| b"file".to_vec());
        let wish = self.place(&wish);
        let found = self.disk(move |root| {
            for number in 0..TRIES {
                let place = match (number, wish.split()) {
                    (0, _) => wish.clone(),
                    (_, Some((folder, name))) => {
                        folder.join(&[name, format!(".{number}").as_bytes()].concat())
                    }
                    (_, None) => wish.join(format!("file.{number}").as_bytes()),
                };
                match root.stat(&place) {
                    Err(error) if error.errno == Errno::ENOENT => return Ok(place),
                    Err(error) => return Err(error),
                    Ok(_) => (),
                }
            }
            Err(crate::ftp::root::FileError { path: wish.shown(), errno: Errno::EEXIST })
        });
        match found.await {
            Ok(place) => {
                let start = if self.manner.mode_e { Start::Strewn(0) } else { Start::Fresh };
                let name = place.absolute();
                self.receive(place, start, Ranges::default(), 0, Some(name)).await
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    async fn receive(
        &mut self,
        place: Place,
        start: Start,
        have: Ranges,
        base: u64,
        unique: Option<Vec<u8>>,
    ) -> Step {
        let expected = self.manner.allo.take();
        if !self.ready().await? {
            return Ok(());
        }
        let user = self.login.as_ref().map(|login| login.name.clone()).unwrap_or_default();
        let mut crew = Crew::new();
        // An upload of the same user to the same name, whose connection may be dead: this one takes its place.
        self.server.take_over(&place, (&user, self.peer.ip()), &crew.flight);
        let there = place.clone();
        let arrival = match self.disk(move |root| Arrival::begin(root, &there, start)).await {
            Ok(arrival) => arrival,
            Err(error) if error.errno == Errno::EINVAL => {
                let text = format!("{} has fewer bytes than that: ask SIZE where to resume", place.shown());
                return self.say(554, text).await;
            }
            Err(error) => return self.refuse(&error).await,
        };
        let file = match arrival.file() {
            Ok(file) => Arc::new(file),
            Err(error) => return self.say(451, format!("{}: {error}", place.shown())).await,
        };
        let text = match &unique {
            Some(name) => [b"FILE: ".as_slice(), name].concat(),
            None => format!("receiving {}", place.shown()).into_bytes(),
        };
        for (from, to) in have.iter() {
            crew.flight.arrived(from, to);
        }
        let offset = if start == Start::InPlace { base } else { arrival.offset };
        let begun = Instant::now();
        let attended = if self.manner.mode_e {
            self.say(150, text).await?;
            self.receive_extended(&mut crew, file, base).await
        } else {
            self.reply(&Reply::new(150, text)).await?;
            match self.connection().await {
                Ok((stream, ours)) => {
                    let (guard, _, buffer, stall) = self.for_thread();
                    let ascii = self.manner.ascii;
                    let started = crew.start(self, move |flight| {
                        flight.attach(&stream)?;
                        let channel = guard.open(stream, ours, buffer, stall)?;
                        stream::receive(channel, &file, offset, ascii, flight).map(|()| None)
                    });
                    self.attend(&mut crew, None).await.map(|attended| started.and(attended))
                }
                Err(why) => {
                    self.used();
                    let _ = tokio::task::spawn_blocking(move || arrival.abandon(offset, false)).await;
                    self.server.forget_upload(&place, &crew.flight);
                    return self.say(425, why).await;
                }
            }
        };
        let attended = match attended {
            Ok(attended) => attended,
            Err(lost) => {
                // Nobody is there to be told; what came is kept all the same.
                let fault = Fault::Stopped("the session ended".to_owned());
                let _ = self.settle(&place, arrival, &crew, offset, Err(fault)).await;
                return Err(lost);
            }
        };
        if !self.manner.mode_e {
            self.used();
        }
        let mut result = attended.and_then(|()| self.is_whole(&crew, start, offset, expected));
        let told = !self.manner.ascii && expected.is_some();
        if result.is_ok() && !self.manner.mode_e && !told && !self.client_lives(begun.elapsed()).await {
            result = Err(Fault::Stopped("the control connection ended, too".to_owned()));
        }
        self.received(&place, arrival, &crew, start, offset, result).await
    }

    /// Receives in MODE E: over connections that come, or that were left open.
    async fn receive_extended(
        &mut self,
        crew: &mut Crew,
        file: Arc<std::fs::File>,
        base: u64,
    ) -> Result<Result<(), Fault>, crate::ftp::control::Lost> {
        let ends = Arc::new(Ends::default());
        let (guard, _, buffer, stall) = self.for_thread();
        let pool = self.server.pool.clone();
        let most = usize::try_from(self.server.config.max_streams).unwrap_or(usize::MAX);
        let mut count = 0;
        let begin = {
            let ends = ends.clone();
            move |crew: &mut Crew, source: Source| {
                count += 1;
                if count > most {
                    return Err(Fault::Stopped(format!("more than {most} data connections came: use fewer")));
                }
                let (guard, file, ends) = (guard.clone(), file.clone(), ends.clone());
                crew.start_on(&pool, move |flight| {
                    flight.attach(source.stream())?;
                    let mut channel = source.open(&guard, buffer, stall)?;
                    let keeps = extended::receive(&mut channel, &file, base, flight, &ends)?;
                    Ok(keeps.then_some(channel))
                })
            }
        };
        let mut begin = begin;
        for channel in self.data.take_idle() {
            if let Err(fault) = begin(crew, Source::Open(channel)) {
                crew.flight.stop(fault.to_string());
            }
        }
        if let crate::ftp::session::data::Way::Active(_) = self.data.way {
            // GFD.20 wants the sender to connect; who said PORT gets one connection all the same.
            match self.connection().await {
                Ok((stream, ours)) => {
                    if let Err(fault) = begin(crew, Source::New(stream, ours)) {
                        return Ok(Err(fault));
                    }
                }
                Err(why) => return Ok(Err(Fault::Stopped(why))),
            }
        }
        let incoming =
            Incoming { ends, begin: Box::new(move |crew, stream| begin(crew, Source::New(stream, false))) };
        self.attend(crew, Some(incoming)).await
    }

    /// Whether all that was to come is there, as far as the server can know.
    fn is_whole(&self, crew: &Crew, start: Start, offset: u64, expected: Option<u64>) -> Result<(), Fault> {
        let have = crew.flight.have();
        if start != Start::InPlace && self.manner.mode_e && have.prefix() != have.end() {
            let (from, to) = have.gaps(have.end()).first().copied().unwrap_or_default();
            return Err(Fault::Protocol(format!("bytes {from} to {to} were never sent")));
        }
        let came = if self.manner.mode_e { have.bytes() } else { crew.flight.moved() };
        match expected {
            // ALLO counts what is sent, or the whole file.
            Some(expected) if !self.manner.ascii && came < expected && offset + came < expected => {
                Err(Fault::Network(std::io::Error::other(format!("{came} of {expected} bytes came (ALLO)"))))
            }
            _ => Ok(()),
        }
    }

    /// Gives the upload its name, or leaves it as a part.
    async fn settle(
        &self,
        place: &Place,
        arrival: Arrival,
        crew: &Crew,
        offset: u64,
        result: Result<(), Fault>,
    ) -> Result<(), Fault> {
        let reached = offset + crew.flight.moved();
        let have = crew.flight.have();
        let (end, prefix) = if self.manner.mode_e { (have.end(), have.prefix()) } else { (reached, reached) };
        let done = tokio::task::spawn_blocking(move || match result {
            Ok(()) => arrival.commit(Some(end)).map_err(|errno| Fault::File(errno.into())),
            Err(fault) => {
                arrival.abandon(prefix, true);
                Err(fault)
            }
        });
        let done = done.await.unwrap_or_else(|error| Err(Fault::File(std::io::Error::other(error))));
        // Not before: who asks for the size meanwhile would be told that of the file that is to be replaced.
        self.server.forget_upload(place, &crew.flight);
        done
    }

    /// Whether the client is still there. In stream mode the end of a client looks like the end of a file: but then its
    /// control connection ends, too, and the kernel of a killed client closes that one a moment later. So this waits a
    /// small part of what the transfer took.
    async fn client_lives(&mut self, took: Duration) -> bool {
        if self.ended.is_some() || self.control.is_closed() {
            return false;
        }
        if !self.waiting.is_empty() {
            return true;
        }
        let grace = (took / 32).clamp(GRACE.0, GRACE.1);
        match tokio::time::timeout(grace, self.control.next_line(None)).await {
            Err(_) => true,
            Ok(Ok(line)) => {
                self.waiting.push_back(line);
                true
            }
            Ok(Err(lost)) => {
                self.ended = Some(lost);
                false
            }
        }
    }

    /// The end of a transfer from the client.
    async fn received(
        &mut self,
        place: &Place,
        arrival: Arrival,
        crew: &Crew,
        start: Start,
        offset: u64,
        result: Result<(), Fault>,
    ) -> Step {
        let moved = crew.flight.moved();
        let Err(fault) = self.settle(place, arrival, crew, offset, result).await else {
            tracing::info!(peer = %self.peer, path = %place.shown(), bytes = moved, "received");
            return self.say(226, format!("{moved} bytes received")).await;
        };
        let at = if self.manner.mode_e { crew.flight.have().prefix() } else { offset + moved };
        let how = match (start, self.manner.mode_e) {
            (Start::InPlace, _) => "send that part again".to_owned(),
            (_, true) => format!("resume with REST 0-{at} and STOR"),
            (_, false) if self.manner.ascii => "delete it and begin again".to_owned(),
            _ => format!("resume with REST {at} and STOR"),
        };
        let text = format!("receiving {} stopped at byte {at}: {fault}; {how}", place.shown());
        self.failed(&fault, text).await
    }
}
