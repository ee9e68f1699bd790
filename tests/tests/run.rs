//! Programs on the grid as if they were here: `gridctl run`.

use std::path::Path;
use std::sync::Arc;

use grid_tests::{Grid, Shared, Terminal, until, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::TaskState;
use libgrid::units::{Bytes, Cpus};
use nix::sys::signal::Signal;

static GRID: Shared = Shared::new();

/// Three nodes of 8 cores, which the tests here share.
fn grid() -> Arc<Grid> {
    GRID.get(|| Grid::up("run", 3))
}

fn sh(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

fn job_of(text: &str) -> JobId {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no job"))
}

#[test]
fn run_passes_a_pipe_through_whole() {
    with("run_passes_a_pipe_through_whole", grid, |grid| {
        for node in ["node1", "node2"] {
            let args = |rest: &'static [&'static str]| {
                ["run", "--cpus", "0.1", "--node", node, "--"].into_iter().chain(rest.iter().copied())
            };
            let run =
                grid.gridctl_with(1, b"to be typed\n", args(&["sh", "-c", "cat; echo err >&2; exit 42"]));
            assert_eq!(
                (run.status, run.stdout.as_str(), run.stderr.as_str()),
                (42, "to be typed\n", "err\n")
            );
            // 10 MB there and back.
            let bytes: Vec<u8> = (0..10_000_000_u32)
                .map(|i| b'a' + (i.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)
                .collect();
            let run = grid.gridctl_with(1, &bytes, args(&["cat"]));
            assert_eq!(run.status, 0, "{}", run.stderr);
            assert!(
                run.stdout.as_bytes() == bytes,
                "{} of {} bytes came back, or others",
                run.stdout.len(),
                bytes.len()
            );
            // A program that reads nothing of it ends all the same.
            let run = grid.gridctl_with(1, &bytes, args(&["true"]));
            assert_eq!(run.status, 0, "{}", run.stderr);
        }
    });
}

#[test]
fn run_talks_both_ways_and_hands_signals_on() {
    with("run_talks_both_ways_and_hands_signals_on", grid, |grid| {
        let talk = "while read word; do echo \"you said $word\"; done; echo end";
        let mut run = grid.start(1, ["run", "--cpus", "0.1", "--node", "node3", "--", "sh", "-c", talk]);
        run.type_in("one\n");
        run.until_printed("you said one\n");
        run.type_in("two\n");
        run.until_printed("you said two\n");
        run.end_input();
        run.until_printed("end\n");
        assert_eq!(run.wait().status, 0);

        let trap = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let run = grid.start(1, ["run", "--cpus", "0.1", "--node", "node3", "--", "sh", "-c", trap]);
        run.until_printed("ready\n");
        run.signal(Signal::SIGTERM);
        let run = run.wait();
        assert_eq!((run.status, run.stdout.as_str()), (9, "ready\ncaught\n"), "{run:?}");
    });
}

#[test]
fn ctrl_c_gives_up_results_that_find_no_place() {
    with("ctrl_c_gives_up_results_that_find_no_place", grid, |grid| {
        for node in ["node1", "node2"] {
            let folder = grid.folder(&format!("gone-{node}"), 0);
            let mut command = grid.machine(1).exec("setsid");
            command.args(["--ctty", "--wait"]).arg(grid_tests::program("gridctl")).current_dir(&folder);
            command.args(["run", "--cpus", "0.1", "--node", node, "--stage-out", "x", "--", "sh", "-c"]);
            command.arg("echo begun; read line; echo result > x");
            let mut terminal = Terminal::start(&mut command, 24, 200);
            terminal.until_shown("begun");
            std::fs::remove_dir(&folder).unwrap();
            std::fs::write(&folder, "no folder").unwrap();
            terminal.type_in("\r");
            terminal.until_shown("/0 ended, but its results cannot be brought to");
            terminal.until_shown("Ctrl-C, too");
            terminal.type_in("\x03");
            assert_eq!(terminal.wait(), 74, "{}", terminal.screen());
            assert!(
                terminal.screen().contains("ran, but its results are not all here"),
                "{}",
                terminal.screen()
            );
        }
    });
}

#[test]
fn run_on_a_terminal_is_like_ssh() {
    with("run_on_a_terminal_is_like_ssh", grid, |grid| {
        for node in ["node1", "node2"] {
            let program = grid_tests::program("gridctl");
            let mut command = grid.machine(1).exec("setsid");
            command
                .args(["--ctty", "--wait"])
                .arg(&program)
                .env("TERM", "xterm-256color")
                .current_dir(grid.dir());
            command.args(["run", "--cpus", "0.1", "--node", node, "--", "sh"]);
            let mut terminal = Terminal::start(&mut command, 33, 101);
            let before = terminal.modes();
            terminal.type_in("test -t 0 && test -t 1 && test -t 2 && echo all-$((40+2))\r");
            terminal.until_shown("all-42");
            terminal.type_in("echo $TERM size $(stty size) end\r");
            terminal.until_shown("xterm-256color size 33 101 end");
            // Ctrl-C ends what runs in the foreground, not the shell, and not gridctl.
            terminal.type_in("sh -c 'echo sleeping-$((1+1)); sleep 1000'\r");
            terminal.until_shown("sleeping-2");
            terminal.type_in("\x03");
            terminal.type_in("echo status $?-\r");
            terminal.until_shown("status 130-");
            terminal.resize(50, 120);
            // Only when the other side was told does the size change over there.
            until("the new size arrives", || {
                terminal.type_in("echo now $(stty size) end\r");
                let asked = terminal.screen().matches("now 33 101 end").count();
                let shown = || terminal.screen().contains("now 50 120 end");
                until("an answer comes", || {
                    shown() || terminal.screen().matches("now 33 101 end").count() > asked || asked > 0
                });
                shown()
            });
            terminal.type_in("exit 21\r");
            assert_eq!(terminal.wait(), 21, "{}", terminal.screen());
            assert_eq!(terminal.modes(), before, "the terminal was left in another mode");
        }
    });
}

#[test]
fn a_run_that_waits_says_why_and_ends_with_ctrl_c() {
    with("a_run_that_waits_says_why_and_ends_with_ctrl_c", grid, |grid| {
        let mut command = grid.machine(1).exec("setsid");
        command.args(["--ctty", "--wait"]).arg(grid_tests::program("gridctl")).current_dir(grid.dir());
        command.args(["run", "--cpus", "64", "--name", "too-large", "--", "sleep", "1000"]);
        let mut terminal = Terminal::start(&mut command, 24, 200);
        let before = terminal.modes();
        terminal.until_shown("waits: needs 64 cores");
        terminal.type_in("\x03");
        assert_eq!(terminal.wait(), 130, "{}", terminal.screen());
        assert_eq!(terminal.modes(), before, "the terminal was left in another mode");
        let jobs = grid.gridctl(1, ["ps", "--json"]).json();
        let left = jobs["jobs"].as_array().unwrap().iter().any(|job| job["name"] == "too-large");
        assert!(!left, "{jobs}");
    });
}

#[test]
fn a_process_of_a_job_submits_none() {
    with("a_process_of_a_job_submits_none", grid, |grid| {
        let gridctl = grid.lend("gridctl").display().to_string();
        for asks in ["submit -- true", "run -- true"] {
            let job = grid.submit(1, sh(&format!("{gridctl} {asks} 2>&1; echo status $?")));
            grid.wait(1, job);
            let said = grid.logs(1, job, 0);
            assert!(said.contains("a process of a job cannot submit jobs"), "{said}");
            assert!(said.contains("status 1") || said.contains("status 255"), "{said}");
        }
    });
}

#[test]
fn a_job_outlives_the_client_that_was_killed() {
    with("a_job_outlives_the_client_that_was_killed", grid, |grid| {
        let witness = grid.witness("outlive");
        let body = witness.script(&format!("echo begun; {}; (exit 4)", witness.awaiting("end")));
        let run = grid.start(1, ["run", "--cpus", "0.1", "--name", "outliving", "--", "sh", "-c", &body]);
        run.until_printed("begun");
        run.signal(Signal::SIGKILL);
        drop(run);
        let jobs = grid.gridctl(1, ["ps", "--json"]).json();
        let job = jobs["jobs"].as_array().unwrap().iter().find(|job| job["name"] == "outliving").unwrap();
        let job = job_of(job["id"].as_str().unwrap());
        assert_eq!(grid.job(1, job).tasks[0].state, TaskState::Running);
        witness.raise("end");
        assert_eq!(grid.wait(1, job).summary.exit_status, Some(4));
        witness.ran_once(0);
    });
}

#[test]
fn typing_into_a_job_that_was_not_made_for_it_is_refused() {
    with("typing_into_a_job_that_was_not_made_for_it_is_refused", grid, |grid| {
        let job = grid.submit(1, sh("sleep 1000"));
        let mut keyboard = grid.client(2).type_into(job.task(0)).unwrap();
        let refused = keyboard.closed().unwrap_err().to_string();
        assert!(refused.contains("was not submitted to be typed into: use gridctl run"), "{refused}");
        grid.gridctl(1, ["kill", "-s", "KILL", &job.to_string()]).ok();
    });
}

#[test]
fn a_run_whose_output_nobody_takes_is_ended() {
    with("a_run_whose_output_nobody_takes_is_ended", grid, |grid| {
        let gridctl = grid_tests::program("gridctl");
        let piped = |program: &str, to: &str| {
            let run = format!(
                "{} run --cpus 0.1 --name unheard -- {program} {to}; echo ${{PIPESTATUS[0]}}",
                gridctl.display()
            );
            grid.run_as(1, 0, Path::new("/bin/bash"), &["-c", &run])
        };
        let heard = piped("sh -c 'while echo y; do sleep 0.01; done'", "| head -n 2");
        assert_eq!(heard.ok(), "y\ny\n141", "{heard:?}");
        // One that minds neither a closed pipe nor a friendly word.
        let stubborn = "sh -c 'trap \"\" PIPE TERM; while :; do echo on; sleep 0.05; done' 2>&1";
        let heard = piped(stubborn, "| head -n 1");
        assert_eq!(heard.ok(), "on\n137", "{heard:?}");
        let full = piped("echo x", "> /dev/full");
        assert!(full.stdout.trim() == "255" && full.stderr.contains("No space left on device"), "{full:?}");
        let jobs = grid.gridctl(1, ["ps", "--json"]).json();
        let left = jobs["jobs"].as_array().unwrap().iter().any(|job| job["name"] == "unheard");
        assert!(!left, "{jobs}");
    });
}
