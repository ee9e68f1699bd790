//! Named pipes between nodes: every byte comes out once, in order, and to who may have it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::path::PathBuf;
use std::time::Duration;

use grid_tests::{Grid, NOBODY, Running, until, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::status::Outcome;
use libgrid::units::{Bytes, Cpus};

/// Lines that tell who wrote them and when.
fn lines(who: &str, count: u32) -> String {
    (0..count).map(|number| format!("{who} {number} {}\n", "x".repeat(number as usize % 90))).collect()
}

fn reader(grid: &Grid, node: u32, pipe: &str) -> Running {
    grid.start(node, ["pipe", "cat", pipe])
}

/// What one writer writes: bytes that no other has, in an order that tells each loss.
fn letters(who: u8, count: u32) -> String {
    let random = |at: u32| (at.wrapping_mul(2_654_435_761) >> 20) as u8 % 8;
    (0..count).map(|at| char::from(b'a' + 8 * who + random(at))).collect()
}

/// What came of it.
fn of(who: u8, text: &str) -> String {
    text.chars().filter(|letter| (*letter as u8 - b'a') / 8 == who).collect()
}

#[test]
fn several_write_and_read_on_any_nodes_and_each_byte_comes_out_once() {
    with(
        "several_write_and_read_on_any_nodes_and_each_byte_comes_out_once",
        || Grid::up("pipes", 3),
        |grid| {
            grid.gridctl(2, ["pipe", "create", "numbers"]).ok();
            let first = reader(grid, 3, "node2:numbers");
            let texts = [0, 1, 2].map(|who| letters(who, 2_000_000));
            let mut writers: Vec<Running> =
                [1, 2, 3].iter().map(|node| grid.start(*node, ["pipe", "write", "numbers"])).collect();
            until("all write", || grid.gridctl(1, ["pipe", "ls", "-e", "--json"]).json()[0]["writers"] == 3);
            std::thread::scope(|scope| {
                for (writer, text) in writers.iter_mut().zip(&texts) {
                    scope.spawn(move || {
                        writer.type_in(text);
                        writer.end_input();
                    });
                }
            });
            for writer in writers {
                assert_eq!(writer.wait().status, 0);
            }
            let came = first.wait();
            let came = came.ok();
            for (who, text) in [0, 1, 2].into_iter().zip(&texts) {
                assert!(of(who, came) == *text, "{who}");
            }
            assert_eq!(came.len(), 6_000_000);
            // Two readers: each byte goes to one.
            let readers = [reader(grid, 1, "numbers"), reader(grid, 3, "2:numbers")];
            until("both read", || grid.gridctl(2, ["pipe", "ls", "--json"]).json()[0]["readers"] == 2);
            grid.gridctl_with(1, texts[0].as_bytes(), ["pipe", "write", "numbers"]).ok();
            let parts = readers.map(|reader| reader.wait().ok().len());
            assert_eq!(parts.iter().sum::<usize>(), texts[0].len(), "{parts:?}");
            // Bytes of all sorts, and none at all.
            let bytes: Vec<u8> =
                (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let raw = reader(grid, 1, "numbers");
            grid.gridctl_with(3, &bytes, ["pipe", "write", "numbers"]).ok();
            until("it ends", || raw.stdout().len() >= bytes.len());
            assert!(raw.stdout() == bytes);
            assert_eq!(raw.wait().status, 0);
            let none = reader(grid, 1, "numbers");
            until("it reads", || grid.gridctl(2, ["pipe", "ls", "--json"]).json()[0]["readers"] == 1);
            grid.gridctl_with(3, b"", ["pipe", "write", "numbers"]).ok();
            assert_eq!(none.wait().ok(), "");
        },
    );
}

#[test]
fn a_full_pipe_makes_writers_wait() {
    with(
        "a_full_pipe_makes_writers_wait",
        || Grid::up("pipefull", 2),
        |grid| {
            grid.gridctl(2, ["pipe", "create", "small", "--capacity", "64K"]).ok();
            let text = lines("w", 60_000);
            let mut writer = grid.start(1, ["pipe", "write", "small"]);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    writer.type_in(&text);
                    writer.end_input();
                });
                until("it is full", || {
                    let held = grid.gridctl(2, ["pipe", "ls", "--json"]).json();
                    held[0]["buffered"].as_u64().unwrap() > 40_000
                });
                std::thread::sleep(Duration::from_millis(500));
                let held = grid.gridctl(2, ["pipe", "ls", "--json"]).json()[0]["buffered"].as_u64().unwrap();
                assert!(held <= 64 << 10, "{held}");
                grid.gridctl(2, ["pipe", "cat", "nowhere:small"]).says(&["there is no node nowhere"]);
                let all = reader(grid, 2, "small").wait();
                assert!(all.ok() == text.trim_end_matches('\n'));
            });
            assert_eq!(writer.wait().status, 0);
        },
    );
}

