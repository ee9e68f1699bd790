//! Where checkpoints are kept: content-addressed, compressed, verified before they are used.
//!
//! ```text
//!   STORE/chunks/3f/9a…      a piece of some file, compressed (zstd); its name is the BLAKE3 of what it was
//!   STORE/tasks/NAME/7       the manifest of checkpoint 7 of a task: its files, each a list of pieces
//!   STORE/part/              what is being written
//!   STORE/lock
//! ```
//!
//! Files are cut where their content says so (`cut.rs`), so that what did not change between two checkpoints is the same
//! pieces, wherever it lies in the file; a piece is written once. The next checkpoint of a task that changes little costs
//! what changed.
//!
//! **Order of writing.** Pieces go to `part/`, are synced, get their names, are synced; then the manifest, by a temporary
//! file, fsync and rename. So a file in `chunks/` is whole, and a manifest's pieces are there, whenever the machine
//! stops.
//!
//! **Trust.** A manifest ends with its own digest; every piece is compared with its name as it is read. [`Store::newest`]
//! unpacks the newest checkpoint that is whole, and says which it passed over and why. Nothing is restored from pieces
//! that were not compared. A piece that is found to be damaged is removed, so that the next checkpoint that has it writes it
//! again.
//!
//! **Expiry.** [`Keep`] says what stays; pieces that no manifest names go then. One process at a time writes or
//! expires, by a lock on the folder; reading needs none, as what is read is compared.

mod cut;
mod exchange;
mod manifest;

use libgrid::wire::MAX_FRAME;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};

use self::cut::Cutter;
use self::manifest::{Manifest, Piece};

/// zstd's level: the fastest of its ordinary ones, some 400 MB/s a core.
const LEVEL: i32 = 1;

/// A folder of checkpoints.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of the checkpoint's files.
    pub bytes: u64,
    /// Bytes of the pieces that were not there yet, before compression.
    pub new: u64,
    /// And after it: what the disk was asked for.
    pub written: u64,
}

/// What stays of a task's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many, however old; never less than one.
    pub newest: usize,
    /// And those that are younger than this.
    pub younger: Duration,
}

impl Default for Keep {
    /// One to go on from, and one in case that it is damaged.
    fn default() -> Self {
        Self { newest: 2, younger: Duration::ZERO }
    }
}

/// The store cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A manifest or a piece is not what was written.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A piece that was here when it was asked what is missing is not here any more, and did not come either.
    #[error("{} did not come", path.display())]
    Missing {
        /// Where it should have come to.
        path: PathBuf,
    },
    /// A name that cannot be one.
    #[error("{name:?} is no name of a task")]
    Name {
        /// As given.
        name: String,
    },
    /// There is none that is whole.
    #[error("there is no checkpoint of {task} to go on from{}", each_of(passed))]
    None {
        /// Of which task.
        task: String,
        /// Those that are damaged.
        passed: Vec<(u64, String)>,
    },
}

fn each_of(damaged: &[(u64, String)]) -> String {
    damaged.iter().map(|(number, why)| format!("; {number}: {why}")).collect()
}

/// For `map_err`.
fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::File { what, path: path.to_owned(), source }
}

// === impl Store ===

impl Store {
    /// Opens the store in this folder, and makes it if there is none. Only its owner can read it: what a program has in its
    /// memory concerns nobody else.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for folder in [root.to_owned(), root.join("chunks"), root.join("tasks"), root.join("part")] {
            make_folder(&folder)?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Stores the checkpoint in this folder as this number of a task; one that was there is replaced.
    ///
    /// # Errors
    /// [`StoreError`]; what was there stays then.
    pub fn put(&self, task: &str, number: u64, from: &Path) -> Result<Stored, StoreError> {
        let tasks = self.task(task)?;
        let _lock = self.lock()?;
        let part = self.root.join("part");
        // What an earlier run did not finish.
        empty(&part)?;
        let mut writer = Writer { store: self, fresh: HashSet::new(), stored: Stored::default() };
        let mut manifest = Manifest::default();
        writer.add_folder(from, Path::new(""), &mut manifest)?;
        sync(&part)?;
        for id in &writer.fresh {
            let path = self.chunk(id);
            path.parent().map_or(Ok(()), make_folder)?;
            fs::rename(part.join(id.to_hex().as_str()), &path).map_err(at("cannot name", &path))?;
        }
        sync(&part)?;
        make_folder(&tasks)?;
        manifest.write(&tasks.join(number.to_string()))?;
        Ok(writer.stored)
    }

    /// The numbers of a task's checkpoints, the newest last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn numbers(&self, task: &str) -> Result<Vec<u64>, StoreError> {
        let mut numbers: Vec<u64> =
            names(&self.task(task)?)?.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Unpacks one checkpoint into a folder that is made. Every byte is compared.
    ///
    /// # Errors
    /// [`StoreError`]; the folder is gone then.
    pub fn get(&self, task: &str, number: u64, into: &Path) -> Result<(), StoreError> {
        let manifest = Manifest::read(&self.task(task)?.join(number.to_string()))?;
        DirBuilder::new().mode(0o700).create(into).map_err(at("cannot make", into))?;
        self.unpack(&manifest, into).inspect_err(|_| {
            // Why it failed is the thing to tell.
            let _ = fs::remove_dir_all(into);
        })
    }

