//! What all transfers have in common: the session watches the threads that move the data, and hears the client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libgrid::ftp::command::Command;
use libgrid::ftp::marker::Perf;
use libgrid::ftp::reply::Reply;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::ftp::channel::Channel;
use crate::ftp::control::Lost;
use crate::ftp::extended::Ends;
use crate::ftp::flight::{Fault, Flight};
use crate::ftp::session::data::{PATIENCE, Way, Welcome};
use crate::ftp::session::{Session, Step, WAITING};

/// How often the session looks whether a transfer goes on.
const LOOK: Duration = Duration::from_secs(1);

/// What a thread has to say at its end.
pub(super) struct Finished {
    /// A connection that can be used again.
    pub(super) channel: Option<Channel>,
    pub(super) result: Result<(), Fault>,
}

/// The threads of one transfer.
pub(super) struct Crew {
    pub(super) flight: Arc<Flight>,
    finished: mpsc::UnboundedReceiver<Finished>,
    report: mpsc::UnboundedSender<Finished>,
    running: usize,
}

/// A transfer that receives in MODE E: connections come while it goes on.
pub(super) struct Incoming<'a> {
    pub(super) ends: Arc<Ends>,
    /// Begins to receive over a connection.
    #[expect(clippy::type_complexity, reason = "named once")]
    pub(super) begin: Box<dyn FnMut(&mut Crew, std::net::TcpStream) -> Result<(), Fault> + 'a>,
}

impl Crew {
    pub(super) fn new() -> Crew {
        let (report, finished) = mpsc::unbounded_channel();
        Crew { flight: Arc::default(), finished, report, running: 0 }
    }

    /// Lets a thread work for the transfer.
    pub(super) fn start(
        &mut self,
        session: &Session,
        work: impl FnOnce(&Arc<Flight>) -> Result<Option<Channel>, Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        self.start_on(&session.server.pool, work)
    }

    pub(super) fn start_on(
        &mut self,
        pool: &Arc<crate::ftp::pool::Pool>,
        work: impl FnOnce(&Arc<Flight>) -> Result<Option<Channel>, Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        let (flight, report) = (self.flight.clone(), self.report.clone());
        pool.run(move || {
            let finished = match work(&flight) {
                Ok(channel) => Finished { channel, result: Ok(()) },
                Err(fault) => Finished { channel: None, result: Err(fault) },
            };
            // The session may have been dropped with the server.
            let _ = report.send(finished);
        })
        .map_err(|full| Fault::Stopped(full.to_string()))?;
        self.running += 1;
        Ok(())
    }
}

impl Session {
    /// Waits for the end of a transfer. Meanwhile ABOR and STAT are answered, other commands wait, connections are
    /// accepted (MODE E), and markers are sent.
    pub(super) async fn attend(
        &mut self,
        crew: &mut Crew,
        mut incoming: Option<Incoming<'_>>,
    ) -> Result<Result<(), Fault>, Lost> {
        let mut fault: Option<Fault> = None;
        let mut aborted = false;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let welcome = self.welcome();
        let begun = Instant::now();
        let mut marked = begun;
        let listener = match (&mut self.data.way, &incoming) {
            (Way::Passive(_), Some(_)) => match std::mem::take(&mut self.data.way) {
                Way::Passive(listener) => Some(listener),
                _ => None,
            },
            _ => None,
        };
        let mut early = None;
        if incoming.is_some()
            && let Err(lost) = self.markers(&crew.flight).await
        {
            early = Some(lost);
        }
        let lost = loop {
            if early.is_some() {
                break early;
            }
            let complete = incoming.as_ref().is_none_or(|incoming| incoming.ends.complete());
            if crew.running == 0 && (complete || fault.is_some()) {
                break None;
            }
            if complete && incoming.is_some() && crew.flight.stopped().is_none() {
                // Connections that the sender opened and did not use.
                crew.flight.stop("the transfer is complete");
                self.data.idle.clear();
            }
            let hears = self.ended.is_none() && self.waiting.len() < WAITING;
            let accepts = listener.is_some() && fault.is_none() && !complete;
            tokio::select! {
                biased;
                Some(finished) = crew.finished.recv() => {
                    crew.running -= 1;
                    match finished.result {
                        Ok(()) => {
                            self.data.idle.extend(finished.channel);
                            if let Some(incoming) = &incoming {
                                incoming.ends.count();
                            }
                        }
                        Err(found) => {
                            let complete = incoming.as_ref().is_some_and(|incoming| incoming.ends.complete());
                            if !complete && fault.is_none() {
                                let found = crew.flight.cause(found);
                                crew.flight.stop(format!("another connection of the transfer failed: {found}"));
                                fault = Some(found);
                            }
                        }
                    }
                }
                line = self.control.next_line(None), if hears => match line {
                    Ok(line) => match line.as_deref().map(Command::parse) {
                        Ok(Ok(Command::Abor)) if !aborted => {
                            aborted = true;
                            crew.flight.stop("the client aborted it");
                            fault = fault.or(Some(Fault::Stopped("the client aborted it".to_owned())));
                        }
                        Ok(Ok(Command::Stat(None))) => {
                            let text = format!("the transfer goes on: {} bytes moved", crew.flight.moved());
                            if let Err(lost) = self.say(213, text).await {
                                break Some(lost);
                            }
                        }
                        Ok(Ok(Command::Noop)) if self.waiting.is_empty() => {
                            // Clients send it to keep firewalls open, and expect an answer at once.
                            if let Err(lost) = self.say(200, "ok").await {
                                break Some(lost);
                            }
                        }
                        _ => self.waiting.push_back(line),
                    },
                    Err(lost) => {
                        crew.flight.stop("the control connection ended");
                        fault = fault.or(Some(Fault::Stopped("the control connection ended".to_owned())));
                        self.ended = Some(lost);
                    }
                },
                accepted = accept(welcome, listener.as_ref()), if accepts => {
                    let begin = match (accepted, &mut incoming) {
                        (Ok(stream), Some(incoming)) => (incoming.begin)(crew, stream),
                        (Err(error), _) => Err(Fault::Network(error)),
                        (Ok(_), None) => Ok(()),
                    };
                    if let Err(found) = begin {
                        crew.flight.stop(found.to_string());
                        fault = fault.or(Some(found));
                    }
                }
                _ = ticks.tick() => {
                    if crew.running == 0 && begun.elapsed() > PATIENCE && fault.is_none() {
                        fault = Some(Fault::Network(std::io::Error::other("the sender opened none, or too few")));
                    }
                    if self.begun.elapsed() > self.server.config.longest && fault.is_none() {
                        let why = "the session lasted longer than the server allows";
                        crew.flight.stop(why);
                        fault = Some(Fault::Stopped(why.to_owned()));
                    }
                    if incoming.is_some() && marked.elapsed() >= self.server.config.markers {
                        marked = Instant::now();
                        if let Err(lost) = self.markers(&crew.flight).await {
                            break Some(lost);
                        }
                    }
                }
            }
        };
        if let Some(lost) = lost {
            // The threads must not outlive the session that answers for them.
            crew.flight.stop("the control connection ended");
            while crew.running > 0 && crew.finished.recv().await.is_some() {
                crew.running -= 1;
            }
            return Err(lost);
        }
        if let Some(listener) = listener {
            self.data.way = Way::Passive(listener);
        }
        if incoming.is_some() && fault.is_none() {
            self.markers(&crew.flight).await?;
        }
        if fault.is_some() {
            self.data.idle.clear();
        }
        if aborted {
            self.drop_transfers();
        }
        Ok(fault.map_or(Ok(()), Err))
    }

