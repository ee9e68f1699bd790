//! A file of this machine to a server.
//!
//! It grows under a hidden name, which holds a hash of what is sent (its size and time): a later call finds what
//! arrived by the size of that file, without any record here, and never goes on with another file's bytes. In
//! extended mode the file there may have holes: only what the server's markers said counts, within one call.

use std::ops::Range;
use std::path::Path;

use super::checksum::{Method, local_checksum};
use super::control::line;
use super::data::{self, Data};
use super::error::{Party, shown};
use super::get::Failed;
use super::local::{self, hash};
use super::mode_e::{self, Source};
use super::moving::{Fault, Shared, carry};
use super::{Client, FtpError, Landed, Options, Progress, persist};
use crate::ftp::marker::Ranges;
use crate::ftp::reply::Kind;
use crate::ftp::time;

/// Smaller files are not announced by ALLO: it would take a round trip.
const ANNOUNCE: u64 = 1 << 20;

/// How a server is asked to go on with a file; the next way is tried where one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Rest,
    Append,
    Fresh,
}

/// What is known from attempt to attempt.
struct Memory {
    way: Way,
    /// What the server has, in extended mode.
    have: Ranges,
}

/// The hidden name under which a file arrives.
pub(super) fn hidden(path: &[u8], what: &str, extended: bool) -> Vec<u8> {
    let start = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at(start);
    let number = hash(&[name, what.as_bytes()].concat());
    // Names longer than 255 bytes no system has.
    let name = &name[..name.len().min(200)];
    let suffix = format!(".{number:016x}.{}part", if extended { "e" } else { "" });
    [folder, b".", name, suffix.as_bytes()].concat()
}

impl Client {
    /// Copies a file of this machine to the server, where it gets its name when all is there.
    ///
    /// # Errors
    /// As [`Client::get`]; [`FtpError::Refused`] if the server does not let files be renamed, which
    /// [`Options::atomic`] can leave out.
    ///
    /// ```no_run
    /// use libgrid::ftp::client::{Client, Login, Options};
    /// let mut client = Client::connect(&"ftp://node1:2811/".parse()?, &Login::default())?;
    /// client.put("run7.h5".as_ref(), b"/data/run7.h5", &Options::default(), &mut |_| ())?;
    /// # Ok::<(), libgrid::ftp::client::FtpError>(())
    /// ```
    pub fn put(
        &mut self,
        source: &Path,
        path: &[u8],
        options: &Options,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        let mut memory = Memory { way: Way::Rest, have: Ranges::default() };
        persist(options.retries, progress, |attempt, progress| {
            let resume = if options.atomic { options.resume || attempt > 0 } else { attempt > 0 };
            self.put_once(source, path, options, resume, &mut memory, progress)
        })
    }

    fn put_once(
        &mut self,
        source: &Path,
        path: &[u8],
        options: &Options,
        resume: bool,
        memory: &mut Memory,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        self.ready()?;
        let method = options.verify.then(|| self.checksum_method()).transpose()?;
        let (file, whole, modify) = local::source(source)?;
        let range =
            options.range.map_or(0..whole, |(from, to)| from.min(whole)..to.min(whole).max(from.min(whole)));
        let size = range.end - range.start;
        let since = modify.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let what = format!("{whole} {since} {} {size}", range.start);
        let there = if options.atomic { hidden(path, &what, options.extended) } else { path.to_vec() };
        let have = if !resume {
            Ranges::default()
        } else if options.extended {
            // Gone with the server's memory of it, or taken away by somebody: holes would be left.
            if !memory.have.is_empty()
                && self.size_if_there(&there)?.is_none_or(|came| came < memory.have.end())
            {
                memory.have = Ranges::default();
            }
            memory.have.clone()
        } else {
            let mut have = Ranges::default();
            let came = self.size_if_there(&there)?.filter(|came| *came <= size && memory.way != Way::Fresh);
            have.insert(0, came.unwrap_or(0));
            have
        };
        let resumed = have.bytes();
        if size == 0 || resumed < size {
            let result = if options.extended {
                self.put_extended(&file, &range, &there, &have, options, memory, progress)
            } else {
                self.put_stream(&file, &range, &there, resumed, options, memory, progress)
            };
            if let Err(failed) = result {
                return Err(match failed {
                    Failed::Fault(fault) => {
                        self.broken_put(fault, &file, source, &there, path, memory, options)
                    }
                    Failed::Error(error) => error,
                });
            }
        }
        self.ready()?;
        let (_, size_now, modify_now) = local::source(source)?;
        if (size_now, modify_now) != (whole, modify) {
            self.control.ask("DELE", &there)?;
            return Err(FtpError::Changed { path: source.display().to_string() });
        }
        let landed = self.check_put(&file, &range, &there, resumed, method, progress)?;
        if options.atomic {
            self.rename(&there, path)?;
        }
        if options.times && self.features.has("MFMT") {
            // Not every user may; the bytes are right all the same.
            self.control.ask("MFMT", &[time::format(modify).as_bytes(), b" ", path].concat())?;
        }
        Ok(landed)
    }

