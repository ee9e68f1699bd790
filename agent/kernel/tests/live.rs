//! Real processes in pid namespaces of their own, followed by real eBPF programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use grid_kernel::{Ended, Folders, Health, Process, Processes};
use libgrid::ids::{Gpid, JobId, NodeId};
use libgrid::process::Traffic;

/// One after the other: each follows all that this process starts.
static TURN: Mutex<()> = Mutex::new(());

/// What a node has, with a bpf file system of its own.
struct Node {
    folders: Folders,
    _turn: MutexGuard<'static, ()>,
    _root: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        let [runtime, state] = ["runtime", "state"].map(|name| root.path().join(name));
        fs::create_dir(&runtime).unwrap();
        fs::create_dir(&state).unwrap();
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Node {
            _turn,
            folders: Folders { runtime, state, proc: "/proc".into(), group: unified() },
            _root: root,
        }
    }

    /// Follows processes; says why it does not.
    fn processes(&self, test: &str) -> Option<Processes> {
        let processes = Processes::open(&self.folders, NodeId(7), Ok(()));
        if let Some(why) = processes.lacks() {
            let _ = writeln!(io::stdout(), "\nSKIPPED: {test}: {why}");
            return None;
        }
        Some(processes)
    }

    /// The same, and counts their packets.
    fn metered(&self, test: &str) -> Option<Processes> {
        let processes = self.processes(test)?;
        if let Some(why) = processes.lacks_traffic() {
            let _ = writeln!(io::stdout(), "\nSKIPPED: {test}: {why}");
            return None;
        }
        Some(processes)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.folders.runtime.join("bpf"));
    }
}

/// The root of the tree of control groups of version 2.
fn unified() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
    roots
        .into_iter()
        .find(|root| root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists())
}

/// A shell as process 1 of a pid namespace; all of it ends with this.
struct Task(Child);

impl Task {
    fn start(script: &str) -> Task {
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--pid", "--kill-child", "--mount-proc", "sh", "-c", script])
            .process_group(0);
        Task(command.spawn().unwrap())
    }

