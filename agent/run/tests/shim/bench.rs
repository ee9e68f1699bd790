//! A shim of its own for each test, with this test as its agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use grid_qos::{Cgroups, ROOT};
use grid_run::logs::Reader;
use grid_run::protocol::{Ending, FromShim, How, Kept, Launch, ToShim};
use grid_run::spawn::Shims;
use libgrid::control::Stream;
use libgrid::ids::Run;
use libgrid::node::Resources;
use libgrid::spec::Checkpoints;
use libgrid::wire::{self, Hello};

pub(crate) const UID: u32 = 1_900_000_077;
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) shims: Shims,
    pub(crate) child: Child,
    pub(crate) agent: UnixStream,
    /// What the shim said at the start of this connection.
    pub(crate) kept: Vec<Kept>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let groups = Cgroups::open(Path::new(ROOT), &self.shims.cgroup_parent).unwrap();
        let start = Instant::now();
        // The shim's death takes its tasks along; their groups empty a moment later.
        while start.elapsed() < DEADLINE {
            let left = groups.names().unwrap();
            if left.iter().all(|name| groups.group(name).remove().is_ok()) {
                break;
            }
            std::thread::yield_now();
        }
        groups.group("").remove().unwrap();
    }
}

/// `None`, with the reason printed, where this machine cannot run tasks.
pub(crate) fn bench() -> Option<Bench> {
    if !nix::unistd::geteuid().is_root() {
        // Not by println, which a test that passes keeps to itself.
        let _ = writeln!(io::stdout(), "SKIPPED: tasks get their own user and namespaces, which takes root");
        return None;
    }
    // Not /tmp, which a task sees as its own.
    let folder = tempfile::Builder::new().prefix("gridos-shim-test").tempdir_in("/var/tmp").unwrap();
    fs::create_dir(folder.path().join("at")).unwrap();
    fs::create_dir(folder.path().join("shims")).unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    let shims = Shims {
        program: env!("CARGO_BIN_EXE_gridos-shim").into(),
        folder: folder.path().join("shims"),
        cgroup_root: ROOT.into(),
        cgroup_parent: name.replace('.', ""),
    };
    let (mut command, agent) = shims.command("s").unwrap();
    let child = command.spawn().unwrap();
    let mut bench = Bench { folder, shims, child, agent, kept: Vec::new() };
    bench.greet();
    assert!(bench.kept.is_empty());
    Some(bench)
}

pub(crate) fn run(index: u32) -> Run {
    Run { task: "j1.1".parse::<libgrid::ids::JobId>().unwrap().task(index), epoch: 1 }
}

impl Bench {
    pub(crate) fn greet(&mut self) {
        self.agent.set_read_timeout(Some(DEADLINE)).unwrap();
        Hello::ours().write(&mut self.agent).unwrap();
        Hello::read(&mut self.agent).unwrap().check().unwrap();
        match self.receive() {
            FromShim::Tasks(kept) => self.kept = kept,
            other => panic!("the shim began with {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, message: &ToShim) {
        wire::write(&mut self.agent, message).unwrap();
    }

    pub(crate) fn receive(&mut self) -> FromShim {
        wire::read(&mut self.agent).unwrap()
    }

    pub(crate) fn launch(&self, index: u32, command: &[&str]) -> Launch {
        Launch {
            run: run(index),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::from([("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())]),
            folder: self.folder(index),
            workdir: self.folder.path().join("at"),
            uid: UID,
            limits: Resources { cpu: 1000, memory: 64 << 20 },
            pids: 64,
            group_ready: false,
            time: None,
            log_limit: 1 << 20,
            stdin: None,
            restore: None,
            ahead: false,
            hold: false,
            memory: None,
            files: false,
            checkpoint: Checkpoints::Off,
            address: None,
            enters: false,
            pipes: Vec::new(),
            calls: false,
            before: Default::default(),
        }
    }

    pub(crate) fn folder(&self, index: u32) -> PathBuf {
        self.folder.path().join(format!("t{index}"))
    }

    pub(crate) fn ended(&mut self, index: u32) -> Ending {
        loop {
            match self.receive() {
                FromShim::Ended { run: which, end } if which == run(index) => return end,
                _ => (),
            }
        }
    }

    pub(crate) fn start(&mut self, launch: Launch) {
        let which = launch.run;
        self.send(&ToShim::Launch(Box::new(launch)));
        loop {
            match self.receive() {
                FromShim::Started { run, .. } if run == which => return,
                FromShim::Ended { end, .. } => panic!("ended at once: {end:?}"),
                _ => (),
            }
        }
    }

    pub(crate) fn output(&self, index: u32, stream: Stream) -> String {
        let mut reader = Reader::new(&self.folder(index), stream);
        let mut all = Vec::new();
        loop {
            let (_, bytes) = reader.read(1 << 20).unwrap();
            if bytes.is_empty() {
                return String::from_utf8(all).unwrap();
            }
            all.extend(bytes);
        }
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn run(&mut self, index: u32, command: &[&str]) -> (How, String) {
        let launch = self.launch(index, command);
        self.send(&ToShim::Launch(Box::new(launch)));
        let end = self.ended(index);
        (end.how, self.output(index, Stream::Stdout))
    }
}
