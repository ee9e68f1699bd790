//! Tasks of `gridctl run`, which move while somebody types into them.

use std::sync::atomic::{AtomicBool, Ordering};

use grid_tests::{Running, Terminal, program};

use super::*;

/// Tells each line that it reads, slowly, so that some wait in the terminal; and each Ctrl-C and change of size. What it writes
/// is in brackets, as the terminal writes what is typed in between.
const ECHOES: &str = r"
import os, sys, signal, termios, time
def say(text): os.write(1, b'<%s>\n' % text.encode())
ints = 0
def interrupted(*_):
    global ints
    ints += 1
    say('int %d' % ints)
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGWINCH, lambda *_: say('size %d %d' % tuple(os.get_terminal_size(0))))
mode = termios.tcgetattr(0); mode[3] |= termios.NOFLSH; termios.tcsetattr(0, termios.TCSANOW, mode)
say('job ' + os.environ['GRIDOS_JOB'])
lines = 0
while True:
    line = sys.stdin.readline().rstrip('\n')
    if line == 'end': break
    lines += 1
    say('line %d %s' % (lines, line))
    time.sleep(0.004)
say('end %d %d' % tuple(os.get_terminal_size(0)))
sys.exit(21)
";

/// Reads a pipe to its end, slowly.
const SUMS: &str = r"
import os, sys, hashlib, time
print('job', os.environ['GRIDOS_JOB'], flush=True)
sum, n, total = hashlib.sha256(), 0, 0
while piece := os.read(0, 20000):
    sum.update(piece); n += 1; total += len(piece)
    print(n, total, flush=True)
    time.sleep(0.01)
print('sum', sum.hexdigest(), flush=True)
sys.exit(22)
";

/// How they move, and where to.
const MOVES: [(MoveMode, &[u32]); 5] = [
    (MoveMode::StopAndCopy, &[3]),
    (MoveMode::StopAndCopy, &[3, 2]),
    (MoveMode::StopAndCopy, &[3, 1, 2]),
    (MoveMode::Hybrid, &[3]),
    (MoveMode::Hybrid, &[3, 1, 2]),
];

/// The arguments of `gridctl run` for such a program.
fn run_of(script: &str) -> Vec<String> {
    ["run", "--cpus", "0.1", "--mem", "64M", "--", "/usr/bin/python3", "-c", script].map(str::to_owned).into()
}

/// The job that a program says it is, once it is on that node.
fn job_on(grid: &Grid, node: u32, printed: impl Fn() -> String) -> JobId {
    let job: JobId = until_some("it says its job", || {
        let printed = printed();
        let (_, name) = printed.split_once("job ")?;
        name.split_once(['>', '\n']).map(|(name, _)| name.trim().parse().unwrap())
    });
    if grid.places(1, job) != [Some(NodeId(node))] {
        hop(grid, 1, job, node);
    }
    job
}

/// Somebody who types on a terminal.
struct Typist {
    terminal: Terminal,
    lines: u32,
    ints: u32,
    /// What the terminal shows of it.
    shown: String,
}

impl Typist {
    fn start(grid: &Grid) -> Typist {
        let mut command = grid.machine(1).exec("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(program("gridctl"))
            .current_dir(grid.dir())
            .args(run_of(ECHOES));
        Typist { terminal: Terminal::start(&mut command, 33, 101), lines: 0, ints: 0, shown: String::new() }
    }

    /// Types lines until it is told to stop, at most so many ahead of what was read that a terminal holds them.
    fn type_until(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.type_some();
        }
    }

    fn type_some(&mut self) {
        self.lines += 1;
        let line = format!("key {}", self.lines);
        // In two pieces: the one may arrive before the move, the other after.
        let (one, other) = line.split_at(line.len() / 2);
        self.terminal.type_in(one);
        self.terminal.type_in(&format!("{other}\r"));
        self.shown += &line;
        if self.lines.is_multiple_of(20) {
            self.ints += 1;
            self.terminal.type_in("\x03");
            self.shown += "^C";
            self.terminal.until_shown(&format!("<int {}>", self.ints));
        }
        if self.lines > 150 {
            self.terminal.until_shown(&format!("<line {} ", self.lines - 150));
        }
    }

