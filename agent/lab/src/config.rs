//! What a caller says about a lab, and the configuration file that each agent gets from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::document::LabDoc;
use crate::error::LabError;
use crate::mountpoint::POINTS;

/// The most machines of a lab; the rest of the subnet is kept for the host and for what tests add.
pub(crate) const MAX_NODES: u32 = 250;

/// The port on which every agent of a lab listens.
const PORT: u16 = 7411;

/// A lab to be made.
///
/// ```
/// use grid_lab::LabConfig;
/// let config = LabConfig { nodes: 5, cores: Some(1.5), ..LabConfig::new("demo", "/usr/sbin/gridosd") };
/// assert_eq!(config.root.to_str(), Some("/var/lib/gridos-lab/demo"));
/// ```
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// 1 to 32 lower-case letters, digits and dashes, a letter first. Labs that are up at once need
    /// different names, wherever their roots are: the names of cgroups are made from it.
    pub name: String,
    /// How many machines, 1 to 250.
    pub nodes: u32,
    /// Where the lab keeps its state; made if it is not there.
    pub root: PathBuf,
    /// The agent, usually `gridosd`; runs as `AGENT --config FILE`.
    pub agent: PathBuf,
    /// The program `gridos-lab` of this crate's build; see [`LabConfig::find_helper`].
    pub helper: PathBuf,
    /// How many cores each agent gives to jobs; all if `None`.
    pub cores: Option<f64>,
    /// How much memory each agent gives to jobs, like `2G`; all if `None`.
    pub memory: Option<String>,
    /// More lines for each agent's configuration file: top-level keys first, then tables.
    pub extra_config: String,
}

// === impl LabConfig ===

impl LabConfig {
    /// A lab of three machines in the default place, with the helper found by [`LabConfig::find_helper`].
    pub fn new(name: impl Into<String>, agent: impl Into<PathBuf>) -> LabConfig {
        let name = name.into();
        LabConfig {
            nodes: 3,
            root: Self::default_root(&name),
            agent: agent.into(),
            helper: Self::find_helper(),
            cores: None,
            memory: None,
            extra_config: String::new(),
            name,
        }
    }

    /// Where the lab `name` is unless the caller says otherwise.
    pub fn default_root(name: &str) -> PathBuf {
        Path::new("/var/lib/gridos-lab").join(name)
    }

    /// `gridos-lab` beside the running program, or, for a test program, in the folder above; else the bare
    /// name, to be found in PATH.
    pub fn find_helper() -> PathBuf {
        let name = Path::new("gridos-lab");
        let Ok(program) = std::env::current_exe() else { return name.to_owned() };
        let beside = program.ancestors().skip(1).take(2).map(|dir| dir.join(name));
        beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| name.to_owned())
    }

    pub(crate) fn check(&self) -> Result<(), LabError> {
        let mut letters = self.name.bytes();
        let good = letters.next().is_some_and(|first| first.is_ascii_lowercase())
            && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            && self.name.len() <= 32;
        if !good {
            return Err(LabError::Name(self.name.clone()));
        }
        if self.nodes == 0 || self.nodes > MAX_NODES {
            return Err(LabError::Nodes { nodes: self.nodes, max: MAX_NODES });
        }
        Ok(())
    }

    /// The text of `gridosd.toml` for machine `index`.
    pub(crate) fn agent_toml(&self, doc: &LabDoc, index: u32) -> String {
        let [(run, _), (state, _)] = POINTS;
        let mut text = format!(
            "name = \"node{index}\"\n\
             listen = \"{}:{PORT}\"\n\
             state_dir = \"{state}\"\n\
             runtime_dir = \"{run}\"\n\
             cgroup_parent = \"{}\"\n",
            doc.addr(index),
            doc.cgroup_parent(index)
        );
        text.push_str(&self.extra_config);
        if !self.extra_config.is_empty() && !self.extra_config.ends_with('\n') {
            text.push('\n');
        }
        if self.cores.is_some() || self.memory.is_some() {
            text.push_str("\n[limits]\n");
        }
        if let Some(cores) = self.cores {
            // Writing to a String cannot fail. `{:?}` keeps the point of a whole number: TOML tells 2.0 from 2.
            let _ = writeln!(text, "cores = {cores:?}");
        }
        if let Some(memory) = &self.memory {
            let _ = writeln!(text, "memory = {}", quoted(memory));
        }
        text
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Phase;
    use crate::slot::Slot;

    #[test]
    fn names_that_would_not_fit_elsewhere_are_refused() {
        for (name, good) in [
            ("lab", true),
            ("a-1", true),
            ("", false),
            ("1a", false),
            ("a/b", false),
            ("A", false),
            ("ä", false),
        ] {
            assert_eq!(LabConfig::new(name, "/x").check().is_ok(), good, "{name}");
        }
        assert!(LabConfig::new("a".repeat(33), "/x").check().is_err());
        assert!(LabConfig { nodes: 251, ..LabConfig::new("a", "/x") }.check().is_err());
        assert!(LabConfig { nodes: 0, ..LabConfig::new("a", "/x") }.check().is_err());
    }

    #[test]
    fn the_agents_file_has_tables_last() {
        let config = LabConfig {
            cores: Some(2.0),
            memory: Some("2G\"".into()),
            extra_config: "gossip = 1\n[x]\ny = 2".into(),
            ..LabConfig::new("t", "/x")
        };
        let doc = LabDoc {
            name: "t".into(),
            phase: Phase::Up,
            nodes: 1,
            slot: Slot::candidates(Path::new("/t")).next().unwrap(),
            agent: "/x".into(),
            helper: "/y".into(),
            made_root: true,
        };
        let text = config.agent_toml(&doc, 1);
        let addr = doc.addr(1);
        assert_eq!(
            text,
            format!(
                "name = \"node1\"\nlisten = \"{addr}:7411\"\nstate_dir = \"/var/lib/gridos\"\n\
                 runtime_dir = \"/run/gridos\"\ncgroup_parent = \"gridos-t-node1\"\n\
                 gossip = 1\n[x]\ny = 2\n\n[limits]\ncores = 2.0\nmemory = \"2G\\\"\"\n"
            )
        );
    }
}
