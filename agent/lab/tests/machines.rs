//! Machines: what they are, and their power.

mod support;

use std::fs;
use std::time::Instant;

use grid_lab::{Lab, LabConfig, LabError, LabGuard};
use support::{Grid, grid, name, pid_space, processes_in, running, shell, until, until_some, with_grid};

#[test]
fn each_machine_is_a_host_of_its_own() {
    with_grid("each_machine_is_a_host_of_its_own", 2, |grid: &Grid| {
        for (index, machine) in (1..).zip(grid.lab.machines()) {
            let addr = machine.addr();
            assert_eq!(addr.octets()[3], index);
            assert_eq!(shell(&machine, "hostname"), format!("node{index}"));
            assert_eq!(shell(&machine, "cat /proc/1/comm"), "gridos-lab");
            assert!(shell(&machine, "ip -4 -o address show dev eth0").contains(&format!(" {addr}/24 ")));
            assert!(shell(&machine, "ip -4 -o address show dev lo").contains(" 127.0.0.1/8 "));
            assert_eq!(shell(&machine, "getent hosts node1"), format!("{:15} node1", grid.machine(1).addr()));
            let groups = shell(&machine, "find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs");
            assert!(!groups.is_empty());
            shell(&machine, "echo > /run/gridos/control.sock");
            assert!(machine.control_socket().exists());
        }
        assert_ne!(pid_space(&grid.machine(1)), pid_space(&grid.machine(2)));
    });
}

#[test]
fn the_agent_gets_its_configuration() {
    with_grid("the_agent_gets_its_configuration", 1, |grid| {
        let machine = grid.machine(1);
        let toml = machine.dir().join("gridosd.toml");
        let text = fs::read_to_string(&toml).unwrap();
        assert!(text.contains(&format!("listen = \"{}:7411\"", machine.addr())), "{text}");
        assert!(text.contains(&format!("cgroup_parent = \"gridos-{}-node1\"", grid.lab.name())), "{text}");
        let log = until_some("the agent says what it was started with", || {
            fs::read_to_string(machine.dir().join("agent.log")).ok().filter(|log| log.ends_with('\n'))
        });
        assert!(log.contains(&format!("--config {}", toml.display())), "{log}");
    });
}

#[test]
fn a_power_cut_takes_every_process_along() {
    with_grid("a_power_cut_takes_every_process_along", 1, |grid| {
        let machine = grid.machine(1);
        shell(&machine, "for i in 1 2 3; do setsid sleep 1000 >/dev/null 2>&1 & done");
        let space = pid_space(&machine);
        until("all run", || running(&space, "sleep").len() == 3);
        machine.kill().unwrap();
        assert!(processes_in(&space).is_empty());
        assert!(!machine.is_on().unwrap());
        assert_eq!(machine.agent_pid().unwrap(), None);
        machine.kill().unwrap();
        let message = machine.kill_agent().unwrap_err().to_string();
        assert_eq!(message, "node1 is off: boot or heal it first");
    });
}

#[test]
fn after_a_boot_the_state_is_kept_and_the_rest_is_new() {
    with_grid("after_a_boot_the_state_is_kept_and_the_rest_is_new", 2, |grid| {
        let machine = grid.machine(1);
        shell(&machine, "echo kept > /var/lib/gridos/x; echo gone > /run/gridos/x");
        let (space, addr) = (pid_space(&machine), machine.addr());
        for end in [grid_lab::Machine::kill, grid_lab::Machine::shutdown] {
            end(&machine).unwrap();
            machine.boot().unwrap();
            machine.boot().unwrap();
        }
        assert_ne!(pid_space(&machine), space);
        assert_eq!(
            shell(&machine, "cat /var/lib/gridos/x; test ! -e /run/gridos/x && hostname"),
            "kept\nnode1"
        );
        assert!(shell(&machine, "ip -4 -o address show dev eth0").contains(&format!(" {addr}/24 ")));
        assert_eq!(shell(&grid.machine(2), "getent hosts node1 | cut -d ' ' -f 1"), addr.to_string());
    });
}

#[test]
fn a_frozen_job_does_not_keep_a_machine_alive() {
    with_grid("a_frozen_job_does_not_keep_a_machine_alive", 1, |grid| {
        let freezer = std::path::Path::new("/sys/fs/cgroup/freezer");
        if !freezer.join("cgroup.procs").exists() {
            return support::skipped(
                "a_frozen_job_does_not_keep_a_machine_alive",
                "no freezer of cgroup v1 here",
            );
        }
        let machine = grid.machine(1);
        let group = freezer.join(format!("gridos-{}-node1/job", grid.lab.name()));
        fs::create_dir_all(&group).unwrap();
        let group = group.display();
        shell(
            &machine,
            &format!(
                "setsid sleep 1000 >/dev/null 2>&1 & echo $! > {group}/tasks; echo FROZEN > {group}/freezer.state"
            ),
        );
        until("the job is frozen", || {
            fs::read_to_string(format!("{group}/freezer.state")).unwrap().trim() == "FROZEN"
        });
        machine.kill().unwrap();
        assert!(support::cgroups(grid.lab.name()).is_empty());
    });
}

