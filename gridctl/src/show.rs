//! How things look: tables for people, JSON for programs.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use comfy_table::{Cell, CellAlignment, Table, presets};
use libgrid::control::{Finding, NodeState, NodeStatus, Verdict};
use libgrid::copy::{Entry, EntryKind, ExportOf};
use libgrid::ids::NodeId;
use libgrid::pipe::PipeStatus;
use libgrid::process::{Connection, Process, Traffic};
use libgrid::status::{JobStatus, JobSummary, TaskCheckpoints, TaskState, Usage};
use libgrid::units::{Bytes, Cpus, Span};
use serde::Serialize;

use crate::Done;
use crate::top::Row;

/// Prints one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Done {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints text; whatever is in it of control characters but the ends of lines, escaped.
pub(crate) fn text(text: impl std::fmt::Display) -> Done {
    writeln!(
        io::stdout().lock(),
        "{}",
        escaped(&text.to_string(), |letter| letter == '\n' || letter == '\t')
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Text of others' making, such as the name of a program or a file, as one line that a terminal does nothing but show.
pub(crate) fn plain(text: impl ToString) -> String {
    escaped(&text.to_string(), |_| false)
}

fn escaped(text: &str, passes: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() && !passes(letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(Cell::new));
    table
}

fn cell(text: impl ToString) -> Cell {
    Cell::new(plain(text))
}

fn right(text: impl ToString) -> Cell {
    cell(text).set_alignment(CellAlignment::Right)
}

pub(crate) fn nodes(nodes: &[NodeStatus]) -> String {
    let mut table = table(&[
        "",
        "NODE",
        "NAME",
        "STATE",
        "FREE CORES",
        "FREE MEMORY",
        "LOAD",
        "TASKS",
        "TIER",
        "ADDRESS",
    ]);
    for NodeStatus { info, state, this } in nodes {
        let up = matches!(state, NodeState::Up | NodeState::Suspect);
        let amount = |text: String| right(if up { text } else { "-".into() });
        let cpu = |milli: u32| if milli == 0 { "0".into() } else { Cpus::from_milli(milli).to_string() };
        table.add_row([
            cell(if *this { "*" } else { "" }),
            right(info.node),
            cell(&info.name),
            cell(if info.drained { format!("{state}, drained") } else { state.to_string() }),
            amount(format!("{} / {}", cpu(info.free.cpu), cpu(info.total.cpu))),
            amount(format!("{} / {}", Bytes(info.free.memory), Bytes(info.total.memory))),
            amount(format!("{:.2}", f64::from(info.load) / 100.0)),
            amount(info.tasks.to_string()),
            cell(info.tier),
            cell(info.addrs.first().map(ToString::to_string).unwrap_or_default()),
        ]);
    }
    trimmed(&table)
}

pub(crate) fn entries(entries: &[Entry], long: bool) -> String {
    let name = |entry: &Entry| match entry.kind {
        EntryKind::Folder => format!("{}/", entry.name),
        _ => entry.name.clone(),
    };
    if !long {
        return entries.iter().map(|entry| plain(name(entry))).collect::<Vec<_>>().join("\n");
    }
    let mut table = table(&["MODE", "SIZE", "AGE", "NAME"]);
    for entry in entries {
        let modified = u64::try_from(entry.modified).unwrap_or(0);
        table.add_row([
            cell(format!("{:04o}", entry.mode)),
            right(Bytes(entry.size)),
            right(age(SystemTime::UNIX_EPOCH + Duration::from_secs(modified))),
            cell(name(entry)),
        ]);
    }
    trimmed(&table)
}

pub(crate) fn exports(exports: &[ExportOf]) -> String {
    let mut table = table(&["NODE", "FOLDER", "GRID", "RIGHTS", "AS", "FREE"]);
    for ExportOf { name, export, free, .. } in exports {
        let grid = export.grid.as_ref().map_or("-".into(), |grid| format!("grid:{}", grid.display()));
        table.add_row([
            cell(name),
            cell(export.path.display()),
            cell(grid),
            cell(if export.write { "read, write" } else { "read" }),
            cell(&export.user),
            right(Bytes(*free)),
        ]);
    }
    trimmed(&table)
}

pub(crate) fn pipes(pipes: &[PipeStatus]) -> String {
    let mut table =
        table(&["NODE", "PIPE", "OWNER", "CAPACITY", "SPILL", "SHARED", "READERS", "WRITERS", "HOLDS"]);
    for PipeStatus { spec, node, owner, buffered, readers, writers } in pipes {
        table.add_row([
            cell(node),
            cell(&spec.name),
            cell(owner),
            right(spec.capacity),
            right(spec.spill.map_or("-".into(), |spill| spill.to_string())),
            cell(if spec.shared { "yes" } else { "no" }),
            right(readers),
            right(writers),
            right(buffered),
        ]);
    }
    trimmed(&table)
}

pub(crate) fn doctor(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok",
            Verdict::Missing => "missing",
            Verdict::Bad => "BAD",
        };
        table.add_row([cell(mark), cell(&finding.subject), cell(&finding.text)]);
    }
    trimmed(&table)
}

