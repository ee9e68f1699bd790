//! One fixed value of everything that crosses the control socket.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use libgrid::comm::{FromAgent, Refusal, ToAgent};
use libgrid::control::{
    AgentInfo, Certificate, Chunk, Failure, Finding, Input, Kind, NodeState, NodeStatus, Reply, Request,
    Response, Stdin, Stream, Streams, Submission, Submitted, Verdict,
};
use libgrid::copy::{Copy, Entry, EntryKind, Export, ExportOf, Landed, Options, Place, Progress};
use libgrid::ids::{Gpid, JobId, NodeId, Run, Selector};
use libgrid::node::{NodeInfo, Resources, Tier};
use libgrid::pipe::{FromReader, FromWriter, Part, PipeName, PipeReply, PipeRequest, PipeSpec, PipeStatus};
use libgrid::process::{Connection, Process, Traffic};
use libgrid::spec::{Checkpoints, JobSpec, Net};
use libgrid::status::{
    Checkpoint, Counts, JobStatus, JobSummary, MoveMode, MovePhase, Moved, Obstacle, Outcome,
    TaskCheckpoints, TaskState, TaskStatus, Usage,
};
use libgrid::units::{Bytes, Cpus, Span};

/// A job that sets every field to something that is not its default.
pub(crate) fn spec() -> JobSpec {
    JobSpec {
        name: Some("frames".into()),
        command: vec!["./frame".into(), "{index}".into()],
        env: [("QUALITY".into(), "high".into()), ("TONE".into(), "ä".into())].into(),
        cpus: Cpus::from_milli(1500),
        memory: Bytes(1 << 30),
        time: Some(Span(Duration::from_secs(600))),
        pids: 64,
        array: "10-19%4".parse().ok(),
        stage_in: vec!["in/".into()],
        stage_out: vec!["out/*.png".into(), "log".into()],
        restart: false,
        log_limit: Bytes(1 << 20),
        nodes: vec!["node2".into(), "3".into()],
        checkpoint: Checkpoints::Every(Span(Duration::from_secs(300))),
        net: Net::Grid,
        pipes: ["node2:numbers:r", "out:w"].iter().filter_map(|text| text.parse().ok()).collect(),
        system_call: true,
        after: ["j1.2", "j2.1:failed", "j2.2:any"].iter().filter_map(|text| text.parse().ok()).collect(),
        hold: true,
    }
}

/// The smallest job.
pub(crate) fn plain() -> JobSpec {
    JobSpec::command(["/bin/true"])
}

pub(crate) fn job() -> JobId {
    JobId { home: NodeId(2), serial: 7 }
}

