//! Bad input to the agent's doors, and a full disk: one clear sentence at most, and the agent goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;

use grid_tests::{Grid, GridConfig, NOBODY, PATIENCE, SmallDisk, until, with};
use libgrid::blocking;
use libgrid::control::{Chunk, Failure, Kind, NodeState, Reply, Request, Response, Submission};
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};
use libgrid::wire::{self, Hello, VERSION, WireError};

fn small(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(16 << 20))
}

/// Bytes without any order, the same in every run (xorshift64, Marsaglia 2003).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn connect(grid: &Grid) -> UnixStream {
    let stream = UnixStream::connect(grid.machine(1).control_socket()).unwrap();
    // An answer that never comes fails the test.
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn greeted(grid: &Grid) -> UnixStream {
    let mut stream = connect(grid);
    Hello::ours().write(&mut stream).unwrap();
    Hello::read(&mut stream).unwrap().check().unwrap();
    stream
}

/// What the agent still sends, until it closes the connection.
fn rest(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        // It closed with bytes of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the agent does not close the connection: {error}"),
    }
}

/// Does the body while a client waits for a job that runs: neither it, nor the agent, nor the job is to notice.
fn undisturbed(grid: &Grid, body: impl FnOnce()) {
    let agents = grid.agents();
    let witness = grid.witness("undisturbed");
    let job = grid.submit(1, small(&witness.script(&witness.awaiting("end"))));
    grid.until_running(1, job);
    let mut old = grid.client(1);
    let waiting = grid.start(1, ["wait", &job.to_string()]);
    body();
    assert!(matches!(old.ask(&Request::Agent), Ok(Reply::Agent(_))), "an old connection was lost");
    assert!(matches!(grid.client(1).ask(&Request::Nodes), Ok(Reply::Nodes(_))), "a new one is not served");
    witness.raise("end");
    assert_eq!(waiting.wait().status, 0);
    witness.ran_once(0);
    assert_eq!(grid.agents(), agents, "an agent was restarted");
}

#[test]
fn nonsense_on_the_control_socket_disturbs_nobody() {
    with(
        "nonsense_on_the_control_socket_disturbs_nobody",
        || Grid::up("nonsense", 1),
        |grid| {
            undisturbed(grid, || {
                // No greeting at all.
                for (seed, len) in [(1, 1), (2, 7), (3, 8), (4, 9), (5, 4096), (6, 1 << 20)] {
                    let stream = connect(grid);
                    // The agent may close before it has read all of it.
                    let _ = (&stream).write_all(&noise(seed, len));
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    assert!(rest(&stream).len() <= 8, "more than a greeting came back");
                }
                let stream = connect(grid);
                (&stream).write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                rest(&stream);
                // A later version is told ours, and nothing of it is decoded.
                let mut stream = connect(grid);
                Hello { version: VERSION + 1 }.write(&mut stream).unwrap();
                assert_eq!(Hello::read(&mut stream).unwrap(), Hello::ours());
                let _ = wire::write(&mut stream, &Request::Agent);
                assert_eq!(rest(&stream), b"", "a later version got an answer");
                // And a program of ours says what to do about an agent of another version.
                let told = Hello { version: VERSION + 1 }.check().unwrap_err().to_string();
                assert!(told.contains("install the same release"), "{told}");
                // A frame that is too long.
                let mut stream = greeted(grid);
                stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
                refusal(&mut stream, "over the limit");
                // Frames of nonsense.
                for seed in 0..200 {
                    let mut stream = greeted(grid);
                    let body = noise(seed, 1 + seed as usize * 3);
                    stream.write_all(&(body.len() as u32).to_le_bytes()).unwrap();
                    stream.write_all(&body).unwrap();
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    // Some nonsense is a request: any answer is fine, if only there is an end.
                    rest(&stream);
                }
                let mut stream = greeted(grid);
                stream.write_all(&[9, 0, 0, 0]).unwrap();
                stream.write_all(&[0xff; 9]).unwrap();
                refusal(&mut stream, "could not be understood");
                // A request with bytes left over.
                let mut stream = greeted(grid);
                let mut bytes = wire::encode(&Request::Agent).unwrap();
                bytes.push(0);
                stream.write_all(&(bytes.len() as u32).to_le_bytes()).unwrap();
                stream.write_all(&bytes).unwrap();
                refusal(&mut stream, "bytes too many");
                // Frames that end early.
                let frame = wire::frame(&Request::CreateVo { name: "x".repeat(40) }).unwrap();
                for len in 1..frame.len() {
                    let mut stream = greeted(grid);
                    stream.write_all(&frame[..len]).unwrap();
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    assert_eq!(rest(&stream), b"", "half a frame got an answer");
                }
            });
        },
    );
}

