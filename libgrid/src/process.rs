//! The processes of tasks, as [`Request::Processes`](crate::control::Request::Processes) lists them.

use std::net::{IpAddr, SocketAddr};
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
    /// Bytes that it sent: those of the packets of all its sockets, see [`Traffic`]. Where packets are not counted, those over the
    /// TCP connections that it has open; on a node without eBPF nothing is known of either.
    pub sent: u64,
    /// Bytes that it received, as `sent`.
    pub received: u64,
    /// Its open TCP connections, those over which most went, [`MOST_CONNECTIONS`] at most.
    pub connections: Vec<Connection>,
    /// What went between it and other addresses, the most first, [`MOST_ADDRESSES`] at most.
    pub traffic: Vec<Traffic>,
}

/// How many connections of a process are told.
pub const MOST_CONNECTIONS: usize = 32;

/// How many addresses are told with which a process exchanged packets.
pub const MOST_ADDRESSES: usize = 32;

/// What went between a process and another address, over all its sockets, closed ones too: TCP, UDP and whatever else IP carries.
///
/// A socket counts for the process that made it, an accepted one for the process that made the socket that listens, also where
/// others inherit it; after a move or a restore, for the first that has it open. Packets are counted as
/// they are on the wire, bytes with IP headers (RFC 791, RFC 8200), from the start of the process on its node on. A node remembers some
/// thousands of pairs of a process and an address, and forgets those first that were silent for the longest time.
///
/// ```
/// # fn f(traffic: libgrid::process::Traffic) {
/// println!("{}: {} bytes out, {} in", traffic.remote, traffic.sent, traffic.received);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// The address of the other side.
    pub remote: IpAddr,
    /// The node of the VO that has this address, if it is one's.
    pub node: Option<NodeId>,
    /// Bytes that went out.
    pub sent: u64,
    /// Packets that went out.
    pub sent_packets: u64,
    /// Bytes that came in.
    pub received: u64,
    /// Packets that came in.
    pub received_packets: u64,
}

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
