//! Starting and finding shims; the agent's side.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

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
        let mut command = self.helper("pack", user);
        command.arg(folder).args(patterns).stdin(Stdio::null());
        command
    }

    /// What unpacks the archive on its standard input into a folder, as this user; with patterns, only what matches.
    pub fn unpack(&self, user: &User, folder: &Path, wanted: &[String]) -> Command {
        let mut command = self.helper("unpack", user);
        command.arg(folder).args(wanted).stdout(Stdio::null());
        command
    }

    /// The program becomes the user by itself, first of all: the user need not be able to reach it.
    fn helper(&self, mode: &str, user: &User) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(mode).arg(user.to_string());
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
        Self { uid, gid, groups: groups.unwrap_or_default().into_iter().map(Gid::as_raw).collect() }
    }

    /// Gives this process the user's rights, and no other.
    ///
    /// # Errors
    /// Where the process may not.
    pub fn enter(&self) -> io::Result<()> {
        let groups: Vec<_> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        Ok(())
    }
}

/// `UID:GID:GROUP,GROUP`, as the program takes it.
impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<_> = self.groups.iter().map(u32::to_string).collect();
        write!(f, "{}:{}:{}", self.uid, self.gid, groups.join(","))
    }
}

impl FromStr for User {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (uid, gid, groups) = (next().parse()?, next().parse()?, next());
        let groups = groups.split(',').filter(|group| !group.is_empty()).map(str::parse);
        Ok(Self { uid, gid, groups: groups.collect::<Result<_, _>>()? })
    }
}
