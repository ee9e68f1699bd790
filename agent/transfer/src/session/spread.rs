//! What is spread over a folder that has other things: the results of a task, for the folder of its user.
//!
//! ```text
//!   FOLDER/.NAME.ID.gridos/out/a.png ──▶ FOLDER/out/a.png     a file is renamed, in place of what has its name
//!   FOLDER/.NAME.ID.gridos/new/      ──▶ FOLDER/new/          a folder that is not there, as a whole
//! ```
//!
//! All of it is here before the first thing takes its place. What is so little that it comes as one pack is here when it
//! is in memory: it needs no hidden folder, and each file is written beside its place. What an interrupted try left is looked for in the hidden
//! folder alone, and not in a user's home with a million files. Nothing is taken that the patterns do not mean, and
//! nothing is placed through a symbolic link.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libgrid::archive::Patterns;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::symlinkat;

use super::ReceiveOrder;
use super::landing::{Landing, Place, dress, hex, hidden, lock, unwritable};
use super::message::{Item, Offer, RelPath, Trouble};
use crate::root::{Folder, Root};

/// How something is spread over the target.
#[derive(Clone, Debug)]
pub struct Spread {
    /// The name of the hidden folder, in part.
    pub name: String,
    /// The id that the source has to have.
    pub id: [u8; 8],
    /// What may come.
    pub wanted: Patterns,
}

impl Landing {
    pub(super) fn spread(order: &ReceiveOrder, spread: &Spread, offer: &Offer) -> Result<Self, Trouble> {
        if offer.id != spread.id {
            return Err(Trouble::confused());
        }
        let shown = order.root.show(&order.target);
        let cannot = |error: io::Error| unwritable(&shown, &error);
        let folder = Arc::new(order.root.folder(&order.target).map_err(cannot)?);
        let id = hex(offer.id);
        let place = match offer.inline {
            true => Place::Merge { top: folder },
            false => Self::fresh(order, folder, spread.name.clone().into(), &id).map_err(cannot)??,
        };
        Ok(Self::new(place, shown, id, order.fsync).wanting(spread.wanted.clone()))
    }

    /// Gives everything in the hidden folder `from` its place in `folder`.
    pub(super) fn place_each(
        &self,
        (folder, name): (&Folder, &OsStr),
        from: &Folder,
        metas: &[Item],
    ) -> Result<(), Trouble> {
        let mut there = HashSet::new();
        place(from, folder, Path::new(""), &self.id, &mut there)?;
        for item in metas.iter().filter(|item| !there.contains(item.path.as_path())) {
            let dressed = below(folder, &item.path)
                .and_then(|folder| dress(&folder.as_fd().try_clone_to_owned()?.into(), item, true));
            dressed.map_err(|error| unwritable(&self.shown(&item.path), &error))?;
        }
        clear(folder, name, &self.id).map_err(|error| unwritable(&self.path, &error))
    }

    /// Drops what came, if it was to be spread: it never will be.
    pub(super) fn discard(&self) {
        if self.is_spread()
            && let Place::Fresh { folder, name, .. } = &self.place
            && let Err(error) = clear(folder, name, &self.id)
        {
            tracing::warn!(path = %self.path.display(), %error, "what came in part cannot be removed");
        }
    }
}

/// Drops what an interrupted transfer left that was to be spread over a folder.
///
/// # Errors
/// The transfer goes on, or what is left cannot be removed.
pub fn discard(root: &Root, target: &Path, name: &str, id: [u8; 8]) -> Result<(), Trouble> {
    let cannot = |error: io::Error| unwritable(&root.show(target), &error);
    let folder = root.folder(target).map_err(cannot)?;
    let (name, id) = (OsStr::new(name), hex(id));
    let held = match folder.file(&hidden(name, &id)[1], OFlag::O_RDWR, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        journal => lock(journal.map_err(cannot)?)?,
    };
    clear(&folder, name, &id).map_err(cannot)?;
    drop(held);
    Ok(())
}

/// Removes a hidden folder and its journal.
fn clear(folder: &Folder, name: &OsStr, id: &str) -> io::Result<()> {
    let [part, journal] = hidden(name, id);
    match folder.remove_tree(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => folder.remove(&journal),
    }
}

/// Moves all that is in `from` to `to`, and notes which folders were there.
fn place(
    from: &Folder,
    to: &Folder,
    at: &Path,
    id: &str,
    there: &mut HashSet<PathBuf>,
) -> Result<(), Trouble> {
    let other_disk =
        |moved: &io::Result<()>| matches!(moved, Err(e) if e.raw_os_error() == Some(Errno::EXDEV as i32));
    for (name, _) in from.list().map_err(|error| unwritable(from.path(), &error))? {
        let shown = to.path().join(&name);
        let cannot = |error: io::Error| unwritable(&shown, &error);
        let is_folder = |folder: &Folder| {
            folder.stat(&name).map(|stat| stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR)
        };
        if !is_folder(from).map_err(cannot)? {
            let moved = from.move_to(&name, to);
            match other_disk(&moved) {
                true => copy(from, to, &name, id).map_err(cannot)?,
                false => moved.map_err(cannot)?,
            }
            continue;
        }
        let path = at.join(&name);
        match is_folder(to) {
            Ok(true) => _ = there.insert(path.clone()),
            Ok(false) => {
                return Err(Trouble::lasting(format!("{} is no folder, and a folder came", shown.display())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let moved = from.move_to(&name, to);
                if !other_disk(&moved) {
                    moved.map_err(cannot)?;
                    continue;
                }
                to.make(&name).map_err(cannot)?;
            }
            Err(error) => return Err(cannot(error)),
        }
        let (from, to) = (from.folder(&name).map_err(cannot)?, to.folder(&name).map_err(cannot)?);
        place(&from, &to, &path, id, there)?;
    }
    Ok(())
}

/// Brings a file or link to a folder on another disk.
fn copy(from: &Folder, to: &Folder, name: &OsStr, id: &str) -> io::Result<()> {
    let [part, _] = hidden(name, id);
    let _ = to.remove(&part);
    match readlinkat(from.as_fd(), name) {
        Ok(target) => symlinkat(target.as_os_str(), to.as_fd(), part.as_os_str())?,
        Err(_) => {
            let source = from.file(name, OFlag::O_RDONLY, 0)?;
            let meta = source.metadata()?;
            let mut target: File = to.file(&part, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o600)?;
            io::copy(&mut &source, &mut target)?;
            target.set_modified(meta.modified()?)?;
            let mode = std::os::unix::fs::MetadataExt::mode(&meta);
            fchmod(&target, Mode::from_bits_truncate(mode & 0o777))?;
        }
    }
    to.rename(&part, name)
}

fn below(top: &Folder, path: &RelPath) -> io::Result<Folder> {
    let mut folder = top.folder(OsStr::new("."))?;
    for part in path.as_path() {
        folder = folder.folder(part)?;
    }
    Ok(folder)
}