    /// Ends the program, and asserts that it read each line and heard each Ctrl-C once, and that all was shown once.
    fn end(mut self, size: &str) {
        self.terminal.type_in("end\r");
        self.shown += "end";
        let status = self.terminal.wait();
        let screen = self.terminal.screen();
        assert_eq!(status, 21, "{screen}");
        let (mut typed, mut said) = (String::new(), Vec::new());
        for part in screen.replace(['\r', '\n'], "").split('<') {
            match part.split_once('>') {
                Some((words, rest)) => {
                    said.push(words.to_owned());
                    typed += rest;
                }
                None => typed += part,
            }
        }
        assert_eq!(typed, self.shown, "what was typed is shown once");
        let of =
            |kind: &str| said.iter().filter(|words| words.starts_with(kind)).cloned().collect::<Vec<_>>();
        let lines: Vec<_> = (1..=self.lines).map(|n| format!("line {n} key {n}")).collect();
        assert_eq!(of("line "), lines);
        assert_eq!(of("int "), (1..=self.ints).map(|n| format!("int {n}")).collect::<Vec<_>>());
        assert_eq!(of("end "), [format!("end {size}")]);
    }
}

#[test]
fn pty_of_an_interactive_run_moves_while_somebody_types() {
    moving("pty_of_an_interactive_run_moves_while_somebody_types", shared, |grid: &Grid| {
        for (mode, ways) in MOVES {
            let mut typist = Typist::start(grid);
            let job = job_on(grid, 2, || typist.terminal.screen());
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let typing = scope.spawn(|| typist.type_until(&stop));
                let _stop = StopAtEnd(&stop);
                for to in ways {
                    hop_by(grid, 3, job, *to, mode);
                }
                drop(_stop);
                typing.join().unwrap();
            });
            // Where it is now, the terminal changes as the user's does, and keeps that on its way.
            typist.terminal.resize(50, 120);
            typist.terminal.until_shown("<size 120 50>");
            let last = ways[ways.len() - 1];
            hop_by(grid, 1, job, if last == 3 { 2 } else { 3 }, mode);
            for _ in 0..20 {
                typist.type_some();
            }
            println!(
                "FIGURE pty over {ways:?} and one, {mode}: {} lines, {} interrupts",
                typist.lines, typist.ints
            );
            typist.end("120 50");
        }
    });
}

/// Has a typist stop even if the test fails, which would wait for it.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How much more is fed than was read: more than is kept on the way, less than what would block.
const AHEAD: usize = 300_000;

/// Feeds a run until it is told to stop, then ends its input and asserts that each byte arrived once.
struct Feeder {
    running: Running,
    fed: Vec<u8>,
    rng: StdRng,
}

impl Feeder {
    fn start(grid: &Grid) -> Feeder {
        let running = grid.start(1, run_of(SUMS));
        Feeder { running, fed: Vec::new(), rng: StdRng::seed_from_u64(5) }
    }

    fn feed_until(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut bytes = vec![0; self.rng.random_range(1..40_000)];
            self.rng.fill(&mut bytes[..]);
            until("what was fed is read", || self.read() + AHEAD > self.fed.len());
            self.running.type_in(&bytes);
            self.fed.extend(bytes);
        }
    }

    /// How much was read, as it says.
    fn read(&self) -> usize {
        let printed = self.running.printed();
        let last = printed.rsplit('\n').nth(1).and_then(|line| line.split_once(' '));
        last.and_then(|(_, total)| total.parse().ok()).unwrap_or(0)
    }

    fn end(mut self) {
        self.running.end_input();
        let run = self.running.wait();
        assert_eq!(run.status, 22, "{run:?}");
        let numbers: Vec<u64> =
            run.stdout.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        let fed = tempfile::NamedTempFile::new().unwrap();
        fs::write(fed.path(), &self.fed).unwrap();
        let summed = Command::new("sha256sum").arg(fed.path()).output().unwrap().stdout;
        let sum = format!("sum {}", String::from_utf8_lossy(&summed).split(' ').next().unwrap());
        assert_eq!(run.stdout.lines().last(), Some(&*sum), "of {} bytes", self.fed.len());
    }
}

