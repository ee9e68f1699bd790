//! Running a program on a node, as any user, and what it did.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use grid_lab::Machine;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::until::until;

/// An ordinary user of every node.
pub const NOBODY: u32 = 65534;

/// What a program did.
#[derive(Debug)]
pub struct Run {
    /// How it was called.
    pub called: String,
    /// Its exit status; 128 + the signal that ended it.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Reader,
    stderr: Reader,
}

/// Gathers what comes out of a pipe.
#[derive(Debug)]
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

// === impl Run ===

impl Run {
    pub(crate) fn of(called: String, output: &Output) -> Run {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
        Run { called, status: status.unwrap(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// What it printed, without the last line's end; it must have succeeded.
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, 0, "{self:#?}");
        self.stdout.trim_end_matches('\n')
    }

    /// What it printed, as JSON; it must have succeeded.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The sentence with which it failed: it ended with `status`, printed nothing, and said one line.
    pub fn refused(&self, status: i32) -> &str {
        assert_eq!(self.status, status, "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        let said = self.stderr.trim_end_matches('\n');
        assert!(!said.is_empty() && !said.contains('\n'), "not one sentence: {self:#?}");
        assert!(!said.contains("panicked") && !said.contains("Error("), "not for people: {self:#?}");
        said
    }

    /// The sentence of a refusal (status 1), which must hold all of these.
    pub fn says(&self, words: &[&str]) {
        let said = self.refused(1);
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
    }
}

/// The command that runs `program` on the machine as user and group `uid`.
pub(crate) fn command(machine: &Machine, uid: u32, program: &Path) -> Command {
    if uid == 0 {
        return machine.exec(program);
    }
    let mut command = machine.exec("setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]);
    command.arg(program);
    command
}

/// Runs a command to its end, with this as its input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Run {
    let called = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{called}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that ends early closes the pipe: what it did shows why.
    let typing = std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let output = child.wait_with_output().unwrap();
    typing.join().unwrap();
    Run::of(called, &output)
}

// === impl Running ===

impl Running {
    /// Starts a command with pipes on all three streams.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Reader::start(child.stdout.take().unwrap());
        let stderr = Reader::start(child.stderr.take().unwrap());
        Running { stdin: child.stdin.take(), child, stdout, stderr }
    }

    /// Types into it.
    pub fn type_in(&mut self, text: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_ref()).unwrap();
        stdin.flush().unwrap();
    }

    /// Ends what it reads.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.bytes.lock().unwrap().clone()
    }

    /// What it has printed so far, as text.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.stdout()).into_owned()
    }

    /// What it has said so far on its error output.
    pub fn stderr(&self) -> Vec<u8> {
        self.stderr.bytes.lock().unwrap().clone()
    }

    /// Whether it has ended; whoever asks does not wait.
    pub fn ended(&self) -> bool {
        let id = Id::Pid(Pid::from_raw(self.child.id() as i32));
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(id, flags).is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    /// Waits until it has printed this.
    pub fn until_printed(&self, text: &str) {
        until(&format!("{text:?} is printed"), || self.printed().contains(text));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; gives status, output and error output.
    pub fn wait(mut self) -> Run {
        until("the program ends", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        let output = Output { status, stdout: self.stdout.join(), stderr: self.stderr.join() };
        Run::of(String::new(), &output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already in every test that passes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Reader ===

impl Reader {
    fn start(mut from: impl Read + Send + 'static) -> Reader {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Reader { bytes, thread: Some(thread) }
    }

    fn join(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}
