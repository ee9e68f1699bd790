//! Copying files between nodes, and what owners lend of their files.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::units::Bytes;

/// A path, and whose. Written as scp does: `node3:/data`, `/tmp/file`; and `grid:/physics`, a path of the grid, which
/// leads to whichever node exports it ([`Export::grid`]).
///
/// ```
/// use libgrid::copy::Place;
/// assert_eq!("node3:/data".parse(), Ok(Place::Node { node: "node3".into(), path: "/data".into() }));
/// assert_eq!("grid:/physics".parse(), Ok(Place::Grid("/physics".into())));
/// assert_eq!("./a:b".parse(), Ok(Place::Here("./a:b".into())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// On this machine.
    Here(PathBuf),
    /// On a node.
    Node {
        /// Its name or number.
        node: String,
        /// Absolute.
        path: PathBuf,
    },
    /// In the grid.
    Grid(PathBuf),
}

/// A place cannot be understood.
///
/// ```
/// let error = "node3:data".parse::<libgrid::copy::Place>().unwrap_err();
/// assert!(error.to_string().contains("begins with /"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no place: a path on a node begins with /, as in node3:/data")]
pub struct ParsePlaceError {
    text: String,
}

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((node, path)) = text.split_once(':').filter(|(node, _)| !node.contains('/')) else {
            return Ok(Self::Here(text.into()));
        };
        if node.is_empty() || !path.starts_with('/') {
            return Err(ParsePlaceError { text: text.into() });
        }
        Ok(match node {
            "grid" => Self::Grid(path.into()),
            _ => Self::Node { node: node.into(), path: path.into() },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(path) => write!(f, "{}", path.display()),
            Self::Node { node, path } => write!(f, "{node}:{}", path.display()),
            Self::Grid(path) => write!(f, "grid:{}", path.display()),
        }
    }
}

/// What to copy, and where to.
///
/// ```
/// use libgrid::copy::Copy;
/// let copy = Copy::new(["node1:/data/run7".parse()?], "node3:/data".parse()?);
/// assert!(!copy.recursive && copy.options.checksums);
/// # Ok::<(), libgrid::copy::ParsePlaceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// All on the same node; the last part of a path may have wildcards (`*`, `?`, `[a-z]`).
    pub sources: Vec<Place>,
    /// As cp understands it: a folder that is there, or the new name.
    pub target: Place,
    /// Copy folders, too.
    pub recursive: bool,
    /// How.
    pub options: Options,
}

impl Copy {
    /// With the defaults.
    ///
    /// ```
    /// # use libgrid::copy::Copy;
    /// Copy::new(["/tmp/a".parse()?], "node2:/tmp/".parse()?);
    /// # Ok::<(), libgrid::copy::ParsePlaceError>(())
    /// ```
    pub fn new(sources: impl IntoIterator<Item = Place>, target: Place) -> Self {
        let sources = sources.into_iter().collect();
        Self { sources, target, recursive: false, options: Options::default() }
    }
}

/// How to copy.
///
/// ```
/// let options = libgrid::copy::Options { streams: Some(4), ..Default::default() };
/// assert!(options.checksums && !options.encrypt);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Compare a checksum of each part at the destination. Default: yes.
    pub checksums: bool,
    /// Encrypt the data, and not only what is said about it.
    pub encrypt: bool,
    /// The data is on the disk when the copy ends.
    pub fsync: bool,
    /// Write to the disk, read back from it, and compare.
    pub verify: bool,
    /// Use nothing of what an interrupted copy left.
    pub fresh: bool,
    /// The rate at most, in bytes a second.
    pub limit: Option<Bytes>,
    /// The number of data connections; measured if absent.
    pub streams: Option<u16>,
    /// The buffers of each; the kernel's choice if absent.
    pub buffer: Option<Bytes>,
    /// Their congestion control, by the kernel's name.
    pub congestion: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            checksums: true,
            encrypt: false,
            fsync: false,
            verify: false,
            fresh: false,
            limit: None,
            streams: None,
            buffer: None,
            congestion: None,
        }
    }
}

/// How far a copy is.
///
/// ```
/// assert_eq!(libgrid::copy::Progress::default().bytes, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are at the destination.
    pub bytes: u64,
    /// Bytes that were found so far.
    pub of_bytes: u64,
    /// Files, folders and links that were found so far.
    pub of_items: u64,
    /// Whether everything was found.
    pub whole: bool,
    /// Data connections.
    pub streams: u32,
    /// Pieces that had to be sent again.
    pub sent_again: u64,
}

/// What happens during a copy, for [`Grid::copy`](crate::blocking::Grid::copy).
///
/// ```
/// use libgrid::copy::Moment;
/// assert!(matches!(Moment::Interrupted("node 3 is gone"), Moment::Interrupted(_)));
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// It goes on.
    Progress(&'a Progress),
    /// It was interrupted, and is tried again in a moment.
    Interrupted(&'a str),
}

/// What came of a copy.
///
/// ```
/// assert_eq!(libgrid::copy::Landed::default().items, 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landed {
    /// Bytes of files that were sent; less than the files have if a copy went on where it had ended.
    pub bytes: u64,
    /// Files, folders and links that were written.
    pub items: u64,
    /// Files that were there already, with the same size and time.
    pub skipped: u64,
    /// Where they are, on the destination.
    pub path: PathBuf,
    /// Of results, what was asked for and did not come, and why. A copy that cannot be whole fails instead.
    pub missed: Option<String>,
}

/// Something in a folder.
///
/// ```
/// # fn f(entry: libgrid::copy::Entry) {
/// println!("{} {}", entry.size, entry.name);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// When it was last written to, in seconds since 1970.
    pub modified: i64,
}

/// What something in a folder is.
///
/// ```
/// assert_ne!(libgrid::copy::EntryKind::File, libgrid::copy::EntryKind::Folder);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// A folder that a node lends to the others.
///
/// ```
/// use libgrid::copy::Export;
/// let export = Export { path: "/data".into(), write: false, user: "alice".into(), grid: None };
/// assert!(!export.write);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The folder; nothing outside of it can be reached.
    pub path: PathBuf,
    /// Others may write, too.
    pub write: bool,
    /// The user of that node with whose rights others read and write there; never root.
    pub user: String,
    /// The path in the grid that stands for it.
    pub grid: Option<PathBuf>,
}

/// An export, and whose.
///
/// ```
/// # fn f(of: libgrid::copy::ExportOf) {
/// println!("{}:{}", of.name, of.export.path.display());
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportOf {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What it lends.
    pub export: Export,
    /// Bytes that are free there.
    pub free: u64,
}
