//! What a user does with a grid: join, submit, watch, kill, over three real nodes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use grid_tests::{Grid, GridConfig, Shared, until, with};
use libgrid::control::Stream;
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::{Outcome, TaskState};
use libgrid::units::{Bytes, Cpus};

static GRID: Shared = Shared::new();

/// Three nodes of 8 cores, which the tests here share.
fn grid() -> Arc<Grid> {
    GRID.get(|| Grid::up("grid", 3))
}

fn sh(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

fn job_of(text: &str) -> JobId {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no job"))
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

// === joining ===

#[test]
fn three_commands_make_a_grid_of_two_machines() {
    let make = || GridConfig { members: 0, ..GridConfig::new("join", 2) }.up();
    with("three_commands_make_a_grid_of_two_machines", make, |grid| {
        grid.client(1);
        grid.client(2);
        // The lab keeps the agent running, with the lab's configuration.
        ["up", "down"].iter().for_each(|word| grid.gridctl(1, [word]).says(&["is of a lab", "lab kill"]));
        grid.gridctl(1, ["nodes"]).says(&["in no VO", "gridctl vo create"]);
        grid.gridctl(1, ["submit", "--", "true"]).says(&["in no VO", "gridctl join"]);
        assert!(grid.gridctl(1, ["vo", "create", "lab"]).ok().contains("node 1 of VO lab"));
        let token = grid.gridctl(1, ["token", "create", "--expires", "24h"]).ok().to_owned();
        assert!(grid.gridctl(2, ["join", &token]).ok().contains("node 2 of VO lab"));
        for index in [1, 2] {
            grid.until_up(index, 2);
            let text = grid.gridctl(index, ["nodes"]).ok().to_owned();
            assert_eq!(text.lines().filter(|line| line.contains(" up ")).count(), 2, "{text}");
            let nodes = grid.gridctl(index, ["nodes", "--json"]).json();
            let names: Vec<_> =
                nodes.as_array().unwrap().iter().map(|node| node["info"]["name"].as_str().unwrap()).collect();
            assert_eq!(names, ["node1", "node2"]);
        }
        let doctor = grid.gridctl(2, ["doctor"]);
        assert!(doctor.ok().contains("tier") || doctor.ok().contains("stack"), "{doctor:?}");
        assert!(grid.gridctl(2, ["doctor", "--json"]).json().is_array());
    });
}

// === submitting ===

#[test]
fn a_job_from_any_node_ends_with_its_own_status() {
    with("a_job_from_any_node_ends_with_its_own_status", grid, |grid| {
        for index in 1..=3 {
            let submitted = grid.gridctl(index, ["submit", "--cpus", "0.1", "--", "sh", "-c", "exit 7"]);
            let job = submitted.ok();
            assert_eq!(job_of(job).home.0, index);
            // From wherever it is asked.
            for asked in 1..=3 {
                let waited = grid.gridctl(asked, ["wait", job]);
                assert_eq!(waited.status, 7, "{waited:?}");
                assert!(waited.stderr.contains("ended with status 7"), "{waited:?}");
            }
            let fine = grid.gridctl(index, ["submit", "--cpus", "0.1", "--", "true"]);
            assert_eq!(grid.gridctl(index, ["wait", fine.ok()]).status, 0);
        }
    });
}

#[test]
fn an_array_spreads_over_the_nodes_and_knows_its_indices() {
    with("an_array_spreads_over_the_nodes_and_knows_its_indices", grid, |grid| {
        let folder = grid.folder("array", 0);
        let script = r#"test "$1" = "$GRIDOS_INDEX" && test "$WHICH" = "no $1" && mkdir out &&
            echo "I am $1" | tee "out/of $1" && touch "out/other" && sleep 0.5"#;
        let args =
            ["submit", "--array", "3-14", "--cpus", "0.2", "--mem", "64M", "--env", "WHICH=no {index}"];
        let rest = ["--stage-out", "out/of {index}", "--", "sh", "-c", script, "sh", "{index}"];
        let job = grid.gridctl_as(2, 0, &folder, args.iter().chain(&rest)).ok().to_owned();
        let status = grid.wait(2, job_of(&job));
        assert!(status.summary.succeeded(), "{status:#?}");
        assert_eq!(
            status.tasks.iter().map(|task| task.index).collect::<Vec<_>>(),
            (3..=14).collect::<Vec<_>>()
        );
        let places: BTreeSet<_> = status.tasks.iter().map(|task| task.node).collect();
        assert_eq!(places.len(), 3, "not on all nodes: {places:?}");
        for index in 3..=14 {
            let path = folder.join(format!("out/of {index}"));
            assert_eq!(fs::read_to_string(path).unwrap(), format!("I am {index}\n"));
            assert_eq!(grid.logs(1, job_of(&job), index), format!("I am {index}\n"));
        }
        // What no pattern names stays away.
        assert!(!folder.join("out/other").exists());
        let one = grid.gridctl(1, ["logs", &format!("{job}/5")]);
        assert_eq!(one.ok(), "I am 5");
        let all = grid.gridctl(1, ["logs", &job]);
        assert!(all.ok().contains(&format!("==> {job}/14 <==\nI am 14")), "{all:?}");
    });
}

#[test]
fn a_job_file_is_submitted_or_refused_with_line_and_column() {
    with("a_job_file_is_submitted_or_refused_with_line_and_column", grid, |grid| {
        let folder = grid.folder("file", 0);
        let text = "name = 'from a file'\ncommand = ['sh', '-c', 'echo $WORD > result; exit 3']\n\
                    cpus = 0.1\nmemory = '64M'\nstage_out = ['result']\n[env]\nWORD = 'hello'\n";
        fs::write(folder.join("job.toml"), text).unwrap();
        let job = grid.gridctl_as(1, 0, &folder, ["submit", "job.toml"]).ok().to_owned();
        let status = grid.wait(1, job_of(&job));
        assert_eq!(status.summary.name, "from a file");
        assert_eq!(status.summary.exit_status, Some(3));
        assert_eq!(fs::read_to_string(folder.join("result")).unwrap(), "hello\n");

        let before = grid.gridctl(1, ["ps", "--all", "--json"]).json()["jobs"].as_array().unwrap().len();
        for (text, says) in [
            ("comand = ['x']", "line 1, column 1: unknown field `comand`"),
            ("cpus = 1", "missing field `command`"),
            ("command = ['x']\ntime = 'soon'", "line 2, column 8"),
            ("command = ['x'\n", "line 1, column 15"),
            ("command = ['x']\narray = '0-200000'", "over the limit of 100000"),
            ("command = ['x']\nstage_in = ['../secret']", "without '..'"),
        ] {
            fs::write(folder.join("bad.toml"), text).unwrap();
            let refused = grid.gridctl_as(1, 0, &folder, ["submit", "bad.toml"]);
            refused.says(&["bad.toml", says]);
        }
        grid.gridctl_as(1, 0, &folder, ["submit", "absent.toml"]).says(&["absent.toml", "No such file"]);
        let after = grid.gridctl(1, ["ps", "--all", "--json"]).json()["jobs"].as_array().unwrap().len();
        // Tests beside this one submit as well, so jobs may come; the refused ones are no jobs.
        let jobs = grid.gridctl(1, ["ps", "--all", "--json"]).json();
        assert!(after >= before && jobs["jobs"].as_array().unwrap().iter().all(|job| job["name"] != "x"));
    });
}

#[test]
fn a_program_that_cannot_run_is_told_in_one_sentence() {
    with("a_program_that_cannot_run_is_told_in_one_sentence", grid, |grid| {
        let folder = grid.folder("programs", 0);
        fs::write(folder.join("text"), "just text").unwrap();
        for (args, says) in [
            (vec!["--", "./absent"], "cannot run ./absent"),
            (vec!["--", "./text"], "chmod +x ./text"),
            (vec!["--", "../up"], "../up"),
            (vec![], "no program to run"),
            (vec!["--stage-in", "nothing", "--", "true"], "there is no nothing"),
            (vec!["--env", "NOVALUE", "--", "true"], "NOVALUE"),
        ] {
            grid.gridctl_as(1, 0, &folder, ["submit"].iter().chain(&args)).says(&[says]);
        }
        // What only the node can know.
        script(&folder.join("broken"), "#!/no/such/interpreter\n");
        for (program, status, says) in [
            ("no-such-program", 127, "no-such-program"),
            ("/etc/passwd", 126, "/etc/passwd"),
            ("/no/such/file", 127, "/no/such/file"),
            ("./broken", 127, "broken"),
        ] {
            let job = grid.gridctl_as(1, 0, &folder, ["submit", "--cpus", "0.1", "--", program]);
            let waited = grid.gridctl(2, ["wait", job.ok()]);
            assert_eq!(waited.status, status, "{waited:?}");
            assert!(waited.stderr.contains("not started") && waited.stderr.contains(says), "{waited:?}");
            assert_eq!(waited.stderr.trim_end().lines().count(), 1, "{waited:?}");
        }
    });
}

// === watching ===

#[test]
fn logs_are_followed_live_from_any_node() {
    with("logs_are_followed_live_from_any_node", grid, |grid| {
        let witness = grid.witness("follow");
        let body = format!(
            "echo one; echo err >&2; {}; echo two; {}; echo three",
            witness.awaiting("go"),
            witness.awaiting("end")
        );
        let job = grid.submit(1, JobSpec { nodes: vec!["node2".into()], ..sh(&body) });
        let followers: Vec<_> =
            (1..=3).map(|index| grid.start(index, ["logs", "-f", &job.to_string()])).collect();
        followers.iter().for_each(|follower| follower.until_printed("one\n"));
        assert!(followers.iter().all(|follower| !follower.printed().contains("two")));
        witness.raise("go");
        followers.iter().for_each(|follower| follower.until_printed("two\n"));
        assert_eq!(grid.job(1, job).tasks[0].state, TaskState::Running);
        witness.raise("end");
        for follower in followers {
            let run = follower.wait();
            assert_eq!(
                (run.status, run.stdout.as_str(), run.stderr.as_str()),
                (0, "one\ntwo\nthree\n", "err\n")
            );
        }
        let only = grid.gridctl(3, ["logs", "--stream", "stderr", &job.to_string()]);
        assert_eq!((only.stdout.as_str(), only.stderr.as_str()), ("", "err\n"));
    });
}

#[test]
fn logs_are_limited_and_the_gap_is_told() {
    with("logs_are_limited_and_the_gap_is_told", grid, |grid| {
        let lines = 200_000_u64;
        let body = format!("i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); done");
        for node in ["node1", "node2"] {
            let spec = JobSpec { log_limit: Bytes(64 << 10), nodes: vec![node.into()], ..sh(&body) };
            let job = grid.submit(1, spec);
            assert!(grid.wait(1, job).summary.succeeded());
            let mut pieces = Vec::new();
            let sink = |stream, offset, bytes: &[u8]| {
                pieces.push((stream, offset, bytes.to_vec()));
                Ok(())
            };
            grid.client(3).logs(job.task(0), libgrid::control::Streams::Both, false, sink).unwrap();
            assert!(pieces.iter().all(|(stream, ..)| *stream == Stream::Stdout));
            let kept: usize = pieces.iter().map(|(_, _, bytes)| bytes.len()).sum();
            assert!((32 << 10..=80 << 10).contains(&kept), "{kept} bytes were kept on {node}");
            // All that was printed, by the offsets, and the newest is among it.
            let (_, offset, last) = pieces.last().unwrap();
            let printed: u64 = (0..lines).map(|i| i.to_string().len() as u64 + 1).sum();
            assert_eq!(offset + last.len() as u64, printed);
            assert!(last.ends_with(format!("{}\n", lines - 1).as_bytes()));
            // A hole is seen as a jump of the offset.
            let (_, first, _) = pieces.first().unwrap();
            assert!(*first > 0, "nothing was dropped?");
            // And it is told to people.
            let told = grid.gridctl(2, ["logs", &job.to_string()]);
            assert_eq!(told.status, 0);
            assert!(
                told.stderr.contains(&format!("of the output of {job}/0 are missing here")),
                "no word of the gap: {:?}",
                told.stderr
            );
        }
    });
}

#[test]
fn status_tells_what_a_task_used() {
    with("status_tells_what_a_task_used", grid, |grid| {
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; \
                    dd if=/dev/zero of=file bs=1M count=20 conv=fsync 2>/dev/null; sleep 0.2";
        for node in ["node1", "node3"] {
            let spec = JobSpec { nodes: vec![node.into()], cpus: Cpus::cores(1), ..sh(work) };
            let job = grid.submit(1, spec);
            let status = grid.wait(1, job);
            let usage = status.tasks[0].usage;
            assert!(usage.cpu() > Duration::from_millis(20), "{usage:?}");
            assert!(usage.wall >= Duration::from_millis(200) && usage.wall >= usage.cpu() / 2, "{usage:?}");
            assert!(usage.peak_memory > 100 << 10, "{usage:?}");
            assert!(usage.written >= 20 << 20, "{usage:?}");
            let text = grid.gridctl(2, ["status", &job.to_string()]);
            for word in ["succeeded", "CPU", "MEMORY", "root@node1", "WRITTEN"] {
                assert!(text.ok().contains(word), "no {word}: {text:?}");
            }
            let json = grid.gridctl(2, ["status", "--json", &job.to_string()]).json();
            assert_eq!(json["tasks"][0]["outcome"]["exited"], 0, "{json}");
        }
    });
}

#[test]
fn lists_are_for_people_and_for_programs() {
    with("lists_are_for_people_and_for_programs", grid, |grid| {
        let witness = grid.witness("lists");
        let long = sh(&witness.awaiting("end"));
        let first = grid.submit(1, long.clone().name("first one"));
        let second = grid.submit(2, long.name("second one"));
        grid.until_running(1, first);
        grid.until_running(2, second);
        let ids = |json: &serde_json::Value| -> Vec<String> {
            let jobs = json["jobs"].as_array().unwrap();
            jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
        };
        let here = ids(&grid.gridctl(1, ["ps", "--json"]).json());
        assert!(here.contains(&first.to_string()) && !here.contains(&second.to_string()), "{here:?}");
        let everywhere = ids(&grid.gridctl(3, ["ps", "-e", "--json"]).json());
        assert!(everywhere.contains(&first.to_string()) && everywhere.contains(&second.to_string()));
        let text = grid.gridctl(3, ["ps", "--everywhere"]);
        assert!(text.ok().contains("first one") && text.ok().contains("second one"), "{text:?}");
        assert!(text.ok().contains("running"), "{text:?}");
        witness.raise("end");
        let waited = grid.gridctl(3, ["wait", &first.to_string(), &second.to_string()]);
        assert_eq!(waited.status, 0, "{waited:?}");
        let here = ids(&grid.gridctl(1, ["ps", "--json"]).json());
        assert!(!here.contains(&first.to_string()), "{here:?}");
        let here = ids(&grid.gridctl(1, ["ps", "--all", "--json"]).json());
        assert!(here.contains(&first.to_string()), "{here:?}");
    });
}

#[test]
fn wait_of_several_ends_with_the_highest_status() {
    with("wait_of_several_ends_with_the_highest_status", grid, |grid| {
        let jobs: Vec<_> = [3, 9, 0]
            .iter()
            .map(|status| grid.submit(1, sh(&format!("exit {status}"))).to_string())
            .collect();
        let waited = grid.gridctl(2, ["wait"].into_iter().chain(jobs.iter().map(String::as_str)));
        assert_eq!(waited.status, 9, "{waited:?}");
        assert_eq!(waited.stderr.lines().count(), 2, "{waited:?}");
        let array = grid.submit(1, sh("exit $GRIDOS_INDEX").array(0, 4));
        assert_eq!(grid.gridctl(3, ["wait", &array.to_string()]).status, 4);
        assert_eq!(grid.gridctl(3, ["wait", &format!("{array}/2")]).status, 2);
    });
}

#[test]
fn a_job_that_waits_says_why_with_the_numbers() {
    // Alone: what is free is told.
    let make = || GridConfig { cores: 2.0, memory: "1G", ..GridConfig::new("why", 3) }.up();
    with("a_job_that_waits_says_why_with_the_numbers", make, |grid| {
        let why = |args: &[&str], says: &str| {
            let args = ["submit"].iter().chain(args).chain(&["--", "sleep", "100"]);
            let job = grid.gridctl(1, args).ok().to_owned();
            let mut last = None;
            until(&format!("{job} says {says:?}"), || {
                last = grid.job(1, job_of(&job)).summary.why;
                last.as_deref().is_some_and(|why| why.contains(says))
            });
            assert!(grid.gridctl(2, ["status", &job]).ok().contains(says));
            assert!(grid.gridctl(1, ["ps"]).ok().contains(says));
            assert_eq!(grid.gridctl(1, ["kill", &job]).status, 0);
            let waited = grid.gridctl(1, ["wait", &job]);
            assert_eq!(waited.status, 143, "{waited:?}");
        };
        why(
            &["--cpus", "8"],
            "needs 8 cores; the largest of 3 nodes has 2: ask for fewer, or join a larger node",
        );
        why(&["--mem", "5G"], "needs 5G of memory; the largest of 3 nodes has 1G: ask for less");
        why(&["--node", "node9"], "none of the 3 nodes that answer is node9");
        why(&["--node", "node8,node9"], "none of the 3 nodes that answer is node8 or node9");
        let full = grid.submit(1, JobSpec::command(["sleep", "1000"]).cpus(Cpus::cores(2)).array(1, 3));
        grid.until_running(1, full);
        why(&["--cpus", "1"], "the freest of 3 nodes has 0 cores");
        grid.gridctl(1, ["drain", "node3"]);
        why(&["--cpus", "1"], "the freest of 2 nodes has 0 cores");
        why(&["--cpus", "1"], "starts when running tasks end; node 3 is drained, and takes none");
        grid.gridctl(1, ["drain", "--undo", "node3"]).ok();
        // A job that fits goes past one that does not.
        let large = grid.submit(1, JobSpec::command(["true"]).cpus(Cpus::cores(2)).memory(Bytes(4 << 30)));
        grid.gridctl(1, ["kill", "-s", "KILL", &full.to_string()]).ok();
        let small = grid.submit(1, sh("true"));
        assert!(grid.wait(1, small).summary.succeeded());
        assert!(!grid.job(1, large).summary.is_done());
    });
}

#[test]
fn failures_in_a_long_array_are_found() {
    with("failures_in_a_long_array_are_found", grid, |grid| {
        // Tasks that are never started end at once.
        let spec = sh("true").cpus(Cpus::cores(64)).array(0, 2_099);
        let job = grid.submit(1, spec).to_string();
        let last = format!("{job}/2099");
        grid.gridctl(1, ["kill", "-s", "KILL", &last]).ok();
        let failed = grid.gridctl(1, ["status", "--failed", "--json", &job]).json();
        let indices: Vec<_> =
            failed["tasks"].as_array().unwrap().iter().map(|task| task["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [2099]);
        let page = grid.gridctl(1, ["status", &job]);
        assert!(
            page.ok().contains(&format!("tasks from 1000 on: gridctl status --from 1000 {job}")),
            "{page:?}"
        );
        let page = grid.gridctl(1, ["status", "--from", "2000", &job]);
        assert!(page.ok().contains(&last) && !page.stdout.contains(&format!("{job}/1999")), "{page:?}");
        grid.gridctl(1, ["kill", "-s", "KILL", &job]).ok();
        let told = grid.gridctl(1, ["wait", &job]);
        assert!(told.status == 137 && told.stderr.contains(&format!("{job}/0 killed")), "{told:?}");
        assert!(told.stderr.contains("and 2090 more: see gridctl status --failed"), "{told:?}");
    });
}

// === limits ===

#[test]
fn a_task_over_its_memory_dies_alone_and_status_says_so() {
    with("a_task_over_its_memory_dies_alone_and_status_says_so", grid, |grid| {
        for node in ["node1", "node2"] {
            let witness = grid.witness(&format!("memory-{node}"));
            let on = |spec: JobSpec| JobSpec { nodes: vec![node.into()], ..spec };
            // Of the same job, and so under the same shim; and of another.
            let hungry = format!(
                "if [ $GRIDOS_INDEX = 1 ]; then tail /dev/zero; else {}; echo fine; fi",
                witness.awaiting("end")
            );
            let job = grid.submit(1, on(sh(&hungry).array(0, 2).memory(Bytes(48 << 20))));
            let other = grid.submit(1, on(sh(&witness.awaiting("end"))));
            until("the hungry one has ended", || grid.job(1, job).tasks[1].outcome.is_some());
            let status = grid.job(1, job);
            assert_eq!(status.tasks[1].outcome, Some(Outcome::OutOfMemory { limit: Bytes(48 << 20) }));
            assert_eq!(status.tasks[0].state, TaskState::Running);
            assert_eq!(status.tasks[2].state, TaskState::Running);
            let text = grid.gridctl(3, ["status", &job.to_string()]);
            assert!(text.ok().contains("more than its 48M of memory: ask for more with --mem"), "{text:?}");
            witness.raise("end");
            let waited = grid.gridctl(3, ["wait", &job.to_string()]);
            assert_eq!(waited.status, 137, "{waited:?}");
            assert_eq!(grid.logs(1, job, 2), "fine\n");
            assert!(grid.wait(1, other).summary.succeeded());
        }
    });
}

#[test]
fn a_child_that_takes_the_memory_counts_for_its_task() {
    with("a_child_that_takes_the_memory_counts_for_its_task", grid, |grid| {
        // Where the kernel kills the child alone, the program lives on to end by itself.
        let job = grid.submit(1, sh("tail /dev/zero || exit 3").memory(Bytes(48 << 20)));
        let status = grid.wait(1, job);
        assert_eq!(status.tasks[0].outcome, Some(Outcome::OutOfMemory { limit: Bytes(48 << 20) }));
    });
}

#[test]
fn time_limit_and_signals_are_told_apart() {
    with("time_limit_and_signals_are_told_apart", grid, |grid| {
        let late = grid.submit(1, sh("sleep 1000").time(Duration::from_millis(300)));
        let stubborn = grid
            .submit(1, sh("trap '' TERM INT; sleep 1000 & wait; sleep 1000").time(Duration::from_secs(1)));
        let own = grid.submit(1, sh("kill -SEGV $$"));
        let waits = grid.submit(1, sh("sleep 1000"));
        grid.until_running(1, waits);
        assert_eq!(grid.gridctl(2, ["kill", "-s", "USR1", &waits.to_string()]).status, 0);
        let outcome = |job| grid.wait(1, job).tasks[0].outcome.clone().unwrap();
        assert!(matches!(outcome(late), Outcome::TimeLimit { .. }));
        assert!(matches!(outcome(stubborn), Outcome::TimeLimit { .. }));
        assert_eq!(outcome(own), Outcome::Signaled(11));
        assert_eq!(outcome(waits), Outcome::Killed(10));
        for (job, status, says) in [
            (late, 124, "running longer than its 0.3s"),
            (own, 139, "ended by signal 11 (SIGSEGV)"),
            (waits, 138, "killed with signal 10 (SIGUSR1)"),
        ] {
            let waited = grid.gridctl(3, ["wait", &job.to_string()]);
            assert_eq!(waited.status, status, "{waited:?}");
            assert!(waited.stderr.contains(says), "{waited:?}");
        }
    });
}

#[test]
fn too_many_processes_are_refused_to_the_task_alone() {
    with("too_many_processes_are_refused_to_the_task_alone", grid, |grid| {
        let bomb = "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i+1)); done; echo all";
        let job = grid.submit(1, JobSpec { pids: 20, ..sh(bomb) });
        let status = grid.wait(1, job);
        assert!(!status.summary.succeeded(), "{status:#?}");
        assert!(!grid.logs(1, job, 0).contains("all"));
    });
}

// === ending ===

#[test]
fn kill_sends_signals_and_escalates_by_default() {
    with("kill_sends_signals_and_escalates_by_default", grid, |grid| {
        let polite =
            grid.submit(1, sh("trap 'echo bye; exit 5' INT; echo ready; while :; do sleep 0.1; done"));
        let stubborn = grid.submit(1, sh("trap '' TERM; echo ready; while :; do sleep 0.1; done"));
        let array = grid.submit(1, sh("sleep 1000").array(0, 3));
        for job in [polite, stubborn] {
            until("it is ready", || grid.logs(1, job, 0).contains("ready"));
        }
        grid.until_running(1, array);
        assert_eq!(grid.gridctl(3, ["kill", &stubborn.to_string()]).status, 0);
        assert_eq!(grid.gridctl(2, ["kill", "-s", "INT", &polite.to_string()]).status, 0);
        let status = grid.wait(1, polite);
        assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(5)));
        assert!(grid.logs(1, polite, 0).ends_with("bye\n"));
        // One task of an array, and then the rest.
        assert_eq!(grid.gridctl(2, ["kill", &format!("{array}/2")]).status, 0);
        until("task 2 is killed", || grid.job(1, array).tasks[2].outcome == Some(Outcome::Killed(15)));
        assert_eq!(grid.job(1, array).summary.counts.running, 3);
        let json = grid.gridctl(2, ["kill", "-s", "KILL", "--json", &array.to_string()]).json();
        assert_eq!(json["tasks"], 3, "{json}");
        let status = grid.wait(1, array);
        assert_eq!(status.tasks[0].outcome, Some(Outcome::Killed(9)));
        // One that ignores SIGTERM gets SIGKILL.
        let status = grid.wait(1, stubborn);
        assert!(matches!(status.tasks[0].outcome, Some(Outcome::Killed(9 | 15))), "{status:#?}");
        let again = grid.gridctl(1, ["kill", &array.to_string()]);
        assert!(again.status == 0 && again.stderr.contains("done already"), "{again:?}");
    });
}

#[test]
fn a_signal_that_ends_nothing_leaves_the_job_running() {
    with("a_signal_that_ends_nothing_leaves_the_job_running", grid, |grid| {
        let job = grid
            .submit(1, sh("trap 'echo got' USR2; echo ready; n=0; while [ $n -lt 2 ]; do sleep 0.1; done"));
        until("it is ready", || grid.logs(1, job, 0).contains("ready"));
        assert_eq!(grid.gridctl(1, ["kill", "-s", "SIGUSR2", &job.to_string()]).status, 0);
        until("the signal arrived", || grid.logs(1, job, 0).contains("got"));
        assert_eq!(grid.job(1, job).tasks[0].state, TaskState::Running);
        assert_eq!(grid.gridctl(1, ["kill", "-s", "9", &job.to_string()]).status, 0);
        assert_eq!(grid.gridctl(1, ["wait", &job.to_string()]).status, 137);
    });
}

// === the command line ===

#[test]
fn exit_statuses_are_fit_for_scripts() {
    with("exit_statuses_are_fit_for_scripts", grid, |grid| {
        for args in
            [&["no-such-command"][..], &["wait"], &["submit", "--cpus", "many", "--", "x"], &["kill", "7"]]
        {
            let run = grid.gridctl(1, args);
            assert_eq!(run.status, 2, "{run:?}");
            assert!(["error: ", "gridctl: "].iter().any(|begin| run.stderr.starts_with(begin)), "{run:?}");
        }
        grid.gridctl(1, ["status", "j1.999999"]).says(&["there is no j1.999999", "gridctl ps --all"]);
        grid.gridctl(1, ["status", "j77.1"]).says(&["there is no node 77"]);
        grid.gridctl(1, ["logs", "j1.999999"]).says(&["there is no j1.999999"]);
        grid.gridctl(1, ["kill", "j1.999999"]).says(&["there is no j1.999999"]);
        grid.gridctl(1, ["kill", "-s", "NONSENSE", "j1.1"]).says(&["NONSENSE", "no signal"]);
        // `wait` and `run` tell their own failures from the job's.
        assert!(grid.gridctl(1, ["wait", "j1.999999"]).refused(255).contains("there is no j1.999999"));
        let nowhere = grid.gridctl(1, ["--socket", "/nowhere", "wait", "j1.1"]);
        assert!(nowhere.refused(255).contains("gridctl up"));
        grid.gridctl(1, ["--socket", "/nowhere", "nodes"])
            .says(&["no agent answers on /nowhere", "gridctl up"]);
        assert!(grid.gridctl(1, ["run"]).refused(255).contains("no program"));
        // Whoever reads, such as head, may have seen enough.
        let job = grid.submit(1, sh("i=0; while [ $i -lt 100000 ]; do echo line; i=$((i+1)); done"));
        grid.wait(1, job);
        let mut head = grid.machine(1).exec("bash");
        let program = grid_tests::program("gridctl");
        let pipe = format!("set -o pipefail; {} logs {job} | head -1", program.display());
        let output = head.args(["-c", &pipe]).output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.as_slice(), output.stderr.as_slice()),
            (Some(0), &b"line\n"[..], &b""[..])
        );
    });
}

