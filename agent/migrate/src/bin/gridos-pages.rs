//! Moves the memory of one task; started by the agent: see [`grid_migrate::program`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let copy = |stream: &dyn AsFd| stream.as_fd().try_clone_to_owned().map(UnixStream::from);
    let (control, pages) = (copy(&std::io::stdin()), copy(&std::io::stdout()));
    // The copies are all there is: an end that is dropped is an end that is closed. Their numbers stay taken.
    let replaced = File::options().read(true).write(true).open("/dev/null").and_then(|null| {
        nix::unistd::dup2_stdin(&null)?;
        Ok(nix::unistd::dup2_stdout(&null)?)
    });
    let is_socket = |socket: &UnixStream| socket.local_addr().is_ok();
    match (control, pages, replaced) {
        (Ok(control), Ok(pages), Ok(())) if is_socket(&control) && is_socket(&pages) => {
            if grid_migrate::program::serve(control, pages) {
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
