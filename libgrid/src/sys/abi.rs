//! `kmod/include/uapi/linux/gridos.h`, in Rust: the same numbers and structs, which that header documents.
//!
//! A [`Record`] is a struct as bytes in the machine's own order. One that is longer than the other side knows ends in
//! zeros, and one that is shorter is taken as if zeros followed: so both sides may be of different releases. A field `size`
//! is filled in by [`sized`].

use crate::ids::{Gpid, JobId};

/// Of the interface that this release speaks.
pub const VERSION: u32 = 1;

/// The module's device.
pub const DEVICE: &str = "/dev/gridos";

/// The number of the grid's system call, which processes of jobs have that asked for it: `syscall(SYS_GRIDOS, op, &arguments,
/// size)`. No kernel has it, nor one near it: without the grid it fails with `ENOSYS`.
pub const SYS_GRIDOS: i64 = 0x0067_7264;

/// The most bytes of a call, in and out.
pub const CALL_MAX: usize = 65_536;

/// The most nodes and the most jobs that are told.
pub const NODES_MAX: usize = 4_096;
/// As [`NODES_MAX`].
pub const JOBS_MAX: usize = 65_536;

/// A flag of [`Request`]: an earlier daemon had it, and may have done it.
pub const REQUEST_AGAIN: u32 = 1;
/// A flag of [`Version`]: the grid's agent is there.
pub const VERSION_DAEMON: u32 = 1;
/// A flag of [`Lookup`]: the pid is given.
pub const LOOKUP_PID: u32 = 1;
/// A flag of [`Lookup`]: the global id is given.
pub const LOOKUP_GPID: u32 = 2;
/// A flag of [`Call`]: no agent means EAGAIN.
pub const CALL_NOWAIT: u32 = 1;
/// The task of a [`Target`]: all of them.
pub const TASK_ALL: u32 = u32::MAX;
/// A flag of [`Target`]: do not wait until it has moved.
pub const TARGET_NOWAIT: u32 = 1;
/// A flag of transfers and of [`IoWait`]: EAGAIN rather than wait for the peer.
pub const IO_NOWAIT: u32 = 1;
/// A flag of transfers: done as soon as there are some bytes.
pub const IO_SOME: u32 = 2;
/// A flag of [`IoWait`]: gives the read up.
pub const IO_CANCEL: u32 = 4;
/// The most bytes of a read to memory.
pub const IO_READ_MAX: usize = 1_048_576;
/// The most reads of a socket that are posted, or done but not waited for.
pub const IO_READS_MAX: usize = 16;
/// A flag of [`IoBuffers`]: the size of what is sent is given.
pub const IO_BUFFER_OUT: u32 = 1;
/// A flag of [`IoBuffers`]: the size of what is received is given.
pub const IO_BUFFER_IN: u32 = 2;
/// A flag of [`IoBuffers`]: their maximum is given.
pub const IO_BUFFER_MAX: u32 = 4;
/// A flag of [`IoBuffers`]: sizes follow what is measured.
pub const IO_BUFFER_AUTO: u32 = 8;

/// What can be asked for: one space of numbers for all doors.
///
/// ```
/// use libgrid::sys::abi::Op;
/// assert_eq!((Op::SELF.0, Op::MIGRATE.0), (2, 259));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op(pub u32);

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        impl Op {
            $($(#[$doc])* pub const $name: Op = Op($number);)*

            /// Its name in the header, without what all begin with.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

ops! {
    /// [`Version`].
    VERSION = 1,
    /// [`SelfInfo`].
    SELF = 2,
    /// [`Lookup`].
    LOOKUP = 3,
    /// [`Node`]s.
    NODES = 4,
    /// [`Job`]s.
    JOBS = 5,
    /// One of those from 256 on.
    CALL = 6,
    /// [`IoOpen`]; as all of these, at the module's device alone.
    IO_OPEN = 16,
    /// [`IoOpen`].
    IO_CLOSE = 17,
    /// A file to a managed socket.
    IO_SEND = 18,
    /// A managed socket to a file.
    IO_RECV = 19,
    /// Memory to a managed socket.
    IO_WRITE = 20,
    /// A managed socket to a file or memory, later.
    IO_READ = 21,
    /// [`IoWait`].
    IO_WAIT = 22,
    /// [`IoBuffers`].
    IO_SETOPT = 23,
    /// [`IoBuffers`].
    IO_GETOPT = 24,
    /// [`Attach`].
    ATTACH = 128,
    /// [`Register`].
    REGISTER = 129,
    /// [`Register`].
    SET_GPID = 130,
    /// [`Range`].
    RANGE = 131,
    /// Replaces a table.
    PUBLISH = 132,
    /// [`Register`].
    ENTER = 133,
    /// In requests: their caller has given up.
    CANCEL = 192,
    /// In requests: serials run out.
    LOW = 193,
    /// A line of text in, text out.
    COMMAND = 256,
    /// [`Target`] in, [`Status`] out.
    STATUS = 257,
    /// [`Target`] in.
    SIGNAL = 258,
    /// [`Target`] in, [`Moved`] out.
    MIGRATE = 259,
    /// [`Target`] in, [`Checkpointed`] out.
    CHECKPOINT = 260,
    /// A job file in, [`Submitted`] out.
    SUBMIT = 261,
}

/// What a record is made of.
trait Field: Sized {
    fn put(&self, to: &mut Vec<u8>);
    fn get(from: &mut &[u8]) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Field for $number {
            fn put(&self, to: &mut Vec<u8>) {
                to.extend(self.to_ne_bytes());
            }
            fn get(from: &mut &[u8]) -> Option<Self> {
                Some(<$number>::from_ne_bytes(*<[u8; _]>::get_array(from)?))
            }
        }
    )*};
}

numbers! { u32 i32 u64 i64 }

/// A name as a struct holds it: it ends with a zero, and is cut where it would not fit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name([u8; 64]);

impl Name {
    /// As text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).into_owned()
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        let mut end = text.len().min(63);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; 64];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self(bytes)
    }
}

