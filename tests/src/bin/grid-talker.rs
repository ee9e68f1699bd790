//! A job's program for the tests of `libgrid::comm`: it talks to others of its kind, and knows what has to come.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libgrid::comm::{CommError, Endpoint};
use libgrid::ids::Gpid;

/// What messages are: to be answered, the end, numbered.
const ECHO: u32 = 0;
const END: u32 = 1;
const SINK: u32 = 2;

const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn say(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").unwrap();
    out.flush().unwrap();
}

/// What message `number` is.
fn text(number: u64, size: usize) -> Vec<u8> {
    let size = if size == 0 { (number * 7919 % 3000) as usize } else { size };
    let filler = (0..size).map(|at| (number + at as u64 * 7) as u8);
    number.to_le_bytes().into_iter().chain(filler).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let endpoint = match Endpoint::open() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            say(format!("cannot open: {error}"));
            std::process::exit(3);
        }
    };
    say(format!("gpid {}", endpoint.gpid()));
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["echo"] => echo(&endpoint),
        ["stream", peer, until, size, pause] => stream(
            &endpoint,
            peer.parse().unwrap(),
            Path::new(until),
            size.parse().unwrap(),
            pause.parse().unwrap(),
        ),
        ["slow", until] => slow(&endpoint, Path::new(until)),
        ["fill", peer] => fill(&endpoint, peer.parse().unwrap()),
        ["try", peer] => attempt(&endpoint, peer.parse().unwrap()),
        ["bench", peer, count, size] => {
            bench(&endpoint, peer.parse().unwrap(), count.parse().unwrap(), size.parse().unwrap())
        }
        _ => panic!("{words:?}"),
    };
    drop(endpoint);
    match done {
        Ok(()) => say("OK"),
        Err(error) => {
            say(format!("failed: {error}"));
            std::process::exit(4);
        }
    }
}

/// Sends all back.
fn echo(endpoint: &Endpoint) -> Result<(), CommError> {
    let mut sunk = 0u64;
    loop {
        let message = endpoint.recv(None)?;
        match message.tag {
            END => {
                endpoint.send(message.from, END, &sunk.to_le_bytes(), LONG)?;
                return endpoint.flush(LONG);
            }
            SINK => sunk += 1,
            tag => endpoint.send(message.from, tag, &message.bytes, LONG)?,
        }
    }
}

/// Sends numbered messages until a file is there, and compares every answer.
fn stream(endpoint: &Endpoint, peer: Gpid, until: &Path, size: usize, pause: u64) -> Result<(), CommError> {
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !until.exists() {
                let number = sent.load(Ordering::SeqCst);
                endpoint.send(peer, ECHO, &text(number, size), LONG)?;
                sent.store(number + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(pause));
            }
            over.store(true, Ordering::SeqCst);
            Ok::<_, CommError>(())
        });
        let mut came = 0;
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        loop {
            if over.load(Ordering::SeqCst) && came == sent.load(Ordering::SeqCst) {
                break;
            }
            match endpoint.recv_from(Some(peer), Some(ECHO), Some(Duration::from_millis(500))) {
                Ok(message) => {
                    assert_eq!(message.bytes, text(came, size), "number {came}");
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    came += 1;
                    if came.is_power_of_two() || came % 500 == 0 {
                        say(format!("came {came}"));
                    }
                }
                Err(CommError::Timeout { .. }) => (),
                Err(error) => return Err(error),
            }
        }
        sender.join().unwrap()?;
        endpoint.send(peer, END, b"", LONG)?;
        endpoint.recv_from(Some(peer), Some(END), LONG)?;
        say(format!("all {came} came, the longest pause was {} ms", longest.as_millis()));
        Ok(())
    })
}

/// Takes nothing until a file is there; then all.
fn slow(endpoint: &Endpoint, until: &Path) -> Result<(), CommError> {
    while !until.exists() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut came = 0;
    loop {
        let message = endpoint.recv(LONG)?;
        if message.tag == END {
            say(format!("took {came}"));
            return Ok(());
        }
        assert_eq!(message.bytes, text(came, 10_000), "number {came}");
        came += 1;
    }
}

/// Sends as much as the other end takes within a second, and then with patience.
fn fill(endpoint: &Endpoint, peer: Gpid) -> Result<(), CommError> {
    let mut number = 0;
    loop {
        match endpoint.send(peer, SINK, &text(number, 10_000), Some(Duration::from_secs(1))) {
            Ok(()) => number += 1,
            Err(error @ CommError::Timeout { .. }) => {
                say(format!("full after {number}: {error}"));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    for _ in 0..1000 {
        endpoint.send(peer, SINK, &text(number, 10_000), LONG)?;
        number += 1;
    }
    endpoint.send(peer, END, b"", LONG)?;
    say(format!("sent {number}"));
    endpoint.flush(LONG)
}

/// One message, and what comes of it.
fn attempt(endpoint: &Endpoint, peer: Gpid) -> Result<(), CommError> {
    match Endpoint::open() {
        Err(CommError::Taken) => (),
        other => panic!("a second one: {other:?}"),
    }
    let long = endpoint.send(peer, 0, &vec![0; 2 << 20], LONG);
    assert!(matches!(long, Err(CommError::TooLarge { .. })), "{long:?}");
    endpoint.send(peer, ECHO, b"hello", Some(Duration::from_secs(6)))?;
    endpoint.recv_from(Some(peer), None, Some(Duration::from_secs(6))).map(drop)
}

/// Round trips, then messages one way.
fn bench(endpoint: &Endpoint, peer: Gpid, count: usize, size: usize) -> Result<(), CommError> {
    let message = vec![0; size];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        endpoint.send(peer, ECHO, &message, LONG)?;
        endpoint.recv_from(Some(peer), Some(ECHO), LONG)?;
        times.push(begun.elapsed().as_nanos() as u64);
    }
    let begun = Instant::now();
    let many = count * 20;
    for _ in 0..many {
        endpoint.send(peer, SINK, &message, LONG)?;
    }
    endpoint.send(peer, END, b"", LONG)?;
    endpoint.recv_from(Some(peer), Some(END), LONG)?;
    let rate = many as f64 / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    say(format!("p50 {} p99 {} rate {rate:.0}", at(50), at(99)));
    Ok(())
}
