//! `gridosd`, the node agent: wires the rooms of `agent/` together and serves the control protocol.
//!
//! ```text
//!   users ── control.sock ──▶ control ─┐                  ┌─ runner ──▶ shims ──▶ tasks
//!                                      ├─▶ core (thread) ─┤
//!   nodes ── QUIC ── link ──▶ serve ───┘    home, host    ├─ peers ──▶ other nodes
//!                     ▲           │         store (redb)  └─ output ─▶ logs, results
//!                     │           └─▶ copy ──▶ movers: one process for each end of a copy
//!                     └── membership ── overlay
//! ```
//!
//! One thread does all I/O, one decides and writes the records, one cleans up after tasks. More threads would wake
//! each other several times for every task, which costs more than they share: a thousand short tasks took a quarter
//! longer with two for I/O.
//!
//! Stopping the agent, or killing it, stops no task.
#![forbid(unsafe_code)]

mod caller;
mod calls;
mod checkpoint;
mod comm;
mod config;
mod control;
mod copy;
mod core;
mod device;
mod doctor;
mod fates;
mod grid;
mod identity;
mod machine;
mod membership;
mod network;
mod output;
mod peers;
mod pipes;
mod processes;
mod relay;
mod runner;
mod serve;
mod spool;
mod staging;
mod store;
mod tree;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::control::Agent;

const USAGE: &str = "gridosd, the node agent of GridOS

Usage: gridosd [--config FILE] [--cgroup GROUP]

It is started by gridctl up. The file is /etc/gridos/gridosd.toml unless given; see the README.
GROUP, below /sys/fs/cgroup, is a control group (version 2) that systemd has delegated: tasks go there.
GRIDOS_LOG sets what is logged, such as debug or grid_link=debug.";

fn main() -> ExitCode {
    let (mut config, delegated) = match arguments() {
        Ok(Some(both)) => both,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridosd: {error:#}");
            return ExitCode::from(2);
        }
    };
    let filter = EnvFilter::try_from_env("GRIDOS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    if let Some(group) = delegated.filter(|group| !config.use_delegated(group)) {
        // With version 1 that is so: only version 2 can be delegated.
        info!(group, instead = config.cgroup_parent, "no_delegated_group");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(run(config)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration, and the control group that is delegated to the agent.
fn arguments() -> anyhow::Result<Option<(Config, Option<String>)>> {
    let (mut path, mut delegated) = (None, None);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => {
                path =
                    Some(PathBuf::from(args.next().context("--config needs the path of a file after it")?));
            }
            Some("--cgroup") => {
                let group = args.next().context("--cgroup needs the path of a control group after it")?;
                let relative = |group: &String| {
                    Path::new(group).components().all(|part| matches!(part, Component::Normal(_)))
                };
                let group = group.into_string().ok().filter(relative).filter(|group| !group.is_empty());
                delegated =
                    Some(group.context("--cgroup needs a path below /sys/fs/cgroup, without / before it")?);
            }
            Some("--help" | "-h") => {
                println!("{USAGE}");
                return Ok(None);
            }
            Some("--version" | "-V") => {
                println!("gridosd {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            _ => bail!("unknown argument {arg:?}: see gridosd --help"),
        }
    }
    Ok(Some((Config::read(path.as_deref())?, delegated)))
}

async fn run(config: Config) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent gives tasks their own users and namespaces, which takes root: start it with sudo");
    }
    let config = Arc::new(config);
    for folder in [&config.state_dir, &config.runtime_dir] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let _alone = [alone(&config.state_dir)?, alone(&config.runtime_dir)?];
    let agent = Arc::new(Agent::new(config.clone(), |grid, incoming| {
        drop(tokio::spawn(serve::serve(grid, incoming)))
    }));
    agent.resume().await?;
    let serving = tokio::spawn(agent.clone().serve());
    info!(version = env!("CARGO_PKG_VERSION"), socket = %config.socket().display(), "agent_ready");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        result = serving => {
            let socket = config.socket();
            result?.with_context(|| format!("cannot serve {}", socket.display()))?;
        }
        _ = term.recv() => info!("agent_stopping"),
        _ = int.recv() => info!("agent_stopping"),
    }
    let _ = fs::remove_file(config.socket());
    if let Some(grid) = agent.grid() {
        grid.network.stop();
        let tasks = grid.core.look(|view| view.host.runs().count()).await;
        grid.processes.stop(tasks.unwrap_or(usize::MAX));
        grid.stop().await;
    }
    Ok(())
}

/// A lock that two agents with the same folder cannot have.
fn alone(folder: &Path) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
    let path = folder.join("lock");
    // Root's alone: whoever can open it can hold the lock.
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        let folder = folder.display();
        anyhow::anyhow!(
            "another agent uses {folder}: stop it first, or give this one another state_dir and runtime_dir"
        )
    })
}
