//! Starting and finding shims; the agent's side.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the agent needs to start shims.
#[derive(Clone, Debug)]
pub struct Shims {
    /// The program `gridos-shim`.
    pub program: PathBuf,
    /// The folder of their sockets; private to the agent.
    pub folder: PathBuf,
    /// Where control groups are mounted.
    pub cgroup_root: PathBuf,
    /// The agent's parent group.
    pub cgroup_parent: String,
}

impl Shims {
    /// The socket of the shim of this name.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    /// What starts a shim of this name, and the connection to it. Whoever spawns it waits for it some time, or it
    /// stays a zombie.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn command(&self, name: &str) -> io::Result<(Command, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg(self.socket(name))
            .arg(&self.cgroup_root)
            .arg(&self.cgroup_parent)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0);
        Ok((command, ours))
    }

    /// What packs a folder's matching files into an archive on its standard output, as this user.
    pub fn pack(&self, user: &User, folder: &Path, patterns: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("pack").arg(folder).args(patterns).stdin(Stdio::null());
        user.apply(&mut command);
        command
    }

    /// What unpacks the archive on its standard input into a folder, as this user; with patterns, only what matches.
    pub fn unpack(&self, user: &User, folder: &Path, wanted: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("unpack").arg(folder).args(wanted).stdout(Stdio::null());
        user.apply(&mut command);
        command
    }

    /// Connects to every shim that an earlier agent left. Sockets that nobody listens on are removed.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn find(&self) -> io::Result<Vec<(PathBuf, UnixStream)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            match UnixStream::connect(&path) {
                Ok(stream) => found.push((path, stream)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(&path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whose rights a process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    /// A task's user, who is in no other group.
    pub fn of_task(uid: u32) -> Self {
        Self { uid, gid: uid, groups: Vec::new() }
    }

    /// A user of this machine with the groups that they have now.
    pub fn of_machine(uid: u32, gid: u32) -> Self {
        let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let groups = known.and_then(|user| {
            let name = CString::new(user.name).ok()?;
            nix::unistd::getgrouplist(&name, gid.into()).ok()
        });
        Self {
            uid,
            gid,
            groups: groups.unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect(),
        }
    }

    fn apply(&self, command: &mut Command) {
        let groups: Vec<libc::gid_t> = self.groups.clone();
        let (uid, gid) = (self.uid, self.gid);
        let become_user = move || {
            // SAFETY: plain system calls; `groups` lives as long as the closure.
            let done = unsafe {
                libc::setgroups(groups.len(), groups.as_ptr()) == 0
                    && libc::setresgid(gid, gid, gid) == 0
                    && libc::setresuid(uid, uid, uid) == 0
            };
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(become_user) };
    }
}