    /// Markers: how much came, and which parts of the file are safe to count on. That is what came without a gap: see
    /// `arrival.rs`.
    async fn markers(&mut self, flight: &Flight) -> Step {
        let perf = Perf { time: SystemTime::now(), stripe: 0, stripes: 1, bytes: flight.moved() };
        self.control.send(&perf.to_reply()).await?;
        let prefix = flight.have().prefix();
        if prefix > 0 {
            self.say(111, format!("Range Marker 0-{prefix}")).await?;
        }
        Ok(())
    }

    /// After ABOR: the transfers that were sent ahead of it are not begun. Each is answered in its turn.
    fn drop_transfers(&mut self) {
        let waiting: VecDeque<_> = std::mem::take(&mut self.waiting);
        self.waiting = waiting
            .into_iter()
            .map(|line| {
                line.map(|line| match Command::parse(&line) {
                    Ok(
                        Command::Retr(_)
                        | Command::Stor(_)
                        | Command::Appe(_)
                        | Command::Stou(_)
                        | Command::Eret { .. }
                        | Command::Esto { .. },
                    ) => b"ABOR".to_vec(),
                    _ => line,
                })
            })
            .collect();
    }

    /// The end of a transfer that ended before its end.
    pub(super) async fn failed(&mut self, fault: &Fault, text: String) -> Step {
        tracing::info!(peer = %self.peer, %text, "transfer failed");
        self.say(fault.code(), text).await?;
        if matches!(fault, Fault::Stopped(why) if why == "the client aborted it") {
            return self.say(226, "aborted").await;
        }
        Ok(())
    }

    /// Says why a transfer cannot begin, if it cannot.
    pub(super) async fn ready(&mut self) -> Result<bool, Lost> {
        if self.must_protect() {
            self.say(521, "this server was started with --require-tls: say PBSZ 0 and PROT P first").await?;
            return Ok(false);
        }
        if matches!(self.data.way, Way::None) && self.data.idle.is_empty() {
            self.say(425, "say PASV, EPSV, PORT or EPRT first").await?;
            return Ok(false);
        }
        if self.server.pool.free() == 0 {
            let full = crate::ftp::pool::Full { limit: self.server.config.max_threads };
            self.say(450, full.to_string()).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// After a transfer in stream mode, its connection is gone, and passive ports with it.
    pub(super) fn used(&mut self) {
        if matches!(self.data.way, Way::Passive(_)) {
            self.data.close();
        }
    }

    pub(super) async fn reply(&mut self, reply: &Reply) -> Step {
        self.control.send(reply).await
    }
}

async fn accept(
    welcome: Welcome,
    listener: Option<&tokio::net::TcpListener>,
) -> std::io::Result<std::net::TcpStream> {
    match listener {
        Some(listener) => welcome.accept(listener).await,
        None => std::future::pending().await,
    }
}
