//! Where CRIU is, and what it can do on this machine.
//!
//! | found | program | run by |
//! | --- | --- | --- |
//! | beside the programs: `../lib/gridos/criu` (installed) or `../criu` (built) | `criu/criu` | `criu/lib/ld.so`, with `criu/lib` |
//! | on the system | `/usr/sbin/criu` and the like | the system's loader |
//!
//! The first is CRIU unpacked by `setup/install` with its own libraries, where the system's is too old for current
//! kernels; it is asked first, for it is there only then. That folder may lie where a task does not see it (below
//! `/tmp`), and CRIU runs inside the task's mount namespace: so it is executed by descriptors that were opened
//! before, never by path.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where distributions put the program.
const SYSTEM: [&str; 4] = ["/usr/sbin/criu", "/usr/bin/criu", "/usr/local/sbin/criu", "/usr/local/bin/criu"];

/// The oldest CRIU whose library has all that is used of it (`criu_local_set_config_file` is not in 4.1): major and minor.
pub const OLDEST: (u32, u32) = (4, 2);

/// A CRIU that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    program: PathBuf,
    /// Its own libraries, with `ld.so` among them.
    libraries: Option<PathBuf>,
}

/// What this machine's CRIU and kernel can do together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// As CRIU prints it.
    pub version: String,
    /// Nothing where tasks can be dumped and restored, else why not: a sentence.
    pub trouble: Option<String>,
    /// What is missing for more than that.
    pub missing: Vec<Missing>,
}

/// A piece that the kernel does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// As `criu check --feature` names it.
    pub feature: &'static str,
    /// What that costs.
    pub cost: &'static str,
}

/// Soft-dirty bits, as `criu check --feature` names them.
pub const SOFT_DIRTY: &str = "mem_dirty_track";

/// What is asked besides the plain check.
const FEATURES: [Missing; 3] = [
    Missing {
        feature: SOFT_DIRTY,
        cost: "no soft-dirty bits: each checkpoint writes all memory, and no task moves from here by pre-copy; hybrid moves do \
               without them",
    },
    Missing {
        feature: "uffd-noncoop",
        cost: "no userfaultfd events: a process cannot run while its memory arrives",
    },
    Missing {
        feature: "pid_fd_store",
        cost: "no pidfd store: a checkpoint that builds on another cannot tell a reused pid",
    },
];

/// The descriptors to execute CRIU by, from whichever mount namespace.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) program: File,
    /// The loader and the folder of libraries.
    pub(crate) own: Option<(File, File)>,
}

impl Installation {
    /// Looks beside the folder of our programs, then on the system.
    pub fn find(programs: &Path) -> Option<Self> {
        let own = programs.parent().into_iter().flat_map(|above| {
            [above.join("lib/gridos/criu"), above.join("criu")]
                .into_iter()
                .map(|folder| Self { program: folder.join("criu"), libraries: Some(folder.join("lib")) })
        });
        let system = SYSTEM.map(|path| Self { program: path.into(), libraries: None });
        own.chain(system).find(|found| found.program.is_file())
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What runs the program with these arguments, in the caller's namespaces.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.libraries {
            Some(libraries) => {
                let mut command = Command::new(libraries.join("ld.so"));
                command.arg("--library-path").arg(libraries).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// libcriu, and the library that has to be loaded before it, if they come with the program.
    pub(crate) fn libcriu(&self) -> (Option<PathBuf>, PathBuf) {
        match &self.libraries {
            Some(own) => (Some(own.join("libprotobuf-c.so.1")), own.join(criu_sys::SONAME)),
            None => (None, criu_sys::SONAME.into()),
        }
    }

    /// # Errors
    /// Where a file cannot be opened.
    pub(crate) fn open(&self) -> io::Result<Open> {
        let path = |path: &Path| {
            let file = File::options().read(true).custom_flags(libc::O_PATH).open(path);
            file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        let own = match &self.libraries {
            Some(libraries) => Some((path(&libraries.join("ld.so"))?, path(libraries)?)),
            None => None,
        };
        Ok(Open { program: path(&self.program)?, own })
    }

    /// Asks CRIU what this kernel can do: some ten milliseconds for each question. Needs root.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn capabilities(&self) -> io::Result<Capabilities> {
        let said = self.command(&["--version"]).stderr(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version =
            said.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or("unknown").trim();
        let trouble = if is_older(version) {
            let (major, minor) = OLDEST;
            Some(format!(
                "CRIU {version} fails on current kernels: install {major}.{minor} or newer, as setup/install does"
            ))
        } else {
            self.refusal()?
        };
        let mut missing = Vec::new();
        for piece in FEATURES {
            if !self.has(piece.feature)? {
                missing.push(piece);
            }
        }
        Ok(Capabilities { version: version.to_owned(), trouble, missing })
    }

    /// Whether this kernel has a feature, as `criu check --feature` names it. Needs root.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn has(&self, feature: &str) -> io::Result<bool> {
        let mut ask = self.command(&["check", "--feature", feature]);
        Ok(ask.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    /// Why a plain `criu check` fails, if it does.
    fn refusal(&self) -> io::Result<Option<String>> {
        let check = self.command(&["check"]).output()?;
        if check.status.success() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        let why = said.lines().rev().find(|line| line.contains("Error")).unwrap_or("it did not say why");
        Ok(Some(format!("criu check failed: {}", crate::log::sentence(why))))
    }
}

/// Whether a version, printed as `4.1.1`, is too old. One that cannot be read is not: the check decides.
fn is_older(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    numbers.next().is_some_and(|major| (major, numbers.next().unwrap_or(0)) < OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_older("3.17.1") && is_older("4.1.1"));
        assert!(!is_older("4.2") && !is_older("4.10") && !is_older("5") && !is_older("GIT"));
    }

    #[test]
    fn a_folder_of_our_own_comes_before_the_systems_criu() {
        let prefix = tempfile::tempdir().unwrap();
        let folder = prefix.path().join("lib/gridos/criu");
        std::fs::create_dir_all(folder.join("lib")).unwrap();
        std::fs::write(folder.join("criu"), "").unwrap();
        let found = Installation::find(&prefix.path().join("bin")).unwrap();
        assert_eq!(found.program(), folder.join("criu"));
        let command = found.command(&["check"]);
        assert_eq!(command.get_program(), folder.join("lib/ld.so"));
        let words: Vec<_> = command.get_args().collect();
        assert_eq!(words[2..], [folder.join("criu").as_os_str(), "check".as_ref()]);
    }
}
