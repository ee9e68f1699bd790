//! A grid of virtual machines, as `images/run.sh` boots it from the image that `images/build` makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::machine::fetched;
use crate::program;
use crate::run::{Run, Running, run};
use crate::until::until_within;

/// How long the machines may take to form a grid, without hardware virtualisation and beside other tests.
const PATIENCE: Duration = Duration::from_secs(400);

/// Machines that run; they go with the value.
#[derive(Debug)]
pub struct Machines {
    script: Option<Running>,
    folder: tempfile::TempDir,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A program of `images`, with the target folder that this program is in.
fn images(name: &str) -> Result<Command, String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the machine's kernel is for x86_64".into());
    }
    let debian = fetched("debian.tar")?;
    fetched("kernels/6.12/lib")?;
    if !debian.ancestors().nth(2).unwrap().join("criu/criu").exists() {
        return Err("there is no CRIU with its own libraries in the target folder".into());
    }
    let mut command = Command::new(repository().join("images").join(name));
    command.env("CARGO_TARGET_DIR", debian.ancestors().nth(2).unwrap());
    Ok(command)
}

impl Machines {
    /// Builds the image with the programs under test, unless it is there, and boots this many machines of it.
    ///
    /// # Errors
    /// What this machine lacks, and what installs it.
    pub fn up(count: u32) -> Result<Self, String> {
        let image = fetched("debian.tar")?.with_file_name("image");
        let mut build = images("build")?;
        build.arg("--programs").arg(program("gridosd").parent().unwrap()).arg("--output").arg(&image);
        println!("{}", run(&mut build, b"").ok());

        let folder = tempfile::Builder::new().prefix("gridvms-").tempdir_in("/var/tmp").unwrap();
        let mut command = images("run.sh")?;
        command.args(["-n", &count.to_string()]).arg("--image").arg(image).arg("--folder");
        let script = Running::start(command.arg(folder.path().join("grid")));
        let machines = Self { script: Some(script), folder };
        until_within("the machines form a grid", PATIENCE, || {
            let ended = machines.script.as_ref().unwrap().ended();
            assert!(!ended, "images/run.sh ended: {}", machines.said());
            machines.said().contains("the grid is up")
        });
        Ok(machines)
    }

    /// What `images/run.sh` said so far.
    pub fn said(&self) -> String {
        let script = self.script.as_ref().unwrap();
        script.printed() + &String::from_utf8_lossy(&script.stderr())
    }

    /// The folder in which the machines' files are.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("grid")
    }

    /// `images/run.sh` with these arguments, for these machines.
    pub fn script(&self, arguments: &[&str]) -> Run {
        let mut command = images("run.sh").unwrap();
        run(command.args(arguments).arg("--folder").arg(self.folder()), b"")
    }

    /// Runs a command on a node, as root.
    pub fn on(&self, node: u32, words: &[&str]) -> Run {
        self.feed(node, words, b"")
    }

    /// The same with this as its input.
    pub fn feed(&self, node: u32, words: &[&str], input: &[u8]) -> Run {
        let mut command = images("run.sh").unwrap();
        command.arg("exec").arg(format!("node{node}")).arg("--folder").arg(self.folder());
        run(command.arg("--").args(words), input)
    }

    /// The processes of this machine that work in the machines' folder.
    pub fn processes(&self) -> Vec<String> {
        let folder = self.folder();
        let here = |entry: &fs::DirEntry| {
            fs::read_link(entry.path().join("cwd")).is_ok_and(|path| path.starts_with(&folder))
        };
        let command = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            text.replace('\0', " ")
        };
        fs::read_dir("/proc").unwrap().flatten().filter(here).map(command).collect()
    }

    /// Ends them by Ctrl-C; gives what `images/run.sh` did.
    pub fn interrupt(&mut self) -> Run {
        let script = self.script.take().unwrap();
        script.signal(Signal::SIGINT);
        script.wait()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let Some(script) = &self.script else { return };
        if std::thread::panicking() {
            println!("{}", self.said());
        }
        // What it started ends with it, and what it wrote is in a folder of ours.
        script.signal(Signal::SIGTERM);
        until_within("the machines end", PATIENCE, || script.ended());
    }
}
