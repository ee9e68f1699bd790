//! Who is in a VO and who is not: tokens, revocation, certificates.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here, with the place and the cause")]

use std::time::{Duration, SystemTime};

use grid_tests::{Grid, GridConfig, until, until_within, with};
use libgrid::control::NodeState;
use libgrid::ids::NodeId;
use libgrid::spec::JobSpec;
use libgrid::units::{Bytes, Cpus};

/// "Within seconds", generously.
const SECONDS: Duration = Duration::from_secs(10);

fn small(script: &str) -> JobSpec {
    JobSpec::command(["sh", "-c", script]).cpus(Cpus::from_milli(100)).memory(Bytes(16 << 20))
}

fn on(node: &str, spec: JobSpec) -> JobSpec {
    JobSpec { nodes: vec![node.into()], ..spec }
}

/// Seconds from 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_bad_token_is_refused_with_one_sentence_and_changes_nothing() {
    // Nodes 1 and 2 are in one VO; node 4 founds another; node 3 wants to join.
    let make = || GridConfig { members: 2, ..GridConfig::new("tokens", 4) }.up();
    with("a_bad_token_is_refused_with_one_sentence_and_changes_nothing", make, |grid| {
        grid.client(3);
        grid.gridctl(4, ["vo", "create", "elsewhere"]).ok();
        let create = |node: u32, expires: &str| {
            grid.gridctl(node, ["token", "create", "--expires", expires]).ok().to_owned()
        };
        let expired = create(1, "1s");
        let ends = now() + 1;
        let used = create(1, "1h");
        let good = create(1, "1h");
        let foreign = create(4, "1h");
        // A token of the other VO with which that VO's node 3 has joined is used up there; take it first.
        let refused = |token: &str, words: &[&str]| {
            grid.gridctl(3, ["join", token]).says(words);
            let agent = grid.agent(3);
            assert_eq!((agent.vo, agent.node), (None, None), "after {words:?}");
            assert_eq!(grid.nodes_at(1).len(), 2, "after {words:?}");
        };
        refused("hello", &["this is not a token", "gridctl token create"]);
        refused("", &["this is not a token"]);
        refused(&"x".repeat(100_000), &["this is not a token"]);
        refused("grid2-abcdef", &["another release"]);
        refused(&good[..good.len() - 7], &["the token is damaged: copy the whole line again"]);
        let mut altered = good.clone().into_bytes();
        let middle = altered.len() / 2;
        altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
        refused(&String::from_utf8(altered).unwrap(), &["the token is damaged"]);
        refused(&format!("{good}{good}"), &["the token is damaged"]);
        until("the token has expired", || now() > ends);
        refused(&expired, &["expired", "gridctl token create"]);
        // Node 2 is in already: its try does not use the token up.
        grid.gridctl(2, ["join", &used]).says(&["this node is in VO vo-of-test already, as number 2"]);
        assert_eq!(grid.gridctl(3, ["join", &used]).status, 0);
        grid.until_up(3, 3);
        // Used: by a machine that is not the one that used it.
        let taken = grid.gridctl(4, ["join", &used]);
        taken.says(&["this node is in VO elsewhere already"]);
        // Foreign: node 3 cannot go over, and is where it was.
        grid.gridctl(3, ["join", &foreign]).says(&["already"]);
        assert_eq!(grid.agent(3).vo.as_deref(), Some("vo-of-test"));
        assert_eq!(grid.nodes_at(4).len(), 1);
        let job = grid.submit(3, small("true"));
        assert!(grid.wait(3, job).summary.succeeded());
    });
}

#[test]
fn a_token_lets_one_machine_in_and_no_other() {
    let make = || GridConfig { members: 1, ..GridConfig::new("single", 3) }.up();
    with("a_token_lets_one_machine_in_and_no_other", make, |grid| {
        let token = grid.token();
        let (two, three) = std::thread::scope(|scope| {
            let two = scope.spawn(|| grid.gridctl(2, ["join", &token]));
            let three = scope.spawn(|| grid.gridctl(3, ["join", &token]));
            (two.join().unwrap(), three.join().unwrap())
        });
        let (winner, loser, refused) = if two.status == 0 { (2, 3, three) } else { (3, 2, two) };
        refused.says(&["the token was used", "ask for a new one"]);
        grid.until_up(1, 2);
        grid.until_up(winner, 2);
        assert_eq!(grid.agent(loser).vo, None);
        // Whoever was refused joins with a token of its own, in the same way.
        assert!(grid.gridctl(loser, ["join", &grid.token()]).ok().contains("node 3 of VO vo-of-test"));
        (1..=3).for_each(|index| grid.until_up(index, 3));
    });
}