fn at(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

/// A copy that sets every field to something that is not its default.
fn copy() -> Copy {
    Copy {
        sources: vec![
            Place::Here("/a b".into()),
            Place::Node { node: "node3".into(), path: "/data/*.h5".into() },
        ],
        target: Place::Grid("/physics/".into()),
        recursive: true,
        options: Options {
            checksums: false,
            encrypt: true,
            fsync: true,
            verify: true,
            fresh: true,
            limit: Some(Bytes(50 << 20)),
            streams: Some(8),
            buffer: Some(Bytes(8 << 20)),
            congestion: Some("cubic".into()),
        },
    }
}

fn checkpoints() -> TaskCheckpoints {
    let checkpoint = |number, interval| Checkpoint {
        number,
        made: at(1_700_000_000),
        bytes: 1 << 30,
        cost: Duration::from_millis(1500),
        interval,
        node: NodeId(3),
    };
    TaskCheckpoints {
        task: job().task(3),
        checkpoints: vec![checkpoint(7, Some(Duration::from_secs(300))), checkpoint(300, None)],
        trouble: Some("no room".into()),
    }
}

fn export() -> Export {
    Export { path: "/data".into(), write: true, user: "ann".into(), grid: Some("/physics".into()) }
}

fn entries() -> Vec<Entry> {
    let kinds = [EntryKind::File, EntryKind::Folder, EntryKind::Link, EntryKind::Other];
    let entry = |kind| Entry { name: "ä".into(), kind, size: 300, mode: 0o644, modified: -1 };
    kinds.into_iter().map(entry).collect()
}

/// Every request, with the name of its variant.
pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let submission = |input| Submission { upload: true, input, ..Submission::new(spec(), "/home/ann") };
    let whole = Selector::Job(job());
    let part = Selector::Task(job().task(3));
    let requests = vec![
        Request::Agent,
        Request::CreateVo { name: "lab".into() },
        Request::CreateToken { lifetime: Span(Duration::from_secs(86_400)) },
        Request::Join { token: "grid1-abc".into() },
        Request::Revoke { node: "node3".into() },
        Request::Nodes,
        Request::Doctor,
        Request::Submit(Box::new(Submission::new(plain(), "/"))),
        Request::Submit(Box::new(submission(Some(Stdin::Pipe)))),
        Request::Submit(Box::new(submission(Some(Stdin::Terminal { rows: 24, cols: 80 })))),
        Request::Jobs { everywhere: true, done: false, at: None },
        Request::Jobs { everywhere: false, done: true, at: Some(NodeId(3)) },
        Request::Job { job: whole, from: 1000 },
        Request::Wait { job: part },
        Request::Logs { task: job().task(3), streams: Streams::Stdout, from: [0; 2], follow: false },
        Request::Logs { task: job().task(3), streams: Streams::Stderr, from: [0, 7], follow: false },
        Request::Logs { task: job().task(3), streams: Streams::Both, from: [300, 0], follow: true },
        Request::Hold { job: job(), undo: false },
        Request::Hold { job: job(), undo: true },
        Request::Kill { job: whole, signal: 15 },
        Request::Input { task: job().task(0) },
        Request::Copy(Box::new(copy())),
        Request::Copy(Box::new(Copy::new([Place::Here("/a".into())], Place::Here("/b/".into())))),
        Request::List { place: Place::Node { node: "3".into(), path: "/data".into() } },
        Request::Export(export()),
        Request::Unexport { path: "/data".into() },
        Request::Certify,
        Request::Exports { everywhere: true },
        Request::Checkpoint { task: job().task(3) },
        Request::Checkpoints { task: job().task(3) },
        Request::Restore { task: job().task(3), from: Some(7) },
        Request::Restore { task: job().task(0), from: None },
        Request::Migrate {
            task: job().task(3),
            to: Some("node3".into()),
            mode: MoveMode::StopAndCopy,
            check: true,
        },
        Request::Migrate { task: job().task(0), to: None, mode: MoveMode::Auto, check: false },
        Request::Migrate { task: job().task(0), to: None, mode: MoveMode::PreCopy, check: false },
        Request::Drain { node: "node2".into(), undo: false, mode: MoveMode::Auto },
        Request::Operate { op: 256, input: b"help".to_vec() },
        Request::Processes { of: Some(Selector::Job(job())), everywhere: true },
        Request::Find { process: gpid() },
        Request::Signal { task: job().task(3), process: gpid(), signal: 10 },
        Request::Pipe(PipeRequest::Create(pipe())),
        Request::Pipe(PipeRequest::List { everywhere: true }),
        Request::Pipe(PipeRequest::Remove(pipe_name())),
        Request::Pipe(PipeRequest::Read(pipe_name())),
        Request::Pipe(PipeRequest::Write(PipeName { node: None, ..pipe_name() })),
        Request::Pipe(PipeRequest::ReadFor {
            pipe: pipe_name(),
            run: Run { task: job().task(3), epoch: 2 },
            has: Some(Part { at: 9, len: 300 }),
            began: true,
        }),
        Request::Pipe(PipeRequest::WriteFor {
            pipe: pipe_name(),
            run: Run { task: job().task(3), epoch: 2 },
            next: 3,
        }),
    ];
    let name = |request: &Request| match request {
        // A new variant does not compile until it has a name here; give it a value above, too.
        Request::Agent => "agent",
        Request::CreateVo { .. } => "create-vo",
        Request::CreateToken { .. } => "create-token",
        Request::Join { .. } => "join",
        Request::Revoke { .. } => "revoke",
        Request::Nodes => "nodes",
        Request::Hold { .. } => "hold",
        Request::Doctor => "doctor",
        Request::Submit(_) => "submit",
        Request::Jobs { .. } => "jobs",
        Request::Job { .. } => "job",
        Request::Wait { .. } => "wait",
        Request::Logs { .. } => "logs",
        Request::Kill { .. } => "kill",
        Request::Input { .. } => "input",
        Request::Copy(_) => "copy",
        Request::List { .. } => "list",
        Request::Export(_) => "export",
        Request::Unexport { .. } => "unexport",
        Request::Certify => "certify",
        Request::Exports { .. } => "exports",
        Request::Checkpoint { .. } => "checkpoint",
        Request::Checkpoints { .. } => "checkpoints",
        Request::Restore { .. } => "restore",
        Request::Migrate { .. } => "migrate",
        Request::Drain { .. } => "drain",
        Request::Operate { .. } => "operate",
        Request::Processes { .. } => "processes",
        Request::Find { .. } => "find",
        Request::Signal { .. } => "signal",
        Request::Pipe(_) => "pipe",
    };
    requests.into_iter().map(|request| (name(&request), request)).collect()
}

