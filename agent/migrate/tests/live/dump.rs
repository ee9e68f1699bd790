//! CRIU's dump, in either way, and how it is ended.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;

use grid_migrate::hide::{self, Hidden};
use grid_migrate::{Tracker, held};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::{Rig, Way, child_of, wait_for};

pub(crate) struct Dump {
    kind: Kind,
    criu: Option<Child>,
}

enum Kind {
    Lazy { port: u16, status: OwnedFd, told: Option<OwnedFd> },
    Hidden { hidden: Hidden, folder: PathBuf },
}

impl Dump {
    pub(crate) fn prepare(rig: &Rig, way: Way, tracker: &Tracker) -> Self {
        let kind = match way {
            Way::Lazy => {
                let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
                let (status, told) = nix::unistd::pipe().unwrap();
                Kind::Lazy { port, status, told: Some(told) }
            }
            Way::Hidden => {
                let folder = rig.folder.path().join("hidden");
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("preload.so"), hide::LIBRARY).unwrap();
                Kind::Hidden { hidden: tracker.hide(&folder, None).unwrap(), folder }
            }
        };
        Self { kind, criu: None }
    }

    pub(crate) fn start(&mut self, rig: &Rig) {
        let mut command = rig.places[0].criu(&["dump", "--manage-cgroups=ignore", "-o", "dump.log", "-v3"]);
        command.args(["-t", &rig.inner.to_string(), "-D"]).arg(rig.images());
        match &self.kind {
            Kind::Lazy { port, told, .. } => {
                let told = told.as_ref().unwrap().as_raw_fd();
                command.args(["--lazy-pages", "--address", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--status-fd", &told.to_string()]);
            }
            Kind::Hidden { folder, .. } => {
                command.arg("--leave-stopped");
                command.env("LD_PRELOAD", folder.join("preload.so")).env(hide::FOLDER, folder);
            }
        }
        self.criu = Some(command.spawn().unwrap());
        if let Kind::Lazy { told, .. } = &mut self.kind {
            drop(told.take());
        }
    }

    /// Waits until CRIU has stopped every thread: what its log tells of next is the network.
    pub(crate) fn wait_frozen(&mut self, rig: &Rig) {
        let (criu, log) = (self.criu.as_mut().unwrap(), rig.images().join("dump.log"));
        wait_for("the freeze", || {
            let ended = criu.try_wait().unwrap().filter(|status| !status.success());
            assert!(ended.is_none(), "{}", rig.log_of("dump.log"));
            fs::read_to_string(&log).is_ok_and(|log| log.contains("Lock network")).then_some(())
        });
    }

    /// What looks whether the copy of the frozen tree's smaps is right.
    pub(crate) fn check(&self) -> impl Fn() -> bool + Send + use<> {
        let hidden = match &self.kind {
            Kind::Hidden { hidden, .. } => Some(hidden.clone()),
            Kind::Lazy { .. } => None,
        };
        move || hidden.as_ref().is_none_or(|hidden| hidden.holds().unwrap())
    }

    /// Waits until the images are complete.
    pub(crate) fn complete(&mut self, rig: &Rig) {
        match &self.kind {
            Kind::Lazy { status, .. } => {
                let mut byte = [1];
                let told = File::from(status.try_clone().unwrap()).read_exact(&mut byte);
                assert!(told.is_ok() && byte == [0], "{}", rig.log_of("dump.log"));
            }
            Kind::Hidden { .. } => {
                assert!(self.criu.as_mut().unwrap().wait().unwrap().success(), "{}", rig.log_of("dump.log"));
            }
        }
    }

    pub(crate) fn commit(mut self, rig: &Rig) {
        match self.kind {
            Kind::Lazy { port, .. } => {
                held::commit(server(port)).unwrap();
                assert!(self.criu.as_mut().unwrap().wait().unwrap().success(), "{}", rig.log_of("dump.log"));
            }
            Kind::Hidden { .. } => hide::end(&[rig.pid]).unwrap(),
        }
    }

    pub(crate) fn roll_back(mut self, rig: &Rig) {
        match self.kind {
            Kind::Lazy { port, .. } => {
                held::roll_back(server(port)).unwrap();
                assert!(!self.criu.as_mut().unwrap().wait().unwrap().success());
            }
            Kind::Hidden { .. } => hide::release(&[rig.pid]).unwrap(),
        }
    }

    /// Rolls back by killing CRIU, as long as there is one.
    pub(crate) fn kill(mut self, rig: &Rig) {
        match self.kind {
            Kind::Lazy { .. } => {
                let mut criu = self.criu.take().unwrap();
                kill(Pid::from_raw(child_of(criu.id() as i32).unwrap()), Signal::SIGKILL).unwrap();
                criu.wait().unwrap();
            }
            Kind::Hidden { .. } => self.roll_back(rig),
        }
    }
}

/// Connected only when it is decided: see `held`.
fn server(port: u16) -> TcpStream {
    wait_for("CRIU's page server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
}
