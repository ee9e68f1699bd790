//! What tasks run: this test program itself, told by a variable what to be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::grid::inside;

/// `echo`, or the address of the echo to which everything is passed on.
const ROLE: &str = "GRID_NET_PROGRAM";

/// Where both listen.
pub(crate) const PORT: u16 = 7000;

/// Starts a program in a namespace, and waits until it listens.
pub(crate) fn start(space: &OwnedFd, passes_on_to: Option<Ipv4Addr>) -> Child {
    let role = passes_on_to.map_or("echo".to_owned(), |ip| ip.to_string());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["program::program", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = inside(space, || command.spawn()).unwrap();
    let listens = || inside(space, || TcpStream::connect(("127.0.0.1", PORT)).is_ok());
    crate::until("the program listens", listens);
    child
}

#[test]
#[ignore = "what tasks run: the other tests start it"]
fn program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // CRIU dumps whole sessions.
    nix::unistd::setsid().unwrap();
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    for stream in listener.incoming() {
        let (stream, role) = (stream.unwrap(), role.clone());
        thread::spawn(move || match role.parse::<Ipv4Addr>() {
            Ok(ip) => {
                let onward = TcpStream::connect((ip, PORT)).unwrap();
                let (back, to) = (onward.try_clone().unwrap(), stream.try_clone().unwrap());
                thread::spawn(move || copy(back, to));
                copy(stream, onward);
            }
            Err(_) => copy(stream.try_clone().unwrap(), stream),
        });
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
