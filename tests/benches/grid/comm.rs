//! Messages between processes of jobs, beside what they would use without the grid: a TCP socket, and on one host a Unix pipe.
//!
//! The peers run in the same network namespaces as the jobs. A round trip is a message and its answer; the rate is of messages
//! one way, that nobody answers. The peers send each message by a call of its own, as we do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grid_tests::{Grid, until_some};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

use crate::report::{RUNS, Report};

/// Round trips of one run; twenty times as many messages go one way.
const COUNT: usize = 2000;

const PORT: u16 = 7400;

/// p50 and p99 of a round trip in ns, and messages a second.
type Figures = [f64; 3];

pub(crate) fn run(report: &mut Report) {
    let grid = Grid::up("bench-comm", 2);
    for (place, other) in [("same host", 1), ("across", 2)] {
        for size in [64, 4096] {
            let mut all: Vec<(&str, Vec<Figures>)> = Vec::new();
            for _ in 0..RUNS {
                let mut turn =
                    vec![("gridos", ours(&grid, other, size)), ("TCP socket", tcp(&grid, other, size))];
                if other == 1 {
                    turn.push(("Unix pipe", pipe(size)));
                }
                for (subject, figures) in turn {
                    match all.iter_mut().find(|(name, _)| *name == subject) {
                        Some((_, runs)) => runs.push(figures),
                        None => all.push((subject, vec![figures])),
                    }
                }
            }
            let case = format!("messages of {size} bytes, {place}");
            for (subject, runs) in all {
                let of = |which: usize| runs.iter().map(|figures| figures[which]).collect::<Vec<f64>>();
                let micros = |which: usize| of(which).into_iter().map(|ns| ns / 1000.0).collect::<Vec<f64>>();
                report.note(("comm", &case), subject, ("round trip p50", "µs"), &micros(0));
                report.note(("comm", &case), subject, ("round trip p99", "µs"), &micros(1));
                report.note(("comm", &case), subject, ("one way", "messages/s"), &of(2));
            }
        }
    }
}

fn talker(grid: &Grid, node: u32, words: &[&str]) -> JobId {
    let program = grid.lend("grid-talker").display().to_string();
    let spec = JobSpec::command(std::iter::once(program.as_str()).chain(words.iter().copied()));
    let spec = spec.cpus(Cpus::cores(1)).memory(Bytes(128 << 20));
    grid.submit(1, JobSpec { nodes: vec![format!("node{node}")], ..spec })
}

fn ours(grid: &Grid, other: u32, size: usize) -> Figures {
    let echo = talker(grid, other, &["echo"]);
    let peer = until_some("it says who it is", || {
        let logs = grid.logs(1, echo, 0);
        logs.lines().find_map(|line| line.strip_prefix("gpid ").map(str::to_owned))
    });
    let job = talker(grid, 1, &["bench", &peer, &COUNT.to_string(), &size.to_string()]);
    grid.wait(1, job);
    let logs = grid.logs(1, job, 0);
    grid.wait(1, echo);
    let words: Vec<&str> =
        logs.lines().find(|line| line.starts_with("p50")).expect(&logs).split(' ').collect();
    [words[1], words[3], words[5]].map(|word| word.parse().unwrap())
}

/// Both ends of the bare pair are this program, in the nodes' namespaces.
fn tcp(grid: &Grid, other: u32, size: usize) -> Figures {
    let here = std::env::current_exe().unwrap();
    let start = |node: u32, words: &[&str]| {
        let mut command = grid.machine(node).exec(&here);
        command.arg("comm-bare").args(words).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut server = start(other, &["serve"]);
    let address = grid.machine(other).addr().to_string();
    let client = start(1, &[&address, &size.to_string()]);
    let output = client.wait_with_output().unwrap();
    server.wait().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    [words[0], words[1], words[2]]
}

/// One end of the bare pair.
pub(crate) fn bare(words: &[String]) {
    if words[0] == "serve" {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        return answer(&mut stream.try_clone().unwrap(), &mut &stream);
    }
    let size = words[1].parse().unwrap();
    let begun = Instant::now();
    let stream = loop {
        match TcpStream::connect((words[0].as_str(), PORT)) {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_nodelay(true).unwrap();
    let [p50, p99, rate] = measure(&mut stream.try_clone().unwrap(), &mut &stream, size);
    println!("{p50} {p99} {rate}");
}

/// A pair of pipes, and this program at the other end.
fn pipe(size: usize) -> Figures {
    let here = std::env::current_exe().unwrap();
    let mut command = Command::new(here);
    let mut other = command.arg("comm-pipe").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let figures = measure(&mut other.stdout.take().unwrap(), &mut other.stdin.take().unwrap(), size);
    other.wait().unwrap();
    figures
}

/// The other end of the pair of pipes.
pub(crate) fn bare_pipe() {
    answer(&mut std::io::stdin().lock(), &mut std::io::stdout());
}

/// The first eight bytes tell the size of messages; `COUNT` of them are answered, the others counted.
fn answer(from: &mut impl Read, to: &mut impl Write) {
    let mut head = [0; 8];
    from.read_exact(&mut head).unwrap();
    let mut message = vec![0; u64::from_le_bytes(head) as usize];
    for _ in 0..COUNT {
        from.read_exact(&mut message).unwrap();
        to.write_all(&message).unwrap();
        to.flush().unwrap();
    }
    for _ in 0..COUNT * 20 {
        from.read_exact(&mut message).unwrap();
    }
    to.write_all(&[1]).unwrap();
    to.flush().unwrap();
}

fn measure(from: &mut impl Read, to: &mut impl Write, size: usize) -> Figures {
    to.write_all(&(size as u64).to_le_bytes()).unwrap();
    let mut message = vec![0; size];
    let mut times = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let begun = Instant::now();
        to.write_all(&message).unwrap();
        from.read_exact(&mut message).unwrap();
        times.push(begun.elapsed().as_nanos() as f64);
    }
    let begun = Instant::now();
    for _ in 0..COUNT * 20 {
        to.write_all(&message).unwrap();
    }
    from.read_exact(&mut [0]).unwrap();
    let rate = (COUNT * 20) as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    [times[COUNT / 2], times[COUNT * 99 / 100], rate]
}
