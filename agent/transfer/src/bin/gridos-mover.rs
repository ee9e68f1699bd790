//! One end of a transfer; started by the agent, see [`grid_transfer::mover`].
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use grid_transfer::mover;
use libgrid::user::User;

fn main() -> ExitCode {
    let user = std::env::args().nth(1).and_then(|user| user.parse::<User>().ok());
    let socket = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(UnixStream::from);
    let ends = (socket(std::io::stdin().as_fd()), socket(std::io::stdout().as_fd()));
    let (Some(user), (Ok(orders), Ok(control))) = (user, ends) else {
        eprintln!("gridos-mover: one end of a transfer, started by gridosd: see gridctl cp --help");
        return ExitCode::from(2);
    };
    // The copies are all there is: an end that is dropped is an end that is closed.
    nix::unistd::close(0).and_then(|()| nix::unistd::close(1)).ok();
    match mover::run(&user, &orders, &control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridos-mover: {error}");
            ExitCode::FAILURE
        }
    }
}
