//! Inputs and results of a task, as tar archives that flow.
//!
//! `gridctl submit` packs inputs with it, and the agent unpacks them; results are packed and unpacked where a task ran on
//! the node that it was submitted on, and go another way between nodes, by the same patterns. Archives hold files,
//! folders and symbolic links; owners are not kept.
//!
//! A task's files are its own to shape: links that lead out, folders that change while they are read. So the
//! agent, which is root, never walks them itself: it runs these functions in a process **of the user whose files
//! they are**. Whatever a link leads to, the kernel checks that user's rights.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobSet};

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

/// Patterns that say which files below a folder are meant: `*` matches within one folder, `**` across, and a folder
/// that matches is meant whole.
///
/// ```
/// let patterns = libgrid::archive::Patterns::new(&["out/*".into()])?;
/// assert!(patterns.matches("out/deep".as_ref()) && !patterns.matches("out/deep/a.png".as_ref()));
/// assert!(patterns.covers("out/deep/a.png".as_ref()) && !patterns.covers("out".as_ref()));
/// # Ok::<(), libgrid::archive::ArchiveError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Patterns(GlobSet);

impl Patterns {
    /// Reads them.
    ///
    /// # Errors
    /// [`ArchiveError::Pattern`].
    ///
    /// ```
    /// assert!(libgrid::archive::Patterns::new(&["out/*.png".into()]).is_ok());
    /// assert!(libgrid::archive::Patterns::new(&["[".into()]).is_err());
    /// ```
    pub fn new(patterns: &[String]) -> Result<Self, ArchiveError> {
        globs(patterns).map(Self)
    }

    /// Whether one of them matches this path itself.
    ///
    /// ```
    /// let patterns = libgrid::archive::Patterns::new(&["*.png".into()]).unwrap();
    /// assert!(patterns.matches("a.png".as_ref()) && !patterns.matches("out/a.png".as_ref()));
    /// ```
    pub fn matches(&self, path: &Path) -> bool {
        self.0.is_match(path)
    }

    /// Whether one of them matches this path or a folder above it.
    ///
    /// ```
    /// let patterns = libgrid::archive::Patterns::new(&["out".into()]).unwrap();
    /// assert!(patterns.covers("out/deep/a.png".as_ref()) && !patterns.covers("output".as_ref()));
    /// ```
    pub fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|part| self.0.is_match(part))
    }
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
    let mut archive = builder(to);
    for path in paths {
        let relative = clean(Path::new(path))?;
        if !base.join(&relative).exists() {
            return Err(ArchiveError::Absent { path: path.into(), base: base.to_owned() });
        }
        append(&mut archive, base, &relative)?;
    }
    Ok(archive.into_inner()?.flush()?)
}

/// Packs what matches the patterns below `base`, and returns how many files that are. `*` matches within one
/// folder, `**` across; a folder that matches is packed whole. What cannot be read is an error; what matches
/// nothing is not.
///
/// # Errors
/// [`ArchiveError`].
///
/// ```
/// let files = libgrid::archive::pack_matching("src".as_ref(), &["*.rs".into()], std::io::sink()).unwrap();
/// assert!(files > 5);
/// ```
pub fn pack_matching(base: &Path, patterns: &[String], to: impl Write) -> Result<usize, ArchiveError> {
    let patterns = Patterns::new(patterns)?;
    let mut matching = BTreeSet::new();
    find(base, Path::new(""), &mut |path| {
        let hit = patterns.matches(path);
        if hit {
            matching.insert(path.to_owned());
        }
        hit
    })?;
    let mut archive = builder(to);
    for path in &matching {
        append(&mut archive, base, path)?;
    }
    archive.into_inner()?.flush()?;
    Ok(matching.len())
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
                name.push(".gridos-part");
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

fn globs(patterns: &[String]) -> Result<GlobSet, ArchiveError> {
    let mut set = globset::GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern.trim_end_matches('/')).literal_separator(true).build();
        set.add(
            glob.map_err(|error| ArchiveError::Pattern { pattern: pattern.clone(), why: error.to_string() })?,
        );
    }
    set.build().map_err(|error| ArchiveError::Pattern { pattern: patterns.join(" "), why: error.to_string() })
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

fn append<W: Write>(archive: &mut tar::Builder<W>, base: &Path, path: &Path) -> Result<(), ArchiveError> {
    let source = base.join(path);
    let read =
        |source_error| ArchiveError::File { what: "cannot read", path: source.clone(), source: source_error };
    // A link to a program or a data file that the user names is meant as what it leads to.
    let kind = fs::metadata(&source).or_else(|_| fs::symlink_metadata(&source)).map_err(read)?;
    if kind.is_dir() {
        // "." is the folder itself, which the other side has.
        if path.components().next().is_some() {
            archive.append_dir(path, &source).map_err(read)?;
        }
        for entry in fs::read_dir(&source).map_err(read)? {
            append_below(archive, base, &path.join(entry.map_err(read)?.file_name()))?;
        }
        Ok(())
    } else if kind.is_file() {
        let mut file = fs::File::open(&source).map_err(read)?;
        archive.append_file(path, &mut file).map_err(read)
    } else {
        Ok(())
    }
}

fn append_below<W: Write>(
    archive: &mut tar::Builder<W>,
    base: &Path,
    path: &Path,
) -> Result<(), ArchiveError> {
    let source = base.join(path);
    let read =
        |source_error| ArchiveError::File { what: "cannot read", path: source.clone(), source: source_error };
    let kind = fs::symlink_metadata(&source).map_err(read)?;
    if kind.is_symlink() {
        archive.append_path_with_name(&source, path).map_err(read)
    } else {
        append(archive, base, path)
    }
}

/// Shows every path below `base` to `visit`, which says whether it took the whole of it.
fn find(base: &Path, at: &Path, visit: &mut dyn FnMut(&Path) -> bool) -> Result<(), ArchiveError> {
    let folder = base.join(at);
    let read = |source| ArchiveError::File { what: "cannot read", path: folder.clone(), source };
    for entry in fs::read_dir(&folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = at.join(entry.file_name());
        let is_folder = entry.file_type().map_err(read)?.is_dir();
        if !visit(&path) && is_folder {
            find(base, &path, visit)?;
        }
    }
    Ok(())
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
        assert_eq!(pack_matching(from.path(), &["out/*.png".into()], &mut archive).unwrap(), 1);
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
