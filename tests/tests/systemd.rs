//! The agent as a service of a real systemd, in a virtual machine whose first program systemd is.
//!
//! The root file system holds Debian's systemd, unpacked by `setup/install test`, and a unit that runs [`SCRIPT`]: it
//! starts the agent by `gridctl up`, founds a VO, runs tasks, kills, restarts and stops the agent, and tells how each
//! went.

use grid_tests::{Machine, fetched, skipped};

const SCRIPT: &str = r##"#!/bin/sh
export PATH=/usr/local/bin:/usr/bin
exec >/dev/ttyS0 2>&1; cd /tmp

tell() { echo "RESULT $1=$2"; }
outcome() { gridctl wait "$2" >/dev/null 2>&1; tell "$1" "$?"; }
ask() { systemctl show -p "$1" --value "$2"; }
soon() { i=0; until eval "$1"; do i=$((i+1)); [ $i -gt 150 ] && { tell never "$1"; return; }; sleep 0.2; done; }
sleeping() { ps -o pid,args | sed -n "s/^ *\([0-9]*\) sleep $1\$/\1/p"; }
# A task that sleeps until it is woken, and then ends with this status.
sleeper() { gridctl submit -- sh -c "sleep $1; exit $2"; soon '[ -n "$(sleeping '"$1"')" ]'; }
wake() { kill "$(sleeping "$1")"; }
group() { cut -d: -f3 "/proc/$1/cgroup"; }

systemctl --version | head -n 1
gridctl up; tell up "$?"
tell enabled "$(systemctl is-enabled gridosd)"
tell active "$(systemctl is-active gridosd gridos-tasks | tr '\n' ' ')"
tell verify "$(systemd-analyze verify gridosd.service gridos-tasks.service 2>&1 | tr '\n' ' ')"
gridctl vo create vm
tell groups "$(gridctl doctor | grep -o 'version [12]')"
gridctl run -- sh -c 'cat /proc/self/cgroup; exit 7' >/tmp/out; tell own "$?"
tell task_group "$(cut -d: -f3 /tmp/out)"
tell agent_group "$(group "$(ask MainPID gridosd)")"
tell shim_groups "$(for pid in $(pidof gridos-shim); do group "$pid"; done | sort -u | tr '\n' ' ')"
outcome memory "$(gridctl submit --mem 32M -- sh -c 'head -c 200000000 /dev/zero | tail | wc -c')"

# Everything in the service's group is killed: the agent, and no task. Systemd starts another.
job=$(sleeper 1003 3); task=$(sleeping 1003); before=$(ask MainPID gridosd)
systemctl kill -s KILL gridosd
soon '[ "$(ask MainPID gridosd)" -gt 0 ] && [ "$(ask MainPID gridosd)" != "$before" ] && gridctl nodes >/dev/null 2>&1'
tell restarts "$(ask NRestarts gridosd)"
[ "$(sleeping 1003)" = "$task" ]; tell killed_same "$?"
wake 1003; outcome killed "$job"

job=$(sleeper 1004 4); task=$(sleeping 1004)
systemctl restart gridosd; tell restart "$?"
gridctl up >/dev/null
[ "$(sleeping 1004)" = "$task" ]; tell restarted_same "$?"
wake 1004; outcome restarted "$job"

# Stopped for good; systemd looks at its tree again, and the task keeps its limits. It ends while there is no agent.
job=$(sleeper 1005 5); task=$(sleeping 1005)
gridctl down; tell down "$?"
tell down_active "$(systemctl is-active gridosd gridos-tasks | tr '\n' ' ')"
tell down_enabled "$(systemctl is-enabled gridosd)"
tell down_result "$(ask Result gridosd)"
systemctl daemon-reload
systemctl set-property --runtime gridos-tasks.service CPUWeight=50
tell down_limit "$(cat "/sys/fs/cgroup$(group "$task")/memory.max")"
systemd-cgls --no-pager -a /system.slice/gridos-tasks.service
[ "$(sleeping 1005)" = "$task" ]; tell down_same "$?"
wake 1005; soon '[ -z "$(sleeping 1005)" ]'
gridctl up; tell up_again "$?"
outcome down_task "$job"

# As at a boot.
systemctl stop gridosd; systemctl start multi-user.target
soon 'gridctl nodes >/dev/null 2>&1'; tell boot "$(systemctl is-active gridosd)"

