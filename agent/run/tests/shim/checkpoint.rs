//! What can be checkpointed: each program of the matrix is dumped while it runs on, dumped and ended, and restored
//! from both, by the real CRIU on this machine's kernel. The verdict is the program's own.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use grid_checkpoint::installation::SOFT_DIRTY;
use grid_checkpoint::order::{Done, Then};
use grid_checkpoint::{Description, Installation, rounds};
use grid_qos::{Cgroups, ROOT};
use grid_run::protocol::{FromShim, How, Launch, ToShim};
use libgrid::control::{Stdin, Stream};
use nix::unistd::{Uid, chown};

use crate::bench::{Bench, UID, bench, run};
use crate::programs::{self, Program, TERMINAL, THREADS};

/// A bench with CRIU. `None`, with the reason printed, where there is none that works.
pub(crate) fn bench_with_criu() -> Option<Bench> {
    let bench = bench()?;
    let skip = |why: &str| {
        let _ = writeln!(io::stdout(), "SKIPPED: {why}");
        None
    };
    let programs = bench.shims.program.parent().unwrap();
    if !programs.join("gridos-criu").exists() {
        return skip("gridos-criu is not built: cargo build --workspace --bins");
    }
    let Some(criu) = Installation::find(programs) else {
        return skip("CRIU is not installed: setup/install build");
    };
    match criu.capabilities().unwrap().trouble {
        Some(why) => skip(&why),
        None => Some(bench),
    }
}

impl Bench {
    pub(crate) fn program(&self, index: u32, program: &Program) -> Launch {
        let mut launch = self.launch(index, &["sh", "-c", &program.script]);
        launch.limits.memory = program.memory << 20;
        launch.pids = 128;
        launch
    }

    /// Where a task's program and its `/tmp` are, before it starts.
    fn stage(&self, index: u32, name: &str) -> PathBuf {
        let work = self.folder(index).join("work");
        fs::create_dir_all(&work).unwrap();
        fs::set_permissions(self.folder(index), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        chown(&work, Some(Uid::from_raw(UID)), None).unwrap();
        let source = work.join(format!("{name}.c"));
        fs::write(&source, THREADS).unwrap();
        let built =
            Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(work.join(name)).arg(&source).status();
        assert!(built.unwrap().success(), "gcc");
        fs::remove_file(source).unwrap();
        work
    }

    pub(crate) fn go(&self, index: u32) {
        fs::write(self.folder(index).join("tmp/go"), "").unwrap();
    }

    pub(crate) fn ready(&self, index: u32) {
        self.until("it is ready", || self.output(index, Stream::Stdout).contains("ready"));
    }

    /// Writes a checkpoint; its end is waited for where it is to be ended.
    pub(crate) fn checkpoint(
        &mut self,
        index: u32,
        name: &str,
        then: Then,
    ) -> Result<(PathBuf, Done), String> {
        self.checkpoint_since(index, name, then, None)
    }

    /// Writes what is not in this round.
    fn checkpoint_since(
        &mut self,
        index: u32,
        name: &str,
        then: Then,
        parent: Option<PathBuf>,
    ) -> Result<(PathBuf, Done), String> {
        let folder = self.folder.path().join(name);
        let (task, to) = (run(index), folder.clone());
        self.send(&ToShim::Checkpoint { run: task, folder: to, then, ahead: None, parent });
        loop {
            match self.receive() {
                FromShim::Checkpointed { run: which, folder: at, result } => {
                    assert_eq!((which, &at), (run(index), &folder));
                    return result.map(|done| (folder, done));
                }
                FromShim::Ended { end, .. } => panic!("ended early: {end:?}"),
                _ => (),
            }
        }
    }

    /// Writes a round of its memory.
    fn pre_dump(
        &mut self,
        index: u32,
        name: &str,
        parent: Option<PathBuf>,
    ) -> Result<(PathBuf, Done), String> {
        let folder = self.folder.path().join(name);
        self.send(&ToShim::PreDump { run: run(index), folder: folder.clone(), parent });
        loop {
            match self.receive() {
                FromShim::PreDumped { run: which, folder: at, result } => {
                    assert_eq!((which, &at), (run(index), &folder));
                    return result.map(|done| (folder, done));
                }
                FromShim::Ended { end, .. } => panic!("ended early: {end:?}"),
                _ => (),
            }
        }
    }

    /// Restores as task number `index`.
    fn restore(&mut self, mut launch: Launch, index: u32, from: &Path) {
        (launch.run, launch.folder) = (run(index), self.folder(index));
        launch.restore = Some(from.to_owned());
        self.start(launch);
    }

    /// Lets it see the end, and asserts its verdict; returns all that it printed to standard output.
    pub(crate) fn verdict(&mut self, index: u32, name: &str) -> String {
        self.go(index);
        let how = self.ended(index).how;
        let (out, err) = (self.output(index, Stream::Stdout), self.output(index, Stream::Stderr));
        assert_eq!(how, How::Exited(0), "{name}: {}{err}", &out[out.len().saturating_sub(2000)..]);
        assert!(out.ends_with("OK\n") && err.is_empty(), "{name}: {err}");
        out
    }
}

/// What must be the same before and after: mounts, control groups, processes of the task's user.
pub(crate) fn left_behind(bench: &Bench) -> (usize, Vec<String>, usize) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    let parent = bench.child.id();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    // A group that a task left as new is kept for the next.
    let groups = groups
        .names()
        .unwrap()
        .into_iter()
        .filter(|name| !groups.group(name).processes().unwrap_or_default().is_empty());
    (mounts, groups.collect(), children.split_whitespace().count())
}

