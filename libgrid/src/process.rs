//! The processes of tasks, as [`Request::Processes`](crate::control::Request::Processes) lists them.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::ids::{Gpid, NodeId, TaskId};

/// A process that runs, with all its threads.
///
/// Times and counts go from its start on, on the node where it is: a move or a restore begins them anew.
///
/// ```
/// # fn f(process: libgrid::process::Process) {
/// println!("{} {} on node {}", process.gpid, process.name, process.node);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its global id.
    pub gpid: Gpid,
    /// That of the process that made it; none of the first in a task, or if that was not known.
    pub parent: Option<Gpid>,
    /// The task that it is part of.
    pub task: TaskId,
    /// Where it is.
    pub node: NodeId,
    /// Its pid in its task, as programs there see it.
    pub pid: u32,
    /// Its name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// When it was started here.
    pub started: SystemTime,
    /// Time on processors.
    pub cpu: Duration,
    /// Time in which it could have run, and others had the processors.
    pub waited: Duration,
    /// Page faults that were served from memory.
    pub minor_faults: u64,
    /// Page faults for which storage was read.
    pub major_faults: u64,
    /// Context switches because it waited for something.
    pub voluntary_switches: u64,
    /// Context switches because its time was over.
    pub involuntary_switches: u64,
    /// Threads that it has now.
    pub threads: u32,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Bytes that went out over the TCP connections that it has open, and came in over them; on a node without eBPF nothing is
    /// known of these.
    pub sent: u64,
    /// As `sent`.
    pub received: u64,
    /// Those over which most went, [`MOST_CONNECTIONS`] at most.
    pub connections: Vec<Connection>,
}

/// How many connections of a process are told.
pub const MOST_CONNECTIONS: usize = 32;

/// A TCP connection, as its end here sees it (RFC 9293; `struct tcp_info` of the kernel has the same figures).
///
/// ```
/// # fn f(connection: libgrid::process::Connection) {
/// println!("{} to {}", connection.local, connection.remote);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The address of this end.
    pub local: SocketAddr,
    /// That of the other one.
    pub remote: SocketAddr,
    /// Bytes that the other end has acknowledged. The end that opened it counts one more each way, for the handshake.
    pub sent: u64,
    /// Bytes that came in.
    pub received: u64,
    /// Segments that went out, those that were sent again included.
    pub segments_sent: u32,
    /// Segments that came in.
    pub segments_received: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
    /// The smoothed round trip time; nothing before the first answer.
    pub round_trip: Duration,
    /// The congestion window: segments that may be on their way.
    pub window: u32,
}
