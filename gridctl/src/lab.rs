//! `gridctl lab`: a whole grid on this machine.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use grid_lab::{Lab, LabConfig, Machine, Slow};
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request};
use libgrid::units::{Bytes, Span};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::agent::patiently;
use crate::{Done, show};

/// How long the agents of a lab have to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a grid of N nodes on this machine. Example: sudo gridctl lab up -n 5
    Up {
        /// How many nodes
        #[arg(short, long, default_value_t = 3, value_name = "N")]
        nodes: u32,
        /// Cores that each node lends; all of this machine's if absent
        #[arg(long, value_name = "N")]
        cores: Option<f64>,
        /// Memory that each node lends, such as 2G
        #[arg(long, value_name = "SIZE")]
        memory: Option<Bytes>,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Stop it, and remove all of it. Example: sudo gridctl lab down
    Down {
        #[command(flatten)]
        which: WhichLab,
    },
    /// Tell how its nodes are. Example: sudo gridctl lab status
    Status {
        #[command(flatten)]
        which: WhichLab,
    },
    /// Run a command on a node. Example: sudo gridctl lab exec node2 -- gridctl nodes
    Exec {
        /// Such as node2
        node: String,
        #[command(flatten)]
        which: WhichLab,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Pull a node's power cord. Example: sudo gridctl lab kill node3
    Kill {
        /// Such as node3
        node: String,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Pull a node's network cable. Example: sudo gridctl lab cut node3
    Cut {
        /// Such as node3
        node: String,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Undo kill, cut and slow. Example: sudo gridctl lab heal node3
    Heal {
        /// Such as node3
        node: String,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Make a node's line slow. Example: sudo gridctl lab slow node3 --delay 25ms --rate 1gbit --loss 0.1%
    Slow {
        /// Such as node3
        node: String,
        /// Added in each direction
        #[arg(long, value_name = "TIME")]
        delay: Option<String>,
        /// The most in each direction, such as 100mbit
        #[arg(long, value_name = "RATE")]
        rate: Option<String>,
        /// Packets lost at random, such as 0.1%
        #[arg(long, value_name = "PERCENT")]
        loss: Option<String>,
        #[command(flatten)]
        which: WhichLab,
    },
}

/// Which lab.
#[derive(Debug, Args)]
pub(crate) struct WhichLab {
    /// The lab's name
    #[arg(long, default_value = "lab", value_name = "NAME")]
    pub(crate) lab: String,
}

pub(crate) fn lab(command: LabCommand, json: bool) -> Done {
    match command {
        LabCommand::Up { nodes, cores, memory, which } => {
            let here = std::env::current_exe().context("cannot find this program's own place")?;
            let config = LabConfig {
                nodes,
                cores,
                memory: memory.map(|memory| memory.0.to_string()),
                ..LabConfig::new(which.lab.as_str(), here.with_file_name("gridosd"))
            };
            patiently("starting the lab", || up(config))?;
            tell(json, "up", || {
                let lab = if which.lab == "lab" { String::new() } else { format!(" --lab {}", which.lab) };
                format!("{nodes} nodes are up; try: gridctl lab exec{lab} node1 -- gridctl nodes")
            })
        }
        LabCommand::Down { which } => {
            patiently("stopping the lab", || Lab::down_at(LabConfig::default_root(&which.lab)))?;
            tell(json, "down", || "the lab is gone".to_owned())
        }
        LabCommand::Status { which } => status(&open(&which.lab)?, json),
        LabCommand::Exec { node, which, command } => {
            let machine = open(&which.lab)?.machine(&node)?;
            let (program, arguments) = command.split_first().context("there is no command to run")?;
            let status = machine.exec(program).args(arguments).status().context("cannot enter the node")?;
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        LabCommand::Kill { node, which } => {
            open(&which.lab)?.machine(&node)?.kill()?;
            tell(json, "killed", || format!("{node} is off"))
        }
        LabCommand::Cut { node, which } => {
            open(&which.lab)?.machine(&node)?.cut()?;
            tell(json, "cut", || format!("{node} is cut off"))
        }
        LabCommand::Heal { node, which } => {
            open(&which.lab)?.machine(&node)?.heal()?;
            tell(json, "healed", || format!("{node} is as it was"))
        }
        LabCommand::Slow { node, delay, rate, loss, which } => {
            if delay.is_none() && rate.is_none() && loss.is_none() {
                bail!("nothing to make slow: give --delay, --rate or --loss");
            }
            let line = Slow {
                delay: delay.as_deref().map(Slow::parse_delay).transpose()?.unwrap_or_default(),
                rate: rate.as_deref().map(Slow::parse_rate).transpose()?,
                loss: loss.as_deref().map(Slow::parse_loss).transpose()?.unwrap_or_default(),
                ..Slow::default()
            };
            open(&which.lab)?.machine(&node)?.slow(line)?;
            tell(json, "slow", || format!("the line of {node} is slow"))
        }
    }
}

fn tell(json: bool, word: &str, text: impl FnOnce() -> String) -> Done {
    if json { show::json(&word) } else { show::text(text()) }
}

fn open(name: &str) -> anyhow::Result<Lab> {
    Ok(Lab::open(LabConfig::default_root(name))?)
}

/// Starts the machines, founds a VO on the first and lets the others join it.
fn up(config: LabConfig) -> anyhow::Result<()> {
    let name = config.name.clone();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let lab = Lab::up(config)?;
    let made = enter_all(&lab, &name, &interrupted);
    if made.is_err() {
        // The first failure is the one to tell.
        let _ = lab.down();
    }
    made
}

/// # Errors
/// Where somebody wants this program to end.
fn goes_on(interrupted: &AtomicBool) -> anyhow::Result<()> {
    match interrupted.load(Ordering::Relaxed) {
        false => Ok(()),
        true => bail!("interrupted: the lab is taken down again"),
    }
}

fn enter_all(lab: &Lab, name: &str, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let machines = lab.machines();
    let (first, others) = machines.split_first().context("a lab has at least one node")?;
    let mut founder = answering(first, interrupted)?;
    founder.ask(&Request::CreateVo { name: name.to_owned() })?;
    for machine in others {
        let day = Span(Duration::from_secs(86_400));
        let Reply::Token(token) = founder.ask(&Request::CreateToken { lifetime: day })? else {
            bail!(libgrid::GridError::Unexpected);
        };
        answering(machine, interrupted)?
            .ask(&Request::Join { token })
            .with_context(|| format!("{} cannot join", machine.name()))?;
    }
    let start = Instant::now();
    for machine in &machines {
        let mut grid = answering(machine, interrupted)?;
        loop {
            goes_on(interrupted)?;
            match grid.ask(&Request::Nodes)? {
                Reply::Nodes(nodes) if nodes.len() == machines.len() => break,
                _ if start.elapsed() > PATIENCE => {
                    bail!("{} does not see all others: see its agent.log", machine.name())
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
    Ok(())
}

/// A connection to the machine's agent, as soon as it answers.
fn answering(machine: &Machine, interrupted: &AtomicBool) -> anyhow::Result<Grid> {
    let start = Instant::now();
    loop {
        goes_on(interrupted)?;
        match Grid::connect_to(machine.control_socket()) {
            Ok(grid) => return Ok(grid),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error)
                    .with_context(|| format!("the agent of {} does not come up", machine.name()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn status(lab: &Lab, json: bool) -> Done {
    let status = lab.status()?;
    if json {
        return show::json(&status);
    }
    for machine in &status.machines {
        let state = match (machine.on, machine.cut) {
            (false, _) => "off",
            (true, true) => "cut off",
            (true, false) => "on",
        };
        println!("{}  {}  {state}", machine.name, machine.addr);
    }
    Ok(ExitCode::SUCCESS)
}
