//! Files from and to FTP and GridFTP servers, and a server, which is a program of its own; no agent is needed.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use libgrid::ftp::client::{
    Client, FtpUrl, Landed, Login, Options, Progress, Tls, TreeOptions, TreeReport, Trust, get_tree,
    put_tree, third_party,
};
use libgrid::ftp::facts::{Entry, Type};
use libgrid::ftp::time;
use libgrid::units::Bytes;
use serde::Serialize;

use crate::args::{FtpCommand, FtpOptions};
use crate::{Done, show};

/// Where a password is read from: a command line can be seen by all users of a machine.
const PASSWORD: &str = "GRIDOS_FTP_PASSWORD";

pub(crate) fn ftp(command: FtpCommand, json: bool) -> Done {
    match command {
        FtpCommand::Serve { options } => serve(options),
        FtpCommand::Get { sources, output, options } => get(&sources, &output, &options, json),
        FtpCommand::Put { paths, options } => put(&paths, &options, json),
        FtpCommand::Ls { url, options } => ls(&url, &options, json),
        FtpCommand::Cp { source, target, options } => cp(&source, &target, &options, json),
    }
}

fn serve(options: Vec<OsString>) -> Done {
    let here = std::env::current_exe().context("cannot find this program's own place")?;
    let program = here.with_file_name("gridos-ftpd");
    // It takes the place of this process: signals and the exit status are its own.
    let error = Command::new(&program).args(options).exec();
    Err(error).with_context(|| {
        format!("cannot start {}: install it beside gridctl, as make install does", program.display())
    })
}

impl FtpOptions {
    fn login(&self) -> Login {
        let mut login = Login { believe_pasv: self.believe_pasv, ..Login::default() };
        if let Some(user) = &self.user {
            login.user.clone_from(user);
            login.password.clear();
        }
        if let Ok(password) = std::env::var(PASSWORD) {
            login.password = password;
        }
        if self.tls {
            let trust = match &self.ca {
                Some(ca) => Trust::Ca(ca.clone()),
                None if self.no_verify_tls => Trust::Anybody,
                None => Trust::System,
            };
            let certificate = self.cert.clone().zip(self.key.clone());
            login.tls = Some(Tls { trust, certificate, private: !self.clear_data });
        }
        login
    }

    fn connect(&self, url: &FtpUrl) -> anyhow::Result<Client> {
        let mut login = self.login();
        let mut url = url.clone();
        if self.user.is_some() {
            url.user = None;
        } else if url.password.is_none()
            && let Some(user) = url.user.take()
        {
            login.user = user;
            if std::env::var_os(PASSWORD).is_none() {
                login.password.clear();
            }
        }
        Ok(Client::connect(&url, &login)?)
    }

    fn transfer(&self) -> anyhow::Result<Options> {
        let range = match (self.off, self.len) {
            (None, None) => None,
            (off, len) => {
                let from = off.map_or(0, |off| off.0);
                let to = len.map_or(Some(i64::MAX.cast_unsigned()), |len| from.checked_add(len.0));
                Some((from, to.context("--off and --len together are more than any file has")?))
            }
        };
        if range.is_some() && self.recursive {
            bail!("--off and --len are for one file: leave --recursive out");
        }
        Ok(Options {
            extended: self.parallel.is_some() || self.fast || self.stripe,
            streams: self.parallel.map(usize::from),
            striped: self.stripe,
            buffer: self
                .buffer
                .map(|buffer| usize::try_from(buffer.0))
                .transpose()
                .context("--buffer is too large")?,
            range,
            verify: self.verify,
            resume: !self.fresh,
            atomic: !self.direct,
            sync: self.fsync,
            ..Options::default()
        })
    }

    fn tree(&self) -> anyhow::Result<TreeOptions> {
        Ok(TreeOptions { transfer: self.transfer()?, connections: usize::from(self.sessions) })
    }
}

#[derive(Default, Serialize)]
struct Moved {
    files: u64,
    bytes: u64,
    resumed: u64,
    skipped: u64,
    left_out: u64,
    interruptions: u32,
}

