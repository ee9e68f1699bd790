//! Servers that mean harm: the client ends with a sentence, in time, and without taking memory.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libgrid::ftp::client::{
    Client, FtpError, FtpUrl, Landed, Limits, Login, Options, Tls, TreeOptions, Trust, get_tree,
};

/// Each wait is that long at most.
const SHORT: Duration = Duration::from_millis(400);

/// All waits of an operation together, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(15);

type Answer = dyn Fn(&str, &mut TcpStream) -> std::io::Result<bool> + Send + Sync;

/// A server that answers as a script says; what the script leaves (`false`) is answered as by a good server.
struct Villain {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Villain {
    fn new(answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<bool> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (end, answer): (_, Arc<Answer>) = (ended.clone(), Arc::new(answer));
        thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                // A write that nobody reads must end with the test.
                stream.set_write_timeout(Some(IN_TIME)).unwrap();
                let answer = answer.clone();
                thread::spawn(move || session(stream, &*answer));
            }
        });
        Self { port, ended }
    }

    fn url(&self) -> FtpUrl {
        format!("ftp://127.0.0.1:{}/", self.port).parse().unwrap()
    }

    fn get(&self) -> Result<Landed, FtpError> {
        self.get_with(&Options { retries: 0, ..Options::default() })
    }

    /// Fetches a file; nothing may be left of it.
    fn get_with(&self, options: &Options) -> Result<Landed, FtpError> {
        let here = tempfile::tempdir().unwrap();
        let mut client = Client::connect(&self.url(), &hasty())?;
        client.get(b"/x", &here.path().join("x"), options, &mut |_| ())
    }
}

