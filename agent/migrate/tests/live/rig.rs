//! Two places on one machine, each a pid and mount namespace with an init, between which CRIU moves programs.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use grid_checkpoint::Installation;
use grid_migrate::track::{self, FinalStats, RoundStats};
use grid_migrate::{PageSink, PageStore, Tracker, held, hide, lazy};

use crate::dump::Dump;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A dirty set that is small.
const SMALL: u64 = 2 << 20;

/// CRIU, as it was built for this workspace or as the system has it.
pub(crate) fn criu() -> &'static Installation {
    static CRIU: OnceLock<Installation> = OnceLock::new();
    CRIU.get_or_init(|| {
        let tests = std::env::current_exe().unwrap();
        let programs = tests.parent().and_then(Path::parent).unwrap();
        Installation::find(programs).expect("CRIU is not installed: setup/install build")
    })
}

/// One side.
pub(crate) struct Place {
    init: Child,
    pid: i32,
}

impl Place {
    fn new(init: &Path) -> Self {
        // CRIU keeps what it knows of the kernel in /run, if that is a tmpfs.
        let script = "mount -t tmpfs tmpfs /run && exec \"$0\"";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]);
        let init = command.arg(init).spawn().unwrap();
        let pid = wait_for("an init", || {
            let child = child_of(init.id() as i32)?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "init").then_some(child)
        });
        let place = Self { init, pid };
        assert!(place.criu(&["check"]).status().unwrap().success());
        place
    }

    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-p", "-m", "--"]);
        // CRIU dumps no descriptor that was opened in another mount namespace.
        command.args(["sh", "-c", "exec \"$0\" \"$@\" < /dev/null > /dev/null 2>&1"]).arg(program);
        command
    }

    pub(crate) fn criu(&self, arguments: &[&str]) -> Command {
        let criu = criu().command(arguments);
        let mut command = self.inside(Path::new(criu.get_program()));
        command.args(criu.get_args());
        command
    }

    /// Whether any program runs here.
    fn is_empty(&self) -> bool {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.pid)).unwrap();
        let numbers = fs::read_dir("/proc").unwrap().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // `nsenter` stops with a program that is stopped, and leaves it a zombie.
        let is_zombie = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        };
        numbers
            .filter(|pid| *pid != self.pid && !is_zombie(pid))
            .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|other| other == own))
            .count()
            == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // `unshare` takes its child along.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// How the dump is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Lazy,
    Hidden,
}

/// When a migration is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GiveUp {
    Never,
    Attached,
    FirstRound,
    /// The tree is frozen, nothing was sent of the freeze.
    Frozen,
    /// All was sent, CRIU waits.
    Dumped,
    /// As before, and CRIU is killed.
    DumpedAndKilled,
    /// The destination's CRIU failed.
    Restoring,
    /// All was made at the destination, and nothing ran there.
    Made,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) rounds: Vec<RoundStats>,
    pub(crate) last: FinalStats,
    pub(crate) served: lazy::Served,
    /// From the start of the dump until all stands still.
    pub(crate) frozen: Duration,
    /// To complete images.
    pub(crate) dumped: Duration,
    /// Until nothing of the source's memory is missing.
    pub(crate) checked: Duration,
    /// To running processes at the destination.
    pub(crate) restored: Duration,
}

/// A program, and the two places.
pub(crate) struct Rig {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) places: [Place; 2],
    program: Child,
    /// In the namespace.
    pub(crate) inner: i32,
    /// Outside it.
    pub(crate) pid: i32,
}

impl Rig {
    pub(crate) fn new(name: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let init = compile(folder.path(), "init");
        let program = compile(folder.path(), name);
        let places = [Place::new(&init), Place::new(&init)];
        // Pids of the source have to be free at the destination, where CRIU itself needs some.
        let text = "echo 2000 > /proc/sys/kernel/ns_last_pid";
        let moved = places[1].inside(Path::new("sh")).args(["-c", text]).status().unwrap();
        assert!(moved.success());
        let log = folder.path().join("log");
        let mut command = places[0].inside(Path::new("setsid"));
        command.arg(&program).arg(&log).args(arguments);
        let program = command.spawn().unwrap();
        wait_for("the program", || fs::read_to_string(&log).is_ok_and(|log| log == "ready\n").then_some(()));
        let pid = child_of(program.id() as i32).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        let inner = numbers.split_whitespace().last().unwrap().parse().unwrap();
        Self { folder, places, program, inner, pid }
    }

    pub(crate) fn images(&self) -> PathBuf {
        let images = self.folder.path().join("images");
        fs::create_dir_all(&images).unwrap();
        images
    }