impl Moved {
    fn file(&mut self, landed: &Landed) {
        self.files += 1;
        self.bytes += landed.bytes;
        self.resumed += landed.resumed;
        self.interruptions += landed.interruptions;
    }

    fn tree(&mut self, report: &TreeReport) {
        self.files += report.files;
        self.bytes += report.bytes;
        self.skipped += report.skipped;
        self.left_out += report.left_out;
    }

    fn tell(&self, json: bool) -> Done {
        if self.left_out > 0 {
            eprintln!("gridctl: {} links and special files were left out", self.left_out);
        }
        if json {
            return show::json(self);
        }
        if !std::io::stdout().is_terminal() {
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = format!("{} in {} files", Bytes(self.bytes), self.files);
        if self.skipped > 0 {
            text += &format!(", {} were there already", self.skipped);
        }
        if self.resumed > 0 {
            text += &format!(", {} of it from before", Bytes(self.resumed));
        }
        show::text(text)
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        bar.enable_steady_tick(Duration::from_millis(200));
        let template = "{bytes}/{total_bytes} {bar:30} {binary_bytes_per_sec}, {eta} left {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn file(&self, news: &Progress<'_>) {
        match news {
            Progress::Begun { size, already, streams } => {
                self.0.set_length(size.unwrap_or(0));
                self.0.set_position(*already);
                self.0.set_message(if *streams > 1 { format!("({streams} streams)") } else { String::new() });
            }
            Progress::Moved { bytes } => self.0.set_position(*bytes),
            Progress::Again { error, .. } => {
                self.0.set_message(format!("waiting: {error}"));
                if !std::io::stderr().is_terminal() {
                    eprintln!("gridctl: {error}; trying again");
                }
            }
            Progress::Verifying => self.0.set_message("comparing checksums"),
            Progress::Arrived(_) | Progress::Perf(_) => (),
        }
    }

    fn tree(&self, report: &TreeReport) {
        self.0.set_length(report.of_bytes);
        self.0.set_position(report.bytes);
        self.0.set_message(format!("({} of {} files)", report.files, report.of_files));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The path without slashes at its end, unless it is the root.
fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(1, |last| last + 1);
    &path[..end.min(path.len())]
}

fn last_part(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(trimmed(path).rsplit(|&byte| byte == b'/').next().unwrap_or_default())
}

fn get(sources: &[String], output: &Path, options: &FtpOptions, json: bool) -> Done {
    let urls = sources.iter().map(|source| source.parse()).collect::<Result<Vec<FtpUrl>, _>>()?;
    if urls.len() > 1 && !output.is_dir() {
        bail!("{} is no folder: several files need one, see --output", output.display());
    }
    let mut moved = Moved::default();
    let mut session: Option<(FtpUrl, Client)> = None;
    for url in urls {
        let name = last_part(&url.path);
        let target = match output.is_dir() {
            // The root has no name: its content goes into the folder itself.
            true if name.is_empty() || name == "." || name == ".." => output.to_owned(),
            true => output.join(name),
            false => output.to_owned(),
        };
        let same = |known: &FtpUrl| {
            FtpUrl { path: Vec::new(), ..known.clone() } == FtpUrl { path: Vec::new(), ..url.clone() }
        };
        let mut client = match session.take() {
            Some((known, client)) if same(&known) => client,
            _ => options.connect(&url)?,
        };
        let path = trimmed(&url.path);
        let bar = Bar::new();
        if options.recursive && client.look(path)?.kind == Some(Type::Dir) {
            moved.tree(&get_tree(&mut client, path, &target, &options.tree()?, &mut |report| {
                bar.tree(report)
            })?);
        } else {
            if url.is_folder() {
                bail!("{url} is a folder: use --recursive");
            }
            moved.file(&client.get(path, &target, &options.transfer()?, &mut |news| bar.file(&news))?);
        }
        session = Some((url, client));
    }
    moved.tell(json)
}

fn put(paths: &[String], options: &FtpOptions, json: bool) -> Done {
    let (target, sources) = paths.split_last().context("there is nothing to send")?;
    let url: FtpUrl = target.parse()?;
    let mut client = options.connect(&url)?;
    let path = trimmed(&url.path).to_vec();
    let into = url.is_folder()
        || sources.len() > 1
        || client.look(&path).is_ok_and(|entry| entry.kind == Some(Type::Dir));
    let mut moved = Moved::default();
    for source in sources.iter().map(PathBuf::from) {
        let metadata =
            std::fs::metadata(&source).with_context(|| format!("cannot read {}", source.display()))?;
        let there = if into {
            let name =
                std::fs::canonicalize(&source).ok().and_then(|whole| whole.file_name().map(OsStr::to_owned));
            let name = source.file_name().map(OsStr::to_owned).or(name);
            let name = name.with_context(|| format!("{} has no name: name the target", source.display()))?;
            let mut there = path.clone();
            if !there.ends_with(b"/") {
                there.push(b'/');
            }
            there.extend(name.as_bytes());
            there
        } else {
            path.clone()
        };
        let bar = Bar::new();
        if metadata.is_dir() {
            if !options.recursive {
                bail!("{} is a folder: use --recursive", source.display());
            }
            moved.tree(&put_tree(&mut client, &source, &there, &options.tree()?, &mut |report| {
                bar.tree(report)
            })?);
        } else {
            moved.file(&client.put(&source, &there, &options.transfer()?, &mut |news| bar.file(&news))?);
        }
    }
    moved.tell(json)
}

fn cp(source: &str, target: &str, options: &FtpOptions, json: bool) -> Done {
    if options.recursive {
        bail!("folders cannot go from server to server yet: name each file");
    }
    let (from, mut to): (FtpUrl, FtpUrl) = (source.parse()?, target.parse()?);
    if to.is_folder() {
        to.path.extend(from.name());
    }
    let (mut one, mut other) = (options.connect(&from)?, options.connect(&to)?);
    let bar = Bar::new();
    let transfer = options.transfer()?;
    let landed =
        third_party(&mut one, &from.path, &mut other, &to.path, &transfer, &mut |news| bar.file(&news))?;
    drop(bar);
    let mut moved = Moved::default();
    moved.file(&landed);
    moved.tell(json)
}

#[derive(Serialize)]
struct Listed {
    name: String,
    kind: String,
    size: Option<u64>,
    modify: Option<String>,
    mode: Option<u32>,
}

fn ls(url: &str, options: &FtpOptions, json: bool) -> Done {
    let url: FtpUrl = url.parse()?;
    let mut client = options.connect(&url)?;
    let path = trimmed(&url.path);
    let entry = client.look(path)?;
    let entries = match entry.kind {
        Some(Type::File) => vec![entry],
        _ => client.list(path)?,
    };
    let listed: Vec<Listed> = entries.iter().map(listed).collect();
    if json {
        return show::json(&listed);
    }
    let lines = listed.iter().map(|one| {
        let size = one.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        let modify = one.modify.clone().unwrap_or_else(|| "-".to_owned());
        format!("{:5} {size:>14} {modify:14} {}", one.kind, one.name)
    });
    show::text(lines.collect::<Vec<_>>().join("\n"))
}

/// An entry as it is shown: a name may hold anything, a terminal should not obey it.
fn listed(entry: &Entry) -> Listed {
    let name = String::from_utf8_lossy(&entry.name);
    let kind = match &entry.kind {
        Some(Type::Slink(_)) => "link",
        Some(kind) => kind.as_str(),
        None => "?",
    };
    Listed {
        name: name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect(),
        kind: kind.chars().filter(|letter| !letter.is_control()).take(20).collect(),
        size: entry.size,
        modify: entry.modify.map(time::format),
        mode: entry.mode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_end_do_not_change_a_name() {
        assert_eq!(trimmed(b"/a/b//"), b"/a/b");
        assert_eq!(trimmed(b"/"), b"/");
        assert_eq!(last_part(b"/a/b/"), "b");
        assert_eq!(last_part(b"/"), "");
    }
}
