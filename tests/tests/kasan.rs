//! The kernel module on a kernel that watches every access to memory (KASAN), what is never freed (kmemleak), the order
//! of locks (lockdep), and where nobody may sleep. `setup/kasan` builds it, from `kmod/kasan.config`; `make test-kasan`
//! does that, and runs these tests.
//!
//! A check that is not there finds nothing, either. So a module that does one wrong thing after the other (`kmod/faulty`)
//! is loaded in machines of its own, and each of them must be reported.

use grid_tests::Machine;
use grid_tests::module::{build, build_other, troubles};
use grid_tests::trial::{MEMORY, Watch, programs, shell, try_all};

/// What goes wrong, and what the kernel says then. Each group has a machine of its own: lockdep turns itself off after its
/// first report, and after one of KASAN's.
const FAULTS: &[&[(&str, &str)]] = &[
    &[
        ("use_after_free", "BUG: KASAN: slab-use-after-free in use_after_free"),
        ("out_of_bounds", "BUG: KASAN: slab-out-of-bounds in out_of_bounds"),
        ("leak", "unreferenced object"),
        ("atomic_sleep", "BUG: sleeping function called from invalid context"),
        ("timer_freed", "ODEBUG: free active"),
        ("shift", "UBSAN: shift-out-of-bounds"),
    ],
    &[("unprotected", "WARNING: suspicious RCU usage")],
    &[("lock_inversion", "WARNING: possible circular locking dependency detected")],
];

/// A leak is told when two scans found it, and when it is five seconds old.
const SCAN: &str = r#"
for scan in 1 2; do
    sleep 6
    echo scan > /sys/kernel/debug/kmemleak; tell "scan.$scan" "$?"
done
cat /sys/kernel/debug/kmemleak
"#;

/// With one, little happens at once.
const PROCESSORS: &str = r#"tell processors "$(grep -c ^processor /proc/cpuinfo)""#;

const COMMIT: &str = r##"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t debugfs debug /sys/kernel/debug
tell() { echo "RESULT $1=$2"; }

for fault in none FAULTS; do
    dmesg -c > /dev/null
    insmod /faulty.ko "fault=$fault"; tell "$fault" "$?"
    rmmod faulty
    echo "BEGIN $fault"
    dmesg
    case $fault in
    none | leak) SCAN ;;
    esac
    echo "END $fault"
done
echo MACHINE DONE
reboot -f
"##;

fn machine() -> Machine {
    Machine::with_debug_kernel().unwrap_or_else(|why| panic!("{why}, and make test-kasan builds the kernel"))
}

#[test]
#[ignore = "on a kernel that is built for it, and slow: make test-kasan"]
fn the_kernel_finds_nothing_wrong_with_the_module() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = machine();
    let module = build("kasan", folder.path()).expect("the kernel that setup/kasan builds");
    // Both are off for good once they gave up.
    let after =
        format!("{SCAN}\ntell locks \"$(grep -c 'debug_locks: *1$' /proc/lockdep_stats)\"\n{PROCESSORS}");
    let watch = Watch {
        before: "mount -t debugfs debug /sys/kernel/debug",
        after: &after,
        patience: 3600,
        stress: 60,
    };
    try_all(&machine, &module, "with KASAN", &watch).expect(&[
        ("scan.2", "0"),
        ("locks", "1"),
        ("processors", "2"),
    ]);
}

#[test]
#[ignore = "on a kernel that is built for it, and slow: make test-kasan"]
fn the_kernel_finds_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let module = build_other(&programs().join("faulty"), "kasan", folder.path());
    let module = module.unwrap_or_else(|why| panic!("{why}, and make test-kasan builds the kernel"));
    for faults in FAULTS {
        let machine = machine();
        let names: Vec<_> = faults.iter().map(|(name, _)| *name).collect();
        shell(&machine, &COMMIT.replace("FAULTS", &names.join(" ")).replace("SCAN", SCAN));
        machine.copy("faulty.ko", &module);
        let console = machine.boot(None, "/init", MEMORY);
        let text = console.text();
        for (name, report) in [("none", "")].iter().chain(*faults) {
            console.expect(&[(name, "0")]);
            let said = text.split_once(&format!("BEGIN {name}\n"));
            let (said, _) = said.and_then(|(_, said)| said.split_once(&format!("END {name}\n"))).expect(text);
            let found = troubles(said);
            assert!(
                said.contains(report) && found.is_empty() == report.is_empty(),
                "{name}: {found:?}\n{text}"
            );
            println!("FIGURE {name}: {}", found.first().unwrap_or(&"nothing is found"));
        }
    }
}
