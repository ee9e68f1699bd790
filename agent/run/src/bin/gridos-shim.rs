//! `gridos-shim`: keeps the tasks of one job (`serve`), or handles a task's files as the user whose they are
//! (`gather`, `pack`, `unpack`). The agent starts it; it is not meant to be started by hand.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use grid_run::shim::{self, Config};
use grid_run::spawn;
use libgrid::archive::{self, ArchiveError};
use libgrid::user::User;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let mode = args.next().unwrap_or_default();
    let first = args.next().map(PathBuf::from).unwrap_or_default();
    let done = match mode.to_str() {
        Some("serve") => {
            let cgroup_root = args.next().map(PathBuf::from).unwrap_or_default();
            let cgroup_parent = words(args).concat();
            let init = env::current_exe().unwrap_or_default().with_file_name("gridos-init");
            serve(Config { socket: first, cgroup_root, cgroup_parent, init }).map(|()| ExitCode::SUCCESS)
        }
        Some("pack") => enter(&first).and_then(|()| pack(&folder(&mut args), &words(args))),
        Some("gather") => enter(&first).and_then(|()| {
            let folder = folder(&mut args);
            match archive::pack_paths(&folder, &words(args), io::stdout().lock()) {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(absent @ ArchiveError::Absent { .. }) => {
                    eprintln!("{absent}");
                    Ok(ExitCode::from(spawn::MISSED))
                }
                Err(error) => Err(error.to_string()),
            }
        }),
        Some("unpack") => enter(&first).and_then(|()| {
            let folder = folder(&mut args);
            let unpacked = archive::unpack(&folder, &words(args), io::stdin().lock());
            unpacked.map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string())
        }),
        _ => Err("gridos-shim is started by gridosd, not by hand: see gridctl --help".into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

/// Becomes the user that the agent named, before anything else is done.
fn enter(user: &Path) -> Result<(), String> {
    let user: User = user.to_string_lossy().parse().map_err(|error| format!("no user to become: {error}"))?;
    user.enter().map_err(|error| format!("cannot become user {}: {error}", user.uid))
}

fn folder(args: &mut impl Iterator<Item = OsString>) -> PathBuf {
    args.next().map(PathBuf::from).unwrap_or_default()
}

fn words(args: impl Iterator<Item = OsString>) -> Vec<String> {
    args.map(|word| word.to_string_lossy().into_owned()).collect()
}

fn serve(config: Config) -> Result<(), String> {
    let agent = shim::agent_on_stdin().map_err(|error| format!("no connection to the agent: {error}"))?;
    shim::serve(config, agent).map_err(|error| error.to_string())
}

fn pack(base: &Path, patterns: &[String]) -> Result<ExitCode, String> {
    let packed = archive::pack_matching(base, patterns, io::stdout().lock());
    let missed = packed.map_err(|error| error.to_string())?.sentence();
    Ok(missed.map_or(ExitCode::SUCCESS, |missed| {
        eprintln!("{missed}");
        ExitCode::from(spawn::MISSED)
    }))
}