#[test]
fn what_is_spilled_outlives_the_agent_and_what_is_not_is_lost() {
    with(
        "what_is_spilled_outlives_the_agent_and_what_is_not_is_lost",
        || Grid::up("pipespill", 2),
        |grid| {
            grid.gridctl(2, ["pipe", "create", "kept", "--spill", "64M"]).ok();
            grid.gridctl(2, ["pipe", "create", "lost"]).ok();
            let text = lines("k", 100_000);
            grid.gridctl_with(1, text.as_bytes(), ["pipe", "write", "kept"]).ok();
            grid.gridctl_with(1, b"gone", ["pipe", "write", "lost"]).ok();
            let held = |name: &str| {
                let all = grid.gridctl(1, ["pipe", "ls", "--everywhere", "--json"]).json();
                let pipe = all.as_array().unwrap().iter().find(|pipe| pipe["spec"]["name"] == name).cloned();
                pipe.map(|pipe| pipe["buffered"].as_u64().unwrap())
            };
            assert_eq!((held("kept"), held("lost")), (Some(text.len() as u64), Some(4)));
            grid.kill_agent(2);
            grid.until_up(1, 2);
            until("it lists", || held("kept").is_some());
            assert_eq!((held("kept"), held("lost")), (Some(text.len() as u64), Some(0)));
            let came = reader(grid, 1, "kept").wait();
            assert!(came.ok() == text.trim_end_matches('\n'));
            assert_eq!(held("kept"), Some(0));
            // Whoever waits at a pipe when its agent goes is told.
            let waits = reader(grid, 1, "kept");
            until("it reads", || {
                let all = grid.gridctl(2, ["pipe", "ls", "--json"]).json();
                all.as_array().unwrap().iter().any(|pipe| pipe["readers"] == 1)
            });
            grid.kill_agent(2);
            assert_eq!(waits.wait().status, 1);
        },
    );
}

#[test]
fn pipes_are_their_owners_and_wrong_ones_are_refused_with_a_reason() {
    with(
        "pipes_are_their_owners_and_wrong_ones_are_refused_with_a_reason",
        || Grid::up("piperights", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            let as_them = |node: u32, args: &[&str]| grid.gridctl_as(node, NOBODY, &folder, args);
            grid.gridctl(1, ["pipe", "create", "roots"]).ok();
            grid.gridctl(1, ["pipe", "create", "all", "--shared"]).ok();
            as_them(1, &["pipe", "create", "theirs"]).ok();
            for args in [["pipe", "cat", "roots"], ["pipe", "write", "node1:roots"], ["pipe", "rm", "roots"]]
            {
                as_them(1, &args).says(&["roots is root@node1's", "you are nobody@node1"]);
            }
            as_them(1, &["pipe", "rm", "all"]).says(&["is root@node1's"]);
            // The same number on another node is another user.
            as_them(2, &["pipe", "cat", "node1:theirs"]).says(&["is nobody@node1's", "nobody@node2"]);
            as_them(2, &["pipe", "cat", "theirs"]).says(&["no pipe theirs that you may use"]);
            grid.gridctl_with(2, b"for all", ["pipe", "write", "all"]).ok();
            assert_eq!(as_them(2, &["pipe", "cat", "all"]).ok(), "for all");
            let names = |run: grid_tests::Run| -> Vec<String> {
                let all = run.json();
                all.as_array()
                    .unwrap()
                    .iter()
                    .map(|pipe| pipe["spec"]["name"].as_str().unwrap().into())
                    .collect()
            };
            assert_eq!(names(as_them(1, &["pipe", "ls", "--json"])), ["all", "theirs"]);
            assert_eq!(names(grid.gridctl(2, ["pipe", "ls", "-e", "--json"])), ["all", "roots", "theirs"]);
            for (args, status, says) in [
                (&["pipe", "create", "roots"][..], 1, "there is a pipe roots on this node"),
                (&["pipe", "create", "a/b"], 1, "is no name of a pipe"),
                (&["pipe", "create", "node2:x"], 1, "names another node"),
                (&["pipe", "create", "x", "--capacity", "1K"], 1, "use 64K to 64M"),
                (&["pipe", "create", "x", "--capacity", "lots"], 2, "lots"),
                (&["pipe", "create", "x", "--spill", "99T"], 1, "more than 16T"),
                (&["pipe", "cat", "absent"], 1, "there is no pipe absent"),
                (&["pipe", "cat", "node2:absent"], 1, "there is no pipe absent on node 2"),
                (&["pipe", "cat", "a:b:c"], 2, "is no name of a pipe"),
            ] {
                let run = grid.gridctl(1, args);
                assert!(run.status == status && run.stderr.contains(says), "{run:?}");
            }
            grid.gridctl(2, ["pipe", "create", "roots"]).ok();
            let run = grid.gridctl(1, ["pipe", "cat", "node1:roots", "--help"]);
            assert_eq!(run.status, 0);
            // A reader that waits is told when its pipe is removed, and the name is free.
            let waits = reader(grid, 2, "node1:all");
            until("it reads", || {
                let all = grid.gridctl(1, ["pipe", "ls", "--json"]).json();
                all.as_array().unwrap().iter().any(|pipe| pipe["readers"] == 1)
            });
            grid.gridctl(1, ["pipe", "rm", "all"]).ok();
            waits.wait().says(&["pipe all was removed"]);
            grid.gridctl(1, ["pipe", "create", "all"]).ok();
        },
    );
}

