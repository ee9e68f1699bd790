//! `gridctl top`: the processes of jobs as they are now, again and again.
//!
//! What is shown of a process is how much it used since the last look; keys change by what they are sorted. Without a terminal,
//! or with `--once`, it looks twice and prints one list.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use libgrid::blocking::Grid;
use libgrid::ids::{Gpid, NodeId, Selector};
use libgrid::process::Process;
use serde::Serialize;

use crate::process::{Listed, list};
use crate::terminal::{self, Mode};
use crate::{Done, show};

/// By what processes are sorted, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Time on processors
    Cpu,
    /// Time in which it could have run, and others had the processors
    Waited,
    /// Resident memory
    Memory,
    /// Page faults
    Faults,
    /// Context switches
    Switches,
    /// Bytes over TCP connections, both ways
    Network,
}

/// A process, and what it used since the last look.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) process: Process,
    /// In percent of one processor.
    pub(crate) cpu_percent: f64,
    /// As `cpu_percent`, of the time in run queues.
    pub(crate) waited_percent: f64,
    /// In a second.
    pub(crate) faults: f64,
    /// In a second.
    pub(crate) switches: f64,
    /// Bytes in a second, over TCP connections that are open.
    pub(crate) sent: f64,
    /// As `sent`.
    pub(crate) received: f64,
}

/// What was seen at a look.
#[derive(Default)]
struct Seen(HashMap<(Gpid, NodeId), Process>, Option<Instant>);

pub(crate) fn top(
    grid: &mut Grid,
    of: Option<Selector>,
    everywhere: bool,
    (sort, pause, once): (Sort, Duration, bool),
    json: bool,
) -> Done {
    let mut seen = Seen::default();
    if once || json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        seen.look(list(grid, of, everywhere)?, sort);
        thread::sleep(pause);
        let (rows, silent) = seen.look(list(grid, of, everywhere)?, sort);
        if json {
            return show::json(&rows);
        }
        show::text(show::top(&rows))?;
        silent.iter().for_each(|node| eprintln!("gridctl: node {node} did not answer"));
        return Ok(ExitCode::SUCCESS);
    }
    let _mode = Mode::keys();
    let keys = keys();
    let mut sort = sort;
    loop {
        let (rows, silent) = seen.look(list(grid, of, everywhere)?, sort);
        draw(&rows, &silent, sort)?;
        let until = Instant::now() + pause;
        while let Some(key) = key(&keys, until) {
            match key {
                b'q' => return Ok(ExitCode::SUCCESS),
                b'c' => sort = Sort::Cpu,
                b'w' => sort = Sort::Waited,
                b'm' => sort = Sort::Memory,
                b'f' => sort = Sort::Faults,
                b's' => sort = Sort::Switches,
                b'n' => sort = Sort::Network,
                _ => continue,
            }
            break;
        }
    }
}

impl Seen {
    /// The rows of this look, sorted, and the nodes that are missing.
    fn look(&mut self, listed: Listed, sort: Sort) -> (Vec<Row>, Vec<NodeId>) {
        let now = Instant::now();
        let span = self.1.map_or(Duration::ZERO, |before| now - before).as_secs_f64();
        let mut rows: Vec<Row> =
            listed.processes.into_iter().map(|process| self.row(process, span)).collect();
        rows.sort_by_key(|row| Reverse((rank(row, sort), Reverse(row.process.gpid))));
        self.0 = rows.iter().map(|row| ((row.process.gpid, row.process.node), row.process.clone())).collect();
        self.1 = Some(now);
        (rows, listed.silent)
    }

