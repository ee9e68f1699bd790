//! Inputs and results of a task, as tar archives that flow.
//!
//! `gridctl submit` packs inputs with it, and the agent unpacks them; results are packed and unpacked where a task ran on
//! the node that it was submitted on, and go another way between nodes, by the same patterns. Archives hold files,
//! folders and symbolic links; owners are not kept.
//!
//! A task's files are its own to shape: links that lead out, folders that change while they are read. So the
//! agent, which is root, never walks them itself: it runs these functions in a process **of the user whose files
//! they are**. Whatever a link leads to, the kernel checks that user's rights.

mod missed;
mod patterns;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

pub use self::missed::Missed;
pub use self::patterns::Patterns;

/// The end of the name of a file that is being unpacked.
const PARTIAL: &str = ".gridos-part";

/// Packing or unpacking failed.
///
/// ```
/// let error = libgrid::archive::pack_paths("/nowhere".as_ref(), &["x".into()], Vec::new()).unwrap_err();
/// assert_eq!(error.to_string(), "there is no x: name files and folders below /nowhere");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A pattern cannot be understood.
    #[error("the pattern {pattern:?} cannot be understood: {why}")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing to pack under this name.
    #[error("there is no {}: name files and folders below {}", path.display(), base.display())]
    Absent {
        /// As it was given.
        path: PathBuf,
        /// Where it was looked for.
        base: PathBuf,
    },
    /// A path leads out of the folder.
    #[error("{} leads out of the folder: it is not unpacked", path.display())]
    Outside {
        /// As the archive has it.
        path: PathBuf,
    },
    /// An entry that nobody asked for.
    #[error("{} is not among the results that were asked for: it is not unpacked", path.display())]
    Unwanted {
        /// As the archive has it.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The archive itself could not be read or written.
    #[error("the archive broke: {0}")]
    Stream(#[from] io::Error),
}

/// Packs these files and folders below `base`, folders whole, under the names given.
///
/// # Errors
/// [`ArchiveError`]; what was written so far is no whole archive then.
///
/// ```
/// let mut archive = Vec::new();
/// libgrid::archive::pack_paths("src".as_ref(), &["lib.rs".into()], &mut archive).unwrap();
/// assert!(archive.len() > 512);
/// ```
pub fn pack_paths(base: &Path, paths: &[String], to: impl Write) -> Result<(), ArchiveError> {
    let mut packer = Packer { archive: builder(to), base, missed: None };
    for path in paths {
        let relative = clean(Path::new(path))?;
        match base.join(&relative).try_exists() {
            Ok(true) => (),
            Ok(false) => return Err(ArchiveError::Absent { path: path.into(), base: base.to_owned() }),
            Err(error) => packer.unreadable(&relative, error)?,
        }
        packer.append(&relative)?;
    }
    packer.finish().map(drop)
}

/// Packs what matches the patterns below `base`. `*` matches within one folder, `**` across; a folder that matches is
/// packed whole. What cannot be read, and a name that is not there, is left out and told; what matches a wildcard
/// nothing has to.
///
/// # Errors
/// [`ArchiveError`].
///
/// ```
/// let patterns = ["*.rs".into(), "no.such".into()];
/// let missed = libgrid::archive::pack_matching("src".as_ref(), &patterns, std::io::sink()).unwrap();
/// assert_eq!(missed.sentence().unwrap(), "there is no no.such");
/// ```
pub fn pack_matching(base: &Path, patterns: &[String], to: impl Write) -> Result<Missed, ArchiveError> {
    let patterns = Patterns::new(patterns)?;
    let mut packer = Packer { archive: builder(to), base, missed: Some(Missed::default()) };
    let mut matching = BTreeSet::new();
    packer.find(Path::new(""), &mut |path| {
        let hit = patterns.matches(path);
        if hit {
            matching.insert(path.to_owned());
        }
        hit
    })?;
    for path in &matching {
        packer.append(path)?;
    }
    let mut missed = packer.finish()?.unwrap_or_default();
    for name in patterns.names().filter(|name| is_absent(&base.join(name))) {
        missed.absent(name);
    }
    Ok(missed)
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Unpacks an archive into `base`, replacing files of the same names, each only when it has arrived whole. Where
/// `wanted` holds patterns, nothing is unpacked that does not match one, by the rules of [`pack_matching`].
///
/// The archive may come from a machine that is not to be trusted: no entry is written outside `base`, not through a
/// symbolic link either, and no file gets special rights (set-user-id and the like).
///
/// # Errors
/// [`ArchiveError`]; files unpacked before stay.
///
/// ```
/// let archive = [0; 1024];
/// libgrid::archive::unpack("src".as_ref(), &[], archive.as_slice()).unwrap();
/// ```
pub fn unpack(base: &Path, wanted: &[String], from: impl Read) -> Result<(), ArchiveError> {
    let wanted = if wanted.is_empty() { None } else { Some(Patterns::new(wanted)?) };
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path()?)?;
        if wanted.as_ref().is_some_and(|wanted| !wanted.covers(&path)) {
            return Err(ArchiveError::Unwanted { path });
        }
        make_parents(base, &path)?;
        let target = base.join(&path);
        let written = |source| ArchiveError::File { what: "cannot write", path: target.clone(), source };
        match entry.header().entry_type() {
            tar::EntryType::Directory => make_folder(&target)?,
            tar::EntryType::Regular | tar::EntryType::Symlink => {
                let mut name = target.file_name().unwrap_or_default().to_owned();
                name.push(PARTIAL);
                let partial = target.with_file_name(&name);
                let _ = fs::remove_file(&partial);
                entry.set_preserve_permissions(false);
                let done = entry.unpack(&partial).map(drop).and_then(|()| fs::rename(&partial, &target));
                done.map_err(|error| {
                    let _ = fs::remove_file(&partial);
                    written(root_cause(error))
                })?;
            }
            // Devices, pipes and hard links are never packed.
            _ => (),
        }
    }
    // What follows the end mark is padding; reading it lets the sender finish.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Makes the folders above `path` below `base`, and follows no link on the way.
fn make_parents(base: &Path, path: &Path) -> Result<(), ArchiveError> {
    let mut folder = base.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        make_folder(&folder)?;
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(folder) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(meta) if meta.is_symlink() => Err(ArchiveError::Outside { path: folder.to_owned() }),
        _ => fs::create_dir(folder).map_err(|source| ArchiveError::File {
            what: "cannot make",
            path: folder.to_owned(),
            source,
        }),
    }
}

