//! Who carries between one FIFO and its pipe.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use grid_run::fifo::{END, Hand, SIZE, held, open_end};
use libgrid::control::{Failure, Kind, Reply, Response};
use libgrid::ids::Run;
use libgrid::pipe::{ATOMIC, FromReader, FromWriter, Part, PipeName, PipeReply, PipeRequest};
use libgrid::wire::{WireError, stream};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::io::DuplexStream;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{AGAIN, Busy, Control, LOOK, PATIENCE};
use crate::caller::Caller;
use crate::grid::Grid;

pub(super) struct Carrier {
    pub(super) grid: Arc<Grid>,
    pub(super) caller: Caller,
    pub(super) run: Run,
    pub(super) pipe: PipeName,
    pub(super) path: PathBuf,
    /// Whose it is.
    pub(super) uid: u32,
    pub(super) control: Arc<Control>,
    pub(super) hand: Hand,
}

impl Carrier {
    /// One end of the pipe.
    fn end(&self, request: PipeRequest) -> DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(2 * ATOMIC);
        let (grid, caller) = (self.grid.clone(), self.caller.clone());
        tokio::spawn(async move {
            if let Err(crate::control::Answer::Failure(failure)) =
                crate::pipes::answer(&grid, &caller, request, &mut theirs).await
            {
                let _ = stream::write(&mut theirs, &Response::Err(failure)).await;
            }
        });
        ours
    }

    /// The pipe, with the node where it was found first: there may be others of its name.
    async fn placed(&mut self) -> io::Result<Option<PipeName>> {
        let found = match self.hand.node() {
            Some(node) => node,
            None => match crate::pipes::home(&self.grid, &self.caller, &self.pipe, true).await {
                Ok(node) => {
                    self.hand.note_node(Some(node.0))?;
                    node.0
                }
                Err(failure) => {
                    self.waits(&failure);
                    return Ok(None);
                }
            },
        };
        Ok(Some(PipeName { node: Some(found.to_string()), ..self.pipe.clone() }))
    }

    fn waits(&self, failure: &Failure) {
        debug!(pipe = %self.pipe, %failure, "it cannot be had yet");
        self.control.waits_for(&self.pipe.name, Some(failure.message.clone()));
    }

    /// It could not be opened.
    fn failed(&mut self, failure: &Failure) -> io::Result<()> {
        self.waits(failure);
        // It was removed, and may be made again elsewhere.
        if failure.kind == Kind::Missing { self.hand.note_node(None) } else { Ok(()) }
    }

    /// Opens the pipe for writing chunks from this number on, as soon as it can be; with the number of the last that it has.
    /// Nothing if it cannot be had and the task is over.
    async fn writer(&mut self, next: u64) -> io::Result<Option<(DuplexStream, u64)>> {
        self.hand.note_begun(true)?;
        let since = Instant::now();
        loop {
            if let Some(pipe) = self.placed().await? {
                let mut end = self.end(PipeRequest::WriteFor { pipe, run: self.run, next });
                match opened(&mut end).await {
                    Ok(Reply::Pipe(PipeReply::Taken(taken))) => {
                        self.control.waits_for(&self.pipe.name, None);
                        return Ok(Some((end, taken)));
                    }
                    Ok(_) => debug!(pipe = %self.pipe, "it gives another answer"),
                    Err(failure) => self.failed(&failure)?,
                }
            }
            if self.control.is_over(since) {
                warn!(run = %self.run, pipe = %self.pipe, "what it wrote last is dropped, as its pipe cannot be had");
                return Ok(None);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// From the FIFO, until the task is over.
    pub(super) async fn carry_out(&mut self, fifo: Option<File>, mut busy: Busy) -> io::Result<()> {
        // A number that was noted for nothing is passed over.
        let mut next = self.hand.number() + u64::from(self.hand.held()? == 0);
        let mut writer = None;
        if self.hand.held()? == 0 {
            // Nothing holds the task up.
            drop(busy);
            busy = Busy::none();
        }
        // The program may have closed it meanwhile.
        if self.hand.begun()
            && let Some((end, taken)) = self.writer(next).await?
        {
            if taken >= next {
                self.hand.clear()?;
                next += 1;
            }
            writer = Some(end);
        }
        let mut fifo = fifo;
        loop {
            let stays = {
                let state = self.control.lock();
                state.is_stopped() && !state.left
            };
            // Also once the task stands still: its image has nothing of what it wrote.
            let taken = match self.hand.held()? {
                0 if stays => Err(io::ErrorKind::WouldBlock.into()),
                0 => {
                    self.hand.note(next)?;
                    // The task has removed it if there is none.
                    fifo.as_ref().map_or(Ok(0), |fifo| self.hand.take_from(fifo, ATOMIC))
                }
                held => Ok(held),
            };
            match taken {
                Ok(0) => {
                    drop(busy);
                    let (left, ended) = self.control.fate();
                    if left && ended {
                        if let Some(mut writer) = writer {
                            let _ = tell(&mut writer, &FromWriter::Leaves).await;
                        }
                        return Ok(());
                    }
                    if !left && let Some(writer) = writer.take() {
                        self.close(writer, next).await?;
                        self.hand.note_begun(false)?;
                        // One that was open meanwhile finds this one before it misses the other.
                        fifo = open_end(&self.path, self.uid, OpenOptions::new().read(true)).ok();
                    }
                    if ended || fifo.is_none() {
                        return Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                    busy = self.control.take();
                }
                Ok(_) => {
                    let chunk = FromWriter::Chunk(self.hand.look()?);
                    loop {
                        if writer.is_none() {
                            let Some((end, taken)) = self.writer(next).await? else { return Ok(()) };
                            writer = Some(end);
                            if taken >= next {
                                break;
                            }
                        }
                        let Some(end) = &mut writer else { continue };
                        match tell(end, &chunk).await {
                            Ok(_) => break,
                            // Whether it was taken is known when it is open again.
                            Err(error) => debug!(pipe = %self.pipe, %error, "a chunk is sent again"),
                        }
                        writer = None;
                        tokio::time::sleep(LOOK).await;
                    }
                    self.hand.clear()?;
                    next += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(busy);
                    match &mut writer {
                        // It says nothing unless it breaks: then it is to be come for again before it is given up.
                        Some(end) => {
                            if timeout(LOOK, crate::control::gone(end)).await.is_ok() {
                                writer = None;
                            }
                        }
                        // The program has it open: readers of the pipe are to wait.
                        None if !stays => writer = self.writer(next).await?.map(|(end, _)| end),
                        None => tokio::time::sleep(LOOK).await,
                    }
                    busy = self.control.take();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that nothing more is written, until that is heard.
    async fn close(&mut self, mut writer: DuplexStream, next: u64) -> io::Result<()> {
        while tell(&mut writer, &FromWriter::Closes).await.is_err() {
            tokio::time::sleep(LOOK).await;
            match self.writer(next).await? {
                Some((again, _)) => writer = again,
                None => break,
            }
        }
        Ok(())
    }

    /// To the FIFO, until the pipe or the task is over.
    pub(super) async fn carry_in(&mut self, fifo: Option<File>, busy: Busy) -> io::Result<()> {
        if self.hand.number() == END {
            return Ok(());
        }
        let mut reader = None;
        let carried = self.carry_from(&mut reader, fifo, busy).await;
        let (left, _) = self.control.fate();
        let last = match &carried {
            // It may go on elsewhere: its pipe keeps in mind how far it is.
            Ok(Over::Gone) if left => FromReader::Leaves,
            Ok(Over::End) => FromReader::Leaves,
            Ok(Over::Gone) | Err(_) => FromReader::Closes,
        };
        say(&mut reader, last).await;
        carried.map(drop)
    }

    async fn carry_from(
        &mut self,
        reader: &mut Option<DuplexStream>,
        mut fifo: Option<File>,
        busy: Busy,
    ) -> io::Result<Over> {
        // As long as there may be something in the hand.
        let mut filled = Some(busy);
        loop {
            if self.hand.held()? == 0 {
                filled = None;
            }
            if self.control.fate().1 {
                return Ok(Over::Gone);
            }
            if fifo.is_none() {
                // Once the program has it open.
                fifo = open_end(&self.path, self.uid, OpenOptions::new().write(true)).ok();
            }
            let Some(open) = fifo.as_ref().filter(|open| is_read(open)) else {
                if self.hand.begun() {
                    // The program has closed it; it may open it again, and reads on then.
                    self.hand.clear()?;
                    self.hand.note_begun(false)?;
                }
                say(reader, FromReader::Closes).await;
                fifo = None;
                tokio::time::sleep(LOOK).await;
                continue;
            };
            // What the pipe would give is the next node's now.
            let busy = if filled.is_some() { Some(self.control.take()) } else { self.control.enter() };
            let Some(_busy) = busy else {
                say(reader, FromReader::Leaves).await;
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let Some(end) = reader else {
                *reader = self.reader().await?;
                if reader.is_none() {
                    tokio::time::sleep(AGAIN).await;
                }
                continue;
            };
            if !is_empty(open)? {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            if self.hand.held()? > 0 {
                // The pipe knows that it is here.
                match self.hand.give_to(open) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                    given => given?,
                }
                continue;
            }
            let next = tokio::select! {
                next = tell(end, &FromReader::Next) => Some(next),
                () = self.control.stop() => None,
                () = unread(open) => None,
            };
            match next {
                None => {
                    let stops = self.control.lock().is_stopped();
                    say(reader, if stops { FromReader::Leaves } else { FromReader::Closes }).await;
                }
                Some(Ok(Reply::Pipe(PipeReply::Part { at, bytes }))) => {
                    self.hand.note_begun(true)?;
                    filled = Some(self.control.take());
                    self.hand.note(at)?;
                    self.hand.take(&bytes)?;
                    // Or else the pipe is told when it is open again.
                    if tell(end, &FromReader::Has).await.is_err() {
                        *reader = None;
                    }
                }
                // The end of the pipe is the FIFO's.
                Some(Ok(_)) => {
                    self.hand.note(END)?;
                    return Ok(Over::End);
                }
                Some(Err(error)) => {
                    debug!(pipe = %self.pipe, %error, "it cannot be read yet");
                    *reader = None;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Opens the pipe for reading, if it can be, and tells it what is in the hand.
    async fn reader(&mut self) -> io::Result<Option<DuplexStream>> {
        let Some(pipe) = self.placed().await? else { return Ok(None) };
        let has = match self.hand.held()? {
            0 => None,
            held => Some(Part { at: self.hand.number(), len: held as u64 }),
        };
        let (run, began) = (self.run, self.hand.begun());
        let mut end = self.end(PipeRequest::ReadFor { pipe, run, has, began });
        match opened(&mut end).await {
            Ok(_) => {
                self.control.waits_for(&self.pipe.name, None);
                Ok(Some(end))
            }
            Err(failure) => self.failed(&failure).map(|()| None),
        }
    }
}

/// Why nothing more is brought to a FIFO.
enum Over {
    /// The task is not here any more.
    Gone,
    /// All writers of the pipe have closed.
    End,
}

/// Whether a FIFO, of which this is the writing end, has nothing in it. It then holds more than a pipe gives at once.
fn is_empty(fifo: &File) -> io::Result<bool> {
    fcntl(fifo, FcntlArg::F_SETPIPE_SZ(SIZE))?;
    Ok(held(fifo)? == 0)
}

/// Whether somebody has it open to read.
fn is_read(fifo: &File) -> bool {
    let mut polled = [PollFd::new(fifo.as_fd(), PollFlags::POLLOUT)];
    let looked = poll(&mut polled, PollTimeout::ZERO).is_ok();
    let [polled] = polled;
    looked && !polled.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Ends when nobody has it open to read any more.
async fn unread(fifo: &File) {
    while is_read(fifo) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Says the last to a pipe, if it is open.
async fn say(reader: &mut Option<DuplexStream>, last: FromReader) {
    if let Some(mut reader) = reader.take() {
        let _ = stream::write(&mut reader, &last).await;
    }
}

/// What the pipe's node says to who opens it.
async fn opened(end: &mut DuplexStream) -> Result<Reply, Failure> {
    let silent = |_| Failure::new(Kind::Unavailable, format!("its node says nothing for {PATIENCE:?}"));
    timeout(PATIENCE, answer(end)).await.map_err(silent)?
}

async fn answer(end: &mut DuplexStream) -> Result<Reply, Failure> {
    stream::read::<Response, _>(end).await.map_err(broken)?
}

fn broken(error: WireError) -> Failure {
    Failure::new(Kind::Unavailable, error.to_string())
}

/// Says something, and waits for the answer.
async fn tell(end: &mut DuplexStream, what: &impl Serialize) -> Result<Reply, Failure> {
    stream::write(end, what).await.map_err(broken)?;
    answer(end).await
}
