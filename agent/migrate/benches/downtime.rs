//! How long a program stands still, by its own clock: memory moved ahead, in both ways, against plain CRIU, in turn.
//!
//! `cargo bench -p grid-migrate -- [RUNS [MIB MB_PER_SECOND]]`; three runs of each by default. Prints `FIGURE` lines; nothing is asserted but
//! that no value was lost. Needs root, CRIU and `cc`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]

#[path = "../tests/live/dump.rs"]
mod dump;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/live/rig.rs"]
mod rig;

use rig::{GiveUp, Rig, Way};

/// Resident MiB, and MB dirtied in each second.
const CASES: [(u32, u32); 6] = [(64, 0), (64, 50), (256, 0), (256, 50), (1024, 0), (1024, 50)];

const SUBJECTS: [(&str, Option<Way>); 3] =
    [("hidden", Some(Way::Hidden)), ("lazy", Some(Way::Lazy)), ("plain", None)];

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let runs = numbers.first().copied().unwrap_or(3);
    let cases = match numbers.get(1..3) {
        Some(&[mib, rate]) => vec![(mib, rate)],
        _ => CASES.to_vec(),
    };
    for (mib, rate) in cases {
        let mut gaps = SUBJECTS.map(|_| Vec::new());
        for _ in 0..runs {
            for ((name, way), gaps) in SUBJECTS.into_iter().zip(&mut gaps) {
                let (gap, detail) = run(mib, rate, way);
                println!("RUN {name} {mib} MiB {rate} MB/s {gap:.1} ms {detail}");
                gaps.push(gap);
            }
        }
        for gaps in &mut gaps {
            gaps.sort_by(f64::total_cmp);
        }
        let median = gaps.clone().map(|gaps| gaps[gaps.len() / 2]);
        for ((name, _), gaps) in SUBJECTS.into_iter().zip(&gaps) {
            let (middle, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
            let ratio = median[2] / middle;
            println!(
                "FIGURE downtime {name} {mib} MiB {rate} MB/s: median {middle:.1} ms, worst {worst:.1} ms of {runs}, plain/this {ratio:.1}"
            );
        }
    }
}

fn run(mib: u32, rate: u32, way: Option<Way>) -> (f64, String) {
    let mut rig = Rig::new("dirty", &[&mib.to_string(), &rate.to_string()]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let detail = match way {
        Some(way) => {
            let outcome = rig.migrate(way, GiveUp::Never);
            let (frozen, dumped, restored) = (outcome.frozen, outcome.dumped, outcome.restored);
            let checked = outcome.checked;
            let (last, rounds) = (outcome.last, outcome.rounds.len());
            format!(
                "frozen {frozen:?} dumped {dumped:?} checked {checked:?} restored {restored:?}, {rounds} rounds, then {} KiB: scan {:?} copy {:?}",
                last.bytes >> 10,
                last.scan,
                last.copy
            )
        }
        None => {
            rig.migrate_plainly();
            String::new()
        }
    };
    rig.run_on();
    let verdict = rig.verdict();
    assert!(verdict.ends_with("OK\n") && !verdict.contains("BAD"), "{verdict}");
    let gap = verdict.lines().find_map(|line| line.strip_prefix("gap ")?.strip_suffix(" ms"));
    (gap.and_then(|gap| gap.parse().ok()).expect("the program told no gap"), detail)
}
