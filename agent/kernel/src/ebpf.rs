//! The eBPF programs of `kmod/bpf/processes.bpf.c`, from the agent's side.
//!
//! Programs and maps are pinned in a file system of their own (`bpf`), which stays mounted when the agent goes: so its
//! restart is one of the agent alone, and no process is missed meanwhile.
//!
//! ```text
//!   folder/marks, gpids, orders, limits, serials, ends     maps
//!   folder/HASH/fork, exit, list, connections             links, of the programs with this hash
//!   folder/HASH/mappings                                  one of them, for who asks about one process
//!   folder/traffic-HASH/...                               those of `traffic.rs`, which share the marks
//! ```
//!
//! Programs of another release take the place of the former ones and go on with their maps; maps that do not fit are
//! made anew, and what runs is marked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{BtfTracePoint, Iter, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader, Pod};
use libgrid::ids::{Gpid, NodeId};
use libgrid::process::Connection;
use nix::mount::MsFlags;

use crate::serials::{BLOCK, Serials};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/processes.bpf.o"));

const MAPS: [&str; 6] = ["marks", "gpids", "orders", "limits", "serials", "ends"];
const PINS: [&str; 5] = ["fork", "exit", "list", "connections", "mappings"];

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS: i64 = 0xcafe_4a11;

/// As in `include/linux/socket.h`.
const AF_INET: u32 = 2;

/// The programs cannot be used here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the kernel tells no types (/sys/kernel/btf/vmlinux): {0}")]
    Types(#[from] BtfError),
    #[error("cannot mount a bpf file system on {}: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("cannot use {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the kernel takes no eBPF programs: {0}")]
    Load(#[from] EbpfError),
    #[error("the kernel refuses an eBPF program: {}", brief(.0))]
    Program(#[from] ProgramError),
    #[error("the kernel refuses an eBPF map: {0}")]
    Map(#[from] MapError),
    #[error("an eBPF program cannot be pinned: {0}")]
    Pin(String),
    #[error("there is no control group of version 2 that tasks are below")]
    NoGroup,
    #[error("no serial numbers can be kept: {0}")]
    Serials(io::Error),
}

/// What a thread is to the grid; as `struct mark`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Mark {
    gpid: u64,
    parent: u64,
    level: u32,
    kind: u32,
}

pub(crate) const KEEPER: u32 = 1;
pub(crate) const PROCESS: u32 = 3;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Limit {
    node: u64,
    end: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Counts {
    next: u64,
    missed: u64,
    unmarked: u64,
    lost: u64,
}

// SAFETY: numbers alone, without padding; any bytes are valid.
unsafe impl Pod for Mark {}
// SAFETY: as above.
unsafe impl Pod for Limit {}
// SAFETY: as above.
unsafe impl Pod for Counts {}

/// A thread, as the kernel's list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) gpid: Option<Gpid>,
    pub(crate) parent: Option<Gpid>,
    pub(crate) kind: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub(crate) born: u64,
    pub(crate) ran: u64,
    pub(crate) waited: u64,
    pub(crate) minor: u64,
    pub(crate) major: u64,
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) inner: u32,
    pub(crate) uid: u32,
    pub(crate) name: String,
}

/// The end of a process, as the ring tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub gpid: Gpid,
    /// That of the process that made it, if that had one.
    pub parent: Option<Gpid>,
    /// When it was made, and when it ended: nanoseconds of `CLOCK_BOOTTIME`.
    pub born: u64,
    /// As `born`.
    pub at: u64,
    /// Nanoseconds on a processor.
    pub ran: u64,
    /// Its pid in its task.
    pub inner: u32,
    /// As wait(2) tells it.
    pub status: u32,
    /// Its name.
    pub name: String,
}

/// How well the programs keep up, from their first start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Processes that got no id at first: no serial was left.
    pub missed: u64,
    /// Processes for which the kernel had no memory.
    pub unmarked: u64,
    /// Ends that found no room in the ring.
    pub lost: u64,
}

pub(crate) struct Programs {
    list: PathBuf,
    connections: PathBuf,
    mappings: PathBuf,
    gpids: HashMap<MapData, u64, u32>,
    orders: HashMap<MapData, u32, Mark>,
    limits: Array<MapData, Limit>,
    counts: Array<MapData, Counts>,
    ends: RingBuf<MapData>,
    serials: Serials,
}

