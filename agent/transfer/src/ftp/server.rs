//! Accepts clients, and refuses those that are too many.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use libgrid::io::ReadAhead;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::ftp::config::Config;
use crate::ftp::flight::Flight;
use crate::ftp::path::Place;
use crate::ftp::pool::Pool;
use crate::ftp::root::Root;
use crate::ftp::security::Security;
use crate::ftp::session::Session;

/// Threads that open, stat and rename: they seldom wait.
const DISK_THREADS: usize = 32;

/// Threads that fill the page cache ahead.
const READ_AHEAD: usize = 4;

/// Descriptors that a session may need beyond its control connection, on average.
const FDS_PER_SESSION: u64 = 2;

/// How long to wait when the process has no descriptors left.
const BREATH: Duration = Duration::from_millis(50);

/// How long SIZE waits for an upload to end, and how often it looks.
const SETTLE: Duration = Duration::from_secs(1);
const SETTLE_STEP: Duration = Duration::from_millis(5);

/// The server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The folder cannot be served.
    #[error(
        "cannot serve {path}: {source}; it must be a folder that this user can enter, on Linux 5.6 or newer"
    )]
    Root {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: nix::Error,
    },
    /// The address is taken, or not ours.
    #[error("cannot listen on {addr}: {source}; choose another with --listen and --port")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate, a key or a map cannot be used.
    #[error("cannot use {path}: {why}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused something else.
    #[error("the server cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// A server that listens and does not serve yet: the user can still be changed.
#[derive(Debug)]
pub struct Bound {
    listener: std::net::TcpListener,
    config: Config,
    security: Option<Arc<Security>>,
}

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) root: Arc<Root>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) ahead: ReadAhead,
    pub(crate) security: Option<Arc<Security>>,
    sessions: RefCell<Sessions>,
    uploads: RefCell<HashMap<Place, Upload>>,
}

#[derive(Debug, Default)]
struct Sessions {
    all: usize,
    addresses: HashMap<IpAddr, usize>,
    users: HashMap<String, usize>,
}

/// An upload that is under way.
#[derive(Debug)]
struct Upload {
    by: (String, IpAddr),
    flight: Arc<Flight>,
}

/// A place among the sessions, given back when it is dropped.
struct Seat {
    server: Weak<Server>,
    address: IpAddr,
}

impl Bound {
    /// Reads the certificates, and listens.
    ///
    /// # Errors
    /// [`ServeError`] says what is wrong and what to do.
    pub fn bind(config: Config) -> Result<Bound, ServeError> {
        let security = config.identity.as_ref().map(Security::load).transpose()?.map(Arc::new);
        let listen = |source| ServeError::Listen { addr: config.listen, source };
        let listener = std::net::TcpListener::bind(config.listen).map_err(listen)?;
        // A longer queue than the default: a burst of clients shall be refused politely, not by silence.
        nix::sys::socket::listen(
            &listener,
            nix::sys::socket::Backlog::new(4096).unwrap_or(nix::sys::socket::Backlog::MAXCONN),
        )
        .map_err(|errno| listen(errno.into()))?;
        listener.set_nonblocking(true)?;
        Ok(Bound { listener, config, security })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves, on this thread and others, until `stop` is done.
    ///
    /// # Errors
    /// [`ServeError`] if it cannot begin.
    pub fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Bound { listener, mut config, security } = self;
        let root = |source| ServeError::Root { path: config.root.clone(), source };
        let root = Arc::new(Root::open(&config.root).map_err(root)?);
        limit_sessions(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS)
            .thread_stack_size(256 * 1024)
            .build()?;
        let server = Rc::new(Server {
            root,
            pool: Pool::new(config.max_threads),
            ahead: ReadAhead::new(READ_AHEAD)?,
            security,
            sessions: RefCell::default(),
            uploads: RefCell::default(),
            config,
        });
        let local = LocalSet::new();
        runtime.block_on(local.run_until(async move {
            let listener = TcpListener::from_std(listener)?;
            tokio::select! {
                () = accept(server, listener) => Ok(()),
                () = stop => Ok(()),
            }
        }))
    }
}

