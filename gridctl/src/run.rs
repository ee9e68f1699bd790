//! `gridctl run`: a program on the grid as if it were here.
//!
//! The job is an ordinary one with an input. Its output is followed by offsets, so nothing of it is lost or
//! doubled whatever happens to a connection; typed bytes go the other way. With a terminal on both ends, ours is
//! raw once the task runs: Ctrl-C is a byte, and the terminal over there turns it into a signal. Before, and without one, the
//! signals that end this process go to the task.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use libgrid::GridError;
use libgrid::blocking::{Grid, Keyboard};
use libgrid::control::{Input, Request, Stdin, Streams};
use libgrid::ids::{JobId, Selector};
use libgrid::spec::JobSpec;
use libgrid::status::{JobStatus, Outcome, TaskState};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::args::Options;
use crate::terminal::{self, Mode};
use crate::{Done, inputs, job, show};

/// What ends a program that has lost its reader, and how long each may take.
const UNHEARD: [(i32, Duration); 3] = [
    (SIGPIPE, Duration::from_secs(2)),
    (SIGTERM, Duration::from_secs(10)),
    (SIGKILL, Duration::from_secs(60)),
];

/// How long somebody waits before they are told what for.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn run(grid: &mut Grid, options: &Options, json: bool) -> Done {
    if options.command.is_empty() {
        bail!("there is no program to run: write gridctl run -- PROGRAM");
    }
    let size = (io::stdin().is_terminal() && io::stdout().is_terminal()).then(terminal::size);
    let mut spec = job::spec(JobSpec::command(options.command.iter().cloned()), options)?.restart(false);
    if size.is_some()
        && let Ok(term) = std::env::var("TERM")
    {
        spec.env.entry("TERM".into()).or_insert(term);
    }
    let stdin = size.map_or(Stdin::Pipe, |(rows, cols)| Stdin::Terminal { rows, cols });
    let id = inputs::submit(grid, spec, Some(stdin))?.job;
    let status = {
        // What is typed before it runs is for it, and is shown by it.
        let _keys = if size.is_some() { Mode::keys() } else { None };
        attend(grid, id, size.is_some())?
    };
    if json {
        show::json(&status)?;
    } else {
        for task in status.tasks.iter().filter(|task| task.outcome.as_ref().is_some_and(abnormal)) {
            eprintln!("gridctl: {id} {}", task.outcome.as_ref().map(show::plain).unwrap_or_default());
        }
    }
    Ok(status.summary.exit_status.map_or(ExitCode::FAILURE, job::exit_code))
}

/// An end that the program did not choose, and cannot have told of.
fn abnormal(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Exited(_) | Outcome::Killed(_))
}

/// Passes everything on both ways until the task has ended.
fn attend(grid: &Grid, id: JobId, terminal: bool) -> anyhow::Result<JobStatus> {
    let task = id.task(0);
    let keyboard = grid.type_into(task)?;
    let ended = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGWINCH, SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    let mut resizing = keyboard.another()?;
    let socket = grid.path().to_owned();
    let over = ended.clone();
    let attendant = thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGWINCH if terminal => {
                    let (rows, cols) = terminal::size();
                    // A task that has ended needs no size.
                    let _ = resizing.send(&Input::Resize { rows, cols });
                }
                SIGWINCH => (),
                signal => {
                    let ended = over.load(Ordering::Relaxed);
                    if !ended && let Ok(mut grid) = Grid::connect_to(&socket) {
                        let _ = grid.ask(&Request::Kill { job: Selector::Job(id), signal });
                    }
                }
            }
        }
    });
    let stuck = Arc::new(AtomicBool::new(false));
    until_begun(grid, id, stuck.clone());
    let _raw = if terminal { Mode::raw() } else { None };
    // Reads until our input ends; when the task ends first, the process does not wait for it.
    let path = grid.path().to_owned();
    let give_up = move || {
        let _ = Grid::connect_to(&path)
            .and_then(|mut grid| grid.ask(&Request::Kill { job: Selector::Job(id), signal: SIGINT }));
    };
    // Where the terminal makes a signal of Ctrl-C, that does it.
    thread::spawn(move || type_all(keyboard, terminal.then_some(&*stuck), give_up));
    let mut printer = job::Printer::new(task, false);
    let shown =
        grid.logs(task, Streams::Both, true, |stream, offset, bytes| printer.print(stream, offset, bytes));
    match shown {
        Err(GridError::Output(error)) => {
            end_unheard(grid, id)?;
            if error.kind() != io::ErrorKind::BrokenPipe {
                bail!("{id} was ended, as its output cannot be written: {error}");
            }
        }
        shown => drop(shown?),
    }
    ended.store(true, Ordering::Relaxed);
    handle.close();
    // Its signals end with the handle.
    let _ = attendant.join();
    Ok(grid.watch(Selector::Job(id), |_| ())?)
}

