//! What a user submits.
//!
//! The same fields in three forms: the [builder](JobSpec::command) in Rust, a TOML file
//! ([`JobSpec::from_toml`]), and the options of `gridctl submit`.
//!
//! ```toml
//! name      = "frames"
//! command   = ["./frame", "{index}"]
//! array     = "0-99"
//! cpus      = 1
//! memory    = "512M"
//! time      = "10m"
//! stage_in  = ["in/"]
//! stage_out = ["out/*.png"]
//! checkpoint = "adaptive"
//! net       = "grid"
//! after     = ["j1.2", "j1.3:any"]
//! [env]
//! QUALITY = "high"
//! ```
//!
//! `{index}` in the command, in `env` and in `stage_out` stands for the index of the task.

mod after;
mod array;
mod checkpoints;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::after::{After, Ending};
pub use self::array::Indices;
pub use self::checkpoints::Checkpoints;
pub use self::network::Net;

use crate::node::Resources;
use crate::pipe::PipeUse;
use crate::units::{Bytes, Cpus, Span};

/// What one task may say at most on its command line and in its environment, in bytes.
const MAX_WORDS: usize = 128 << 10;
/// The most tasks of one array.
const MAX_TASKS: u32 = 100_000;
/// The most entries of a list.
const MAX_ENTRIES: usize = 1024;

/// A job as its user describes it. Everything but the command has a default.
///
/// ```
/// use libgrid::spec::JobSpec;
/// use libgrid::units::{Bytes, Cpus};
/// let spec = JobSpec::command(["./simulate", "input.dat"])
///     .cpus(Cpus::cores(2))
///     .memory(Bytes(1 << 30))
///     .stage_in(["input.dat"])
///     .check()
///     .unwrap();
/// assert_eq!(spec.tasks(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What lists show; the program's name if absent. At most 64 bytes.
    #[serde(default)]
    pub name: Option<String>,
    /// The program and its arguments. A program without `/` is looked up in the task's `PATH`.
    pub command: Vec<String>,
    /// Variables added to the task's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Processors for each task; rounded up to whole cores, also the most that it can use.
    #[serde(default = "default_cpus")]
    pub cpus: Cpus,
    /// Memory for each task; a task that needs more is ended.
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// How long a task may run; without limit if absent.
    #[serde(default)]
    pub time: Option<Span>,
    /// How many processes and threads a task may have.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// One task for each index.
    #[serde(default)]
    pub array: Option<Indices>,
    /// Files and folders, relative to the folder of the submission, copied into each task's working directory.
    #[serde(default)]
    pub stage_in: Vec<String>,
    /// Patterns of files, relative to the working directory, copied back to the folder of the submission.
    #[serde(default)]
    pub stage_out: Vec<String>,
    /// Whether a task whose node is lost starts again on another; otherwise it counts as failed.
    #[serde(default = "default_true")]
    pub restart: bool,
    /// How much of each output stream is kept; the oldest goes first.
    #[serde(default = "default_log_limit")]
    pub log_limit: Bytes,
    /// The names or numbers of the nodes that may be used; all if empty.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// When checkpoints are written, from which a task that is lost goes on.
    #[serde(default)]
    pub checkpoint: Checkpoints,
    /// Which network each task has.
    #[serde(default)]
    pub net: Net,
    /// Named pipes that each task has as FIFOs in its working folder.
    #[serde(default)]
    pub pipes: Vec<PipeUse>,
    /// Whether its processes have the grid's system call ([`sys`](crate::sys)).
    #[serde(default)]
    pub system_call: bool,
    /// The jobs that have to end before it starts, of whichever node. If one of them ends in another way, it never does.
    #[serde(default)]
    pub after: Vec<After>,
    /// Whether it waits until somebody releases it.
    #[serde(default)]
    pub hold: bool,
}

