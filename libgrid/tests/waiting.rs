//! What waiting does with its connections, seen by an agent.

#[expect(dead_code, reason = "one of them is enough here")]
mod samples;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use libgrid::blocking::Grid;
use libgrid::control::{Reply, Request, Response};
use libgrid::ids::JobId;
use libgrid::status::JobStatus;
use libgrid::wire::{self, Hello, WireError};

fn job() -> JobId {
    JobId::from_u64(1 << 32 | 1)
}

/// It is done.
fn done() -> JobStatus {
    let mut status = samples::status();
    status.summary.counts = libgrid::status::Counts::default();
    assert!(status.summary.is_done());
    status
}

/// An agent to whom every job is done. It tells of each connection, and ends one after so many answers.
fn agent(listener: UnixListener, answers: usize) -> Receiver<()> {
    let (sender, connections) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The test may be over.
            let _ = sender.send(());
            thread::spawn(move || serve(&stream, answers));
        }
    });
    connections
}

fn serve(mut stream: &UnixStream, answers: usize) -> Result<(), WireError> {
    Hello::read(&mut stream)?.check()?;
    Hello::ours().write(&mut stream)?;
    for _ in 0..answers {
        assert!(matches!(wire::read(&mut stream)?, Request::Wait { .. }));
        wire::write(&mut stream, &Response::Ok(Reply::Job(Box::new(done()))))?;
    }
    Ok(())
}

#[test]
fn who_waits_again_takes_the_same_connection() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let connections = agent(UnixListener::bind(&socket).unwrap(), usize::MAX);
    let grid = Grid::connect_to(&socket).unwrap();
    for _ in 0..5 {
        assert!(grid.wait(job()).unwrap().is_done());
    }
    assert_eq!(connections.try_iter().count(), 2, "one for requests, one for waiting");
}

#[test]
fn a_connection_that_the_agent_ends_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let connections = agent(UnixListener::bind(&socket).unwrap(), 1);
    let grid = Grid::connect_to(&socket).unwrap();
    for _ in 0..5 {
        assert!(grid.wait(job()).unwrap().is_done());
    }
    assert_eq!(connections.try_iter().count(), 6, "one for requests, five for waiting");
}
