//! The connection to the agent, async, over tokio.

use std::path::Path;

use tokio::net::UnixStream;

use crate::GridError;
use crate::blocking::socket_path;
use crate::control::{Reply, Request, Response, Submission};
use crate::ids::{JobId, Selector};
use crate::spec::JobSpec;
use crate::status::JobStatus;
use crate::wire::stream;

/// A connection to the agent of this machine.
///
/// ```no_run
/// use libgrid::{client::Grid, spec::JobSpec};
/// # async fn run() -> Result<(), libgrid::GridError> {
/// let mut grid = Grid::connect().await?;
/// let job = grid.submit(JobSpec::command(["/bin/true"])).await?;
/// let status = grid.wait(job).await?;
/// assert!(status.summary.succeeded());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Grid {
    stream: UnixStream,
}

impl Grid {
    /// Connects to the agent on [`socket_path`].
    ///
    /// # Errors
    /// [`GridError::NoAgent`], or [`GridError::Wire`] where its version differs.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), libgrid::GridError> {
    /// let grid = libgrid::client::Grid::connect().await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect() -> Result<Self, GridError> {
        Self::connect_to(socket_path()).await
    }

    /// Connects to the agent on this socket.
    ///
    /// # Errors
    /// As [`Grid::connect`].
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// assert!(libgrid::client::Grid::connect_to("/nowhere").await.is_err());
    /// # }
    /// ```
    pub async fn connect_to(path: impl AsRef<Path>) -> Result<Self, GridError> {
        let path = path.as_ref();
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(|source| GridError::NoAgent { path: path.to_owned(), source })?;
        stream::greet(&mut stream).await?;
        Ok(Self { stream })
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// [`GridError::Refused`] where the agent cannot, [`GridError::Wire`] where the connection broke.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), libgrid::GridError> {
    /// let reply = libgrid::client::Grid::connect().await?.ask(&libgrid::control::Request::Nodes).await?;
    /// # Ok(()) }
    /// ```
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, GridError> {
        self.send(request).await?;
        self.receive().await
    }

    /// Sends one request without waiting; [`Grid::receive`] takes the answers in order.
    ///
    /// # Errors
    /// [`GridError::Wire`]; [`GridError::Refused`] where the agent takes no more connections of this user.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), libgrid::GridError> {
    /// # let mut grid = libgrid::client::Grid::connect().await?;
    /// grid.send(&libgrid::control::Request::Agent).await?;
    /// # Ok(()) }
    /// ```
    pub async fn send(&mut self, request: &Request) -> Result<(), GridError> {
        let Err(broken) = stream::write(&mut self.stream, request).await else { return Ok(()) };
        // Of one that is not let in, the agent reads nothing, and says why.
        match self.receive().await {
            Err(refused @ GridError::Refused(_)) => Err(refused),
            _ => Err(broken.into()),
        }
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// As [`Grid::ask`].
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), libgrid::GridError> {
    /// # let mut grid = libgrid::client::Grid::connect().await?;
    /// let reply = grid.receive().await?;
    /// # Ok(()) }
    /// ```
    pub async fn receive(&mut self) -> Result<Reply, GridError> {
        Ok(stream::read::<Response, _>(&mut self.stream).await??)
    }

    /// Submits a job from the current folder, which results come back to, and where the agent finds what is staged in.
    ///
    /// # Errors
    /// [`GridError::Refused`] where the job cannot be accepted.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), libgrid::GridError> {
    /// # let mut grid = libgrid::client::Grid::connect().await?;
    /// let job = grid.submit(libgrid::spec::JobSpec::command(["/bin/hostname"])).await?;
    /// # Ok(()) }
    /// ```
    pub async fn submit(&mut self, spec: JobSpec) -> Result<JobId, GridError> {
        let folder = std::env::current_dir()?;
        match self.ask(&Request::Submit(Box::new(Submission::new(spec, folder)))).await? {
            Reply::Submitted(submitted) => Ok(submitted.job),
            _ => Err(GridError::Unexpected),
        }
    }

    /// Waits until a job is done. The connection is of no use for other requests meanwhile.
    ///
    /// # Errors
    /// [`GridError::Refused`] where there is no such job.
    ///
    /// ```no_run
    /// # async fn run(job: libgrid::ids::JobId) -> Result<(), libgrid::GridError> {
    /// let status = libgrid::client::Grid::connect().await?.wait(job).await?;
    /// # Ok(()) }
    /// ```
    pub async fn wait(&mut self, job: JobId) -> Result<JobStatus, GridError> {
        self.send(&Request::Wait { job: Selector::Job(job) }).await?;
        loop {
            match self.receive().await? {
                Reply::Job(status) if status.summary.is_done() => return Ok(*status),
                Reply::Job(_) => (),
                _ => return Err(GridError::Unexpected),
            }
        }
    }
}
