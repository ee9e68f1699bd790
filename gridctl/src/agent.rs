//! The agent, its VO and its nodes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{AgentInfo, Reply, Request, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args::{TokenCommand, VoCommand};
use crate::{Done, show};

/// How long the agent has to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

const UNIT: &str = "/etc/systemd/system/gridosd.service";
const TASKS_UNIT: &str = "/etc/systemd/system/gridos-tasks.service";

/// Holds the control group of tasks. It is a service of its own so that what is done to the agent's service leaves tasks
/// alone, and because systemd before 254 cannot start a process in a group that hands controllers down (219/CGROUP).
/// The agent moves the process that keeps it into a group below (see the crate grid-qos), so it must not start before
/// that process is there: `Type=exec`.
const TASKS: &str = "\
[Unit]
Description=GridOS tasks, which outlive the node agent

[Service]
Type=exec
ExecStart=/bin/sleep infinity
Restart=always
Slice=system.slice
Delegate=yes
OOMPolicy=continue
OOMScoreAdjust=-1000
TasksMax=infinity
TimeoutStopSec=10s
";

const LOG: &str = "/var/log/gridosd.log";

/// Asks, and shows a spinner while a person waits.
pub(crate) fn patiently<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let done = work();
    spinner.finish_and_clear();
    done
}

pub(crate) fn up(foreground: bool, config: Option<&Path>, json: bool) -> Done {
    if !nix::unistd::geteuid().is_root() {
        bail!("starting the agent takes root: use sudo gridctl up");
    }
    not_of_a_lab()?;
    let program = beside("gridosd")?;
    let mut arguments = Vec::new();
    if let Some(config) = config {
        let config = config.canonicalize().with_context(|| format!("cannot read {}", config.display()))?;
        arguments = vec!["--config".into(), config.into_os_string()];
    }
    if foreground {
        let error = Command::new(&program).args(arguments).exec();
        return Err(error).with_context(|| format!("cannot start {}", program.display()));
    }
    if let Ok(mut grid) = Grid::connect() {
        let info = agent_info(&mut grid)?;
        return if json {
            show::json(&info)
        } else {
            show::text(format!("the agent runs already, as process {}", info.pid))
        };
    }
    if Path::new("/run/systemd/system").exists() {
        start_service(&program, &arguments)?;
    } else {
        start_process(&program, &arguments)?;
    }
    let info = patiently("starting the agent", wait_until_it_answers)?;
    if json {
        return show::json(&info);
    }
    show::text(match &info.vo {
        Some(vo) => format!("the agent runs, in VO {vo}"),
        None => "the agent runs; next: gridctl vo create NAME, or gridctl join TOKEN".into(),
    })
}

/// A lab starts the agents of its nodes itself, and again when they end.
fn not_of_a_lab() -> anyhow::Result<()> {
    if fs::read_to_string("/proc/1/comm").is_ok_and(|first| first.trim_end() == "gridos-lab") {
        bail!(
            "this node is of a lab, which keeps its agent running: gridctl lab kill and heal stop and start the node"
        );
    }
    Ok(())
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("cannot find this program's own place")?;
    let path = here.with_file_name(name);
    if !path.exists() {
        bail!("there is no {}: install it beside gridctl", path.display());
    }
    Ok(path)
}

