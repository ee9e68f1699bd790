//! What of the current folder a job takes along.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use libgrid::archive;
use libgrid::blocking::Grid;
use libgrid::control::{Stdin, Submission, Submitted};
use libgrid::spec::JobSpec;
use nix::unistd::{AccessFlags, access};

/// Adds the program, and every argument that names a file, to what is staged in, if they are below the current
/// folder and named relative to it. Returns what was added.
pub(crate) fn stage_named_files(spec: &mut JobSpec, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut added = Vec::new();
    for (position, word) in spec.command.iter().enumerate() {
        let path = Path::new(word);
        let is_program = position == 0;
        // A program without a slash is looked up on the node.
        if path.is_absolute() || (is_program && !word.contains('/')) || word.is_empty() {
            continue;
        }
        let leads_out = path.components().any(|part| part == Component::ParentDir);
        match fs::metadata(folder.join(path)) {
            Ok(meta) if meta.is_file() && !leads_out => {
                if is_program && std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 == 0 {
                    bail!("{word} may not be executed: make it executable with chmod +x {word}");
                }
                let name = word.strip_prefix("./").unwrap_or(word).to_owned();
                if !covered(&spec.stage_in, &name) && !added.contains(&name) {
                    added.push(name);
                }
            }
            Ok(meta) if is_program && meta.is_dir() => bail!("{word} is a folder: name a program"),
            Ok(_) if is_program => {
                bail!(
                    "{word} is not below {}: change to a folder above it, or install it on the nodes",
                    folder.display()
                )
            }
            Err(error) if is_program && !covered(&spec.stage_in, word) => {
                bail!(
                    "cannot run {word}: {error}: name a program below {}, or one that is installed",
                    folder.display()
                );
            }
            _ => (),
        }
    }
    spec.stage_in.extend(added.iter().cloned());
    Ok(added)
}

/// Whether a folder that is staged in holds this path already.
fn covered(staged: &[String], path: &str) -> bool {
    let path = Path::new(path);
    staged.iter().any(|folder| folder == "." || path.starts_with(folder.trim_end_matches('/')))
}

/// Submits a job from the current folder, with the files that it names.
pub(crate) fn submit(grid: &mut Grid, spec: JobSpec, input: Option<Stdin>) -> anyhow::Result<Submitted> {
    let folder = env::current_dir().context("the current folder is gone: change to another")?;
    if folder.to_str().is_none() {
        bail!("the name of the folder {} is not UTF-8: rename it, or submit from another", folder.display());
    }
    archive::Patterns::new(&spec.stage_out)?;
    if !spec.stage_out.is_empty()
        && let Err(error) = access(&folder, AccessFlags::W_OK | AccessFlags::X_OK)
    {
        let shown = folder.display();
        bail!("results could not be brought to {shown}: {}: submit from a folder of yours", error.desc());
    }
    // What comes after other jobs takes along what those bring.
    let paths = if spec.after.is_empty() { spec.stage_in.clone() } else { Vec::new() };
    for path in &paths {
        if !folder.join(path).exists() {
            bail!("there is no {path} below {}: see --stage-in", folder.display());
        }
    }
    let spec = spec.check()?;
    let submission = Submission { input, ..Submission::new(spec, &folder) };
    if paths.is_empty() {
        return match grid.ask(&libgrid::control::Request::Submit(Box::new(submission)))? {
            libgrid::control::Reply::Submitted(submitted) => Ok(submitted),
            _ => Err(libgrid::GridError::Unexpected.into()),
        };
    }
    let style = ProgressStyle::with_template("sending inputs  {bytes}  {bytes_per_sec}  {elapsed}");
    let bar =
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let submitted = grid.submit_with(submission, |to| {
        let counted = Counted { to, bar: &bar };
        archive::pack_paths(&folder, &paths, counted).map_err(io::Error::other)
    });
    bar.finish_and_clear();
    Ok(submitted?)
}

struct Counted<'a> {
    to: &'a mut dyn Write,
    bar: &'a ProgressBar,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bar.inc(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        for (name, mode) in [("sim", 0o755), ("in/data 1", 0o644), ("plain", 0o644)] {
            fs::write(folder.path().join(name), "x").unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        folder
    }

    #[test]
    fn the_program_and_files_it_is_given_come_along() {
        let folder = folder();
        let staged = |words: &[&str]| {
            let mut spec = JobSpec::command(words.iter().copied());
            stage_named_files(&mut spec, folder.path()).unwrap()
        };
        assert_eq!(
            staged(&["./sim", "in/data 1", "-v", "in", "/etc/passwd", "plain"]),
            ["sim", "in/data 1", "plain"]
        );
        assert_eq!(staged(&["python3", "plain", "plain"]), ["plain"]);
        assert_eq!(staged(&["/bin/sh"]), [""; 0]);
    }

    #[test]
    fn a_folder_that_is_staged_covers_its_files() {
        let folder = folder();
        let mut spec = JobSpec::command(["./sim", "in/data 1"]).stage_in(["in/"]);
        assert_eq!(stage_named_files(&mut spec, folder.path()).unwrap(), ["sim"]);
        assert_eq!(spec.stage_in, ["in/", "sim"]);
    }

    #[test]
    fn a_program_that_cannot_run_is_told_before_it_is_submitted() {
        let folder = folder();
        for (word, says) in [
            ("./plain", "chmod +x ./plain"),
            ("./absent", "cannot run ./absent: No such file"),
            ("./in", "is a folder"),
            ("../x/sim", "cannot run ../x/sim"),
        ] {
            let error = stage_named_files(&mut JobSpec::command([word]), folder.path()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
