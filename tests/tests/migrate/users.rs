//! What users see: no seam, reasons, drained nodes.

use super::*;

#[test]
fn who_follows_a_task_sees_no_seam() {
    moving("who_follows_a_task_sees_no_seam", shared, |grid: &Grid| {
        let (spec, file) = witnessed(grid, "followed");
        let job = begin(grid, 2, spec);
        let follower = grid.start(3, ["logs", "-f", &job.to_string()]);
        for to in [1, 3, 2, 3] {
            hop(grid, 2, job, to);
        }
        counted(&verdict(grid, job, "followed"), &file);
        let followed = follower.wait();
        let followed = followed.ok();
        let numbers: Vec<u64> = followed.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        assert!(followed.ends_with("OK"), "{followed}");
    });
}

#[test]
fn what_a_task_used_before_it_moved_counts() {
    /// Uses a processor for so long before it is ready.
    const BUSY: Duration = Duration::from_millis(1200);
    let up = || GridConfig::new("used_before", 3).up();
    moving("what_a_task_used_before_it_moved_counts", up, |grid| {
        let body = format!(
            "while time.process_time() < {}: pass\nready(); wait(); print('OK')",
            BUSY.as_secs_f64() * 1.1
        );
        let script = format!("{}{body}", programs::PRELUDE);
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &script]);
        let job = begin(grid, 2, spec.cpus(Cpus::from_milli(500)).memory(Bytes(128 << 20)));
        let used = || grid.job(1, job).tasks[0].usage;
        let mut before = used();
        for (to, mode) in [(3, MoveMode::Hybrid), (2, MoveMode::StopAndCopy), (3, MoveMode::Hybrid)] {
            hop_by(grid, 1, job, to, mode);
            until("it is told what it uses there", || used().peak_memory > 0 && used().wall > before.wall);
            let now = used();
            assert!(now.cpu() >= BUSY && now.peak_memory >= before.peak_memory, "{before:?}, {now:?}");
            // The agent tells of it as the shim does, which outlives it.
            grid.kill_agent(to);
            grid.until_up(1, 3);
            before = now;
        }
        verdict(grid, job, "used");
        let now = used();
        assert!(now.cpu() >= BUSY && now.wall > before.wall, "{before:?}, {now:?}");
    });
}

/// The most processor time of the control group that a process is in, as the kernel has it.
fn quota(pid: i32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let read = |root: &str, path: &str, file: &str| {
        fs::read_to_string(Path::new(root).join(path.trim_start_matches('/')).join(file)).ok()
    };
    let mut quotas = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => read("/sys/fs/cgroup", path, "cpu.max"),
            _ => {
                let has_cpu = controllers.split(',').any(|name| name == "cpu");
                has_cpu.then(|| read("/sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us")).flatten()
            }
        }
    });
    quotas.next().expect("it has a limit")
}

#[test]
fn a_task_that_has_moved_is_limited_as_before() {
    moving("a_task_that_has_moved_is_limited_as_before", shared, |grid: &Grid| {
        let job = begin(grid, 2, spec(grid, &programs::memory(8)));
        let quota_on = |node| quota(until_some("its process is found", || process(grid, node, job)));
        let before = quota_on(2);
        assert!(before.starts_with(|first: char| first.is_ascii_digit()), "{before}");
        for (to, mode) in [(3, MoveMode::Hybrid), (2, MoveMode::StopAndCopy)] {
            hop_by(grid, 1, job, to, mode);
            // It is told that it has moved as soon as it may go there.
            until("its limit is back", || quota_on(to) == before);
        }
        verdict(grid, job, "memory");
    });
}

/// Two threads, of which each runs on a processor of its own choice.
const PINNED: &str = r#"
both = sorted(os.sched_getaffinity(0))[:2]
def runs_on(processor): return os.sched_getaffinity(0) == {processor}
done, kept = threading.Event(), []
def other():
    os.sched_setaffinity(0, {both[1]})
    ready(); done.wait()
    kept.append(runs_on(both[1]))
thread = threading.Thread(target=other); thread.start()
os.sched_setaffinity(0, {both[0]})
while not gone(): time.sleep(0.01)
done.set(); thread.join()
check(runs_on(both[0]) and kept == [True], os.sched_getaffinity(0))
print('OK')
"#;