#[test]
fn a_user_who_holds_many_connections_keeps_nobody_else_out() {
    with(
        "a_user_who_holds_many_connections_keeps_nobody_else_out",
        || Grid::up("many", 1),
        |grid| {
            let gridctl = grid.lend("gridctl").display().to_string();
            let socket = grid.machine(1).control_socket().display().to_string();
            let go = grid.dir().join("go");
            let script = format!(
                "import os, socket, subprocess, time\n\
                 held, end = [], time.time() + 90\n\
                 def hold():\n    \
                     held.append(socket.socket(socket.AF_UNIX))\n    \
                     held[-1].connect({socket:?})\n\
                 for _ in range(300): hold()\n\
                 print(subprocess.run([{gridctl:?}, 'nodes'], capture_output=True, text=True).stderr, flush=True)\n\
                 while time.time() < end and not os.path.exists({:?}):\n    \
                     hold()\n    \
                     time.sleep(0.05)\n",
                go.display().to_string()
            );
            let folder = grid.folder("theirs", NOBODY);
            std::thread::scope(|scope| {
                let theirs =
                    scope.spawn(|| grid.run_as(1, NOBODY, Path::new("/usr/bin/python3"), &["-c", &script]));
                until("they are kept out", || grid.gridctl_as(1, NOBODY, &folder, ["nodes"]).status != 0);
                for uid in [0, NOBODY - 1] {
                    grid.gridctl_as(1, uid, &folder, ["nodes"]).ok();
                }
                fs::write(&go, "").unwrap();
                let told = theirs.join().unwrap();
                assert!(told.ok().contains("you have 256 connections to this agent open"), "{told:?}");
            });
            until("they are let in again", || grid.gridctl_as(1, NOBODY, &folder, ["nodes"]).status == 0);
        },
    );
}

