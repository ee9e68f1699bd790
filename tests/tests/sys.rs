//! The operations of the kernel module, through the doors that there are without it.

use std::path::Path;
use std::process::Command;

use grid_tests::{Grid, GridConfig, NOBODY, module, probed, program, skipped, until, with};
use libgrid::ids::JobId;
use libgrid::spec::JobSpec;
use libgrid::sys::abi::{self, Op};
use libgrid::units::{Bytes, Cpus};

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
            let probe = program("grid-probe");
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
            assert_eq!(shell(0, "ls"), "control\ngpids\njobs\nnodes\nself\nversion\n");
            assert_eq!(
                shell(0, "cat version self"),
                "uapi 1\nnode 1\ndaemon attached\ngpid -\nnode 1\njob -\ntask -\n"
            );
            let nodes = shell(0, "cat nodes");
            assert!(nodes.lines().count() == 3 && nodes.contains("\tnode2\n"), "{nodes}");
            let line = format!("{id}\t0\trunning\t1\t1\t0\t0\tsleep\n");
            assert!(shell(0, "cat jobs").ends_with(&line));
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
