//! The inputs of this home's jobs, an archive for each job that has any: there from before it starts until it is done.
//!
//! They come with the submission, which is accepted when they are on the disk. Of a job that comes after others, they are
//! gathered when those have ended, from the folder of the submission and with the rights of the user: what those bring
//! is among them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use grid_jobs::home::Ungathered;
use grid_jobs::record::Origin;
use grid_run::spawn::{MISSED, Shims};
use libgrid::control::MAX_CHUNK;
use libgrid::user::User;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::Config;
use crate::machine;
use crate::runner::inputs::said;

/// How long what gathers may bring nothing.
const SILENCE: Duration = Duration::from_secs(120);

/// An archive that is being written, removed again unless it is kept.
pub(crate) struct Archive {
    pub(crate) number: u64,
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Archive {
    pub(crate) async fn create(config: &Config) -> io::Result<Self> {
        let number = rand::random::<u64>() >> 1;
        let path = path(config, number);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await?;
        Ok(Self { number, path, file, kept: false })
    }

    /// # Errors
    /// ENOSPC also where the records of jobs would have no room any more.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        machine::leaves_room(self.path.parent().unwrap_or(Path::new("/")), bytes.len())?;
        self.file.write_all(bytes).await
    }

    /// It is on the disk when this returns.
    pub(crate) async fn sync(&mut self) -> io::Result<()> {
        // The last write may still have to fail.
        self.file.flush().await?;
        self.file.sync_all().await
    }

    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

pub(crate) fn path(config: &Config, number: u64) -> PathBuf {
    config.spool_dir().join(format!("{number}.tar"))
}

/// Why inputs are not in the spool.
pub(crate) fn unkept(config: &Config, error: &io::Error) -> String {
    format!("the inputs cannot be kept in {}: {error}", config.spool_dir().display())
}

/// Packs files and folders below the folder of a submission, as who submitted: the number of the archive.
///
/// # Errors
/// What is not there, or what does not work now.
pub(crate) async fn gather(
    config: &Config,
    shims: &Shims,
    origin: &Origin,
    paths: &[String],
) -> Result<u64, Ungathered> {
    let unkept = |error: io::Error| Ungathered::Failed(unkept(config, &error));
    let failed = |why: String| Ungathered::Failed(format!("the inputs cannot be gathered: {why}"));
    let mut archive = Archive::create(config).await.map_err(unkept)?;
    let mut command = shims.gather(&User::of_machine(origin.uid, origin.gid), &origin.folder, paths);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = Command::from(command).kill_on_drop(true).spawn();
    let mut child =
        child.map_err(|error| failed(format!("cannot start {}: {error}", shims.program.display())))?;
    let mut from = child.stdout.take().ok_or_else(|| failed("there is no pipe".into()))?;
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        // A file system may hang, and its user may stop it.
        let read = timeout(SILENCE, from.read(&mut buffer)).await;
        let read = read.map_err(|_| failed(format!("nothing could be read for {SILENCE:?}")))?;
        match read.map_err(|error| failed(error.to_string()))? {
            0 => break,
            read => archive.write(&buffer[..read]).await.map_err(unkept)?,
        }
    }
    let ended = timeout(SILENCE, child.wait_with_output()).await;
    let ended = ended.map_err(|_| failed(format!("it did not end for {SILENCE:?}")))?;
    let ended = ended.map_err(|error| failed(error.to_string()))?;
    match ended.status.code() {
        Some(0) => (),
        Some(code) if code == i32::from(MISSED) => return Err(Ungathered::Absent(said(&ended.stderr))),
        _ => return Err(failed(said(&ended.stderr))),
    }
    archive.sync().await.map_err(unkept)?;
    let number = archive.number;
    archive.keep();
    Ok(number)
}

/// Removes archives of jobs that were never accepted, or are done.
pub(crate) fn sweep(config: &Config, in_use: &[u64]) {
    let entries = std::fs::read_dir(config.spool_dir()).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(".tar")).and_then(|name| name.parse().ok());
        if number.is_none_or(|number| !in_use.contains(&number)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
