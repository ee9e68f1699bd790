//! Each program of the matrix over one, two and three hops. Those that are typed into meanwhile are in `typed.rs`.

use libgrid::spec::Net;

use super::*;

/// The programs that are checkpointed, too, and one with connections, which live through moves alone.
fn all() -> Vec<Program> {
    programs::all().into_iter().chain([connections::row()]).collect()
}

/// One program, in both ways: there; there and back; three hops.
fn matrix(test: &str, name: &str) {
    let program = all().into_iter().find(|program| program.name == name).unwrap();
    over(test, &program, &[&[3], &[3, 2], &[3, 1, 2]]);
}

/// One program over each of these ways.
fn over(test: &str, program: &Program, ways: &[&[u32]]) {
    let name = program.name;
    with(test, shared, |grid: &Arc<Grid>| {
        if !moves(grid) || name == "tcp" && !connections::addresses(grid) {
            return;
        }
        let net = if name == "tcp" { Net::Grid } else { Net::Host };
        let mut modes = vec![MoveMode::StopAndCopy, MoveMode::Hybrid];
        // Where it cannot be, `precopy.rs` tries it in a machine of its own.
        modes.extend(has_soft_dirty(grid).then_some(MoveMode::PreCopy));
        for (mode, way) in modes.into_iter().flat_map(|mode| ways.iter().map(move |way| (mode, way))) {
            let mut spec = spec(grid, program).net(net);
            if mode == MoveMode::Hybrid {
                // What processes share by fork each has for itself afterwards.
                spec = spec.memory(Bytes((2 * program.memory) << 20));
            }
            let job = begin(grid, 2, spec);
            let mut stopped = Vec::new();
            for to in *way {
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
    a_quarter_of_a_gibibyte_moves: "memory",
    established_tcp_moves: "tcp",
}

/// One hop alone: all of it goes through the store of both nodes, and in a debug build, on two busy cores, that took 41 s of the
/// 128 s that this test needed.
#[test]
fn a_gibibyte_moves() {
    over("a_gibibyte_moves", &programs::memory(1024), &[&[3]]);
}
