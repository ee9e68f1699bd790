//! Whole folders: many files over a few control connections.
//!
//! Small files cost round trips, not bytes. So commands of which none depends on another go out together: the rename
//! of the last file, its time, and the two commands of the next one are a single packet. A file that does not go well
//! this way is sent once more in the careful one. Files of the same size and time are not sent again.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::control::line;
use super::data::{self, Data, address_of};
use super::error::{Party, shown};
use super::files::{check_name, join};
use super::local;
use super::moving::Fault;
use super::put::hidden;
use super::{Client, FtpError, Options};
use crate::ftp::facts::{Entry, Type};
use crate::ftp::reply::Kind;
use crate::ftp::time;
use crate::io::{Broken, Plan};

/// Larger files are worth the careful way, which can go on after an interruption.
const SMALL: u64 = 4 << 20;

/// So many commands are sent ahead of their replies.
const AHEAD: usize = 64;

/// Folders deeper than this are a loop, or a joke.
const MAX_DEPTH: usize = 128;

/// How often the caller hears of progress.
const TICK: Duration = Duration::from_millis(100);

/// How to copy a tree.
///
/// ```
/// assert_eq!(libgrid::ftp::client::TreeOptions::default().connections, 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeOptions {
    /// How each file is transferred.
    pub transfer: Options,
    /// How many sessions share the work, 1 to 16.
    pub connections: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { transfer: Options::default(), connections: 2 }
    }
}

/// What became of a tree; while it is copied, what became of it so far.
///
/// ```
/// assert_eq!(libgrid::ftp::client::TreeReport::default().files, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Files copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were there already, with the same size and time.
    pub skipped: u64,
    /// Folders.
    pub folders: u64,
    /// What is neither a file nor a folder, and was left out: links, sockets.
    pub left_out: u64,
    /// All files that there are to copy.
    pub of_files: u64,
    /// All their bytes.
    pub of_bytes: u64,
}

/// One file of a tree.
#[derive(Clone, Debug)]
struct Item {
    local: PathBuf,
    remote: Vec<u8>,
    size: u64,
    modify: Option<SystemTime>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sessions share.
struct Work {
    queue: Mutex<VecDeque<Item>>,
    files: AtomicU64,
    bytes: AtomicU64,
    stopped: AtomicBool,
    error: Mutex<Option<FtpError>>,
}

impl Work {
    fn next(&self) -> Option<Item> {
        if self.stopped.load(Ordering::SeqCst) {
            return None;
        }
        lock(&self.queue).pop_front()
    }

    fn landed(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn fail(&self, error: FtpError) {
        lock(&self.error).get_or_insert(error);
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// Lets several sessions work on the queue.
fn share(
    client: &mut Client,
    items: Vec<Item>,
    options: &TreeOptions,
    report: TreeReport,
    progress: &mut dyn FnMut(&TreeReport),
    job: impl Fn(&mut Client, &Work) -> Result<(), FtpError> + Sync,
) -> Result<TreeReport, FtpError> {
    let sessions = options.connections.clamp(1, 16).min(items.len().max(1));
    let mut report = report;
    report.of_files = items.len() as u64;
    report.of_bytes = items.iter().map(|item| item.size).sum();
    let work = Work {
        queue: Mutex::new(items.into()),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    let mut others = Vec::new();
    for _ in 1..sessions {
        match client.another() {
            Ok(other) => others.push(other),
            // A server that takes only so many from one address: fewer, then.
            Err(_) => break,
        }
    }
    thread::scope(|scope| {
        let (work, job) = (&work, &job);
        let mut running = Vec::new();
        for session in others.iter_mut().chain([client]) {
            running.push(scope.spawn(move || {
                if let Err(error) = job(session, work) {
                    work.fail(error);
                }
            }));
        }
        while !running.iter().all(thread::ScopedJoinHandle::is_finished) {
            report.files = work.files.load(Ordering::Relaxed);
            report.bytes = work.bytes.load(Ordering::Relaxed);
            progress(&report);
            let waiting = running.iter().find(|handle| !handle.is_finished());
            if waiting.is_some() {
                thread::park_timeout(TICK.min(Duration::from_millis(20)));
            }
        }
    });
    report.files = work.files.into_inner();
    report.bytes = work.bytes.into_inner();
    progress(&report);
    match work.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(report),
    }
}

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

/// Connects to where the server listens, after its reply.
fn open(session: &mut Client) -> Result<Data, FtpError> {
    let reply = session.control.last_reply("the address for data")?;
    let reply = session.control.done(b"PASV", reply)?;
    let address = address_of(&session.control, &reply, session.login.believe_pasv)?;
    let socket = data::connect(&session.control, address, &Plan::default())?;
    let data = Data::new(socket, session.data_tls(), &session.login.limits);
    data.map_err(|error| session.control.lost(error))
}

/// The last reply after data, and what it means together with how the data went.
fn finish<T>(session: &mut Client, path: &[u8], moved: Result<T, Broken>) -> Result<T, FtpError> {
    let reply = session.control.last_reply("the reply after the data")?;
    session.control.done(b"the transfer", reply)?;
    let stall = session.login.limits.stall;
    moved
        .map_err(|broken| Fault::of(&broken, &session.server, stall).broken(shown(path), broken.moved, false))
}

/// Copies a folder of the server, with all that is in it, to `target`. Called again after an interruption it fetches
/// what is missing. Links are left out.
///
/// # Errors
/// The first failure ends it: as [`Client::get`] and [`Client::list`]; [`FtpError::Protocol`] if the tree is deeper
/// than 128 folders or has more names than [`super::Limits::entries`].
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
