//! Serves the control protocol of [`libgrid::control`], to users of this machine and, through their own agents, to
//! users of other nodes.

mod answer;
mod checkpoints;
mod clients;
mod follow;
mod moving;
pub(crate) mod operations;
mod processes;
mod submit;
mod typing;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use grid_link::Incoming;
use libgrid::control::{AgentInfo, Failure, Kind, Reply, Request, Response};
use libgrid::sys::abi::Op;
use libgrid::wire::{WireError, stream};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tracing::{debug, warn};

pub(crate) use self::answer::{ask_each, forward as pass_on, relayed};
use self::clients::{Clients, MOST};
pub(crate) use self::follow::gone;
pub(crate) use self::moving::relocate;
use self::operations::Asker;
pub(crate) use self::typing::{Typists, hear};

use crate::caller::Caller;
use crate::config::Config;
use crate::device;
use crate::doctor;
use crate::grid::Grid;
use crate::identity::Identity;

/// The agent, in a VO or not yet.
pub(crate) struct Agent {
    pub(crate) config: Arc<Config>,
    grid: RwLock<Option<Arc<Grid>>>,
    /// Held while a VO is founded or joined.
    entering: Mutex<()>,
    serve: Serve,
    clients: Clients,
}

/// How long a client may take for what it has begun to say.
const PATIENCE: Duration = Duration::from_secs(30);

/// What answers other nodes once this one is in a VO.
pub(crate) type Serve = fn(Arc<Grid>, mpsc::Receiver<Incoming>);

impl Agent {
    pub(crate) fn new(config: Arc<Config>, serve: Serve) -> Self {
        let (grid, entering) = (RwLock::new(None), Mutex::new(()));
        Self { config, grid, entering, serve, clients: Clients::default() }
    }

    /// Takes up the work in the VO that this node is in, if it is in one.
    pub(crate) async fn resume(&self) -> Result<(), Failure> {
        if let Some(identity) = Identity::load(&self.config)? {
            self.enter(Grid::start(self.config.clone(), identity, Vec::new()).await?);
        }
        Ok(())
    }

    fn enter(&self, (grid, incoming): (Arc<Grid>, mpsc::Receiver<Incoming>)) {
        (self.serve)(grid.clone(), incoming);
        if let Err(error) = device::serve(&grid) {
            warn!(%error, "programs are not answered through the kernel");
        }
        *self.grid.write().unwrap_or_else(PoisonError::into_inner) = Some(grid);
    }

