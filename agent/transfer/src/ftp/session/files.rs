//! Commands about files that move no data.

use std::sync::Arc;
use std::time::SystemTime;

use libgrid::ftp::facts::Type;
use libgrid::ftp::reply::Reply;
use libgrid::ftp::time;

use crate::ftp::arrival::{self, abandoned};
use crate::ftp::listing::{Form, Listing, facts};
use crate::ftp::path::Place;
use crate::ftp::root::{FileError, Root};
use crate::ftp::session::{Login, Session, Step};

/// Lines of a list that STAT sends over the control connection.
const STAT_LINES: usize = 1000;

impl Session {
    /// Does what may wait for a disk, away from the thread that serves everybody.
    pub(super) async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Root>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let root = self.server.root.clone();
        let done = tokio::task::spawn_blocking(move || work(&root)).await;
        done.unwrap_or_else(|error| {
            tracing::error!(%error, "a file operation failed");
            Err(FileError { path: "the file".to_owned(), errno: nix::errno::Errno::EIO })
        })
    }

    pub(super) fn place(&self, path: &[u8]) -> Place {
        self.here.join(path)
    }

    pub(super) async fn refuse(&mut self, error: &FileError) -> Step {
        let code = match error.errno {
            nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT => 452,
            _ if error.is_passing() => 450,
            _ => 550,
        };
        self.say(code, error.to_string()).await
    }

    async fn answer(&mut self, done: Result<(), FileError>, text: &str) -> Step {
        match done {
            Ok(()) => self.say(250, text).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn cwd(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let there = place.clone();
        match self.disk(move |root| root.folder(&there).map(drop)).await {
            Ok(()) => {
                self.here = place;
                self.say(250, "ok").await
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn pwd(&mut self) -> Step {
        self.say(257, [quoted(&self.here), b" is the current folder".to_vec()].concat()).await
    }

    pub(super) async fn mkd(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let there = place.clone();
        match self.disk(move |root| root.make_folder(&there)).await {
            Ok(()) => self.say(257, [quoted(&place), b" was made".to_vec()].concat()).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn rmd(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let done = self.disk(move |root| root.remove_folder(&place)).await;
        self.answer(done, "removed").await
    }

    pub(super) async fn dele(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let done = self.disk(move |root| arrival::remove(root, &place)).await;
        self.answer(done, "removed").await
    }

    pub(super) async fn rnfr(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let there = place.clone();
        // The name itself: a link that leads nowhere can be renamed, too.
        let there = self.disk(move |root| {
            let (folder, name) = root.parent(&there)?;
            match crate::ftp::root::entry_at(&folder, name, true) {
                Ok(_) => Ok(()),
                Err(_) if abandoned(root, &there).is_some() => Ok(()),
                Err(errno) => Err(FileError { path: there.shown(), errno }),
            }
        });
        match there.await {
            Ok(()) => {
                self.rename = Some(place);
                self.say(350, "and how shall it be called? RNTO").await
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn rnto(&mut self, from: Option<Place>, path: &[u8]) -> Step {
        let Some(from) = from else {
            return self.say(503, "say RNFR before RNTO").await;
        };
        let to = self.place(path);
        let done = self.disk(move |root| arrival::rename(root, &from, &to)).await;
        self.answer(done, "renamed").await
    }

    pub(super) async fn size(&mut self, path: &[u8]) -> Step {
        if self.manner.ascii {
            return self
                .say(550, "the size in TYPE A is not known without reading the file: say TYPE I")
                .await;
        }
        let place = self.place(path);
        let shown = place.shown();
        let user = self.login.as_ref().map(|login| login.name.clone()).unwrap_or_default();
        self.server.settled(&place, (&user, self.peer.ip())).await;
        match self.disk(move |root| facts(root, &place, true)).await {
            Ok(entry) if entry.kind == Some(Type::File) => {
                self.say(213, entry.size.unwrap_or(0).to_string()).await
            }
            Ok(_) => self.say(550, format!("{shown}: it is not a regular file")).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn mdtm(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        match self.disk(move |root| facts(root, &place, true)).await {
            Ok(entry) => self.say(213, time::format(entry.modify.unwrap_or(SystemTime::UNIX_EPOCH))).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn mfmt(&mut self, when: SystemTime, path: &[u8]) -> Step {
        let place = self.place(path);
        let text = [format!("Modify={}; ", time::format(when)).as_bytes(), path].concat();
        match self.disk(move |root| root.set_time(&place, when)).await {
            Ok(()) => self.say(213, text).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn chmod(&mut self, mode: u32, path: &[u8]) -> Step {
        let place = self.place(path);
        match self.disk(move |root| root.set_mode(&place, mode)).await {
            Ok(()) => self.say(200, "ok").await,
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) async fn mlst(&mut self, path: Option<Vec<u8>>) -> Step {
        let place = self.place(path.as_deref().unwrap_or_default());
        let name = place.absolute();
        let may_write = self.may_write();
        match self.disk(move |root| facts(root, &place, may_write)).await {
            Ok(mut entry) => {
                entry.name = name;
                let line = [b" ".as_slice(), &entry.to_line(self.manner.wanted)].concat();
                self.control.send(&Reply::lines(250, [b"Listing".to_vec(), line, b"End".to_vec()])).await
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    pub(super) fn may_write(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.may_write)
    }

    /// STAT without a path: how the session is.
    pub(super) async fn status(&mut self, login: &Login) -> Step {
        let manner = &self.manner;
        let lines = [
            "Status:".to_owned(),
            format!(" {} is logged in from {}", login.name, self.peer.ip()),
            format!(
                " TYPE {}, MODE {}, {} data connections at once in MODE E",
                if manner.ascii { "A" } else { "I" },
                if manner.mode_e { "E" } else { "S" },
                manner.parallelism
            ),
            format!(
                " commands {}, data {}",
                if self.control.is_tls() {
                    "under TLS"
                } else if self.control.is_sealed() {
                    "under GSI"
                } else {
                    "in plain text"
                },
                if self.security.is_private() { "protected" } else { "in plain text" }
            ),
            "End.".to_owned(),
        ];
        self.control.send(&Reply::lines(211, lines)).await
    }

    /// STAT with a path: a list over the control connection.
    pub(super) async fn stat(&mut self, path: &[u8]) -> Step {
        let place = self.place(path);
        let may_write = self.may_write();
        let listed = self.disk(move |root| {
            let path = place.shown();
            let mut lines = vec![b"Status:".to_vec()];
            let listing = Listing::open(root, place, Form::List, may_write)?;
            // Whoever wants more uses LIST.
            let mut cut = false;
            let _ = listing.each(|line| {
                if lines.len() > STAT_LINES {
                    cut = true;
                    return Err(crate::ftp::flight::Fault::Stopped(String::new()));
                }
                lines.push([b" ".as_slice(), line].concat());
                Ok(())
            });
            lines.push(if cut {
                format!("End of the first {STAT_LINES} of {path}").into_bytes()
            } else {
                b"End.".to_vec()
            });
            Ok(lines)
        });
        match listed.await {
            Ok(lines) => self.control.send(&Reply::lines(213, lines)).await,
            Err(error) => self.refuse(&error).await,
        }
    }
}

/// In quotes, those inside doubled (RFC 959, appendix II).
fn quoted(place: &Place) -> Vec<u8> {
    let mut text = vec![b'"'];
    for byte in place.absolute() {
        if byte == b'"' {
            text.push(b'"');
        }
        text.push(byte);
    }
    text.push(b'"');
    text
}
