//! Where data connections come from and go to.
//!
//! Nobody can use the server to reach others (a bounce, RFC 2577): an address given by PORT, EPRT or SPOR must be the
//! client's own, with a port from 1024 on, and a passive port takes connections from the client's address alone. Other
//! machines are allowed only to users with certificates, and only with `--allow-third-party`.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use libgrid::ftp::address::format_port;
use libgrid::ftp::command::Epsv;
use libgrid::ftp::reply::Reply;
use rand::Rng;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::ftp::channel::Channel;
use crate::ftp::session::{Session, Step};

/// How long a data connection may take to come about.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Passive ports below are others' services.
const LOWEST_PORT: u16 = 1024;

/// How the next data connections come about, and those that MODE E left open.
#[derive(Default)]
pub(super) struct Data {
    pub(super) way: Way,
    /// Connections of MODE E that are open and not used at the moment.
    pub(super) idle: Vec<Channel>,
    /// EPSV ALL was said: nothing else is allowed any more.
    only_epsv: bool,
}

#[derive(Default)]
pub(super) enum Way {
    /// Nothing was said.
    #[default]
    None,
    /// The client listens.
    Active(Vec<SocketAddr>),
    /// We listen.
    Passive(TcpListener),
}

impl Data {
    pub(super) fn forget_idle(&mut self) {
        self.idle.clear();
    }

    pub(super) fn close(&mut self) {
        self.idle.clear();
        self.way = Way::None;
    }

    fn set(&mut self, way: Way) {
        self.idle.clear();
        self.way = way;
    }

    /// Idle connections that the other side has not closed.
    pub(super) fn take_idle(&mut self) -> Vec<Channel> {
        let mut idle = std::mem::take(&mut self.idle);
        idle.retain(|channel| is_open(channel.stream()));
        idle
    }
}

/// Whether there is no end to be read. Bytes may wait: they belong to the next transfer.
fn is_open(stream: &TcpStream) -> bool {
    use nix::sys::socket::{MsgFlags, recv};
    use std::os::fd::AsRawFd;
    match recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(read) => read > 0,
        Err(errno) => errno == nix::errno::Errno::EAGAIN,
    }
}

/// Who may open data connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Welcome {
    peer: IpAddr,
    others: bool,
}

impl Welcome {
    /// Waits for a connection from somebody who may connect; others are dropped.
    pub(super) async fn accept(self, listener: &TcpListener) -> std::io::Result<TcpStream> {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            if from.ip().to_canonical() == self.peer || self.others {
                return stream.into_std();
            }
            tracing::warn!(peer = %self.peer, %from, "a stranger's data connection was dropped");
        }
    }
}

impl Session {
    /// Whether data may go between this server and a machine that is not the client's.
    fn may_reach_others(&self) -> bool {
        self.server.config.allow_third_party && self.login.as_ref().is_some_and(|login| login.certified)
    }

    pub(super) async fn port(&mut self, addrs: Vec<SocketAddr>) -> Step {
        if self.data.only_epsv {
            return self.say(501, "EPSV ALL was said: only EPSV is allowed").await;
        }
        for addr in &addrs {
            if addr.port() < LOWEST_PORT {
                return self
                    .say(501, format!("port {} is below {LOWEST_PORT}: never used for data", addr.port()))
                    .await;
            }
            if !self.is_peer(addr.ip()) && !self.may_reach_others() {
                return self
                    .say(
                        501,
                        format!(
                            "data go only to your own address, {}, not to {}: third-party transfers need a \
                         certificate and a server with --allow-third-party",
                            self.peer.ip().to_canonical(),
                            addr.ip()
                        ),
                    )
                    .await;
            }
        }
        self.data.set(Way::Active(addrs));
        self.say(200, "ok").await
    }

    pub(super) async fn pasv(&mut self, striped: bool) -> Step {
        if self.data.only_epsv {
            return self.say(501, "EPSV ALL was said: only EPSV is allowed").await;
        }
        let ip = self.local.ip().to_canonical();
        if !ip.is_ipv4() {
            return self.say(425, "PASV and SPAS know only IPv4 addresses: use EPSV").await;
        }
        let addr = match self.listen() {
            Ok(addr) => SocketAddr::new(ip, addr.port()),
            Err(error) => return self.cannot_listen(&error).await,
        };
        let text = format_port(addr).unwrap_or_default();
        if striped {
            let lines = ["Entering Striped Passive Mode.", &format!(" {text}"), "End"];
            return self.control.send(&Reply::lines(229, lines)).await;
        }
        self.say(227, format!("Entering Passive Mode ({text})")).await
    }