#[test]
fn the_agent_is_started_again_after_its_death() {
    with_grid("the_agent_is_started_again_after_its_death", 2, |grid| {
        let machine = grid.machine(1);
        shell(&machine, "setsid sleep 1000 >/dev/null 2>&1 &");
        let space = pid_space(&machine);
        until("the job runs", || running(&space, "sleep").len() == 1);
        let jobs = running(&space, "sleep");
        let mut seen = vec![machine.agent_pid().unwrap().unwrap()];
        for _ in 0..3 {
            let killed = machine.kill_agent().unwrap();
            assert_eq!(Some(&killed), seen.last());
            let again = until_some("the agent runs again", || machine.agent_pid().unwrap());
            assert!(!seen.contains(&again));
            seen.push(again);
        }
        // Nobody else noticed.
        assert_eq!(running(&space, "sleep"), jobs);
        assert_eq!(pid_space(&machine), space);
    });
}

#[test]
fn an_agent_that_is_switched_off_stays_off() {
    with_grid("an_agent_that_is_switched_off_stays_off", 1, |grid| {
        let machine = grid.machine(1);
        let first = machine.agent_pid().unwrap().unwrap();
        machine.stop_agent().unwrap();
        machine.stop_agent().unwrap();
        assert_eq!(machine.agent_pid().unwrap(), None);
        machine.kill().unwrap();
        machine.boot().unwrap();
        assert_eq!(machine.agent_pid().unwrap(), None);
        // Well over the time after which a dead agent is started again.
        let begun = Instant::now();
        until("300 ms have passed", || begun.elapsed().as_millis() > 300);
        assert_eq!(machine.agent_pid().unwrap(), None);
        machine.start_agent().unwrap();
        machine.start_agent().unwrap();
        let second = until_some("the agent runs", || machine.agent_pid().unwrap());
        assert_ne!(first, second);
    });
}

#[test]
fn orphans_are_reaped() {
    with_grid("orphans_are_reaped", 1, |grid| {
        let machine = grid.machine(1);
        shell(&machine, "for i in $(seq 20); do (setsid true &) ; done");
        until("no dead process waits", || !shell(&machine, "ps -e -o stat=").contains('Z'));
    });
}

#[test]
fn a_second_lab_does_not_clash() {
    with_grid("a_second_lab_does_not_clash", 1, |first| {
        let second = grid("another", 1);
        assert_ne!(first.machine(1).addr(), second.machine(1).addr());
        assert_ne!(support::bridge(&first.lab), support::bridge(&second.lab));
        drop(second);
        shell(&first.machine(1), "touch /run/gridos/x /var/lib/gridos/x");
    });
}

#[test]
fn what_cannot_be_is_said_in_a_sentence() {
    with_grid("what_cannot_be_is_said_in_a_sentence", 1, |grid| {
        let root = grid.lab.root().to_owned();
        let config = support::config("x", 1, grid.dir.path());
        let message = LabGuard::up(config.clone()).unwrap_err().to_string();
        assert!(message.contains("is up already") && message.contains("take it down first"), "{message}");
        assert!(root.join("lab.json").exists());

        let message = grid.lab.machine("node7").unwrap_err().to_string();
        assert!(message.contains("it has node1 to node1"), "{message}");

        let elsewhere = |agent: &str| LabConfig {
            root: grid.dir.path().join("other"),
            agent: agent.into(),
            name: name("other"),
            ..config.clone()
        };
        for agent in ["/no/such/agent", "/etc/passwd", "/etc"] {
            let error = LabGuard::up(elsewhere(agent)).unwrap_err();
            assert!(matches!(error, LabError::Program { what: "agent", .. }), "{error}");
        }
        let occupied = grid.dir.path().join("occupied");
        fs::create_dir(&occupied).unwrap();
        fs::write(occupied.join("x"), "").unwrap();
        let error = LabGuard::up(LabConfig { root: occupied.clone(), ..config }).unwrap_err();
        assert!(matches!(error, LabError::Occupied(_)), "{error}");
        assert_eq!(fs::read_dir(&occupied).unwrap().count(), 1);
        assert!(matches!(Lab::open("/no/such/lab"), Err(LabError::NotFound(_))));
    });
}

#[test]
fn the_status_tells_all() {
    with_grid("the_status_tells_all", 2, |grid| {
        grid.machine(2).kill().unwrap();
        let lab = Lab::open(grid.lab.root()).unwrap();
        let status = lab.status().unwrap();
        assert!(status.complete);
        assert_eq!(status.machines.iter().map(|machine| machine.on).collect::<Vec<_>>(), [true, false]);
        assert!(status.machines[0].agent.is_some() && status.machines[1].agent.is_none());
        assert_eq!(status.subnet, format!("{}/24", status.host_addr).replace(".254/", ".0/"));
    });
}
