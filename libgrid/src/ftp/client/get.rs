//! A file from a server to this machine.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::checksum::local_checksum;
use super::control::line;
use super::data::{self, Data};
use super::error::{Party, shown};
use super::local::{Identity, Partial};
use super::mode_e::{self, Sink};
use super::moving::{Fault, Shared, carry};
use super::{Client, FtpError, Landed, Options, Progress, persist};
use crate::ftp::reply::{Kind, Reply};
use crate::ftp::time;

/// How often the journal of a transfer in extended mode is written.
const JOURNAL: Duration = Duration::from_millis(250);

/// What a server tells of a file: its size, and when it was written.
pub(super) type Told = (Option<u64>, Option<SystemTime>);

impl Client {
    /// Copies a file of the server to `target`, which is replaced at once when all is there. What came is kept when it
    /// breaks, beside the target under a hidden name, and the next call for the same file goes on from there.
    ///
    /// # Errors
    /// [`FtpError::Broken`] after all retries, with the byte; [`FtpError::Damaged`] if checksums differ,
    /// [`FtpError::Changed`] if the server's file changed meanwhile, [`FtpError::Busy`] if another process is at it;
    /// [`FtpError::Local`] when the target cannot be written.
    ///
    /// ```no_run
    /// use libgrid::ftp::client::{Client, Login, Options, Progress};
    /// let mut client = Client::connect(&"ftp://node1:2811/".parse()?, &Login::default())?;
    /// let options = Options { extended: true, streams: Some(4), verify: true, ..Options::default() };
    /// let landed = client.get(b"/data/run7.h5", "run7.h5".as_ref(), &options, &mut |progress| {
    ///     if let Progress::Moved { bytes } = progress {
    ///         eprint!("\r{bytes}");
    ///     }
    /// })?;
    /// # Ok::<(), libgrid::ftp::client::FtpError>(())
    /// ```
    pub fn get(
        &mut self,
        path: &[u8],
        target: &Path,
        options: &Options,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        persist(options.retries, progress, |attempt, progress| {
            self.get_once(path, target, options, options.resume || attempt > 0, progress)
        })
    }

    /// Size and time of a file, as far as the server tells them.
    pub(super) fn told(&mut self, path: &[u8]) -> Result<Told, FtpError> {
        let size = line("SIZE", path)?;
        let replies = self.control.batch(&[size.clone(), line("MDTM", path)?])?;
        let mut replies = replies.into_iter();
        let (Some(sized), Some(timed)) = (replies.next(), replies.next()) else {
            return Err(self.control.protocol("a reply is missing"));
        };
        let modify =
            (timed.code == 213).then(|| timed.text.first().and_then(|text| time::parse(text.trim_ascii())));
        Ok((self.size_of(&size, sized)?, modify.flatten()))
    }

    /// What the reply to SIZE says; `None` if the server does not know the command.
    pub(super) fn size_of(&self, command: &[u8], reply: Reply) -> Result<Option<u64>, FtpError> {
        match reply.code {
            213 => {
                let text = reply.text.first().map(|text| String::from_utf8_lossy(text).trim().to_owned());
                let size =
                    text.and_then(|text| text.parse().ok()).filter(|size| *size <= i64::MAX.cast_unsigned());
                size.map(Some).ok_or_else(|| self.control.protocol(format!("a size is not {reply}")))
            }
            500 | 502 | 504 => Ok(None),
            _ => self.control.done(command, reply).map(|_| None),
        }
    }