#[test]
fn threads_run_on_the_processors_that_they_chose() {
    moving("threads_run_on_the_processors_that_they_chose", shared, |grid: &Grid| {
        if std::thread::available_parallelism().unwrap().get() < 2 {
            let _ = writeln!(io::stdout(), "SKIPPED: with one processor there is no choice");
            return;
        }
        let script = format!("{}{PINNED}", programs::PRELUDE);
        let job = begin(grid, 2, JobSpec::command(["/usr/bin/python3", "-c", &script]));
        hop_by(grid, 1, job, 3, MoveMode::Hybrid);
        hop_by(grid, 1, job, 2, MoveMode::StopAndCopy);
        verdict(grid, job, "pinned");
    });
}

#[test]
fn a_drained_node_is_left_by_all_that_can_move_and_takes_no_more() {
    let config = GridConfig::new("a_drained_node", 3);
    moving(
        "a_drained_node_is_left_by_all_that_can_move_and_takes_no_more",
        || config.up(),
        |grid| {
            // Of two homes, the drained node's own among them; and one that may be nowhere else.
            let (spec, file) = witnessed(grid, "drained");
            let job = begin(grid, 2, spec);
            let own = grid.submit(2, on(spec_of_sleep(), 2));
            let bound = grid.submit(1, on(spec_of_sleep(), 2));
            let both = JobSpec { nodes: vec!["node2".into(), "node3".into()], ..spec_of_sleep() };
            let many: Vec<JobId> = (0..4).map(|_| grid.submit(2, both.clone())).collect();
            for job in many.iter().chain([&own, &bound]) {
                grid.until_running(1, *job);
            }
            let drained = grid.gridctl(3, ["drain", "node2", "--mode", "stop-and-copy", "--json"]);
            assert_eq!(drained.status, 1, "{drained:?}");
            let results: Value = serde_json::from_str(&drained.stdout).unwrap();
            for result in results.as_array().unwrap() {
                let task = result["task"].as_str().unwrap();
                match [own, bound].iter().any(|job| task == format!("{job}/0")) {
                    true => {
                        let stayed = result["stayed"].as_str().unwrap();
                        assert!(stayed.contains("may run on node2 alone"), "{result}");
                    }
                    false => {
                        assert!(
                            result["moved"]["to"] != 2 && result["moved"]["mode"] == "stop-and-copy",
                            "{result}"
                        );
                    }
                }
            }
            let on_two = |grid: &Grid, job: &JobId| grid.places(1, *job) == [Some(NodeId(2))];
            assert!(many.iter().chain([&job]).all(|job| !on_two(grid, job)));
            assert!(on_two(grid, &own) && on_two(grid, &bound));
            assert!(drained.stderr.contains("as it was submitted with --node"), "{drained:?}");

            grid.gridctl_as(1, NOBODY, Path::new("/"), ["drain", "node2"]).says(&["only root"]);
            grid.gridctl(1, ["drain", "node9"]).says(&["there is no node node9"]);

            // Also after its agent was started again, nothing new comes; until that is undone.
            grid.kill_agent(2);
            grid.until_up(1, 3);
            let waits = grid.submit(1, on(spec_of_sleep(), 2));
            until("it is told why it waits", || {
                grid.job(1, waits)
                    .summary
                    .why
                    .is_some_and(|why| why.contains("the only node that may run it, 2, is drained"))
            });
            until("the others hear of it again", || grid.gridctl(3, ["nodes"]).ok().contains("up, drained"));
            until("it is told why it does not move", || {
                let moved = grid.gridctl(1, ["migrate", &job.to_string(), "--to", "node2"]);
                moved.stderr.contains("node 2 is drained, and takes no tasks: gridctl drain 2 --undo")
            });
            until("the node can be asked again", || {
                let undone = grid.gridctl(1, ["drain", "node2", "--undo"]);
                undone.status == 0 && undone.ok() == "node2 takes tasks again"
            });
            grid.until_running(1, waits);
            counted(&verdict(grid, job, "drained"), &file);
        },
    );
}