fn matrix(name: &str) {
    let Some(mut bench) = bench_with_criu() else { return };
    let program = programs::all().into_iter().find(|program| program.name == name).unwrap();
    let before = left_behind(&bench);
    let mut times = Vec::new();

    // Dumped, it runs on as if nothing had been.
    if name == "threads" {
        bench.stage(1, name);
    }
    let launch = bench.program(1, &program);
    bench.start(launch.clone());
    bench.ready(1);
    let (first, done) = bench.checkpoint(1, "c1", Then::RunOn).unwrap();
    times.push(done);
    let out = bench.verdict(1, name);
    // And again from there, with the same pids, files and streams.
    let start = Instant::now();
    bench.restore(launch.clone(), 2, &first);
    let took = start.elapsed();
    let printed = Description::read(&first).unwrap().streams.printed;
    let rest = bench.verdict(2, name);
    check_sequence(name, &out[..printed[0] as usize], &rest);

    // Dumped and ended, twice in a row: what was restored can be dumped again.
    if name == "threads" {
        bench.stage(3, name);
    }
    let mut launch = bench.program(3, &program);
    bench.start(launch.clone());
    bench.ready(3);
    let (second, done) = bench.checkpoint(3, "c2", Then::End).unwrap();
    times.push(done);
    assert_eq!(bench.ended(3).how, How::Killed(libc::SIGKILL));
    let printed = Description::read(&second).unwrap().streams.printed;
    let head = bench.output(3, Stream::Stdout);
    assert_eq!(head.len() as u64, printed[0], "what it printed last is kept, and no more than that");
    bench.restore(launch.clone(), 4, &second);
    let (third, done) = bench.checkpoint(4, "c3", Then::End).unwrap();
    times.push(done);
    assert_eq!(bench.ended(4).how, How::Killed(libc::SIGKILL));
    let middle = bench.output(4, Stream::Stdout);
    launch.workdir = bench.folder.path().join("at");
    bench.restore(launch, 5, &third);
    let rest = bench.verdict(5, name);
    check_sequence(name, &(head + &middle), &rest);

    bench.until("nothing is left behind", || left_behind(&bench) == before);
    let rows: Vec<_> = times
        .iter()
        .map(|done| format!("{:.0} ms (held {:.0}), {} KiB", ms(done.took), ms(done.held), done.bytes >> 10))
        .collect();
    eprintln!("{name}: dumped in {}; restored in {:.0} ms", rows.join(", "), ms(took));
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The counter's numbers, before and after, are those of one run.
fn check_sequence(name: &str, before: &str, after: &str) {
    if name == "counter" {
        let all = format!("{before}{after}");
        let numbers: Vec<u64> = all.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{all}");
        assert!(before.lines().count() > 1 && after.lines().count() > 1, "{all}");
    }
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                matrix($name);
            }
        )*

        #[test]
        fn every_program_has_its_row() {
            let names: Vec<_> = programs::all().iter().map(|program| program.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

rows! {
    a_counter_is_restored: "counter",
    threads_with_locks_are_restored: "threads",
    a_shell_pipeline_is_restored: "pipeline",
    a_tree_of_fifty_processes_is_restored: "tree",
    python_with_threads_is_restored: "python",
    appended_and_mapped_files_are_restored: "files",
    deleted_files_are_restored: "deleted",
    unix_sockets_are_restored: "sockets",
    timers_and_signals_are_restored: "timers",
    zombies_are_restored: "zombies",
    a_quarter_of_a_gibibyte_is_restored: "memory",
}

/// Where the kernel has no soft-dirty bits: a round fails, and the task is as it was.
#[test]
fn memory_written_in_rounds_is_restored() {
    let Some(mut bench) = bench_with_criu() else { return };
    let criu = Installation::find(bench.shims.program.parent().unwrap()).unwrap();
    let launch = bench.program(1, &programs::memory(64));
    bench.start(launch.clone());
    bench.ready(1);
    let first = bench.pre_dump(1, "r1", None);
    if !criu.has(SOFT_DIRTY).unwrap() {
        let why = first.unwrap_err();
        assert!(why.contains("could not look through the memory") && why.contains("not available"), "{why}");
        assert!(!bench.folder.path().join("r1").exists());
        bench.checkpoint(1, "c1", Then::RunOn).unwrap();
        bench.verdict(1, "memory");
        return;
    }
    let (first, whole) = first.unwrap();
    let (second, little) = bench.pre_dump(1, "r2", Some(first.clone())).unwrap();
    assert!(whole.bytes > 64 << 20 && little.bytes < whole.bytes / 2, "{whole:?} {little:?}");
    let (dump, done) = bench.checkpoint_since(1, "c1", Then::End, Some(second.clone())).unwrap();
    assert!(done.bytes < whole.bytes / 2, "{done:?}");
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    // Without its rounds it is nothing.
    let alone =
        Launch { run: run(2), folder: bench.folder(2), restore: Some(dump.clone()), ..launch.clone() };
    bench.send(&ToShim::Launch(Box::new(alone)));
    match bench.ended(2).how {
        How::NotStarted { why, .. } => assert!(why.contains("moves apart from it"), "{why}"),
        how => panic!("{how:?}"),
    }
    fs::create_dir(dump.join(rounds::FOLDER)).unwrap();
    for (round, from) in [first, second].into_iter().enumerate() {
        // CRIU's own, to where it was written.
        let _ = fs::remove_file(from.join(rounds::PARENT));
        fs::rename(from, dump.join(rounds::FOLDER).join((round + 1).to_string())).unwrap();
    }
    rounds::assemble(&dump, 2).unwrap();
    bench.restore(launch, 3, &dump);
    bench.verdict(3, "memory");
}

#[test]
fn a_terminal_is_restored() {
    let Some(mut bench) = bench_with_criu() else { return };
    let mut launch = bench.launch(1, &["sh", "-c", TERMINAL]);
    launch.stdin = Some(Stdin::Terminal { rows: 33, cols: 77 });
    bench.start(launch.clone());
    bench.send(&ToShim::Input { run: run(1), at: 0, bytes: b"first\n".to_vec() });
    bench.until("it is ready", || bench.output(1, Stream::Stdout).contains("ready first"));
    let (folder, _) = bench.checkpoint(1, "c1", Then::End).unwrap();
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    bench.restore(launch, 2, &folder);
    bench.send(&ToShim::Input { run: run(2), at: 6, bytes: b"after\n".to_vec() });
    bench.until("it waits for ctrl-c", || bench.output(2, Stream::Stdout).contains("ctrl-c"));
    bench.send(&ToShim::Input { run: run(2), at: 12, bytes: vec![3] });
    let how = bench.ended(2).how;
    let out = bench.output(2, Stream::Stdout);
    assert_eq!(how, How::Exited(0), "{out}");
    assert!(out.ends_with("OK\r\n"), "{out}");
}

/// Says what it reads, line by line; what is typed meanwhile waits in its terminal, shown once, and edited.
pub(crate) const READER: &str = r#"exec /usr/bin/python3 -c "$(cat <<'END'
import os, time
print('ready', flush=True)
while not os.path.exists('/tmp/go'): time.sleep(0.001)
seen = []
while True:
    piece = os.read(0, 4096)
    if piece == b'' and seen[-1:] == [b'']: break
    seen.append(piece)
print()
print('size', *os.get_terminal_size(0))
print('seen', seen)
END
)""#;

#[test]
fn what_waits_in_a_terminal_is_restored() {
    let Some(mut bench) = bench_with_criu() else { return };
    let mut launch = bench.launch(1, &["sh", "-c", READER]);
    launch.stdin = Some(Stdin::Terminal { rows: 33, cols: 77 });
    bench.start(launch.clone());
    bench.ready(1);
    bench.send(&ToShim::Resize { run: run(1), rows: 40, cols: 100 });
    // Edited, with a newline and an end of file that are letters, an end of file, and a line without its end.
    let typed = b"onn\x7fe\ntwo\x16\x04\x16\nhalf\x04\x04tail";
    bench.send(&ToShim::Input { run: run(1), at: 0, bytes: typed.to_vec() });
    let (_, _) = bench.checkpoint(1, "c1", Then::RunOn).unwrap();
    let (folder, _) = bench.checkpoint(1, "c2", Then::End).unwrap();
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    bench.restore(launch, 2, &folder);
    let at = typed.len() as u64;
    bench.send(&ToShim::Input { run: run(2), at: at - 4, bytes: b"tail\x7f\x7fke\n\x04\x04".to_vec() });
    bench.go(2);
    let how = bench.ended(2).how;
    let out = bench.output(2, Stream::Stdout);
    assert_eq!(how, How::Exited(0), "{out}");
    let seen = r"seen [b'one\n', b'two\x04\nhalf', b'', b'take\n', b'']";
    assert!(out.contains("size 100 40") && out.contains(seen), "{out}");
    assert!(!out.split("size").next().unwrap().contains("tail"), "shown twice: {out}");
}

#[test]
fn what_was_typed_and_not_read_is_restored() {
    let Some(mut bench) = bench_with_criu() else { return };
    let script = "echo ready; while [ ! -e /tmp/go ]; do sleep 0.01; done; cat; echo OK";
    let mut launch = bench.program(1, &Program { name: "typed", script: script.into(), memory: 64 });
    launch.stdin = Some(Stdin::Pipe);
    bench.start(launch.clone());
    bench.ready(1);
    // More than a pipe takes: the rest waits in the shim.
    let line = b"0123456789abcde\n".repeat(10_000);
    bench.send(&ToShim::Input { run: run(1), at: 0, bytes: line.clone() });
    bench.send(&ToShim::Input { run: run(1), at: 160_000, bytes: b"first\n".to_vec() });
    let (open, _) = bench.checkpoint(1, "c1", Then::RunOn).unwrap();
    bench.send(&ToShim::Input { run: run(1), at: 160_006, bytes: Vec::new() });
    let (ended, _) = bench.checkpoint(1, "c2", Then::End).unwrap();
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    bench.restore(launch.clone(), 2, &ended);
    let all = String::from_utf8([b"ready\n", line.as_slice(), b"first\n"].concat()).unwrap();
    assert_eq!(format!("ready\n{}", bench.verdict(2, "typed")), format!("{all}OK\n"));
    bench.restore(launch, 3, &open);
    bench.send(&ToShim::Input { run: run(3), at: 160_006, bytes: b"second\n".to_vec() });
    bench.send(&ToShim::Input { run: run(3), at: 160_013, bytes: Vec::new() });
    assert_eq!(format!("ready\n{}", bench.verdict(3, "typed")), format!("{all}second\nOK\n"));
}

#[test]
fn a_dump_that_fails_leaves_the_task_as_it_was() {
    let Some(mut bench) = bench_with_criu() else { return };
    let before = left_behind(&bench);
    // A connection that leads out of the task.
    let (outside, path) = {
        let path = bench.folder.path().join("outside.sock");
        (std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
    };
    for path in [bench.folder.path(), &path] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let script = format!(
        "exec /usr/bin/python3 -c \"import socket, os, time\nx = socket.socket(socket.AF_UNIX); x.connect('{}')\n\
         print('ready', flush=True)\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)\nx.send(b'mine')\n\
         print('OK')\"",
        path.display()
    );
    let program = Program { name: "outside", script, memory: 64 };
    let launch = bench.program(1, &program);
    bench.start(launch);
    bench.ready(1);
    let (mut peer, _) = outside.accept().unwrap();
    for then in [Then::RunOn, Then::End] {
        let why = bench.checkpoint(1, "c1", then).unwrap_err();
        assert!(why.starts_with("CRIU could not dump the task: ") && why.contains("socket"), "{why}");
        assert!(!bench.folder.path().join("c1").exists());
    }
    bench.verdict(1, "outside");
    let mut said = String::new();
    io::Read::read_to_string(&mut peer, &mut said).unwrap();
    assert_eq!(said, "mine");
    bench.until("nothing is left behind", || left_behind(&bench) == before);
    // One that has ended, and one that never was.
    assert_eq!(bench.checkpoint(1, "c1", Then::RunOn).unwrap_err(), "the task has ended");
    assert_eq!(bench.checkpoint(9, "c1", Then::RunOn).unwrap_err(), "the task does not run here");
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let Some(mut bench) = bench_with_criu() else { return };
    let program = programs::all().into_iter().find(|program| program.name == "tree").unwrap();
    let launch = bench.program(1, &program);
    bench.start(launch.clone());
    bench.ready(1);
    let (folder, _) = bench.checkpoint(1, "c1", Then::End).unwrap();
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    let before = left_behind(&bench);
    let images = folder.join("images");
    let core = fs::read_dir(&images).unwrap().flatten().map(|entry| entry.path());
    let mut cores: Vec<_> = core.filter(|path| path.to_string_lossy().contains("core-")).collect();
    cores.sort();
    assert_eq!(cores.len(), 50);
    type Spoil<'a> = &'a dyn Fn();
    let truncate = |path: &Path| fs::write(path, &fs::read(path).unwrap()[..40]).unwrap();
    let last = cores.last().unwrap().clone();
    let saved = fs::read(&last).unwrap();
    // The user's number as CRIU writes it, a protobuf varint, becomes root's.
    let root = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let varint = |mut number: u32| {
            let mut bytes = Vec::new();
            while number >= 0x80 {
                bytes.push(number as u8 | 0x80);
                number >>= 7;
            }
            bytes.push(number as u8);
            bytes
        };
        let own = varint(UID);
        let mut changed = 0;
        for at in 0..bytes.len() - own.len() {
            if bytes[at..].starts_with(&own) {
                // As long as it was: zero with leading zeros.
                bytes[at..at + own.len()].copy_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x00]);
                changed += 1;
            }
        }
        assert!(changed >= 8, "{changed} ids");
        fs::write(path, bytes).unwrap();
    };
    let cases: [(Spoil<'_>, &str); 4] = [
        (&|| truncate(&last), "CRIU could not restore the task: "),
        (&|| fs::write(&last, &saved).unwrap(), ""),
        (&|| root(&last), "another user than"),
        (&|| fs::remove_file(folder.join("task")).unwrap(), "task: No such file"),
    ];
    for (index, (spoil, wanted)) in (2..).zip(cases) {
        spoil();
        let mut again = launch.clone();
        (again.run, again.folder, again.restore) = (run(index), bench.folder(index), Some(folder.clone()));
        if wanted.is_empty() {
            bench.start(again);
            bench.verdict(index, "tree");
            continue;
        }
        bench.send(&ToShim::Launch(Box::new(again)));
        match bench.ended(index).how {
            How::NotStarted { why, status: 126 } => assert!(why.contains(wanted), "{why}"),
            other => panic!("{wanted}: {other:?}"),
        }
        bench.until("nothing is left behind", || left_behind(&bench) == before);
    }
}