    fn get_once(
        &mut self,
        path: &[u8],
        target: &Path,
        options: &Options,
        resume: bool,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        self.ready()?;
        let method = options.verify.then(|| self.checksum_method()).transpose()?;
        let told = self.told(path)?;
        let (remote_size, modify) = told;
        let range = options.range.map(|(from, to)| {
            let end = remote_size.map_or(to, |size| to.min(size));
            (from.min(end), end)
        });
        let base = range.map_or(0, |range| range.0);
        let size = range.map(|(from, to)| to - from).or(remote_size);
        let identity = Identity { url: self.url_of(path), size: remote_size, modify, range };
        let mut partial = Partial::open(target, &identity, resume)?;
        if !options.extended {
            partial.in_order()?;
        }
        let resumed = partial.have.bytes();
        let missing = size.is_none_or(|size| size == 0 || !partial.have.gaps(size).is_empty());
        let shared = Shared::new(partial.have.clone());
        if missing {
            let moving = Moving { path, base, size, range: range.is_some(), resumed };
            let result = if options.extended {
                self.get_extended(&moving, &partial, &shared, options, progress)
            } else {
                self.get_stream(&moving, &mut partial, &shared, options, progress)
            };
            let have = shared.have();
            let whole = size.is_some_and(|size| have.gaps(size).is_empty());
            let result = match result {
                // Whoever wants a part only cuts the server short.
                Err(Failed::Fault(_)) if whole && moving.range => Ok(()),
                Ok(()) if size.is_some() && !whole => Err(Failed::Fault(Fault {
                    party: Party::Server(self.server.clone()),
                    why: format!("it ended the file early, of {} bytes", size.unwrap_or_default()),
                    passing: true,
                })),
                other => other,
            };
            if let Err(failed) = result {
                let at = have.bytes();
                if have.is_empty() {
                    partial.discard();
                } else if options.extended {
                    partial.note_ranges(&have)?;
                }
                return Err(match failed {
                    Failed::Fault(fault) => fault.broken(shown(path), base + at, remote_size.is_some()),
                    Failed::Error(error) => error,
                });
            }
        }
        let bytes = size.unwrap_or_else(|| shared.have().end());
        self.ready()?;
        if remote_size.is_some() && self.told(path)? != told {
            partial.discard();
            return Err(FtpError::Changed { path: shown(path) });
        }
        let mut checksum = None;
        if let Some(method) = method {
            progress(Progress::Verifying);
            let theirs = self.remote_checksum(method, path, (base, base + bytes), range.is_none())?;
            let ours = local_checksum(method, &partial.file, (0, bytes))
                .map_err(FtpError::local("read", &partial.path))?;
            if theirs != ours {
                partial.discard();
                let (algorithm, server) = (method.name().to_owned(), self.server.clone());
                return Err(FtpError::Damaged { path: shown(path), server, algorithm, theirs, ours });
            }
            checksum = Some((method.name().to_owned(), ours));
        }
        partial.land(modify.filter(|_| options.times), options.sync)?;
        Ok(Landed { bytes, resumed, interruptions: 0, checksum })
    }

