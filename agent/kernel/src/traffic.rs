//! The eBPF programs of `kmod/bpf/traffic.bpf.c`, from the agent's side: what processes send and receive, by address.
//!
//! They are an object of their own, as a kernel may take the others and not these: there has to be a control group of version 2
//! above all tasks, and before Linux 6.16 functions have to be traceable (`fexit`). They lie beside the others, see [`crate::ebpf`], and stay as long.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, FExit};
use aya::{Btf, Ebpf, Pod};
use libgrid::ids::Gpid;
use libgrid::process::Traffic;

use crate::ebpf::{self, LoadError, Trimmed, missing};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traffic.bpf.o"));

const MAPS: [&str; 3] = ["marks", "sockets", "flows"];
const LINKS: [&str; 5] = ["made", "closed", "find", "leaves", "comes"];

/// Of links: the kernel takes no other, and lets programs of others beside ours all the same.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// As `struct flow`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Flow {
    gpid: u64,
    remote: [u8; 16],
}

/// As `struct counts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Counts {
    sent: u64,
    sent_packets: u64,
    received: u64,
    received_packets: u64,
}

// SAFETY: numbers alone, without padding; any bytes are valid.
unsafe impl Pod for Flow {}
// SAFETY: as above.
unsafe impl Pod for Counts {}

/// The programs, attached.
pub(crate) struct Meter {
    find: PathBuf,
    flows: HashMap<MapData, Flow, Counts>,
}

impl Meter {
    /// Takes up those that are pinned below `folder`, where the marks are, or loads them for the tasks below `group`.
    pub(crate) fn open(folder: &Path, group: Option<&Path>) -> Result<Self, LoadError> {
        let own = folder.join(format!("traffic-{}", ebpf::hash(OBJECT)));
        if !LINKS.iter().all(|link| own.join(link).exists()) {
            let _trimmed = Trimmed;
            load(folder, &own, group.ok_or(LoadError::NoGroup)?)?;
        }
        let flows = Map::LruHashMap(MapData::from_pin(folder.join("flows"))?).try_into()?;
        Ok(Self { find: own.join("find"), flows })
    }

    /// Finds whose the sockets are that were made before these programs were there, or by a restore.
    pub(crate) fn find(&self) -> io::Result<()> {
        fs::read(&self.find).map(drop)
    }

    /// What processes sent to others and received from them, by their ids. One that others with more addresses have
    /// crowded out is missing.
    pub(crate) fn all(&self) -> BTreeMap<Gpid, Vec<Traffic>> {
        // Without it, all that is missing are the last packets of each connection.
        let _ = self.find();
        let mut all: BTreeMap<Gpid, Vec<Traffic>> = BTreeMap::new();
        for (flow, counts) in self.flows.iter().flatten() {
            let Some(gpid) = ebpf::gpid(flow.gpid) else { continue };
            let Counts { sent, sent_packets, received, received_packets } = counts;
            let remote = Ipv6Addr::from(flow.remote).to_canonical();
            all.entry(gpid).or_default().push(Traffic {
                remote,
                // Who knows the nodes tells.
                node: None,
                sent,
                sent_packets,
                received,
                received_packets,
            });
        }
        all
    }
}

fn load(folder: &Path, own: &Path, group: &Path) -> Result<(), LoadError> {
    let (btf, mut ebpf) = ebpf::open_object(OBJECT, folder, &MAPS)?;
    let group = File::open(group).map_err(|source| LoadError::Folder { path: group.into(), source })?;
    ebpf::attach(folder, own, |pins| {
        pins.link(of_socket(&mut ebpf, "made", &group).or_else(|_| traced(&mut ebpf, &btf))?, "made")?;
        pins.link(of_socket(&mut ebpf, "closed", &group)?, "closed")?;
        pins.link(ebpf::iterator(&mut ebpf, "find", "task_file", &btf)?, "find")?;
        for (name, way) in [("leaves", CgroupSkbAttachType::Egress), ("comes", CgroupSkbAttachType::Ingress)]
        {
            let program: &mut CgroupSkb = ebpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?;
            program.load()?;
            let link = program.attach(&group, way, MODE)?;
            pins.link(program.take_link(link)?.try_into().map_err(unpinned)?, name)?;
        }
        Ok(())
    })
}

/// What the control group has a program for: a socket is made, or closed.
fn of_socket(ebpf: &mut Ebpf, name: &str, group: &File) -> Result<FdLink, LoadError> {
    let program: &mut CgroupSock = ebpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?;
    program.load()?;
    let link = program.attach(group, MODE)?;
    program.take_link(link)?.try_into().map_err(unpinned)
}

/// That one is made, by tracing the function that does it.
fn traced(ebpf: &mut Ebpf, btf: &Btf) -> Result<FdLink, LoadError> {
    let program: &mut FExit = ebpf.program_mut("traced").ok_or_else(|| missing("traced"))?.try_into()?;
    program.load("sock_init_data", btf)?;
    let link = program.attach()?;
    Ok(program.take_link(link)?.into())
}

fn unpinned(error: LinkError) -> LoadError {
    LoadError::Pin(error.to_string())
}
