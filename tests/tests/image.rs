//! A grid of virtual machines: the image, and `images/run.sh`, which boots two machines of it.
//!
//! A program that counts is submitted on one, moves to the other while it runs, and all that it printed is there.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use grid_tests::{Machines, Run, skipped, until_within};
use serde_json::Value;

/// Prints what it counts, and writes to all of its memory meanwhile, until it is told to end.
const COUNTS: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define SIZE (2 << 20)
static volatile sig_atomic_t told;
static volatile char memory[SIZE];
static void tell(int signal) { told = signal; }

int main(void) {
    signal(SIGUSR1, tell);
    setlinebuf(stdout);
    for (int i = 1;; i++) {
        for (int at = i % 8 * 4096; at < SIZE; at += 8 * 4096) memory[at]++;
        printf("%d\n", i);
        if (told) return 0;
        usleep(100000);
    }
}
"#;

/// A machine that is busy may be taken for one that does not answer: then again.
fn again(what: &str, mut attempt: impl FnMut() -> Run) -> Run {
    let mut last = None;
    for _ in 0..4 {
        let run = attempt();
        if run.status == 0 {
            return run;
        }
        last = Some(run);
    }
    panic!("{what}: {last:#?}");
}

/// What the status of a job says of its only task.
fn task(machines: &Machines, job: &str) -> Value {
    let status = machines.on(1, &["gridctl", "status", "--json", job]).json();
    let tasks = status.pointer("/tasks").or_else(|| status.pointer("/0/tasks"));
    tasks.and_then(|tasks| tasks.get(0)).unwrap_or_else(|| panic!("{status}")).clone()
}

