//! The operations of the kernel module, through the doors that there are without it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use grid_tests::{Grid, GridConfig, NOBODY, module, probed, skipped, until, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::sys::abi::{self, Op};
use libgrid::units::{Bytes, Cpus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SLEEP: [&str; 2] = ["sleep", "1000"];

fn job(command: &[&str]) -> JobSpec {
    JobSpec::command(command.iter().copied()).cpus(Cpus::from_milli(100)).memory(Bytes(64 << 20))
}

/// `gridctl sys` on a node: its exit status, what it answered, and what it said beside that.
fn sys(grid: &Grid, node: u32, words: &[&str]) -> (i32, String, String) {
    let said = grid.gridctl(node, [&["sys"], words].concat());
    (said.status, said.stdout, said.stderr)
}

#[test]
fn a_program_asks_the_grid_about_itself_and_moves_itself() {
    with(
        "a_program_asks_the_grid_about_itself_and_moves_itself",
        || GridConfig::new("a_program_asks_the_grid_about_itself_and_moves_itself", 2).up(),
        |grid| {
            // Somebody else's, and the first.
            let other = grid.submit(1, job(&SLEEP));
            assert_eq!(other.to_string(), "j1.1");
            let probe = grid.lend("grid-probe");
            let said = grid.gridctl(2, ["submit", "--mem", "64M", "--", probe.to_str().unwrap()]);
            let id: JobId = said.stdout.trim().parse().unwrap();
            grid.gridctl(2, ["wait", &id.to_string()]);
            let printed = grid.logs(2, id, 0);
            let told = probed(&printed);
            assert_eq!(told["door"], "agent", "{printed}");
            assert_eq!(told["task"], format!("{id}/0"));
            assert_eq!(told["moved"], "true", "{printed}");
        },
    );
}

/// The same program, whose job asked for the system call.
#[test]
fn a_program_asks_by_system_call_and_moves_itself() {
    with(
        "a_program_asks_by_system_call_and_moves_itself",
        || GridConfig::new("a_program_asks_by_system_call_and_moves_itself", 2).up(),
        |grid| {
            let other = grid.submit(1, job(&SLEEP));
            assert_eq!(other.to_string(), "j1.1");
            let probe = grid.lend("grid-probe");
            let id = grid.submit(2, job(&[probe.to_str().unwrap()]).system_call());
            grid.gridctl(2, ["wait", &id.to_string()]);
            let printed = grid.logs(2, id, 0);
            let told = probed(&printed);
            assert_eq!(told["door"], "syscall", "{printed}");
            assert_eq!(told["task"], format!("{id}/0"));
            assert_eq!(told["moved"], "true", "{printed}");
        },
    );
}

/// What a program gets that calls as `gridos.h` says, and as it should not.
#[test]
fn the_system_call_is_answered_as_the_header_says_wherever_its_process_is() {
    with(
        "the_system_call_is_answered_as_the_header_says_wherever_its_process_is",
        || GridConfig::new("the_system_call_is_answered_as_the_header_says", 2).up(),
        |grid| {
            let python = |script: &str| job(&["/usr/bin/python3", "-c", &format!("{CALLING}{script}")]);
            // A job that did not ask for it has none.
            let without = grid.submit(1, python("print(call(1, struct.pack('IIII', 16, 0, 0, 0))[0])"));
            grid.wait(1, without);
            assert_eq!(grid.logs(1, without, 0), "38\n");
            // What is wrong has its error, and each thread its own answer.
            let wrong = grid.submit(1, python(WRONG).system_call());
            grid.wait(1, wrong);
            let stderr = grid.gridctl(1, ["logs", "--stream", "stderr", &wrong.to_string()]).stdout;
            assert_eq!(grid.logs(1, wrong, 0), "done\n", "{stderr}");
            // On and on, while it moves, is written down, and its agent is killed.
            let id = grid.submit(
                1,
                JobSpec { nodes: vec!["node1".into(), "node2".into()], ..python(ON_AND_ON) }.system_call(),
            );
            until("it calls", || grid.logs(1, id, 0).contains("1 "));
            let task = id.to_string();
            for round in 0..3 {
                for to in ["node2", "node1"] {
                    let here = format!("node{}", grid.places(1, id)[0].unwrap().0);
                    if here != to {
                        grid.gridctl(1, ["migrate", &task, "--to", to]).ok();
                    }
                    let node = grid.places(1, id)[0].unwrap().0;
                    let calls = |grid: &Grid| grid.logs(1, id, 0).lines().count();
                    let before = calls(grid);
                    until("it calls on", || calls(grid) > before + 2);
                    assert!(grid.logs(1, id, 0).lines().last().unwrap().ends_with(&format!(" {node}")));
                }
                if round == 1 {
                    grid.gridctl(1, ["checkpoint", &task]).ok();
                    grid.kill_agent(1);
                    grid.until_up(1, 2);
                }
            }
            grid.gridctl(1, ["kill", &task]).ok();
            grid.wait(1, id);
            let printed = grid.logs(1, id, 0);
            let counts: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
            assert!(
                (1..=counts.len()).eq(counts.iter().map(|count| count.parse::<usize>().unwrap())),
                "{printed}"
            );
        },
    );
}

/// A call outlasts an agent, if its time and its caller allow it.
#[test]
fn a_system_call_waits_as_long_as_it_is_told_to() {
    with(
        "a_system_call_waits_as_long_as_it_is_told_to",
        || GridConfig::new("a_system_call_waits_as_long_as_it_is_told_to", 1).up(),
        |grid| {
            let id = grid
                .submit(1, job(&["/usr/bin/python3", "-c", &format!("{CALLING}{WAITING}")]).system_call());
            let printed = || grid.logs(1, id, 0);
            until("it calls", || printed() == "patient 0\nhasty 0\nimpatient 0\n");
            let agent = grid.agents()[0].unwrap();
            let send = |signal| kill(Pid::from_raw(agent), signal).unwrap();
            send(Signal::SIGSTOP);
            std::thread::sleep(Duration::from_secs(1));
            send(Signal::SIGCONT);
            until("its time was over", || printed().contains("impatient 110\nimpatient 0\n"));
            let so_far = printed();
            assert!(!so_far.contains("hasty 11\n") && so_far.matches("patient 0\n").count() == 3, "{so_far}");
            grid.kill_agent(1);
            grid.until_up(1, 1);
            until("it would not wait", || printed().contains("hasty 11\n"));
            until("and is answered again", || {
                let printed = printed();
                printed.rfind("hasty 0\n") > printed.rfind("hasty 11\n")
            });
            assert_eq!(
                printed().lines().filter(|line| line.starts_with("patient")).count(),
                1,
                "{}",
                printed()
            );
        },
    );
}

const WAITING: &str = r#"
lock = threading.Lock()
def calls(name, **how):
    last = None
    while True:
        error, told = ask(257, struct.pack("IIQQII", 32, 0, own, 0, 0, 0), **how)
        if error != last:
            with lock: print(name, error, flush=True)
        last = error
        ready.set()
        time.sleep(0.01)
own = struct.unpack("IIQQII", call(2, struct.pack("IIQQII", 32, 0, 0, 0, 0, 0))[1])[2]
for name, how in [("patient", {}), ("hasty", {"flags": 1}), ("impatient", {"timeout": 200})]:
    ready = threading.Event()
    threading.Thread(target=calls, args=[name], kwargs=how).start()
    ready.wait()
"#;

/// `call(op, arguments)` gives the error, or 0, and what became of the arguments.
const CALLING: &str = r#"
import ctypes, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
SYS_gridos = 0x677264
def call(op, arguments, size=None, at=None):
    room = ctypes.create_string_buffer(arguments, len(arguments))
    where = ctypes.addressof(room) if at is None else at
    size = len(arguments) if size is None else size
    done = libc.syscall(SYS_gridos, ctypes.c_long(op), ctypes.c_void_p(where), ctypes.c_long(size))
    return (0 if done == 0 else ctypes.get_errno()), room.raw
def ask(op, given=b"", room=4096, flags=0, timeout=0):
    given, taken = ctypes.create_string_buffer(given, max(len(given), 1)), ctypes.create_string_buffer(room)
    length = len(given.raw) if len(given.raw) > 1 else 0
    error, left = call(6, struct.pack("IIIIQQII", 40, op, flags, timeout, ctypes.addressof(given),
                                      ctypes.addressof(taken), length, room))
    return error, taken.raw[:struct.unpack("IIIIQQII", left)[7]]
"#;

const WRONG: &str = r#"
EPERM, ESRCH, EFAULT, EINVAL, ENOTTY, E2BIG, EMSGSIZE = 1, 3, 14, 22, 25, 7, 90
version = struct.pack("IIII", 16, 0, 0, 0)
error, told = call(1, version)
assert error == 0 and struct.unpack("IIII", told)[1:3] == (1, 1), (error, told)
# A longer struct of a later release, whose rest is zero, and one whose rest is not.
assert call(1, struct.pack("IIIIII", 24, 0, 0, 0, 0, 0))[0] == 0
assert call(1, struct.pack("IIIIII", 24, 0, 0, 0, 7, 0))[0] == E2BIG
assert call(1, version, size=8)[0] == EINVAL
assert call(1, struct.pack("IIII", 20, 0, 0, 0))[0] == EINVAL
assert call(1, version, size=1 << 20)[0] == E2BIG
assert call(1, version, at=8)[0] == EFAULT
assert call(1, version, at=0xffffffffffffff00)[0] == EFAULT
for op in [0, 7, 100, 256, 1 << 31, 1 << 40]:
    assert call(op, version)[0] == ENOTTY, op
for op in [128, 129, 133]:
    assert call(op, version)[0] == EPERM, op
error, told = call(2, struct.pack("IIQQII", 32, 0, 0, 0, 0, 0))
gpid = struct.unpack("IIQQII", told)[2]
assert error == 0 and gpid != 0
assert call(3, struct.pack("IIQiI", 24, 1, 0, 1 << 30, 0))[0] == ESRCH
# Records as long as the caller knows them, from where it says.
def nodes(record, begin, count):
    room = ctypes.create_string_buffer(bytes([255]) * 1024, 1024)
    error, told = call(4, struct.pack("IIQQII", 32, record, ctypes.addressof(room), begin, count, 0))
    return error, struct.unpack("IIQQII", told)[4], room.raw
size = 4 + 4 + 8 + 8 + 4 + 4 + 64
for _ in range(100):
    error, count, room = nodes(size, 0, 8)
    if count == 2: break
    time.sleep(0.1)
assert (error, count) == (0, 2), (error, count)
assert struct.unpack_from("I", room, size)[0] == 2 and room[2 * size] == 0xff
assert nodes(size, 2, 8)[1] == 1 and nodes(size, 0, 1)[1] == 1 and nodes(size, 9, 8)[1] == 0
error, count, room = nodes(size + 16, 0, 8)
assert count == 2 and room[size:size + 16] == bytes(16) and struct.unpack_from("I", room, size + 16)[0] == 2
error, count, room = nodes(4, 0, 8)
assert struct.unpack_from("III", room) == (1, 2, 0xffffffff)
# Calls: the answer, an error's sentence, no room for it, and what is too much.
error, told = ask(256, b"self")
assert error == 0 and told.startswith(b"gpid "), (error, told[:40])
error, told = ask(256, b"nonsense")
assert error == EINVAL and b"is no command" in told, (error, told)
assert ask(256, b"help", room=8)[0] == EMSGSIZE
assert ask(255, b"help")[0] == EINVAL and ask(256, b"help", flags=8)[0] == EINVAL
assert ask(999, b"help")[0] == ENOTTY
assert ask(256, b"help", room=1 << 20)[0] == EMSGSIZE
wrong = []
def many():
    for _ in range(50):
        error, told = ask(256, b"self")
        if error != 0 or told.split()[1] == b"-": wrong.append((error, told))
threads = [threading.Thread(target=many) for _ in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert not wrong, wrong[:3]
print("done")
"#;

const ON_AND_ON: &str = r#"
count = 0
while True:
    error, told = call(2, struct.pack("IIQQII", 32, 0, 0, 0, 0, 0))
    if error in (4, 11):
        continue
    assert error == 0, error
    count += 1
    print(count, struct.unpack("IIQQII", told)[1], flush=True)
    time.sleep(0.02)
"#;

#[test]
fn operations_on_a_users_own_socket_have_the_rights_of_that_user() {
    with(
        "operations_on_a_users_own_socket_have_the_rights_of_that_user",
        || GridConfig::new("operations_on_a_users_own_socket_have_the_rights_of_that_user", 2).up(),
        |grid| {
            let id = grid.submit(1, job(&SLEEP));
            grid.until_running(1, id);
            let (status, version, door) = sys(grid, 1, &["version"]);
            assert_eq!((status, version.as_str()), (0, "uapi 1\nnode 1\ndaemon attached\n"));
            assert_eq!(door, "answered by the agent\n");
            assert!(sys(grid, 1, &["jobs"]).1.contains(&format!("{id}\t0\trunning\t1\t1\t0\t0\tsleep\n")));
            let gpids = sys(grid, 1, &["gpids"]).1 + &sys(grid, 2, &["gpids"]).1;
            assert_eq!(
                gpids.lines().filter(|line| line.ends_with(&format!("\t{id}\t0"))).count(),
                1,
                "{gpids}"
            );
            let own = "gpid -\nnode 1\njob -\ntask -\n";
            assert_eq!(sys(grid, 1, &["self"]).1, own);
            // Another user of the node sees neither, and may not end it.
            let as_nobody =
                |words: &[&str]| grid.gridctl_as(1, NOBODY, Path::new("/"), [&["sys"], words].concat());
            assert_eq!(as_nobody(&["jobs"]).ok().lines().count(), 1);
            assert_eq!(as_nobody(&["gpids"]).ok().lines().count(), 1);
            as_nobody(&["signal", &id.to_string(), "KILL"]).says(&["ask them, or root"]);
            // What is wrong is told, and nothing changes.
            for (words, why) in [
                (&["nonsense"][..], "\"nonsense\" is no command: help tells which there are"),
                (&["signal", "j1.1", "NONE"], "NONE is no signal: use a name such as INT, or a number"),
                (&["migrate", "j1.1"], "name one task of j1.1, such as j1.1/0"),
                (&["status", "j1.99"], "there is no j1.99 on its home node 1: see gridctl ps --all"),
                (&["--door", "device", "version"], "VERSION: No such file or directory (os error 2)"),
                (&["--door", "syscall", "version"], "only those of jobs have it that were submitted with"),
            ] {
                let (status, _, said) = sys(grid, 1, words);
                assert_eq!(status, 1, "{words:?}");
                assert!(said.contains(why), "{words:?}: {said}");
            }
            grid.until_running(1, id);
            let (status, _, _) = sys(grid, 2, &["signal", &id.to_string(), "KILL"]);
            assert_eq!(status, 0);
            until("it has ended", || sys(grid, 2, &["status", &id.to_string()]).1.contains("state done"));
        },
    );
}

#[test]
fn files_stand_in_for_those_of_the_module() {
    with(
        "files_stand_in_for_those_of_the_module",
        || GridConfig::new("files_stand_in_for_those_of_the_module", 2).up(),
        |grid| {
            if !Path::new("/dev/fuse").exists() {
                return skipped("files_stand_in_for_those_of_the_module", "the kernel has no FUSE");
            }
            let shell = |uid: u32, script: &str| {
                let user = format!("--reuid={uid} --regid={uid} --clear-groups");
                let mut command = grid.machine(1).exec("sh");
                let script = format!("cd /run/gridos/proc && exec setpriv {user} sh -c '{script}' 2>&1");
                let output = command.args(["-c", &script]).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            let id = grid.submit(1, JobSpec { nodes: vec!["node1".into()], ..job(&SLEEP) });
            grid.until_running(1, id);
            assert_eq!(shell(0, "ls"), "control\ngpids\nio\njobs\nnodes\npipes\nself\nversion\n");
            assert_eq!(
                shell(0, "cat version self"),
                "uapi 1\nnode 1\ndaemon attached\ngpid -\nnode 1\njob -\ntask -\n"
            );
            let nodes = shell(0, "cat nodes");
            assert!(nodes.lines().count() == 3 && nodes.contains("\tnode2\n"), "{nodes}");
            let line = format!("{id}\t0\trunning\t1\t1\t0\t0\tsleep\n");
            assert!(shell(0, "cat jobs").ends_with(&line));
            assert_eq!(shell(0, "cat pipes"), "name\treaders\twriters\tbuffered\tof\towner\n");
            grid.gridctl_as(1, NOBODY, Path::new("/"), ["pipe", "create", "numbers", "--capacity", "64K"])
                .ok();
            let theirs = "numbers\t0\t0\t0\t65536\tnobody@node1\n";
            assert!(shell(NOBODY, "cat pipes").ends_with(theirs) && shell(0, "cat pipes").ends_with(theirs));
            assert!(!shell(NOBODY - 1, "cat pipes").contains("numbers"));
            assert_eq!(shell(0, "cat io"), "pid\tuid\tend\titems\tbytes\tof\tstreams\n");
            let gpids = shell(0, "cat gpids");
            let (gpid, _) = gpids.lines().nth(1).unwrap().split_once('\t').unwrap();
            // A command and its answer are of one open file; each drops what is left of the answer before.
            let dialogue = format!("exec 3<>control; echo help >&3; echo status {gpid} >&3; cat <&3");
            assert!(shell(0, &dialogue).starts_with(&format!("job {id}\ntask 0\nstate running\nnode 1\n")));
            let wrong = shell(0, "exec 3<>control; echo nonsense >&3; cat <&3");
            assert!(wrong.ends_with("\"nonsense\" is no command: help tells which there are\n"), "{wrong}");
            // Another user sees and may nothing of it, and what is no command is none.
            assert_eq!(shell(NOBODY, "cat jobs gpids").lines().count(), 2);
            let denied = shell(NOBODY, &format!("exec 3<>control; echo signal {id} KILL >&3; cat <&3"));
            assert!(denied.contains("ask them, or root"), "{denied}");
            for wrong in [
                "printf \"a\\nb\" > control",
                "echo > control",
                "echo x > version",
                "rm version",
                "chmod 777 nodes",
            ] {
                let said = shell(0, &format!("{wrong} && echo done"));
                assert!(!said.contains("done"), "{wrong}: {said}");
            }
            let long = shell(0, "dd if=/dev/zero of=control bs=5000 count=1");
            assert!(long.contains("Message too long"), "{long}");
            // Nobody fills the agent's memory with what they hold open.
            let said = shell(NOBODY, "for i in $(seq 80); do sleep 3 < gpids & done; wait");
            assert!(said.contains("Too many open files"), "{said}");
            // A killed agent's tree is of no use; the next agent's is in its place, and the last takes it along.
            grid.kill_agent(1);
            grid.until_up(1, 2);
            until("the files are there again", || shell(0, "cat gpids") == gpids);
            grid.gridctl(1, ["kill", "-s", "KILL", &id.to_string()]).ok();
            grid.wait(1, id);
            let mounts =
                || std::fs::read_to_string(format!("/proc/{}/mounts", grid.agents()[0].unwrap())).unwrap();
            assert_eq!(mounts().lines().filter(|line| line.contains(" fuse ")).count(), 1);
        },
    );
}

/// The header, as a compiler of C sees it, and `libgrid::sys::abi` have the same structs and numbers.
#[test]
fn rust_and_c_agree_on_structs_and_numbers() {
    macro_rules! structs {
        ($($name:ident $c:literal: $($field:ident $c_field:literal,)*;)*) => {
            [$(
                (format!("sizeof(struct {})", $c), size_of::<abi::$name>()),
                $((format!("offsetof(struct {}, {})", $c, $c_field), std::mem::offset_of!(abi::$name, $field)),)*
            )*]
        };
    }
    let layout = structs! {
        Version "gridos_version": version "version", flags "flags", node "node",;
        SelfInfo "gridos_self": node "node", gpid "gpid", job "job", task "task", reserved "reserved",;
        Lookup "gridos_lookup": flags "flags", gpid "gpid", pid "pid", reserved "reserved",;
        Node "gridos_node": number "number", state "state", memory "memory", memory_free "memory_free", cpus "cpus",
            cpus_free "cpus_free", name "name",;
        Job "gridos_job": job "job", uid "uid", state "state", tasks "tasks", running "running", done "done",
            failed "failed", name "name",;
        IoOpen "gridos_io_open": fd "fd", flags "flags", socket "socket",;
        IoWait "gridos_io_wait": socket "socket", read "read", flags "flags", timeout_ms "timeout_ms", error "error",
            done "done",;
        IoBuffers "gridos_io_buffers": socket "socket", flags "flags", rtt_us "rtt_us", out "out", input "in",
            max "max", rate_out "rate_out", rate_in "rate_in", product "product", sent "sent",
            received "received", min_rtt_us "min_rtt_us", reserved "reserved",;
        Attach "gridos_attach": version "version",;
        Register "gridos_register": pid "pid", gpid "gpid", job "job", task "task", reserved "reserved",;
        Range "gridos_range": node "node", next "next", end "end",;
        Request "gridos_request": op "op", id "id", gpid "gpid", pid "pid", uid "uid", gid "gid", flags "flags",
            len "len", room "room",;
        Answer "gridos_answer": error "error", id "id", len "len", reserved "reserved",;
        Target "gridos_target": flags "flags", gpid "gpid", job "job", task "task", value "value",;
        Status "gridos_status": state "state", job "job", task "task", node "node", exit_status "exit_status",
            running "running", done "done", failed "failed",;
        Moved "gridos_moved": node "node", stopped_ns "stopped_ns",;
        Checkpointed "gridos_checkpointed": number "number", bytes "bytes",;
        Submitted "gridos_submitted": job "job",;
    };
    let numbers = [Op::VERSION, Op::SELF, Op::LOOKUP, Op::NODES, Op::JOBS, Op::CALL]
        .into_iter()
        .chain([Op::IO_OPEN, Op::IO_CLOSE, Op::IO_SEND, Op::IO_RECV, Op::IO_WRITE])
        .chain([Op::IO_READ, Op::IO_WAIT, Op::IO_SETOPT, Op::IO_GETOPT])
        .chain([
            Op::ATTACH,
            Op::REGISTER,
            Op::SET_GPID,
            Op::RANGE,
            Op::PUBLISH,
            Op::ENTER,
            Op::CANCEL,
            Op::LOW,
        ])
        .chain([Op::COMMAND, Op::STATUS, Op::SIGNAL, Op::MIGRATE, Op::CHECKPOINT, Op::SUBMIT])
        .map(|op| (format!("GRIDOS_OP_{op}"), op.0 as usize));
    let limits = [
        ("GRIDOS_UAPI_VERSION", abi::VERSION as usize),
        ("GRIDOS_CALL_MAX", abi::CALL_MAX),
        ("GRIDOS_NODES_MAX", abi::NODES_MAX),
        ("GRIDOS_JOBS_MAX", abi::JOBS_MAX),
        ("GRIDOS_TASK_ALL", abi::TASK_ALL as usize),
        ("GRIDOS_TARGET_NOWAIT", abi::TARGET_NOWAIT as usize),
        ("GRIDOS_LOOKUP_PID", abi::LOOKUP_PID as usize),
        ("GRIDOS_LOOKUP_GPID", abi::LOOKUP_GPID as usize),
        ("GRIDOS_VERSION_DAEMON", abi::VERSION_DAEMON as usize),
        ("GRIDOS_REQUEST_AGAIN", abi::REQUEST_AGAIN as usize),
        ("GRIDOS_IO_NOWAIT", abi::IO_NOWAIT as usize),
        ("GRIDOS_IO_SOME", abi::IO_SOME as usize),
        ("GRIDOS_IO_CANCEL", abi::IO_CANCEL as usize),
        ("GRIDOS_IO_READ_MAX", abi::IO_READ_MAX),
        ("GRIDOS_IO_READS_MAX", abi::IO_READS_MAX),
        ("GRIDOS_IO_BUFFER_OUT", abi::IO_BUFFER_OUT as usize),
        ("GRIDOS_IO_BUFFER_IN", abi::IO_BUFFER_IN as usize),
        ("GRIDOS_IO_BUFFER_MAX", abi::IO_BUFFER_MAX as usize),
        ("GRIDOS_IO_BUFFER_AUTO", abi::IO_BUFFER_AUTO as usize),
    ];
    let limits = limits.into_iter().map(|(name, value)| (name.to_owned(), value));
    let folder = tempfile::tempdir().unwrap();
    let mut source = "#include <stddef.h>\n#include <linux/gridos.h>\n".to_owned();
    for (what, value) in layout.into_iter().chain(numbers).chain(limits) {
        source += &format!("_Static_assert({what} == {value}u, \"{what}\");\n");
    }
    let path = folder.path().join("layout.c");
    std::fs::write(&path, source).unwrap();
    let header = module::sources().join("include/uapi");
    let built = Command::new("gcc").arg("-fsyntax-only").arg("-I").arg(header).arg(path).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}
