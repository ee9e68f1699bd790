//! Tasks that move by pre-copy, on Debian's own kernel in a virtual machine: it has soft-dirty bits, and before Linux 6.7 no
//! `PAGEMAP_SCAN`.
//!
//! Two agents in one machine, each in a mount namespace of its own, with an address of the loopback device. A program that knows
//! what its memory and its file have to be (`precopy.c`) moves from one to the other as it was asked to, and back as `auto`
//! chooses; before, the other dies while memory is on its way.

use grid_tests::{Machine, skipped};
use serde_json::Value;

const INIT: &str = r##"#!/bin/sh
export PATH=/usr/local/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t tmpfs -o size=80% nodes /nodes
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A machine with an init of its own loads them by itself; an order in which each finds what it needs.
for module in libcrc32c nfnetlink nf_tables unix_diag inet_diag tcp_diag udp_diag netlink_diag af_packet_diag; do
    [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko
done
ip link set lo up; hostname vm1; cd /tmp; mkdir -p /run/gridos

tell() { echo "RESULT $1=$2"; }
tell release "$(cat /proc/sys/kernel/osrelease)"
on() { node=$1; shift; GRIDOS_SOCKET=/nodes/$node/run/control.sock gridctl "$@"; }
soon() { i=0; until eval "$1"; do i=$((i+1)); [ $i -gt 300 ] && { tell never "$1"; return; }; sleep 0.2; done; }
agent() {
    mkdir -p /nodes/$1/run /nodes/$1/state
    cat > /nodes/$1/gridosd.toml <<END
name = "node$1"
listen = "127.0.0.$1:7411"
advertise = ["127.0.0.$1:7411"]
cgroup_parent = "gridos-node$1"
task_network = false
END
    unshare -m sh -c "mount --bind /nodes/$1/run /run/gridos && mount --bind /nodes/$1/state /var/lib/gridos &&
        exec gridosd --config /nodes/$1/gridosd.toml" 2>>/nodes/$1/log &
    echo $! > /tmp/pid$1
    soon "[ -S /nodes/$1/run/control.sock ]"
}
# A node that is busy may be taken for one that does not answer: then again.
moves() {
    name=$1; asked=$2; shift 2; i=0
    until on "$asked" migrate "$job" "$@" --json >/tmp/moved 2>&1 || [ $i -ge 3 ]; do i=$((i+1)); sleep 2; done
    tell "$name" "$(tr -d '\n ' < /tmp/moved)"
}
both() { on 1 nodes --json | grep -q '"state":"up".*"state":"up"'; }
# What a move left on both nodes, but for the checkpoints' own folders.
left() { ls -d /nodes/*/state/checkpoints/moving/* /nodes/*/state/checkpoints/fresh/* /nodes/*/state/checkpoints/unpacked/* 2>/dev/null; }

agent 1
on 1 vo create vm >/dev/null 2>&1
tell missing "$(on 1 doctor | grep -c mem_dirty_track)"
# There is but one node where it can begin.
job=$(on 1 submit --mem 256M -- holds MIB)
soon 'on 1 logs "$job" | grep -q ready'
agent 2
on 2 join "$(on 1 token create)" >/dev/null 2>&1
soon both
# A destination that dies in the middle: the task goes on where it was, and nothing is left of the move.
on 1 migrate "$job" --to node2 --mode pre-copy >/tmp/given_up 2>&1 & moving=$!
soon '[ -n "$(ls /nodes/2/state/checkpoints/moving)" ]'
kill -9 "$(cat /tmp/pid2)"
wait $moving; tell given_up "$? $(tr -d '\n' < /tmp/given_up)"
soon '! both'
agent 2
soon both
soon '[ -z "$(left)" ]'
moves there 2 --to node2 --mode pre-copy
soon '[ -z "$(left)" ]'
moves back 1 --to node1
soon '[ -z "$(left)" ]'
tell holders "$(pidof holds | wc -w)"
touch "/proc/$(pidof holds)/root/tmp/go"
on 1 wait "$job" >/dev/null 2>/tmp/said; tell ended "$?"
on 1 logs "$job" | tail -n 2 > /tmp/printed
tell printed "$(tr '\n' ' ' < /tmp/printed)"
cat /tmp/said /nodes/1/log /nodes/2/log
echo MACHINE DONE
poweroff -f
"##;

/// MiB that the program has.
const MEMORY: u64 = 32;

/// MiB of its file.
const FILE: u64 = 8;

/// Those of a round, in a line of a log.
fn bytes(line: &str) -> u64 {
    let number = line.split("bytes=").nth(1).expect(line);
    number.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok()).expect(line)
}

#[test]
fn a_task_moves_in_rounds_on_debians_kernel() {
    let ready = || {
        let machine = Machine::new()?;
        machine.criu()?;
        Ok::<_, String>(machine)
    };
    let machine = match ready() {
        Ok(machine) => machine,
        Err(why) => return skipped("precopy", &why),
    };
    for name in ["proc", "sys", "dev", "tmp", "run", "nodes", "var/lib/gridos"] {
        machine.mkdir(name);
    }
    machine.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644);
    machine.write("init", &INIT.replace("MIB", &MEMORY.to_string()), 0o755);
    machine.busybox(
        "bin",
        "sh mount ls cat sleep tail tr wc hostname grep ip mkdir touch pidof unshare insmod poweroff",
    );
    machine.compile("holds", include_str!("precopy.c"));
    machine.programs();
    machine.libraries();
    let console = machine.boot(None, "/init", 2048);
    console.expect(&[("missing", "0"), ("holders", "1"), ("ended", "0")]);
    let (results, text) = (console.results(), console.text());
    assert_eq!(results.get("never"), None, "{text}");
    let given_up = results["given_up"];
    assert!(given_up.starts_with("1 ") && given_up.contains("goes on where it was"), "{text}");
    let numbers: Vec<u32> = results["release"].split('.').map_while(|number| number.parse().ok()).collect();
    let auto = if numbers[..] >= [6, 7][..] { "hybrid" } else { "pre-copy" };
    let mut all_ahead = 0;
    for (name, to, mode) in [("there", 2, "pre-copy"), ("back", 1, auto)] {
        let all: Value = serde_json::from_str(results[name]).expect(text);
        let moved = &all[0]["moved"];
        assert_eq!((&moved["to"], &moved["mode"]), (&to.into(), &mode.into()), "{text}");
        // All of it came while it ran, and what it wrote to meanwhile once more.
        let ahead = moved["ahead"].as_u64().expect(text);
        assert!(ahead > (MEMORY + FILE) << 20, "{ahead} bytes came ahead\n{text}");
        all_ahead += ahead;
        println!("FIGURE {name}: {ahead} bytes while it ran, stood still for {}", moved["stopped"]);
    }
    let rounds: Vec<u64> = text.lines().filter(|line| line.contains("round_written")).map(bytes).collect();
    let least = if auto == "pre-copy" { 4 } else { 2 };
    assert!(rounds.len() >= least, "{rounds:?}, of {least} at least\n{text}");
    // What came besides memory were files.
    let files = all_ahead.saturating_sub(rounds.iter().sum());
    assert!(auto != "pre-copy" || files >= (2 * FILE) << 20, "{files} bytes of files came ahead\n{text}");
    println!("FIGURE rounds of {rounds:?} bytes, and {files} of files; {}", results["printed"]);
    assert!(results["printed"].ends_with(" OK "), "{text}");
}