fn gpid() -> Gpid {
    Gpid { node: NodeId(12), serial: 5031 }
}

fn pipe() -> PipeSpec {
    PipeSpec {
        capacity: Bytes(1 << 21),
        spill: Some(Bytes(1 << 30)),
        shared: true,
        ..PipeSpec::new("frames")
    }
}

fn pipe_name() -> PipeName {
    PipeName { node: Some("node2".into()), name: "frames".into() }
}

fn process() -> Process {
    Process {
        gpid: gpid(),
        parent: Some(Gpid { node: NodeId(2), serial: 7 }),
        task: job().task(3),
        node: NodeId(2),
        pid: 4,
        name: "sh".into(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        cpu: Duration::from_millis(1500),
        waited: Duration::from_micros(3),
        minor_faults: 200,
        major_faults: 1,
        voluntary_switches: 30,
        involuntary_switches: 2,
        threads: 3,
        memory: 4 << 20,
        sent: 70_000,
        received: 300,
        connections: vec![Connection {
            local: SocketAddr::from(([100, 64, 8, 1], 7000)),
            remote: SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 2], 40_000)),
            sent: 70_000,
            received: 300,
            segments_sent: 50,
            segments_received: 40,
            retransmitted: 2,
            round_trip: Duration::from_micros(80),
            window: 10,
        }],
        traffic: vec![Traffic {
            remote: IpAddr::from([100, 64, 8, 2]),
            node: Some(NodeId(3)),
            sent: 73_000,
            sent_packets: 50,
            received: 2_300,
            received_packets: 40,
        }],
    }
}