#[test]
fn a_token_whose_founder_cannot_be_reached_is_kept_for_later() {
    let make = || GridConfig { members: 1, ..GridConfig::new("unreachable", 2) }.up();
    with("a_token_whose_founder_cannot_be_reached_is_kept_for_later", make, |grid| {
        let token = grid.token();
        grid.client(2);
        grid.machine(1).cut().unwrap();
        let refused = grid.gridctl(2, ["join", &token]);
        let said = refused.refused(1);
        assert!(said.contains(&grid.machine(1).addr().to_string()), "{said}");
        assert_eq!(grid.agent(2).vo, None);
        grid.machine(1).heal().unwrap();
        assert_eq!(grid.gridctl(2, ["join", &token]).status, 0);
        grid.until_up(1, 2);
    });
}

#[test]
fn a_vo_has_a_good_name_and_one_founder() {
    let make = || GridConfig { members: 0, ..GridConfig::new("names", 1) }.up();
    with("a_vo_has_a_good_name_and_one_founder", make, |grid| {
        grid.client(1);
        let long = "a".repeat(64);
        for name in ["", "Lab", "two words", "under_score", "a/b", "käse", "../up", &long] {
            let refused = grid.gridctl(1, ["vo", "create", name]);
            refused.says(&["a-z"]);
            assert_eq!(grid.agent(1).vo, None, "{name:?}");
        }
        let longest = "a".repeat(63);
        assert_eq!(grid.gridctl(1, ["vo", "create", &longest]).status, 0);
        grid.gridctl(1, ["vo", "create", "other"]).says(&["already", &longest, "a node is in one VO"]);
        grid.gridctl(1, ["join", &grid.token()]).says(&["already"]);
        assert_eq!(grid.agent(1).vo, Some(longest));
        for (expires, words) in [("0s", "expires"), ("soon", "soon")] {
            let refused = grid.gridctl(1, ["token", "create", "--expires", expires]);
            assert!(refused.status != 0 && refused.stderr.contains(words), "{refused:?}");
        }
        grid.gridctl(1, ["vo", "revoke", "node7"]).says(&["there is no node node7"]);
        grid.gridctl(1, ["vo", "revoke", "77"]).says(&["no node 77"]);
        grid.gridctl(1, ["vo", "revoke", "1"]).says(&["cannot"]);
        // What it founded survives the agent.
        grid.kill_agent(1);
        assert!(grid.agent(1).authority);
    });
}

#[test]
fn a_revoked_node_is_out_everywhere_within_seconds_and_stays_out() {
    with(
        "a_revoked_node_is_out_everywhere",
        || Grid::up("revoke", 4),
        |grid| {
            let witness = grid.witness("witness");
            // Its jobs run on the others, others' jobs run on it.
            let tick = witness.script("while :; do tell tick; sleep 0.1; done");
            let its = grid.submit(4, on("node2", small(&tick)).array(0, 0));
            let ours = grid.submit(1, on("node4", small(&tick)).array(1, 1));
            let free = grid.submit(1, small(&tick).array(2, 5));
            let own = grid.submit(4, on("node4", small(&tick)).array(6, 6));
            until("all tick", || (0..=6).all(|index| witness.count(index, "tick") > 0));
            grid.until_running(4, its);
            grid.until_running(4, own);
            grid.until_running(1, ours);
            grid.until_running(1, free);
            assert!(grid.gridctl(1, ["vo", "revoke", "node4"]).ok().contains("node4 is out of the VO"));
            until_within("all others put it out", SECONDS, || {
                (1..=3).all(|index| {
                    let nodes = grid.nodes_at(index);
                    let it = nodes.iter().find(|node| node.info.node == NodeId(4));
                    !nodes.is_empty() && it.is_none_or(|node| node.state == NodeState::Revoked)
                })
            });
            until_within("its job is ended on node 2", SECONDS, || {
                grid.task_processes(2).len() == processes_of_others(grid, 2)
            });
            let ticks = witness.count(0, "tick");
            // What ran on it and may run elsewhere does so; it alone was wanted for the other.
            until("the free ones run elsewhere", || {
                let status = grid.job(1, free);
                status.tasks.iter().all(|task| task.node != Some(NodeId(4)) && task.started.is_some())
            });
            until("the bound one waits and says why", || {
                grid.job(1, ours).summary.why.is_some_and(|why| why.contains("node4"))
            });
            (2..6).for_each(|index| witness.never_overlapped(index));
            assert_eq!(witness.count(0, "tick"), ticks, "a revoked node's job still runs");

            // It knows, and tells whoever uses it.
            until_within("it has heard of it", SECONDS, || {
                grid.gridctl(4, ["doctor"]).stdout.contains("was put out of")
            });
            grid.gridctl(4, ["submit", "--", "true"]).says(&["put out of", "join with a new token"]);
            grid.gridctl(4, ["join", "a-token"]).says(&["put out of", "join with a new token"]);
            until("what ran on it for others has ended", || processes_of_others(grid, 4) == 0);
            let ticks = witness.count(6, "tick");
            until("its own job runs on", || witness.count(6, "tick") > ticks);
            // It cannot come back, neither by itself nor after a restart.
            let shut_out = |when: &str| {
                let asked = grid.gridctl(4, ["status", &free.to_string()]);
                assert_ne!(asked.status, 0, "{when}: {asked:?}");
                for index in 1..=3 {
                    let nodes = grid.nodes_at(index);
                    let up =
                        nodes.iter().any(|node| node.info.node == NodeId(4) && node.state == NodeState::Up);
                    assert!(!up, "{when}: node {index} sees it up");
                }
            };
            shut_out("at once");
            grid.kill_agent(4);
            grid.client(4);
            shut_out("after its agent was killed");
            grid.machine(4).kill().unwrap();
            grid.machine(4).boot().unwrap();
            until("what was lost with it does not begin again", || {
                grid.gridctl(4, ["status", &own.to_string()]).stdout.contains("4, is drained")
            });
            assert_eq!(grid.task_processes(4), [] as [i32; 0]);
            // Also not with the help of a node that was away when it happened.
            for index in 2..=3 {
                grid.kill_agent(index);
                grid.client(index);
            }
            (1..=3).for_each(|index| {
                until("the three see each other", || {
                    grid.nodes_at(index).iter().filter(|node| node.state == NodeState::Up).count() == 3
                });
            });
            shut_out("after the others' agents were killed");
            // Again is not needed, and the rest of the VO goes on.
            let again = grid.gridctl(1, ["vo", "revoke", "4"]);
            assert!(again.status <= 1, "{again:?}");
            let job = grid.submit(3, on("node2", small("true")));
            assert!(grid.wait(3, job).summary.succeeded());
        },
    );
}

