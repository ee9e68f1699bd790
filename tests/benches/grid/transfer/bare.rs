//! The least that moves a file over TCP: `sendfile` at one end, `splice` to `/dev/null` at the other, and nothing else.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use grid_tests::Grid;
use libgrid::io::{Pipe, Plan, Socket};

const PORT: u16 = 5999;

/// What moves a file from one node to the other, over so many connections.
pub(super) fn pair(
    grid: &Grid,
    (from, to): (u32, u32),
    address: &str,
    file: &Path,
    streams: usize,
) -> Command {
    let here = std::env::current_exe().unwrap();
    let mut receiver = grid.machine(to).exec(&here);
    receiver.args(["bare", "receive", &streams.to_string()]);
    let mut receiver = receiver.spawn().unwrap();
    // It ends by itself when it has received; somebody has to wait for it.
    thread::spawn(move || receiver.wait());
    let mut sender = grid.machine(from).exec(&here);
    sender.args(["bare", "send", &streams.to_string(), address]).arg(file);
    sender
}

/// One end: `receive STREAMS`, or `send STREAMS ADDRESS FILE`.
pub(crate) fn run(words: &[String]) {
    let streams: usize = words[1].parse().unwrap();
    if words[0] == "receive" {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let sockets: Vec<TcpStream> = (0..streams).map(|_| listener.accept().unwrap().0).collect();
        thread::scope(|scope| {
            for stream in sockets {
                scope.spawn(|| {
                    let sink = File::options().write(true).open("/dev/null").unwrap();
                    let socket = Socket::new(stream, &Plan::default()).unwrap();
                    socket.file_read_all(&sink, 0, &mut Pipe::new().unwrap(), |_| ()).unwrap();
                });
            }
        });
        return;
    }
    let file = File::open(&words[3]).unwrap();
    let length = file.metadata().unwrap().len();
    let part = length.div_ceil(streams as u64);
    thread::scope(|scope| {
        for stream in 0..streams as u64 {
            let (file, address) = (&file, &words[2]);
            scope.spawn(move || {
                let range = stream * part..length.min((stream + 1) * part);
                connect(address).file_write(file, range, |_| ()).unwrap();
            });
        }
    });
}

/// Connects as soon as somebody listens.
fn connect(address: &str) -> Socket {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect((address, PORT)) {
            return Socket::new(stream, &Plan::default()).unwrap();
        }
        thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("nobody listens on {address}:{PORT}");
}