fn start_service(program: &Path, arguments: &[std::ffi::OsString]) -> anyhow::Result<()> {
    for (path, unit) in [(TASKS_UNIT, TASKS), (UNIT, &unit(program, arguments))] {
        let partial = format!("{path}.part");
        fs::write(&partial, unit)
            .and_then(|()| fs::rename(&partial, path))
            .with_context(|| format!("cannot write {path}"))?;
    }
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "gridosd.service"])
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("systemctl").args(arguments).output().context("cannot run systemctl")?;
    if !output.status.success() {
        bail!("systemctl {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The service: what systemd is to run. With control groups of version 1 the shims, and the tasks in them, are in the
/// agent's group and outlive it nevertheless: `KillMode=process`.
fn unit(program: &Path, arguments: &[std::ffi::OsString]) -> String {
    let group = ["--cgroup", "system.slice/gridos-tasks.service"].map(Into::into);
    let words = std::iter::once(program.to_string_lossy())
        .chain(arguments.iter().map(|word| word.to_string_lossy()))
        .chain(group);
    let command: Vec<_> = words.map(|word| quoted(&word)).collect();
    format!(
        "[Unit]\nDescription=GridOS node agent\nWants=network-online.target\nRequires=gridos-tasks.service\n\
         After=network-online.target gridos-tasks.service\n\n\
         [Service]\nExecStart={}\nRestart=always\nRestartSec=200ms\nKillMode=process\n\
         LimitNOFILE=1048576\nTasksMax=infinity\n\n[Install]\nWantedBy=multi-user.target\n",
        command.join(" ")
    )
}

/// A word of a command line as systemd reads it (systemd.service(5), "Command lines").
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

fn start_process(program: &Path, arguments: &[std::ffi::OsString]) -> anyhow::Result<()> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(LOG)
        .with_context(|| format!("cannot write {LOG}"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    command.current_dir("/").spawn().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(())
}

fn wait_until_it_answers() -> anyhow::Result<AgentInfo> {
    let start = Instant::now();
    loop {
        match Grid::connect() {
            Ok(mut grid) => return agent_info(&mut grid),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error)
                    .with_context(|| format!("it did not come up; see {LOG} or journalctl -u gridosd"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub(crate) fn down(json: bool) -> Done {
    if !nix::unistd::geteuid().is_root() {
        bail!("stopping the agent takes root: use sudo gridctl down");
    }
    not_of_a_lab()?;
    if Path::new(UNIT).exists() && Path::new("/run/systemd/system").exists() {
        systemctl(&["disable", "--now", "gridosd.service"])?;
    } else {
        let mut grid = Grid::connect()?;
        let pid =
            Pid::from_raw(i32::try_from(agent_info(&mut grid)?.pid).context("the agent has no process id")?);
        kill(pid, Signal::SIGTERM).context("cannot stop the agent")?;
        let start = Instant::now();
        while kill(pid, None).is_ok() {
            if start.elapsed() > PATIENCE {
                bail!("the agent, process {pid}, does not stop: see {LOG}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    if json { show::json(&"stopped") } else { show::text("the agent is stopped; its tasks run on") }
}

fn agent_info(grid: &mut Grid) -> anyhow::Result<AgentInfo> {
    match grid.ask(&Request::Agent)? {
        Reply::Agent(info) => Ok(info),
        _ => Err(GridError::Unexpected.into()),
    }
}

fn entered(grid: &mut Grid, request: &Request, what: &str, json: bool) -> Done {
    match patiently(what, || grid.ask(request))? {
        Reply::Agent(info) if json => show::json(&info),
        Reply::Agent(info) => {
            let vo = info.vo.unwrap_or_default();
            let number = info.node.map(|node| node.to_string()).unwrap_or_default();
            let next =
                if info.authority { "; next, for each other machine: gridctl token create" } else { "" };
            show::text(format!("this machine is node {number} of VO {vo}{next}"))
        }
        _ => Err(GridError::Unexpected.into()),
    }
}

pub(crate) fn vo(grid: &mut Grid, command: VoCommand, json: bool) -> Done {
    match command {
        VoCommand::Create { name } => entered(grid, &Request::CreateVo { name }, "founding the VO", json),
        VoCommand::Revoke { node } => {
            let request = Request::Revoke { node: node.clone() };
            patiently("revoking", || grid.ask(&request))?;
            if json { show::json(&node) } else { show::text(format!("node {node} is out of the VO")) }
        }
        VoCommand::Certificate { output } => {
            let Reply::Certificate(made) = grid.ask(&Request::Certify)? else {
                return Err(GridError::Unexpected.into());
            };
            fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
            write_new(&output.join("user.key"), &made.key, 0o600)?;
            write_new(&output.join("user.crt"), &made.certificate, 0o644)?;
            write_new(&output.join("ca.crt"), &made.authority, 0o644)?;
            if json { show::json(&output) } else { Ok(ExitCode::SUCCESS) }
        }
    }
}

/// Writes a file in place of what has its name; nobody ever sees half of it, or a secret with other rights.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    let written = || -> std::io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn token(grid: &mut Grid, TokenCommand::Create { expires }: TokenCommand, json: bool) -> Done {
    match grid.ask(&Request::CreateToken { lifetime: expires })? {
        Reply::Token(token) if json => show::json(&token),
        Reply::Token(token) => show::text(token),
        _ => Err(GridError::Unexpected.into()),
    }
}

pub(crate) fn join(grid: &mut Grid, token: String, json: bool) -> Done {
    entered(grid, &Request::Join { token }, "joining", json)
}

pub(crate) fn nodes(grid: &mut Grid, json: bool) -> Done {
    match grid.ask(&Request::Nodes)? {
        Reply::Nodes(nodes) if json => show::json(&nodes),
        Reply::Nodes(nodes) => show::text(show::nodes(&nodes)),
        _ => Err(GridError::Unexpected.into()),
    }
}

/// Ends with 1 if tasks cannot run here.
pub(crate) fn doctor(grid: &mut Grid, json: bool) -> Done {
    let findings = match grid.ask(&Request::Doctor)? {
        Reply::Doctor(findings) => findings,
        _ => return Err(GridError::Unexpected.into()),
    };
    if json {
        show::json(&findings)?
    } else {
        show::text(show::doctor(&findings))?
    };
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_blanks_and_signs_stays_one_word_for_systemd() {
        let unit =
            unit(Path::new("/opt/my grid/gridosd"), &["--config".into(), "/etc/100%/$x\"y.toml".into()]);
        let command = r#"ExecStart="/opt/my grid/gridosd" "--config" "/etc/100%%/$$x\"y.toml" "#;
        assert!(unit.lines().any(|line| line.starts_with(command)), "{unit}");
    }
}