/// Why a job cannot be accepted.
///
/// ```
/// use libgrid::spec::{JobSpec, SpecError};
/// let error = JobSpec::from_toml("command = [\"x\"]\ncpuss = 1\n").unwrap_err();
/// assert!(error.to_string().starts_with("line 2, column 1: unknown field `cpuss`"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The file is no job file.
    #[error("line {line}, column {column}: {message}")]
    Toml {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A field's value cannot be.
    #[error("{field}: {message}")]
    Field {
        /// The field, as in the job file.
        field: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

fn default_cpus() -> Cpus {
    Cpus::cores(1)
}
fn default_memory() -> Bytes {
    Bytes(512 << 20)
}
fn default_pids() -> u32 {
    4096
}
fn default_true() -> bool {
    true
}
fn default_log_limit() -> Bytes {
    Bytes(64 << 20)
}

// === impl JobSpec ===

impl JobSpec {
    /// A job of one task that runs this program with these arguments.
    ///
    /// ```
    /// let spec = libgrid::spec::JobSpec::command(["/bin/true"]);
    /// assert!(spec.restart);
    /// ```
    pub fn command<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        Self {
            name: None,
            command: words.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cpus: default_cpus(),
            memory: default_memory(),
            time: None,
            pids: default_pids(),
            array: None,
            stage_in: Vec::new(),
            stage_out: Vec::new(),
            restart: true,
            log_limit: default_log_limit(),
            nodes: Vec::new(),
            checkpoint: Checkpoints::Off,
            net: Net::Host,
            pipes: Vec::new(),
            system_call: false,
            after: Vec::new(),
            hold: false,
        }
    }

    /// Sets what lists show.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["/bin/true"]).name("nothing").title(), "nothing");
    /// ```
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a variable to the environment.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["env"]).env("A", "1").env["A"], "1");
    /// ```
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), value.into());
        self
    }

    /// Sets the processors for each task.
    ///
    /// ```
    /// # use libgrid::{spec::JobSpec, units::Cpus};
    /// assert_eq!(JobSpec::command(["x"]).cpus(Cpus::cores(4)).needs().cpu, 4000);
    /// ```
    #[must_use]
    pub fn cpus(mut self, cpus: Cpus) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the memory for each task.
    ///
    /// ```
    /// # use libgrid::{spec::JobSpec, units::Bytes};
    /// assert_eq!(JobSpec::command(["x"]).memory(Bytes(1 << 30)).needs().memory, 1 << 30);
    /// ```
    #[must_use]
    pub fn memory(mut self, memory: Bytes) -> Self {
        self.memory = memory;
        self
    }

    /// Sets how long each task may run.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// # use std::time::Duration;
    /// assert!(JobSpec::command(["x"]).time(Duration::from_secs(60)).time.is_some());
    /// ```
    #[must_use]
    pub fn time(mut self, limit: Duration) -> Self {
        self.time = Some(Span(limit));
        self
    }

    /// Makes it an array: a task for each index from `first` to `last`.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["./frame", "{index}"]).array(0, 99).tasks(), 100);
    /// ```
    #[must_use]
    pub fn array(mut self, first: u32, last: u32) -> Self {
        self.array = Some(Indices { first, last, at_once: None });
        self
    }

    /// Lets no more than so many tasks of an array run at one time.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// let spec = JobSpec::command(["./frame", "{index}"]).array(0, 99).at_once(8);
    /// assert_eq!(spec.array.unwrap().to_string(), "0-99%8");
    /// ```
    #[must_use]
    pub fn at_once(mut self, tasks: u32) -> Self {
        self.array = self.array.map(|array| Indices { at_once: Some(tasks), ..array });
        self
    }

    /// Adds files and folders to copy into the working directory.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["./x"]).stage_in(["in/"]).stage_in, ["in/"]);
    /// ```
    #[must_use]
    pub fn stage_in<S: Into<String>>(mut self, paths: impl IntoIterator<Item = S>) -> Self {
        self.stage_in.extend(paths.into_iter().map(Into::into));
        self
    }

    /// Adds patterns of files to copy back.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["./x"]).stage_out(["out/*.png"]).stage_out.len(), 1);
    /// ```
    #[must_use]
    pub fn stage_out<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.stage_out.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Says whether a task whose node is lost starts again elsewhere.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert!(!JobSpec::command(["x"]).restart(false).restart);
    /// ```
    #[must_use]
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// Says when checkpoints are written.
    ///
    /// ```
    /// # use libgrid::spec::{Checkpoints, JobSpec};
    /// assert_eq!(JobSpec::command(["x"]).checkpoint(Checkpoints::Adaptive).checkpoint.to_string(), "adaptive");
    /// ```
    #[must_use]
    pub fn checkpoint(mut self, when: Checkpoints) -> Self {
        self.checkpoint = when;
        self
    }

    /// Says which network each task has.
    ///
    /// ```
    /// # use libgrid::spec::{JobSpec, Net};
    /// assert_eq!(JobSpec::command(["x"]).net(Net::Grid).net.to_string(), "grid");
    /// ```
    #[must_use]
    pub fn net(mut self, net: Net) -> Self {
        self.net = net;
        self
    }

    /// Gives each task a named pipe as a FIFO.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// let spec = JobSpec::command(["sort", "numbers"]).pipe("numbers:r".parse().unwrap());
    /// assert_eq!(spec.pipes.len(), 1);
    /// ```
    #[must_use]
    pub fn pipe(mut self, pipe: PipeUse) -> Self {
        self.pipes.push(pipe);
        self
    }

    /// Gives its processes the grid's system call.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert!(JobSpec::command(["x"]).system_call().system_call);
    /// ```
    #[must_use]
    pub fn system_call(mut self) -> Self {
        self.system_call = true;
        self
    }

    /// Lets it start only when another job has ended, and how.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// let spec = JobSpec::command(["./merge"]).after("j1.2".parse().unwrap());
    /// assert_eq!(spec.after[0].to_string(), "j1.2");
    /// ```
    #[must_use]
    pub fn after(mut self, job: After) -> Self {
        self.after.push(job);
        self
    }

    /// Lets it wait until somebody releases it.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert!(JobSpec::command(["x"]).hold().hold);
    /// ```
    #[must_use]
    pub fn hold(mut self) -> Self {
        self.hold = true;
        self
    }

    /// Reads a job file and checks it.
    ///
    /// # Errors
    /// [`SpecError::Toml`] with line and column, or [`SpecError::Field`].
    ///
    /// ```
    /// let spec = libgrid::spec::JobSpec::from_toml("command = ['./sim']\nmemory = '2G'").unwrap();
    /// assert_eq!(spec.memory.0, 2 << 30);
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        toml::from_str::<Self>(text)
            .map_err(|error| {
                let offset = error.span().map_or(0, |span| span.start.min(text.len()));
                let before = text.get(..offset).unwrap_or("");
                let line_start = before.rfind('\n').map_or(0, |at| at + 1);
                SpecError::Toml {
                    line: before.matches('\n').count() + 1,
                    column: before[line_start..].chars().count() + 1,
                    // The parser's words for what the file calls otherwise.
                    message: printable(error.message())
                        .replace("expected a sequence", "expected a list in brackets")
                        .replace("expected a map", "expected a table"),
                }
            })?
            .check()
    }

    /// The job itself if it can be accepted: every limit of every field.
    ///
    /// # Errors
    /// [`SpecError::Field`] with the first field that cannot be.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// let error = JobSpec::command([""]).check().unwrap_err();
    /// assert_eq!(error.to_string(), "command: the program's name is empty: name a program to run");
    /// ```
    pub fn check(self) -> Result<Self, SpecError> {
        let words: usize = self.command.iter().map(|word| word.len() + 1).sum::<usize>()
            + self.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
        let texts = self.command.iter().chain(self.env.keys()).chain(self.env.values());
        if self.command.first().is_none_or(String::is_empty) {
            return field("command", "the program's name is empty: name a program to run");
        }
        if words > MAX_WORDS {
            return field(
                "command",
                format!(
                    "command and environment take {words} bytes, over the limit of {MAX_WORDS}: put data into a file and stage it in"
                ),
            );
        }
        if texts.chain(&self.stage_in).chain(&self.stage_out).any(|text| text.contains('\0')) {
            return field("command", "a word holds a zero byte, which no program can be given: remove it");
        }
        if let Some(key) = self.env.keys().find(|key| key.is_empty() || key.contains('=')) {
            let how = "write KEY=VALUE, with a key that is not empty and has no '='";
            return field("env", format!("{key:?} cannot be the name of a variable: {how}"));
        }
        if self.name.as_ref().is_some_and(|name| name.len() > 64 || name.chars().any(char::is_control)) {
            return field(
                "name",
                "a name has at most 64 bytes and no control characters, such as line breaks: choose another one",
            );
        }
        if self.memory.0 < 1 << 20 {
            return field(
                "memory",
                format!("{} is too little to start any program: ask for at least 1M", self.memory),
            );
        }
        if self.time.is_some_and(|limit| limit.0.is_zero()) {
            return field("time", "a task that may run for no time cannot start: give a longer time");
        }
        if !(2..=4_194_304).contains(&self.pids) {
            return field("pids", format!("{} is not from 2 to 4194304", self.pids));
        }
        if self.tasks() > MAX_TASKS {
            return field(
                "array",
                format!("{} tasks are over the limit of {MAX_TASKS}: submit several arrays", self.tasks()),
            );
        }
        if self.array.and_then(Indices::at_once) == Some(0) {
            return field("array", "with 0 tasks at a time it would never end: let at least one run");
        }
        let jobs: BTreeSet<_> = self.after.iter().map(|after| after.job).collect();
        if jobs.len() < self.after.len() {
            return field("after", "a job is named twice: name each once");
        }
        let uneven = |interval: Duration| interval.is_zero() || interval.subsec_nanos() != 0;
        if matches!(self.checkpoint, Checkpoints::Every(Span(interval)) if uneven(interval)) {
            return field("checkpoint", "an interval has whole seconds, and at least one: write every=5m");
        }
        let mut names: Vec<&str> = self.pipes.iter().map(|one| one.pipe.name.as_str()).collect();
        names.sort_unstable();
        if names.len() > 64 || names.windows(2).any(|pair| pair[0] == pair[1]) {
            return field(
                "pipes",
                "at most 64, each of another name, as each is a FIFO of its name: leave some out",
            );
        }
        if self.log_limit.0 < 4096 {
            return field(
                "log_limit",
                format!("{} is too little to keep any output: give at least 4K", self.log_limit),
            );
        }
        for (name, entries, instead) in [
            ("stage_in", &self.stage_in, "name a folder instead"),
            ("stage_out", &self.stage_out, "name a folder instead"),
            ("nodes", &self.nodes, "leave them out to have any node"),
        ] {
            if entries.len() > MAX_ENTRIES {
                return field(name, format!("more than {MAX_ENTRIES} entries: {instead}"));
            }
        }
        if self.nodes.iter().any(String::is_empty) {
            return field("nodes", "no node has an empty name: leave it out to have any node");
        }
        if self.after.len() > MAX_ENTRIES {
            return field(
                "after",
                format!("more than {MAX_ENTRIES} jobs: have one come after them, and wait for that"),
            );
        }
        for (name, paths, remedy) in [
            ("stage_in", &self.stage_in, "copy it there first"),
            ("stage_out", &self.stage_out, "have the program write its results there"),
        ] {
            for path in paths {
                if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
                    let what = "must be a path below the working directory, without '..'";
                    return field(name, format!("{path:?} {what}: {remedy}"));
                }
            }
        }
        Ok(self)
    }

    /// How many tasks the job has.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["x"]).tasks(), 1);
    /// ```
    pub fn tasks(&self) -> u32 {
        self.array.map_or(1, Indices::count)
    }

    /// The indices of the tasks, in order.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["x"]).array(3, 5).indices().collect::<Vec<_>>(), [3, 4, 5]);
    /// ```
    pub fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        let (first, last) = self.array.map_or((0, 0), |array| (array.first, array.last));
        first..=last
    }

    /// What each task takes from its node.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["x"]).needs().cpu, 1000);
    /// ```
    pub fn needs(&self) -> Resources {
        Resources { cpu: self.cpus.milli(), memory: self.memory.0 }
    }

    /// The name, or else the program's.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::command(["/usr/bin/python3", "-V"]).title(), "python3");
    /// ```
    pub fn title(&self) -> &str {
        let program = || self.command.first().map_or("", |word| word.rsplit('/').next().unwrap_or(word));
        self.name.as_deref().unwrap_or_else(program)
    }

    /// A text of the job as task `index` gets it.
    ///
    /// ```
    /// # use libgrid::spec::JobSpec;
    /// assert_eq!(JobSpec::for_task("out/{index}.png", 7), "out/7.png");
    /// ```
    pub fn for_task(text: &str, index: u32) -> String {
        text.replace("{index}", &index.to_string())
    }
}

