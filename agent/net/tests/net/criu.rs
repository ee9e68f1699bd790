//! The real CRIU, run in the network namespace of the task, as the engine runs it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use grid_net::isolate;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::grid::inside;
use crate::skipped;

/// The first that dumps sockets on Linux 6.16 and newer.
const SOCKETS: (u32, u32) = (4, 2);

pub(crate) struct Criu {
    program: PathBuf,
    /// Its own libraries, with `ld.so` among them.
    libraries: Option<PathBuf>,
}

/// `None`, with the reason printed, where there is none that dumps sockets.
pub(crate) fn criu(test: &str) -> Option<Criu> {
    // PROFILE/deps/net-HASH below the target folder, where setup/install has put one.
    let own = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("criu");
    let system = ["/usr/sbin/criu", "/usr/bin/criu", "/usr/local/sbin/criu"].map(PathBuf::from);
    let own = Criu { program: own.join("criu"), libraries: Some(own.join("lib")) };
    let system = system.map(|program| Criu { program, libraries: None });
    let Some(criu) = [own].into_iter().chain(system).find(|criu| criu.program.is_file()) else {
        skipped(test, "CRIU is not installed: setup/install build");
        return None;
    };
    let version = criu.version();
    if version < SOCKETS && !every_socket_has_all_options() {
        skipped(test, &format!("CRIU {}.{} dumps no sockets on this kernel: 4.2 does", version.0, version.1));
        return None;
    }
    Some(criu)
}

/// Before Linux 6.16, every socket tells whether it passes credentials on; since then, only local ones do.
fn every_socket_has_all_options() -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    getsockopt(&socket, sockopt::PassCred) != Err(Errno::EOPNOTSUPP)
}

impl Criu {
    fn command(&self) -> Command {
        let Some(libraries) = &self.libraries else { return Command::new(&self.program) };
        let mut command = Command::new(libraries.join("ld.so"));
        command.arg("--library-path").arg(libraries).arg(&self.program);
        command
    }

    fn version(&self) -> (u32, u32) {
        let output = self.command().arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.trim_start_matches("Version: ").trim().split('.');
        let mut number = || numbers.next().and_then(|number| number.parse().ok()).unwrap();
        (number(), number())
    }

    /// Dumps the tree of `pid`. Without an error, the processes have ended.
    pub(crate) fn dump(&self, space: &OwnedFd, pid: i32, images: &Path, more: &[&str]) -> Result<(), String> {
        let pid = pid.to_string();
        let plain = ["dump", "-t", &pid, "--network-lock", "skip"];
        self.run(space, images, "dump.log", &[&plain, more].concat())
    }

    /// Restores; the root process becomes a child of this one.
    pub(crate) fn restore(&self, space: &OwnedFd, images: &Path) -> Result<(), String> {
        // The engine has a hook for this; here CRIU runs a script, which asks this process and waits for it.
        let (asked, answer, script) = (images.join("asked"), images.join("answer"), images.join("isolate"));
        for pipe in [&asked, &answer] {
            let _ = fs::remove_file(pipe);
            mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        let lines = "test \"$CRTOOLS_SCRIPT_ACTION\" != pre-restore || { echo >asked; read -r _ <answer; }";
        fs::write(&script, format!("#!/bin/sh\ncd {}\n{lines}\n", images.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        // Both ends at once: a CRIU that fails before it asks must not leave a reader behind.
        let open = |pipe| File::options().read(true).write(true).open(pipe).unwrap();
        let (mut asked, mut answer, space_again) = (open(asked), open(answer), space.try_clone().unwrap());
        let mut bell = asked.try_clone().unwrap();
        let helper = thread::spawn(move || {
            let mut ring = [0];
            asked.read_exact(&mut ring).unwrap();
            isolate(space_again.as_fd()).unwrap();
            answer.write_all(b"done\n").unwrap();
            answer
        });
        let plain = ["restore", "--restore-detached", "--restore-sibling", "--action-script"];
        let result =
            self.run(space, images, "restore.log", &[&plain[..], &[script.to_str().unwrap()]].concat());
        // If it was never asked.
        bell.write_all(b"\n").unwrap();
        helper.join().unwrap();
        result
    }

    fn run(&self, space: &OwnedFd, images: &Path, log: &str, args: &[&str]) -> Result<(), String> {
        let mut command = self.command();
        command.args(args).args(["--tcp-established", "--manage-cgroups=ignore", "-v4", "-o", log]);
        command.arg("-D").arg(images).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = inside(space, || command.status()).unwrap();
        if status.success() {
            return Ok(());
        }
        let log = fs::read_to_string(images.join(log)).unwrap_or_default();
        let errors: Vec<_> = log.lines().filter(|line| line.contains("Error")).collect();
        Err(format!("{status}: {}", errors.join("\n")))
    }
}
