//! An agent that ends in the middle of a conversation.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use libgrid::wire::Hello;

#[test]
fn a_connection_that_breaks_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let greeted = Hello::read(&mut &stream).and_then(|_| Hello::ours().write(&mut &stream));
            // Closed before or after the request is written.
            drop(greeted);
        }
    });
    for _ in 0..20 {
        let gridctl = Command::new(env!("CARGO_BIN_EXE_gridctl"))
            .args(["--socket", socket.to_str().unwrap(), "submit", "--", "/bin/true"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&gridctl.stderr);
        assert_eq!(gridctl.status.code(), Some(1), "{told}");
        assert!(told.starts_with("gridctl: talking to the agent failed"), "{told}");
    }
}
