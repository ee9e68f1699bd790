//! A tree of this machine to a server.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::control::line;
use super::super::error::shown;
use super::super::files::{check_name, join};
use super::super::local;
use super::super::put::hidden;
use super::super::{Client, FtpError, Options};
use super::{AHEAD, Item, SMALL, TreeOptions, TreeReport, Work, finish, open, share};
use crate::ftp::facts::Entry;
use crate::ftp::reply::Kind;
use crate::ftp::time;

/// Copies a folder of this machine, with all that is in it, to `path` on the server. Called again after an
/// interruption it sends what is missing.
///
/// # Errors
/// The first failure ends it: as [`Client::put`] and [`Client::make_folder`].
///
/// ```no_run
/// use libgrid::ftp::client::{Client, Login, TreeOptions, put_tree};
/// let mut client = Client::connect(&"ftp://node1:2811/".parse()?, &Login::default())?;
/// let report = put_tree(&mut client, "results".as_ref(), b"/data/results", &TreeOptions::default(), &mut |_| ())?;
/// println!("{} files", report.files);
/// # Ok::<(), libgrid::ftp::client::FtpError>(())
/// ```
pub fn put_tree(
    client: &mut Client,
    source: &Path,
    path: &[u8],
    options: &TreeOptions,
    progress: &mut dyn FnMut(&TreeReport),
) -> Result<TreeReport, FtpError> {
    let mut report = TreeReport::default();
    let (folders, files) = walk_here(source, path, client.login.limits.entries, &mut report)?;
    client.ready()?;
    let there = make_folders(client, &folders)?;
    let mut items = Vec::new();
    for item in files {
        let same = there.get(&item.remote).is_some_and(|entry| {
            let seconds =
                |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            entry.size == Some(item.size)
                && entry.modify.is_some()
                && entry.modify.map(seconds) == item.modify.map(seconds)
        });
        if same && options.transfer.resume { report.skipped += 1 } else { items.push(item) }
    }
    let transfer = &options.transfer;
    share(client, items, options, report, progress, |session, work| {
        let mut sender = Sender { session, transfer, work, unnamed: None };
        sender.run()
    })
}

type Walked = (Vec<Vec<u8>>, Vec<Item>);

/// All folders, each before what is in it, and all files.
fn walk_here(source: &Path, path: &[u8], most: u64, report: &mut TreeReport) -> Result<Walked, FtpError> {
    let mut folders = vec![path.to_vec()];
    let mut files = Vec::new();
    let mut left = VecDeque::from([(source.to_owned(), path.to_vec())]);
    while let Some((here, there)) = left.pop_front() {
        report.folders += 1;
        let read = || -> std::io::Result<Vec<(PathBuf, fs::Metadata)>> {
            fs::read_dir(&here)?
                .map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))))
                .collect()
        };
        let mut entries = read().map_err(FtpError::local("read", &here))?;
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        for (local, metadata) in entries {
            let name = local.file_name().unwrap_or_default().as_bytes();
            let remote = join(&there, name);
            if metadata.is_dir() {
                check_name(name)?;
                folders.push(remote.clone());
                left.push_back((local, remote));
            } else if metadata.is_file() {
                check_name(name)?;
                files.push(Item { local, remote, size: metadata.len(), modify: metadata.modified().ok() });
            } else {
                report.left_out += 1;
            }
            if (files.len() + folders.len()) as u64 > most {
                let why = format!("it holds more than {most} names");
                return Err(FtpError::local("copy", source)(std::io::Error::other(why)));
            }
        }
    }
    Ok((folders, files))
}

