//! Control groups version 2, on Debian's own kernel in a virtual machine: what this machine's kernel may not have.
//!
//! An initramfs of the agent's programs and busybox is booted by QEMU. Its init starts an agent, founds a VO, runs
//! jobs, and tells how each went, one line each, on the serial console.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use grid_tests::{program, skipped};

/// How long the machine may take, without hardware virtualisation and beside other tests.
const PATIENCE: &str = "240";

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
outcome true "$(gridctl submit -- /bin/true)"
gridctl run -- sh -c 'id -u; cat /proc/self/cgroup; exit 7' >/tmp/out 2>/dev/null; tell own "$?"
tell user "$(head -n 1 /tmp/out)"
outcome memory "$(gridctl submit --mem 32M -- sh -c 'head -c 200000000 /dev/zero | tail | wc -c')"
tell memory_said "$(cat /tmp/said)"
outcome time "$(gridctl submit --time 2s -- sleep 1000)"
outcome array "$(gridctl submit --array 0-49 --cpus 0.1 --mem 8M -- sh -c 'exit 0')"
job=$(gridctl submit -- sh -c 'sleep 1000 | sleep 1000'); sleep 2
gridctl kill -s INT "$job"; outcome signal "$job"
job=$(gridctl submit -- sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done'); outcome busy "$job"
tell usage "$(gridctl status --json "$job" | grep -o '"peak_memory":[1-9]' | head -n 1)"
job=$(gridctl submit -- sh -c 'sleep 8; exit 3'); sleep 2
kill -9 "$(cat /tmp/pid)"; agent; sleep 1
outcome restart "$job"
tell processes "$(cat /sys/fs/cgroup/gridos/*/cgroup.procs 2>/dev/null | wc -l)"
cat /tmp/agent.log
echo MACHINE DONE
poweroff -f
"##;

/// What the machine needs that this one may lack; `Err` says what.
fn kernel() -> Result<PathBuf, String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the machine's kernel is for x86_64".into());
    }
    for tool in ["qemu-system-x86_64", "busybox", "cpio", "strip"] {
        let there =
            Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
        if !there.unwrap().success() {
            return Err(format!("there is no {tool}: setup/install test installs it"));
        }
    }
    let here = std::env::current_exe().unwrap();
    let found = here.ancestors().map(|folder| folder.join("vm/vmlinuz")).find(|path| path.exists());
    found.ok_or_else(|| "there is no vm/vmlinuz in the target folder: setup/install test fetches it".into())
}

/// Makes the initramfs: busybox, our programs, and the libraries that they name.
fn initramfs(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    for name in ["bin", "proc", "sys", "dev", "tmp", "run", "etc", "var/lib", "usr/local/bin"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(which("busybox"), root.join("bin/busybox")).unwrap();
    for name in
        "sh mount ls cat echo sleep head tail wc id hostname grep true ip kill mkdir poweroff".split(' ')
    {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for name in ["gridosd", "gridctl", "gridos-shim", "gridos-init"] {
        let (from, to) = (program(name), root.join("usr/local/bin").join(name));
        assert!(Command::new("strip").arg("-o").arg(&to).arg(&from).status().unwrap().success());
        let libraries = Command::new("ldd").arg(&from).output().unwrap();
        let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
    let image = folder.join("initramfs.gz");
    let pack = format!("find . | cpio --quiet -o -H newc | gzip -1 > '{}'", image.display());
    assert!(Command::new("sh").args(["-c", &pack]).current_dir(&root).status().unwrap().success());
    image
}

fn which(name: &str) -> PathBuf {
    let output = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

#[test]
fn tasks_are_limited_and_outlive_the_agent_under_control_groups_version_2() {
    let kernel = match kernel() {
        Ok(kernel) => kernel,
        Err(why) => return skipped("vm", &why),
    };
    let folder = tempfile::Builder::new().prefix("gridvm-").tempdir_in("/var/tmp").unwrap();
    let image = initramfs(folder.path());
    // Not by KVM: there are machines that have it, and on which Debian's kernel stops early.
    let output = Command::new("timeout")
        .args([PATIENCE, "qemu-system-x86_64", "-accel", "tcg", "-m", "1024", "-smp", "2"])
        .args(["-nographic", "-no-reboot", "-net", "none", "-kernel"])
        .arg(&kernel)
        .arg("-initrd")
        .arg(&image)
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(console.contains("MACHINE DONE"), "the machine did not come to its end:\n{console}");
    let results: BTreeMap<&str, &str> =
        console.lines().filter_map(|line| line.split_once("RESULT ")?.1.split_once('=')).collect();
    let expected = [
        ("groups", "version 2"),
        ("true", "0"),
        ("own", "7"),
        ("user", "1900000000"),
        ("memory", "137"),
        ("time", "124"),
        ("array", "0"),
        ("signal", "130"),
        ("busy", "0"),
        ("restart", "3"),
        ("processes", "0"),
    ];
    for (name, value) in expected {
        assert_eq!(results.get(name), Some(&value), "{name}\n{console}");
    }
    assert!(results["memory_said"].contains("needing more than its 32M of memory"), "{console}");
    assert!(results["usage"].starts_with("\"peak_memory\":"), "{console}");
}
