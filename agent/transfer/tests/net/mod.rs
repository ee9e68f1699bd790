//! A network between source and destination that does what networks do: it listens where the source thinks that the
//! destination is, and passes on.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A bit is flipped after each so many bytes, three times: a range that is damaged more often is given up.
    Flip { every: u64 },
    /// Each connection is cut after so many bytes.
    Cut { every: u64 },
    /// One connection passes nothing on any more after so many bytes.
    StallOnce { after: u64 },
    /// One connection passes nothing on after so many bytes, until so many went over others; then what it held, with a
    /// bit flipped.
    LateOnce { after: u64, overtaken: u64 },
    /// Data and control are cut when so many bytes have passed in all.
    CutAll { after: u64 },
    /// Others connect to the destination's port and say what comes to their minds.
    Strangers,
}

pub(crate) struct Network {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    fault: Fault,
    passed: AtomicU64,
    faults: AtomicU64,
    ended: AtomicBool,
    control: Mutex<Vec<UnixStream>>,
    data: Mutex<Vec<TcpStream>>,
}

/// Where the destination listens, and where the source connects to.
pub(crate) const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
pub(crate) const ENTRANCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

impl Network {
    pub(crate) fn start(fault: Fault) -> Self {
        // A port that is free at both ends.
        let (listener, port) = loop {
            let listener = TcpListener::bind((ENTRANCE, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            if TcpListener::bind((DESTINATION, port)).is_ok() {
                break (listener, port);
            }
        };
        let shared = Arc::new(Shared {
            fault,
            passed: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            control: Mutex::default(),
            data: Mutex::default(),
        });
        let net = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(from) = stream else { return };
                if net.ended.load(Ordering::Relaxed) {
                    return;
                }
                if matches!(net.fault, Fault::Strangers) {
                    net.strangers(port);
                }
                let Ok(to) = TcpStream::connect((DESTINATION, port)) else { continue };
                net.data.lock().unwrap().extend([from.try_clone().unwrap(), to.try_clone().unwrap()]);
                let (back_from, back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                let there = net.clone();
                thread::spawn(move || there.pass(from, to));
                thread::spawn(move || std::io::copy(&mut &back_from, &mut &back_to));
            }
        });
        Self { shared, port }
    }

    /// A control stream that is cut with the rest.
    pub(crate) fn control(&self) -> (UnixStream, UnixStream) {
        let (here, a) = UnixStream::pair().unwrap();
        let (b, there) = UnixStream::pair().unwrap();
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut &from, &mut &to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        self.shared.control.lock().unwrap().extend([a, b]);
        (here, there)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of data that went through.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// How often something went wrong.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.cut();
        // Wakes the listener.
        let _ = TcpStream::connect((ENTRANCE, self.port));
    }
}

impl Shared {
    fn cut(&self) {
        for stream in self.control.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for stream in self.data.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        let mut here = 0;
        while let Ok(came @ 1..) = from.read(&mut buffer) {
            here += came as u64;
            let before = self.passed.fetch_add(came as u64, Ordering::Relaxed);
            let total = before + came as u64;
            match self.fault {
                Fault::Flip { every }
                    if total / every > before / every && self.faults.load(Ordering::Relaxed) < 3 =>
                {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    buffer[came / 2] ^= 4;
                }
                Fault::Cut { every } if here > every => {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Fault::StallOnce { after } if here > after && self.faults.swap(1, Ordering::Relaxed) == 0 => {
                    while !self.ended.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(20));
                    }
                    return;
                }
                Fault::LateOnce { after, overtaken }
                    if here > after && self.faults.swap(1, Ordering::Relaxed) == 0 =>
                {
                    while !self.ended.load(Ordering::Relaxed)
                        && self.passed.load(Ordering::Relaxed) < total + overtaken
                    {
                        thread::sleep(Duration::from_millis(5));
                    }
                    buffer[came / 2] ^= 4;
                }
                Fault::CutAll { after } if total > after => {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    return self.cut();
                }
                _ => (),
            }
            if to.write_all(&buffer[..came]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn strangers(&self, port: u16) {
        for words in [&b""[..], b"GET / HTTP/1.0\r\n\r\n", &[0xff; 4096]] {
            if let Ok(mut stream) = TcpStream::connect((DESTINATION, port)) {
                self.faults.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(words);
                // It stays open as long as the network.
                self.data.lock().unwrap().push(stream);
            }
        }
    }
}