    pub(super) async fn epsv(&mut self, how: Epsv) -> Step {
        let is_v4 = self.local.ip().to_canonical().is_ipv4();
        match how {
            Epsv::All => {
                self.data.only_epsv = true;
                return self.say(200, "only EPSV from now on").await;
            }
            Epsv::V4 if !is_v4 => return self.say(522, "this connection is IPv6, use (2)").await,
            Epsv::V6 if is_v4 => return self.say(522, "this connection is IPv4, use (1)").await,
            Epsv::Other => {
                return self.say(522, format!("unknown protocol, use ({})", if is_v4 { 1 } else { 2 })).await;
            }
            _ => (),
        }
        match self.listen() {
            Ok(addr) => self.say(229, format!("Entering Extended Passive Mode (|||{}|)", addr.port())).await,
            Err(error) => self.cannot_listen(&error).await,
        }
    }

    async fn cannot_listen(&mut self, error: &std::io::Error) -> Step {
        let text = match self.server.config.passive {
            Some((first, last)) => format!(
                "no passive port of {first} to {last} is free ({error}): try again later, or give the server \
                 more of them with --passive"
            ),
            None => format!("no passive port is free: {error}"),
        };
        self.say(425, text).await
    }

    /// Listens where the control connection came to.
    fn listen(&mut self) -> std::io::Result<SocketAddr> {
        // What was there before gives its port back first.
        self.data.set(Way::None);
        let (first, last) = self.server.config.passive.unwrap_or((0, 0));
        let count = u32::from(last - first) + 1;
        let start = rand::rng().random_range(0..count);
        let mut refused = std::io::ErrorKind::AddrInUse.into();
        for step in 0..count {
            let offset = u16::try_from((start + step) % count).unwrap_or(0);
            let addr = SocketAddr::new(self.local.ip(), first + offset);
            match listen_at(addr) {
                Ok(listener) => {
                    let addr = listener.local_addr()?;
                    self.data.set(Way::Passive(listener));
                    return Ok(addr);
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Who may open data connections to this session.
    pub(super) fn welcome(&self) -> Welcome {
        Welcome { peer: self.peer.ip().to_canonical(), others: self.may_reach_others() }
    }

    /// One data connection, and whether we opened it.
    pub(super) async fn connection(&mut self) -> Result<(TcpStream, bool), String> {
        match &self.data.way {
            Way::None => Err("say PASV, EPSV, PORT or EPRT first".to_owned()),
            Way::Active(addrs) => match addrs.first() {
                Some(addr) => Ok((self.connect(*addr).await?, true)),
                None => Err("say PORT first".to_owned()),
            },
            Way::Passive(listener) => match timeout(PATIENCE, self.welcome().accept(listener)).await {
                Ok(Ok(stream)) => Ok((stream, false)),
                Ok(Err(error)) => Err(format!("the data connection cannot be accepted: {error}")),
                Err(_) => Err(format!(
                    "no data connection came from {} within {} s: look for a firewall between",
                    self.peer.ip().to_canonical(),
                    PATIENCE.as_secs()
                )),
            },
        }
    }

    pub(super) async fn connect(&self, addr: SocketAddr) -> Result<TcpStream, String> {
        let fail = |why: &dyn std::fmt::Display| {
            format!(
                "the data connection to {addr} cannot be opened ({why}): use PASV if a firewall is between"
            )
        };
        let socket = match addr.ip() {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(|error| fail(&error))?;
        // From the address that the client knows, where that can be.
        let ours = self.local.ip().to_canonical();
        if ours.is_ipv4() == addr.is_ipv4() {
            let _ = socket.bind(SocketAddr::new(ours, 0));
        }
        let deadline = Instant::now() + PATIENCE;
        match timeout_at(deadline, socket.connect(addr)).await {
            Ok(Ok(stream)) => stream.into_std().map_err(|error| fail(&error)),
            Ok(Err(error)) => Err(fail(&error)),
            Err(_) => Err(fail(&"nobody answers")),
        }
    }
}

fn listen_at(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(64)
}
