//! Named pipes ([`libgrid::pipe`]) of this node. Which there are is in `pipes/pipes.json` of the state folder, replaced by
//! rename; what those with `spill` hold is in files beside it.
//!
//! ```text
//!   client ─▶ its agent ── is it here? ─┬─ yes ─────────▶ pipe.rs ─▶ memory, or spill.rs
//!                                       └─ no ── QUIC ──▶ the pipe's node
//! ```
//!
//! Who acts for a task is the owner of its job, wherever that runs: its node asks the job's home.

pub(crate) mod fifo;
mod pipe;
mod spill;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libgrid::control::{Chunk, Failure, Kind, MAX_CHUNK, Reply, Request, Response};
use libgrid::ids::NodeId;
use libgrid::pipe::{
    ATOMIC, FromReader, FromWriter, MOST_CAPACITY, PipeName, PipeReply, PipeRequest, PipeSpec, PipeStatus,
};
use libgrid::wire::{WireError, stream};
use serde::{Deserialize, Serialize};

use self::pipe::{CarriedReading, CarriedWriting, Key, Pipe, Reading, Writing};
use crate::caller::Caller;
use crate::config::Config;
use crate::control::{Answer, Stream};
use crate::grid::Grid;
use crate::identity::failure;

/// Pipes at most, and what all of them may hold in memory.
const MOST: usize = 1000;
const MOST_MEMORY: u64 = 1 << 30;

/// What a pipe may hold on the disk.
const MOST_SPILL: u64 = 1 << 44;

/// A pipe as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    spec: PipeSpec,
    /// For people.
    owner: String,
    /// For rights: the user's node, and the number there.
    node: NodeId,
    uid: u32,
}

struct Kept {
    record: Record,
    pipe: Arc<Pipe>,
}

pub(crate) struct Pipes {
    folder: PathBuf,
    all: Mutex<BTreeMap<String, Kept>>,
}

impl Pipes {
    /// Opens those that were there before the agent started.
    pub(crate) fn load(config: &Config) -> Result<Self, Failure> {
        let folder = config.pipes_dir();
        let broken = |error: &dyn std::fmt::Display| {
            failure(Kind::Internal, format!("the pipes in {} cannot be used: {error}", folder.display()))
        };
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(broken(&error)),
            _ => (),
        }
        let records: Vec<Record> = match fs::read(folder.join("pipes.json")) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| broken(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(broken(&error)),
        };
        let open = |record: Record| {
            let pipe = Pipe::open(record.spec.clone(), &folder).map_err(|error| broken(&error))?;
            Ok((record.spec.name.clone(), Kept { record, pipe }))
        };
        let all = records.into_iter().map(open).collect::<Result<_, Failure>>()?;
        Ok(Self { folder, all: Mutex::new(all) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, all: &BTreeMap<String, Kept>) -> Result<(), Failure> {
        let records: Vec<&Record> = all.values().map(|kept| &kept.record).collect();
        let new = self.folder.join("pipes.json.new");
        let saved = || {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(&records)?)?;
            file.sync_all()?;
            fs::rename(&new, self.folder.join("pipes.json"))
        };
        saved().map_err(|error| failure(Kind::Internal, format!("the pipes cannot be written down: {error}")))
    }

    fn create(&self, me: NodeId, caller: &Caller, spec: PipeSpec) -> Result<(), Failure> {
        check(&spec)?;
        let mut all = self.lock();
        let name = spec.name.clone();
        if all.contains_key(&name) {
            let why = format!("there is a pipe {name} on this node: choose another name, or remove that one");
            return Err(Failure::new(Kind::State, why));
        }
        let memory: u64 = all.values().map(|kept| kept.record.spec.capacity.0).sum();
        if all.len() >= MOST || memory + spec.capacity.0 > MOST_MEMORY {
            let why = format!("this node has {} pipes of {memory} bytes: remove some first", all.len());
            return Err(Failure::new(Kind::State, why));
        }
        // Of one that was removed while the disk could not be written.
        spill::paths(&self.folder, &name).into_iter().for_each(|path| drop(fs::remove_file(path)));
        let pipe = Pipe::open(spec.clone(), &self.folder)
            .map_err(|error| failure(Kind::Internal, format!("the pipe's file cannot be made: {error}")))?;
        let (node, uid) = caller.identity(me);
        let record = Record { spec, owner: caller.owner(), node, uid };
        all.insert(name.clone(), Kept { record, pipe });
        self.save(&all).inspect_err(|_| drop(all.remove(&name)))
    }

