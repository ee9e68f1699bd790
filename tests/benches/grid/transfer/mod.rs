//! Bulk data: how fast, and for how much processor time, beside the peers.
//!
//! Files lie in memory (`/dev/shm`), and go where they cost nothing, `/dev/null`, or, for the peers that cannot write
//! there, over a file that is there already. Processor time is that of the whole machine while the transfer runs: of
//! both ends, the kernel's share included.

mod bare;
mod peers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grid_lab::Slow;
use grid_tests::{Grid, GridConfig};

use self::peers::Peer;
use crate::report::{RUNS, Report};

pub(crate) use self::bare::run as bare;

/// Bytes of the large file.
const LARGE: u64 = 2 << 30;

/// Bytes of the files that go over a long line. Of the first, the half second in which connections get going is a tenth.
const LONG: u64 = 512 << 20;
const LONGER: u64 = 2 << 30;

/// The line of `gridctl lab slow`: half of a round trip each way.
const DELAY: Duration = Duration::from_millis(25);
const RATE: u64 = 1_000_000_000;

/// A folder in memory; removed with this value.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gridbench-").tempdir_in("/dev/shm").unwrap();
        // Not to write: vsftpd serves no such folder.
        set_mode(dir.path(), 0o755);
        Self(dir)
    }

    fn file(&self, name: &str, length: u64) -> PathBuf {
        let path = self.0.path().join(name);
        fill(&path, length);
        path
    }

    fn tree(&self, name: &str, folders: u32, files: u32, size: usize) -> PathBuf {
        let top = self.0.path().join(name);
        for folder in 0..folders {
            let folder = top.join(format!("d{folder}"));
            fs::create_dir_all(&folder).unwrap();
            for file in 0..files {
                fs::write(folder.join(format!("f{file}")), vec![file as u8; size]).unwrap();
            }
        }
        top
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        set_mode(&path, 0o777);
        path
    }
}

