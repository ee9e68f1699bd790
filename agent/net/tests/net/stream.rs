//! A stream of numbers to a task and back: each must come, once, in its place.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::grid::inside;
use crate::program::PORT;
use crate::until;

/// Numbers in one writing.
const PIECE: u64 = 2048;

pub(crate) struct Stream {
    name: &'static str,
    ended: Arc<AtomicBool>,
    came: Arc<AtomicU64>,
    /// The longest silence since it was last asked for, in microseconds.
    silence: Arc<AtomicU64>,
    writer: JoinHandle<u64>,
    reader: JoinHandle<u64>,
}

impl Stream {
    /// From a node, or a task, to the program at this address.
    pub(crate) fn start(name: &'static str, space: &OwnedFd, ip: Ipv4Addr) -> Self {
        let stream = inside(space, || TcpStream::connect((ip, PORT))).unwrap();
        let (ended, came, silence) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let writer = {
            let (stream, ended) = (stream.try_clone().unwrap(), Arc::clone(&ended));
            thread::spawn(move || write(stream, &ended))
        };
        let reader = {
            let (came, silence) = (Arc::clone(&came), Arc::clone(&silence));
            thread::spawn(move || read(stream, &came, &silence))
        };
        Self { name, ended, came, silence, writer, reader }
    }

    /// Waits until two megabytes more have come back.
    pub(crate) fn flows(&self) {
        let goal = self.came.load(Ordering::Relaxed) + (2 << 20);
        until(&format!("{} flows", self.name), || {
            assert!(!self.reader.is_finished(), "{} has ended early", self.name);
            self.came.load(Ordering::Relaxed) > goal
        });
    }

    /// The longest silence since it was last asked for.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_micros(self.silence.swap(0, Ordering::Relaxed))
    }

    /// Ends it; every number that was sent must have come back.
    pub(crate) fn end(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        let sent = self.writer.join().unwrap();
        let came = self.reader.join().unwrap();
        assert_eq!(came, sent, "{}: numbers that came back, and that were sent", self.name);
        came * 8
    }
}

fn write(mut stream: TcpStream, ended: &AtomicBool) -> u64 {
    let mut next = 0;
    while !ended.load(Ordering::Relaxed) {
        let piece: Vec<u8> = (next..next + PIECE).flat_map(u64::to_ne_bytes).collect();
        stream.write_all(&piece).unwrap();
        next += PIECE;
        // A load, and not all that two cores can do.
        thread::sleep(Duration::from_micros(500));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    next
}

fn read(mut stream: TcpStream, came: &AtomicU64, silence: &AtomicU64) -> u64 {
    let (mut next, mut kept) = (0, Vec::new());
    let mut buffer = vec![0; 64 << 10];
    let mut last = Instant::now();
    loop {
        let length = stream.read(&mut buffer).unwrap();
        silence.fetch_max(last.elapsed().as_micros() as u64, Ordering::Relaxed);
        last = Instant::now();
        if length == 0 {
            assert!(kept.is_empty(), "part of a number came");
            return next;
        }
        came.fetch_add(length as u64, Ordering::Relaxed);
        kept.extend_from_slice(&buffer[..length]);
        let whole = kept.len() / 8 * 8;
        for number in kept.drain(..whole).collect::<Vec<_>>().chunks_exact(8) {
            let number = u64::from_ne_bytes(number.try_into().unwrap());
            assert_eq!(number, next, "a number that is not the next one");
            next += 1;
        }
    }
}