/// Makes folders, many at once; gives what is in those that were there already.
fn make_folders(client: &mut Client, folders: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, Entry>, FtpError> {
    let mut there = HashMap::new();
    for some in folders.chunks(AHEAD) {
        let lines = some.iter().map(|folder| line("MKD", folder)).collect::<Result<Vec<_>, _>>()?;
        let replies = client.control.batch(&lines)?;
        for (folder, reply) in some.iter().zip(replies) {
            if reply.kind() == Kind::Done {
                continue;
            }
            let Ok(entries) = client.list(folder) else {
                // It is not there, either: the refusal counts.
                return Err(client.control.refused(&format!("MKD {}", shown(folder)), reply));
            };
            there.extend(entries.into_iter().map(|entry| (join(folder, &entry.name), entry)));
        }
    }
    Ok(there)
}

/// One session that sends files.
struct Sender<'a> {
    session: &'a mut Client,
    transfer: &'a Options,
    work: &'a Work,
    /// All its bytes are there, under this name; it gets its own with the commands of the next file.
    unnamed: Option<(Item, Vec<u8>)>,
}

impl Sender<'_> {
    fn run(&mut self) -> Result<(), FtpError> {
        while let Some(item) = self.work.next() {
            let quick = item.size <= SMALL
                && !self.transfer.verify
                && !self.transfer.extended
                && self.transfer.buffer.is_none();
            if !quick {
                self.name_last()?;
                self.careful(&item)?;
                continue;
            }
            if self.quick(&item).is_err() {
                let last = self.unnamed.take();
                for item in last.map(|(item, _)| item).into_iter().chain([item]) {
                    self.careful(&item)?;
                }
            }
        }
        self.name_last()
    }

    fn careful(&mut self, item: &Item) -> Result<(), FtpError> {
        let landed = self.session.put(&item.local, &item.remote, self.transfer, &mut |_| ())?;
        self.work.landed(landed.bytes);
        Ok(())
    }

    /// The commands that give the last file its name and time.
    fn naming(&self) -> Result<Vec<Vec<u8>>, FtpError> {
        let Some((item, hidden)) = &self.unnamed else { return Ok(Vec::new()) };
        let mut lines = Vec::new();
        if self.transfer.atomic {
            lines.push(line("RNFR", hidden)?);
            lines.push(line("RNTO", &item.remote)?);
        }
        if let Some(modify) = item.modify.filter(|_| self.transfer.times && self.session.features.has("MFMT"))
        {
            lines.push(line("MFMT", &[time::format(modify).as_bytes(), b" ", &item.remote[..]].concat())?);
        }
        Ok(lines)
    }

    /// The replies to [`Sender::naming`].
    fn named(&mut self, lines: &[Vec<u8>]) -> Result<(), FtpError> {
        for command in lines {
            let reply = self.session.control.last_reply("the answer to a rename")?;
            let good = match &command[..4] {
                b"RNFR" => reply.kind() == Kind::Intermediate,
                b"RNTO" => reply.kind() == Kind::Done,
                _ => true,
            };
            if !good {
                return Err(self.session.control.refused(&shown(command.trim_ascii_end()), reply));
            }
        }
        if let Some((item, _)) = self.unnamed.take() {
            self.work.landed(item.size);
        }
        Ok(())
    }

    fn name_last(&mut self) -> Result<(), FtpError> {
        let lines = self.naming()?;
        let result = self.session.control.send(&lines).and_then(|()| self.named(&lines));
        match (result, self.unnamed.take()) {
            (Err(_), Some((item, _))) => self.careful(&item),
            (result, _) => result,
        }
    }

    fn quick(&mut self, item: &Item) -> Result<(), FtpError> {
        self.session.ready()?;
        self.session.enter_mode(false)?;
        let (file, size, modify) = local::source(&item.local)?;
        let item = Item { size, modify: Some(modify), ..item.clone() };
        let stamp = modify.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let there = match self.transfer.atomic {
            true => hidden(&item.remote, &format!("{size} {stamp} 0 {size}"), false),
            false => item.remote.clone(),
        };
        let naming = self.naming()?;
        let mut lines = naming.clone();
        lines.push(line(self.session.passive_verb(), b"")?);
        lines.push(line("STOR", &there)?);
        self.session.control.send(&lines)?;
        self.named(&naming)?;
        let mut data = open(self.session)?;
        let sent = data.send(&file, 0..size, |_| ());
        drop(data);
        finish(self.session, &item.remote, sent)?;
        self.unnamed = Some((item, there));
        Ok(())
    }
}