    /// The processes of the namespace but the first, when there are so many.
    fn pids(&self, many: usize) -> Vec<u32> {
        until(|| {
            let init = children(self.0.id()).first().copied()?;
            let mut all = children(init);
            let mut at = 0;
            while at < all.len() {
                all.extend(children(all[at]));
                at += 1;
            }
            (all.len() == many).then_some(all)
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < Duration::from_secs(180), "it did not come to this");
        thread::sleep(Duration::from_millis(5));
    }
}

fn by_pid(processes: &[Process]) -> BTreeMap<u32, &Process> {
    processes.iter().map(|process| (process.pid, process)).collect()
}

#[test]
fn every_process_of_a_fork_storm_has_an_id_of_its_own() {
    const MANY: usize = 10_000;
    let node = Node::new();
    let Some(mut processes) = node.processes("every_process_of_a_fork_storm_has_an_id_of_its_own") else {
        return;
    };
    let script = format!("i=0; while [ $i -lt {} ]; do (: ) & (: ) & wait; i=$((i+1)); done", MANY / 2);
    let mut task = Task::start(&script);
    let mut ended: Vec<Ended> = Vec::new();
    until(|| {
        ended.extend(processes.tick().unwrap());
        thread::sleep(Duration::from_millis(20));
        task.0.try_wait().unwrap()
    });
    ended.extend(processes.tick().unwrap());
    assert_eq!(processes.health(), Health::default());
    assert_eq!(ended.len(), MANY);
    let ids: BTreeSet<Gpid> = ended.iter().map(|ended| ended.gpid).collect();
    assert_eq!(ids.len(), MANY, "an id was used twice");
    assert!(
        ended.iter().all(|ended| ended.gpid.node == NodeId(7) && ended.status == 0 && ended.at >= ended.born)
    );
    assert_eq!(processes.count(), Some(0), "ids of processes that are no more");
}

#[test]
fn ids_are_inherited_and_outlive_the_agent() {
    let node = Node::new();
    let Some(mut processes) = node.processes("ids_are_inherited_and_outlive_the_agent") else { return };
    let go = node.folders.state.join("go");
    let wait = format!("until test -e {}; do sleep 0.05; done", go.display());
    // A process with a child, and one that comes later; each line ends with a command, so that no shell is replaced.
    let task = Task::start(&format!("sh -c 'sleep 1000; :' & {wait}; sh -c 'sleep 1000; :' & wait"));
    let first: Vec<u32> = until(|| {
        let init = children(task.0.id()).first().copied()?;
        let shell = children(init).into_iter().find(|pid| !children(*pid).is_empty())?;
        let child = children(shell)[0];
        let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name == "sleep\n").then_some(vec![shell, child])
    });
    let listed = processes.list(&first).unwrap();
    let known = by_pid(&listed);
    let (shell, sleep) = (known[&first[0]], known[&first[1]]);
    assert_eq!((shell.name.as_str(), sleep.name.as_str()), ("sh", "sleep"));
    assert_eq!((shell.parent, sleep.parent), (None, Some(shell.gpid)));
    assert!(shell.inner > 1 && sleep.inner > shell.inner && sleep.threads == 1 && sleep.memory > 0);
    assert_eq!(processes.find(sleep.gpid), Some(sleep.pid));
    // No agent is there while more are forked; the next one finds all.
    drop(processes);
    fs::write(&go, "").unwrap();
    let later = task.pids(4);
    let mut processes = Processes::open(&node.folders, NodeId(7), Ok(()));
    let again = processes.list(&later).unwrap();
    let again = by_pid(&again);
    assert_eq!(again.len(), 4);
    assert_eq!((again[&first[0]].gpid, again[&first[1]].gpid), (shell.gpid, sleep.gpid));
    let ids: BTreeSet<Gpid> = again.values().map(|process| process.gpid).collect();
    assert_eq!(ids.len(), 4);
    // It got its id from the programs, not because it was asked for: its child names it.
    let named = again.values().filter(|process| process.parent.is_some()).count();
    assert_eq!(named, 2, "{again:?}");
    drop(task);
    until(|| (processes.count() == Some(0)).then_some(()));
}

#[test]
fn a_restored_process_gets_its_id_back_and_hands_it_down() {
    let node = Node::new();
    let Some(mut processes) = node.processes("a_restored_process_gets_its_id_back_and_hands_it_down") else {
        return;
    };
    let go = node.folders.state.join("go");
    let task =
        Task::start(&format!("sh -c 'until test -e {}; do :; done; sleep 1000; :' & wait", go.display()));
    let pid = task.pids(1)[0];
    let found = processes.list(&[pid]).unwrap().pop().unwrap();
    let (before, inner) = (found.gpid, found.inner);
    let (given, parent) = (Gpid { node: NodeId(3), serial: 77 }, Gpid { node: NodeId(3), serial: 5 });
    let of = JobId { home: NodeId(3), serial: 1 }.task(0);
    processes.restored(of, &[pid], |pid| (pid == inner).then_some((given, Some(parent)))).unwrap();
    let now = &processes.list(&[pid]).unwrap()[0];
    assert_eq!((now.gpid, now.parent), (given, Some(parent)));
    assert_eq!((processes.find(given), processes.find(before)), (Some(pid), None));
    fs::write(&go, "").unwrap();
    let both = task.pids(2);
    let child = processes.list(&both).unwrap().into_iter().find(|process| process.pid != pid).unwrap();
    assert_eq!((child.gpid.node, child.parent), (NodeId(7), Some(given)));
    drop(task);
    let mut ended = Vec::new();
    until(|| {
        ended.extend(processes.tick().unwrap());
        (ended.iter().filter(|ended: &&Ended| [given, child.gpid].contains(&ended.gpid)).count() == 2)
            .then_some(())
    });
    assert_eq!(processes.count(), Some(0));
}

