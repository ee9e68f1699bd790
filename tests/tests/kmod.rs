//! The kernel module, on the kernels of Debian 12 and of its backports, each in a virtual machine.
//!
//! The module is built for the kernel from its headers (`setup/install test` fetches both), and loaded. The programs
//! in `kmod/` try what it promises, scenario by scenario, one line each on the serial console; then come random and
//! hostile arguments (`fuzz.c`; its seed is told, and taken from `GRIDOS_FUZZ_SEED`), and everything at once, with the
//! module unloaded and loaded meanwhile (`stress.c`). At last the kernel's messages are looked at: a warning in them fails
//! the test, whatever the programs say.

use std::path::{Path, PathBuf};
use std::process::Command;

use grid_tests::module::{build, make, sources, troubles};
use grid_tests::{Machine, fetched, skipped};

/// The programs that look at one promise after the other, in the order in which they run, and the scenarios of each.
const PROGRAMS: &[(&str, &[&str])] = &[
    (
        "processes",
        &[
            "unranged",
            "identity",
            "entered",
            "inherits",
            "zombies",
            "storm",
            "dying",
            "restored",
            "ranges",
            "namespaces",
            "listed",
        ],
    ),
    (
        "calls",
        &[
            "answered",
            "malformed",
            "timed_out",
            "interrupted",
            "abandoned",
            "handed_on",
            "exclusive",
            "control",
        ],
    ),
    ("users", &["refused", "blind", "others_jobs", "limits"]),
    ("tables", &["published", "extensible", "replaced"]),
    (
        "io",
        &[
            "sends",
            "receives",
            "copies",
            "shares_pages",
            "peer_ends",
            "silent",
            "signals",
            "killed",
            "closed",
            "exclusive_io",
            "shared_socket",
            "posted",
            "cancelled",
            "given_up",
            "bounded",
            "buffers",
            "hostile",
            "owners",
        ],
    ),
    ("io_speed", &["measured"]),
];

/// The module has the version of all else.
const VERSION: &str = env!("CARGO_PKG_VERSION");

const INIT: &str = r##"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
# The host may be busy: what is slow is not stuck.
echo 60 > /proc/sys/kernel/watchdog_thresh
echo 120 > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
tell() { echo "RESULT $1=$2"; }

insmod /gridos.ko; tell loaded "$?"
for program in PROGRAMS; do
    $program
    tell "$program" "$?"
done
tell left "$(grep processes /proc/gridos/version)"
# It may have given the first process, and so all others, a GPID, which goes with the module.
fuzz SEED; tell fuzz "$?"
rmmod gridos; tell unloaded_with_processes "$?"
insmod /gridos.ko; tell loaded_again "$?"
# With two other probes, loading and unloading changes no running code of the kernel's, which QEMU 7.2 emulates with
# a race: a processor may meet a breakpoint that has been taken away (Oops: int3, in the kernel's own do_exit).
mount -t tracefs tracefs /sys/kernel/tracing
for name in one two; do
    mkdir "/sys/kernel/tracing/instances/$name"
    for event in sched_process_fork sched_process_exit; do
        echo 1 > "/sys/kernel/tracing/instances/$name/events/sched/$event/enable"; tell "$name.$event" "$?"
    done
done
stress; tell stress "$?"
rmmod gridos; tell unloaded "$?"
tell nothing "$(ls -d /proc/gridos /dev/gridos /sys/module/gridos 2>/dev/null)"
echo MESSAGES BEGIN
dmesg
echo MESSAGES END
echo MACHINE DONE
poweroff -f
"##;

