//! What the owner of a node can set, and what is set unless they do. The one place for defaults.
//!
//! `/etc/gridos/gridosd.toml`, all of it optional:
//!
//! ```toml
//! name         = "node1"                 # the host's name
//! listen       = "0.0.0.0:7411"          # UDP; for the other nodes
//! advertise    = ["192.0.2.7:7411"]      # where others reach it; found out from the interfaces if absent
//! state_dir    = "/var/lib/gridos"
//! runtime_dir  = "/run/gridos"
//! retention    = "7d"                    # how long jobs that are done are remembered
//! certificates = "24h"                   # how long a certificate lasts that this node's authority issues
//! data_ports   = "50000-50100"           # TCP; for the data of copies and jobs; any free port if absent
//! encrypt_jobs = true                    # whether inputs and results of jobs leave this node encrypted
//! task_network = true                    # whether tasks may have addresses of their own (--net grid)
//! ebpf         = true                    # whether processes are followed by eBPF programs
//! [limits]                               # what the grid may use of this machine
//! cores        = 4.0
//! memory       = "8G"
//! [checkpoints]
//! keep         = 2                       # how many of each task stay: one to go on from, one in case that it is damaged
//! limit        = "40G"                   # what all of them may take; a fifth of the disk if absent
//! shortest     = "10s"                   # bounds of the adaptive interval
//! longest      = "12h"
//! weight       = 0.5                     # of the last period against the one before it
//! failures     = "7d"                    # how far apart failures of this node are expected, before any is seen
//! ```

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use grid_checkpoint::interval::{Failures, Interval, Policy};
use libgrid::units::{Bytes, Cpus, Span};
use serde::Deserialize;

/// Where the configuration is, unless `--config` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/gridos/gridosd.toml";

/// The port on which agents listen, unless the owner says otherwise.
pub(crate) const PORT: u16 = 7411;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Vec<SocketAddr>,
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) cgroup_root: PathBuf,
    pub(crate) cgroup_parent: String,
    pub(crate) retention: Span,
    pub(crate) certificates: Span,
    pub(crate) data_ports: Option<Ports>,
    pub(crate) encrypt_jobs: bool,
    pub(crate) task_network: bool,
    pub(crate) ebpf: bool,
    /// Whose processes may talk to those of tasks here.
    pub(crate) comm: Talk,
    pub(crate) limits: Limits,
    pub(crate) checkpoints: Checkpointing,
}

/// A range of ports: its first and its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl TryFrom<String> for Ports {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(first, last)| {
            Some(Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        });
        let good = |ports: &Self| ports.first > 0 && ports.first <= ports.last;
        parsed.filter(good).ok_or_else(|| format!("{text:?} is no range of ports: write it as 50000-50100"))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    pub(crate) cores: Option<Cpus>,
    pub(crate) memory: Option<Bytes>,
}

/// How checkpoints are written and kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Checkpointing {
    pub(crate) keep: usize,
    pub(crate) limit: Option<Bytes>,
    pub(crate) shortest: Span,
    pub(crate) longest: Span,
    pub(crate) weight: f64,
    pub(crate) failures: Span,
}

/// Who may talk to the processes of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Talk {
    /// Processes of the same user's jobs.
    #[default]
    User,
    /// Those of any job of the VO.
    Vo,
}

impl Default for Checkpointing {
    fn default() -> Self {
        let Policy { weight, shortest, longest } = Policy::default();
        let failures = Span(Duration::from_secs(7 * 86_400));
        Self { keep: 2, limit: None, shortest: Span(shortest), longest: Span(longest), weight, failures }
    }
}

impl Checkpointing {
    pub(crate) fn policy(&self) -> Policy {
        Policy { weight: self.weight, shortest: self.shortest.0, longest: self.longest.0 }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: {field}: {why}", path.display())]
    Field { path: PathBuf, field: &'static str, why: String },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: host_name(),
            listen: SocketAddr::from(([0, 0, 0, 0], PORT)),
            advertise: Vec::new(),
            state_dir: "/var/lib/gridos".into(),
            runtime_dir: "/run/gridos".into(),
            cgroup_root: grid_qos::ROOT.into(),
            cgroup_parent: "gridos".into(),
            retention: Span(Duration::from_secs(7 * 86_400)),
            certificates: Span(grid_vo::LIFETIME),
            data_ports: None,
            encrypt_jobs: true,
            task_network: true,
            ebpf: true,
            comm: Talk::default(),
            limits: Limits::default(),
            checkpoints: Checkpointing::default(),
        }
    }
}

