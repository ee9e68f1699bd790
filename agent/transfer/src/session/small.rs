//! Small things where they arrive: each is written whole, and then has its name.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::PoisonError;

use nix::fcntl::OFlag;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::unistd::symlinkat;

use super::landing::{Landing, Place, again_if_there, dress, hidden, spec, unwritable};
use super::message::{Item, RelPath, Trouble, What};
use crate::root::Folder;

impl Landing {
    /// Writes a small thing.
    pub(super) fn small(&self, item: Item, contents: &[u8]) -> Result<(), Trouble> {
        self.admit(&item)?;
        let shown = self.shown(&item.path);
        self.write_small(item, contents).map_err(|error| unwritable(&shown, &error))
    }

    fn write_small(&self, item: Item, contents: &[u8]) -> io::Result<()> {
        if item.what == What::Folder {
            if !matches!(self.place, Place::File { .. } | Place::Device(_)) {
                let there = self.is_spread() && self.is_merged() && self.is_there(&item.path)?;
                self.folder(item.path.as_path())?;
                if there {
                    // What the user had stays as it was.
                    return Ok(());
                }
            }
            self.metas.lock().unwrap_or_else(PoisonError::into_inner).push(item);
            return Ok(());
        }
        let (folder, name, in_place) = match &self.place {
            Place::Device(file) => return (&*file).write_all(contents),
            Place::File { folder, name } => (folder.clone(), name.clone(), false),
            Place::Fresh { .. } => {
                let (folder, name) = self.above(&item.path)?;
                (folder, name, true)
            }
            Place::Merge { .. } => {
                let (folder, name) = self.above(&item.path)?;
                (folder, name, false)
            }
        };
        let target = if in_place { name.clone() } else { hidden(&name, &self.id)[0].clone() };
        let made = self.make_small((&folder, &target), in_place, &item, contents);
        let placed = made.and_then(|()| if in_place { Ok(()) } else { folder.rename(&target, &name) });
        if placed.is_err() && !in_place {
            // What is there in part is of no use to anybody.
            let _ = folder.remove(&target);
        }
        placed
    }

    fn make_small(
        &self,
        (folder, target): (&Folder, &OsStr),
        in_place: bool,
        item: &Item,
        contents: &[u8],
    ) -> io::Result<()> {
        if let What::Link(to) = &item.what {
            let to = OsStr::from_bytes(to);
            again_if_there(folder, target, || Ok(symlinkat(to, folder.as_fd(), target)?))?;
            let time = spec(item.modified);
            utimensat(folder.as_fd(), target, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        } else {
            // The staging folder is closed to others: the file may have its mode from the start.
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mode = if in_place { item.mode & 0o777 } else { 0o600 };
            let mut file = again_if_there(folder, target, || folder.file(target, flags, mode))?;
            file.write_all(contents)?;
            dress(&file, item, !in_place)?;
            if self.fsync {
                file.sync_all()?;
            }
        }
        Ok(())
    }

    fn is_merged(&self) -> bool {
        matches!(self.place, Place::Merge { .. })
    }

    fn is_there(&self, path: &RelPath) -> io::Result<bool> {
        let (folder, name) = self.above(path)?;
        Ok(folder.stat(&name).is_ok())
    }
}
