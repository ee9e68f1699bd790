//! Lists of folders: made and sent piece by piece, so that a folder of millions of names takes no memory.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use libgrid::ftp::block::Header;
use libgrid::ftp::facts::{Entry, Type, Wanted};
use libgrid::ftp::list;

use crate::ftp::arrival::{abandoned, is_hidden, unhidden};
use crate::ftp::channel::Channel;
use crate::ftp::extended;
use crate::ftp::flight::{Fault, Flight};
use crate::ftp::path::Place;
use crate::ftp::root::{FileError, Root, entry, entry_at, kind};

/// Bytes that are sent at a time.
const PIECE: usize = 32 * 1024;

/// How names are told.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// As `ls -l`.
    List,
    /// Names alone, with this before each.
    Names(Vec<u8>),
    /// Facts.
    Facts(Wanted),
}

/// What is to be listed, opened.
#[derive(Debug)]
pub(crate) struct Listing {
    root: Arc<Root>,
    place: Place,
    folder: Option<OwnedFd>,
    form: Form,
    may_write: bool,
}

impl Listing {
    /// Opens the folder. A file is a list of one, but not for MLSD.
    pub(crate) fn open(
        root: &Arc<Root>,
        place: Place,
        form: Form,
        may_write: bool,
    ) -> Result<Listing, FileError> {
        let folder = match root.folder(&place) {
            Ok(folder) => Some(folder),
            Err(error) if error.errno == nix::errno::Errno::ENOTDIR && !matches!(form, Form::Facts(_)) => {
                root.stat(&place)?;
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Listing { root: root.clone(), place, folder, form, may_write })
    }

    /// Sends it. In MODE E, pieces are blocks.
    pub(crate) fn send(
        self,
        mut channel: Channel,
        mode_e: bool,
        flight: &Flight,
    ) -> Result<Option<Channel>, Fault> {
        let mut offset = 0;
        let mut put = |piece: &mut Vec<u8>, channel: &mut Channel| {
            if mode_e && !piece.is_empty() {
                channel.send_more(&Header::data(piece.len() as u64, offset).to_bytes())?;
            }
            offset += piece.len() as u64;
            channel.write_all(piece).map_err(Fault::Network)?;
            flight.add(piece.len() as u64);
            piece.clear();
            Ok::<(), Fault>(())
        };
        let mut piece = Vec::with_capacity(PIECE);
        self.each(|line| {
            piece.extend(line);
            piece.extend(b"\r\n");
            if piece.len() >= PIECE - 1024 { put(&mut piece, &mut channel) } else { Ok(()) }
        })?;
        put(&mut piece, &mut channel)?;
        if mode_e {
            extended::end(&mut channel, Some(1))?;
            return Ok(Some(channel));
        }
        channel.flush().map_err(Fault::Network)?;
        channel.finish().map_err(Fault::Network)?;
        Ok(None)
    }

    /// Gives each line, without its end.
    pub(crate) fn each(mut self, mut line: impl FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
        let now = SystemTime::now();
        let file = |error: nix::Error| Fault::File(error.into());
        let Some(fd) = self.folder.take() else {
            let stat = self.root.stat(&self.place).map_err(|error| file(error.errno))?;
            let (_, name) = self.place.split().unwrap_or_default();
            return line(&self.shown(entry(&stat, name.to_vec(), self.may_write), now));
        };
        let folder = fd.try_clone().map_err(Fault::File)?;
        if matches!(self.form, Form::Facts(_)) {
            let stat = nix::sys::stat::fstat(&folder).map_err(file)?;
            let mut this = entry(&stat, b".".to_vec(), self.may_write);
            this.kind = Some(Type::Cdir);
            line(&self.shown(this, now))?;
        }
        let mut dir = nix::dir::Dir::from_fd(fd).map_err(file)?;
        for item in dir.iter() {
            let item = item.map_err(file)?;
            let name = item.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if let Some(entry) = self.entry(&folder, name) {
                line(&self.shown(entry, now))?;
            }
        }
        Ok(())
    }

    /// What a client sees of this name; `None` if nothing.
    fn entry(&self, folder: &impl AsFd, name: &[u8]) -> Option<Entry> {
        if let Some(shown) = unhidden(name) {
            let (_, stat) = abandoned(&self.root, &self.place.join(shown))?;
            return Some(entry(&stat, shown.to_vec(), self.may_write));
        }
        if is_hidden(name) {
            return None;
        }
        // It may have gone since its name was read.
        let entry = entry_at(folder, name, self.may_write).ok()?;
        let replaced =
            entry.kind == Some(Type::File) && abandoned(&self.root, &self.place.join(name)).is_some();
        (!replaced).then_some(entry)
    }

    fn shown(&self, entry: Entry, now: SystemTime) -> Vec<u8> {
        match &self.form {
            Form::List => list::format(&entry, now),
            Form::Names(before) => [before.as_slice(), &entry.name].concat(),
            Form::Facts(wanted) => entry.to_line(*wanted),
        }
    }
}

/// The facts of one name, for MLST and SIZE: a part that was interrupted stands for its file.
pub(crate) fn facts(root: &Root, place: &Place, may_write: bool) -> Result<Entry, FileError> {
    match abandoned(root, place) {
        Some((_, stat)) => Ok(entry(&stat, Vec::new(), may_write)),
        None => {
            let stat = root.stat(place)?;
            let _ = kind(&stat);
            Ok(entry(&stat, Vec::new(), may_write))
        }
    }
}