impl Programs {
    /// Takes up the programs that are pinned below `folder`, or loads them.
    pub(crate) fn open(folder: &Path, node: NodeId, serials: Serials) -> Result<Self, LoadError> {
        mount(folder)?;
        let own = folder.join(hash(OBJECT));
        if !PINS.iter().all(|pin| own.join(pin).exists()) {
            let _trimmed = Trimmed;
            // With the former maps, if they still fit.
            if let Err(first) = load(folder, &own, &serials) {
                if !MAPS.iter().any(|map| folder.join(map).exists()) {
                    return Err(first);
                }
                clear(folder).map_err(|source| LoadError::Folder { path: folder.into(), source })?;
                load(folder, &own, &serials)?;
            }
        }
        let pinned = |name: &str| MapData::from_pin(folder.join(name));
        let mut programs = Self {
            list: own.join("list"),
            connections: own.join("connections"),
            mappings: own.join("mappings"),
            gpids: Map::HashMap(pinned("gpids")?).try_into()?,
            orders: Map::HashMap(pinned("orders")?).try_into()?,
            limits: Map::Array(pinned("limits")?).try_into()?,
            counts: Map::Array(pinned("serials")?).try_into()?,
            ends: Map::RingBuf(pinned("ends")?).try_into()?,
            serials,
        };
        let node = u64::from(node.0) << 32;
        let limit = programs.limits.get(&0, 0)?;
        if limit.node != node {
            programs.limits.set(0, Limit { node, ..limit }, 0)?;
        }
        programs.refill().map_err(LoadError::Serials)?;
        // Nothing of an earlier agent's is to be carried out now.
        let orders: Vec<u32> = programs.orders.keys().flatten().collect();
        orders.iter().try_for_each(|pid| programs.orders.remove(pid))?;
        Ok(programs)
    }

    /// Gives out another block where half of the last one is used.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        let (limit, counts) = (self.limits.get(&0, 0), self.counts.get(&0, 0));
        let (limit, counts) = (limit.map_err(io::Error::other)?, counts.map_err(io::Error::other)?);
        if limit.end.saturating_sub(counts.next) < u64::from(BLOCK / 2) {
            let (_, end) = self.serials.take()?;
            let limit = Limit { end: end.into(), ..limit };
            self.limits.set(0, limit, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The threads of all tasks of this node.
    pub(crate) fn threads(&self) -> io::Result<Vec<Thread>> {
        Ok(fs::read(&self.list)?.chunks_exact(Thread::SIZE).map(Thread::read).collect())
    }

    /// The TCP connections that processes have open, by their ids.
    pub(crate) fn connections(&self) -> io::Result<BTreeMap<Gpid, Vec<Connection>>> {
        let mut all: BTreeMap<Gpid, Vec<Connection>> = BTreeMap::new();
        for bytes in fs::read(&self.connections)?.chunks_exact(CONNECTION) {
            if let Some((gpid, connection)) = read_connection(bytes) {
                all.entry(gpid).or_default().push(connection);
            }
        }
        Ok(all)
    }

    /// Where the iterator over the mappings of a process is pinned.
    pub(crate) fn mappings(&self) -> &Path {
        &self.mappings
    }

    /// Marks processes, and lists all.
    pub(crate) fn order(&mut self, marks: &[(u32, Mark)]) -> io::Result<Vec<Thread>> {
        let ordered: BTreeSet<u32> = marks.iter().map(|(pid, _)| *pid).collect();
        for (pid, mark) in marks {
            self.orders.insert(pid, mark, 0).map_err(io::Error::other)?;
        }
        // A thread that is listed before its leader learns only at the second time which new id that got.
        let news = marks.iter().any(|(_, mark)| mark.kind == PROCESS && mark.gpid == 0);
        let listed = match news {
            true => fs::read(&self.list).and_then(|_| self.threads()),
            false => self.threads(),
        };
        for pid in &ordered {
            self.orders.remove(pid).map_err(io::Error::other)?;
        }
        listed
    }

    /// The pid of a process.
    pub(crate) fn find(&self, gpid: Gpid) -> Option<u32> {
        self.gpids.get(&gpid.as_u64(), 0).ok()
    }

    /// How many processes have an id now.
    pub(crate) fn count(&self) -> usize {
        self.gpids.keys().flatten().count()
    }

    /// The processes that ended since the last call.
    pub(crate) fn ended(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while let Some(item) = self.ends.next() {
            ended.extend(Ended::read(&item));
        }
        ended
    }

    pub(crate) fn close(&self) -> io::Result<()> {
        // The maps are open still, but not by the mount.
        unmount(self.list.ancestors().nth(2).unwrap_or(&self.list))
    }

    pub(crate) fn health(&self) -> Health {
        let Counts { missed, unmarked, lost, .. } = self.counts.get(&0, 0).unwrap_or_default();
        Health { missed, unmarked, lost }
    }
}

impl Mark {
    pub(crate) fn keeper() -> Self {
        Self { kind: KEEPER, ..Self::default() }
    }

    /// Of a process of a task; with a new id, if it is to have none of before.
    pub(crate) fn process(gpid: Option<Gpid>, parent: Option<Gpid>) -> Self {
        let number = |gpid: Option<Gpid>| gpid.map_or(0, Gpid::as_u64);
        Self { gpid: number(gpid), parent: number(parent), level: 0, kind: PROCESS }
    }
}

/// Gives memory back to the system when it is dropped: the kernel's types take some twenty megabytes while programs are loaded.
pub(crate) struct Trimmed;

impl Drop for Trimmed {
    fn drop(&mut self) {
        // SAFETY: it may be called at any time.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Mounts a bpf file system, unless one is there.
fn mount(folder: &Path) -> Result<(), LoadError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| LoadError::Folder { path: folder.into(), source })?;
    if is_mounted(folder) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), folder, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| LoadError::Mount { path: folder.into(), source: errno.into() })
}