fn on(spec: JobSpec, node: u32) -> JobSpec {
    JobSpec { nodes: vec![format!("node{node}")], ..spec }
}

fn spec_of_sleep() -> JobSpec {
    JobSpec::command(["sleep", "1000"]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

#[test]
fn what_cannot_be_moved_is_told_and_left_alone() {
    moving("what_cannot_be_moved_is_told_and_left_alone", shared, |grid: &Grid| {
        let (spec, file) = witnessed(grid, "refused");
        let job = begin(grid, 2, spec);
        let name = job.to_string();
        let migrate = |more: &[&str]| {
            let mut words = vec!["migrate", &name];
            words.extend(more);
            grid.gridctl(3, words)
        };
        migrate(&["--to", "node2"]).says(&[" is on node2 already"]);
        migrate(&["--to", "2"]).says(&[" is on node 2 already"]);
        migrate(&["--to", "nowhere"]).says(&["there is no node nowhere", "gridctl nodes"]);
        let stranger = grid.gridctl_as(1, NOBODY, Path::new("/"), ["migrate", &name, "--to", "node3"]);
        stranger.says(&["root@node1's, and you are"]);
        grid.gridctl(1, ["migrate", "j1.9999"]).says(&["there is no j1.9999"]);
        assert_eq!(
            migrate(&["--to", "node3", "--check"]).ok(),
            format!("{job}/0 can move from node 2 to node 3")
        );
        let check = migrate(&["--check", "--json"]).json();
        assert_eq!((&check[0]["from"], &check[0]["obstacles"]), (&2.into(), &Value::Array(Vec::new())));

        let mut bound = spec_of_sleep();
        bound.nodes = vec!["node2".into()];
        let bound = grid.submit(1, bound);
        grid.until_running(1, bound);
        let refused = grid.gridctl(1, ["migrate", &bound.to_string(), "--to", "node3"]);
        refused.says(&["may run on node2 alone", "--node"]);
        grid.gridctl(1, ["migrate", &bound.to_string()]).says(&["may run on node2 alone", "--node"]);
        grid.gridctl(1, ["kill", &bound.to_string()]).ok();

        // One with a connection.
        let connected = r#"
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
ready(); wait()
c.send(b'x'); check(a.recv(1) == b'x')
print('OK')
"#;
        let script = format!("{}{connected}", programs::PRELUDE);
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &script]).memory(Bytes(64 << 20));
        let other = grid.submit(1, spec);
        until("it is ready", || grid.logs(1, other, 0).contains("ready"));
        let from = grid.places(1, other)[0].unwrap().0;
        let to = if from == 2 { 3 } else { 2 };
        let words = ["migrate", &other.to_string(), "--to", &format!("node{to}"), "--check"];
        let refused = grid.gridctl(1, &words[..4]);
        refused.says(&[&format!("cannot move to node {to}, and runs on"), "connection", "127.0.0.1"]);
        let checked = grid.gridctl(1, words);
        let told = format!("cannot move from node {from} to node {to}");
        assert!(checked.stdout.contains(&told) && checked.status == 1, "{checked:?}");
        verdict(grid, other, "connected");

        // What belongs to no process, or lies where CRIU cannot name it.
        let objects = r#"
import ctypes
c = ctypes.CDLL(None, use_errno=True)
check(c.semget(0x77, 1, 0o1600) >= 0 and c.msgget(0x78, 0o1600) >= 0 and c.shmget(0x79, 4096, 0o1600) >= 0)
check(c.mq_open(b'/q', os.O_CREAT | os.O_RDWR, 0o600, None) >= 0)
ready(); wait()
print('OK')
"#;
        let script = format!("{}{objects}", programs::PRELUDE);
        let spec = JobSpec::command(["/usr/bin/python3", "-c", &script]).memory(Bytes(64 << 20));
        let other = grid.submit(1, spec);
        until("it is ready", || grid.logs(1, other, 0).contains("ready"));
        let checked = grid.gridctl(1, ["migrate", &other.to_string(), "--check"]);
        for what in
            ["V semaphores", "V message queues", "V shared memory that no", "POSIX message queue /q open"]
        {
            assert!(checked.status == 1 && checked.stdout.contains(what), "{what}: {checked:?}");
        }
        let refused = grid.gridctl(1, ["checkpoint", &other.to_string()]);
        assert!(refused.status != 0 && refused.stderr.contains("V semaphores"), "{refused:?}");
        verdict(grid, other, "objects");

        counted(&verdict(grid, job, "refused"), &file);
        grid.gridctl(1, ["migrate", &name]).says(&["no task of", "runs now"]);
    });
}