    fn get_stream(
        &mut self,
        moving: &Moving<'_>,
        partial: &mut Partial,
        shared: &Shared,
        options: &Options,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failed> {
        self.enter_mode(false)?;
        let plan = self.plan(options, moving.size.unwrap_or(0));
        self.tune(&plan, true)?;
        let from = partial.have.prefix();
        let address = self.passive()?;
        let socket = data::connect(&self.control, address, &plan)?;
        let part = moving.range && !self.features.has("ERET");
        let command = if moving.range && !part {
            let length = moving.size.unwrap_or(0) - from;
            line("ERET", &[format!("P {} {length} ", moving.base + from).as_bytes(), moving.path].concat())?
        } else {
            if moving.base + from > 0 {
                let rest = format!("{}", moving.base + from);
                let reply = self.control.ask("REST", rest.as_bytes())?;
                if reply.kind() != Kind::Intermediate {
                    if moving.range {
                        let what = format!("begin in the middle of a file ({reply}): fetch all of it");
                        return Err(FtpError::Unsupported { server: self.server.clone(), what }.into());
                    }
                    // All of it once more, then: the next attempt finds nothing to go on from.
                    partial.start_over()?;
                    let why = format!("it cannot go on in the middle of a file ({reply})");
                    let party = Party::Server(self.server.clone());
                    return Err(Failed::Fault(Fault { party, why, passing: true }));
                }
            }
            line("RETR", moving.path)?
        };
        progress(Progress::Begun { size: moving.size, already: from, streams: 1 });
        shared.watch(socket.stream());
        self.control.send(&[command])?;
        let connector = self.data_tls().cloned();
        let limits = self.login.limits.clone();
        let server = self.server.clone();
        let most = moving.size.map(|size| size - from).or(limits.file);
        let file = &partial.file;
        let work = move |shared: &Shared| {
            let fault = |broken| Fault::of(&broken, &server, limits.stall);
            let network = |source| crate::io::Broken { moved: 0, side: crate::io::Side::Network, source };
            let mut data =
                Data::new(socket, connector.as_ref(), &limits).map_err(|error| fault(network(error)))?;
            let mut at = from;
            let count = |came| {
                shared.count(came);
                shared.arrived(at, at + came);
                at += came;
            };
            data.receive(file, from, most, part, count).map_err(fault)
        };
        carry(&mut self.control, shared, from, progress, || (), work)?;
        Ok(())
    }

    fn get_extended(
        &mut self,
        moving: &Moving<'_>,
        partial: &Partial,
        shared: &Shared,
        options: &Options,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failed> {
        if moving.range && !self.features.has("ERET") {
            let what = "send a part of a file in extended mode: use stream mode".to_owned();
            return Err(FtpError::Unsupported { server: self.server.clone(), what }.into());
        }
        self.enter_mode(true)?;
        let plan = self.plan(options, moving.size.unwrap_or(0) - partial.have.bytes());
        self.tune(&plan, true)?;
        progress(Progress::Begun { size: moving.size, already: moving.resumed, streams: plan.streams });
        // Parts are asked for one after the other; otherwise one command tells all that is there already.
        let gaps = match moving.size {
            Some(size) if moving.range => partial.have.gaps(size),
            _ => vec![(0, 0)],
        };
        for (gap_from, gap_to) in gaps {
            let listener = self.active(options.striped)?;
            let command = if moving.range {
                let part = format!("P {} {} ", moving.base + gap_from, gap_to - gap_from);
                line("ERET", &[part.as_bytes(), moving.path].concat())?
            } else {
                if !partial.have.is_empty() {
                    let reply = self.control.ask("REST", partial.have.to_string().as_bytes())?;
                    if reply.kind() != Kind::Intermediate {
                        return Err(self.control.refused("REST", reply).into());
                    }
                }
                line("RETR", moving.path)?
            };
            let from = match options.striped || self.login.believe_pasv {
                true => None,
                false => Some(self.control.peer()?.ip()),
            };
            let sink = Sink { file: &partial.file, base: gap_from, size: moving.size, from };
            let limits = self.login.limits.clone();
            let server = self.server.clone();
            self.control.send(&[command])?;
            let mut noted = Instant::now();
            let tick = || {
                if noted.elapsed() >= JOURNAL {
                    // A journal that cannot be written now costs a repetition, not the transfer.
                    let _ = partial.note_ranges(&shared.have());
                    noted = Instant::now();
                }
            };
            let work = |shared: &Shared| mode_e::receive(&listener, &sink, &plan, &limits, &server, shared);
            carry(&mut self.control, shared, moving.resumed, progress, tick, work)?;
        }
        Ok(())
    }
}

/// One attempt to move a file.
struct Moving<'a> {
    path: &'a [u8],
    /// The first byte wanted.
    base: u64,
    /// How many are wanted.
    size: Option<u64>,
    range: bool,
    resumed: u64,
}

/// Why an attempt ended: while data moved, or before.
pub(super) enum Failed {
    Fault(Fault),
    Error(FtpError),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<FtpError> for Failed {
    fn from(error: FtpError) -> Self {
        Self::Error(error)
    }
}
