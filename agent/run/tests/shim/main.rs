//! A real shim with real tasks: what the kernel does with them, as root, on this machine's control groups.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod ahead;
mod bench;
mod checkpoint;
mod programs;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use bench::{Bench, UID, bench, run};
use grid_qos::{Cgroups, ROOT};
use grid_run::protocol::{How, ToShim};
use grid_run::shim::now;
use libgrid::control::{Stdin, Stream};
use libgrid::user::User;

#[test]
fn a_program_ends_by_itself_with_its_own_status() {
    let Some(mut bench) = bench() else { return };
    assert_eq!(bench.run(1, &["true"]).0, How::Exited(0));
    assert_eq!(bench.run(2, &["sh", "-c", "exit 41"]).0, How::Exited(41));
    assert_eq!(bench.run(3, &["sh", "-c", "kill -SEGV $$"]).0, How::Signaled(11));
}

#[test]
fn a_task_is_isolated_and_never_root() {
    let Some(mut bench) = bench() else { return };
    let script = "echo $$; id -u; id -G; pwd; ls -A; ls /proc | grep -c '^[0-9]'; ls -A /tmp; \
                  touch in-work /tmp/in-tmp /dev/shm/in-shm && grep NoNewPrivs /proc/self/status; \
                  ls /proc/self/fd | wc -l";
    let (how, text) = bench.run(1, &["sh", "-c", script]);
    assert_eq!(how, How::Exited(0), "{text}");
    let lines: Vec<_> = text.lines().collect();
    let at = bench.folder.path().join("at");
    // Pid 2 of its own namespace; init, the shell and two of the pipeline see each other alone.
    assert_eq!(lines[..4], ["2", &UID.to_string(), &UID.to_string(), at.to_str().unwrap()]);
    assert_eq!(lines[4], "4");
    // ls opens the folder besides its three streams.
    assert_eq!(lines[5..], ["NoNewPrivs:\t1", "4"]);
    assert!(bench.folder(1).join("work/in-work").exists() && bench.folder(1).join("tmp/in-tmp").exists());
    let mut root = bench.launch(2, &["true"]);
    root.uid = 0;
    bench.send(&ToShim::Launch(Box::new(root)));
    let why = "jobs never run as root".to_owned();
    assert_eq!(bench.ended(2).how, How::NotStarted { why, status: 126 });
}

#[test]
fn a_program_is_told_that_it_cannot_restrict_itself_unseen() {
    let Some(mut bench) = bench() else { return };
    // landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION): a process of the task, and one that it starts.
    let script = "import ctypes, os\nos.fork() or os.execvp('python3', ['python3', '-c', asks])\nos.wait(); exec(asks)";
    let asks = "asks = 'import ctypes; libc = ctypes.CDLL(None, use_errno=True); \
                print(libc.syscall(444, None, 0, 1), ctypes.get_errno())'";
    let (how, text) = bench.run(1, &["python3", "-c", &format!("{asks}\n{script}")]);
    assert_eq!(how, How::Exited(0), "{text}");
    let refused = format!("-1 {}\n", libc::EOPNOTSUPP);
    assert_eq!(text, refused.repeat(2));
}

