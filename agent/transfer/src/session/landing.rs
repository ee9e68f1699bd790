//! Where things arrive: under a temporary name first, and all at once under their own.
//!
//! | what is sent | where it grows | how it arrives |
//! | --- | --- | --- |
//! | a file | `.NAME.ID.gridos` beside its place | renamed |
//! | a folder that is not there yet | the folder `.NAME.ID.gridos` beside its place | renamed as a whole |
//! | a folder that is there | each file beside its place | each file is renamed |
//! | what is to be spread over a folder | the folder `.NAME.ID.gridos` in that | see [`super::spread`] |
//! | anything onto a device | there | |
//!
//! What an interrupted transfer left is found again by its id: `.gridos` files with their journals
//! ([`super::journal`]), and in a folder those files that have the size and time of their source, which is set last.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use libgrid::archive::Patterns;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use xattr::FileExt as _;

use super::ReceiveOrder;
use super::journal::{Found, Journal};
use super::message::{Attribute, Held, Item, Offer, RelPath, Shape, Time, Trouble, What};
use crate::root::Folder;

/// Open folders that are remembered at most.
const FOLDERS: usize = 128;

/// Bytes of a name that go into the name of its part.
const NAME: usize = 200;

/// The place of one transfer.
pub(super) struct Landing {
    pub(super) place: Place,
    /// The final path, for people.
    pub(super) path: PathBuf,
    pub(super) id: String,
    pub(super) fsync: bool,
    /// What may come, if it is to be spread.
    wanted: Option<Patterns>,
    folders: Mutex<HashMap<PathBuf, Arc<Folder>>>,
    /// What is set when nothing more is written into them.
    pub(super) metas: Mutex<Vec<Item>>,
}

pub(super) enum Place {
    Device(File),
    File { folder: Arc<Folder>, name: OsString },
    Fresh { folder: Arc<Folder>, name: OsString, top: Arc<Folder>, lock: Box<Flock<File>>, known: bool },
    Merge { top: Arc<Folder> },
}

/// A large file that grows.
pub(super) struct Growing {
    pub(super) item: Item,
    pub(super) file: File,
    pub(super) size: u64,
    /// Absent on a device.
    kept: Option<Kept>,
}

struct Kept {
    folder: Arc<Folder>,
    name: OsString,
    part: OsString,
    journal_name: OsString,
    journal: Mutex<Journal>,
    /// Held as long as the file grows.
    _lock: Flock<File>,
}

impl Landing {
    /// Finds the place of what is offered.
    pub(super) fn prepare(order: &ReceiveOrder, offer: &Offer) -> Result<Self, Trouble> {
        let root = &order.root;
        let shown = root.show(&order.target);
        let cannot = |error: io::Error| unwritable(&shown, &error);
        if let Some(spread) = &order.spread {
            return Self::spread(order, spread, offer);
        }
        let there = root.folder(&order.target);
        if order.into
            && let Err(error) = &there
        {
            return Err(cannot(io::Error::new(error.kind(), format!("{error}, and a folder was asked for"))));
        }
        let id = hex(offer.id);
        let named = |name: &RelPath| name.as_path().as_os_str().to_owned();
        let (folder, name) = match (there, &offer.shape) {
            (Ok(folder), Shape::File(name) | Shape::Tree(name)) => (folder, named(name)),
            (Ok(folder), Shape::Several) => {
                let place = Place::Merge { top: Arc::new(folder) };
                return Ok(Self::new(place, shown, id, order.fsync));
            }
            (Err(_), _) => root.parent(&order.target).map_err(cannot)?,
        };
        let path = folder.path().join(&name);
        let folder = Arc::new(folder);
        let kind = folder.stat(&name).ok().map(|stat| stat.st_mode & nix::libc::S_IFMT);
        let place = match (&offer.shape, kind) {
            (Shape::File(_), Some(nix::libc::S_IFDIR)) => {
                return Err(Trouble::lasting(format!(
                    "{} is a folder, and what is sent is a file",
                    path.display()
                )));
            }
            (Shape::File(_), Some(nix::libc::S_IFCHR)) => {
                Place::Device(folder.file(&name, OFlag::O_WRONLY, 0).map_err(cannot)?)
            }
            (Shape::File(_), _) => Place::File { folder, name },
            (_, None) => Self::fresh(order, folder, name, &id).map_err(cannot)??,
            (_, Some(nix::libc::S_IFDIR)) => {
                Place::Merge { top: Arc::new(folder.folder(&name).map_err(cannot)?) }
            }
            (_, Some(_)) => {
                return Err(Trouble::lasting(format!(
                    "{} is no folder, and what is sent is one",
                    path.display()
                )));
            }
        };
        Ok(Self::new(place, path, id, order.fsync))
    }