impl Default for Name {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

impl Field for Name {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.0);
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(Self(*<[u8; 64]>::get_array(from)?))
    }
}

/// Takes an array off the front of bytes.
trait GetArray: Sized {
    fn get_array<'a>(from: &mut &'a [u8]) -> Option<&'a Self>;
}

impl<const N: usize> GetArray for [u8; N] {
    fn get_array<'a>(from: &mut &'a [u8]) -> Option<&'a Self> {
        let (array, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(array)
    }
}

mod sealed {
    /// Nobody else's: what a struct points to is the kernel's to read and write.
    pub trait Sealed {}
}
use sealed::Sealed;

/// A struct of the header.
pub trait Record: Clone + Default + Sealed {
    /// Its bytes in this release.
    const SIZE: usize;

    /// As bytes.
    fn to_bytes(&self) -> Vec<u8>;

    /// From bytes, which may be fewer or more than [`Record::SIZE`].
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! records {
    ($vis:vis struct $($(#[$doc:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        $vis struct $name {
            $($(#[$of_field])* pub $field: $kind,)*
        }

        impl Sealed for $name {}

        impl Record for $name {
            const SIZE: usize = size_of::<Self>();

            fn to_bytes(&self) -> Vec<u8> {
                let mut bytes = Vec::with_capacity(Self::SIZE);
                $(self.$field.put(&mut bytes);)*
                bytes
            }

            fn from_bytes(bytes: &[u8]) -> Self {
                let mut whole = bytes.to_vec();
                whole.resize(Self::SIZE, 0);
                let mut from = whole.as_slice();
                Self { $($field: Field::get(&mut from).unwrap_or_default(),)* }
            }
        }
    )*};
}

records! { pub struct
    /// `struct gridos_version`.
    Version {
        /// Of this struct.
        size: u32,
        /// Of the interface, as the other side speaks it.
        version: u32,
        /// `VERSION_*`.
        flags: u32,
        /// This node's number; 0 if it is in no VO.
        node: u32,
    }
    /// `struct gridos_self`.
    SelfInfo {
        /// Of this struct.
        size: u32,
        /// Where the caller runs.
        node: u32,
        /// Its global id; 0 if it belongs to no job.
        gpid: u64,
        /// Its job.
        job: u64,
        /// Its task.
        task: u32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_lookup`.
    Lookup {
        /// Of this struct.
        size: u32,
        /// `LOOKUP_*`: what is given.
        flags: u32,
        /// The global id.
        gpid: u64,
        /// The pid, in the caller's namespace.
        pid: i32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_node`.
    Node {
        /// Its number.
        number: u32,
        /// 0 up, 1 suspect, 2 down, 3 revoked.
        state: u32,
        /// Bytes that its owner lends.
        memory: u64,
        /// Bytes of them that no task has.
        memory_free: u64,
        /// Thousandths of a processor that its owner lends.
        cpus: u32,
        /// Those of them that no task has.
        cpus_free: u32,
        /// Its name.
        name: Name,
    }
    /// `struct gridos_job`.
    Job {
        /// Its number.
        job: u64,
        /// Its owner on this node.
        uid: u32,
        /// 0 waiting, 1 running, 2 done.
        state: u32,
        /// How many it has.
        tasks: u32,
        /// How many run.
        running: u32,
        /// How many ended, well or not.
        done: u32,
        /// How many of those not well.
        failed: u32,
        /// Its name.
        name: Name,
    }
    /// `struct gridos_io_open`.
    IoOpen {
        /// Of this struct.
        size: u32,
        /// The socket's descriptor; 0 to close.
        fd: i32,
        /// 0.
        flags: u32,
        /// Its number at this open file.
        socket: u32,
    }
    /// `struct gridos_io_wait`.
    IoWait {
        /// Of this struct.
        size: u32,
        /// The number of the socket.
        socket: u32,
        /// That of the read; 0 for any.
        read: u32,
        /// `IO_*`.
        flags: u32,
        /// Milliseconds; 0 for the module's own choice.
        timeout_ms: u32,
        /// Why it ended early, as a number below 0; or 0.
        error: i32,
        /// Bytes that it got.
        done: u64,
    }
    /// `struct gridos_io_buffers`.
    IoBuffers {
        /// Of this struct.
        size: u32,
        /// The number of the socket.
        socket: u32,
        /// `IO_BUFFER_*`.
        flags: u32,
        /// The round trip, smoothed, in microseconds.
        rtt_us: u32,
        /// Bytes that the buffer of what is sent holds.
        out: u64,
        /// Bytes that the buffer of what is received holds.
        input: u64,
        /// The most of either.
        max: u64,
        /// Bytes a second, as TCP measured them.
        rate_out: u64,
        /// Bytes a second that were taken here.
        rate_in: u64,
        /// The higher rate times `min_rtt_us`, in bytes.
        product: u64,
        /// Bytes that were sent.
        sent: u64,
        /// Bytes that were received.
        received: u64,
        /// The shortest round trip, in microseconds; 0 before it was measured.
        min_rtt_us: u32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_attach`.
    Attach {
        /// Of this struct.
        size: u32,
        /// [`VERSION`].
        version: u32,
    }
    /// `struct gridos_register`.
    Register {
        /// Of this struct.
        size: u32,
        /// Of the process.
        pid: i32,
        /// Its global id.
        gpid: u64,
        /// Its job.
        job: u64,
        /// Its task.
        task: u32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_range`.
    Range {
        /// Of this struct.
        size: u32,
        /// The node's number.
        node: u32,
        /// The first serial.
        next: u32,
        /// One more than the last.
        end: u32,
    }
    /// `struct gridos_request`.
    Request {
        /// Of this struct; the bytes begin there.
        size: u32,
        /// From 256 on, [`Op::CANCEL`] or [`Op::LOW`].
        op: u32,
        /// For the answer.
        id: u64,
        /// Of the caller; 0 if it belongs to no job.
        gpid: u64,
        /// Of the caller.
        pid: i32,
        /// Of the caller.
        uid: u32,
        /// Of the caller.
        gid: u32,
        /// `REQUEST_*`.
        flags: u32,
        /// Bytes that follow.
        len: u32,
        /// The most that the answer may have.
        room: u32,
    }
    /// `struct gridos_answer`.
    Answer {
        /// Of this struct; the bytes begin there.
        size: u32,
        /// 0, or -1 to -511.
        error: i32,
        /// Of the request.
        id: u64,
        /// Bytes that follow.
        len: u32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_target`.
    Target {
        /// Of this struct.
        size: u32,
        /// `TARGET_*`.
        flags: u32,
        /// The process; 0 for a task.
        gpid: u64,
        /// The job.
        job: u64,
        /// Its task, or [`TASK_ALL`].
        task: u32,
        /// The signal, or the number of the node.
        value: i32,
    }
    /// `struct gridos_status`.
    Status {
        /// Of this struct.
        size: u32,
        /// 0 waiting, 1 running, 2 done.
        state: u32,
        /// The job.
        job: u64,
        /// The task.
        task: u32,
        /// Where it runs; 0 if it does not.
        node: u32,
        /// As a shell has it; -1 before the end.
        exit_status: i32,
        /// Of the job, how many tasks run.
        running: u32,
        /// How many have ended.
        done: u32,
        /// How many of those not well.
        failed: u32,
    }
    /// `struct gridos_moved`.
    Moved {
        /// Of this struct.
        size: u32,
        /// Where it is now.
        node: u32,
        /// How long it stood still, in nanoseconds.
        stopped_ns: u64,
    }
    /// `struct gridos_checkpointed`.
    Checkpointed {
        /// Of this struct.
        size: u32,
        /// 0.
        reserved: u32,
        /// Of the checkpoint.
        number: u64,
        /// That it took in the store.
        bytes: u64,
    }
    /// `struct gridos_submitted`.
    Submitted {
        /// Of this struct.
        size: u32,
        /// 0.
        reserved: u32,
        /// The job.
        job: u64,
    }
}

// These hold addresses.
records! { pub struct
    /// `struct gridos_list`.
    List {
        /// Of this struct.
        size: u32,
        /// Of a record, as the caller knows it.
        record_size: u32,
        /// Where they go.
        records: u64,
        /// The first number.
        from: u64,
        /// How many there is room for, and how many there were.
        count: u32,
        /// 0.
        reserved: u32,
    }
    /// `struct gridos_call`.
    Call {
        /// Of this struct.
        size: u32,
        /// From 256 on.
        op: u32,
        /// `CALL_*`.
        flags: u32,
        /// Milliseconds; 0 for the module's own choice.
        timeout_ms: u32,
        /// Where the bytes are that go in.
        input: u64,
        /// Where there is room for those that come out.
        output: u64,
        /// How many go in.
        input_len: u32,
        /// How many there is room for, and how many came.
        output_len: u32,
    }
    /// `struct gridos_io`.
    Io {
        /// Of this struct.
        size: u32,
        /// The number of the socket.
        socket: u32,
        /// `IO_*`.
        flags: u32,
        /// Milliseconds; 0 for the module's own choice.
        timeout_ms: u32,
        /// The file's descriptor, or -1.
        file: i32,
        /// The number of a read that was begun.
        read: u32,
        /// Where in the file; -1 for its position.
        offset: i64,
        /// Where the bytes are.
        bytes: u64,
        /// How many.
        length: u64,
        /// How many have been moved.
        done: u64,
    }
    /// `struct gridos_publish`.
    Publish {
        /// Of this struct.
        size: u32,
        /// [`Op::NODES`] or [`Op::JOBS`].
        table: u32,
        /// Where they are.
        records: u64,
        /// Of one.
        record_size: u32,
        /// How many.
        count: u32,
    }
}

/// The bytes of a struct that begins with its size, with that filled in.
pub fn sized<R: Record>(record: &R) -> Vec<u8> {
    let mut bytes = record.to_bytes();
    bytes[..4].copy_from_slice(&(R::SIZE as u32).to_ne_bytes());
    bytes
}

/// How an id is written in tables: `-` for none.
pub(crate) fn gpid_text(gpid: u64) -> String {
    if gpid == 0 { "-".into() } else { Gpid::from_u64(gpid).to_string() }
}

/// As [`gpid_text`].
pub(crate) fn job_text(job: u64) -> String {
    if job == 0 { "-".into() } else { JobId::from_u64(job).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_no_gaps_and_reads_as_it_was_written() {
        let target = Target { size: 0, flags: 1, gpid: 2, job: 3, task: 4, value: -5 };
        assert_eq!(target.to_bytes().len(), Target::SIZE);
        assert_eq!(Target::from_bytes(&target.to_bytes()), target);
        assert_eq!(Target::from_bytes(&sized(&target)), Target { size: 32, ..target });
        let node = Node { number: 1, cpus: 2, name: "n".into(), ..Node::default() };
        assert_eq!(node.to_bytes().len(), Node::SIZE);
        assert_eq!(Node::from_bytes(&node.to_bytes()), node);
    }

    #[test]
    fn a_transfer_is_laid_out_as_in_the_header() {
        // `tests/tests/kmod/sockets.h` holds the header to the same numbers.
        assert_eq!(
            (Io::SIZE, std::mem::offset_of!(Io, offset), std::mem::offset_of!(Io, done)),
            (56, 24, 48)
        );
        let transfer = Io { size: 56, file: -1, offset: -1, length: 7, ..Io::default() };
        assert_eq!(transfer.to_bytes().len(), Io::SIZE);
        assert_eq!(Io::from_bytes(&transfer.to_bytes()), transfer);
    }

    #[test]
    fn a_shorter_record_ends_in_zeros_and_the_rest_of_a_longer_one_is_left() {
        let moved = Moved { size: 16, node: 7, stopped_ns: 9 };
        let bytes = moved.to_bytes();
        assert_eq!(Moved::from_bytes(&bytes[..8]), Moved { stopped_ns: 0, ..moved });
        assert_eq!(Moved::from_bytes(&[&bytes[..], &[1; 8]].concat()), moved);
    }

    #[test]
    fn a_name_is_cut_between_characters() {
        let name = Name::from("ü".repeat(40).as_str());
        assert_eq!(name.text(), "ü".repeat(31));
        assert_eq!(Name::default().text(), "");
    }
}
