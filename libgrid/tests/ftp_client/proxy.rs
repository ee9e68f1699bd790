//! A link that breaks when it is told to: a relay for one server's control and data connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use libgrid::ftp::address::{format_port, parse_epsv, parse_pasv, parse_port};

struct State {
    server: SocketAddr,
    sockets: Mutex<Vec<TcpStream>>,
    /// Bytes of data that passed.
    passed: AtomicU64,
    /// At so many it trips.
    limit: AtomicU64,
    tripped: Mutex<mpsc::Sender<u64>>,
    ended: AtomicBool,
    /// How often it was cut: what a connection still holds from before does not count.
    cuts: AtomicU64,
}

/// The limit while nothing passes.
const TRIPPED: u64 = 0;

pub(crate) struct Proxy {
    state: Arc<State>,
    pub(crate) port: u16,
    trips: mpsc::Receiver<u64>,
}

impl Proxy {
    pub(crate) fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tripped, trips) = mpsc::channel();
        let state = Arc::new(State {
            server: SocketAddr::from(([127, 0, 0, 1], server)),
            sockets: Mutex::default(),
            passed: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            tripped: Mutex::new(tripped),
            ended: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
        });
        let shared = state.clone();
        let session = state.clone();
        accepting(listener, shared, move |client| {
            if let Ok(server) = TcpStream::connect(session.server) {
                control(client, server, &session);
            }
        });
        Self { state, port, trips }
    }

    /// Trips after so many more bytes of data: nothing passes until [`Proxy::cut`].
    pub(crate) fn trip_after(&self, bytes: u64) {
        let passed = self.state.passed.load(Ordering::SeqCst);
        self.state.limit.store(passed + bytes, Ordering::SeqCst);
    }

    /// Waits until it trips; `None` if it does not within this time.
    pub(crate) fn wait(&self, patience: Duration) -> Option<u64> {
        self.trips.recv_timeout(patience).ok()
    }

    /// Cuts all connections; new ones pass.
    pub(crate) fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
        for socket in self.state.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.state.limit.store(u64::MAX, Ordering::SeqCst);
        while self.trips.try_recv().is_ok() {}
    }

    pub(crate) fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
    }
}

fn accepting(listener: TcpListener, state: Arc<State>, each: impl Fn(TcpStream) + Send + 'static) {
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        while !state.ended.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    each(stream);
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    });
}

fn register(state: &State, streams: [&TcpStream; 2]) {
    let mut sockets = state.sockets.lock().unwrap();
    sockets.extend(streams.into_iter().filter_map(|stream| stream.try_clone().ok()));
}

/// A port here whose connections go on to `to`.
fn data_port(to: SocketAddr, state: &Arc<State>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let shared = state.clone();
    accepting(listener, state.clone(), move |one| {
        let Ok(other) = TcpStream::connect(to) else { return };
        register(&shared, [&one, &other]);
        for (from, to) in [(one.try_clone(), other.try_clone()), (Ok(other), Ok(one))] {
            let (Ok(from), Ok(to), state) = (from, to, shared.clone()) else { return };
            thread::spawn(move || relay(from, to, &state));
        }
    });
    port
}

fn relay(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = vec![0; 64 * 1024];
    let cuts = state.cuts.load(Ordering::SeqCst);
    loop {
        let came = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(_) if state.cuts.load(Ordering::SeqCst) != cuts => break,
            Ok(came) => came,
        };
        let passed = state.passed.fetch_add(came as u64, Ordering::SeqCst) + came as u64;
        let limit = state.limit.load(Ordering::SeqCst);
        if passed >= limit {
            // The first one tells of it, once.
            if limit != TRIPPED
                && state.limit.compare_exchange(limit, TRIPPED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            {
                let _ = state.tripped.lock().unwrap().send(passed);
            }
            while state.limit.load(Ordering::SeqCst) == TRIPPED {
                thread::sleep(Duration::from_millis(1));
            }
            break;
        }
        if to.write_all(&buffer[..came]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Passes commands and replies on, and puts itself between wherever an address is told.
fn control(client: TcpStream, server: TcpStream, state: &Arc<State>) {
    register(state, [&client, &server]);
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let pairs = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
    for (number, (from, to)) in pairs.into_iter().enumerate() {
        let (Ok(from), Ok(mut to), state) = (from, to, state.clone()) else { return };
        thread::spawn(move || {
            let mut lines = BufReader::new(from);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|came| came > 0) {
                let port_of = |to| SocketAddr::new(local.ip(), data_port(to, &state));
                let text = line.trim_ascii_end().to_vec();
                if let (0, Some(address)) = (number, text.strip_prefix(b"PORT ")) {
                    let port = port_of(parse_port(address).unwrap());
                    line = format!("PORT {}\r\n", format_port(port).unwrap()).into_bytes();
                } else if let (1, Some(text)) = (number, text.strip_prefix(b"227 ")) {
                    let port = port_of(parse_pasv(text).unwrap());
                    line = format!("227 Passive ({})\r\n", format_port(port).unwrap()).into_bytes();
                } else if let (1, Some(text)) = (number, text.strip_prefix(b"229 ")) {
                    let port = port_of(SocketAddr::new(local.ip(), parse_epsv(text).unwrap()));
                    line = format!("229 Passive (|||{}|)\r\n", port.port()).into_bytes();
                }
                if to.write_all(&line).is_err() {
                    break;
                }
                line.clear();
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