#[test]
fn every_command_has_help_with_an_example_and_is_completed() {
    with(
        "every_command_has_help_with_an_example_and_is_completed",
        || (),
        |()| {
            let commands: [&[&str]; 24] = [
                &["up"],
                &["down"],
                &["vo", "create"],
                &["vo", "revoke"],
                &["token", "create"],
                &["join"],
                &["nodes"],
                &["doctor"],
                &["submit"],
                &["run"],
                &["ps"],
                &["status"],
                &["logs"],
                &["wait"],
                &["kill"],
                &["hold"],
                &["release"],
                &["completion"],
                &["lab", "up"],
                &["lab", "down"],
                &["lab", "exec"],
                &["lab", "kill"],
                &["lab", "cut"],
                &["lab", "heal"],
            ];
            let run = |args: &[&str]| {
                let output =
                    std::process::Command::new(grid_tests::program("gridctl")).args(args).output().unwrap();
                assert!(output.status.success(), "{args:?}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            };
            for command in commands {
                let help = run(&[command, &["--help"]].concat());
                let first = help.lines().next().unwrap();
                assert!(first.contains("Example: "), "{command:?}: {first}");
                assert!(first.contains("gridctl "), "{command:?}: {first}");
                assert!(help.contains("--json"), "{command:?} has no --json");
            }
            for shell in ["bash", "zsh", "fish"] {
                let script = run(&["completion", shell]);
                assert!(script.contains("gridctl") && script.contains("submit"), "{shell}");
            }
            // The shell understands it.
            let check = format!("{}\ncomplete -p gridctl", run(&["completion", "bash"]));
            let output = std::process::Command::new("bash").args(["-c", &check]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        },
    );
}

// === rights ===

#[test]
fn an_ordinary_user_rules_their_own_jobs_alone() {
    with("an_ordinary_user_rules_their_own_jobs_alone", grid, |grid| {
        let (mine, theirs) = (grid.folder("mine", 61001), grid.folder("theirs", 61002));
        let submit = |uid: u32, folder: &Path| {
            let args = ["submit", "--cpus", "0.1", "--", "sh", "-c", "echo secret; sleep 1000"];
            grid.gridctl_as(1, uid, folder, args).ok().to_owned()
        };
        let job = submit(61001, &mine);
        until("it runs", || grid.logs(1, job_of(&job), 0) == "secret\n");
        for node in 1..=3 {
            // The same number is another user on another node.
            let stranger = if node == 1 { 61002 } else { 61001 };
            let refused = |args: &[&str], status: i32| {
                let run = grid.gridctl_as(node, stranger, &theirs, args);
                assert!(run.refused(status).contains("61001@node1's, and you are"), "{run:?}");
            };
            refused(&["kill", &job], 1);
            refused(&["kill", "-s", "KILL", &format!("{job}/0")], 1);
            refused(&["logs", &job], 1);
            // Everybody sees that it is there.
            assert!(grid.gridctl_as(node, stranger, &theirs, ["status", &job]).ok().contains("61001@node1"));
        }
        assert_eq!(grid.job(1, job_of(&job)).tasks[0].state, TaskState::Running);
        for args in [&["token", "create"][..], &["vo", "revoke", "node3"], &["vo", "create", "mine"]] {
            grid.gridctl_as(1, 61001, &mine, args).says(&["root", "sudo"]);
        }
        // Not even root, on a node that is not the founder.
        grid.gridctl(2, ["token", "create"]).says(&["only the node that founded the VO"]);
        grid.gridctl(2, ["vo", "revoke", "node3"]).says(&["only the node that founded the VO"]);
        assert_eq!(grid.nodes_at(1).len(), 3);
        assert_eq!(grid.gridctl_as(1, 61001, &mine, ["logs", &job]).ok(), "secret");
        assert_eq!(grid.gridctl_as(1, 61001, &mine, ["kill", &job]).status, 0);
        assert_eq!(grid.wait(1, job_of(&job)).tasks[0].outcome, Some(Outcome::Killed(15)));
    });
}

#[test]
fn words_of_others_do_nothing_to_a_terminal() {
    with("words_of_others_do_nothing_to_a_terminal", grid, |grid| {
        // Clears the screen, or would: the command, and the name of a process.
        let name = r#"python3 -c 'import ctypes, time
ctypes.CDLL(None).prctl(15, b"\x1b[2Jx\n")
print("named", flush=True); time.sleep(1000)'"#;
        let job = grid.submit(1, sh(&format!("{name} # \u{1b}[2J")));
        until("it has its name", || grid.logs(1, job, 0).contains("named"));
        let id = job.to_string();
        until("its processes are told", || {
            let told = grid.gridctl(1, ["ps", "--processes", &id]);
            assert!(!told.stdout.contains('\u{1b}'), "{told:?}");
            told.stdout.contains(r"\u{1b}[2Jx\n")
        });
        let told = grid.gridctl(1, ["status", &id]);
        assert!(!told.ok().contains('\u{1b}') && told.stdout.contains(r"\u{1b}[2J"), "{told:?}");
        grid.gridctl(1, ["kill", "-s", "KILL", &id]).ok();
    });
}