fn works_on(version: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ready = || {
        let machine = Machine::with_kernel(version)?;
        machine.copy("gridos.ko", &build(version, folder.path())?);
        Ok::<_, String>(machine)
    };
    let machine = match ready() {
        Ok(machine) => machine,
        Err(why) => return skipped(&format!("the module on Linux {version}"), &why),
    };
    for name in ["proc", "sys", "dev", "tmp"] {
        machine.mkdir(name);
    }
    machine.busybox("bin", "sh mount mkdir echo grep ls insmod rmmod dmesg poweroff");
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kmod");
    let names: Vec<_> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    for name in names.iter().chain(&["fuzz", "stress"]) {
        let source = programs.join(format!("{name}.c"));
        machine.compile_file(name, &source, &[&sources().join("include/uapi")]);
    }
    // As a failed run told it; another one each time otherwise.
    let seed = std::env::var("GRIDOS_FUZZ_SEED").unwrap_or_default();
    let init = INIT.replace("PROGRAMS", &names.join(" ")).replace("SEED", &seed);
    machine.write("init", &init, 0o755);

    let console = machine.boot(None, "/init", 1024);
    let text = console.text();
    let said = text.split_once("MESSAGES BEGIN").and_then(|(_, rest)| rest.split_once("MESSAGES END"));
    let (messages, _) = said.unwrap_or_else(|| panic!("the machine did not tell its messages\n{text}"));
    assert!(messages.contains("gridos: loading out-of-tree module"), "{text}");
    assert_eq!(troubles(text), Vec::<&str>::new(), "{text}");
    console.expect(&[("loaded", "0")]);
    for (program, scenarios) in PROGRAMS {
        for scenario in *scenarios {
            console.expect(&[(scenario, "ok")]);
        }
        console.expect(&[(program, "0")]);
    }
    console.expect(&[("left", "processes 0"), ("fuzzed", "ok"), ("unloaded_with_processes", "0")]);
    console.expect(&[("one.sched_process_exit", "0"), ("two.sched_process_exit", "0")]);
    console.expect(&[("loaded_again", "0"), ("stressed", "ok"), ("unloaded", "0"), ("nothing", "")]);
    for line in text.lines().filter(|line| line.starts_with("FIGURE")) {
        println!("{line} (Linux {version})");
    }
}

#[test]
fn the_module_works_on_linux_6_1() {
    works_on("6.1");
}

#[test]
fn the_module_works_on_linux_6_12() {
    works_on("6.12");
}

/// What DKMS does: it unpacks the package, and builds what `dkms.conf` says.
#[test]
fn the_package_has_all_that_builds_the_module() {
    let name = "the package of the module";
    let Ok(headers) = fetched("kernels/6.1/build") else {
        return skipped(name, "there are no kernel headers: setup/install test fetches them");
    };
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        return skipped(name, "there is no dpkg-deb");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("root");
    let run = |command: &mut Command| {
        let output = command.output().expect("a command");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    run(Command::new("make")
        .arg("deb")
        .arg(format!("DEB_DIR={}", folder.path().display()))
        .current_dir(sources()));
    let package = folder.path().join(format!("gridos-dkms_{VERSION}_all.deb"));
    run(Command::new("dpkg-deb").arg("-x").args([&package, &root]));
    let scripts = folder.path().join("scripts");
    run(Command::new("dpkg-deb").arg("-e").args([&package, &scripts]));
    let from = root.join("usr/src").join(format!("gridos-{VERSION}"));
    make(&from, &headers);
    let read = |path: PathBuf| std::fs::read_to_string(&path).expect("a file of the package");
    let dkms = read(from.join("dkms.conf"));
    assert!(dkms.contains(&format!("PACKAGE_VERSION=\"{VERSION}\"")), "{dkms}");
    for script in ["postinst", "prerm"] {
        let text = read(scripts.join(script));
        assert!(text.contains(&format!("-v {VERSION}")) && !text.contains('@'), "{text}");
        run(Command::new("sh").arg("-n").arg(scripts.join(script)));
    }
}

#[test]
fn messages_of_trouble_are_told_from_others() {
    let quiet = "gridos: loading out-of-tree module taints kernel.\nRun /init as init process\n";
    assert_eq!(troubles(quiet), Vec::<&str>::new());
    for line in [
        "WARNING: CPU: 1 PID: 77 at /build/processes.c:176 gridos_exited+0x1/0x2 [gridos]",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "BUG gridos_process (Tainted: G): Objects remaining on __kmem_cache_shutdown()",
        "refcount_t: underflow; use-after-free.",
        "INFO: task rmmod:99 blocked for more than 120 seconds.",
    ] {
        let messages = format!("{quiet}{line}\n");
        assert_eq!(troubles(&messages), [line]);
    }
}