    pub(crate) fn grid(&self) -> Option<Arc<Grid>> {
        self.grid.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn member(&self) -> Result<Arc<Grid>, Failure> {
        self.grid().ok_or_else(|| {
            let todo = "found one with gridctl vo create NAME, or join one with gridctl join TOKEN";
            Failure::new(Kind::State, format!("this node is in no VO: {todo}"))
        })
    }

    /// Serves users of this machine, until the agent stops.
    pub(crate) async fn serve(self: Arc<Self>) -> io::Result<()> {
        let path = self.config.socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        // Everybody may ask; the kernel says who asks.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let agent = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = agent.converse(stream).await {
                            debug!(%error, "a client's connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors: others end meanwhile.
                    warn!(%error, "cannot take a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(&self, mut client: UnixStream) -> Result<(), WireError> {
        let caller = Caller::of(&client, &self.config)?;
        let pid = client.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        // Begins when the client has gone.
        let mut later = Later::default();
        let taken = self.clients.take(caller.uid);
        timeout(PATIENCE, stream::greet(&mut client)).await.map_err(|_| timed_out())??;
        let Some(_taken) = taken else {
            let why = format!("you have {MOST} connections to this agent open: end some of them first");
            return stream::write(&mut client, &Response::Err(Failure::new(Kind::Denied, why))).await;
        };
        let (from, to) = client.split();
        let mut client = Buffered { from: tokio::io::BufReader::new(from), to };
        loop {
            // It may say nothing for long, but nothing by halves.
            client.from.fill_buf().await?;
            let request = timeout(PATIENCE, stream::read::<Request, _>(&mut client)).await;
            let request = match request.map_err(|_| timed_out())? {
                Ok(request) => request,
                Err(WireError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error @ (WireError::Malformed(_) | WireError::TooLong { .. })) => {
                    let refused: Response = Err(Failure::new(Kind::Invalid, error.to_string()));
                    return stream::write(&mut client, &refused).await;
                }
                Err(error) => return Err(error),
            };
            if let Request::Operate { op, input } = request {
                let response = self.operate((&caller, pid), op, &input, &mut later).await;
                stream::write(&mut client, &response).await?;
                continue;
            }
            let goes_on = matches!(request, Request::Logs { .. } | Request::Input { .. } | Request::Copy(_))
                || answer::is_pipe_end(&request);
            match self.handle(&caller, request, &mut client).await {
                Ok(()) => (),
                Err(Answer::Failure(failure)) => {
                    stream::write(&mut client, &Response::Err(failure)).await?;
                }
                Err(Answer::Wire(error)) => return Err(error),
            }
            if goes_on {
                return Ok(());
            }
        }
    }

    async fn operate(
        &self,
        (caller, pid): (&Caller, u32),
        op: u32,
        input: &[u8],
        later: &mut Later,
    ) -> Response {
        let asker = Asker::new(self.grid().as_ref(), caller.clone(), pid).await;
        let operated = operations::operate(self.member(), &asker, Op(op), input).await;
        Ok(match operated {
            Ok(answered) => {
                later.0.extend(answered.then);
                Reply::Operated { errno: 0, output: answered.output }
            }
            Err(refused) => Reply::Operated { errno: refused.errno as i32, output: refused.why.into_bytes() },
        })
    }

    /// Answers one request of a user of this machine, all of it.
    async fn handle<S: Stream>(
        &self,
        caller: &Caller,
        request: Request,
        client: &mut S,
    ) -> Result<(), Answer> {
        let reply = match request {
            Request::Agent => Reply::Agent(self.info()),
            Request::Doctor => Reply::Doctor(doctor::examine(&self.config, self.grid().as_deref()).await),
            Request::CreateVo { name } => {
                caller.must_be_root("found a VO")?;
                let _entering = self.entering.lock().await;
                self.must_be_alone()?;
                let identity = Identity::found(&self.config, &name)?;
                self.enter(Grid::start(self.config.clone(), identity, Vec::new()).await?);
                Reply::Agent(self.info())
            }
            Request::Join { token } => {
                caller.must_be_root("join a VO")?;
                let _entering = self.entering.lock().await;
                self.must_be_alone()?;
                let (identity, contacts) = Identity::join(&self.config, &token).await?;
                self.enter(Grid::start(self.config.clone(), identity, contacts).await?);
                Reply::Agent(self.info())
            }
            Request::CreateToken { lifetime } => {
                caller.must_be_root("make tokens")?;
                let grid = self.member()?;
                Reply::Token(grid.identity.mint(&grid.addrs, lifetime.0)?)
            }
            Request::Revoke { node } => {
                caller.must_be_root("revoke nodes")?;
                self.member()?.revoke(&node).await?;
                Reply::Done
            }
            Request::Submit(submission) => {
                let grid = self.member();
                Reply::Submitted(submit::submit(grid, caller, *submission, client).await?)
            }
            other => return answer::answer(&self.member()?, caller, other, client).await,
        };
        Ok(stream::write(client, &Response::Ok(reply)).await?)
    }

    fn must_be_alone(&self) -> Result<(), Failure> {
        match self.grid() {
            None => Ok(()),
            Some(grid) => {
                grid.identity.must_be_of_vo()?;
                let vo = grid.identity.vo();
                let why =
                    format!("this node is in VO {vo} already, as number {}: a node is in one VO", grid.me);
                Err(Failure::new(Kind::State, why))
            }
        }
    }

    fn info(&self) -> AgentInfo {
        let grid = self.grid();
        let ends =
            grid.as_ref().and_then(|grid| grid.identity.ends().duration_since(std::time::UNIX_EPOCH).ok());
        AgentInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            vo: grid.as_ref().map(|grid| grid.identity.vo()),
            node: grid.as_ref().map(|grid| grid.me),
            authority: grid.as_ref().is_some_and(|grid| grid.identity.is_authority()),
            certificate_ends: ends.map(|since| since.as_secs()),
        }
    }
}

/// What begins when it is dropped.
#[derive(Default)]
struct Later(Vec<operations::Then>);

impl Drop for Later {
    fn drop(&mut self) {
        for then in self.0.drain(..) {
            tokio::spawn(then);
        }
    }
}

/// Either way to a client.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Why a request was not answered.
pub(crate) enum Answer {
    /// It cannot be; the client is to be told.
    Failure(Failure),
    /// The client is gone.
    Wire(WireError),
}

impl Answer {
    /// The client left in the middle, or said something out of turn.
    pub(crate) fn left() -> Self {
        Answer::Wire(io::Error::from(io::ErrorKind::BrokenPipe).into())
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Answer::Failure(failure)
    }
}

impl From<WireError> for Answer {
    fn from(error: WireError) -> Self {
        Answer::Wire(error)
    }
}

impl From<crate::core::Stopping> for Answer {
    fn from(error: crate::core::Stopping) -> Self {
        Answer::Failure(Failure::new(Kind::Unavailable, error.to_string()))
    }
}

fn timed_out() -> WireError {
    WireError::Io(io::ErrorKind::TimedOut.into())
}

/// A stream whose reading half is buffered: requests are small, and may come many at a time.
struct Buffered<R, W> {
    from: tokio::io::BufReader<R>,
    to: W,
}

impl<R: AsyncRead + Unpin, W: Unpin> AsyncRead for Buffered<R, W> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.from).poll_read(context, buffer)
    }
}

impl<R: Unpin, W: AsyncWrite + Unpin> AsyncWrite for Buffered<R, W> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.to).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.to).poll_shutdown(context)
    }
}
