//! Control groups version 2, on Debian's own kernel in a virtual machine: what this machine's kernel may not have.
//!
//! An initramfs of the agent's programs and busybox is booted by QEMU. Its init starts an agent, founds a VO, runs
//! jobs, and tells how each went, one line each, on the serial console.

use grid_tests::{Machine, skipped};

/// The first program of the machine.
const INIT: &str = r##"#!/bin/sh
export PATH=/usr/local/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t tmpfs lib /var/lib
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up; hostname vm1; cd /tmp

agent() {
    gridosd 2>>/tmp/agent.log &
    echo $! > /tmp/pid
}
tell() { echo "RESULT $1=$2"; }
outcome() { gridctl wait "$2" >/dev/null 2>/tmp/said; tell "$1" "$?"; }

agent
until [ -S /run/gridos/control.sock ]; do sleep 1; done
gridctl vo create vm >/dev/null
tell groups "$(gridctl doctor | grep -o 'version [12]')"
tell tier "$(gridctl doctor | grep -o 'ebpf: every process')"
outcome true "$(gridctl submit -- /bin/true)"
gridctl run -- sh -c 'id -u; cat /proc/self/cgroup; exit 7' >/tmp/out 2>/dev/null; tell own "$?"
tell user "$(head -n 1 /tmp/out)"
outcome memory "$(gridctl submit --mem 32M -- sh -c 'head -c 200000000 /dev/zero | tail | wc -c')"
tell memory_said "$(cat /tmp/said)"
outcome time "$(gridctl submit --time 2s -- sleep 1000)"
outcome array "$(gridctl submit --array 0-49 --cpus 0.1 --mem 8M -- sh -c 'exit 0')"
job=$(gridctl submit -- sh -c 'sleep 1000 | sleep 1000'); sleep 2
tell followed "$(gridctl ps --processes "$job" | grep -c sleep)"
tell parents "$(gridctl ps --processes --json "$job" | grep -o '"parent":"1' | wc -l)"
gridctl kill -s INT "$job"; outcome signal "$job"
job=$(gridctl submit -- sh -c 'sleep 1000 | nc -l -p 7070 & until grep -q :1B9E /proc/net/tcp*; do sleep 1; done; (echo hello; sleep 1000) | nc 127.0.0.1 7070')
talk() { gridctl ps --processes --json "$job" | grep -o '"traffic":\[{"remote":"127.0.0.1"' | wc -l; }
i=0; until [ "$(talk)" = 2 ] || [ $i -gt 60 ]; do i=$((i+1)); sleep 1; done
tell counted "$(gridctl doctor | grep -c 'packets are not counted')"
tell traffic "$(talk)"
gridctl kill "$job"
job=$(gridctl submit -- sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done'); outcome busy "$job"
tell usage "$(gridctl status --json "$job" | grep -o '"peak_memory":[1-9]' | head -n 1)"
job=$(gridctl submit -- sh -c 'sleep 8; exit 3'); sleep 2
pid=$(cat /tmp/pid); kill -9 "$pid"; wait "$pid"; agent
until gridctl nodes >/dev/null 2>&1; do sleep 1; done
outcome restart "$job"
tell processes "$(cat /sys/fs/cgroup/gridos/*/cgroup.procs 2>/dev/null | wc -l)"
cat /tmp/agent.log
echo MACHINE DONE
poweroff -f
"##;

#[test]
fn tasks_are_limited_and_outlive_the_agent_under_control_groups_version_2() {
    let machine = match Machine::new() {
        Ok(machine) => machine,
        Err(why) => return skipped("vm", &why),
    };
    machine.node(INIT);
    machine.busybox(
        "bin",
        "sh mount ls cat echo sleep head tail wc id hostname grep true ip kill mkdir nc poweroff",
    );
    let console = machine.boot(None, "/init", 1024);
    console.expect(&[
        ("groups", "version 2"),
        // With eBPF on another kernel than this machine's.
        ("tier", "ebpf: every process"),
        ("followed", "2"),
        ("parents", "2"),
        // By both ends of a connection; on this kernel by tracing who makes sockets.
        ("counted", "0"),
        ("traffic", "2"),
        ("true", "0"),
        ("own", "7"),
        ("user", "1900000521"),
        ("memory", "137"),
        ("time", "124"),
        ("array", "0"),
        ("signal", "130"),
        ("busy", "0"),
        ("restart", "3"),
        ("processes", "0"),
    ]);
    let (results, text) = (console.results(), console.text());
    assert!(results["memory_said"].contains("needing more than its 32M of memory"), "{text}");
    assert!(results["usage"].starts_with("\"peak_memory\":"), "{text}");
}
