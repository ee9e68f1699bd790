//! Whether what was restored is what its task may be.
//!
//! CRIU makes processes as root, from images that another node may have written. When they have their users, and before they
//! take a step, each is looked at: its threads' users and rights, and what it has open or mapped. A file that its user
//! could not open itself is refused, whoever opened it for it.
//!
//! | it has | is harmless if |
//! | --- | --- |
//! | a thread | it is the task's user, with no capability, and can gain none |
//! | a file, folder or device, open or mapped | it is the user's, or its mode lets everybody do what it is open for |
//! | a pipe, socket, event or memory without a name | always |
//! | what the shim gave it: its streams | always |
//!
//! What it has is in `fd` and `map_files` of proc(5), and the mode of the link there says what the file is open for.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{SysconfVar, sysconf};

/// Processes that are not worth a thread of their own.
const FEW: usize = 4;

/// What a task may have though its user could not open it.
pub(super) struct Given {
    /// File systems of the kernel's own, whose files have no names.
    nameless: Vec<u64>,
    /// Devices and inodes of what the shim gave.
    files: Vec<(u64, u64)>,
}

impl Given {
    /// # Errors
    /// Where the process has no descriptors left.
    pub(super) fn new<'f>(streams: impl IntoIterator<Item = &'f (impl AsFd + 'f)>) -> io::Result<Self> {
        let (pipe, _) = nix::unistd::pipe()?;
        let (socket, _) = UnixStream::pair()?;
        let event = EventFd::new()?;
        let memory = memfd_create(c"", MFdFlags::MFD_CLOEXEC)?;
        let about = |fd: &dyn AsFd| File::from(fd.as_fd().try_clone_to_owned()?).metadata();
        let examples: [&dyn AsFd; 4] = [&pipe, &socket, &event, &memory];
        let nameless = examples.into_iter().map(|fd| Ok(about(fd)?.dev())).collect::<io::Result<_>>()?;
        let files = streams.into_iter().map(|fd| about(fd).map(|meta| (meta.dev(), meta.ino())));
        Ok(Self { nameless, files: files.collect::<io::Result<_>>()? })
    }

    fn has(&self, meta: &Metadata) -> bool {
        self.nameless.contains(&meta.dev()) || self.files.contains(&(meta.dev(), meta.ino()))
    }
}

/// Whether processes, which have not run yet, are what the task of this user may be. They stand still meanwhile, so each
/// processor looks at some of them.
///
/// # Errors
/// What the first of them would have been.
pub(super) fn check_all(pids: &[i32], uid: u32, given: &Given) -> Result<(), String> {
    let most =
        sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().map_or(1, |number| number.max(1) as usize);
    let some = |pids: &[i32]| pids.iter().try_for_each(|pid| check(*pid, uid, given));
    std::thread::scope(|scope| {
        let mut parts = pids.chunks(pids.len().div_ceil(most).max(FEW));
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || some(part))).collect();
        others.into_iter().fold(some(own), |checked, other| {
            let other = other.join().unwrap_or_else(|_| Err("a process cannot be looked at".into()));
            checked.and(other)
        })
    })
}

/// Whether a process, which has not run yet, is what the task of this user may be.
///
/// # Errors
/// What it would have been.
pub(super) fn check(pid: i32, uid: u32, given: &Given) -> Result<(), String> {
    let process = Path::new("/proc").join(pid.to_string());
    let status_of = |thread: &Path| read(&thread.join("status"), |path| fs::read_to_string(path));
    for thread in entries(&process.join("task"))? {
        let status = status_of(&thread)?;
        if !has_ended(&status) && !is_harmless(&status, uid) {
            return Err(format!(
                "the checkpoint would make process {pid} another user than {uid}, or give it rights: it is refused"
            ));
        }
    }
    if has_ended(&status_of(&process)?) {
        return Ok(());
    }
    for link in [entries(&process.join("fd"))?, entries(&process.join("map_files"))?].concat() {
        let open = read(&link, |link| fs::symlink_metadata(link))?;
        let meta = read(&link, |link| fs::metadata(link))?;
        if !given.has(&meta) && !may_open(&meta, open.mode(), uid) {
            let file = fs::read_link(&link).unwrap_or_default();
            return Err(format!(
                "the checkpoint would give process {pid} the file {}, which user {uid} may not open: it is refused",
                file.display()
            ));
        }
    }
    Ok(())
}

/// What cannot be looked at is not let go.
fn read<T>(path: &Path, how: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, String> {
    how(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    read(folder, |folder| fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect())
}

/// Whether a user may open this for what the mode of the link to it says; the user's group has the same number.
fn may_open(meta: &Metadata, open: u32, uid: u32) -> bool {
    let wanted = open >> 6 & 0o6;
    let allowed = if meta.gid() == uid { meta.mode() >> 3 } else { meta.mode() };
    meta.uid() == uid || wanted & !allowed == 0
}

fn field<'s>(status: &'s str, name: &str) -> Option<Vec<&'s str>> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.split_whitespace().collect())
}