#[test]
fn a_task_that_is_killed_while_it_is_restored_ends() {
    let Some(mut bench) = bench_with_criu() else { return };
    let program = programs::all().into_iter().find(|program| program.name == "memory").unwrap();
    let launch = bench.program(1, &program);
    bench.start(launch.clone());
    bench.ready(1);
    let (folder, _) = bench.checkpoint(1, "c1", Then::End).unwrap();
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGKILL));
    let before = left_behind(&bench);
    let mut again = launch;
    (again.run, again.folder, again.restore) = (run(2), bench.folder(2), Some(folder));
    bench.send(&ToShim::Launch(Box::new(again)));
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    bench.until("CRIU works", || groups.group("t2").processes().is_ok_and(|all| !all.is_empty()));
    bench.send(&ToShim::Signal { run: run(2), signal: libc::SIGKILL, grace: None });
    let how = bench.ended(2).how;
    assert!(matches!(how, How::Killed(libc::SIGKILL) | How::NotStarted { .. }), "{how:?}");
    bench.until("nothing is left behind", || left_behind(&bench) == before);
}

#[test]
fn the_preflight_says_what_is_in_the_way() {
    let Some(mut bench) = bench_with_criu() else { return };
    let python = |body: &str| {
        format!(
            "exec /usr/bin/python3 -c \"import socket, os, time, mmap\n{body}\nprint('ready', flush=True)\n\
             while not os.path.exists('/tmp/go'): time.sleep(0.01)\nprint('OK')\""
        )
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = python(&format!("x = socket.create_connection(('127.0.0.1', {}))", address.port()));
    let launch = bench.program(1, &Program { name: "tcp", script, memory: 64 });
    bench.start(launch);
    bench.ready(1);
    let why = bench.checkpoint(1, "c1", Then::End).unwrap_err();
    assert!(why.contains(&format!("(python3) has a TCP connection with {address}")), "{why}");
    assert!(!bench.folder.path().join("c1").exists());
    bench.verdict(1, "tcp");

    // A library that is gone when the task shall go on.
    let library = bench.folder.path().join("library");
    fs::write(&library, vec![7; 8192]).unwrap();
    for path in [bench.folder.path(), &library] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let script = python(&format!(
        "f = open('{}', 'rb'); m = mmap.mmap(f.fileno(), 8192, access=mmap.ACCESS_READ); f.close()",
        library.display()
    ));
    let launch = bench.program(2, &Program { name: "library", script, memory: 64 });
    bench.start(launch.clone());
    bench.ready(2);
    let (folder, _) = bench.checkpoint(2, "c2", Then::End).unwrap();
    bench.ended(2);
    fs::rename(&library, library.with_extension("away")).unwrap();
    let mut again = launch.clone();
    (again.run, again.folder, again.restore) = (run(3), bench.folder(3), Some(folder.clone()));
    bench.send(&ToShim::Launch(Box::new(again)));
    let wanted = format!(
        "{} is mapped by the task, and is not here: install its package on this node, or stage the file with the job",
        library.display()
    );
    assert_eq!(bench.ended(3).how, How::NotStarted { why: wanted, status: 126 });
    fs::rename(library.with_extension("away"), &library).unwrap();
    bench.restore(launch, 4, &folder);
    bench.verdict(4, "library");
}