    fn row(&self, process: Process, span: f64) -> Row {
        // One that is new, or came from another node, is counted from its start here on.
        let before = self.0.get(&(process.gpid, process.node));
        let age = process.started.elapsed().unwrap_or_default().as_secs_f64();
        let span = match before {
            Some(_) => span,
            None => age,
        };
        let rate = |now: f64, before: f64| if span > 0.0 { (now - before).max(0.0) / span } else { 0.0 };
        let time = |what: fn(&Process) -> Duration| {
            100.0
                * rate(what(&process).as_secs_f64(), before.map_or(0.0, |before| what(before).as_secs_f64()))
        };
        let count = |what: fn(&Process) -> u64| {
            rate(what(&process) as f64, before.map_or(0.0, |before| what(before) as f64))
        };
        Row {
            cpu_percent: time(|process| process.cpu),
            waited_percent: time(|process| process.waited),
            faults: count(|process| process.minor_faults + process.major_faults),
            switches: count(|process| process.voluntary_switches + process.involuntary_switches),
            sent: count(|process| process.sent),
            received: count(|process| process.received),
            process,
        }
    }
}

/// What a row is sorted by, in thousandths.
fn rank(row: &Row, sort: Sort) -> u64 {
    let thousandths = |value: f64| (value * 1000.0) as u64;
    match sort {
        Sort::Cpu => thousandths(row.cpu_percent),
        Sort::Waited => thousandths(row.waited_percent),
        Sort::Memory => row.process.memory,
        Sort::Faults => thousandths(row.faults),
        Sort::Switches => thousandths(row.switches),
        Sort::Network => thousandths(row.sent + row.received),
    }
}

fn draw(rows: &[Row], silent: &[NodeId], sort: Sort) -> io::Result<()> {
    let (lines, columns) = terminal::size();
    let name = sort.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let missing = match silent {
        [] => String::new(),
        silent => format!(", {} nodes did not answer", silent.len()),
    };
    let head = format!(
        "{} processes by {name}{missing}   (c)pu (w)aited (m)emory (f)aults (s)witches (n)etwork (q)uit",
        rows.len()
    );
    let table = show::top(rows);
    let mut screen = String::from("\x1b[H\x1b[J");
    for line in [head.as_str()].into_iter().chain(table.lines()).take(usize::from(lines).saturating_sub(1)) {
        screen.extend(line.chars().take(columns.into()));
        screen.push_str("\r\n");
    }
    let mut out = io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()
}

/// Each key, as it is pressed; the reading thread ends with the process.
fn keys() -> Receiver<u8> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for byte in io::stdin().lock().bytes().map_while(Result::ok) {
            if sender.send(byte).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next key, if one is pressed until then.
fn key(keys: &Receiver<u8>, until: Instant) -> Option<u8> {
    match keys.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(key) => Some(key),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            thread::sleep(until.saturating_duration_since(Instant::now()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn process(serial: u32, cpu: u64, switches: u64) -> Process {
        Process {
            gpid: Gpid { node: NodeId(1), serial },
            parent: None,
            task: "j1.1/0".parse().unwrap(),
            node: NodeId(1),
            pid: 2,
            name: "x".into(),
            started: SystemTime::now() - Duration::from_secs(100),
            cpu: Duration::from_secs(cpu),
            waited: Duration::ZERO,
            minor_faults: 0,
            major_faults: 0,
            voluntary_switches: switches,
            involuntary_switches: 0,
            threads: 1,
            memory: 0,
            sent: 0,
            received: 0,
            connections: Vec::new(),
            traffic: Vec::new(),
        }
    }

    fn listed(processes: Vec<Process>) -> Listed {
        Listed { processes, silent: Vec::new(), more: false }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let mut seen = Seen::default();
        let (rows, _) = seen.look(listed(vec![process(1, 50, 10), process(2, 10, 90)]), Sort::Cpu);
        // Of a first look: since the start.
        assert!((rows[0].cpu_percent - 50.0).abs() < 1.0 && rows[0].process.gpid.serial == 1, "{rows:?}");
        seen.1 = Some(Instant::now() - Duration::from_secs(10));
        let (rows, _) = seen.look(listed(vec![process(1, 51, 10), process(2, 15, 1090)]), Sort::Cpu);
        assert_eq!(rows[0].process.gpid.serial, 2, "{rows:?}");
        assert!(
            (rows[0].cpu_percent - 50.0).abs() < 1.0 && (rows[0].switches - 100.0).abs() < 1.0,
            "{rows:?}"
        );
        assert!((rows[1].cpu_percent - 10.0).abs() < 1.0 && rows[1].switches == 0.0, "{rows:?}");
    }
}