/// How many processes the tasks on a node have that are not of jobs of node 4.
fn processes_of_others(grid: &Grid, index: u32) -> usize {
    let of = |pid: &i32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_its =
        |pid: &&i32| of(pid).split(|byte| *byte == 0).any(|word| word.starts_with(b"GRIDOS_JOB=j4."));
    grid.task_processes(index).iter().filter(|pid| !is_its(pid)).count()
}

#[test]
fn a_node_that_was_away_hears_of_a_revocation_when_it_is_back() {
    with(
        "a_node_that_was_away_hears_of_a_revocation",
        || Grid::up("away", 3),
        |grid| {
            grid.machine(3).cut().unwrap();
            assert_eq!(grid.gridctl(1, ["vo", "revoke", "node2"]).status, 0);
            grid.machine(3).heal().unwrap();
            until_within("node 3 has heard of it", Duration::from_secs(30), || {
                let nodes = grid.nodes_at(3);
                let state = |number| {
                    let node = nodes.iter().find(|node| node.info.node == NodeId(number));
                    node.map(|node| node.state)
                };
                state(1) == Some(NodeState::Up) && state(2).is_none_or(|state| state == NodeState::Revoked)
            });
            let job = grid.submit(3, on("node1", small("true")));
            assert!(grid.wait(3, job).summary.succeeded());
        },
    );
}

#[test]
fn certificates_renew_themselves_and_nobody_notices() {
    let make = || GridConfig { extra: "certificates = \"6s\"", ..GridConfig::new("renew", 2) }.up();
    with("certificates_renew_themselves_and_nobody_notices", make, |grid| {
        let witness = grid.witness("witness");
        let job =
            grid.submit(1, on("node2", small(&witness.script("while :; do tell tick; sleep 0.1; done"))));
        let first = [grid.agent(1).certificate_ends.unwrap(), grid.agent(2).certificate_ends.unwrap()];
        assert!(first.iter().all(|ends| *ends <= now() + 7));
        // Three lifetimes.
        until("the certificates are new, and new again", || {
            let ends = [grid.agent(1).certificate_ends.unwrap(), grid.agent(2).certificate_ends.unwrap()];
            assert!(ends.iter().all(|ends| *ends >= now()), "one ran out");
            ends.iter().zip(first).all(|(ends, first)| *ends > first + 12)
        });
        // Old connections are worth nothing now; requests and tasks go on, new ones as well.
        assert_eq!(grid.job(2, job).tasks[0].epoch, 1);
        let ticks = witness.count(0, "tick");
        until("it ticks on", || witness.count(0, "tick") > ticks + 3);
        let other = grid.submit(2, on("node1", small("echo fresh")));
        assert!(grid.wait(2, other).summary.succeeded());
        assert_eq!(grid.gridctl(1, ["logs", &other.to_string()]).ok(), "fresh");
        grid.kill_agent(2);
        grid.until_up(2, 2);
        assert_eq!(grid.job(2, job).tasks[0].epoch, 1);
    });
}