#[test]
fn a_pipe_is_fed_while_its_task_moves() {
    moving("a_pipe_is_fed_while_its_task_moves", shared, |grid: &Grid| {
        for (mode, ways) in MOVES {
            let mut feeder = Feeder::start(grid);
            let job = job_on(grid, 2, || feeder.running.printed());
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let feeding = scope.spawn(|| feeder.feed_until(&stop));
                let _stop = StopAtEnd(&stop);
                for to in ways {
                    hop_by(grid, 3, job, *to, mode);
                }
                drop(_stop);
                feeding.join().unwrap();
            });
            println!("FIGURE pipe over {ways:?}, {mode}: {} bytes", feeder.fed.len());
            feeder.end();
        }
    });
}

/// How many moves are disturbed.
const ROUNDS: u32 = 8;

#[test]
fn what_is_typed_outlasts_moves_that_are_given_up_and_agents_that_are_killed() {
    let config = GridConfig::new("typed_given_up", 4);
    let name = "what_is_typed_outlasts_moves_that_are_given_up_and_agents_that_are_killed";
    moving(
        name,
        || config.up(),
        |grid| {
            let mut rng = StdRng::seed_from_u64(12);
            let (mut typist, mut feeder) = (Typist::start(grid), Feeder::start(grid));
            let jobs =
                [job_on(grid, 2, || typist.terminal.screen()), job_on(grid, 2, || feeder.running.printed())];
            let stop = AtomicBool::new(false);
            let (mut arrived, mut stayed) = (0, 0);
            std::thread::scope(|scope| {
                let typing = scope.spawn(|| typist.type_until(&stop));
                let feeding = scope.spawn(|| feeder.feed_until(&stop));
                let _stop = StopAtEnd(&stop);
                let begun = std::time::Instant::now();
                for job in jobs {
                    hop(grid, 1, job, 3);
                    hop(grid, 1, job, 2);
                }
                let whole = begun.elapsed() / 4;
                for round in 0..ROUNDS {
                    let from = jobs.map(|job| grid.places(1, job)[0].unwrap().0);
                    let to = from.map(|from| if from == 2 { 3 } else { 2 });
                    let moving = [0, 1].map(|at| {
                        let command = [
                            "migrate".to_owned(),
                            jobs[at].to_string(),
                            "--to".into(),
                            format!("node{}", to[at]),
                        ];
                        grid.start(4, command)
                    });
                    std::thread::sleep(whole.mul_f64(rng.random_range(0.1..1.2)));
                    // Mostly the node that one of them is on its way to.
                    grid.kill_agent(if round % 4 == 3 { from[0] } else { to[0] });
                    // Whether they arrive is seen below.
                    let _ = moving.map(Running::wait);
                    for (job, to) in jobs.into_iter().zip(to) {
                        let place = until_some("its home knows where it is", || {
                            let status = grid.try_job(1, job)?;
                            let task = status.tasks.first()?;
                            assert_eq!(task.outcome, None, "round {round}: {task:#?}");
                            task.node.filter(|_| task.state == libgrid::status::TaskState::Running)
                        });
                        match place == NodeId(to) {
                            true => arrived += 1,
                            false => stayed += 1,
                        }
                    }
                    grid.until_up(1, 4);
                }
                drop(_stop);
                typing.join().unwrap();
                feeding.join().unwrap();
            });
            println!(
                "FIGURE of {} disturbed moves {arrived} arrived, {stayed} stayed; {} lines, {} bytes",
                2 * ROUNDS,
                typist.lines,
                feeder.fed.len()
            );
            assert!(stayed > 0, "each move arrived");
            typist.end("101 33");
            feeder.end();
            for node in [2, 3] {
                until("no process is left", || grid.task_processes(node).is_empty());
            }
        },
    );
}