impl Config {
    /// Reads the file. Without `path` the default one is read, if it is there.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match fs::read_to_string(file) {
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|source| ConfigError::Read { path: file.to_owned(), source })?,
        };
        let config: Self = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: file.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        config.check(file)
    }

    /// Puts tasks into a control group that the init system has delegated, if it is there.
    pub(crate) fn use_delegated(&mut self, group: &str) -> bool {
        let parent = grid_qos::Cgroups::delegated(&self.cgroup_root, group);
        let there = parent.is_some();
        self.cgroup_parent = parent.unwrap_or_else(|| self.cgroup_parent.clone());
        there
    }

    fn check(self, path: &Path) -> Result<Self, ConfigError> {
        let field = |field, why: String| Err(ConfigError::Field { path: path.to_owned(), field, why });
        if let Err(error) = grid_vo::check_node_name(&self.name) {
            return field("name", error.to_string());
        }
        for (name, folder) in [("state_dir", &self.state_dir), ("runtime_dir", &self.runtime_dir)] {
            if !folder.is_absolute() {
                return field(name, format!("{} is no absolute path: write it from / on", folder.display()));
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if self.cgroup_parent.is_empty() || !self.cgroup_parent.chars().all(plain) {
            let why = format!(
                "{:?} is no name of a control group: use letters, digits and dashes",
                self.cgroup_parent
            );
            return field("cgroup_parent", why);
        }
        if self.advertise.len() > grid_vo::MAX_ADDRS {
            return field("advertise", format!("more than {} addresses: name the best", grid_vo::MAX_ADDRS));
        }
        let failures = Failures::new(self.checkpoints.failures.0);
        if let Err(error) = Interval::new(self.checkpoints.policy(), Duration::ZERO, &failures) {
            return field("checkpoints", error.to_string());
        }
        if self.checkpoints.keep == 0 {
            return field("checkpoints", "keep = 0 would keep none to go on from: keep at least 1".into());
        }
        Ok(self)
    }

    /// The TCP ports that movers may listen on, the first and the last.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        self.data_ports.map(|ports| (ports.first, ports.last))
    }

    /// Private to the agent: keys and certificates.
    pub(crate) fn vo_dir(&self) -> PathBuf {
        self.state_dir.join("vo")
    }

    /// The records of jobs.
    pub(crate) fn store(&self) -> PathBuf {
        self.state_dir.join("jobs.redb")
    }

    /// The folders of tasks that run here.
    pub(crate) fn tasks_dir(&self) -> PathBuf {
        self.state_dir.join("tasks")
    }

    /// Inputs of jobs that were submitted here.
    pub(crate) fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// Inputs of other nodes' jobs that run here.
    pub(crate) fn inputs_dir(&self) -> PathBuf {
        self.state_dir.join("inputs")
    }

    /// There while the node takes no tasks.
    pub(crate) fn draining(&self) -> PathBuf {
        self.state_dir.join("draining")
    }

    /// Checkpoints of tasks that run here.
    pub(crate) fn checkpoints_dir(&self) -> PathBuf {
        self.state_dir.join("checkpoints")
    }

    /// Output of jobs that were submitted here.
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// The sockets of shims.
    pub(crate) fn shims_dir(&self) -> PathBuf {
        self.runtime_dir.join("shims")
    }

    /// Where a task sees its working directory: the same on every node, so that it can move.
    pub(crate) fn workdir(&self) -> PathBuf {
        self.runtime_dir.join("work")
    }

    /// Named pipes of this node.
    pub(crate) fn pipes_dir(&self) -> PathBuf {
        self.state_dir.join("pipes")
    }

    /// Where processes of tasks send their messages.
    pub(crate) fn comm_socket(&self) -> PathBuf {
        self.runtime_dir.join("comm.sock")
    }

    /// The control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| grid_vo::check_node_name(name).is_ok()).unwrap_or_else(|| "node".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gridosd.toml");
        for (text, says) in [
            ("nmae = 'x'", "unknown field `nmae`"),
            ("state_dir = 'here'", "state_dir: here is no absolute path"),
            ("cgroup_parent = 'a/b'", "cgroup_parent: \"a/b\" is no name"),
            ("data_ports = '9-5'", "\"9-5\" is no range of ports"),
            ("[checkpoints]\nweight = 2.0", "checkpoints: the weight must be"),
            ("[checkpoints]\nkeep = 0", "checkpoints: keep = 0"),
            ("[limits]\nmemory = 'lots'", "\"lots\" is no amount of bytes"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Config::read(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(Config::read(Some(&folder.path().join("absent"))).is_err());
    }
}
