//! One client's session: what it said so far, and what that allows.
//!
//! ```text
//!                 AUTH TLS, certificate of the CA
//!   ┌────────┐ ──────────────────────────────────▶ ┌───────────┐ USER, PASS   ┌───────────┐
//!   │ nobody │ AUTH GSSAPI, ADAT ... ADAT          │ certified │ ───────────▶ │           │
//!   └────────┘ ──────────────────────────────────▶ └───────────┘              │ logged in │◀─────┐
//!       │        USER anonymous, PASS, where anonymous is allowed             │           │      │
//!       └────────────────────────────────────────────────────────────────────▶└───────────┘      │
//!                                                            RETR, STOR, LIST ... │              │ 2xx, 4xx, 5xx
//!                                                                                 ▼              │
//!                        ABOR, QUIT and STAT are heard; other commands wait   ┌───────────┐      │
//!                        (pipelining)                                         │ transfer  │ ─────┘
//!                                                                             └───────────┘
//!   QUIT, silence (--idle), a line that does not end, 24 hours: the session ends in every state
//! ```
//!
//! Commands are read while a transfer goes on, up to a limit, and carried out in their order.

mod data;
mod files;
mod login;
mod retrieve;
mod store;
mod transfer;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use libgrid::ftp::command::{Command, Opts, Rest, Site};
use libgrid::ftp::facts::Wanted;
use libgrid::ftp::line::LineTooLong;
use libgrid::ftp::reply::Reply;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::ftp::checksum;
use crate::ftp::control::{Control, Lost};
use crate::ftp::path::Place;
use crate::ftp::server::Server;

use data::Data;
use login::Security;

/// Commands that may wait while a transfer goes on; a client that pipelines more is not read until there is room.
const WAITING: usize = 256;

/// The length of buffers that a client may ask for, in bytes.
const MAX_BUFFER: u64 = 64 << 20;

type Line = Result<Vec<u8>, LineTooLong>;
type Step = Result<(), Lost>;

/// Who is logged in.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    /// For people, and for limits.
    pub(crate) name: String,
    pub(crate) may_write: bool,
    /// By a certificate.
    pub(crate) certified: bool,
}

/// How the next transfer goes: what TYPE, MODE, REST and others said.
#[derive(Debug)]
struct Manner {
    ascii: bool,
    mode_e: bool,
    rest: Option<Rest>,
    allo: Option<u64>,
    parallelism: u32,
    buffer: Option<usize>,
    wanted: Wanted,
}

pub(crate) struct Session {
    server: Rc<Server>,
    control: Control,
    peer: SocketAddr,
    local: SocketAddr,
    begun: Instant,
    login: Option<Login>,
    /// The name of USER, until PASS comes.
    claimed: Option<String>,
    security: Security,
    here: Place,
    rename: Option<Place>,
    manner: Manner,
    data: Data,
    waiting: VecDeque<Line>,
    /// The client closed its side, or the session is to end, once what waits is done.
    ended: Option<Lost>,
}

