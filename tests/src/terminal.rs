//! A terminal, and a program that runs on it as a person would run it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};

use crate::until::until;

/// A program on a terminal of its own; it is ended with this value.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// Held open so that the size can be set when the program has ended, too.
    slave: File,
}

impl Terminal {
    /// Starts `command` as the leader of a session on a new terminal of this size. The command is to begin
    /// with `setsid --ctty --wait`.
    pub fn start(command: &mut Command, rows: u16, cols: u16) -> Terminal {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        let child = command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (sink, mut from) = (screen.clone(), master.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with EIO when the last user of the terminal is gone.
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Terminal { keyboard: master, screen, child, slave }
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// All that has been on the screen.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until this has been on the screen.
    pub fn until_shown(&self, text: &str) {
        let shown = || self.screen().contains(text);
        let begun = std::time::Instant::now();
        until(&format!("{text:?} is on the screen"), || {
            assert!(begun.elapsed() < crate::PATIENCE / 2, "no {text:?} on the screen: {:?}", self.screen());
            shown()
        });
    }

    /// Changes the size, as one does by dragging a window's corner.
    pub fn resize(&self, rows: u16, cols: u16) {
        let (rows, cols) = (rows.to_string(), cols.to_string());
        let mut stty = Command::new("stty");
        let done = stty.args(["rows", &rows, "cols", &cols]).stdin(self.slave.try_clone().unwrap()).status();
        assert!(done.unwrap().success());
    }

    /// The terminal's modes, as `stty -g` tells them.
    pub fn modes(&self) -> Vec<u8> {
        let output = Command::new("stty").arg("-g").stdin(self.slave.try_clone().unwrap()).output();
        output.unwrap().stdout
    }

    /// Waits for the program's end.
    pub fn wait(&mut self) -> i32 {
        until("the program on the terminal ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
