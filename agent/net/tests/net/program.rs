//! What tasks run: this test program itself, told by a variable what to be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;

use nix::unistd::Pid;

use crate::grid::inside;

/// A [`Role`] as text.
const ROLE: &str = "GRID_NET_PROGRAM";

/// Where all listen.
pub(crate) const PORT: u16 = 7000;

/// Where the echo is that is within another program.
const INNER: u16 = 7001;

/// What a program does with all that comes.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    /// Sends it back.
    Echo,
    /// Passes it on to the echo of a task, and back.
    Relay(Ipv4Addr),
    /// Passes it on to itself, over a connection on `lo`, and back.
    Within,
}

impl Role {
    fn to_text(self) -> String {
        match self {
            Role::Echo => "echo".to_owned(),
            Role::Relay(ip) => format!("{ip}:{PORT}"),
            Role::Within => format!("127.0.0.1:{INNER}"),
        }
    }
}

/// Starts a program in a namespace, and waits until it listens.
#[expect(clippy::zombie_processes, reason = "it is waited for by its number, as what is restored is")]
pub(crate) fn start(space: &OwnedFd, role: Role) -> Pid {
    let role = role.to_text();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["program::program", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = inside(space, || command.spawn()).unwrap();
    let listens = || inside(space, || TcpStream::connect(("127.0.0.1", PORT)).is_ok());
    crate::until("the program listens", listens);
    Pid::from_raw(child.id().cast_signed())
}

#[test]
#[ignore = "what tasks run: the other tests start it"]
fn program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // CRIU dumps whole sessions.
    nix::unistd::setsid().unwrap();
    let inner = TcpListener::bind(("127.0.0.1", INNER)).unwrap();
    thread::spawn(move || serve(&inner, None));
    serve(&TcpListener::bind(("0.0.0.0", PORT)).unwrap(), role.parse().ok());
}

/// Passes on what comes, or sends it back.
fn serve(listener: &TcpListener, on: Option<SocketAddr>) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let to = on.map_or_else(|| stream.try_clone(), TcpStream::connect).unwrap();
        if on.is_some() {
            let (back, to) = (to.try_clone().unwrap(), stream.try_clone().unwrap());
            thread::spawn(move || copy(back, to));
        }
        thread::spawn(move || copy(stream, to));
    }
}

/// With plain calls: the pipes of a splice are not what is tested here.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer).unwrap() {
            0 => break,
            length => to.write_all(&buffer[..length]).unwrap(),
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
