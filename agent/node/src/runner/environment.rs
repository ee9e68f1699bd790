//! What passes between a job as its user sees it and a task as the shim sees it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use grid_jobs::message::{End, Order};
use grid_run::protocol::{Ending, How};
use libgrid::ids::{NodeId, Run};
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Span};

use crate::config::Config;

/// The whole environment of a task: what a login would give, what tells it about the grid, and what its user
/// asked for.
pub(super) fn environment(
    config: &Config,
    me: NodeId,
    run: Run,
    order: &Order,
    address: Option<Ipv4Addr>,
) -> BTreeMap<String, String> {
    let workdir = config.workdir().display().to_string();
    let spec = &order.spec;
    let index = run.task.index;
    let mut env: BTreeMap<String, String> = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games".into()),
        ("HOME", workdir.clone()),
        ("PWD", workdir),
        ("USER", "grid".into()),
        ("LOGNAME", "grid".into()),
        ("SHELL", "/bin/sh".into()),
        ("LANG", "C.UTF-8".into()),
        ("TMPDIR", "/tmp".into()),
        ("GRIDOS_JOB", run.task.job.to_string()),
        ("GRIDOS_TASK", run.task.to_string()),
        ("GRIDOS_INDEX", index.to_string()),
        ("GRIDOS_EPOCH", run.epoch.to_string()),
        ("GRIDOS_NODE", me.to_string()),
        ("GRIDOS_NODE_NAME", config.name.clone()),
        ("GRIDOS_CPUS", spec.cpus.to_string()),
        ("GRIDOS_MEMORY", spec.memory.0.to_string()),
    ]
    .into_iter()
    .map(|(key, value): (&str, String)| (key.to_owned(), value))
    .collect();
    env.extend(address.map(|address| ("GRIDOS_ADDRESS".into(), address.to_string())));
    env.extend(spec.env.iter().map(|(key, value)| (key.clone(), JobSpec::for_task(value, index))));
    env
}

/// Whether it ended because it was to be nowhere any more, which is no end of its task.
pub(crate) fn is_fenced(end: &Ending) -> bool {
    end.how == How::Fenced
}

/// What the shim saw, in the terms of users.
pub(crate) fn end_of(end: Ending, (memory, time): (Bytes, Option<Span>)) -> End {
    let outcome = match end.how {
        How::Exited(status) => Outcome::Exited(status),
        How::Signaled(signal) => Outcome::Signaled(signal),
        How::Killed(signal) => Outcome::Killed(signal),
        How::OutOfMemory => Outcome::OutOfMemory { limit: memory },
        How::TimeLimit => Outcome::TimeLimit { limit: time.unwrap_or(Span(end.usage.wall)) },
        How::Fenced => Outcome::Killed(9),
        How::NotStarted { why, status } => Outcome::NotStarted { why, status },
    };
    End { outcome, usage: end.usage, printed: end.printed > 0 }
}
