//! The agent as the kernel module's daemon, in a virtual machine: ids are the module's, programs of jobs and of users ask
//! the grid through the kernel, and a restart of the agent loses neither ids nor questions.

use grid_tests::module::{build, troubles};
use grid_tests::{Machine, probed, skipped};

const INIT: &str = r##"#!/bin/sh
export PATH=/usr/local/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t tmpfs lib /var/lib
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up; hostname vm1; cd /tmp
echo 60 > /proc/sys/kernel/watchdog_thresh
echo 120 > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout

agent() {
    gridosd 2>>/tmp/agent.log &
    echo $! > /tmp/pid
}
tell() { echo "RESULT $1=$2"; }
soon() { i=0; until eval "$1"; do i=$((i+1)); [ $i -gt 300 ] && { tell never "$1"; return; }; sleep 0.2; done; }
# One command to the daemon through a file of /proc, and its answer on one line.
control() { { echo "$1" >&3; cat <&3; } 3<>/proc/gridos/control 2>&1 | tr '\n' ' '; }
ids() { sed 1d /proc/gridos/gpids | sort | tr '\n\t' '; '; }

insmod /gridos.ko; tell loaded "$?"
agent
soon '[ -S /run/gridos/control.sock ]'
gridctl vo create vm >/dev/null
tell tier "$(gridctl doctor | grep -o 'kernel: every process')"
tell nodes "$(gridctl nodes --json | grep -o '"tier":"[a-z]*"')"
tell door "$(gridctl sys version 2>&1 >/dev/null)"
first=$(gridctl submit --cpus 0.1 --mem 64M -- sleep 1000); tell first "$first"
probe=$(gridctl submit --cpus 0.1 --mem 64M -- grid-probe)
gridctl wait "$probe" >/dev/null 2>&1; tell probe "$?"
gridctl logs "$probe" | sed 's/^/PROBED /'
# Each process of a job finds itself, and its children do.
job=$(gridctl submit --cpus 0.1 --mem 64M -- sh -c 'i=0; while [ $i -lt 200 ]; do sh -c :; i=$((i+1)); done; cat /proc/gridos/self; sh -c "cat /proc/gridos/self; :"')
gridctl wait "$job" >/dev/null 2>&1
tell job "$job"
tell selves "$(gridctl logs "$job" | tr '\n' ' ')"
soon 'grep -q "vm1$" /proc/gridos/nodes'
soon 'grep -q "^j1.1.*running.*sleep$" /proc/gridos/jobs'
tell agrees "$(gridctl ps --processes --json | grep -c "\"gpid\":\"$(sed -n 2p /proc/gridos/gpids | cut -f 1)\"")"
tell told "$(control "status $first")"
gridctl pipe create frames >/dev/null
tell pipes "$(grep -c frames /proc/gridos/pipes)"
tell refused "$(control "signal 12.77 INT")"
tell unload "$(rmmod gridos 2>&1 | grep -ci 'unavailable\|busy')"
before=$(ids)
tell before "$before"
pid=$(cat /tmp/pid); kill -9 "$pid"; wait "$pid"
tell daemon "$(grep daemon /proc/gridos/version)"
# Asked of nobody, and answered by the next one.
control "status $first/0" > /tmp/late &
late=$!
agent
wait $late; tell late "$(cat /tmp/late)"
soon 'grep -q "daemon attached" /proc/gridos/version'
[ "$(ids)" = "$before" ]; tell same "$?"
second=$(gridctl submit --cpus 0.1 --mem 64M -- sleep 1000)
soon '[ "$(sed 1d /proc/gridos/gpids | wc -l)" = 2 ]'
tell serials "$(sed 1d /proc/gridos/gpids | cut -f 1 | sed 's/.*\.//' | tr '\n' ' ')"
tell lost "$(grep lost /proc/gridos/version)"
gridctl kill -s KILL "$first" "$second" >/dev/null 2>&1
gridctl wait "$first" "$second" >/dev/null 2>&1
soon '[ -z "$(ids)" ]'
gridctl down >/dev/null 2>&1
soon 'rmmod gridos 2>/dev/null'
tell gone "$(ls -d /dev/gridos /proc/gridos 2>/dev/null)"
cat /tmp/agent.log
echo MESSAGES BEGIN; dmesg; echo MESSAGES END
echo MACHINE DONE
poweroff -f
"##;

#[test]
fn programs_ask_the_agent_through_the_module() {
    let folder = tempfile::tempdir().unwrap();
    let ready = || {
        let machine = Machine::with_kernel("6.1")?;
        machine.copy("gridos.ko", &build("6.1", folder.path())?);
        Ok::<_, String>(machine)
    };
    let machine = match ready() {
        Ok(machine) => machine,
        Err(why) => return skipped("the agent with the kernel module", &why),
    };
    machine.node(INIT);
    machine.busybox(
        "bin",
        "sh mount ls cat echo sleep sed tr sort cut wc grep ip kill mkdir hostname insmod rmmod dmesg poweroff",
    );
    machine.install(&["grid-probe"]);

    let console = machine.boot(None, "/init", 1024);
    let text = console.text();
    assert_eq!(troubles(text), Vec::<&str>::new(), "{text}");
    console.expect(&[
        ("loaded", "0"),
        ("tier", "kernel: every process"),
        ("nodes", "\"tier\":\"kernel\""),
        ("door", "answered by the device"),
        ("first", "j1.1"),
        ("probe", "0"),
        ("agrees", "1"),
        ("told", "job j1.1 task - state running node - exit_status - running 1 done 0 failed 0 "),
        ("pipes", "1"),
        ("unload", "1"),
        ("daemon", "daemon none"),
        ("late", "job j1.1 task 0 state running node 1 exit_status - running 1 done 0 failed 0 "),
        ("same", "0"),
        ("lost", "lost 0"),
        ("gone", ""),
    ]);
    let results = console.results();
    assert_eq!(results.get("never"), None, "{text}");
    assert!(results["refused"].contains("No such process"), "{text}");
    let printed: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("PROBED "))
        .fold(String::new(), |printed, line| printed + line + "\n");
    let said = probed(&printed);
    assert_eq!(said["door"], "device", "{printed}");
    // Two processes of the same task, each with an id of its own.
    let selves: Vec<&str> = results["selves"].split_whitespace().collect();
    let [_, one, _, "1", _, job, _, "0", _, other, _, "1", _, same_job, _, "0"] = selves[..] else {
        panic!("{text}");
    };
    assert_eq!((job, same_job), (results["job"], results["job"]), "{text}");
    assert_ne!(one, other, "{text}");
    assert!(one.starts_with("1.") && other.starts_with("1."), "{text}");
    // A number that is given is not given again, and none is lost by a restart of the agent alone.
    let serials: Vec<u32> =
        results["serials"].split_whitespace().map(|serial| serial.parse().unwrap()).collect();
    let highest: u32 = one.split_once('.').unwrap().1.parse().unwrap();
    assert!(
        serials.iter().max().is_some_and(|last| (highest..highest + 50).contains(last)),
        "{serials:?}: {text}"
    );
}