    /// The names of the tasks that have checkpoints.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tasks(&self) -> Result<Vec<String>, StoreError> {
        names(&self.root.join("tasks"))
    }

    /// Bytes that all checkpoints take together.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn size(&self) -> Result<u64, StoreError> {
        let chunks = self.root.join("chunks");
        let mut size = 0;
        for half in names(&chunks)? {
            let folder = chunks.join(half);
            for rest in names(&folder)? {
                size += fs::metadata(folder.join(rest)).map_or(0, |meta| meta.len());
            }
        }
        Ok(size)
    }

    /// What is in one small file of a checkpoint, compared: [`libgrid::wire::MAX_FRAME`] at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self, task: &str, number: u64, name: &Path) -> Result<Vec<u8>, StoreError> {
        let path = self.task(task)?.join(number.to_string());
        let manifest = Manifest::read(&path)?;
        let entry = manifest.files.iter().find(|entry| entry.name == name);
        let damaged = |why| StoreError::Damaged { path: path.clone(), why };
        let pieces = &entry.ok_or_else(|| damaged("a file is missing in it"))?.pieces;
        if pieces.iter().map(|piece| piece.len as usize).sum::<usize>() > MAX_FRAME {
            return Err(damaged("a file in it is larger than it can be"));
        }
        Ok(pieces.iter().map(|piece| self.piece(piece)).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Compares all of a checkpoint, as [`Store::get`] would.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn verify(&self, task: &str, number: u64) -> Result<(), StoreError> {
        let manifest = Manifest::read(&self.task(task)?.join(number.to_string()))?;
        manifest.pieces().try_for_each(|piece| self.piece(piece).map(drop))
    }

    /// Unpacks the newest checkpoint of a task that is whole, of those up to the number `most`; returns its number, and
    /// those that were passed over with what is wrong with them.
    ///
    /// # Errors
    /// [`StoreError::None`] where none is; [`StoreError::File`] where the folder cannot be written.
    pub fn newest(
        &self,
        task: &str,
        most: u64,
        into: &Path,
    ) -> Result<(u64, Vec<(u64, String)>), StoreError> {
        let mut passed = Vec::new();
        for number in self.numbers(task)?.into_iter().rev().filter(|number| *number <= most) {
            match self.get(task, number, into) {
                Ok(()) => return Ok((number, passed)),
                Err(error) => passed.push((number, error.to_string())),
            }
        }
        Err(StoreError::None { task: task.to_owned(), passed })
    }

    /// Removes what is not to be kept of a task's checkpoints; returns how many went.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn expire(&self, task: &str, keep: Keep, now: SystemTime) -> Result<usize, StoreError> {
        let folder = self.task(task)?;
        let numbers = self.numbers(task)?;
        let mut gone = 0;
        for number in numbers.iter().rev().skip(keep.newest.max(1)) {
            let path = folder.join(number.to_string());
            let made =
                fs::metadata(&path).and_then(|meta| meta.modified()).map_err(at("cannot look at", &path))?;
            if now.duration_since(made).is_ok_and(|age| age >= keep.younger) {
                fs::remove_file(&path).map_err(at("cannot remove", &path))?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Removes one checkpoint of a task, if it is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, task: &str, number: u64) -> Result<(), StoreError> {
        let path = self.task(task)?.join(number.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("cannot remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes all checkpoints of a task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&self, task: &str) -> Result<(), StoreError> {
        let folder = self.task(task)?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("cannot remove", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// Removes the pieces that no manifest names; returns how many bytes became free. A manifest that is damaged names
    /// none, as nothing can be restored from it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sweep(&self) -> Result<u64, StoreError> {
        let _lock = self.lock()?;
        let mut named = HashSet::new();
        let tasks = self.root.join("tasks");
        for task in names(&tasks)? {
            let folder = tasks.join(task);
            for number in names(&folder)? {
                match Manifest::read(&folder.join(number)) {
                    Ok(manifest) => named.extend(manifest.pieces().map(|piece| piece.id)),
                    Err(StoreError::Damaged { .. }) => (),
                    Err(error) => return Err(error),
                }
            }
        }
        let mut freed = 0;
        let chunks = self.root.join("chunks");
        for half in names(&chunks)? {
            let folder = chunks.join(&half);
            for rest in names(&folder)? {
                let id = blake3::Hash::from_hex(format!("{half}{rest}"));
                if id.is_ok_and(|id| named.contains(id.as_bytes())) {
                    continue;
                }
                let path = folder.join(rest);
                freed += fs::metadata(&path).map_or(0, |meta| meta.len());
                fs::remove_file(&path).map_err(at("cannot remove", &path))?;
            }
        }
        Ok(freed)
    }

    fn task(&self, name: &str) -> Result<PathBuf, StoreError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(StoreError::Name { name: name.to_owned() });
        }
        Ok(self.root.join("tasks").join(name))
    }

    fn chunk(&self, id: &blake3::Hash) -> PathBuf {
        let name = id.to_hex();
        let (half, rest) = name.split_at(2);
        self.root.join("chunks").join(half).join(rest)
    }

    fn lock(&self) -> Result<Flock<File>, StoreError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(at("cannot open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| at("cannot lock", &path)(error.into()))
    }

    fn unpack(&self, manifest: &Manifest, into: &Path) -> Result<(), StoreError> {
        for folder in &manifest.folders {
            let path = into.join(folder);
            DirBuilder::new().mode(0o700).create(&path).map_err(at("cannot make", &path))?;
        }
        for entry in &manifest.files {
            let path = into.join(&entry.name);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let mut file = file.map_err(at("cannot make", &path))?;
            for piece in &entry.pieces {
                let bytes = self.piece(piece)?;
                file.write_all(&bytes).map_err(at("cannot write", &path))?;
            }
        }
        Ok(())
    }

    /// What a piece was, compared with its name.
    fn piece(&self, piece: &Piece) -> Result<Vec<u8>, StoreError> {
        Self::piece_at(piece, self.chunk(&blake3::Hash::from_bytes(piece.id)))
    }

    fn piece_at(piece: &Piece, path: PathBuf) -> Result<Vec<u8>, StoreError> {
        let damaged = |why| StoreError::Damaged { path: path.clone(), why };
        // It must not stay: the next checkpoint that has the same piece would rely on it.
        let spoilt = |why| {
            let _ = fs::remove_file(&path);
            damaged(why)
        };
        let packed = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is not there")),
            Err(error) => return Err(at("cannot open", &path)(error)),
        };
        let mut bytes = Vec::with_capacity(piece.len as usize);
        // Not more than was announced, whatever the compressed bytes would become.
        let limit = u64::from(piece.len) + 1;
        let unpacked =
            zstd::Decoder::new(packed).and_then(|decoder| decoder.take(limit).read_to_end(&mut bytes));
        unpacked.map_err(|_| spoilt("it cannot be decompressed"))?;
        if bytes.len() != piece.len as usize || blake3::hash(&bytes) != blake3::Hash::from_bytes(piece.id) {
            return Err(spoilt("its content is not what its name says"));
        }
        Ok(bytes)
    }
}

/// One `put`.
struct Writer<'s> {
    store: &'s Store,
    /// Pieces that were written to `part`.
    fresh: HashSet<blake3::Hash>,
    stored: Stored,
}

impl Writer<'_> {
    fn add_folder(&mut self, base: &Path, at_: &Path, manifest: &mut Manifest) -> Result<(), StoreError> {
        let folder = base.join(at_);
        let mut entries = names(&folder)?;
        // The same folder gives the same manifest.
        entries.sort();
        for name in entries {
            let relative = at_.join(name);
            let path = base.join(&relative);
            let meta = fs::symlink_metadata(&path).map_err(at("cannot look at", &path))?;
            if meta.is_dir() {
                manifest.folders.push(relative.clone());
                self.add_folder(base, &relative, manifest)?;
            } else if meta.is_file() {
                let pieces = self.add_file(&path)?;
                manifest.files.push(manifest::Entry { name: relative, pieces });
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<Vec<Piece>, StoreError> {
        let file = File::open(path).map_err(at("cannot open", path))?;
        let mut cutter = Cutter::new(file);
        let mut pieces = Vec::new();
        while let Some(bytes) = cutter.next().map_err(at("cannot read", path))? {
            let id = blake3::hash(bytes);
            let len = bytes.len() as u32;
            self.stored.bytes += u64::from(len);
            if !self.fresh.contains(&id) && !self.store.chunk(&id).exists() {
                self.stored.new += u64::from(len);
                self.stored.written += write_piece(&self.store.root.join("part"), &id, bytes)?;
                self.fresh.insert(id);
            }
            pieces.push(Piece { id: *id.as_bytes(), len });
        }
        Ok(pieces)
    }
}

fn write_piece(part: &Path, id: &blake3::Hash, bytes: &[u8]) -> Result<u64, StoreError> {
    let path = part.join(id.to_hex().as_str());
    let write = || {
        let packed = zstd::bulk::compress(bytes, LEVEL)?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(&packed)?;
        Ok(packed.len() as u64)
    };
    write().map_err(at("cannot write", &path))
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(at("cannot change", path))
        }
        made => made.map_err(at("cannot make", path)),
    }
}

/// The names in a folder; none if it is not there.
fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("cannot read", folder)(error)),
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map_err(at("cannot read", folder))?.file_name();
        name.into_string()
            .map_err(|_| StoreError::Damaged { path: folder.to_owned(), why: "a name is no text" })
    };
    entries.map(name).collect()
}

fn empty(folder: &Path) -> Result<(), StoreError> {
    for name in names(folder)? {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(at("cannot remove", &path))?;
    }
    Ok(())
}

/// Writes all of the store's file system to the disk: cheaper than a thousand files one by one.
fn sync(folder: &Path) -> Result<(), StoreError> {
    let opened = File::open(folder).map_err(at("cannot open", folder))?;
    nix::unistd::syncfs(&opened).map_err(|error| at("cannot sync", folder)(error.into()))
}
