//! What a node is and what it has: the part of a node that the others see.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// What the node's kernel allows GridOS to do.
///
/// ```
/// assert_eq!(libgrid::node::Tier::Stack.to_string(), "stack");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// User space alone.
    Stack,
    /// eBPF programs can be loaded.
    Ebpf,
    /// The kernel module is loaded.
    Kernel,
}

/// An amount of each thing that tasks share on a node.
///
/// ```
/// use libgrid::node::Resources;
/// let node = Resources { cpu: 4000, memory: 8 << 30 };
/// let task = Resources { cpu: 500, memory: 1 << 30 };
/// assert!(node.holds(task));
/// assert_eq!(node.minus(task).cpu, 3500);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// What a node tells the others about itself, again whenever it changes.
///
/// ```
/// use libgrid::{ids::NodeId, node::*};
/// let info = NodeInfo {
///     node: NodeId(1), name: "node1".into(), addrs: vec!["10.0.0.1:7411".parse().unwrap()], tier: Tier::Stack,
///     total: Resources { cpu: 2000, memory: 1 << 30 }, free: Resources { cpu: 2000, memory: 1 << 30 },
///     load: 12, tasks: 0, version: "0.1.0".into(), addresses: true, drained: false,
/// };
/// assert!(info.total.holds(info.free));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The number in the VO.
    pub node: NodeId,
    /// The host's name, for people; at most 64 bytes.
    pub name: String,
    /// Where the agent listens, best first; at most 8.
    pub addrs: Vec<SocketAddr>,
    /// What the kernel allows.
    pub tier: Tier,
    /// What the owner lends to the grid.
    pub total: Resources,
    /// What of that is neither reserved nor in use.
    pub free: Resources,
    /// The one-minute load average, in hundredths.
    pub load: u32,
    /// Tasks that run here.
    pub tasks: u32,
    /// The version of the agent.
    pub version: String,
    /// Whether tasks can have addresses of their own there (`--net grid`).
    pub addresses: bool,
    /// Whether it takes no more tasks (`gridctl drain`).
    pub drained: bool,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Stack => "stack",
            Tier::Ebpf => "ebpf",
            Tier::Kernel => "kernel",
        })
    }
}

impl Resources {
    /// Whether `need` fits into this.
    ///
    /// ```
    /// # use libgrid::node::Resources;
    /// let small = Resources { cpu: 100, memory: 10 };
    /// assert!(small.holds(small) && !small.holds(Resources { cpu: 101, memory: 0 }));
    /// ```
    pub fn holds(self, need: Resources) -> bool {
        self.cpu >= need.cpu && self.memory >= need.memory
    }

    /// What is left without `part`; never below nothing.
    ///
    /// ```
    /// # use libgrid::node::Resources;
    /// assert_eq!(Resources { cpu: 1, memory: 1 }.minus(Resources { cpu: 2, memory: 0 }), Resources { cpu: 0, memory: 1 });
    /// ```
    #[must_use]
    pub fn minus(self, part: Resources) -> Resources {
        Resources { cpu: self.cpu.saturating_sub(part.cpu), memory: self.memory.saturating_sub(part.memory) }
    }

    /// Both together.
    ///
    /// ```
    /// # use libgrid::node::Resources;
    /// assert_eq!(Resources { cpu: 1, memory: 1 }.plus(Resources { cpu: 2, memory: 0 }), Resources { cpu: 3, memory: 1 });
    /// ```
    #[must_use]
    pub fn plus(self, part: Resources) -> Resources {
        Resources { cpu: self.cpu.saturating_add(part.cpu), memory: self.memory.saturating_add(part.memory) }
    }

    /// `count` times this.
    ///
    /// ```
    /// # use libgrid::node::Resources;
    /// assert_eq!(Resources { cpu: 2, memory: 3 }.times(4), Resources { cpu: 8, memory: 12 });
    /// ```
    #[must_use]
    pub fn times(self, count: u32) -> Resources {
        Resources {
            cpu: self.cpu.saturating_mul(count),
            memory: self.memory.saturating_mul(u64::from(count)),
        }
    }

    /// How many times `need` fits into this; `u32::MAX` if nothing is needed.
    ///
    /// ```
    /// # use libgrid::node::Resources;
    /// let node = Resources { cpu: 2000, memory: 1 << 30 };
    /// assert_eq!(node.fits(Resources { cpu: 500, memory: 512 << 20 }), 2);
    /// ```
    pub fn fits(self, need: Resources) -> u32 {
        let by_cpu = self.cpu.checked_div(need.cpu).unwrap_or(u32::MAX);
        let by_memory = self.memory.checked_div(need.memory).unwrap_or(u64::MAX);
        by_cpu.min(u32::try_from(by_memory).unwrap_or(u32::MAX))
    }
}
