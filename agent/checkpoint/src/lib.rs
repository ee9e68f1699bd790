//! Checkpoints: what a task is at one moment, written down such that it can go on from there.
//!
//! ```text
//!  gridos-shim ──socket── gridos-criu (A)            keeps the shim's namespaces
//!  (the task's parent)       │ fork, into the task's pid, mount, ipc and uts namespaces
//!                         gridos-criu (B)            speaks libcriu
//!                            │ fork
//!                         criu swrk (C)              stops, reads, makes processes
//! ```
//!
//! A checkpoint is a folder:
//!
//! | name | what |
//! | --- | --- |
//! | `images/` | what CRIU writes: processes, memory, descriptors; and its logs |
//! | `work.files`, `tmp.files`, `shm.files` | the task's working folder, its `/tmp` and its `/dev/shm` ([`files`]), read while it was stopped |
//! | `rounds/` | of a task that moves by pre-copy: what was written of its memory before ([`rounds`]) |
//! | `task` | [`Description`]; written last: without it, a folder is no checkpoint |
//!
//! **Why inside the namespaces.** The tree below `gridos-init` is dumped, not init: the namespaces and mounts are made
//! again by a new init, the one way in which they are ever made (the shim's), and CRIU has nothing to do with
//! them. It sees the task as one that shares all namespaces with CRIU itself, and paths and pids are those that the task
//! knows. The pids have to be free: so B takes a number in the middle of those that the task does not use
//! ([`images::Tree::free`]), by `clone3` with `set_tid`, and CRIU's own processes follow it.
//!
//! **What belongs to the shim**, the ends of the task's pipes or its terminal, is named in the dump
//! ([`order::External`]), and given to CRIU as inherited descriptors at the restore.
//!
//! **Who may do what.** A task never runs as root, and a checkpoint, whoever altered it, cannot make it: between CRIU's
//! making of the processes and their first instruction, the users and capabilities of all their threads are compared with
//! those that the task has to have, and what they have open or mapped with what its user could open. Files are read and
//! written by a process of the task's user. CRIU itself reads the images as root: a node trusts the root of those whose
//! checkpoints it restores as far as CRIU bears what it reads.
//!
//! **Failure.** CRIU lets a task run on whose dump fails, and so does a hook of ours that fails, for CRIU asks it while
//! the task is stopped. Nobody ends CRIU during a dump, or the code that it put into the task would stay there. A restore
//! that fails ends with its init, and nothing is left of it.
//!
//! # What was needed on a kernel in a container-like machine
//! - Without CAP_SYS_RESOURCE, the kernel tells a process's limits to its own real user alone (CRIU: "Can't get rlimit 0"): so
//!   CRIU runs with the task's user as its **real** one, root as its effective one. See `engine/service.rs`.
//! - Then libnftables ends it, when it asks the kernel what it can do: those answers are kept in `/run`. See `engine/cache.rs`.
//! - Without it, CRIU cannot raise its limit of descriptors either; it says so and goes on.
//! - A descriptor that was opened in another mount namespace cannot be dumped ("Can't lookup mount"): init opens `/dev/null`
//!   itself, and only pipes and the terminal come from outside.
//! - A chosen pid (`set_tid`) does not move the kernel's counter: `ns_last_pid` does.
//! - `post-restore` comes before processes get their users, `pre-resume` after; a script's failure there is only logged.
//! - When the root of a tree ends, so do init, the namespace, and whoever speaks to CRIU inside: the description that was
//!   written and synced before is what says that the dump is done.
//! - CRIU 4.1 writes a thread of a random number for a zombie. See `images.rs`.

pub mod description;
pub mod engine;
pub mod files;
pub mod filter;
pub mod images;
pub mod installation;
pub mod interval;
mod log;
pub mod memory;
pub mod order;
pub mod preflight;
pub mod rounds;
pub mod store;

pub use description::{Description, Pinned};
pub use installation::{Capabilities, Installation};
