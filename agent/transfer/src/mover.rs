//! `gridos-mover`: one end of a transfer, as a process of the user whose files it reads or writes.
//!
//! ```text
//!   agent ── standard input: Order, then Report… ──▶ mover
//!   other end's mover ◀── standard output: the control stream ──▶
//! ```
//!
//! Both are Unix sockets. The agent starts it as root with the user as its argument; it becomes that user before it
//! reads anything. When the agent ends, the control stream does, and with it the mover: the next try goes on where
//! this one ended.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libgrid::archive::Patterns;
use libgrid::copy::{Entry, EntryKind, Landed, Options, Progress};
use libgrid::io::Fixed;
use libgrid::user::User;
use libgrid::wire;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, SFlag, umask};
use serde::{Deserialize, Serialize};

use crate::root::Root;
use crate::session::{self, ReceiveOrder, SendOrder, Trouble};

/// Entries of one listing at most.
const MOST_ENTRIES: usize = 10_000;

/// What a mover is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Be the source.
    Send {
        /// Where it may read.
        within: Within,
        /// Paths below that.
        sources: Vec<PathBuf>,
        /// Folders, too.
        recursive: bool,
        /// Of each source, a folder, only what matches these patterns, as [`libgrid::archive`] has them.
        matching: Option<Vec<String>>,
        /// Where the destination is.
        addresses: Vec<IpAddr>,
        /// The same for each try of the same transfer.
        id: [u8; 8],
        /// Data connections at most.
        most_streams: u16,
        /// How.
        options: Options,
    },
    /// Be the destination.
    Receive {
        /// Where it may write.
        within: Within,
        /// The path below that.
        target: PathBuf,
        /// The target is a folder.
        into: bool,
        /// What comes is spread over the target, which is a folder.
        spread: Option<Spread>,
        /// The ports that it may listen on.
        ports: Option<(u16, u16)>,
        /// How.
        options: Options,
    },
    /// Drop what an interrupted transfer left that was to be spread over a folder.
    Discard {
        /// Where it may write.
        within: Within,
        /// The path of the folder below that.
        target: PathBuf,
        /// As it was spread.
        spread: Spread,
    },
    /// Tell what is in a folder.
    List {
        /// Where it may read.
        within: Within,
        /// The path below that.
        path: PathBuf,
    },
}

/// How far paths may lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Within {
    /// Wherever the user may.
    Everything,
    /// Not out of this folder.
    Folder(PathBuf),
}

/// How something is spread over a folder that has other things, see [`session::Spread`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The name of the hidden folder where it arrives, in part.
    pub name: String,
    /// The id of the transfer.
    pub id: [u8; 8],
    /// What may come.
    pub patterns: Vec<String>,
}

impl Spread {
    /// The name of a file that is in the folder for as long as anything is that came in part.
    pub fn mark(&self) -> OsString {
        session::mark(&self.name, self.id)
    }
}

/// What a mover tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// How far it is; of a source.
    Progress(Progress),
    /// It is done.
    Landed(Landed),
    /// It is not.
    Failed(Trouble),
    /// What is in the folder, and whether there is more.
    Listing(Vec<Entry>, bool),
}

/// What starts a mover as this user, with the agent's ends of its two sockets: orders and reports, and control.
///
/// # Errors
/// There is no descriptor left.
pub fn command(program: &Path, user: &User) -> io::Result<(Command, UnixStream, UnixStream)> {
    let (orders, its_orders) = UnixStream::pair()?;
    let (control, its_control) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .arg(user.to_string())
        .stdin(Stdio::from(OwnedFd::from(its_orders)))
        .stdout(Stdio::from(OwnedFd::from(its_control)))
        .env_clear()
        .current_dir("/");
    Ok((command, orders, control))
}

/// What a source hears on the control stream if the destination's agent starts no mover: a frame.
///
/// # Errors
/// The sentence is longer than a frame.
pub fn refusal(trouble: Trouble) -> Result<Vec<u8>, wire::WireError> {
    session::refusal(trouble)
}

/// The id of a transfer: a text that tells it from others, made short.
pub fn transfer_id(text: &str) -> [u8; 8] {
    let mut id = [0; 8];
    id.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    id
}