/// Control characters of a wrong file must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The beginning of what cannot be understood.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn field<T>(field: &'static str, message: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Field { field, message: message.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_file_fails_with_line_column_and_the_field() {
        for (text, start) in [
            ("", "line 1, column 1: missing field `command`"),
            ("command = ['x']\n\n  time = 'soon'", "line 3, column 10: \"soon\" is no length of time"),
            ("command = ['x']\ncpus = 0", "line 2, column 8: 0 is not a number of cores"),
            ("command = 'x'", "line 1, column 11: invalid type: string \"x\", expected a list in brackets"),
            ("command = ['x'", "line 1, column 15: "),
            ("command = ['x']\narray = '9-1'", "line 2, column 9: array: \"9-1\" is no range"),
            ("command = []", "command: the program's name is empty"),
            ("command = ['x']\nstage_in = ['../up']", "stage_in: \"../up\" must be a path below"),
            ("command = ['x']\nmemory = '4K'", "memory: 4K is too little"),
            ("command = ['x']\nafter = ['k']", "line 2, column 9: after: \"k\" is no job to wait for"),
            ("command = ['x']\nafter = ['j1.2', 'j1.2:any']", "after: a job is named twice"),
        ] {
            let message = JobSpec::from_toml(text).unwrap_err().to_string();
            assert!(message.starts_with(start), "{text:?} gave {message:?}");
        }
    }

    #[test]
    fn the_builder_and_the_file_say_the_same() {
        let file = "name = 'n'\ncommand = ['./f', '{index}']\narray = '0-9%2'\ncpus = 0.5\nmemory = '64M'\n\
                    time = '10m'\nafter = ['j1.2:any']\nhold = true\nstage_in = ['in/']\nstage_out = ['out/*']\nrestart = false\n[env]\nA = 'b'\n";
        let built = JobSpec::command(["./f", "{index}"])
            .name("n")
            .array(0, 9)
            .at_once(2)
            .after("j1.2:any".parse().unwrap())
            .hold()
            .cpus(Cpus::from_milli(500))
            .memory(Bytes(64 << 20))
            .time(Duration::from_secs(600))
            .stage_in(["in/"])
            .stage_out(["out/*"])
            .restart(false)
            .env("A", "b");
        assert_eq!(JobSpec::from_toml(file).unwrap(), built);
        let wire = crate::wire::encode(&built).unwrap();
        assert_eq!(crate::wire::decode::<JobSpec>(&wire).unwrap(), built);
    }
}