pub(crate) fn jobs(jobs: &[JobSummary]) -> String {
    let mut table = table(&["JOB", "NAME", "OWNER", "STATE", "TASKS", "NODES", "AGE", "WHY"]);
    for job in jobs {
        table.add_row([
            cell(job.id),
            cell(&job.name),
            cell(&job.owner),
            cell(job.state()),
            right(format!("{} / {}", job.counts.done(), job.counts.total())),
            cell(list(&job.nodes)),
            right(age(job.submitted)),
            cell(job.why.as_deref().unwrap_or("")),
        ]);
    }
    trimmed(&table)
}

/// Processes, each a line.
pub(crate) fn processes(processes: &[Process]) -> String {
    let mut table =
        table(&["GPID", "PARENT", "TASK", "NODE", "PID", "THREADS", "AGE", "CPU", "MEMORY", "NAME"]);
    for process in processes {
        table.add_row([
            right(process.gpid),
            right(process.parent.map_or_else(|| "-".into(), |parent| parent.to_string())),
            cell(process.task),
            right(process.node),
            right(process.pid),
            right(process.threads),
            right(age(process.started)),
            right(short(process.cpu)),
            right(Bytes(process.memory)),
            cell(&process.name),
        ]);
    }
    trimmed(&table)
}

/// A process in full.
pub(crate) fn process(process: &Process) -> String {
    let Process { gpid, parent, task, node, pid, name, threads, .. } = process;
    let mut lines = vec![format!("{gpid}  {}  of {task} on node {node}", plain(name))];
    lines.extend(parent.map(|parent| format!("  made by    {parent}")));
    lines.extend([
        format!("  pid        {pid}, in its task"),
        format!("  there for  {}", age(process.started)),
        format!("  threads    {threads}"),
        format!("  memory     {}", Bytes(process.memory)),
        format!("  ran        {}, and waited {} for a processor", short(process.cpu), short(process.waited)),
        format!("  faults     {} from memory, {} from storage", process.minor_faults, process.major_faults),
        format!(
            "  switches   {} to wait, {} as its time was over",
            process.voluntary_switches, process.involuntary_switches
        ),
    ]);
    for connection in &process.connections {
        let Connection { local, remote, sent, received, retransmitted, round_trip, window, .. } = connection;
        lines.push(format!(
            "  tcp        {local} to {remote}: sent {}, received {}, round trip {}, window {window}, sent again {retransmitted}",
            Bytes(*sent),
            Bytes(*received),
            short(*round_trip)
        ));
    }
    for traffic in &process.traffic {
        let Traffic { remote, node, sent, sent_packets, received, received_packets } = traffic;
        let whose = node.map_or_else(String::new, |node| format!(" (node {node})"));
        lines.push(format!(
            "  with       {remote}{whose}: sent {} in {sent_packets} packets, received {} in {received_packets}",
            Bytes(*sent),
            Bytes(*received)
        ));
    }
    lines.join("\n")
}

/// What processes used since the last look.
pub(crate) fn top(rows: &[Row]) -> String {
    let mut table = table(&[
        "GPID",
        "TASK",
        "NODE",
        "%CPU",
        "%WAITED",
        "MEMORY",
        "FAULTS/s",
        "SWITCHES/s",
        "SENT/s",
        "RECEIVED/s",
        "CPU",
        "NAME",
    ]);
    for Row { process, cpu_percent, waited_percent, faults, switches, sent, received } in rows {
        table.add_row([
            right(process.gpid),
            cell(process.task),
            right(process.node),
            right(format!("{cpu_percent:.1}")),
            right(format!("{waited_percent:.1}")),
            right(Bytes(process.memory)),
            right(format!("{faults:.0}")),
            right(format!("{switches:.0}")),
            right(Bytes(*sent as u64)),
            right(Bytes(*received as u64)),
            right(short(process.cpu)),
            cell(&process.name),
        ]);
    }
    trimmed(&table)
}