#[test]
fn a_task_may_what_the_owner_of_its_job_may() {
    with(
        "a_task_may_what_the_owner_of_its_job_may",
        || Grid::up("pipetask", 2),
        |grid| {
            let folder = grid.folder("work", NOBODY);
            grid.gridctl_as(1, NOBODY, &folder, ["pipe", "create", "theirs"]).ok();
            let gridctl = grid.lend("gridctl").display().to_string();
            let script = format!("seq 5 | {gridctl} pipe write node1:theirs");
            let submit = ["submit", "--mem", "64M", "--node", "node2", "--", "sh", "-c", &script];
            let theirs: JobId = grid.gridctl_as(1, NOBODY, &folder, submit).ok().parse().unwrap();
            assert_eq!(
                grid.wait(1, theirs).tasks[0].outcome,
                Some(Outcome::Exited(0)),
                "{}",
                grid.logs(1, theirs, 0)
            );
            assert_eq!(grid.gridctl_as(1, NOBODY, &folder, ["pipe", "cat", "theirs"]).ok(), "1\n2\n3\n4\n5");
            // A user of the other node has the same number, and is another.
            let other = grid.folder("other", NOBODY);
            let stranger: JobId = grid.gridctl_as(2, NOBODY, &other, submit).ok().parse().unwrap();
            assert_eq!(grid.wait(2, stranger).tasks[0].outcome, Some(Outcome::Exited(1)));
            assert!(grid.logs(2, stranger, 0).contains("is nobody@node1's"));
            let spec = JobSpec::command(["sh", "-c", &format!("{gridctl} pipe rm node1:theirs")]);
            let roots = grid.submit(2, spec.cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20)));
            assert_eq!(grid.wait(2, roots).tasks[0].outcome, Some(Outcome::Exited(0)), "root's job may");
        },
    );
}

/// A job whose tasks have a pipe, on these nodes.
fn sh(script: &str, nodes: &[u32], pipe: &str) -> JobSpec {
    let spec = JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(200)).memory(Bytes(128 << 20));
    let nodes = nodes.iter().map(|node| format!("node{node}")).collect();
    JobSpec { nodes, ..spec }.pipe(pipe.parse().unwrap())
}

/// What a job printed, which ended well.
fn printed(grid: &Grid, job: JobId) -> String {
    let status = grid.wait(1, job);
    let logs = grid.logs(1, job, 0);
    assert_eq!(status.tasks[0].outcome, Some(Outcome::Exited(0)), "{logs}");
    logs
}