/// tar wraps the system's error into its own text; the system's says it best.
fn root_cause(error: io::Error) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = cause {
        if let Some(code) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(code);
        }
        cause = inner.source();
    }
    error
}

fn builder<W: Write>(to: W) -> tar::Builder<W> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Complete);
    archive.sparse(true);
    archive
}

struct Packer<'a, W: Write> {
    archive: tar::Builder<W>,
    base: &'a Path,
    /// What could not be read so far, if that is left out.
    missed: Option<Missed>,
}

impl<W: Write> Packer<'_, W> {
    fn finish(self) -> Result<Option<Missed>, ArchiveError> {
        self.archive.into_inner()?.flush()?;
        Ok(self.missed)
    }

    /// Something of what this path leads to cannot be read.
    fn unreadable(&mut self, path: &Path, error: io::Error) -> Result<(), ArchiveError> {
        match &mut self.missed {
            Some(missed) => {
                missed.unreadable(path, &error);
                Ok(())
            }
            None => {
                Err(ArchiveError::File { what: "cannot read", path: self.base.join(path), source: error })
            }
        }
    }

    /// What is half in the archive spoils it.
    fn packed(&self, path: &Path, done: io::Result<()>) -> Result<(), ArchiveError> {
        done.map_err(|source| ArchiveError::File { what: "cannot pack", path: self.base.join(path), source })
    }

    /// Appends a file or folder that was named, or matches. A link is meant as what it leads to, if that is there.
    fn append(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let source = self.base.join(path);
        match fs::metadata(&source) {
            Ok(meta) if meta.is_dir() => self.append_folder(path),
            Ok(meta) if meta.is_file() => self.append_file(path),
            // Devices, pipes and sockets are nothing that another place could have.
            Ok(_) => Ok(()),
            Err(error) => match fs::symlink_metadata(&source) {
                Ok(meta) if meta.is_symlink() => self.append_link(path),
                _ => self.unreadable(path, error),
            },
        }
    }

    fn append_file(&mut self, path: &Path) -> Result<(), ArchiveError> {
        match fs::File::open(self.base.join(path)) {
            // It was found a moment ago, and is gone: as if it had never been.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(mut file) => {
                let packed = self.archive.append_file(path, &mut file);
                self.packed(path, packed)
            }
            Err(error) => self.unreadable(path, error),
        }
    }

    fn append_link(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let packed = self.archive.append_path_with_name(self.base.join(path), path);
        self.packed(path, packed)
    }

    fn append_folder(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let source = self.base.join(path);
        // "." is the folder itself, which the other side has.
        if path.components().next().is_some() {
            let packed = self.archive.append_dir(path, &source);
            self.packed(path, packed)?;
        }
        let entries = match fs::read_dir(&source) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(path, error),
        };
        for entry in entries {
            let entry = match entry.and_then(|entry| Ok((path.join(entry.file_name()), entry.file_type()?))) {
                Ok(entry) => entry,
                Err(error) => return self.unreadable(path, error),
            };
            match entry {
                // Results of another job may be on their way to where these are taken from.
                (path, _) if self.missed.is_none() && is_partial(&path) => (),
                (path, kind) if kind.is_symlink() => self.append_link(&path)?,
                (path, kind) if kind.is_dir() => self.append_folder(&path)?,
                (path, kind) if kind.is_file() => self.append_file(&path)?,
                _ => (),
            }
        }
        Ok(())
    }

    /// Shows every path below `at` to `visit`, which says whether it took the whole of it.
    fn find(&mut self, at: &Path, visit: &mut dyn FnMut(&Path) -> bool) -> Result<(), ArchiveError> {
        let entries = match fs::read_dir(self.base.join(at)) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(at, error),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((at.join(entry.file_name()), entry.file_type()?))) {
                Ok((path, kind)) if !visit(&path) && kind.is_dir() => self.find(&path, visit)?,
                Ok(_) => (),
                Err(error) => return self.unreadable(at, error),
            }
        }
        Ok(())
    }
}