/// As many sessions as there are descriptors for.
fn limit_sessions(config: &mut Config) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    // What is not allowed stays as it was.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |limits| limits.0);
    let threads = config.max_threads as u64 * 4;
    let room = files.saturating_sub(threads.min(files / 2)).saturating_sub(64) / FDS_PER_SESSION;
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    if room < config.max_sessions {
        tracing::warn!(sessions = room, files, "fewer sessions than wanted: raise the limit of open files");
        config.max_sessions = room;
    }
}

async fn accept(server: Rc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                match Server::seat(&server, peer.ip()) {
                    Ok(seat) => welcome(&server, stream, peer, seat),
                    Err(why) => {
                        tracing::warn!(%peer, why, "refused");
                        // It fits into an empty buffer, or the client does not get to know.
                        let _ = stream.try_write(format!("421 {why}: try again later\r\n").as_bytes());
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

fn welcome(server: &Rc<Server>, stream: TcpStream, peer: SocketAddr, seat: Seat) {
    match Session::new(server.clone(), stream, peer) {
        Ok(session) => {
            tokio::task::spawn_local(async move {
                session.run().await;
                drop(seat);
            });
        }
        Err(error) => tracing::debug!(%peer, %error, "gone before it began"),
    }
}

impl Server {
    fn seat(server: &Rc<Server>, address: IpAddr) -> Result<Seat, &'static str> {
        let mut sessions = server.sessions.borrow_mut();
        let address = address.to_canonical();
        if sessions.all >= server.config.max_sessions {
            return Err("too many sessions on this server");
        }
        let from = sessions.addresses.entry(address).or_default();
        if *from >= server.config.max_per_address {
            return Err("too many sessions from your address");
        }
        *from += 1;
        sessions.all += 1;
        Ok(Seat { server: Rc::downgrade(server), address })
    }

    /// Counts a login. False: the user has as many sessions as are allowed.
    pub(crate) fn enter(&self, user: &str) -> bool {
        let mut sessions = self.sessions.borrow_mut();
        let count = sessions.users.entry(user.to_owned()).or_default();
        if *count >= self.config.max_per_user {
            return false;
        }
        *count += 1;
        true
    }

    pub(crate) fn leave(&self, user: &str) {
        let mut sessions = self.sessions.borrow_mut();
        if let Some(count) = sessions.users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                sessions.users.remove(user);
            }
        }
    }

    /// Notes an upload. One of the same user and address to the same name is ended: its client began again.
    pub(crate) fn take_over(&self, place: &Place, (user, address): (&str, IpAddr), flight: &Arc<Flight>) {
        let upload = Upload { by: (user.to_owned(), address), flight: flight.clone() };
        let mut uploads = self.uploads.borrow_mut();
        match uploads.get(place) {
            Some(older) if older.by != upload.by => return,
            Some(older) => older.flight.stop("the same user began to upload the same file again"),
            None => (),
        }
        uploads.insert(place.clone(), upload);
    }

    /// Waits a moment for an upload of the same user and address to end: a client that lost its connection and asks
    /// where to resume is often quicker than the news of its end.
    pub(crate) async fn settled(&self, place: &Place, (user, address): (&str, IpAddr)) {
        let mut patience = SETTLE.as_millis() / SETTLE_STEP.as_millis();
        let busy = || {
            let uploads = self.uploads.borrow();
            uploads.get(place).is_some_and(|upload| upload.by.0 == user && upload.by.1 == address)
        };
        while busy() && patience > 0 {
            tokio::time::sleep(SETTLE_STEP).await;
            patience -= 1;
        }
    }

    pub(crate) fn forget_upload(&self, place: &Place, flight: &Arc<Flight>) {
        let mut uploads = self.uploads.borrow_mut();
        if uploads.get(place).is_some_and(|upload| Arc::ptr_eq(&upload.flight, flight)) {
            uploads.remove(place);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(server) = self.server.upgrade() else { return };
        let mut sessions = server.sessions.borrow_mut();
        sessions.all -= 1;
        if let Some(count) = sessions.addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                sessions.addresses.remove(&self.address);
            }
        }
    }
}