#[test]
fn programs_that_know_nothing_of_pipes_have_them_as_fifos() {
    with(
        "programs_that_know_nothing_of_pipes_have_them_as_fifos",
        || Grid::up("fifos", 3),
        |grid| {
            grid.gridctl(2, ["pipe", "create", "numbers"]).ok();
            let (from, to) = ("seq 1 400000 > numbers", "sha256sum < numbers");
            let direct =
                std::process::Command::new("sh").args(["-c", "seq 1 400000 | sha256sum"]).output().unwrap();
            let direct = String::from_utf8(direct.stdout).unwrap();
            for (writes, reads) in [(1, 3), (2, 2), (3, 2)] {
                let reader = grid.submit(1, sh(to, &[reads], "node2:numbers:r"));
                let writer = grid.submit(1, sh(from, &[writes], "numbers:w"));
                printed(grid, writer);
                assert_eq!(printed(grid, reader), direct, "{writes} to {reads}");
            }
            // With gridctl at either end, and by the command line.
            let args = [
                "submit",
                "--node",
                "node3",
                "--pipe",
                "numbers:w",
                "--",
                "sh",
                "-c",
                "echo hello > numbers",
            ];
            let job: JobId = grid.gridctl(1, args).ok().parse().unwrap();
            assert_eq!(reader(grid, 1, "numbers").wait().ok(), "hello");
            printed(grid, job);
            let sum = grid.submit(1, sh(to, &[1], "numbers:r"));
            grid.gridctl_with(3, b"1\n2\n", ["pipe", "write", "numbers"]).ok();
            assert!(printed(grid, sum).starts_with("a6e2b7a0"), "{}", grid.logs(1, sum, 0));
            let wrong = grid.gridctl(1, ["submit", "--pipe", "numbers", "--", "true"]);
            assert!(wrong.status == 2 && wrong.stderr.contains(":r or :w"), "{wrong:?}");
        },
    );
}

/// A job that writes numbered lines to the pipe `numbers` of node 1, on node 2 or 3, and one that reads them there and ends at
/// the first that is not the next.
struct Numbers {
    writer: JobId,
    reader: JobId,
    /// The writer ends when this is there.
    go: PathBuf,
}

impl Numbers {
    /// `pace` is what the writer does after each line.
    fn begin(grid: &Grid, pace: &str) -> Self {
        let go = grid.dir().join("go");
        let writes = format!(
            "exec 3> numbers; n=0; while [ ! -e {} ]; do echo \"line $n of many\" >&3; n=$((n+1)); {pace}; done; \
             echo wrote $n",
            go.display()
        );
        let reads = "n=0; while read -r line; do [ \"$line\" = \"line $n of many\" ] || { echo bad $n: $line; exit 1; }; \
                     n=$((n+1)); done < numbers; echo read $n";
        let writer = grid.submit(1, sh(&writes, &[2, 3], "node1:numbers:w"));
        let reader = grid.submit(1, sh(reads, &[2, 3], "node1:numbers:r"));
        [writer, reader].into_iter().for_each(|job| grid.until_running(1, job));
        Self { writer, reader, go }
    }

    /// Each line came once.
    fn end(&self, grid: &Grid) {
        std::fs::write(&self.go, "").unwrap();
        let wrote = printed(grid, self.writer);
        let read = printed(grid, self.reader);
        assert_eq!(wrote.replace("wrote", "read"), read);
        let count: u32 = read.trim().strip_prefix("read ").unwrap().parse().unwrap();
        assert!(count > 1000, "{count}");
    }
}

#[test]
fn fifos_lose_nothing_while_the_writer_and_the_reader_move() {
    with(
        "fifos_lose_nothing_while_the_writer_and_the_reader_move",
        || Grid::up("fifomove", 3),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers"]).ok();
            let numbers = Numbers::begin(grid, "[ $((n % 50)) = 0 ] && sleep 0.01");
            let Numbers { writer, reader, .. } = numbers;
            for (round, mode) in ["stop-and-copy", "hybrid", "stop-and-copy"].into_iter().enumerate() {
                for job in [writer, reader] {
                    std::thread::sleep(Duration::from_millis(700));
                    let to = if grid.places(1, job)[0].unwrap().0 == 2 { "node3" } else { "node2" };
                    let moved = grid.gridctl(1, ["migrate", &job.to_string(), "--to", to, "--mode", mode]);
                    assert_eq!(moved.status, 0, "{round}: {moved:?} {}", grid.logs(1, reader, 0));
                }
            }
            std::thread::sleep(Duration::from_millis(700));
            numbers.end(grid);
        },
    );
}

