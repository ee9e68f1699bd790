//! Starting and finding shims; the agent's side.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libgrid::user::User;

/// The exit status of [`Shims::pack`] if something is left out, and of [`Shims::gather`] if it is not there.
pub const MISSED: u8 = 3;

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

    /// What packs a folder's matching files into an archive on its standard output, as this user. Its exit status is
    /// [`MISSED`] if it says on standard error what of them is not in there.
    pub fn pack(&self, user: &User, folder: &Path, patterns: &[String]) -> Command {
        let mut command = self.helper("pack", user);
        command.arg(folder).args(patterns).stdin(Stdio::null());
        command
    }

    /// What packs these files and folders below a folder into an archive on its standard output, as this user, all or
    /// none. Its exit status is [`MISSED`] if one that was named is not there.
    pub fn gather(&self, user: &User, folder: &Path, paths: &[String]) -> Command {
        let mut command = self.helper("gather", user);
        command.arg(folder).args(paths).stdin(Stdio::null());
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