/// Whether it is what a transfer or an archive has brought so far, beside where it is to be.
fn is_partial(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let hidden = [".gridos", ".gridos-journal"].iter().any(|end| name.ends_with(end));
    name.ends_with(PARTIAL) || (name.starts_with('.') && hidden)
}

/// The path without `.`; one that leads out of the folder is refused.
fn clean(path: &Path) -> Result<PathBuf, ArchiveError> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) if !name.as_bytes().contains(&0) => clean.push(name),
            Component::CurDir => (),
            _ => return Err(ArchiveError::Outside { path: path.to_owned() }),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("out/deep")).unwrap();
        for (name, text) in
            [("out/a.png", "A"), ("out/b.txt", "B"), ("out/deep/c.png", "C"), ("top name\n", "T")]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn unpacked(archive: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path(), &[], archive).unwrap();
        folder
    }

    #[test]
    fn patterns_match_within_a_folder_and_take_folders_whole() {
        let from = tree();
        let mut archive = Vec::new();
        pack_matching(from.path(), &["out/*.png".into()], &mut archive).unwrap();
        let to = unpacked(&archive);
        assert_eq!(fs::read_to_string(to.path().join("out/a.png")).unwrap(), "A");
        assert!(!to.path().join("out/deep").exists() && !to.path().join("out/b.txt").exists());

        let mut archive = Vec::new();
        pack_matching(from.path(), &["out".into(), "top*".into()], &mut archive).unwrap();
        let to = unpacked(&archive);
        assert_eq!(fs::read_to_string(to.path().join("out/deep/c.png")).unwrap(), "C");
        assert_eq!(fs::read_to_string(to.path().join("top name\n")).unwrap(), "T");
    }

    #[test]
    fn names_that_are_no_text_survive() {
        let from = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"caf\xe9\xff");
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d").join(name), "x").unwrap();
        let mut archive = Vec::new();
        pack_paths(from.path(), &["d/".into()], &mut archive).unwrap();
        assert!(unpacked(&archive).path().join("d").join(name).exists());
    }

    #[test]
    fn a_path_that_leads_out_is_refused_and_writes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("base");
        fs::create_dir(&base).unwrap();
        for name in ["../escaped", "/escaped"] {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            let mut archive = tar::Builder::new(Vec::new());
            archive.append(&header, &b"x"[..]).unwrap();
            let error = unpack(&base, &[], archive.into_inner().unwrap().as_slice()).unwrap_err();
            assert!(matches!(error, ArchiveError::Outside { .. }), "{error}");
        }
        assert!(!parent.path().join("escaped").exists());
    }

    #[test]
    fn a_truncated_archive_leaves_no_partial_file() {
        let from = tree();
        fs::write(from.path().join("big"), vec![7; 100_000]).unwrap();
        let mut archive = Vec::new();
        pack_paths(from.path(), &["big".into()], &mut archive).unwrap();
        let to = tempfile::tempdir().unwrap();
        assert!(unpack(to.path(), &[], &archive[..50_000]).is_err());
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_file_spoils_nothing() {
        let from = tree();
        let out = from.path().join("out");
        std::os::unix::fs::symlink("nowhere", out.join("lost")).unwrap();
        std::os::unix::fs::symlink("a.png", out.join("link")).unwrap();
        nix::unistd::mkfifo(&out.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut archive = Vec::new();
        let patterns = ["out/*".into(), "top name\n".into(), "absent".into(), "out/absent/".into()];
        let missed = pack_matching(from.path(), &patterns, &mut archive).unwrap();
        assert_eq!(missed.sentence().unwrap(), "there is no absent (and 1 other)");
        let to = unpacked(&archive);
        assert_eq!(fs::read_link(to.path().join("out/lost")).unwrap(), Path::new("nowhere"));
        assert_eq!(fs::read_to_string(to.path().join("out/link")).unwrap(), "A");
        assert!(fs::symlink_metadata(to.path().join("out/link")).unwrap().is_file());
        assert!(!to.path().join("out/fifo").exists() && to.path().join("top name\n").exists());
    }

    #[test]
    fn what_is_not_there_cannot_be_packed() {
        let error = pack_paths(Path::new("/nowhere"), &["x".into()], io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "there is no x: name files and folders below /nowhere");
    }

    /// An archive as an honest packer would never write it.
    fn forged(entries: &[(&str, tar::EntryType, &str, u32)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, content, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            if *kind == tar::EntryType::Symlink {
                header.set_size(0);
                archive.append_link(&mut header, name, content).unwrap();
            } else {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_through_a_link_and_nothing_gets_special_rights() {
        let parent = tempfile::tempdir().unwrap();
        let (base, outside) = (parent.path().join("base"), parent.path().join("outside"));
        fs::create_dir(&base).unwrap();
        fs::create_dir(&outside).unwrap();
        let link = ("way", tar::EntryType::Symlink, outside.to_str().unwrap(), 0o777);
        let archive = forged(&[link, ("way/out", tar::EntryType::Regular, "x", 0o644)]);
        let error = unpack(&base, &[], archive.as_slice()).unwrap_err();
        assert!(matches!(error, ArchiveError::Outside { .. }), "{error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

        let archive = forged(&[("tool", tar::EntryType::Regular, "x", 0o4755)]);
        unpack(&base, &[], archive.as_slice()).unwrap();
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(base.join("tool")).unwrap().permissions());
        assert_eq!(mode & 0o7111, 0o111);
    }

    #[test]
    fn only_what_was_asked_for_is_unpacked() {
        let base = tempfile::tempdir().unwrap();
        let archive = forged(&[
            ("out/deep/a.png", tar::EntryType::Regular, "x", 0o644),
            (".bashrc", tar::EntryType::Regular, "x", 0o644),
        ]);
        let error = unpack(base.path(), &["out".into()], archive.as_slice()).unwrap_err();
        assert!(matches!(error, ArchiveError::Unwanted { .. }), "{error}");
        assert!(base.path().join("out/deep/a.png").exists() && !base.path().join(".bashrc").exists());
    }
}