    /// A pipe that the caller may use; only its owner and root may `own` it.
    fn of(&self, me: NodeId, caller: &Caller, name: &str, own: bool) -> Result<Arc<Pipe>, Failure> {
        let all = self.lock();
        let Some(kept) = all.get(name) else {
            let why = format!("there is no pipe {name} on node {me}: see gridctl pipe ls --everywhere");
            return Err(Failure::new(Kind::Missing, why));
        };
        if !may(me, caller, &kept.record, own) {
            let (owner, who) = (&kept.record.owner, caller.owner());
            let why =
                format!("pipe {name} is {owner}'s, and you are {who}: ask them to make it --shared, or root");
            return Err(Failure::new(Kind::Denied, why));
        }
        Ok(kept.pipe.clone())
    }

    fn remove(&self, me: NodeId, caller: &Caller, name: &str) -> Result<(), Failure> {
        let pipe = self.of(me, caller, name, true)?;
        let mut all = self.lock();
        if let Some(kept) = all.remove(name) {
            if let Err(error) = self.save(&all) {
                all.insert(name.to_owned(), kept);
                return Err(error);
            }
            spill::paths(&self.folder, name).into_iter().for_each(|path| drop(fs::remove_file(path)));
        }
        pipe.remove();
        Ok(())
    }

    /// Those here that the caller may use.
    pub(crate) fn list(&self, me: NodeId, caller: &Caller) -> Vec<PipeStatus> {
        let all = self.lock();
        let seen = all.values().filter(|kept| may(me, caller, &kept.record, false));
        seen.map(|Kept { record, pipe }| {
            let (buffered, readers, writers) = pipe.counts();
            let buffered = libgrid::units::Bytes(buffered);
            let (spec, owner) = (record.spec.clone(), record.owner.clone());
            PipeStatus { spec, node: me, owner, buffered, readers, writers }
        })
        .collect()
    }
}

fn may(me: NodeId, caller: &Caller, record: &Record, own: bool) -> bool {
    caller.is_root() || caller.identity(me) == (record.node, record.uid) || (record.spec.shared && !own)
}

fn check(spec: &PipeSpec) -> Result<(), Failure> {
    let wrong = |why: String| Err(Failure::new(Kind::Invalid, why));
    let name: Result<PipeName, _> = spec.name.parse();
    match name {
        Ok(name) if name.node.is_none() => (),
        Ok(_) => return wrong(format!("{:?} names another node: make the pipe there", spec.name)),
        Err(error) => return wrong(error.to_string()),
    }
    if !(ATOMIC as u64..=MOST_CAPACITY.0).contains(&spec.capacity.0) {
        return wrong(format!(
            "a capacity of {} cannot be: use 64K to 64M, and --spill for more",
            spec.capacity
        ));
    }
    if spec.spill.is_some_and(|spill| spill.0 > MOST_SPILL) {
        return wrong("more than 16T on the disk cannot be: use less".into());
    }
    Ok(())
}

/// Answers a user of this machine, or a task of it.
pub(crate) async fn answer<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: PipeRequest,
    client: &mut S,
) -> Result<(), Answer> {
    let caller = &caller.clone().for_task(grid).await?;
    let (name, again): (PipeName, Box<dyn Fn(PipeName) -> PipeRequest + Send>) = match request {
        PipeRequest::List { everywhere: true } => {
            let reply = list_all(grid, caller).await;
            return Ok(stream::write(client, &Response::Ok(reply)).await?);
        }
        PipeRequest::Remove(name) => (name, Box::new(PipeRequest::Remove)),
        PipeRequest::Read(name) => (name, Box::new(PipeRequest::Read)),
        PipeRequest::Write(name) => (name, Box::new(PipeRequest::Write)),
        PipeRequest::ReadFor { pipe, run, has, began } => {
            (pipe, Box::new(move |pipe| PipeRequest::ReadFor { pipe, run, has, began }))
        }
        PipeRequest::WriteFor { pipe, run, next } => {
            (pipe, Box::new(move |pipe| PipeRequest::WriteFor { pipe, run, next }))
        }
        other => return local(grid, caller, other, client).await,
    };
    let node = home(grid, caller, &name, false).await?;
    let request = again(PipeName { node: None, ..name });
    match node == grid.me {
        true => local(grid, caller, request, client).await,
        false => crate::control::pass_on(grid, caller, node, Request::Pipe(request), client).await,
    }
}

