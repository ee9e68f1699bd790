//! What came of jobs that others come after (`--after`): asked of their homes when a job is submitted, and while it waits.

use std::collections::BTreeMap;
use std::time::Duration;

use grid_jobs::home::Event;
use grid_jobs::message::Fate;
use libgrid::control::{Failure, Kind};
use libgrid::ids::{JobId, NodeId};
use libgrid::spec::JobSpec;
use libgrid::wire::stream;
use tracing::debug;

use crate::core::{Core, Stopping};
use crate::grid::Grid;
use crate::identity::failure;
use crate::peers::{Peers, Request};

/// How long another home may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Jobs in one question, so that it and its answer are well within a frame.
const AT_ONCE: usize = 4096;

/// What came of jobs of this home, in the order of the question.
pub(crate) async fn here(core: &Core, mut jobs: Vec<JobId>) -> Result<Vec<Fate>, Stopping> {
    jobs.truncate(AT_ONCE);
    core.look(move |view| jobs.into_iter().map(|job| view.home.fate(job)).collect()).await
}

/// Tells the home what came of jobs of another one, as far as that answers.
pub(crate) async fn learn(core: &Core, peers: &Peers, home: NodeId, jobs: Vec<JobId>) {
    for some in jobs.chunks(AT_ONCE) {
        match ask(peers, home, some).await {
            Ok(fates) => {
                let known = some.iter().zip(fates);
                known.for_each(|(job, fate)| core.home(Event::Fate { job: *job, fate }));
            }
            Err(why) => return debug!(%home, why, "what came of its jobs cannot be asked"),
        }
    }
}

/// Nothing if a job could still start after those that it is to come after.
pub(crate) async fn allow(grid: &Grid, spec: &JobSpec) -> Result<(), Failure> {
    let mut homes: BTreeMap<NodeId, Vec<JobId>> = BTreeMap::new();
    for after in &spec.after {
        homes.entry(after.job.home).or_default().push(after.job);
    }
    for (home, jobs) in homes {
        let fates = match home == grid.me {
            true => {
                here(&grid.core, jobs.clone()).await.map_err(|error| failure(Kind::Unavailable, error))?
            }
            false => ask(&grid.peers, home, &jobs).await.map_err(|why| {
                let why = format!("after: {}, and node {home} cannot be asked about it: {why}", jobs[0]);
                Failure::new(Kind::Unavailable, why)
            })?,
        };
        for (job, fate) in jobs.into_iter().zip(fates) {
            let after = spec.after.iter().find(|after| after.job == job);
            if let Some(why) = after.and_then(|after| fate.stops(*after)) {
                return Err(Failure::new(Kind::Invalid, format!("after: {why}")));
            }
        }
    }
    Ok(())
}

async fn ask(peers: &Peers, home: NodeId, jobs: &[JobId]) -> Result<Vec<Fate>, String> {
    let asked = async {
        let mut duplex =
            peers.ask(home, &Request::Fates(jobs.to_vec())).await.map_err(|error| error.to_string())?;
        stream::read(&mut duplex).await.map_err(|error| error.to_string())
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.unwrap_or_else(|_| Err(format!("it said nothing for {PATIENCE:?}")))
}
