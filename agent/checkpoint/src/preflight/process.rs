//! What one process has that CRIU cannot write down.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use super::Blocker;

/// Bytes of a file without a name that a checkpoint takes.
const MOST_GHOST: u64 = 1 << 30;

/// Devices that every machine has, and that keep nothing of the process.
const PLAIN_DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/pts/",
    "/dev/shm/",
];

/// Kernel objects without a file, and what to do about them. Others (epoll, eventfd, timerfd, signalfd, inotify, pidfd)
/// can be written down.
const OBJECTS: [(&str, &str, &str); 6] = [
    (
        "[io_uring]",
        "an io_uring",
        "have the program use its other way of I/O, often an option or environment variable",
    ),
    ("[perf_event]", "a performance counter", "end the profiler that watches it"),
    ("[userfaultfd]", "a userfaultfd", "wait until the program has unregistered it"),
    ("bpf", "a BPF object", "end what uses it"),
    ("kvm", "a virtual machine of KVM", "save and move the virtual machine by its own means"),
    ("[secretmem]", "secret memory, which no other process may read", "run the program without it"),
];

/// Namespaces that a task shares with its init.
const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "net", "ipc", "uts"];

/// What stops the dump of this process, which belongs to the task of `init`. `proc` is where `/proc` is.
///
/// # Errors
/// Where it cannot be read: it has ended.
pub fn examine(proc: &Path, init: u32, pid: u32) -> io::Result<Vec<Blocker>> {
    let folder = proc.join(pid.to_string());
    let name = fs::read_to_string(folder.join("comm"))?;
    let who = format!("process {pid} ({})", name.trim_end());
    let mut blockers = Vec::new();
    let mut add = |what: String, remedy| {
        let blocker = Blocker { what, remedy };
        if !blockers.contains(&blocker) {
            blockers.push(blocker);
        }
    };

    let status = fs::read_to_string(folder.join("status"))?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map_or("0", str::trim);
    if tracer != "0" {
        add(format!("{who} is watched by process {tracer}"), "end the debugger");
    }
    for kind in NAMESPACES {
        let of = |pid: u32| fs::read_link(proc.join(format!("{pid}/ns/{kind}")));
        if of(pid)? != of(init)? {
            add(
                format!("{who} has made a {kind} namespace of its own"),
                "run the program without its sandbox",
            );
        }
    }
    for line in fs::read_to_string(folder.join("maps"))?.lines() {
        if let Some((what, remedy)) = of_mapping(line) {
            add(format!("{who} has mapped {what}"), remedy);
        }
    }
    // The kernel walks its whole table of connections for each look: only for who has a socket.
    let sockets = LazyCell::new(|| connections(&folder));
    // Connections of a network of its own move along with it; whoever looks has that of the node.
    let own_network = fs::read_link(proc.join("self/ns/net"))
        .is_ok_and(|node| fs::read_link(folder.join("ns/net")).is_ok_and(|own| own != node));
    for entry in fs::read_dir(folder.join("fd"))? {
        let path = entry?.path();
        // One that was closed meanwhile.
        let Ok(target) = fs::read_link(&path) else { continue };
        let target = target.to_string_lossy().into_owned();
        if let Some((what, remedy)) = of_descriptor(&target) {
            add(format!("{who} has {what} open"), remedy);
        } else if is_message_queue(&path) {
            add(
                format!("{who} has the POSIX message queue {target} open"),
                "have the program use a pipe or a socket, which can be written down",
            );
        } else if let Some(socket) = socket_of(&target).and_then(|inode| sockets.get(&inode)) {
            match socket {
                Socket::Listens { port, waiting: 1.. } if own_network => add(
                    format!("{who} has a connection on port {port} that it has not accepted yet"),
                    "try again when the program has accepted it",
                ),
                Socket::Connected(peer) if !own_network => add(
                    format!("{who} has a TCP connection with {peer}, on the node's own network"),
                    "submit the job with --net grid, close the connection, or let the program end: it cannot be \
                     restored elsewhere or later",
                ),
                _ => (),
            }
        } else if target.ends_with(" (deleted)") && !target.starts_with("/memfd:") {
            let size = fs::metadata(&path).map_or(0, |meta| if meta.nlink() == 0 { meta.size() } else { 0 });
            if size > MOST_GHOST {
                add(
                    format!("{who} has {} MiB in a file that was removed: {target}", size >> 20),
                    "keep the file under a name",
                );
            }
        }
    }
    Ok(blockers)
}