/// The node where a pipe is; with `sure`, only if no other can have one of that name.
async fn home(grid: &Arc<Grid>, caller: &Caller, name: &PipeName, sure: bool) -> Result<NodeId, Failure> {
    if let Some(node) = &name.node {
        return grid.members.find(node).ok_or_else(|| {
            Failure::new(Kind::Missing, format!("there is no node {node}: see gridctl nodes"))
        });
    }
    // Somebody is told whose it is; a FIFO's pipe may be elsewhere.
    let here = |kept: &Kept| !sure || may(grid.me, caller, &kept.record, false);
    if grid.pipes.lock().get(&name.name).is_some_and(here) {
        return Ok(grid.me);
    }
    let Reply::Pipe(PipeReply::Pipes { pipes, silent }) = list_all(grid, caller).await else {
        return Ok(grid.me);
    };
    let found: Vec<NodeId> =
        pipes.into_iter().filter(|pipe| pipe.spec.name == name.name).map(|pipe| pipe.node).collect();
    match found[..] {
        [node] if silent.is_empty() || !sure => Ok(node),
        [one, other, ..] => {
            let why = format!("nodes {one} and {other} have a pipe {name}: write {one}:{name}");
            Err(Failure::new(Kind::Invalid, why))
        }
        [_] | [] if !silent.is_empty() => {
            let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
            let why =
                format!("where pipe {name} is is not known, as node {} does not answer", silent.join(", "));
            Err(Failure::new(Kind::Unavailable, why))
        }
        _ => {
            let why = format!("there is no pipe {name} that you may use: see gridctl pipe ls --everywhere");
            Err(Failure::new(Kind::Missing, why))
        }
    }
}

async fn list_all(grid: &Arc<Grid>, caller: &Caller) -> Reply {
    let mut pipes = grid.pipes.list(grid.me, caller);
    let mut silent = Vec::new();
    let request = Request::Pipe(PipeRequest::List { everywhere: false });
    for (node, response) in crate::control::ask_each(grid, caller, request).await {
        match response {
            Some(Ok(Reply::Pipe(PipeReply::Pipes { pipes: theirs, .. }))) => pipes.extend(theirs),
            _ => silent.push(node),
        }
    }
    pipes.sort_by(|a, b| (a.node, &a.spec.name).cmp(&(b.node, &b.spec.name)));
    Reply::Pipe(PipeReply::Pipes { pipes, silent })
}

/// Answers about pipes of this node; the caller may be another's user.
pub(crate) async fn local<S: Stream>(
    grid: &Arc<Grid>,
    caller: &Caller,
    request: PipeRequest,
    client: &mut S,
) -> Result<(), Answer> {
    let (me, pipes) = (grid.me, &grid.pipes);
    let reply = match request {
        PipeRequest::Create(spec) => {
            pipes.create(me, caller, spec)?;
            Reply::Done
        }
        PipeRequest::List { .. } => {
            Reply::Pipe(PipeReply::Pipes { pipes: pipes.list(me, caller), silent: Vec::new() })
        }
        PipeRequest::Remove(name) => {
            pipes.remove(me, caller, &name.name)?;
            Reply::Done
        }
        PipeRequest::Read(name) => return read(&pipes.of(me, caller, &name.name, false)?, client).await,
        PipeRequest::Write(name) => return write(&pipes.of(me, caller, &name.name, false)?, client).await,
        PipeRequest::ReadFor { pipe, run, has, began } => {
            let key = Key { owner: caller.identity(me), task: run.task };
            let reading = pipes.of(me, caller, &pipe.name, false)?.read_for((key, run), has, began)?;
            return read_for(reading, client).await;
        }
        PipeRequest::WriteFor { pipe, run, next } => {
            let key = Key { owner: caller.identity(me), task: run.task };
            let pipe = pipes.of(me, caller, &pipe.name, false)?;
            let (writing, taken) = unless_gone(client, pipe.write_for((key, run), next)).await??;
            return write_for(writing, taken, client).await;
        }
    };
    Ok(stream::write(client, &Response::Ok(reply)).await?)
}

