//! What the program `gridos-pages` does: it sends the memory and the files of a task that runs, or takes them.
//!
//! It is a process of its own, as it holds a task's memory, or its processes' write protection, longer than an agent may live.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use grid_checkpoint::files::Unsure;
use grid_checkpoint::memory::{self, Step, Steps};
use grid_transfer::session::{self, Line, Listener};
use libgrid::{sentence, wire};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::files::{self, Reader, Writer};
use crate::kernel::awake::Awake;
use crate::order::{Order, Report};
use crate::store::ReceiveError;
use crate::track::{self, TrackError};
use crate::{PageSink, PageStore, Tracker, held, hide, lazy};

/// Bytes that are so few that the task is stopped to send them.
const SMALL: u64 = 2 << 20;

/// Rounds at most. A program that writes faster than the line takes it is stopped with the more left to send.
const MOST_ROUNDS: u32 = 30;

/// Between two looks whether somebody gave up.
const LOOK: Duration = Duration::from_millis(50);

/// Between two looks at the files of a task whose memory is written in rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// For the engine to come, when all is ready for it; for CRIU to stop the task, and to make it.
const PATIENCE: Duration = Duration::from_secs(120);

/// For the engine to come, when the agent is gone: what that had handed to the shim comes at once, and nothing else does.
const LEFT: Duration = Duration::from_secs(5);

/// For a restore with all that belongs to it, while the task is held.
const HELD: Duration = Duration::from_secs(600);

/// For the rest of the memory to be filled in.
const FILL: Duration = Duration::from_secs(3600);