# The service of the tasks takes the tasks with it, and the agent.
job=$(sleeper 1006 6)
systemctl stop gridos-tasks; tell tasks_stop "$?"
tell tasks_left "$(sleeping 1006)$(pidof gridos-shim)$(ls /sys/fs/cgroup/system.slice/gridos-tasks.service 2>/dev/null)"
tell tasks_active "$(systemctl is-active gridosd gridos-tasks | tr '\n' ' ')"
gridctl up; soon '[ -n "$(sleeping 1006)" ]'
gridctl kill "$job"; outcome lost_and_again "$job"

journalctl -u gridosd -u gridos-tasks --no-pager -o cat |
    grep 'left-over\|remains running\|[Ff]ailed to .* cgroup' >/tmp/complaints; cat /tmp/complaints
tell complaints "$(wc -l </tmp/complaints)"

# Its process dies, and all tasks with it: both start again.
before=$(ask MainPID gridosd)
kill -9 "$(ask MainPID gridos-tasks)"
soon '[ "$(ask MainPID gridosd)" -gt 0 ] && [ "$(ask MainPID gridosd)" != "$before" ] && gridctl nodes >/dev/null 2>&1'
outcome after "$(gridctl submit -- true)"

tell ready "$(journalctl -u gridosd -o cat --no-pager | grep -c agent_ready)"
journalctl --no-pager -u gridosd -u gridos-tasks | tail -n 100
gridctl submit -- sh -c 'trap "" TERM; sleep 1007; sleep 1007'; soon '[ -n "$(sleeping 1007)" ]'
tell uptime "$(cut -d. -f1 /proc/uptime)"
echo MACHINE DONE
systemctl --force poweroff
"##;

const UNIT: &str = "[Unit]\nDescription=Test\n\n[Service]\nExecStart=/usr/local/bin/test-agent\n";

#[test]
fn a_service_of_systemd_starts_again_and_its_tasks_outlive_it() {
    let needs = || Ok::<_, String>((Machine::new()?, fetched("systemd.cpio")?));
    let (machine, systemd) = match needs() {
        Ok(both) => both,
        Err(why) => return skipped("systemd", &why),
    };
    // Not a first boot, which would ask for a password.
    machine.write("etc/machine-id", "5f2d7c1b9a3e4d60812c4b7e9f10a3d5\n", 0o444);
    machine.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644);
    machine.write("etc/group", "root:x:0:\nsystemd-journal:x:999:\n", 0o644);
    machine.write("etc/hostname", "vm1\n", 0o644);
    machine.write("usr/local/bin/test-agent", SCRIPT, 0o755);
    machine.write("etc/systemd/system/test-agent.service", UNIT, 0o644);
    machine.busybox("usr/bin", "sh pidof ps grep sed");
    machine.programs();
    let arguments = "/usr/lib/systemd/systemd systemd.wants=test-agent.service systemd.unit=multi-user.target \
                     systemd.getty_auto=no";
    let console = machine.boot(Some(&systemd), arguments, 2048);
    console.expect(&[
        ("up", "0"),
        ("enabled", "enabled"),
        ("active", "active active "),
        ("verify", ""),
        ("groups", "version 2"),
        ("own", "7"),
        ("task_group", "/system.slice/gridos-tasks.service/tasks/s521"),
        ("agent_group", "/system.slice/gridosd.service"),
        ("shim_groups", "/system.slice/gridos-tasks.service/shims "),
        ("memory", "137"),
        ("restarts", "1"),
        ("killed_same", "0"),
        ("killed", "3"),
        ("restart", "0"),
        ("restarted_same", "0"),
        ("restarted", "4"),
        ("down", "0"),
        ("down_active", "inactive active "),
        ("down_enabled", "disabled"),
        ("down_result", "success"),
        ("down_limit", "536870912"),
        ("up_again", "0"),
        ("down_same", "0"),
        ("down_task", "5"),
        ("boot", "active"),
        ("tasks_stop", "0"),
        ("tasks_left", ""),
        ("tasks_active", "inactive inactive "),
        ("lost_and_again", "143"),
        ("after", "0"),
        ("ready", "7"),
        ("complaints", "0"),
    ]);
    let (results, text) = (console.results(), console.text());
    assert_eq!(results.get("never"), None, "{text}");
    // The kernel's last line begins with the seconds since it started.
    let off = text.lines().find(|line| line.contains("Power down")).expect(text);
    let off: f64 = off.trim_start_matches(['[', ' ']).split(']').next().unwrap().parse().unwrap();
    let going: f64 = results["uptime"].parse().unwrap();
    assert!(off - going < 40.0, "a task held up the end of the machine for {} s\n{text}", off - going);
}