/// Resident bytes of a process: about what its memory takes in a checkpoint.
///
/// # Errors
/// Where it cannot be read: it has ended.
pub fn resident(proc: &Path, pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(proc.join(format!("{pid}/status")))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok((field("RssAnon:").unwrap_or(0) + field("RssShmem:").unwrap_or(0)) << 10)
}

/// Whether what is open is on a file system of message queues (mq_overview(7)).
fn is_message_queue(descriptor: &Path) -> bool {
    /// MQUEUE_MAGIC of the kernel's `ipc/mqueue.c`.
    const MAGIC: FsType = FsType(0x1980_0202);
    statfs(descriptor).is_ok_and(|found| found.filesystem_type() == MAGIC)
}

fn of_mapping(line: &str) -> Option<(String, &'static str)> {
    // Address, rights, offset, device, inode; the rest is the name, with blanks before it.
    let name = line.splitn(6, ' ').nth(5)?.trim_start();
    if let Some(device) = device(name) {
        return Some((format!("the device {device}"), "run the program without this device"));
    }
    if name.starts_with("/SYSV") {
        let remedy = "have the program use POSIX shared memory (shm_open), which can be written down";
        return Some(("System V shared memory".to_owned(), remedy));
    }
    if name.starts_with("/anon_hugepage") || name.contains("/hugepages/") {
        return Some(("huge pages of a fixed size".to_owned(), "use transparent huge pages instead"));
    }
    object(name)
}

fn of_descriptor(target: &str) -> Option<(String, &'static str)> {
    if let Some(device) = device(target) {
        return Some((format!("the device {device}"), "run the program without this device"));
    }
    object(target)
}

fn device(name: &str) -> Option<&str> {
    let plain =
        PLAIN_DEVICES.iter().any(|plain| name == *plain || (plain.ends_with('/') && name.starts_with(plain)));
    (name.starts_with("/dev/") && !plain && !name.contains(" (deleted)")).then_some(name)
}

fn object(name: &str) -> Option<(String, &'static str)> {
    let kind = name.strip_prefix("anon_inode:")?;
    let (_, what, remedy) = OBJECTS.iter().find(|(key, _, _)| kind.contains(key))?;
    Some(((*what).to_owned(), remedy))
}

fn socket_of(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    /// A connection, with its peer.
    Connected(SocketAddr),
    /// It waits for connections; so many have come that were not accepted.
    Listens { port: u16, waiting: u32 },
}

/// The TCP sockets that this process sees, by inode.
fn connections(folder: &Path) -> HashMap<u64, Socket> {
    let mut all = HashMap::new();
    for table in ["net/tcp", "net/tcp6"] {
        let text = fs::read_to_string(folder.join(table)).unwrap_or_default();
        all.extend(text.lines().skip(1).filter_map(connection));
    }
    all
}

