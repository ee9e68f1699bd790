//! The cable of a machine: plugged in, pulled out, or slow.
//!
//! The wanted state is a document; [`Cable::apply`] brings the links to it, whatever they were before, so a
//! machine that is booted again finds its line as it was left, and a repeated command changes nothing.

use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::document::{self, LINK, LabDoc, WIRE};
use crate::error::{Doing, LabError};
use crate::lock::Lock;
use crate::machine;
use crate::process::ProcessId;
use crate::slow::Slow;
use crate::tool::{self, Tool};

/// What makes a line slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkEngine {
    /// The kernel's network emulator.
    Netem,
    /// A process that relays frames, where the kernel has no netem or `tc` is missing.
    UserSpace,
}

/// The wanted state of a cable; the default is whole and fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wire {
    pub(crate) cut: bool,
    pub(crate) slow: Option<Slow>,
    /// Chosen anew whenever the state is applied; only with `slow`.
    pub(crate) engine: Option<LinkEngine>,
}

/// The host's side of one machine's cable.
pub(crate) struct Cable<'a> {
    pub(crate) doc: &'a LabDoc,
    pub(crate) root: PathBuf,
    pub(crate) index: u32,
    pub(crate) lock: &'a Lock,
}

// === impl Cable ===

impl Cable<'_> {
    /// Brings the links into the state `wire`, and keeps it for the next boot.
    pub(crate) fn set(&self, wire: Wire) -> Result<(), LabError> {
        document::write(&self.dir().join(WIRE), &wire)?;
        self.apply()
    }

    /// Brings the links into the recorded state, as far as the machine is on.
    pub(crate) fn apply(&self) -> Result<(), LabError> {
        let path = self.dir().join(WIRE);
        let mut wire: Wire = document::read(&path)?.unwrap_or_default();
        let port = self.doc.slot.port(self.index);
        // The port of a machine that was just killed may still be there, and go at any moment.
        let powered = machine::pid1(&self.dir())?.is_some() && tool::link_exists(&port);
        let engine = match wire.slow {
            Some(_) if !powered => return Ok(()),
            Some(_) if self.has_netem(&port) => Some(LinkEngine::Netem),
            Some(_) => Some(LinkEngine::UserSpace),
            None => None,
        };
        if wire.engine != engine {
            wire.engine = engine;
            document::write(&path, &wire)?;
        }
        // What was slow before goes first. While there is no relay the cable ends in the bridge.
        if powered {
            self.plug(&self.doc.slot.bridge(), wire.cut)?;
        }
        self.end_relay()?;
        if !powered {
            return Ok(());
        }
        match (wire.slow, engine) {
            (Some(line), Some(LinkEngine::Netem)) => self.netem(&port, &line),
            (Some(_), _) => {
                self.start_relay()?;
                self.plug(&self.doc.slot.slow_bridge(self.index), wire.cut)
            }
            (None, _) => self.end_netem(&port),
        }
    }

    /// Ends the relay and removes its little bridge; the TAPs end with the process.
    pub(crate) fn end_relay(&self) -> Result<(), LabError> {
        let record = self.dir().join(LINK);
        if let Some(relay) = document::read::<ProcessId>(&record)? {
            machine::end(relay, "the relay of a slow line")?;
        }
        let little = self.doc.slot.slow_bridge(self.index);
        if tool::link_exists(&little) {
            Tool::new("ip").args(["link", "del", "dev", &little]).run(self.lock)?;
        }
        document::remove(&record)
    }

    fn plug(&self, bridge: &str, cut: bool) -> Result<(), LabError> {
        let port = self.doc.slot.port(self.index);
        let state = if cut { "down" } else { "up" };
        Tool::new("ip").args(["link", "set", "dev", &port, "master", bridge, state]).run(self.lock).map(drop)
    }

    fn start_relay(&self) -> Result<(), LabError> {
        let mut command = Command::new(&self.doc.helper);
        command.arg("link").arg(&self.root).args([self.index.to_string(), self.lock.fd().to_string()]);
        machine::run_helper(command, self.lock, format!("the slow line of node{}", self.index))
    }

    /// Asks the kernel by using it, with parameters that change nothing.
    fn has_netem(&self, port: &str) -> bool {
        Tool::new("tc").args(["qdisc", "replace", "dev", port, "root", "netem"]).run(self.lock).is_ok()
    }

    /// Both ends of the cable delay what they send.
    fn netem(&self, port: &str, line: &Slow) -> Result<(), LabError> {
        let far =
            |dev| Tool::new("tc").args(["qdisc", "replace", "dev", dev, "root", "netem"]).args(line.netem());
        far(port).run(self.lock)?;
        self.inside(far("eth0"))
    }

    fn end_netem(&self, port: &str) -> Result<(), LabError> {
        let far = |dev| Tool::new("tc").args(["qdisc", "del", "dev", dev, "root"]);
        let show = |dev| Tool::new("tc").args(["qdisc", "show", "dev", dev]);
        // Without tc there can be no netem.
        let Ok(shown) = show(port).run(self.lock) else { return Ok(()) };
        if shown.contains("netem") {
            far(port).run(self.lock)?;
            self.inside(far("eth0"))?;
        }
        Ok(())
    }

    /// Runs a tool in the machine's network namespace.
    fn inside(&self, tool: Tool) -> Result<(), LabError> {
        let name = format!("node{}", self.index);
        let pid1 = machine::pid1(&self.dir())?.ok_or(LabError::Off { machine: name.clone() })?;
        machine::in_network(pid1, || tool.run(self.lock)).doing("enter the network of", name)?.map(drop)
    }

    fn dir(&self) -> PathBuf {
        self.doc.machine_dir(&self.root, self.index)
    }
}