fn is_mounted(folder: &Path) -> bool {
    nix::sys::statfs::statfs(folder).is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS as _)
}

/// Detaches all programs that are pinned there, and unmounts the file system, if it is there.
pub(crate) fn unmount(folder: &Path) -> io::Result<()> {
    if is_mounted(folder) {
        clear(folder)?;
        nix::mount::umount(folder)?;
    }
    Ok(())
}

fn load(folder: &Path, own: &Path, serials: &Serials) -> Result<(), LoadError> {
    let (btf, mut ebpf) = open_object(OBJECT, folder, &MAPS)?;
    // Before any program runs.
    let mut counts: Array<_, Counts> =
        ebpf.map_mut("serials").ok_or_else(|| missing("serials"))?.try_into()?;
    let so_far = counts.get(&0, 0)?;
    if so_far.next == 0 {
        let (first, end) = serials.take().map_err(LoadError::Serials)?;
        counts.set(0, Counts { next: first.into(), ..so_far }, 0)?;
        let mut limits: Array<_, Limit> =
            ebpf.map_mut("limits").ok_or_else(|| missing("limits"))?.try_into()?;
        limits.set(0, Limit { node: 0, end: end.into() }, 0)?;
    }
    attach(folder, own, |pins| {
        for (name, program, tracepoint) in
            [("fork", "on_fork", "sched_process_fork"), ("exit", "on_exit", "sched_process_exit")]
        {
            let program: &mut BtfTracePoint =
                ebpf.program_mut(program).ok_or_else(|| missing(program))?.try_into()?;
            program.load(tracepoint, &btf)?;
            let link = program.attach()?;
            pins.link(program.take_link(link)?.into(), name)?;
        }
        for (name, kind) in [("list", "task"), ("connections", "task_file")] {
            pins.link(iterator(&mut ebpf, name, kind, &btf)?, name)?;
        }
        pins.iterator(&mut ebpf, "mappings", "task_vma", &btf)
    })
}

/// What the links of an object are named after.
pub(crate) fn hash(object: &[u8]) -> String {
    blake3::hash(object).to_hex()[..16].to_owned()
}

/// The kernel's types, and an object whose maps are pinned in the folder, or taken from there.
pub(crate) fn open_object(
    object: &[u8],
    folder: &Path,
    maps: &[&'static str],
) -> Result<(Btf, Ebpf), LoadError> {
    let btf = Btf::from_sys_fs()?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf)).allow_unsupported_maps();
    for map in maps {
        loader.map_pin_path(map, folder.join(map));
    }
    let ebpf = loader.load(object)?;
    Ok((btf, ebpf))
}

/// Attaches an iterator, which runs when its link is read.
pub(crate) fn iterator(ebpf: &mut Ebpf, name: &str, kind: &str, btf: &Btf) -> Result<FdLink, LoadError> {
    let iterator = loaded(ebpf, name, kind, btf)?;
    let link = iterator.attach()?;
    let link = iterator.take_link(link)?.try_into();
    link.map_err(|error: LinkError| LoadError::Pin(error.to_string()))
}

fn loaded<'e>(ebpf: &'e mut Ebpf, name: &str, kind: &str, btf: &Btf) -> Result<&'e mut Iter, LoadError> {
    let iterator: &mut Iter = ebpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?;
    iterator.load(kind, btf)?;
    Ok(iterator)
}

pub(crate) fn missing(what: &str) -> LoadError {
    LoadError::Pin(format!("{what} is not in the object"))
}

/// A folder of what is to outlive this process.
pub(crate) struct Pins<'p>(&'p Path);

impl Pins<'_> {
    pub(crate) fn link(&self, link: FdLink, name: &str) -> Result<(), LoadError> {
        link.pin(self.0.join(name)).map(drop).map_err(|error| LoadError::Pin(error.to_string()))
    }

    /// An iterator that is attached by who asks it, of one process.
    fn iterator(&self, ebpf: &mut Ebpf, name: &str, kind: &str, btf: &Btf) -> Result<(), LoadError> {
        let pinned = loaded(ebpf, name, kind, btf)?.pin(self.0.join(name));
        pinned.map_err(|error| LoadError::Pin(error.to_string()))
    }
}

