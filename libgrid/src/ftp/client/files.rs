//! Folders, names, sizes and times.

use std::time::{Duration, Instant, SystemTime};

use super::control::{Control, line};
use super::data::{self, Data};
use super::error::shown;
use super::{Client, FtpError};
use crate::ftp::facts::{Entry, Type};
use crate::ftp::reply::Kind;
use crate::ftp::{list, time};
use crate::io::Plan;

/// A list of a folder takes no longer, however slowly it drips.
const LIST_TIME: Duration = Duration::from_secs(600);

/// A name in a list must stay in the folder that was listed, whatever the server says.
pub(super) fn check_name(name: &[u8]) -> Result<(), FtpError> {
    let why = if name.is_empty() || name == b"." || name == b".." {
        "it is no name of a file"
    } else if name.contains(&b'/') {
        "it leads to another folder"
    } else if name.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        "it holds a line end or NUL"
    } else {
        return Ok(());
    };
    Err(FtpError::Name { name: shown(name), why })
}

/// A path below a folder.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if !path.ends_with(b"/") && !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
    path
}

impl Client {
    /// What is in a folder, in the server's order, without the folder itself and the one above. From a server without
    /// MLSD it is read from LIST, without times.
    ///
    /// # Errors
    /// [`FtpError::Refused`]; [`FtpError::Protocol`] if the list is longer than [`super::Limits::list`];
    /// [`FtpError::Name`] if a name would lead out of the folder.
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// for entry in client.list(b"/data")? {
    ///     println!("{:?} {:?}", entry.name, entry.size);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<Entry>, FtpError> {
        self.ready()?;
        let facts = self.features.has("MLST") || self.features.has("MLSD");
        let bytes = if facts {
            self.list_bytes(&line("MLSD", path)?)?
        } else {
            // A path behind LIST may be taken for options or a pattern.
            let home = self.working_folder()?;
            self.control.must("CWD", path)?;
            let bytes = self.list_bytes(&line("LIST", b"-a")?);
            self.ready()?;
            self.control.must("CWD", &home)?;
            bytes?
        };
        let mut entries = Vec::new();
        for line in bytes.split(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let entry = if facts { Entry::parse(line) } else { list::parse(line) };
            let Some(mut entry) = entry else { continue };
            // Some write the path, not the name.
            if let Some(name) = entry.name.strip_prefix(&join(path, b"")[..]) {
                entry.name = name.to_vec();
            }
            if matches!(entry.kind, Some(Type::Cdir | Type::Pdir)) || matches!(&entry.name[..], b"." | b"..")
            {
                continue;
            }
            check_name(&entry.name)?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn working_folder(&mut self) -> Result<Vec<u8>, FtpError> {
        let reply = self.control.must("PWD", b"")?;
        let text = reply.text.first().map(Vec::as_slice).unwrap_or_default();
        let quoted = text.split(|&byte| byte == b'"').nth(1);
        quoted
            .map(<[u8]>::to_vec)
            .ok_or_else(|| self.control.protocol(format!("its answer to PWD names no folder: {reply}")))
    }

    fn list_bytes(&mut self, command: &[u8]) -> Result<Vec<u8>, FtpError> {
        self.enter_mode(false)?;
        let address = self.passive()?;
        let socket = data::connect(&self.control, address, &Plan::default())?;
        self.control.send(&[command.to_vec()])?;
        if let Some(reply) = first(&mut self.control)? {
            self.control.done(command, reply)?;
            return Err(self.control.protocol("it ended the list before it began"));
        }
        let limits = self.login.limits.clone();
        let deadline = Instant::now() + limits.whole.unwrap_or(LIST_TIME);
        let read = Data::new(socket, self.data_tls(), &limits)
            .and_then(|mut data| data.read_all(limits.list, deadline));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.control.close();
                return Err(match error.kind() {
                    std::io::ErrorKind::InvalidData => self.control.protocol(error.to_string()),
                    std::io::ErrorKind::WouldBlock => {
                        self.control.silent(self.login.limits.stall, "the list")
                    }
                    _ => self.control.lost(error),
                });
            }
        };
        let reply = self.control.last_reply("the end of the list")?;
        self.control.done(command, reply)?;
        Ok(bytes)
    }

    /// What the server tells of one file or folder.
    ///
    /// # Errors
    /// [`FtpError::Refused`] if there is none.
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// println!("{:?}", client.look(b"/data/run7.h5")?.size);
    /// # Ok(()) }
    /// ```
    pub fn look(&mut self, path: &[u8]) -> Result<Entry, FtpError> {
        self.ready()?;
        if self.features.has("MLST") {
            let reply = self.control.must("MLST", path)?;
            let middle = reply.text.get(1).map(|line| line.strip_prefix(b" ").unwrap_or(line));
            if let Some(entry) = middle.and_then(Entry::parse) {
                return Ok(entry);
            }
        }
        let home = self.working_folder()?;
        if self.control.ask("CWD", path)?.kind() == Kind::Done {
            self.control.must("CWD", &home)?;
            return Ok(Entry { kind: Some(Type::Dir), name: path.to_vec(), ..Entry::default() });
        }
        let (size, modify) = self.told(path)?;
        Ok(Entry { kind: Some(Type::File), size, modify, name: path.to_vec(), ..Entry::default() })
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// [`FtpError::Refused`], also if it is there already.
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// client.make_folder(b"/data/new")
    /// # }
    /// ```
    pub fn make_folder(&mut self, path: &[u8]) -> Result<(), FtpError> {
        self.simple("MKD", path)
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// [`FtpError::Refused`].
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// client.remove_folder(b"/data/old")
    /// # }
    /// ```
    pub fn remove_folder(&mut self, path: &[u8]) -> Result<(), FtpError> {
        self.simple("RMD", path)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// [`FtpError::Refused`].
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// client.remove(b"/data/old.h5")
    /// # }
    /// ```
    pub fn remove(&mut self, path: &[u8]) -> Result<(), FtpError> {
        self.simple("DELE", path)
    }

    fn simple(&mut self, verb: &str, path: &[u8]) -> Result<(), FtpError> {
        self.ready()?;
        self.control.must(verb, path).map(|_| ())
    }

    /// Renames a file or folder.
    ///
    /// # Errors
    /// [`FtpError::Refused`].
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// client.rename(b"/data/a", b"/data/b")
    /// # }
    /// ```
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), FtpError> {
        self.ready()?;
        let reply = self.control.ask("RNFR", from)?;
        if reply.kind() != Kind::Intermediate {
            return Err(self.control.refused(&format!("RNFR {}", shown(from)), reply));
        }
        self.control.must("RNTO", to).map(|_| ())
    }

    /// The size of a file in bytes.
    ///
    /// # Errors
    /// [`FtpError::Refused`] if there is none, [`FtpError::Unsupported`] if the server does not tell sizes.
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// println!("{}", client.size(b"/data/run7.h5")?);
    /// # Ok(()) }
    /// ```
    pub fn size(&mut self, path: &[u8]) -> Result<u64, FtpError> {
        self.ready()?;
        let reply = self.control.ask("SIZE", path)?;
        let size = self.size_of(&line("SIZE", path)?, reply)?;
        size.ok_or_else(|| FtpError::Unsupported {
            server: self.server.clone(),
            what: "tell sizes (SIZE)".into(),
        })
    }

    /// When a file was written last.
    ///
    /// # Errors
    /// [`FtpError::Refused`].
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// println!("{:?}", client.modified(b"/data/run7.h5")?);
    /// # Ok(()) }
    /// ```
    pub fn modified(&mut self, path: &[u8]) -> Result<SystemTime, FtpError> {
        self.ready()?;
        let reply = self.control.must("MDTM", path)?;
        let time = reply.text.first().and_then(|text| time::parse(text.trim_ascii()));
        time.ok_or_else(|| self.control.protocol(format!("a time is not {reply}")))
    }

    /// Sets when a file was written last, to the second.
    ///
    /// # Errors
    /// [`FtpError::Unsupported`] if the server does not know MFMT, [`FtpError::Refused`].
    ///
    /// ```no_run
    /// # fn f(client: &mut libgrid::ftp::client::Client) -> Result<(), libgrid::ftp::client::FtpError> {
    /// client.set_modified(b"/data/run7.h5", std::time::SystemTime::now())
    /// # }
    /// ```
    pub fn set_modified(&mut self, path: &[u8], modify: SystemTime) -> Result<(), FtpError> {
        self.ready()?;
        if !self.features.has("MFMT") {
            let what = "set the times of files (MFMT)".to_owned();
            return Err(FtpError::Unsupported { server: self.server.clone(), what });
        }
        self.control.must("MFMT", &[time::format(modify).as_bytes(), b" ", path].concat()).map(|_| ())
    }
}

/// The first reply to a command that moves data: `None` if it begins, otherwise the final one.
pub(super) fn first(control: &mut Control) -> Result<Option<crate::ftp::reply::Reply>, FtpError> {
    let reply = control.reply("the beginning of the data")?;
    Ok((reply.kind() != Kind::Preliminary).then_some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"../x", b"a/b", b"/etc/passwd", b"a\0b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        check_name(b"..x y").unwrap();
        assert_eq!(join(b"/", b"x"), b"/x");
        assert_eq!(join(b"a", b"x"), b"a/x");
    }
}