/// Kills agents while a small pipe is full, so that there is always something on its way: all comes once and in order all the
/// same.
fn through_killed_agents(grid: &Grid, rounds: &[&[u32]], also: impl Fn(usize, [JobId; 2])) {
    let numbers = Numbers::begin(grid, ":");
    let full = || {
        until("the pipe is full", || {
            let pipes = grid.gridctl(1, ["pipe", "ls", "--json"]).json();
            pipes[0]["buffered"].as_u64().unwrap() > 40_000
        });
    };
    for (round, nodes) in rounds.iter().enumerate() {
        full();
        also(round, [numbers.writer, numbers.reader]);
        nodes.iter().for_each(|node| grid.kill_agent(*node));
        nodes.iter().for_each(|node| grid.until_up(*node, 3));
    }
    full();
    numbers.end(grid);
    let pipe = grid.gridctl(1, ["pipe", "ls", "--json"]).json();
    assert_eq!(pipe[0]["buffered"], 0);
}

#[test]
fn fifos_lose_nothing_when_the_agents_of_the_writer_and_the_reader_are_killed() {
    with(
        "fifos_lose_nothing_when_the_agents_of_the_writer_and_the_reader_are_killed",
        || Grid::up("fifokill", 3),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers", "--capacity", "64K"]).ok();
            through_killed_agents(grid, &[&[2], &[3], &[2, 3], &[3], &[2]], |_, _| ());
        },
    );
}

#[test]
fn fifos_of_a_spilled_pipe_lose_nothing_when_all_agents_are_killed() {
    with(
        "fifos_of_a_spilled_pipe_lose_nothing_when_all_agents_are_killed",
        || Grid::up("fifospill", 3),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers", "--capacity", "64K", "--spill", "64K"]).ok();
            through_killed_agents(grid, &[&[1], &[1, 2, 3], &[1], &[3, 2, 1], &[1, 2, 3]], |_, _| ());
        },
    );
}

#[test]
fn fifos_lose_nothing_when_their_tasks_move_and_agents_are_killed_in_turn() {
    with(
        "fifos_lose_nothing_when_their_tasks_move_and_agents_are_killed_in_turn",
        || Grid::up("fifoboth", 3),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers", "--capacity", "64K", "--spill", "64K"]).ok();
            let rounds: [&[u32]; 6] = [&[2], &[3], &[1], &[2, 3], &[1, 2, 3], &[3]];
            through_killed_agents(grid, &rounds, |round, jobs| {
                let job = jobs[round % 2];
                let to = if grid.places(1, job)[0].unwrap().0 == 2 { "node3" } else { "node2" };
                // It comes as far as it comes before the agents are killed.
                let _moving = grid.start(1, ["migrate", &job.to_string(), "--to", to]);
                std::thread::sleep(Duration::from_millis(200 * round as u64));
            });
        },
    );
}

#[test]
fn what_a_program_wrote_before_it_ended_comes_when_its_agent_is_there_again() {
    with(
        "what_a_program_wrote_before_it_ended_comes_when_its_agent_is_there_again",
        || Grid::up("fifoend", 2),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers"]).ok();
            let go = grid.dir().join("go");
            let script = format!(
                "exec 3> numbers; echo first >&3; while [ ! -e {} ]; do sleep 0.05; done; echo last >&3",
                go.display()
            );
            let job = grid.submit(1, sh(&script, &[2], "node1:numbers:w"));
            grid.until_running(1, job);
            let reader = reader(grid, 1, "numbers");
            until("the first line is there", || reader.stdout() == b"first\n");
            grid.machine(2).stop_agent().unwrap();
            std::fs::write(&go, "").unwrap();
            until("the program has ended", || grid.task_processes(2).is_empty());
            grid.machine(2).start_agent().unwrap();
            assert_eq!(reader.wait().ok(), "first\nlast");
            printed(grid, job);
        },
    );
}

#[test]
fn what_a_program_wrote_last_outlives_its_agent_when_the_pipe_is_full() {
    with(
        "what_a_program_wrote_last_outlives_its_agent_when_the_pipe_is_full",
        || Grid::up("fifolast", 2),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers", "--capacity", "64K"]).ok();
            let job = grid.submit(1, sh("seq 1 25000 > numbers", &[2], "node1:numbers:w"));
            printed(grid, job);
            grid.kill_agent(2);
            grid.until_up(2, 2);
            let direct: Vec<String> = (1..=25000).map(|number| number.to_string()).collect();
            assert!(reader(grid, 1, "numbers").wait().ok() == direct.join("\n"));
            until("nothing is left of it", || grid.task_files(2).is_empty());
        },
    );
}