/// The agent answers with a failure that says this, and closes the connection.
fn refusal(stream: &mut UnixStream, says: &str) {
    match wire::read::<Response>(stream).unwrap() {
        Err(Failure { kind: Kind::Invalid, message }) => assert!(message.contains(says), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(rest(stream), b"");
}

#[test]
fn an_upload_that_stops_leaves_nothing_behind() {
    with(
        "an_upload_that_stops_leaves_nothing_behind",
        || Grid::up("upload", 1),
        |grid| {
            undisturbed(grid, || {
                let spool = grid.machine(1).dir().join("state/spool");
                let files = || fs::read_dir(&spool).unwrap().count();
                let submission =
                    Submission { upload: true, ..Submission::new(small("true").stage_in(["x"]), grid.dir()) };
                let jobs =
                    || grid.gridctl(1, ["ps", "--all", "--json"]).json()["jobs"].as_array().unwrap().len();
                let before = jobs();
                for cut in [0, 3, 1000] {
                    let mut stream = greeted(grid);
                    wire::write(&mut stream, &Request::Submit(Box::new(submission.clone()))).unwrap();
                    wire::write(&mut stream, &Chunk(noise(1, 200_000))).unwrap();
                    until("the upload has begun", || files() == 1);
                    let frame = wire::frame(&Chunk(noise(2, 2000))).unwrap();
                    stream.write_all(&frame[..cut]).unwrap();
                    drop(stream);
                    until("the spool is empty", || files() == 0);
                }
                // Chunks that are nonsense, and one that is too long.
                let mut stream = greeted(grid);
                wire::write(&mut stream, &Request::Submit(Box::new(submission.clone()))).unwrap();
                stream.write_all(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).unwrap();
                rest(&stream);
                until("the spool is empty", || files() == 0);
                assert_eq!(jobs(), before, "half an upload became a job");
                // An archive that is none is a job that cannot start, and says so.
                let job = grid
                    .client(1)
                    .submit_with(submission, |to| to.write_all(&noise(3, 100_000)))
                    .unwrap()
                    .job;
                let status = grid.wait(1, job);
                let said = status.tasks[0].outcome.as_ref().unwrap().to_string();
                assert!(said.starts_with("not started: the inputs cannot be put in place: "), "{said}");
            });
        },
    );
}

#[test]
fn two_hundred_connections_keep_nobody_out() {
    with(
        "two_hundred_connections_keep_nobody_out",
        || Grid::up("many", 1),
        |grid| {
            undisturbed(grid, || {
                let silent: Vec<_> = (0..100).map(|_| connect(grid)).collect();
                let idle: Vec<_> = (0..100).map(|_| greeted(grid)).collect();
                let mut busy: Vec<_> = (0..50).map(|_| grid.client(1)).collect();
                for client in &mut busy {
                    for _ in 0..20 {
                        client.send(&Request::Nodes).unwrap();
                    }
                }
                for client in &mut busy {
                    for _ in 0..20 {
                        assert!(matches!(client.receive(), Ok(Reply::Nodes(_))));
                    }
                }
                drop((silent, idle));
            });
        },
    );
}

#[test]
fn random_datagrams_disturb_no_node() {
    with(
        "random_datagrams_disturb_no_node",
        || Grid::up("datagrams", 2),
        |grid| {
            undisturbed(grid, || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for seed in 0..2000_u64 {
                    let mut bytes = noise(seed, (seed % 1400) as usize);
                    // Some look like the first packet of QUIC version 1 (RFC 9000, 17.2.2).
                    if seed % 3 == 0 && bytes.len() > 20 {
                        bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
                        bytes.resize(1200, 0);
                    }
                    for index in 1..=2 {
                        // A full buffer drops some: there are more.
                        let _ = socket.send_to(&bytes, (grid.machine(index).addr(), 7411));
                    }
                }
                let job = grid.submit(2, JobSpec { nodes: vec!["node1".into()], ..small("echo still here") });
                assert!(grid.wait(2, job).summary.succeeded());
                assert_eq!(grid.logs(1, job, 0), "still here\n");
                for index in 1..=2 {
                    assert!(grid.nodes_at(index).iter().all(|node| node.state != NodeState::Down));
                }
            });
        },
    );
}

fn stage(grid: &Grid, index: u32, folder: &Path, node: &str, file: &str) -> grid_tests::Run {
    let size = format!("wc -c < {file}");
    let args = ["submit", "--cpus", "0.1", "--stage-in", file, "--node", node, "--", "sh", "-c", &size];
    grid.gridctl_as(index, 0, folder, args)
}

#[test]
fn a_full_disk_is_told_in_one_sentence_and_outlived() {
    let make = || GridConfig { members: 0, ..GridConfig::new("disk", 2) }.up();
    with("a_full_disk_is_told_in_one_sentence_and_outlived", make, |grid| {
        let disk = SmallDisk::below(grid, 2, "64M");
        grid.enter(2);
        let agents = grid.agents();
        let folder = grid.folder("work", 0);
        fs::write(folder.join("large"), vec![7; 80 << 20]).unwrap();
        fs::write(folder.join("little"), vec![7; 1 << 10]).unwrap();
        let works = |when: &str| {
            for (from, to) in [(1, "node2"), (2, "node2"), (2, "node1")] {
                let job = stage(grid, from, &folder, to, "little");
                let status = grid.wait(from, job.ok().parse().unwrap());
                assert!(
                    status.summary.succeeded(),
                    "{when}, from {from} to {to}: {:?}",
                    status.tasks[0].outcome
                );
            }
        };
        works("before");
        // Inputs that do not fit where the task is to run.
        let job = stage(grid, 1, &folder, "node2", "large");
        let status = grid.wait(1, job.ok().parse().unwrap());
        let said = status.tasks[0].outcome.as_ref().unwrap().to_string();
        assert!(
            said.contains("the inputs cannot be put in place") && said.contains("No space left on device"),
            "{said}"
        );
        assert!(said.contains("/var/lib/gridos") && !said.contains('\n'), "{said}");
        works("after inputs that did not fit");
        // Inputs that do not fit into the spool where they are submitted.
        stage(grid, 2, &folder, "node1", "large").says(&[
            "the inputs cannot be kept",
            "/var/lib/gridos",
            "No space left on device",
        ]);
        works("after a spool that was full");
        // A pipe that holds more than there is room for, but for the records of jobs.
        grid.gridctl(2, ["pipe", "create", "large", "--spill", "1G"]).ok();
        let large = fs::read(folder.join("large")).unwrap();
        grid.gridctl_with(2, &large, ["pipe", "write", "large"])
            .says(&["No space left on device", "make room in the state folder"]);
        grid.gridctl(2, ["pipe", "rm", "large"]).ok();
        works("after a pipe that was full");
        // No room to speak of: new jobs are refused at once, those that run go on.
        let witness = grid.witness("witness");
        let running = grid.submit(
            2,
            JobSpec { nodes: vec!["node2".into()], ..small(&witness.script(&witness.awaiting("end"))) },
        );
        grid.until_running(2, running);
        disk.fill(4 << 20);
        grid.gridctl(2, ["submit", "--", "true"]).says(&["are free below /var/lib/gridos: make room there"]);
        disk.empty();
        // A task that fills its working directory hurts itself. What it writes to this disk is memory, too.
        let glutton = grid.submit(
            1,
            JobSpec {
                nodes: vec!["node2".into()],
                ..small("dd if=/dev/zero of=file bs=1M").memory(Bytes(256 << 20))
            },
        );
        let status = grid.wait(1, glutton);
        assert_eq!(status.summary.exit_status, Some(1), "{:?}", status.tasks[0].outcome);
        witness.raise("end");
        assert!(grid.wait(2, running).summary.succeeded());
        witness.ran_once(0);
        works("after a task that filled the disk");
        // Nothing fits at all, not even a record: the agent waits, and goes on when there is room.
        let held =
            grid.submit(2, JobSpec { nodes: vec!["node2".into()], ..small(&witness.awaiting("again")) });
        grid.until_running(2, held);
        disk.fill(0);
        witness.raise("again");
        let late = grid.submit(1, JobSpec { nodes: vec!["node2".into()], ..small("true") });
        until("somebody noticed", || grid.try_job(1, late).is_some());
        disk.empty();
        assert!(grid.wait(2, held).summary.succeeded());
        grid.wait(1, late);
        works("after the disk was full to the last byte");
        assert_eq!(grid.agents(), agents, "an agent was restarted");
    });
}

#[test]
fn an_agent_of_another_version_is_told_with_what_to_do() {
    with(
        "an_agent_of_another_version_is_told",
        || (),
        |()| {
            let folder = tempfile::tempdir_in("/var/tmp").unwrap();
            let path = folder.path().join("control.sock");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let agent = std::thread::spawn(move || {
                let (mut client, _) = listener.accept().unwrap();
                Hello { version: VERSION + 7 }.write(&mut client).unwrap();
                Hello::read(&mut client).unwrap()
            });
            let error = blocking::Grid::connect_to(&path).unwrap_err();
            assert!(
                matches!(error, libgrid::GridError::Wire(WireError::Version { theirs }) if theirs == VERSION + 7)
            );
            assert!(error.to_string().contains("install the same release of GridOS on both"), "{error}");
            agent.join().unwrap();
        },
    );
}