fn connection(line: &str) -> Option<(u64, Socket)> {
    const LISTEN: &str = "0A";
    let fields: Vec<_> = line.split_whitespace().collect();
    let (peer, state, inode) = (fields.get(2)?, *fields.get(3)?, fields.get(9)?.parse().ok()?);
    if state == LISTEN {
        // Of a listener, what waits to be received are connections.
        let port = u16::from_str_radix(fields.get(1)?.split_once(':')?.1, 16).ok()?;
        let waiting = u32::from_str_radix(fields.get(4)?.split_once(':')?.1, 16).ok()?;
        return Some((inode, Socket::Listens { port, waiting }));
    }
    let (address, port) = peer.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each in this machine's order.
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some((inode, Socket::Connected(SocketAddr::new(address, port))))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn mappings_and_descriptors_are_told_apart() {
        let line = |name: &str| format!("7f00-7f01 rw-s 00000000 00:01 42                         {name}");
        for name in
            ["", "/usr/lib/libc.so.6", "[heap]", "/dev/zero (deleted)", "/dev/shm/part", "/memfd:x (deleted)"]
        {
            assert_eq!(of_mapping(&line(name)), None, "{name}");
        }
        assert_eq!(of_mapping(&line("anon_inode:[io_uring]")).unwrap().0, "an io_uring");
        assert_eq!(of_mapping(&line("/dev/nvidia0")).unwrap().0, "the device /dev/nvidia0");
        assert_eq!(of_mapping(&line("/SYSV00000000 (deleted)")).unwrap().0, "System V shared memory");
        for target in
            ["anon_inode:[eventpoll]", "pipe:[1]", "/dev/null", "/dev/pts/3", "socket:[7]", "/a (deleted)"]
        {
            assert_eq!(of_descriptor(target), None, "{target}");
        }
        assert_eq!(of_descriptor("anon_inode:bpf-map").unwrap().0, "a BPF object");
        assert_eq!(of_descriptor("/dev/kvm").unwrap().0, "the device /dev/kvm");
    }

    #[test]
    fn this_process_has_a_connection_and_nothing_else() {
        let me = std::process::id();
        let proc = Path::new("/proc");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = examine(proc, me, me).unwrap();
        assert_eq!(before, [], "a listener is none");
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let found = examine(proc, me, me).unwrap();
        let peer = listener.local_addr().unwrap().to_string();
        assert!(found.len() == 1 && found[0].what.contains(&peer), "{found:?}");
        drop(stream);
        assert!(resident(proc, me).unwrap() > 100 << 10);
        assert!(examine(proc, me, u32::MAX).is_err());
    }

    #[test]
    fn listeners_tell_how_many_wait() {
        let line = |state: &str, waiting: u32| {
            format!(
                "   0: 01104064:1B58 00104064:A1B2 {state} 00000000:{waiting:08X} 00:00000000 00000000  0  0 77 1 0"
            )
        };
        assert_eq!(connection(&line("0A", 2)), Some((77, Socket::Listens { port: 7000, waiting: 2 })));
        assert!(matches!(connection(&line("01", 2)), Some((77, Socket::Connected(_)))));
    }

    #[test]
    fn debuggers_namespaces_and_objects_are_found() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, user: &str| {
            let folder = proc.path().join(pid.to_string());
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::create_dir_all(folder.join("fd")).unwrap();
            fs::write(folder.join("comm"), "worker\n").unwrap();
            fs::write(folder.join("status"), "Name:\tworker\nTracerPid:\t0\nRssAnon:\t  2048 kB\n").unwrap();
            fs::write(folder.join("maps"), "").unwrap();
            for kind in NAMESPACES {
                let target = if kind == "user" { user } else { "same" };
                std::os::unix::fs::symlink(target, folder.join("ns").join(kind)).unwrap();
            }
            folder
        };
        process(1, "user:[1]");
        let folder = process(7, "user:[2]");
        std::os::unix::fs::symlink("anon_inode:[io_uring]", folder.join("fd/5")).unwrap();
        std::os::unix::fs::symlink("anon_inode:[io_uring]", folder.join("fd/6")).unwrap();
        fs::write(folder.join("status"), "TracerPid:\t99\nRssAnon:\t  2048 kB\nRssShmem:\t 1024 kB\n")
            .unwrap();
        let found: Vec<_> = examine(proc.path(), 1, 7).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "process 7 (worker) is watched by process 99: end the debugger");
        assert!(found[1].starts_with("process 7 (worker) has made a user namespace"), "{found:?}");
        assert!(found[2].starts_with("process 7 (worker) has an io_uring open: "), "{found:?}");
        assert_eq!(resident(proc.path(), 7).unwrap(), 3 << 20);
        process(8, "user:[1]");
        assert_eq!(examine(proc.path(), 1, 8).unwrap(), []);
    }
}
