//! Who may talk to whom: the node of the one who is talked to decides. The home of both jobs knows whether they are one
//! user's; jobs of two homes never are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libgrid::comm::Refusal;
use libgrid::ids::JobId;
use libgrid::wire::stream;

use crate::config::Talk;
use crate::grid::Grid;
use crate::peers::Request;

/// How long an answer is good.
const GOOD: Duration = Duration::from_secs(60);

/// How many answers are kept.
const MOST: usize = 4096;

/// How long a home has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was asked before.
#[derive(Default)]
pub(super) struct Rights(HashMap<(JobId, JobId), (bool, Instant)>);

impl Rights {
    /// Whether a process of the first job may talk to one of the second; nothing if the home has to be asked.
    pub(super) fn known(&self, grid: &Grid, (from, to): (JobId, JobId)) -> Option<bool> {
        if from == to || grid.config.comm == Talk::Vo {
            return Some(true);
        }
        if from.home != to.home {
            return Some(false);
        }
        let (may, since) = self.0.get(&(from, to))?;
        (since.elapsed() < GOOD).then_some(*may)
    }

    pub(super) fn learn(&mut self, jobs: (JobId, JobId), may: bool) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(jobs, (may, Instant::now()));
    }
}

/// Asks the home of both.
pub(super) async fn ask(grid: &Arc<Grid>, (from, to): (JobId, JobId)) -> Option<bool> {
    if to.home == grid.me {
        return Some(same_user(grid, from, to).await);
    }
    let asked = async {
        let mut duplex = grid.peers.ask(to.home, &Request::SameUser(from, to)).await.ok()?;
        stream::read::<bool, _>(&mut duplex).await.ok()
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

/// Whether two jobs of this home are one user's.
pub(crate) async fn same_user(grid: &Arc<Grid>, one: JobId, other: JobId) -> bool {
    let same = grid.core.look(move |view| {
        let user = |job| view.home.record(job).map(|record| record.origin.uid);
        user(one).is_some() && user(one) == user(other)
    });
    same.await.unwrap_or(false)
}

pub(super) fn denied(job: JobId) -> Refusal {
    let todo = "comm = \"vo\" in gridosd.toml of both nodes lets all jobs of the VO talk";
    Refusal::Denied(format!("it is part of {job}, which is another user's: {todo}"))
}
