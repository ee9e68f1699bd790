//! The kernel module `gridos.ko`, from the agent's side: the agent is its daemon as long as it has the device open.
//!
//! The module gives the ids where it is loaded. Serials come to it in blocks, as to eBPF programs, and from the same
//! record; it hands none out twice while it is loaded, so an agent that comes after another of this boot gives it the
//! same block again, and no serial is lost. If the module was loaded anew meanwhile it knows of no block, and gets the
//! next.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libgrid::ids::{Gpid, NodeId, TaskId};
use libgrid::sys::abi::{
    self, Answer, Attach, CALL_MAX, Job, LOOKUP_GPID, LOOKUP_PID, Lookup, Node, Op, Range, Record, Register,
    Request, Version,
};
use libgrid::sys::device::Device;
use libgrid::sys::enter::Enter;

use crate::serials::Serials;

pub(crate) struct Module {
    device: Arc<Device>,
    node: NodeId,
    serials: Serials,
    /// Tells the block that the module has.
    block: PathBuf,
    low: Arc<AtomicBool>,
}

impl Module {
    /// Becomes its daemon; nothing if it is not loaded.
    pub(crate) fn open(serials: Serials, block: PathBuf, node: NodeId) -> io::Result<Option<Self>> {
        let device = match Device::open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        device.operate(Op::ATTACH, Attach { version: abi::VERSION, ..Attach::default() })?;
        let version: Version = device.operate(Op::VERSION, Version::default())?;
        let module = Self { device: Arc::new(device), node, serials, block, low: Arc::default() };
        let again = version.node == node.0 && module.again().is_ok();
        if !again {
            module.refill()?;
        }
        Ok(Some(module))
    }

    /// Gives it the block that it had.
    fn again(&self) -> io::Result<()> {
        let text = fs::read_to_string(&self.block)?;
        let end = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        // It knows itself which serials of it are used.
        self.give(1, end)
    }

    /// Gives it another block.
    fn refill(&self) -> io::Result<()> {
        let (next, end) = self.serials.take()?;
        self.give(next, end)?;
        fs::write(&self.block, format!("{end}\n"))
    }

    fn give(&self, next: u32, end: u32) -> io::Result<()> {
        self.device.operate(Op::RANGE, Range { size: 0, node: self.node.0, next, end }).map(drop)
    }

    /// Gives it another block where it asked for one.
    pub(crate) fn tick(&self) -> io::Result<()> {
        if self.low.swap(false, Ordering::Relaxed)
            && let Err(error) = self.refill()
        {
            self.low.store(true, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    /// The id of a process that is here.
    pub(crate) fn gpid(&self, pid: u32) -> Option<Gpid> {
        let pid = i32::try_from(pid).ok()?;
        let lookup = Lookup { flags: LOOKUP_PID, pid, ..Lookup::default() };
        Some(Gpid::from_u64(self.device.operate(Op::LOOKUP, lookup).ok()?.gpid))
    }

    /// The pid of a process that is here.
    pub(crate) fn find(&self, gpid: Gpid) -> Option<u32> {
        let lookup = Lookup { flags: LOOKUP_GPID, gpid: gpid.as_u64(), ..Lookup::default() };
        u32::try_from(self.device.operate(Op::LOOKUP, lookup).ok()?.pid).ok()
    }

    /// Gives ids to those of these processes that have none: they were there before the module was.
    pub(crate) fn register(&self, tasks: &BTreeMap<u32, TaskId>) -> io::Result<()> {
        for (pid, task) in tasks {
            if self.gpid(*pid).is_none() {
                self.enter(Op::REGISTER, *pid, 0, *task)?;
            }
        }
        Ok(())
    }

    /// Gives a process the id that it had.
    pub(crate) fn set(&self, pid: u32, gpid: Gpid, task: TaskId) -> io::Result<()> {
        self.enter(Op::SET_GPID, pid, gpid.as_u64(), task)
    }

    fn enter(&self, op: Op, pid: u32, gpid: u64, task: TaskId) -> io::Result<()> {
        let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let register =
            Register { pid, gpid, job: task.job.as_u64(), task: task.index, ..Register::default() };
        match self.device.operate(op, register) {
            // It has that id; or it ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ESRCH)) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) fn requests(&self) -> Requests {
        Requests { device: self.device.clone(), low: self.low.clone() }
    }
}

/// What programs ask the grid's daemon through the module, and what it tells them.
#[derive(Clone, Debug)]
pub struct Requests {
    device: Arc<Device>,
    low: Arc<AtomicBool>,
}

/// A request of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For the answer.
    pub id: u64,
    /// What for.
    pub op: Op,
    /// Who, if it is a process of a job.
    pub gpid: Option<Gpid>,
    /// Its pid as the agent sees it; 0 if it does not.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What came with it.
    pub input: Vec<u8>,
    /// The most bytes that it takes.
    pub room: usize,
    /// An earlier daemon had it, and may have done it.
    pub again: bool,
}

impl Requests {
    /// Waits for the next request.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn next(&self) -> io::Result<Asked> {
        let mut bytes = vec![0; Request::SIZE + CALL_MAX];
        loop {
            let read = self.device.file().read(&mut bytes)?;
            let request = Request::from_bytes(&bytes[..read.min(Request::SIZE)]);
            match Op(request.op) {
                Op::LOW => self.low.store(true, Ordering::Relaxed),
                // Nobody waits for what is being done, and whether it is done to its end makes no difference to the module.
                Op::CANCEL => (),
                op => {
                    let input = bytes.get(request.size as usize..read).unwrap_or_default().to_vec();
                    return Ok(Asked {
                        id: request.id,
                        op,
                        gpid: (request.gpid != 0).then(|| Gpid::from_u64(request.gpid)),
                        pid: u32::try_from(request.pid).unwrap_or(0),
                        uid: request.uid,
                        gid: request.gid,
                        input,
                        room: request.room as usize,
                        again: request.flags & abi::REQUEST_AGAIN != 0,
                    });
                }
            }
        }
    }

    /// Answers one: with an error's number, 0 for none, and bytes, which are cut to the room that there is.
    ///
    /// # Errors
    /// Where the module refuses the answer. That nobody waits for it any more is no error.
    pub fn answer(&self, asked: &Asked, errno: i32, output: &[u8]) -> io::Result<()> {
        let output = &output[..output.len().min(asked.room)];
        let len = output.len() as u32;
        let head = Answer { size: 0, error: -errno, id: asked.id, len, reserved: 0 };
        match self.device.file().write_all(&[&abi::sized(&head), output].concat()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Replaces what the module tells of nodes.
    ///
    /// # Errors
    /// As `gridos.h` says of `PUBLISH`.
    pub fn publish_nodes(&self, nodes: &[Node]) -> io::Result<()> {
        self.device.publish(Op::NODES, nodes)
    }

    /// Replaces what it tells of jobs.
    ///
    /// # Errors
    /// As `gridos.h` says of `PUBLISH`.
    pub fn publish_jobs(&self, jobs: &[Job]) -> io::Result<()> {
        self.device.publish(Op::JOBS, jobs)
    }
}