    pub(crate) fn log_of(&self, name: &str) -> String {
        let text = fs::read_to_string(self.images().join(name)).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains("Error") || line.contains("Warn"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Moves it, or gives up.
    pub(crate) fn migrate(&mut self, way: Way, give_up: GiveUp) -> Outcome {
        let _perf = held::keep_perf_ready().unwrap();
        let mut outcome = Outcome::default();
        let (mut to, from) = UnixStream::pair().unwrap();
        let store = PageStore::new(8 << 30);
        let reader = std::thread::spawn({
            let store = store.clone();
            move || store.receive(from, std::io::sink())
        });
        let mut tracker = Tracker::attach(&[self.pid]).unwrap();
        if give_up == GiveUp::Attached {
            tracker.abandon();
            return outcome;
        }
        let mut sink = PageSink::new(&mut to).unwrap();
        loop {
            let round = tracker.round(&mut sink).unwrap();
            if give_up == GiveUp::FirstRound {
                return outcome;
            }
            let before = outcome.rounds.last().copied();
            outcome.rounds.push(round);
            match before {
                None => (),
                Some(before) if track::goes_on(before.bytes, round.bytes, SMALL) => (),
                Some(_) => break,
            }
        }
        let mut dump = Dump::prepare(self, way, &tracker);
        let images = self.images();
        let [go, run] = ["go", "go.run"].map(|name| self.folder.path().join(name));
        let mut restore = self.places[1].criu(&["restore", "-d", "--lazy-pages", "--manage-cgroups=ignore"]);
        restore.args(["-v1", "-o", "restore.log", "-D"]).arg(&images);
        let mut ahead = None;
        if way == Way::Hidden {
            let library = self.folder.path().join("hidden/preload.so");
            restore.env("LD_PRELOAD", library).env(hide::GO, &go);
            if matches!(give_up, GiveUp::Never | GiveUp::Restoring | GiveUp::Made) {
                for fifo in [&go, &run] {
                    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
                }
                ahead = Some(restore.spawn().unwrap());
            }
            // It asks the kernel this and that before it waits.
            std::thread::sleep(Duration::from_millis(60));
            tracker.round(&mut sink).unwrap();
        }
        let listener = UnixListener::bind(images.join(lazy::SOCKET)).unwrap();
        let start = Instant::now();
        dump.start(self);
        if give_up == GiveUp::Frozen {
            // CRIU has no way back of its own here but to be done.
            tracker.abandon();
            dump.complete(self);
            dump.roll_back(self);
            return outcome;
        }
        dump.wait_frozen(self);
        outcome.frozen = start.elapsed();
        let check = dump.check();
        let filling = std::thread::scope(|scope| {
            let last = scope.spawn(|| {
                let listed = tracker.list(&mut sink).unwrap();
                let last = tracker.send_rest(listed, &mut sink).unwrap();
                sink.end().unwrap();
                assert!(check());
                last
            });
            dump.complete(self);
            outcome.dumped = start.elapsed();
            if matches!(give_up, GiveUp::Dumped | GiveUp::DumpedAndKilled) {
                outcome.last = last.join().unwrap();
                return None;
            }
            if give_up == GiveUp::Restoring {
                fs::remove_file(images.join("pstree.img")).unwrap();
            }
            let serving = std::thread::spawn({
                let store = store.clone();
                move || lazy::serve(&listener, &store, Duration::from_secs(5))
            });
            let mut restoring = match ahead.take() {
                Some(ahead) => {
                    hide::go_on(&go, LIMIT).unwrap();
                    outcome.last = last.join().unwrap();
                    assert!(store.wait_complete(LIMIT));
                    outcome.checked = start.elapsed();
                    if give_up == GiveUp::Made {
                        hide::cancel(&run, LIMIT).unwrap();
                    } else if give_up == GiveUp::Never {
                        hide::go_on(&run, LIMIT).unwrap();
                    }
                    ahead
                }
                None => {
                    let restoring = restore.spawn().unwrap();
                    outcome.last = last.join().unwrap();
                    restoring
                }
            };
            let filling = serving.join().unwrap();
            outcome.restored = start.elapsed();
            let restored = restoring.wait().unwrap();
            assert_eq!(restored.success(), give_up == GiveUp::Never, "{}", self.log_of("restore.log"));
            filling.ok()
        });
        match give_up {
            GiveUp::Dumped | GiveUp::Restoring | GiveUp::Made => {
                dump.roll_back(self);
                return outcome;
            }
            GiveUp::DumpedAndKilled => {
                dump.kill(self);
                return outcome;
            }
            _ => (),
        }
        assert!(store.wait_complete(LIMIT));
        dump.commit(self);
        wait_for("the end of the source", || self.places[0].is_empty().then_some(()));
        drop(tracker);
        reader.join().unwrap().unwrap();
        outcome.served = filling.unwrap().wait(LIMIT).unwrap().expect("the memory is still not there");
        outcome
    }

    /// Moves it as CRIU alone does: stopped from the first byte to the last.
    pub(crate) fn migrate_plainly(&self) {
        let images = self.images();
        let mut dump =
            self.places[0].criu(&["dump", "--manage-cgroups=ignore", "-v1", "-o", "dump.log", "-D"]);
        let dumped = dump.arg(&images).args(["-t", &self.inner.to_string()]).status().unwrap();
        assert!(dumped.success(), "{}", self.log_of("dump.log"));
        let mut restore = self.places[1].criu(&["restore", "-d", "--manage-cgroups=ignore", "-v1", "-D"]);
        let restored = restore.arg(&images).args(["-o", "restore.log"]).status().unwrap();
        assert!(restored.success(), "{}", self.log_of("restore.log"));
    }

    /// Tells the program to look whether all is well; what it says.
    pub(crate) fn verdict(&self) -> String {
        fs::write(self.folder.path().join("log.go"), "").unwrap();
        wait_for("the verdict", || {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            (log.contains("OK\n") || log.contains("BAD"))
                .then(|| log.trim_start_matches("ready\n").to_owned())
        })
    }

    /// Lets it run for a while after a move: what was not there yet is asked for.
    pub(crate) fn run_on(&self) {}
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn compile(folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/live/programs/{name}.c"));
    let program = folder.join(name);
    let mut command = Command::new("cc");
    let status = command.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(status.success());
    program
}

pub(crate) fn child_of(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
