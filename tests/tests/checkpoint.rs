//! Checkpoints, as users see them: written by hand and by themselves, listed, gone back to, and what lost tasks go on from.
//! The tasks count; that nothing is missing and nothing comes twice in what they print and write is the verdict.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use grid_tests::{Grid, GridConfig, NOBODY, until, until_some, with};
use libgrid::ids::JobId;
use libgrid::spec::{Checkpoints, JobSpec};
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Runs the body on this grid, if CRIU works here.
fn checkpointed(test: &str, config: GridConfig, body: impl FnOnce(&Grid)) {
    with(
        test,
        || config.up(),
        |grid| {
            let findings = grid.gridctl(1, ["doctor", "--json"]).json();
            let criu = findings
                .as_array()
                .unwrap()
                .iter()
                .find(|finding| finding["subject"] == "checkpoints")
                .unwrap();
            if criu["text"].as_str().unwrap().starts_with("CRIU 4") {
                body(grid);
            } else {
                let _ = writeln!(io::stdout(), "SKIPPED: {}", criu["text"]);
            }
        },
    );
}

/// Counts on its output and into a file, until the file `end` is there.
fn counter(grid: &Grid, node: u32) -> JobSpec {
    let end = grid.dir().join("end");
    let script = format!(
        "i=0; while [ ! -e {} ]; do i=$((i+1)); echo $i; echo $i >> counted; sleep 0.02; done; echo OK",
        end.display()
    );
    JobSpec::command(["sh", "-c", &script])
        .cpus(Cpus::from_milli(500))
        .memory(Bytes(64 << 20))
        .stage_out(["counted"])
        .nodes([format!("node{node}")])
}

trait Nodes {
    fn nodes<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Self;
}

impl Nodes for JobSpec {
    fn nodes<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.nodes.extend(names.into_iter().map(Into::into));
        self
    }
}

/// How far it has counted.
fn count(grid: &Grid, job: JobId) -> u64 {
    grid.logs(1, job, 0).lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or(0)
}

fn until_counted(grid: &Grid, job: JobId, more: u64) -> u64 {
    let from = count(grid, job);
    until("it counts on", || count(grid, job) >= from + more);
    count(grid, job)
}

/// Lets it end. All numbers are there once, in order, in its output and in its results.
fn ends_well(grid: &Grid, job: JobId) {
    fs::write(grid.dir().join("end"), "").unwrap();
    let status = grid.wait(1, job);
    assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(0)), "{status:#?}");
    let printed = grid.logs(1, job, 0);
    let numbers = whole(printed.strip_suffix("OK\n").unwrap_or_else(|| panic!("no end: {printed}")));
    let written = fs::read_to_string(grid.dir().join("counted")).unwrap();
    assert_eq!(whole(&written), numbers);
}

/// How many numbers there are; none is missing, and none is there twice.
fn whole(text: &str) -> u64 {
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
    numbers.len() as u64
}

/// Those that are where the task runs; its home may have some, too.
fn listed(grid: &Grid, job: JobId) -> Vec<Value> {
    let all = grid.gridctl(1, ["checkpoints", &job.to_string(), "--json"]).json();
    // Not placed yet, it has none.
    let node = grid.places(1, job)[0].map_or(0, |node| node.0);
    all[0]["checkpoints"].as_array().unwrap().iter().filter(|each| each["node"] == node).cloned().collect()
}

fn numbers(grid: &Grid, job: JobId) -> Vec<u64> {
    listed(grid, job).iter().map(|checkpoint| checkpoint["number"].as_u64().unwrap()).collect()
}

/// What `gridctl status` says of the task.
fn told(grid: &Grid, job: JobId) -> String {
    grid.job(1, job).tasks[0].why.clone().unwrap_or_default()
}

/// Waits until the task runs for the `epoch`th time; returns what is told of it.
fn until_again(grid: &Grid, job: JobId, epoch: u32) -> String {
    until_some(&format!("it runs for time {epoch}"), || {
        let status = grid.try_job(1, job)?;
        let task = &status.tasks[0];
        assert!(task.epoch <= epoch && task.outcome.is_none(), "{task:#?}");
        (task.epoch == epoch && task.state == libgrid::status::TaskState::Running).then_some(())?;
        task.why.clone().filter(|why| why.contains("checkpoint"))
    })
}

fn store(grid: &Grid, node: u32) -> PathBuf {
    grid.machine(node).dir().join("state/checkpoints/store")
}