    pub(super) fn new(place: Place, path: PathBuf, id: String, fsync: bool) -> Self {
        let (folders, metas) = (Mutex::default(), Mutex::default());
        Self { place, path, id, fsync, wanted: None, folders, metas }
    }

    /// With bounds on what may come.
    pub(super) fn wanting(self, wanted: Patterns) -> Self {
        Self { wanted: Some(wanted), ..self }
    }

    pub(super) fn fresh(
        order: &ReceiveOrder,
        folder: Arc<Folder>,
        name: OsString,
        id: &str,
    ) -> io::Result<Result<Place, Trouble>> {
        let [part, journal] = hidden(&name, id);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND;
        let lock = match lock(folder.file(&journal, flags, 0o600)?) {
            Ok(lock) => lock,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let found = Journal::read(&lock, &lock);
        if order.fresh || found.is_err() {
            if folder.stat(&part).is_ok() {
                folder.remove_tree(&part)?;
            }
            lock.set_len(0)?;
            Journal::begin(lock.try_clone()?, 0, Time::default())?;
        }
        let known = found.is_ok_and(|found| found.same_boot);
        let top = Arc::new(folder.make(&part)?);
        Ok(Ok(Place::Fresh { folder, name, top, lock: Box::new(lock), known }))
    }

    /// Whether it is to be spread over a folder.
    pub(super) fn is_spread(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether what arrived can be read back.
    pub(super) fn readable(&self) -> bool {
        !matches!(self.place, Place::Device(_))
    }

    /// What an earlier try left.
    pub(super) fn held(&self, each: &mut impl FnMut(Held) -> Result<(), Trouble>) -> Result<(), Trouble> {
        match &self.place {
            Place::Device(_) => Ok(()),
            Place::File { folder, name } => match self.partial(folder, name) {
                Some(found) => each(Held {
                    path: RelPath::new(PathBuf::new()).map_err(Trouble::lasting)?,
                    size: found.size,
                    modified: found.modified,
                    ranges: Some(found.ranges.into_vec()),
                }),
                None => Ok(()),
            },
            Place::Fresh { top, known, .. } => self.held_below(top, Path::new(""), *known, each),
            // It comes at once, and the folder may have a million files.
            Place::Merge { .. } if self.is_spread() => Ok(()),
            Place::Merge { top } => self.held_below(top, Path::new(""), true, each),
        }
    }

    fn held_below(
        &self,
        folder: &Folder,
        path: &Path,
        known: bool,
        each: &mut impl FnMut(Held) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let cannot = |error: io::Error| unwritable(folder.path(), &error);
        let ending = format!(".{}.gridos", self.id);
        for (name, _) in folder.list().map_err(cannot)? {
            let Ok(stat) = folder.stat(&name) else { continue };
            let kind = stat.st_mode & nix::libc::S_IFMT;
            if kind == nix::libc::S_IFDIR {
                let inner = folder.folder(&name).map_err(cannot)?;
                self.held_below(&inner, &path.join(&name), known, each)?;
            } else if kind == nix::libc::S_IFREG {
                let held = match name.as_bytes().strip_suffix(ending.as_bytes()) {
                    Some(short) => {
                        // Names that were cut are not found again, and sent once more.
                        let name = OsStr::from_bytes(short.strip_prefix(b".").unwrap_or(short));
                        self.partial(folder, name).map(|found| (name.to_owned(), found))
                    }
                    None => None,
                };
                let held = match held {
                    Some((name, found)) => Held {
                        path: RelPath::new(path.join(name)).map_err(Trouble::lasting)?,
                        size: found.size,
                        modified: found.modified,
                        ranges: Some(found.ranges.into_vec()),
                    },
                    None if known => Held {
                        path: RelPath::new(path.join(&name)).map_err(Trouble::lasting)?,
                        size: u64::try_from(stat.st_size).unwrap_or(0),
                        modified: Time {
                            seconds: stat.st_mtime,
                            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
                        },
                        ranges: None,
                    },
                    None => continue,
                };
                each(held)?;
            }
        }
        Ok(())
    }

    fn partial(&self, folder: &Folder, name: &OsStr) -> Option<Found> {
        let [part, journal] = hidden(name, &self.id);
        let part = folder.file(&part, OFlag::O_RDONLY, 0).ok()?;
        let journal = folder.file(&journal, OFlag::O_RDONLY, 0).ok()?;
        Journal::read(&journal, &part).ok()
    }

    // === writing ===

    /// Begins or goes on with a large file.
    pub(super) fn begin(&self, item: Item) -> Result<Growing, Trouble> {
        let What::File { size } = item.what else {
            return Err(Trouble::lasting("the other node says what makes no sense here"));
        };
        self.admit(&item)?;
        let shown = self.shown(&item.path);
        let cannot = |error: io::Error| unwritable(&shown, &error);
        let (folder, name) = match &self.place {
            Place::Device(file) => {
                let file = file.try_clone().map_err(cannot)?;
                return Ok(Growing { item, file, size, kept: None });
            }
            Place::File { folder, name } => (folder.clone(), name.clone()),
            _ => self.above(&item.path).map_err(cannot)?,
        };
        let [part, journal_name] = hidden(&name, &self.id);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT;
        let file = folder.file(&part, flags, 0o600).map_err(cannot)?;
        let held = lock(file.try_clone().map_err(cannot)?)?;
        let noted = folder.file(&journal_name, flags | OFlag::O_APPEND, 0o600).map_err(cannot)?;
        let fits = Journal::read(&noted, &file)
            .is_ok_and(|found| found.size == size && found.modified == item.modified && found.same_boot);
        let journal = match fits {
            true => Journal::resume(noted),
            false => {
                // What a restart of the machine left was checked for `held`, and is noted anew.
                let ranges = match Journal::read(&noted, &file) {
                    Ok(found) if found.size == size && found.modified == item.modified => {
                        found.ranges.into_vec()
                    }
                    _ => {
                        file.set_len(0).map_err(cannot)?;
                        Vec::new()
                    }
                };
                noted.set_len(0).map_err(cannot)?;
                let mut journal = Journal::begin(noted, size, item.modified).map_err(cannot)?;
                for (start, end) in ranges {
                    let sum = super::journal::hash(&file, start, end - start).map_err(cannot)?;
                    journal.note(start, end - start, Some(sum)).map_err(cannot)?;
                }
                journal
            }
        };
        file.set_len(size).map_err(cannot)?;
        let journal = Mutex::new(journal);
        let kept = Kept { folder, name, part, journal_name, journal, _lock: held };
        Ok(Growing { item, file, size, kept: Some(kept) })
    }

    /// Gives a large file its attributes and its name.
    pub(super) fn finish(&self, growing: &Growing) -> Result<(), Trouble> {
        let Some(kept) = &growing.kept else { return Ok(()) };
        let place = || -> io::Result<()> {
            dress(&growing.file, &growing.item, true)?;
            if self.fsync {
                growing.file.sync_all()?;
            }
            kept.folder.rename(&kept.part, &kept.name)?;
            kept.folder.remove(&kept.journal_name)?;
            if self.fsync {
                sync(&kept.folder)?;
            }
            Ok(())
        };
        place().map_err(|error| unwritable(&self.shown(&growing.item.path), &error))
    }

    /// The source is not to be trusted with more than what was asked for.
    pub(super) fn admit(&self, item: &Item) -> Result<(), Trouble> {
        match &self.wanted {
            Some(wanted) if !wanted.covers(item.path.as_path()) => Err(Trouble::lasting(format!(
                "{} is not among what was asked for: it is not taken",
                item.path.as_path().display()
            ))),
            _ => Ok(()),
        }
    }

    /// Puts everything in its place.
    pub(super) fn land(&self) -> Result<(), Trouble> {
        let mut metas = std::mem::take(&mut *self.metas.lock().unwrap_or_else(PoisonError::into_inner));
        // The innermost first: what is written into a folder changes its time.
        metas.sort_by_key(|item| std::cmp::Reverse(item.path.as_path().components().count()));
        if self.is_spread()
            && let Place::Fresh { folder, name, top, .. } = &self.place
        {
            return self.place_each((folder, name), top, &metas);
        }
        let place = || -> io::Result<()> {
            for item in &metas {
                let folder = self.folder(item.path.as_path())?;
                dress(&folder.as_fd().try_clone_to_owned()?.into(), item, true)?;
                if self.fsync {
                    sync(&folder)?;
                }
            }
            match &self.place {
                Place::Fresh { folder, name, lock, .. } => {
                    let [part, journal] = hidden(name, &self.id);
                    folder.rename(&part, name)?;
                    folder.remove(&journal)?;
                    let _ = &lock;
                    if self.fsync { sync(folder) } else { Ok(()) }
                }
                Place::File { folder, .. } if self.fsync => sync(folder),
                _ => Ok(()),
            }
        };
        place().map_err(|error| unwritable(&self.path, &error))
    }

    // === folders ===

    pub(super) fn above(&self, path: &RelPath) -> io::Result<(Arc<Folder>, OsString)> {
        let path = path.as_path();
        let name = path.file_name().ok_or(io::ErrorKind::InvalidData)?.to_owned();
        Ok((self.folder(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// A folder of the tree, made with those above it if need be.
    pub(super) fn folder(&self, path: &Path) -> io::Result<Arc<Folder>> {
        let top = match &self.place {
            Place::Fresh { top, .. } | Place::Merge { top } => top.clone(),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        if path.as_os_str().is_empty() {
            return Ok(top);
        }
        let known =
            |path: &Path| self.folders.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some(folder) = known(path) {
            return Ok(folder);
        }
        let above = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidData)?;
        let new = self.is_spread() && above.stat(name).is_err();
        let folder = Arc::new(above.make(name)?);
        if new {
            // One that is not sent itself, as only something in it was asked for, is like any new folder.
            fchmod(folder.as_fd(), Mode::from_bits_truncate(0o755))?;
        }
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if folders.len() >= FOLDERS {
            folders.clear();
        }
        folders.insert(path.to_owned(), folder.clone());
        Ok(folder)
    }

    /// The final path of something, for people.
    pub(super) fn shown(&self, path: &RelPath) -> PathBuf {
        match path.as_path().as_os_str().is_empty() {
            true => self.path.clone(),
            false => self.path.join(path.as_path()),
        }
    }
}

impl Growing {
    /// Notes that a range is where it belongs.
    pub(super) fn note(&self, offset: u64, length: u64, sum: Option<[u8; 32]>) -> io::Result<()> {
        match &self.kept {
            Some(kept) => {
                kept.journal.lock().unwrap_or_else(PoisonError::into_inner).note(offset, length, sum)
            }
            None => Ok(()),
        }
    }
}

pub(super) fn unwritable(path: &Path, error: &io::Error) -> Trouble {
    let why = format!("{} cannot be written: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Trouble::until("make room there", why),
        _ => Trouble::lasting(why),
    }
}

/// The hidden names of a part and of its journal.
pub(super) fn hidden(name: &OsStr, id: &str) -> [OsString; 2] {
    let bytes = name.as_bytes();
    let short = &bytes[..bytes.len().min(NAME)];
    let mut part = vec![b'.'];
    part.extend_from_slice(short);
    part.extend_from_slice(format!(".{id}.gridos").as_bytes());
    let mut journal = part.clone();
    journal.extend_from_slice(b"-journal");
    [OsString::from_vec(part), OsString::from_vec(journal)]
}

/// How an id is part of a name.
pub(super) fn hex(id: [u8; 8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn lock(file: File) -> Result<Flock<File>, Trouble> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Trouble::passing("the same is being sent there already: wait for it to end"))
}

/// Makes something; if its name is taken, once more without what has it.
pub(super) fn again_if_there<T>(
    folder: &Folder,
    name: &OsStr,
    make: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            folder.remove(name)?;
            make()
        }
        made => made,
    }
}

/// Sets what a file or folder has beside its contents; its time last, for that tells that it is whole.
pub(super) fn dress(file: &File, item: &Item, mode: bool) -> io::Result<()> {
    for Attribute { name, value } in &item.attributes {
        // A file system without them is no reason to lose the file.
        if name.starts_with(b"user.") {
            let _ = file.set_xattr(OsStr::from_bytes(name), value);
        }
    }
    if mode {
        fchmod(file, Mode::from_bits_truncate(item.mode & 0o777))?;
    }
    let time = spec(item.modified);
    Ok(futimens(file, &time, &time)?)
}

pub(super) fn spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, i64::from(time.nanos.min(999_999_999)))
}

fn sync(folder: &Folder) -> io::Result<()> {
    File::from(folder.as_fd().try_clone_to_owned()?).sync_all()
}
