//! Commands inside a machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{output, pid_space, processes_in, running, shell, until, with_grid};

#[test]
fn the_exit_status_is_the_commands() {
    with_grid("the_exit_status_is_the_commands", 1, |grid| {
        let machine = grid.machine(1);
        let status = |script: &str| machine.exec("bash").args(["-c", script]).status().unwrap();
        assert_eq!(status("exit 0").code(), Some(0));
        assert_eq!(status("exit 42").code(), Some(42));
        assert_eq!(status("kill -KILL $$").signal(), Some(9));
        assert_eq!(status("kill -TERM $$").signal(), Some(15));
        assert_eq!(status("ulimit -c 0; kill -SEGV $$").signal(), Some(11));
        let quiet = |program: &str| machine.exec(program).stderr(Stdio::null()).status().unwrap().code();
        assert_eq!(quiet("/no/such/program"), Some(127));
        assert_eq!(quiet("/etc/passwd"), Some(126));
        machine.kill().unwrap();
        let output = machine.exec("true").output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "gridos-lab: node1 is off: boot or heal it first\n"
        );
    });
}

#[test]
fn signals_are_handed_on() {
    with_grid("signals_are_handed_on", 1, |grid| {
        let machine = grid.machine(1);
        for (signal, name) in [(libc::SIGTERM, "TERM"), (libc::SIGINT, "INT"), (libc::SIGUSR1, "USR1")] {
            let script = format!("trap 'exit 33' {name}; echo ready; sleep 1000 >/dev/null & wait");
            let mut child =
                machine.exec("bash").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            // SAFETY: the child has not been waited for, so the pid is its own.
            unsafe { libc::kill(child.id() as i32, signal) };
            assert_eq!(child.wait().unwrap().code(), Some(33), "{name}");
        }
        // One that the command does not handle ends both.
        let mut child = machine.exec("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Held open: `wait` would close it, and cat would end by itself.
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"x\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // SAFETY: as above.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    });
}

#[test]
fn the_command_ends_with_its_caller() {
    with_grid("the_command_ends_with_its_caller", 1, |grid| {
        let machine = grid.machine(1);
        let space = pid_space(&machine);
        let sleeps = || !running(&space, "sleep").is_empty();
        // Not even the moment at which it is killed matters: before, while and after the command starts.
        for nap in (0..40).map(|n| Duration::from_micros(n * 100)) {
            let mut child = machine.exec("sleep").arg("1000").spawn().unwrap();
            let begun = Instant::now();
            until("that moment", || begun.elapsed() >= nap);
            child.kill().unwrap();
            child.wait().unwrap();
            until("the command has ended", || !sleeps());
        }
        let mut child = machine.exec("sleep").arg("1000").spawn().unwrap();
        until("the command runs", sleeps);
        child.kill().unwrap();
        child.wait().unwrap();
        until("the command has ended", || !sleeps());
        shell(&machine, "true");
        let left = || processes_in(&space).len();
        until("pid 1 and the agent are alone", || left() == 2);
    });
}

#[test]
fn streams_arguments_environment_and_directory_pass() {
    with_grid("streams_arguments_environment_and_directory_pass", 1, |grid| {
        let machine = grid.machine(1);
        let mut child = machine
            .exec("bash")
            .args(["-c", "cat; printf '%s|' \"$@\" \"$COLOUR\"; pwd", "-", "a b", "", "--", "ü\n"])
            .env("COLOUR", "blue")
            .current_dir(grid.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"in:").unwrap();
        let said = child.wait_with_output().unwrap();
        let dir = grid.dir.path().canonicalize().unwrap();
        assert_eq!(
            String::from_utf8(said.stdout).unwrap(),
            format!("in:a b||--|ü\n|blue|{}\n", dir.display())
        );
        // A directory that the machine does not have: this process is not in its /proc.
        let own = format!("/proc/{}", std::process::id());
        assert_eq!(output(machine.exec("pwd").current_dir(own)), "/");
    });
}

#[test]
fn the_terminal_stays_usable() {
    with_grid("the_terminal_stays_usable", 1, |grid| {
        let machine = grid.machine(1);
        let enter = format!("{} enter {} --", support::HELPER, machine.dir().display());
        let (status, said) = on_a_terminal(&format!("{enter} bash -c 'test -t 0 && tty; exit 5'"), "");
        assert!(said.contains("/dev/pts/"), "{said}");
        assert_eq!(status, Some(5), "{said}");

        // A shell takes the terminal for itself; afterwards its caller has it again and can read from it.
        let typed = "echo in $HOSTNAME\nsleep 0 & wait\nexit 6\nback\n";
        let script = format!("{enter} bash --norc -i; echo status=$?; read -r line; echo \"got $line\"");
        let (_, said) = on_a_terminal(&format!("bash -c '{script}'"), typed);
        assert!(
            said.contains("in node1") && said.contains("status=6") && said.contains("got back"),
            "{said}"
        );
        assert!(!said.contains("no job control"), "{said}");
    });
}

/// Runs the command line on a terminal of its own, with `typed` on it; its status, and what is seen.
fn on_a_terminal(line: &str, typed: &str) -> (Option<i32>, String) {
    let mut child = std::process::Command::new("script")
        .args(["-q", "-e", "-c", line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe stays open until the end: its end would be typed as one, too.
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(typed.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    drop(keyboard);
    (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned())
}