/// What has ended runs no more, and CRIU makes it end as its own user.
fn has_ended(status: &str) -> bool {
    field(status, "State:").is_some_and(|state| state.first() == Some(&"Z"))
}

/// No user but this one, no capability that could be used or gained.
fn is_harmless(status: &str, uid: u32) -> bool {
    let own = uid.to_string();
    let is_own = |ids: Vec<&str>| ids.len() == 4 && ids.iter().all(|id| *id == own);
    let none =
        |name| field(status, name).is_some_and(|set| set.iter().all(|set| set.chars().all(|c| c == '0')));
    field(status, "Uid:").is_some_and(is_own)
        && field(status, "Gid:").is_some_and(is_own)
        && ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"].into_iter().all(none)
        && field(status, "Groups:").is_none_or(|groups| groups.iter().all(|group| *group == own))
        && field(status, "NoNewPrivs:").is_some_and(|set| set == ["1"])
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    const STATUS: &str = "State:\tT (stopped)\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000\n\
                          CapPrm:\t0000\nCapEff:\t0000\nCapBnd:\tffff\nCapAmb:\t0000\nNoNewPrivs:\t1\n";

    #[test]
    fn only_the_tasks_user_without_rights_is_let_go() {
        assert!(is_harmless(STATUS, 7));
        assert!(!is_harmless(STATUS, 8));
        assert!(has_ended(&STATUS.replace("T (stopped)", "Z (zombie)")) && !has_ended(STATUS));
        for (good, bad) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7"),
            ("Gid:\t7\t7\t7\t7", "Gid:\t0\t7\t7\t7"),
            ("Groups:\t ", "Groups:\t0 "),
            ("CapPrm:\t0000", "CapPrm:\t0001"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("CapEff:\t0000\n", ""),
        ] {
            assert!(STATUS.contains(good) && !is_harmless(&STATUS.replace(good, bad), 7), "{bad}");
        }
    }

    /// A user that nobody is.
    const USER: u32 = 54321;

    /// A process that waits until the value goes.
    struct Waiting(std::process::Child);

    impl Waiting {
        /// Each step is a line of Python: `user()` makes the thread that calls it the user's, `thread()` starts one more.
        fn new(stdin: File, steps: &[&str]) -> Self {
            let script = format!(
                "import ctypes, mmap, os, signal, threading\nlibc = ctypes.CDLL(None)\nlibc.prctl(38, 1, 0, 0, 0)\n\
                 def thread(): threading.Thread(target=threading.Event().wait).start()\n\
                 def user():\n    for call in (116, 0, 0), (119, {USER}, {USER}, {USER}), (117, {USER}, {USER}, {USER}):\n        \
                 libc.syscall(*call)\n{}\nprint('ready', flush=True)\nsignal.pause()\n",
                steps.join("\n")
            );
            let mut command = Command::new("python3");
            let mut child =
                command.args(["-c", &script]).stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            let waiting = Self(child);
            assert_eq!(line, "ready\n");
            waiting
        }

        fn checked(&self, given: &Given) -> Result<(), String> {
            check(i32::try_from(self.0.id()).unwrap(), USER, given)
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            // Not by println, which a test that passes keeps to itself.
            let _ = writeln!(io::stdout(), "SKIPPED: to become another user takes root");
        }
        root
    }

    fn given(files: &[File]) -> Given {
        Given::new(files).unwrap()
    }

    #[test]
    fn what_its_user_could_not_open_no_process_may_have() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "secret").unwrap();
        let open = |write: bool| File::options().read(true).write(write).open(&path).unwrap();
        for (mode, write, refused) in
            [(0o644, false, false), (0o644, true, true), (0o600, false, true), (0o666, true, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let checked = Waiting::new(open(write), &["user()"]).checked(&given(&[]));
            assert_eq!(checked.is_err_and(|why| why.contains("secret")), refused, "{mode:o} {write}");
            Waiting::new(open(write), &["user()"]).checked(&given(&[open(false)])).unwrap();
        }
        // Mapped, and closed.
        let map = format!("f = os.open('{}', os.O_RDWR); m = mmap.mmap(f, 0); os.close(f)", path.display());
        let mapped = Waiting::new(File::open("/dev/null").unwrap(), &[&map, "user()"]);
        mapped.checked(&given(&[])).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(mapped.checked(&given(&[])).unwrap_err().contains("secret"));
    }

    #[test]
    fn a_thread_of_another_user_is_refused() {
        if !is_root() {
            return;
        }
        for (steps, refused) in [(["user()", "thread()"], false), (["thread()", "user()"], true)] {
            let checked = Waiting::new(File::open("/dev/null").unwrap(), &steps).checked(&given(&[]));
            assert_eq!(checked.is_err_and(|why| why.contains("another user")), refused, "{steps:?}");
        }
    }
}