    /// The error of a transfer that broke: with what the server has by now, if it can be asked.
    #[expect(clippy::too_many_arguments, reason = "all of them tell what broke")]
    fn broken_put(
        &mut self,
        fault: Fault,
        file: &std::fs::File,
        source: &Path,
        there: &[u8],
        path: &[u8],
        memory: &Memory,
        options: &Options,
    ) -> FtpError {
        let at = if options.extended {
            memory.have.bytes()
        } else {
            let asked = self.ready().and_then(|()| self.size_if_there(there));
            asked.ok().flatten().unwrap_or(0)
        };
        // A source that can no longer be read is this machine's fault, whatever the server says of it.
        let fault = match file.metadata() {
            Err(error) => Fault { party: Party::Here, why: error.to_string(), passing: false },
            Ok(_) => fault,
        };
        let what = format!("{} to {}", source.display(), shown(path));
        fault.broken(what, at, options.atomic && !options.extended)
    }

    /// Whether what arrived is what was sent.
    fn check_put(
        &mut self,
        file: &std::fs::File,
        range: &Range<u64>,
        there: &[u8],
        resumed: u64,
        method: Option<Method>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Landed, FtpError> {
        let size = range.end - range.start;
        if let Some(came) = self.size_if_there(there)?
            && came != size
        {
            self.control.ask("DELE", there)?;
            let why = format!("the file there has {came} bytes, not {size}; it was removed");
            let fault = Fault { party: Party::Server(self.server.clone()), why, passing: true };
            return Err(fault.broken(shown(there), 0, false));
        }
        let mut checksum = None;
        if let Some(method) = method {
            progress(Progress::Verifying);
            let theirs = self.remote_checksum(method, there, (0, size), true)?;
            let ours = local_checksum(method, file, (range.start, range.end))
                .map_err(FtpError::local("read", "the source"))?;
            if theirs != ours {
                self.control.ask("DELE", there)?;
                let (algorithm, server) = (method.name().to_owned(), self.server.clone());
                return Err(FtpError::Damaged { path: shown(there), server, algorithm, theirs, ours });
            }
            checksum = Some((method.name().to_owned(), ours));
        }
        Ok(Landed { bytes: size, resumed, interruptions: 0, checksum })
    }

    /// The size of a file; `None` if there is none, or the server does not tell sizes.
    pub(super) fn size_if_there(&mut self, path: &[u8]) -> Result<Option<u64>, FtpError> {
        let reply = self.control.ask("SIZE", path)?;
        if reply.kind() == Kind::Permanent {
            return Ok(None);
        }
        self.size_of(&line("SIZE", path)?, reply)
    }

    /// Announces how much comes; only "the disk is full" counts as an answer.
    pub(super) fn announce(&mut self, size: u64) -> Result<(), FtpError> {
        if size < ANNOUNCE {
            return Ok(());
        }
        let reply = self.control.ask("ALLO", size.to_string().as_bytes())?;
        if matches!(reply.code, 452 | 552) {
            return Err(self.control.refused("ALLO", reply));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what to send, where to, and how")]
    fn put_stream(
        &mut self,
        file: &std::fs::File,
        range: &Range<u64>,
        there: &[u8],
        already: u64,
        options: &Options,
        memory: &mut Memory,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failed> {
        self.enter_mode(false)?;
        let size = range.end - range.start;
        let plan = self.plan(options, size);
        self.tune(&plan, false)?;
        self.announce(size - already)?;
        let address = self.passive()?;
        let socket = data::connect(&self.control, address, &plan)?;
        if already > 0 && memory.way == Way::Rest {
            let reply = self.control.ask("REST", already.to_string().as_bytes())?;
            if reply.kind() != Kind::Intermediate {
                memory.way = Way::Append;
            }
        }
        let verb = if already > 0 && memory.way == Way::Append { "APPE" } else { "STOR" };
        progress(Progress::Begun { size: Some(size), already, streams: 1 });
        let shared = Shared::default();
        shared.watch(socket.stream());
        self.control.send(&[line(verb, there)?])?;
        let connector = self.data_tls().cloned();
        let limits = self.login.limits.clone();
        let server = self.server.clone();
        let work = |shared: &Shared| {
            let fault = |broken| Fault::of(&broken, &server, limits.stall);
            let network = |source| crate::io::Broken { moved: 0, side: crate::io::Side::Network, source };
            let mut data =
                Data::new(socket, connector.as_ref(), &limits).map_err(|error| fault(network(error)))?;
            data.send(file, range.start + already..range.end, |sent| shared.count(sent)).map_err(fault)
        };
        let result = carry(&mut self.control, &shared, already, progress, || (), work);
        if let Err(fault) = &result
            && already > 0
            && matches!(fault.party, Party::Server(_))
        {
            // Perhaps it does not let files be gone on with in this way.
            memory.way = if memory.way == Way::Rest { Way::Append } else { Way::Fresh };
            return Err(Failed::Fault(Fault {
                passing: true,
                party: fault.party.clone(),
                why: fault.why.clone(),
            }));
        }
        Ok(result?)
    }

    #[expect(clippy::too_many_arguments, reason = "what to send, where to, and how")]
    fn put_extended(
        &mut self,
        file: &std::fs::File,
        range: &Range<u64>,
        there: &[u8],
        have: &Ranges,
        options: &Options,
        memory: &mut Memory,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failed> {
        self.enter_mode(true)?;
        let size = range.end - range.start;
        let gaps = have.gaps(size);
        let already = have.bytes();
        let plan = self.plan(options, size - already);
        self.tune(&plan, false)?;
        let to = if options.striped { self.striped_passive()? } else { vec![self.passive()?] };
        self.announce(size)?;
        if !have.is_empty() {
            let reply = self.control.ask("REST", have.to_string().as_bytes())?;
            if reply.kind() != Kind::Intermediate {
                memory.have = Ranges::default();
                return Err(self.control.refused("REST", reply).into());
            }
        }
        let streams = plan.streams * to.len();
        progress(Progress::Begun { size: Some(size), already, streams });
        self.control.send(&[line("STOR", there)?])?;
        let limits = self.login.limits.clone();
        let server = self.server.clone();
        let source = Source { file, base: range.start, gaps, to };
        let shared = Shared::default();
        let arrived = &mut memory.have;
        let mut heard = |news: Progress<'_>| {
            if let Progress::Arrived(ranges) = &news {
                for (from, to) in ranges.iter() {
                    arrived.insert(from, to);
                }
            }
            progress(news);
        };
        let work = |shared: &Shared| mode_e::send(&source, &plan, &limits, &server, shared);
        Ok(carry(&mut self.control, &shared, already, &mut heard, || (), work)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_differ_by_what_is_sent_and_stay_in_their_folder() {
        let one = hidden(b"/a b/x", "1", false);
        assert!(one.starts_with(b"/a b/.x.") && one.ends_with(b".part"));
        assert_ne!(one, hidden(b"/a b/x", "2", false));
        assert!(hidden(&[b'n'; 255], "1", true).len() <= 255);
    }
}
