//! What can go wrong between a program and the agent.

use std::error::Error;
use std::io;
use std::iter;
use std::path::PathBuf;

use crate::control::Failure;
use crate::wire::WireError;

/// A request to the grid failed.
///
/// ```
/// use libgrid::GridError;
/// let error = libgrid::blocking::Grid::connect_to("/nowhere/control.sock").unwrap_err();
/// assert!(matches!(error, GridError::NoAgent { .. }));
/// assert!(error.to_string().contains("start it with: gridctl up"));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    /// Nobody listens on the socket.
    #[error("no agent answers on {}: {source}: start it with: gridctl up", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The connection broke, or something else answered.
    #[error("talking to the agent failed: {0}")]
    Wire(#[from] WireError),
    /// Reading what is to be uploaded failed.
    #[error("reading the inputs failed: {0}")]
    Upload(#[source] io::Error),
    /// Who was to take what came did not.
    #[error("what came cannot be written: {0}")]
    Output(#[source] io::Error),
    /// The agent answered something that does not fit the question.
    #[error(
        "the agent gave an answer that does not fit the question: install the same release of GridOS on both"
    )]
    Unexpected,
}

impl From<io::Error> for GridError {
    fn from(error: io::Error) -> Self {
        GridError::Wire(error.into())
    }
}

/// An error and its causes, each said once: many tell their own cause in their text.
///
/// ```
/// use libgrid::{GridError, sentence};
/// let error = GridError::Output(std::io::Error::other("the disk is full"));
/// assert_eq!(sentence(&error), "what came cannot be written: the disk is full");
/// ```
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(error.source(), |&cause| cause.source());
    causes.map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
