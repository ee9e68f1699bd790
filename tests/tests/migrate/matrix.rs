//! Each program of the matrix over one, two and three hops. Those that are typed into meanwhile are in `typed.rs`.

use libgrid::spec::Net;

use super::*;

/// There; there and back; three hops.
const WAYS: [&[u32]; 3] = [&[3], &[3, 2], &[3, 1, 2]];

/// The programs that are checkpointed, too, the one with memory with more of it, and one with connections, which live through
/// moves alone.
fn all() -> Vec<Program> {
    let larger = |program: Program| match program.name {
        "memory" => programs::memory(1024),
        _ => program,
    };
    programs::all().into_iter().map(larger).chain([connections::row()]).collect()
}

/// One program, by each mode, over each of the ways.
fn matrix(test: &str, name: &str) {
    let program = all().into_iter().find(|program| program.name == name).unwrap();
    with(test, shared, |grid: &Arc<Grid>| {
        if !moves(grid) || name == "tcp" && !connections::addresses(grid) {
            return;
        }
        let net = if name == "tcp" { Net::Grid } else { Net::Host };
        let mut modes = vec![MoveMode::StopAndCopy, MoveMode::Hybrid];
        // Where it cannot be, `precopy.rs` tries it in a machine of its own.
        modes.extend(has_soft_dirty(grid).then_some(MoveMode::PreCopy));
        for (mode, way) in modes.into_iter().flat_map(|mode| WAYS.map(|way| (mode, way))) {
            let mut spec = spec(grid, &program).net(net);
            if mode == MoveMode::Hybrid {
                // What processes share by fork each has for itself afterwards.
                spec = spec.memory(Bytes((2 * program.memory) << 20));
            }
            let job = begin(grid, 2, spec);
            let mut stopped = Vec::new();
            for to in way {
                // Asked on a node that need not have to do with it.
                let moved = hop_by(grid, 3, job, *to, mode);
                stopped.push(stood(&moved));
            }
            let printed = verdict(grid, job, name);
            if name == "counter" {
                let numbers: Vec<u64> = printed.lines().filter_map(|line| line.parse().ok()).collect();
                assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{printed}");
            }
            println!("FIGURE {name} over {way:?}, {mode}: stood still {}", stopped.join(", "));
        }
    });
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                matrix(stringify!($test), $name);
            }
        )*

        #[test]
        fn every_program_has_its_row() {
            let names: Vec<_> = all().iter().map(|program| program.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

rows! {
    a_counter_moves: "counter",
    threads_with_locks_move: "threads",
    a_shell_pipeline_moves: "pipeline",
    a_tree_of_fifty_processes_moves: "tree",
    python_with_threads_moves: "python",
    appended_and_mapped_files_move: "files",
    deleted_files_move: "deleted",
    unix_sockets_move: "sockets",
    timers_and_signals_move: "timers",
    zombies_move: "zombies",
    a_gibibyte_moves: "memory",
    established_tcp_moves: "tcp",
}