#[test]
fn a_reader_that_has_seen_enough_leaves_the_rest_to_the_next() {
    with(
        "a_reader_that_has_seen_enough_leaves_the_rest_to_the_next",
        || Grid::up("fifohead", 1),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers"]).ok();
            let text = lines("n", 18_000);
            let mut writer = grid.start(1, ["pipe", "write", "numbers"]);
            writer.type_in(&text);
            let first = grid.submit(1, sh("head -n 1 < numbers; head -n 1 < numbers", &[1], "numbers:r"));
            assert!(printed(grid, first).starts_with("n 0 \n"));
            let second = grid.submit(1, sh("cat numbers", &[1], "numbers:r"));
            writer.end_input();
            assert_eq!(writer.wait().status, 0);
            let rest = printed(grid, second);
            // What was in the first one's FIFO went with it.
            assert!(text.ends_with(&rest) && !rest.is_empty() && rest.len() < text.len(), "{}", rest.len());
        },
    );
}

#[test]
fn a_writer_that_is_faster_than_its_pipe_moves() {
    with(
        "a_writer_that_is_faster_than_its_pipe_moves",
        || Grid::up("fifofast", 2),
        |grid| {
            grid.gridctl(1, ["pipe", "create", "numbers", "--capacity", "64K"]).ok();
            let writer = grid.submit(1, sh("exec seq 1 300000 > numbers", &[1, 2], "node1:numbers:w"));
            grid.until_running(1, writer);
            let reads = "n=1; while read -r line; do [ $line = $n ] || { echo bad $n: $line; exit 1; }; n=$((n+1)); \
                         done < numbers; echo read $n";
            let reader = grid.submit(1, sh(reads, &[1], "numbers:r"));
            grid.until_running(1, reader);
            for _ in 0..3 {
                let to = if grid.places(1, writer)[0].unwrap().0 == 2 { "node1" } else { "node2" };
                // Where it was before, what it wrote there may still be on its way.
                until("it moves", || {
                    let moved = grid.gridctl(1, ["migrate", &writer.to_string(), "--to", to]);
                    let on_its_way = moved.stderr.contains("is still on its way");
                    assert!(moved.status == 0 || on_its_way, "{moved:?} {}", grid.logs(1, reader, 0));
                    moved.status == 0
                });
            }
            printed(grid, writer);
            assert_eq!(printed(grid, reader).trim(), "read 300001");
        },
    );
}

#[test]
fn a_task_that_waits_for_its_pipe_says_why() {
    with(
        "a_task_that_waits_for_its_pipe_says_why",
        || Grid::up("fifowhy", 2),
        |grid| {
            let job = grid.submit(1, sh("cat absent", &[2], "absent:r"));
            let why = || grid.job(1, job).tasks[0].why.clone().unwrap_or_default();
            until("it tells", || why().starts_with("its FIFO absent waits: there is no pipe absent"));
            grid.gridctl(1, ["pipe", "create", "absent"]).ok();
            until("it waits no longer", || why().is_empty());
            grid.gridctl_with(2, b"now\n", ["pipe", "write", "absent"]).ok();
            assert!(grid.wait(1, job).summary.succeeded());
            assert!(grid.logs(1, job, 0).starts_with("now\n"));
        },
    );
}

#[test]
fn what_was_written_to_a_pipe_that_is_not_there_yet_waits_for_it() {
    with(
        "what_was_written_to_a_pipe_that_is_not_there_yet_waits_for_it",
        || Grid::up("fifolate", 2),
        |grid| {
            let job = grid.submit(1, sh("seq 1000 > late", &[2], "late:w"));
            printed(grid, job);
            grid.kill_agent(2);
            grid.until_up(1, 2);
            grid.gridctl(1, ["pipe", "create", "late"]).ok();
            let direct: Vec<String> = (1..=1000).map(|number| number.to_string()).collect();
            assert_eq!(reader(grid, 1, "late").wait().ok(), direct.join("\n"));
        },
    );
}
