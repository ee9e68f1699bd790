//! A tree of a server to this machine.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::control::line;
use super::super::data::Data;
use super::super::error::{Party, shown};
use super::super::files::join;
use super::super::local;
use super::super::moving::Fault;
use super::super::{Client, FtpError, Options};
use super::{AHEAD, Item, MAX_DEPTH, SMALL, TreeOptions, TreeReport, finish, open, share};
use crate::ftp::facts::Type;
use crate::ftp::time;

/// Copies a folder of the server, with all that is in it, to `target`. Called again after an interruption it fetches
/// what is missing. Links are left out.
///
/// # Errors
/// The first failure ends it: as [`Client::get`] and [`Client::list`]; [`FtpError::Protocol`] if the tree is deeper
/// than 128 folders or has more names than [`super::super::Limits::entries`].
///
/// ```no_run
/// use libgrid::ftp::client::{Client, Login, TreeOptions, get_tree};
/// let mut client = Client::connect(&"ftp://node1:2811/".parse()?, &Login::default())?;
/// get_tree(&mut client, b"/data/results", "results".as_ref(), &TreeOptions::default(), &mut |_| ())?;
/// # Ok::<(), libgrid::ftp::client::FtpError>(())
/// ```
pub fn get_tree(
    client: &mut Client,
    path: &[u8],
    target: &Path,
    options: &TreeOptions,
    progress: &mut dyn FnMut(&TreeReport),
) -> Result<TreeReport, FtpError> {
    let mut report = TreeReport::default();
    let mut items = Vec::new();
    let mut left = VecDeque::from([(path.to_vec(), target.to_owned(), 0)]);
    let most = client.login.limits.entries;
    let mut names = 0;
    while let Some((there, here, depth)) = left.pop_front() {
        report.folders += 1;
        let entries = client.list(&there)?;
        make_here(&here, depth == 0)?;
        names += entries.len() as u64;
        if depth > MAX_DEPTH || names > most {
            let why = format!("its folders are deeper than {MAX_DEPTH}, or have more than {most} names");
            return Err(client.control.protocol(why));
        }
        let mut files = Vec::new();
        for entry in entries {
            let (remote, local) = (join(&there, &entry.name), here.join(OsStr::from_bytes(&entry.name)));
            match (&entry.kind, entry.size) {
                (Some(Type::Dir), _) => left.push_back((remote, local, depth + 1)),
                (Some(Type::File), Some(size)) => {
                    files.push(Item { local, remote, size, modify: entry.modify })
                }
                _ => report.left_out += 1,
            }
        }
        if options.transfer.times && files.iter().any(|item| item.modify.is_none()) {
            ask_times(client, &mut files)?;
        }
        for item in files {
            let same = fs::symlink_metadata(&item.local).is_ok_and(|metadata| {
                metadata.is_file()
                    && metadata.len() == item.size
                    && item.modify.is_some()
                    && metadata.modified().ok() == item.modify
            });
            if same && options.transfer.resume { report.skipped += 1 } else { items.push(item) }
        }
    }
    let transfer = &options.transfer;
    share(client, items, options, report, progress, |session, work| {
        while let Some(item) = work.next() {
            let quick =
                item.size <= SMALL && !transfer.verify && !transfer.extended && transfer.buffer.is_none();
            if quick && fetch(session, &item, transfer).is_ok() {
                work.landed(item.size);
                continue;
            }
            let landed = session.get(&item.remote, &item.local, transfer, &mut |_| ())?;
            work.landed(landed.bytes);
        }
        Ok(())
    })
}

/// A folder of this machine. Below the first one a link is not followed: what it points to is not part of the copy.
fn make_here(folder: &Path, first: bool) -> Result<(), FtpError> {
    match if first { fs::create_dir_all(folder) } else { fs::create_dir(folder) } {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => (),
        result => return result.map_err(FtpError::local("make the folder", folder)),
    }
    let metadata = if first { fs::metadata(folder) } else { fs::symlink_metadata(folder) };
    if !metadata.map_err(FtpError::local("read", folder))?.is_dir() {
        let error = std::io::Error::other("there is something else of this name");
        return Err(FtpError::local("make the folder", folder)(error));
    }
    Ok(())
}

/// LIST tells no times that one could use.
fn ask_times(client: &mut Client, files: &mut [Item]) -> Result<(), FtpError> {
    for some in files.chunks_mut(AHEAD) {
        let lines = some.iter().map(|item| line("MDTM", &item.remote)).collect::<Result<Vec<_>, _>>()?;
        let replies = client.control.batch(&lines)?;
        for (item, reply) in some.iter_mut().zip(replies) {
            if reply.code == 213 {
                item.modify = reply.text.first().and_then(|text| time::parse(text.trim_ascii()));
            }
        }
    }
    Ok(())
}

fn fetch(session: &mut Client, item: &Item, transfer: &Options) -> Result<(), FtpError> {
    session.ready()?;
    session.enter_mode(false)?;
    let lines = [line(session.passive_verb(), b"")?, line("RETR", &item.remote)?];
    session.control.send(&lines)?;
    let data = open(session)?;
    let name = item.local.file_name().unwrap_or_default();
    let number = local::hash(item.local.as_os_str().as_bytes());
    let short = &name.as_bytes()[..name.len().min(200)];
    let hidden = [b".", short, format!(".{number:016x}.new").as_bytes()].concat();
    let hidden = item.local.with_file_name(OsStr::from_bytes(&hidden));
    let result = receive(session, data, item, transfer, &hidden);
    if result.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    result
}

fn receive(
    session: &mut Client,
    mut data: Data,
    item: &Item,
    transfer: &Options,
    hidden: &Path,
) -> Result<(), FtpError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(hidden).map_err(FtpError::local("write", hidden))?;
    let came = data.receive(&file, 0, Some(item.size), false, |_| ());
    // Some servers say nothing before this side has closed, too.
    drop(data);
    let came = finish(session, &item.remote, came)?;
    if came != item.size {
        let party = Party::Server(session.server.clone());
        let why = format!("it ended the file early, of {} bytes", item.size);
        return Err(Fault { party, why, passing: true }.broken(shown(&item.remote), came, false));
    }
    let land = || {
        if let Some(modify) = item.modify.filter(|_| transfer.times) {
            file.set_times(FileTimes::new().set_modified(modify))?;
        }
        if transfer.sync {
            file.sync_all()?;
        }
        fs::rename(hidden, &item.local)
    };
    land().map_err(FtpError::local("write", &item.local))
}
