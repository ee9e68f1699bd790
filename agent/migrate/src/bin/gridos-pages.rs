//! Moves the memory of one task; started by the agent: see [`grid_migrate::program`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let control = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    // The copy is all there is: an end that is dropped is an end that is closed. Its number stays taken.
    let replaced = File::open("/dev/null").and_then(|null| Ok(nix::unistd::dup2_stdin(&null)?));
    match (control, replaced) {
        (Ok(control), Ok(())) if control.local_addr().is_ok() => {
            if grid_migrate::program::serve(&control) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        _ => {
            eprintln!("gridos-pages: the memory of one task that moves, started by gridosd");
            ExitCode::FAILURE
        }
    }
}
