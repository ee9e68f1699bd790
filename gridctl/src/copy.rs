//! Files between nodes: copying, listing, lending.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use libgrid::GridError;
use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request};
use libgrid::copy::{Copy, Export, Moment, Options, Place, Progress};
use libgrid::units::Bytes;

use crate::args::{CopyOptions, ExportArgs};
use crate::{Done, show};

impl CopyOptions {
    fn options(&self) -> anyhow::Result<Options> {
        let streams = match self.streams.as_str() {
            "auto" => None,
            number => {
                Some(number.parse().ok().filter(|streams| (1..=64).contains(streams)).with_context(|| {
                    format!("--streams {number:?} is no number from 1 to 64, and not auto")
                })?)
            }
        };
        Ok(Options {
            checksums: !self.no_checksum,
            encrypt: self.encrypt,
            fsync: self.fsync || self.verify,
            verify: self.verify,
            fresh: self.fresh,
            limit: self.limit,
            streams,
            buffer: self.buffer,
            congestion: self.congestion.clone(),
        })
    }
}

pub(crate) fn cp(grid: &Grid, paths: &[String], recursive: bool, options: &CopyOptions, json: bool) -> Done {
    let (target, sources) = paths.split_last().context("there is nothing to copy")?;
    copy(grid, sources, target, recursive, options, json)
}

pub(crate) fn put(grid: &Grid, paths: &[String], options: &CopyOptions, json: bool) -> Done {
    let (target, sources) = paths.split_last().context("there is nothing to copy")?;
    if matches!(target.parse()?, Place::Here(_)) {
        bail!("{target} is on this machine: put copies to NODE:/PATH or grid:/PATH");
    }
    copy(grid, sources, target, true, options, json)
}

pub(crate) fn get(grid: &Grid, sources: &[String], target: &str, options: &CopyOptions, json: bool) -> Done {
    if let Some(here) = sources.iter().find(|source| matches!(source.parse(), Ok(Place::Here(_)))) {
        bail!("{here} is on this machine: get copies from NODE:/PATH or grid:/PATH");
    }
    copy(grid, sources, target, true, options, json)
}

fn copy(
    grid: &Grid,
    sources: &[String],
    target: &str,
    recursive: bool,
    options: &CopyOptions,
    json: bool,
) -> Done {
    if sources.is_empty() {
        bail!("a source and a target are needed: gridctl cp SOURCE... TARGET");
    }
    let sources = sources.iter().map(|source| place(source)).collect::<anyhow::Result<Vec<_>>>()?;
    let copy = Copy { recursive, options: options.options()?, ..Copy::new(sources, place(target)?) };
    let bar = bar();
    let mut told = String::new();
    let landed = grid.copy(&copy, |moment| match moment {
        Moment::Progress(progress) => advance(&bar, progress),
        Moment::Interrupted(why) => {
            bar.set_message(format!("waiting: {why}"));
            if !std::io::stderr().is_terminal() && told != why {
                eprintln!("gridctl: {why}; trying again until nothing has come for ten minutes");
                why.clone_into(&mut told);
            }
        }
    });
    bar.finish_and_clear();
    let landed = landed?;
    if json {
        return show::json(&landed);
    }
    if !std::io::stdout().is_terminal() {
        return Ok(ExitCode::SUCCESS);
    }
    let there = match landed.skipped {
        0 => String::new(),
        skipped => format!(", {skipped} were there already"),
    };
    show::text(format!(
        "{} in {} items to {}{there}",
        Bytes(landed.bytes),
        landed.items,
        landed.path.display()
    ))
}

/// A place with an absolute path.
fn place(text: &str) -> anyhow::Result<Place> {
    Ok(match text.parse()? {
        Place::Here(path) => Place::Here(absolute(&path)?),
        other => other,
    })
}

/// From `/` on, without `.` and `..`, and with the slash at its end if there was one.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    use std::path::Component;
    let base = std::env::current_dir().context("the current folder is gone: change to another")?;
    let whole = base.join(path);
    let mut plain = PathBuf::from("/");
    for part in whole.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => _ = plain.pop(),
            _ => (),
        }
    }
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"." || bytes.ends_with(b"..") {
        plain.push("");
    }
    Ok(plain)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn advance(bar: &ProgressBar, progress: &Progress) {
    let template = match progress.whole {
        true => "{bytes}/{total_bytes} {bar:30} {binary_bytes_per_sec}, {eta} left {msg}",
        false => "{bytes} {spinner} {binary_bytes_per_sec} {msg}",
    };
    // The template is ours, and right.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_length(progress.of_bytes);
    bar.set_position(progress.bytes);
    bar.set_message(match progress.streams {
        0 | 1 => String::new(),
        streams => format!("({streams} streams)"),
    });
}

pub(crate) fn ls(grid: &mut Grid, text: &str, long: bool, json: bool) -> Done {
    match grid.ask(&Request::List { place: place(text)? })? {
        Reply::Listing { entries, .. } if json => show::json(&entries),
        Reply::Listing { entries, more } => {
            show::text(show::entries(&entries, long))?;
            if more {
                eprintln!("gridctl: there are more entries than are shown");
            }
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(GridError::Unexpected.into()),
    }
}

pub(crate) fn export(grid: &mut Grid, args: ExportArgs, json: bool) -> Done {
    let path = absolute(&args.path)?;
    let export = Export { path, write: args.write, user: args.user.unwrap_or_default(), grid: args.grid };
    done(grid, &Request::Export(export), json)
}

pub(crate) fn unexport(grid: &mut Grid, path: &Path, json: bool) -> Done {
    done(grid, &Request::Unexport { path: absolute(path)? }, json)
}

fn done(grid: &mut Grid, request: &Request, json: bool) -> Done {
    match grid.ask(request)? {
        Reply::Done if json => show::json(&"done"),
        Reply::Done => Ok(ExitCode::SUCCESS),
        _ => Err(GridError::Unexpected.into()),
    }
}

pub(crate) fn exports(grid: &mut Grid, everywhere: bool, json: bool) -> Done {
    match grid.ask(&Request::Exports { everywhere })? {
        Reply::Exports { exports, .. } if json => show::json(&exports),
        Reply::Exports { exports, silent } => {
            show::text(show::exports(&exports))?;
            for node in silent {
                eprintln!("gridctl: node {node} did not answer; what it lends is missing here");
            }
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(GridError::Unexpected.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_keep_their_slash() {
        let base = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("a/../b")).unwrap(), base.join("b"));
        assert_eq!(absolute(Path::new("/x/./y/")).unwrap().as_os_str(), "/x/y/");
        let here = absolute(Path::new(".")).unwrap();
        assert!(here.as_os_str().as_encoded_bytes().ends_with(b"/"));
        assert!(matches!(place("node1:/x/").unwrap(), Place::Node { .. }));
    }
}
