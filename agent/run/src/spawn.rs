//! Starting and finding shims; the agent's side.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    /// Starts a shim and returns the connection to it. The caller waits for the child some time, or it stays a
    /// zombie.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start(&self, name: &str) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.program)
            .arg("serve")
            .arg(self.folder.join(format!("{name}.sock")))
            .arg(&self.cgroup_root)
            .arg(&self.cgroup_parent)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok((child, ours))
    }

    /// Connects to every shim that an earlier agent left. Sockets that nobody listens on are removed.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn find(&self) -> io::Result<Vec<UnixStream>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            match UnixStream::connect(&path) {
                Ok(stream) => found.push(stream),
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
