//! What does not come, in one sentence.

use std::io;
use std::path::Path;

/// What was asked for and does not come, because it cannot be read or is not there. The rest comes.
///
/// ```
/// let mut missed = libgrid::archive::Missed::default();
/// assert_eq!(missed.sentence(), None);
/// missed.unreadable("out/a".as_ref(), &std::io::ErrorKind::PermissionDenied.into());
/// missed.absent("b".as_ref());
/// assert_eq!(missed.sentence().unwrap(), "out/a cannot be read: permission denied (and 1 other)");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Missed {
    first: Option<String>,
    others: u64,
}

impl Missed {
    /// Notes that something cannot be read.
    ///
    /// ```
    /// let mut missed = libgrid::archive::Missed::default();
    /// missed.unreadable("a".as_ref(), &std::io::Error::from_raw_os_error(13));
    /// assert!(missed.sentence().unwrap().starts_with("a cannot be read: Permission denied"));
    /// ```
    pub fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.note(|| format!("{} cannot be read: {error}", in_one_line(path)));
    }

    /// Notes that something that was named is not there.
    ///
    /// ```
    /// let mut missed = libgrid::archive::Missed::default();
    /// missed.absent("result.dat".as_ref());
    /// assert_eq!(missed.sentence().unwrap(), "there is no result.dat");
    /// ```
    pub fn absent(&mut self, path: &Path) {
        self.note(|| format!("there is no {}", in_one_line(path)));
    }

    /// Adds what somebody else noted, later.
    ///
    /// ```
    /// let mut missed = libgrid::archive::Missed::default();
    /// missed.add(libgrid::archive::Missed::default());
    /// assert_eq!(missed.sentence(), None);
    /// ```
    pub fn add(&mut self, later: Self) {
        match &self.first {
            Some(_) => self.others += later.others + u64::from(later.first.is_some()),
            None => *self = later,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        match &self.first {
            Some(_) => self.others += 1,
            None => self.first = Some(what()),
        }
    }

    /// The first of it, and how many others there are; `None` if nothing was missed.
    ///
    /// ```
    /// assert_eq!(libgrid::archive::Missed::default().sentence(), None);
    /// ```
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        self.first.as_ref().map(|first| match self.others {
            0 => first.clone(),
            1 => format!("{first} (and 1 other)"),
            others => format!("{first} (and {others} others)"),
        })
    }
}

fn in_one_line(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