/// Every reply and every kind of failure, with a name.
pub(crate) fn responses() -> Vec<(&'static str, Response)> {
    let agent = |vo: Option<&str>, node, ends| AgentInfo {
        version: "0.1.0".into(),
        pid: 300,
        vo: vo.map(Into::into),
        node,
        authority: node.is_some(),
        certificate_ends: ends,
    };
    let replies = vec![
        Reply::Done,
        Reply::Agent(agent(None, None, None)),
        Reply::Agent(agent(Some("lab"), Some(NodeId(1)), Some(1_800_000_000))),
        Reply::Token("grid1-abc".into()),
        Reply::Nodes(nodes()),
        Reply::Doctor(
            [Verdict::Good, Verdict::Missing, Verdict::Bad]
                .map(|verdict| Finding { subject: "disk".into(), verdict, text: "12G free".into() })
                .into(),
        ),
        Reply::Submitted(Submitted { job: job(), waits: None }),
        Reply::Submitted(Submitted { job: job(), waits: Some("needs 9 cores".into()) }),
        Reply::Jobs { jobs: vec![summary()], silent: vec![NodeId(9)] },
        Reply::Job(Box::new(status())),
        Reply::Signalled(3),
        Reply::Output { stream: Stream::Stdout, offset: 1 << 33, bytes: b"\xffout\n".to_vec() },
        Reply::Output { stream: Stream::Stderr, offset: 0, bytes: Vec::new() },
        Reply::Copying(Progress {
            bytes: 1 << 40,
            of_bytes: 1 << 41,
            of_items: 7,
            whole: true,
            streams: 4,
            sent_again: 1,
        }),
        Reply::Copied(Landed {
            bytes: 1 << 33,
            items: 3,
            skipped: 2,
            path: "/data/run7".into(),
            missed: Some("out/a cannot be read".into()),
        }),
        Reply::Listing { entries: entries(), more: true },
        Reply::Certificate(Certificate { certificate: "c".into(), key: "k".into(), authority: "a".into() }),
        Reply::Exports {
            exports: vec![ExportOf {
                node: NodeId(3),
                name: "node3".into(),
                export: export(),
                free: 1 << 40,
            }],
            silent: vec![NodeId(4)],
        },
        Reply::Checkpoints(Box::new(checkpoints())),
        Reply::Restoring(7),
        Reply::Moving { from: NodeId(2), to: NodeId(3), phase: MovePhase::Departing, bytes: 1 << 30 },
        Reply::Moving { from: NodeId(2), to: NodeId(3), phase: MovePhase::Rounds, bytes: 1 << 20 },
        Reply::Moved(Moved {
            from: NodeId(2),
            to: NodeId(3),
            mode: MoveMode::Hybrid,
            ahead: 1 << 30,
            took: Duration::from_millis(700),
            stopped: Duration::from_millis(9),
        }),
        Reply::Relocated { task: job().task(3), moved: None, stayed: Some("it is".into()) },
        Reply::Fits {
            from: NodeId(2),
            to: NodeId(3),
            obstacles: vec![Obstacle { what: "it is".into(), remedy: "end it".into() }],
        },
        Reply::Processes { processes: vec![process()], silent: vec![NodeId(4)], more: true },
        Reply::Found(job().task(3)),
        Reply::Operated { errno: 3, output: b"no such process".to_vec() },
        Reply::Pipe(PipeReply::Pipes {
            pipes: vec![PipeStatus {
                spec: pipe(),
                node: NodeId(2),
                owner: "ada@node2".into(),
                buffered: Bytes(300),
                readers: 1,
                writers: 2,
            }],
            silent: vec![NodeId(4)],
        }),
        Reply::Pipe(PipeReply::Bytes(b"\xffout\n".to_vec())),
        Reply::Pipe(PipeReply::Part { at: 9, bytes: b"\xffout\n".to_vec() }),
        Reply::Pipe(PipeReply::End),
        Reply::Pipe(PipeReply::Taken(2)),
    ];
    let name = |reply: &Reply| match reply {
        Reply::Done => "done",
        Reply::Agent(_) => "agent",
        Reply::Token(_) => "token",
        Reply::Nodes(_) => "nodes",
        Reply::Doctor(_) => "doctor",
        Reply::Submitted(_) => "submitted",
        Reply::Jobs { .. } => "jobs",
        Reply::Job(_) => "job",
        Reply::Signalled(_) => "signalled",
        Reply::Output { .. } => "output",
        Reply::Copying(_) => "copying",
        Reply::Copied(_) => "copied",
        Reply::Listing { .. } => "listing",
        Reply::Certificate(_) => "certificate",
        Reply::Exports { .. } => "exports",
        Reply::Checkpoints(_) => "checkpoints",
        Reply::Restoring(_) => "restoring",
        Reply::Moving { .. } => "moving",
        Reply::Moved(_) => "moved",
        Reply::Fits { .. } => "fits",
        Reply::Relocated { .. } => "relocated",
        Reply::Processes { .. } => "processes",
        Reply::Found(_) => "found",
        Reply::Operated { .. } => "operated",
        Reply::Pipe(_) => "pipe",
    };
    let kind = |kind: Kind| match kind {
        Kind::Invalid => "failure-invalid",
        Kind::Denied => "failure-denied",
        Kind::Missing => "failure-missing",
        Kind::State => "failure-state",
        Kind::Unavailable => "failure-unavailable",
        Kind::Internal => "failure-internal",
    };
    let kinds = [Kind::Invalid, Kind::Denied, Kind::Missing, Kind::State, Kind::Unavailable, Kind::Internal];
    let replies = replies.into_iter().map(|reply| (name(&reply), Ok(reply)));
    let failures = kinds.into_iter().map(|each| (kind(each), Err(Failure::new(each, "no"))));
    replies.chain(failures).collect()
}

/// Every input, with the name of its variant.
pub(crate) fn inputs() -> Vec<(&'static str, Input)> {
    vec![
        ("bytes", Input::Bytes(b"ls\n".to_vec())),
        ("end", Input::End),
        ("resize", Input::Resize { rows: 24, cols: 80 }),
    ]
}

pub(crate) fn readers() -> Vec<(&'static str, FromReader)> {
    vec![
        ("next", FromReader::Next),
        ("has", FromReader::Has),
        ("leaves", FromReader::Leaves),
        ("closes", FromReader::Closes),
    ]
}

pub(crate) fn writers() -> Vec<(&'static str, FromWriter)> {
    vec![
        ("chunk", FromWriter::Chunk(vec![0, 1, 0xff])),
        ("leaves", FromWriter::Leaves),
        ("closes", FromWriter::Closes),
    ]
}

pub(crate) fn chunks() -> Vec<(&'static str, Chunk)> {
    vec![("piece", Chunk(vec![0, 1, 0xff])), ("last", Chunk(Vec::new()))]
}

