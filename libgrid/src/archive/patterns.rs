//! Which files are meant.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet};

use super::ArchiveError;

/// Patterns that say which files below a folder are meant: `*` matches within one folder, `**` across, and a folder
/// that matches is meant whole.
///
/// ```
/// let patterns = libgrid::archive::Patterns::new(&["out/*".into()])?;
/// assert!(patterns.matches("out/deep".as_ref()) && !patterns.matches("out/deep/a.png".as_ref()));
/// assert!(patterns.covers("out/deep/a.png".as_ref()) && !patterns.covers("out".as_ref()));
/// # Ok::<(), libgrid::archive::ArchiveError>(())
/// ```
///
/// A pattern without wildcards is a name, and names something that has to be there.
#[derive(Clone, Debug)]
pub struct Patterns {
    set: GlobSet,
    names: Vec<PathBuf>,
}

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
        let mut set = globset::GlobSetBuilder::new();
        let mut names = Vec::new();
        let misread = |pattern: &str, error: globset::Error| ArchiveError::Pattern {
            pattern: pattern.to_owned(),
            why: error.to_string(),
        };
        for pattern in patterns {
            let plain = pattern.trim_end_matches('/');
            let glob = GlobBuilder::new(plain).literal_separator(true).build();
            set.add(glob.map_err(|error| misread(pattern, error))?);
            if !plain.contains(['*', '?', '[', ']', '{', '}', '\\']) {
                names.push(plain.into());
            }
        }
        let set = set.build().map_err(|error| misread(&patterns.join(" "), error))?;
        Ok(Self { set, names })
    }

    /// Those that are names, without wildcards.
    ///
    /// ```
    /// let patterns = libgrid::archive::Patterns::new(&["*.png".into(), "out/".into()]).unwrap();
    /// assert!(patterns.names().eq(["out".as_ref() as &std::path::Path]));
    /// ```
    pub fn names(&self) -> impl Iterator<Item = &Path> {
        self.names.iter().map(PathBuf::as_path)
    }

    /// Whether one of them matches this path itself.
    ///
    /// ```
    /// let patterns = libgrid::archive::Patterns::new(&["*.png".into()]).unwrap();
    /// assert!(patterns.matches("a.png".as_ref()) && !patterns.matches("out/a.png".as_ref()));
    /// ```
    pub fn matches(&self, path: &Path) -> bool {
        self.set.is_match(path)
    }

    /// Whether one of them matches this path or a folder above it.
    ///
    /// ```
    /// let patterns = libgrid::archive::Patterns::new(&["out".into()]).unwrap();
    /// assert!(patterns.covers("out/deep/a.png".as_ref()) && !patterns.covers("output".as_ref()));
    /// ```
    pub fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|part| self.set.is_match(part))
    }
}
