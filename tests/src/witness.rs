//! What the tasks themselves say of when they ran.
//!
//! Every task of a job appends lines to one file per index. Appends to one file are in one order, so the lines
//! prove what ran before what, with no clock involved.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A folder that every task of every node can write to; nodes of a lab share the host's files.
#[derive(Debug)]
pub struct Witness {
    dir: PathBuf,
}

/// A line that a task wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `start`, `tick` or `end`.
    pub what: String,
    /// The epoch of the run that wrote it.
    pub epoch: u32,
    /// The number of the node it ran on.
    pub node: u32,
}

impl Witness {
    /// A witness below `dir`, which is outside `/tmp`: tasks have one of their own.
    pub fn new(dir: &Path, name: &str) -> Witness {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        Witness { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in it, as text for scripts.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A script for `sh -c` that says `start`, does `body`, and says `end`; `tell WORD` says more.
    pub fn script(&self, body: &str) -> String {
        let dir = self.dir.display();
        format!(
            "umask 0; tell() {{ echo \"$1 $GRIDOS_EPOCH $GRIDOS_NODE\" >> {dir}/$GRIDOS_INDEX; }}\n\
             tell start\n{body}\nstatus=$?\ntell end\nexit $status"
        )
    }

    /// A flag that scripts wait for with [`Witness::awaiting`].
    pub fn raise(&self, flag: &str) {
        fs::write(self.dir.join(flag), "").unwrap();
    }

    /// Shell that goes on when the flag is raised.
    pub fn awaiting(&self, flag: &str) -> String {
        format!("while ! test -e {}; do sleep 0.2; done", self.dir.join(flag).display())
    }

    /// A pipe on which scripts wait with [`Witness::blocked_on`].
    pub fn gate(&self, name: &str) {
        let path = self.dir.join(name);
        mkfifo(&path, Mode::empty()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    }

    /// Shell that goes on when the gate is opened, and takes neither a process nor time until then.
    pub fn blocked_on(&self, name: &str) -> String {
        format!("read _ < {}", self.dir.join(name).display())
    }

    /// Lets all pass that wait at the gate now; whoever comes later waits for the next call.
    pub fn open_gate(&self, name: &str) {
        let mut open = fs::OpenOptions::new();
        open.write(true).custom_flags(nix::libc::O_NONBLOCK);
        match open.open(self.dir.join(name)) {
            // Nobody waits.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => (),
            opened => drop(opened.unwrap()),
        }
    }

    /// What the runs of task `index` wrote, in order.
    pub fn lines(&self, index: u32) -> Vec<Line> {
        let text = fs::read_to_string(self.dir.join(index.to_string())).unwrap_or_default();
        // A line is there whole or not at all: each is one write.
        text.lines().map(|line| Line::parse(line).unwrap_or_else(|| panic!("odd line {line:?}"))).collect()
    }

    /// How many lines of this word task `index` wrote.
    pub fn count(&self, index: u32, what: &str) -> usize {
        self.lines(index).iter().filter(|line| line.what == what).count()
    }

    /// Task `index` ran once: one start, one end, nothing of another epoch.
    pub fn ran_once(&self, index: u32) {
        let lines = self.lines(index);
        let words: Vec<_> =
            lines.iter().map(|line| line.what.as_str()).filter(|what| *what != "tick").collect();
        assert_eq!(words, ["start", "end"], "task {index}: {lines:?}");
        assert!(lines.iter().all(|line| line.epoch == lines[0].epoch), "task {index}: {lines:?}");
    }

    /// No two runs of task `index` overlapped: once a run of a later epoch wrote, no earlier one did; and each
    /// epoch started once.
    pub fn never_overlapped(&self, index: u32) {
        let lines = self.lines(index);
        let epochs: Vec<_> = lines.iter().map(|line| line.epoch).collect();
        assert!(epochs.is_sorted(), "two runs of task {index} at once: {lines:?}");
        let mut starts = BTreeMap::new();
        for line in lines.iter().filter(|line| line.what == "start") {
            *starts.entry(line.epoch).or_insert(0) += 1;
        }
        assert!(starts.values().all(|count| *count == 1), "a run of task {index} started twice: {lines:?}");
    }
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut words = line.split(' ');
        let (what, epoch, node) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Line { what: what.to_owned(), epoch, node })
    }
}