#[test]
fn what_was_there_before_is_found_when_it_is_looked_for() {
    let node = Node::new();
    let task = Task::start("sleep 1000 & sleep 1000 & wait");
    let pids = task.pids(2);
    let Some(mut processes) = node.processes("what_was_there_before_is_found_when_it_is_looked_for") else {
        return;
    };
    let first = processes.list(&pids).unwrap();
    assert_eq!(first.len(), 2);
    assert_ne!(first[0].gpid, first[1].gpid);
    let ids = |processes: &[Process]| processes.iter().map(|process| process.gpid).collect::<Vec<_>>();
    assert_eq!(ids(&processes.list(&pids).unwrap()), ids(&first));
    // Its shim is known from now on.
    let init = children(task.0.id())[0];
    assert!(processes.list(&[init]).unwrap().is_empty(), "an init has no id");
}

#[test]
fn where_programs_come_and_go_no_id_is_given_twice() {
    let node = Node::new();
    let Some(processes) = node.processes("where_programs_come_and_go_no_id_is_given_twice") else { return };
    let is_mounted = || {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        mounts.contains(node.folders.runtime.to_str().unwrap())
    };
    let mut seen = BTreeSet::new();
    let mut look = |mut processes: Processes| {
        let task = Task::start("sleep 1000 & sleep 1000 & wait");
        for process in processes.list(&task.pids(2)).unwrap() {
            assert!(seen.insert(process.gpid), "{} was given before", process.gpid);
        }
        seen.len()
    };
    assert_eq!(look(processes), 2);
    assert!(is_mounted());
    assert_eq!(look(Processes::open(&node.folders, NodeId(7), Err("it is off"))), 4);
    assert!(!is_mounted(), "programs go on that nobody looks at");
    assert_eq!(look(Processes::open(&node.folders, NodeId(7), Ok(()))), 6);
    assert!(is_mounted());
}

#[test]
fn all_threads_of_a_process_count_and_its_id_ends_with_the_last() {
    let node = Node::new();
    let Some(mut processes) = node.processes("all_threads_of_a_process_count_and_its_id_ends_with_the_last")
    else {
        return;
    };
    let [ran, end] = ["ran", "end"].map(|name| node.folders.state.join(name));
    // Threads that work and end, and one that outlives the leader's.
    let script = format!(
        "import ctypes, os, threading, time\n\
         def work():\n    end = time.thread_time() + 0.2\n    while time.thread_time() < end: pass\n\
         def wait():\n    while not os.path.exists('{}'): time.sleep(0.01)\n\
         workers = [threading.Thread(target=work) for _ in range(3)]\n\
         [worker.start() for worker in workers]; [worker.join() for worker in workers]\n\
         threading.Thread(target=wait).start()\n\
         open('{}', 'w').close()\n\
         ctypes.CDLL(None).syscall(60, 0)\n",
        end.display(),
        ran.display()
    );
    let file = node.folders.state.join("threads.py");
    fs::write(&file, script).unwrap();
    let task = Task::start(&format!("python3 {} & wait", file.display()));
    let pid = task.pids(1)[0];
    until(|| ran.exists().then_some(()));
    let process = until(|| {
        let process = processes.list(&[pid]).unwrap().pop()?;
        let state = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
        state.contains(") Z").then_some(process)
    });
    let listed = processes.list(&[pid]).unwrap().pop().unwrap();
    assert_eq!((listed.gpid, listed.threads), (process.gpid, 2), "the leader has ended, and one goes on");
    assert!(listed.ran >= Duration::from_millis(600), "{listed:?}");
    assert!(!processes.tick().unwrap().iter().any(|ended| ended.gpid == listed.gpid), "told before it ended");
    fs::write(&end, "").unwrap();
    let ended = until(|| processes.tick().unwrap().into_iter().find(|ended| ended.gpid == listed.gpid));
    assert!(ended.ran >= 600_000_000, "{ended:?}");
}