/// Ends a job whose output nobody takes any more: as a pipe would, and if the program does not mind that, by force.
fn end_unheard(grid: &Grid, id: JobId) -> anyhow::Result<()> {
    let (done, ended) = mpsc::channel::<()>();
    let socket = grid.path().to_owned();
    let ender = thread::spawn(move || {
        for (signal, patience) in UNHEARD {
            // An agent that is away is asked again by the next; a job that has ended refuses.
            let _ = Grid::connect_to(&socket)
                .and_then(|mut grid| grid.ask(&Request::Kill { job: Selector::Job(id), signal }));
            if !matches!(ended.recv_timeout(patience), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    });
    let watched = grid.watch(Selector::Job(id), |_| ());
    drop(done);
    let _ = ender.join();
    watched?;
    Ok(())
}

/// Waits until the task runs, or has ended, and tells whoever sits there what it waits for.
fn until_begun(grid: &Grid, id: JobId, is_stuck: Arc<AtomicBool>) {
    let (seen, news) = mpsc::channel();
    let socket = grid.path().to_owned();
    thread::spawn(move || {
        let mut stuck = job::Stuck::default();
        let tell = |status: &JobStatus| {
            is_stuck.store(status.summary.stuck > 0, Ordering::Relaxed);
            if let Some(why) = stuck.news(status) {
                // The terminal may be raw.
                eprint!("gridctl: {}; Ctrl-C, too\r\n", show::plain(why));
            }
            let task = status.tasks.first();
            let begun = task.is_none_or(|task| matches!(task.state, TaskState::Running | TaskState::Done));
            // Nobody listens any more once it has begun.
            let _ = seen.send((begun, task.and_then(|task| task.why.clone())));
        };
        Grid::connect_to(socket).and_then(|grid| grid.watch(Selector::Job(id), tell))
    });
    let attended = io::stderr().is_terminal();
    let (mut told, mut since) = (None, Instant::now());
    let mut why = None;
    loop {
        match news.recv_timeout(PATIENCE) {
            Ok((true, _)) | Err(RecvTimeoutError::Disconnected) => return,
            Ok((false, waits)) => why = waits,
            Err(RecvTimeoutError::Timeout) => (),
        }
        // A reason that changes all the time is told once in that time.
        let new = why.is_some() && told != why && (attended || told.is_none());
        if new && since.elapsed() >= PATIENCE {
            let end = if attended { "; Ctrl-C ends it" } else { "" };
            eprintln!("gridctl: {id} waits: {}{end}", why.as_deref().unwrap_or_default());
            told.clone_from(&why);
            since = Instant::now();
        }
    }
}

/// What Ctrl-C is where the terminal makes no signal of it (termios(3), VINTR).
const INTERRUPT: u8 = 3;

/// Types until the task takes no more. Of one that has ended, and is not done, Ctrl-C gives up what it left.
fn type_all(mut keyboard: Keyboard, stuck: Option<&AtomicBool>, give_up: impl Fn()) {
    let mut buffer = [0; 64 << 10];
    let mut stdin = io::stdin().lock();
    loop {
        let input = match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => Input::End,
            Ok(read)
                if stuck.is_some_and(|stuck| stuck.load(Ordering::Relaxed))
                    && buffer[..read].contains(&INTERRUPT) =>
            {
                give_up();
                continue;
            }
            Ok(read) => Input::Bytes(buffer[..read].to_vec()),
        };
        if keyboard.send(&input).is_err() {
            return;
        }
        if input == Input::End {
            // The task may read its end, and go on writing.
            let _ = keyboard.closed();
            return;
        }
    }
}
