//! What this node's owner lends of its files: `exports.json` in the agent's folder, replaced by rename.
//!
//! | who asks | where | with whose rights |
//! | --- | --- | --- |
//! | a user of this machine | anywhere | their own |
//! | a user of another node | below an export | those of the export's user |
//!
//! Nothing is lent unless the owner says so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use grid_transfer::mover::Within;
use libgrid::control::{Failure, Kind};
use libgrid::copy::Export;
use libgrid::user::User;

use crate::caller::Caller;
use crate::identity::failure;

/// Exports at most: a list fits a frame.
const MOST: usize = 1000;

/// What this node lends.
pub(crate) struct Exports {
    path: PathBuf,
    all: Mutex<Vec<Export>>,
}

/// Where and as whom somebody may read or write.
pub(crate) struct Admitted {
    pub(crate) user: User,
    pub(crate) within: Within,
    /// Below that.
    pub(crate) path: PathBuf,
}

impl Exports {
    /// Reads what was lent before the agent started.
    pub(crate) fn load(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("exports.json");
        let all = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                let path = path.display();
                Failure::new(
                    Kind::Internal,
                    format!("{path} cannot be understood: {error}; mend or remove it"),
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failure(Kind::Internal, format!("{}: {error}", path.display()))),
        };
        Ok(Self { path, all: Mutex::new(all) })
    }

    pub(crate) fn all(&self) -> Vec<Export> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lends a folder, or changes how. An empty user stands for the folder's owner.
    pub(crate) fn add(&self, mut export: Export) -> Result<(), Failure> {
        let invalid = |why: String| Failure::new(Kind::Invalid, why);
        let shown = export.path.display().to_string();
        export.path = export.path.canonicalize().map_err(|error| invalid(format!("{shown}: {error}")))?;
        let meta = fs::metadata(&export.path).map_err(|error| invalid(format!("{shown}: {error}")))?;
        if !meta.is_dir() {
            return Err(invalid(format!("{shown} is no folder: lend the folder that holds it")));
        }
        if export.user.is_empty() {
            let owner = nix::unistd::User::from_uid(meta.uid().into()).ok().flatten();
            export.user = owner.map(|owner| owner.name).unwrap_or_default();
        }
        let user = nix::unistd::User::from_name(&export.user).ok().flatten();
        match user {
            Some(user) if !user.uid.is_root() => (),
            Some(_) => {
                return Err(invalid(format!(
                    "others never act as root here: say with --as whose rights they are to have in {shown}"
                )));
            }
            None => return Err(invalid(format!("there is no user {:?} on this machine", export.user))),
        }
        if let Some(grid) = &export.grid
            && !plain(grid)
        {
            return Err(invalid(format!("{} is no path of the grid: write it as /physics", grid.display())));
        }
        self.change(|all| {
            all.retain(|other| other.path != export.path);
            if all.len() >= MOST {
                return Err(Failure::new(
                    Kind::Invalid,
                    format!("{MOST} folders are lent already: lend one above"),
                ));
            }
            all.push(export);
            all.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(())
        })
    }

    /// Lends a folder no longer.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Failure> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        self.change(|all| {
            let before = all.len();
            all.retain(|export| export.path != real && export.path != path);
            if all.len() == before {
                let path = path.display();
                return Err(Failure::new(Kind::Missing, format!("{path} is not lent: see gridctl exports")));
            }
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Export>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = all.clone();
        change(&mut next)?;
        let part = self.path.with_extension("part");
        let written = || -> io::Result<()> {
            let text = serde_json::to_vec_pretty(&next)?;
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&part, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        written().map_err(|error| failure(Kind::Internal, format!("{}: {error}", self.path.display())))?;
        *all = next;
        Ok(())
    }

    /// Whether and how a caller may read or write at an absolute path of this node.
    pub(crate) fn admit(
        &self,
        caller: &Caller,
        path: &Path,
        write: bool,
        me: &str,
    ) -> Result<Admitted, Failure> {
        if !plain(path) {
            let why = format!("{} is no path on a node: write it from / on, without ..", path.display());
            return Err(Failure::new(Kind::Invalid, why));
        }
        if caller.is_local() {
            let user = User::of_machine(caller.uid, caller.gid);
            let below = path.strip_prefix("/").unwrap_or(path).to_owned();
            return Ok(Admitted { user, within: Within::Everything, path: below });
        }
        let all = self.all();
        let holds = |export: &&Export| path.starts_with(&export.path);
        let best = all.iter().filter(holds).max_by_key(|export| export.path.components().count());
        let shown = path.display();
        let denied = |why| Err(Failure::new(Kind::Denied, why));
        let Some(export) = best else {
            return denied(format!(
                "{me} lends no folder that holds {shown}: its owner can lend one with gridctl export FOLDER"
            ));
        };
        if write && !export.write {
            let folder = export.path.display();
            return denied(format!(
                "{me} lends {folder} for reading only: its owner can change that with gridctl export --write {folder}"
            ));
        }
        let Some(user) = nix::unistd::User::from_name(&export.user).ok().flatten() else {
            return denied(format!(
                "{me} lends {} as {}, who is no user there any more",
                export.path.display(),
                export.user
            ));
        };
        let below = path.strip_prefix(&export.path).unwrap_or(path).to_owned();
        let within = Within::Folder(export.path.clone());
        Ok(Admitted { user: User::of_machine(user.uid.as_raw(), user.gid.as_raw()), within, path: below })
    }
}

/// Absolute, and without `..`.
fn plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Bytes that are free where a folder is.
pub(crate) fn free(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}