#[test]
fn without_soft_dirty_bits_pre_copy_is_refused_and_the_task_left_alone() {
    moving("without_soft_dirty_bits_pre_copy_is_refused", shared, |grid: &Grid| {
        let (spec, file) = witnessed(grid, "precopy");
        let job = begin(grid, 2, spec);
        if has_soft_dirty(grid) {
            hop_by(grid, 1, job, 3, MoveMode::PreCopy);
        } else {
            let mut words = vec!["migrate", "", "--to", "node3", "--mode", "pre-copy"];
            let name = job.to_string();
            words[1] = &name;
            let says = [
                "/0 cannot move to node 3, and runs on",
                "the kernel of node 2 does not note which memory a program writes to",
                "CONFIG_MEM_SOFT_DIRTY",
                "use --mode hybrid or --mode stop-and-copy",
            ];
            let refused = grid.gridctl(1, &words);
            assert_eq!((refused.status, refused.stderr.lines().count()), (1, 1), "{refused:?}");
            refused.says(&says);
            words.push("--check");
            let checked = grid.gridctl(3, &words);
            assert!(checked.status == 1 && checked.stdout.contains(says[1]), "{checked:?}");
            assert_eq!(grid.places(1, job), [Some(NodeId(2))]);
        }
        counted(&verdict(grid, job, "precopy"), &file);
    });
}

#[test]
fn what_shares_more_memory_than_it_may_have_is_stopped_and_copied() {
    moving("what_shares_more_memory_than_it_may_have_is_stopped_and_copied", shared, |grid: &Grid| {
        let program = programs::all().into_iter().find(|program| program.name == "memory").unwrap();
        let spec = JobSpec { nodes: vec!["node2".into(), "node3".into()], ..spec(grid, &program) };
        let job = grid.submit(1, spec);
        until("it is ready", || grid.logs(1, job, 0).contains("ready"));
        let from = grid.places(1, job)[0].unwrap().0;
        let to = if from == 2 { 3 } else { 2 };
        let hybrid = ["migrate", &job.to_string(), "--to", &format!("node{to}"), "--mode", "hybrid"];
        let refused = grid.gridctl(1, hybrid);
        refused.says(&["goes on where it was", "its processes share memory", "it may have 400M"]);
        let next = if has_soft_dirty(grid) { "pre-copy" } else { "stop-and-copy" };
        assert_eq!(hop(grid, 1, job, to)["mode"], next);
        verdict(grid, job, "memory");

        // What shares nothing is not stopped for its memory.
        let program = programs::all().into_iter().find(|program| program.name == "counter").unwrap();
        let other = begin(grid, 2, self::spec(grid, &program));
        assert_eq!(hop(grid, 1, other, 3)["mode"], "hybrid");
        verdict(grid, other, "counter");
    });
}

#[test]
fn a_place_is_ready_before_a_task_stands_still() {
    moving("a_place_is_ready_before_a_task_stands_still", shared, |grid: &Grid| {
        // Its processes share what each has of its own afterwards.
        let spec = JobSpec { memory: Bytes(2 << 30), ..spec(grid, &programs::memory(512)) };
        let job = begin(grid, 2, spec);
        let moving = grid.start(1, ["migrate", &job.to_string(), "--to", "node3", "--mode", "hybrid"]);
        // Init, a process beside it, and CRIU, which waits for the images.
        let fresh = grid.machine(2).dir().join("state/checkpoints/fresh");
        until("CRIU waits on the other node", || grid.task_processes(3).len() > 2);
        assert!(fs::read_dir(&fresh).unwrap().next().is_none(), "the task stands still already");
        assert_eq!(moving.wait().status, 0);
        verdict(grid, job, "memory");
        until("no process is left", || grid.task_processes(3).is_empty());
    });
}
