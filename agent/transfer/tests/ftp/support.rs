//! A server of one's own for each test, a plain client, and files to move.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use libgrid::ftp::address::{parse_epsv, parse_pasv};
use libgrid::ftp::reply::{Reply, ReplyReader};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A server, and the folder that it serves. Both go with it.
pub(crate) struct Server {
    process: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    options: Vec<String>,
}

/// Gives this thread, and whatever it starts from now on, a network of its own where that is allowed. Each connection
/// leaves a port that nobody may bind for a minute; after some ten thousand, others find none.
pub(crate) fn own_network() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    }
}

fn start(folder: &Path, port: u16, options: &[String]) -> (Child, SocketAddr) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridos-ftpd"));
    command.args(["--listen", "127.0.0.1", "--port", &port.to_string(), "--root"]).arg(folder.join("root"));
    if nix::unistd::geteuid().is_root() {
        command.args(["--user", "nobody"]);
    }
    let mut process = command.args(options).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().strip_prefix("serving on ").expect("the server starts").parse().unwrap();
    (process, addr)
}

impl Server {
    /// With these options, and any port.
    pub(crate) fn new(options: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        Server::in_folder(folder, options)
    }

    pub(crate) fn in_folder(folder: tempfile::TempDir, options: &[&str]) -> Server {
        let root = folder.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        for path in [folder.path(), &root] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (process, addr) = start(folder.path(), 0, &options);
        Server { process, addr, folder, options }
    }

    /// Everybody may read and write.
    pub(crate) fn open() -> Server {
        Server::new(&["--anonymous=write"])
    }

    /// A file in the folder that is served.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    /// A file beside it, for clients.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ftp://{}/{path}", self.addr)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills it without a word, and starts it again at the same address.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, self.addr) = start(self.folder.path(), self.addr.port(), &self.options);
    }

    pub(crate) fn client(&self) -> Client {
        let mut client = Client::connect(self.addr);
        client.expect(220);
        client.login();
        client
    }

    /// It still answers.
    pub(crate) fn assert_up(&mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "the server ended");
        let mut client = self.client();
        assert_eq!(client.ask("NOOP").code, 200);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A plain client that says what the test says.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Client { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    pub(crate) fn login(&mut self) {
        assert_eq!(self.ask("USER anonymous").code, 331);
        assert_eq!(self.ask("PASS x@").code, 230);
        assert_eq!(self.ask("TYPE I").code, 200);
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    /// The next reply; `None` at the end of the connection.
    pub(crate) fn read(&mut self) -> Option<Reply> {
        let mut replies = ReplyReader::default();
        loop {
            let mut line = Vec::new();
            if self.reader.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            let line = line.strip_suffix(b"\r\n").expect("a whole line");
            if let Some(reply) = replies.line(line).unwrap() {
                return Some(reply);
            }
        }
    }

    pub(crate) fn reply(&mut self) -> Reply {
        self.read().expect("a reply")
    }

    pub(crate) fn expect(&mut self, code: u16) -> Reply {
        let reply = self.reply();
        assert_eq!(reply.code, code, "{reply}");
        reply
    }

    pub(crate) fn ask(&mut self, line: &str) -> Reply {
        self.say(line);
        self.reply()
    }

    pub(crate) fn pasv(&mut self) -> SocketAddr {
        parse_pasv(&self.ask("PASV").text[0]).unwrap()
    }

    pub(crate) fn passive(&mut self) -> TcpStream {
        let reply = self.ask("EPSV");
        let port = parse_epsv(&reply.text[0]).unwrap();
        let mut addr = self.stream.peer_addr().unwrap();
        addr.set_port(port);
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// RETR, from this byte.
    pub(crate) fn get(&mut self, path: &str, rest: u64) -> Vec<u8> {
        let mut data = self.passive();
        if rest > 0 {
            assert_eq!(self.ask(&format!("REST {rest}")).code, 350);
        }
        assert_eq!(self.ask(&format!("RETR {path}")).code, 150);
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes).unwrap();
        self.expect(226);
        bytes
    }

    /// STOR or another command that receives.
    pub(crate) fn put(&mut self, command: &str, bytes: &[u8]) -> Reply {
        let mut data = self.passive();
        let reply = self.ask(command);
        if reply.code != 150 {
            return reply;
        }
        data.write_all(bytes).unwrap();
        drop(data);
        self.reply()
    }
}

/// Bytes that are different everywhere.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend((state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Whether the programs are there; says so otherwise.
pub(crate) fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        !std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()))
    });
    if let Some(missing) = missing {
        println!("SKIPPED: {missing} is not installed: run setup/install test");
    }
    missing.is_none()
}

/// Runs a client to its end, which comes before the deadline.
pub(crate) fn run(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = std::thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).unwrap();
        text
    });
    let err = std::thread::spawn(move || {
        let mut text = Vec::new();
        err.read_to_end(&mut text).unwrap();
        text
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE * 2 {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// Runs a client that must succeed.
pub(crate) fn must(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The files have the same bytes.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let read = |path: &Path| {
        let output = must(Command::new("sha256sum").arg(path));
        String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
    };
    assert_eq!(read(one), read(other), "{} and {}", one.display(), other.display());
}

/// The trees have the same names and bytes.
pub(crate) fn assert_same_tree(one: &Path, other: &Path) {
    must(Command::new("diff").arg("-r").arg(one).arg(other));
}

/// A tree of so many small files, one of them empty, in folders of a thousand.
pub(crate) fn tree(at: &Path, files: usize) {
    let all = bytes(8192);
    for number in 0..files {
        let folder = at.join(format!("d{}", number / 1000));
        if number % 1000 == 0 {
            std::fs::create_dir_all(&folder).unwrap();
        }
        std::fs::write(folder.join(format!("f {number}")), &all[..number % 4096]).unwrap();
    }
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