/// What processes with these names exchanged with an address, in turn.
fn exchanged<'p>(processes: &'p [Process], names: &[&str], remote: &str) -> Vec<&'p Traffic> {
    let of = |name: &&str| {
        let process = processes.iter().find(|process| process.name == *name)?;
        process.traffic.iter().find(|traffic| traffic.remote.to_string() == remote)
    };
    names.iter().filter_map(of).collect()
}

#[test]
fn a_connection_that_is_open_is_told_to_its_last_packet() {
    let node = Node::new();
    let test = "a_connection_that_is_open_is_told_to_its_last_packet";
    let Some(mut processes) = node.metered(test) else { return };
    let folder = node.folders.state.clone();
    // Few, so that they are not passed on by themselves.
    let program = "import ctypes, socket, time\n\
                   ctypes.CDLL(None).prctl(15, b'talks', 0, 0, 0)\n\
                   s = socket.create_server(('127.0.0.1', 0)); near = socket.create_connection(s.getsockname())\n\
                   far, _ = s.accept()\n\
                   for _ in range(20): near.send(b'x' * 100); far.recv(100)\n\
                   open('done', 'w').close(); time.sleep(1000)\n";
    fs::write(folder.join("talks.py"), program).unwrap();
    let task = Task::start(&format!("cd {}; python3 talks.py", folder.display()));
    until(|| folder.join("done").exists().then_some(()));
    let listed = until(|| Some(processes.list(&task.pids(1)).unwrap()).filter(|listed| !listed.is_empty()));
    let [talks] = exchanged(&listed, &["talks"], "127.0.0.1")[..] else { panic!("{listed:#?}") };
    // 20 messages with 40 bytes of headers at least, which both ends of the connection count.
    assert!(talks.sent >= 20 * 140 && talks.sent_packets >= 20, "{talks:?}");
    assert!(talks.received >= 20 * 140 && talks.received_packets >= 20, "{talks:?}");
}