/// For a task to stand still in a machine that does not sleep. It takes a tenth of that.
const AWAKE: Duration = Duration::from_secs(1);

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> Result<Self, String> {
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn listen(&self, name: &str) -> Result<UnixListener, String> {
        let path = self.0.join(name);
        UnixListener::bind(&path).map_err(|error| format!("cannot listen at {}: {error}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is swept up by the agent's next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Carries out the one order that comes over `control`. True if it was done.
pub fn serve(control: &UnixStream) -> bool {
    let result = wire::read::<Order>(&mut &*control)
        .map_err(|error| format!("there is no order: {error}"))
        .and_then(|order| match order {
            Order::Send { folder, root, memory, addresses, invitation, mappings, files } => {
                let files = Reader::start(&files)?;
                let line = session::connect(&addresses, &invitation, || !is_gone(control));
                let line = line.map_err(|trouble| trouble.why)?;
                match memory {
                    true => send(folder, root, mappings.as_deref(), files, control, line),
                    false => send_only_files(folder, root, files, control, line),
                }
            }
            Order::Receive { folder, memory, ports } => receive(folder, memory, ports, control),
        });
    if let Err(why) = &result {
        // An agent that is gone hears nothing.
        let _ = tell(control, &Report::Failed(why.clone()));
    }
    result.is_ok()
}

fn tell(control: &UnixStream, report: &Report) -> Result<(), String> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE.lock();
    wire::write(&mut &*control, report).map_err(|_| "the agent gave up".to_owned())
}

// === the source ===

fn send(
    folder: PathBuf,
    root: i32,
    mappings: Option<&Path>,
    files: Reader,
    control: &UnixStream,
    mut line: Line,
) -> Result<(), String> {
    let failed = |error: TrackError| sentence(&error);
    // Without it, dumps are slower, and no worse.
    let _perf = held::keep_perf_ready();
    let mut tracker = Tracker::attach(&[root]).map_err(failed)?;
    let mut sink = PageSink::new(&mut line).map_err(|error| sentence(&error))?;
    in_rounds(control, || {
        let memory = tracker.round(&mut sink).map_err(failed)?.bytes;
        Ok(memory + send_files(&files, root, &mut sink)?)
    })?;
    let folder = Folder::make(folder)?;
    let kept = folder.0.join(memory::MAPPINGS);
    let hidden = write_library(&folder.0.join(memory::LIBRARY))
        .and_then(|()| DirBuilder::new().mode(0o700).create(&kept))
        .and_then(|()| tracker.hide(&kept, mappings))
        .map_err(|error| format!("the dump cannot be prepared: {error}"))?;
    let listener = folder.listen(memory::SOCKET)?;
    tell(control, &Report::Ready)?;
    let steps = accept(&listener, PATIENCE, || is_gone(control))?.ok_or_else(nobody_came)?;
    // The engine hears of whatever goes wrong from here on, and lets the task run on.
    let sent = dump(tracker, root, &files, &mut sink, &hidden, &steps);
    if let Err(why) = &sent {
        steps.fail(why);
    }
    sent
}

/// Sends what is new until that is little; each round says how many bytes that was.
fn in_rounds(control: &UnixStream, mut round: impl FnMut() -> Result<u64, String>) -> Result<(), String> {
    let mut before = None;
    for _ in 0..MOST_ROUNDS {
        let bytes = round()?;
        tell(control, &Report::Round { bytes })?;
        if before.is_some_and(|before| !track::goes_on(before, bytes, SMALL)) {
            break;
        }
        before = Some(bytes);
    }
    Ok(())
}

/// Sends files, and no memory: that is written in rounds meanwhile, however long that takes.
fn send_only_files(
    folder: PathBuf,
    root: i32,
    files: Reader,
    control: &UnixStream,
    mut line: Line,
) -> Result<(), String> {
    let mut sink = PageSink::new(&mut line).map_err(|error| sentence(&error))?;
    in_rounds(control, || send_files(&files, root, &mut sink))?;
    let folder = Folder::make(folder)?;
    let listener = folder.listen(memory::SOCKET)?;
    tell(control, &Report::Ready)?;
    let mut pause = PAUSE;
    let steps = loop {
        if let Some(steps) = accept(&listener, pause, || is_gone(control))? {
            break steps;
        }
        let begun = Instant::now();
        send_files(&files, root, &mut sink)?;
        // One that writes all the time, or has many, is not looked at all the time.
        pause = PAUSE.max(begun.elapsed() * 4);
    };
    let sent = follow(root, &files, &mut sink, &steps);
    if let Err(why) = &sent {
        steps.fail(why);
    }
    sent
}

/// Sends the files that are new when the task stands still.
fn follow(root: i32, files: &Reader, sink: &mut PageSink<'_>, steps: &Steps) -> Result<(), String> {
    send_files(files, root, sink)?;
    steps.tell(Step::Go)?;
    steps.expect(Step::Stopped)?;
    // Of memory, nothing.
    sink.listed().map_err(|error| sentence(&error))?;
    steps.tell(Step::Listed)?;
    steps.expect(Step::Written)?;
    send_last_files(files, sink)?;
    sink.end().map_err(|error| sentence(&error))?;
    steps.tell(Step::Sent)
}

/// Sends what is new in its files, while it runs.
fn send_files(files: &Reader, root: i32, sink: &mut PageSink<'_>) -> Result<u64, String> {
    let unsure = files::unsure(Path::new("/proc"), &[root]);
    let unsure = unsure.map_err(|error| format!("its files cannot be looked at: {error}"))?;
    files.round(unsure, false, |piece| sink.files(piece).map_err(|error| sentence(&error)))
}

/// Sends what is new in its files, and that this is all. It stands still, and CRIU has given names to files that had none.
fn send_last_files(files: &Reader, sink: &mut PageSink<'_>) -> Result<(), String> {
    files.round(Unsure::now(), true, |piece| sink.files(piece).map_err(|error| sentence(&error)))?;
    sink.flush().map_err(|error| sentence(&error))
}

fn dump(
    mut tracker: Tracker,
    root: i32,
    files: &Reader,
    sink: &mut PageSink<'_>,
    hidden: &hide::Hidden,
    steps: &Steps,
) -> Result<(), String> {
    let failed = |error: TrackError| sentence(&error);
    // Where there is no such thing, all is slower, and no worse.
    let _awake = Awake::hold(AWAKE);
    send_files(files, root, sink)?;
    tracker.round(sink).map_err(failed)?;
    steps.tell(Step::Go)?;
    // CRIU has a limit of its own.
    steps.expect(Step::Stopped)?;
    let listed = tracker.list(sink).map_err(failed)?;
    steps.tell(Step::Listed)?;
    tracker.send_rest(listed, sink).map_err(failed)?;
    steps.expect(Step::Written)?;
    send_last_files(files, sink)?;
    steps.tell(Step::Sent)?;
    // Without eBPF the kernel walks through all of its memory for this, and CRIU would wait for it. Without the end, the
    // destination lets nothing go.
    match hidden.holds() {
        Ok(true) => sink.end().map_err(|error| sentence(&error))?,
        Ok(false) => return Err("the flags of its mappings changed in the same moment: try again".into()),
        Err(error) => return Err(format!("its mappings cannot be looked at: {error}")),
    }
    // Tracked until it is ended or goes on.
    let _ = steps.socket().read(&mut [0]);
    tracker.abandon();
    Ok(())
}

fn write_library(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?.write_all(hide::LIBRARY)
}

// === the destination ===

fn receive(
    folder: PathBuf,
    memory: Option<u64>,
    ports: Option<(u16, u16)>,
    control: &UnixStream,
) -> Result<(), String> {
    let (files, outcome) = Writer::start(control)?.into_parts();
    let folder = Folder::make(folder)?;
    let (asked, steps) = (folder.listen(memory::PAGES)?, folder.listen(memory::SOCKET)?);
    let listener = Listener::bind(ports).map_err(|trouble| trouble.why)?;
    let invitation = listener.invitation().map_err(|error| format!("cannot listen: {error}"))?;
    tell(control, &Report::Listens(invitation))?;
    let line = listener.accept(|| !is_gone(control)).map_err(|_| "the agent gave up".to_owned())?;
    let store = PageStore::new(memory.unwrap_or_default());
    let came = Arc::new(AtomicU64::new(0));
    let reader = std::thread::spawn({
        let (store, line) = (store.clone(), Counted { line, came: came.clone() });
        move || store.receive(line, files)
    });
    let told = control.try_clone().map_err(|error| format!("the agent cannot be told: {error}"))?;
    let files = std::thread::spawn(move || {
        outcome.wait()?;
        // An agent that is gone may come back, and does not ask for it again.
        let _ = tell(&told, &Report::Files);
        Ok(())
    });
    let failed = |reader: JoinHandle<Result<_, ReceiveError>>, files: JoinHandle<Result<(), String>>| {
        match reader.join() {
            // Who does not take them says why.
            Ok(Err(ReceiveError::Files(_))) => files_there(files).and(Err("its files did not come".into())),
            Ok(Err(error)) => Err(sentence(&error)),
            _ => Err("its memory did not come".to_owned()),
        }
    };
    let mut shown = 0;
    // Not as a whole yet: an agent that is gone gave up, and whoever reads ends with this process.
    let go_on = |shown: &mut u64| {
        if is_gone(control) {
            return Err("the agent gave up".to_owned());
        }
        match came.load(Ordering::Relaxed) {
            bytes if bytes == *shown => Ok(()),
            bytes => tell(control, &Report::Came { bytes }).map(|()| *shown = bytes),
        }
    };
    while !store.wait_listed(LOOK) {
        if reader.is_finished() && !store.wait_listed(Duration::ZERO) {
            return failed(reader, files);
        }
        go_on(&mut shown)?;
    }
    // It stands still over there.
    let awake = Awake::hold(AWAKE);
    // An agent that is gone from here on may come back: the restore is the shim's.
    let (served, end) = UnixStream::pair().map_err(|error| format!("cannot be served: {error}"))?;
    let serving = memory.map(|_| {
        let store = store.clone();
        std::thread::spawn(move || {
            let _end = end;
            lazy::serve(&asked, &store, HELD).map_err(|error| sentence(&error))
        })
    });
    while !store.wait_complete(LOOK) {
        if reader.is_finished() && !store.wait_complete(Duration::ZERO) {
            return failed(reader, files);
        }
        go_on(&mut shown)?;
    }
    files_there(files)?;
    let Some(serving) = serving else { return Ok(()) };
    let mut gone: Option<Instant> = None;
    let left = || is_gone(control) && gone.get_or_insert_with(Instant::now).elapsed() > LEFT;
    let steps = accept(&steps, PATIENCE, left)?.ok_or_else(nobody_came)?;
    let filled = fill(&steps, serving, &served, awake);
    if let Err(why) = &filled {
        steps.fail(why);
    }
    filled
}

fn files_there(files: JoinHandle<Result<(), String>>) -> Result<(), String> {
    files.join().map_err(|_| "its files cannot be taken".to_owned())?
}

fn fill(
    steps: &Steps,
    serving: JoinHandle<Result<lazy::Filling, String>>,
    served: &UnixStream,
    awake: io::Result<Awake>,
) -> Result<(), String> {
    steps.tell(Step::Sent)?;
    // An engine that ends before its CRIU has come for memory gave up; whoever waits for CRIU ends with this process.
    let mut ends = [served, steps.socket()].map(|end| PollFd::new(end.as_fd(), PollFlags::empty()));
    while let Err(nix::errno::Errno::EINTR) = poll(&mut ends, PollTimeout::NONE) {}
    if ends[0].any() != Some(true) {
        return Err("the engine has ended".into());
    }
    let filling = serving.join().map_err(|_| "its memory cannot be served".to_owned())??;
    // An engine that is gone has let it go, or ended it.
    let _ = steps.expect(Step::Go);
    drop(awake);
    match filling.wait(FILL)? {
        Some(_) => steps.tell(Step::Filled),
        None => Err(format!("its memory was not there after {} s", FILL.as_secs())),
    }
}

/// A line, and how much came over it.
struct Counted {
    line: Line,
    came: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.line.read(buffer)?;
        self.came.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

// === both ===

fn nobody_came() -> String {
    format!("nobody came for it within {} s", PATIENCE.as_secs())
}

/// Takes the engine's line, if it comes in that time.
fn accept(
    listener: &UnixListener,
    limit: Duration,
    mut given_up: impl FnMut() -> bool,
) -> Result<Option<Steps>, String> {
    let deadline = Instant::now() + limit;
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    loop {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => (),
            Ok(_) => break,
            Err(error) => return Err(format!("cannot wait for the engine: {error}")),
        }
        if given_up() {
            return Err("the agent gave up".into());
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
    let (accepted, _) = listener.accept().map_err(|error| format!("cannot hear the engine: {error}"))?;
    Ok(Some(Steps::new(accepted)))
}

/// Whether the other end of a socket is closed.
fn is_gone(socket: &UnixStream) -> bool {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