/// Carries out one order as the user: the whole of the program.
///
/// # Errors
/// The process cannot become the user, or nobody is at the other end.
pub fn run(user: &User, orders: &UnixStream, control: &UnixStream) -> io::Result<()> {
    user.enter()?;
    nix::sys::prctl::set_no_new_privs()?;
    // Modes are set as the source has them.
    umask(Mode::empty());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let order: Order = wire::read(&mut &*orders).map_err(io::Error::other)?;
    let report = match carry_out(order, orders, control) {
        Ok(report) => report,
        Err(trouble) => Report::Failed(trouble),
    };
    wire::write(&mut &*orders, &report).map_err(io::Error::other)
}

fn carry_out(order: Order, orders: &UnixStream, control: &UnixStream) -> Result<Report, Trouble> {
    match order {
        Order::Send { within, sources, recursive, matching, addresses, id, most_streams, options } => {
            let fixed = Fixed {
                streams: options.streams.map(usize::from),
                buffer: options.buffer.map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX)),
                congestion: options.congestion,
            };
            let options = session::Options {
                checksums: options.checksums,
                encrypt: options.encrypt,
                limit: options.limit.map(|bytes| bytes.0),
                most_streams: most_streams.into(),
                fixed,
            };
            let (root, matching) = (root(&within)?, matching.as_deref().map(patterns).transpose()?);
            let order = SendOrder { root, sources, recursive, matching, addresses, id, options };
            let landed = session::send(control, &order, &|progress| {
                // An agent that is gone is noticed by the control stream.
                let _ = wire::write(&mut &*orders, &Report::Progress(progress));
            })?;
            Ok(Report::Landed(landed))
        }
        Order::Receive { within, target, into, spread, ports, options } => {
            let spread = match spread {
                Some(Spread { name, id, patterns: words }) => {
                    Some(session::Spread { name, id, wanted: patterns(&words)? })
                }
                None => None,
            };
            let order = ReceiveOrder {
                root: root(&within)?,
                target,
                into,
                spread,
                fsync: options.fsync,
                verify: options.verify,
                fresh: options.fresh,
                ports,
                listen: None,
            };
            session::receive(control, &order).map(Report::Landed)
        }
        Order::Discard { within, target, spread } => {
            session::discard(&root(&within)?, &target, &spread.name, spread.id)?;
            Ok(Report::Landed(Landed::default()))
        }
        Order::List { within, path } => {
            let root = root(&within)?;
            let (entries, more) = list(&root, &path).map_err(|error| {
                Trouble::lasting(format!("{} cannot be listed: {error}", root.show(&path).display()))
            })?;
            Ok(Report::Listing(entries, more))
        }
    }
}

fn patterns(words: &[String]) -> Result<Patterns, Trouble> {
    Patterns::new(words).map_err(|error| Trouble::lasting(error.to_string()))
}

fn root(within: &Within) -> Result<Root, Trouble> {
    let (root, path) = match within {
        Within::Everything => (Root::everything(), Path::new("/")),
        Within::Folder(path) => (Root::confined(path), path.as_path()),
    };
    root.map_err(|error| Trouble::lasting(format!("{} cannot be opened: {error}", path.display())))
}

fn list(root: &Root, path: &Path) -> io::Result<(Vec<Entry>, bool)> {
    let (folder, mut names) = match root.folder(path) {
        Ok(folder) => {
            let names = folder.list()?.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
            (folder, names)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            root.file(path, OFlag::O_PATH)?;
            let (folder, name) = root.parent(path)?;
            (folder, vec![name])
        }
        Err(error) => return Err(error),
    };
    names.sort();
    let more = names.len() > MOST_ENTRIES;
    names.truncate(MOST_ENTRIES);
    let mut entries = Vec::new();
    for name in names {
        let stat = match folder.stat(&name) {
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            stat => stat?,
        };
        let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => EntryKind::File,
            SFlag::S_IFDIR => EntryKind::Folder,
            SFlag::S_IFLNK => EntryKind::Link,
            _ => EntryKind::Other,
        };
        entries.push(Entry {
            name: name.to_string_lossy().into_owned(),
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            modified: stat.st_mtime,
        });
    }
    Ok((entries, more))
}
