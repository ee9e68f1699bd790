//! One dump or restore; started by the shim: see [`grid_checkpoint::engine`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use grid_checkpoint::engine;

fn main() -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    // The copy is all there is: an end that is dropped is an end that is closed. Its number stays taken.
    let replaced = File::open("/dev/null").and_then(|null| Ok(nix::unistd::dup2_stdin(null)?));
    let programs = std::env::current_exe();
    let (Ok(socket), Ok(()), Ok(programs)) = (socket, replaced, programs) else {
        eprintln!("gridos-criu: one checkpoint of a task, started by gridos-shim");
        return ExitCode::FAILURE;
    };
    let folder = programs.parent().unwrap_or(std::path::Path::new("/"));
    if engine::serve(socket, folder) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
