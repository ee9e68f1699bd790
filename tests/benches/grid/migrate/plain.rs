//! CRIU alone, between two pid and mount namespaces of this machine. Its images do not cross a network: they are copied, or its
//! own daemon fetches the pages over loopback.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use grid_checkpoint::Installation;
use grid_tests::{until, until_some};

use super::{Case, Cost, compile, gap};
use crate::report::target;

/// A program that runs in the first of two places.
struct Rig {
    folder: tempfile::TempDir,
    criu: Installation,
    places: [Place; 2],
    program: Child,
    /// The program in its namespace.
    inner: String,
}

struct Place {
    init: Child,
    pid: i32,
}

impl Drop for Place {
    fn drop(&mut self) {
        // `unshare` takes its child along.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Place {
    fn new(init: &Path) -> Place {
        // CRIU keeps what it knows of the kernel in /run, if that is a tmpfs.
        let script = "mount -t tmpfs tmpfs /run && exec \"$0\"";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]);
        let init = command.arg(init).spawn().unwrap();
        let pid = until_some("an init runs", || {
            let child = child_of(init.id())?;
            fs::read_to_string(format!("/proc/{child}/comm")).ok()?.starts_with("init").then_some(child)
        });
        Place { init, pid }
    }

    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-p", "-m", "--"]);
        // CRIU dumps no descriptor that was opened in another mount namespace.
        command.args(["sh", "-c", "exec \"$0\" \"$@\" < /dev/null > /dev/null 2>&1"]).arg(program);
        command
    }
}

impl Rig {
    fn new(program: &Path, case: Case) -> Result<Rig, String> {
        let criu = Installation::find(&target().join("release")).ok_or("CRIU is not installed")?;
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let init = compile(folder.path(), "init", 0);
        let places = [Place::new(&init), Place::new(&init)];
        // Pids of the source have to be free at the destination, where CRIU itself needs some.
        let text = "echo 2000 > /proc/sys/kernel/ns_last_pid";
        assert!(places[1].inside(Path::new("sh")).args(["-c", text]).status().unwrap().success());
        let log = folder.path().join("log");
        let mut command = places[0].inside(Path::new("setsid"));
        let program = command.arg(program).arg(&log).args(case.words()).spawn().unwrap();
        until("it is ready", || fs::read_to_string(&log).is_ok_and(|log| log == "ready\n"));
        let pid = child_of(program.id()).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        let inner = numbers.split_whitespace().last().unwrap().to_owned();
        // It stamps from then on.
        std::thread::sleep(std::time::Duration::from_millis(300));
        Ok(Rig { folder, criu, places, program, inner })
    }

    fn criu(&self, place: usize, images: &Path, words: &[&str]) -> Command {
        let criu = self.criu.command(words);
        let mut command = self.places[place].inside(Path::new(criu.get_program()));
        command
            .args(criu.get_args())
            .args(["-v1", "-o"])
            .arg(format!("{}.log", words[0]))
            .arg("-D")
            .arg(images);
        command
    }

    fn images(&self, name: &str) -> PathBuf {
        let images = self.folder.path().join(name);
        fs::create_dir_all(&images).unwrap();
        images
    }

    /// What the program has to say in the end.
    fn gap(&self) -> f64 {
        fs::write(self.folder.path().join("log.go"), "").unwrap();
        let told = || fs::read_to_string(self.folder.path().join("log")).unwrap();
        until("it says how it was", || told().contains("OK\n") || told().contains("BAD"));
        gap(&told())
    }
}

/// Stopped, written down, copied, made again.
pub(super) fn copy(program: &Path, case: Case) -> Result<Cost, String> {
    let rig = Rig::new(program, case)?;
    let (here, there) = (rig.images("here"), rig.folder.path().join("there"));
    let start = Instant::now();
    ran(&mut rig.criu(0, &here, &["dump", "--manage-cgroups=ignore", "-t", &rig.inner]), &here)?;
    ran(Command::new("cp").arg("-r").arg(&here).arg(&there), &here)?;
    ran(&mut rig.criu(1, &there, &["restore", "-d", "--manage-cgroups=ignore"]), &there)?;
    let total = start.elapsed().as_secs_f64();
    let files = fs::read_dir(&there).unwrap().flatten();
    let sent = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum::<u64>() as f64;
    Ok(Cost { gap: rig.gap(), total, sent: Some(sent) })
}

/// Made again without its memory, which comes when it is asked for, and else by and by.
pub(super) fn lazy(program: &Path, case: Case) -> Result<Cost, String> {
    let rig = Rig::new(program, case)?;
    let images = rig.images("images");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port().to_string();
    let (status, told) = nix::unistd::pipe().unwrap();
    let start = Instant::now();
    let fd = told.as_raw_fd().to_string();
    let words =
        ["dump", "--manage-cgroups=ignore", "--lazy-pages", "--address", "127.0.0.1", "--port", &port];
    let mut dump = rig.criu(0, &images, &[&words[..], &["--status-fd", &fd, "-t", &rig.inner]].concat());
    let mut dump = dump.spawn().unwrap();
    drop(told);
    let mut ready = [1];
    let wrote = fs::File::from(status).read_exact(&mut ready);
    if wrote.is_err() {
        let _ = dump.wait();
        return Err(log_of(&images, "dump.log"));
    }
    let words = ["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &port];
    let mut pages = rig.criu(1, &images, &words).spawn().unwrap();
    until("it listens", || images.join("lazy-pages.socket").exists() || pages.try_wait().unwrap().is_some());
    let restored = ran(
        &mut rig.criu(1, &images, &["restore", "-d", "--lazy-pages", "--manage-cgroups=ignore"]),
        &images,
    );
    if restored.is_err() {
        let _ = (pages.kill(), dump.kill());
    }
    let _ = (pages.wait(), dump.wait());
    restored?;
    // All of its memory is there.
    let total = start.elapsed().as_secs_f64();
    Ok(Cost { gap: rig.gap(), total, sent: None })
}

/// Runs it to its end.
fn ran(command: &mut Command, images: &Path) -> Result<(), String> {
    match command.status().unwrap().success() {
        true => Ok(()),
        false => Err(["dump.log", "restore.log"].map(|log| log_of(images, log)).concat()),
    }
}

fn log_of(images: &Path, name: &str) -> String {
    let text = fs::read_to_string(images.join(name)).unwrap_or_default();
    // Not the limit of descriptors, which it cannot raise without CAP_SYS_RESOURCE, and does without.
    let wrong = |line: &&str| line.contains("Error") && !line.contains("RLIMIT_NOFILE");
    text.lines().find(wrong).map(|line| format!("{line}; ")).unwrap_or_default()
}

fn child_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
