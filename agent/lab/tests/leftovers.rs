//! Nothing of a lab stays, however it ended.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use grid_lab::{Lab, LabError, LabGuard};
use support::{HELPER, Identity, cgroups, config, obstacle, pid_space, processes_in, skipped, until};

/// What this machine looks like, as far as a lab could change it for good.
fn surroundings() -> Vec<String> {
    ["net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv4.conf.default.rp_filter"]
        .map(|key| fs::read_to_string(Path::new("/proc/sys").join(key.replace('.', "/"))).unwrap_or_default())
        .to_vec()
}

#[test]
fn down_leaves_nothing() {
    if let Some(why) = obstacle() {
        return skipped("down_leaves_nothing", &why);
    }
    let dir = tempfile::tempdir().unwrap();
    let before = surroundings();
    let config = config("down-leaves-nothing", 3, dir.path());
    let (name, root) = (config.name.clone(), config.root.clone());
    assert_eq!(Identity::of(&name, &root).traces(), Vec::<String>::new());
    let lab = LabGuard::up(config).unwrap();
    let identity = Identity::of(&name, &root);
    let spaces: Vec<PathBuf> = lab.machines().iter().map(pid_space).collect();
    assert!(identity.traces().len() > 3);
    // Groups of jobs, as an agent would have made them, each with a process.
    let mut jobs = Vec::new();
    for (hierarchy, machine) in [("cpu", 1), ("memory", 2), ("unified", 2), (".", 3)] {
        let group = format!("/sys/fs/cgroup/{hierarchy}/gridos-{name}-node{machine}/j1.1/0");
        if Path::new(&format!("/sys/fs/cgroup/{hierarchy}/cgroup.procs")).exists() {
            fs::create_dir_all(&group).unwrap();
            let script = format!("echo $$ > {group}/cgroup.procs && exec setsid sleep 1000");
            let machine = lab.machine(&format!("node{machine}")).unwrap();
            jobs.push(machine.exec("bash").args(["-c", &script]).spawn().unwrap());
            until("the group has a process", || {
                fs::read_to_string(format!("{group}/cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
            });
        }
    }
    assert!(!cgroups(&name).is_empty());
    lab.down().unwrap();
    for mut job in jobs {
        assert_eq!(job.wait().unwrap().signal(), Some(9));
    }
    assert_eq!(identity.traces(), Vec::<String>::new());
    assert!(spaces.iter().all(|space| processes_in(space).is_empty()));
    assert_eq!(surroundings(), before);
    lab.down().unwrap();
}

#[test]
fn an_up_that_fails_leaves_nothing() {
    if let Some(why) = obstacle() {
        return skipped("an_up_that_fails_leaves_nothing", &why);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config("an-up-that-fails", 2, dir.path());
    fs::write(&config.agent, "#!/no/such/interpreter\n").unwrap();
    let identity = Identity::of(&config.name, &config.root);
    let error = LabGuard::up(config).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("node1 did not start: cannot start the agent"), "{message}");
    assert_eq!(identity.traces(), Vec::<String>::new());
}

#[test]
fn an_up_whose_process_is_killed_can_be_taken_down() {
    if let Some(why) = obstacle() {
        return skipped("an_up_whose_process_is_killed_can_be_taken_down", &why);
    }
    // What is there at the moment of the blow.
    for moment in
        ["lock", "lab.json", "node1", "node1/pid1.json", "node1/agent.pid", "node2/run", "node2/pid1.json"]
    {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&format!("killed{}", moment.len()), 3, dir.path());
        let (name, root) = (config.name.clone(), config.root.clone());
        let mut up = start_up(&config.name, &root, &config.agent);
        until(moment, || root.join(moment).exists());
        up.kill().unwrap();
        let ended = up.wait().unwrap();
        let identity = Identity::of(&name, &root);
        if !ended.success() && root.join("lab.json").exists() {
            let error = LabGuard::up(config).unwrap_err();
            assert!(
                matches!(error, LabError::HalfMade { .. } | LabError::Exists { .. }),
                "{moment}: {error}"
            );
        }
        Lab::down_at(&root).unwrap();
        assert_eq!(identity.traces(), Vec::<String>::new(), "{moment}");
    }
}

#[test]
fn a_machine_outlives_the_process_that_made_the_lab() {
    if let Some(why) = obstacle() {
        return skipped("a_machine_outlives_the_process_that_made_the_lab", &why);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config("outlives", 1, dir.path());
    assert!(start_up(&config.name, &config.root, &config.agent).wait().unwrap().success());
    let lab = LabGuard::from(Lab::open(&config.root).unwrap());
    assert!(lab.machine("node1").unwrap().agent_pid().unwrap().is_some());
    let error = Lab::down_at("/no/such/lab").unwrap_err().to_string();
    assert!(error.contains("there is no lab in /no/such/lab"), "{error}");
}

fn start_up(name: &str, root: &Path, agent: &Path) -> Child {
    let mut command = Command::new(HELPER);
    command.args(["up", name, "3"]).arg(root).arg(agent);
    // It could hold up whoever reads the output of the tests.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