#[test]
fn packets_count_for_whoever_made_the_socket_or_the_one_that_listens() {
    let node = Node::new();
    let test = "packets_count_for_whoever_made_the_socket_or_the_one_that_listens";
    let Some(mut processes) = node.metered(test) else { return };
    let folder = node.folders.state.clone();
    // The one that listens forks the one that serves; all connections are closed when they say so. A name is 15 bytes.
    let named = "import ctypes, os, socket, time\n\
                 def name(n): ctypes.CDLL(None).prctl(15, n.encode(), 0, 0, 0)\n\
                 def done(n):\n    open(n, 'w').close()\n    time.sleep(1000)\n\
                 def until(n):\n    while not os.path.exists(n): time.sleep(0.01)\n";
    let server = "for family, to, port in ((socket.AF_INET, '127.0.0.1', 7171), (socket.AF_INET6, '::1', 7172)):\n    \
                      s = socket.create_server((to, port), family=family)\n    \
                      if family == socket.AF_INET6: open('listens', 'w').close()\n    \
                      if os.fork() == 0:\n        \
                          name(f'serves{port}')\n        \
                          c, _ = s.accept()\n        \
                          left = 3000000\n        \
                          while left: left -= len(c.recv(left))\n        \
                          c.send(b'x' * 1000); c.close(); s.close(); done(f'served{port}')\n\
                  name('listens'); time.sleep(1000)\n";
    let client = "name('client'); until('listens')\n\
                  for to in (('127.0.0.1', 7171), ('::1', 7172)):\n    \
                      c = socket.create_connection(to); c.sendall(bytes(3000000))\n    \
                      while c.recv(1000): pass\n    \
                      c.close()\n\
                  done('client')\n";
    let datagrams = "name('datagrams')\n\
                     r = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); r.bind(('127.0.0.2', 7173))\n\
                     s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.3', 0))\n\
                     for _ in range(100): s.sendto(bytes(500), ('127.0.0.2', 7173)); r.recv(500)\n\
                     s.close(); r.close(); done('datagrams')\n";
    let mut script = format!("cd {}; ", folder.display());
    for (name, program) in [("server", server), ("client", client), ("udp", datagrams)] {
        fs::write(folder.join(format!("{name}.py")), [named, program].concat()).unwrap();
        script.push_str(&format!("python3 {name}.py & "));
    }
    let task = Task::start(&(script + "wait"));
    let done = ["served7171", "served7172", "client", "datagrams"].map(|name| folder.join(name));
    until(|| done.iter().all(|done| done.exists()).then_some(()));
    let listed = processes.list(&task.pids(5)).unwrap();
    for remote in ["127.0.0.1", "::1"] {
        let [served, client] = exchanged(&listed, &["listens", "client"], remote)[..] else {
            panic!("{remote}: {listed:#?}")
        };
        // What one side sent, the other received: with headers, of 3,000,000 bytes and of 1,000. There are packets of a handshake, and of
        // an end, that belong to no socket.
        for (bytes, packets, least) in [
            ([client.sent, served.received], [client.sent_packets, served.received_packets], 3_000_000),
            ([served.sent, client.received], [served.sent_packets, client.received_packets], 1_000),
        ] {
            assert!(
                bytes.iter().all(|bytes| (least..least + least / 10 + 20_000).contains(bytes)),
                "{bytes:?}"
            );
            assert!(bytes[0].abs_diff(bytes[1]) <= 300, "{bytes:?}");
            assert!(packets[0].abs_diff(packets[1]) <= 4 && packets[0] > 2, "{packets:?}");
        }
    }
    // Who only inherits sockets has none.
    assert_eq!(exchanged(&listed, &["serves7171", "serves7172"], "127.0.0.1"), [] as [&Traffic; 0]);
    // 20 bytes of IP and 8 of UDP before 500, each way of the one process.
    let [there] = exchanged(&listed, &["datagrams"], "127.0.0.2")[..] else { panic!("{listed:#?}") };
    let [back] = exchanged(&listed, &["datagrams"], "127.0.0.3")[..] else { panic!("{listed:#?}") };
    assert_eq!((there.sent, there.sent_packets, there.received), (52_800, 100, 0));
    assert_eq!((back.received, back.received_packets, back.sent), (52_800, 100, 0));
}

#[test]
fn sockets_that_were_there_before_are_found() {
    let node = Node::new();
    let (ready, go, done) =
        (node.folders.state.join("ready"), node.folders.state.join("go"), node.folders.state.join("done"));
    let script = format!(
        "import os, socket, time\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); open('{}', 'w').close()\n\
         while not os.path.exists('{}'): time.sleep(0.01)\n\
         for _ in range(10): s.sendto(bytes(72), ('127.0.0.1', 9))\n\
         open('{}', 'w').close(); time.sleep(1000)\n",
        ready.display(),
        go.display(),
        done.display()
    );
    let file = node.folders.state.join("before.py");
    fs::write(&file, script).unwrap();
    let task = Task::start(&format!("python3 {} & wait", file.display()));
    let pids = task.pids(1);
    until(|| ready.exists().then_some(()));
    let test = "sockets_that_were_there_before_are_found";
    let Some(mut processes) = node.metered(test) else { return };
    assert_eq!(processes.list(&pids).unwrap()[0].traffic, []);
    fs::write(&go, "").unwrap();
    until(|| done.exists().then_some(()));
    let seen = &processes.list(&pids).unwrap()[0].traffic;
    assert!(seen.len() == 1 && (seen[0].sent, seen[0].sent_packets) == (1000, 10), "{seen:?}");
}