/// Waits until the kernel of the node that runs the only process of this job says its global id, and only that kernel.
fn known_to_the_kernel(machines: &Machines, job: &str, runs: u64) {
    let listed = machines.on(2, &["gridctl", "ps", "--processes", "--json", job]).json();
    let gpid = listed["processes"][0]["gpid"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
    let pid = machines.on(runs as u32, &["pidof", "counts"]).ok().trim().to_owned();
    let expected = format!("{gpid}\t{pid}\t{job}\t0");
    let gpids = |node: u64| machines.on(node as u32, &["cat", "/proc/gridos/gpids"]).ok().to_owned();
    until_within(&format!("{expected:?} is in the gpids of node {runs}"), Duration::from_secs(30), || {
        gpids(runs).lines().any(|line| line == expected)
    });
    assert!(!gpids(3 - runs).contains(&format!("{gpid}\t")));
}

#[test]
fn machines_of_the_image_form_a_grid_and_a_task_moves_between_them() {
    let began = Instant::now();
    let mut machines = match Machines::up(2) {
        Ok(machines) => machines,
        Err(why) => return skipped("the image", &why),
    };
    println!("{}FIGURE two machines are a grid after {:.0?}", machines.said(), began.elapsed());

    for node in [1, 2] {
        until_within("both are up", Duration::from_secs(30), || {
            machines.on(node, &["gridctl", "nodes", "--json"]).ok().matches(r#""state":"up""#).count() == 2
        });
        let facts = machines.on(
            node,
            &[
                "sh",
                "-c",
                "systemctl is-system-running; systemctl is-active gridosd gridos-tasks; systemctl is-enabled gridosd; \
                 stat -f -c %T /sys/fs/cgroup; cat /proc/gridos/version; head -n 1 /proc/gridos/nodes /proc/gridos/gpids",
            ],
        );
        let facts: Vec<_> = facts.ok().lines().map(str::to_owned).collect();
        assert_eq!(facts[..5], ["running", "active", "active", "enabled", "cgroup2fs"], "{facts:?}");
        assert_eq!(facts[5..7], ["uapi 1".to_owned(), format!("module {}", env!("CARGO_PKG_VERSION"))]);
        for header in ["node\tstate\tcpus\tfree\tmemory\tfree\tname", "gpid\tpid\tjob\ttask"] {
            assert!(facts.iter().any(|line| line == header), "{facts:?}");
        }
    }

    // Words, input and exit status are as on one's own machine.
    let run =
        machines.feed(1, &["sh", "-c", "cat; printf '<%s>' \"$@\"; exit 7", "sh", "a b", "$c'"], b"in ");
    assert_eq!((run.status, run.stdout.as_str()), (7, "in <a b><$c'>"));

    // Nobody else gets in, and the token is in no file.
    let folder = machines.folder();
    assert_eq!(folder.metadata().expect("its folder").permissions().mode() & 0o777, 0o700);
    let found = Command::new("grep")
        .args(["-rlaE", "grid1-[A-Za-z0-9_-]{40}", "--include=*.[!q]*"])
        .arg(&folder)
        .output();
    assert_eq!(String::from_utf8_lossy(&found.expect("grep").stdout), "");
    machines.script(&["exec", "node3"]).says(&["'node3'", "node1 to node2"]);
    machines.script(&[]).says(&["runs in", "already", "down"]);

    let counts = folder.join("counts");
    std::fs::write(folder.join("counts.c"), COUNTS).expect("a file");
    let built =
        Command::new("gcc").args(["-O1", "-static", "-o"]).args([&counts, &folder.join("counts.c")]).status();
    assert!(built.expect("gcc").success());
    let program = std::fs::read(&counts).expect("the program");
    machines.feed(1, &["sh", "-c", "cat >/root/counts; chmod 755 /root/counts"], &program).ok();
    let submitted = machines.on(1, &["sh", "-c", "cd /root && gridctl submit --mem 64M -- ./counts"]);
    let job = submitted.ok().trim().to_owned();
    let patience = Duration::from_secs(100);
    until_within("it counts", patience, || machines.on(2, &["gridctl", "logs", &job]).stdout.contains("3\n"));

    let from = task(&machines, &job)["node"].as_u64().expect("a node");
    known_to_the_kernel(&machines, &job, from);
    let to = format!("node{}", 3 - from);
    let moving = Instant::now();
    let moved = again("it moves", || {
        machines.on(1, &["gridctl", "migrate", &job, "--to", &to, "--mode", "pre-copy", "--json"])
    });
    let moved = &moved.json()[0]["moved"];
    assert_eq!((&moved["from"], &moved["to"]), (&from.into(), &(3 - from).into()), "{moved}");
    assert_eq!(moved["mode"], "pre-copy", "{moved}");
    let ahead = moved["ahead"].as_u64().expect("bytes");
    assert!(ahead > 2 << 20, "{moved}");
    println!(
        "FIGURE {ahead} bytes while it ran, stood still for {}, in {:.0?}",
        moved["stopped"],
        moving.elapsed()
    );

    // It runs there, and nowhere else.
    let here = |node: u64| machines.on(node as u32, &["pidof", "counts"]).stdout.split_whitespace().count();
    assert_eq!((here(3 - from), here(from)), (1, 0));
    known_to_the_kernel(&machines, &job, 3 - from);
    let said = machines.on(1, &["gridctl", "logs", &job]).ok().lines().count();
    until_within("it counts on", patience, || {
        machines.on(1, &["gridctl", "logs", &job]).stdout.lines().count() > said + 3
    });
    machines.on(2, &["gridctl", "kill", "-s", "USR1", &job]).ok();
    machines.on(1, &["gridctl", "wait", &job]).ok();
    // All of it, each line once.
    let printed = machines.on(2, &["gridctl", "logs", &job]);
    let expected: Vec<_> = (1..=printed.ok().lines().count()).map(|i| i.to_string()).collect();
    assert_eq!(printed.ok().lines().collect::<Vec<_>>(), expected);
    assert!(expected.len() > said);

    let processes = machines.processes();
    assert!(processes.len() >= 3, "{processes:?}");
    let ended = machines.interrupt();
    assert_eq!(ended.status, 130, "{ended:#?}");
    assert_eq!((machines.processes(), folder.exists()), (Vec::new(), false));
    println!("FIGURE all of it took {:.0?}", began.elapsed());
}

#[test]
fn what_cannot_be_meant_gets_one_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = |arguments: &[&str]| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/run.sh");
        let mut command = Command::new(path);
        command.args(arguments).arg("--folder").arg(folder.path().join("none"));
        let output = command.output().expect("images/run.sh");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(
            (output.status.code(), said.lines().count(), output.stdout.len()),
            (Some(1), 1, 0),
            "{said}"
        );
        said
    };
    for (arguments, words) in [
        (&["-n", "0"][..], "-n takes a number from 1 to 64, not '0'"),
        (&["-n", "65"], "-n takes a number from 1 to 64, not '65'"),
        (&["-n", "two"], "not 'two'"),
        (&["--memory", "512"], "--memory takes a number and M or G"),
        (&["--memory", "64M"], "--memory must be 384M at least"),
        (&["--cpus", "-1"], "--cpus takes a number from 1 to 64"),
        (&["--image", "/nowhere"], "there is no image in /nowhere: make image builds it"),
        (&["boot"], "'boot' is not understood"),
        (&["exec"], "exec takes a node"),
        (&["exec", "node1"], "no grid runs in"),
        (&["down"], "no grid runs in"),
    ] {
        let said = script(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