#[test]
fn what_cannot_be_executed_is_told_in_one_sentence() {
    let Some(mut bench) = bench() else { return };
    let not_started = |how| match how {
        How::NotStarted { why, status } => (why, status),
        other => panic!("{other:?}"),
    };
    let (why, status) = not_started(bench.run(1, &["no-such-program"]).0);
    assert!(status == 127 && why.starts_with("there is no program \"no-such-program\""), "{why}");
    let (why, status) = not_started(bench.run(2, &["/etc/passwd"]).0);
    assert!(status == 126 && why.contains("chmod +x"), "{why}");
    let (why, status) = not_started(bench.run(3, &["./missing name\n"]).0);
    assert!(status == 127 && why.contains(r#""./missing name\n""#), "{why}");
}

#[test]
fn an_unhandled_signal_ends_the_task_and_all_of_its_processes() {
    let Some(mut bench) = bench() else { return };
    let launch = bench.launch(1, &["sh", "-c", "sleep 1000 | sleep 1000"]);
    bench.start(launch);
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    bench.until("three processes", || groups.group("t1").processes().unwrap().len() == 3);
    bench.send(&ToShim::Signal { run: run(1), signal: libc::SIGINT, grace: None });
    assert_eq!(bench.ended(1).how, How::Killed(libc::SIGINT));
    assert!(groups.group("t1").processes().unwrap_or_default().is_empty());

    let launch = bench.launch(2, &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]);
    bench.start(launch);
    bench.until("the trap", || bench.output(2, Stream::Stdout) == "up\n");
    let grace = Some(Duration::from_millis(100));
    bench.send(&ToShim::Signal { run: run(2), signal: libc::SIGTERM, grace });
    assert_eq!(bench.ended(2).how, How::Killed(libc::SIGKILL));
}

#[test]
fn limits_end_a_task_and_say_which() {
    let Some(mut bench) = bench() else { return };
    let (how, _) = bench.run(1, &["sh", "-c", "head -c 200M /dev/zero | tail"]);
    assert_eq!(how, How::OutOfMemory);
    let mut long = bench.launch(2, &["sleep", "1000"]);
    long.time = Some(Duration::from_millis(50));
    bench.send(&ToShim::Launch(Box::new(long)));
    assert_eq!(bench.ended(2).how, How::TimeLimit);
    let (how, _) = bench.run(3, &["sh", "-c", "for i in $(seq 100); do sleep 5 & done; wait"]);
    assert!(matches!(how, How::Exited(1..)), "over 64 processes: {how:?}");
}

#[test]
fn use_is_counted() {
    let Some(mut bench) = bench() else { return };
    let burn =
        "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; head -c 20M /dev/zero | tail -c 20M | wc -c";
    let launch = bench.launch(1, &["sh", "-c", burn]);
    bench.send(&ToShim::Launch(Box::new(launch)));
    let end = bench.ended(1);
    assert_eq!(end.how, How::Exited(0));
    assert!(end.usage.cpu() > Duration::from_millis(20), "{:?}", end.usage);
    assert!(
        end.usage.wall >= Duration::from_millis(20) && end.usage.peak_memory > 20 << 20,
        "{:?}",
        end.usage
    );
}

#[test]
fn a_used_group_and_folder_are_as_new_or_gone() {
    let Some(mut bench) = bench() else { return };
    let launch = bench.launch(1, &["true"]);
    bench.send(&ToShim::Launch(Box::new(launch)));
    let end = bench.ended(1);
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    assert_eq!(end.group_kept, groups.version() == 1);
    assert!(grid_run::slot::clean(&bench.folder(1), end.printed > 0).unwrap(), "nothing was touched");
    assert!(bench.folder(1).join("work").exists());

    // Other limits, higher and lower, in the same place.
    for (index, memory) in [(3, 128 << 20), (4, 32 << 20)] {
        let mut launch = bench.launch(1, &["true"]);
        (launch.limits.memory, launch.run) = (memory, run(index));
        bench.send(&ToShim::Launch(Box::new(launch)));
        assert_eq!(bench.ended(index).how, How::Exited(0));
    }
    let hog = "touch /tmp/trace; head -c 20M /dev/zero | tail -c 20M | wc -c";
    let mut launch = bench.launch(1, &["sh", "-c", hog]);
    launch.run = run(2);
    bench.send(&ToShim::Launch(Box::new(launch)));
    let end = bench.ended(2);
    assert!(!end.group_kept && end.usage.peak_memory > 20 << 20, "{end:?}");
    assert_eq!(groups.names().unwrap(), Vec::<String>::new());
    assert!(!grid_run::slot::clean(&bench.folder(1), true).unwrap());
    assert!(!bench.folder(1).exists());
}

#[test]
fn output_is_kept_apart_and_bounded() {
    let Some(mut bench) = bench() else { return };
    let (how, out) = bench.run(1, &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((how, out.as_str()), (How::Exited(0), "out\n"));
    assert_eq!(bench.output(1, Stream::Stderr), "err\n");
    bench.run(2, &["sh", "-c", "yes | head -c 10M; echo end"]);
    let out = bench.output(2, Stream::Stdout);
    assert!(out.len() <= 1 << 20 && out.ends_with("y\nend\n"), "{} bytes", out.len());
}

#[test]
fn typed_bytes_arrive_and_the_end_of_input_too() {
    let Some(mut bench) = bench() else { return };
    let mut cat = bench.launch(1, &["cat"]);
    cat.stdin = Some(Stdin::Pipe);
    bench.start(cat);
    let megabyte = vec![b'x'; 200 << 10];
    for (at, bytes) in [(0, megabyte.clone()), (200 << 10, megabyte), (400 << 10, Vec::new())] {
        bench.send(&ToShim::Input { run: run(1), at, bytes });
    }
    assert_eq!(bench.ended(1).how, How::Exited(0));
    assert_eq!(bench.output(1, Stream::Stdout).len(), 400 << 10);
}

#[test]
fn a_terminal_has_a_size_and_ctrl_c() {
    let Some(mut bench) = bench() else { return };
    let mut shell = bench.launch(1, &["sh", "-c", "stty size; test -t 2 && sleep 1000"]);
    shell.stdin = Some(Stdin::Terminal { rows: 33, cols: 77 });
    bench.start(shell);
    bench.until("the size", || bench.output(1, Stream::Stdout).contains("33 77"));
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    // By its name: between fork and exec it would take the signal for the shell that it still is.
    let sleeps =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    bench.until("sleep runs", || groups.group("t1").processes().is_ok_and(|all| all.iter().any(sleeps)));
    bench.send(&ToShim::Input { run: run(1), at: 0, bytes: vec![3] });
    assert_eq!(bench.ended(1).how, How::Signaled(libc::SIGINT));
}

#[test]
fn a_task_outlives_its_agent_and_its_end_is_kept_until_it_is_taken() {
    let Some(mut bench) = bench() else { return };
    let fifo = bench.folder.path().join("go");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        &fifo,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .unwrap();
    fs::set_permissions(bench.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let launch = bench.launch(1, &["sh", "-c", &format!("cat {}; exit 7", fifo.display())]);
    bench.start(launch);
    bench.agent.shutdown(std::net::Shutdown::Both).unwrap();
    // No agent: the task runs on, and ends.
    fs::write(&fifo, "hello").unwrap();
    let mut found = bench.shims.find().unwrap();
    bench.agent = found.remove(0).1;
    bench.greet();
    let kept = bench.kept[0].clone();
    let end = kept.end.unwrap_or_else(|| bench.ended(1));
    assert_eq!((kept.run, end.how), (run(1), How::Exited(7)));
    assert_eq!(bench.output(1, Stream::Stdout), "hello");
    bench.send(&ToShim::Forget(run(1)));
    bench.send(&ToShim::Retire);
    let mut rest = Vec::new();
    assert!(matches!(bench.agent.read_to_end(&mut rest), Ok(0)), "the shim ends: {rest:?}");
    assert!(bench.child.wait().unwrap().success());
    assert!(!bench.shims.folder.join("s.sock").exists());
}

#[test]
fn a_task_without_lease_is_frozen_and_goes_on_when_it_is_renewed() {
    let Some(mut bench) = bench() else { return };
    let launch = bench.launch(1, &["sh", "-c", "while :; do echo tick; done"]);
    let mut launch = launch;
    launch.log_limit = 1 << 30;
    bench.start(launch);
    let len = |bench: &Bench| fs::metadata(bench.folder(1).join("stdout.0")).map_or(0, |meta| meta.len());
    bench.until("it ticks", || len(&bench) > 0);
    bench.send(&ToShim::Lease { until: Some(now() + 1_000_000) });
    let frozen = format!("{}/freezer/{}/t1/freezer.state", ROOT, bench.shims.cgroup_parent);
    let frozen_v2 = format!("{}/{}/t1/cgroup.freeze", ROOT, bench.shims.cgroup_parent);
    bench.until("it is frozen", || {
        fs::read_to_string(&frozen).is_ok_and(|state| state == "FROZEN\n")
            || fs::read_to_string(&frozen_v2).is_ok_and(|state| state == "1\n")
    });
    bench.send(&ToShim::Lease { until: Some(now() + 60_000_000_000) });
    let before = len(&bench);
    bench.until("it goes on", || len(&bench) > before);
    // Fenced while frozen: it must die all the same.
    bench.send(&ToShim::Lease { until: Some(0) });
    bench.send(&ToShim::Fence(run(1)));
    assert_eq!(bench.ended(1).how, How::Fenced);
}

#[test]
fn the_shims_death_takes_its_tasks_along() {
    let Some(mut bench) = bench() else { return };
    let launch = bench.launch(1, &["sleep", "1000"]);
    bench.start(launch);
    let groups = Cgroups::open(Path::new(ROOT), &bench.shims.cgroup_parent).unwrap();
    bench.until("it runs", || groups.group("t1").processes().unwrap().len() == 1);
    bench.child.kill().unwrap();
    bench.until("it is gone", || groups.group("t1").processes().unwrap().is_empty());
}

#[test]
fn garbage_on_the_socket_ends_the_connection_not_the_shim() {
    let Some(mut bench) = bench() else { return };
    let launch = bench.launch(1, &["sleep", "1000"]);
    bench.start(launch);
    bench.agent.write_all(&[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    let _ = bench.agent.read_to_end(&mut rest);
    bench.agent = bench.shims.find().unwrap().remove(0).1;
    bench.greet();
    assert_eq!(bench.kept.len(), 1);
}

#[test]
fn files_are_packed_with_the_rights_of_their_user() {
    let Some(bench) = bench() else { return };
    let folder = bench.folder.path();
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let secret = folder.join("secret");
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let work = folder.join("work");
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::symlink(&secret, work.join("result.png")).unwrap();
    let output = bench.shims.pack(&User::of_task(UID), &work, &["*.png".into()]).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(grid_run::spawn::MISSED)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("result.png cannot be read: Permission denied"), "{said}");
}
