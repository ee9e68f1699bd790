//! The sockets: the agent's own, at which every process may speak, and those of endpoints, found by their processes.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::Path;

use libgrid::comm::{MAX_DATAGRAM, place};
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::sys::stat::fstatat;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// How the kernel is asked not to follow, read or write, only to name.
const NAME_ONLY: i32 = nix::libc::O_PATH | nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;

/// The agent's socket.
pub(super) struct Ear(UnixDatagram);

/// A process that spoke, and whether it is still there.
pub(super) struct Alive(File);

impl Ear {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let socket = StdDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        // Everybody may speak; the kernel says who does.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// The next datagram, and the process that sent it, as the kernel says.
    pub(super) async fn hear(&self) -> io::Result<(UnixCredentials, Vec<u8>)> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(UnixCredentials, Vec<u8>)> {
    // One byte more: what is too long is seen to be.
    let mut bytes = vec![0; MAX_DATAGRAM + 1];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(UnixCredentials);
    // Descriptors that are sent along find no space, and are closed by the kernel.
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let len = message.bytes;
    let sender = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials),
        _ => None,
    });
    let sender = sender.ok_or_else(|| io::Error::from(io::ErrorKind::Interrupted))?;
    bytes.truncate(len);
    Ok((sender, bytes))
}

impl Alive {
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
        Ok(Self(fs::OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/{pid}"))?))
    }

    pub(super) fn is_still(&self) -> bool {
        fstatat(&self.0, "stat", AtFlags::empty()).is_ok()
    }
}

/// A socket that is connected to the endpoint of this process. Only a socket of the process's own user will do: whatever links a
/// task makes, nobody else's is written to.
pub(super) fn open(pid: u32) -> io::Result<UnixDatagram> {
    let (inner, uid) = status(pid)?;
    let path = format!("/proc/{pid}/root{}", place(inner));
    let named = fs::OpenOptions::new().read(true).custom_flags(NAME_ONLY).open(path)?;
    let meta = named.metadata()?;
    if !meta.file_type().is_socket() || meta.uid() != uid {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let socket = UnixDatagram::unbound()?;
    socket.connect(format!("/proc/self/fd/{}", named.as_raw_fd()))?;
    Ok(socket)
}

/// The pid of a process in its task, and its user.
fn status(pid: u32) -> io::Result<(u32, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let inner = field("NSpid:").and_then(|pids| pids.split_whitespace().last()?.parse().ok());
    let uid = field("Uid:").and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok());
    inner.zip(uid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