/// Fills `own`, all or nothing, in place of what is there of another release.
pub(crate) fn attach(
    folder: &Path,
    own: &Path,
    fill: impl FnOnce(&Pins<'_>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Folder { path, source }
    };
    // Under another name until all are attached: half of them count for nothing. Names with dots are not allowed there.
    let part = folder.join("part");
    remove(&part).and_then(|()| remove(own)).map_err(at(own))?;
    fs::DirBuilder::new().mode(0o700).create(&part).map_err(at(&part))?;
    fill(&Pins(&part)).inspect_err(|_| drop(remove(&part)))?;
    fs::rename(&part, own).map_err(at(own))?;
    // What stands before the hash says of which object they are.
    let kind = |path: &Path| Some(path.file_name()?.to_str()?.rsplit_once('-')?.0.to_owned());
    for entry in fs::read_dir(folder).map_err(at(folder))?.flatten() {
        let path = entry.path();
        let is_other = path != own && kind(&path) == kind(own);
        if is_other && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Detaches all, and forgets what is marked. What has a dot in its name is the file system's own.
fn clear(folder: &Path) -> io::Result<()> {
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_none()).try_for_each(|path| remove(&path))
}

/// What the verifier said last, of all that it says.
fn brief(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    let log = verifier_log.to_string();
    let last = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
    last.map_or_else(|| io_error.to_string(), |line| format!("{io_error}: {line}"))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads the members of a struct, one after the other.
struct Members<'a>(&'a [u8]);

impl Members<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        // What is missing at the end would be zero; the sizes are checked before.
        let (head, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.bytes())
    }

    fn mark(&mut self) -> Mark {
        Mark { gpid: self.u64(), parent: self.u64(), level: self.u32(), kind: self.u32() }
    }

    fn name(&mut self) -> String {
        let bytes: [u8; 16] = self.bytes();
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }
}

pub(crate) fn gpid(number: u64) -> Option<Gpid> {
    (number != 0).then(|| Gpid::from_u64(number))
}

impl Thread {
    /// Of `struct entry`.
    const SIZE: usize = 24 + 7 * 8 + 4 * 4 + 16;

    fn read(bytes: &[u8]) -> Self {
        let mut members = Members(bytes);
        let Mark { gpid: id, parent, kind, .. } = members.mark();
        Self {
            gpid: gpid(id),
            parent: gpid(parent),
            kind,
            born: members.u64(),
            ran: members.u64(),
            waited: members.u64(),
            minor: members.u64(),
            major: members.u64(),
            voluntary: members.u64(),
            involuntary: members.u64(),
            pid: members.u32(),
            tid: members.u32(),
            inner: members.u32(),
            uid: members.u32(),
            name: members.name(),
        }
    }
}

/// Of `struct connection`.
const CONNECTION: usize = 3 * 8 + 6 * 4 + 2 * 16 + 2 * 2 + 4;

fn read_connection(bytes: &[u8]) -> Option<(Gpid, Connection)> {
    let mut members = Members(bytes);
    let gpid = gpid(members.u64())?;
    let (sent, received) = (members.u64(), members.u64());
    let [round_trip, window, retransmitted, segments_sent, segments_received, family] =
        std::array::from_fn(|_| members.u32());
    let (local, remote): ([u8; 16], [u8; 16]) = (members.bytes(), members.bytes());
    let (local_port, remote_port) =
        (u16::from_ne_bytes(members.bytes()), u16::from_be_bytes(members.bytes()));
    let address = |bytes: [u8; 16]| match family {
        AF_INET => IpAddr::from(*bytes.first_chunk::<4>().unwrap_or(&[0; 4])),
        // What an IPv6 socket says to an IPv4 one has that one's address inside.
        _ => Ipv6Addr::from(bytes).to_canonical(),
    };
    let connection = Connection {
        local: SocketAddr::new(address(local), local_port),
        remote: SocketAddr::new(address(remote), remote_port),
        sent,
        received,
        segments_sent,
        segments_received,
        retransmitted,
        round_trip: Duration::from_micros(round_trip.into()),
        window,
    };
    Some((gpid, connection))
}

impl Ended {
    /// Of `struct ended`.
    const SIZE: usize = 24 + 3 * 8 + 2 * 4 + 16;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut members = Members(bytes.get(..Self::SIZE)?);
        let mark = members.mark();
        Some(Self {
            gpid: gpid(mark.gpid)?,
            parent: gpid(mark.parent),
            born: members.u64(),
            at: members.u64(),
            ran: members.u64(),
            inner: members.u32(),
            status: members.u32(),
            name: members.name(),
        })
    }
}