async fn read<S: Stream>(pipe: &Arc<Pipe>, client: &mut S) -> Result<(), Answer> {
    let mut reading = Reading::begin(pipe);
    loop {
        let next = tokio::select! {
            next = reading.next() => next?,
            // It says nothing while it waits.
            () = crate::control::gone(client) => return Err(Answer::left()),
        };
        let Some(lent) = next else { break };
        let reply = Reply::Pipe(PipeReply::Bytes(lent.bytes().to_vec()));
        stream::write(client, &Response::Ok(reply)).await?;
        stream::read::<Chunk, _>(client).await?;
        lent.had()?;
    }
    Ok(stream::write(client, &Response::Ok(Reply::Done)).await?)
}

async fn write<S: Stream>(pipe: &Arc<Pipe>, client: &mut S) -> Result<(), Answer> {
    let writing = Writing::begin(pipe);
    stream::write(client, &Response::Ok(Reply::Done)).await?;
    loop {
        let Chunk(bytes) = stream::read::<Chunk, _>(client).await?;
        if bytes.is_empty() {
            break;
        }
        within(&bytes, MAX_CHUNK)?;
        writing.write(&bytes).await?;
        stream::write(client, &Response::Ok(Reply::Done)).await?;
    }
    drop(writing);
    Ok(stream::write(client, &Response::Ok(Reply::Done)).await?)
}

fn within(bytes: &[u8], most: usize) -> Result<(), WireError> {
    if bytes.len() > most { Err(WireError::TooLong { len: bytes.len() as u64 }) } else { Ok(()) }
}

/// What comes of it, unless the client leaves meanwhile, who says nothing as long as it waits.
async fn unless_gone<S: Stream, T>(client: &mut S, what: impl Future<Output = T>) -> Result<T, Answer> {
    tokio::select! {
        done = what => Ok(done),
        () = crate::control::gone(client) => Err(Answer::left()),
    }
}

/// Serves who carries from a pipe to a FIFO.
async fn read_for<S: Stream>(reading: CarriedReading, client: &mut S) -> Result<(), Answer> {
    stream::write(client, &Response::Ok(Reply::Done)).await?;
    let (says, mut hears) = tokio::io::split(client);
    // Hearing goes on while a part is waited for.
    let mut heard = Box::pin(hear(says));
    let mut asked = false;
    loop {
        let (said, says) = tokio::select! {
            next = reading.next(), if asked => {
                let reply = match next? {
                    Some((at, bytes)) => PipeReply::Part { at, bytes },
                    None => PipeReply::End,
                };
                stream::write(&mut hears, &Response::Ok(Reply::Pipe(reply))).await?;
                asked = false;
                continue;
            }
            heard = &mut heard => heard,
        };
        heard = Box::pin(hear(says));
        match said? {
            FromReader::Next => asked = true,
            FromReader::Has => {
                reading.had()?;
                stream::write(&mut hears, &Response::Ok(Reply::Done)).await?;
            }
            FromReader::Leaves => {
                reading.leave();
                break;
            }
            FromReader::Closes => {
                reading.close();
                break;
            }
        }
    }
    Err(Answer::left())
}

async fn hear<R: tokio::io::AsyncRead + Unpin>(mut says: R) -> (Result<FromReader, WireError>, R) {
    (stream::read(&mut says).await, says)
}

/// Serves who carries from a FIFO to a pipe.
async fn write_for<S: Stream>(writing: CarriedWriting, taken: u64, client: &mut S) -> Result<(), Answer> {
    stream::write(client, &Response::Ok(Reply::Pipe(PipeReply::Taken(taken)))).await?;
    loop {
        match stream::read(client).await? {
            FromWriter::Chunk(bytes) => {
                within(&bytes, ATOMIC)?;
                unless_gone(client, writing.write(&bytes)).await??;
                stream::write(client, &Response::Ok(Reply::Done)).await?;
            }
            FromWriter::Leaves => {
                writing.leave();
                break;
            }
            FromWriter::Closes => {
                writing.close();
                break;
            }
        }
    }
    Ok(stream::write(client, &Response::Ok(Reply::Done)).await?)
}