/// A job in full.
pub(crate) fn status(status: &JobStatus) -> String {
    let JobStatus { summary, spec, tasks, more } = status;
    let counts = summary.counts;
    let mut lines = vec![
        format!("{}  {}  {}", summary.id, plain(&summary.name), summary.state()),
        format!("  command    {}", plain(spec.command.join(" "))),
        format!("  owner      {}", plain(&summary.owner)),
        format!("  submitted  {} ago", age(summary.submitted)),
        format!("  needs      {}, {} of memory{}", spec.cpus.in_words(), spec.memory, time_limit(spec.time)),
    ];
    if counts.total() > 1 {
        lines.push(format!(
            "  tasks      {} waiting, {} running, {} succeeded, {} failed",
            counts.waiting,
            counts.placed + counts.running,
            counts.succeeded,
            counts.failed
        ));
    }
    if let Some(why) = &summary.why {
        lines.push(format!("  waits      {why}"));
    }
    let addresses = tasks.iter().any(|task| task.address.is_some());
    let mut header = vec!["TASK", "STATE", "NODE", "RUN", "TIME", "CPU", "MEMORY", "READ", "WRITTEN"];
    header.extend(addresses.then_some("ADDRESS"));
    header.push("HOW IT IS");
    let mut table = table(&header);
    for task in tasks {
        let how =
            task.outcome.as_ref().map(ToString::to_string).or_else(|| task.why.clone()).unwrap_or_default();
        let Usage { peak_memory, read, written, wall, .. } = task.usage;
        let wall = match task.state {
            // What it did elsewhere counts; what its node told is a moment old.
            TaskState::Running => wall.max(task.started.and_then(|at| at.elapsed().ok()).unwrap_or_default()),
            _ => wall,
        };
        let mut row = vec![
            cell(format!("{}/{}", summary.id, task.index)),
            cell(task.state),
            right(task.node.map(|node| node.to_string()).unwrap_or_default()),
            right(task.epoch),
            right(short(wall)),
            right(short(task.usage.cpu())),
            right(Bytes(peak_memory)),
            right(Bytes(read)),
            right(Bytes(written)),
        ];
        if addresses {
            row.push(cell(task.address.map(|address| address.to_string()).unwrap_or_default()));
        }
        row.push(cell(how));
        table.add_row(row);
    }
    lines.push(trimmed(&table));
    if let Some(more) = more {
        lines.push(format!("tasks from {more} on: gridctl status --from {more} {}", summary.id));
    }
    lines.join("\n")
}

/// Checkpoints of tasks, each a line.
pub(crate) fn checkpoints(tasks: &[TaskCheckpoints]) -> String {
    let mut table = table(&["TASK", "NUMBER", "AGE", "SIZE", "INTERVAL", "COST", "NODE"]);
    for TaskCheckpoints { task, checkpoints, .. } in tasks {
        for checkpoint in checkpoints {
            table.add_row([
                cell(task),
                right(checkpoint.number),
                right(age(checkpoint.made)),
                right(Bytes(checkpoint.bytes)),
                right(checkpoint.interval.map_or_else(|| "by hand".into(), short)),
                right(short(checkpoint.cost)),
                right(checkpoint.node),
            ]);
        }
    }
    trimmed(&table)
}

fn time_limit(limit: Option<Span>) -> String {
    limit.map(|limit| format!(", at most {limit}")).unwrap_or_default()
}

fn list(nodes: &[NodeId]) -> String {
    let shown: Vec<_> = nodes.iter().take(8).map(ToString::to_string).collect();
    let rest = nodes.len().saturating_sub(8);
    if rest > 0 { format!("{} +{rest}", shown.join(",")) } else { shown.join(",") }
}

fn age(since: SystemTime) -> String {
    let age = since.elapsed().unwrap_or_default();
    Span(Duration::from_secs(age.as_secs())).to_string()
}

/// A length of time with three digits.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 60.0 {
        Span(Duration::from_secs(time.as_secs())).to_string()
    } else if seconds >= 1.0 {
        format!("{seconds:.1}s")
    } else {
        format!("{:.1}ms", seconds * 1000.0)
    }
}

/// Without the blanks that fill the last column.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_one_line_without_control_characters() {
        assert_eq!(plain("simulate 2 ä"), "simulate 2 ä");
        assert_eq!(plain("\u{1b}[2J\u{9b}31mx\n\ty"), r"\u{1b}[2J\u{9b}31mx\n\ty");
        assert_eq!(escaped("two\nlines\u{7}", |letter| letter == '\n'), "two\nlines\\u{7}");
    }
}
