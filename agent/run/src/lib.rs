//! Starting a task and keeping it: the shim.
//!
//! ```text
//!   gridosd ──socket── gridos-shim ──vfork── gridos-init (pid 1) ──vfork── program (pid 2)
//!   may be restarted   keeps tasks of        own pid, mount, ipc and     own uid, cgroup,
//!                      one job               uts namespace; reaps        session; no new rights
//! ```
//!
//! The **shim** is a small process with one thread that keeps the tasks of one job on this node. It makes each
//! task's folder, control group, namespaces and pipes, writes what the task prints into bounded files
//! ([`logs`]), enforces the time limit, and holds the exit status until the agent says that the home node has
//! it. The agent can be killed at any moment: it finds the shims again by their sockets ([`protocol`]).
//!
//! **Init** is pid 1 of the task's pid namespace, because pid 1 gets no signals that it does not handle, and
//! an unmodified program must die from Ctrl-C. It reaps orphans, tells the shim how the program ended, and
//! takes the rest of the task with it. It dies with the shim.
//!
//! **Fencing.** A task whose home node is another one has a lease (`ToShim::Lease`). When the lease ends
//! without renewal, the shim freezes the task's control group by itself, agent or no agent: from then on the
//! home node may start the task elsewhere. Contact thaws it; a newer epoch kills it.
//!
//! What handles files that a task controls runs with the task's own uid ([`libgrid::user::User`]), never as root.

pub mod fifo;
pub mod logs;
pub mod protocol;
mod record;
pub mod shim;
pub mod slot;
pub mod spawn;
pub mod tree;
pub mod usage;
