//! What this machine can do for the grid, what is missing, what that costs, and what to do.

use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;

use grid_checkpoint::Installation;
use grid_qos::Cgroups;
use libgrid::control::{Finding, Verdict};
use libgrid::units::{Bytes, Cpus};

use crate::config::Config;
use crate::core::lent;
use crate::grid::Grid;
use crate::identity::FOUNDER;
use crate::identity::REJOIN;
use crate::machine;
use crate::runner::shim_program;

/// Below this, jobs with inputs soon fail.
const LITTLE_ROOM: u64 = 1 << 30;

pub(crate) async fn examine(config: &Config, grid: Option<&Grid>) -> Vec<Finding> {
    let mut findings =
        vec![tier(grid), module(config, grid), cgroups(config), shim(), room(config), resources(config)];
    findings.extend(checkpoints().await);
    findings.extend(vo(grid));
    if let Some(grid) = grid {
        findings.push(network(grid));
        findings.push(task_network(grid));
    }
    findings
}

fn finding(subject: &str, verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), verdict, text: text.into() }
}

fn tier(grid: Option<&Grid>) -> Finding {
    let Some(grid) = grid else {
        return finding("tier", Verdict::Good, "told when this node is in a VO");
    };
    let lost = grid.processes.health();
    match grid.processes.lacks() {
        None if lost.lost > 0 => {
            let text = format!(
                "ebpf: of {} processes it is not known how they ended: too many ended at once",
                lost.lost
            );
            finding("tier", Verdict::Missing, text)
        }
        None if lost.unmarked + lost.missed > 0 => {
            let text = format!(
                "ebpf: {} processes got their ids late, as the kernel had no memory or no number for them",
                lost.unmarked + lost.missed
            );
            finding("tier", Verdict::Missing, text)
        }
        None if grid.processes.has_module() => {
            let text =
                "kernel: every process has its id from its first instruction, and any program finds it";
            finding("tier", Verdict::Good, text)
        }
        None => {
            let text = match grid.processes.lacks_traffic() {
                None => "ebpf: every process is followed from its first instruction".into(),
                Some(why) => format!(
                    "ebpf: every process is followed from its first instruction, but its packets are not counted: {why}"
                ),
            };
            finding("tier", Verdict::Good, text)
        }
        Some(why) if grid.processes.has_module() => {
            let text =
                format!("kernel, without eBPF: {why}; connections, and how processes ended, are not known");
            finding("tier", Verdict::Good, text)
        }
        Some(why) => {
            let text = format!(
                "stack: {why}; processes get their ids when they are looked at, and how those ended that nobody looked at is \
                 not known"
            );
            finding("tier", Verdict::Good, text)
        }
    }
}

fn module(config: &Config, grid: Option<&Grid>) -> Finding {
    let Some(grid) = grid else {
        return finding("module", Verdict::Good, "told when this node is in a VO");
    };
    let text = match grid.processes.lacks_module() {
        None => "/dev/gridos and /proc/gridos are there".into(),
        Some(why) => {
            let tree = match &*grid.tree.lock().unwrap_or_else(PoisonError::into_inner) {
                Ok(_) => format!("its files are in {}", config.runtime_dir.join("proc").display()),
                Err(why) => format!("there are no files instead of it ({why})"),
            };
            format!("{why}: programs ask the agent instead of the kernel, and {tree} (see kmod/README.md)")
        }
    };
    finding("module", Verdict::Good, text)
}

fn cgroups(config: &Config) -> Finding {
    match Cgroups::open(&config.cgroup_root, &config.cgroup_parent) {
        Ok(groups) => finding(
            "control groups",
            Verdict::Good,
            format!("version {} with cpu, memory and pids", groups.version()),
        ),
        Err(error) => {
            finding("control groups", Verdict::Bad, format!("{error}; without them no task can be limited"))
        }
    }
}

fn shim() -> Finding {
    let shim = shim_program();
    let absent = [shim.clone(), shim.with_file_name("gridos-init")].into_iter().find(|path| !path.exists());
    match absent {
        None => finding("shim", Verdict::Good, shim.display().to_string()),
        Some(path) => finding(
            "shim",
            Verdict::Bad,
            format!("there is no {}: install it beside gridosd", path.display()),
        ),
    }
}

