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
//! The last two columns of proc(5)'s `fd` and `map_files` are all that this takes: the mode of the link there says what the
//! file is open for.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};

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

/// Whether a process, which has not run yet, is what the task of this user may be.
///
/// # Errors
/// What it would have been.
pub(super) fn check(pid: i32, uid: u32, given: &Given) -> Result<(), String> {
    let process = Path::new("/proc").join(pid.to_string());
    let cannot = |path: &Path, error: io::Error| format!("cannot read {}: {error}", path.display());
    let threads = process.join("task");
    for thread in fs::read_dir(&threads).map_err(|error| cannot(&threads, error))? {
        let path = thread.map_err(|error| cannot(&threads, error))?.path().join("status");
        let status = fs::read_to_string(&path).map_err(|error| cannot(&path, error))?;
        if has_ended(&status) {
            continue;
        }
        if !is_harmless(&status, uid) {
            return Err(format!(
                "the checkpoint would make process {pid} another user than {uid}, or give it rights: it is refused"
            ));
        }
    }
    let held = ["fd", "map_files"].into_iter().flat_map(|folder| fs::read_dir(process.join(folder)));
    // What has ended has neither.
    for link in held.flatten().flatten().map(|entry| entry.path()) {
        let (open, meta) = match (fs::symlink_metadata(&link), fs::metadata(&link)) {
            (Ok(open), Ok(meta)) => (open, meta),
            (Err(error), _) | (_, Err(error)) => return Err(cannot(&link, error)),
        };
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

    /// A process of that user which waits, with a thread that is whose the script makes it.
    fn process(stdin: File, thread: &str) -> std::process::Child {
        let script = format!(
            "import ctypes, mmap, os, threading, time\nsys = ctypes.CDLL(None).syscall\n\
             def other():\n    {thread}\n    print('ready', flush=True)\n    time.sleep(60)\n\
             def user():\n    sys(116, 0, 0)\n    sys(119, {USER}, {USER}, {USER})\n    sys(117, {USER}, {USER}, {USER})\n\
             ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n\
             t = threading.Thread(target=other)\nuser()\nt.start()\ntime.sleep(60)\n"
        );
        let mut command = std::process::Command::new("python3");
        command.args(["-c", &script]).stdin(stdin).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        child
    }

    fn checked(stdin: File, thread: &str, given: &Given) -> Result<(), String> {
        let mut child = process(stdin, thread);
        let checked = check(i32::try_from(child.id()).unwrap(), USER, given);
        child.kill().unwrap();
        child.wait().unwrap();
        checked
    }

    #[test]
    fn what_its_user_could_not_open_no_process_may_have() {
        use std::os::unix::fs::PermissionsExt;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "secret").unwrap();
        let none: [File; 0] = [];
        let given = Given::new(&none).unwrap();
        let open = |write: bool| File::options().read(true).write(write).open(&path).unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        checked(open(false), "pass", &given).unwrap();
        assert!(checked(open(true), "pass", &given).unwrap_err().contains("secret"));
        mode(0o600);
        assert!(checked(open(false), "pass", &given).unwrap_err().contains("may not open"));
        checked(open(true), "pass", &Given::new([&open(false)]).unwrap()).unwrap();
        mode(0o666);
        checked(open(true), "pass", &given).unwrap();
        // Mapped, and closed.
        mode(0o600);
        let mapped = format!(
            "global m; f = os.open('{}', os.O_RDWR); m = mmap.mmap(f, 0); os.close(f)",
            path.display()
        );
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        mode(0o666);
        checked(open(false), &mapped, &given).unwrap();
        let mut child = process(File::open("/dev/null").unwrap(), &mapped);
        mode(0o600);
        let refused = check(i32::try_from(child.id()).unwrap(), USER, &given);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(refused.unwrap_err().contains("secret"));
    }

    #[test]
    fn a_thread_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let none: [File; 0] = [];
        let given = Given::new(&none).unwrap();
        let null = || File::open("/dev/null").unwrap();
        let script = "pass";
        checked(null(), script, &given).unwrap();
        // A thread that was there before the others became the user keeps what it was.
        let mut command = std::process::Command::new("python3");
        let before = format!(
            "import ctypes, threading, time\nlibc = ctypes.CDLL(None)\nlibc.prctl(38, 1, 0, 0, 0)\n\
             threading.Thread(target=lambda: time.sleep(60)).start()\n\
             for call in (116, 0, 0), (119, {USER}, {USER}, {USER}), (117, {USER}, {USER}, {USER}):\n    libc.syscall(*call)\n\
             print('ready', flush=True)\ntime.sleep(60)\n"
        );
        command.args(["-c", &before]).stdin(null()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        let refused = check(i32::try_from(child.id()).unwrap(), USER, &given);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(refused.unwrap_err().contains("another user"));
    }
}