/// Nothing is left of any checkpoint.
fn until_clean(grid: &Grid, node: u32) {
    let files = |path: &Path| fs::read_dir(path).map_or(0, |entries| entries.count());
    until("nothing is left of the checkpoints", || {
        let folder = store(grid, node).parent().unwrap().to_owned();
        let chunks = store(grid, node).join("chunks");
        let left: usize = fs::read_dir(chunks).unwrap().flatten().map(|half| files(&half.path())).sum();
        left + files(&store(grid, node).join("tasks"))
            + files(&folder.join("fresh"))
            + files(&folder.join("unpacked"))
            == 0
    });
    until("no process is left", || grid.task_processes(node).is_empty());
}

/// Kills the shim of what runs on a node, as a lack of memory might.
fn kill_shim(grid: &Grid, node: u32) {
    let field = |pid: i32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let mut pid = grid.task_processes(node)[0];
    while field(pid, "Name:").as_deref() != Some("gridos-shim") {
        pid = field(pid, "PPid:").unwrap().parse().unwrap();
        assert!(pid > 1, "no shim");
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_task_goes_back_to_the_checkpoint_that_its_user_names() {
    let config = GridConfig::new("a_task_goes_back", 3);
    checkpointed("a_task_goes_back_to_the_checkpoint_that_its_user_names", config, |grid| {
        let job = grid.submit(1, counter(grid, 2));
        let name = job.to_string();
        grid.until_running(1, job);
        let follower = grid.start(3, ["logs", "-f", &name]);
        until_counted(grid, job, 5);
        // From a node that is neither its home nor its host.
        let written = grid.gridctl(3, ["checkpoint", &name, "--json"]).json();
        let first = &written[0]["checkpoints"][0];
        assert_eq!(
            (&first["number"], &first["node"], &first["interval"]),
            (&1.into(), &2.into(), &Value::Null)
        );
        assert!(first["bytes"].as_u64().unwrap() > 10_000, "{first}");
        until_counted(grid, job, 5);
        let printed = grid.gridctl(1, ["checkpoint", &name]).ok().to_owned();
        assert!(printed.contains("by hand") && printed.lines().count() == 2, "{printed}");
        let far = until_counted(grid, job, 20);
        assert_eq!(numbers(grid, job), [1, 2]);

        let back = grid.gridctl(3, ["restore", &name, "--from", "1"]);
        assert_eq!(back.ok(), format!("{job}/0 goes on from checkpoint 1"));
        assert_eq!(until_again(grid, job, 2), "went on from checkpoint 1");
        assert!(count(grid, job) < far, "it is where it was");
        until("the later one is dropped", || numbers(grid, job) == [1]);
        until_counted(grid, job, 5);
        grid.gridctl(1, ["checkpoint", &name]).ok();
        assert_eq!(numbers(grid, job), [1, 3], "a number is used once");
        // Without a number, the newest.
        assert!(grid.gridctl(1, ["restore", &name]).ok().ends_with("from checkpoint 3"));
        until_again(grid, job, 3);

        // What cannot be is told, and leaves the task alone.
        let refused = |args: &[&str], words: &[&str]| grid.gridctl(3, args).says(words);
        refused(&["restore", &name, "--from", "9"], &["no checkpoint 9 of", "gridctl checkpoints"]);
        refused(&["checkpoint", "j1.99"], &["there is no j1.99"]);
        let stranger = grid.gridctl_as(1, NOBODY, Path::new("/"), ["checkpoint", &name]);
        stranger.says(&["root@node1's, and you are"]);
        let stranger = grid.gridctl_as(3, NOBODY, Path::new("/"), ["restore", &name]);
        stranger.says(&["root@node1's, and you are"]);
        grid.gridctl_as(1, NOBODY, Path::new("/"), ["checkpoints", &name])
            .says(&["root@node1's, and you are"]);
        assert_eq!(grid.job(1, job).tasks[0].epoch, 3);

        // Who follows saw it count before: what it prints again is not shown again.
        let seen = follower.printed().lines().count() as u64;
        until("it is further than ever", || count(grid, job) > seen + 5);
        ends_well(grid, job);
        let followed = follower.wait();
        let followed = followed.ok();
        whole(followed.strip_suffix("\nOK").unwrap_or_else(|| panic!("no end: {followed}")));
        refused(&["checkpoint", &name], &["no task of", "runs now"]);
        refused(&["restore", &name], &["is done, and its checkpoints are gone"]);
        until_clean(grid, 2);
        until_clean(grid, 1);
    });
}

#[test]
fn a_lost_task_goes_on_from_its_newest_checkpoint() {
    let config = GridConfig::new("a_lost_task_goes_on", 3);
    checkpointed("a_lost_task_goes_on_from_its_newest_checkpoint", config, |grid| {
        let every = "every=1s".parse::<Checkpoints>().unwrap();
        let job = grid.submit(1, counter(grid, 2).checkpoint(every));
        until("two checkpoints are kept, and older ones are not", || numbers(grid, job).last() >= Some(&3));
        assert_eq!(numbers(grid, job).len(), 2);
        // The agent is started again: they go on being written.
        grid.kill_agent(2);
        let before = numbers_soon(grid, job);
        until("they go on", || numbers_soon(grid, job) > before + 1);
        kill_shim(grid, 2);
        let told = until_again(grid, job, 2);
        assert!(told.starts_with("went on from checkpoint "), "{told}");
        until_counted(grid, job, 5);
        let before = numbers_soon(grid, job);
        until("and on", || numbers_soon(grid, job) > before);
        ends_well(grid, job);
        until_clean(grid, 2);
        until_clean(grid, 1);
    });
}

/// The newest number, as soon as it can be asked for.
fn numbers_soon(grid: &Grid, job: JobId) -> u64 {
    until_some("its checkpoints are listed", || {
        let run = grid.gridctl(1, ["checkpoints", &job.to_string(), "--json"]);
        let all: Value = serde_json::from_str(&run.stdout).ok()?;
        all[0]["checkpoints"].as_array()?.last()?["number"].as_u64()
    })
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let config = GridConfig::new("a_damaged_checkpoint", 1);
    checkpointed("a_damaged_checkpoint_is_passed_over", config, |grid| {
        let job = grid.submit(1, counter(grid, 1));
        let name = job.to_string();
        grid.until_running(1, job);
        for _ in 0..2 {
            until_counted(grid, job, 5);
            grid.gridctl(1, ["checkpoint", &name]).ok();
        }
        let manifest = store(grid, 1).join(format!("tasks/{job}-0/2"));
        let bytes = fs::read(&manifest).unwrap();
        fs::write(&manifest, &bytes[..bytes.len() / 2]).unwrap();
        grid.gridctl(1, ["restore", &name, "--from", "2"]).says(&[
            "checkpoint 2 of",
            "is damaged",
            "choose another",
        ]);
        assert_eq!(grid.job(1, job).tasks[0].epoch, 1, "it was left alone");
        kill_shim(grid, 1);
        let told = until_again(grid, job, 2);
        assert!(
            told.starts_with("went on from checkpoint 1: checkpoint 2: ") && told.contains("damaged"),
            "{told}"
        );
        until_counted(grid, job, 5);
        // With none that is whole, it begins anew: that is told, too.
        until("the damaged one is dropped", || numbers(grid, job) == [1]);
        spoil(grid, 1);
        kill_shim(grid, 1);
        let told = until_again(grid, job, 3);
        assert!(told.starts_with("began anew: there is no checkpoint of"), "{told}");
        until_counted(grid, job, 5);
        ends_well(grid, job);
        until_clean(grid, 1);
    });
}

#[test]
fn what_cannot_be_checkpointed_runs_on_and_says_why() {
    let config = GridConfig::new("what_cannot_be", 1);
    checkpointed("what_cannot_be_checkpointed_runs_on_and_says_why", config, |grid| {
        let end = grid.dir().join("end");
        let script = format!(
            "import socket, os, time\na = socket.create_server(('127.0.0.1', 0))\n\
             b = socket.create_connection(a.getsockname()); c, _ = a.accept()\nprint('up', flush=True)\n\
             while not os.path.exists('{}'): time.sleep(0.01)\nb.send(b'whole'); print(c.recv(9))",
            end.display()
        );
        let spec =
            JobSpec::command(["python3", "-c", &script]).cpus(Cpus::from_milli(500)).memory(Bytes(64 << 20));
        let job = grid.submit(1, spec.checkpoint("every=1s".parse().unwrap()));
        until("it is up", || grid.logs(1, job, 0) == "up\n");
        grid.gridctl(1, ["checkpoint", &job.to_string()])
            .says(&["no checkpoint of", "has a TCP connection with"]);
        until("its status says why", || {
            told(grid, job).starts_with("its last checkpoint could not be written: process")
        });
        let list = grid.gridctl(1, ["checkpoints", &job.to_string()]);
        assert!(list.stderr.contains("has a TCP connection with") && list.status == 0, "{list:?}");
        fs::write(end, "").unwrap();
        assert!(grid.wait(1, job).summary.succeeded());
        assert_eq!(grid.logs(1, job, 0), "up\nb'whole'\n");
        // One that is typed into would go on without its user.
        let mut typed = grid.start(1, ["run", "--", "cat"]);
        let job = until_some("it runs", || {
            let jobs = grid.gridctl(1, ["ps", "--json"]).json();
            let job = jobs["jobs"].as_array()?.first()?["id"].as_str()?.parse::<JobId>().ok()?;
            grid.try_job(1, job)?.tasks.first()?.started.map(|_| job)
        });
        grid.gridctl(1, ["checkpoint", &job.to_string()]).says(&["is typed into"]);
        typed.end_input();
        typed.wait().ok();
        until_clean(grid, 1);
    });
}

#[test]
fn the_interval_adapts_and_the_store_has_a_limit() {
    let extra = "[checkpoints]\nshortest = '1s'\nlongest = '2s'\nkeep = 3\n";
    let config = GridConfig { extra, ..GridConfig::new("the_interval_adapts", 1) };
    checkpointed("the_interval_adapts_and_the_store_has_a_limit", config, |grid| {
        let job = grid.submit(1, counter(grid, 1).checkpoint(Checkpoints::Adaptive));
        until("checkpoints are written by themselves", || numbers(grid, job).last() >= Some(&4));
        assert_eq!(numbers(grid, job).len(), 3);
        let newest = listed(grid, job).pop().unwrap();
        let interval = newest["interval"]["secs"].as_u64().unwrap();
        assert!((1..=5).contains(&interval), "{newest}");
        ends_well(grid, job);
        until_clean(grid, 1);
    });
    let config =
        GridConfig { extra: "[checkpoints]\nlimit = '1K'\n", ..GridConfig::new("the_store_is_full", 1) };
    checkpointed("the_store_has_a_limit", config, |grid| {
        let job = grid.submit(1, counter(grid, 1));
        grid.until_running(1, job);
        until_counted(grid, job, 5);
        grid.gridctl(1, ["checkpoint", &job.to_string()]).ok();
        let full = grid.gridctl(1, ["checkpoint", &job.to_string()]);
        full.says(&["the checkpoints on this node take", "it lends 1K for them", "[checkpoints]"]);
        assert_eq!(numbers(grid, job), [1], "the one that is there stays");
        ends_well(grid, job);
        until_clean(grid, 1);
    });
}

#[test]
fn after_the_machine_went_down_a_task_goes_on() {
    let config = GridConfig::new("after_the_machine", 1);
    checkpointed("after_the_machine_went_down_a_task_goes_on", config, |grid| {
        let job = grid.submit(1, counter(grid, 1).checkpoint("every=1s".parse().unwrap()));
        until("a checkpoint is there", || numbers(grid, job).last() >= Some(&1));
        grid.machine(1).kill().unwrap();
        grid.machine(1).boot().unwrap();
        let told = until_again(grid, job, 2);
        assert!(told.starts_with("went on from checkpoint "), "{told}");
        until_counted(grid, job, 5);
        ends_well(grid, job);
        until_clean(grid, 1);
    });
}

/// The numbers that the home, node 1, has.
fn exported(grid: &Grid, job: JobId) -> Vec<u64> {
    kept(grid, 1, job)
}

/// The numbers that a node has.
fn kept(grid: &Grid, node: u32, job: JobId) -> Vec<u64> {
    let folder = store(grid, node).join(format!("tasks/{job}-0"));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Starts a counter on node 2 or 3, and waits until its home has a checkpoint; returns the job and its node.
fn exporting(grid: &Grid) -> (JobId, u32) {
    let spec = JobSpec { nodes: Vec::new(), ..counter(grid, 2) }.nodes(["node2", "node3"]);
    let job = grid.submit(1, spec.checkpoint("every=1s".parse().unwrap()));
    until("its home has a checkpoint", || !exported(grid, job).is_empty());
    let node = grid.places(1, job)[0].unwrap().0;
    until_counted(grid, job, 5);
    (job, node)
}

/// It runs on the other node, from a checkpoint of its home's.
fn until_elsewhere(grid: &Grid, job: JobId, node: u32) {
    let told = until_again(grid, job, 2);
    assert!(told.starts_with("went on from checkpoint ") && !told.contains(':'), "{told}");
    assert_eq!(grid.places(1, job)[0].unwrap().0, 5 - node);
    until_counted(grid, job, 5);
}

#[test]
fn the_task_of_a_lost_node_goes_on_elsewhere() {
    let config = GridConfig::new("the_task_of_a_lost_node", 3);
    checkpointed("the_task_of_a_lost_node_goes_on_elsewhere", config, |grid| {
        let (job, node) = exporting(grid);
        grid.machine(node).kill().unwrap();
        until_elsewhere(grid, job, node);
        // It is exported from there, too, and numbers go on.
        let before = exported(grid, job).into_iter().max().unwrap();
        until("its home has a newer one", || exported(grid, job).into_iter().max() > Some(before));
        ends_well(grid, job);
        grid.machine(node).boot().unwrap();
        (1..=3).for_each(|node| until_clean(grid, node));
    });
}

#[test]
fn a_task_that_was_cut_off_does_not_run_twice() {
    let config = GridConfig::new("a_task_that_was_cut_off", 3);
    checkpointed("a_task_that_was_cut_off_does_not_run_twice", config, |grid| {
        let (job, node) = exporting(grid);
        grid.machine(node).cut().unwrap();
        until_elsewhere(grid, job, node);
        assert!(!grid.task_processes(node).is_empty(), "nothing is left to be fenced");
        grid.machine(node).heal().unwrap();
        until("the old run is ended", || grid.task_processes(node).is_empty());
        until_counted(grid, job, 5);
        ends_well(grid, job);
        (1..=3).for_each(|node| until_clean(grid, node));
    });
}

#[test]
fn what_is_damaged_on_its_node_comes_from_its_home() {
    let config = GridConfig::new("what_is_damaged", 2);
    checkpointed("what_is_damaged_on_its_node_comes_from_its_home", config, |grid| {
        let job = grid.submit(1, counter(grid, 2));
        grid.until_running(1, job);
        until_counted(grid, job, 5);
        grid.gridctl(1, ["checkpoint", &job.to_string()]).ok();
        until("its home has it", || exported(grid, job) == [1]);
        until("that is written down", || {
            let all = grid.gridctl(2, ["checkpoints", &job.to_string(), "--json"]).json();
            all[0]["checkpoints"].as_array().unwrap().iter().any(|each| each["node"] == 1)
        });
        until_counted(grid, job, 5);
        spoil(grid, 2);
        kill_shim(grid, 2);
        let told = until_again(grid, job, 2);
        assert!(told.starts_with("went on from checkpoint 1: there is no checkpoint of"), "{told}");
        ends_well(grid, job);
        (1..=2).for_each(|node| until_clean(grid, node));
    });
}

#[test]
fn what_is_lost_on_a_home_that_runs_its_task_comes_from_a_second_node() {
    let config = GridConfig::new("what_is_lost_on_a_home", 3);
    checkpointed("what_is_lost_on_a_home_that_runs_its_task_comes_from_a_second_node", config, |grid| {
        let job = grid.submit(1, counter(grid, 1));
        grid.until_running(1, job);
        let another = |number: u64| {
            until_counted(grid, job, 5);
            grid.gridctl(1, ["checkpoint", &job.to_string()]).ok();
            let second = until_some("its home knows that a second node has it", || {
                let all = grid.gridctl(3, ["checkpoints", &job.to_string(), "--json"]).json();
                let all = all[0]["checkpoints"].as_array().unwrap();
                let there = all.iter().find(|each| each["number"] == number && each["node"] != 1);
                there.map(|each| each["node"].as_u64().unwrap() as u32)
            });
            assert!(kept(grid, second, job).contains(&number), "it is not in the store of node {second}");
            until_counted(grid, job, 5);
            second
        };
        let second = another(1);
        spoil(grid, 1);
        kill_shim(grid, 1);
        let told = until_again(grid, job, 2);
        assert!(told.starts_with("went on from checkpoint 1: there is no checkpoint of"), "{told}");
        // The same node as before has the next.
        assert_eq!(another(2), second);
        grid.machine(1).kill().unwrap();
        fs::remove_dir_all(store(grid, 1)).unwrap();
        grid.machine(1).boot().unwrap();
        let told = until_again(grid, job, 3);
        assert_eq!(told, "went on from checkpoint 2");
        until_counted(grid, job, 5);
        ends_well(grid, job);
        (1..=3).for_each(|node| until_clean(grid, node));
    });
}

/// Damages all that a node has.
fn spoil(grid: &Grid, node: u32) {
    for half in fs::read_dir(store(grid, node).join("chunks")).unwrap().flatten() {
        for chunk in fs::read_dir(half.path()).unwrap().flatten() {
            fs::write(chunk.path(), "x").unwrap();
        }
    }
}