/// What CRIU and this kernel can do, and what each missing piece costs.
async fn checkpoints() -> Vec<Finding> {
    let shim = shim_program();
    let program = shim.with_file_name("gridos-criu");
    if !program.exists() {
        let text = format!(
            "there is no {}: tasks cannot be checkpointed; install it beside gridosd",
            program.display()
        );
        return vec![finding("checkpoints", Verdict::Missing, text)];
    }
    let asked = tokio::task::spawn_blocking(move || {
        let criu = Installation::find(shim.parent().unwrap_or(Path::new("/")))?;
        Some(criu.capabilities().map_err(|error| format!("{}: {error}", criu.program().display())))
    });
    let capabilities = match asked.await {
        Ok(Some(Ok(capabilities))) => capabilities,
        Ok(Some(Err(error))) => {
            return vec![finding(
                "checkpoints",
                Verdict::Missing,
                format!("CRIU cannot be started: {error}"),
            )];
        }
        Ok(None) | Err(_) => {
            let text = "CRIU is not installed: tasks cannot be checkpointed, and begin anew after a loss; install criu";
            return vec![finding("checkpoints", Verdict::Missing, text)];
        }
    };
    let mut findings = vec![match capabilities.trouble {
        Some(why) => finding(
            "checkpoints",
            Verdict::Missing,
            format!("{why}; until then tasks cannot be checkpointed"),
        ),
        None => finding("checkpoints", Verdict::Good, format!("CRIU {}", capabilities.version)),
    }];
    findings.extend(
        capabilities.missing.iter().map(|piece| {
            finding("checkpoints", Verdict::Missing, format!("{}: {}", piece.feature, piece.cost))
        }),
    );
    findings
}

fn room(config: &Config) -> Finding {
    let folder: &Path = &config.state_dir;
    match machine::room(folder) {
        Some(room) if room < LITTLE_ROOM => finding(
            "disk",
            Verdict::Missing,
            format!(
                "only {} free below {}: jobs with inputs may fail; make room",
                Bytes(room),
                folder.display()
            ),
        ),
        Some(room) => {
            finding("disk", Verdict::Good, format!("{} free below {}", Bytes(room), folder.display()))
        }
        None => finding("disk", Verdict::Bad, format!("cannot look at {}", folder.display())),
    }
}

fn resources(config: &Config) -> Finding {
    let lent = lent(config);
    let text = format!("{} and {} of memory", Cpus::from_milli(lent.cpu).in_words(), Bytes(lent.memory));
    finding("lent to the grid", Verdict::Good, text)
}

fn vo(grid: Option<&Grid>) -> Vec<Finding> {
    let Some(grid) = grid else {
        let todo = "found one with gridctl vo create NAME, or join one with gridctl join TOKEN";
        return vec![finding("VO", Verdict::Missing, format!("this node is in none: {todo}"))];
    };
    let vo = grid.identity.vo();
    let role = if grid.identity.is_authority() { ", which it founded" } else { "" };
    if grid.identity.is_revoked(grid.me) {
        let text = format!("node {} was put out of {vo}, and does nothing for it: {REJOIN}", grid.me);
        return vec![finding("VO", Verdict::Bad, text)];
    }
    let member = finding("VO", Verdict::Good, format!("node {} of {vo}{role}", grid.me));
    let certificate = match grid.identity.ends().duration_since(SystemTime::now()) {
        Ok(left) => {
            let left = libgrid::units::Span(std::time::Duration::from_secs(left.as_secs()));
            finding("certificate", Verdict::Good, format!("good for {left}; renewed by itself"))
        }
        Err(_) => finding(
            "certificate",
            Verdict::Bad,
            format!(
                "expired: other nodes refuse this one until node {FOUNDER} renews it; see that both can reach each other"
            ),
        ),
    };
    vec![member, certificate]
}

fn task_network(grid: &Grid) -> Finding {
    match grid.network.trouble() {
        None => {
            finding("network of tasks", Verdict::Good, "tasks can have addresses of their own (--net grid)")
        }
        Some(why) => {
            let text = format!("{why}; until then no task with --net grid runs here");
            finding("network of tasks", Verdict::Missing, text)
        }
    }
}

fn network(grid: &Grid) -> Finding {
    let all = grid.members.all();
    let others = all.iter().filter(|member| !member.this).count();
    let up = grid.members.others().len();
    let addrs: Vec<_> = grid.addrs.iter().map(ToString::to_string).collect();
    let text = format!("{up} of {others} other nodes answer; this one listens on {}, udp", addrs.join(", "));
    finding("network", if up == others { Verdict::Good } else { Verdict::Missing }, text)
}