impl Drop for Villain {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

fn hasty() -> Login {
    let limits = Limits {
        connect: SHORT,
        reply: SHORT,
        stall: SHORT,
        finish: SHORT,
        list: 1 << 20,
        entries: 1000,
        ..Limits::default()
    };
    Login { limits, ..Login::default() }
}

fn session(mut stream: TcpStream, answer: &Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut data: Option<TcpListener> = None;
    let mut next = Some("HELLO".to_owned());
    while let Some(line) = next {
        match answer(&line, &mut stream) {
            Ok(true) => (),
            Err(_) => return,
            Ok(false) => {
                let verb = line.split(' ').next().unwrap_or_default();
                let reply = match verb {
                    "HELLO" => "220 hello".to_owned(),
                    "USER" => "331 password".to_owned(),
                    "PASS" => "230 welcome".to_owned(),
                    "FEAT" => "211-Extensions:\r\n MLST Type*;Size*;\r\n REST STREAM\r\n211 End".to_owned(),
                    "SIZE" => "213 1000".to_owned(),
                    "MDTM" => "213 20240101000000".to_owned(),
                    "REST" => "350 go on".to_owned(),
                    "PASV" => {
                        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                        let port = listener.local_addr().unwrap().port();
                        data = Some(listener);
                        format!("227 here (127,0,0,1,{},{})", port >> 8, port & 255)
                    }
                    "RETR" | "MLSD" => {
                        let Some(listener) = data.take() else { return };
                        let Ok((mut to, _)) = listener.accept() else { return };
                        to.set_write_timeout(Some(IN_TIME)).unwrap();
                        if stream.write_all(b"150 it comes\r\n").is_err() {
                            return;
                        }
                        match answer(&format!("DATA {line}"), &mut to) {
                            Ok(true) => (),
                            Ok(false) => drop(to.write_all(&[7; 1000])),
                            Err(_) => (),
                        }
                        drop(to);
                        "226 done".to_owned()
                    }
                    "QUIT" => return,
                    _ => "200 fine".to_owned(),
                };
                if stream.write_all(format!("{reply}\r\n").as_bytes()).is_err() {
                    return;
                }
            }
        }
        next = lines.next().and_then(Result::ok);
    }
}

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The error, which must come in time and be one sentence.
#[track_caller]
fn ends<T: std::fmt::Debug>(run: impl FnOnce() -> Result<T, FtpError>) -> String {
    let (begun, before) = (Instant::now(), peak());
    let error = run().unwrap_err().to_string();
    assert!(begun.elapsed() < IN_TIME, "{error}: {:?}", begun.elapsed());
    // Tests run side by side.
    assert!(
        peak().saturating_sub(before) < 128 << 20,
        "{error}: {} more bytes",
        peak().saturating_sub(before)
    );
    assert!(!error.is_empty() && error.len() < 1000 && !error.contains('\n'), "{error}");
    error
}

/// Answers one command in its own way.
fn at(
    command: &'static str,
    answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Villain {
    Villain::new(move |line, stream| {
        if line.starts_with(command) {
            answer(stream)?;
            return Ok(true);
        }
        Ok(false)
    })
}

fn forever(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let block = bytes.repeat(64 * 1024 / bytes.len());
    loop {
        stream.write_all(&block)?;
    }
}

#[test]
fn a_good_server_is_served_by_the_script() {
    let landed = Villain::new(|_, _| Ok(false)).get().unwrap();
    assert_eq!(landed.bytes, 1000);
}

#[test]
fn a_line_without_an_end_is_given_up() {
    for command in ["HELLO", "USER", "FEAT", "SIZE", "PASV"] {
        let villain = at(command, |stream| forever(stream, b"a"));
        ends(|| villain.get());
    }
}

#[test]
fn a_reply_without_an_end_is_given_up() {
    for command in ["HELLO", "PASS", "FEAT", "RETR"] {
        let villain = at(command, |stream| {
            stream.write_all(b"220-begin\r\n")?;
            forever(stream, b"220-and on\r\n")
        });
        let error = ends(|| villain.get());
        assert!(error.contains("longer than"), "{error}");
    }
}

#[test]
fn preliminary_replies_without_an_end_are_given_up() {
    for command in ["HELLO", "USER", "SIZE", "PASV"] {
        let villain = at(command, |stream| forever(stream, b"120 soon\r\n"));
        ends(|| villain.get());
    }
    // In a transfer markers are welcome, but they do not keep it alive.
    let villain = at("RETR", |stream| forever(stream, b"111 Range Marker 0-5\r\n"));
    ends(|| villain.get());
    let villain = at("RETR", |stream| {
        for _ in 0..10_000 {
            stream.write_all(b"111 Range Marker 0-5\r\n")?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
    ends(|| villain.get());
}

#[test]
fn a_reply_that_drips_is_given_up() {
    for command in ["HELLO", "FEAT", "PASV"] {
        let villain = at(command, |stream| {
            for _ in 0..1000 {
                stream.write_all(b"2")?;
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        let error = ends(|| villain.get());
        assert!(error.contains("silent for 400ms"), "{error}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    for command in ["HELLO", "USER", "PASS", "TYPE", "FEAT", "SIZE", "PASV", "RETR", "DATA RETR"] {
        let villain = at(command, |_| {
            thread::sleep(IN_TIME);
            Ok(())
        });
        let error = ends(|| villain.get());
        assert!(error.contains("silent for") || error.contains("nothing moved for"), "{command}: {error}");
    }
}

#[test]
fn data_without_an_end_are_cut_at_the_size_that_was_told() {
    let villain = at("DATA RETR", |stream| forever(stream, &[7; 1024]));
    let error = ends(|| villain.get());
    assert!(error.contains("more than the file has"), "{error}");
    // Of unknown size, only up to the limit.
    let villain = Villain::new(|line, stream| {
        if line.starts_with("SIZE") {
            stream.write_all(b"500 what?\r\n")?;
        } else if line.starts_with("DATA RETR") {
            forever(stream, &[7; 1024])?;
        } else {
            return Ok(false);
        }
        Ok(true)
    });
    let here = tempfile::tempdir().unwrap();
    let mut login = hasty();
    login.limits.file = Some(1 << 20);
    let mut client = Client::connect(&villain.url(), &login).unwrap();
    let options = Options { retries: 0, ..Options::default() };
    ends(|| client.get(b"/x", &here.path().join("x"), &options, &mut |_| ()));
    assert!(!here.path().join("x").exists());
}

#[test]
fn too_little_data_is_no_file() {
    let villain = at("DATA RETR", |stream| stream.write_all(&[7; 999]));
    let error = ends(|| villain.get());
    assert!(error.contains("ended the file early") && error.contains("byte 999"), "{error}");
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let villain = at("DATA MLSD", |stream| forever(stream, b"Type=file;Size=1; a\r\n"));
    let mut client = Client::connect(&villain.url(), &hasty()).unwrap();
    let error = ends(|| client.list(b"/"));
    assert!(error.contains("longer than 1048576 bytes"), "{error}");
}

#[test]
fn folders_without_an_end_are_given_up() {
    let villain = at("DATA MLSD", |stream| {
        stream.write_all(b"Type=dir; a\r\nType=dir; b\r\nType=file;Size=1000; f\r\n")
    });
    let here = tempfile::tempdir().unwrap();
    let mut client = Client::connect(&villain.url(), &hasty()).unwrap();
    let error = ends(|| get_tree(&mut client, b"/", here.path(), &TreeOptions::default(), &mut |_| ()));
    assert!(error.contains("more than 1000 names"), "{error}");
}

#[test]
fn names_in_a_list_lead_nowhere_else() {
    for name in ["../escaped", "/tmp/escaped", "a/../../escaped", "..\0x"] {
        let villain = at("DATA MLSD", move |stream| {
            stream.write_all(format!("Type=file;Size=1000; {name}\r\n").as_bytes())
        });
        let here = tempfile::tempdir().unwrap();
        fs::create_dir(here.path().join("in")).unwrap();
        let mut client = Client::connect(&villain.url(), &hasty()).unwrap();
        let error = ends(|| {
            get_tree(&mut client, b"/", &here.path().join("in"), &TreeOptions::default(), &mut |_| ())
        });
        assert!(error.contains("cannot be used"), "{error}");
        assert_eq!(crate::material::names(here.path()), ["in"]);
    }
}

#[test]
fn replies_in_a_wrong_order_are_named() {
    for (command, reply) in [
        ("HELLO", "331 password\r\n"),
        ("USER", "150 data\r\n226 done\r\n331 again\r\n"),
        ("PASS", "350 go on\r\n"),
        ("TYPE", "331 who?\r\n"),
        ("SIZE", "213 many\r\n"),
        ("SIZE", "213 99999999999999999999\r\n"),
        ("SIZE", "226 done\r\n226 done\r\n226 done\r\n"),
        ("PASV", "230 welcome\r\n"),
        ("PASV", "227 somewhere\r\n"),
        ("PASV", "227 (127,0,0,1,0,0)\r\n"),
        ("RETR", "331 who?\r\n"),
        ("RETR", "226 done\r\n226 done\r\n"),
        ("RETR", "nonsense\r\n"),
        ("HELLO", "SSH-2.0-OpenSSH_9.2\r\n"),
    ] {
        let villain = at(command, move |stream| stream.write_all(reply.as_bytes()));
        ends(|| villain.get());
    }
}

#[test]
fn the_host_in_a_pasv_reply_is_not_believed() {
    let victim = TcpListener::bind("127.0.0.2:0").unwrap();
    victim.set_nonblocking(true).unwrap();
    let port = victim.local_addr().unwrap().port();
    let villain = at("PASV", move |stream| {
        stream.write_all(format!("227 (127,0,0,2,{},{})\r\n", port >> 8, port & 255).as_bytes())
    });
    ends(|| villain.get());
    assert!(victim.accept().is_err(), "the client connected to a host that a server named");
    // Unless it was asked to.
    let login = Login { believe_pasv: true, ..hasty() };
    let here = tempfile::tempdir().unwrap();
    let mut client = Client::connect(&villain.url(), &login).unwrap();
    let options = Options { retries: 0, ..Options::default() };
    let result = client.get(b"/x", &here.path().join("x"), &options, &mut |_| ());
    assert!(result.is_err());
    victim.accept().unwrap();
}

#[test]
fn blocks_that_make_no_sense_end_a_transfer_in_extended_mode() {
    let header = |flags: u8, count: u64, offset: u64| {
        let mut bytes = vec![flags];
        bytes.extend(count.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes
    };
    let outside = header(0, 10, 5000);
    let huge = header(0, u64::MAX, u64::MAX);
    let again = [header(0, 1000, 0), vec![1; 1000]].concat();
    let empty = header(0, 0, 0);
    let cases: [(Vec<u8>, bool); 6] = [
        (outside, false),
        (huge, false),
        (header(3, 0, 0), false),
        (header(64, 0, 0), false),
        (again, true),
        (empty, true),
    ];
    for (bytes, repeat) in cases {
        let villain = Villain::new({
            let to = std::sync::Mutex::new(None);
            let bytes = bytes.clone();
            move |line, stream| {
                if let Some(address) = line.strip_prefix("PORT ") {
                    *to.lock().unwrap() =
                        Some(libgrid::ftp::address::parse_port(address.as_bytes()).unwrap());
                } else if line.starts_with("RETR") {
                    stream.write_all(b"150 it comes\r\n")?;
                    let mut data = TcpStream::connect(to.lock().unwrap().unwrap())?;
                    data.set_write_timeout(Some(IN_TIME))?;
                    if repeat {
                        drop(forever(&mut data, &bytes));
                    } else {
                        data.write_all(&bytes)?;
                        thread::sleep(SHORT * 4);
                    }
                    return Ok(true);
                }
                Ok(false)
            }
        });
        let error = ends(|| {
            villain.get_with(&Options { extended: true, streams: Some(1), retries: 0, ..Options::default() })
        });
        assert!(error.contains("broke off"), "{error}");
    }
}

#[test]
fn nothing_is_said_in_the_clear_after_a_failed_handshake() {
    let villain = Villain::new(|line, stream| {
        if line.starts_with("AUTH") {
            // What was slipped in before the handshake must not count.
            stream.write_all(b"234 go on\r\n230 welcome\r\n")?;
            return Ok(true);
        }
        assert!(!line.starts_with("PASS"), "a password in the clear");
        Ok(false)
    });
    let login = Login { tls: Some(Tls { trust: Trust::Anybody, ..Tls::default() }), ..hasty() };
    let error = ends(|| Client::connect(&villain.url(), &login));
    assert!(error.starts_with("no secure connection"), "{error}");
}