fn nodes() -> Vec<NodeStatus> {
    let node = |number, tier, state| NodeStatus {
        info: NodeInfo {
            node: NodeId(number),
            name: "node".into(),
            addrs: ["192.0.2.7:7411", "[2001:db8::7]:7411"].iter().filter_map(|a| a.parse().ok()).collect(),
            tier,
            total: Resources { cpu: 4000, memory: 8 << 30 },
            free: Resources { cpu: 500, memory: 1 << 30 },
            load: 312,
            tasks: 5,
            version: "0.1.0".into(),
            addresses: true,
            drained: number == 2,
        },
        state,
        this: number == 1,
    };
    vec![
        node(1, Tier::Stack, NodeState::Up),
        node(2, Tier::Ebpf, NodeState::Suspect),
        node(3, Tier::Kernel, NodeState::Down),
        node(70_000, Tier::Stack, NodeState::Revoked),
    ]
}

fn summary() -> JobSummary {
    JobSummary {
        stuck: 300,
        id: job(),
        name: "frames".into(),
        owner: "ann@node2".into(),
        submitted: at(1_700_000_000),
        ended: None,
        counts: Counts { waiting: 1, placed: 2, running: 3, succeeded: 4, failed: 5 },
        nodes: vec![NodeId(1), NodeId(300)],
        exit_status: Some(137),
        why: Some("needs 8 cores".into()),
    }
}

/// A job with a task in each state, and one for each way to end.
pub(crate) fn status() -> JobStatus {
    let ends = [
        Outcome::Exited(0),
        Outcome::Exited(3),
        Outcome::Signaled(11),
        Outcome::OutOfMemory { limit: Bytes(64 << 20) },
        Outcome::TimeLimit { limit: Span(Duration::from_millis(1500)) },
        Outcome::Killed(15),
        Outcome::NotStarted { why: "no such program".into(), status: 127 },
        Outcome::NodeLost { node: NodeId(3) },
        Outcome::ResultsLost { why: "disk full".into() },
    ];
    for end in &ends {
        // A new variant does not compile until it is named here; give it a value above, too.
        match end {
            Outcome::Exited(_)
            | Outcome::Signaled(_)
            | Outcome::OutOfMemory { .. }
            | Outcome::TimeLimit { .. }
            | Outcome::Killed(_)
            | Outcome::NotStarted { .. }
            | Outcome::NodeLost { .. }
            | Outcome::ResultsLost { .. } => (),
        }
    }
    let usage = Usage {
        user: Duration::from_millis(2500),
        system: Duration::from_micros(7),
        peak_memory: 1 << 20,
        read: 4096,
        written: 1,
        wall: Duration::from_secs(3),
    };
    let alive = [TaskState::Waiting, TaskState::Placed, TaskState::Running].into_iter().map(|state| {
        let why = (state == TaskState::Waiting).then(|| "asking for room on 3 nodes".into());
        TaskStatus { state, why, ..TaskStatus::waiting(10) }
    });
    let done = (13..).zip(ends).map(|(index, outcome)| TaskStatus {
        index,
        state: TaskState::Done,
        node: Some(NodeId(1)),
        epoch: 2,
        started: Some(at(1_700_000_001)),
        outcome: Some(outcome),
        usage,
        why: None,
        address: Some([100, 64, 16, 7].into()),
    });
    let summary = JobSummary { ended: Some(at(1_700_000_060)), ..summary() };
    JobStatus { summary, spec: spec(), tasks: alive.chain(done).collect(), more: Some(22) }
}

/// Every datagram of messages between processes, with a name.
pub(crate) fn datagrams() -> Vec<(&'static str, Vec<u8>)> {
    let packet = libgrid::comm::sample_packet();
    let ours = [ToAgent::Hello, ToAgent::To { to: gpid(), packet: packet.clone() }];
    let theirs = [
        FromAgent::You(gpid()),
        FromAgent::Stranger,
        FromAgent::From { from: gpid(), packet: packet.clone() },
        FromAgent::Refused { to: gpid(), why: Refusal::Missing("it ended".into()) },
        FromAgent::Refused { to: gpid(), why: Refusal::Unsure("node 3 is silent".into()) },
        FromAgent::Refused { to: gpid(), why: Refusal::Deaf },
        FromAgent::Refused { to: gpid(), why: Refusal::Denied("it is another's".into()) },
    ];
    let encoded = |value: Result<Vec<u8>, libgrid::wire::WireError>| value.expect("samples are small");
    let mut all: Vec<_> =
        ours.iter().map(|message| ("to-agent", encoded(libgrid::wire::encode(message)))).collect();
    all.extend(theirs.iter().map(|message| ("from-agent", encoded(libgrid::wire::encode(message)))));
    all.push(("packet", packet));
    all
}
