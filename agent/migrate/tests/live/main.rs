//! Programs that are moved while they run, by the real CRIU, and look by themselves whether all is as it has to be.
//!
//! Needs root, CRIU and `cc`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod dump;
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod rig;

use rig::{GiveUp, Rig, Way};

const WAYS: [Way; 2] = [Way::Lazy, Way::Hidden];

fn moves(name: &str, arguments: &[&str]) {
    for way in WAYS {
        let mut rig = Rig::new(name, arguments);
        let outcome = rig.migrate(way, GiveUp::Never);
        rig.run_on();
        let verdict = rig.verdict();
        println!("FIGURE {name} {arguments:?} {way:?}: {outcome:?} {verdict}");
        assert!(verdict.ends_with("OK\n") && !verdict.contains("BAD"), "{way:?}: {verdict}");
    }
}

fn stays(name: &str, arguments: &[&str], give_up: GiveUp) {
    for way in WAYS {
        if (way, give_up) == (Way::Lazy, GiveUp::Made) {
            // Only the library can hold a restore there.
            continue;
        }
        let mut rig = Rig::new(name, arguments);
        rig.migrate(way, give_up);
        rig.run_on();
        let verdict = rig.verdict();
        assert!(verdict.ends_with("OK\n") && !verdict.contains("BAD"), "{way:?}, {give_up:?}: {verdict}");
    }
}

#[test]
fn a_counter_goes_on_counting() {
    moves("counter", &[]);
}

#[test]
fn eight_threads_keep_their_turns() {
    moves("threads", &[]);
}

#[test]
fn memory_that_is_mapped_moved_and_given_back_meanwhile_is_right() {
    moves("churn", &[]);
}

#[test]
fn a_tree_of_twenty_processes_moves() {
    moves("tree", &[]);
}

#[test]
fn children_that_come_and_go_lose_nothing() {
    moves("forks", &[]);
}

#[test]
fn a_quarter_of_a_gibibyte_moves_while_it_is_written() {
    moves("dirty", &["256", "50"]);
}

#[test]
fn a_gibibyte_moves_while_it_is_written() {
    moves("dirty", &["1024", "50"]);
}

#[test]
fn whoever_gives_up_leaves_the_program_as_it_was() {
    for give_up in [
        GiveUp::Attached,
        GiveUp::FirstRound,
        GiveUp::Frozen,
        GiveUp::Dumped,
        GiveUp::DumpedAndKilled,
        GiveUp::Restoring,
        GiveUp::Made,
    ] {
        for name in ["churn", "tree"] {
            stays(name, &[], give_up);
        }
    }
}
