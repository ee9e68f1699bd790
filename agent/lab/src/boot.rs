//! Powering a machine on: what `gridos-lab machine ROOT INDEX LOCK_FD` does.
//!
//! The parent stays in the host's namespaces, the child becomes the machine's pid 1:
//!
//! ```text
//! parent (host)                                  child (pid 1)
//! unshare(pid), fork ──────────────────────────▶
//! writes pid1.json             ── recorded ──▶   makes network, mount, uts and ipc namespaces, mounts
//! veth into the child's        ◀── spaces ───
//! network, plugs the cable     ── wired ─────▶   addresses, the agent
//! ends                         ◀── running ──    supervises (see the module `supervisor`)
//! ```

use std::fs::{self, File};
use std::os::fd::RawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, sethostname};

use crate::detach::{self, Channel, Child, Role};
use crate::document::{self, LabDoc};
use crate::error::{Doing, LabError};
use crate::mountpoint::{self, POINTS};
use crate::supervisor::Supervisor;
use crate::tool::Tool;
use crate::wire::Cable;

/// Starts machine `index` of the lab in `root` and returns when its agent runs; in the child, never.
pub fn machine(root: &Path, index: u32, lock_fd: RawFd) -> Result<(), LabError> {
    let doc: LabDoc =
        document::read(&root.join(document::LAB))?.ok_or_else(|| LabError::NotFound(root.into()))?;
    let dir = doc.machine_dir(root, index);
    // A process does not move into another pid namespace itself: this decides about its children.
    detach::close_inherited(lock_fd);
    let pids = Path::new("/proc/self/ns/pid");
    let outside = File::open(pids).doing("open", pids)?;
    unshare(CloneFlags::CLONE_NEWPID).doing("make the pid namespace of", &dir)?;
    match detach::fork(lock_fd, &dir.join("machine.log"))? {
        Role::Parent(mut child) => {
            // The tools that plug the cable are not for the machine.
            setns(outside, CloneFlags::CLONE_NEWPID).doing("return to", pids)?;
            child.supervise(format!("node{index}"), |child| plug(child, &doc, root, index))
        }
        Role::Child(mut parent) => match inside(&mut parent, &doc, root, index) {
            Ok((supervisor, _mountpoints)) => {
                drop(parent);
                supervisor.run()
            }
            Err(error) => {
                parent.fail(&error);
                Err(error)
            }
        },
    }
}

/// The parent's steps.
fn plug(child: &mut Child, doc: &LabDoc, root: &Path, index: u32) -> Result<(), LabError> {
    document::write(&doc.machine_dir(root, index).join(document::PID1), &child.process)?;
    child.tell("recorded")?;
    child.expect("spaces")?;
    let (port, mac, pid) = (doc.slot.port(index), doc.slot.mac(index), child.process.pid);
    Tool::ip_batch(&[format!("link add name {port} type veth peer name eth0 address {mac} netns {pid}")])
        .run(&child.lock)?;
    Cable { doc, root: root.to_owned(), index, lock: &child.lock }.apply()?;
    child.tell("wired")?;
    child.expect("running")
}

/// The child's steps. The open mount points must stay open as long as the machine lives.
fn inside(
    parent: &mut Channel,
    doc: &LabDoc,
    root: &Path,
    index: u32,
) -> Result<(Supervisor, Vec<File>), LabError> {
    parent.expect("recorded")?;
    let dir = doc.machine_dir(root, index);
    let mountpoints =
        POINTS.iter().map(|(path, _)| mountpoint::hold(Path::new(path))).collect::<Result<_, _>>()?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .doing("make the namespaces of", &dir)?;
    mount_all(&dir)?;
    sethostname(format!("node{index}")).doing("name", &dir)?;
    chdir("/").doing("enter", "/")?;
    parent.tell("spaces")?;
    parent.expect("wired")?;
    Tool::ip_batch(&[
        "link set dev lo up".to_owned(),
        format!("address add {}/24 broadcast + dev eth0", doc.addr(index)),
        "link set dev eth0 up".to_owned(),
    ])
    .run_alone()?;
    let mut supervisor = Supervisor::new(&dir, &doc.agent)?;
    supervisor.start_agent()?;
    parent.tell("running")?;
    Ok((supervisor, mountpoints))
}

/// The machine's own part of the file tree; nothing of it is seen outside.
fn mount_all(dir: &Path) -> Result<(), LabError> {
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .doing("make private", "/")?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), plain, nothing).doing("mount", "/proc")?;
    let bind = |from: &Path, to: &str| {
        mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).doing("mount over", to)
    };
    for (to, folder) in POINTS {
        bind(&dir.join(folder), to)?;
    }
    // The lab's names, where the host has a file to mount them over.
    if fs::metadata("/etc/hosts").is_ok_and(|hosts| hosts.is_file()) {
        bind(&dir.join("hosts"), "/etc/hosts")?;
    }
    Ok(())
}