impl Session {
    pub(crate) fn new(server: Rc<Server>, stream: TcpStream, peer: SocketAddr) -> std::io::Result<Session> {
        let local = stream.local_addr()?;
        stream.set_nodelay(true)?;
        // ABOR comes as urgent data: it shall be found in its place among the others.
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::OobInline, &true)?;
        Ok(Session {
            server,
            control: Control::new(stream),
            peer,
            local,
            begun: Instant::now(),
            login: None,
            claimed: None,
            security: Security::default(),
            here: Place::default(),
            rename: None,
            manner: Manner {
                ascii: true,
                mode_e: false,
                rest: None,
                allo: None,
                parallelism: 1,
                buffer: None,
                wanted: Wanted::ALL,
            },
            data: Data::default(),
            waiting: VecDeque::new(),
            ended: None,
        })
    }

    /// Serves the client until it leaves.
    pub(crate) async fn run(mut self) {
        let lost = match self.serve().await {
            Err(lost) => lost,
            Ok(()) => Lost::Ended,
        };
        let farewell = match &lost {
            Lost::Idle => Some("421 the session was idle for too long: connect again"),
            Lost::Slow => Some("421 a command took too long to arrive: connect again"),
            Lost::Protocol(why) => {
                tracing::info!(peer = %self.peer, why, "session refused");
                None
            }
            Lost::Io(error) => {
                tracing::debug!(peer = %self.peer, %error, "session lost");
                None
            }
            Lost::Ended => None,
        };
        if let Some(text) = farewell {
            // The client may have gone.
            let _ = self.control.send(&Reply::new(421, &text[4..])).await;
        }
        self.forget_login();
        self.control.close().await;
    }

    async fn serve(&mut self) -> Step {
        self.say(220, "GridOS FTP server ready").await?;
        loop {
            let line = match self.waiting.pop_front() {
                Some(line) => line,
                None => match self.ended.take() {
                    Some(lost) => return Err(lost),
                    None => {
                        let deadline = self.deadline();
                        self.control.next_line(Some(deadline)).await?
                    }
                },
            };
            self.line(line).await?;
        }
    }

    /// Until when the client must say something.
    fn deadline(&self) -> Instant {
        let config = &self.server.config;
        let silent = if self.login.is_some() {
            Instant::now() + config.idle
        } else {
            (self.begun + config.login).min(Instant::now() + config.idle)
        };
        silent.min(self.begun + config.longest)
    }

    async fn line(&mut self, line: Line) -> Step {
        let line = match line {
            Ok(line) => line,
            Err(error) => return self.say(500, error.to_string()).await,
        };
        match Command::parse(&line) {
            Ok(command) => match self.unsealed(command).await? {
                Some(command) => Box::pin(self.carry_out(command)).await,
                None => Ok(()),
            },
            Err(error) => self.say(error.code(), error.to_string()).await,
        }
    }

    async fn say(&mut self, code: u16, text: impl AsRef<[u8]>) -> Step {
        self.control.send(&Reply::new(code, text)).await
    }

    /// What needs no login.
    async fn carry_out(&mut self, command: Command) -> Step {
        let rest = self.manner.rest.take();
        let rename = self.rename.take();
        match command {
            Command::User(name) => return self.user(&name).await,
            Command::Pass(_) => return self.pass().await,
            Command::Auth(mechanism) => return self.auth(&mechanism).await,
            Command::Adat(token) => return self.adat(&token).await,
            Command::Pbsz(_) => return self.pbsz().await,
            Command::Prot(level) => return self.prot(level).await,
            Command::Ccc => return self.say(534, "commands stay protected on this server").await,
            Command::Quit => {
                self.say(221, "goodbye").await?;
                return Err(Lost::Ended);
            }
            Command::Noop => return self.say(200, "ok").await,
            Command::Feat => return self.feat().await,
            Command::Syst => return self.say(215, "UNIX Type: L8").await,
            Command::Help(_) => return self.help(214).await,
            Command::Acct(_) => return self.say(202, "accounts are not used here").await,
            Command::Rein => {
                if self.control.is_tls() || self.control.is_sealed() {
                    return self.say(502, "a secured session has one user: connect again").await;
                }
                self.forget_login();
                self.data = Data::default();
                self.here = Place::default();
                return self.say(220, "log in").await;
            }
            Command::Host(_) => return self.say(220, "this server is one host").await,
            Command::Clnt(_) | Command::Site(Site::ClientInfo(_)) => return self.say(250, "thank you").await,
            Command::Lang(_) => return self.say(200, "replies are in English").await,
            Command::Opts(opts) => return self.opts(opts).await,
            _ => (),
        }
        let Some(login) = self.login.clone() else {
            return self.say(530, self.how_to_log_in()).await;
        };
        self.manner.rest = rest;
        self.rename = rename;
        self.for_user(command, &login).await
    }

    /// What needs a login.
    async fn for_user(&mut self, command: Command, login: &Login) -> Step {
        let writes = matches!(
            command,
            Command::Stor(_)
                | Command::Stou(_)
                | Command::Appe(_)
                | Command::Esto { .. }
                | Command::Rnfr(_)
                | Command::Rnto(_)
                | Command::Dele(_)
                | Command::Rmd(_)
                | Command::Mkd(_)
                | Command::Mfmt(..)
                | Command::Site(Site::Chmod { .. } | Site::Utime { .. })
        );
        if writes && !login.may_write {
            return self.say(550, format!("{} may only read here", login.name)).await;
        }
        // REST holds for the next transfer, with what sets it up between; RNFR for the next command.
        let rest = match &command {
            Command::Port(_)
            | Command::Pasv
            | Command::Eprt(_)
            | Command::Epsv(_)
            | Command::Spas
            | Command::Spor(_)
            | Command::Type { .. }
            | Command::Mode(_)
            | Command::Allo(_)
            | Command::Sbuf(_)
            | Command::Size(_)
            | Command::Stat(None) => None,
            _ => self.manner.rest.take(),
        };
        let rename = self.rename.take();
        match command {
            Command::Cwd(path) => self.cwd(&path).await,
            Command::Cdup => self.cwd(b"..").await,
            Command::Pwd => self.pwd().await,
            Command::Mkd(path) => self.mkd(&path).await,
            Command::Rmd(path) => self.rmd(&path).await,
            Command::Dele(path) => self.dele(&path).await,
            Command::Rnfr(path) => self.rnfr(&path).await,
            Command::Rnto(path) => self.rnto(rename, &path).await,
            Command::Size(path) => self.size(&path).await,
            Command::Mdtm(path) => self.mdtm(&path).await,
            Command::Mfmt(time, path) => self.mfmt(time, &path).await,
            Command::Mlst(path) => self.mlst(path).await,
            Command::Stat(None) => self.status(login).await,
            Command::Stat(Some(path)) => self.stat(&path).await,
            Command::Site(Site::Chmod { mode, path }) => self.chmod(mode, &path).await,
            Command::Site(Site::Utime { time, path }) => self.mfmt(time, &path).await,
            Command::Site(Site::Help) => self.help(214).await,
            Command::Site(Site::BufSize(bytes)) | Command::Sbuf(bytes) => self.buffer(bytes).await,
            Command::Site(Site::ClientInfo(_)) => self.say(250, "thank you").await,
            Command::Site(Site::Other(_)) => {
                self.say(500, "no such SITE command: SITE HELP lists them").await
            }
            Command::Abuf(_) => {
                self.manner.buffer = None;
                self.say(200, "the kernel finds the size of buffers by itself").await
            }
            Command::Type { letter } => self.set_type(letter).await,
            Command::Stru(b'F') => self.say(200, "files have no structure").await,
            Command::Stru(_) => self.say(504, "only STRU F: files have no structure").await,
            Command::Mode(mode) => self.set_mode(mode).await,
            Command::Allo(bytes) => {
                self.manner.allo = Some(bytes);
                self.say(200, "ok").await
            }
            Command::Rest(rest) => self.set_rest(rest).await,
            Command::Port(addr) | Command::Eprt(addr) => self.port(vec![addr]).await,
            Command::Spor(addrs) => self.port(addrs).await,
            Command::Pasv => self.pasv(false).await,
            Command::Spas => self.pasv(true).await,
            Command::Epsv(how) => self.epsv(how).await,
            Command::Dcau { mode, subject } => self.dcau(mode, subject).await,
            Command::Retr(path) => self.retr(&path, rest, None).await,
            Command::Eret { offset, length, path } => self.retr(&path, rest, Some((offset, length))).await,
            Command::Stor(path) => self.stor(&path, rest).await,
            Command::Appe(path) => self.appe(&path).await,
            Command::Stou(path) => self.stou(path).await,
            Command::Esto { offset, path } => self.esto(&path, offset).await,
            Command::List(path) => self.list(path).await,
            Command::Nlst(path) => self.nlst(path).await,
            Command::Mlsd(path) => self.mlsd(path).await,
            Command::Cksm { algorithm, offset, length, path } => {
                self.cksm(&algorithm, offset, length, &path).await
            }
            Command::Abor => {
                self.data.close();
                self.say(226, "there was no transfer to abort; data connections are closed").await
            }
            Command::Whoami => self.say(200, format!("User is {}", login.name)).await,
            Command::Smnt => self.say(502, "there is nothing to mount").await,
            _ => self.say(502, "that makes no sense now").await,
        }
    }

    async fn set_type(&mut self, letter: u8) -> Step {
        match letter {
            b'A' => self.manner.ascii = true,
            b'I' | b'L' => self.manner.ascii = false,
            _ => return self.say(504, "only TYPE A, I and L 8: nobody has EBCDIC").await,
        }
        self.say(200, "ok").await
    }

    async fn set_mode(&mut self, mode: u8) -> Step {
        let mode_e = match mode {
            b'S' => false,
            b'E' => true,
            _ => return self.say(504, "only MODE S and E").await,
        };
        if mode_e != self.manner.mode_e {
            self.manner.mode_e = mode_e;
            self.data.forget_idle();
        }
        self.say(200, "ok").await
    }

    async fn set_rest(&mut self, rest: Rest) -> Step {
        match &rest {
            Rest::At(at) if *at > 0 && self.manner.ascii => {
                return self.say(504, "REST counts bytes, and TYPE A changes them: say TYPE I before").await;
            }
            Rest::Have(_) if !self.manner.mode_e => {
                return self.say(504, "ranges need MODE E: in stream mode REST takes one number").await;
            }
            _ => (),
        }
        self.manner.rest = Some(rest);
        self.say(350, "the next transfer begins there").await
    }

    async fn buffer(&mut self, bytes: u64) -> Step {
        self.manner.buffer = usize::try_from(bytes.min(MAX_BUFFER)).ok().filter(|bytes| *bytes > 0);
        self.say(200, format!("buffers of data connections have {} bytes", bytes.min(MAX_BUFFER))).await
    }

    async fn opts(&mut self, opts: Opts) -> Step {
        match opts {
            Opts::Retr { parallelism, .. } => {
                if let Some(parallelism) = parallelism {
                    self.manner.parallelism = parallelism.clamp(1, self.server.config.max_streams);
                }
                self.say(200, format!("{} data connections in MODE E", self.manner.parallelism)).await
            }
            Opts::Stor { .. } => self.say(200, "ok").await,
            Opts::Mlst(facts) => {
                self.manner.wanted = Wanted::parse(&facts);
                self.say(200, format!("MLST OPTS {}", self.manner.wanted.names())).await
            }
            Opts::Utf8(true) => self.say(200, "names are passed on byte for byte").await,
            Opts::Utf8(false) => self.say(504, "names are always passed on byte for byte").await,
            Opts::Other(_) => self.say(501, "no such option: FEAT lists what there is").await,
        }
    }

    async fn feat(&mut self) -> Step {
        let mut lines: Vec<String> = vec!["Extensions supported:".to_owned()];
        let mut add = |feature: &str| lines.push(format!(" {feature}"));
        if self.server.security.is_some() {
            ["AUTH TLS", "AUTH GSSAPI", "PBSZ", "PROT"].into_iter().for_each(&mut add);
            add("DCAU");
        }
        for feature in ["EPRT", "EPSV", "ERET", "ESTO", "HOST", "MDTM", "MFMT"] {
            add(feature);
        }
        add(&format!("MLST {}", self.manner.wanted.features()));
        for feature in ["PARALLEL", "REST STREAM", "SIZE", "SPAS", "SPOR", "TVFS", "UTF8", "WHOAMI"] {
            add(feature);
        }
        if self.login.is_some() {
            add(checksum::FEATURE);
        }
        lines.push("End.".to_owned());
        self.control.send(&Reply::lines(211, lines)).await
    }

    async fn help(&mut self, code: u16) -> Step {
        const LINES: [&str; 10] = [
            "Commands:",
            " ABOR ABUF ALLO APPE AUTH ADAT CDUP CKSM CLNT CWD  DCAU DELE ENC  EPRT EPSV ERET",
            " ESTO FEAT HELP HOST LANG LIST MDTM MFMT MIC  MKD  MLSD MLST MODE NLST NOOP OPTS",
            " PASS PASV PBSZ PORT PROT PWD  QUIT REIN REST RETR RMD  RNFR RNTO SBUF SITE SIZE",
            " SPAS SPOR STAT STOR STOU STRU SYST TYPE USER WHOAMI",
            " SITE commands:",
            " BUFSIZE RETRBUFSIZE STORBUFSIZE RBUFSZ SBUFSZ CHMOD CLIENTINFO HELP UTIME",
            " An upload that was interrupted is found by SIZE and goes on with REST and STOR, or APPE.",
            " MODE E: the sender of the data connects.",
            "End.",
        ];
        self.control.send(&Reply::lines(code, LINES)).await
    }

    /// Whether an address is the client's own.
    fn is_peer(&self, ip: IpAddr) -> bool {
        ip.to_canonical() == self.peer.ip().to_canonical()
    }
}
