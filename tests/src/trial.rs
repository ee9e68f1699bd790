//! What is tried with the kernel module on a machine, whatever its kernel.
//!
//! The programs in `tests/kmod` try what the module promises, scenario by scenario, one line each on the serial console;
//! then come random and hostile arguments (`fuzz.c`; its seed is told, and taken from `GRIDOS_FUZZ_SEED`), and everything at
//! once, with the module unloaded and loaded meanwhile (`stress.c`). At last the kernel's messages are looked at: a
//! warning in them fails the trial, whatever the programs say.

use std::path::{Path, PathBuf};

use crate::module::{sources, troubles};
use crate::{Console, Machine};

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

const INIT: &str = r##"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
# The host may be busy: what is slow is not stuck.
echo 60 > /proc/sys/kernel/watchdog_thresh
echo 120 > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
tell() { echo "RESULT $1=$2"; }

BEFORE
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
AFTER
echo MESSAGES BEGIN
dmesg
echo MESSAGES END
echo MACHINE DONE
reboot -f
"##;

/// Of the machine, in MiB.
pub const MEMORY: u32 = 1024;

/// What besides happens on the machine, and how much time there is.
#[derive(Debug)]
pub struct Watch<'a> {
    /// Lines of the script before the module is loaded for the first time.
    pub before: &'a str,
    /// And those after it was unloaded for the last time.
    pub after: &'a str,
    /// The most seconds of a scenario.
    pub patience: u32,
    /// How many seconds everything is done at once.
    pub stress: u32,
}

impl Default for Watch<'_> {
    /// Nothing besides, on a kernel as distributions build it.
    fn default() -> Self {
        Self { before: "", after: "", patience: 120, stress: 25 }
    }
}

/// The folder of the programs, and of what they are tried with.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kmod")
}

/// Makes it a machine with a shell, whose first program this script is.
pub fn shell(machine: &Machine, script: &str) {
    for name in ["proc", "sys", "dev", "tmp"] {
        machine.mkdir(name);
    }
    machine.busybox("bin", "sh mount mkdir echo grep ls cat sleep insmod rmmod dmesg reboot");
    machine.write("init", script, 0o755);
}

/// Tries everything with this module, which was built for its kernel. Fails if anything is not as it must be;
/// what the machine said is for the caller to look further.
pub fn try_all(machine: &Machine, module: &Path, kernel: &str, watch: &Watch<'_>) -> Console {
    let names: Vec<_> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    // As a failed run told it; another one each time otherwise.
    let seed = std::env::var("GRIDOS_FUZZ_SEED").unwrap_or_default();
    let init = INIT.replace("PROGRAMS", &names.join(" ")).replace("SEED", &seed);
    shell(machine, &init.replace("BEFORE", watch.before).replace("AFTER", watch.after));
    machine.copy("gridos.ko", module);
    let options = [
        format!("-I{}", sources().join("include/uapi").display()),
        format!("-DPATIENCE={}", watch.patience),
        format!("-DSECONDS={}", watch.stress),
    ];
    for name in names.iter().chain(&["fuzz", "stress"]) {
        machine.compile_file(name, &programs().join(format!("{name}.c")), &options);
    }

    let console = machine.boot(None, "/init", MEMORY);
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
        println!("{line} ({kernel})");
    }
    console
}