/// Makes a file of that many bytes, none of them a hole.
pub(crate) fn fill(path: &Path, length: u64) {
    let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = fs::File::create(path).unwrap();
    for _ in 0..length / piece.len() as u64 {
        std::io::Write::write_all(&mut file, &piece).unwrap();
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Seconds of processor time that the machine has spent since it started.
pub(crate) fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> =
        text.lines().next().unwrap().split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    // user, nice, system, idle, iowait, irq, softirq: hundredths of a second.
    (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / 100.0
}

/// Runs a command to its end: the time, and the processor time.
fn timed(command: &mut Command) -> Result<(f64, f64), String> {
    let (start, before) = (Instant::now(), busy());
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let (time, cpu) = (start.elapsed().as_secs_f64(), busy() - before);
    match output.status.success() {
        true => Ok((time, cpu)),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// One way to move something.
struct Way<'a> {
    name: String,
    command: Box<dyn Fn() -> Command + 'a>,
}

fn way<'a>(name: impl Into<String>, command: impl Fn() -> Command + 'a) -> Way<'a> {
    Way { name: name.into(), command: Box::new(command) }
}

/// Measures all ways in turn: for each its times and processor times, in order.
fn in_turn(ways: &[Way<'_>]) -> Vec<(Vec<f64>, Vec<f64>)> {
    let mut all = vec![(Vec::new(), Vec::new()); ways.len()];
    for _ in 0..RUNS {
        for (way, (times, cpus)) in ways.iter().zip(&mut all) {
            match timed(&mut (way.command)()) {
                Ok((time, cpu)) => {
                    times.push(time);
                    cpus.push(cpu);
                }
                Err(why) => println!("  {} failed: {why}", way.name),
            }
        }
    }
    all
}

/// Notes rates and processor time of all ways that came to an end, and the ratios to ours, the first.
fn note_rates(report: &mut Report, case: &str, ways: &[Way<'_>], bytes: u64) {
    let gigabytes = bytes as f64 / 1e9;
    let mut ours = None;
    for (way, (times, cpus)) in ways.iter().zip(in_turn(ways)) {
        if times.is_empty() {
            continue;
        }
        let rates: Vec<f64> = times.iter().map(|time| gigabytes / time).collect();
        let costs: Vec<f64> = cpus.iter().map(|cpu| cpu / gigabytes).collect();
        let rate = report.note(("transfer", case), &way.name, ("rate", "GB/s"), &rates);
        let cost = report.note(("transfer", case), &way.name, ("processor time", "s/GB"), &costs);
        match ours {
            None => ours = Some((rate, cost)),
            Some((our_rate, our_cost)) => println!(
                "  ratio to {}: {:.2} times its rate, {:.2} of its processor time",
                way.name,
                our_rate / rate,
                our_cost / cost
            ),
        }
    }
}

fn note_times(report: &mut Report, case: &str, ways: &[Way<'_>]) {
    let mut ours = None;
    for (way, (times, _)) in ways.iter().zip(in_turn(ways)) {
        if times.is_empty() {
            continue;
        }
        let time = report.note(("transfer", case), &way.name, ("time", "s"), &times);
        match ours {
            None => ours = Some(time),
            Some(ours) => println!("  ratio to {}: {:.2} times as fast", way.name, time / ours),
        }
    }
}

fn on(grid: &Grid, node: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    grid.machine(node).exec(program)
}

fn gridctl(grid: &Grid, node: u32, words: &[&str]) -> Command {
    let mut command = on(grid, node, grid_tests::program("gridctl"));
    command.args(words);
    command
}

pub(crate) fn run(report: &mut Report) {
    let grid = GridConfig::new("bench", 2).up();
    let place = Place::new();
    grid.gridctl(2, ["export", "--write", "--as", "nobody", "/dev"]).ok();
    grid.gridctl(1, ["export", "--write", "--as", "nobody", "/dev"]).ok();
    let sink = place.folder("sink");
    grid.gridctl(2, ["export", "--write", "--as", "nobody", sink.to_str().unwrap()]).ok();
    large(report, &grid, &place);
    small(report, &grid, &place, &sink);
    long(report, &grid, &place, &sink);
}

/// One large file, on one machine and from one to the other.
fn large(report: &mut Report, grid: &Grid, place: &Place) {
    let file = place.file("large", LARGE);
    let source = file.to_str().unwrap();
    for (case, server) in [("loopback", 1), ("link", 2)] {
        let address = grid.machine(server).addr().to_string();
        let peers = peers::start(grid, server, place.0.path());
        for streams in [1, 4] {
            let target = format!("node{server}:/dev/null");
            let count = streams.to_string();
            let mut ways = vec![
                way("gridos", || gridctl(grid, 1, &["cp", "-s", &count, source, &target])),
                way("bare sendfile and splice", || bare::pair(grid, (1, server), &address, &file, streams)),
            ];
            ways.extend(peers.iter().filter_map(|peer| peer.large(grid, &address, &file, streams)));
            note_rates(report, &format!("2 GiB, {case}, {streams} streams"), &ways, LARGE);
        }
        if server == 2 {
            let sink = place.folder("sink");
            let target = format!("node2:{}/copy", sink.display());
            let ways = [
                way("gridos, checked", || gridctl(grid, 1, &["cp", "--fresh", source, &target])),
                way("gridos, not checked", || gridctl(grid, 1, &["cp", "--no-checksum", source, &target])),
                way("gridos, encrypted", || gridctl(grid, 1, &["cp", "--encrypt", source, &target])),
            ];
            note_rates(report, "2 GiB into a new file in memory, link", &ways, LARGE);
            let _ = fs::remove_file(sink.join("copy"));
        }
        peers.into_iter().for_each(Peer::stop);
    }
    fs::remove_file(file).unwrap();
}

/// A tree of 10,000 files of 4 KiB.
fn small(report: &mut Report, grid: &Grid, place: &Place, sink: &Path) {
    let tree = place.tree("tree", 100, 100, 4096);
    let target = format!("node2:{}/", sink.display());
    let address = grid.machine(2).addr().to_string();
    let peers = peers::start(grid, 2, place.0.path());
    // What was copied before is removed outside of the time: by a rename, and at the end.
    let away = |number: &std::cell::Cell<u32>| {
        number.set(number.get() + 1);
        let _ = fs::rename(sink.join("tree"), place.0.path().join(format!("away{}", number.get())));
    };
    let number = std::cell::Cell::new(0);
    let mut ways = vec![way("gridos", || {
        away(&number);
        gridctl(grid, 1, &["cp", "-r", tree.to_str().unwrap(), &target])
    })];
    if let Some(rsync) = peers.iter().find(|peer| peer.name == "rsync") {
        ways.push(way(rsync.version.clone(), || {
            away(&number);
            let mut command = on(grid, 1, "rsync");
            let module = format!("rsync://{address}:{}/all/sink/", rsync.port);
            command.arg("-a").arg(&tree).arg(module);
            command
        }));
    }
    note_times(report, "10,000 files of 4 KiB, link", &ways);
    drop(ways);
    peers.into_iter().for_each(Peer::stop);
    let _ = fs::remove_dir_all(sink.join("tree"));
}

/// Notes which share of the link all ways got, and the ratios to ours, the first.
fn note_shares(report: &mut Report, case: &str, ways: &[Way<'_>], bytes: u64) {
    let link = RATE as f64 / 8.0;
    let mut ours = None;
    for (way, (times, _)) in ways.iter().zip(in_turn(ways)) {
        if times.is_empty() {
            continue;
        }
        let shares: Vec<f64> = times.iter().map(|time| bytes as f64 / time / link).collect();
        let share = report.note(("transfer", case), &way.name, ("share of the link", ""), &shares);
        match ours {
            None => ours = Some(share),
            Some(ours) => println!("  ratio to {}: {:.2}", way.name, ours / share),
        }
    }
}

/// A line of 1 Gbit/s and 50 ms, without and with loss.
fn long(report: &mut Report, grid: &Grid, place: &Place, sink: &Path) {
    let file = place.file("long", LONG);
    let longer = place.file("longer", LONGER);
    let tree = place.tree("few", 1, 200, 10 << 10);
    let source = file.to_str().unwrap();
    let address = grid.machine(2).addr().to_string();
    let peers = peers::start(grid, 2, place.0.path());
    for (name, loss) in [("no loss", 0), ("0.1 % loss", 1000)] {
        let line = Slow { delay: DELAY, rate: Some(RATE), loss, queue: None };
        grid.machine(2).slow(line).unwrap();
        let mut ways = vec![
            way("gridos", || gridctl(grid, 1, &["cp", source, "node2:/dev/null"])),
            way("gridos under cubic", || {
                gridctl(grid, 1, &["cp", "--congestion", "cubic", source, "node2:/dev/null"])
            }),
            way("gridos under reno", || {
                gridctl(grid, 1, &["cp", "--congestion", "reno", source, "node2:/dev/null"])
            }),
        ];
        ways.extend(peers.iter().flat_map(|peer| peer.long(grid, &address, &file)));
        note_shares(report, &format!("512 MiB, 1 Gbit/s, 50 ms, {name}"), &ways, LONG);
        let longer = longer.to_str().unwrap();
        let alone = [way("gridos", || gridctl(grid, 1, &["cp", longer, "node2:/dev/null"]))];
        note_shares(report, &format!("2 GiB, 1 Gbit/s, 50 ms, {name}"), &alone, LONGER);
        let target = format!("node2:{}/", sink.display());
        let mut ways = vec![way("gridos", || {
            let _ = fs::remove_dir_all(sink.join("few"));
            gridctl(grid, 1, &["cp", "-r", tree.to_str().unwrap(), &target])
        })];
        ways.extend(peers.iter().flat_map(|peer| peer.small(grid, &address, &tree)));
        note_times(report, &format!("200 files of 10 KiB, 1 Gbit/s, 50 ms, {name}"), &ways);
    }
    grid.machine(2).heal().unwrap();
    peers.into_iter().for_each(Peer::stop);
}
